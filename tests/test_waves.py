"""The order of waves, by hand: epochs, passes over the bucket list, mastery rounds."""

import json
from dataclasses import asdict

from mlxreflect.config.schema import Recipe
from mlxreflect.methods.r3 import State, next_wave


def recipe(**r3):
    return Recipe.model_validate({"r3": r3})


def play(recipe, names, solve=lambda wave, name: True, first=lambda wave, name: False):
    """Every wave as (stage, epoch, problems), with a bucket list moved on as R³ does."""
    state, seen = State(), []
    while (wave := next_wave(state, names, recipe)) is not None:
        # A run may be killed here: the state on disk is the one before this wave.
        seen.append((wave.stage, wave.epoch, list(wave.problems), wave))
        for name in wave.problems:
            if wave.stage == "problems":
                state.first_correct += first(wave, name)
            if solve(wave, name) or first(wave, name):
                state.bucket.pop(name, None)
            else:
                state.bucket.setdefault(name, None)
        state.wave += 1
        state = State(**json.loads(json.dumps(asdict(state))))
        assert len(seen) < 1000
    return seen


NAMES = [f"p{i}" for i in range(10)]


def test_an_epoch_takes_every_problem_once_in_a_seeded_order():
    seen = play(recipe(wave=4, epochs=2, bucket_every=0), NAMES)
    for epoch in (1, 2):
        taken = [p for _, e, ps, _ in seen if e == epoch for p in ps]
        assert sorted(taken) == NAMES
    assert [len(ps) for _, _, ps, _ in seen] == [4, 4, 2, 4, 4, 2]
    first, second = ([p for _, e, ps, _ in seen if e == n for p in ps] for n in (1, 2))
    assert first != second
    assert [w.new_epoch for *_, w in seen] == [True, False, False, True, False, False]


def test_a_wave_of_one_is_the_sequential_order():
    assert [len(ps) for _, _, ps, _ in play(recipe(wave=1, bucket_every=0), NAMES)] == [1] * 10


def test_the_bucket_is_visited_after_every_chunk_and_carried_on():
    seen = play(recipe(wave=4, epochs=1, bucket_every=5), NAMES, solve=lambda wave, name: False)
    stages = [(stage, len(ps)) for stage, _, ps, _ in seen]
    assert stages == [
        ("problems", 4), ("problems", 1), ("bucket", 4), ("bucket", 1),
        ("problems", 4), ("problems", 1), ("bucket", 4), ("bucket", 4), ("bucket", 2),
    ]  # fmt: skip
    assert all(wave.own["tier"] == ("basic" if stage == "problems" else "advanced")
               for stage, _, _, wave in seen)  # fmt: skip


def test_what_the_bucket_pass_solves_leaves_the_bucket():
    seen = play(recipe(wave=5, epochs=1, bucket_every=5), NAMES,
                solve=lambda wave, name: wave.stage == "bucket")  # fmt: skip
    assert [len(ps) for stage, _, ps, _ in seen if stage == "bucket"] == [5, 5]


def test_it_stops_early_when_everything_is_right_at_once():
    seen = play(recipe(wave=5, epochs=7), NAMES, first=lambda wave, name: wave.epoch == 2)
    assert {epoch for _, epoch, _, _ in seen} == {1, 2}


def test_mastery_goes_on_while_the_bucket_shrinks_then_forces_sft_once():
    """Sizes after the mastery rounds: 4 → 3 → 3 (stuck) → forced → 2 → 2 (stuck) → forced → 2."""
    after = iter([3, 3, 2, 2, 2])
    sizes = {}

    def solve(wave, name):
        if wave.stage != "mastery":
            return name not in NAMES[:4]
        size = sizes.setdefault(wave.number, next(after) if wave.number not in sizes else 0)
        return NAMES.index(name) >= size

    seen = play(recipe(wave=10, epochs=1, bucket_every=0, until_mastered=True), NAMES, solve)
    mastery = [
        (len(ps), wave.own["force_sft"]) for stage, _, ps, wave in seen if stage == "mastery"
    ]
    assert mastery == [(4, False), (3, False), (3, True), (2, False), (2, True)]


def test_a_mastery_round_of_several_waves_forces_sft_once():
    seen = play(recipe(wave=3, epochs=1, bucket_every=0, until_mastered=True), NAMES[:5],
                lambda wave, name: False)  # fmt: skip
    mastery = [
        (len(ps), wave.own["force_sft"]) for stage, _, ps, wave in seen if stage == "mastery"
    ]
    assert mastery == [(3, False), (2, False), (3, True), (2, False)]


def test_an_empty_bucket_is_passed_over():
    seen = play(recipe(wave=2, epochs=1, bucket_every=3), NAMES)
    assert [len(ps) for _, _, ps, _ in seen] == [2, 1, 2, 1, 2, 1, 1]


def test_without_until_mastered_there_is_no_mastery():
    seen = play(recipe(wave=10, epochs=1, bucket_every=0), NAMES, lambda wave, name: False)
    assert {stage for stage, *_ in seen} == {"problems"}
