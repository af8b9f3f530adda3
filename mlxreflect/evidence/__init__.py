"""Evidence: evaluations on disk, paired and tested, and what the figures say in words."""
