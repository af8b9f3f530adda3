"""Anyone's rows, and training data in the forms of others."""
