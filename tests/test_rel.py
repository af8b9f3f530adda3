"""REL: what is accepted, what of it is trained on, and that nothing else passes."""

import json
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import mlx.core as mx
import pytest
from support.critics import critic_at
from support.fake_ollama import FakeOllama
from support.methods import COUNTDOWN, NONSENSE, Critic, call_of, frame_of, play, roles
from support.run_outputs import outputs_by_settings, outputs_in, run_process

from mlxreflect.config.recipe import load_recipe
from mlxreflect.config.schema import CriticConfig, Recipe, method_of
from mlxreflect.core.journal import read_rows
from mlxreflect.core.records import episode_from_row, make_problem, to_row
from mlxreflect.core.ui import Ui
from mlxreflect.critics.base import Reply
from mlxreflect.critics.replies import cache_key
from mlxreflect.critics.solver import SolverCritic
from mlxreflect.methods.base import Try
from mlxreflect.methods.rel import RelConfig, worked_examples
from mlxreflect.models.load import load_policy
from mlxreflect.prompts import parsing as prompts
from mlxreflect.prompts.roles import quote
from mlxreflect.runs.folder import open_folder
from mlxreflect.runs.run import execute
from mlxreflect.setup.dry_run import dry, estimate
from mlxreflect.tasks import TASKS
from mlxreflect.train.encode import Encoder
from mlxreflect.train.lora import attach_lora
from mlxreflect.train.trainer import Trainer

EPISODES = Path(__file__).parent / "data" / "rel_episodes.jsonl"


class Helper(Critic):
    """The solver, but for roles in `wrong`, whose texts are nonsense, and what the judge says."""

    def __init__(self, wrong=(), errors=(), says=""):
        super().__init__(errors=errors)
        self.wrong, self.says = wrong, says

    def ask(self, calls):
        replies = super().ask(calls)
        for i, call in enumerate(calls):
            if call.role in self.wrong and not replies[i].error:
                replies[i] = Reply(NONSENSE)
            if call.role == "judge" and self.says and not replies[i].error:
                replies[i] = Reply(self.says)
        return replies


def make(critic=None, problems=3, tokens=3, **rel):
    """tokens: of an attempt; of three none is ever right."""
    tree = {
        "strategy": "rel", "policy": {"temperature": 1.0, "max_new_tokens": tokens, "batch": 16},
        "train": {"batch": 4, "lora": {"keys": [], "dropout": 0.1}, "sft": {"lr": 1e-3}},
        "critic": {"temperature": 0.5, "max_failed": 1.0},
        "rel": {"rounds": 1, "wave": problems, **rel},
    }  # fmt: skip
    recipe = Recipe.model_validate(tree)
    policy = load_policy(recipe.policy)
    attach_lora(policy.model, recipe.train.lora, recipe.seed)
    critic = critic or Helper()
    loaded = COUNTDOWN.load(recipe.task.model_copy(update={"limit": problems}), "train", 0)
    critics = dict.fromkeys(("basic", "judge", "self"), critic)
    known = {p.id: p for p in loaded}
    return frame_of(recipe, policy, Trainer(policy.model), critics, known)


# ---- builders ------------------------------------------------------------------------------------

PROMPT = [{"role": "user", "content": "as an evaluation asks"}]
MESSY = "<think>\nstep 1: 3 + 4 = 8\nNo, 3 + 4 is 7.\n7 * 5 = 35\n</think>\n<answer>35</answer>"
CLEAN = "<think>\n3 + 4 = 7\n7 * 5 = 35\n</think>\n<answer>35</answer>"


def imitated(episode, **keys):
    return list(worked_examples(episode, PROMPT, RelConfig(**keys), "think"))


def continued():
    """The row of the problem that was continued, and then tidied."""
    (row,) = [r for r in read_rows(EPISODES) if r["problem"]["id"] == "continued"]
    return row


def row(kind, completion, turn, **more):
    """What an example of the hand-made file is, but for what it lacks."""
    return {
        "schema": "example/1", "kind": "sft", "prompt": PROMPT, "completion": completion,
        "weight": 1.0, "mask": "response",
        "source": {"problem": kind, "epoch": 1, "wave": 0, "turns": [turn]}, **more,
    }  # fmt: skip


EXPECTED = {
    "working": [
        row("right-at-once", CLEAN, 0, completion_ids=[7, 8, 9]), row("continued", MESSY, 2),
        row("rewritten", CLEAN, 4),
    ],
    "tidied": [row("continued", CLEAN, 3)],
}  # fmt: skip


@pytest.mark.parametrize("target", EXPECTED)
def test_examples_of_a_hand_made_file(target):
    """Also in it: discarded, failed, and reviews that failed or did not pass."""
    episodes = [episode_from_row(r) for r in read_rows(EPISODES)]
    assert Counter(e.outcome.status for e in episodes) == {
        "solved_first": 1, "solved": 2, "discarded": 2, "failed": 1,
    }  # fmt: skip
    made = [e for episode in episodes for e in imitated(episode, target=target)]
    found = [{k: v for k, v in to_row(e).items() if v is not None} for e in made]
    assert found == EXPECTED[target]


def test_a_tidied_text_of_another_turn_is_not_imitated():
    """Nor any other child of the turn that solved the problem."""
    row = continued()
    tidied = row["turns"][3]
    assert (tidied["role"], tidied["parent"]) == ("integrate", row["outcome"]["solved_turn"])
    for change in ({"parent": 0}, {"role": "rewrite"}):
        row["turns"][3] = {**tidied, **change}
        assert not imitated(episode_from_row(row), target="tidied")


def test_mistakes_are_shown_and_not_imitated():
    """The loss begins where the working turned: after the part that attempt and text share."""
    (example,) = imitated(episode_from_row(continued()), mistakes=False)
    shown = "<think>\nstep 1: 3 + 4 = 8"
    assert example.mask == f"from {len(shown)}"
    policy = load_policy(Recipe().policy)
    encoded = Encoder(policy, 4096).encode(example)
    trained = [t for t, f in zip(encoded.response, encoded.mask, strict=True) if f]
    assert policy.decode(trained[:-1]) == MESSY.removeprefix(shown)
    assert trained[-1] in policy.eos
    assert encoded.trained == len(trained) < len(encoded.response)


@pytest.mark.parametrize("attempt", [
    "<think>\n3 + 4 = 8\n</think>\n<answer>8</answer>",
    "<think>3 + 4 = 8</think><answer>8</answer>",
    " <think> 3 + 4 = 8", "Sure!\n<think>\n3 + 4 = 8</think>", "3 + 4 = 8 <answer>8</answer>",
])  # fmt: skip
def test_a_mistake_is_not_imitated_however_the_attempt_opens(attempt):
    row = continued()
    end = "No, 7.\n7 * 5 = 35\n</think>\n<answer>35</answer>"
    whole = prompts.carried_on(prompts.open_working(attempt, "think"), end, "think")
    for text in (whole, f"<think> 3 + 4  = 8 {end}"):  # the latter repeats the working itself
        row["turns"][0]["text"], row["turns"][2]["text"] = attempt, text
        (example,) = imitated(episode_from_row(row), mistakes=False)
        begin = int(example.mask.removeprefix("from "))
        assert text[begin:].strip() == end and not text[:begin].endswith("\n")


# ---- tries ---------------------------------------------------------------------------------------


def test_the_first_failure_is_continued_from_a_hint():
    critic = Helper()
    strategy = make(critic)
    tries, training = play(strategy)
    evaluated = strategy.rollouts.prompt
    for episode in tries.episodes:
        assert roles(episode) == ["attempt", "judge", "continue"]
        attempt, said, text = episode.turns
        assert [t.parent for t in episode.turns] == [None, 0, 1]
        working = prompts.open_working(attempt.text, "think")
        assert text.text.startswith(f"{working}\n")  # the mistake, then its mending
        assert said.parsed in text.messages[-1]["content"]
        assert [t.visibility for t in episode.turns] == ["none", "verdict", "verdict"]
        assert "scratch paper" in attempt.messages[0]["content"]
        assert episode.outcome.status == "solved" and episode.outcome.solved_turn == 2
        (example,) = [e for e in training.examples if e.source["problem"] == episode.problem.id]
        assert (example.completion, example.completion_ids) == (text.text, None)
        assert example.prompt == evaluated(episode.problem) != attempt.messages
    assert {s.objective for s in training.steps} == {"sft"}
    assert not tries.steps and not tries.examples
    heats = {c.role: c.temperature for c in critic.calls}
    assert heats == {"judge": 0.0, "continue": pytest.approx(0.45)}


def test_the_second_failure_is_rewritten_and_the_third_discarded():
    critic = Helper(wrong=["continue"])
    for episode in play(make(critic))[0].episodes:
        assert roles(episode) == ["attempt", "judge", "continue", "judge", "rewrite"]
        assert quote("attempt", episode.turns[2].text) in (episode.turns[4].messages[-1]["content"])
        assert episode.outcome.solved_turn == 4
    heats = [c.temperature for c in critic.calls if c.role != "judge"]
    assert heats == pytest.approx([0.45] * 3 + [0.405] * 3)
    tries, training = play(make(Helper(wrong=["continue", "rewrite"])))
    for episode in tries.episodes:
        assert roles(episode) == ["attempt", "judge", "continue", "judge", "rewrite"]
        assert (episode.outcome.status, episode.outcome.solved_turn) == ("discarded", None)
    assert not training.examples and not training.steps


def test_a_rewrite_is_shown_the_solution_where_the_data_have_one():
    strategy = make(Helper(wrong=["continue"]))
    strategy.problems |= {
        name: replace(one, meta={**one.meta, "solution": "6*7 = <<6*7=42>>42\n#### 42"})
        for name, one in strategy.problems.items()
    }
    for episode in play(strategy)[0].episodes:
        seen = {turn.role: turn.visibility for turn in episode.turns}
        assert (seen["continue"], seen["rewrite"]) == ("verdict", "gold_solution")
        shown = "<expected>\n6*7 = 42\nThe answer is 42\n</expected>"
        told = [shown in json.dumps(t.messages).replace("\\n", "\n") for t in episode.turns]
        assert told == [False] * 4 + [True]


@pytest.mark.parametrize("says", ["INACCURATE", "ACCURATE", '{"verdict": "right"}'])
def test_what_is_no_verdict_is_no_pass_and_no_hint(says):
    """`"ACCURATE" in "INACCURATE"` is how a published marker passed what it had called wrong."""
    strategy = make(Helper(says=says), problems=12, tokens=30, judge=True)
    tries, training = play(strategy)
    assert any(e.outcome.first_correct is False and e.turns[0].verdict.reason.startswith("unknown")
               for e in tries.episodes)  # fmt: skip
    for episode in tries.episodes:
        assert roles(episode) == ["attempt", "judge"]
        assert episode.turns[1].error and not episode.turns[1].text
        assert episode.outcome.status == "failed"
    assert not training.examples
    assert tries.figures["critic"]["unknown"] == 24  # asked again, once


def test_a_judge_that_calls_the_answer_right_gives_a_hint_without_a_reason():
    says = '{"step": "", "why": "it all holds", "verdict": "right"}'
    for episode in play(make(Helper(says=says)))[0].episodes:
        assert not episode.turns[0].verdict.passed  # the grader decides
        assert episode.turns[1].parsed == "the answer does not come out right"


@pytest.mark.parametrize("lost", ["judge", "continue"])
def test_a_failed_call_is_no_try_and_no_pass(lost):
    tries, training = play(make(Helper(errors=[lost])))
    for episode in tries.episodes:
        assert roles(episode) == ["attempt", "judge", "continue"][: 3 if lost == "continue" else 2]
        assert episode.turns[-1].error == "out of order"
        assert episode.outcome.status == ("failed" if lost == "judge" else "discarded")
    assert not training.examples


def test_a_continuation_that_tells_of_its_hint_is_no_pass():
    class Tells(Helper):
        def ask(self, calls):
            said = "The hint helps."
            return [Reply(f"{said}\n{r.text}") if c.role == "continue" else r
                    for c, r in zip(calls, super().ask(calls), strict=True)]  # fmt: skip

    for episode in play(make(Tells(), tries=2))[0].episodes:
        assert episode.turns[2].verdict.source == "leak filter"
        assert episode.outcome.status == "discarded"


def test_a_review_tidies_what_was_accepted():
    strategy = make(problems=4, tokens=12, review=True, target="tidied")
    tries, training = play(strategy)
    for episode in tries.episodes:
        accepted, tidied = episode.turns[episode.outcome.solved_turn], episode.turns[-1]
        assert (tidied.role, tidied.parent) == ("integrate", accepted.index)
        assert tidied.visibility == "none"
        assert tidied.verdict.passed
        (example,) = [e for e in training.examples if e.source["problem"] == episode.problem.id]
        assert example.completion == tidied.text
    assert any(e.turns[-1].text != e.turns[e.outcome.solved_turn].text for e in tries.episodes)


def test_a_limit_ends_a_round_with_its_training():
    strategy = make(problems=4, tokens=12, wave=2, rounds=3)
    strategy.play(strategy.next_wave())
    training = strategy.play(strategy.next_wave(ending=True))
    assert training.figures["stage"] == "train" and training.steps
    assert {e.source["wave"] for e in training.examples} == {0}
    assert strategy.next_wave(ending=True) is None


# ---- the solver's part ---------------------------------------------------------------------------


def test_the_solver_goes_on_and_tidies():
    problem = make_problem("countdown", {"numbers": [3, 4, 5], "target": 35})
    solver, at = SolverCritic("countdown"), Try("basic", 1, "0/2")
    working = "<think>\nstep 1: 3 + 4 = 7\nstep 2: 7 + 5 = 12"
    shown = {"working": working, "hint": "12 is not 35"}
    (reply,) = solver.ask([call_of("continue", problem, at, **shown)])
    end = "\n</think>\n<answer> 5 * ( 3 + 4 ) </answer>"
    assert reply.text == f"12 is not 35\nstep 2: 5 * 7 = 35{end}"
    whole = prompts.carried_on(working, reply.text, "think")
    assert whole == f"{working}\n{reply.text}"
    text = f"<think>\nWell.\n3 * 4 = 12\n3 + 4 = 7\n7 * 5 = 35{end}"
    (tidied,) = solver.ask([call_of("integrate", problem, at, text=text)])
    assert tidied.text == f"<think>\n3 + 4 = 7\n7 * 5 = 35{end}"
    (lost,) = solver.ask([call_of("integrate", problem, at, text=f"<think>\n3 * 4 = 12{end}")])
    assert not COUNTDOWN.grade(problem, lost.text, "think", "thinking").verdict.passed


def test_a_calls_own_temperature_is_part_of_what_is_asked():
    problem = make_problem("countdown", {"numbers": [3, 4, 5], "target": 35})
    at = Try("basic", 1, "0/2")
    call = call_of("continue", problem, at, working="<think>", hint="")
    config = CriticConfig(temperature=0.5)
    same, other = replace(call, temperature=0.5), replace(call, temperature=0.25)
    assert cache_key(config, same) == cache_key(config, call) != cache_key(config, other)
    with FakeOllama() as server:
        critic_at(server, temperature=0.5).ask([other])
        assert [chat["options"]["temperature"] for chat in server.chats] == [0.25]


def test_a_working_with_stray_tags_can_be_closed():
    text = "<think>\nstep <think>1<answer> 2\n</think><answer>3</answer>"
    working = prompts.open_working(text, "think")
    assert working == "<think>\nstep 1 2"
    whole = prompts.carried_on(working, "no\n</think>\n<answer>4</answer>", "think")
    assert prompts.parse_response(whole).format_ok
    assert prompts.open_working("no tags <answer>3</answer>", "think") == "<think>\nno tags"


def test_a_whole_solution_is_no_continuation():
    whole = "<think>\nanew\n</think><answer>1</answer>"
    assert prompts.carried_on("<think>\nold", f" {whole}\n", "think") == whole


# ---- rounds --------------------------------------------------------------------------------------


def test_each_round_trains_from_the_start_on_all_that_was_accepted():
    strategy = make(problems=2, rounds=2, wave=1)
    start = {k: mx.array(v) for k, v in strategy.learning.trainer.trainable().items()}
    begun, train = [], strategy.learning.trainer.train

    def watched(objective, *rest):
        now = strategy.learning.trainer.trainable()
        begun.append(
            (len(objective.items), all(mx.array_equal(now[k], v).item() for k, v in start.items()))
        )
        assert not strategy.learning.trainer.optimizers
        return train(objective, *rest)

    strategy.learning.trainer.train = watched
    played = play(strategy)
    stages = [(p.figures["epoch"], p.figures["stage"], p.figures["problems"]) for p in played]
    assert stages == [(1, "problems", 1), (1, "problems", 1), (1, "train", 0),
                      (2, "problems", 1), (2, "problems", 1), (2, "train", 0)]  # fmt: skip
    texts = {(r["source"]["problem"], r["completion"]) for r in strategy.state.made}
    assert begun == [(2, True), (len(texts), True)] and len(strategy.state.made) == len(texts)
    # Each example is handed out once, in the round in which it was made.
    assert [len(p.examples) for p in played] == [0, 0, 2, 0, 0, len(texts) - 2]
    assert [p.figures["new_epoch"] for p in played] == [True, False, False] * 2
    saved = json.loads(json.dumps(asdict(strategy.state)))
    assert type(strategy.state)(**saved) == strategy.state


def test_the_same_text_of_a_problem_counts_once():
    strategy = make()
    tries, _ = play(strategy)
    before = [dict(r) for r in strategy.state.made]
    strategy.running.keep(tries.episodes)
    assert strategy.state.made == before and len(before) == 3


def test_what_people_wrote_is_trained_on_and_counted(tmp_path):
    path = tmp_path / "w.md"
    path.write_text(
        "### Question\nA?\n### Answer\nWell.\n<answer>yes</answer>\n"
        "### Question\nB?\n### Answer\nNone.\n"
    )
    strategy = make(human=str(path))
    counted = "1 by people (1 left out; it has no answer: 1)"
    training = play(strategy)[1]
    assert training.figures["told"] == f"trained on 3 workings and {counted}"
    assert [e.weight for e in training.examples if "human" in e.source] == [2.0]
    assert f"--- worked solutions: {counted}" in dry(strategy.recipe)["text"]


# ---- recipe --------------------------------------------------------------------------------------


def test_who_is_asked_and_how_often():
    def asked(**rel):
        recipe = load_recipe("rel", [f"rel.{k}={json.dumps(v)}" for k, v in rel.items()])
        problems = [make_problem("gsm8k", {"question": "?"}, "1")] * 8
        return method_of(recipe).tiers(recipe), estimate(recipe, TASKS["gsm8k"], problems)

    tiers, found = asked(rounds=1)
    assert tiers == ["basic", "judge"]
    # Of 8, 4 and 2 tries half are wrong: 4 + 2 marked, 4 continued, 2 rewritten.
    assert found["expected"]["calls"] == 12
    # All are wrong: 8 + 8 marked, each asked twice, 8 continued, 8 rewritten.
    assert found["at_most"]["calls"] == 48
    tiers, found = asked(rounds=2, writer="self", judge=True, review=True)
    assert tiers == ["judge"] and found["expected"]["calls"] == 2 * (8 + 4 + 1)
    assert asked(tries=1)[0] == [] and asked(tries=1)[1]["at_most"]["calls"] == 0
    assert asked(tries=1, judge=True, review=True)[0] == ["basic", "judge"]


# ---- whole runs ----------------------------------------------------------------------------------

SMALL = {
    "profile": "quick", "task.limit": 6, "rel.wave": 3, "rel.rounds": 1, "rel.review": False,
    "rel.target": "working", "train.epochs": 1, "train.batch": 4, "train.lora.dropout": 0.1,
    "eval.limit": 4, "policy.max_new_tokens": 30, "eval.max_new_tokens": 26, "policy.batch": 8,
}  # fmt: skip
# Each key's new value, and what both runs need besides.
CHANGED = {
    "rounds": (2, {}),
    "wave": (2, {}),
    "tries": (1, {}),
    "decay": (0.5, {"rel.writer": "self", "critic.max_tokens": 26, "task.limit": 2}),
    "writer": ("self", {"critic.max_tokens": 26, "task.limit": 2}),
    "judge": (True, {}),
    "review": (True, {}),
    "target": ("tidied", {"rel.review": True}),
    "mistakes": (False, {}),
    "weight": (0.5, {"rel.human": "PEOPLE"}),
    "human": ("PEOPLE", {}),
    "human_weight": (1.0, {"rel.human": "PEOPLE"}),
    "restart": (False, {"rel.rounds": 2}),
    "measure": (True, {"rel.rounds": 2}),
}


def test_no_key_is_forgotten():
    assert set(CHANGED) == set(RelConfig.model_fields)


@pytest.fixture(scope="module")
def outputs_of(tmp_path_factory):
    """Outputs of the quick profile. PEOPLE stands for a file of a worked solution."""
    people = tmp_path_factory.mktemp("people") / "w.md"
    people.write_text("### Question\nQ?\n### Answer\nstep 1: 1 + 1 = 2\n<answer> 1 + 1 </answer>\n")
    get = outputs_by_settings(tmp_path_factory, "rel", SMALL)
    return lambda new: get({k: str(people) if v == "PEOPLE" else v for k, v in new.items()})


@pytest.mark.slow
@pytest.mark.parametrize("key", CHANGED)
def test_a_changed_key_changes_an_output(key, outputs_of):
    value, needed = CHANGED[key]
    assert outputs_of({**needed, f"rel.{key}": value}) != outputs_of(needed)


@pytest.mark.slow
@pytest.mark.parametrize("point,nth", [("took a training step", 4), ("wrote half a commit", 6)])
def test_a_killed_run_ends_with_the_same_bytes(point, nth, tmp_path, outputs_of):
    """In the second round: what it began from is known again, and what the first one accepted."""
    settings = {"rel.rounds": 2, "rel.measure": True}
    whole, folder = outputs_of(settings), tmp_path / "run"
    run_process("rel", {**SMALL, **settings}, folder, point, nth)
    assert {row["epoch"] for row in read_rows(folder / "metrics.jsonl")} >= {1, 2}
    run = open_folder(folder, [])
    try:
        execute(run, Ui(quiet=True))
    finally:
        run.close()
    assert outputs_in(folder) == whole
    assert (folder / "eval" / "round-1" / "results.json").is_file()
