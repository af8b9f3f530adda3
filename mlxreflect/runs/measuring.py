"""The arms of a run, each evaluated on the same held-out problems."""

from collections.abc import Sequence
from typing import Any

from mlxreflect.config.methods import method_of
from mlxreflect.config.schema import EvalSpec, Recipe
from mlxreflect.core.records import Problem
from mlxreflect.core.ui import Ui
from mlxreflect.evaluation.chains import check_chain
from mlxreflect.evaluation.evaluate import problem_set
from mlxreflect.evaluation.generators import Answers, LocalModel
from mlxreflect.evaluation.runner import generator_of, measure
from mlxreflect.models.policy import Policy
from mlxreflect.runs.folder import RunFolder
from mlxreflect.tasks.base import Task
from mlxreflect.train.network import Arrays


class Measuring:
    """Evaluates the policy as it is. spec: what every arm is asked."""

    def __init__(
        self,
        run: RunFolder[Recipe],
        exam: tuple[Policy, Task, Sequence[Problem]],
        spec: EvalSpec,
        ui: Ui,
    ) -> None:
        self.run, self.exam, self.spec, self.ui = run, exam, spec, ui
        self.answers = Answers.open(run.config.eval.cache)
        check_measured(run.config, spec)  # now, and not when all has been learned
        out = run.path / "retries"
        self.retries = method_of(run.config).second(run.config, out, exam, spec, ui)

    def whole(self, arm: str, weights: str, reflector: Arrays | None = None) -> dict[str, Any]:
        """All that the recipe asks of base and trained; returns the results of their answers.

        weights: the adapter's hash, "" for none. reflector: what reflects, if not the policy.
        """
        results = self.arm(arm, weights)
        if self.run.config.eval.direct:
            self.arm(f"{arm}-direct", weights, directly(self.spec))
        if self.retries:
            self.retries.measure(arm, weights, reflector)
        return results

    def arm(self, arm: str, weights: str, spec: EvalSpec | None = None) -> dict[str, Any]:
        """One evaluation, below the run's eval/."""
        policy, task, problems = self.exam
        asked = problem_set(task, spec or self.spec, problems)
        generator = generator_of(LocalModel(policy, weights), asked, self.answers)
        folder = self.run.path / "eval" / arm
        return measure(generator, folder, self.ui, f"evaluating {arm}", f"{arm}: ")

    def second_answers(self) -> None:
        """Write what the retries of base and trained came to, where the recipe asks for it."""
        if self.retries:
            self.run.write_json("retries.json", self.retries.results())


def check_measured(recipe: Recipe, spec: EvalSpec) -> None:
    """Raises UserError for an evaluation that the recipe cannot end in."""
    for asked in (spec, directly(spec)) if recipe.eval.direct else (spec,):
        check_chain(asked)
    method_of(recipe).check_evaluation(recipe, spec)


def directly(spec: EvalSpec) -> EvalSpec:
    """The same questions, asked for the answer alone."""
    prompt = spec.prompt.model_copy(update={"style": "direct"})
    return spec.model_copy(update={"prompt": prompt})
