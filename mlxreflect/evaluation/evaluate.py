"""Evaluation: a spec × a model → setup.json, problems.jsonl, samples.jsonl and results.json.

Problems are answered in fixed chunks, each appended whole. In another batch a sequence's numbers
round otherwise, and a tie may fall the other way; because a chunk is always generated together, an
evaluation that was killed and continued gives the same bytes as one that was not.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mlxreflect.config.recipe import fetch_templates
from mlxreflect.config.schema import EvalSpec
from mlxreflect.config.toml import apply_settings, bundled, find_toml, read_toml, validate
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import append_rows
from mlxreflect.core.records import Messages, Problem, Sample
from mlxreflect.core.seeds import rng_for
from mlxreflect.evaluation.answers import Answers, digest, policy_identity
from mlxreflect.evaluation.arms import (
    describe_setup,
    open_arm,
    sample_row,
    short_hash,
    whole_chunks,
    write_results,
)
from mlxreflect.graders.base import Grader
from mlxreflect.models.policy import Completion, Policy
from mlxreflect.tasks import TASKS, find_rules
from mlxreflect.tasks.base import Task, ask, load_shots

# Times the batch: what is generated together, and so the most that a kill loses. Fewer would lose
# less, but leave more places empty while a chunk's longest answers are finished.
CHUNK = 4


def eval_problems(task: Task, spec: EvalSpec) -> list[Problem]:
    """The spec's problems: its part of the task, in an order its seed shuffles, cut to limit.

    The held-out problems of a generated task are the same for every seed, in another order.
    """
    config = spec.task
    if task.generated and not config.limit and spec.limit:
        config = config.model_copy(update={"limit": spec.limit})
    problems = task.load(config, spec.part, spec.seed)
    rng_for("eval", spec.seed).shuffle(problems)
    return problems[: spec.limit] if spec.limit else problems


def ask_all(
    task: Task, problems: Sequence[Problem], spec: EvalSpec, shots: Sequence[Problem]
) -> list[Messages | str]:
    """What each problem's prompt says: messages of a chat, or raw text to be completed."""
    return [ask(task, problem, spec, shots) for problem in problems]


def evaluate(
    policy: Policy,
    task: Task,
    problems: Sequence[Problem],
    spec: EvalSpec,
    out: Path,
    *,
    adapter: str = "",
    quantize: int = 0,
    answers: Answers | None = None,
    advance: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Answer and grade what is not yet in `out`; returns (and writes) the results.

    adapter, quantize: as they are to be recorded; the policy has them already. answers: those kept
    of other evaluations, where the same chunk need not be generated again.
    Raises UserError where `out` holds samples of another evaluation, naming the changed key.
    """
    if spec.chain.rounds > 1:
        raise UserError(
            f"{spec.name or 'the spec'} has [chain], which only `mlxreflect eval` and `run` play",
            "evaluate with another spec here",
        )
    rules, grader = find_rules(task, spec.rules, spec.task.answer_type)
    shots = load_shots(task, spec)
    asked = ask_all(task, problems, spec, shots)
    prompts = [policy.encode(each) for each in asked]
    setup = describe_setup(policy, spec, problems, asked, adapter)
    setup |= {"quantize": quantize} if quantize else {}
    path = open_arm(out, {**setup, "token_hash": short_hash(prompts)}, problems, shots)
    size = max(1, spec.batch * CHUNK // spec.samples)
    done = whole_chunks(path, size * spec.samples, len(problems) * spec.samples)
    identity = policy_identity(policy) if answers and done < len(problems) * spec.samples else ""
    if advance:
        advance(done)
    for start in range(done // spec.samples, len(problems), size):
        chunk = slice(start, start + size)
        seed = ("eval", spec.seed, start)
        completions = answer(policy, prompts[chunk], spec, seed, identity, answers, advance)
        pairs = [(p, j) for p in problems[chunk] for j in range(spec.samples)]
        samples = [
            grade_sample(grader, problem, j, completion, spec)
            for (problem, j), completion in zip(pairs, completions, strict=True)
        ]
        append_rows(path, map(sample_row, samples))
    return write_results(out, setup, rules, eval=spec.name or spec.task.name)


def answer(
    policy: Policy,
    prompts: Sequence[list[int]],
    spec: EvalSpec,
    seed: tuple[str | int, ...],
    identity: str,
    answers: Answers | None,
    advance: Callable[[int], None] | None,
) -> list[Completion]:
    """A chunk's completions, `spec.samples` of each prompt in turn: those kept, or new ones.

    identity: of the policy; with `answers` only.
    """
    decoding = [spec.temperature, spec.top_p, spec.max_new_tokens, spec.batch, spec.samples]
    key = digest([identity, decoding, spec.stop, seed, prompts])
    if answers and (kept := answers.get(key, len(prompts) * spec.samples)):
        if advance:
            advance(len(kept))
        lengths = [len(prompt) for prompt in prompts for _ in range(spec.samples)]
        return [
            policy.completion(ids, reason, length, spec.stop)
            for (ids, reason), length in zip(kept, lengths, strict=True)
        ]
    completions = policy.generate(
        prompts,
        temperature=spec.temperature,
        top_p=spec.top_p,
        max_new_tokens=spec.max_new_tokens,
        batch=spec.batch,
        seed=seed,
        samples=spec.samples,
        stop=spec.stop,
        advance=advance,
    )
    if answers:
        answers.put(key, completions)
    return completions


def grade_sample(
    grader: Grader,
    problem: Problem,
    index: int,
    completion: Completion,
    spec: EvalSpec,
    *,
    tokens: int | None = None,
) -> Sample:
    """tokens: how many there are, where the completion does not hold them."""
    grade = grader(problem, completion.text, spec.prompt.tags, spec.prompt.style)
    return Sample(
        task=problem.task,
        problem_id=problem.id,
        sample=index,
        text=completion.text,
        token_ids=completion.token_ids,
        finish_reason=completion.finish_reason,
        parsed=grade.parsed,
        correct=grade.verdict.correct,
        format_ok=grade.verdict.format_ok,
        score=grade.score,
        tokens=tokens,
    )


def find_spec(name: str, limit: int, source: str, settings: Sequence[str]) -> EvalSpec:
    """A bundled spec, a file, or a bare task; with the command line's settings on top."""
    tree: dict[str, Any]
    if name in TASKS and name not in bundled("evals"):
        path, tree = Path(name), {"task": {"name": name}}
    else:
        path = find_toml(name, "evals")
        tree = read_toml(path)
    if source and isinstance(asked := tree.get("task"), dict):  # else `validate` says so
        asked["source"], tree["part"] = source, "all"
    if limit:
        tree["limit"] = limit
    tree.setdefault("name", path.stem)
    fetch_templates(apply_settings(tree, settings), path)
    return validate(EvalSpec, tree, path, settings)
