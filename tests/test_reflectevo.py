"""ReflectEvo: its pool, its data sets from one hand-made file, and whole runs of it."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from support.kill_driver import REFLECTING
from support.methods import COUNTDOWN, Critic, frame_of, play
from support.run_outputs import outputs_by_settings, run_process
from support.whole_runs import finish

from mlxreflect.config.recipe import eval_specs, load_recipe
from mlxreflect.config.schema import EvalSpec, Recipe, method_of
from mlxreflect.config.toml import flatten
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import read_rows
from mlxreflect.core.records import (
    Episode,
    Example,
    Outcome,
    Turn,
    Verdict,
    episode_from_row,
    make_problem,
)
from mlxreflect.core.seeds import rng_for
from mlxreflect.core.ui import Ui
from mlxreflect.critics.base import Reply
from mlxreflect.critics.local import SelfCritic
from mlxreflect.evaluation.chains import Chain, Rounds
from mlxreflect.methods import reflectevo_data as reflected
from mlxreflect.methods.base import AT_MOST, LIKELY
from mlxreflect.methods.reflectevo import (
    ARMS,
    METHOD,
    RETRIES,
    ReflectEvoConfig,
    Retries,
    counted,
    role_prompt,
    seconds,
)
from mlxreflect.methods.reflectevo_data import (
    CLOSINGS,
    DEPTHS,
    ERRORS,
    POOL,
    Stored,
    draw_instructions,
    fault,
    shortened,
)
from mlxreflect.models.load import TINY, load_policy
from mlxreflect.prompts.roles import quote
from mlxreflect.runs.arms import check_arms
from mlxreflect.train.lora import attach_lora
from mlxreflect.train.trainer import Trainer

# ---- the pool, and reflections in a file ---------------------------------------------------------


def test_the_pool_has_thirty_two_instructions():
    assert len(POOL) == len(set(POOL.values())) == 32
    assert (len(DEPTHS), len(ERRORS), len(CLOSINGS)) == (2, 8, 2)
    for parts in (DEPTHS, ERRORS, CLOSINGS):
        for name, text in parts.items():
            with_it = {key for key, whole in POOL.items() if text in whole}
            assert with_it == {key for key in POOL if name in key.split("-")}
            assert len(with_it) == 32 // len(parts)


def test_instructions_are_drawn_without_one_coming_twice():
    drawn = draw_instructions([], 32, rng_for("a"))
    assert sorted(drawn) == sorted(POOL)
    assert (
        drawn == draw_instructions([], 32, rng_for("a")) != draw_instructions([], 32, rng_for("b"))
    )
    some = ["skim-goal-steps", "trace-logic-outline"]
    assert Counter(draw_instructions(some, 5, rng_for("a"))).most_common(1)[0][1] == 3
    assert set(draw_instructions(some, 2, rng_for("a"))) == set(some)


@pytest.mark.parametrize(("text", "ended", "left"), [
    ("one two three", "stop", "one two three"), ("one two three four", "stop", ""),
    ("One. Two three!  Four five", "stop", "One. Two three!"), ("One.\nTwo thr", "length", "One."),
    ("It is 3.5 or (so.) Four", "stop", ""), ("It adds 1. Two three.", "stop", ""),
    ("one two", "length", ""), ("", "length", ""), (" One (two.) Three", "length", " One (two.)"),
])  # fmt: skip
def test_a_reflection_ends_with_a_whole_sentence_within_the_words(text, ended, left):
    assert shortened(text, 3, ended) == left


@pytest.mark.parametrize(("text", "said"), [
    ("It adds.", ""), ("", "no sentence ends within 3 words"),
    ("so <answer>7</answer>", "it gives an answer"),
])  # fmt: skip
def test_reflections_of_no_use(text, said):
    assert fault(text, 3) == said


def test_stored_reflections_by_id_or_question(tmp_path, monkeypatch):
    path = tmp_path / "kept.jsonl"
    rows = [{"id": "a", "reflections": "one"}, {"id": "a", "reflections": ["two", "three"]},
            {"question": " What? ", "reflections": ["four"], "more": 1}]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stored = Stored(str(path))
    assert stored.of("a", "What?") == ["one", "two", "three"]
    assert stored.of("b", "What?\n") == ["four"]
    assert stored.of("b", "Who?") == []
    before = stored.digest
    path.write_text(path.read_text().replace("four", "five"))
    assert Stored(str(path)).digest != before
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Stored("~/kept.jsonl").of("a", "") == ["one", "two", "three"]
    with pytest.raises(UserError, match=f"{tmp_path}/none.jsonl: no such file"):
        Stored("~/none.jsonl")


@pytest.mark.parametrize(
    "row",
    [{"id": "a"}, {"reflections": "x"}, {"id": 1, "reflections": "x"},
     {"id": "a", "reflections": [" "]}, {"id": "a", "reflections": 3}],
)  # fmt: skip
def test_a_row_that_holds_no_reflection_is_named(row, tmp_path):
    path = tmp_path / "kept.jsonl"
    path.write_text('{"id": "a", "reflections": "x"}\n' + json.dumps(row) + "\n")
    with pytest.raises(UserError, match="line 2: no problem with reflections"):
        Stored(str(path))


# ---- the data sets, from one hand-made file ------------------------------------------------------


def ask(problem, text):
    return [{"role": "user", "content": f"{problem.id}: what is wrong with {text}?"}]


def made(builder):
    path = Path(__file__).parent / "data" / "reflectevo_episodes.jsonl"
    return [e for row in read_rows(path) for e in builder(episode_from_row(row))]


def at(problem, *turns):
    return {"problem": problem, "epoch": 1, "wave": 3, "turns": list(turns)}


def sft(asked, text, ids, *source):
    prompt = [{"role": "user", "content": asked}]
    return Example("sft", prompt, completion=text, completion_ids=ids, source=at(*source))


def pair(asked, chosen, rejected, *source):
    """Of reflections, whose number is also their first token."""
    prompt, numbers = [{"role": "user", "content": asked}], (chosen, rejected)
    texts, ids = [f"reflection {n}" for n in numbers], [[n, 9] for n in numbers]
    return Example("preference", prompt, *texts, None, *ids, source=at(*source))


WRONG_36, WRONG_35 = "aaaa: what is wrong with 36?", "cccc: what is wrong with 35?"
HEARD = "6 * 7? your attempt; <feedback>\nreflection {}\n</feedback>"
DATA = {
    "reflect_and_retry": [
        sft(WRONG_36, "reflection 1\nforty-two (6)", None, "aaaa", 1, 6),
        sft(WRONG_36, "reflection 5\nforty-two (8)", None, "aaaa", 5, 8),
        sft(WRONG_35, "reflection 1\nforty-two (3)", None, "cccc", 1, 3),
        sft(WRONG_35, "reflection 2\nforty-two (4)", None, "cccc", 2, 4),
    ],
    "right_reflections": [
        sft(WRONG_36, "reflection 1", [1, 9], "aaaa", 1),
        sft(WRONG_36, "reflection 5", [5, 9], "aaaa", 5),
        sft(WRONG_35, "reflection 1", [1, 9], "cccc", 1),
        sft(WRONG_35, "reflection 2", [2, 9], "cccc", 2),
    ],
    "right_retries": [
        sft(HEARD.format(1), "forty-two (6)", [6, 9], "aaaa", 6),
        sft(HEARD.format(5), "forty-two (8)", [8, 9], "aaaa", 8),
        sft(HEARD.format(1), "forty-two (3)", [3, 9], "cccc", 3),
        sft(HEARD.format(2), "forty-two (4)", [4, 9], "cccc", 4),
    ],
    "right_over_wrong": [
        pair(WRONG_36, 1, 2, "aaaa", 1, 2), pair(WRONG_36, 5, 2, "aaaa", 5, 2),
    ],
    # B when it came second and A when it came first; where A is said twice there is a tie.
    "preferred_reflections": [pair(WRONG_36, 5, 1, "aaaa", 5, 1)],
}  # fmt: skip


@pytest.mark.parametrize("builder", DATA)
def test_data_sets_of_a_hand_made_file(builder):
    """None of which holds the answer, or the instruction that asked to reflect."""
    assert made(lambda e: getattr(reflected, builder)(e, ask)) == DATA[builder]


def test_what_the_judge_compares_in_a_hand_made_file():
    compared = [[turn.text for turn in both] for both in made(reflected.comparisons)]
    assert compared == [["reflection 1", "reflection 5"], ["reflection 1", "reflection 2"]]


def odd(*turns):
    """An episode of turns given as (role, parent, text, right or what was said)."""
    made = []
    for index, (role, parent, text, right) in enumerate(turns):
        verdict = Verdict(right, True, "") if isinstance(right, bool) else None
        said = right if isinstance(right, str) else None
        made.append(Turn(index, parent, role, "x", [], text, verdict=verdict, parsed=said))
    problem = make_problem("jsonl", {"question": "q", "answer_type": "number"}, "4")
    return Episode("reflectevo", 1, 0, problem, made, Outcome(False, None, "discarded"))


FAILED = ("attempt", None, "5", False)


def texts(found):
    return [(e.chosen, e.rejected) if e.kind == "preference" else e.completion for e in found]


# Episodes with the rows of each data set; those that are not named have none.
ODD = {
    "a right and a wrong retry lead to a right answer": (
        odd(FAILED, ("reflection", 0, "r1", None), ("retry", 1, "4", True),
            ("retry", 1, "6", False), ("retry", 1, "four", True),
            ("reflection", 0, "r2", None), ("retry", 5, "7", False)),
        {"reflect_and_retry": ["r1\n4", "r1\nfour"], "right_reflections": ["r1"],
         "right_retries": ["4", "four"], "right_over_wrong": [("r1", "r2")]},
    ),
    "the same words are not compared": (
        odd(FAILED, ("reflection", 0, "same", None), ("retry", 1, "4", True),
            ("reflection", 0, "same", None), ("retry", 3, "6", False),
            ("reflection", 0, "same", None), ("retry", 5, "4", True),
            ("prefer", 1, "", "A"), ("prefer", 5, "", "B")),
        {"reflect_and_retry": ["same\n4"] * 2, "right_reflections": ["same"],
         "right_retries": ["4", "4"]},
    ),
    "two failures are not compared": (
        odd(FAILED, ("reflection", 0, "r1", None), ("retry", 1, "4", True),
            ("attempt", None, "9", False), ("reflection", 3, "r2", None),
            ("retry", 4, "7", False), ("reflection", 3, "r3", None), ("retry", 6, "4", True)),
        {"reflect_and_retry": ["r1\n4", "r3\n4"], "right_reflections": ["r1", "r3"],
         "right_retries": ["4", "4"], "right_over_wrong": [("r3", "r2")]},
    ),
    "a reflection says nothing": (
        odd(FAILED, ("reflection", 0, " \n", None), ("retry", 1, "4", True),
            ("reflection", 0, "r2", None), ("retry", 3, "7", False)), {},
    ),
    "the attempt was right": (
        odd(("attempt", None, "4", True), ("reflection", 0, "r1", None), ("retry", 1, "4", True)),
        {},
    ),
    "the judge was asked but once, or about what led to nothing": (
        odd(FAILED, ("reflection", 0, "r1", None), ("retry", 1, "4", True),
            ("reflection", 0, "r2", None), ("retry", 3, "7", False), ("prefer", 1, "", "A"),
            ("prefer", 3, "", "B"), ("prefer", 1, "", "A")),
        {"reflect_and_retry": ["r1\n4"], "right_reflections": ["r1"], "right_retries": ["4"],
         "right_over_wrong": [("r1", "r2")]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_data_sets_of_odd_episodes(name):
    episode, expected = ODD[name]
    found = {b: texts(getattr(reflected, b)(episode, ask)) for b in DATA}
    assert {b: rows for b, rows in found.items() if rows} == expected
    assert reflected.comparisons(episode) == []


# ---- a wave --------------------------------------------------------------------------------------


def make(critic=None, problems=24, training="I", judge=None, **keys):
    tree = {
        "strategy": "reflectevo",
        "policy": {"temperature": 0.0, "max_new_tokens": 40, "batch": 64},
        "critic": {"temperature": 0.8, "max_tokens": 40},
        "reflectevo": {"wave": 100, "training": training, "retry_temperature": 0.9, **keys},
        "train": {"lr": 1e-4, "batch": 4, "epochs": 1, "lora": {"keys": []}},
    }
    recipe = Recipe.model_validate(tree)
    policy = load_policy(recipe.policy)
    attach_lora(policy.model, recipe.train.lora, recipe.seed)
    mine = critic or SelfCritic(policy, recipe.critic.tier("basic"), 64)
    critics = {"self": mine, "basic": mine, "judge": judge or mine}
    loaded = COUNTDOWN.load(recipe.task.model_copy(update={"limit": problems}), "train", 0)
    trainer = Trainer(policy.model)
    return frame_of(recipe, policy, trainer, critics, {p.id: p for p in loaded})


@pytest.mark.slow
def test_each_failure_has_k_reflections_by_different_instructions():
    strategy = make(reflections=3)
    before = dict(strategy.learning.start)
    wave, training = play(strategy)
    assert len(wave.episodes) == 24 and not wave.examples and not training.episodes
    for episode in wave.episodes:
        rest = episode.turns[1:]
        roles = [turn.role for turn in rest]
        if episode.outcome.first_correct:
            assert not rest and episode.outcome.status == "solved_first"
            continue
        assert roles[:3] == ["reflection"] * 3
        assert all(turn.parent == 0 for turn in rest[:3])
        asked = [turn.messages[0]["content"] for turn in rest[:3]]
        assert len({next(i for i in POOL.values() if i in text) for text in asked}) == 3
        retries = rest[3:]
        useful = [turn.index for turn in rest[:3] if turn.verdict is None]
        assert [turn.parent for turn in retries] == useful
        for turn in retries:
            assert turn.role == "retry" and turn.visibility == "verdict" and turn.verdict
            said = quote("feedback", episode.turns[turn.parent].text)
            assert said in turn.messages[-1]["content"]
        solved = [turn.index for turn in retries if turn.verdict.passed]
        assert episode.outcome.solved_turn == (solved[0] if solved else None)
        assert episode.outcome.status == ("solved" if solved else "discarded")
    right = sum(e.outcome.status == "solved" for e in wave.episodes)
    assert right and wave.figures["retries_right"] >= right
    assert len(training.examples) == wave.figures["retries_right"]
    assert strategy.state.kept == {}
    assert any((before[k] != v).any() for k, v in strategy.learning.trainer.trainable().items())


@pytest.mark.slow
def test_two_stages_leave_two_adapters_that_begin_alike():
    strategy = make(training="II")
    _, reflecting, answering = play(strategy)
    assert reflecting.examples[0].prompt != answering.examples[0].prompt
    assert len(reflecting.examples) == len(answering.examples) > 0
    held = strategy.learning.held["adapter-reflection"]
    policy = strategy.learning.trainer.trainable()
    assert held.keys() == policy.keys() == strategy.learning.start.keys()
    assert any((held[name] != policy[name]).any() for name in held)
    # Each began where the run did, with an optimizer of its own: counted from the first step.
    assert reflecting.steps[0].step == answering.steps[0].step == 1


def judge_of(prefers):
    """A judge by the text that it likes."""

    class Judge:
        actor, waits = "judge", False

        def __init__(self):
            self.calls = []

        def ask(self, calls):
            self.calls += calls
            return [Reply(json.dumps({"why": "", "better": prefers(call)})) for call in calls]

    return Judge()


@pytest.mark.slow
def test_dpref_keeps_what_the_judge_prefers_in_both_orders():
    longer = judge_of(lambda call: "A" if call.text > call.feedback else "B")
    strategy = make(training="IV", problems=48, reflections=4, judge=longer)
    wave, training = play(strategy)
    compared = [t for e in wave.episodes for t in e.turns if t.role == "prefer"]
    assert len(compared) == len(longer.calls) > 0
    assert len(
        {call.attempt for call in longer.calls if call.problem.id == longer.calls[0].problem.id}
    ) == sum(call.problem.id == longer.calls[0].problem.id for call in longer.calls)
    assert training.figures["pairs"] == len(training.examples)
    for example in training.examples:
        assert example.chosen > example.rejected
    first = judge_of(lambda call: "A")  # whatever comes first: of no worth
    strategy = make(training="IV", problems=48, reflections=4, judge=first)
    _, training = play(strategy)
    assert first.calls and not training.examples and not training.steps


@pytest.mark.parametrize(("cut", "pairs"), [("skip", [2]), ("keep", [2, 4])])
def test_a_retry_that_was_cut_off_says_nothing_of_its_reflection(cut, pairs):
    strategy = make(Critic(), problems=1, training="III")
    train = strategy.recipe.train.model_copy(update={"cut": cut})
    strategy.recipe = strategy.recipe.model_copy(update={"train": train})
    episode = odd(FAILED, ("reflection", 0, "right", None), ("reflection", 0, "wrong", None),
                  ("retry", 1, "4", True), ("reflection", 0, "unknown", None),
                  ("retry", 2, "5", False), ("retry", 4, "6", False))  # fmt: skip
    turns = [*episode.turns[:-1], replace(episode.turns[-1], finish_reason="length")]
    (problem,) = strategy.problems.values()
    strategy.running.keep([replace(episode, problem=problem, turns=turns)])
    rows = strategy.state.kept["pairs"]
    assert [row["source"]["turns"] for row in rows] == [[1, index] for index in pairs]


def test_failed_calls_are_data_and_get_no_retry():
    broken = Critic(errors=("reflection",))
    wave, training = play(make(broken, problems=6, reflector="critic"))
    wrong = [e for e in wave.episodes if not e.outcome.first_correct]
    assert wrong
    for episode in wrong:
        assert [turn.role for turn in episode.turns] == ["attempt", "reflection", "reflection"]
        assert all(turn.error == "out of order" for turn in episode.turns[1:])
        assert episode.outcome.status == "failed"
    assert not training.examples and not training.steps
    with pytest.raises(UserError, match="critic calls failed"):
        play(make(broken, problems=24, reflector="critic"))


def test_too_long_a_reflection_gets_no_retry():
    wave, _ = play(make(problems=6, words=2))
    turns = [turn for e in wave.episodes for turn in e.turns if turn.role != "attempt"]
    assert turns and {turn.role for turn in turns} == {"reflection"}
    assert all(turn.verdict.reason == "no sentence ends within 2 words" for turn in turns)


def test_stored_reflections_are_replayed(tmp_path):
    played, _ = play(make(problems=12))
    said = {e.problem.id: [t.text for t in e.turns if t.role == "reflection"]
            for e in played.episodes}  # fmt: skip
    path = tmp_path / "kept.jsonl"
    rows = [{"id": pid, "reflections": texts} for pid, texts in said.items() if texts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    silent = Critic(errors=("reflection",))
    again = make(silent, problems=12, stored=str(path))
    replayed, _ = play(again)
    assert not silent.calls
    for one, other in zip(played.episodes, replayed.episodes, strict=True):
        assert [t.text for t in one.turns] == [t.text for t in other.turns]
        assert {t.actor for t in other.turns if t.role == "reflection"} <= {
            f"stored:{again.running.stored.digest}"
        }
    again.state.cursor, again.state.trained = 0, 0
    again.running.stored = replace_digest(again.running.stored)
    with pytest.raises(UserError, match="has changed since the run began"):
        play(again)


def test_stored_reflections_on_other_problems_are_refused(tmp_path):
    """And a last line that was cut off is no journal's: it is named."""
    path = tmp_path / "kept.jsonl"
    path.write_text('{"id": "of-no-run", "reflections": "x"}\n')
    with pytest.raises(UserError, match="has no reflection on a problem of this run"):
        make(problems=2, stored=str(path))
    path.write_text(path.read_text() + '{"id": "b", "reflections": "x"')
    with pytest.raises(UserError, match="line 2: cut off"):
        Stored(str(path))


def replace_digest(stored):
    stored.digest = "another"
    return stored


# ---- second answers ------------------------------------------------------------------------------


@pytest.mark.slow
def test_training_prompts_are_those_of_the_evaluation(tmp_path):
    """Also where they are worded anew."""
    end = "{open} {close}"
    wording = {"check": f"Look at it. {end}", "rewrite": f"{{instruction}} Again. {end}",
               "reflect_and_retry": f"{{instruction}} Both. {end}"}  # fmt: skip
    for templates in ({}, wording):
        strategy = make(problems=6)
        recipe = strategy.recipe.model_copy(update={
            "prompt": strategy.recipe.prompt.model_copy(update={"templates": templates})
        })  # fmt: skip
        learning = strategy.learning
        mine = frame_of(
            recipe, learning.policy, learning.trainer, strategy.session.critics, strategy.problems
        )
        wave, _ = play(mine)
        episode = next(e for e in wave.episodes if reflected.trials(e))
        trial = reflected.trials(episode)[0]
        spec = EvalSpec.model_validate({"task": {"name": "countdown"}, "max_new_tokens": 40})
        retries = Retries(
            recipe, tmp_path, (mine.learning.policy, COUNTDOWN, []), spec, Ui(quiet=True)
        )
        chain = Chain(episode.problem)
        chain.add(trial.attempt)
        two, one = (
            Rounds(mine.learning.policy, COUNTDOWN, retries.spec_of("reflection", arm),
                   COUNTDOWN.grade, None)
            for arm in ("base", "trained")
        )  # fmt: skip
        asked = two.call(chain, "critique", (0,), 2)
        problem, attempt = episode.problem, trial.attempt.text
        assert asked.messages == role_prompt(recipe, COUNTDOWN, "check", problem, attempt)
        both = one.next_ask(chain, 2).messages
        assert both == role_prompt(recipe, COUNTDOWN, "reflect_and_retry", problem, attempt)
        chain.add(replace(trial.reflection, role="reflection"))
        assert two.next_ask(chain, 2).messages == trial.retry.messages
        if templates:
            assert asked.messages[0]["content"] == "Look at it. <think> </think>"
            assert "Both." in both[0]["content"]


# ---- recipes -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "said"), [("aime24", "aime24 has samples = 8"), ("gsm8k_5shot", "has shots = 5")]
)
def test_an_evaluation_without_second_answers_is_refused_before_a_run_begins(spec, said, tmp_path):
    given = ["--set=profile=quick", f"--set=eval.spec={spec}", f"--run-dir={tmp_path / 'run'}"]
    call = [sys.executable, "-m", "mlxreflect", "run", "reflectevo", *given]
    done = subprocess.run(call, capture_output=True, text=True)
    assert done.returncode == 2
    assert said in done.stderr and "set reflectevo.retries = false" in done.stderr
    assert not (tmp_path / "run").exists()
    recipe = load_recipe("reflectevo", [f"eval.spec={spec}", "reflectevo.retries=false"])
    check_arms(recipe, eval_specs(recipe))
    recipe = load_recipe("r3", [f"eval.spec={spec}"])
    check_arms(recipe, eval_specs(recipe))


def test_who_is_asked_and_how_often():
    recipe = load_recipe("reflectevo")
    assert method_of(recipe).tiers(recipe) == [] and METHOD.plan(recipe, 100, LIKELY).calls == {}
    recipe = load_recipe("reflectevo", ["reflectevo.training=IV", "reflectevo.reflector=critic"])
    assert method_of(recipe).tiers(recipe) == ["basic", "judge"]
    likely, most = (METHOD.plan(recipe, 100, wrong).calls for wrong in (LIKELY, AT_MOST))
    assert likely == {("basic", "reflection"): 100, ("judge", "prefer"): 25}
    assert most == {("basic", "reflection"): 200, ("judge", "prefer"): 200}  # k (k − 1) a problem


# ---- whole runs ----------------------------------------------------------------------------------

SHORT = {"profile": "quick", "task.limit": 24, "reflectevo.wave": 12, "eval.limit": 8,
         "eval.max_new_tokens": 30, "policy.batch": 16, "train.batch": 4, "train.epochs": 1,
         "critic.cache": "off"}  # fmt: skip


# key → the new value, and settings that both runs need.
CHANGED = {
    "wave": (24, {}),
    "reflector": ("critic", {}),
    "reflections": (2, {}),
    "instructions": (["skim-goal-steps"], {}),
    "stored": (str(Path(__file__).parent / "data" / "reflectevo_episodes.jsonl"), {}),
    "words": (3, {}),
    "retry_temperature": (0.0, {}),
    "training": ("II", {}),
    "schedule": ("linear", {"train.batch": 1}),
    "warmup": (0.5, {"train.batch": 1}),
    "retries": (False, {}),
}


def test_no_key_is_forgotten():
    assert set(CHANGED) == set(flatten(ReflectEvoConfig().model_dump()))


@pytest.fixture(scope="module")
def outputs_of(tmp_path_factory):
    base = {"reflectevo.training": "I", "reflectevo.retries": False, "reflectevo.warmup": 0.0}
    return outputs_by_settings(tmp_path_factory, "reflectevo", {**SHORT, **base})


@pytest.mark.slow
@pytest.mark.parametrize("key", CHANGED)
def test_a_changed_key_changes_an_output(key, outputs_of, tmp_path):
    value, needed = CHANGED[key]
    if key == "stored":
        value = str(tmp_path / "kept.jsonl")
        asked = COUNTDOWN.load(load_recipe("reflectevo", ["profile=quick"]).task, "train", 0)
        rows = [{"id": p.id, "reflections": "step 1 leads nowhere"} for p in asked]
        Path(value).write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = {"reflectevo.retries": True, **needed} if key == "retries" else needed
    assert outputs_of({**before, f"reflectevo.{key}": value}) != outputs_of(before)


def contents(run_dir):
    """Every file that must not depend on interruptions; times and memory are left out."""
    names = ["episodes.jsonl", "examples.jsonl", "sft.jsonl", "retries.json", "comparison.json",
             "adapter/adapters.safetensors", "adapter-reflection/adapters.safetensors",
             "adapter-reflection/adapter_config.json",
             *(f"retries/{arm}-{retry}/{file}" for arm in ARMS for retry in RETRIES
               for file in ("chains.jsonl", "samples.jsonl"))]  # fmt: skip
    metrics = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return {name: (run_dir / name).read_bytes() for name in names} | {
        "metrics": [{k: v for k, v in row.items() if k != "seconds"} for row in metrics]
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of two waves and two trainings that was never stopped."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    run_process("reflectevo", SHORT, run_dir)
    return run_dir


# In the second training, after the policy's adapter, in the base's chains.
NTH = {"trained": 2, "wrote an adapter": 2, "evaluated half a chunk of retries": 1}


@pytest.mark.slow
@pytest.mark.parametrize("point", REFLECTING)
def test_killed_at_a_point(point, whole, tmp_path):
    run_dir = tmp_path / "run"
    run_process("reflectevo", SHORT, run_dir, point, NTH[point])
    finish(run_dir)
    found, expected = contents(run_dir), contents(whole)
    assert [name for name in expected if found[name] != expected[name]] == []


@pytest.mark.slow
def test_what_a_run_says_of_second_answers(whole):
    """Counted again from the chains themselves."""
    told = json.loads((whole / "retries.json").read_text())
    assert len(told["arms"]) == 8 and len(told["comparisons"]) == 4
    for row in told["arms"]:
        folder = whole / "retries" / f"{row['arm']}-{row['retry']}"
        chains = [json.loads(line) for line in (folder / "chains.jsonl").read_text().splitlines()]
        assert len(chains) == 8
        first = [chain["turns"][0]["verdict"]["correct"] for chain in chains]
        last = [chain["turns"][-1]["verdict"]["correct"] for chain in chains]
        if row["gated"]:
            last = [a or b for a, b in zip(first, last, strict=True)]
            assert row["right_to_wrong"] == 0
        assert (row["acc_t1"], row["acc_t2"]) == (sum(first) / 8, sum(last) / 8)
        assert row["right_to_wrong"] == sum(a and not b for a, b in zip(first, last, strict=True))
        roles = ["attempt", "reflection", "retry"]
        roles = roles if row["retry"] == "reflection" else [roles[0], roles[2]]
        assert all([turn["role"] for turn in chain["turns"]] == roles for chain in chains)
        assert all(turn["visibility"] == "none" for c in chains for turn in c["turns"])
    for test in told["comparisons"]:
        both = [row["acc_t2"] for row in told["arms"]
                if (row["retry"], row["gated"]) == (test["retry"], test["gated"])]  # fmt: skip
        assert [test["accuracy_a"], test["accuracy_b"]] == both


def test_a_reflection_without_a_fault_keeps_the_first_answer_unless_the_grader_says():
    def chain(first, said, second):
        turns = [("attempt", "x", first), ("reflection", said, None), ("retry", "y", second)]
        made = Chain(COUNTDOWN.load(Recipe().task, "train", 0)[0])
        for number, (role, text, right) in enumerate(turns):
            verdict = None if right is None else Verdict(right, True, "")
            made.add(Turn(number, None, role, "self", [], text, verdict=verdict))
        return made

    praised, faulted = "Every step holds.", "step 1 is wrong"
    chains = [chain(*one) for one in ((True, praised, False), (False, praised, True),
                                      (True, faulted, False), (False, faulted, True))]  # fmt: skip
    assert seconds(chains, gated=False) == [True, False, False, True]
    assert seconds(chains, gated=True) == [True, True, True, True]
    row = counted(chains, seconds(chains, gated=False))
    assert (row["acc_t1"], row["acc_t2"], row["delta"]) == (0.5, 0.5, 0)
    assert (row["wrong_to_right"], row["right_to_wrong"], row["failed"]) == (1, 1, 0)


@pytest.mark.slow
def test_both_adapters_load_in_mlx_lm(whole):
    for name in ("adapter", "adapter-reflection"):
        call = [sys.executable, "-m", "mlx_lm", "generate", "--model", str(TINY)]
        call += ["--adapter-path", str(whole / name), "--prompt", "2 + 2 =", "-m", "3"]
        done = subprocess.run(call, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
