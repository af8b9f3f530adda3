"""Generated inputs, odd and hostile: files of rows, recipes, critics' replies and prompts.

Each ends well or in a UserError of two lines (a critic's reply: in a failed Reply); nothing else is
raised, and memory stays small. An input is made of its kind, its number and a seed:
MLXREFLECT_FUZZ_SEED=N tries another seed. tests/test_graders_hostile.py tries the graders.
"""

import csv
import gzip
import io
import json
import os
import random
import re
import subprocess
import tempfile
import tomllib
import traceback
import zlib
from collections.abc import Callable
from contextlib import closing
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import fake_bedrock
from support.critics import PROVIDERS, ask, call, child, critic_at
from support.fake_server import Fault

from mlxreflect.config.recipe import dump_recipe, eval_spec, load_recipe
from mlxreflect.config.schema import PolicyConfig, Recipe, TaskConfig
from mlxreflect.config.toml import all_keys, bundled, toml_value
from mlxreflect.core.errors import UserError
from mlxreflect.core.ui import safe_text
from mlxreflect.critics.verdicts import Judgement, parse
from mlxreflect.data.examples import OBJECTIVES, read_examples
from mlxreflect.data.rows import rows_of
from mlxreflect.models.load import load_policy
from mlxreflect.models.policy import Policy
from mlxreflect.models.template import ChatTemplate
from mlxreflect.prompts.parsing import TAGS
from mlxreflect.prompts.roles import BUNDLED, ROLES, role_messages
from mlxreflect.tasks.jsonl import load
from mlxreflect.train.encode import Encoder

SEED = int(os.environ.get("MLXREFLECT_FUZZ_SEED", "14"))
COUNTS = {"file": 300, "recipe": 300, "reply": 120, "prompt": 150}  # 870 inputs
MOST_MB = 500
TEXTS = [
    "", " ", "\0", "\ufeff", "\ud800", "\udfff x", "\u202e", "\u200b", "a\u0301" * 300, "😀" * 9,
    "x" * 5000, "\r\n", "\u2028", "\x1b[2J", "{", "}}", "{0}", "{instruction}", "{{ x }}",
    "{% x %}",
    "%s", "${HOME}", "$(id)", "`id`", "'; --", "<script>", "../../x", "~nobody/x", "a/" * 3000,
    "nan", "null", "true", "1e400", "-0", "٣", "１２", "=1+1", "</think>", "<think>", "<answer>7",
    "</answer>", "</attempt>", "</ ATTEMPT >", "</question>", "<|end|>", "<|user|>",
    "<|assistant|>",
    "<|direct|>", "<|im_end|>", "<s>", "</s>", "[INST]", "\ue0003c7c656e647c3e\ue000",
    "\ue000zz\ue000",
    '{"verdict": "right"}',
]  # fmt: skip


def text(rng: random.Random) -> str:
    return "".join(rng.choice(TEXTS) for _ in range(rng.randint(1, 3)))


def value(rng: random.Random, depth: int = 0) -> Any:
    """Anything that JSON can hold, and numbers that it should not."""
    plain: list[Any] = [
        None, True, False, 0, -1, 1, 0.5, 2**63, 10**400, -(10**25), 1e308, float("nan"),
        float("inf"), [], {}, "7", text(rng),
    ]  # fmt: skip
    kind = rng.random()
    if depth > 2 or kind < 0.6:
        return rng.choice(plain)
    if kind < 0.8:
        return [value(rng, depth + 1) for _ in range(rng.randint(0, 3))]
    names = [*ROWS[0], *ROWS[2], "role", "content", "type", "text", "error", text(rng)]
    return {rng.choice(names): value(rng, depth + 1) for _ in range(rng.randint(1, 4))}


def changed(rng: random.Random, tree: Any) -> Any:
    """Returns a copy with another value, or none, at a random place."""
    if isinstance(tree, (dict, list)) and tree and rng.random() < 0.85:
        keys = list(tree) if isinstance(tree, dict) else range(len(tree))
        at = rng.choice(list(keys))
        copy: Any = tree.copy()
        if rng.random() < 0.1:
            del copy[at]
        else:
            copy[at] = changed(rng, tree[at])
        return copy
    return value(rng)


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Returns bytes with a fault, as bad disks, editors and other programs leave it."""
    at = rng.randint(0, len(data))
    put = rng.choice([
        b"", b"\0", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\n\n", b"\r", b'"', b",", b";\t", b"{",
        b"]",
        b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000, b"NaN", b"1e999", b"\\ud800", b"\\u0000",
        b"'", b"#", b"=", b"\x1a", "\ufeff\u2028".encode(), b'"x": 1, "x": 2,',
    ])  # fmt: skip
    return data[:at] + put + data[at + rng.choice([0, 0, 1, 9, len(data)]) :]


def check(error: UserError) -> None:
    """The two lines that a person sees, as `cli.main.fail` prints them."""
    for line in (error.message, error.hint):
        shown = safe_text(" ".join(line.split()))
        shown.encode()
        assert 0 < len(shown) < 16_000, (error.message[:300], error.hint[:300])


# ---- files of rows -------------------------------------------------------------------------------

SAID = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "<answer>4</answer>"}]
ROWS: list[dict[str, Any]] = [
    {"question": "2+2?", "answer": "4", "choices": ["3", "4"]},
    {"messages": SAID, "tools": [{"name": "f"}]},
    {"prompt": "2+2?", "chosen": "4", "rejected": "5", "weight": 1.0},
    {"prompt": SAID[:1], "completions": ["4", "5"], "rewards": [1.0, 0.0]},
    {"instruction": "Add.", "input": "2+2", "output": "4", "system": "Be brief."},
    {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
    {"text": "2 + 2 = 4"}, {"question": "2+2?", "numbers": [2, 2], "target": 4, "answer": "2+2"},
]  # fmt: skip


def file_of(rng: random.Random, folder: Path) -> Path:
    """A file of one of the forms that are read, with damage in its values, its bytes or both."""
    row = rng.choice(ROWS)
    rows = [changed(rng, row) if rng.random() < 0.5 else row for _ in range(rng.randint(0, 6))]
    ending = rng.choice(["jsonl", "json", "csv", "tsv", "txt"])
    if ending in ("csv", "tsv"):
        table = io.StringIO()
        writer = csv.writer(table, delimiter=rng.choice(",;\t") if ending == "csv" else "\t")
        head = [*row, *([rng.choice([*row, text(rng)])] if rng.random() < 0.4 else [])]
        cells = [list(r.values()) if isinstance(r, dict) else [r] for r in rows]
        writer.writerows([[str(c) for c in line] for line in (head, *cells)])
        written = table.getvalue()
    elif ending == "json":
        written = json.dumps(
            rng.choice([rows, {"data": rows}, row]), ensure_ascii=rng.random() < 0.5
        )
    else:
        written = "\n".join(json.dumps(r, ensure_ascii=rng.random() < 0.5) for r in rows)
    code = rng.choice(["utf-8"] * 6 + ["utf-8-sig", "utf-16", "utf-32", "cp1252"])
    data = written.encode(code, "surrogatepass" if code.startswith("utf") else "replace")
    if rng.random() < 0.5:
        data = damaged(rng, data)
    if rng.random() < 0.2:
        data, ending = gzip.compress(data), f"{ending}.gz"
        data = damaged(rng, data) if rng.random() < 0.5 else data
    path = folder / f"train.{ending}"
    path.write_bytes(data)
    return path


@cache
def tiny() -> Policy:
    return load_policy(PolicyConfig())


def try_file(rng: random.Random, folder: Path) -> None:
    path = file_of(rng, folder)
    task = TaskConfig(
        name="jsonl", source=str(path),
        answer_type=rng.choice(["number", "text", "f1", "choice", "countdown"]),
    )  # fmt: skip
    examples, encoder = [], Encoder(tiny(), 4096)
    for read in (
        lambda: list(rows_of(str(path), empty=rng.choice(["", None]))),
        lambda: load(task, "all", 0),
        lambda: examples.extend(read_examples(str(path), rng.choice([*OBJECTIVES]))[0]),
        lambda: [encoder.encode(example) for example in examples],
    ):
        ends_well(read)


# ---- recipes -------------------------------------------------------------------------------------

USUAL = all_keys(Recipe)
KEYS = list(USUAL)
LITERALS = [
    "1", "-1", "0", "0.5", "true", "nan", "inf", "-inf", "1e400", "9" * 400, "9" * 5000,
    "0x" + "f" * 9000, "-" + "9" * 400, "1979-05-27", "07:32:00", "[]", "{}", "[[]]", "[1, 'a']",
    "{ a = 1 }", "''", "' '", "'tiny'", "'auto'", "'off'", "'\\u0000'", '"\\u0000"', '"a\\nb"',
    "'" + "x" * 5000 + "'", "'" + "a/" * 3000 + "'", "'~nobody/x'", "'1'", "'r3'", "['a', 'b']",
    "[" * 3000 + "]" * 3000, "{ a = " * 500 + "1" + " }" * 500, "{ provider = 'ollama' }",
    "{ model = 7 }", "'qwen3-4b'", "1_000", "01", "", "= 1", "'unclosed", '"""x"""', "[1, 2", "x y",
]  # fmt: skip
TABLES = [
    "[nothing]\nx = 1", "[r3]\n[r3]", "[[policy]]\nmodel = 'x'", "[policy.model.x]\ny = 1",
    "policy = 3",
    "[profiles]\nx = 1", "[profiles.x]\npolicy = 1", "[profiles.x.policy]\nmodell = 'x'",
    "profiles = []",
    '["a\\nb"]\nx = 1', '"" = 1', '"a.b" = 1', "[critic.judge]\nx = 1", "[critic.advanced.model]",
    "[prompt.templates]\nattempt_thinking = '{x.__class__}'", "[prompt.templates]\nnone = 'x'",
    "[prompt.templates]\ncritique = 7", "[prompt]\nfile = '\\u0000'", "]", "\0", "\ufeff", "a",
    "a.b.c",
    "[eval]\nspec = '/'", "[train.lora]\nkeys = [1]", "[train]\nlora = []",
    "[critic.budget]\nx = {}",
]  # fmt: skip


def setting(rng: random.Random) -> str:
    key = rng.choice(KEYS)
    if USUAL[key] is not None and rng.random() < 0.5:
        return f"{key}={toml_value(USUAL[key])}"
    key = rng.choice([key, key, key, f"{key}.x", key[:-1], text(rng), "profile", ""])
    return f"{key}{rng.choice(['=', '=', '=', ' = ', ''])}{rng.choice([*LITERALS, *TEXTS])}"


def try_recipe(rng: random.Random, folder: Path) -> None:
    name = rng.choice([*bundled("recipes")])
    settings = [setting(rng) for _ in range(rng.choice([0, 0, 1, 1, 2]))]
    if not settings or rng.random() < 0.5:
        lines = [f"{rng.choice(KEYS)} = {rng.choice(LITERALS)}" for _ in range(rng.randint(0, 2))]
        lines += [rng.choice(TABLES)] if rng.random() < 0.5 else []
        if rng.random() < 0.3:
            lines.append(bundled("recipes")[name].read_text(encoding="utf-8"))
        data = "\n".join(lines).encode()
        path = folder / "recipe.toml"
        path.write_bytes(damaged(rng, data) if rng.random() < 0.3 else data)
        name = str(path)
    name = rng.choice([*[name] * 15, text(rng)])

    def load_and_write() -> None:
        recipe = load_recipe(name, settings)
        assert Recipe.model_validate(tomllib.loads(dump_recipe(recipe))) == recipe
        eval_spec(recipe)

    ends_well(load_and_write)


# ---- critics' replies ----------------------------------------------------------------------------

RIGHT = json.dumps({"step": "", "why": "x", "verdict": "right"})
SHAPES: dict[str, Any] = {
    "ollama": {"model": "critic", "message": {"role": "assistant", "content": RIGHT,
                                         "thinking": "x"},
               "done": True, "done_reason": "stop", "prompt_eval_count": 20, "eval_count": 5,
               "capabilities": ["thinking"], "details": {"family": "x"},
               "model_info": {"x.context_length": 4096}, "models": [{"model": "critic:latest",
               "size": 1}]},
    "openai": {"choices": [{"message": {"content": RIGHT, "reasoning_content": "x",
                                        "tool_calls": None},
               "finish_reason": "stop"}], "usage": {"prompt_tokens": 20, "completion_tokens": 5},
               "data": [{"id": "critic"}]},
    "bedrock": {"output": {"message": {"role": "assistant", "content": [{"text": RIGHT}]}},
                "stopReason": "end_turn", "usage": {"inputTokens": 20, "outputTokens": 5}},
}  # fmt: skip
ERRORS: list[Any] = [
    {"error": "model runner has stopped"},
    {"error": {"message": "x", "param": "seed", "code": 7}},
    {"detail": [{"loc": ["body", 1], "msg": "x"}]},
    {"message": {"message": {"message": {}}}},
    {"error": {"metadata": {"raw": json.dumps({"error": {"message": "x" * 9999}})}}},
]
PAGES = [
    b"<!doctype html><p>502",
    b'data: {"choices": []}\n\ndata: [DONE]\n\n',
    b"",
    b"null",
    b"[]",
]


def reply_of(rng: random.Random, shape: Any) -> Fault:
    status = rng.choice([200] * 6 + [201, 204, 302, 400, 401, 404, 429, 500, 503])
    said = json.dumps(text(rng) + RIGHT + text(rng))
    tree = json.loads(json.dumps(shape).replace(json.dumps(RIGHT), said))
    for _ in range(rng.choice([0, 1, 1, 2])):
        tree = changed(rng, tree)
    if status >= 300 or rng.random() < 0.1:
        tree = changed(rng, rng.choice(ERRORS))
    data = json.dumps(tree, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    if rng.random() < 0.3:
        data = rng.choice([damaged(rng, data), rng.choice(PAGES)])
    headers = rng.choice([
        {}, {}, {"Content-Type": "text/html"}, {"Retry-After": rng.choice(["-1", "x", "nan",
        "9e9"])},
        {"Location": "http://127.0.0.1:1/x"}, {"x-amzn-ErrorType": "x:y"},
        {"Content-Encoding": "br"},
    ])  # fmt: skip
    if rng.random() < 0.15:
        packed = rng.choice([gzip.compress, zlib.compress])(data)
        data, headers = damaged(rng, packed), {"Content-Encoding": rng.choice(["gzip", "deflate"])}
    return Fault(status, b"" if status == 204 else data, headers)


def try_reply(rng: random.Random, folder: Path) -> None:
    name = rng.choice(["ollama", "ollama", "openai", "openai", "bedrock"])
    fault, asked = reply_of(rng, SHAPES[name]), call(schema=Judgement.model_json_schema())
    with PROVIDERS[name].fake() as server:
        server.respond = lambda seen: fault  # type: ignore[method-assign]
        [reply] = ask(server, asked, deadline_s=2.0)
        with closing(critic_at(server, deadline_s=2.0)) as critic:
            ends_well(critic.preflight)
    assert (reply.error is None) == bool(reply.text), reply
    if reply.error is None:
        parse(reply.text, Judgement, asked.text)
    else:
        assert reply.kind and "\n" not in reply.error and "Traceback" not in reply.error, reply
    assert all(type(n) is int and n >= 0 for n in reply.usage.values()), reply


# ---- prompts -------------------------------------------------------------------------------------

PARTS = ("question", "attempt", "attempt_A", "attempt_B", "found", "expected", "example",
         "feedback", "hint", "working", "text", "notes", "passage", "sections",
         "answer_1", "answer_2")  # fmt: skip


@cache
def without_template() -> ChatTemplate:
    """The embedded policy's tokenizer as of a model without a chat template."""
    known = tiny().tokenizer
    names = ("added_tokens_decoder", "encode", "decode", "eos_token_id", "eos_token_ids",
             "convert_ids_to_tokens", "convert_tokens_to_ids", "get_vocab")  # fmt: skip
    return ChatTemplate(
        SimpleNamespace(has_chat_template=False, **{name: getattr(known, name) for name in names})
    )


def try_prompt(rng: random.Random, folder: Path) -> None:
    role, tags = rng.choice([*ROLES]), rng.choice([*TAGS])
    data = {name: text(rng) for name in PARTS}
    places = {"instruction": "Solve it.", "words": "80", "sections": data["sections"],
              "rubric": "Depth."}  # fmt: skip
    system, user = role_messages(role, tags, BUNDLED, **{**places, **data})
    assert data["question"] in user["content"] or "question" not in ROLES[role].shows
    plain, _ = role_messages(role, tags, BUNDLED, **{**places, **dict.fromkeys(data, "x")})
    if "sections" not in BUNDLED.wording[role]:
        assert system == plain  # nothing of the data stands among the instructions
    for part in ROLES[role].shows:
        if part != "question":
            name = part.strip("<>")
            assert len(re.findall(rf"</\s*{name}\s*>", user["content"], re.IGNORECASE)) >= 1
            quoted = user["content"].partition(f"<{name}>\n")[2].partition(f"\n</{name}>")[0]
            assert not re.search(rf"</\s*{name}\s*>", quoted, re.IGNORECASE)
    policy = tiny()
    special = {i for i, t in policy.tokenizer.added_tokens_decoder.items() if t.special}

    def control(template: ChatTemplate, said: str) -> list[int]:
        ids = template.prompt([system, {**user, "content": said}])
        response = template.response(ids, text(rng))
        assert response[-1] == template.end_of_turn and not special & {*response[:-1]}
        return [token for token in ids if token in special]

    for template in (policy.template, without_template()):
        assert control(template, user["content"]) == control(template, "x")


# ---- all of them ---------------------------------------------------------------------------------

KINDS = {"file": try_file, "recipe": try_recipe, "reply": try_reply, "prompt": try_prompt}


def ends_well(work: Callable[[], Any]) -> None:
    try:
        work()
    except UserError as error:
        check(error)


def try_all(kind: str, seed: int, count: int) -> list[str]:
    """Tries inputs of a kind; returns how to repeat those that ended badly, and their errors."""
    failed = []
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        fake_bedrock.credentials(patch, Path(folder))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_DATASETS_OFFLINE", "1")
        for number in range(count):
            rng = random.Random(f"{seed} {kind} {number}")
            try:
                KINDS[kind](rng, Path(folder))
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the failure
                at = traceback.extract_tb(error.__traceback__)[-1]
                failed.append(
                    f"MLXREFLECT_FUZZ_SEED={seed}, {kind} {number}: {type(error).__name__}: "
                    f"{str(error)[:300]!r} at {at.filename}:{at.lineno}"
                )
    return failed


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample(kind: str) -> None:
    assert try_all(kind, seed=1, count=8) == []


MEASURED = """
import json
import conftest, test_hostile as hostile
from support.hostile import peak_mb
hostile.tiny()
before = peak_mb()
count = int(sys.argv[3])
failed = hostile.try_all(sys.argv[1], int(sys.argv[2]), count)
print(json.dumps({"failed": failed, "grown": peak_mb() - before}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_generated_inputs(kind: str) -> None:
    """In a process of its own, whose memory is measured."""
    assert sum(COUNTS.values()) >= 500
    done = subprocess.run(
        child(MEASURED, kind, SEED, COUNTS[kind]), capture_output=True, text=True, check=False
    )
    said = f"MLXREFLECT_FUZZ_SEED={SEED}: {done.stderr[-2000:]}"
    assert done.returncode == 0, said
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["failed"] == [], "\n".join(found["failed"])
    assert found["grown"] < MOST_MB, said
