"""`python -m mlxreflect`."""

from mlxreflect.cli import main

main()
