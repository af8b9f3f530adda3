"""Taking responses apart, and prompts whose data stays data."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxreflect.prompts.parsing import ANSWER, TAGS, Parsed, parse_response
from mlxreflect.prompts.roles import quote

STYLES = ("thinking", "direct")


def parse(text: str, style: str = "thinking", tags: str = "think") -> Parsed:
    """With <t> and </t> for the tag set's own tags, and <a> and </a> for the answer's."""
    return parse_response(spell(text, tags), tags, style)


def spell(text: str, tags: str) -> str:
    start, end = TAGS[tags]
    text = text.replace("<t>", start).replace("</t>", end)
    return text.replace("<a>", ANSWER[0]).replace("</a>", ANSWER[1])


# text, answer, format fine when thinking, format fine when direct
CASES = {
    "as asked": ("<t>x</t><a>7</a>", "7", True, True),
    "spaces": (" \n<t>\nx\n</t>\n\n<a>\n 7 \n</a>\n ", "7", True, True),
    "thought began in the prompt": ("x\n</t>\n<a>7</a>", "7", True, True),
    "empty thought": ("<t></t><a>7</a>", "7", True, True),
    "no thought": ("<a>7</a>", "7", False, True),
    "no thought, prose": ("It is 7: <a>7</a>", "7", False, True),
    "unclosed thought": ("<t>x <a>7</a>", "7", False, False),
    "unclosed thought, no answer": ("<t>x", None, False, False),
    "answer inside the thought": ("<t>x <a>7</a></t>", None, False, False),
    "answers inside and after": ("<t>x <a>6</a></t><a>7</a>", "7", False, False),
    "answer before the thought": ("<a>7</a><t>x</t>", None, False, False),
    "answer before a thought begun in the prompt": ("<a>7</a></t>", None, False, False),
    "two thoughts": ("<t>x</t><t>y</t><a>7</a>", "7", False, False),
    "two thoughts around an answer": ("<t>x</t><a>6</a><t>y</t>", None, False, False),
    "second thought unclosed": ("<t>x</t><t>y<a>7</a>", "7", False, False),
    "nested thoughts": ("<t>x<t>y</t></t><a>7</a>", "7", False, False),
    "two openings": ("<t>x<t>y</t><a>7</a>", "7", False, False),
    "two closings": ("<t>x</t></t><a>7</a>", "7", False, False),
    "tags the wrong way round": ("</t>x<t><a>7</a>", "7", False, False),
    "two answers": ("<t>x</t><a>6</a><a>7</a>", "7", False, False),
    "unclosed answer": ("<t>x</t><a>7", None, False, False),
    "answer that was not opened": ("<t>x</t>7</a>", None, False, False),
    "answer tags the wrong way round": ("<t>x</t></a>7<a>", None, False, False),
    "closed answer and an open one": ("<t>x</t><a>6</a><a>7", "6", False, False),
    "an answer opened in the thought": ("<t>x <a></t>7</a>", None, False, False),
    "empty answer": ("<t>x</t><a></a>", "", False, False),
    "blank answer": ("<t>x</t><a> \n </a>", "", False, False),
    "nothing": ("", None, False, False),
    "prose": ("The answer is 7.", None, False, False),
    "after words": ("<t>x</t><a>7</a> That is all.", "7", True, True),
    "other tags": ("<thought>x</thought><a>7</a>", "7", False, True),
    "capitals": ("<t>x</t><ANSWER>7</ANSWER>", None, False, False),
}


@pytest.mark.parametrize("tags", TAGS)
@pytest.mark.parametrize("name", CASES)
def test_every_case_of_the_format(name: str, tags: str) -> None:
    text, answer, thinking, direct = CASES[name]
    for style, fine in (("thinking", thinking), ("direct", direct)):
        found = parse(text, style, tags)
        assert found.answer == answer
        assert found.format_ok is fine, found.reason
        assert bool(found.reason) is not fine
        spelled = spell(text, tags)
        if answer is not None:
            assert spelled[slice(*found.spans["answer"])].strip() == answer


@pytest.mark.parametrize("tags", TAGS)
def test_spans_are_of_the_text(tags: str) -> None:
    text = spell("\n<t>\nstep 1\nstep 2\n</t>\n<a> 7 </a>", tags)
    spans = parse_response(text, tags).spans
    assert text[slice(*spans["think"])] == "\nstep 1\nstep 2\n"
    assert text[slice(*spans["answer"])] == " 7 "
    begun = text[text.index("step 1") :]
    assert begun[slice(*parse_response(begun, tags).spans["think"])] == "step 1\nstep 2\n"


NAMED = sorted(TAGS.keys() - {"native"})  # which has the tags of another until a model is loaded


@pytest.mark.parametrize(("tags", "other"), [*itertools.permutations(NAMED, 2)])
def test_another_tag_set_is_plain_text(tags: str, other: str) -> None:
    text = spell("<t>x</t><a>7</a>", other)
    found = parse_response(text, tags)
    assert (found.answer, found.format_ok) == ("7", False)
    assert "think" not in found.spans
    assert parse_response(text, tags, "direct").format_ok
    nested = (
        spell("<t>", tags) + text.replace("<answer>7</answer>", "") + spell("</t><a>7</a>", tags)
    )
    assert parse_response(nested, tags).format_ok


PIECES = [*itertools.chain(*TAGS.values()), *ANSWER, "x", " ", "\n", "<", "/", "7"]


@given(st.lists(st.sampled_from(PIECES), max_size=14), st.sampled_from([*TAGS]))
def test_any_order_of_tags(pieces: list[str], tags: str) -> None:
    """Never raises; and what passes has the one shape that was asked for."""
    text = "".join(pieces)
    start, end = TAGS[tags]
    for style in STYLES:
        found = parse_response(text, tags, style)
        for a, b in found.spans.values():
            assert 0 <= a <= b <= len(text)
        assert bool(found.reason) is not found.format_ok
        if found.answer is not None:
            assert ANSWER[1] in text[text.index(ANSWER[0]) :]
        if not found.format_ok:
            continue
        assert found.answer
        assert text.count(ANSWER[0]) == text.count(ANSWER[1]) == 1
        assert text.count(end) == 1 or (style == "direct" and text.count(end) == 0)
        assert text.count(start) <= text.count(end)
        assert end not in text[text.index(ANSWER[0]) :]
        assert start not in text[text.index(ANSWER[0]) :]


HOSTILE = [
    "<think>", "</think>", "<answer>", "</answer>", "<answer></answer>", "<think></think>",
    "<think><answer></think></answer>", "<", "</", "<answer", "</answer></think>", "a", "\x00",
    "\n", "\ud800",
]  # fmt: skip


@pytest.mark.parametrize("unit", HOSTILE)
def test_a_megabyte_of_anything(unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    for tags, style in itertools.product(TAGS, STYLES):
        assert not parse_response(text, tags, style).format_ok
        wrapped = spell("<t>", tags) + text.replace("<", "(") + spell("</t><a>7</a>", tags)
        assert parse_response(wrapped, tags, style).answer == "7"


# ---- prompts ------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(["</attempt>", "<", "/", "attempt", ">", " ", "</"]), max_size=12))
def test_no_combination_closes_a_quote(pieces: list[str]) -> None:
    quoted = quote("attempt", "".join(pieces))
    assert quoted.index("</attempt>") == len(quoted) - len("</attempt>")


def test_quoting_keeps_all_other_text() -> None:
    text = "<think>\n1 < 2 </think>\n<answer>{x} %s \\n </answer>"
    assert quote("attempt", f"\n {text} \n") == f"<attempt>\n{text}\n</attempt>"
