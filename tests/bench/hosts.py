"""The pace of several processes that share the work, beside that of one, on the embedded policy.

usage: python tests/bench/hosts.py [attempts ...] [--processes 2] [--repeats 3] [--rounds 2]
       [--json]

All run on this machine, over MLX's ring on loopback, each pinned to a core of its own with all of
MLX's streams: as many machines of one core. They are started directly, since `mlx.launch` itself
keeps a core busy while its processes run. One process and several take turns for some rounds, and
do the same work in the same pieces; of each piece the fastest time counts, for other programs may
use the machine as well. CPU: the same by the seconds of rank 0's processor in place of the clock's,
which leave out when it had to wait for other programs, or for the other ranks.

attempts: PROBLEMS problems with `Policy.generate`, temperature 1. evaluation: as many, two samples
each and one, with `evaluate_arms`, from drawing the problems to results. train: fits by dpo and sft
(with dropout and without), 16 random rows a step. run: the whole quickstart.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1]))

from support import fits  # noqa: E402
from support.hosts import Ranks  # noqa: E402

from mlxreflect.config.recipe import load_recipe  # noqa: E402
from mlxreflect.config.schema import EvalSpec, PolicyConfig, TaskConfig  # noqa: E402
from mlxreflect.core.hosts import Hosts, joined  # noqa: E402
from mlxreflect.core.ui import Ui  # noqa: E402
from mlxreflect.evaluation.evaluate import problem_set  # noqa: E402
from mlxreflect.evaluation.runner import Entry, evaluate_arms  # noqa: E402
from mlxreflect.models.load import load_policy  # noqa: E402
from mlxreflect.runs.folder import carry_out, create_run  # noqa: E402
from mlxreflect.runs.follow import Follower, follow  # noqa: E402
from mlxreflect.tasks import get_task  # noqa: E402
from mlxreflect.train.objectives import imitation  # noqa: E402

Times = list[tuple[float, float]]  # of each piece of the work: seconds by the clock, and of the CPU
Found = dict[str, Times]  # by what is done
PROBLEMS = 512
STEPS, ROWS, LONGEST = 4, 16, 100  # of a fit; a step; tokens of a prompt and of a response


def spec(problems: int, samples: int) -> EvalSpec:
    task = TaskConfig.model_validate({"name": "countdown", "numbers": [3], "limit": problems})
    return EvalSpec(task=task, limit=problems, batch=64, samples=samples, max_new_tokens=128,
                    temperature=1.0)  # fmt: skip


SPEC = spec(PROBLEMS, 2)
ASKED = {"two samples": SPEC, "one sample": spec(PROBLEMS, 1)}


# ---- what each process does ----------------------------------------------------------------------


def attempts(hosts: Hosts, repeats: int) -> Found:
    """Completions of held-out problems; one piece."""
    if hosts.rank:
        follow(hosts)
        return {}
    policy = load_policy(PolicyConfig(), hosts=hosts)
    prompts = [policy.encode(p) for p in problem_set(get_task("countdown"), SPEC).prompts]
    work = partial(
        policy.generate, prompts, temperature=1.0, top_p=1.0, max_new_tokens=SPEC.max_new_tokens,
        batch=SPEC.batch, seed=("bench",),
    )  # fmt: skip
    return {"generate": fastest(repeats, whole(work))}


def evaluation(hosts: Hosts, repeats: int) -> Found:
    """Evaluations without a cache; one piece each."""
    if hosts.rank:
        follow(hosts)
        return {}
    places = count()
    with tempfile.TemporaryDirectory() as folder:

        def work(asked: EvalSpec) -> None:
            entry, place = Entry("base", PolicyConfig()), Path(folder, str(next(places)))
            evaluate_arms([entry], asked, place, "off", Ui(quiet=True), hosts=hosts)

        return {name: fastest(repeats, whole(partial(work, asked)))
                for name, asked in ASKED.items()}  # fmt: skip


def run(hosts: Hosts, repeats: int) -> Found:
    """The quickstart, from loading to its report; once, without a warm-up."""
    if hosts.rank:
        follow(hosts)
        return {}
    with tempfile.TemporaryDirectory() as folder:
        settings = ["eval.cache=off", "train.reference_cache=off"]
        made = create_run(load_recipe("quickstart", settings), Path(folder, "run"))
        return {"quickstart": times(whole(partial(carry_out, made, Ui(quiet=True), hosts=hosts)))}


def train(hosts: Hosts, repeats: int) -> Found:
    """Fits, whose pieces are steps."""
    configs = {
        "dpo": fits.settings(batch=ROWS),
        "sft": fits.settings(batch=ROWS),
        "sft, dropout 0.05": fits.settings(batch=ROWS, lora={"dropout": 0.05}),
    }
    trainers = {name: fits.trainer_on(hosts, i, config)
                for i, (name, config) in enumerate(configs.items())}  # fmt: skip
    if hosts.rank:
        with ExitStack() as stack:
            follower = Follower(hosts, stack)
            follower.trainers |= {trainer.number: trainer for trainer in trainers.values()}
            follower.follow()
        return {}
    found = {}
    for name, trainer in trainers.items():
        rows = STEPS * ROWS
        if name == "dpo":
            pairs = fits.pairs(rows, longest=LONGEST)
            objective = trainer.pair_objective(pairs, trainer.trainable(), configs[name], name)
        else:
            objective = imitation(fits.rows(rows, longest=LONGEST))
        found[name] = fastest(repeats, lambda t=trainer, o=objective, c=configs[name]: t.train(
            o, c, (0, "bench")))  # fmt: skip
    return found


def whole(work: Callable[[], object]) -> Callable[[], Iterator[object]]:
    """Returns work that is one piece."""

    def pieces() -> Iterator[object]:
        yield work()

    return pieces


def fastest(repeats: int, work: Callable[[], Iterator[object]]) -> Times:
    """Returns the fastest times of each piece; the first repeat is a warm-up."""
    return least([times(work) for _ in range(repeats + 1)][1:])


def times(work: Callable[[], Iterator[object]]) -> Times:
    found, before = Times(), clocks()
    for _ in work():
        now = clocks()
        found.append((now[0] - before[0], now[1] - before[1]))
        before = clocks()
    return found


def clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def least(several: Sequence[Times]) -> Times:
    """Returns the least of each piece's times, by the clock and of the CPU."""
    return [(min(wall for wall, _ in each), min(cpu for _, cpu in each))
            for each in zip(*several, strict=True)]  # fmt: skip


PARTS = {"attempts": attempts, "evaluation": evaluation, "train": train, "run": run}


# ---- one beside several --------------------------------------------------------------------------


def measured(processes: int, part: str, repeats: int) -> Found:
    """Returns what so many processes took, as rank 0 saw it."""
    cores = sorted(os.sched_getaffinity(0))
    command = [str(HERE), "--work", part, str(repeats)]
    paths = {"PYTHONPATH": str(HERE.parents[2])}

    def pinned(rank: int) -> list[str]:
        return ["taskset", "-c", str(cores[rank % len(cores)])]

    if processes == 1:
        call = [*pinned(0), sys.executable, *command]
        said = subprocess.run(
            call, env={**os.environ, **paths}, stdout=subprocess.PIPE, text=True, check=True
        ).stdout
    else:
        with tempfile.TemporaryDirectory() as folder:
            ips = ["127.0.0.1"] * processes
            ranks = Ranks(Path(folder), ips, *command, before=pinned, env=paths)
            ended = ranks.results(timeout=3600)
        if any(code for code, _, _ in ended):
            sys.exit("\n".join(err for _, _, err in ended))
        said = ended[0][1]
    found: Found = json.loads(said.splitlines()[-1])
    return found


def compared(part: str, processes: int, repeats: int, rounds: int) -> Iterator[dict[str, Any]]:
    """Yields a row of figures for each thing that is done."""
    found = list[tuple[Found, Found]]()
    for _ in range(rounds):
        found.append((measured(1, part, repeats), measured(processes, part, repeats)))
    for name in found[0][0]:
        one, several = (least([each[side][name] for each in found]) for side in (0, 1))
        row: dict[str, Any] = {"part": part, "case": name, "processes": processes}
        for clock, kind in enumerate(("s", "cpu_s")):
            seconds, theirs = (sum(piece[clock] for piece in side) for side in (one, several))
            row |= {f"one_{kind}": seconds, f"several_{kind}": theirs}
            row["ratio" if kind == "s" else "cpu_ratio"] = seconds / theirs
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["attempts", "evaluation", "train"])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    rows = []
    for part in asked.parts:
        for row in compared(part, asked.processes, asked.repeats, asked.rounds):
            print(
                f"{part} {row['case']}: {row['one_s']:.3f} s, {row['several_s']:.3f} s by "
                f"{asked.processes}: {row['ratio']:.2f} times the pace "
                f"(CPU: {row['one_cpu_s']:.3f} s, {row['several_cpu_s']:.3f} s: "
                f"{row['cpu_ratio']:.2f})", flush=True,
            )  # fmt: skip
            rows.append(row)
    if asked.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        with joined() as hosts:
            found = PARTS[sys.argv[2]](hosts, int(sys.argv[3]))
        print(json.dumps(found))
    else:
        main()
