"""A conversation with what a run has learned: base and trained are asked the same.

They take turns on the same weights, token by token: the layers of a LoRA adapter are put on for
trained and taken off for base. A line is asked as the run's evaluation asks it, and graded where
the answer is known.
"""

import json
import re
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mlxreflect.config.recipe import eval_specs
from mlxreflect.config.schema import EvalSpec, Job, PolicyConfig, TaskConfig
from mlxreflect.config.toml import read_toml, validate
from mlxreflect.core.errors import UserError, reworded
from mlxreflect.core.journal import Commits
from mlxreflect.core.records import Messages, Problem, make_problem
from mlxreflect.critics import REMOTE
from mlxreflect.critics.client import Client
from mlxreflect.evaluation.arms import problems_of, slug
from mlxreflect.evaluation.evaluate import eval_problems, find_spec
from mlxreflect.evaluation.generators import (
    OPTIONS,
    LocalModel,
    ServedModel,
    attempt_call,
    client_config,
)
from mlxreflect.evaluation.runner import Entry, Weights, asked_by, trained_on, unique
from mlxreflect.evaluation.solve import QUESTION, read_question
from mlxreflect.graders import Grade
from mlxreflect.models.load import adapter_layers, find_adapter, limit_memory
from mlxreflect.models.policy import Completion
from mlxreflect.models.template import with_tags
from mlxreflect.report.show import recipe_of
from mlxreflect.tasks import find_rules, find_task, is_open
from mlxreflect.tasks.base import Task, ask, load_shots

STOPPED = "stopped"  # finish reason of an answer that Ctrl-C ended
PLAIN = EvalSpec(task=TaskConfig(name="jsonl"))  # how an adapter answers that no run belongs to
DRAW_S = 0.1  # seconds between two looks at an answer that grows


@dataclass(frozen=True)
class Subject:
    """A model with and without its adapter, and how it is asked.

    task: None where lines are asked as they are. problems: the file of the held-out ones, if there
    is one. note: what to know of the adapter.
    """

    base: PolicyConfig
    spec: EvalSpec
    adapter: Path = Path()
    task: Task | None = None
    problems: Path | None = None
    note: str = ""


def find_subject(path: Path, model: str = "", spec: str = "") -> Subject:
    """Returns what a run, a training or an adapter's folder holds.

    An adapter inside of a run is asked as the run asks. model: in place of the one that it was
    trained on. spec: an evaluation, to ask as it does. Raises UserError for a folder that is none
    of them, or in which nothing has been learned yet.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such folder", "give a run: mlxreflect chat runs/latest")
    places = [path, *path.absolute().parents[:2]]
    run = next((place for place in places if (place / "run.json").is_file()), None)
    job = next((place for place in places if (place / "job.json").is_file()), None)
    found, prefix = None, "wave"
    if run:
        found = subject_of_run(run)
    elif job:
        found, prefix = subject_of_job(job), "step"
    if path == run and not found:
        raise UserError(
            f"{path} was made by another version of mlxreflect",
            f"evaluate it: mlxreflect eval SPEC --adapter {shlex.quote(str(path))} --base",
        )
    adapter, note = last_adapter(path, prefix) if path in (run, job) else (path, "")
    adapter = find_adapter(str(adapter), "RUN_DIR")
    if not found:
        found = Subject(PolicyConfig(model=model or trained_on(str(adapter))), PLAIN)
    base = found.base.model_copy(update={"model": model or found.base.model})
    found = replace(found, base=base, adapter=adapter, note=note)
    if not spec:
        return found
    asked = find_spec(spec, 0, "", [])
    return replace(found, spec=asked, task=find_task(asked.task), problems=None)


def subject_of_run(run: Path) -> Subject | None:
    """Returns how a run's evaluation asks; None of a run of another version."""
    recipe = recipe_of(run)
    if not recipe:
        return None
    (name, spec), *_ = eval_specs(recipe).items()
    files = [run / "eval" / "base" / place / "problems.jsonl" for place in ("", name)]
    problems = next((file for file in files if file.is_file()), None)
    return Subject(recipe.policy, spec, task=find_task(spec.task), problems=problems)


def subject_of_job(job: Path) -> Subject:
    config = validate(Job, read_toml(job / "job.toml"), job / "job.toml").policy
    kept = {"thinking": config.thinking, "template": config.template}
    base = PolicyConfig.model_validate(config.model_dump())
    return Subject(base, PLAIN.model_copy(update=kept))


def last_adapter(run: Path, prefix: str) -> tuple[Path, str]:
    """Returns a run's adapter, or its last commit's with a note that the run is not finished."""
    if (run / "adapter").is_dir():
        return run / "adapter", ""
    commits = Commits(run, prefix, ())
    learned = [commit for commit in commits.all() if commits.number(commit)]
    if not learned:
        raise UserError(
            f"{run} has learned nothing yet: it has no adapter",
            f"continue it: mlxreflect resume {shlex.quote(str(run))}",
        )
    last = learned[-1]
    return last, f"note: {run} is not finished; trained is its last commit, {last.name}"


@dataclass(frozen=True)
class Question:
    """Holds what is asked. known: the grader can tell which answer is right."""

    task: Task
    problem: Problem
    known: bool = False

    @property
    def text(self) -> str:
        return self.task.show(self.problem)


@dataclass(frozen=True)
class Answer:
    """One model's answer.

    said: what of it a conversation goes on with, all but the model's own thought. error: why there
    is no answer.
    """

    name: str
    text: str = ""
    said: str = ""
    tokens: int | None = None
    finish_reason: str = ""
    error: str = ""
    grade: Grade | None = None

    def stopped(self) -> bool:
        return self.finish_reason == STOPPED

    def verdict(self) -> str:
        """Returns a line that says how the answer ended, and what the grader says of it."""
        ends = {"length": "cut off", STOPPED: "stopped"}
        parts = [f"no answer: {self.error}" if self.error else ends.get(self.finish_reason, "")]
        if self.grade:
            verdict, parsed = self.grade.verdict, self.grade.parsed
            parts.append("right" if verdict.correct else f"wrong: {verdict.reason}")
            parts.append("no answer is read" if parsed is None else f"read as {parsed}")
        return " ".join("; ".join(filter(None, parts)).split())

    def row(self) -> dict[str, Any]:
        row = {"name": self.name, "text": self.text, "tokens": self.tokens,
               "finish_reason": self.finish_reason, "error": self.error or None}  # fmt: skip
        if self.grade:
            verdict = self.grade.verdict
            row |= {"parsed": self.grade.parsed, "correct": verdict.correct,
                    "format_ok": verdict.format_ok, "reason": verdict.reason}  # fmt: skip
        return row


class Chat:
    """A conversation with several models, which all see the same questions and their own answers.

    served: models behind a server that answer too. say: is told what a person should know.
    """

    def __init__(
        self, subject: Subject, served: Sequence[ServedModel], say: Callable[[str], None]
    ) -> None:
        trained = subject.base.model_copy(update={"adapter": str(subject.adapter)})
        pair = asked_by([Entry("base", subject.base), Entry("trained", trained)], subject.spec)
        self.arms = unique([*pair, *(Entry(slug(one.name), one) for one in served)])
        self.subject, self.task, self.spec = subject, subject.task, subject.spec
        self.weights, self.next, self.rows = Weights(), 0, list[dict[str, Any]]()
        self.last: tuple[Question, list[Answer]] | None = None
        self.forget()
        limit_memory()
        for one in served:
            with self.client(one, []) as client:
                client.preflight()
        # Of each its layers, where they are all that base and trained do not share.
        self.layers = dict[str, Any]()
        for entry in reversed(pair):  # base last, for it answers first
            model = self.local(entry)
            model.policy.say = say
            if model.puts_on:  # an adapter of another model is refused now
                own = adapter_layers(model.policy, model.puts_on)
                self.layers = {one.name: each for one, each in zip(pair[::-1], own, strict=True)}
        self.spec = with_tags(self.spec, model.policy.template)
        for note in model.policy.template.notes_for(self.spec.prompt.tags):
            say(note)
        self.shots = load_shots(self.task, self.spec) if self.task else []

    def local(self, entry: Entry) -> LocalModel:
        model = self.weights.model_of(entry)
        assert isinstance(model, LocalModel)
        return model

    def forget(self) -> None:
        """Begins a new conversation."""
        self.history: dict[str, Messages] = {entry.name: [] for entry in self.arms}

    @cached_property
    def problems(self) -> list[Problem]:
        """The held-out problems, in their order. Raises UserError where there are none."""
        if self.subject.problems:
            return problems_of(self.subject.problems)
        if not self.task:
            raise UserError("there is no task to take a problem of", "name one: --spec TASK")
        return eval_problems(self.task, self.spec)

    @cached_property
    def held_out(self) -> dict[str, Problem]:
        """The held-out problems that a run kept, by what they show."""
        show = self.task.show if self.task else str
        return {show(one): one for one in self.problems} if self.subject.problems else {}

    def read(self, line: str) -> Question:
        """Returns what a line asks: a problem of the task where it is one, else a question."""
        known = not is_open(self.spec.task)
        if not self.task:
            return Question(QUESTION, read_question(line, QUESTION))
        if line in self.held_out:
            return Question(self.task, self.held_out[line], known)
        try:
            if self.task.name == "jsonl":
                fields = {"question": line, "answer_type": self.spec.task.answer_type}
                return Question(self.task, make_problem("jsonl", fields))
            return Question(self.task, read_question(line, self.task), self.task.checkable)
        except UserError:  # such as small talk, where the task is Countdown
            return Question(QUESTION, read_question(line, QUESTION))

    def draw(self, number: str) -> Question:
        """Returns the held-out problem of that number, from 1 on; "": the next one."""
        count, task, at = len(self.problems), self.task, self.next
        if number:
            at = int(number) - 1 if re.fullmatch("[0-9]{1,8}", number) else -1
        if not 0 <= at < count or not task:
            raise UserError(f"/problem {number}: no such problem", f"give a number up to {count}")
        self.next = (at + 1) % count
        return Question(task, self.problems[at], not is_open(self.spec.task))

    def prompt(self, name: str, question: Question) -> Messages | str:
        """Returns what a model is asked: as the evaluation does, or the next turn."""
        if not self.task:
            return [*self.history[name], {"role": "user", "content": question.text}]
        shots = self.shots if question.task is self.task else []
        asked = ask(question.task, question.problem, self.spec, shots)
        past = self.history[name]
        return [*past, asked[-1]] if past and not isinstance(asked, str) else asked

    def answers(
        self, entries: Sequence[Entry], question: Question, show: Callable[[Answer], None]
    ) -> list[Answer]:
        """Returns graded answers. show: is given each as it grows.

        Base and trained write a token in turn, models behind a server follow. Ctrl-C stops those
        that are at it, and the others are not asked.
        """
        local = [entry for entry in entries if not isinstance(entry.model, ServedModel)]
        found = list[Answer]()
        for group in [local] if self.layers else [[entry] for entry in local]:
            if group and not any(map(Answer.stopped, found)):
                found += self.ask_policies(group, question, show)
        for entry in entries:
            if isinstance(entry.model, ServedModel) and not any(map(Answer.stopped, found)):
                answer = self.ask_server(entry.name, entry.model, question)
                found.append(self.graded(answer, question))
                show(found[-1])
        return found

    def graded(self, answer: Answer, question: Question) -> Answer:
        if not question.known or answer.error or answer.stopped():
            return answer
        prompt, kind = self.spec.prompt, self.spec.task.answer_type
        _, grader = find_rules(question.task, self.spec.rules, kind)
        return replace(
            answer, grade=grader(question.problem, answer.text, prompt.tags, prompt.style)
        )

    def ask_policies(
        self, entries: Sequence[Entry], question: Question, show: Callable[[Answer], None]
    ) -> list[Answer]:
        policy, spec = self.local(entries[0]).policy, self.spec
        seed = ("chat", spec.seed, len(self.rows))
        prompts = {one.name: policy.encode(self.prompt(one.name, question)) for one in entries}
        writing = {
            name: policy.steps(
                [prompt], temperature=spec.temperature, top_p=spec.top_p,
                max_new_tokens=spec.max_new_tokens, batch=1, seed=seed, stop=spec.stop,
                sampling=spec,
            )
            for name, prompt in prompts.items()
        }  # fmt: skip
        heard, found = {name: list[int]() for name in writing}, dict[str, Answer]()

        def end(name: str, made: Completion) -> None:
            said = policy.template.shape.split(made.text)[1] or made.text
            answer = Answer(name, made.text, said, len(made.token_ids), made.finish_reason)
            found[name] = self.graded(answer, question)
            show(found[name])

        def so_far(name: str, reason: str) -> Completion:
            text = policy.completion(heard[name], reason, prompts[name], spec.stop).text
            return Completion(text, heard[name], reason, len(prompts[name]))

        shown = 0.0
        try:
            while True:
                for name in [name for name in writing if name not in found]:
                    if name in self.layers:
                        policy.model.update_modules(self.layers[name])
                    try:
                        _, heard[name] = next(writing[name])
                    except StopIteration as ended:
                        end(name, *ended.value)
                if len(found) == len(writing):
                    break
                if time.monotonic() - shown >= DRAW_S:
                    for name in writing.keys() - found.keys():
                        show(Answer(name, so_far(name, "").text))
                    shown = time.monotonic()
        except KeyboardInterrupt:
            for name in [name for name in writing if name not in found]:
                writing[name].close()
                end(name, so_far(name, STOPPED))
        return [found[name] for name in writing]

    def ask_server(self, name: str, model: ServedModel, question: Question) -> Answer:
        asked = self.prompt(name, question)
        try:
            with self.client(model, asked) as client:
                (reply,) = client.ask([attempt_call(question.problem, 0, asked, self.spec)])
        except KeyboardInterrupt:
            return Answer(name, finish_reason=STOPPED)
        return Answer(
            name, reply.text, reply.text, reply.usage.get("completion"),
            reply.finish_reason or "", reply.error or "",
        )  # fmt: skip

    @contextmanager
    def client(self, model: ServedModel, asked: Messages | str) -> Iterator[Client]:
        with reworded(OPTIONS):
            config = client_config(model, self.spec, [asked])
            config = config.model_copy(update={"cache": "off"})
            with closing(Client(config, "chat", REMOTE[config.provider](config))) as client:
                yield client

    def go_on(self, question: Question, answers: Sequence[Answer]) -> None:
        """Makes answers a part of the conversation."""
        for answer in answers:
            asked = self.prompt(answer.name, question)
            if not isinstance(asked, str) and not answer.error:
                reply = {"role": "assistant", "content": answer.said}
                self.history[answer.name] = [*asked, reply]

    def keep(self, question: Question, answers: list[Answer]) -> dict[str, Any]:
        """Returns an exchange as a row, which /save writes."""
        self.last = question, answers
        row = {
            "schema": "chat/1", "question": question.text, "task": question.task.name,
            "problem_id": question.problem.id if question.known else None,
            "gold": question.task.gold(question.problem) if question.known else None,
            "answers": [answer.row() for answer in answers],
        }  # fmt: skip
        self.rows.append(row)
        return row

    def told(self, right: str) -> tuple[Question, list[Answer]]:
        """Returns the last question with its right answer, and its answers graded by it.

        Raises UserError where nothing was asked, or where the task cannot be told.
        """
        if not self.last or self.last[0].task is QUESTION or is_open(self.spec.task):
            raise UserError("/answer: no question that the run's task grades", "ask one first")
        question, answers = self.last
        if not right:
            raise UserError("/answer: the answer is missing", "write it: /answer 42")
        fields = {**question.problem.fields, "gold": right}
        question = replace(question, problem=question.task.from_row(fields), known=True)
        self.rows.pop()
        return question, [self.graded(answer, question) for answer in answers]

    def save(self, name: str) -> str:
        """Writes all exchanges as JSON lines, never over a file; returns the file's name."""
        numbered = (f"chat-{i}.jsonl" for i in range(1, 10_000))
        path = Path(name or next(one for one in numbered if not Path(one).exists()))
        lines = [json.dumps(row, ensure_ascii=True) + "\n" for row in self.rows]
        if not lines:
            raise UserError("there is nothing to keep yet", "ask something first")
        try:
            with path.expanduser().open("x", encoding="utf-8") as file:
                file.writelines(lines)
        except FileExistsError:
            raise UserError(f"{path} is there already", "give another name") from None
        except (OSError, ValueError) as error:
            fault = getattr(error, "strerror", None) or str(error)
            raise UserError(f"{path} cannot be written: {fault}", "give another name") from None
        return str(path)
