"""Second answers, base against trained (ReflectEvo): Acc@t1, Acc@t2 and what is between them.

A retry after the policy's own reflection stands beside the control, a bare retry without one. Each
is counted twice, from the same chains: ungated, where nobody says which first answers are wrong, a
reflection that finds no fault keeps the first, and right ones can be lost; and gated, where only
wrong ones are tried again, so nothing can be lost by construction.
"""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from mlxreflect.config.schema import ChainConfig, EvalSpec, Recipe
from mlxreflect.core.journal import read_rows
from mlxreflect.core.records import Problem, episode_from_row
from mlxreflect.core.ui import Ui
from mlxreflect.evaluation.chains import Chain, chain_of, correct, satisfied, self_critic
from mlxreflect.evaluation.evaluate import evaluate, problem_set
from mlxreflect.evaluation.generators import ChainGenerator, LocalModel
from mlxreflect.models.load import weights_hash
from mlxreflect.models.policy import Policy
from mlxreflect.stats import paired, sentence
from mlxreflect.tasks.base import Task
from mlxreflect.training.network import Arrays

RETRIES = ("reflection", "bare")
ARMS = ("base", "trained")


class Retries:
    """Measures both arms of a run."""

    def __init__(
        self, recipe: Recipe, out: Path, exam: tuple[Policy, Task, Sequence[Problem]],
        spec: EvalSpec, ui: Ui,
    ) -> None:  # fmt: skip
        self.out, self.exam, self.ui = out, exam, ui
        # What is said of an attempt is worded as in training, too.
        worded = {**recipe.prompt.templates, **spec.prompt.templates}
        prompt = spec.prompt.model_copy(update={"templates": worded})
        self.spec = spec.model_copy(update={"prompt": prompt})
        self.in_one = recipe.reflectevo.training == "I"  # reflection and answer, once trained
        self.tokens = recipe.critic.max_tokens  # of a reflection

    def measure(self, arm: str, adapter: str, reflector: Arrays | None = None) -> None:
        """Evaluates the policy as it is. reflector: what it reflects with, if not that."""
        policy, task, problems = self.exam
        for retry in RETRIES:
            spec = self.spec_of(retry, arm)
            critic = self_critic(policy, spec, reflector) if spec.chain.feedback == "self" else None
            weights = f"{adapter} and {weights_hash(reflector)}" if reflector else adapter
            asked = problem_set(task, spec, problems)
            generator = ChainGenerator(LocalModel(policy, weights), asked, critic)
            with self.ui.progress(f"evaluating {arm}, {retry} retry", len(problems)) as bar:
                evaluate(generator, self.out / f"{arm}-{retry}", bar)

    def spec_of(self, retry: str, arm: str) -> EvalSpec:
        in_one = self.in_one and arm == "trained"
        chain = ChainConfig(
            rounds=2,
            round="reflect" if retry == "reflection" and in_one else "retry",
            feedback="self" if retry == "reflection" and not in_one else "none",
            stops=False,
            max_tokens=self.tokens,
        )
        return self.spec.model_copy(update={"chain": chain})

    def results(self) -> dict[str, Any]:
        """Returns figures of both arms, and tests of trained against base."""
        figures, tests = [], []
        for retry, gated in product(RETRIES, (False, True)):
            answers = {arm: seconds(self.chains(arm, retry), gated=gated) for arm in ARMS}
            named = {"retry": retry, "gated": gated}
            for arm, found in answers.items():
                figures.append({"arm": arm, **named, **counted(self.chains(arm, retry), found)})
            comparison = paired(answers["base"], answers["trained"])
            test = asdict(comparison)
            said = sentence({**test, "a": "base", "b": "trained", "alpha": 0.05})
            tests.append({**named, **test, "sentence": said})
        return {"schema": "retries/1", "arms": figures, "comparisons": tests}

    def chains(self, arm: str, retry: str) -> list[Chain]:
        rows = read_rows(self.out / f"{arm}-{retry}" / "chains.jsonl")
        return [chain_of(episode_from_row(row), "") for row in rows]


def seconds(chains: Sequence[Chain], *, gated: bool) -> list[bool]:
    """Returns whether each chain ends right. gated: only wrong first answers are tried again."""
    return [
        correct(chain.answers[0] if keeps(chain, gated=gated) else chain.answers[-1])
        for chain in chains
    ]


def keeps(chain: Chain, *, gated: bool) -> bool:
    """Returns true where the first answer stands."""
    if gated:
        return correct(chain.answers[0])
    return any(turn.role == "reflection" and satisfied(turn.text) for turn in chain.turns)


def counted(chains: Sequence[Chain], second: Sequence[bool]) -> dict[str, Any]:
    """Returns a row of figures. failed: reflections that were not written, whose retry is bare."""
    first = [correct(chain.answers[0]) for chain in chains]
    moved = list(zip(first, second, strict=True))
    n = len(chains)
    return {
        "n": n,
        "acc_t1": sum(first) / n,
        "acc_t2": sum(second) / n,
        "delta": (sum(second) - sum(first)) / n,
        "wrong_to_right": sum(b and not a for a, b in moved),
        "right_to_wrong": sum(a and not b for a, b in moved),
        "failed": sum(turn.error is not None for chain in chains for turn in chain.turns),
    }
