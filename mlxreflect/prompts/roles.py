"""Every role that a model is asked to play: what it is shown, in which order, and its last line.

Instructions stand in the system message, data in the user message, between delimiters that the
data cannot close. A message list with a system part is folded into one user message by
`policy.Policy.encode` for models whose chat template knows no system role. Nothing else in the
project puts a prompt together.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlxreflect.core.records import Messages, Visibility
from mlxreflect.prompts.parsing import TAGS
from mlxreflect.prompts.templates import BUNDLED, Templates

Data = str | Sequence[str] | None


@dataclass(frozen=True)
class Role:
    """A role is called as its template.

    shows: parts of the user message in their order. `question` stands as a task shows it; each
        other part is quoted between tags of its name, and `<question>` is the question in tags.
        A part without data is left out; one with several texts is quoted text by text.
    cue: the last line.
    seen: what its writer has seen. None: the answer where the problem has one, else a verdict.
    text, feedback: the parts that a critic which reads no prompt (the solver) works on.
    quotes: texts of the policy and of a critic in a prompt, for estimates of its length.
    graph: it writes a whole solution, which begins with a graph in the style "graph".
    recorded: the role of its turns, where that is another.
    """

    shows: tuple[str, ...]
    cue: str = ""
    seen: Visibility | None = None
    text: str = ""
    feedback: str = ""
    quotes: tuple[int, int] = (0, 0)
    graph: bool = False
    recorded: str = ""


QUESTION = ("question",)
ATTEMPT = ("question", "attempt")
PASSAGES = ("<question>", "passage")
# Passages hold the answer and how it comes about: whoever is shown them has seen the solution.
ROLES: dict[str, Role] = {
    **{f"attempt_{style}": Role(QUESTION) for style in ("thinking", "graph", "direct", "explore")},
    "critique": Role((*ATTEMPT, "expected", "example"), "Reflect:", None, "attempt", "", (1, 0)),
    "check": Role(ATTEMPT, "Reflect:", "none", "attempt", "", (1, 0)),
    "reflection": Role(ATTEMPT, "Reflect:", "verdict", "attempt", "", (1, 0)),
    "reflect_and_retry": Role(ATTEMPT, "Reflect:", "none", "attempt", "", (1, 0)),
    "rewrite": Role((*ATTEMPT, "feedback", "expected"), "Retry:", None, "attempt", "feedback",
                    (1, 1), graph=True),
    "continue": Role(("question", "working", "hint"), "Continue:", "verdict", "working", "hint",
                     (1, 1), graph=True),
    "integrate": Role(("question", "text"), "Solution:", "none", "text", "", (2, 1), graph=True),
    "expand": Role(("question", "notes"), "Working:", "none", "notes", recorded="integrate"),
    "judge": Role((*ATTEMPT, "expected"), "Verdict:", None, "attempt", "", (1, 0)),
    "prefer": Role(("question", "attempt-A", "attempt-B"), "Better:", "none", "attempt-A",
                   "attempt-B", (0, 2)),
    "score": Role(ATTEMPT, "Marks:", "none", "attempt", "", (1, 0)),
    "answer": Role(("question", "expected"), "Solution:", graph=True),
    "pose": Role(("passage",), "Question:", "none", "passage"),
    "extract": Role(PASSAGES, "Sections:", "gold_solution", "passage"),
    "ground": Role((*PASSAGES, "sections"), "Answer:", "gold_solution", "sections", "", (0, 1)),
    "support": Role((*PASSAGES, "attempt"), "Verdict:", "gold_solution", "attempt", "", (1, 0)),
}  # fmt: skip


def role_messages(
    role: str, tags: str, templates: Templates = BUNDLED, /, **data: Data
) -> Messages:
    """Returns the prompt of a role.

    tags: the name of the tags of a thought. data: its parts by name (`attempt_A` for `attempt-A`),
    and what fills the places of its template, such as `instruction`.
    """
    start, end = TAGS[tags]
    places = {name: text for name, text in data.items() if isinstance(text, str)}
    system = templates.fill(role, open=start, close=end, **places)
    parts = [text for name in ROLES[role].shows for text in quoted(name, data)]
    said = "\n".join(part for part in (*parts, ROLES[role].cue) if part)
    return [{"role": "system", "content": system}, {"role": "user", "content": said}]


def quoted(name: str, data: Mapping[str, Data]) -> list[str]:
    """A part as it stands in a prompt, text by text."""
    texts = part(name, data)
    return texts if name == "question" else [quote(name.strip("<>"), text) for text in texts]


def part(name: str, data: Mapping[str, Data]) -> list[str]:
    """The texts of a part: none, one or several."""
    found = data.get(name.strip("<>").replace("-", "_"))
    if found is None:
        return []
    return [found] if isinstance(found, str) else list(found)


def quote(tag: str, text: str) -> str:
    """Text as data between <tag> and </tag>; closing tags in it, however spelled, are defused."""
    closing = rf"</(?=\s*{re.escape(tag)}\s*>)"
    return f"<{tag}>\n{re.sub(closing, '< /', text.strip(), flags=re.IGNORECASE)}\n</{tag}>"
