"""What a critic that can play Countdown says to FakeOllama; the request alone decides it.

    with FakeOllama(reply=Teacher(delays=1, longest=0.05)) as server: …

Most rewrites are right, some are wrong, a judge finds some of the right ones wanting, and marks are
any. delays: a seed; replies take anything up to `longest` seconds, in an order that depends on it.
"""

import hashlib
import json
import re
import time
from typing import Any

from mlxreflect.core.records import make_problem
from mlxreflect.core.seeds import rng_for
from mlxreflect.tasks import TASKS

WRONG = "<think>\nstep 1: 1 + 1 = 2\n</think>\n<answer> 1 + 1 </answer>"


class Teacher:
    def __init__(self, delays: int = 0, longest: float = 0.0, wrong: float = 0.3) -> None:
        self.delays, self.longest, self.wrong = delays, longest, wrong

    def __call__(self, body: dict[str, Any]) -> str:
        asked = hashlib.sha256(json.dumps(body["messages"]).encode()).hexdigest()
        time.sleep(rng_for("delay", self.delays, asked).uniform(0, self.longest))
        text = body["messages"][-1]["content"]
        if text.endswith("Reflect:"):
            return "step 1 is wrong"
        if text.endswith("Verdict:"):
            fine = rng_for("judge", asked).random() < 0.7
            return json.dumps(
                {"step": "", "why": "looked at", "verdict": "right" if fine else "wrong"}
            )
        if text.endswith("Marks:"):
            rng = rng_for("marks", asked)
            names = ("depth", "coherence", "verification", "completeness")
            return json.dumps({"why": "looked at", **{name: rng.randint(1, 5) for name in names}})
        if rng_for("wrong", asked).random() < self.wrong:
            return WRONG
        return solution(text)


def solution(text: str) -> str:
    """A right answer to the Countdown problem that a prompt begins with."""
    numbers, target = re.findall(r"Numbers: ([\d ]+)\nTarget: (\d+)", text)[0]
    fields = {"numbers": [int(n) for n in numbers.split()], "target": int(target)}
    solver = TASKS["countdown"].solver
    assert solver
    solved = solver.finish(make_problem("countdown", fields), [], 0)
    assert solved
    return f"<think>\n{solved[0]}\n</think>\n<answer> {solved[1]} </answer>"
