"""How near the time that `--dry-run` names is to the time that the run then takes.

usage: python tests/bench/estimate.py [NAME …] [--policy DIR] [--cpu] [--json]

NAME: of RUNS, none for all. Each is estimated and then run, in processes of their own, with empty
caches. --policy: the model of the runs "smol", an mlx-lm folder of SmolLM2-135M-Instruct. Those of
"paced" ask a critic behind a socket that knows the answers and takes PACE_S for each.

--cpu: both in seconds of the processors instead of the clock's, for a machine that others use at
the same time; nothing that is waited for counts then, so not for "paced".
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.critic_runs import solving
from support.fake_ollama import FakeOllama

PACE_S = 4.0
ON_CPU = """
import time
from mlxreflect.setup import pace
pace.clock = time.process_time
from mlxreflect.cli.main import main
main()
"""


class Run(NamedTuple):
    """recipe and settings of a run. kind: "", "smol" or "paced"."""

    recipe: str
    settings: tuple[str, ...]
    kind: str = ""


QUICK = ("profile=quick", "task.limit=200", "eval.limit=300")
SHORT = ("task.limit=12", "eval.limit=12", "policy.max_new_tokens=96", "eval.max_new_tokens=96")
CRITIC = ("critic.provider=ollama", "critic.model=critic")
RUNS = {
    "r3": Run("r3", (*QUICK, "r3.wave=200", "r3.epochs=2")),
    "rel": Run("rel", (*QUICK, "rel.wave=100")),
    "preflexor": Run("preflexor", (*QUICK, "preflexor.rounds=3", "preflexor.two.rounds=2")),
    "reflectevo": Run("reflectevo", QUICK),
    "traces": Run("traces", (*QUICK, "traces.rounds=1", "traces.warm_up=100",
                             "traces.problems=100")),
    "paced": Run("quickstart", (*CRITIC, "task.limit=80", "eval.limit=100", "r3.epochs=1",
                                "r3.wave=10", "policy.batch=10", "critic.concurrency=2"), "paced"),
    "smol-r3": Run("quickstart", (*SHORT, "r3.epochs=1", "r3.wave=12", "policy.batch=12",
                                  "train.batch=4", "train.cut=keep"), "smol"),
    "smol-preflexor": Run("preflexor", ("profile=quick", *SHORT, "policy.batch=12",
                                        "preflexor.questions=12", "preflexor.rounds=1",
                                        "preflexor.two.rounds=1", "train.batch=4",
                                        "train.cut=keep"), "smol"),
}  # fmt: skip


def spent(*, cpu: bool) -> float:
    if not cpu:
        return time.monotonic()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def command(arguments: list[str], *, cpu: bool) -> tuple[float, dict[str, Any]]:
    """Returns what a command took, a process of its own, and the last line that it printed."""
    program = [sys.executable, *(("-c", ON_CPU) if cpu else ("-m", "mlxreflect"))]
    begun = spent(cpu=cpu)
    done = subprocess.run([*program, *arguments, "--json"], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return spent(cpu=cpu) - begun, json.loads(done.stdout.splitlines()[-1])


def compared(name: str, policy: str, folder: Path, *, cpu: bool) -> dict[str, Any]:
    """Estimates a run and makes it."""
    run, settings = RUNS[name], list(RUNS[name].settings)
    with ExitStack() as stack:
        if run.kind == "paced":
            server = stack.enter_context(FakeOllama(reply=slowly))
            settings.append(f"critic.base_url={server.url}")
        if run.kind == "smol":
            settings.append(f"policy.model={policy}")
        os.environ["MLXREFLECT_CACHE"] = str(folder / f"{name}-cache")
        given = [run.recipe, *(f"--set={key}" for key in settings)]
        measuring, found = command(["run", *given, "--dry-run"], cpu=cpu)
        took, summary = command(["run", *given, "--run-dir", str(folder / name)], cpu=cpu)
    told = found["time"]["known_seconds"]
    return {
        "run": name, "estimated": told, "took": round(took, 1), "ratio": round(told / took, 2),
        "measured_for": round(measuring, 1),
        "parts": found["time"].get("parts", []),  # none where it could measure nothing
        "calls": summary["critic"].get("calls", 0), "load": round(os.getloadavg()[0], 1),
    }  # fmt: skip


def slowly(body: dict[str, Any]) -> str:
    time.sleep(PACE_S)
    return solving(body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(RUNS))
    parser.add_argument("--policy", default="")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="estimate-"))
    print(f"| run | estimated, s | took, s | ratio | measured for, s | load |\n|{'---|' * 6}")
    for name in given.names:
        if RUNS[name].kind == "smol" and not given.policy:
            continue
        row = compared(name, given.policy, folder, cpu=given.cpu)
        cells = (row[key] for key in ("run", "estimated", "took", "ratio", "measured_for", "load"))
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
        if given.json:
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
