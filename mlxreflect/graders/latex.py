"""LaTeX: one spelling for many, the answer of a response, and what is left to Math-Verify.

Most answers are decided here, exactly: the same spelling, two rational numbers, or plain words.
Only what is short, harmless and still open goes to the worker process. A check that it does not
finish is recorded as wrong, with a reason that begins with "not decided": it stays in the
denominator, and can be counted.
"""

import re
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate

from mlxreflect.core.records import Problem
from mlxreflect.graders import (
    ASIDE,
    VULGAR,
    WRAPPED,
    Grader,
    Judge,
    Judged,
    blocks,
    grader_of,
    main_clause,
    rules_of,
    said_part,
    statements,
)
from mlxreflect.graders.numerals import decimal
from mlxreflect.graders.worker import Worker, serve
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
# A unit in words behind a number: 15\text{ cm}^2.
UNIT = re.compile(
    r"(?:(?<=[0-9}])|(?<=pi))\s*\\(?:text|mathrm|mbox)\{[\s~]*[A-Za-z./ ]+\}(?:\^\{?-?[0-9]\}?)?$"
)
FORMULA = re.compile(r"(?:\$\$?|\\[(\[])\s*((?:[^$\\]|\\[^()\[\]])+?)\s*(?:\$\$?|\\[)\]])")
MORE = re.compile(r"[0-9$\\]|\b(?:or|and)\b")  # after a formula: it is not the whole answer
# "$18\pi$ cm", all of an answer
MEASURED = re.compile(r"\s?[A-Za-z]{0,12}(?:[/ ][A-Za-z]{1,12})?\.?")
BOXED = re.compile(r"\\boxed\{(.*)\}", re.DOTALL)
MIXED = re.compile(r"([0-9]) ([0-9]{1,6})/([0-9]{1,6})(?![0-9])")  # 3 1/2
SPACE = re.compile(r"(?<![0-9]) | (?![0-9])")  # "1 2" must not become 12
GROUPS = re.compile(r"-?[1-9][0-9]{0,2}(?: [0-9]{3})+(?:\.[0-9]+)?")  # 15 000
# 1010_2: the base is a part of the number. None is base ten.
BASED = re.compile(r"(-?)\(?([0-9][0-9A-Fa-f]*)\)?_(?:([0-9])|\{([0-9]{1,2}|[a-z]{3,8})\})")
BASES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen",
)  # fmt: skip
OVER = re.compile(r"\{([^{}]{1,40})\\over(?![a-z])([^{}]{1,40})\}")
THOUSANDS = re.compile(r"-?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?")
SHORT_FRAC = re.compile(r"\\frac(?:([0-9])([0-9])|\{([^{}]+)\}([0-9])|([0-9])\{([^{}]+)\})")
SHORT_SQRT = re.compile(r"\\sqrt([0-9a-zA-Z])")
NAMED = re.compile(
    r"(?:[a-zA-Z]{1,3}|\\(?:theta|alpha|beta|lambda|mu)|\([a-z](?:,[a-z]){1,2}\)(?==\())"
    r"(?:\([a-zA-Z]\))?(?:=|\\in(?![a-zA-Z]))"
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
    text = text.replace("−", "-").replace("{,}", ",").replace("π", "\\pi ")
    for sign, plain in VULGAR.items():
        text = text.replace(sign, "\\frac{{{}}}{{{}}}".format(*plain.split("/")))
    text = OVER.sub(r"\\frac{\1}{\2}", re.sub(r"\\[dtc]frac", r"\\frac", text))
    text = UNITS.sub("", text)
    text = DROPPED.sub("", SPACES.sub(" ", THIN.sub("", text)))
    text = UNIT.sub("", text.rstrip(" ."))
    for _ in range(2):
        text = WRAPPED.sub(r" \1 ", text)
    bare = text.strip().rstrip(".").strip()
    if WORDS.fullmatch(bare):
        return " ".join(bare.split())
    if GROUPS.fullmatch(bare):
        return bare.replace(" ", "")
    text = SPACE.sub("", MIXED.sub(r"\1\\frac{\2}{\3}", bare))
    if (named := NAMED.match(text)) and "=" not in text[named.end() :]:
        text = text[named.end() :]
    if THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    text = SHORT_FRAC.sub(r"\\frac{\1\3\5}{\2\4\6}", SHORT_SQRT.sub(r"\\sqrt{\1}", text))
    return text.replace("\\leq", "\\le").replace("\\geq", "\\ge").replace("\\neq", "\\ne")


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
        r"(-?[0-9.]+(?:/[0-9.]+)?|-?\\frac\{[0-9]+\}\{[0-9]+\})"
        r"(?!(?:squared|cubed|dozen|hundred|thousand|[bm]illion|[xyz]{2}))[a-zA-Z]{2,20}(?:\^\{?[23]\}?)?",
        text,
    )
    return found[1] if found else text


def based(text: str) -> tuple[str, int] | None:
    """Reads a normal text that is a number with its base, or a whole number, of base ten."""
    if re.fullmatch("-?[0-9]+", text):
        return text, 10
    found = BASED.fullmatch(text)
    name = found and (found[3] or found[4])
    if not found or not name or not (name.isdigit() or name in BASES):
        return None
    base = int(name) if name.isdigit() else BASES.index(name)
    return found[1] + found[2].lower(), base


def decided(gold: str, answer: str) -> bool | None:
    """Tells whether two normal texts are equal; None where that cannot be told exactly."""
    if gold == answer:
        return True
    if BASED.fullmatch(gold) or BASED.fullmatch(answer):
        return based(gold) is not None and based(gold) == based(answer)
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
    # Braces match; of the brackets, which intervals mix, as many open as close.
    round_or_square = sum(map(text.count, "([")) == sum(map(text.count, ")]"))
    if text.count("{") != text.count("}") or not round_or_square:
        return "brackets that do not match"
    if "&" in text and "\\begin" not in text:
        return "columns of no matrix"
    if PROSE.search(COMMAND.sub(" ", text)):
        return "words"
    if strange := sorted(set(COMMAND.findall(text)) - COMMANDS):
        return f"\\{strange[0][:20]} is no part of an answer"
    if any(len(numeral) > MAX_NUMERAL for numeral in NUMERAL.findall(text)):
        return f"a number of more than {MAX_NUMERAL} digits"
    if max(accumulate((c in "([{") - (c in ")]}") for c in text)) > MAX_DEPTH:
        return f"nested deeper than {MAX_DEPTH}"
    return power_fault(text)


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
    """Finds the answer of a response: the last block or box, else what it says its answer is.

    Without any, it is a short text that is itself an answer.
    """
    if spots := blocks(text):
        return said_in(max(spots).text) or max(spots).text.strip() or None
    if answer := said_in(text):
        return answer
    bare = text.strip()
    if (formula := FORMULA.match(bare)) and MEASURED.fullmatch(bare, formula.end()):
        return formula[1]
    return bare if 0 < len(bare) <= MAX_LATEX and "\n" not in bare else None


def said_in(text: str) -> str | None:
    """Reads what the last statement of an answer gives: its formula, or its main clause."""
    for marked in statements(text if "\\text" not in text else WRAPPED.sub(r"\1", text)):
        said = marked.text.lstrip(" :\n\r*`_")
        if marked.kind == "not" or not said:
            continue
        formula = FORMULA.match(said)
        line = said[formula.end() if formula else 0 :].split("\n", 1)[0].split(". ", 1)[0]
        if formula and not MORE.search(main_clause(line)):
            return formula[1]
        line = main_clause(said[: formula.end() if formula else 0] + line, ASIDE)
        if line := line.strip(' *`"_\r'):
            return line
    return None


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


def judge_by(worker: bool) -> Judge:
    def judge(problem: Problem, text: str, tags: str, form: Parsed) -> Judged:
        answer = extract_latex(said_part(text, tags))
        if answer is None:
            return Judged(None, False, "no answer found")
        return Judged(answer[:MAX_LATEX], *compare(problem.gold or "", answer, worker))

    return judge


MATH_RULES: dict[str, Grader] = {
    **rules_of(judge_by(worker=True)),
    "exact": grader_of(judge_by(worker=False)),  # the same spelling, or the same rational number
}


# ---- the worker ----------------------------------------------------------------------------------
# Math-Verify works on sympy, which can hang. The worker limits its processor time a question, so
# that a verdict does not depend on what else the machine does; whoever asks waits a bounded time.

CPU_S = 4.0  # processor time of one question, in the worker
WALL_S = 30.0  # until the worker is killed, whatever it does
START_S = 120.0  # to import sympy, on a machine with much to do
MEMORY = 4 << 30  # bytes of address space
ROUNDING = 12  # decimal places that must agree; Math-Verify's own 6 pass 0.333333 for 1/3


WORKER = Worker("mlxreflect.graders.latex", quiet=True)


def ask(gold: str, answer: str) -> bool | None:
    """Returns the verdict; None where the worker died or had to be killed. For any thread."""
    same: bool | None = WORKER.ask([gold, answer], WALL_S, ["1", "1"], START_S)
    return same


@lru_cache(maxsize=4096)
def equal(gold: str, answer: str) -> tuple[bool, str]:
    """Returns (whether two LaTeX expressions are equal, why that is not decided or "").

    Takes CPU_S at most where the machine is free, and WALL_S where it is not. Raises UserError
    where the worker does not start.
    """
    same = ask(gold, answer)
    if same is None:
        return False, f"the comparison took more than {CPU_S:g} s or more memory than allowed"
    return same, ""


def main() -> None:
    """Answers questions, in the worker, until its standard input ends."""
    from math_verify import parse, verify

    def same(texts: list[str]) -> bool:
        gold, answer = (parse(f"${text}$", parsing_timeout=None) for text in texts)
        return bool(verify(gold, answer, float_rounding=ROUNDING, timeout_seconds=None))

    serve(same, CPU_S, MEMORY)


if __name__ == "__main__":
    main()
