"""Loading, chat templates, generation, fusing; the embedded policy."""
