"""ThinkingTraces: marks and filters, what becomes training data, warm-up and rounds as played."""

import json
import subprocess
from dataclasses import replace

import mlx.core as mx
import pytest
from rich.console import Console
from support.fake_ollama import FakeOllama
from support.methods import frame_of
from support.run_outputs import outputs_by_settings, outputs_in, outputs_of_run, run_process
from support.teacher import Teacher
from support.whole_runs import command, finish

from mlxreflect.config.recipe import load_recipe
from mlxreflect.config.schema import Recipe, TrainConfig
from mlxreflect.config.toml import flatten
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import append_rows, read_rows
from mlxreflect.core.records import Episode, Outcome, Turn, Verdict, episode_from_row, make_problem
from mlxreflect.core.records import to_row as row_of
from mlxreflect.critics.base import Reply
from mlxreflect.evaluation.arms import arm_order
from mlxreflect.methods import traces as method
from mlxreflect.methods.base import AT_MOST, LIKELY
from mlxreflect.methods.traces import Quality, TracesConfig, best_traces, fits, group_of, reward
from mlxreflect.models.load import load_policy
from mlxreflect.report.show import tell_story
from mlxreflect.tasks import TASKS
from mlxreflect.train.lora import attach_lora
from mlxreflect.train.losses import group_advantages
from mlxreflect.train.trainer import Trainer

PROMPT = [{"role": "user", "content": "Numbers: 2 3\nTarget: 5"}]
PROBLEM = make_problem("countdown", {"numbers": [2, 3], "target": 5})
RIGHT, UNTIDY = Verdict(True, True, ""), Verdict(True, False, "2 blocks")
WRONG, NEITHER = Verdict(False, True, "is 6"), Verdict(False, False, "nothing")


def trace(index, text, verdict=RIGHT, finish_reason="stop", thought=None):
    span = [0, len(text)] if thought is None else thought
    return Turn(index, None, "attempt", "policy:1", PROMPT, text, {"think": span},
                verdict=verdict, finish_reason=finish_reason, token_ids=[index, 7])  # fmt: skip


def marks(index, parent, quality, error=None):
    parsed = None if quality is None else quality.written()
    return Turn(index, parent, "score", "critic", [], parsed or "", parsed=parsed, error=error)


# ---- marks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "changes", "expected"),
    [
        # Two of three steps and all 12 words of a deep thought; nothing twice; no check; whole.
        ("step 1: 2 + 3 = 5\nso 2 + 3 it is",
         {}, Quality((2 / 3 + 1) / 2, 1.0, 0.0, 1.0)),
        # Three sentences on one line, one of them twice; 9 words of 12; a check.
        ("It is five. It is five. Let me check.",
         {}, Quality((1 + 9 / 12) / 2, 2 / 3, 1.0, 1.0)),
        ("5", {"verdict": UNTIDY}, Quality((1 / 3 + 1 / 12) / 2, 1.0, 0.0, 0.5)),
        ("5", {"verdict": UNTIDY, "finish_reason": "length"},
         Quality((1 / 3 + 1 / 12) / 2, 1.0, 0.0, 0.0)),
        ("", {"verdict": NEITHER}, Quality(0.0, 0.0, 0.0, 0.5)),
        ("wait for it", {"thought": [0, 0]}, Quality(0.0, 0.0, 0.0, 1.0)),  # not in the thought
    ],
)  # fmt: skip
def test_rules_give_marks(text, changes, expected):
    found = method.by_rules(trace(0, text, **changes))
    assert json.loads(found.written()) == json.loads(expected.written())


EVEN, ODD = Quality(0.5, 0.5, 0.5, 0.5), Quality(1.0, 1.0, 0.25, 1.0)


@pytest.mark.parametrize(
    ("verdict", "quality", "strict", "lenient"),
    [
        (RIGHT, EVEN, True, True),
        (RIGHT, ODD, False, True),  # one mark is below, their mean is not
        (RIGHT, Quality(0.5, 0.5, 0.5, 0.49), False, False),
        (UNTIDY, EVEN, False, True),  # right in another format
        (WRONG, Quality(1, 1, 1, 1), False, False),
        (RIGHT, None, False, False),  # no marks are no pass
        (None, EVEN, False, False),
    ],
)
def test_filters(verdict, quality, strict, lenient):
    for name, expected in (("strict", strict), ("lenient", lenient)):
        config = TracesConfig(filter=name, threshold=0.5)
        assert fits(trace(0, "5", verdict), quality, config) is expected


# ---- training data -------------------------------------------------------------------------------

EPISODE = Episode(
    "traces", 0, 3, PROBLEM,
    [
        trace(0, "a short one"), trace(1, "wrong", WRONG), trace(2, "untidy", UNTIDY),
        trace(3, "the best"), trace(4, "the best"), trace(5, "its call failed"),
        marks(6, 0, EVEN), marks(7, 2, Quality(1, 1, 1, 0.5)), marks(8, 3, Quality(1, 1, 0.5, 1)),
        marks(9, 5, None, "timeout"),
    ],
    Outcome(True, 0, "solved_first"),
)  # fmt: skip


def row(turn):
    source = {"problem": PROBLEM.id, "epoch": 0, "wave": 3, "turns": [turn]}
    text = EPISODE.turns[turn].text
    return ("sft", PROMPT, text, [turn, 7], source)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"filter": "strict", "keep": 1}, [3]),
        ({"filter": "strict", "keep": 0}, [3, 0]),  # the better one first
        ({"filter": "lenient", "keep": 0}, [2, 3, 0]),  # two as good as each other: as sampled
        ({"filter": "lenient", "keep": 2}, [2, 3]),
        ({"filter": "strict", "keep": 0, "threshold": 0.6}, []),
        ({"filter": "lenient", "keep": 0, "threshold": 0.6}, [2, 3]),
    ],
)
def test_an_episode_file_gives_the_traces_to_imitate(config, expected, tmp_path):
    append_rows(tmp_path / "episodes.jsonl", [row_of(EPISODE)])
    (episode,) = map(episode_from_row, read_rows(tmp_path / "episodes.jsonl"))
    found = best_traces(episode, TracesConfig(**config))
    assert [(e.kind, e.prompt, e.completion, e.completion_ids, e.source) for e in found] == [
        row(turn) for turn in expected
    ]


def test_an_episode_file_gives_the_group():
    turns = [trace(0, "a"), trace(1, "b", WRONG), trace(2, "c", UNTIDY), trace(3, "d", NEITHER)]
    episode = replace(EPISODE, turns=turns)
    found = group_of(episode, TracesConfig(reward_answer=1.0, reward_format=0.25), TrainConfig())
    assert found is not None
    assert (found.kind, found.prompt, found.completions) == ("group", PROMPT, ["a", "b", "c", "d"])
    assert found.completions_ids == [[0, 7], [1, 7], [2, 7], [3, 7]]
    assert found.rewards == [1.25, 0.25, 1.0, 0.0]
    assert found.source["turns"] == [0, 1, 2, 3]
    # By hand: mean 0.625, sample variance 1.0625 / 3, deviation 0.59512.
    spread = (1.0625 / 3) ** 0.5 + 1e-4
    expected = [0.625 / spread, -0.375 / spread, 0.375 / spread, -0.625 / spread]
    assert group_advantages(found.rewards, True) == pytest.approx(expected)
    assert group_advantages(found.rewards, False) == [0.625, -0.375, 0.375, -0.625]


def test_what_was_cut_off_is_in_no_group_and_never_imitated():
    turns = [trace(0, "a"), trace(1, "b", NEITHER, "length"), trace(2, "c", WRONG),
             trace(3, "d", UNTIDY, "length"), marks(4, 3, EVEN)]  # fmt: skip
    episode, config = replace(EPISODE, turns=turns), TracesConfig(filter="lenient", keep=0)
    found = group_of(episode, config, TrainConfig())
    assert found is not None
    assert (found.completions, found.source["turns"]) == (["a", "c"], [0, 2])
    kept = group_of(episode, config, TrainConfig(cut="keep"))
    assert kept is not None and kept.completions == ["a", "b", "c", "d"]
    assert method.right_once(turns) == turns[:1]  # of the right ones, what ended
    alone = replace(EPISODE, turns=turns[:2])
    assert group_of(alone, config, TrainConfig()) is None


def test_online_dpo_compares_the_best_of_a_group_with_its_worst():
    turns = [trace(0, "a", UNTIDY), trace(1, "b"), trace(2, "c", NEITHER), trace(3, "d"),
             trace(4, "e", WRONG), trace(5, "f", NEITHER)]  # fmt: skip
    found = group_of(replace(EPISODE, turns=turns), TracesConfig(objective="dpo"), TrainConfig())
    assert found is not None and found.kind == "preference" and found.prompt == PROMPT
    assert (found.chosen, found.rejected) == ("b", "c")  # of equals the first
    assert (found.chosen_ids, found.rejected_ids) == ([1, 7], [2, 7])
    assert found.source["turns"] == [1, 2]
    alike = replace(EPISODE, turns=[turns[2], turns[5]])
    assert group_of(alike, TracesConfig(objective="dpo"), TrainConfig()) is None


def test_a_group_whose_rewards_are_equal_is_none():
    alike = replace(EPISODE, turns=[trace(0, "a", WRONG), trace(1, "b", WRONG)])
    assert group_of(alike, TracesConfig(), TrainConfig()) is None
    by_format = replace(EPISODE, turns=[trace(0, "a", WRONG), trace(1, "b", NEITHER)])
    assert group_of(by_format, TracesConfig(), TrainConfig()) is not None
    assert group_of(by_format, TracesConfig(reward_format=0.0), TrainConfig()) is None
    assert reward(trace(0, "a", None), TracesConfig()) == 0.0


def test_the_story_tells_marks_and_worth():
    turns = [trace(0, "a"), trace(1, "b", WRONG), marks(2, 0, EVEN)]
    episode = replace(EPISODE, turns=turns)
    group = group_of(replace(episode, epoch=0), TracesConfig(), TrainConfig())
    console = Console(width=200)
    with console.capture() as said:
        console.print(*tell_story([episode], [group]))
    assert "2 score by critic, of turn 0" in said.get()
    assert "trained by GRPO, its answers worth 1.2, 0.2" in said.get()


# ---- warm-up and rounds --------------------------------------------------------------------------


class Marker:
    """A critic that gives marks; some of its calls fail, or say nothing that can be read."""

    actor, waits = "marker", False

    def __init__(self, said):
        self.said, self.calls = said, []

    def ask(self, calls):
        self.calls += calls
        return [self.said(call) for call in calls]


def marking(mark):
    names = ("depth", "coherence", "verification", "completeness")
    return Reply(json.dumps({"why": "so", **dict.fromkeys(names, mark)}))


def make(marker=None, problems=6, train=None, **traces):
    tree = {
        "strategy": "traces",
        "policy": {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 30, "batch": 64},
        "train": {"lr": 1e-3, "batch": 4, "sft": {"lr": 1e-3}, "lora": {"keys": [], "rank": 4},
                  "reference_cache": "off", **(train or {})},
        "traces": {"wave": 6, "samples": 8, "filter": "lenient", **traces},
    }  # fmt: skip
    recipe = Recipe.model_validate(tree)
    policy = load_policy(recipe.policy)
    attach_lora(policy.model, recipe.train.lora, recipe.seed)
    task = TASKS["countdown"]
    loaded = task.load(recipe.task.model_copy(update={"limit": problems}), "train", 0)
    critics = {"judge": marker} if marker else {}
    trainer = Trainer(policy.model)
    return frame_of(recipe, policy, trainer, critics, {p.id: p for p in loaded}, task)


def test_waves_go_through_the_warm_up_and_every_round():
    strategy = make(problems=5, wave=2, warm_up=3, rounds=2)
    waves = []
    while (wave := strategy.next_wave()) is not None:
        strategy.state.wave += 1
        waves.append((wave, strategy.running.arm(wave), strategy.progress()))
    told = [(w.number, w.epoch, w.stage, len(w.problems), w.new_epoch, arm, at)
            for w, arm, at in waves]  # fmt: skip
    assert told == [
        (0, 0, "warm-up", 2, True, "", (2, 13)),
        (1, 0, "warm-up", 1, False, "warm-up", (3, 13)),
        (2, 1, "round", 2, True, "", (5, 13)),
        (3, 1, "round", 2, False, "", (7, 13)),
        (4, 1, "round", 1, False, "round-1", (8, 13)),
        (5, 2, "round", 2, True, "", (10, 13)),
        (6, 2, "round", 2, False, "", (12, 13)),
        (7, 2, "round", 1, False, "", (13, 13)),  # what is trained is the last round's
    ]
    rounds = [[pid for w, _, _ in waves if w.epoch == k for pid in w.problems] for k in (1, 2)]
    assert set(rounds[0]) == set(rounds[1]) == set(strategy.problems)
    assert rounds[0] != rounds[1]
    assert strategy.state.epoch == 2


def test_the_warm_up_imitates_what_the_critic_marks_well():
    marker = Marker(lambda call: marking(4 if call.problem.id < "8" else 2))
    strategy = make(marker, problems=8, wave=8, warm_up=8, rounds=0, scorer="critic", keep=0)
    before = dict(strategy.learning.trainer.trainable())
    played = strategy.play(strategy.next_wave())
    assert played.examples
    texts = {(call.problem.id, call.text) for call in marker.calls}
    assert len(texts) == len(marker.calls)  # each text once
    for episode in played.episodes:
        scores = [turn for turn in episode.turns if turn.role == "score"]
        attempts = [turn for turn in episode.turns if turn.role == "attempt"]
        assert [turn.index for turn in episode.turns] == list(range(len(episode.turns)))
        assert {episode.turns[turn.parent].text for turn in scores} == {
            turn.text for turn in attempts if turn.verdict.correct
        }
        assert len(attempts) == 8
        assert all(turn.visibility == "none" for turn in scores)
        kept = [e for e in played.examples if e.source["problem"] == episode.problem.id]
        assert len(kept) == (len(scores) if episode.problem.id < "8" else 0)
        assert all(e.prompt == attempts[0].messages for e in kept)
    assert played.figures["kept"] == len(played.examples) < played.figures["right"]
    assert {step.objective for step in played.steps} == {"sft"}
    after = strategy.learning.trainer.trainable()
    assert any(mx.any(after[name] != before[name]).item() for name in before)


@pytest.mark.parametrize(
    ("reply", "counted"),
    [
        (Reply("", error="no answer", kind="timeout"), ("failed", 1)),
        (Reply("5 of 5, splendid"), ("unknown", 2)),  # asked again once
        (marking(6), ("unknown", 2)),
        (Reply(json.dumps({"why": "", "depth": 5, "coherence": 5})), ("unknown", 2)),
    ],
)
def test_a_trace_without_marks_is_not_imitated(reply, counted):
    few = {"problems": 2, "warm_up": 2, "samples": 2}  # fewer calls than those that stop a run
    strategy = make(Marker(lambda call: reply), **few, rounds=0, scorer="critic")
    played = strategy.play(strategy.next_wave())
    scores = [turn for e in played.episodes for turn in e.turns if turn.role == "score"]
    assert scores and all(turn.error and turn.parsed is None for turn in scores)
    assert not played.examples and not played.steps
    scored = [e for e in played.episodes if any(turn.role == "score" for turn in e.turns)]
    assert {e.outcome.status for e in scored} <= {"failed", "solved_first"}
    name, times = counted
    asked = len(strategy.session.critics["judge"].calls)
    assert asked == times * len(scores)
    assert played.figures["critic"][name] == played.figures["critic"]["calls"] == asked


@pytest.mark.slow
def test_a_critic_that_fails_too_often_stops_the_run():
    marker = Marker(lambda call: Reply("", error="out of order", kind="http_500"))
    strategy = make(marker, problems=16, wave=16, warm_up=16, rounds=0, scorer="critic")
    with pytest.raises(UserError, match="critic calls failed"):
        strategy.play(strategy.next_wave())


def test_a_round_trains_on_groups_as_they_were_generated():
    strategy = make(problems=8, wave=8, rounds=1, group=6, grpo={"kl": 0.1})
    played = strategy.play(strategy.next_wave())
    assert played.examples
    assert played.figures["flat"] == 8 - len(played.examples)
    by_problem = {e.problem.id: e for e in played.episodes}
    for example in played.examples:
        turns = by_problem[example.source["problem"]].turns
        assert example.completions_ids == [turn.token_ids for turn in turns]
        group = strategy.learning.encoder.encode(example)
        assert [row.response for row in group.rows] == example.completions_ids
        assert group.rewards == tuple(1.2 if t.verdict.correct else 0.2 * t.verdict.format_ok
                                      for t in turns)  # fmt: skip
    rewards = [reward(turn, strategy.recipe.traces) for e in played.episodes for turn in e.turns]
    assert played.figures["reward"] == pytest.approx(sum(rewards) / len(rewards))
    steps = played.steps
    assert [step.objective for step in steps] == ["grpo"] * -(-len(played.examples) // 4)
    assert steps[0].kl == pytest.approx(0, abs=1e-6)  # the policy is its reference yet
    assert len(steps) == 1 or steps[-1].kl > 0
    assert all(step.loss == pytest.approx(step.kl * 0.1, abs=0.2) for step in steps)


def test_a_round_of_online_dpo_trains_on_pairs():
    strategy = make(problems=8, wave=8, rounds=1, group=6, objective="ipo", train={"beta": 0.3})
    played = strategy.play(strategy.next_wave())
    assert played.examples and {e.kind for e in played.examples} == {"preference"}
    assert {step.objective for step in played.steps} == {"ipo"}
    assert played.steps[0].margin == pytest.approx(0, abs=1e-4)  # its reference is itself yet


@pytest.mark.parametrize("redraws", [0, 1, 5])
def test_groups_all_alike_are_replaced_by_other_problems(redraws):
    """Each once in a wave, until all groups differ or redraws is used up."""
    strategy = make(problems=12, wave=4, rounds=1, group=2, redraws=redraws)
    order, asked, draw = strategy.order(1), [], strategy.rollouts.sample

    def sample(problems, role, n, seed, actor, first=0):
        asked.append([p.id for p in problems])
        drawn = draw(problems, role, n, seed, actor, first)
        return [[replace(a, verdict=WRONG), replace(b, verdict=(WRONG if p.id in alike else RIGHT))]
                for p, (a, b) in zip(problems, drawn, strict=True)]  # fmt: skip

    strategy.rollouts.sample = sample
    alike = {*order[:3], order[4]}
    played = strategy.play(strategy.next_wave())
    expected = [order[:4], order[4:7], order[7:8]][: redraws + 1]
    assert asked == expected
    drawn = [pid for one in expected for pid in one]
    assert [e.problem.id for e in played.episodes] == drawn
    assert len(played.examples) == sum(pid not in alike for pid in drawn)
    assert played.figures["flat"] == len(played.episodes) - len(played.examples)
    assert strategy.state.redrawn == sum(map(len, expected[1:]))


@pytest.mark.parametrize(
    ("problems", "cursor", "redrawn", "first"),
    [
        (0, 4, 0, [4, 5, 6, 7]),  # the whole task is the round's: what it has yet to draw
        (0, 8, 3, [8, 9, 10, 11]),
        (0, 12, 0, [0, 1, 2, 3]),  # nothing is fresh
        (8, 4, 0, [8, 9, 10, 11]),  # what the round does not draw comes first
        (8, 4, 2, [10, 11, 4, 5]),
        (8, 8, 4, [0, 1, 2, 3]),
    ],
)
def test_other_problems_begin_with_fresh_ones(problems, cursor, redrawn, first):
    strategy = make(problems=12, wave=4, rounds=1, group=2, redraws=1)
    strategy.running.config = strategy.running.config.model_copy(update={"problems": problems})
    order, state = strategy.order(1), strategy.state
    state.epoch, state.cursor, state.redrawn = 1, cursor, redrawn
    assert strategy.running.others(4, []) == [order[i] for i in first]
    assert state.redrawn == redrawn + 4


def test_samples_whose_own_reward_failed_are_counted_apart():
    known = method.count_rewards([1.0, None, 0.5, None], 1, 2)
    told = "mean reward 0.75 (2 samples have none), 1 of 2 groups all alike"
    assert known == {"reward": 0.75, "flat": 1, "unrewarded": 2, "told": told}
    assert method.count_rewards([1.0, 0.5], 1, 2) == {
        "reward": 0.75, "flat": 1, "told": "mean reward 0.75, 1 of 2 groups all alike",
    }  # fmt: skip
    assert method.count_rewards([None], 1, 1)["reward"] is None


@pytest.mark.slow
def test_the_reference_is_the_policy_as_the_round_began():
    strategy = make(problems=4, wave=2, rounds=2, group=4, grpo={"kl": 0.1})
    held = []
    while (wave := strategy.next_wave()) is not None:
        start = dict(strategy.learning.trainer.trainable())
        strategy.play(wave)
        held.append((wave.new_epoch, start, strategy.learning.held["reference"]))
    assert [new for new, _, _ in held] == [True, False, True, False]
    for new, start, reference in held:
        same = all(mx.array_equal(start[name], reference[name]).item() for name in start)
        assert same == new
    assert held[0][2] is held[1][2] and held[2][2] is not held[1][2]


def test_arms_stand_in_the_order_they_came_in():
    names = ["base", "base-direct", "warm-up", "round-2", "round-10", "trained", "trained-direct"]
    assert sorted([*names[3:], *names[:3]], key=arm_order) == names


# ---- recipes -------------------------------------------------------------------------------------


def test_a_warm_up_alone_may_be_greedy():
    recipe = load_recipe("traces", ["policy.temperature=0", "traces.rounds=0", "traces.problems=0",
                                     "traces.grpo.kl=0"])  # fmt: skip
    assert recipe.policy.temperature == 0


def test_who_is_asked_and_how_often():
    full, quick = load_recipe("traces"), load_recipe("traces", ["profile=quick"])
    assert (method.tiers(full), method.tiers(quick)) == (["judge"], [])
    assert method.tiers(load_recipe("traces", ["traces.warm_up=0"])) == []
    planned = method.plan(full, 1000, LIKELY)
    assert planned.attempts == 256 * 4 + 3 * 256 * 8
    assert planned.calls == {("judge", "score"): 512}
    assert method.plan(full, 100, AT_MOST).calls == {("judge", "score"): 800}
    assert method.plan(quick, 1000, LIKELY).calls == {}


# ---- whole runs ----------------------------------------------------------------------------------

SMALL = {
    "profile": "quick", "task.limit": 10,
    "traces.wave": 5, "traces.warm_up": 10, "traces.problems": 5,
    "traces.rounds": 1, "traces.samples": 6, "traces.group": 6, "eval.limit": 4,
    "eval.max_new_tokens": 24, "eval.direct": False, "train.batch": 2,
    "traces.grpo.kl": 0.1, "traces.grpo.clip_ratio": 1e-4,
}  # fmt: skip
# A changed value of every key of the table.
CHANGED = {
    "wave": 3, "warm_up": 5, "samples": 3, "filter": "strict", "threshold": 1.0, "keep": 0,
    "rounds": 2, "problems": 3, "group": 4, "reward_answer": 0.5, "reward_format": 0.5,
    "objective": "dpo", "redraws": 2,
    "grpo.clip_ratio": 0.2, "grpo.epsilon_high": 0.2,
    "grpo.importance_sampling_level": "sequence", "grpo.kl": 0.0,
    "grpo.average": "token", "grpo.scale_rewards": False,
}  # fmt: skip
APART = {"scorer", "reward", "reward_sha256"}  # a server: a test below; a file: test_graders_own.py


def test_no_key_is_forgotten():
    assert set(CHANGED) | APART == set(flatten(TracesConfig().model_dump()))


@pytest.fixture(scope="module")
def outputs_of(tmp_path_factory):
    return outputs_by_settings(tmp_path_factory, "traces", SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("key", CHANGED)
def test_a_changed_key_changes_an_output(key, outputs_of):
    of_grpo = {"traces.grpo.kl": 0.0, "traces.grpo.clip_ratio": 0.2} if key == "objective" else {}
    assert outputs_of({f"traces.{key}": CHANGED[key], **of_grpo}) != outputs_of({})


@pytest.mark.slow
def test_the_critic_marks_the_traces(outputs_of, tmp_path):
    with FakeOllama(reply=Teacher(), models=["critic"]) as server:
        asked = {"traces.scorer": "critic", "critic.provider": "ollama", "critic.model": "critic",
                 "critic.base_url": server.url, "critic.cache": "off"}  # fmt: skip
        found = outputs_of_run("traces", {**SMALL, **asked}, tmp_path / "run")
        rows = list(read_rows(tmp_path / "run" / "episodes.jsonl"))
        scores = [turn for row in rows for turn in row["turns"] if turn["role"] == "score"]
        assert len(scores) == len(server.chats) > 0
        assert {turn["actor"] for turn in scores} == {"ollama:critic"}
    assert found["examples.jsonl"] != outputs_of({})["examples.jsonl"]


@pytest.mark.slow
def test_one_table_compares_all_arms(tmp_path):
    folder = tmp_path / "run"
    outputs_of_run("traces", {**SMALL, "eval.direct": True, "traces.rounds": 2}, folder)
    names = ["base", "base-direct", "warm-up", "round-1", "trained", "trained-direct"]
    compared = json.loads((folder / "comparisons.json").read_text())
    assert compared["arms"] == names
    assert [c["b"] for c in compared["comparisons"]] == names[1:]
    problems = {(folder / "eval" / name / "problems.jsonl").read_bytes() for name in names}
    assert len(problems) == 1
    done = subprocess.run(command("show", folder), capture_output=True, text=True, check=True)
    assert all(f"\n{name} " in done.stdout for name in names)
    assert "Against base" in done.stdout


# The calls fall into the evaluation of the warm-up, and the commit of the round after it.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("point", "nth"), [("evaluated half a chunk", 2), ("wrote half a commit", 4)]
)
def test_killed_and_resumed_it_ends_with_the_same_bytes(point, nth, outputs_of, tmp_path):
    run_process("traces", SMALL, tmp_path / "run", point, nth)
    finish(tmp_path / "run")
    assert outputs_in(tmp_path / "run") == outputs_of({})
