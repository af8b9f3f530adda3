"""Numbers: read exactly from untrusted text, however they are written.

No tolerance, no eval, linear in the text's length: only ASCII digits count, and every regular
expression is matched in a window of bounded length.
"""

import re
import unicodedata
from fractions import Fraction
from typing import Any, NamedTuple

from mlxreflect.core.errors import UserError
from mlxreflect.graders import VULGAR, WRAPPED, untagged

MAX_DIGITS = 40
MAX_EXPONENT = 30
MAX_BLOCK = 1000  # characters of an answer block that are read
NUMERAL = (
    r"(?:[0-9]+(?:,[0-9]+)*(?:\.[0-9]+)*|(?:\.[0-9]+)+)(?:[eE][+-]?[0-9]{1,4}(?![0-9A-Za-z]))?"
)
# The first group is the whole part of a mixed number, "3 1/2".
TOKEN = re.compile(rf"(?:([0-9]{{1,12}}) (?=[0-9]{{1,12}}/[0-9]))?({NUMERAL}(?: ?/ ?{NUMERAL})*)")
DECIMAL = re.compile(
    r"([0-9]{1,3}(?:,[0-9]{3})*|[0-9]{1,2}(?:,[0-9]{2})*,[0-9]{3}"
    r"|[0-9]*)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]+))?",
    re.ASCII,
)
FRAC = re.compile(
    r"\\(?:[dtcs]|nice)?frac ?(?:([0-9])|\{ ?(-?[0-9.,]{1,40}) ?\}) ?(?:([0-9])"
    r"|\{ ?([0-9.,]{1,40}) ?\})"
    r"|\{?([0-9.]{1,40}) ?\\over ?([0-9.]{1,40})\}?"
)
MIXED = re.compile(r"(?<=\w)(?=\\(?:[dtcs]|nice)?frac)")  # 3\frac{1}{2}; a minus stays at it
# 3½, 3 and 1/2, "3 and a half"
FRACTION = re.compile(f"([0-9]? ?)([{''.join(VULGAR)}])(?![0-9])")
AND_FRACTION = re.compile(
    r"(?<=[0-9])(?: and)? (?:a|one)[ -](half|third|quarter)\b(?! of)"
    r"|(?<=[0-9]) and (?=[0-9]{1,2}/[0-9])"
)
NAMED = {"half": " 1/2", "third": " 1/3", "quarter": " 1/4", None: " "}
# "1.2 * 10^3", once times signs are plain.
SCIENTIFIC = re.compile(
    r"([0-9]) ?[*×x·⋅] ?10 ?(?:\^|\*\*) ?(?:\{ ?)?([+-]?[0-9]{1,3})(?: ?\})?(?![0-9.])"
)
SPACED = re.compile(r"(?<=[0-9])[\u00a0\u202f\u2009'’](?=[0-9]{3}(?![0-9]))")  # 1'234
# "15 000"; where it is known to be one number, "15 200" too.
ZEROS = re.compile(
    r"(?<![0-9.,_])(?<![0-9] )[1-9][0-9]{0,2}(?: 000)+(?![0-9_]|[,.][0-9]{3}| [0-9])"
)
GROUPS = re.compile(
    r"(?<![0-9.,_])(?<![0-9] )[1-9][0-9]{0,2}(?:(?: |\\[ ;]|~)[0-9]{3})+(?![0-9_]|,[0-9]| [0-9])"
)
# 1.234,50 in much of Europe. With three digits and no comma, 1.234 stays what it is in English.
EUROPEAN = re.compile(
    r"(?<![0-9.,])[0-9]{1,3}(?:\.[0-9]{3})+,[0-9]+(?![0-9]|[.,][0-9])"
    r"|(?<=€)[0-9]{1,3},[0-9]{2}(?![0-9,])|(?<![0-9.,])[0-9]{1,3},[0-9]{2}(?= ?€)"
)
SWAP = str.maketrans(",.", ".,")
COINED = re.compile(r"(?<![A-Za-z])(?:Rs\.?|US|INR|USD|EUR|GBP) ?(?=[0-9$])")  # Rs.50
# A unit with powers: "18 cm^2", "18 kg/m^3", "18 m s^{-2}". Of one letter few are units.
BASE = r"(?:[a-zA-Zµ]{2,20}|[mshgLNJWVAKC])(?![a-zA-Z])"
UNIT_POWER = re.compile(
    rf"([0-9]\}}?[ ~]{{0,3}}{BASE}(?:\}}? ?[/·⋅* ] ?\(?{BASE}){{0,2}})\}}? ?\^ ?\{{?-?[0-9]\}}?"
)
UNIT_FRAC = re.compile(r"\\[dt]?frac ?\{[a-z]{1,20}\} ?\{[a-z]{1,20}(?:\^\{?[0-9]\}?)?\}")
MONTH = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|"
    r"Sept?(?:ember)?|Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?)\b\.?"
)
DAY = r"[0-9]{1,2}(?:st|nd|rd|th)?\b"
# 11:05, May 5, 2024, 5 May 2024, 2024-05-05, 5 feet 6 inches, 1 h 30 min: no numbers.
TIME = re.compile(
    rf"(?<![0-9])[0-9]{{1,12}}(?:[:h][0-9]{{1,4}}){{1,3}}|{MONTH} {DAY}(?:,? [0-9]{{4}}\b)?"
    rf"|{DAY}(?: of |[-/ ]){MONTH}(?:,?[-/ ][0-9]{{4}}\b)?"
    r"|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}|[0-9]{1,2}-[0-9]{1,2}-[0-9]{4}"
    r"|[0-9]{1,9} ?(?:(?:year|month|week|day|hour|hr|min(?:ute)?)s?"
    r"|h)(?: and)? ?[0-9]{1,9} ?(?:month|week|day|hour|hr|h|min|m|sec|s)"
    r"|[0-9]{1,9} ?(?:feet|foot|ft|')\.?(?: and)? [0-9]{1,9} ?(?:in|\")"
    r"|[0-9]{1,9} ?(?:pounds?|lbs?)\.?(?: and)? [0-9]{1,9} ?(?:ounce|oz)"
    r"|[0-9]{1,9} dollars(?: and)? [0-9]{1,9} cents"
)
# "9 eggs * $2", "18/2 = 9": the number before is part of a calculation.
CALCULATION = re.compile(
    r"[%)]? {0,3}(?:[A-Za-z]{1,20} {0,3})?[-+*/×÷·⋅x=] {0,3}\(?[$-]? ?[0-9]|\)?\([0-9]"
    r"| (?:[A-Za-z]{1,20} )??(?:plus|minus|times|divided by|multiplied by|over|to the) [$(-]?[0-9]"
    r"|(?: ?%| percent) of [$]?[0-9][0-9,.]{0,12} ?="
)
# "2 ^ 2", "2 ** 2": not a number yet. Degrees are a unit.
POWER = re.compile(r"(?:\*\*| {1,3}\*\* {0,3})[-(]?[0-9]| {0,3}\^(?! {0,3}\{? {0,3}\\?circ)")
EXPONENT = re.compile(r"[eE][+-]?[0-9]")  # one too large to be read
# "18x", "18\pi", "18 squared", "18 - x", "18, \infty)": not a number but a part of one.
FACTOR = re.compile(
    r"(?:[abeijnqruxyzXYZ]|[xyz]{2,3}|ab|mn|pq)(?![\w'’])| ?[πθ∞√±]| [xyz](?!\w)"
    r"|[ ,$]{0,3}\+/-|,? ?-?(?:\\infty|∞)|[ ~]?\\(?:pi|theta|alpha|beta|phi|lambda|sqrt|log|ln"
    r"|exp|sin|cos|tan|pm|mp)(?![a-z])"
    r"|\([0-9a-z]|(?: ?[-+] ?| ?\* ?)(?:[a-z](?![a-zA-Z'’])(?<! a)|\\?pi\b|[πθ√])"
    r"| (?:squared|cubed|factorial|to the \w{1,12} power|to the power|point \w)\b"
    r"|[ -](?:ten|hundred|thousand|million|billion)ths?\b"
)
# "√18", "\\sqrt{18}", "log 18", "±18", "half of 18", "x + 18": the same before it.
FUNCTION = re.compile(
    r"(?:√|±|\+/-|∞,|\\infty,|\\[pm][pm]|(?:\\|\b)(?:sqrt|log|ln|exp|sin|cos|tan|(?:[dtcs]"
    r"|nice)?frac|binom)"
    r"|\\sqrt\[[^\]]{1,9}\])[\s({\[$]{0,4}\Z"
    r"|\b(?:twice|thrice|double|triple|half|sqrt|(?:two|three|four|five|six|seven|eight|nine"
    r"|ten) times"
    r"|to the|(?:half|third|quarter|fifth|tenth|square|cube|root|factorial|reciprocal|inverse"
    r"|negative|opposite|double|triple)s?"
    r" of)[\s({\[$]{1,4}\Z|(?<![A-Za-z0-9])(?:[xyznkmtpq](?:\^[0-9])?|π|\\pi) ?[-+*/] ?\Z"
    r"|\^[{( -]{0,3}\Z",
    re.IGNORECASE,
)
SIGN_WORD = re.compile(r"(?:\bnegative|(?:\A|[=:]|\bis)\s{0,3}minus)[\s$€£¥]{1,3}\Z", re.IGNORECASE)
# "18 thousand", "1.5 million", "$18k", "18M".
TIMES = {
    "k": 1000, "m": 10**6, "b": 10**9, "bn": 10**9, "dozen": 12, "hundred": 100,
    "thousand": 1000,
    "lakh": 10**5, "million": 10**6, "crore": 10**7, "billion": 10**9, "trillion": 10**12,
}  # fmt: skip
MAGNITUDE = re.compile(
    r"(k|(?-i:M|\s?bn|B)|\s{0,2}(?:dozen|hundred|thousand|lakh|million|crore|billion"
    r"|trillion))s?(?![0-9A-Za-z])",
    re.IGNORECASE,
)
ARROW = re.compile(
    r"(?:\bis equal to\b|\bequals\b|[-=]{1,3}>|[→⇒⟹]|\\(?:[lL]ong)?[rR]ightarrow\b|\\to\b"
    r"|\\implies\b)"
)
ANGLED = re.compile(r"<(\$?-?[0-9][0-9.,]{0,40})>")
QUOTE = re.compile(r"(?<=\n)[ \t]{0,3}>(?:[ \t]?>){0,3}")  # of Markdown: no "more than"
OR = re.compile(
    r"\bor\b(?! (?:equal|more|less|fewer|greater|higher|lower|above|below|over|under)\b)",
    re.IGNORECASE,
)
# What may stand between such words and their number: "less than about $-18".
GAP = r"(?:\s{1,3}(?:about|around|approximately|roughly|exactly))?[\s$€£¥₹*(\\-]{0,4}\Z"
# "more than 18", "> 18".
BOUND = re.compile(
    r"(?:\b(?:more|less|greater|fewer|other|larger|smaller|higher|lower) than(?: or equal to)?"
    rf"|(?<![a-z]{{2}})(?<!\|)[<>≤≥≠]|\\[lgn]eq?|\\[lg]t){GAP}",
    re.IGNORECASE,
)
# "at least 18" as all that is said: within a sentence, "over 18 days", such words bound no answer.
LIMIT = re.compile(
    r"[\s$*_(\\]{0,8}(?:[a-z] (?:is|=) )?"
    rf"(?:at (?:least|most)|up to|over|under|above|below){GAP}",
    re.IGNORECASE,
)
ALONE = re.compile(r"[^0-9.\n]{0,80}(?:[.\n]|\Z)")
# "18+", "18 eggs or more", "18 at most", "18 < x".
OPEN = re.compile(
    r"\+(?!\s{0,3}[0-9(]|/-)|[\s$]{1,3}(?:[<>≤≥]\s|\\[lg](?:t|eq?)\b)"
    r"|[\s$*)\\]{1,4}(?:[a-z%]{1,20}\s){0,2}(?:at (?:least|most)|and (?:above|below|up|beyond))\b"
    r"|[\s$*)\\]{0,4}(?:[a-z%]{1,20}\s){0,2}or (?:more|less|fewer|greater|higher"
    r"|lower|above|below|over|under)\b(?! than| [a-z]{1,20}ly\b)",
    re.IGNORECASE,
)
DENIED = re.compile(
    r"(?:(?:\bnot|n['’]t|\bcannot)(?: be| have| equal)?|\b(?:rather than|instead of|never)|≠)"
    rf"(?=[\s$*(\\]){GAP}"
    r"|(?:\bnot|n['’]t) [0-9]{1,9} n?or \Z|(?:(?<!no )\bdoubt|(?:\bnot|n['’]t) (?:think|believe"
    r"|sure|certain))\b[^.,;\n0-9]{0,24}\Z",
    re.IGNORECASE,
)
CURRENCY = "$€£¥₹"
BOLD = re.compile(r"(?<![\w)*])\*\*(?=\S)([^*\n]{1,200})(?<=\S)\*\*(?![\w(*])")
WORD = re.compile(r"[^\W\d_]+")
MAX_UNITS = 3  # words beside an expected number: "18 dollars per hour" is one, a sentence is not
CHARACTERS = str.maketrans(
    dict.fromkeys("\u2212\u2010\u2011\u2013\uff0d", "-")
    | {"\u2009": " ", "\u202f": " ", "\u2044": "/", "\u2215": "/"}
)
TO_POWER = re.compile(r"(?<![0-9])10(⁻?[⁰¹²³⁴-⁹]{1,3})")
POWERS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
LATEX = {
    "{,}": ",", "\\,": "", "\\!": "", "\\$": "$", "\\%": "%", "\\times": "*", "\\cdot": "*",
    "&gt;": ">", "&lt;": "<",
}  # fmt: skip


class Found(NamedTuple):
    """A number in a text; value None: digits that cannot be read exactly (a date, 50 digits)."""

    start: int
    end: int
    value: Fraction | None


def tidy(text: str, groups: re.Pattern[str] = ZEROS) -> str:
    """Writes typographic, HTML's and LaTeX's ways of writing a number as plain characters.

    groups: what is one number with spaces between thousands.
    """
    for written, plain in LATEX.items():
        text = text.replace(written, plain)
    text = WRAPPED.sub(r"\1", WRAPPED.sub(r"\1", untagged(text)))
    text = SPACED.sub(",", UNIT_FRAC.sub("", text)).translate(CHARACTERS)
    text = ARROW.sub("= ", QUOTE.sub("", BOLD.sub(r"\1", ANGLED.sub(r"\1", text))))
    text = text.replace(">=", "≥").replace("<=", "≤")
    text = groups.sub(lambda number: re.sub(r"[^0-9]+", ",", number[0]), text)
    text = TO_POWER.sub(lambda ten: "10^" + ten[1].translate(POWERS), text)
    text = EUROPEAN.sub(lambda number: number[0].translate(SWAP), COINED.sub("", text))
    text = SCIENTIFIC.sub(r"\1e\2", UNIT_POWER.sub(r"\1", text))
    text = AND_FRACTION.sub(lambda part: NAMED[part[1]], FRACTION.sub(vulgar, text))
    return FRAC.sub(
        lambda frac: "/".join(part for part in frac.groups() if part), MIXED.sub(" ", text)
    )


def vulgar(found: re.Match[str]) -> str:
    """Writes ½ as 1/2, and 3½ as 3 1/2."""
    return (found[1] and found[1].rstrip() + " ") + VULGAR[found[2]]


def decimal(text: str) -> Fraction | None:
    """Reads one numeral: digits, thousands in threes, a decimal part, an exponent."""
    if len(text) > 2 * MAX_DIGITS or not (parts := DECIMAL.fullmatch(text)):
        return None
    whole, after = parts[1].replace(",", ""), parts[2] or ""
    exponent = int(parts[3] or 0)
    if not 1 <= len(whole + after) <= MAX_DIGITS or abs(exponent) > MAX_EXPONENT:
        return None
    return Fraction(int(whole + after)) * Fraction(10) ** (exponent - len(after))


def ratio(token: str) -> Fraction | None:
    """Reads a numeral, or two with a slash between them."""
    if token.count("/") > 1:
        return None
    top, *below = [decimal(part.strip()) for part in token.split("/")]
    if top is None or not below:
        return top
    return top / below[0] if below[0] else None


def is_negative(text: str, start: int) -> bool:
    """Tells a sign before the number at `start` from a subtraction or a bullet."""
    head = text[max(0, start - 12) : start]
    bare = head.rstrip(CURRENCY + " ")
    if SIGN_WORD.search(text, max(0, start - 30), start):
        return True
    if not bare.endswith("-"):
        return False
    before = bare[:-1].rstrip(" ")
    last = before[-1:]
    if " " in head[len(bare) :]:
        return last in "=:$("
    if last.isdigit() or last in (")", "]", "}", "%", "-"):
        return False
    return not (last.isalpha() and before == bare[:-1])


def is_glue(character: str) -> bool:
    """Tells whether it joins the digits around it: 1_000, 5'10, zero-width, combining."""
    return character != "" and (
        character in "_'’" or unicodedata.category(character) in ("Cf", "Mn", "Me")
    )


def is_name(text: str, start: int) -> bool:
    """Tells whether the digits at `start` end a name (H2, x_1) or a group (000 of 1_000)."""
    before = text[start - 1 : start] if start else ""
    if before == "_":
        return text[max(0, start - 2) : start - 1].isalnum()
    return before.isascii() and before.isalpha()


def find_numbers(text: str) -> list[Found]:
    """Finds every number of a short text, in order. `text` has been through `tidy`."""
    found = []
    spans = [time.span() for time in TIME.finditer(text)]
    for match in TOKEN.finditer(text):
        start, end = match.span()
        if is_name(text, start):
            continue
        token, before = match[2], text[start - 1 : start] if start else ""
        if token[0] == "." and before == ".":  # "so it is...5"
            token, start = token[1:], start + 1
        while spans and spans[0][1] <= start:
            spans.pop(0)
        value = None if spans and spans[0][0] <= start else ratio(token)
        if match[1] and value is not None:
            value = int(match[1]) + value if value < 1 else None
        after = text[end : end + 2]
        if (
            any(not c.isascii() and c.isnumeric() for c in (before, after[:1]))
            or (is_glue(after[:1]) and after[1:].isdigit())
            or (is_glue(before) and text[start - 2 : start - 1].isdigit())
            or POWER.match(text, end)
            or EXPONENT.match(text, end)
            or FACTOR.match(text, end)
            or FUNCTION.search(text, max(0, start - 24), start)
        ):  # 5², ٣5, 5^2, 5x, √5
            value = None
        elif value is not None and is_negative(text, start):
            value = -value
        if value is not None and (times := MAGNITUDE.match(text, end)):
            value *= TIMES[times[1].strip().lower()]
        found.append(Found(start, end, value))
    return found


def read_number(text: str) -> Fraction | None:
    """Reads a text that is one number: "$1,234.50", "18 dollars.", "−3/4", "9 * 2 = 18", "50\\%".

    Units and words are dropped (a percentage is its number), and of an equation the right side
    counts. None where there is no number, one still to be computed ("9 * 2", "√18"), or more than
    one: "17 or 18" is no answer.
    """
    text = text.strip()
    if len(text) > MAX_BLOCK:
        return None
    values = {value for part in OR.split(tidy(text, GROUPS)) for value in side_values(part)}
    return values.pop() if len(values) == 1 else None


def side_values(text: str) -> set[Fraction | None]:
    """Reads what is right of the last equals sign that has a number there.

    None: a calculation, a bound, a denied number.
    """
    left, _, right = text.rpartition("=")
    found = find_numbers(right)
    if len(found) > 1 and CALCULATION.match(right, found[0].end):  # 18 = 9 + 9
        left_found = find_numbers(left)
        right, found = (left, left_found) if len(left_found) == 1 else (right, found)
    if not found:
        right, found = text, find_numbers(text)
    return {
        None
        if CALCULATION.match(right, n.end) or is_bound(right, n) or is_after(DENIED, right, n)
        else n.value
        for n in found
    }


def is_after(words: re.Pattern[str], text: str, found: Found) -> bool:
    """Tells whether a number follows such words at once."""
    return words.search(text, max(0, found.start - 40), found.start) is not None


def is_bound(text: str, found: Found) -> bool:
    """Tells whether a number is the end of a range: "more than 18", "at least 18", "18 or more"."""
    return (
        is_after(BOUND, text, found)
        or OPEN.match(text, found.end) is not None
        or (LIMIT.fullmatch(text, 0, found.start) and ALONE.match(text, found.end)) is not None
    )


def read_gold(raw: object) -> str | None:
    """Reads a row's expected number: int, float or text (after `####` if there is one).

    Returns it normalised, None for no number or a sentence. "1,234" → "1234", 6706.0 → "6706".
    """
    if isinstance(raw, bool) or not isinstance(raw, (int, float, str)):
        return None
    if isinstance(raw, int) and raw.bit_length() > 4 * MAX_DIGITS:  # str() of it may raise
        return None
    text = str(raw).rpartition("####")[2].strip()
    if len(text) > MAX_BLOCK or "=" in text or len(WORD.findall(text)) > MAX_UNITS:
        return None
    value = read_number(text)
    return None if value is None else show_number(value)


def show_number(value: Fraction) -> str:
    """Writes it exactly: whole numbers as such, decimals where they end, else a/b."""
    places, rest = 0, value.denominator
    for prime in (2, 5):
        power = 0
        while rest % prime == 0:
            rest, power = rest // prime, power + 1
        places = max(places, power)
    if rest != 1:
        return f"{value.numerator}/{value.denominator}"
    if not places:
        return str(value.numerator)
    digits = str(abs(value.numerator) * 10**places // value.denominator).zfill(places + 1)
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"


def row_gold(row: dict[str, Any]) -> str:
    """Reads the gold of a row of `mlxreflect grade`. Raises UserError for no number."""
    gold = read_gold(row.get("gold"))
    if gold is None:
        raise UserError(f"gold = {str(row.get('gold'))[:60]!r}: not a number", 'write "gold": 42')
    return gold
