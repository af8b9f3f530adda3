"""Templates: wording with named places such as {instruction}, which a person may replace.

What is put into a place is never read as a template itself, so braces in data stay braces.
"""

import hashlib
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlxreflect.errors import UserError


@dataclass(frozen=True)
class Templates:
    """wording: name → text. In it {{ and }} stand for braces."""

    wording: Mapping[str, str]

    def fill(self, name: str, **data: str) -> str:
        return self.wording[name].format(**data)

    def version(self, name: str) -> str:
        """Eight hex digits that change with the wording: part of every critic cache key."""
        return hashlib.sha256(self.wording[name].encode()).hexdigest()[:8]

    def replaced(self, wording: Mapping[str, str]) -> "Templates":
        return Templates({**self.wording, **wording})

    def check(self, wording: Mapping[str, Any], where: str) -> dict[str, str]:
        """Replacements for these templates. Raises UserError naming `where` and the key."""
        for name, text in wording.items():
            if name not in self.wording:
                raise UserError(
                    f"{where}: there is no template {name!r}",
                    f"known are: {', '.join(self.wording)}",
                )
            if not isinstance(text, str):
                raise UserError(f"{where}: {name} = {text!r} is no text", f'write {name} = """…"""')
            self.check_places(name, text, where)
        return dict(wording)

    def check_places(self, name: str, text: str, where: str) -> None:
        braces = "write {{ and }} for braces that are no place"
        known = places(self.wording[name])
        show = ", ".join(f"{{{place}}}" for place in sorted(known)) or "none"
        try:
            found = places(text)
        except ValueError as error:
            raise UserError(f"{where}: {name}: {error}", f"{braces}; its places: {show}") from None
        if strange := sorted(found - known):
            raise UserError(
                f"{where}: {name} has an unknown place {{{strange[0]}}}",
                f"its places: {show}; {braces}",
            )
        if missing := sorted(known - found):
            raise UserError(
                f"{where}: {name} has no {{{missing[0]}}}", f"put all of its places in: {show}"
            )


def places(text: str) -> set[str]:
    """The names in braces. Raises ValueError for braces that do not match or hold more."""
    found = set()
    for _, name, spec, conversion in string.Formatter().parse(text):
        if name is None:
            continue
        if spec or conversion:
            raise ValueError(f"{{{name}}} with a format or conversion")
        found.add(name)
    return found
