"""Multiple choice: the options of a row, the letter that a response names, and when it is right."""

import json
import re
import string
from typing import Any

from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Problem
from mlxreflect.graders import (
    ASIDE,
    MAX_TEXT,
    RETRACTED,
    WRAPPED,
    Judged,
    blocks,
    main_clause,
    normal_text,
    phrases,
    rules_of,
    said_part,
    statements,
    untagged,
)
from mlxreflect.prompts.parsing import Parsed

MAX_LINE = 400  # characters after "answer is" that are looked at
LETTERS = string.ascii_uppercase
DECORATION = " \t\r\n*`$_\"'✅✔☑👉\ufe0f"
CHOICE_COLUMNS = ("choices", "options")
WHOLE = re.compile(r"(?:\[\[|\{)([^\[\]{}]{0,80})(?:\]\]|\})")
LEAD_IN = re.compile(
    r"(?:[^.\n]{1,60}[,;] (?=(?:so|thus|hence|therefore) ))?(?:(?:so|thus|hence|therefore)(?:,? "
    r"|(?=,? [A-Z(])))?(?:(?:it|this)(?:['’]s| (?:is|must be|has to be|should be)) |"
    r"(?:I(?:['’](?:d|ll)| would| will)? )?(?:choose|pick|select|go with) |)"
    r"(?:(?:the |my )?(?:(?:correct|right|best|final) )*(?:answer|option|choice|letter)(?: is"
    r"| would be)?[: ] *)?",
    re.IGNORECASE,
)
LETTER = re.compile(
    r"[(\[]?([A-Za-z])(?:[)\]][.:]?|[.:](?=\s|$)|\s{1,3}[-–—](?=\s)|$|((?:,|\s{1,3}=)(?=\s)"
    r"|(?=\s{1,3}\())"
    r")\s*"
)
VERDICT = re.compile(r" is (?:the )?(?:correct|right|best|one)(?: answer| option| choice)?$")
# "answer is B because …", "Answer: (B), as …": a letter in a sentence.
SPOKEN = re.compile(
    r"[\s:*_$`\"'\\]{0,8}(?:(?:most |almost )?(?!un)(?:[a-z]{3,10}ly|indeed) )?"
    r"(?:(?:[Oo]ption|[Cc]hoice|[Ll]etter)\s{1,3})?"
    r"(?:[(\[]([A-Za-z])[)\]]|([A-Z])(?=[.,;:)*`$\"'}\]]|\s*$|\s*\n))"
)
# What follows a letter when more than one is named: "A or B", "A) B) C)".
ANOTHER = re.compile(r"(?:or\b|and\b|[/,&]|\(?[A-Z](?:[).:,]|$))", re.IGNORECASE)


def read_choices(raw: Any) -> dict[str, str]:
    """Returns the options as letter → text, in order.

    raw: a list of texts, a list of {"label", "text"}, {"label": [...], "text": [...]} or
        {"A": "…", "B": "…"}; None or empty where the question itself lists them.
    Raises UserError for anything else.
    """
    return dict(zip(LETTERS, (text for _, text in labelled(raw)), strict=False))


def labelled(raw: Any) -> list[tuple[str, str]]:
    """Returns the options as (label as written, text)."""
    if isinstance(raw, str) and raw.strip().startswith(("[", "{")):  # a cell of a CSV file
        try:
            raw = json.loads(raw)
        except ValueError:
            raw = [raw]  # told below what it should be
    if raw is None or raw == [] or raw == {}:
        return []
    pairs: list[tuple[Any, Any]] = []
    if isinstance(raw, dict) and isinstance(raw.get("text"), list):
        labels = raw.get("label")
        labels = labels if isinstance(labels, list) else LETTERS
        pairs = list(zip(labels, raw["text"], strict=False))
    elif isinstance(raw, dict):
        pairs = list(raw.items())
    elif isinstance(raw, list) and all(isinstance(item, dict) for item in raw):
        pairs = [
            (item.get("label", item.get("key")), item.get("text", item.get("value")))
            for item in raw
        ]
    elif isinstance(raw, list) and len(raw) <= len(LETTERS):
        pairs = list(zip(LETTERS, raw, strict=False))
    fine = all(isinstance(t, (str, int, float)) and str(t).strip() for _, t in pairs)
    if not fine or not 2 <= len(pairs) <= len(LETTERS):
        raise UserError(
            f"choices {str(raw)[:60]!r}: not a list of 2 to {len(LETTERS)} texts",
            'write "choices": ["first", "second"] or {"A": "first", "B": "second"}',
        )
    return [(str(label).strip(), str(text).strip()) for label, text in pairs]


def gold_letter(raw: object, options: Any) -> str | None:
    """Reads a row's answer: a label, the text of a choice, or (an integer) its index.

    Returns the letter; None where the answer names no choice.
    """
    if isinstance(raw, bool) or not isinstance(raw, (str, int, float)):
        return None
    text, pairs = str(raw).strip(), labelled(options)
    labels = [label.casefold() for label, _ in pairs]
    if text.casefold() in labels:
        return LETTERS[labels.index(text.casefold())]
    numeric = isinstance(options, list) and any(isinstance(o, (int, float)) for o in options)
    if isinstance(raw, int) and pairs and not numeric:  # an index from 0, as in MMLU
        return LETTERS[raw] if 0 <= raw < len(pairs) else None
    return read_letter(text, dict(zip(LETTERS, (text for _, text in pairs), strict=False)))


def read_letter(answer: str, choices: dict[str, str]) -> str | None:
    """Reads the choice an answer names: "A", "(A)", "a.", "A) text" or the full text of the choice.

    None for no choice, for more than one, and for a letter beside the text of another choice.
    """
    if len(answer) > MAX_TEXT:
        return None
    answer = WRAPPED.sub(r"\1", WRAPPED.sub(r"\1", untagged(answer))).replace("**", "")
    answer = WHOLE.sub(r"\1", answer).rstrip(",;! \t\r\n").lstrip("# ").strip(DECORATION)
    bare = answer
    for _ in range(2):  # "the answer is option B"
        if lead := LEAD_IN.match(bare):
            bare = bare[lead.end() :].strip(DECORATION)
    bare = VERDICT.sub("", bare.rstrip(".!") if VERDICT.search(bare.rstrip(".!")) else bare)
    match = LETTER.match(bare)
    letter, rest = (match[1].upper(), bare[match.end() :]) if match else ("", "")
    if not letter or rest:
        named = {letter for text in (answer, bare) for letter in letters_of(text, choices)}
        if len(named) == 1:
            return named.pop()
    if not letter or (choices and letter not in choices):
        return None
    others = letters_of(rest.partition("\n")[0].strip("(). "), choices) if rest else []
    if (others and letter not in others) or (
        not others and (ANOTHER.match(rest) or (match and match[2] is not None))
    ):
        return None
    return letter


def letters_of(text: str, choices: dict[str, str]) -> list[str]:
    """Returns the letters of the choices with this text."""
    if len(text) > MAX_TEXT:
        return []
    wanted = normal_text(text)  # once, for a hostile text takes milliseconds
    return [
        letter
        for letter, choice in choices.items()
        if len(choice) <= MAX_TEXT and normal_text(choice) == wanted
    ]


def spoken_letter(after: str, choices: dict[str, str]) -> str | None:
    """Reads the choice named right after "answer is" or "answer:"; None where it hedges."""
    if len(after) > MAX_TEXT:
        return None
    if letter := read_letter(after.strip(), choices):
        return letter
    line = main_clause(after.lstrip()[:MAX_LINE].split("\n", 1)[0], ASIDE)
    line = WRAPPED.sub(r"\1", WRAPPED.sub(r"\1", line))
    if letter := read_letter(line, choices):
        return letter
    match = SPOKEN.match(line)
    rest = line[match.end() :].lstrip(" ,;:.)]*") if match else ""
    if not match or ANOTHER.match(rest):
        return None
    letter = (match[1] or match[2]).upper()
    others = letters_of(rest, choices)
    wrong = (choices and letter not in choices) or (others and letter not in others)
    return None if wrong else letter


MAX_BARE = 400  # characters of a response that is nothing but its answer
VERDICTS = (" is correct", " is the correct", " is right", " is the right", " is the best",
            " is the answer")  # fmt: skip
# What stands before a verdict, "so B"; but not "A or B", "if B", "why B".
SUBJECT = re.compile(
    r"(?:\A|[.,:;!\n]\s{0,3}|\b(?:so|thus|hence|therefore|that|think|believe|doubt|only|clearly"
    r"|option|choice|answer)"
    r"[,:]? )(?:(?:the )?(?:option|choice|answer) )?[*(\[]{0,3}([A-Z])"
    r"(?:[*)\]]{0,4}|[.):*]{1,4} [^.,\n]{1,80})\Z",
    re.IGNORECASE,
)
HEDGED = re.compile(
    r"\b(?:if|whether|why|neither|nor|or|not|unless|(?<!no )(?<!out )(?<!out a )doubt|unlikely"
    r"|impossible|no way|none of|false|suppose|assum(?:e|ing)"
    r"|no ?(?:one|body)|(?:may|might|could|would) (?:think|say|believe|guess)|(?:you|one|some"
    r"|many|people) (?:think|say|believe|guess))\b"
    r"|n['’]t\b",
    re.IGNORECASE,
)
CONDITION = re.compile(
    r"[^.!\n]{0,20}?(?:\?|\bif\b|\bunless\b)", re.IGNORECASE
)  # "B is correct only if"


def extract_choice(text: str, choices: dict[str, str]) -> tuple[str | None, str]:
    """Returns (letter, the text it was read from) of what counts of a response.

    The last marker by position rules: an <answer> block, a box, a statement of the answer that
    names a letter, or "B is correct". Without one, a short text that is itself an answer.
    """
    spots: list[tuple[int, str | None, str]] = [*said_letters(text, choices)]
    for at, inside, _ in blocks(text):
        letter = spoken_letter(inside, choices)
        if not letter and (said := said_letters(inside, choices)):
            letter = max(said, key=lambda spot: spot[0])[1]
        spots.append((at, letter, inside))
    if spots:
        _, letter, source = max(spots, key=lambda spot: spot[0])
        return letter, source
    bare = text.strip()
    if len(bare) > MAX_BARE:
        return None, ""
    first, _, rest = bare.partition("\n")
    if rest and LETTER.fullmatch(first.strip(DECORATION)):  # "B", and why below
        bare = first if not any(map(LETTER.match, rest.split("\n"))) else bare
    return read_letter(main_clause(bare, ASIDE), choices), bare


def said_letters(text: str, choices: dict[str, str]) -> list[tuple[int, str | None, str]]:
    """Returns the last letter named as the answer and the last called right: (position, it, where).

    Each only where there is one; None for one that is taken back.
    """
    spots: list[tuple[int, str | None, str]] = []
    for found in statements(text, "option", "choice"):
        if RETRACTED.match(found.text.lstrip()):  # "B. Wait, no, it is C."
            spots.append((found.position, None, found.text))
            break
        if found.kind != "not" and (letter := spoken_letter(found.text, choices)):
            spots.append((found.position, letter, found.text))
            break
    for at in sorted(
        (found.position for v in VERDICTS for found in phrases(text, v)), reverse=True
    ):
        sentence = text[max(0, at - MAX_BARE) : at].rsplit("\n", 1)[-1].rsplit(". ", 1)[-1]
        hedged = HEDGED.search(sentence) or CONDITION.match(text, at + len(" is correct"))
        named = None if hedged else SUBJECT.search(sentence)
        if named and (letter := read_letter(named[1], choices)):
            return [*spots, (at, letter, sentence)]
    return spots


def judge_choice(problem: Problem, text: str, tags: str, form: Parsed) -> Judged:
    letter, source = extract_choice(said_part(text, tags), problem.fields.get("choices", {}))
    if letter is None:
        return Judged(None, False, f"no single choice in {source[:80]!r}")
    return Judged(letter, letter == problem.gold, f"expected {problem.gold}, got {letter}")


CHOICE_RULES = rules_of(judge_choice)
