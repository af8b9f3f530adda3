"""Every key of a recipe, an evaluation and a training, and how TOML becomes an object."""
