"""Lists the files and functions of the package that a command enters: how far a reader has to go.

    python tests/bench/journey.py eval countdown --model tiny --limit 8 --cache off
    python tests/bench/journey.py --files train dpo --data pairs.jsonl

It runs the command in this process, threads included, and prints two numbers: the files of
mlxreflect that had a function called, and those functions. What runs while a module is imported
does not count: a reader skips it. --files lists the files with the functions entered in each,
--functions names them too.
"""

import argparse
import sys
import threading
from collections import defaultdict
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import mlxreflect

PACKAGE = str(Path(mlxreflect.__file__).parent)
INLINED = ("<lambda>", "<listcomp>", "<genexpr>", "<dictcomp>", "<setcomp>")


def journey(arguments: list[str]) -> dict[str, set[str]]:
    """Returns file → names of the functions entered while the command runs."""
    seen: set[CodeType] = set()

    def profile(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        ours = event == "call" and code.co_filename.startswith(PACKAGE)
        if ours and code not in seen and not importing(frame):
            seen.add(code)

    from mlxreflect.cli.main import main

    sys.argv = ["mlxreflect", *arguments]
    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return by_file(seen)


def importing(frame: FrameType | None) -> bool:
    """Tells if a module of the package is being imported: a table made there is no journey."""
    while frame:
        if frame.f_code.co_name == "<module>" and frame.f_code.co_filename.startswith(PACKAGE):
            return True
        frame = frame.f_back
    return False


def by_file(seen: set[CodeType]) -> dict[str, set[str]]:
    entered: dict[str, set[str]] = defaultdict(set)
    for code in seen:
        # Bodies of modules and classes have no fast locals; functions do.
        if code.co_flags & 0x2 and code.co_name not in INLINED:
            entered[code.co_filename.removeprefix(PACKAGE + "/")].add(code.co_qualname)
    return entered


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", action="store_true")
    parser.add_argument("--functions", action="store_true")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    asked = parser.parse_args()
    entered = journey(asked.command)
    for file, names in sorted(entered.items()) if asked.files or asked.functions else ():
        print(f"{len(names):4}  {file}", file=sys.stderr)
        for name in sorted(names) if asked.functions else ():
            print(f"      {name}", file=sys.stderr)
    total = sum(map(len, entered.values()))
    print(f"{len(entered)} files, {total} functions", file=sys.stderr)


if __name__ == "__main__":
    main()
