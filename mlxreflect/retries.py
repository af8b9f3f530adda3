"""Second answers, base against trained (ReflectEvo): Acc@t1, Acc@t2 and what is between them.

A retry after the policy's own reflection stands beside the control, a bare retry without one. Each
is measured twice: ungated, where nobody says which first answers are wrong and right ones can be
lost; and gated, where only wrong ones are tried again, so nothing can be lost by construction.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mlxreflect.chains_eval import evaluate_chains
from mlxreflect.compare import Options, compare
from mlxreflect.critics.local import SelfCritic
from mlxreflect.policy import Policy, weights_hash
from mlxreflect.records import Problem
from mlxreflect.rounds import self_critic
from mlxreflect.tables import ChainConfig, EvalSpec, Recipe
from mlxreflect.tasks.base import Task
from mlxreflect.train.network import Arrays
from mlxreflect.ui import Ui

FIGURES = ("delta", "right_to_wrong", "wrong_to_right", "tokens_generated", "stopped", "failed")
COMPARED = ("n", "accuracy_a", "accuracy_b", "gains", "losses", "difference", "ci_low", "ci_high",
            "p_exact", "p_mid", "sentence")  # fmt: skip
ONE_RESPONSE = ("chain.round", "chain.feedback")  # where the trained policy does both in one


class Kind(NamedTuple):
    """One way to be asked again."""

    reflects: bool
    gated: bool

    @property
    def name(self) -> str:
        return ("reflection" if self.reflects else "bare") + ("-gated" if self.gated else "")


KINDS = [Kind(reflects, gated) for reflects in (True, False) for gated in (False, True)]


class Retries:
    """Measures both arms of a run, into folders of their own."""

    def __init__(
        self, recipe: Recipe, out: Path, exam: tuple[Policy, Task, Sequence[Problem]],
        spec: EvalSpec, ui: Ui,
    ) -> None:  # fmt: skip
        self.out, self.exam, self.ui = out, exam, ui
        # Also what is said of an attempt is worded as in training.
        worded = {**recipe.prompt.templates, **spec.prompt.templates}
        prompt = spec.prompt.model_copy(update={"templates": worded})
        self.spec = spec.model_copy(update={"prompt": prompt})
        wanted = recipe.strategy == "reflectevo" and recipe.reflectevo.retries
        self.kinds = KINDS if wanted else []
        self.one_response = recipe.reflectevo.training == "I"
        self.words = recipe.critic.max_tokens  # of a reflection, in tokens
        self.figures: list[dict[str, Any]] = []

    def measure(self, arm: str, adapter: str, reflector: Arrays | None = None) -> None:
        """Both answers of the policy as it is. reflector: what it reflects with, if not that."""
        policy, task, problems = self.exam
        for kind in self.kinds:
            spec = self.spec_of(kind, self.one_response and arm == "trained")
            weights = adapter
            critic: SelfCritic | None = None
            if reflector and kind.reflects:
                critic = self_critic(policy, spec, reflector)
                weights += f" and {weights_hash(reflector)}"
            label = f"evaluating {arm}, {kind.name}"
            with self.ui.progress(label, len(problems)) as bar:
                results = evaluate_chains(
                    policy, task, problems, spec, self.folder(arm, kind),
                    adapter=weights, advance=bar.advance, told=bar.update_text, critic=critic,
                )  # fmt: skip
            self.note(arm, kind, results["chain"])

    def note(self, arm: str, kind: Kind, chain: dict[str, Any]) -> None:
        first, second = chain["acc_at"][0], chain["acc_at"][-1]
        given = {name: chain[name] for name in FIGURES}
        row = {"arm": arm, **kind._asdict(), "acc_t1": first, "acc_t2": second, **given}
        self.figures.append(row)
        self.ui.line(
            f"{arm}, {kind.name}: Acc@t1 {first:.1%}, Acc@t2 {second:.1%} "
            f"({chain['delta']:+.1%}: {chain['wrong_to_right']} became right, "
            f"{chain['right_to_wrong']} wrong)"
        )

    def spec_of(self, kind: Kind, one_response: bool) -> EvalSpec:
        chain = ChainConfig(
            rounds=2,
            round="reflect" if kind.reflects and one_response else "retry",
            feedback="self" if kind.reflects and not one_response else "none",
            gated=kind.gated,
            max_tokens=self.words,
        )
        return self.spec.model_copy(update={"chain": chain})

    def folder(self, arm: str, kind: Kind) -> Path:
        return self.out / f"{arm}-{kind.name}"

    def compared(self) -> dict[str, Any]:
        """Both arms' figures, and the second answers of trained against those of base."""
        tests = []
        for kind in self.kinds:
            differ = ONE_RESPONSE if self.one_response and kind.reflects else ()
            options = Options(differ=tuple(f"spec.{key}" for key in differ))
            found = compare(self.folder("base", kind), self.folder("trained", kind), options)
            tests.append({**kind._asdict(), **{key: found.get(key) for key in COMPARED}})
            self.ui.line(f"second answers, {kind.name}: {found['sentence']}")
        return {"schema": "retries/1", "arms": self.figures, "comparisons": tests}
