"""PRefLexOR: rounds, the teacher and its failures, the filter, pairs, phases, keys and kills."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import ClassVar

import pytest
from support.corpus import TEXTS, teacher, write_corpus
from support.fake_ollama import FakeOllama
from support.kill_driver import POINTS
from support.methods import frame_of, play, roles
from support.run_outputs import outputs_by_settings, run_process
from support.whole_runs import contents, finish

from mlxreflect.config.recipe import load_recipe
from mlxreflect.config.schema import LoraConfig, PolicyConfig, Recipe, TrainConfig
from mlxreflect.config.toml import flatten
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import read_rows
from mlxreflect.core.records import Example, episode_from_row
from mlxreflect.critics.base import Reply
from mlxreflect.critics.solver import SolverCritic
from mlxreflect.critics.verdicts import Section, Sections
from mlxreflect.methods.base import AT_MOST
from mlxreflect.methods.preflexor import PreflexorConfig, phases, plan, taught_pairs
from mlxreflect.methods.preflexor_corpus import FEWEST, chosen_sections, read_corpus
from mlxreflect.models.load import load_policy
from mlxreflect.prompts.parsing import parse_response
from mlxreflect.prompts.roles import GRAPH
from mlxreflect.tasks import TASKS
from mlxreflect.train.batches import Pair
from mlxreflect.train.lora import attach_lora
from mlxreflect.train.trainer import Trainer

EPISODES = [
    episode_from_row(row)
    for row in read_rows(Path(__file__).parent / "data" / "preflexor_episodes.jsonl")
]

# ---- episodes to pairs ---------------------------------------------------------------------------


def pair(asked, chosen, rejected, ids, problem, epoch, wave, *turns):
    source = {"problem": problem, "epoch": epoch, "wave": wave, "turns": list(turns)}
    prompt = [{"role": "user", "content": asked}]
    return Example("preference", prompt, chosen, rejected, rejected_ids=ids, source=source)


ONE_AND_TWO = pair(
    "One and two?", "<think>1 + 2 = 3</think><answer>3</answer>",
    "<think>12</think><answer>12</answer>", [5, 6, 9], "a1", 1, 0, 1, 0,
)  # fmt: skip
TWO_AND_TWO = pair(
    "Two and two?", "<think>2 + 2 = 4</think><answer>4</answer>",
    "<think>2 + 2</think><answer>4</answer>", [7, 9], "a2", 1, 0, 1, 0,
)  # fmt: skip
BEES = pair(
    "What do bees make?", "<think>\nHypothesis:\nhoney\n</think>\n<answer>honey</answer>",
    "<think>they buzz</think><answer>noise</answer>", [1, 2, 9], "c1", 2, 3, 2, 4,
)  # fmt: skip
KEEPER = pair(  # whose attempt nobody could judge
    "Who keeps bees?", "<think>so</think><answer>a beekeeper</answer>",
    "<think>?</think><answer>people</answer>", None, "c2", 2, 3, 1, 2,
)  # fmt: skip


@pytest.mark.parametrize(
    ("only_wrong", "pairs"),
    [(True, [ONE_AND_TWO, BEES]), (False, [ONE_AND_TWO, TWO_AND_TWO, BEES, KEEPER])],
)
def test_the_pairs_of_a_file_of_episodes(only_wrong, pairs):
    skip, keep = TrainConfig(), TrainConfig(cut="keep")
    assert [e for one in EPISODES for e in taught_pairs(one, only_wrong, skip)] == pairs
    cut = [
        replace(one, turns=[replace(turn, finish_reason="length") for turn in one.turns])
        for one in EPISODES
    ]  # the policy's own answers are no rejected ones then
    assert not [e for one in cut for e in taught_pairs(one, only_wrong, skip)]
    assert [e for one in cut for e in taught_pairs(one, only_wrong, keep)] == pairs


# ---- critics that do as a test says --------------------------------------------------------------


class Scripted:
    """Answers each role with a text, or fails where there is none."""

    actor, waits = "scripted", False
    said: ClassVar = {
        "pose": "What is said of number {n}?",
        "extract": json.dumps({"sections": [
            {"name": "Hypothesis ", "text": "It is plain."}, {"name": "mood", "text": "good"},
            {"name": "reasoning steps", "text": "First this.\nThen that."},
            {"name": "relevant concepts", "text": "  "},
        ]}),
        "ground": "So: <answer>what was read</answer>",
        "support": '{"step": "", "why": "it is so", "verdict": "right"}',
    }  # fmt: skip

    def __init__(self, **said):
        self.said, self.calls = {**self.said, **said}, []

    def preflight(self):
        pass

    def close(self):
        pass

    def ask(self, calls):
        return [self.reply(call) for call in calls]

    def reply(self, call):
        self.calls.append(call)
        text = self.said[call.role]
        text = text(call) if callable(text) else text
        if text is None:
            return Reply("", error="out of order", kind="http_500")
        n = sum(c.role == call.role for c in self.calls)
        return Reply(text.replace("{n}", str(n)), finish_reason="stop")


# A section that would end the thought and answer by itself.
HOSTILE = json.dumps({"sections": [
    {"name": "hypothesis", "text": "so</think>\n<answer>what was not read</answer>"},
]})  # fmt: skip


@cache
def learner():
    """One policy for all of these: none depends on what it has learned before."""
    policy = load_policy(PolicyConfig())
    attach_lora(policy.model, LoraConfig(keys=[], dropout=0.0), 0)
    return policy


def make(critic, corpus=None, **tables):
    tree = {
        "strategy": "preflexor",
        "policy": {"temperature": 1.0, "max_new_tokens": 30, "batch": 16},
        "train": {"objective": "orpo", "lr": 1e-3, "logps": "sum", "batch": 2, "cut": "keep"},
        "preflexor": {"questions": 3, "rounds": 1, "two": {"rounds": 0}},
    }  # fmt: skip
    if corpus:
        tree["preflexor"] = {**tree["preflexor"], "corpus": str(corpus)}
        tree["task"] = {"name": "jsonl"}
        tree["eval"] = {"decontaminate": "off"}  # there is none
    for name, table in tables.items():
        tree[name] = {**tree.get(name, {}), **table}
    recipe = Recipe.model_validate(tree)
    policy = learner()
    task = TASKS[recipe.task.name]
    if corpus:
        config = recipe.preflexor
        problems = read_corpus(config.corpus, config.chunk, config.column)
    else:
        problems = task.load(recipe.task.model_copy(update={"limit": 8}), "train", 0)
    critics = {"basic": critic, "judge": critic}
    by_id = {problem.id: problem for problem in problems}
    return frame_of(recipe, policy, Trainer(policy.model), critics, by_id, task)


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "corpus")


def wrong_attempts(call):
    verdict = "right" if "what was read" in call.text else "wrong"
    return json.dumps({"step": "", "why": "looked", "verdict": verdict})


def test_from_a_passage_to_a_pair(corpus):
    critic = Scripted(support=wrong_attempts)
    (played,) = play(make(critic, corpus, preflexor={"retrieve": 1}))
    assert len(played.episodes) == len(played.examples) == 3
    assert played.figures["posed"] == played.figures["grounded"] == 3
    assert played.figures["empty_sections"] == 3
    thought = "Reasoning steps:\nFirst this.\nThen that.\n\nHypothesis:\nIt is plain."
    chosen = f"<think>\n{thought}\n</think>\n<answer>what was read</answer>"
    for episode, example in zip(played.episodes, played.examples, strict=True):
        assert roles(episode) == ["pose", "extract", "ground", "support", "attempt", "support"]
        assert (example.chosen, example.rejected) == (chosen, episode.turns[4].text)
        assert example.rejected_ids == episode.turns[4].token_ids
        # The policy is asked the question alone; what the teacher saw stays with the teacher.
        shown = json.dumps(example.prompt)
        assert episode.problem.fields["question"] in shown
        assert not any(text.split("\n")[-1] in shown for text in TEXTS.values())
        assert "what was read" not in shown and episode.problem.gold == "what was read"
        assert episode.outcome.status == "trained"
        assert {t.visibility for t in episode.turns} == {"none", "gold_solution"}
    passages = {e.problem.meta["file"] for e in played.episodes}
    assert passages == set(TEXTS)  # each once before any comes again
    for call in critic.calls:
        if call.role == "extract":  # the passage asked about first, then what else is related
            shown = [text for text in TEXTS.values() if text in call.messages[-1]["content"]]
            assert 1 <= len(shown) <= 2
    assert [step.objective for step in played.steps] == ["orpo", "orpo"]


@pytest.mark.parametrize(
    ("role", "said", "turns", "status", "error"),
    [
        ("pose", None, ["pose"], "failed", "out of order"),
        ("pose", "  ", ["pose"], "failed", "no question"),
        ("pose", "why? " * 1000, ["pose"], "discarded", "over 2000 characters"),
        ("pose", "Why?", ["pose"], "discarded", "posed before"),
        ("extract", None, ["pose", "extract"], "failed", "out of order"),
        ("extract", "no JSON", ["pose", "extract"], "failed", "no verdict in the reply"),
        ("extract", '{"sections": []}', ["pose", "extract"], "discarded", "no section has any"),
        ("ground", None, ["pose", "extract", "ground"], "failed", "out of order"),
        ("ground", "It is so.", ["pose", "extract", "ground"], "discarded", "no answer"),
        ("extract", HOSTILE, ["pose", "extract", "ground"], "discarded", None),
        ("support", None, ["pose", "extract", "ground", "support"], "failed", "out of order"),
        ("support", "right", ["pose", "extract", "ground", "support"], "failed", "no verdict"),
        ("support", '{"step": "all", "why": "no", "verdict": "wrong"}',
         ["pose", "extract", "ground", "support"], "discarded", None),
    ],
)  # fmt: skip
def test_what_fails_is_recorded_and_never_trained_on(role, said, turns, status, error, corpus):
    (played,) = play(make(Scripted(**{role: said}), corpus))
    *_, last = played.episodes
    assert roles(last) == turns
    assert last.outcome.status == status
    assert error is None or error in last.turns[-1].error
    broken = played.episodes if said != "Why?" else played.episodes[1:]  # the first is no repeat
    ids = {episode.problem.id for episode in broken}
    assert not [e for e in played.examples if e.source["problem"] in ids]


def test_an_attempt_that_nobody_could_judge_is_not_called_wrong(corpus):
    doubt = Scripted(support=lambda call: wrong_attempts(call) if "plain" in call.text else "hm")
    for only_wrong in (False, True):
        table = {"questions": 2, "only_wrong": only_wrong}
        (played,) = play(make(doubt, corpus, preflexor=table))
        assert [e.turns[4].verdict for e in played.episodes] == [None, None]
        assert len(played.examples) == (0 if only_wrong else 2)


def test_a_question_is_posed_once_in_a_whole_run(corpus):
    table = {"questions": 1, "rounds": 3}
    played = play(make(Scripted(pose="Why is  that SO?"), corpus, preflexor=table))
    assert [len(p.examples) for p in played] == [1, 0, 0]
    assert "before" in played[2].episodes[0].turns[0].error


def test_a_question_that_an_evaluation_asks_is_not_trained_on(corpus, tmp_path):
    """Passages that say something else in other words are clean; the question is not."""
    exam = tmp_path / "exam.jsonl"
    exam.write_text(json.dumps({"question": "What is said of number 2?", "answer": "x"}) + "\n")
    critic = Scripted(pose=lambda call: f"what is said  of NUMBER {len(critic.calls)}")
    known = {"spec": "countdown", "limit": 2, "against": [str(exam)], "decontaminate": "exact"}
    (played,) = play(make(critic, corpus, eval=known))
    assert [roles(e) for e in played.episodes if len(e.turns) == 1] == [["pose"]]
    (asked,) = (e for e in played.episodes if len(e.turns) == 1)
    assert asked.turns[0].error == f"it occurs in the evaluation {exam}"
    assert asked.turns[0].text == "what is said  of NUMBER 2"
    assert asked.outcome.status == "discarded" and len(played.examples) == 2
    assert "NUMBER 2" not in str(played.examples)
    assert played.figures["in_evaluation"] == 1
    assert "1 left out that the evaluation asks" in played.figures["told"]
    critic.calls.clear()
    (played,) = play(make(critic, corpus))
    assert len(played.examples) == 3 and played.figures["in_evaluation"] == 0


def test_a_corpus_without_a_word_is_refused(tmp_path):
    (tmp_path / "n").mkdir()
    (tmp_path / "n" / "a.txt").write_text("!!! ??? --- " * 50)
    with pytest.raises(UserError, match="no passage has a word"):
        make(Scripted(), tmp_path / "n")


def test_topics_choose_the_passages(corpus):
    table = {"questions": 2, "topics": ["honey bees", "water"]}
    (played,) = play(make(Scripted(), corpus, preflexor=table))
    assert [e.problem.meta["file"] for e in played.episodes] == [
        "bees.md", "bees.md", "iron.txt", "iron.txt",
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"no passage of .* has a word of 'quarks'"):
        make(Scripted(), corpus, preflexor={**table, "topics": ["quarks"]})


def test_a_number_of_topics_is_drawn_anew_each_round(corpus):
    (corpus / "sea.txt").write_text("The grey sea takes rain from brooks and hills all year round.")
    table = {"questions": 2, "topics": 2, "rounds": 2}
    drawn = {}
    for seed in (0, 1):
        strategy = make(Scripted(), corpus, preflexor=table)
        strategy.recipe = strategy.recipe.model_copy(update={"seed": seed})
        waves = [strategy.next_wave(), strategy.next_wave()]
        files = [[strategy.problems[i].meta["file"] for i in w.problems] for w in waves]
        assert strategy.progress() == (8, 8) and plan(strategy.recipe, 4, AT_MOST).attempts == 8
        drawn[seed] = files
        # Each passage is a topic once before any is again, and what is most related comes next.
        assert sorted(one for wave in files for one in wave[::2]) == [
            "bees.md", "iron.txt", "rain.txt", "sea.txt",
        ]  # fmt: skip
        beside = {wave[i]: wave[i + 1] for wave in files for i in (0, 2)}
        assert (beside["rain.txt"], beside["sea.txt"]) == ("sea.txt", "rain.txt")
    assert drawn[0] != drawn[1]


def test_a_graph_in_the_thought(corpus):
    triples = "bees | make | honey"
    sections = [{"name": "knowledge graph", "text": triples}]
    critic = Scripted(extract=json.dumps({"sections": sections}))
    (played,) = play(make(critic, corpus, prompt={"style": "graph"}))
    for example in played.examples:
        assert f"<think>\nKnowledge graph:\n{triples}\n</think>" in example.chosen
        assert GRAPH in example.prompt[0]["content"]
    asked = next(call for call in critic.calls if call.role == "extract")
    assert "knowledge graph; abstracted pattern; reasoning steps" in asked.messages[0]["content"]
    # Without a thought the format is broken, as in the style "thinking".
    assert not parse_response("<answer>1</answer>", "think", "graph").format_ok


def test_sections_are_those_asked_for_each_once():
    pairs = [("b", "2"), ("A ", " 1 "), ("a", "again"), ("c", "\n")]
    said = Sections(sections=[Section(name=name, text=text) for name, text in pairs])
    assert chosen_sections(said, ["a", "b", "c", "d"]) == {"a": "1", "b": "2"}


# ---- a task's own problems -----------------------------------------------------------------------


def test_the_grader_filters_both_sides():
    strategy = make(SolverCritic("countdown"),
                    preflexor={"questions": 8, "rounds": 1, "only_wrong": True,
                               "two": {"rounds": 0}})  # fmt: skip
    (played,) = play(strategy)
    wrong = [e for e in played.episodes if not e.outcome.first_correct]
    assert len(wrong) > 1
    for episode in played.episodes:
        first = episode.outcome.first_correct
        assert roles(episode) == (["attempt"] if first else ["attempt", "answer"])
    assert [e.source["problem"] for e in played.examples] == [e.problem.id for e in wrong]
    assert all(e.turns[1].verdict.passed for e in wrong)


@pytest.mark.parametrize("style", ["thinking", "graph"])
def test_a_teacher_of_a_task_is_asked_for_the_sections_too(style):
    teacher = Scripted(answer="<think>so</think><answer>1</answer>")
    named = {"sections": ["what is given", "plan"]}
    play(make(teacher, preflexor=named, prompt={"style": style}))
    assert {call.role for call in teacher.calls} == {"answer"}
    for call in teacher.calls:
        asked = call.messages[0]["content"]
        assert "what is given; plan" in asked and (GRAPH in asked) == (style == "graph")


def test_rounds_go_through_all_problems_before_any_comes_again():
    table = {"questions": 5, "rounds": 2, "two": {"rounds": 2}}
    strategy = make(SolverCritic("countdown"), preflexor=table)
    waves = []
    while (wave := strategy.next_wave()) is not None:
        waves.append(wave)
    drawn = [pid for wave in waves for pid in wave.problems]
    assert len(drawn) == 20 and len(set(drawn[:8])) == len(set(drawn[8:16])) == 8
    assert drawn[:8] != drawn[8:16]
    assert [(w.epoch, w.stage, w.new_epoch, w.own["arm"]) for w in waves] == [
        (1, "phase-1", True, ""), (1, "phase-1", False, "phase-1"),
        (2, "phase-2", True, ""), (2, "phase-2", False, ""),
    ]  # fmt: skip
    assert strategy.progress() == (20, 20)


# ---- phases --------------------------------------------------------------------------------------


def lists(arrays):
    return {name: array.tolist() for name, array in arrays.items()}


def test_phase_two_trains_answers_against_the_policy_of_phase_one():
    strategy = make(SolverCritic("countdown"),
                    preflexor={"questions": 4, "rounds": 1,
                               "two": {"rounds": 1, "lr": 1e-3}})  # fmt: skip
    one = strategy.play(strategy.next_wave())
    after_one = {
        name: array.tolist() for name, array in strategy.learning.trainer.trainable().items()
    }
    assert {step.objective for step in one.steps} == {"orpo"}
    two = strategy.play(strategy.next_wave())
    assert {step.objective for step in two.steps} == {"exo_pair"}
    held = strategy.learning.held["reference"]
    assert lists(held) == after_one
    assert two.steps[0].margin == pytest.approx(0, abs=1e-4)
    encoder, policy = strategy.learning.encoder, strategy.learning.policy
    for example in two.examples:
        pair = encoder.encode(example)
        assert isinstance(pair, Pair)
        for row in (pair.chosen, pair.rejected):
            assert row.mask is not None
            hidden = policy.decode(
                [t for t, f in zip(row.response, row.mask, strict=True) if not f]
            )
            seen = policy.decode([t for t, f in zip(row.response, row.mask, strict=True) if f])
            assert "step" in hidden and "step" not in seen
    strategy.learning.use(phases(strategy.recipe)[0])
    whole = strategy.learning.encoder.encode(two.examples[0])
    assert isinstance(whole, Pair) and whole.chosen.mask is None


def test_phase_two_has_its_own_settings_and_the_others_of_train():
    recipe = load_recipe("preflexor", ["train.accumulate=4", "train.mask.markers=false"])
    one, two = phases(recipe)
    assert one == recipe.train and one.objective == "orpo"
    assert (two.objective, two.lr, two.smoothing, two.clip) == ("exo_pair", 1e-6, 0.005, 0.3)
    assert two.accumulate == 4 and two.lora == one.lora
    assert (two.mask.answer_only, two.mask.markers) == (True, False)


# ---- every key changes something -----------------------------------------------------------------

# Two rounds of each phase, of Countdown's own problems and the exact solver.
BASE = {
    "profile": "quick", "task.limit": 12, "preflexor.questions": 4, "preflexor.rounds": 2,
    "preflexor.two.rounds": 2,
    "train.batch": 2, "train.lora.rank": 2, "eval.limit": 2, "policy.batch": 8,
    "policy.temperature": 1.0, "policy.max_new_tokens": 28, "eval.max_new_tokens": 4,
    "preflexor.two.answer_only": False, "preflexor.two.lr": 1e-3, "train.cut": "keep",
}  # fmt: skip
CHANGED = {
    "preflexor.rounds": (1, {}),
    "preflexor.questions": (3, {}),
    "preflexor.only_wrong": (False, {}),
    "preflexor.two.rounds": (1, {}),
    "preflexor.two.objective": ("dpo", {}),
    "preflexor.two.lr": (1e-4, {}),
    "preflexor.two.beta": (0.5, {}),
    "preflexor.two.smoothing": (0.1, {}),
    "preflexor.two.clip": (1e-4, {}),
    "preflexor.two.answer_only": (True, {}),
    "preflexor.two.think_fraction": (0.5, {}),
}
# Of a corpus, and a teacher that is asked over a socket.
POSED = {
    "task.name": "jsonl", "critic.provider": "ollama", "critic.model": "critic",
    "critic.cache": "off", "preflexor.questions": 2, "preflexor.rounds": 1,
    "preflexor.two.rounds": 0, "eval.spec": "countdown",
}  # fmt: skip
CHANGED_POSED = {
    "preflexor.corpus": ("other", {}),
    "preflexor.column": ("body", {}),
    "preflexor.chunk": (90, {}),
    "preflexor.topics": (["honey"], {}),
    "preflexor.retrieve": (0, {}),
    "preflexor.retriever": ("ollama:critic", {}),
    "preflexor.sections": (["hypothesis"], {}),
}


def test_the_smallest_passages_are_long_enough_to_be_kept():
    assert PreflexorConfig(chunk=FEWEST).chunk == FEWEST == 40


def test_no_key_is_forgotten():
    own = {f"preflexor.{key}" for key in flatten(PreflexorConfig().model_dump())}
    assert set(CHANGED) | set(CHANGED_POSED) == own


@pytest.fixture(scope="module")
def outputs_of(tmp_path_factory):
    return outputs_by_settings(tmp_path_factory, "preflexor", BASE)


@pytest.mark.slow
@pytest.mark.parametrize("key", CHANGED)
def test_a_changed_key_changes_an_output(key, outputs_of):
    value, needed = CHANGED[key]
    assert outputs_of({**needed, key: value}) != outputs_of(needed)


@pytest.mark.slow
@pytest.mark.parametrize("key", CHANGED_POSED)
def test_a_changed_key_of_a_corpus_changes_an_output(key, outputs_of, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "corpus"
    if not folder.exists():
        write_corpus(folder)
        row = {"text": "Bees dance to tell where honey is.", "body": "Rain on hills, then the sea."}
        (folder / "rows.jsonl").write_text(json.dumps({k: v * 2 for k, v in row.items()}) + "\n")
        (folder / "long.txt").write_text("\n\n".join(TEXTS.values()))
    other = tmp_path_factory.getbasetemp() / "other"
    if not other.exists():
        write_corpus(other)
    value, needed = CHANGED_POSED[key]
    with FakeOllama(reply=teacher) as server:
        posed = {**POSED, **needed, "critic.base_url": server.url,
                 "preflexor.corpus": str(folder)}  # fmt: skip
        changed = {**posed, key: str(other) if key == "preflexor.corpus" else value}
        runs = [outputs_of(settings)["episodes.jsonl"] for settings in (posed, changed)]
    assert runs[0] != runs[1]


# ---- a run ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    run_process("preflexor", BASE, run_dir)
    return run_dir


@pytest.mark.slow
def test_both_phases_and_the_policy_between_them(uninterrupted):
    summary = json.loads((uninterrupted / "summary.json").read_text())
    assert summary["status"] == "finished" and summary["examples"]["preference"] > 0
    arms = {folder.name for folder in (uninterrupted / "eval").iterdir() if folder.is_dir()}
    assert arms == {"base", "phase-1", "trained"}
    waves = [row for row in read_rows(uninterrupted / "metrics.jsonl") if row["kind"] == "wave"]
    assert [row["stage"] for row in waves] == ["phase-1"] * 2 + ["phase-2"] * 2
    steps = [row for row in read_rows(uninterrupted / "metrics.jsonl") if row["kind"] == "step"]
    assert {row["epoch"]: row["objective"] for row in steps} == {1: "orpo", 2: "exo_pair"}
    for kept in ("epoch-1", "epoch-2"):
        assert (uninterrupted / "checkpoints" / kept / "adapters.safetensors").is_file()


# In the second round of Phase II, and as Phase I is kept.
KILLS = {"took a training step": 5, "after a commit's rename": 4}


@pytest.mark.slow
@pytest.mark.parametrize("point", KILLS)
def test_killed_and_resumed_ends_with_the_same_bytes(point, tmp_path, uninterrupted):
    assert point in POINTS
    run_dir = tmp_path / "run"
    run_process("preflexor", BASE, run_dir, point, KILLS[point])
    finish(run_dir)
    expected, found = contents(uninterrupted), contents(run_dir)
    assert not [name for name in expected if found[name] != expected[name]]
