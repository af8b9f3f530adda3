"""Tells a process from its environment that it is one of several, before it joins them.

`mlx.launch` and mpirun number their processes. `--hosts FILE` starts `mlx.launch`, and tells each
of them how the file names the hosts.
"""

import hashlib
import json
import os
import socket
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from shlex import quote

SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MLX_WORLD_SIZE")
RANKS = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")  # of mlx.launch, Open MPI, MPICH
NAMES = "MLXREFLECT_HOSTS"  # of the hosts, as ssh reaches them, by rank, between commas
FILE = "MLXREFLECT_HOSTS_FILE"  # that was given to --hosts
LEAD = "MLXREFLECT_LEAD"  # folder where rank 0 leaves its process id and its exit code
AGAIN = "again"  # there: the command that goes on with the work
LOOPBACK = ("127.0.0.1", "localhost")


def is_launched(env: Mapping[str, str] = os.environ) -> bool:
    """Tells whether this process is one of several that were started together.

    Of a single host `mlx.launch` makes an empty file, which MLX's ring cannot read.
    """
    one = Path(env.get("MLX_HOSTFILE", "/nowhere")).is_file() and not ring_text(env)
    sizes = [env[name] for name in SIZES if name in env]
    return not one and any(name in env for name in RANKS) and sizes != ["1"]


def launched_rank(env: Mapping[str, str] = os.environ) -> int:
    """Returns this process's rank; 0 where it was started alone."""
    return next((int(env[name]) for name in RANKS if env.get(name, "").isdigit()), 0)


def own_name(rank: int, env: Mapping[str, str] = os.environ) -> str:
    """Returns how the file of hosts names this rank's, else how the machine calls itself."""
    names = env.get(NAMES, "").split(",")
    return (names[rank] if rank < len(names) else "") or socket.gethostname()


def launched_names(env: Mapping[str, str] = os.environ) -> list[str]:
    """Returns the names or addresses of all hosts, by rank; none where the launch tells none."""
    if has_names(env):
        return env[NAMES].split(",")
    try:
        return [addresses[0].rsplit(":", 1)[0] for addresses in json.loads(ring_text(env) or "[]")]
    except (ValueError, LookupError, TypeError, AttributeError):  # MLX says what is wrong with it
        return []


def has_names(env: Mapping[str, str] = os.environ) -> bool:
    """Tells whether `--hosts` has told the names by which ssh reaches the hosts."""
    return bool(env.get(NAMES))


def launch_id(env: Mapping[str, str] = os.environ) -> str:
    """Returns what all processes of this launch have in common, and no others."""
    text = env.get(LEAD) or ring_text(env) or env.get("MLX_JACCL_COORDINATOR", "")
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def ring_text(env: Mapping[str, str]) -> str:
    """Returns the text of the file that tells MLX's ring the addresses of all ranks."""
    ring = Path(env.get("MLX_HOSTFILE", "/nowhere"))
    return ring.read_text(encoding="utf-8").strip() if ring.is_file() else ""


def is_own(name: str) -> bool:
    """Tells whether an address is of this machine, since only its own can be bound; or localhost.

    Another name is looked up nowhere, which may take long.
    """
    if name in LOOPBACK:
        return True
    try:
        if ip_address(name).is_unspecified:
            return False
    except ValueError:
        return False
    family = socket.AF_INET6 if ":" in name else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as tried:
        try:
            tried.bind((name, 0))
        except OSError:
            return False
    return True


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
