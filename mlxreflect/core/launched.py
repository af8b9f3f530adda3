"""Tells a process from its environment that it is one of several, before it joins them.

`mlx.launch` and mpirun number their processes. `--hosts FILE` starts `mlx.launch`, and tells each
of them how the file names the hosts.
"""

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from shlex import quote

SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MLX_WORLD_SIZE")
RANKS = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")  # of mlx.launch, Open MPI, MPICH
NAMES = "MLXREFLECT_HOSTS"  # of the hosts, as ssh reaches them, by rank, between commas
FILE = "MLXREFLECT_HOSTS_FILE"  # that was given to --hosts
LEAD = "MLXREFLECT_LEAD"  # folder where rank 0 leaves its process id and its exit code


def is_launched(env: Mapping[str, str] = os.environ) -> bool:
    """Tells whether this process is one of several that were started together.

    Of a single host `mlx.launch` makes an empty file, which MLX's ring cannot read.
    """
    ring = Path(env.get("MLX_HOSTFILE", "/nowhere"))
    one = ring.is_file() and not ring.read_text(encoding="utf-8").strip()
    sizes = [env[name] for name in SIZES if name in env]
    return not one and any(name in env for name in RANKS) and sizes != ["1"]


def launched_rank(env: Mapping[str, str] = os.environ) -> int:
    """Returns this process's rank; 0 where it was started alone."""
    return next((int(env[name]) for name in RANKS if env.get(name, "").isdigit()), 0)


def own_name(rank: int, env: Mapping[str, str] = os.environ) -> str:
    """Returns how the file of hosts names this rank's, else how the machine calls itself."""
    names = env.get(NAMES, "").split(",")
    return (names[rank] if rank < len(names) else "") or socket.gethostname()


def host_label(name: str, rank: int) -> str:
    return f"host {name} (rank {rank})"


def doctor_command(env: Mapping[str, str] = os.environ) -> str:
    return f"mlxreflect doctor {hosts_option(env) or '--hosts FILE'}"


def hosts_option(env: Mapping[str, str] = os.environ) -> str:
    """Returns the option of the command that started this process; "" where it had none."""
    return f"--hosts {quote(env[FILE])}" if env.get(FILE) else ""


def leave_word(name: str, text: object) -> None:
    """Leaves word for the command that was given --hosts; by rank 0, which is on that machine."""
    folder = Path(os.environ.get(LEAD, "/nowhere"))
    if folder.is_dir() and not launched_rank():
        half = folder / f"{name}.tmp"  # whoever finds the word finds all of it
        half.write_text(str(text), encoding="utf-8")
        half.replace(folder / name)
