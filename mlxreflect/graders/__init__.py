"""Shared by all graders: the grade, where a response says its answer, comparing short texts."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from mlxreflect.core.records import Problem, Verdict
from mlxreflect.core.ui import composed
from mlxreflect.prompts.parsing import ANSWER, TAGS, Parsed, parse_response


@dataclass(frozen=True)
class Grade:
    """A graded response.

    parsed: the answer read from the text (normalised), None when there is none to read.
    score: how near an answer comes, 0 to 1, where the rules measure that (token F1).
    """

    parsed: str | None
    verdict: Verdict
    score: float | None = None


# (problem, text, tags, style) → Grade; never raises, linear in len(text).
Grader = Callable[[Problem, str, str, str], Grade]


class Judged(NamedTuple):
    """An answer as it was read, and what is wrong with it; the format is looked at elsewhere."""

    parsed: str | None
    correct: bool
    reason: str
    score: float | None = None


# (problem, text, tags, form) → Judged. form: the response as the prompt's format has it.
Judge = Callable[[Problem, str, str, Parsed], Judged]


def grader_of(judge: Judge) -> Grader:
    """Returns the rules of a judge; whether the format was kept is graded beside its answer."""

    def grade(problem: Problem, text: str, tags: str, style: str) -> Grade:
        form = parse_response(text, tags, style)
        parsed, correct, reason, score = judge(problem, text, tags, form)
        reason = form.reason if correct else reason
        return Grade(parsed, Verdict(correct, form.format_ok, reason), score)

    return grade


def strict(grade: Grader) -> Grader:
    """Returns the same rules, under which an answer outside of the format is wrong."""

    def graded(problem: Problem, text: str, tags: str, style: str) -> Grade:
        found = grade(problem, text, tags, style)
        if found.verdict.format_ok:
            return found
        score = None if found.score is None else 0.0
        return replace(found, verdict=replace(found.verdict, correct=False), score=score)

    return graded


def rules_of(judge: Judge, headline: str = "flexible") -> dict[str, Grader]:
    """Returns the rules of a judge by name: the headline's, and "strict"."""
    grade = grader_of(judge)
    return {headline: grade, "strict": strict(grade)}


# ---- where a response says what its answer is ----------------------------------------------------

MAX_BOX = 1000  # characters in which a box must be closed
MAX_TRIES = 16  # candidates looked at for each kind of marker, from the end
AFTER_PHRASE = 200  # characters after "answer is" in which the answer must begin
BRACE = re.compile(r"[{}]")
BOXED = re.compile(
    r"\s{0,3}(?:\{|(-?[0-9]+(?:[.,/][0-9]+)*|[A-Za-z](?![A-Za-z])"
    r"|\\[dt]?frac ?(?:[0-9]{2}|\{[^{}]{0,40}\} ?\{[^{}]{0,40}\})))"
)
MAX_HTML = 20_000  # characters at the end of a response in which HTML is read
# The first group: tags within a line. All others end one.
HTML = re.compile(
    r"</?(?:(abbr|a|big|b|code|em|font|ins|i|kbd|label|mark|small|span|strong|sub|sup|tt|u|var)"
    r"|blockquote|body|br|center|details|div|h[1-6]|hr|html|li|ol|pre|p|section|summary|table"
    r"|tbody|td|thead|th|tr|ul)(?:\s[^<>]{0,200})?/?>",
    re.IGNORECASE,
)
RAISED = re.compile(r"<su(?:(p)|b)>(?!st\b|nd\b|rd\b|th\b|[°∘o]<)", re.IGNORECASE)
# Struck out, a comment, or a calculation of GSM8K: 9 * 2 = <<9*2=18>>18.
STRUCK = re.compile(
    r"~~[^~\n]{1,80}~~|<(del|strike|s)>[^<>]{0,80}</\1>|<!--[^>]{0,400}-->"
    r"|<<[^<>\n]{1,100}>>",
    re.IGNORECASE,
)
# "Ans: 18", "Ans. 18", "Answer:- 18".
SHORT = re.compile(
    r"(?<![a-z])(?:(?:ans(?:\.|\s?:-)|answer\s?:-)(?=\s)|ans(?=[\s:=*_–-]))", re.IGNORECASE
)
WRAPPED = re.compile(
    r"\\(?:boxed|fbox|underline|text(?:bf|it|rm)?|math(?:rm|bf)|mbox|operatorname) ?"
    r"\{([^{}]{0,200})\}"
)
VULGAR = {
    "½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5",
    "⅘": "4/5", "⅙": "1/6", "⅚": "5/6", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8",
}  # fmt: skip
NOUNS = ("answer", "答案", "respuesta", "réponse", "antwort", "ответ")
# What stands between "answer" and the answer: "answer (in cm) is", "Answer:", "answer** would be".
SAYS = re.compile(
    r"(?:\s{0,2}\([^()\n]{0,60}\)|, [a-z ]{2,20},"
    r"| (?:to|for|of|in|we|you|I|here)\b[^.:\n]{0,80}?)?"
    r"[\s*_`\"')\]]{0,6}(?:([:：=→]|[-–—]\s|>{2,3})"
    r"|(?<![A-Za-z])(?:is|was|equals|becomes|remains|comes to|has to be|es|est|ist|(?:would|will"
    r"|should|must|can) ?be)"
    r"(?![A-Za-z0-9_])|[是为]"
    r"|(isn['’]t\b|(?:cannot|(?:can|could|wo|would|must|should)n?['’]t|(?:could|would|must"
    r"|should|will)"
    r" not) be\b|is never\b))"
)
# "I doubt that the answer", "if the answer", "the wrong answer": what follows is none.
DOUBT = re.compile(
    r"(?:(?:\b(?:(?<!no )(?<!out )(?<!out a )(?<!not )(?<!n't )(?<!n’t )doubt|unlikely|false"
    r"|(?:wrong|incorrect)"
    r" to (?:say|think)|if|unless|whether|suppose|assum(?:e|ing)|(?:you|one|some|many|people"
    r"|they|others)"
    r" (?:\w{1,12} )?(?:think|say|believe|guess)|no ?(?:one|body) (?:thinks|says|believes))"
    r"|(?:\bnot|n['’]t) (?:\w{1,12} )?(?:think|believe|say|sure|certain|true|likely|convinced))"
    r"(?:,? that)?(?: (?:the|my|our|your|its?|final|correct|right|best))*"
    r"|\b(?:wrong|incorrect|false)(?: final)?)[ *_]{1,4}\Z",
    re.IGNORECASE,
)
DOUBTED = re.compile(r"[.!?](?=\s)|\n|, but\b")  # what is doubted goes up to here
# "17. Wait, no, it is 18"
RETRACTED = re.compile(
    r"[^\n.!?…]{0,30}[.,;!?…–—-]{1,3}\s{0,3}(?:oh |but )?(?:wait|no|sorry|hmm)\b[,.:!–—-]",
    re.IGNORECASE,
)
# "the answer is not 17", "is definitely not 17"
NOT = re.compile(r"[\s*_\"'($]{1,6}(?:[a-z]{1,12}ly )?not\b", re.IGNORECASE)
# A line that says "### Final Answer" and no more, or "**Final answer** 18".
TITLE = re.compile(r"(?:\A|\n|[.!?] )[#*_> \t]{0,12}(?:(?:the|my|final|correct) ){0,3}\Z")
UNTITLED = re.compile(r"[*_`:]{0,4}[ \t\r]{0,8}\n|[*_`]{0,4} {1,3}(?=[*$\\(-]{0,4}[0-9])")
# What follows a key of JSON: a text, or what ends at a comma.
VALUE = re.compile(
    r"\s{0,8}(?:\"((?:[^\"\\]|\\.){0,400})\"|'([^'\n]{0,400})'|(\[[^\]]{0,400}\]|[^,}\]\n]{0,400}))"
)
# What says more about an answer than what it is: "18 (9 + 9)", "18, since 9 + 9 = 18".
BRACKETS = re.compile(
    r"(?:(?<=\S)|\A)\s{1,3}\((?!\s{0,3}(?:or|maybe|perhaps)\b)[^()\n]{0,200}(?:\)|\Z)"
)
# The same where brackets may be a part of the answer: it has words.
ASIDE = re.compile(
    r"[\s*]{1,4}\((?!\s{0,3}(?:or|maybe"
    r"|perhaps)\b)(?=[^()\n]{0,200}[A-Za-z]{2} )[^()\n]{0,200}(?:\)|\Z)"
)
CLAUSE = re.compile(
    r"(?:(?: ?[,;–—-])?\s{1,3}(?:(?:since|because|as|which is|where|given|rather than|instead of)\b"
    r"|(?<=,\s)[0-9]+ (?:more|less|fewer)\b)"
    r"|;\s{1,3}(?=[^;.\n]{1,30} (?:is|are|was|were) )"
    r"|(?:,?(?:\s{1,3}and)?\s{1,3}|\A)not\b(?![^.\n]{0,80}\bbut\b))[^.\n]*(?:\.[0-9][^.\n]*)*"
)


class Marked(NamedTuple):
    """The text that a marker points at. Of two the later one counts.

    position: of a block its end, so that it rules over markers inside it. kind: how an answer is
    said: "is" in a sentence, ":" after a colon or a heading, "not" where it is denied.
    """

    position: int
    text: str
    kind: str = ":"


def answer_block(text: str) -> Marked | None:
    """Returns the last closed <answer> block that is not empty."""
    close = len(text)
    for _ in range(MAX_TRIES):
        close = text.rfind(ANSWER[1], 0, close)
        start = text.rfind(ANSWER[0], 0, close) if close >= 0 else -1
        if start < 0:
            return None
        end = text.find(ANSWER[1], start)
        if content := text[start + len(ANSWER[0]) : end].strip():
            return Marked(end, content)
        close = start
    return None


def box(text: str) -> Marked | None:
    r"""Returns the last closed box that is not empty: `\boxed{…}`, `\boxed {…}` or `\boxed 3`."""
    start = len(text)
    for _ in range(MAX_TRIES):
        start = text.rfind("\\boxed", 0, start)
        if start < 0:
            return None
        opened = BOXED.match(text, start + 6)
        if opened and opened[1]:
            return Marked(start, opened[1])
        window = text[opened.end() : opened.end() + MAX_BOX] if opened else ""
        depth = 1
        for brace in BRACE.finditer(window):
            depth += 1 if brace[0] == "{" else -1
            if not depth:
                if content := window[: brace.start()].strip():
                    return Marked(start, content)
                break
    return None


def blocks(text: str) -> list[Marked]:
    """Returns the last answer block and the last box, as far as there are any."""
    return [found for find in (answer_block, box) if (found := find(text))]


def phrases(text: str, *wanted: str) -> list[Marked]:
    """Returns what follows the phrases, in any case: their last occurrences, the last one first."""
    # İ is the one character whose lower case is longer; positions must stay.
    lower = text.replace("\u0130", "i").lower()
    found = []
    for phrase in wanted:
        at = len(text)
        for _ in range(2 * MAX_TRIES):
            at = lower.rfind(phrase, 0, at)
            if at < 0:
                break
            after = at + len(phrase)
            found.append(Marked(at, text[after : after + 3 * AFTER_PHRASE]))
    return sorted(found, key=lambda one: -one.position)


def statements(text: str, *nouns: str) -> list[Marked]:
    """Returns what a response says its answer is, the last one first.

    It says so in a sentence ("the answer is …"), after a colon, under a heading or as JSON. nouns:
    what an answer is called beside "answer". Where it is doubted, what counts comes after it.
    """
    found = []
    for position, after, _ in phrases(text, *NOUNS, *nouns):
        before = text[max(0, position - 60) : position].lower()
        said = SAYS.match(after)
        if said and DOUBT.search(before):
            end = DOUBTED.search(after)
            rest = after[end.end() :] if end else ""
            found.append(Marked(text.index(after, position) + len(after) - len(rest), rest, "not"))
        elif said:
            kind = ":" if said[1] else "not" if said[2] or NOT.match(after, said.end()) else "is"
            rest = after[said.end() :]
            if said[1] and after[0] in "\"'" and (value := VALUE.match(rest)):
                kind, rest = "{", value[value.lastindex or 0].replace("\\\\", "\\")
            found.append(Marked(position, rest[: 2 * AFTER_PHRASE], kind))
        elif (title := UNTITLED.match(after)) and TITLE.search(before):
            found.append(Marked(position, after[title.end() :]))
    return found


SENTENCE = re.compile(r"[.!?](?=\s)|\n")


def main_clause(text: str, brackets: re.Pattern[str] = BRACKETS) -> str:
    """Returns a text without what stands in brackets or gives a reason."""
    return CLAUSE.sub("", brackets.sub("", text))


# ---- what counts of a response -------------------------------------------------------------------

MAX_QUESTIONS = 16  # occurrences of "Question:" looked at
END_TOKENS = (
    "<|im_end|>", "</s>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<end_of_turn>",
)  # fmt: skip


def final_part(text: str, tags: str) -> str:
    """Returns a response up to its end token or the next `Question:`, without its thought."""
    ends = [at for token in END_TOKENS if (at := text.find(token)) >= 0]
    text = text[: min(ends)] if ends else text
    opening, closing = TAGS[tags]
    at = -1
    for _ in range(MAX_QUESTIONS):
        at = text.find("Question:", at + 1)
        if at < 0:
            break
        closed, opened = text.find(closing, at), text.find(opening, at)
        if closed >= 0 and not 0 <= opened < closed:  # a thought may quote a question
            at = closed
        elif text[:at].strip():
            text = text[:at]
            break
    return text.rpartition(closing)[2]


def said_part(text: str, tags: str) -> str:
    """Returns what counts of a response, with HTML as plain text and "Ans." written out."""
    text = final_part(text, tags)
    return text[:-MAX_HTML] + SHORT.sub(spelled, untagged(text[-MAX_HTML:]))


def spelled(short: re.Match[str]) -> str:
    return "Answer:" if short[0][-1] in ".-" else "Answer"


def untagged(text: str) -> str:
    """Returns a text without HTML, what is struck out, and GSM8K's <<9*2=18>>."""
    if "<" not in text and "~~" not in text:
        return text
    text = RAISED.sub(lambda tag: "^" if tag[1] else "_", STRUCK.sub("", text))
    return HTML.sub(lambda tag: "" if tag[1] else "\n", text)


# ---- short texts, but for case, spacing and punctuation ------------------------------------------

MAX_TEXT = 4000  # characters
QUOTES = str.maketrans(
    {"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "−": "-", "‐": "-", "…": "..."}
)
SPACE_BEFORE = re.compile(r" (?=[.,;:!?])")


def normal_text(text: str) -> str:
    """Returns NFC, case folded, single spaces, plain quotes; no quotes or stops around it."""
    text = composed(text).translate(QUOTES).casefold()
    text = " ".join(composed(text).split())
    text = SPACE_BEFORE.sub("", text)
    return text.rstrip(".,;:!? \"'*_`").lstrip("\"' *_`") or text


def same_text(one: str, other: str) -> bool:
    """Tells whether two texts are equal once normalised; a text over the cap equals none."""
    if max(len(one), len(other)) > MAX_TEXT:
        return False
    return normal_text(one) == normal_text(other)
