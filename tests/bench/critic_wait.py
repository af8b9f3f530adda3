"""How well a wave of wrong attempts keeps a slow critic busy: seconds, and calls in flight.

usage: python tests/bench/critic_wait.py [attempts] [side by side]

A loopback server takes a second a reply (then: 0.5 to 1.5 s) and allows 16 at a time; 64 wrong
attempts each need a critique and a rewrite, so 8 s is the least there can be. In flight is what
the server itself saw. The samples are three tokens each, so what is timed is the critic's part.
"""

import sys
import threading
import time
from http.server import ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx

mx.set_default_device(mx.cpu)
sys.path.insert(0, str(Path(__file__).parents[1]))

from support.fake_ollama import FakeOllama  # noqa: E402
from support.teacher import WRONG, solution  # noqa: E402

from mlxreflect.config.recipe import Recipe  # noqa: E402
from mlxreflect.config.schema import method_of  # noqa: E402
from mlxreflect.core.seeds import rng_for  # noqa: E402
from mlxreflect.critics import open_critic  # noqa: E402
from mlxreflect.methods.base import Frame  # noqa: E402
from mlxreflect.models.load import load_policy  # noqa: E402
from mlxreflect.tasks import TASKS  # noqa: E402
from mlxreflect.training.lora import attach_lora  # noqa: E402
from mlxreflect.training.trainer import Trainer  # noqa: E402

REPLY_S = 1.0
ThreadingHTTPServer.request_queue_size = 128  # 16 connections at once: no SYN is sent again


class Slow:
    """Replies after a second or so, `room` at once, and a log of how many are in flight."""

    def __init__(self, room: int, jitter: float, draw: int) -> None:
        self.room, self.jitter, self.draw = threading.Semaphore(room), jitter, draw
        self.lock, self.inside = threading.Lock(), 0
        self.log: list[tuple[float, int]] = []

    def __call__(self, body: dict[str, Any]) -> str:
        self.move(+1)
        with self.room:
            rng = rng_for(self.draw, body["options"]["seed"])
            delay = rng.uniform(-self.jitter, self.jitter)
            time.sleep(REPLY_S + delay)
        self.move(-1)
        text = body["messages"][-1]["content"]
        return "step 1 is wrong" if text.endswith("Reflect:") else solution(text)

    def move(self, step: int) -> None:
        with self.lock:
            self.inside += step
            self.log.append((time.monotonic(), self.inside))

    def share(self, least: int) -> float:
        """Of the time from the first call to the last reply, with at least so many in flight."""
        spans = [(b - a, n) for (a, n), (b, _) in pairwise(self.log)]
        return sum(s for s, n in spans if n >= least) / sum(s for s, _ in spans)


def strategy(server: FakeOllama, attempts: int, room: int) -> Frame:
    recipe = Recipe.model_validate({
        "policy": {"max_new_tokens": 3, "batch": attempts},
        "critic": {"provider": "ollama", "model": "critic", "concurrency": room, "cache": "off",
                   "base_url": server.url},
        "r3": {"wave": attempts, "verifications": 0, "bucket_every": 0},
    })  # fmt: skip
    task = TASKS["countdown"]
    policy = load_policy(recipe.policy)
    attach_lora(policy.model, recipe.train.lora, recipe.seed)
    loaded = task.load(recipe.task.model_copy(update={"limit": attempts}), "train", 0)
    critic = open_critic(recipe.critic.tier("basic"), "countdown", "bench")
    problems = {p.id: p for p in loaded}
    return Frame(
        method_of(recipe), recipe, task, policy, Trainer(policy.model), {"basic": critic}, problems
    )


def measure(attempts: int, room: int, jitter: float, draw: int, *, lock_step: bool) -> None:
    slow = Slow(room, jitter, draw)
    with FakeOllama(reply=slow) as server:
        played = strategy(server, attempts, room)
        if lock_step:
            played.session.critics["basic"].waits = False
        wave = played.next_wave()
        assert wave
        examples = played.play(wave).examples
        played.session.critics["basic"].close()
    assert len(slow.log) == 4 * attempts and len(examples) == attempts, "not all were wrong"
    assert WRONG not in [example.chosen for example in examples]
    seconds, least = slow.log[-1][0] - slow.log[0][0], 2 * attempts * REPLY_S / room
    how = "lock-step" if lock_step else "chains"
    print(f"{how:<10} replies {REPLY_S - jitter:g}–{REPLY_S + jitter:g} s: {seconds:6.2f} s, "
          f"{seconds / least:.3f} × the least ({least:g} s); at least {room - 2} in flight for "
          f"{slow.share(room - 2):.1%} of it", flush=True)  # fmt: skip


def main() -> None:
    attempts, room = (int(n) for n in (sys.argv[1:] + ["64", "16"][len(sys.argv) - 1 :]))
    for jitter, draw in ((0.0, 0), (0.5, 1), (0.5, 2), (0.5, 3)):
        for lock_step in (False, True):
            measure(attempts, room, jitter, draw, lock_step=lock_step)


if __name__ == "__main__":
    main()
