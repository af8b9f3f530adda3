"""The hostile corpus: at least 150 cases a grader, their verdicts in any thread, and in time."""

import statistics
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec

import pytest
from support.hostile import CORPORA, Corpus

from mlxreflect.core.errors import UserError
from mlxreflect.graders.base import Grader
from mlxreflect.graders.latex_worker import equal
from mlxreflect.tasks import TASKS, find_rules

FAST = [n if n != "math" else pytest.param(n, marks=pytest.mark.slow) for n in CORPORA]
SHORT = 20_000  # characters of a case that the fast tests grade
LIMIT_S = 0.1
MOST_SHOWN = 4000


def grader_of(corpus: Corpus) -> Callable[[str], tuple[bool, str | None]]:
    task = TASKS[corpus.task]
    problem = task.from_row(corpus.row)

    def grade(text: str) -> tuple[bool, str | None]:
        found = task.grade(problem, text, "think", "thinking")
        return found.verdict.correct, found.parsed

    return grade


@pytest.fixture(autouse=True)
def math_extra(request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params.get("name")
    if name == "math" and find_spec("math_verify") is None:
        pytest.skip("the extra math is not installed")


@pytest.mark.parametrize("name", CORPORA)
def test_there_are_at_least_150_cases(name: str) -> None:
    cases = CORPORA[name].all()
    assert len({text for text, _ in cases}) >= 150
    verdicts = [verdict for _, verdict in cases]
    assert verdicts.count(True) >= 40 and verdicts.count(False) >= 80
    assert verdicts.count(None) <= 25  # of most cases the verdict is known


def faults(corpus: Corpus, longest: int) -> list[str]:
    grade, found = grader_of(corpus), []
    for text, verdict in corpus.all():
        if len(text) > longest:
            continue
        correct, parsed = grade(text)
        if verdict is not None and correct is not verdict:
            found.append(f"{text[:80]!r} is {correct}, read as {parsed!r:.80}")
        if len(parsed or "") > MOST_SHOWN:
            found.append(f"{text[:80]!r}: shows {len(parsed or '')} characters")
    return found


@pytest.mark.parametrize("name", FAST)
def test_every_verdict_in_both_kinds_of_thread(name: str) -> None:
    assert faults(CORPORA[name], SHORT) == []
    found: list[list[str]] = []
    thread = threading.Thread(target=lambda: found.append(faults(CORPORA[name], SHORT)))
    thread.start()
    thread.join(300)
    assert found == [[]]  # it ended, raised nothing and found the same


@pytest.mark.slow
@pytest.mark.parametrize("name", CORPORA)
def test_floods_too(name: str) -> None:
    assert faults(CORPORA[name], 10**7) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", CORPORA)
def test_no_case_takes_a_tenth_of_a_second(name: str) -> None:
    """Processor time of the thread, median of three; what waits for the worker waits asleep."""
    corpus = CORPORA[name]
    for rules, grade in TASKS[corpus.task].rules.items():
        try:
            find_rules(TASKS[corpus.task], rules, corpus.row.get("answer_type", ""))
        except UserError:
            continue
        slowest = slowest_case(corpus, grade)
        print(f"{name} {rules}: slowest {slowest[0] * 1000:.1f} ms on {slowest[1][:40]!r}")
        assert slowest[0] < LIMIT_S, slowest[1][:200]


def slowest_case(corpus: Corpus, grade: Grader) -> tuple[float, str]:
    problem = TASKS[corpus.task].from_row(corpus.row)
    slowest = (0.0, "")
    for text, _ in corpus.all():
        times = []
        for _ in range(3):
            start = time.thread_time()
            grade(problem, text, "think", "thinking")
            times.append(time.thread_time() - start)
        slowest = max(slowest, (statistics.median(times), text))
    return slowest


@pytest.mark.slow
@pytest.mark.parametrize("name", ["math"])
def test_few_hostile_answers_reach_the_worker(name: str) -> None:
    """What does is decided there: none of these is still open when the time is over."""
    equal.cache_clear()
    grade = grader_of(CORPORA[name])
    for text, _ in CORPORA[name].all():
        grade(text)
    assert equal.cache_info().currsize < 20
    problem = TASKS["math500"].from_row(CORPORA[name].row)
    reasons = {TASKS["math500"].grade(problem, text, "think", "thinking").verdict.reason
               for text, _ in CORPORA[name].all()}  # fmt: skip
    assert not [reason for reason in reasons if reason.startswith("not decided")]
