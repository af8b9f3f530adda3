"""Steps before a run: init, doctor, dry run."""
