"""`mlxreflect doctor --hosts FILE`: looks at every host, and measures what goes between them.

`python -m mlxreflect.setup.hosts look` says what a host is, `measure` is launched on all of them.
"""

import io
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.pool import ThreadPool
from statistics import median
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from mlxreflect.config.schema import Recipe
from mlxreflect.core.errors import UserError
from mlxreflect.core.hosts import Hosts, joined, versions, wanted
from mlxreflect.core.launched import leave_word
from mlxreflect.core.liveness import quit_with
from mlxreflect.core.ui import Ui, plain, table
from mlxreflect.models.load import (
    device_memory,
    device_name,
    find_adapter,
    find_model,
    load_shapes,
)
from mlxreflect.setup.launch import Host, HostsFile, launch, look
from mlxreflect.setup.memory import GB, parameters_trained

if TYPE_CHECKING:
    from rich.console import Group

BIG = 64_000_000  # bytes of the all-reduce that is measured
MEETINGS, SUMS = 50, 5  # that are timed, after a first one
HERE, TO_DOWNLOAD = "is here", "is to be downloaded"


def check_hosts(file: HostsFile, recipe: Recipe | None, ui: Ui) -> dict[str, Any]:
    """Looks at every host, then has them all join where nothing is missing; returns doctor.json.

    ok: nothing is missing. hosts: by rank, with what is wrong as fault and hint. link: as measured.
    """
    rows, link = list[dict[str, Any]](), dict[str, Any]()
    with ui.progress("looking at the hosts", len(file.hosts) + 1) as bar:
        with ThreadPool(len(file.hosts)) as pool:
            for row in pool.imap(lambda host: check_host(file, host, recipe), file.hosts):
                rows.append(row)
                bar.advance(1)
        compare_versions(rows)
        if not any(row["fault"] for row in rows):
            link = measured(file, adapter_bytes(recipe))
        bar.advance(1)
    ok = not any(row["fault"] for row in [*rows, link])
    return {"schema": "doctor-hosts/1", "file": str(file.path), "backend": file.backend,
            "recipe": recipe.name if recipe else None, "ok": ok, "hosts": rows,
            "link": link}  # fmt: skip


def check_host(file: HostsFile, host: Host, recipe: Recipe | None) -> dict[str, Any]:
    """Returns what a host says of itself, and what is missing there."""
    found: dict[str, Any] = {"rank": host.rank, "host": host.ssh, "fault": "", "hint": ""}
    asked = [recipe.policy.model, recipe.policy.adapter] if recipe else []
    try:
        found |= look(file, host, *asked)
    except UserError as error:
        return found | {"fault": error.message, "hint": error.hint}
    if lacks := found.get("lacks"):
        copy = f"rsync -a {shlex.quote(found['missing'])} {host.ssh}:"
        found |= {"fault": f"{host.label}: {lacks}", "hint": (
            f"copy it there, to the same path: {copy}{shlex.quote(found['missing'])}; "
            "or name a model of the hub")}  # fmt: skip
    return found


def compare_versions(rows: list[dict[str, Any]]) -> None:
    """Adds a fault to hosts whose versions are not those of the first."""
    first = rows[0].get("versions")
    for row in rows[1:]:
        if row["fault"] or not first or row["versions"] == first:
            continue
        other = [name for name in first if row["versions"].get(name) != first[name]]
        told = ", ".join(f"{name} {row['versions'].get(name)}" for name in other)
        row["fault"] = f"host {row['host']} (rank {row['rank']}) has {told}"
        row["hint"] = f"install there what the first host has: {wanted(first, other)}"


def adapter_bytes(recipe: Recipe | None) -> int:
    """Returns the bytes of what the recipe trains, in float32; 0: not known here."""
    folder = find_model(recipe.policy.model, "policy.model") if recipe else None
    if recipe is None or folder is None:
        return 0
    return parameters_trained(recipe, load_shapes(folder, recipe.policy))


def measured(file: HostsFile, adapter: int) -> dict[str, Any]:
    """Has all hosts join, and returns what `measure` found, or the fault."""
    out, err = io.StringIO(), io.StringIO()
    command = ["-m", "mlxreflect.setup.hosts", "measure", str(adapter)]
    try:
        code = launch(file, command, out, err)
    except UserError as error:
        return {"fault": error.message, "hint": error.hint}
    said = [line.split(": ", 1) for line in err.getvalue().splitlines()]
    told = {line[0]: line[1] for line in said if line[0] in ("error", "hint") and len(line) > 1}
    lines = [line for line in out.getvalue().splitlines() if line.startswith("{")]
    if code or not lines:
        last = (err.getvalue().strip() or "no word of why").splitlines()[-1]
        fault = told.get("error", f"the hosts did not join: {last}")
        hint = told.get("hint", "let their addresses in through each firewall")
        return {"fault": fault, "hint": hint}
    return {"fault": "", "hint": "", **json.loads(lines[-1])}


# ---- the tables ----------------------------------------------------------------------------------


def render_hosts(result: dict[str, Any]) -> "Group":
    """Returns a line a host, what was measured between them, and what mends each fault."""
    from rich.console import Group

    hosts, link = result["hosts"], result["link"]
    head = ["", "rank", "host", "device", "memory", "model"][: 6 if result["recipe"] else 5]
    cells = [host_cells(row)[: len(head)] for row in hosts]
    own = hosts[0].get("versions", {})  # of one that could not be asked there are none
    versions = ", ".join(f"{name} {number}" for name, number in own.items())
    lines = [f"versions of rank 0: {versions or 'not known'}", *link_lines(result), ""]
    for row in [*hosts, link]:
        if row.get("fault"):
            lines += [row["fault"], f"  {row['hint']}"]
    verdict = "everything is there" if result["ok"] else "something is missing"
    told = [plain(line) for line in lines]
    return Group(table("", tuple(head), cells), *told, plain(verdict, "bold"))


def host_cells(row: dict[str, Any]) -> list[Any]:
    """Returns a host's cells of the table."""
    word = plain("fail", "bold red") if row["fault"] else plain("ok", "green")
    memory = f"{row['memory'] / GB:.1f} GB" if "memory" in row else ""
    device = row.get("device", "cannot be asked")
    return [word, str(row["rank"]), row["host"], device, memory, row.get("model", "")]


def link_lines(result: dict[str, Any]) -> Iterator[str]:
    link = result["link"]
    if not link or link["fault"]:
        return
    yield f"{link['size']} hosts joined by {result['backend']}"
    yield f"a meeting takes {link['meeting_s'] * 1e3:.2f} ms (median of {MEETINGS})"
    speed = BIG / link["sum_s"] / 1e9
    yield f"an all-reduce of {BIG / 1e6:.0f} MB takes {link['sum_s']:.3f} s: {speed:.2f} GB/s"
    if link["adapter"]:
        yield (f"what {result['recipe']} trains is {link['adapter'] / 1e6:.1f} MB: "
               f"{link['adapter_s'] * 1e3:.1f} ms a training step")  # fmt: skip


# ---- on each host --------------------------------------------------------------------------------


def describe_host(model: str = "", adapter: str = "") -> dict[str, Any]:
    """Returns what this machine is. lacks: what it has not, and missing, its path."""
    found: dict[str, Any] = {
        "versions": {"python": platform.python_version(), **versions()},
        "device": device_name(), "memory": device_memory(),
    }  # fmt: skip
    if not model:
        return found
    try:
        found["model"] = HERE if find_model(model, "policy.model") else TO_DOWNLOAD
    except UserError as error:
        return found | {"model": "is missing", "lacks": error.message, "missing": model}
    try:
        if adapter:
            find_adapter(adapter)
    except UserError as error:
        return found | {"lacks": error.message, "missing": adapter}
    return found


def measure(hosts: Hosts, adapter: int) -> dict[str, Any]:
    """Returns how long a meeting takes, and sums of BIG bytes and of an adapter's; in seconds."""
    meeting = timed(hosts.meet, MEETINGS)
    big = timed(lambda: hosts.sum([mx.zeros(BIG // 4)]), SUMS)
    own = timed(lambda: hosts.sum([mx.zeros(adapter // 4)]), SUMS) if adapter else 0.0
    return {"size": hosts.size, "meeting_s": meeting, "sum_s": big, "adapter": adapter,
            "adapter_s": own}  # fmt: skip


def timed(work: Callable[[], object], times: int) -> float:
    """Returns the median of so many calls' seconds, after a first call."""
    work()
    seconds = []
    for _ in range(times):
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    return median(seconds)


def main(what: str, *given: str) -> None:
    """Prints what was asked, as JSON. In `measure`, the first host alone does."""
    if what == "look":
        print(json.dumps(describe_host(*given)))
        return
    try:
        leave_word("pid", os.getpid())
        with joined() as hosts:
            found = measure(hosts, int(given[0]))
            if hosts.rank:
                hosts.meet()  # where the first one says that all is done
    except UserError as error:
        quit_with(error.message, error.hint)
    if hosts.rank == 0:
        print(json.dumps(found), flush=True)
        leave_word("code", 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
