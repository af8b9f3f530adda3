"""The arms of a run, each evaluated on the same held-out problems."""

from collections.abc import Sequence
from typing import Any

from mlxreflect.answers import Answers
from mlxreflect.evaluate import evaluate
from mlxreflect.policy import Policy
from mlxreflect.records import Problem
from mlxreflect.results import warnings
from mlxreflect.retries import Retries
from mlxreflect.run import Run
from mlxreflect.tables import EvalSpec
from mlxreflect.tasks.base import Task
from mlxreflect.train.network import Arrays
from mlxreflect.ui import Ui


class Measuring:
    """Evaluates the policy as it is. spec: what every arm is asked."""

    def __init__(
        self, run: Run, exam: tuple[Policy, Task, Sequence[Problem]], spec: EvalSpec, ui: Ui
    ) -> None:
        self.run, self.exam, self.spec, self.ui = run, exam, spec, ui
        self.answers = Answers.open(run.recipe.eval.cache)
        self.retries = Retries(run.recipe, run.path / "retries", exam, spec, ui)

    def whole(self, arm: str, weights: str, reflector: Arrays | None = None) -> dict[str, Any]:
        """All that the recipe asks of base and trained; returns the results of their answers.

        weights: the adapter's hash, "" for none. reflector: what reflects, if not the policy.
        """
        results = self.arm(arm, weights)
        if self.run.recipe.eval.direct:
            self.arm(f"{arm}-direct", weights, directly(self.spec))
        self.retries.measure(arm, weights, reflector)
        return results

    def arm(self, arm: str, weights: str, spec: EvalSpec | None = None) -> dict[str, Any]:
        """One evaluation, below the run's eval/."""
        policy, task, problems = self.exam
        spec = spec or self.spec
        with self.ui.progress(f"evaluating {arm}", len(problems) * spec.samples) as bar:
            results = evaluate(
                policy, task, problems, spec, self.run.path / "eval" / arm,
                adapter=weights, answers=self.answers, advance=bar.advance,
            )  # fmt: skip
        for said in [*(self.answers.report() if self.answers else []), *warnings(results)]:
            self.ui.line(f"{arm}: {said}")
        return results

    def second_answers(self) -> None:
        """Write what the retries of base and trained came to, where the recipe asks for it."""
        if self.retries.wanted:
            self.run.write_json("retries.json", self.retries.told())


def directly(spec: EvalSpec) -> EvalSpec:
    """The same questions, asked for the answer alone."""
    prompt = spec.prompt.model_copy(update={"style": "direct"})
    return spec.model_copy(update={"prompt": prompt})
