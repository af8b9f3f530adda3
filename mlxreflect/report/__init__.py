"""What a person reads of a run: tables, stories, plots, Markdown."""
