"""Remote critics: every wrong attempt goes its own way, and no byte tells in which order."""

import signal
import subprocess
import threading
import time

import pytest
from support.fake_ollama import FakeOllama
from support.methods import Critic, Remote, play, rows
from support.methods import make_remote as make
from support.run_outputs import outputs_of_run, run_process
from support.teacher import Teacher
from support.whole_runs import arguments, command, finish

from mlxreflect.core.errors import UserError
from mlxreflect.critics.client import Client
from mlxreflect.critics.local import LocalCritic, SelfCritic
from mlxreflect.critics.solver import SolverCritic
from mlxreflect.methods.session import Workers


def watch_samples(strategy, events, before=lambda: None):
    """Call `before` each shard is sampled, and add ("sampled", role, how many) to events after."""
    original = strategy.rollouts.sample

    def sample(problems, role, *rest):
        before()
        drawn = original(problems, role, *rest)
        events.append(("sampled", role, len(problems)))
        return drawn

    strategy.rollouts.sample = sample


# ---- overlap -------------------------------------------------------------------------------------


def test_the_critic_is_asked_while_the_next_shard_is_sampled():
    """Sampling of the second shard only ends when the critic has been asked about the first."""
    asked, events = threading.Event(), []
    strategy = make(Remote(lambda call: asked.set()), problems=4)

    def before():
        if events:
            assert asked.wait(30), "no call about the first shard came while the second was sampled"

    watch_samples(strategy, events, before)
    play(strategy)
    assert [n for _, _, n in events] == [2, 2]


def test_a_slow_reply_holds_up_no_other_attempt():
    """The first critique comes only after all the others have been rewritten."""
    rewritten, others = [], threading.Event()

    def gate(call):
        if call.role == "rewrite":
            rewritten.append(call.problem.id)
            if len(rewritten) == 4:
                others.set()
        elif call.problem.id == first:
            assert others.wait(30)

    strategy = make(Remote(gate), critic={"concurrency": 2})
    wave = strategy.next_wave()
    first = wave.problems[0]
    strategy.play(wave)
    assert rewritten[-1] == first


@pytest.mark.slow
@pytest.mark.parametrize("shard,expected", [(2, [2, 2, 1]), (0, [2, 2, 1]), (9, [5])])
def test_waves_are_cut_by_index_and_failures_go_on_at_once(shard, expected):
    events = []
    strategy = make(
        Remote(lambda call: events.append((call.role, call.attempt.split("/")[2]))),
        r3={"verifications": 2, "shard": shard},
    )
    watch_samples(strategy, events)
    wave = strategy.next_wave()
    played = strategy.play(wave)
    sampled = [event for event in events if event[0] == "sampled"]
    assert sampled == [("sampled", role, n) for role in ("attempt", "verify", "verify")
                       for n in expected]  # fmt: skip
    assert [e.problem.id for e in played.episodes] == wave.problems
    assert all(e.turns[0].role == "attempt" for e in played.episodes)
    # Nothing follows the last verification.
    assert {event[1] for event in events if event[0] == "critique"} == {"0", "1"}
    first = events.index(("critique", "1"))
    assert first < len(events) - 1 - events[::-1].index(("rewrite", "1"))


def test_samples_of_different_shards_are_different():
    """Two shards of the same problem would otherwise get the same random stream."""
    strategy = make(Remote(), wrong=False, r3={"shard": 1})
    wave = strategy.next_wave()
    seeds = []
    original = strategy.learning.policy.generate

    def generate(prompts, *, seed, first, **rest):
        seeds.append((*seed, first))
        return original(prompts, seed=seed, first=first, **rest)

    strategy.learning.policy.generate = generate
    strategy.play(wave)
    assert len(set(seeds)) == len(seeds) == 5


# ---- order ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("own", [{}, {"pairs": "both", "attempts": 3}])
def test_workers_and_lock_step_make_the_same_of_a_wave(own):
    made = []
    for waits in (True, False):
        critic = Remote(bad_rewrites=1)
        critic.waits = waits
        tables = {
            "policy": {"batch": 16},
            "r3": {"wave": 6, "verifications": 2, "sft_mode": 3, **own},
        }
        strategy = make(critic, problems=12, wrong=False, **tables)
        played = play(strategy)
        assert bool(strategy.running.workers is None) == (not waits)
        assert any(e.outcome.status == "solved" for one in played for e in one.episodes)
        losses = [(step.objective, step.loss) for one in played for step in one.steps]
        made.append((rows(played), losses, strategy.state))
    assert made[0] == made[1]


@pytest.mark.parametrize("side", ["feedback", "rewriter"])
def test_where_the_policy_takes_part_rounds_stay_in_lock_step(side):
    critic = Remote()
    strategy = make(critic, r3={side: "self"})
    own = strategy.session.critics["self"]
    play(strategy)
    assert strategy.running.workers is None
    assert {len(critic.calls), len(own.calls)} == {5}
    assert {call.role for call in own.calls} == {"critique" if side == "feedback" else "rewrite"}


RUN = {
    "task.limit": 6, "r3.wave": 5, "r3.shard": 2, "r3.epochs": 1, "r3.rewrites": 2,
    "r3.verifications": 2, "r3.sft_mode": 3, "r3.bucket_every": 6, "r3.judge": True,
    "train.batch": 2, "train.sft.scale_failed": 0.5, "eval.limit": 4, "policy.batch": 4,
    "critic.cache": "off", "critic.provider": "ollama", "critic.model": "critic",
    "critic.concurrency": 4,
}  # fmt: skip
KEPT = ("episodes.jsonl", "examples.jsonl", "preference.jsonl", "sft.jsonl",
        "adapter/adapters.safetensors", "eval/trained/samples.jsonl")  # fmt: skip


@pytest.mark.slow
def test_no_byte_depends_on_which_reply_came_first(tmp_path):
    found, orders = [], []
    for delays in (1, 2):
        with FakeOllama(reply=Teacher(delays, 0.05)) as server:
            folder = tmp_path / str(delays)
            outputs_of_run("quickstart", {**RUN, "critic.base_url": server.url}, folder)
            orders.append([body["options"]["seed"] for body in server.chats])
            assert server.most_at_once > 1
        found.append([(folder / name).read_bytes() for name in KEPT])
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1]
    assert found[0] == found[1]
    assert all(found[0])


# ---- what goes wrong -----------------------------------------------------------------------------


def test_a_failure_of_one_job_stops_the_others():
    """The first call raises while the others are out; they send nothing after it."""
    calls, failed = [], threading.Event()

    def gate(call):
        with lock:
            calls.append(call.role)
            first = len(calls) == 1
        if first:
            failed.set()
            raise UserError("the budget is spent", "raise it")
        failed.wait(30)
        while not strategy.running.workers.stopped.is_set():
            time.sleep(0.001)

    lock = threading.Lock()
    strategy = make(Remote(gate), problems=9, policy={"batch": 16})
    with pytest.raises(UserError, match="budget"):
        play(strategy)
    time.sleep(0.1)
    assert "rewrite" not in calls
    assert len(calls) <= 3  # those that were out at the time


@pytest.mark.slow
def test_counts_are_those_of_all_threads():
    strategy = make(Remote(), problems=40, critic={"concurrency": 16}, policy={"batch": 64})
    (played,) = play(strategy)
    assert played.figures["critic"]["calls"] == 80


def test_leaving_early_ends_the_jobs():
    began, go, steps = threading.Event(), threading.Event(), []

    def job():
        for _ in range(3):
            began.set()
            go.wait(30)
            steps.append(1)
            yield

    with pytest.raises(KeyboardInterrupt), Workers(1) as workers:
        for _ in range(3):
            workers.start(job())
        began.wait(30)
        raise KeyboardInterrupt
    go.set()
    time.sleep(0.1)
    assert len(steps) <= 1  # what was under way


def test_jobs_take_turns():
    """Breadth first: at the end single calls are left over, no whole jobs."""
    steps = []

    def job(name):
        for number in range(3):
            steps.append((number, name))
            yield

    with Workers(1) as workers:
        for name in "abc":
            workers.start(job(name))
        workers.wait(lambda text: None)
    assert steps == sorted(steps)


@pytest.mark.slow
def test_a_wave_that_was_stopped_ends_with_the_same_bytes(tmp_path):
    """Ctrl-C while some of its replies are on disk; the others come later, in another order."""
    found = []
    teacher, stuck, seen = Teacher(1, 0.02), threading.Event(), []

    def reply(body):
        seen.append(body)
        if not found and len(seen) > 4:
            stuck.wait()
        return teacher(body)

    for name in ("stopped", "whole"):
        with FakeOllama(reply=reply) as server:
            run, replies = tmp_path / name, str(tmp_path / f"{name}.sqlite")
            settings = {**RUN, "critic.base_url": server.url, "critic.cache": replies}
            if name == "whole":
                run_process("quickstart", settings, run)
            else:
                call = command(*arguments(run, settings))
                with subprocess.Popen(call, stderr=subprocess.PIPE, text=True) as process:
                    while len(seen) < 5 and process.poll() is None:
                        time.sleep(0.02)
                    begun = time.monotonic()
                    process.send_signal(signal.SIGINT)
                    _, err = process.communicate(timeout=60)
                assert time.monotonic() - begun < 10
                assert process.returncode == 130, err
                assert f"go on with: mlxreflect resume {run}" in err
                assert "Traceback" not in err
                stuck.set()
                finish(run)
        found.append([(run / name).read_bytes() for name in KEPT])
    assert found[0] == found[1]


def test_critics_on_servers_are_waited_for_and_those_of_this_process_are_not():
    assert Client.waits
    assert not (SolverCritic.waits or LocalCritic.waits or SelfCritic.waits)
    with make(Critic()).session.workers("basic", {"basic"}) as workers:
        assert workers is None
