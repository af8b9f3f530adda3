"""What a person does before a run: init, doctor, dry run."""
