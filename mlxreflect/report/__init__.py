"""Reports for a person: tables, stories, plots, Markdown."""
