"""REL: what is accepted, what of it is trained on, and that nothing else passes."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import mlx.core as mx
import pytest
from support.run_outputs import outputs_in, outputs_of_run
from test_r3 import COUNTDOWN, NONSENSE, Critic, play, roles

from mlxreflect.config.methods import RelConfig
from mlxreflect.config.recipe import load_recipe
from mlxreflect.config.schema import CriticConfig, Recipe
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import read_rows
from mlxreflect.core.records import episode_from_row, make_problem, to_row
from mlxreflect.core.ui import Ui
from mlxreflect.critics.base import Reply
from mlxreflect.critics.client import cache_key
from mlxreflect.critics.solver import SolverCritic
from mlxreflect.graders.text import agrees, stated, withheld
from mlxreflect.methods.asked import asked_tiers
from mlxreflect.methods.base import Hands
from mlxreflect.methods.examples import rel_worked
from mlxreflect.methods.rel import Rel
from mlxreflect.methods.roles import Moves, Round
from mlxreflect.models.policy import load_policy
from mlxreflect.prompts import messages as prompts
from mlxreflect.runs.folder import Run
from mlxreflect.runs.run import execute
from mlxreflect.setup.dry_run import dry
from mlxreflect.setup.estimate import estimate
from mlxreflect.tasks import TASKS
from mlxreflect.train.encode import Encoder
from mlxreflect.train.lora import attach_lora
from mlxreflect.train.trainer import Trainer

DRIVER = str(Path(__file__).parent / "support" / "kill_driver.py")
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
    return Rel(Hands(recipe, COUNTDOWN, policy, Trainer(policy.model), critics, known))


# ---- builders ------------------------------------------------------------------------------------

PROMPT = [{"role": "user", "content": "as an evaluation asks"}]
MESSY = "<think>\nstep 1: 3 + 4 = 8\nNo, 3 + 4 is 7.\n7 * 5 = 35\n</think>\n<answer>35</answer>"
CLEAN = "<think>\n3 + 4 = 7\n7 * 5 = 35\n</think>\n<answer>35</answer>"


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
    made = [e for episode in episodes for e in rel_worked(episode, PROMPT, target)]
    found = [{k: v for k, v in to_row(e).items() if v is not None} for e in made]
    assert found == EXPECTED[target]


def test_mistakes_are_shown_and_not_imitated():
    """The loss begins where the working turned: after the part that attempt and text share."""
    (episode,) = [e for r in read_rows(EPISODES) if (e := episode_from_row(r)).problem.id[0] == "c"]
    (example,) = rel_worked(episode, PROMPT, "working", mistakes=False)
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
    (row,) = [r for r in read_rows(EPISODES) if r["problem"]["id"] == "continued"]
    end = "No, 7.\n7 * 5 = 35\n</think>\n<answer>35</answer>"
    whole = prompts.carried_on(prompts.open_working(attempt, "think"), end, "think")
    for text in (whole, f"<think> 3 + 4  = 8 {end}"):  # the latter repeats the working itself
        row["turns"][0]["text"], row["turns"][2]["text"] = attempt, text
        (example,) = rel_worked(episode_from_row(row), PROMPT, "working", mistakes=False)
        begin = int(example.mask.removeprefix("from "))
        assert text[begin:].strip() == end and not text[:begin].endswith("\n")


def test_the_expected_answer_is_taken_out_of_hints():
    assert withheld("it is 42, not 36", "42") == "it is …, not 36"
    assert withheld("142 and 4.42 and 42.5 and 42,000 and x42", "42") == (
        "142 and 4.42 and 42.5 and 42,000 and x42"
    )
    assert withheld("so 42. And 42", "42") == "so …. And …"
    assert withheld("a (b+ c", "(b+") == "a … c"
    assert withheld("nothing is known", None) == withheld("nothing is known", " ")
    assert withheld("it is B, not a lion", "B", "a lion") == "it is …, not …"


@pytest.mark.parametrize(
    ("gold", "text"),
    [("72", "72.0"), ("72", "72.00"), ("1234", "1,234"), ("1,234", "1234"), ("72", "072"),
     ("Paris", "PARIS"), ("paris", "Paris"), ("New York", "new  york"), ("1/2", "0.5"),
     ("1/2", r"\frac{1}{2}"), ("0.5", "1/2"), ("-5", "\u22125"), ("72", "\uff17\uff12")],
)  # fmt: skip
def test_the_expected_answer_is_taken_out_however_it_is_written(gold, text):
    said = withheld(f"it should be {text} in the end", gold)
    assert text not in said and "…" in said and said.endswith("in the end")
    assert not any(character.isdigit() for character in said)


def test_the_answer_that_a_worked_solution_gives():
    assert stated(r"no \boxed{1}, \boxed{\text{Ann}}") == "Ann"
    assert stated(r"<answer> 2 </answer> not \boxed{1}") == "2"
    assert stated("the answer is 7") is None


def test_answers_that_agree():
    same = [
        ("(1,2)", "(1, 2)"),
        ("1,234", "1234"),
        ("0.5", "1/2"),
        ("Paris.", "paris"),
        (" 42 ", "42.0"),
    ]
    assert all(agrees(*both) for both in same)
    other = [("45", "44"), ("Rome", "Paris"), ("", "42"), ("17 or 18", "18"), ("x", "y" * 10**6)]
    assert not any(agrees(*both) for both in other)


# ---- tries ---------------------------------------------------------------------------------------


def test_the_first_failure_is_continued_from_a_hint():
    critic = Helper()
    strategy = make(critic)
    tries, training = play(strategy)
    evaluated = strategy.attempts.prompt
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
        assert (
            prompts.quote("attempt", episode.turns[2].text)
            in (episode.turns[4].messages[-1]["content"])
        )
        assert episode.outcome.solved_turn == 4
    heats = [c.temperature for c in critic.calls if c.role != "judge"]
    assert heats == pytest.approx([0.45] * 3 + [0.405] * 3)
    tries, training = play(make(Helper(wrong=["continue", "rewrite"])))
    for episode in tries.episodes:
        assert roles(episode) == ["attempt", "judge", "continue", "judge", "rewrite"]
        assert (episode.outcome.status, episode.outcome.solved_turn) == ("discarded", None)
    assert not training.examples and not training.steps


def test_a_rewrite_is_shown_the_solution_where_the_data_have_one():
    problem = make_problem(
        "gsm8k", {"question": "6 * 7?"}, "42", {"solution": "6 * 7 = 42 #### 42"}
    )
    m, at = Moves(Recipe(), TASKS["gsm8k"]), Round("basic", 1, "0/3")
    call = m.rewrite(problem, "an attempt", "a hint", at, solution=problem.meta["solution"])
    assert call.visibility == "gold_solution"
    assert prompts.quote("expected", "6 * 7 = 42 #### 42") in call.messages[-1]["content"]
    assert m.rewrite(problem, "an attempt", "a hint", at).visibility == "gold_answer"
    assert "42" not in json.dumps(m.go_on(problem, "an attempt", "a hint", at).messages)


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
    solver, m = SolverCritic(CriticConfig(), "countdown"), Moves(Recipe(), COUNTDOWN)
    at = Round("basic", 1, "0/2")
    working = "<think>\nstep 1: 3 + 4 = 7\nstep 2: 7 + 5 = 12"
    (reply,) = solver.ask([m.go_on(problem, working, "12 is not 35", at)])
    end = "\n</think>\n<answer> 5 * ( 3 + 4 ) </answer>"
    assert reply.text == f"12 is not 35\nstep 2: 5 * 7 = 35{end}"
    whole = prompts.carried_on(working, reply.text, "think")
    assert whole == f"{working}\n{reply.text}"
    (tidied,) = solver.ask([m.integrate(problem, [f"<think>\nWell.\n3 * 4 = 12\n3 + 4 = 7\n"
                                                  f"7 * 5 = 35{end}"], at)])  # fmt: skip
    assert tidied.text == f"<think>\n3 + 4 = 7\n7 * 5 = 35{end}"
    (lost,) = solver.ask([m.integrate(problem, [f"<think>\n3 * 4 = 12{end}"], at)])
    assert not COUNTDOWN.grade(problem, lost.text, "think", "thinking").verdict.passed


def test_a_calls_own_temperature_is_part_of_what_is_asked():
    problem = make_problem("countdown", {"numbers": [3, 4, 5], "target": 35})
    call = Moves(Recipe(), COUNTDOWN).go_on(problem, "<think>", "", Round("basic", 1, "0/2"))
    config = CriticConfig(temperature=0.5)
    same, other = replace(call, temperature=0.5), replace(call, temperature=0.25)
    assert cache_key(config, same) == cache_key(config, call) != cache_key(config, other)


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
    begun, fit = [], strategy.learning.trainer.fit

    def watched(objective, *rest):
        now = strategy.learning.trainer.trainable()
        begun.append(
            (len(objective.items), all(mx.array_equal(now[k], v).item() for k, v in start.items()))
        )
        assert not strategy.learning.trainer.optimizers
        return fit(objective, *rest)

    strategy.learning.trainer.fit = watched
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
    strategy.keep(tries.episodes)
    assert strategy.state.made == before and len(before) == 3


# ---- worked solutions by people ------------------------------------------------------------------

GOOD = "step 1: 3 + 4 = 7\nstep 2: 7 * 5 = 35"


def people(path, text, **tables):
    path.write_text(text)
    rel = {"human": str(path), **tables.pop("rel", {})}
    tree = {"strategy": "rel", "rel": rel, "eval": {"decontaminate": "off"}, **tables}
    recipe = Recipe.model_validate(tree)
    from mlxreflect.methods.rel_worked import human_examples

    known = make_problem("countdown", {"numbers": [3, 4, 5], "target": 35})
    return human_examples(recipe, COUNTDOWN, [known])


def test_markdown_of_people(tmp_path):
    asked = "Numbers: 3 4 5\nTarget: 35"
    found = people(
        tmp_path / "w.md",
        f"""# Ours
### Question
{asked}
### Answer
Hm. 3 * 4 = 12? No.
{GOOD}
<answer>(3 + 4) * 5</answer>

### question:
Another one?
#### Answer
Yes.
<answer>yes</answer>

### Question
{asked}
### Answer
{GOOD}
<answer>3 + 4 + 5</answer>

### Question
No answer here
### Answer
None.
""",
    )
    first, second = found.examples
    assert first.completion == (
        f"<think>\nHm. 3 * 4 = 12? No.\n{GOOD}\n</think>\n<answer>(3 + 4) * 5</answer>"
    )
    assert first.weight == 2.0 and first.prompt[-1]["content"] == asked
    assert first.source["human"].endswith("w.md, line 2") and first.source["problem"]
    assert second.prompt[-1]["content"] == "Another one?" and second.source["problem"] is None
    assert found.left_out == {"the grader calls it wrong": 1, "it has no answer": 1}
    why = "(2 left out; the grader calls it wrong: 1, it has no answer: 1)"
    assert found.sentence() == f"worked solutions: 2 by people {why}"
    strategy = make(human=str(tmp_path / "w.md"))  # none of its questions is one of this run
    counted = "3 by people (1 left out; it has no answer: 1)"
    assert play(strategy)[1].figures["told"] == f"trained on 3 workings and {counted}"
    assert f"--- worked solutions: {counted}" in dry(strategy.recipe)["text"]


def test_a_question_of_the_run_is_known_whatever_its_spacing(tmp_path):
    """And is asked as an evaluation asks it; its grader decides."""
    asked = "\ufeff### Question\r\nNUMBERS: 3  4 5 \r\nTarget: 35\r\n### Answer\r\n"
    found = people(tmp_path / "w.md", f"{asked}{GOOD}\r\n<answer>(3 + 4) * 5</answer>\r\n")
    (example,) = found.examples
    assert example.source["problem"] and found.left_out == {}
    assert example.prompt[-1]["content"] == "Numbers: 3 4 5\nTarget: 35"
    wrong = people(tmp_path / "w.md", f"{asked}{GOOD}\r\n<answer>(3 + 5) * 4</answer>\r\n")
    assert wrong.left_out == {"the grader calls it wrong": 1}


def test_reasonset_rows_of_people(tmp_path):
    (tmp_path / "exam.jsonl").write_text('{"question": "Asked?", "answer": 1}\n')
    base = {"problem": "Q?", "ground_truth": "1", "working_out": "It is 1.", "final_solution": "1!"}
    rows = [base, base, {**base, "working_out": "It is 2.", "is_correct": False},
            {**base, "ground_truth": None}, {**base, "problem": "Asked ?"},
            {**base, "working_out": "<think>so</think><answer>1</answer>",
             "ground_truth": 1}]  # fmt: skip
    text = "".join(json.dumps(r) + "\n" for r in rows)
    found = people(tmp_path / "w.jsonl", text,
                   eval={"spec": "jsonl", "source": str(tmp_path / "exam.jsonl")})  # fmt: skip
    assert [e.completion for e in found.examples] == [
        "<think>\nIt is 1.\n</think>\n<answer>1</answer>", "<think>so</think><answer>1</answer>",
    ]  # fmt: skip
    assert found.left_out == {
        "it is there twice": 1, "it says itself that it is wrong": 1, "it has no answer": 1,
        "its question occurs in the evaluation": 1,
    }  # fmt: skip
    tidied = people(
        tmp_path / "w.jsonl", json.dumps(base), rel={"target": "tidied", "review": True}
    )
    assert tidied.examples[0].completion == "<think>\n1!\n</think>\n<answer>1</answer>"


def test_what_people_have_wrong_is_not_mended_and_not_trained_on(tmp_path):
    """Of problems that only their file has: by the ground truth beside them."""
    base = {"problem": "What is 40 + 4?", "ground_truth": "44"}
    workings = [
        "I think 40 + 4 <answer>45</answer>",
        "<think>40 + 4 = 45</think><answer>45</answer>",
        "40 + 4, <answer>44",  # never closed
        "According to the feedback it is 44. <answer>44</answer>",
        "40 + 4 <answer>44.0</answer>",
        "40  +  4\n<answer>44.0</answer>",
        r"40 + 4 is \boxed{45}",
        r"40 + 4 is \boxed{44\text{ cm}}",
    ]
    rows = [{**base, "working_out": text} for text in workings]
    rows.append({**rows[5], "problem": "what is  40 + 4? "})
    text = "".join(json.dumps(r) + "\n" for r in rows)
    found = people(tmp_path / "w.jsonl", text)
    assert [e.completion for e in found.examples] == [
        "<think>\n40 + 4\n</think>\n<answer>44.0</answer>",
        "<think>\n40 + 4 is \\boxed{44\\text{ cm}}\n</think>\n<answer>44</answer>",
    ]
    assert found.left_out == {
        "its answer is not its ground_truth": 3, "it does not fit the format": 1,
        "it says 'according to the feedback'": 1, "it is there twice": 2,
    }  # fmt: skip


@pytest.mark.parametrize("name,text,said", [
    ("w.md", "### Question\na\n### Question\nb", "w.md, line 3: a second question"),
    ("w.md", "### Answer\na", "w.md, line 1: a second answer"),
    ("w.md", "### Question\na\n", "w.md, line 1: a question without an answer"),
    ("w.md", "nothing", "w.md: no question"),
    ("w.md", "### Question\na\n### Answer\n \n", "w.md, line 3: nothing stands below this answer"),
    ("w.md", " \n", "w.md: no worked solution is in it"),
    ("w.jsonl", "", "w.jsonl: no worked solution is in it"),
    ("w.jsonl", '{"problem": "a"}\n', "w.jsonl, line 1: no problem or no working_out"),
    ("w.jsonl", '{"problem": 1, "working_out": "b"}\n', "w.jsonl, line 1: problem is no str"),
])  # fmt: skip
def test_what_cannot_be_read_is_named(tmp_path, name, text, said):
    with pytest.raises(UserError) as caught:
        people(tmp_path / name, text)
    assert said in caught.value.message


# ---- recipe --------------------------------------------------------------------------------------


def test_who_is_asked_and_how_often():
    def asked(**rel):
        recipe = load_recipe("rel", [f"rel.{k}={json.dumps(v)}" for k, v in rel.items()])
        problems = [make_problem("gsm8k", {"question": "?"}, "1")] * 8
        return asked_tiers(recipe), estimate(recipe, TASKS["gsm8k"], problems)

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


def test_tidied_needs_a_review():
    with pytest.raises(UserError) as caught:
        load_recipe("rel", ["rel.target=tidied"])
    assert "rel.review = true" in caught.value.hint


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
    """What runs of the quick profile leave behind, each made once."""
    made, people = {}, tmp_path_factory.mktemp("people") / "w.md"
    people.write_text("### Question\nQ?\n### Answer\nstep 1: 1 + 1 = 2\n<answer> 1 + 1 </answer>\n")

    def get(settings):
        key = json.dumps(settings, sort_keys=True)
        if key not in made:
            real = {k: str(people) if v == "PEOPLE" else v for k, v in settings.items()}
            folder = tmp_path_factory.mktemp("run") / "run"
            made[key] = outputs_of_run("rel", {**SMALL, **real}, folder)
        return made[key]

    return get


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
    flags = [f"--set={key}={value if key == 'profile' else json.dumps(value)}"
             for key, value in {**SMALL, **settings}.items()]  # fmt: skip
    call = [sys.executable, DRIVER, point, str(nth), "run", "rel", "--run-dir", str(folder)]
    killed = subprocess.run([*call, *flags], capture_output=True)
    assert killed.returncode == -9, killed.stderr
    assert {row["epoch"] for row in read_rows(folder / "metrics.jsonl")} >= {1, 2}
    assert not (folder / "summary.json").exists()
    run = Run.open(folder, [])
    try:
        execute(run, Ui(quiet=True))
    finally:
        run.close()
    again = outputs_in(folder)
    different = [name for name in whole if again.get(name) != whole[name]]
    # Moments that were read from a file are written in another order.
    assert {Path(name).name for name in different} <= {"optimizer-sft.safetensors"}
    assert (folder / "eval" / "round-1" / "results.json").is_file()
