"""Reading responses: the tags of a thought and of an answer, and what stands between them."""

import re
from dataclasses import dataclass

TAGS = {
    "think": ("<think>", "</think>"),
    "reasoning": ("<reasoning>", "</reasoning>"),
    "preflexor": ("<|thinking|>", "<|/thinking|>"),
    "mistral": ("[THINK]", "[/THINK]"),
    "gemma": ("<|channel>thought", "<channel|>"),
    "harmony": (
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
    "native": ("<think>", "</think>"),  # until a model is loaded: models/template.py
}
ANSWER = ("<answer>", "</answer>")
REFLECT = ("<|reflect|>", "<|/reflect|>")


@dataclass(frozen=True)
class Parsed:
    """A response taken apart. answer: None when there is no closed answer block."""

    answer: str | None
    format_ok: bool
    reason: str
    spans: dict[str, list[int]]


def parse_response(text: str, tags: str = "think", style: str = "thinking") -> Parsed:
    """Finds the thought and the last closed <answer> after the last closing think tag.

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
    """Returns the thought in a text; one never closed goes up to the answer."""
    start, _ = TAGS[tags]
    span = parse_response(text, tags).spans.get("think")
    if span is None:
        opened = text.find(start)
        begin = opened + len(start) if opened >= 0 else 0
        end = text.find(ANSWER[0], begin)
        span = [begin, end if end >= 0 else len(text)]
    return text[slice(*span)]


def reflection_in(text: str) -> str:
    """Returns what the last closed <|reflect|> block holds; empty where there is none."""
    start, end = REFLECT
    before, closed, _ = text.rpartition(end)
    _, opened, said = before.rpartition(start)
    return said.strip() if opened and closed else ""


def open_working(text: str, tags: str) -> str:
    """Returns a solution up to the end of its thought, left open for `carried_on`."""
    return f"{TAGS[tags][0]}\n{without_tags(thought_of(text, tags), tags)}"


def without_tags(thought: str, tags: str) -> str:
    """Returns a thought without tags that stand inside it: no end could close them."""
    for tag in (*TAGS[tags], *ANSWER):
        thought = thought.replace(tag, "")
    return thought.strip()


def carried_on(working: str, reply: str, tags: str) -> str:
    """Returns a working with its continuation; a reply that opens a thought is whole already."""
    written = reply.strip()
    return written if written.startswith(TAGS[tags][0]) else f"{working}\n{written}"


ANNOTATION = re.compile(r"<<[^<>\n]{0,200}>>")  # GSM8K's notes for a calculator


def plain_solution(text: str) -> str:
    """Returns a solution without GSM8K's notes for a calculator, and its #### in words."""
    return ANNOTATION.sub("", text).replace("####", "The answer is")


def format_fault(text: str, tags: str, style: str) -> str:
    """Returns what breaks the format asked for, in words; empty when nothing does."""
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
