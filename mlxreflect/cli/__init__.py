"""Commands of `mlxreflect`, one file a group."""
