"""One room a method: its keys, checks, waves and examples."""
