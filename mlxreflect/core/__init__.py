"""Records, errors, journal, caches, seeds and the terminal: what every room stands on."""
