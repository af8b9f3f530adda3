"""Small random models for every test that needs one, on the CPU, where runs repeat bit for bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx

# Nothing of a test is kept in the user's cache, also by the processes it starts.
os.environ["MLXREFLECT_CACHE"] = tempfile.mkdtemp(prefix="mlxreflect-tests-")
os.environ.pop("COLUMNS", None)  # of whoever runs the tests
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background job
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which tests send to processes
mx.set_default_device(mx.cpu)  # before mlx-lm is imported: its stream is made for this device

import mlx.nn as nn  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402
from mlx.utils import tree_flatten  # noqa: E402

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def write_model(folder: Path, **changes: Any) -> Path:
    """A random 4-bit Qwen2 of two layers as an mlx-lm folder, always the same weights."""
    from mlx_lm.models import qwen2
    from support.tiny_tokenizer import build_tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(folder)
    config: dict[str, Any] = {
        "model_type": "qwen2", "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128,
        "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "vocab_size": len(tokenizer), "tie_word_embeddings": False,
        "eos_token_id": tokenizer.eos_token_id, "quantization": {"group_size": 32, "bits": 4},
    } | changes  # fmt: skip
    mx.random.seed(7)
    model = qwen2.Model(qwen2.ModelArgs.from_dict(config))
    if config["quantization"] is None:
        del config["quantization"]
    else:
        nn.quantize(model, **config["quantization"])
    (folder / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    return folder


@pytest.fixture(scope="session")
def tiny_random(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An mlx-lm model folder: random weights, 4 bits, the embedded policy's tokenizer."""
    return write_model(tmp_path_factory.mktemp("tiny-random"))


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct as a 4-bit mlx-lm folder."""
    folder = tmp_path_factory.mktemp("models") / "SmolLM2-135M-Instruct-4bit"
    script = Path(__file__).parents[2] / "shared" / "tools" / "smollm2_to_mlx.py"
    subprocess.run([sys.executable, str(script), str(folder)], check=True)
    return folder


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """Another such folder, with changes to its config."""
    return lambda **changes: write_model(tmp_path / f"model-{len(changes)}", **changes)


@pytest.fixture
def load_random(tiny_random: Path) -> Callable[..., Any]:
    """Loads the random model afresh, as a Policy: `load_random(dequantize="yes")`."""

    def load(**changes: Any) -> Any:
        from mlxreflect.config.schema import PolicyConfig
        from mlxreflect.models.load import load_policy

        return load_policy(PolicyConfig(model=str(tiny_random), **changes))

    return load


@pytest.fixture
def calls(policy: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Rows and columns of tokens of each call of the model of the test file's own policy."""
    assert policy.decoding  # which calls the model once, before whatever is generated first
    shapes: list[tuple[int, int]] = []
    kind = type(policy.model)
    original = kind.__call__

    def spy(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        shapes.append(inputs.shape)
        return original(model, inputs, *args, **kwargs)

    monkeypatch.setattr(kind, "__call__", spy)
    return shapes


@pytest.fixture
def shell(
    tmp_path: Path, tiny_random: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Any:  # fmt: skip
    """The command line in this process."""
    from support.shell import shell_inside

    return shell_inside(tmp_path, tiny_random, monkeypatch, capsys)


@pytest.fixture
def process(tmp_path: Path, tiny_random: Path) -> Any:
    """The command line in processes of its own."""
    from support.shell import Shell

    return Shell(tmp_path, tiny_random)


@pytest.fixture(scope="session")
def opening(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded policy, whose prompts end in <think>; one keyword argument leaves that out."""
    from mlxreflect.models.load import TINY

    folder = Path(shutil.copytree(TINY, tmp_path_factory.mktemp("models") / "opening"))
    template = (TINY / "chat_template.jinja").read_text(encoding="utf-8")
    end = "<|assistant|>{%- endif -%}"
    assert template.endswith(end)
    opens = "<|assistant|>{%- if not quiet -%}<think>{%- endif -%}{%- endif -%}"
    (folder / "chat_template.jinja").write_text(template.removesuffix(end) + opens)
    return folder
