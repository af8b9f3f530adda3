"""`python -m mlxreflect`."""

from mlxreflect.cli.main import main

main()
