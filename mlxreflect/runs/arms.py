"""The evaluations of a run: its arms, and looks at dev problems while it learns.

Base and trained answer every evaluation that the recipe names, arms on the way the headline.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from mlxreflect.config.recipe import dev_spec
from mlxreflect.config.schema import REMOTE, EvalSpec, Recipe, method_of
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import read_json, read_rows, remove, replace_folder
from mlxreflect.core.records import Problem
from mlxreflect.core.ui import Ui
from mlxreflect.critics.ledger import BudgetReached
from mlxreflect.evaluation.arms import unique_rows
from mlxreflect.evaluation.chains import check_chain
from mlxreflect.evaluation.compare import Options, compare_all
from mlxreflect.evaluation.contamination import Cleaned
from mlxreflect.evaluation.evaluate import problem_set
from mlxreflect.evaluation.generators import Answers, LocalGenerator, LocalModel
from mlxreflect.evaluation.judge import Judging, find_judge
from mlxreflect.evaluation.quick import LARGEST
from mlxreflect.evaluation.runner import generator_of, measure
from mlxreflect.methods.learning import ADAPTER
from mlxreflect.models.load import device_name, weights_hash
from mlxreflect.models.policy import Policy
from mlxreflect.models.template import with_tags
from mlxreflect.runs.figures import ONLY_BASE, Figures
from mlxreflect.runs.folder import RunFolder
from mlxreflect.stats import evidence, power_sentence
from mlxreflect.tasks import find_task, is_open
from mlxreflect.train.lora import save_adapter
from mlxreflect.train.network import Arrays
from mlxreflect.train.trainer import Trainer, load_parameters

Specs = Mapping[str, EvalSpec]  # by name, the headline first
Problems = Mapping[str, Sequence[Problem]]  # of each


class RunArms:
    """Evaluates the policy as it is, as an arm of a run.

    Of several specs an arm's folder holds one each. judging: of open questions. seconds: that
    `evaluate_all` last took. Raises UserError for a judge that cannot be reached.
    """

    def __init__(
        self, run: RunFolder[Recipe], policy: Policy, specs: Specs, held_out: Problems, ui: Ui,
        judging: Judging,
    ) -> None:  # fmt: skip
        self.run, self.policy, self.specs, self.held_out, self.ui = run, policy, specs, held_out, ui
        self.judging = judging
        for spec in specs.values():
            config = find_judge(spec, usual=judging.usual) if is_open(spec.task) else None
            if config and config.provider in REMOTE:  # a local one is loaded when it is needed
                judging.critic(config)
        self.answers = Answers.open(run.config.eval.cache)
        check_arms(run.config, specs)  # now, and not when all has been learned
        self.headline, spec = next(iter(specs.items()))
        exam = policy, find_task(spec.task), held_out[self.headline]
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
        asked = problem_set(find_task(spec.task), spec, self.held_out[name])
        generator = generator_of(LocalModel(self.policy, weights), asked, self.answers)
        folder, told = self.run.path / "eval" / arm, arm
        if len(self.specs) > 1:
            folder, told = folder / name, f"{arm}, {name}"
        forget_other(folder, weights)
        return measure(generator, folder, self.ui, told)

    def judge(self) -> dict[str, str]:
        """Has the answers to open questions judged, of each arm against base.

        Returns why that failed, and how to have it done later; {} where it has not.
        """
        if any(is_open(spec.task) for spec in self.specs.values()):
            differ = ("prompt.style",) if self.run.config.eval.direct else ()
            again = self.run.again
            try:
                compare_all([self.run.path], Options(differ=differ, judge=self.judging))
            except BudgetReached as error:
                return {"why": error.message, "hint": error.hint}
            except UserError as error:
                return {"why": error.message, "hint": f"see that the judge answers, then: {again}"}
        return {}


def forget_other(folder: Path, weights: str) -> None:
    """Removes answers of another policy, as of a wave that a resumed run has done again.

    With another train.part_tokens, or on another machine, it may end with other weights.
    """
    setup = folder / "setup.json"
    if setup.is_file() and read_json(setup).get("adapter") != weights:
        remove(folder)


def check_arms(recipe: Recipe, specs: Specs) -> None:
    """Raises UserError for an evaluation that the recipe cannot end in."""
    headline = next(iter(specs.values()))
    for spec in (*specs.values(), *([directly(headline)] if recipe.eval.direct else [])):
        if spec.chain.rounds > 1:
            check_chain(spec)
        if is_open(spec.task) and not find_judge(spec, usual=recipe.critic.tier("judge")):
            raise UserError(
                "eval.spec asks open questions, and no critic is named that could judge answers",
                "name one: --set critic.judge.provider=ollama --set critic.judge.model=NAME",
            )
    method_of(recipe).check_evaluation(recipe, headline)


def directly(spec: EvalSpec) -> EvalSpec:
    """Returns the spec with the same problems, asked for the answer alone."""
    prompt = spec.prompt.model_copy(update={"style": "direct"})
    return spec.model_copy(update={"prompt": prompt})


def describe_run(
    run: RunFolder[Recipe], specs: Specs, held_out: Problems, dev: int, cleaned: Cleaned
) -> dict[str, object]:
    """Returns the names and values that a run begins with. dev: problems it is watched by."""
    recipe, method = run.config, method_of(run.config)
    counts = {name: len(problems) for name, problems in held_out.items()}
    first, n = next(iter(counts.items()))
    other = specs[first].task.name
    asked = f"{n}" if other == recipe.task.name else f"{n} of the task {other}"
    if len(counts) > 1:
        asked = ", ".join(f"{n} ({name})" for name, n in counts.items())
    return {
        "recipe": recipe.name, "policy": recipe.policy.model,
        "critic": method.critic_names(recipe), "problems": len(cleaned.problems),
        "held out": asked, "power": power_sentence(n),
        **({"looks at": f"{dev} dev problems, every {recipe.eval.dev_every} waves"} if dev else {}),
        "device": device_name(), **run.hosts.shown(),
        "decontaminated": cleaned.sentence(), "run": str(run.path),
    }  # fmt: skip


# ---- looks on the way ----------------------------------------------------------------------------

BEST = f"{ADAPTER}best"  # its folder in the run


class Watch:
    """Looks at dev problems while a run learns: how the policy does, which one was the best.

    Looks are rows of metrics.jsonl, of the kind "dev", and samples below the run's dev/. Each is of
    another policy, so look number k needs evidence of k(k + 1)/eval.dev_stop: over all of them a
    policy as good as base is called worse no more often than that. A look ends as soon as it is
    decided so. rows: the looks so far.
    """

    def __init__(
        self, run: RunFolder[Recipe], policy: Policy, trainer: Trainer, problems: Sequence[Problem],
        answers: Answers | None, ui: Ui,
    ) -> None:  # fmt: skip
        self.run, self.policy, self.trainer, self.answers, self.ui = (
            run, policy, trainer, answers, ui
        )  # fmt: skip
        self.config, spec = run.config.eval, with_tags(dev_spec(run.config), policy.template)
        self.asked = problem_set(find_task(spec.task), spec, problems)
        self.rows: list[Figures] = []
        self.base: dict[str, bool] = {}  # problem → whether base is right

    def begin(self, adapter: dict[str, Any]) -> None:
        """Asks the policy as it is: base, and the best until a look is better.

        Looks of before a stop are read. adapter: the settings of the one that is kept.
        """
        if not self.config.dev_every:
            return
        self.start = weights_hash(self.trainer.trainable())
        self.answer("base", "", Counter())
        rows = unique_rows(self.run.path / "dev" / "base" / "samples.jsonl")
        self.base = {row["problem_id"]: row["correct"] for row in rows}
        metrics = self.run.path / "metrics.jsonl"
        self.rows = [row for row in read_rows(metrics) if row["kind"] == "dev"]
        if self.best() is None:
            write_adapter(self.run, BEST, self.trainer.trainable(), adapter)

    def answer(self, name: str, weights: str, counts: Counter[float]) -> Figures:
        """Asks the policy as it is. counts: of its difference from base, filled problem by problem.

        Once it is known to be worse, the rest is not asked.
        """

        def enough(rows: list[Figures]) -> bool:
            if self.base:
                counts.update(row["correct"] - self.base[row["problem_id"]] for row in rows)
            return self.is_worse(counts)

        spec = self.asked.spec
        model = LocalModel(self.policy, weights)
        generator = LocalGenerator(model, self.asked, self.answers, at_once=spec.batch)
        folder = self.run.path / "dev" / name
        forget_other(folder, weights)
        return measure(generator, folder, self.ui, f"dev, {name}", enough)

    def is_worse(self, counts: Counter[float]) -> bool:
        if not self.config.dev_stop or counts[1] >= counts[-1]:
            return False
        return evidence(counts) >= self.needed()

    def needed(self) -> float:
        """Returns the evidence that the look under way needs."""
        k = len(self.rows) + 1
        return k * (k + 1) / self.config.dev_stop

    def look(self, epoch: int, wave: int, *, last: bool = False) -> list[Figures]:
        """Returns a row for metrics.jsonl where a look is due after the wave, else none.

        One is due every eval.dev_every waves, and after the last of the run, unless nothing has
        been learned since the one before.
        """
        every = self.config.dev_every
        if not every or (not last and (wave + 1) % every):
            return []
        begun, weights = time.monotonic(), weights_hash(self.trainer.trainable())
        if weights == (self.rows[-1]["adapter"] if self.rows else self.start):
            return []
        counts = Counter[float]()
        found = self.answer(f"wave-{wave:05d}", weights, counts)
        n, right, worse = found["n"], found["accuracy"], self.is_worse(counts)
        so_far = self.best()
        least = so_far["accuracy"] if so_far else fmean(self.base.values())
        best = not worse and right > least
        row = {
            "schema": "metrics/1", "epoch": epoch, "wave": wave, "kind": "dev", "n": n,
            "accuracy": right, "base": (round(right * n) - counts[1] + counts[-1]) / n,
            "gains": counts[1], "losses": counts[-1], "e_value": min(evidence(counts), LARGEST),
            "worse": worse, "best": best, "adapter": weights,
            "seconds": round(time.monotonic() - begun, 3),
        }  # fmt: skip
        praise = ", the best so far" if best else ""
        self.ui.line(
            f"dev after wave {wave + 1}: {right:.1%} of {n} right, base {row['base']:.1%} "
            f"({counts[1]} gained, {counts[-1]} lost){praise}"
        )
        if worse:
            self.ui.line(
                f"no more problems: the policy is worse than base on dev problems (E = "
                f"{row['e_value']:.3g} reaches {self.needed():.3g}, with eval.dev_stop = "
                f"{self.config.dev_stop:g})"
            )
        self.rows.append(row)
        return [row]

    def best(self) -> Figures | None:
        """Returns the best look; None where none was better than base."""
        return next((row for row in reversed(self.rows) if row["best"]), None)

    def stops(self) -> bool:
        """Returns true where a look found the policy worse than base."""
        return any(row["worse"] for row in self.rows)

    def keep(self, adapter: dict[str, Any]) -> None:
        """Writes the policy beside the run's commits where the last look is of it, and the best.

        After a commit, and before a resumed run goes on from it. adapter: its settings.
        """
        arrays, last = self.trainer.trainable(), self.rows[-1] if self.rows else None
        if last and last["best"] and weights_hash(arrays) == last["adapter"]:
            write_adapter(self.run, BEST, arrays, adapter)

    def choose(self, held: dict[str, Arrays]) -> None:
        """Makes the best policy the one that is evaluated, where eval.trained says so.

        That is base where no look was better. held: what is written beside it gets the last one.
        Raises UserError where it is lost.
        """
        if self.config.trained != "best" or not self.rows:
            return
        best, folder = self.best(), self.run.path / BEST
        said = ONLY_BASE
        if best:
            said = f"trained is the policy after wave {best['wave'] + 1}, the best on dev "
            said += f"problems: {best['accuracy']:.1%} of {best['n']} right"
        self.ui.line(said)
        held[f"{ADAPTER}last"] = dict(self.trainer.trainable())
        file = folder / "adapters.safetensors"
        if file.is_file():
            load_parameters(file, self.trainer)
        if weights_hash(self.trainer.trainable()) != (best["adapter"] if best else self.start):
            raise UserError(
                f"{folder} is not the policy that was the best on dev problems",
                "bring that folder back, or begin a new run",
            )


def ask_probes(policy: Policy, recipe: Recipe, epoch: int, wave: int | None) -> list[Figures]:
    """Returns rows for probes.jsonl: how the policy, as it is, answers the recipe's probes.

    wave: that it was trained in; None before the first.
    """
    asked, config = recipe.probes, recipe.policy
    if not asked.prompts:
        return []
    before = [{"role": "system", "content": asked.system}] if asked.system else []
    answers = policy.generate(
        [policy.encode([*before, {"role": "user", "content": text}]) for text in asked.prompts],
        temperature=0.0,
        top_p=1.0,
        max_new_tokens=config.max_new_tokens,
        batch=config.batch,
        seed=(recipe.seed, "probes"),
        sampling=config,
    )
    return [
        {"schema": "probe/1", "epoch": epoch, "wave": wave, "probe": i, "prompt": text,
         "text": one.text, "tokens": len(one.token_ids), "finish_reason": one.finish_reason}
        for i, (text, one) in enumerate(zip(asked.prompts, answers, strict=True))
    ]  # fmt: skip


def write_adapter(
    run: RunFolder[Recipe], name: str, arrays: Arrays, adapter: dict[str, Any]
) -> None:
    """Writes weights as a folder of the run, whole or not at all. adapter: their settings."""
    found = dict(sorted(arrays.items()))  # in one order, also where they were read from a file
    model = run.config.policy.model
    replace_folder(
        run.path / name, partial(save_adapter, arrays=found, config=adapter, model=model)
    )
