"""The dry run's figures: bounds that hold, rules that are said, dollars that add up."""

import json

import pytest
from support.methods import call_of, walk_r3

from mlxreflect.config.recipe import load_recipe
from mlxreflect.config.schema import Recipe
from mlxreflect.methods.base import LIKELY, Try
from mlxreflect.methods.preflexor_corpus import make_passage, make_question
from mlxreflect.methods.r3 import at_most, expected
from mlxreflect.setup.dry_run import dry, estimate
from mlxreflect.tasks import TASKS

COUNTDOWN = TASKS["countdown"]
PAID = {"provider": "openai", "model": "m", "price_in": 2.0, "price_out": 8.0, "max_tokens": 100}


def recipe(**tables):
    return Recipe.model_validate(tables)


def figures(n=4, **tables):
    made = recipe(**tables)
    problems = COUNTDOWN.load(made.task.model_copy(update={"limit": n}), "train", 0)
    return estimate(made, COUNTDOWN, problems)


@pytest.mark.parametrize("visits", [0, 1, 2])
@pytest.mark.parametrize("n,every,epochs,wave", [
    (10, 4, 1, 3), (10, 4, 3, 1), (10, 100, 2, 4), (7, 0, 2, 3), (12, 4, 2, 12), (1, 1, 1, 1),
])  # fmt: skip
def test_visits_at_most_are_those_of_a_run_that_never_solves_anything(
    n, every, epochs, wave, visits
):
    r3 = {"bucket_every": every, "epochs": epochs, "wave": wave, "bucket_visits": visits}
    made = recipe(r3={**r3, "patience": 0})
    seen = {"basic": 0, "advanced": 0}
    for taken in walk_r3(made, [str(i) for i in range(n)]):
        seen[taken.own["tier"]] += len(taken.problems)
    assert at_most(made, n)[0] == seen


def test_mastery_rounds_are_bounded_by_one_less_each_round():
    made = recipe(r3={"bucket_every": 0, "until_mastered": True})
    assert at_most(made, 4)[0]["advanced"] == 4 + 3 + 2 + 1 + 4  # and one forced round


def test_calls_by_hand():
    r3 = {"rewrites": 3, "verifications": 2, "bucket_every": 0}
    found = figures(critic=PAID, r3=r3)
    assert found["attempts"] == 4
    assert found["at_most"]["calls"] == found["critic_calls_at_most"] == 4 * 2 * 3 * 2
    # Half of 4; 1 + 1/2 + 1/4 tries; a second cycle for the half of the 7/8 that failed.
    assert found["expected"]["calls"] == round(2 * 2 * 1.75 * (1 + 7 / 8 / 2))
    assert expected(recipe(r3={**r3, "rewrites": 1, "verifications": 0}), 4, LIKELY)[1] == 1


def test_calls_where_an_attempt_is_several_samples():
    r3 = {"rewrites": 1, "verifications": 0, "bucket_every": 0, "pairs": "both", "attempts": 3}
    found = figures(n=16, critic=PAID, r3=r3)
    assert found["attempts"] == 16 * 3
    assert found["expected"]["calls"] == 16 * LIKELY.wrong**3 * 2
    assert found["at_most"]["calls"] == 16 * 2
    alone = figures(critic=PAID, r3={**r3, "pairs": "own", "rewrites": 0})
    assert alone["at_most"]["calls"] == 0 and not alone["critics"]


def test_tokens_and_dollars_by_hand():
    r3 = {"rewrites": 1, "verifications": 1, "bucket_every": 0}
    found = figures(n=1, critic=PAID, r3=r3, policy={"max_new_tokens": 40})
    shown = dry(recipe(critic=PAID, r3=r3, task={"limit": 1}))["prompts"]
    most = found["at_most"]
    assert (most["calls"], most["tokens_out"]) == (2, 200)
    prompts = {role: sum(len(m["content"]) for m in ms) / 4 for role, ms in shown.items()}
    quoted = (len("(an attempt)") * 2 + len("(feedback)")) / 4
    # The attempt twice and the feedback once, at their limits.
    bound = prompts["critique"] + prompts["rewrite"] - quoted + 3 * 100
    assert most["tokens_in"] == pytest.approx(bound, abs=1)
    assert most["usd"] == pytest.approx((most["tokens_in"] * 2 + 200 * 8) / 1e6, abs=1e-4)
    assert found["expected"]["usd"] < most["usd"] / 3


def test_each_critic_at_its_own_price():
    critic = {**PAID, "advanced": {"price_out": 80.0}, "judge": {"model": "j", "price_out": 0.0,
              "price_in": 0.0}}  # fmt: skip
    found = figures(critic=critic, r3={"bucket_every": 2, "judge": True})
    by = found["critics"]
    assert {tier: one["critic"] for tier, one in by.items()} == {
        "basic": "openai:m", "advanced": "openai:m", "judge": "openai:j"
    }  # fmt: skip
    dear, cheap = by["advanced"]["at_most"], by["basic"]["at_most"]
    assert dear["usd"] / dear["calls"] > 2 * cheap["usd"] / cheap["calls"]
    assert by["judge"]["at_most"]["usd"] == 0 < by["judge"]["at_most"]["tokens_in"]
    for kind in ("expected", "at_most"):
        for name in ("calls", "tokens_in", "tokens_out", "usd"):
            parts = sum(one[kind][name] for one in by.values())
            assert found[kind][name] == pytest.approx(parts, abs=2)


def test_the_solver_and_the_policy_itself_cost_nothing():
    free = figures(r3={"bucket_every": 0})
    assert free["at_most"]["calls"] > 0
    assert {free["at_most"][k] for k in ("tokens_in", "tokens_out", "usd")} == {0}
    alone = figures(critic=PAID, r3={"feedback": "self", "rewriter": "self"})
    assert alone["at_most"]["calls"] == 0 and not alone["critics"]
    half = figures(critic=PAID, r3={"feedback": "self"})
    assert half["at_most"]["calls"] * 2 == figures(critic=PAID)["at_most"]["calls"]


def test_a_dry_run_shows_what_the_policy_is_asked_after_its_reflection():
    keys = ["profile=quick", "task.limit=2", "limits.policy_tokens=70"]
    shown = dry(load_recipe("reflectevo", keys))
    assert "(a reflection)" in shown["prompts"]["retry"][-1]["content"]
    assert "Learning ends with the wave that reaches limits.policy_tokens = 70" in shown["text"]


def test_a_dry_run_says_its_rules_and_asks_nobody():
    settings = ["critic.provider=ollama", "critic.model=m", "critic.base_url=http://127.0.0.1:9",
                "policy.model=/none/such", "r3.judge=true", "task.limit=3",
                "critic.budget.max_calls=7", "prompt.templates.judge=Is it so?"]  # fmt: skip
    shown = dry(load_recipe("quickstart", settings))
    assert list(shown["prompts"]) == ["attempt", "critique", "rewrite", "judge"]
    assert shown["prompts"]["judge"][0]["content"] == "Is it so?"
    for part in ("Rules of thumb", "50%", "4 characters", "critic.budget.max_calls = 7",
                 f"at most {shown['estimate']['at_most']['calls']} critic calls"):  # fmt: skip
        assert part in shown["text"]
    json.dumps(shown)
    alone = dry(load_recipe("traces", ["profile=quick", "task.limit=5"]))["text"]
    assert "attempts, no critic calls\n" in alone and "Rules of thumb" not in alone


def test_passages_of_a_corpus_count_with_their_length():
    task, chunk = TASKS["jsonl"], 40_000
    keys = {"corpus": "notes", "rounds": 1, "questions": 3, "retrieve": 2, "two": {"rounds": 0}}
    made = recipe(strategy="preflexor", preflexor={**keys, "chunk": chunk}, critic=PAID)
    passages = ["x" * chunk] * 3
    asked = make_question(make_passage("x" * 50, {}), "(a question)")
    at = Try("basic", 1, "")
    shown = {
        "pose": {"passage": passages[0]}, "extract": {"passage": passages, "sections": "a"},
        "ground": {"passage": passages, "sections": ""},
    }  # fmt: skip
    calls = [call_of(role, asked, at, made, task, **data) for role, data in shown.items()]
    least = sum(len(m["content"]) for call in calls for m in call.messages) / 4
    found = estimate(made, task, [asked])["critics"]["basic"]
    assert 3 * least < found["at_most"]["tokens_in"] < 6 * least  # each extract may be asked twice
    assert found["expected"]["tokens_in"] == pytest.approx(3 * least / 2, rel=0.05)
