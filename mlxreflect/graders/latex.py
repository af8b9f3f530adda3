"""LaTeX: one spelling for many, the answer of a response, and what is left to Math-Verify.

Most answers are decided here, exactly: the same spelling, two rational numbers, or plain words.
Only what is short, harmless and still open goes to the worker process (latex_worker.py). A check
that it does not finish is recorded as wrong, with a reason that begins with "not decided": it stays
in the denominator, and can be counted.
"""

import re
from fractions import Fraction

from mlxreflect.core.records import Problem
from mlxreflect.graders.base import Grader, Judged, blocks, final_part, grader_of, phrases, strict
from mlxreflect.graders.latex_worker import equal
from mlxreflect.graders.number import decimal
from mlxreflect.prompts.parsing import Parsed

MAX_LATEX = 300  # characters of an answer; MATH-500's longest gold has 80
MAX_DEPTH = 12
MAX_NUMERAL = 15  # digits
MAX_POWERS = 12
MAX_EXPONENT = 200  # of a number; of anything longer 8, whose expansion would take seconds
THIN = re.compile(r"(?<!\\)\\[,!]")
SPACES = re.compile(r"(?<!\\)\\[;: ]|\\q?quad(?![a-zA-Z])|[\s~]+")
DROPPED = re.compile(
    r"\\(?:left|right|big|Big|bigg|Bigg|displaystyle|limits)(?![a-zA-Z])|(?<!\\)\\[()\[\]]|\$"
)
UNITS = re.compile(r"\^\{?\\circ\}?|\\degree(?![a-zA-Z])|\\?%|°|\\\$")
TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\{([^{}]*)\}")
BOXED = re.compile(r"\\boxed\{(.*)\}", re.DOTALL)
MIXED = re.compile(r"([0-9]) ([0-9]{1,6})/([0-9]{1,6})(?![0-9])")  # 3 1/2
SPACE = re.compile(r"(?<![0-9]) | (?![0-9])")  # "1 2" must not become 12
THOUSANDS = re.compile(r"-?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?")
SHORT_FRAC = re.compile(r"\\frac(?:([0-9])([0-9])|\{([^{}]+)\}([0-9])|([0-9])\{([^{}]+)\})")
SHORT_SQRT = re.compile(r"\\sqrt([0-9a-zA-Z])")
NAMED = re.compile(
    r"(?:[a-zA-Z]{1,3}|\\(?:theta|alpha|beta|lambda|mu))(?:\([a-zA-Z]\))?(?:=|\\in(?![a-zA-Z]))"
)
RATIONAL = re.compile(
    r"(-?)([0-9]{1,12}(?=\\frac))?(?:\\frac\{(-?[0-9.]+)\}\{(-?[0-9.]+)\}|(-?[0-9.]+)/([0-9.]+)|([0-9.]+))"
)
WORDS = re.compile(r"\(?[a-zA-Z][a-zA-Z ]*\)?")
COMMAND = re.compile(r"\\([a-zA-Z]+)")
NUMERAL = re.compile(r"[0-9]+")
ALLOWED = re.compile(r"[0-9A-Za-z+\-*/^_=<>()\[\]{},.|\\& ]*")
PROSE = re.compile(r"[A-Za-z]{3}")
SUBSTANCE = re.compile(r"[0-9A-Za-z]")
# What an answer may be made of. Integrals, sums, limits, products, binomials and factorials are
# things to compute, not answers, and are what makes sympy run for minutes.
COMMAND_NAMES = (
    "frac sqrt pi infty cup cap in cdot times div pm mp le leq ge geq ne neq lt gt log ln sin cos "
    "tan cot sec csc arcsin arccos arctan exp theta alpha beta gamma delta lambda mu phi omega "
    "sigma rho begin end mathbb emptyset varnothing setminus ldots dots circ angle triangle"
)
COMMANDS = frozenset(COMMAND_NAMES.split())


def normal(text: str) -> str:
    """Returns one spelling of what LaTeX can write in many: no spacing, sizes, units, dollars."""
    text = text.strip(" \t\r\n*`")
    if boxed := BOXED.fullmatch(text.strip("$ .")):
        text = boxed[1]
    text = text.replace("\u2212", "-").replace("−", "-").replace("\\dfrac", "\\frac")
    text = text.replace("\\tfrac", "\\frac").replace("{,}", ",").replace("\\cfrac", "\\frac")
    text = UNITS.sub("", text)
    text = DROPPED.sub("", SPACES.sub(" ", THIN.sub("", text)))
    for _ in range(2):
        text = TEXT.sub(r" \1 ", text)
    bare = text.strip().rstrip(".").strip()
    if WORDS.fullmatch(bare):
        return " ".join(bare.split())
    text = SPACE.sub("", MIXED.sub(r"\1\\frac{\2}{\3}", bare))
    if (named := NAMED.match(text)) and "=" not in text[named.end() :]:
        text = text[named.end() :]
    if THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    text = SHORT_FRAC.sub(full_frac, SHORT_SQRT.sub(r"\\sqrt{\1}", text))
    return text.replace("\\leq", "\\le").replace("\\geq", "\\ge").replace("\\neq", "\\ne")


def full_frac(found: re.Match[str]) -> str:
    top, bottom = (group for group in found.groups() if group is not None)
    return f"\\frac{{{top}}}{{{bottom}}}"


def rational(text: str) -> Fraction | None:
    """Reads a normal text that is one integer, decimal or fraction of two; else None."""
    found = RATIONAL.fullmatch(text)
    if not found:
        return None
    top, bottom = found[3] or found[5] or found[7], found[4] or found[6] or "1"
    values = [signed(top), signed(bottom)]
    if values[0] is None or not values[1]:
        return None
    value = int(found[2] or 0) + values[0] / values[1]  # 3\frac{1}{2} is a mixed number
    return -value if found[1] else value


def signed(text: str) -> Fraction | None:
    value = decimal(text.removeprefix("-"))
    return -value if value is not None and text.startswith("-") else value


def without_unit(text: str) -> str:
    """Takes off letters after a plain number, where nothing else is: "5.4cents" → "5.4"."""
    found = re.fullmatch(
        r"(-?[0-9.]+(?:/[0-9.]+)?|-?\\frac\{[0-9]+\}\{[0-9]+\})[a-zA-Z]{2,20}", text
    )
    return found[1] if found else text


def decided(gold: str, answer: str) -> bool | None:
    """Tells whether two normal texts are equal; None where that cannot be told exactly."""
    if gold == answer:
        return True
    gold, answer = without_unit(gold), without_unit(answer)
    one, other = rational(gold), rational(answer)
    if one is not None and (other is not None or "," in answer):
        return one == other
    words = gold.strip("()"), answer.strip("()")
    if WORDS.fullmatch(gold) or WORDS.fullmatch(answer):
        return words[0] == words[1] or (len(words[0]) > 1 and words[0].lower() == words[1].lower())
    return None


def harmless(text: str) -> str:
    """Says why a normal text must not reach sympy; "" where it may."""
    if len(text) > MAX_LATEX:
        return f"longer than {MAX_LATEX} characters"
    if not ALLOWED.fullmatch(text):
        return "characters that no answer needs"
    if not SUBSTANCE.search(text):
        return "nothing but signs"
    if not balanced(text):
        return "brackets that do not match"
    if PROSE.search(COMMAND.sub(" ", text)):
        return "words"
    if strange := sorted(set(COMMAND.findall(text)) - COMMANDS):
        return f"\\{strange[0][:20]} is no part of an answer"
    if any(len(numeral) > MAX_NUMERAL for numeral in NUMERAL.findall(text)):
        return f"a number of more than {MAX_NUMERAL} digits"
    if deepest(text) > MAX_DEPTH:
        return f"nested deeper than {MAX_DEPTH}"
    return power_fault(text)


def balanced(text: str) -> bool:
    """Counts as many opening as closing ones: braces, and the brackets that intervals mix."""
    braces = text.count("{") == text.count("}")
    return braces and sum(map(text.count, "([")) == sum(map(text.count, ")]"))


def deepest(text: str) -> int:
    depth = most = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        most = max(most, depth)
    return most


def power_fault(text: str) -> str:
    """Says what is wrong with powers: too many, too high, or on top of each other."""
    if text.count("^") > MAX_POWERS:
        return f"more than {MAX_POWERS} powers"
    for at in (i for i, character in enumerate(text) if character == "^"):
        rest = text[at + 1 :]
        exponent = rest[1 : rest.find("}")] if rest.startswith("{") else rest[:1]
        if rest.startswith("(") or "^" in exponent or rest[len(exponent) :].lstrip("{}")[:1] == "^":
            return "a power of a power"
        most = MAX_EXPONENT if text[at - 1 : at].isalnum() else 8
        if any(int(n) > most for n in NUMERAL.findall(exponent)):
            return f"a power above {most}"
    return ""


def extract_latex(text: str) -> str | None:
    """Finds the answer of a response: the last block or box, else the last "answer is".

    Without any, it is a short text that is itself an answer.
    """
    if spots := blocks(text):
        return max(spots).text.strip() or None
    if said := phrases(text):
        return first_line(said[0].text) or None
    bare = text.strip()
    return bare if 0 < len(bare) <= MAX_LATEX and "\n" not in bare else None


def first_line(text: str) -> str:
    """Returns the line after "answer is", up to the end of the sentence."""
    line = text.lstrip(" :\n*").split("\n", 1)[0]
    return line.split(". ", 1)[0].strip(" *")


def compare(gold: str, answer: str, worker: bool) -> tuple[bool, str]:
    """Tells whether an answer equals the gold, and why not. worker: Math-Verify may be asked."""
    if len(answer) > MAX_LATEX:
        return False, f"an answer of more than {MAX_LATEX} characters"
    one, other = normal(gold), normal(answer)
    same = decided(one, other)
    if same is None and worker:
        equation = "an equation" if "=" in other and "=" not in one else ""
        if fault := equation or harmless(other) or harmless(one):
            return False, f"expected {gold[:80]}, got {answer[:80]} ({fault})"
        same, undecided = equal(one, other)
        if undecided:
            return False, f"not decided: {undecided}"
    return bool(same), f"expected {gold[:80]}, got {answer[:80]}"


def rules(worker: bool) -> Grader:
    def judge(problem: Problem, text: str, tags: str, form: Parsed) -> Judged:
        answer = extract_latex(final_part(text, tags))
        if answer is None:
            return Judged(None, False, "no answer found")
        return Judged(answer[:MAX_LATEX], *compare(problem.gold or "", answer, worker))

    return grader_of(judge)


MATH_RULES: dict[str, Grader] = {
    "flexible": rules(worker=True),
    "strict": strict(rules(worker=True)),
    "exact": rules(worker=False),  # the same spelling, or the same rational number
}
