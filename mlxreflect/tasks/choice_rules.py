"""How the choice a response makes is found and graded."""

from mlxreflect.prompts import parse_response
from mlxreflect.records import Problem, Verdict
from mlxreflect.tasks.base import Grade, Grader
from mlxreflect.tasks.choices import read_letter, spoken_letter
from mlxreflect.tasks.markers import answer_block, box, phrases
from mlxreflect.tasks.strict import strict
from mlxreflect.tasks.text import final_part

PHRASES = ("answer is", "answer:")
MAX_BARE = 400  # characters of a response that is nothing but its answer


def extract_choice(text: str, choices: dict[str, str]) -> tuple[str | None, str]:
    """(letter, the text it was read from) of what counts of a response.

    The last marker by position rules: an <answer> block, a box, "answer is" or "answer:" before a
    letter. Without one, a short text that is itself an answer.
    """
    spots = [
        (found.position, spoken_letter(found.text, choices), found.text)
        for find in (answer_block, box)
        if (found := find(text))
    ]
    for phrase in PHRASES:
        for found in phrases(text, phrase):
            if letter := spoken_letter(found.text, choices):
                spots.append((found.position, letter, found.text))
                break
    if spots:
        _, letter, source = max(spots, key=lambda spot: spot[0])
        return letter, source
    bare = text.strip()
    return (read_letter(bare, choices), bare) if len(bare) <= MAX_BARE else (None, "")


def grade_choice(
    problem: Problem, text: str, tags: str = "think", style: str = "thinking"
) -> Grade:
    form = parse_response(text, tags, style)
    letter, source = extract_choice(final_part(text, tags), problem.fields.get("choices", {}))
    if letter is None:
        reason = f"no single choice in {source[:80]!r}"
        return Grade(None, Verdict(False, form.format_ok, reason))
    correct = letter == problem.gold
    reason = form.reason if correct else f"expected {problem.gold}, got {letter}"
    return Grade(letter, Verdict(correct, form.format_ok, reason))


CHOICE_RULES: dict[str, Grader] = {"flexible": grade_choice, "strict": strict(grade_choice)}
