"""Several processes on this machine that MLX joins over its ring, as `mlx.launch` starts them."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path

import mlx.core as mx
import numpy as np

NEAR = 1e-5
ROOT = Path(__file__).parents[2]
PORTS = 20000, 32000  # to draw from; a system gives higher ones to any connection


def hostfile(folder: Path, size: int) -> Path:
    """Writes a file of so many hosts, all of them this machine."""
    hosts = [{"ssh": "127.0.0.1", "ips": ["127.0.0.1"]}] * size
    path = folder / f"hosts-{size}.json"
    path.write_text(json.dumps(hosts), encoding="utf-8")
    return path


def launch(folder: Path, size: int, *command: str, env: dict[str, str] | None = None,
           cwd: Path | None = None) -> "subprocess.Popen[str]":  # fmt: skip
    """Starts a command on so many processes; ports are drawn, since tests run side by side.

    By `mlx.launch` as `--hosts` starts it, which leaves the cores to the processes.
    """
    port = random.SystemRandom().randrange(*PORTS)
    call = [sys.executable, "-m", "mlxreflect.setup.mlx_launch", "--backend", "ring",
            "--hostfile", str(hostfile(folder, size)), "--starting-port", str(port),
            "--", sys.executable, *command]  # fmt: skip
    return subprocess.Popen(
        call, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}, cwd=cwd or folder,
    )  # fmt: skip


def launched(
    folder: Path, size: int, *command: str, env: dict[str, str] | None = None,
    timeout: float = 300, cwd: Path | None = None,
) -> "subprocess.CompletedProcess[str]":  # fmt: skip
    """Runs a command on so many processes to its end."""
    process = launch(folder, size, *command, env=env, cwd=cwd)
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run_script(folder: Path, size: int, text: str, *args: str) -> Sequence[str]:
    """Runs a Python text on so many processes; returns the lines that they printed."""
    script = folder / "script.py"
    script.write_text(text, encoding="utf-8")
    done = launched(folder, size, str(script), *args)
    # `mlx.launch` itself always ends with 0.
    assert done.returncode == 0 and "exited with code" not in done.stderr, done.stderr
    return sorted(done.stdout.splitlines())


class Ranks:
    """Processes that MLX's ring joins without `mlx.launch`: each with a command of its own.

    before: what stands before the command of a rank, as to pin it to a core. ips: of the hosts.
    """

    def __init__(
        self, folder: Path, ips: Sequence[str], *command: str,
        before: Callable[[int], Sequence[str]] = lambda rank: (), env: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        port = random.SystemRandom().randrange(*PORTS)
        ring = folder / f"ring-{port}.json"
        ring.write_text(json.dumps([[f"{ip}:{port + i}"] for i, ip in enumerate(ips)]))
        self.processes = [
            subprocess.Popen(
                [*before(rank), sys.executable, *command], stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder,
                env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {}),
                     "MLX_RANK": str(rank), "MLX_HOSTFILE": str(ring)},
            )
            for rank in range(len(ips))
        ]  # fmt: skip

    def results(self, timeout: float = 300) -> list[tuple[int, str, str]]:
        """Returns exit code, output and errors of each rank; none is left running."""
        with ThreadPool(len(self.processes)) as pool:
            try:
                told = pool.map(lambda one: one.communicate(timeout=timeout), self.processes)
            finally:
                self.kill()
        return [(p.returncode, *said) for p, said in zip(self.processes, told, strict=True)]

    def kill(self) -> None:
        for process in self.processes:
            process.kill()


def near_weights(one: Path, other: Path, *, every: bool = True) -> None:
    """Weights are the same but for rounding.

    every: each one. Else one in a thousand may be off by a tenth of a step's learning rate: Adam
    divides a gradient by its own size, also one that is nothing but the rounding of terms that
    cancel, which come in another order on several hosts.
    """
    first, second = mx.load(str(one)), mx.load(str(other))
    assert isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys()
    for name in first:
        a, b = (np.array(each[name].astype(mx.float32)) for each in (first, second))
        np.testing.assert_allclose(a, b, atol=NEAR if every else 10 * NEAR, rtol=0, err_msg=name)
        assert (np.abs(a - b) > NEAR).mean() <= 1e-3, name
