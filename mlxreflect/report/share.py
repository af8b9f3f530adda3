"""A run's model in the forms of others: `mlxreflect export --to`.

mlx: a folder that mlx-lm loads; lmstudio: one where LM Studio looks for it. modelfile: plain
weights beside what makes a model of Ollama's of them. ollama: that model, made and asked the same
as the run's. gguf: a file for llama.cpp, which its converter or Ollama makes: mlx-lm's own writer
makes one that takes no prompt where the tokenizer is byte-level BPE.
"""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlx.core as mx
from pydantic import ValidationError
from rich.console import Group

from mlxreflect.config.schema import CriticConfig, EvalSpec, PolicyConfig
from mlxreflect.config.toml import validate
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import read_json
from mlxreflect.core.ui import Ui, plain, safe_text, table
from mlxreflect.critics.http import CallError, reading
from mlxreflect.critics.ollama import LOOK_S, Ollama
from mlxreflect.evaluation.arms import problems_of, read_results, slug
from mlxreflect.models import fuse
from mlxreflect.models.load import ADAPTER_FILES, find_adapter, find_model, load_template, model_of
from mlxreflect.models.modelfile import Modelfile, modelfile
from mlxreflect.tasks import get_task
from mlxreflect.tasks.base import ask

CONTEXT = 4096  # tokens that num_ctx is a multiple of: Ollama's default, which cuts longer prompts
WORK_S = 3600.0  # seconds for a server to take a file, or to make a model of all of them
PART = 2**20  # bytes of a file sent at once
QUANTS = ("q4_K_M", "q4_K_S", "q8_0", "f16", "f32", "bf16")
# As Ollama takes it: [[HOST/]NAMESPACE/]MODEL[:TAG].
NAME = re.compile(r"((\w[\w.:-]*/)?\w[\w-]*/)?\w[\w.-]{0,79}(:\w[\w.-]{0,79})?", re.ASCII)
CONVERTER, CONVERTS = "convert_hf_to_gguf.py", ("f16", "bf16", "f32", "q8_0", "auto")  # llama.cpp's
# What Ollama makes a model of.
READS = ("model*.safetensors", "*.json", "tokenizer.model")


def share(
    run: Path, form: str, out: Path | None, base: str, name: str, quantize: str,
    prompts: Sequence[str], ui: Ui,
) -> dict[str, Any]:  # fmt: skip
    """Writes the model of a run, or of an adapter's folder, with the adapter merged in.

    base: the model's name or folder; "" for the one that the adapter was trained on. name: what it
    is called elsewhere; "" for the run's. quantize: of the new weights; "" for plain ones.
    Returns what was written and, as `fuse` does, whether the new model answers the same.
    Raises UserError.
    """
    if (read_results(run / "summary.json") or {}).get("untrained"):
        ui.line(f"warning: {run} trained on nothing: its model is the one that it began with")
    called = name or slug(run.resolve().name).lower()
    if form == "lmstudio":
        out = out or lmstudio_folder(called)
    out = out or run / "export" / form
    if form == "peft":
        return fuse.export_adapter(run, out, base)
    adapter = find_adapter(str(run), "RUN_DIR")
    how = as_evaluated(run, adapter, base)
    if form in ("mlx", "lmstudio"):
        made = fuse.fuse(how.model, str(adapter), out, bits(quantize), prompts, ui, how)
    elif form == "modelfile":
        made = write_modelfile(adapter, how, modelfile_of(run, how), out, ui)
        if splits_of(out):
            ui.line(
                "note: Ollama splits texts otherwise than this tokenizer; --to ollama mends that"
            )
    elif form == "gguf":
        made = to_gguf(adapter, how, out, quantize, ui)
    else:
        asked = modelfile_of(run, how)
        made = to_ollama(adapter, how, asked, out, called, quantize, prompts, ui)
    return {**made, "schema": "export/1", "format": form, "out": str(out)}


def render(made: dict[str, Any]) -> Group:
    """Returns the result of `share` for a person."""
    if made["format"] in ("mlx", "lmstudio"):
        return fuse.render_fused(made)
    if made["format"] == "ollama":
        return render_answers(made)
    if made["format"] == "peft":
        base = made["base"] or "the model it was trained on; name it with --base NAME"
        rows = {"layers": ", ".join(made["layers"]), "to be put on": base}
    elif made["format"] == "gguf":
        rows = {"made by": made["made_by"], "size": f"{made['bytes'] / 1e6:.0f} MB"}
    else:
        file = shlex.quote(f"{made['out']}/Modelfile")
        rows = {"weights": f"{made['bytes'] / 1e6:.0f} MB of {made['dtype']}",
                "then": f"ollama create NAME -f {file}"}  # fmt: skip
    rows["written to"] = made["out"]
    return Group(plain("\n".join(f"{name:<12}  {value}" for name, value in rows.items())))


def as_evaluated(run: Path, adapter: Path, base: str) -> PolicyConfig:
    """Returns the model of a run, and how its evaluation asked it: greedily where there was none.

    Raises UserError for an adapter that names no model, and for damaged files.
    """
    said = read_json(adapter / ADAPTER_FILES[0])
    found = {"model": base or model_of(said), "temperature": 0.0, "top_p": 1.0}
    if not found["model"]:
        raise UserError(f"{adapter} does not name its model", "name it with --base NAME")
    evaluated = read_results(headline(run) / "results.json") or {}
    try:
        for file, table in (("run.json", "recipe"), ("job.json", "job")):
            if (run / file).is_file():
                policy = read_json(run / file)[table]["policy"]
                keys = ("quantize", "thinking", "template")
                found |= {key: policy[key] for key in keys if key in policy}
        spec, decoding = evaluated.get("spec", {}), evaluated.get("decoding", {})
        found |= {key: spec[key] for key in ("thinking", "template") if key in spec}
        found |= {key: decoding[key] for key in decoding if key in PolicyConfig.model_fields}
        return PolicyConfig.model_validate(found)
    except (KeyError, TypeError, AttributeError, ValidationError) as error:
        raise UserError(
            f"{run}: its settings cannot be read ({type(error).__name__})",
            f"export the adapter alone: mlxreflect export {adapter} …",
        ) from None


def headline(run: Path) -> Path:
    """Returns the trained arm of a run's evaluation; of several the first of its comparisons."""
    tasks = (read_results(run / "comparisons.json") or {}).get("tasks") or [""]
    arm = run / "eval" / "trained"
    return arm if (arm / "results.json").is_file() else arm / str(tasks[0])


def bits(quantize: str) -> int:
    if quantize not in ("", "0", "4", "8"):
        raise UserError(f"--quantize {quantize}: weights of MLX have 4 or 8 bits", "give 4 or 8")
    return int(quantize or 0)


def lmstudio_folder(name: str) -> Path:
    """Returns where LM Studio looks for a model of that name: PUBLISHER/NAME in its models.

    Raises UserError where there is no LM Studio.
    """
    if not re.fullmatch(r"(\w[\w.-]{0,79}/)?\w[\w.-]{0,79}", name, re.ASCII):
        raise UserError(f"--name {name!r} is no name for LM Studio", "give PUBLISHER/NAME")
    user = Path.home()
    pointer, old = user / ".lmstudio-home-pointer", user / ".cache" / "lm-studio"
    home = old if old.is_dir() else user / ".lmstudio"
    if pointer.is_file():
        home = Path(pointer.read_text(encoding="utf-8", errors="replace").strip())
    if not home.is_dir():
        raise UserError(
            f"LM Studio has no folder here ({home})", "start it once, or name a folder with --out"
        )
    settings = Path(os.environ.get("XDG_CONFIG_HOME") or user / ".config")
    if sys.platform == "darwin":
        settings = user / "Library" / "Application Support"
    models = home / "models"
    for file in (settings / "LM Studio" / "settings.json", home / "settings.json"):
        with suppress(UserError):  # there is none, or it is not to be read
            chosen = read_json(file).get("downloadsFolder")
            models = Path(chosen) if isinstance(chosen, str) and Path(chosen).is_dir() else models
    return models / (name if "/" in name else f"mlxreflect/{name}")


# ---- Ollama --------------------------------------------------------------------------------------


def write_modelfile(
    adapter: Path, how: PolicyConfig, made: Modelfile, out: Path, ui: Ui
) -> dict[str, Any]:
    """Writes plain weights and a Modelfile beside them. Raises UserError before it computes."""
    fuse.check_request(out, 0)
    ui.line(f"writing {out}")
    with fuse.whole(out) as partial:
        written = fuse.write_folder(how.model, str(adapter), partial, 0, how)
        own_beginning(partial)
        (partial / "Modelfile").write_text(made.text(), encoding="utf-8")
    return {"model": how.model, "adapter": str(adapter), **written}


def to_ollama(
    adapter: Path, how: PolicyConfig, made: Modelfile, out: Path, name: str, quantize: str,
    prompts: Sequence[str], ui: Ui,
) -> dict[str, Any]:  # fmt: skip
    """Makes a model of Ollama's, and compares its greedy answers with those of the run's model.

    Raises UserError where the server does not answer, has a model of that name, or refuses.
    """
    if not NAME.fullmatch(name):
        raise UserError(f"--name {name!r} is no name for Ollama", "give one like my-model:v1")
    check_quantize(quantize, QUANTS)
    server, asked = Ollama(CriticConfig(model=name)), [*fuse.PROMPTS, *prompts]
    try:
        there = models_of(server)
    except CallError as error:
        raise UserError(f"{server.silent}: {error}", "start it: ollama serve") from None
    if {name, f"{name}:latest"} & there.keys():
        raise UserError(f"Ollama has a model {name}", f"give another --name, or: ollama rm {name}")
    fuse.check_request(out, 0)
    before = [one for one, _ in fuse.answers_before(how.model, str(adapter), asked, ui, how)]
    written = write_modelfile(adapter, how, made, out, ui)
    try:
        source = with_splits(server, out, made, ui)
        create(server, source, {"model": name, **made.request()}, quantize, ui)
        samples = ask_both(server, name, made, before, asked, ui)
    except CallError as error:
        again = f"ollama create {name} -f {shlex.quote(f'{out}/Modelfile')}"
        raise UserError(f"Ollama: {error}", f"the files are there; try: {again}") from None
    finally:
        server.close()
    return {
        **written, "name": name, "quantize": quantize, "tokens": fuse.TOKENS,
        "prompts": len(samples), "agree": sum(s["agrees"] for s in samples), "samples": samples,
    }  # fmt: skip


def check_quantize(quantize: str, known: Sequence[str]) -> None:
    if quantize and quantize.lower() not in [one.lower() for one in known]:
        raise UserError(f"--quantize {quantize}: no such form", f"one of {', '.join(known)}")


def models_of(server: Ollama) -> dict[str, int | None]:
    """Returns the models that Ollama has. Raises CallError where it does not answer."""
    with server.wire.within(LOOK_S):
        return server.pulled()


def with_splits(server: Ollama, out: Path, made: Modelfile, ui: Ui) -> Path:
    """Returns what Ollama is to make a model of: the folder, or a GGUF file that takes its place.

    Raises CallError.
    """
    file = out / "model.gguf"
    if not splits_of(out):
        return out
    try:
        made_by_ollama(server, out, file, "", ui)
    except UserError as error:
        ui.line(f"note: {error.message}, so prompts may become other tokens than here")
        return out
    for weights in out.glob("model*.safetensors*"):
        weights.unlink()
    (out / "Modelfile").write_text(made.text(f"./{file.name}"), encoding="utf-8")
    return file


def create(server: Ollama, source: Path, said: dict[str, Any], quantize: str, ui: Ui) -> None:
    """Sends a model's folder or GGUF file to Ollama, which makes the model. Raises CallError."""
    files = sorted({file for pattern in READS for file in source.glob(pattern)}) or [source]
    digests = {}
    with ui.progress("sending files to Ollama", len(files)) as bar:
        for file in files:
            with file.open("rb") as data:
                digest = f"sha256:{hashlib.file_digest(data, 'sha256').hexdigest()}"
            with server.wire.within(WORK_S):
                size = {"Content-Length": str(file.stat().st_size)}
                place = f"/api/blobs/{digest}"
                if not (sent := server.http.head(place)).is_success:
                    sent = server.http.post(place, content=parts_of(file), headers=size)
                if not sent.is_success:
                    raise server.wire.error(sent)
            digests[file.name] = digest
            bar.advance()
    ui.line(f"Ollama makes {said['model']}")
    with server.wire.within(WORK_S):
        body = {**said, "files": digests, "stream": False}
        server.request("/api/create", body | ({"quantize": quantize} if quantize else {}))


def parts_of(file: Path) -> Iterator[bytes]:
    with file.open("rb") as data:
        while part := data.read(PART):
            yield part


def ask_both(
    server: Ollama, name: str, made: Modelfile, before: Sequence[fuse.Answer],
    asked: Sequence[str], ui: Ui,
) -> list[dict[str, Any]]:  # fmt: skip
    """Asks Ollama what the run's model was asked, greedily; raises CallError.

    Answers agree where their texts do, but for white space and the tags of a thought, which Ollama
    takes out. prompt_tokens: of both sides.
    """
    samples = []
    with ui.progress("answering in Ollama", len(asked)) as bar:
        for question, old in zip(asked, before, strict=True):
            body = {
                "model": name, "stream": False, "messages": [{"role": "user", "content": question}],
                "options": {"temperature": 0, "num_predict": fuse.TOKENS},
            }  # fmt: skip
            with server.wire.within(WORK_S), reading():
                told = server.request("/api/chat", body)
                said, count = told["message"], told.get("prompt_eval_count")
                new = (said.get("thinking") or "") + said["content"]
            samples.append({
                "prompt": question, "agrees": bare(new, made.tags) == bare(old.text, made.tags),
                "prompt_tokens": [len(old.prompt), count], "before": old.text, "after": new,
            })  # fmt: skip
            bar.advance()
    return samples


def bare(text: str, tags: tuple[str, str] | None) -> str:
    """Returns an answer without white space, tags of a thought, and a character cut in half."""
    for tag in tags or ():
        text = text.replace(tag, "")
    return "".join(text.split()).rstrip("\ufffd")


def render_answers(made: dict[str, Any]) -> Group:
    rows = [
        (s["prompt"], "yes" if s["agrees"] else "no", *map(str, s["prompt_tokens"]))
        for s in made["samples"]
    ]
    counts = [s["prompt_tokens"] for s in made["samples"]]
    lines = [
        f"{made['agree']} of {made['prompts']} answers (greedy, {made['tokens']} tokens) are as "
        f"before. Ask it: ollama run {made['name']}",
        f"Ollama has a copy of {made['out']} ({made['bytes'] / 1e6:.0f} MB), which may go.",
    ]
    if any(theirs not in (None, ours) for ours, theirs in counts):
        lines.insert(1, "Ollama reads some prompts as other tokens: it knows the tokenizer badly.")
    elif made["agree"] < made["prompts"]:
        lines.insert(1, "The prompts are the same tokens; rounding changed the other answers.")
    head = ("prompt", "same answer", "|tokens", "|in Ollama")
    return Group(table("", head, rows, wraps="*"), plain("\n".join(lines)))


def modelfile_of(run: Path, how: PolicyConfig) -> Modelfile:
    """Returns a model's Modelfile, which has what its run's evaluation needed.

    Raises UserError where Ollama cannot have its like.
    """
    folder, arm = check_tokenizer(how), headline(run)
    template = load_template(folder, how)
    if not (arm / "problems.jsonl").is_file():
        return modelfile(template, how)
    results = arm / "results.json"
    spec = validate(EvalSpec, read_json(results).get("spec") or {}, results)
    task, shots = get_task(spec.task.name), problems_of(arm / "shots.jsonl")
    prompts = [ask(task, one, spec, shots) for one in problems_of(arm / "problems.jsonl")]
    # A chain shows an answer once more.
    answers = how.max_new_tokens * (2 if spec.chain.rounds > 1 else 1)
    needed = -(-(template.longest(prompts) + answers) // CONTEXT) * CONTEXT
    config = read_json(folder / "config.json")
    known = (config | (config.get("text_config") or {})).get("max_position_embeddings")
    most = known if isinstance(known, int) and known > 0 else needed
    return modelfile(template, how, spec.stop, min(needed, most))


def check_tokenizer(how: PolicyConfig) -> Path:
    """Returns a model's folder. Raises UserError where Ollama does not read its tokenizer."""
    folder = find_model(how.model, "--base")
    if folder is None:
        raise UserError(f"{how.model} is not on this machine", f"run: hf download {how.model}")
    if not (folder / "tokenizer.model").is_file():  # SentencePiece's, which it reads
        told = read_json(folder / "tokenizer.json")
        model, decoder = told.get("model") or {}, json.dumps(told.get("decoder"))
        if model.get("type") != "BPE" or not model.get("merges") or "ByteLevel" not in decoder:
            raise UserError(
                f"{how.model}: Ollama reads byte-level BPE with merges and SentencePiece's "
                "tokenizer.model; the tokenizer is neither",
                "export it --to mlx, which keeps the tokenizer as it is",
            )
    return folder


def own_beginning(folder: Path, **more: str) -> None:
    """Lets no token stand before a prompt but those that the template writes, as in MLX.

    more: other settings of the tokenizer.
    """
    file = folder / "tokenizer_config.json"
    told = {**(read_json(file) if file.is_file() else {}), "add_bos_token": False, **more}
    # A name of transformers 5's; llama.cpp's converter has transformers 4.
    if told.get("tokenizer_class") == "TokenizersBackend":
        told["tokenizer_class"] = "PreTrainedTokenizerFast"
    file.write_text(json.dumps(told, indent=2), encoding="utf-8")


# ---- GGUF ----------------------------------------------------------------------------------------


def to_gguf(adapter: Path, how: PolicyConfig, out: Path, quantize: str, ui: Ui) -> dict[str, Any]:
    """Writes a folder with model.gguf. Raises UserError where nothing here makes one."""
    converter, server = shutil.which(CONVERTER), Ollama(CriticConfig(model="mlxreflect-gguf"))
    check_quantize(quantize, CONVERTS if converter else QUANTS)
    if not converter:
        try:
            models_of(server)
        except CallError:
            raise UserError(
                f"nothing here makes GGUF: no {CONVERTER} on the PATH, and Ollama does not answer",
                "install llama.cpp (brew install llama.cpp), or start: ollama serve",
            ) from None
        check_tokenizer(how)
    fuse.check_request(out, 0)
    ui.line(f"writing {out}")
    with fuse.whole(out) as partial:
        source, file = partial / "weights", partial / "model.gguf"
        fuse.write_folder(how.model, str(adapter), source, 0, how)
        jinja = source / "chat_template.jinja"
        more = {"chat_template": jinja.read_text(encoding="utf-8")} if jinja.is_file() else {}
        own_beginning(source, **more)
        if converter:
            convert(converter, source, file, quantize)
        else:
            try:
                made_by_ollama(server, source, file, quantize, ui)
            except CallError as error:
                raise UserError(
                    f"Ollama: {error}", f"install llama.cpp, whose {CONVERTER} makes the file"
                ) from None
        shutil.rmtree(source)
        size = file.stat().st_size
    return {"model": how.model, "adapter": str(adapter), "quantize": quantize, "bytes": size,
            "made_by": "llama.cpp" if converter else "Ollama"}  # fmt: skip


def convert(converter: str, source: Path, file: Path, quantize: str) -> None:
    """Has llama.cpp's converter write a GGUF file. Raises UserError with its last line."""
    words = [converter, str(source), "--outfile", str(file), "--outtype", quantize or "f16"]
    done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode or not file.is_file():
        said = (done.stderr or done.stdout).strip().splitlines() or ["no word"]
        raise UserError(
            f"{converter} failed: {safe_text(said[-1])[:200]}",
            "mend that, or take it off the PATH: then Ollama makes the file",
        )


def made_by_ollama(server: Ollama, source: Path, file: Path, quantize: str, ui: Ui) -> None:
    """Has Ollama write a folder's model as a GGUF file. Raises UserError and CallError."""
    splits = splits_of(source)
    copy_of(server, source, file, "" if splits else quantize, ui)
    if not splits:
        return
    loaded: Any = mx.load(str(file), return_metadata=True)
    arrays, told = loaded
    whole = file.with_name("split.gguf")
    mx.save_gguf(str(whole), arrays, {**told, "tokenizer.ggml.pre": splits})
    whole.replace(file)
    if quantize:
        copy_of(server, file, file, quantize, ui)


def copy_of(server: Ollama, source: Path, file: Path, quantize: str, ui: Ui) -> None:
    """Has Ollama make a model, copies its file and deletes the model."""
    name = f"mlxreflect-gguf-{os.getpid()}"
    create(server, source, {"model": name}, quantize, ui)
    with server.wire.within(WORK_S):
        told = str(server.request("/api/show", {"model": name}).get("modelfile"))
        found = re.search(r"^FROM (.+)$", told, re.MULTILINE)
        there = found is not None and Path(found[1]).is_file()
        if found and there:
            shutil.copyfile(found[1], file)
        server.http.request("DELETE", "/api/delete", json={"model": name})
    if not there:
        raise UserError(
            "Ollama keeps its files where they cannot be read from here",
            f"install llama.cpp, whose {CONVERTER} makes the file",
        )


def splits_of(folder: Path) -> str:
    """Returns llama.cpp's name for how a tokenizer splits texts before BPE; "" where Ollama knows.

    Ollama knows some patterns alone, and splits what has none in a way of its own: of 20 prompts of
    SmolLM2 16 became other tokens.
    """
    if (folder / "tokenizer.model").is_file():
        return ""
    told = read_json(folder / "tokenizer.json").get("pre_tokenizer") or {}
    *others, last = told.get("pretokenizers") or [told]
    if last.get("type") != "ByteLevel" or not last.get("use_regex", True):
        return ""
    digits = [part.get("type") == "Digits" and part.get("individual_digits") for part in others]
    return {0: "gpt-2", 1: "smollm" if all(digits) else ""}.get(len(others), "")
