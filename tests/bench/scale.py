"""How long a run's waves take over N hosts: a simulation, fed by figures of one.

usage: python tests/bench/scale.py measure DIR [--waves 3] [--clock cpu]
       python tests/bench/scale.py predict [--hosts 1 2 4 8 64] [--figures FILE]
           [--critic each shared] [--problems 512] [--rows 16]

measure: measures one process pinned to a core of this machine, and how k of them at a time slow
each other down; runs the same waves with 2 and 3 processes over MLX's ring on loopback, started
directly (`mlx.launch` itself keeps a core busy); prints predicted, measured and their ratio, and
writes the figures into DIR/figures.json. --clock cpu: both in seconds of a process's own processor
(of rank 0's, where there are several), for a machine that others use at the same time: what is
waited for does not count then. The policy is the embedded one, and no critic is asked.

predict: prints what a wave takes over N hosts by stated figures: MAC and the LINKS below, which are
assumptions (nothing of it was measured on a Mac), or a file such as measure writes. critic: on each
host, or one server for all of them. problems: of a wave. rows: pairs of a training step.

Simulated are: attempts, by continuous batches that `SharedQueue.deal` fills; the critic's replies,
two a wrong answer; scoring references and training, as `divided` deals them; what rank 0 does
alone; and what goes between hosts, by a ring: N - 1 hops for a meeting, twice as many for a sum, of
which each host sends 2 (N - 1) / N times the bytes.
"""

import argparse
import heapq
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, cast

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1]))

import numpy as np  # noqa: E402
from support.hosts import Ranks  # noqa: E402

from mlxreflect.core.hosts import FIRST, Hosts, joined  # noqa: E402
from mlxreflect.models.sharing import SharedQueue, slice_of  # noqa: E402
from mlxreflect.train.hosts import divided  # noqa: E402

JSON_BYTES = 6  # of a token's number
MEETINGS = 3  # of a training step: the order, the parts, the figures
SEED = 18


Clock = Callable[[], float]


class Link(NamedTuple):
    """What connects the hosts to a ring. hop_s: until a host has what its neighbour sent."""

    name: str
    hop_s: float
    bytes_s: float

    def meet(self, size: int, data: float = 0) -> float:
        """Returns the seconds of a meeting, in which `data` bytes of JSON go around."""
        head = (size - 1) * (self.hop_s + FIRST / self.bytes_s)
        return head + (self.sum(size, data) if data > FIRST else 0.0)

    def sum(self, size: int, data: float) -> float:
        """Returns the seconds of an all-reduce."""
        return 2 * (size - 1) * (self.hop_s + data / size / self.bytes_s)


@dataclass(frozen=True)
class Figures:
    """What one host takes, in seconds.

    prompt_s: a token of a prompt read. step_s: a step of decoding, besides token_s for each
    sequence in it. score_s, train_s: a token scored under the reference, and trained on.
    update_s: a training step besides. graded_s: rank 0 alone, for each answer. wave_s: for each
    wave (commit, plots). reply_s, replies: of a critic, and how many it writes at a time.
    adapter_bytes: in float32, as it is summed.
    """

    name: str
    prompt_s: float
    step_s: float
    token_s: float
    score_s: float
    train_s: float
    update_s: float
    graded_s: float
    wave_s: float
    reply_s: float
    replies: int
    adapter_bytes: int


@dataclass(frozen=True)
class Wave:
    """What a wave does. prompt: its tokens. lengths: of each answer. pairs: trained on, as the
    tokens of each; rows: of a step. wrong: answers that a critic sees.
    """

    prompt: int
    lengths: Sequence[int]
    batch: int
    pairs: Sequence[int]
    rows: int
    wrong: int = 0


@dataclass
class Seconds:
    """Of a wave, by what is done; communication: meetings and sums within all of them."""

    attempts: float = 0.0
    critic: float = 0.0
    training: float = 0.0
    communication: float = 0.0
    alone: float = 0.0  # rank 0

    @property
    def whole(self) -> float:
        return sum(asdict(self).values())


class SimulatedHosts:
    """As much of `Hosts` as `SharedQueue.deal` looks at."""

    def __init__(self, size: int) -> None:
        self.size, self.rank, self.paces = size, 0, [0.0] * size


@dataclass
class Host:
    """Writes a continuous batch. slow: times the seconds that it takes. ends: of its sequences, the
    step after which each has ended. waiting: lengths of those for which there is no room yet.
    """

    figures: Figures
    prompt: int
    slow: float
    batch: int
    now: float = 0.0
    step: int = 0
    tokens: int = 0
    ended: int = 0  # since the last meeting
    longest: float = 0.0  # step, or reading of prompts
    ends: list[int] = field(default_factory=list)
    waiting: deque[int] = field(default_factory=deque)

    def wanted(self) -> int:
        """Returns for how many there is room, or will be; as `SharedQueue.meet` does."""
        return self.batch - len(self.ends) + self.ended - len(self.waiting)

    def begin(self) -> None:
        before = self.now
        while self.waiting and len(self.ends) < self.batch:
            heapq.heappush(self.ends, self.step + self.waiting.popleft())
            self.now += self.slow * self.figures.prompt_s * self.prompt
        self.longest = max(self.longest, self.now - before)

    def write(self, until: float) -> None:
        """Writes until a time, or until all its sequences have ended."""
        while self.ends and self.now < until:
            each = self.slow * (self.figures.step_s + self.figures.token_s * len(self.ends))
            self.longest = max(self.longest, each)
            left = math.ceil((until - self.now) / each) if until < math.inf else math.inf
            steps = int(min(self.ends[0] - self.step, left))
            self.step += steps
            self.now += steps * each
            self.tokens += steps * len(self.ends)
            while self.ends and self.ends[0] <= self.step:
                heapq.heappop(self.ends)
                self.ended += 1
            self.begin()


class Simulation:
    """A wave over so many hosts. slow: of each, times the seconds that it takes for attempts, and
    for training. shared_critic: one for all hosts.
    """

    def __init__(
        self, figures: Figures, link: Link, size: int, slow: Sequence[tuple[float, float]] = (),
        shared_critic: bool = False,
    ) -> None:  # fmt: skip
        self.figures, self.link, self.size = figures, link, size
        self.slow = slow or [(1.0, 1.0)] * size
        self.critics = 1 if shared_critic else size
        self.hosts = SimulatedHosts(size)

    def wave(self, wave: Wave) -> Seconds:
        found = Seconds()
        self.attempt(wave, found)
        found.critic = self.ask(2 * wave.wrong) if wave.wrong else 0.0
        self.train(wave, found)
        found.alone = self.figures.graded_s * len(wave.lengths) + self.figures.wave_s
        return found

    def attempt(self, wave: Wave, found: Seconds) -> None:
        """Writes a wave's answers, as `SharedQueue.take` and `Policy.generate_shared` do."""
        asked = [[i] for i in range(len(wave.lengths))]
        queue = SharedQueue(cast(Hosts, self.hosts), asked)
        hosts = [Host(self.figures, wave.prompt, slow, wave.batch) for slow, _ in self.slow]
        begun, until, meetings = 0.0, 0.0, 0
        while queue.runs:
            for host in hosts:
                host.write(until)
            paces = [h.tokens / max(1e-6, h.now - begun) if h.ends else 0.0 for h in hosts]
            queue.learn(paces)
            begun = max(host.now for host in hosts)
            until = begun + slice_of([host.longest for host in hosts])
            meetings += self.size > 1
            dealt = queue.deal([host.wanted() for host in hosts],
                               [len(host.ends) + len(host.waiting) for host in hosts])  # fmt: skip
            for host, given in zip(hosts, dealt, strict=True):
                host.now, host.tokens, host.ended, host.longest = begun, 0, 0, 0.0
                host.waiting += [wave.lengths[i] for run in given for i in run]
                host.begin()
            if self.size == 1:
                hosts[0].write(self.until_room(hosts[0]))
        for host in hosts:
            host.write(math.inf)
        found.attempts = max(host.now for host in hosts)
        if self.size > 1:
            order = JSON_BYTES * wave.prompt * len(wave.lengths)
            told = JSON_BYTES * sum(wave.lengths)
            found.communication += sum(self.link.meet(self.size, n) for n in (order, told))
            found.communication += meetings * self.link.meet(self.size)

    def until_room(self, host: Host) -> float:
        """Returns when the next of its sequences ends."""
        each = self.figures.step_s + self.figures.token_s * len(host.ends)
        return host.now + host.slow * each * (host.ends[0] - host.step)

    def ask(self, calls: int) -> float:
        """Returns the seconds of a critic's calls: half of them wait for the other half."""
        half = math.ceil(calls / 2 / (self.critics * self.figures.replies))
        return 2 * half * self.figures.reply_s

    def train(self, wave: Wave, found: Seconds) -> None:
        """Scores the references of a wave's pairs, then trains on them, a step in turn."""
        if not wave.pairs:
            return
        found.training += self.longest(wave.pairs, self.figures.score_s)
        told = JSON_BYTES * sum(wave.pairs)
        if self.size > 1:
            found.communication += self.link.meet(self.size, told) + self.link.meet(self.size)
        for at in range(0, len(wave.pairs), wave.rows):
            found.training += self.longest(wave.pairs[at : at + wave.rows], self.figures.train_s)
            found.training += self.figures.update_s * max(slow for _, slow in self.slow)
            if self.size > 1:
                found.communication += self.link.sum(self.size, self.figures.adapter_bytes)
                found.communication += MEETINGS * self.link.meet(self.size)

    def longest(self, costs: Sequence[int], each_s: float) -> float:
        """Returns the seconds of the host that takes longest for its share."""
        shares = divided(costs, self.size)
        return max(slow * each_s * sum(costs[i] for i in share)
                   for share, (_, slow) in zip(shares, self.slow, strict=True))  # fmt: skip


# ---- on this machine: what each process does -----------------------------------------------------

WAVE_PROBLEMS, BATCH, PAIRS, ROWS = 384, 64, 96, 16
PACED_S = 6.0  # for which processes at a time each do what they can, of each kind


class Bench:
    """A policy and its trainer on all hosts, and the prompts of a wave; by rank 0.

    The learning rate is too small to change what is written.
    """

    def __init__(self, hosts: Hosts, clock: Clock) -> None:
        from mlxreflect.config.schema import EvalSpec, PolicyConfig, TaskConfig, TrainConfig
        from mlxreflect.evaluation.evaluate import problem_set
        from mlxreflect.models.load import load_policy
        from mlxreflect.tasks import get_task
        from mlxreflect.train.lora import attach_everywhere
        from mlxreflect.train.trainer import Trainer

        self.clock = clock
        task = TaskConfig.model_validate({"name": "countdown", "numbers": [3]})
        self.asked = problem_set(get_task("countdown"), EvalSpec(task=task, limit=WAVE_PROBLEMS))
        keys = {"lr": 1e-12, "batch": ROWS, "lora": {"rank": 16, "dropout": 0.0}}
        self.config, policy = TrainConfig.model_validate(keys), PolicyConfig()
        self.policy = load_policy(policy, hosts=hosts)
        attach_everywhere(self.policy, self.config, 0, policy)
        self.trainer = Trainer(self.policy.model, None, str, hosts, self.policy.number)
        self.prompts = [self.policy.encode(prompt) for prompt in self.asked.prompts]

    def answers(self, batch: int = BATCH, tokens: int = 40) -> list[Any]:
        return self.policy.generate(
            self.prompts, temperature=1.0, top_p=1.0, max_new_tokens=tokens, batch=batch, seed=(1,)
        )

    def grade(self, answers: Sequence[Any]) -> None:
        for problem, one in zip(self.asked.problems, answers, strict=True):
            self.asked.grade(problem, 0, one.text, one.token_ids, one.finish_reason)

    def pairs(self, answers: Sequence[Any]) -> list[Any]:
        """Returns pairs of the answers and random tokens in their place."""
        from mlxreflect.train.batches import Pair, Row

        draw = random.Random(SEED)
        return [
            Pair(Row(prompt, one.token_ids), Row(prompt, draw.choices(range(5, 250), k=24)))
            for prompt, one in zip(self.prompts[:PAIRS], answers, strict=False)
        ]

    def fit(self, pairs: Sequence[Any], rows: int = ROWS) -> list[float]:
        """Returns the seconds of scoring the references, and those of each step."""
        config = self.config.model_copy(update={"batch": rows})
        reference = self.trainer.trainable()
        begun = self.clock()
        objective = self.trainer.pair_objective(pairs, reference, config, "dpo")
        ends = [begun, self.clock()]
        for _ in self.trainer.train(objective, config, ("bench",)):
            ends.append(self.clock())
        return np.diff(ends).tolist()

    def wave(self) -> dict[str, list[float]]:
        """Returns the seconds of a wave, piece by piece of each phase."""
        begun = self.clock()
        answers = self.answers()
        wrote = self.clock()
        self.grade(answers)
        pairs = self.pairs(answers)
        graded = self.clock()
        return {"attempts": [wrote - begun], "alone": [graded - wrote], "training": self.fit(pairs)}

    def tokens_of(self, pairs: Sequence[Any]) -> list[int]:
        from mlxreflect.train.hosts import tokens_of

        shares = self.trainer.understood([]).shares
        return [tokens_of([(pair.chosen, pair.rejected)], shares) for pair in pairs]


def waves(hosts: Hosts, count: str, clock: Clock) -> Any:
    """Seconds by phase, from the fastest of each piece over some waves; the first is a warm-up."""
    bench = Bench(hosts, clock)
    found = [bench.wave() for _ in range(int(count) + 1)][1:]
    return {phase: sum(least([wave[phase] for wave in found])) for phase in found[0]}


def least(several: Sequence[Sequence[float]]) -> list[float]:
    """Returns the least of each piece; other programs may use the machine as well."""
    return [min(each) for each in zip(*several, strict=True)]


def figures(hosts: Hosts, count: str, clock: Clock) -> Any:
    """Figures of one process, and the wave that it does.

    Writing and training take turns, as in a wave: each leaves the other's memory cold.
    """
    bench, times = Bench(hosts, clock), int(count)
    answers = bench.answers()
    pairs = bench.pairs(answers)
    costs, read = bench.tokens_of(pairs), sum(map(len, bench.prompts))
    kinds = ((BATCH, 40), (BATCH // 4, 40), (BATCH, 4))  # sequences at a time, tokens at most

    def timed(work: Callable[[], Any]) -> float:
        begun = clock()
        work()
        return clock() - begun

    wrote, graded, fits = list[list[float]](), list[list[float]](), list[list[list[float]]]()
    for _ in range(times + 1):
        wrote.append([])
        for batch, most in kinds:
            wrote[-1].append(timed(partial(bench.answers, batch, most)))
            fits.append([bench.fit(pairs, rows) for rows in (ROWS, ROWS // 4)])
        graded.append([timed(lambda: (bench.grade(answers), bench.pairs(answers)))])
    lengths = [[min(most, len(one.token_ids)) for one in answers] for _, most in kinds]
    asked = [[read, sum(each) / batch, sum(each)]
             for each, (batch, _) in zip(lengths, kinds, strict=True)]  # fmt: skip
    prompt_s, step_s, token_s = np.linalg.solve(asked, least(wrote[1:])).tolist()
    (scored, *few), (_, *many) = map(least, zip(*fits[len(kinds) :], strict=True))
    update_s = (sum(many) - sum(few)) / (3 * len(pairs) / ROWS)
    (grading,) = least(graded[1:])
    made = Figures(
        "the embedded policy on a core of this machine", prompt_s, step_s, token_s,
        scored / sum(costs), (sum(few) - update_s * len(pairs) / ROWS) / sum(costs), update_s,
        grading / len(answers), 0.0, 0.0, 1,
        4 * sum(array.size for array in bench.trainer.trainable().values()),
    )  # fmt: skip
    wave = Wave(round(read / len(answers)), lengths[0], BATCH, costs, ROWS)
    return {"figures": asdict(made), "wave": asdict(wave)}


def link(hosts: Hosts, count: str, clock: Clock) -> Any:
    """The seconds of a meeting, and those of the sum of an adapter."""
    import mlx.core as mx

    array = mx.zeros(int(count))
    found: dict[str, list[float]] = {"meet": [], "sum": []}
    for _ in range(50):
        for name, work in (("meet", hosts.meet), ("sum", lambda: mx.eval(hosts.sum([array])))):
            begun = time.perf_counter()
            work()
            found[name].append(time.perf_counter() - begun)
    return {name: median(each) for name, each in found.items()}


def paces(hosts: Hosts, begin: str, clock: Clock) -> Any:
    """How often this process does each kind of work in a while that begins for all at once."""
    bench = Bench(hosts, clock)
    pairs = bench.pairs(bench.answers())
    kinds: dict[str, Callable[[], Any]] = {"attempts": bench.answers,
                                           "training": lambda: bench.fit(pairs)}  # fmt: skip
    found = {}
    for place, (name, work) in enumerate(kinds.items()):
        begun = float(begin) + place * 2 * PACED_S
        time.sleep(max(0.0, begun - time.time()))
        ends = list[float]()
        while time.time() < begun + 1.5 * PACED_S:
            work()
            ends.append(time.time())
        inside = [end for end in ends if end <= begun + PACED_S] or ends[:1]
        found[name] = len(inside) / (inside[-1] - begun)
    return found


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
WORK = {"waves": waves, "figures": figures, "link": link, "paces": paces}


def work(name: str, argument: str, clock: str) -> None:
    """Does what `measure` asks of a process."""
    from mlxreflect.runs.follow import follow

    with joined() as hosts:
        said = (
            WORK[name](hosts, argument, CLOCKS[clock]) if name == "link" or not hosts.rank else None
        )
        if hosts.rank:
            follow(hosts)
        else:
            print(json.dumps(said))


# ---- on this machine: predicted and measured -----------------------------------------------------


def told(
    processes: int, name: str, argument: str, clock: str = "wall", together: bool = True
) -> list[Any]:  # fmt: skip
    """Returns what so many processes say, each pinned to a core.

    together: joined, so that rank 0 alone says something.
    """
    cores = sorted(os.sched_getaffinity(0))
    before = [["taskset", "-c", str(cores[rank % len(cores)])] for rank in range(processes)]
    command = [str(HERE), "--work", name, argument, clock]
    if processes > 1 and together:
        with tempfile.TemporaryDirectory() as folder:
            ips = ["127.0.0.1"] * processes
            ranks = Ranks(Path(folder), ips, *command, before=before.__getitem__)
            ended = ranks.results(timeout=1800)
        if any(code for code, _, _ in ended):
            sys.exit("\n".join(err for _, _, err in ended))
        return [json.loads(ended[0][1].splitlines()[-1])]
    env = {**os.environ, "PYTHONPATH": str(HERE.parents[2])}
    started = [subprocess.Popen([*first, sys.executable, *command], env=env, text=True,
                                stdout=subprocess.PIPE) for first in before]  # fmt: skip
    said = [process.communicate()[0] for process in started]
    return [json.loads(each.splitlines()[-1]) for each in said]


def paced(processes: int) -> list[dict[str, float]]:
    """Returns the pace of each of so many processes that work at a time, by kind of work."""
    begin = str(time.time() + 10 + 5 * processes)  # when all have loaded
    return told(processes, "paces", begin, together=False)


def measure(folder: Path, count: int, clock: str) -> None:
    (found,) = told(1, "figures", str(count), clock)
    known, wave = Figures(**found["figures"]), Wave(**found["wave"])
    (times,) = told(2, "link", str(known.adapter_bytes // 4))
    hop = times["meet"]
    flowing = max(times["sum"] - 2 * hop, times["sum"] / 10)
    loopback = Link("loopback", hop, known.adapter_bytes / flowing)
    folder.mkdir(parents=True, exist_ok=True)
    said = {"figures": asdict(known), "link": loopback._asdict()}
    (folder / "figures.json").write_text(json.dumps(said, indent=2) + "\n")
    print(json.dumps(said))
    print(f"{'processes':>9} {'':12} {'predicted':>9} {'measured':>9} {'ratio':>6}")
    alone = paced(1)[0] if clock == "wall" else {"attempts": 1.0, "training": 1.0}
    for size in (1, 2, 3):
        # By its own processor's seconds, nothing slows a process down.
        several = paced(size) if size > 1 and clock == "wall" else [alone] * size
        slow = [(alone["attempts"] / each["attempts"], alone["training"] / each["training"])
                for each in several]  # fmt: skip
        foretold = Simulation(known, loopback, size, slow).wave(wave)
        (real,) = told(size, "waves", str(count), clock)
        rows = [
            ("a wave", foretold.whole, sum(real.values())),
            *((phase, getattr(foretold, phase), seconds) for phase, seconds in real.items()),
        ]
        for name, guess, seconds in rows:
            print(f"{size:9} {name:12} {guess:9.3f} {seconds:9.3f} {guess / seconds:6.2f}",
                  flush=True)  # fmt: skip
        if size > 1 and clock == "wall":
            print(f"{'':9} slowed by each other: {[[round(x, 2) for x in one] for one in slow]}")


# ---- elsewhere -----------------------------------------------------------------------------------

# Qwen2.5-7B: inputs and outputs of a layer's linear parts; 28 layers.
SHAPES = ((3584, 3584), (3584, 512), (3584, 512), (3584, 3584), (3584, 18944), (3584, 18944),
          (18944, 3584))  # fmt: skip
LAYERS, RANK = 28, 16
MAC = Figures(  # assumed, of a 4-bit 7B on an M-class Mac with 400 GB/s
    "assumed: a 4-bit 7B on an M-class Mac", prompt_s=1.2e-3, step_s=14e-3, token_s=1.5e-3,
    score_s=1.2e-3, train_s=4.8e-3, update_s=0.1, graded_s=5e-3, wave_s=5.0, reply_s=20.0,
    replies=4, adapter_bytes=4 * RANK * LAYERS * sum(a + b for a, b in SHAPES),
)  # fmt: skip
LINKS = (  # assumed; 10 and 1 GbE without their frames' share
    Link("Thunderbolt", 50e-6, 5e9), Link("10 GbE", 100e-6, 1.17e9), Link("1 GbE", 200e-6, 0.117e9)
)  # fmt: skip
PROMPT, ANSWER, SPREAD, LONGEST = 300, 400, 0.6, 2048  # tokens; answers' are lognormal
WRONG = 0.5


def assumed_wave(problems: int, rows: int) -> Wave:
    """Half of a wave's answers are wrong, and a pair is made of each of those."""
    draw = random.Random(SEED)
    middle = math.log(ANSWER) - SPREAD**2 / 2
    drawn = [min(LONGEST, round(draw.lognormvariate(middle, SPREAD))) for _ in range(problems)]
    wrong = drawn[: round(WRONG * problems)]
    pairs = [PROMPT + length + ANSWER for length in wrong]
    return Wave(PROMPT, drawn, 32, pairs, rows, len(wrong))


def predict(asked: argparse.Namespace) -> None:
    figures, links = MAC, list(LINKS)
    if asked.figures:
        said = json.loads(asked.figures.read_text())
        figures = replace(Figures(**said["figures"]), reply_s=MAC.reply_s, replies=MAC.replies)
        links = [Link(**said["link"]), *links]
    wave = assumed_wave(asked.problems, asked.rows)
    print(f"{figures.name}; waves of {asked.problems}, {asked.rows} pairs a step, an adapter of "
          f"{figures.adapter_bytes / 1e6:.1f} MB")  # fmt: skip
    print(f"{'link':12}{'critic':8}{'hosts':>6}{'wave s':>9}{'pace':>7}"
          f"{'attempts':>10}{'critic':>8}{'training':>10}{'communication':>15}{'alone':>7}"
          f"{'sum of a step':>15}")  # fmt: skip
    for each in links:
        for critic in asked.critic:
            alone = Simulation(figures, each, 1).wave(wave).whole
            for size in asked.hosts:
                made = Simulation(figures, each, size, shared_critic=critic == "shared").wave(wave)
                shares = [part / made.whole for part in asdict(made).values()]
                columns = zip(shares, (10, 8, 10, 15, 7), strict=True)
                told = "".join(f"{share:{width}.1%}" for share, width in columns)
                summed = each.sum(size, figures.adapter_bytes)
                print(f"{each.name:12}{critic:8}{size:6}{made.whole:9.1f}{alone / made.whole:7.2f}"
                      f"{told}{summed:13.4f} s")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True)
    here = parts.add_parser("measure")
    here.add_argument("folder", type=Path)
    here.add_argument("--waves", type=int, default=3)
    here.add_argument("--clock", choices=CLOCKS, default="wall")
    there = parts.add_parser("predict")
    there.add_argument("--hosts", type=int, nargs="+", default=[1, 2, 4, 8, 64])
    there.add_argument("--figures", type=Path)
    there.add_argument("--critic", nargs="+", choices=("each", "shared"), default=["each"])
    there.add_argument("--problems", type=int, default=512)
    there.add_argument("--rows", type=int, default=16)
    asked = parser.parse_args()
    if asked.part == "measure":
        measure(asked.folder, asked.waves, asked.clock)
    else:
        predict(asked)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(*sys.argv[2:])
    else:
        main()
