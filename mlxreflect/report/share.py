"""A run's model in the forms of others: `mlxreflect export --to`.

mlx: a folder that mlx-lm loads. modelfile: plain weights beside what makes a model of Ollama's of
them.
"""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Group

from mlxreflect.config.schema import PolicyConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import read_json
from mlxreflect.core.ui import Ui, plain
from mlxreflect.models import fuse
from mlxreflect.models.load import ADAPTER_FILES, find_adapter, find_model, load_template
from mlxreflect.models.modelfile import Modelfile, modelfile


def share(
    run: Path, form: str, out: Path | None, base: str, quantize: str, prompts: Sequence[str], ui: Ui
) -> dict[str, Any]:
    """Writes the model of a run, or of an adapter's folder, with the adapter merged in.

    base: the model's name or folder; "" for the one that the adapter was trained on. quantize: of
    the new weights; "" for plain ones. Returns what was written and, as `fuse` does, whether the
    new model answers the same. Raises UserError.
    """
    out = out or run / "export" / form
    if form == "peft":
        return fuse.export_adapter(run, out, base)
    adapter = find_adapter(str(run), "RUN_DIR")
    how = as_evaluated(run, adapter, base)
    if form == "mlx":
        made = fuse.fuse(how.model, str(adapter), out, bits(quantize), prompts, ui, how)
    else:
        made = write_modelfile(adapter, how, out, quantize, ui)
    return {**made, "schema": "export/1", "format": form, "out": str(out)}


def render(made: dict[str, Any]) -> Group:
    """Returns the result of `share` for a person."""
    if made["format"] == "mlx":
        return fuse.render_fused(made)
    if made["format"] == "peft":
        base = made["base"] or "the model it was trained on; name it with --base NAME"
        rows = {"layers": ", ".join(made["layers"]), "to be put on": base}
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
    found = {"model": base or said.get("model") or said.get("base_model_name_or_path"),
             "temperature": 0.0, "top_p": 1.0}  # fmt: skip
    if not found["model"]:
        raise UserError(f"{adapter} does not name its model", "name it with --base NAME")
    results = run / "eval" / "trained" / "results.json"
    evaluated = read_json(results) if results.is_file() else {}
    try:
        for file, table in (("run.json", "recipe"), ("job.json", "job")):
            if (run / file).is_file():
                policy = read_json(run / file)[table]["policy"]
                found |= {key: policy[key] for key in ("quantize", "thinking", "template")}
        spec, decoding = evaluated.get("spec", {}), evaluated.get("decoding", {})
        found |= {key: spec[key] for key in ("thinking", "template") if key in spec}
        found |= {key: decoding[key] for key in decoding if key in PolicyConfig.model_fields}
        return PolicyConfig.model_validate(found)
    except (KeyError, TypeError, AttributeError, ValidationError) as error:
        raise UserError(
            f"{run}: its settings cannot be read ({type(error).__name__})",
            f"export the adapter alone: mlxreflect export {adapter} …",
        ) from None


def bits(quantize: str) -> int:
    if quantize not in ("", "0", "4", "8"):
        raise UserError(f"--quantize {quantize}: weights of MLX have 4 or 8 bits", "give 4 or 8")
    return int(quantize or 0)


def write_modelfile(
    adapter: Path, how: PolicyConfig, out: Path, quantize: str, ui: Ui
) -> dict[str, Any]:
    """Writes plain weights and a Modelfile beside them. Raises UserError before it computes."""
    fuse.check_request(out, 0)
    made = modelfile_of(how)
    ui.line(f"writing {out}")
    with fuse.whole(out) as partial:
        written = fuse.write_folder(how.model, str(adapter), partial, 0, how)
        own_beginning(partial)
        (partial / "Modelfile").write_text(made.text(), encoding="utf-8")
    return {"model": how.model, "adapter": str(adapter), "quantize": quantize, **written}


def modelfile_of(how: PolicyConfig) -> Modelfile:
    """Returns a model's Modelfile. Raises UserError where Ollama does not read its tokenizer."""
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
    return modelfile(load_template(folder, how), how)


def own_beginning(folder: Path) -> None:
    """Lets no token stand before a prompt but those that the template writes, as in MLX."""
    file = folder / "tokenizer_config.json"
    told = read_json(file) if file.is_file() else {}
    file.write_text(json.dumps({**told, "add_bos_token": False}, indent=2), encoding="utf-8")
