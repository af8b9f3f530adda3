"""The arms of a run: base and trained on every evaluation that the recipe names, others on one."""

import time
from collections.abc import Mapping, Sequence

from mlxreflect.config.schema import EvalSpec, Recipe, method_of
from mlxreflect.core.records import Problem
from mlxreflect.core.ui import Ui
from mlxreflect.evaluation.chains import check_chain
from mlxreflect.evaluation.evaluate import problem_set
from mlxreflect.evaluation.generators import Answers, LocalModel
from mlxreflect.evaluation.runner import generator_of, measure
from mlxreflect.models.policy import Policy
from mlxreflect.runs.figures import Figures
from mlxreflect.runs.folder import RunFolder
from mlxreflect.tasks import TASKS
from mlxreflect.train.network import Arrays

Specs = Mapping[str, EvalSpec]  # by name, the headline first
Problems = Mapping[str, Sequence[Problem]]  # of each


class RunArms:
    """Evaluates the policy as it is, as an arm of a run.

    Of several specs an arm's folder holds one each. seconds: that `evaluate_all` last took.
    """

    def __init__(
        self, run: RunFolder[Recipe], policy: Policy, specs: Specs, held_out: Problems, ui: Ui
    ) -> None:
        self.run, self.policy, self.specs, self.held_out, self.ui = run, policy, specs, held_out, ui
        self.answers = Answers.open(run.config.eval.cache)
        check_arms(run.config, specs)  # now, and not when all has been learned
        self.headline, spec = next(iter(specs.items()))
        exam = policy, TASKS[spec.task.name], held_out[self.headline]
        out = run.path / "retries"
        self.retries = method_of(run.config).second(run.config, out, exam, spec, ui)

    def evaluate_all(
        self, arm: str, weights: str, reflector: Arrays | None = None
    ) -> dict[str, Figures]:
        """Does all that the recipe asks of base and trained; returns each spec's results.

        weights: the adapter's hash, "" for none. reflector: what reflects, if not the policy.
        """
        begun = time.monotonic()
        results = {name: self.evaluate(arm, weights, name) for name in self.specs}
        if self.run.config.eval.direct:
            self.evaluate(f"{arm}-direct", weights, direct=True)
        if self.retries:
            self.retries.measure(arm, weights, reflector)
        self.seconds = time.monotonic() - begun
        return results

    def evaluate(self, arm: str, weights: str, name: str = "", *, direct: bool = False) -> Figures:
        """Makes one evaluation, below the run's eval/, and returns its results.

        name: of the spec, "" for the headline. direct: the answer alone is asked for.
        """
        name = name or self.headline
        spec = directly(self.specs[name]) if direct else self.specs[name]
        asked = problem_set(TASKS[spec.task.name], spec, self.held_out[name])
        generator = generator_of(LocalModel(self.policy, weights), asked, self.answers)
        folder = self.run.path / "eval" / arm
        if len(self.specs) == 1:
            return measure(generator, folder, self.ui, arm)
        return measure(generator, folder / name, self.ui, f"{arm}, {name}")


def check_arms(recipe: Recipe, specs: Specs) -> None:
    """Raises UserError for an evaluation that the recipe cannot end in."""
    headline = next(iter(specs.values()))
    for spec in (*specs.values(), *([directly(headline)] if recipe.eval.direct else [])):
        if spec.chain.rounds > 1:
            check_chain(spec)
    method_of(recipe).check_evaluation(recipe, headline)


def directly(spec: EvalSpec) -> EvalSpec:
    """Returns the spec with the same problems, asked for the answer alone."""
    prompt = spec.prompt.model_copy(update={"style": "direct"})
    return spec.model_copy(update={"prompt": prompt})


def describe_held_out(held_out: Problems, specs: Specs, task: str) -> str:
    """Returns how many problems are held out, and of what, where it is not the run's task alone."""
    counts = {name: len(problems) for name, problems in held_out.items()}
    if len(counts) > 1:
        return ", ".join(f"{n} ({name})" for name, n in counts.items())
    ((name, n),) = counts.items()
    other = specs[name].task.name
    return f"{n}" if other == task else f"{n} of the task {other}"
