"""mlxreflect: make small language models reason better on your own Mac, and prove that it did."""
