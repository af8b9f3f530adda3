"""Models for others: what a run's model is elsewhere is what it is here."""

import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from support.adapters import write_adapter
from support.modelfiles import read_modelfile
from support.shell import Shell
from test_template import tokenizer

from mlxreflect.config.schema import PolicyConfig
from mlxreflect.core.journal import dump_line, read_json
from mlxreflect.core.records import make_problem, to_row
from mlxreflect.models.load import load_policy
from mlxreflect.models.modelfile import modelfile
from mlxreflect.models.template import ChatTemplate
from mlxreflect.report.share import as_evaluated, lmstudio_folder, modelfile_of, splits_of

# What a real Ollama said of Modelfiles that were written here, and how it rendered the talks.
RECORDED = json.loads((Path(__file__).parent / "data" / "ollama_templates.json").read_text())


@pytest.mark.parametrize("row", RECORDED["templates"], ids=lambda row: row["name"])
def test_ollama_renders_the_models_own_prompts(row: dict[str, Any]) -> None:
    chat = ChatTemplate(tokenizer(row["jinja"]), row["thinking"])
    made = modelfile(chat, PolicyConfig(temperature=0.25, top_k=7, repetition_penalty=1.5))
    assert (made.template, made.system) == (row["template"], row["system"])
    assert row["rendered"] == [chat.prompt_text(talk) for talk in RECORDED["talks"]]
    assert row["thinks"] == (bool(chat.shape.tags) and ".Thinking" in made.template)
    told = {"temperature": "0.25", "top_p": "0.9", "top_k": "7", "repeat_penalty": "1.5"}
    said = dict(read_modelfile(made.text()))
    assert {name: said[f"PARAMETER {name}"] for name in told} == told
    assert said["PARAMETER stop"] in chat.tokenizer.get_vocab()


@pytest.fixture
def run(make_model: Callable[..., Path], tmp_path: Path) -> Path:
    """A run's folder: what was evaluated, and an adapter on a model whose tokenizer has a merge."""
    model = make_model(vocab_size=600)
    told = json.loads((model / "tokenizer.json").read_text())
    told["model"]["vocab"]["th"], told["model"]["merges"] = 599, [["t", "h"]]
    (model / "tokenizer.json").write_text(json.dumps(told))
    (model / "chat_template.jinja").write_text(RECORDED["templates"][0]["jinja"])
    write_adapter(tmp_path / "A run's" / "adapter", model)
    policy = {"quantize": 0, "thinking": "off", "template": {}, "temperature": 0.9}
    decoding = {"temperature": 0.5, "top_p": 0.4, "max_new_tokens": 9, "top_k": 3}
    rows = {"run.json": {"recipe": {"policy": policy}},
            "eval/trained/results.json": {"spec": {"limit": 2}, "decoding": decoding}}  # fmt: skip
    for name, row in rows.items():
        file = tmp_path / "A run's" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(row))
    return tmp_path / "A run's"


@pytest.mark.parametrize("headline", ["", "gsm8k"])
def test_it_is_asked_as_the_headline_was(run: Path, headline: str) -> None:
    arm = run / "eval" / "trained"
    if headline:
        for task, heat in (("gsm8k", 0.5), ("aime25", 0.9)):
            (arm / task).mkdir()
            decoding = {"temperature": heat, "top_p": 0.4, "top_k": 3, "max_new_tokens": 9}
            (arm / task / "results.json").write_text(json.dumps({"decoding": decoding}))
        (arm / "results.json").unlink()
        (run / "comparisons.json").write_text(json.dumps({"tasks": ["gsm8k", "aime25"]}))
    how = as_evaluated(run, run / "adapter", "")
    assert (how.temperature, how.top_p, how.top_k) == (0.5, 0.4, 3)


def test_a_model_with_its_modelfile(shell: Shell, run: Path) -> None:
    out = run / "export" / "modelfile"
    assert "ollama create NAME -f '" in shell.works("export", run, "--to", "modelfile").out
    said = dict(read_modelfile((out / "Modelfile").read_text()))
    assert said["FROM"] == "." and said["SYSTEM"] == RECORDED["templates"][0]["system"]
    told = {"temperature": "0.5", "top_p": "0.4", "top_k": "3", "stop": "<|end|>"}
    assert {name: said[f"PARAMETER {name}"] for name in told} == told
    assert "PARAMETER num_ctx" not in said  # no evaluation is kept whose prompts would tell
    arrays = mx.load(str(out / "model.safetensors"))
    assert {array.dtype for array in arrays.values()} <= {mx.float16, mx.bfloat16, mx.float32}
    assert json.loads((out / "tokenizer_config.json").read_text())["add_bos_token"] is False
    name = read_json(run / "adapter" / "adapter_config.json")["model"]
    tuned = load_policy(PolicyConfig(model=name, adapter=str(run)))
    prompt = tuned.encode([{"role": "user", "content": "the 3"}])
    both = [policy.model(mx.array([prompt])) for policy in (
        tuned, load_policy(PolicyConfig(model=str(out))))]  # fmt: skip
    assert float(mx.abs(both[0] - both[1]).max()) < 1e-2


STOP = ["\n\nQuestion:", 'He said """']  # a Modelfile can have no three quotes in a text


@pytest.mark.parametrize(("most", "answer", "context"), [
    (0, 9, 8192), (0, 5000, 12288), (0, 300_000, 307_200), (0, 1_500_000, 1_507_328),
    (7000, 9, 7000), (10_000, 9, 8192),
])  # fmt: skip
def test_the_context_is_what_the_evaluation_needed(
    run: Path, most: int, answer: int, context: int
) -> None:
    """Of some 5,000 tokens, for each character is one here, and as many as an answer may have."""
    model = Path(read_json(run / "adapter" / "adapter_config.json")["model"])
    if most:
        told = read_json(model / "config.json")
        (model / "config.json").write_text(json.dumps(told | {"max_position_embeddings": most}))
    arm, asked = (
        run / "eval" / "trained",
        [
            make_problem(
                "jsonl", {"question": "x" * length, "answer_type": "number", "answer": "1"}
            )
            for length in (9, 5000)
        ],
    )
    (arm / "problems.jsonl").write_text("".join(dump_line(to_row(one)) for one in asked))
    spec = {"task": {"name": "jsonl"}, "stop": STOP, "max_new_tokens": answer}
    decoding = {"temperature": 0.5, "max_new_tokens": answer}
    (arm / "results.json").write_text(json.dumps({"spec": spec, "decoding": decoding}))
    made = modelfile_of(run, as_evaluated(run, run / "adapter", ""))
    assert made.parameters["num_ctx"] == context
    assert made.parameters["stop"] == ["<|end|>", STOP[0]]
    said = read_modelfile(made.text())
    assert ("PARAMETER num_ctx", str(context)) in said and ("PARAMETER stop", STOP[0]) in said


def test_a_folder_of_mlx(shell: Shell, run: Path) -> None:
    for bits, extra in ((0, ()), (8, ("--quantize", 8, "--prompt", "One more"))):
        out = run / f"mlx-{bits}"
        words = ("export", run, "--to", "mlx", "--out", out, *extra, "--json")
        said = json.loads(shell.works(*words).out)
        assert (said["format"], said["out"], said["quantize"]) == ("mlx", str(out), bits)
        assert said["prompts"] == len(said["samples"]) == (6 if bits else 5)
        assert bits or said["agree"] == 5
        assert read_json(out / "config.json").get("quantization", {}).get("bits", 0) == bits


def test_what_cannot_be_shared(shell: Shell, run: Path, tiny_random: Path) -> None:
    bytes_alone = write_adapter(run / "bytes" / "adapter", tiny_random).parent
    nameless = write_adapter(run / "nameless" / "adapter", tiny_random, told="").parent
    (damaged := run / "damaged").mkdir()
    shutil.copytree(run / "adapter", damaged / "adapter")
    (damaged / "run.json").write_text('{"recipe": {"policy": {"quantize": "many"}}}')
    full = run / "full"
    full.mkdir()
    (full / "file").touch()
    for words, fault in (
        ((bytes_alone, "--to", "modelfile"), "Ollama reads byte-level BPE with merges"),
        ((nameless, "--to", "mlx"), "does not name its model"),
        ((damaged, "--to", "mlx"), "its settings cannot be read"),
        ((run, "--to", "mlx", "--quantize", "q4_K_M"), "weights of MLX have 4 or 8 bits"),
        ((run, "--to", "modelfile", "--out", full), "already exists"),
        ((run, "--to", "modelfile", "--base", "org/none"), "org/none is not on this machine"),
        ((run, "--to", "nothing"), "--to nothing: no such form"),
        ((run, "--to", "pft"), "--to pft: no such form"),
    ):
        assert fault in shell.mistake("export", *words)[0]
    assert sorted(path.name for path in full.iterdir()) == ["file"]
    assert not list(run.rglob("*.tmp"))


class FakeOllama(BaseHTTPRequestHandler):
    """Takes files as Ollama 0.32 does, and answers with what they are a model of.

    folder: where the files are kept. refuses: what it says to /api/create. moved: where it says
    that a model's file is. told: the requests.
    """

    folder: Path
    refuses = moved = ""
    told: dict[str, list[Any]]
    policy: Any = None

    def do_GET(self) -> None:
        self.say({"models": [{"model": "taken:latest", "size": 1}]})

    def do_HEAD(self) -> None:
        self.say({}, 200 if (self.folder / Path(self.path).name).exists() else 404)

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.startswith("/api/blobs/"):
            digest = self.path.removeprefix("/api/blobs/")
            assert digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
            (self.folder / digest).write_bytes(data)
            return self.say({}, 201)
        body = json.loads(data)
        self.told.setdefault(self.path, []).append(body)
        if self.path == "/api/create":
            if self.refuses:
                return self.say({"error": self.refuses}, 400)
            for name, digest in body["files"].items():
                (self.folder / name).write_bytes((self.folder / digest).read_bytes())
            return self.say({"status": "success"})
        if self.path == "/api/show":  # the file of a model that it made: here, its weights
            weights = self.folder / self.told["/api/create"][0]["files"]["model.safetensors"]
            return self.say({"modelfile": f"# FROM x\nFROM {self.moved or weights}\nTEMPLATE x"})
        return self.say(self.chat(body))

    def do_DELETE(self) -> None:
        size = int(self.headers["Content-Length"])
        self.told.setdefault(self.path, []).append(json.loads(self.rfile.read(size)))
        self.say({})

    def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        kind = type(self)
        if not kind.policy:  # which sees no chat template but the one it was sent
            (self.folder / "chat_template.jinja").write_text(RECORDED["templates"][0]["jinja"])
            kind.policy = load_policy(PolicyConfig(model=str(self.folder)))
        made = self.told["/api/create"][-1]
        system = {"role": "system", "content": made["system"]}
        prompt = self.policy.encode([system, *body["messages"]])
        (done,) = self.policy.generate(
            [prompt], temperature=body["options"]["temperature"], top_p=1.0, batch=1, seed=("x",),
            max_new_tokens=body["options"]["num_predict"],
        )  # fmt: skip
        return {"message": {"role": "assistant", "content": done.text.strip()}, "done": True,
                "prompt_eval_count": len(prompt)}  # fmt: skip

    def say(self, answer: dict[str, Any], status: int = 200) -> None:
        body = b"" if self.command == "HEAD" else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing: pytest shows what tests print."""


@contextmanager
def ollama(folder: Path, **how: str) -> Iterator[tuple[str, dict[str, list[Any]]]]:
    """Yields the address of a fake server, and what it is told, by path."""
    folder.mkdir()
    told: dict[str, list[Any]] = {}
    handler = type("Handler", (FakeOllama,), {"folder": folder, "told": told, **how})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", told
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_model_of_ollamas(
    shell: Shell, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ollama(tmp_path / "server") as (address, told):
        monkeypatch.setenv("OLLAMA_HOST", address)
        words = ("export", run, "--to", "ollama", "--quantize", "q4_K_M", "--json")
        said = json.loads(shell.works(*words, "--prompt", "the 3").out)
    assert (said["name"], said["agree"], said["prompts"]) == ("a-run-s", 6, 6)
    assert all(ours == theirs > 0 for ours, theirs in (s["prompt_tokens"] for s in said["samples"]))
    (made,) = told["/api/create"]
    recorded = RECORDED["create"]  # by Ollama's own program, for such a Modelfile
    for key in ("files", "parameters"):
        assert {*made[key]} >= {*recorded[key]}
    assert {*made["files"]} == {p.name for p in (run / "export" / "ollama").iterdir()} - {
        "Modelfile", "chat_template.jinja"}  # fmt: skip
    for name, digest in made["files"].items():  # which names the bytes that were sent
        sent = (tmp_path / "server" / digest).read_bytes()
        assert sent == (run / "export" / "ollama" / name).read_bytes()
        assert digest == f"sha256:{hashlib.sha256(sent).hexdigest()}"
    assert {*made} - {"stream"} == {*recorded} - {"name"}  # "": an old name of "model"
    assert (made["system"], made["quantize"]) == (recorded["system"], recorded["quantize"])
    assert (made["parameters"]["temperature"], made["parameters"]["stop"]) == (0.5, ["<|end|>"])
    assert len(told["/api/chat"]) == 6


def test_what_ollama_cannot_make(
    shell: Shell, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("export", run, "--to", "ollama")
    monkeypatch.setenv("OLLAMA_HOST", "http://127.0.0.1:1")
    assert "Ollama does not answer" in shell.mistake(*words)[0]
    with ollama(tmp_path / "server", refuses="unsupported architecture") as (address, _):
        monkeypatch.setenv("OLLAMA_HOST", address)
        for more, fault in (
            (("--name", "../x"), "--name '../x' is no name for Ollama"),
            (("--name", "a\nb"), "is no name for Ollama"),
            (("--name", "taken"), "Ollama has a model taken"),
            (("--quantize", "5"), "--quantize 5: no such form"),
        ):
            assert fault in shell.mistake(*words, *more)[0]
        done = shell(*words)
    assert done.code == 2 and "Ollama: HTTP 400: unsupported architecture" in done.err
    assert "ollama create a-run-s -f " in done.err and (run / "export/ollama/Modelfile").is_file()


@pytest.mark.parametrize(
    ("files", "name", "place"),
    [
        ({".lmstudio/x": ""}, "it", ".lmstudio/models/mlxreflect/it"),
        ({".lmstudio/x": ""}, "me/it-2.1", ".lmstudio/models/me/it-2.1"),
        ({".lmstudio/x": "", ".cache/lm-studio/x": ""}, "it",
         ".cache/lm-studio/models/mlxreflect/it"),
        ({".lmstudio-home-pointer": "HOME/lm\n", "lm/x": ""}, "it", "lm/models/mlxreflect/it"),
        ({".lmstudio/settings.json": '{"downloadsFolder": "HOME/big"}', "big/x": ""}, "it",
         "big/mlxreflect/it"),
        ({".config/LM Studio/settings.json": '{"downloadsFolder": "HOME/big"}', "big/x": "",
          ".lmstudio/settings.json": "{"}, "it", "big/mlxreflect/it"),
        ({".lmstudio/settings.json": '{"downloadsFolder": "HOME/gone"}'}, "it",
         ".lmstudio/models/mlxreflect/it"),
    ],
)  # fmt: skip
def test_where_lm_studio_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], name: str, place: str
) -> None:
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text.replace("HOME", str(tmp_path)))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / ".config"))
    monkeypatch.setattr("sys.platform", "linux")
    assert lmstudio_folder(name) == tmp_path / place


def test_a_model_of_lm_studios(shell: Shell, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / ".lmstudio").mkdir()
    monkeypatch.setenv("HOME", str(run))
    words = ("export", run, "--to", "lmstudio", "--quantize", 4)
    said = json.loads(shell.works(*words, "--json").out)
    assert said["out"] == str(run / ".lmstudio" / "models" / "mlxreflect" / "a-run-s")
    assert load_policy(PolicyConfig(model=said["out"])).model
    assert "already exists" in shell.mistake(*words)[0]


def test_no_lm_studio(shell: Shell, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(run / "nobody"))
    words = ("export", run, "--to", "lmstudio")
    assert "LM Studio has no folder here" in shell.mistake(*words)[0]
    for name in ("../../x", "a/b/c", "a b", "/x", ".x"):
        assert "is no name for LM Studio" in shell.mistake(*words, "--name", name)[0]


def test_a_file_of_ollamas(
    shell: Shell, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    words = ("export", run, "--to", "gguf", "--out", run / "gguf")
    for how in ({}, {"moved": "/of/another/machine"}, {"refuses": "unsupported architecture"}):
        with ollama(tmp_path / f"server{how}".replace("/", ""), **how) as (address, told):
            monkeypatch.setenv("OLLAMA_HOST", address)
            done = shell(*words)
        (made,) = told["/api/create"]
        assert "refuses" in how or told["/api/delete"] == [{"model": made["model"]}]
        if how:
            assert done.code == 2 and not (run / "gguf").exists()
            continue
        (file,) = (run / "gguf").iterdir()
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        assert made["files"]["model.safetensors"] == f"sha256:{digest}" and file.suffix == ".gguf"
        config = json.loads((tmp_path / "server{}" / "tokenizer_config.json").read_text())
        assert config["chat_template"] == RECORDED["templates"][0]["jinja"]
        shutil.rmtree(run / "gguf")
    monkeypatch.setenv("OLLAMA_HOST", "http://127.0.0.1:1")
    assert "nothing here makes GGUF" in shell.mistake(*words)[0]


def test_a_file_of_llama_cpps(
    shell: Shell, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tools := tmp_path / "a tool's").mkdir()
    converter = tools / "convert_hf_to_gguf.py"
    converter.write_text(
        '#!/bin/sh\n[ -f "$1/model.safetensors" ] && cat "$1/tokenizer_config.json" > "$3"\n'
        'echo "$*" >> "$3"\n'
    )
    converter.chmod(0o755)
    model = Path(read_json(run / "adapter" / "adapter_config.json")["model"])
    (model / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}')
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    words = ("export", run, "--to", "gguf", "--quantize")
    assert "llama.cpp" in shell.works(*words, "q8_0").out
    (file,) = (run / "export" / "gguf").iterdir()
    assert file.read_text().endswith("model.gguf --outtype q8_0\n")
    assert '"tokenizer_class": "PreTrainedTokenizerFast"' in file.read_text()
    assert "--quantize q4_K_M: no such form" in shell.mistake(*words, "q4_K_M")[0]
    converter.write_text("#!/bin/sh\necho 'No module named torch' >&2; exit 1\n")
    done = shell(*words, "f16", "--out", run / "again")
    assert done.code == 2 and "failed: No module named torch" in done.err
    assert not (run / "again").exists() and not list(run.rglob("*.tmp"))


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}


@pytest.mark.parametrize(
    ("told", "splits"),
    [
        (BYTES, "gpt-2"),
        ({"type": "Sequence", "pretokenizers": [DIGITS, BYTES]}, "smollm"),
        ({"type": "Sequence", "pretokenizers": [{"type": "Split"}, BYTES]}, ""),
        ({"type": "Sequence", "pretokenizers": [DIGITS, {**BYTES, "use_regex": False}]}, ""),
        ({"type": "Metaspace"}, ""),
        (None, ""),
    ],
)
def test_how_texts_are_split(tmp_path: Path, told: dict[str, Any] | None, splits: str) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"pre_tokenizer": told}))
    assert splits_of(tmp_path) == splits
    (tmp_path / "tokenizer.model").touch()
    assert splits_of(tmp_path) == ""


def test_ollama_is_told_how_texts_are_split(
    shell: Shell, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Path(read_json(run / "adapter" / "adapter_config.json")["model"])
    told = read_json(model / "tokenizer.json")
    told["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [DIGITS, BYTES]}
    (model / "tokenizer.json").write_text(json.dumps(told))
    weights = {"w": mx.arange(12, dtype=mx.float16).reshape(3, 4)}
    known = {"tokenizer.ggml.pre": "default", "tokenizer.ggml.tokens": ["a", "b"]}
    mx.save_gguf(str(tmp_path / "made.gguf"), weights, known)
    out = run / "export" / "ollama"
    with ollama(tmp_path / "server", moved=str(tmp_path / "made.gguf")) as (address, asked):
        monkeypatch.setenv("OLLAMA_HOST", address)
        shell.works("export", run, "--to", "ollama", "--quantize", "q8_0")
    first, second = asked["/api/create"]
    assert "quantize" not in first and asked["/api/delete"] == [{"model": first["model"]}]
    assert (second["model"], second["quantize"], [*second["files"]]) == (
        "a-run-s", "q8_0", ["model.gguf"])  # fmt: skip
    sent = tmp_path / "server" / "model.gguf"
    arrays, metadata = mx.load(str(sent), return_metadata=True)
    assert metadata == {**known, "tokenizer.ggml.pre": "smollm"}
    assert mx.array_equal(arrays["w"], weights["w"]) and arrays["w"].dtype == mx.float16
    assert sent.read_bytes() == (out / "model.gguf").read_bytes()
    assert "FROM ./model.gguf\n" in (out / "Modelfile").read_text()
    assert not list(out.glob("*.safetensors"))
