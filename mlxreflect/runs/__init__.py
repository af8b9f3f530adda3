"""A run from its first problem to its verdict, in a folder that can be resumed."""
