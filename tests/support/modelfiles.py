"""A reader of Modelfiles, after Ollama's reference and what Ollama 0.32 makes of them."""

import re

NAMES = ("FROM", "PARAMETER", "TEMPLATE", "SYSTEM", "ADAPTER", "LICENSE", "MESSAGE", "REQUIRES")
INSTRUCTION = re.compile(r"([A-Za-z]+)[ \t](.*)", re.DOTALL)
KEYED = {
    "PARAMETER": re.compile(r"(\w+)[ \t](.*)", re.DOTALL | re.ASCII),
    "MESSAGE": re.compile(r"(system|user|assistant)[ \t](.*)", re.DOTALL),
}


def read_modelfile(text: str) -> list[tuple[str, str]]:
    """Returns the instructions of a Modelfile and their values, such as ("PARAMETER top_p", "1").

    A value ends with its line. One that begins with quotes, three marks or one, ends with the first
    line that ends with the same. What cannot be printed is dropped from it. Raises ValueError.
    """
    found: list[tuple[str, str]] = []
    lines = iter(re.findall(r"[^\r\n]*[\r\n]|[^\r\n]+$", text))
    for line in lines:
        told = line.strip(" \t\r\n")
        if not told or told.startswith("#"):
            continue
        said = INSTRUCTION.fullmatch(line.lstrip(" \t"))
        if not said or said[1].upper() not in NAMES:
            raise ValueError(f"no instruction: {line!r}")
        name, value = said[1].upper(), said[2]
        if name in KEYED:
            if not (keyed := KEYED[name].fullmatch(value)):
                raise ValueError(f"no key: {line!r}")
            name, value = f"{name} {keyed[1]}", keyed[2]
        while (bare := unquoted(value)) is None:
            if (more := next(lines, None)) is None:
                raise ValueError(f"quotes without an end: {value!r}")
            value += more
        found.append((name, bare))
    if "FROM" not in dict(found):
        raise ValueError("no FROM")
    return found


def unquoted(value: str) -> str | None:
    """Returns a value without its quotes; None where they have no end yet."""
    value = "".join(c for c in value if c.isprintable() or c in "\r\n\t").strip()
    for quotes in ('"""', '"'):
        if value.startswith(quotes):
            ends = len(value) >= 2 * len(quotes) and value.endswith(quotes)
            return value[len(quotes) : -len(quotes)] if ends else None
    return value
