"""What tests of methods share: a frame on the embedded policy, a critic that does as it is told."""

import json
import threading
from dataclasses import asdict

from mlxreflect.config.schema import Recipe, method_of
from mlxreflect.core.hosts import ALONE
from mlxreflect.core.records import to_row
from mlxreflect.critics.base import Reply
from mlxreflect.critics.solver import SolverCritic
from mlxreflect.methods.base import Frame, as_asked, preference
from mlxreflect.methods.r3 import State, next_wave
from mlxreflect.methods.session import make_call
from mlxreflect.models.load import load_policy
from mlxreflect.prompts.roles import BUNDLED, role_messages
from mlxreflect.tasks import TASKS
from mlxreflect.train.lora import attach_lora
from mlxreflect.train.trainer import Trainer

COUNTDOWN = TASKS["countdown"]
NONSENSE = "<think>\nstep 1: 1 + 1 = 2\n</think>\n<answer> 1 + 1 </answer>"


class Critic:
    """The solver, but its rewrites fail, or its calls do, as often as the test says."""

    waits, hosts, servers = False, ALONE, 1

    def __init__(self, actor="solver", bad_rewrites=0, errors=()):
        self.solver = SolverCritic("countdown")
        self.actor, self.bad_rewrites, self.errors, self.calls = actor, bad_rewrites, errors, []

    def preflight(self):
        self.solver.preflight()

    def ask(self, calls):
        replies = []
        for call in calls:
            self.calls.append(call)
            before = sum(c.problem.id == call.problem.id and c.role == call.role
                         for c in self.calls)  # fmt: skip
            if call.role in self.errors:
                replies.append(Reply("", error="out of order", kind="http_500"))
            elif call.role == "rewrite" and before <= self.bad_rewrites:
                replies.append(Reply(NONSENSE))
            else:
                replies += self.solver.ask([call])
        return replies

    def close(self):
        pass


def frame_of(recipe, policy, trainer, critics, problems, task=COUNTDOWN):
    """The recipe's method in its frame. problems: by id."""
    return Frame(method_of(recipe), recipe, task, policy, trainer, critics, problems)


def make(critic=None, advanced=None, problems=6, critic_table=None, **tables):
    """R³ on Countdown."""
    tree = {
        "policy": {"temperature": 1.0, "max_new_tokens": 30, "batch": 16},
        "train": {"lr": 1e-3, "nll": 1.0, "logps": "sum", "batch": 4, "lora": {"keys": []}},
        "critic": critic_table or {},
    }
    for name, table in tables.items():
        tree[name] = {**tree.get(name, {}), **table}
    recipe = Recipe.model_validate(tree)
    policy = load_policy(recipe.policy)
    attach_lora(policy.model, recipe.train.lora, recipe.seed)
    critic = critic or Critic()
    loaded = COUNTDOWN.load(recipe.task.model_copy(update={"limit": problems}), "train", 0)
    critics = {"basic": critic, "advanced": advanced or critic, "self": critic}
    return frame_of(recipe, policy, Trainer(policy.model), critics, {p.id: p for p in loaded})


def play(frame, waves=100):
    played = []
    while len(played) < waves and (wave := frame.next_wave()) is not None:
        played.append(frame.play(wave))
    return played


def walk_r3(recipe, names, solve=lambda wave, name: False, first=lambda wave, name: False):
    """Every wave of R³, with a bucket list moved on as R³ does. solve, first: what is right."""
    state, seen = State(), []
    while (wave := next_wave(state, names, recipe)) is not None:
        # A run may be killed here: the state on disk is the one before this wave.
        seen.append(wave)
        for name in wave.problems:
            if wave.stage == "problems":
                state.first_correct += first(wave, name)
            if solve(wave, name) or first(wave, name):
                state.bucket.pop(name, None)
                state.unsolved = state.unsolved if first(wave, name) else 0
            else:
                state.bucket.setdefault(name, None)
                state.unsolved += 1
        state.wave += 1
        state = State(**json.loads(json.dumps(asdict(state))))
        assert len(seen) < 1000
    return seen


def roles(episode):
    return [turn.role for turn in episode.turns]


def call_of(role, problem, at, recipe=None, task=COUNTDOWN, **data):
    return make_call(recipe or Recipe(), task, role, problem, at, **data)


def attempt_messages(instruction, question, tags="think", style="thinking", templates=BUNDLED):
    shown = {"instruction": instruction, "question": question}
    return role_messages(f"attempt_{style}", tags, templates, **shown)


def pairs_of(episode, style="thinking"):
    """R³'s pairs of an episode, read off its turns: each winning rewrite, and its opener."""
    for turn in episode.turns:
        if turn.role == "rewrite" and turn.verdict and turn.verdict.passed:
            opener = turn
            while opener.role not in ("attempt", "verify"):
                opener = episode.turns[opener.parent]
            yield preference(episode, as_asked(turn, style), opener)


class Remote(Critic):
    """A critic that is waited for; `gate` is called with every call before it is answered."""

    waits = True

    def __init__(self, gate=lambda call: None, **kwargs):
        super().__init__(**kwargs)
        self.gate, self.lock = gate, threading.Lock()

    def ask(self, calls):
        for call in calls:
            self.gate(call)
        with self.lock:
            return super().ask(calls)


def make_remote(reviewer, problems=5, wrong=True, **tables):
    """wrong: three tokens an attempt, so that none is ever right."""
    tables["policy"] = {
        "max_new_tokens": 3 if wrong else 30,
        "batch": 2,
        **tables.get("policy", {}),
    }
    tables["train"] = {"cut": "keep", **tables.get("train", {})}
    own = {"wave": problems, "verifications": 0, "bucket_every": 0}
    tables["r3"] = {**own, **tables.get("r3", {})}
    critic = {"provider": "ollama", "model": "critic", "concurrency": 3, **tables.pop("critic", {})}
    frame = make(reviewer, problems=problems, critic_table=critic, **tables)
    frame.session.critics["self"] = Critic()
    return frame


def rows(played):
    """Records of waves, without names that depend on the address of a server."""
    return [[to_row(record) for record in (*one.episodes, *one.examples)] for one in played]
