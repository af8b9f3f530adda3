"""Every prompt, from templates and data; nothing else in the project puts one together.

Instructions stand in the system message, data in the user message, between delimiters that the
data cannot close. A message list with a system part is folded into one user message by
`policy.Policy.encode` for models whose chat template knows no system role.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mlxreflect.core.records import Messages
from mlxreflect.prompts.templates import BUNDLED, Templates

TAGS = {
    "think": ("<think>", "</think>"),
    "reasoning": ("<reasoning>", "</reasoning>"),
    "preflexor": ("<|thinking|>", "<|/thinking|>"),
}
ANSWER = ("<answer>", "</answer>")


def quote(tag: str, text: str) -> str:
    """Text as data between <tag> and </tag>; closing tags in it, however spelled, are defused."""
    closing = rf"</(?=\s*{re.escape(tag)}\s*>)"
    return f"<{tag}>\n{re.sub(closing, '< /', text.strip(), flags=re.IGNORECASE)}\n</{tag}>"


def messages(system: str, *user: str) -> Messages:
    """Instructions, and data one part a line; an empty part is left out."""
    said = "\n".join(part for part in user if part)
    return [{"role": "system", "content": system}, {"role": "user", "content": said}]


def optional(tag: str, text: str | None) -> str:
    return "" if text is None else quote(tag, text)


def attempt_messages(
    instruction: str, question: str, tags: str, style: str, templates: Templates = BUNDLED
) -> Messages:
    start, end = TAGS[tags]
    places = {"instruction": instruction, "open": start, "close": end}
    return messages(templates.fill(f"attempt_{style}", **places), question)


def critique_messages(
    question: str,
    attempt: str,
    tags: str,
    gold: str | None,
    example: str | None = None,
    templates: Templates = BUNDLED,
) -> Messages:
    """What a critic sees of a wrong attempt. example: the last winning rewrite (self-feedback)."""
    start, end = TAGS[tags]
    parts = [quote("attempt", attempt), optional("expected", gold), optional("example", example)]
    return messages(templates.fill("critique", open=start, close=end), question, *parts, "Reflect:")


def check_messages(
    question: str, attempt: str, tags: str, templates: Templates = BUNDLED
) -> Messages:
    """What checks an attempt that may be right; it is shown no answer."""
    start, end = TAGS[tags]
    system = templates.fill("check", open=start, close=end)
    return messages(system, question, quote("attempt", attempt), "Reflect:")


def reflection_messages(
    question: str, attempt: str, instruction: str, words: int, templates: Templates = BUNDLED
) -> Messages:
    """What reflects on a wrong attempt. instruction: how to, one of `reflections.POOL`."""
    system = templates.fill("reflection", instruction=instruction, words=str(words))
    return messages(system, question, quote("attempt", attempt), "Reflect:")


def reflect_and_retry_messages(
    instruction: str,
    question: str,
    attempt: str,
    tags: str,
    templates: Templates = BUNDLED,
) -> Messages:
    """What reflects and answers again in one response (ReflectEvo's one-stage training)."""
    system = solution("reflect_and_retry", instruction, tags, templates)
    return messages(system, question, quote("attempt", attempt), "Reflect:")


def rewrite_messages(
    instruction: str,
    question: str,
    attempt: str,
    feedback: str | None,
    tags: str,
    gold: str | None,
    templates: Templates = BUNDLED,
) -> Messages:
    """What a rewriter sees. feedback: None for the control, a retry without any."""
    parts = [quote("attempt", attempt), optional("feedback", feedback), optional("expected", gold)]
    return messages(solution("rewrite", instruction, tags, templates), question, *parts, "Retry:")


def continue_messages(
    instruction: str,
    question: str,
    working: str,
    hint: str,
    tags: str,
    templates: Templates = BUNDLED,
) -> Messages:
    """What goes on from a working that went wrong sees: no answer, only a hint at the error."""
    return messages(
        solution("continue", instruction, tags, templates),
        question, quote("working", working), quote("hint", hint), "Continue:",
    )  # fmt: skip


def integrate_messages(
    instruction: str, question: str, texts: Sequence[str], tags: str, templates: Templates = BUNDLED
) -> Messages:
    """What merges several attempts and reflections sees of them, in their order."""
    parts = [quote("text", text) for text in texts]
    return messages(
        solution("integrate", instruction, tags, templates), question, *parts, "Solution:"
    )


def expand_messages(
    instruction: str, question: str, notes: str, tags: str, templates: Templates = BUNDLED
) -> Messages:
    """What writes a person's notes out as a working sees; no answer beside them."""
    system = solution("expand", instruction, tags, templates)
    return messages(system, question, quote("notes", notes), "Working:")


def solution(name: str, instruction: str, tags: str, templates: Templates) -> str:
    start, end = TAGS[tags]
    return templates.fill(name, instruction=instruction, open=start, close=end)


# After a failed attempt of a data set that does not say how its reflections were asked for.
def judge_messages(
    question: str, attempt: str, gold: str | None, templates: Templates = BUNDLED
) -> Messages:
    parts = [quote("attempt", attempt), optional("expected", gold)]
    return messages(templates.fill("judge"), question, *parts, "Verdict:")


def prefer_messages(question: str, a: str, b: str, templates: Templates = BUNDLED) -> Messages:
    parts = [quote("attempt-A", a), quote("attempt-B", b)]
    return messages(templates.fill("prefer"), question, *parts, "Better:")


def score_messages(question: str, attempt: str, templates: Templates = BUNDLED) -> Messages:
    return messages(templates.fill("score"), question, quote("attempt", attempt), "Marks:")


def answer_messages(
    instruction: str, question: str, tags: str, gold: str | None, templates: Templates = BUNDLED
) -> Messages:
    """What a teacher who knows the answer sees of a problem; the policy's attempt is not shown."""
    asked = solution("answer", instruction, tags, templates)
    return messages(asked, question, optional("expected", gold), "Solution:")


def extract_messages(
    question: str, passages: Sequence[str], sections: Sequence[str], templates: Templates = BUNDLED
) -> Messages:
    asked = templates.fill("extract", sections="; ".join(sections))
    return messages(asked, quote("question", question), *quoted(passages), "Sections:")


def ground_messages(
    instruction: str,
    question: str,
    passages: Sequence[str],
    sections: str,
    templates: Templates = BUNDLED,
) -> Messages:
    asked = templates.fill("ground", instruction=instruction)
    parts = [quote("question", question), *quoted(passages), quote("sections", sections)]
    return messages(asked, *parts, "Answer:")


def support_messages(
    question: str, passages: Sequence[str], attempt: str, templates: Templates = BUNDLED
) -> Messages:
    parts = [quote("question", question), *quoted(passages), quote("attempt", attempt)]
    return messages(templates.fill("support"), *parts, "Verdict:")


def quoted(passages: Sequence[str]) -> list[str]:
    return [quote("passage", passage) for passage in passages]


def pose_messages(passage: str, templates: Templates = BUNDLED) -> Messages:
    return messages(templates.fill("pose"), quote("passage", passage), "Question:")


@dataclass(frozen=True)
class Parsed:
    """A response taken apart. answer: None when there is no closed answer block."""

    answer: str | None
    format_ok: bool
    reason: str
    spans: dict[str, list[int]]


def parse_response(text: str, tags: str = "think", style: str = "thinking") -> Parsed:
    """Find the thought and the last closed <answer> after the last closing think tag.

    Linear in the text's length: only `find`, `rfind` and `count`. A closing think tag without an
    opening one ends a thought that began in the prompt; an unclosed thought is a format fault.
    """
    start, end = TAGS[tags]
    spans: dict[str, list[int]] = {}
    last = text.rfind(end)
    after = last + len(end) if last >= 0 else 0
    first = text.find(start)
    if last >= 0:
        spans["think"] = [first + len(start) if 0 <= first < last else 0, last]
    close = text.rfind(ANSWER[1], after)
    open_ = text.rfind(ANSWER[0], after, close) if close >= 0 else -1
    answer = None
    if open_ >= 0:
        close = text.find(ANSWER[1], open_)  # a stray closing tag later belongs to no block
        spans["answer"] = [open_ + len(ANSWER[0]), close]
        answer = text[slice(*spans["answer"])].strip()
    reason = format_fault(text, tags, style)
    if not reason and answer is None:
        reason = "no closed <answer> block after the reasoning"
    return Parsed(answer, not reason, reason, spans)


def thought_of(text: str, tags: str) -> str:
    """The thought in a text; one never closed goes up to the answer."""
    start, _ = TAGS[tags]
    span = parse_response(text, tags).spans.get("think")
    if span is None:
        opened = text.find(start)
        begin = opened + len(start) if opened >= 0 else 0
        end = text.find(ANSWER[0], begin)
        span = [begin, end if end >= 0 else len(text)]
    return text[slice(*span)]


def open_working(text: str, tags: str) -> str:
    """A solution up to the end of its thought, which is left open; what `carried_on` goes on."""
    return f"{TAGS[tags][0]}\n{without_tags(thought_of(text, tags), tags)}"


def without_tags(thought: str, tags: str) -> str:
    """A thought without tags that stand inside it: no end could close them."""
    for tag in (*TAGS[tags], *ANSWER):
        thought = thought.replace(tag, "")
    return thought.strip()


def carried_on(working: str, reply: str, tags: str) -> str:
    """A working with what was written after it; a reply that opens a thought is whole already."""
    written = reply.strip()
    return written if written.startswith(TAGS[tags][0]) else f"{working}\n{written}"


def format_fault(text: str, tags: str, style: str) -> str:
    """What breaks the format asked for, in words; empty when nothing does."""
    start, end = TAGS[tags]
    opened, closed = text.count(start), text.count(end)
    answers, answers_closed = text.count(ANSWER[0]), text.count(ANSWER[1])
    if opened > closed:
        return f"{start} is not closed"
    if closed > 1 or (style != "direct" and closed == 0):
        return f"{closed} {start}…{end} blocks instead of one"
    if opened and text.find(start) > text.find(end):
        return f"{end} comes before {start}"
    if answers != 1 or answers_closed != 1:
        return f"{answers_closed} closed <answer> blocks instead of one"
    if text.find(ANSWER[0]) < text.rfind(end) or text.find(ANSWER[1]) < text.find(ANSWER[0]):
        return f"<answer> does not follow {end}" if closed else "</answer> comes first"
    if not text[text.find(ANSWER[0]) + len(ANSWER[0]) : text.find(ANSWER[1])].strip():
        return "the <answer> block is empty"
    return ""
