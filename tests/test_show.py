"""Showing a run and a problem's story, from files as a run writes them, with hostile text."""

import json
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType
from support.methods import attempt_messages

from mlxreflect.config.recipe import load_recipe
from mlxreflect.config.schema import METHODS, method_of
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import append_rows
from mlxreflect.core.records import (
    Episode,
    Example,
    Outcome,
    Problem,
    Turn,
    Verdict,
    make_problem,
    to_row,
)
from mlxreflect.methods.base import STATUSES, count_statuses, status_words
from mlxreflect.report import show
from mlxreflect.runs.figures import dropped_leaks
from mlxreflect.runs.fit import show_training

HOSTILE = "\x1b]0;owned\x07\x1b[2J[bold red]not bold[/bold red] [link=http://x]y[/link] \u202e\r"
FIRST = make_problem("countdown", {"numbers": [3, 4, 5], "target": 35})
SECOND = make_problem("gsm8k", {"question": "How many eggs?\n" * 9}, gold="18")


def turn(index: int, parent: int | None, role: Any, text: str, **over: Any) -> Turn:
    actor = "policy:ab12" if role in ("attempt", "verify") else "ollama:qwen"
    messages = attempt_messages("Do.", "Numbers: 3 4 5\nTarget: 35", "think", "thinking")
    return Turn(**{"index": index, "parent": parent, "role": role, "actor": actor,
                   "messages": messages, "text": text, **over})  # fmt: skip


def learned(problem: Problem, epoch: int = 1, wave: int = 0) -> Episode:
    """Wrong, a failed call, rewritten twice, trained, verified at the second try."""
    wrong = Verdict(False, True, "the answer is 27, not 35")
    right = Verdict(True, True, "")
    turns = [
        turn(0, None, "attempt", "<think>3 + 4 = 7 then 27</think>", verdict=wrong,
             usage={"prompt": 40, "completion": 231}, finish_reason="length"),
        turn(1, 0, "critique", f"the sum {HOSTILE} is wrong", visibility="gold_answer"),
        turn(2, 1, "rewrite", "", error=f"timed out {HOSTILE}"),
        turn(3, 0, "critique", "multiply"),
        turn(4, 3, "rewrite", "<think>3 + 4 = 7 then 35</think>", verdict=right),
        turn(5, 4, "verify", "again 27", verdict=wrong),
        turn(6, 4, "verify", "now 35", verdict=right),
    ]  # fmt: skip
    return Episode("r3", epoch, wave, problem, turns, Outcome(False, 6, "solved"))


def at_once(problem: Problem, status: Any = "solved_first", **over: Any) -> Episode:
    passed = Verdict(status == "solved_first", True, "")
    turns = [turn(0, None, "attempt", "35", verdict=passed)]
    return Episode("r3", 1, over.get("wave", 0), problem, turns, Outcome(passed.passed, 0, status))


def examples_of(episode: Episode) -> list[Example]:
    source = {"problem": episode.problem.id, "epoch": episode.epoch, "wave": episode.wave}
    prompt = episode.turns[0].messages
    texts = {"prompt": prompt, "chosen": "c", "rejected": "r"}
    imitated = {"kind": "sft", "prompt": prompt, "completion": "c"}
    return [
        Example("preference", **texts, source={**source, "turns": [4, 0]}),
        *(Example(**imitated, source={**source, "turns": [4]}) for _ in range(2)),
        Example(**imitated, source={**source, "turns": [6]}),
    ]


def make_run(path: Path, episodes: list[Episode], examples: list[Example] | None = None) -> Path:
    path.mkdir(parents=True)
    recipe = 'name = "r3"\npolicy.model = "tiny"\ncritic.provider = "solver"\ncritic.model = ""\n'
    (path / "recipe.toml").write_text(recipe, encoding="utf-8")
    append_rows(path / "episodes.jsonl", map(to_row, episodes))
    append_rows(path / "examples.jsonl", map(to_row, examples or []))
    return path


def finish(path: Path) -> Path:
    """What the end of a run adds."""
    arm = {"n": 10, "accuracy": 0.4, "ci_low": 0.168, "ci_high": 0.687, "format_rate": 0.9,
           "parse_failures": 1, "truncated": 2}  # fmt: skip
    summary = {
        "status": "finished", "wall_seconds": 90.0, "problems": 2,
        "statuses": {"solved_first": 1, "solved": 1}, "examples": {"preference": 3, "sft": 4},
        "failures": {"wrong_answer": 4},
        "critic": {"calls": 9, "cached": 5, "failed": 1},
        "base": arm, "trained": {**arm, "accuracy": 0.7}, "comparison": {"gains": 3},
    }  # fmt: skip
    (path / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    verdict = {"sentence": "trained answers 70.0%, not significant."}
    (path / "comparison.json").write_text(json.dumps(verdict), encoding="utf-8")
    (path / "plots").mkdir()
    (path / "plots" / "loss.png").write_bytes(b"")
    return path


def wave_row(number: int, **over: Any) -> dict[str, Any]:
    return {
        "schema": "metrics/1", "kind": "wave", "epoch": 1, "wave": number, "stage": "problems",
        "tier": "basic", "problems": 8, "first_correct": 2, "format_ok": 6, "solved": 5,
        "bucket": 3, "pairs": 3, "rewrites": 4, "verifications": 5, "seconds": 1.5, **over,
    }  # fmt: skip


def draw(parts: list[RenderableType], *, color: bool = False) -> str:
    system: Any = "standard" if color else None
    console = Console(width=140, color_system=system, force_terminal=color, highlight=False)
    with console.capture() as capture:
        for part in parts:
            console.print(part)
    return capture.get()


def test_what_the_leak_filter_dropped_is_counted_with_the_phrases(tmp_path: Path) -> None:
    told = Verdict(False, True, "it says 'the critic'", "leak filter")
    wrong = Verdict(False, True, "the answer is 27, not 35")
    verdicts = [told, wrong, told, replace(told, reason="it only restates the answer")]
    turns = [turn(i, None, "rewrite", "x", verdict=verdict) for i, verdict in enumerate(verdicts)]
    lost = turn(4, None, "rewrite", "", error="timed out")
    ended = replace(learned(FIRST), turns=[*turns, lost], outcome=Outcome(False, None, "bucket"))
    run = make_run(tmp_path / "run", [ended])
    leaks = dropped_leaks(run)
    reasons = {"it says 'the critic'": 2, "it only restates the answer": 1}
    assert leaks == {"of": 4, "dropped": 3, "reasons": reasons}
    (run / "summary.json").write_text(json.dumps({"leaks": leaks}), encoding="utf-8")
    append_rows(run / "metrics.jsonl", [wave_row(0, leaks=3)])
    text = " ".join(draw(show.show_run(run)).split())
    assert "3 of 4 rewrites (2 × it says 'the critic'; 1 × it only restates the answer)" in text
    assert "leaks" in draw([show.show_waves(run)])
    assert "it says 'the critic' (leak filter)" in draw(show.show_problem(run, FIRST.id))


def is_harmless(text: str) -> bool:
    return not any(bad in text for bad in ("\x1b]", "\x1b[2J", "\x07", "\r", "\u202e"))


def test_a_finished_run(tmp_path: Path) -> None:
    run = finish(make_run(tmp_path / "run", [learned(FIRST), at_once(SECOND)]))
    append_rows(run / "metrics.jsonl", [wave_row(0), wave_row(1, stage="bucket", tier="advanced")])
    text = draw(show.show_run(run))
    for part in (
        "r3", "tiny", "finished", "Waves", "bucket", FIRST.id, SECOND.id,
        "numbers 3 4 5, target 35", "How many eggs? How many eggs?", "solved_first",
        "40.0%", "16.8% to 68.7%", "70.0%", "not significant.", str(run / "plots"), "loss.png",
        "solver: 9 calls, 5 of them from the cache, 1 failed", "4 wrong answer", "1.5 min",
        "3 preference pairs, 4 SFT examples",
    ):  # fmt: skip
        assert part in text, part
    assert "resume" not in text


def test_counts_of_a_problem_are_over_its_episodes(tmp_path: Path) -> None:
    episodes = [learned(FIRST), at_once(FIRST, "bucket", wave=1), learned(FIRST, 2, 2)]
    text = draw(show.show_run(make_run(tmp_path / "run", episodes)))
    (line,) = [line for line in text.splitlines() if FIRST.id in line]
    assert line.split()[-4:] == ["7", "4", "solved", "basic"]


def test_problems_are_counted_as_their_last_episode_left_them() -> None:
    """So that a count is the number of rows of `--status`."""
    episodes = [
        at_once(FIRST, "bucket"), at_once(SECOND), learned(FIRST, 1, 1), at_once(SECOND, "bucket"),
        at_once(SECOND, wave=3),
    ]  # fmt: skip
    counts = count_statuses(map(to_row, episodes))
    assert counts == {"solved_first": 1, "solved": 1}
    for status in STATUSES:
        rows = [draw([show.show_problems(episodes, status)])]
        assert sum(p.id in rows[0] for p in (FIRST, SECOND)) == counts.get(status, 0)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("r3", {"right later": "5 (solved)", "trained on, not verified": "3 (trained)"}),
        ("rel", {"accepted at a later try": "5 (solved)"}),
        ("preflexor", {"taught by the teacher": "3 (trained)"}),
    ],
)
def test_what_came_out_right_says_who_wrote_it(method: str, said: dict[str, str]) -> None:
    words = status_words({"solved": 5, "trained": 3}, METHODS[method].words)
    assert said.items() <= words.items() and len(words) == 2


def test_of_chains_the_first_answer_is_told_too(tmp_path: Path) -> None:
    run = finish(make_run(tmp_path / "run", []))
    chain = {"name": "Acc@t12", "acc_at": [0.28, 0.79], "gated": True, "right_to_wrong": 0,
             "wrong_to_right": 51, "samples_mean": 5.0, "tokens_generated": 100.0,
             "tokens_prefilled": 0.0, "failed": 0}  # fmt: skip
    for arm in ("base", "trained"):
        (run / "eval" / arm).mkdir(parents=True)
        results = json.dumps({"n": 100, "accuracy": 0.79, "chain": chain})
        (run / "eval" / arm / "results.json").write_text(results, encoding="utf-8")
    text = " ".join(draw(show.show_summary(run)).split())
    for arm in ("base", "trained"):
        assert f"{arm}: 28.0% at the first answer, Acc@t12 79.0%" in text
    assert text.count("the grader ends a chain") == 2


def test_second_answers_are_a_row_an_arm_and_kind_of_retry(tmp_path: Path) -> None:
    run = finish(make_run(tmp_path / "run", []))
    arms, tests = [], []
    for retry, gated in (("reflection", False), ("reflection", True), ("bare", False),
                         ("bare", True)):  # fmt: skip
        for arm, t2 in (("base", 0.25), ("trained", 0.5)):
            arms.append({
                "arm": arm, "retry": retry, "gated": gated, "n": 500, "acc_t1": 0.375,
                "acc_t2": t2 + gated * 0.125, "wrong_to_right": 26,
                "right_to_wrong": 0 if gated else 56, "failed": 0,
            })  # fmt: skip
        tests.append({"retry": retry, "gated": gated, "difference": 0.108, "ci_low": 0.066,
                      "ci_high": 0.149, "gains": 86, "losses": 32, "p_exact": 6.9e-07})  # fmt: skip
    retries = {"schema": "retries/1", "arms": arms, "comparisons": tests}
    (run / "retries.json").write_text(json.dumps(retries), encoding="utf-8")
    lines = [" ".join(line.split()) for line in draw(show.show_summary(run)).splitlines()]
    assert [line for line in lines if "retry 37.5%" in line] == [
        "base, reflection retry 37.5% 25.0% 26 56 37.5%",
        "base, bare retry 37.5% 25.0% 26 56 37.5%",
        "trained, reflection retry 37.5% 50.0% 26 56 62.5%",
        "trained, bare retry 37.5% 50.0% 26 56 62.5%",
    ]
    said = (
        "trained against base, bare retry, gated: +10.8 points (+6.6 to +14.9; 86 gained, 32 lost)"
    )
    assert sum(said in line for line in lines) == 1
    assert sum(line.startswith("trained against base, ") for line in lines) == 4


def test_a_method_with_one_critic_does_not_name_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [replace(at_once(FIRST), recipe="traces")])
    for parts in (show.show_problem(run, FIRST.id), show.show_run(run)):
        assert "basic" not in draw(parts)


def test_what_a_run_never_had_is_not_listed(tmp_path: Path) -> None:
    run = finish(make_run(tmp_path / "run", [at_once(FIRST)]))
    none = {"bucket": 0, "pairs": 0, "rewrites": 0, "verifications": 0}
    append_rows(run / "metrics.jsonl", [wave_row(0, **none)])
    summary = json.loads((run / "summary.json").read_text())
    summary |= {"examples": {"group": 7}, "critic": {"calls": 0}}
    (run / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    text = draw([show.show_waves(run), *show.show_summary(run)])
    assert "trained on" in text and "7 groups of answers" in text
    for absent in ("bucket", "pairs", "rewrites", "verify", "calls"):
        assert absent not in text, absent
    (run / "summary.json").write_text(json.dumps({**summary, "examples": {}}), encoding="utf-8")
    assert "nothing: the trained policy is the base" in draw(show.show_summary(run))


@pytest.mark.parametrize(
    ("method", "settings", "who"),
    [
        ("r3", [], "ollama:qwen2.5:7b"),
        ("r3", ["r3.feedback=self"], "ollama:qwen2.5:7b and the policy itself"),
        ("r3", ["r3.feedback=self", "r3.rewriter=self"], "the policy itself"),
        ("r3", ["critic.advanced.model=big"],
         "ollama:qwen2.5:7b (basic) and ollama:big (advanced)"),
        ("rel", ["rel.writer=self"], "ollama:qwen2.5:7b and the policy itself"),
        ("traces", ["traces.scorer=rules"], "none"),
        ("reflectevo", [], "the policy itself"),
        ("reflectevo", ["reflectevo.reflector=critic"], "ollama:qwen2.5:7b"),
    ],
)  # fmt: skip
def test_the_header_names_who_is_asked(method: str, settings: list[str], who: str) -> None:
    ollama = ["critic.provider=ollama", "critic.model=qwen2.5:7b"]
    recipe = load_recipe(method, [*ollama, *settings])
    assert method_of(recipe).critic_names(recipe) == who


def test_a_run_that_died_shows_as_far_as_it_got(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [learned(FIRST)])
    with (run / "episodes.jsonl").open("a", encoding="utf-8") as out:
        out.write('{"schema": "episode/1", "rec')
    text = draw(show.show_run(run))
    said = f"not finished: under way, or go on with: mlxreflect resume {run}"
    assert "".join(said.split()) in "".join(text.split())  # a long path is broken
    assert FIRST.id in text
    (run / "episodes.jsonl").unlink()
    text = draw(show.show_run(run))
    assert "no wave is finished yet" in text
    assert "no problem is done yet" in text
    (run / "eval" / "base").mkdir(parents=True)
    (run / "eval" / "base" / "results.json").write_text('{"n": 5, "accuracy": 0.25}')
    assert "25.0%" in draw(show.show_run(run))


def test_status_shows_all_of_one_kind(tmp_path: Path) -> None:
    many = [make_problem("countdown", {"numbers": [i], "target": i}) for i in range(60)]
    episodes = [at_once(p, "bucket" if i % 6 else "solved_first") for i, p in enumerate(many)]
    run = make_run(tmp_path / "run", episodes)
    text = draw(show.show_run(run))
    assert sum(p.id in text for p in many) == 40
    assert "the first 40 of 60" in text
    text = draw(show.show_run(run, "bucket"))
    assert [p.id in text for p in many] == [bool(i % 6) for i in range(60)]
    assert "no problem with status failed" in draw(show.show_run(run, "failed"))
    with pytest.raises(UserError) as caught:
        show.show_run(run, "open")
    for status in ("solved_first", "solved", "trained", "bucket", "failed"):
        assert status in caught.value.hint


def test_only_the_last_waves_are_listed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [])
    append_rows(run / "metrics.jsonl", [wave_row(700_000 + i) for i in range(50)])
    text = draw(show.show_run(run))
    assert "the last 30 of 50" in text
    assert [str(700_001 + i) in text for i in range(50)] == [i >= 20 for i in range(50)]


@pytest.mark.parametrize(
    ("task", "fields", "asked"),
    [("countdown", {"numbers": [3, 4], "target": 7}, ("numbers 3 4, target 7", "countdown")),
     ("jsonl", {"question": "What's\n 2 + 3?"}, ("What's 2 + 3?", "")),
     ("jsonl", {"question": "--help"}, ("", "")),
     ("jsonl", {"question": "why " * 99}, ("why " * 39 + "why…", ""))],
)  # fmt: skip
def test_a_run_ends_with_a_question_that_it_answered_rightly(
    task: str, fields: dict[str, Any], asked: tuple[str, str], tmp_path: Path
) -> None:
    arm = tmp_path / "eval" / "trained"
    arm.mkdir(parents=True)
    problems = [Problem("right", task, fields, None), Problem("wrong", task, fields, None)]
    append_rows(arm / "problems.jsonl", map(to_row, problems))
    rows = [{"problem_id": p.id, "correct": p.id == "right"} for p in problems]
    append_rows(arm / "samples.jsonl", rows)
    assert show.answered_question(tmp_path) == asked


def test_the_story_is_told_in_order(tmp_path: Path) -> None:
    episode = learned(FIRST)
    run = make_run(tmp_path / "run", [episode, at_once(SECOND)], examples_of(episode))
    text = draw(show.show_problem(run, FIRST.id[:6]))
    places = [
        text.index(part)
        for part in (
            FIRST.id, "Target: 35", "epoch 1, wave 1, basic critic",
            "0 attempt by policy:ab12, 231 tokens, cut off", "3 + 4 = 7 then 27",
            "✗ wrong, format kept: the answer is 27, not 35",
            "1 critique by ollama:qwen, shown: gold answer", "the call failed: timed out",
            "4 rewrite by ollama:qwen", "✓ right, format kept",
            "trained on a pair: turn 4 preferred to turn 0", "5 verify by policy", "again 27",
            "6 verify by policy", "now 35", "trained by SFT on turn 4 (2 ×), 6",
            "solved: verified after training, turn 6",
        )
    ]  # fmt: skip
    assert places == sorted(places)
    assert SECOND.id not in text and "expected" not in text
    assert "expected: 18" in draw(show.show_problem(run, SECOND.id))


def test_the_story_spans_epochs_with_each_ones_training(tmp_path: Path) -> None:
    early, late = at_once(FIRST, "bucket"), learned(FIRST, 2, 5)
    forced = Example("sft", [], completion="c", source={"problem": FIRST.id, "forced": True})
    run = make_run(tmp_path / "run", [early, late], [*examples_of(late), forced])
    text = draw(show.show_problem(run, FIRST.id))
    first, second = text.index("epoch 1, wave 1"), text.index("epoch 2, wave 6")
    assert first < text.index("not solved: on the bucket list") < second
    assert text.count("trained on a pair") == text.count("trained by SFT") == 1
    assert text.index("trained on a pair") > second
    assert "1 × SFT on its last winner" in text


@pytest.mark.parametrize("color", [False, True])
def test_hostile_text_is_shown_not_obeyed(tmp_path: Path, color: bool) -> None:
    problem = make_problem("jsonl", {"question": HOSTILE}, gold=HOSTILE)
    bad = Verdict(False, False, HOSTILE, source=HOSTILE)
    turns = [
        turn(0, None, "attempt", HOSTILE, actor=HOSTILE, verdict=bad,
             messages=[{"role": "user", "content": HOSTILE}]),
        turn(1, 0, "critique", HOSTILE),
        turn(2, 1, "rewrite", HOSTILE + " more \ud83d", verdict=bad),
        turn(3, 2, "verify", "", error=HOSTILE),
    ]  # fmt: skip
    episode = Episode(HOSTILE, 1, 0, problem, turns, Outcome(False, None, "bucket"))
    run = finish(make_run(tmp_path / "run", [episode]))
    (run / "recipe.toml").write_text(f"name = {json.dumps(HOSTILE)}\n", encoding="utf-8")
    for parts in (show.show_run(run), show.show_problem(run, problem.id)):
        text = draw(parts, color=color)
        assert is_harmless(text)
        assert "[bold red]not bold" in text
        text.encode("utf-8")


def test_problems_are_found_by_the_first_digits(tmp_path: Path) -> None:
    twins = [Problem(i, "countdown", {"target": 1}) for i in ("aa11", "aa12", "aa1")]
    run = make_run(tmp_path / "run", [at_once(p) for p in twins])
    assert "problem aa12" in draw(show.show_problem(run, "aa12"))
    assert "problem aa1 " in draw(show.show_problem(run, "aa1"))  # an id that begins others
    with pytest.raises(UserError) as caught:
        show.show_problem(run, "aa")
    assert caught.value.message == "3 problems begin with 'aa'"
    assert "aa11, aa12, aa1" in caught.value.hint
    with pytest.raises(UserError) as caught:
        show.show_problem(run, "zz")
    assert caught.value.message == "no problem in this run begins with 'zz'"
    assert "aa11" in caught.value.hint


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    for call in (lambda p: show.show_run(p), lambda p: show.show_problem(p, "a")):
        with pytest.raises(UserError, match="no such folder"):
            call(tmp_path / "nowhere")
        with pytest.raises(UserError, match="is not a run folder"):
            call(tmp_path)


def test_rows_that_are_no_episodes_are_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [at_once(FIRST)])
    append_rows(run / "episodes.jsonl", [{"schema": "episode/1", "recipe": "r3"}])
    with pytest.raises(UserError, match=r"episodes\.jsonl, row 2: not an episode"):
        show.show_run(run)


def styled(before: str, after: str) -> list[tuple[str, str]]:
    text = show.word_diff(before, after)
    return [(text.plain[s.start : s.end], str(s.style)) for s in text.spans]


def test_word_difference() -> None:
    before, after = "keep this  bad word, then end", "keep this  good word, and then end"
    assert styled(before, after) == [
        ("keep this  ", "dim"), ("bad", "red strike"), ("good", "green"), (" and", "green"),
    ]  # fmt: skip
    assert show.word_diff(before, after).plain == "keep this  badgood word, and then end"
    assert styled("same", "same") == [("same", "dim")]
    assert styled("", "new") == [("new", "green")]
    assert styled("old", "") == [("old", "red strike")]
    assert show.word_diff("a a", "a a a").plain == "a a a"
    assert str(show.word_diff(before, after).style) == ""


def test_a_rewrite_is_compared_with_what_it_rewrote() -> None:
    turns = learned(FIRST).turns
    assert show.rewritten(turns[4], turns) is turns[0]
    circle = [turn(0, 1, "critique", ""), turn(1, 0, "critique", ""), turn(2, 1, "rewrite", "")]
    assert show.rewritten(circle[2], circle) is None
    text = draw(list(show.tell_turn(turns[4], turns)))
    assert "<think>3 + 4 = 7 then [-27</think>-]{+35</think>+}" in text
    text = draw(list(show.tell_turn(turns[4], turns)), color=True)
    assert "\x1b[9;31m27</think>\x1b[0m\x1b[32m35</think>\x1b[0m" in text


def test_long_and_repetitive_texts_are_compared_in_no_time() -> None:
    rng, words = random.Random(0), [f"word{i}" for i in range(150)]
    cases = [
        ("a b " * 900 + "x", "y " + "b a " * 900),
        ("a " * 40_000, "b " * 40_000),
        (" ".join(map(str, range(1900))), " ".join(map(str, range(1899, 0, -1)))),
        (" ".join(rng.choices(words, k=40_000)), " ".join(rng.choices(words, k=40_000))),
    ]
    for before, after in cases:
        begun = time.perf_counter()
        assert len(show.word_diff(before, after)) >= len(after)
        assert time.perf_counter() - begun < 2


@pytest.mark.parametrize(
    ("step", "said"),
    [(0, "0.6931, before the first step; what is kept is as it began"),
     (8, "0.6931, after step 8 ")],
)  # fmt: skip
def test_a_training_says_which_adapter_it_kept(step: int, said: str) -> None:
    figures = {"loss": 0.7, "margin": None, "accuracy": None}
    summary = {
        "steps": 9, "stopped_early": False, "rows": 4, "held_out": 1, "skipped": 0,
        "held_out_before": figures, "held_out_after": figures, "wall_seconds": 1.0,
        "best": {"step": step, "value": 0.6931}, "tokens_per_second": 9.0,
        "peak_memory_bytes": 10**7, "adapter": "out/adapter", "model": "tiny",
    }  # fmt: skip
    assert said in draw([show_training(summary)])
