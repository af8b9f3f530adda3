"""mlx-lm's own server in a process of its own, without the hub and its cache."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from support.fake_server import free_port


@contextmanager
def serving(model: Path, folder: Path) -> Iterator[str]:
    """The address of a server of a model folder, that answers; its log goes into `folder`."""
    port = free_port()
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "none")}
    command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(model), "--port", str(port)]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert server.poll() is None, (folder / "log").read_text()
            try:
                httpx.get(f"{url}/health")
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield url
    finally:
        server.terminate()
        server.wait()
