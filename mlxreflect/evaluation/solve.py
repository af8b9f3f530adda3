"""`mlxreflect solve`: one question, thought over again in rounds; and the chain, for a person."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.padding import Padding
from rich.rule import Rule

from mlxreflect.config.recipe import fetch_templates, load_recipe
from mlxreflect.config.schema import EvalSpec
from mlxreflect.config.toml import apply_settings, bundled, validate
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Problem, Verdict, make_problem
from mlxreflect.core.ui import plain
from mlxreflect.critics import CRITICS
from mlxreflect.critics.ledger import Ledger
from mlxreflect.evaluation.chains import GIVEN, Rounds, answer_of, check_chain, figures, open_critic
from mlxreflect.graders import Grade
from mlxreflect.models.policy import Policy
from mlxreflect.prompts.parsing import parse_response
from mlxreflect.tasks import TASKS, find_rules, get_task
from mlxreflect.tasks.base import Task

# "numbers 3 5 7, target 22" as a problem shows itself, or without these words, the target last.
PUZZLE = re.compile(
    r"(?:numbers?\b:?\s*)?((?:[0-9]{1,6}[\s,;]+){2,20})(?:target\b:?\s*)?([0-9]{1,6})\.?",
    re.IGNORECASE,
)


def ungraded(problem: Problem, text: str, tags: str, style: str) -> Grade:
    """Grades the format alone: nobody knows which answer is right."""
    parsed = parse_response(text, tags, style)
    return Grade(parsed.answer, Verdict(False, parsed.format_ok, parsed.reason, "nobody"))


# Any question in words. It has no data and no place among the tasks that are evaluated.
QUESTION = Task(
    name="question",
    load=lambda config, part, seed: [],
    instruction=lambda problem: "Answer the question.",
    show=lambda problem: str(problem.fields["question"]),
    gold=lambda problem: None,
    rules={"none": ungraded},
    from_row=lambda row: make_problem("question", {"question": str(row.get("question", ""))}),
)


# ---- the question --------------------------------------------------------------------------------


def fields_of(text: str, task: str) -> dict[str, Any]:
    """Returns what the text of a question means to a task. Raises UserError."""
    if task == "arithmetic":
        return {"expression": text}
    if task == "last_letter":
        return {"words": text.split()}
    if task != "countdown":
        return {"question": text}
    found = PUZZLE.fullmatch(text)
    if not found:
        raise UserError(
            f"{text[:60]!r} is no Countdown question",
            'write "numbers 3 4 5, target 35", or leave --task out',
        )
    numbers = [int(digits) for digits in re.findall("[0-9]+", found[1])]
    return {"numbers": numbers, "target": int(found[2])}


def read_question(text: str, task: Task) -> Problem:
    """Returns the problem that was typed: words, or a JSON object with the task's own fields.

    Raises UserError for what the task cannot ask.
    """
    if not text.strip():
        raise UserError("the question is empty", 'write mlxreflect solve "What is 2 + 3?"')
    if task.name != QUESTION.name and text.lstrip().startswith("{"):
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"the question is no JSON object: {error}", "correct it") from None
    else:
        fields = fields_of(text.strip(), task.name)
    if task.checkable:
        return task.from_row(fields)
    problem = make_problem(task.name, fields)
    try:
        task.show(problem)
        task.instruction(problem)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"the task {task.name} cannot ask this: {error}",
            'leave --task out, or give its fields as JSON, such as \'{"question": "…"}\'',
        ) from None
    return problem


# ---- the settings --------------------------------------------------------------------------------


def solve_spec(
    task: Task, critic: str, rounds: int, integrate: bool, settings: Sequence[str]
) -> EvalSpec:
    """Returns the spec of a question: defaults for one sample, and any key over them.

    critic: none, self, a provider's name, or a recipe whose [critic] it is. Raises UserError.
    """
    chain: dict[str, Any] = {"rounds": rounds, "integrate": integrate, "gated": task.checkable}
    if critic in ("none", "self"):
        chain["feedback"] = critic
    elif critic in CRITICS:
        chain["critic"] = {"provider": critic}
    elif critic in bundled("recipes") or critic.endswith(".toml"):
        chain["critic"] = load_recipe(critic).critic.tier("basic").model_dump()
    else:
        raise UserError(
            f"--critic {critic}: no critic of that name",
            f"give none, self, {', '.join(CRITICS)}, or a recipe: {', '.join(bundled('recipes'))}",
        )
    if critic == "none":
        chain["round"] = "resample"
    name = task.name if task.name != QUESTION.name else "jsonl"
    tree = {"task": {"name": name}, "temperature": 0.7, "chain": chain}
    fetch_templates(apply_settings(tree, settings), Path("solve"))
    spec = validate(EvalSpec, tree, Path("solve"), settings)
    if spec.chain.rounds > 1:
        check_chain(spec)
    if spec.chain.gated and not task.checkable:
        raise UserError(
            "chain.gated = true: no grader can tell which answer to this question is right",
            "leave it out: then the critic ends the chain where it finds nothing wrong",
        )
    solves = spec.chain.feedback == "critic" and spec.chain.critic.provider == "solver"
    if solves and spec.chain.rounds > 1 and task.solver is None:
        what = "a question in words" if task is QUESTION else f"the task {task.name}"
        able = " or ".join(name for name, known in TASKS.items() if known.solver)
        raise UserError(
            f"--critic solver: {what} has no exact solver",
            f"add --task {able}, or give another critic: --critic self",
        )
    return spec


# ---- the answer ----------------------------------------------------------------------------------


def solve(
    policy: Policy, task: Task, problem: Problem, spec: EvalSpec, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Returns the chain of one question. correct: None where nobody can tell."""
    grader = find_rules(task, spec.rules)[1] if task.checkable else ungraded
    with ExitStack() as stack:
        critic = open_critic(policy, spec, task.name, Ledger(), stack)
        rounds = Rounds(policy, task, spec, grader, critic)
        (chain,) = rounds.play([problem], (spec.seed,), progress)
    final = answer_of(chain, spec.chain)
    right = final.verdict.correct if final.verdict and task.checkable else None
    took = figures([chain], spec.chain)
    keys = ("samples_mean", "tokens_generated", "tokens_prefilled", "tokens_critic", "failed")
    return {
        "schema": "solve/1", "task": task.name, "question": task.show(problem),
        "answer": final.parsed, "correct": right, "stopped": chain.stopped or "rounds",
        "turn": final.index,
        "took": {key.removesuffix("_mean"): took[key] for key in keys},
        "turns": [asdict(turn) for turn in chain.turns],
    }  # fmt: skip


def find_task(name: str) -> Task:
    return get_task(name) if name else QUESTION


# ---- for a person --------------------------------------------------------------------------------


def render_solved(result: dict[str, Any]) -> Iterator[RenderableType]:
    """Yields the chain turn by turn, then the answer; every text is escaped."""
    yield Padding(plain(result["question"]), (0, 2))
    for row in result["turns"]:
        yield from render_turn(row, graded=result["correct"] is not None)
    why = {"grader": "the grader is satisfied", "critic": "nothing is found wrong",
           "rounds": "the rounds are used up"}[result["stopped"]]  # fmt: skip
    known = {True: ", which is right", False: ", which is not right", None: ""}[result["correct"]]
    took = result["took"]
    yield Rule(style="dim")
    none = result["answer"] is None
    yield plain("no answer was given" if none else f"answer: {result['answer']}{known}", "bold")
    answers, critic = took["samples"], took["tokens_critic"]
    critics = f", and a critic wrote {critic:.0f}" if critic else ""
    yield plain(
        f"{why}; the model wrote {took['tokens_generated']:.0f} tokens in {answers:.0f} "
        f"answer{'s' if answers != 1 else ''}{critics}"
    )


def render_turn(turn: dict[str, Any], *, graded: bool) -> Iterator[RenderableType]:
    """turn: a Turn's keys. What was prefilled is dim."""
    who = "" if turn["role"] == "attempt" else f" by {turn['actor']}"
    yield Rule(plain(f"{turn['index'] + 1}. {turn['role']}{who}"), align="left", style="dim")
    if turn["error"] is not None:
        yield Padding(plain(f"the call failed: {turn['error']}", "red"), (0, 2))
        return
    end = turn["spans"].get(GIVEN, [0, 0])[1]
    yield Padding(plain(turn["text"][:end], "dim") + plain(turn["text"][end:]), (0, 2))
    if graded and (verdict := turn["verdict"]):
        right = verdict["correct"]
        yield plain("right" if right else verdict["reason"], "green" if right else "yellow")
