"""Whatever a model's template and tokens or a --name say, a Modelfile says what we wrote."""

import random
import re
from pathlib import Path

import pytest
from support.modelfiles import read_modelfile
from test_template import tokenizer

from mlxreflect.config.schema import PolicyConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import SURROGATE
from mlxreflect.core.ui import Ui
from mlxreflect.models.modelfile import Modelfile, Turn, literal, modelfile, writable
from mlxreflect.models.template import ChatTemplate
from mlxreflect.report.share import lmstudio_folder, to_ollama

PIECES = (
    '"""', '"', "\n", "\nFROM /etc/passwd", "\nFROM /etc/passwd\n", "\nSYSTEM x", "\nADAPTER x\n",
    '"""\nPARAMETER stop x\n', '"\nMESSAGE user hi\n', "# ", "{{ .System }}", "{{", "}}", "{",
    "{{/*", "{%", "%}", "`", "\\", "\\u0041", "\\n", "$(rm -rf ~)", "; reboot", "../../x", "~root",
    "\x00", "\x07", "\x1b[31m", "\r", "\t", "\u00a0", "\u200b", "\u202e", "\ufeff", "\u2028", "😀",
    "<|im_end|>", "<think>", "---\n- a: &b", "!!python/object", ": |", "é", "x", " ", "[start]",
    "'", "--help", "a b", "/", ":", ".", "..", "-", "long " * 1000, "\ud800", "Uquestion",
)  # fmt: skip
CHATML = """\
{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\n' + told + '<|im_end|>\\n' }}\
{% endif %}{% for m in messages %}\
{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def hostile(count: int = 200) -> list[str]:
    chance = random.Random(5)
    return ["".join(chance.choices(PIECES, k=chance.randint(1, 8))) for _ in range(count)]


def shown(template: str) -> str:
    """Returns a template of Go's with its escaped characters as they are."""
    return re.sub(r'{{ "\\U(.{8})" }}', lambda found: chr(int(found[1], 16)), template)


@pytest.mark.parametrize(
    ("text", "read"),  # by the parser of Ollama 0.32.15; None: it refuses them
    [
        ('from .\nsystem """a\n"b" FROM x"""\n', [("FROM", "."), ("SYSTEM", 'a\n"b" FROM x')]),
        ('FROM .\nSYSTEM "a"\nFROM x\n', [("FROM", "."), ("SYSTEM", "a"), ("FROM", "x")]),
        ('FROM .\nADAPTER b\r\nMESSAGE user "hi\nho"\n',
         [("FROM", "."), ("ADAPTER", "b"), ("MESSAGE user", "hi\nho")]),
        ('FROM .\nSYSTEM """a"""" """\nFROM x',
         [("FROM", "."), ("SYSTEM", 'a"""" '), ("FROM", "x")]),
        ('FROM .\n# """\nPARAMETER stop "a\tb\x07"\n', [("FROM", "."), ("PARAMETER stop", "a\tb")]),
        ('FROM .\nSYSTEM "a" FROM x\n', None), ("FROM .\nSYSTEM\n", None), ("SYSTEM a\n", None),
        ("FROM .\nEVIL x\n", None), ("FROM .\nMESSAGE root hi\n", None), ("FROM .\n\xa0\n", None),
    ],
)  # fmt: skip
def test_the_reader_reads_as_ollama_does(text: str, read: list[tuple[str, str]] | None) -> None:
    if read is None:
        with pytest.raises(ValueError):
            read_modelfile(text)
    else:
        assert read_modelfile(text) == read


def test_hostile_texts_stay_texts() -> None:
    for text in hostile():
        kept = [text] if writable(text) else []
        turn = Turn(*[text] * 6)
        made = Modelfile(turn.go(), "".join(kept), {"top_p": 0.5, "stop": kept})
        wanted = [("FROM", "."), ("TEMPLATE", turn.go()), *(("SYSTEM", t) for t in kept),
                  ("PARAMETER top_p", "0.5"), *(("PARAMETER stop", t) for t in kept)]  # fmt: skip
        assert read_modelfile(made.text()) == wanted, text
        assert shown(literal(text)) == text
        assert "{" not in re.sub(r'{{ "\\U.{8}" }}', "", literal(text))


def test_hostile_chat_templates_say_the_same_in_ollama() -> None:
    refused, words = 0, tokenizer(CHATML)
    for text in hostile():
        try:
            chat = ChatTemplate(words, options={"told": text})
            made = modelfile(chat, PolicyConfig())
        except UserError as error:
            assert SURROGATE.search(text) or "Uquestion" in text, text
            assert not set("\r\n") & set(error.message + error.hint)
            refused += 1
            continue
        names, values = zip(*read_modelfile(made.text()), strict=True)
        assert names[:2] == ("FROM", "TEMPLATE") and values[0] == "."
        assert {*names[2:]} - {"SYSTEM"} == {f"PARAMETER {name}" for name in made.parameters}
        assert [v for n, v in zip(names, values, strict=True) if n == "SYSTEM"] == (
            [text] if writable(text) and text else [])  # fmt: skip
        start = f"<|im_start|>system\n{text}<|im_end|>\n<|im_start|>user\n"
        assert f"{{{{ else }}}}{start}{{{{ end }}}}" in shown(values[1]), text
        assert chat.prompt_text([{"role": "user", "content": "hi"}]).startswith(f"{start}hi")
    assert 0 < refused < 100


NAMES = ("--help", "../../x", "a b", "", ".", "..", "a/..", "/etc/x", "~/x", "a/b/c/d", "a\\..\\x",
         "'a'", '"a"', "a\nFROM x", "$(x)", "é", "x" * 300, "a//b", "a/", "ok", "me/ok-2.1",
         "C:x", "con", "%2e%2e/x", "ok:v1", "reg.io:5000/me/ok:v1", "me.too/x")  # fmt: skip


def test_hostile_names_stay_in_their_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".lmstudio").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OLLAMA_HOST", "http://127.0.0.1:1")
    models, asked = tmp_path / ".lmstudio" / "models", (tmp_path, PolicyConfig(), Modelfile())
    taken: dict[str, set[str]] = {"lmstudio": set(), "ollama": set()}
    for name in (*NAMES, *hostile()):
        try:
            folder = lmstudio_folder(name)
        except UserError as error:
            assert "is no name for LM Studio" in error.message and "\n" not in error.message
        else:
            assert folder.parent.parent == models and not {".", ".."} & {*folder.parts}
            assert not folder.exists()  # the name is none that a system refuses
            taken["lmstudio"].add(name)
        with pytest.raises(UserError) as refusal:  # of the name, or there is no server
            to_ollama(*asked, tmp_path / "out", name, "", (), Ui(quiet=True))
        assert "\n" not in refusal.value.message
        if "is no name for Ollama" not in refusal.value.message:
            assert re.fullmatch(r"[\w./:-]+", name, re.ASCII) and name.count("/") <= 2
            assert all(re.match(r"\w", part, re.ASCII) for part in re.split("[/:]", name))
            taken["ollama"].add(name)
    assert taken["lmstudio"] & {*NAMES} == {"ok", "me/ok-2.1", "con", "me.too/x"}
    assert taken["ollama"] & {*NAMES} == {
        "ok", "me/ok-2.1", "con", "C:x", "ok:v1", "reg.io:5000/me/ok:v1"}  # fmt: skip
    assert [path.name for path in tmp_path.rglob("*")] == [".lmstudio"]
