"""A small corpus of a person's own texts, and a teacher that is asked about it over a socket."""

import json
from pathlib import Path
from typing import Any

TEXTS = {
    "bees.md": "# Bees\n\nBees gather nectar from flowers and make honey of it in summer.",
    "rain.txt": "Rain falls on the hills, runs down in brooks and ends in the grey sea.",
    "iron.txt": "Iron rusts in wet air, and a coat of paint keeps water away from it for years.",
}


def write_corpus(folder: Path) -> Path:
    folder.mkdir()
    for name, text in TEXTS.items():
        (folder / name).write_text(text)
    return folder


def teacher(body: dict[str, Any]) -> str:
    """A reply that depends on nothing but the request."""
    asked = body["messages"]
    said = asked[-1]["content"]
    if said.endswith("Question:"):
        return f"What follows from {body['options']['seed'] % 10_000} and {len(said)}?"
    if said.endswith("Sections:"):
        names = asked[0]["content"].partition("sections: ")[2].partition(". Each")[0].split("; ")
        return json.dumps({"sections": [{"name": n, "text": f"On {n}."} for n in names]})
    if said.endswith("Answer:"):
        return f"<answer>{len(said)} of them</answer>"
    verdict = "right" if "of them</answer>" in said else "wrong"
    return json.dumps({"step": "", "why": "looked", "verdict": verdict})
