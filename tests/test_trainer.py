"""The training loop, on small random models: exact values, and the faults that peers have."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import qwen2
from support.training import (
    SHAPES,
    all_bytes,
    copied,
    first_gradient,
    fit_groups,
    fit_pairs,
    fit_rows,
    fitting,
    flagged,
    kept,
    long_pairs,
    lora_bytes,
    lora_trainer,
    make_groups,
    make_pairs,
    most_bytes,
    near,
    pair_scores,
    rows,
    small_model,
    softplus,
)

from mlxreflect.config.fields import GrpoConfig
from mlxreflect.config.schema import LoraConfig
from mlxreflect.train.batches import Batch, Group, Pair, Row
from mlxreflect.train.lora import attach_lora, base_reference
from mlxreflect.train.network import parameters
from mlxreflect.train.objectives import imitation, preference
from mlxreflect.train.references import References
from mlxreflect.train.trainer import (
    LRSchedule,
    Step,
    Trainer,
    load_parameters,
    load_trainer,
    save_trainer,
)

Load = Callable[..., Any]


# ---- values -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dpo", "nll"), [(2.0, 0.4), (0.0, 1.0)])
def test_no_reference_means_zeros_and_nll_is_added(dpo: float, nll: float) -> None:
    trainer, pairs = lora_trainer(), long_pairs(3) + make_pairs(3, 4)
    scores = pair_scores(trainer.model, pairs)
    likely = [s / len(p.chosen.response) for s, p in zip(scores[:, 0], pairs, strict=True)]
    settings = fitting(lr=1e-3, batch=7, beta=0.05, nll=nll, dpo=dpo)
    (step,) = fit_pairs(trainer, pairs, None, settings, (1,))
    expected = dpo * softplus(-0.05 * scores @ [1, -1]).mean() - nll * np.mean(likely)
    assert step.loss == pytest.approx(expected, rel=2e-6)


def test_accuracy_is_over_pairs_and_not_over_batches() -> None:
    trainer, pairs = lora_trainer(), make_pairs(5, 5)
    reference = {k: mx.zeros_like(v) for k, v in trainer.trainable().items()}
    with parameters(trainer.model, reference):
        zero = pair_scores(trainer.model, pairs)
    right = (pair_scores(trainer.model, pairs) - zero) @ [1, -1] > 0
    by_length = sorted(
        range(5), key=lambda i: max(pairs[i].chosen.length, pairs[i].rejected.length)
    )
    batches = [np.mean([right[i] for i in by_length[s : s + 2]]) for s in (0, 2, 4)]
    assert np.mean(batches) != pytest.approx(np.mean(right))  # else this test shows nothing
    (step,) = fit_pairs(trainer, pairs, reference, fitting(lr=1e-3, batch=2, accumulate=3), (1,))
    assert step.accuracy == pytest.approx(np.mean(right), abs=1e-9)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("logps", ["sum", "mean"])
@pytest.mark.parametrize("name", ["dpo", "ipo", "exo_pair", "orpo"])
def test_each_objective_on_pairs_is_float64s(name: str, logps: str, masked: bool) -> None:
    """Through the whole trainer, with shared prefixes, over two steps and several batches.

    Masked tokens count nowhere, not in a length either; chosen and rejected may lose others of what
    they share.
    """
    trainer, pairs = lora_trainer(), long_pairs(60) + make_pairs(61, 3)
    if masked:
        pairs = [Pair(flagged(p.chosen, 2 * i), flagged(p.rejected, 2 * i + i % 2))
                 for i, p in enumerate(pairs)]  # fmt: skip
    smoothing = {"dpo": 0.1, "exo_pair": 0.05}.get(name, 0.0)
    nll = 0.3 * (name == "dpo" and logps == "mean")
    settings = fitting(
        lr=0.01, batch=2, accumulate=3, epochs=2, objective=name, beta=0.3, smoothing=smoothing,
        logps=logps, nll=nll,
    )  # fmt: skip
    lengths = np.array([[p.chosen.trained, p.rejected.trained] for p in pairs])

    def sums(model: nn.Module) -> np.ndarray:
        return np.array([[kept(model, r).sum() for r in (p.chosen, p.rejected)] for p in pairs])

    reference, base = base_reference(trainer.model), sums(small_model())

    def expected() -> tuple[float, float]:
        scores = sums(trainer.model)
        means = scores / lengths
        if name == "orpo":  # mean log-probabilities, whatever `logps` says
            odds = np.log(np.exp(means) / (1 - np.exp(means)))
            margin = 0.3 * (odds[:, 0] - odds[:, 1])
            return (0.3 * softplus(-margin / 0.3) - means[:, 0]).mean(), margin.mean()
        h = (scores - base) / (lengths if logps == "mean" else 1) @ [1, -1]
        z, e = 0.3 * h, smoothing
        yes, no = -softplus(-z), -softplus(z)  # log σ(z), log σ(−z)
        loss = {
            "dpo": -(1 - e) * yes - e * no - nll * means[:, 0],
            "ipo": (h - 1 / 0.6) ** 2,
            "exo_pair": np.exp(yes) * (yes - np.log(1 - e))
            + np.exp(no) * (no - (np.log(e) if e else 0)),
        }[name]
        return loss.mean(), z.mean()

    want = [expected()]
    steps = fit_pairs(
        trainer, pairs, reference, settings, (1,), lambda step: want.append(expected())
    )
    assert [s.objective for s in steps] == [name] * 2
    assert [s.loss for s in steps] == pytest.approx([loss for loss, _ in want[:2]], rel=3e-6)
    assert [s.margin for s in steps] == pytest.approx([m for _, m in want[:2]], abs=1e-5)
    assert [s.tokens for s in steps] == [lengths.sum()] * 2
    assert want[2][0] < want[1][0] < want[0][0]
    assert set(trainer.optimizers) == {name}


def test_the_sft_loss_is_a_mean_of_the_tokens_it_sees() -> None:
    """Over all tokens of the step, not a mean of sequence or batch means; weights count."""
    trainer = lora_trainer()
    weighed = zip(rows(62, SHAPES), (1, 1, 2, 1, 0.5, 1), strict=True)
    data = [flagged(replace(row, weight=w), i) for i, (row, w) in enumerate(weighed)]
    logps = [kept(trainer.model, row) for row in data]
    total = -sum(row.weight * one.sum() for row, one in zip(data, logps, strict=True))
    tokens = sum(row.weight * len(one) for row, one in zip(data, logps, strict=True))
    (step,) = fit_rows(trainer, data, fitting(lr=1e-3, batch=2, accumulate=3), (1,), dropout=False)
    assert step.loss == pytest.approx(total / tokens, rel=1e-6)
    assert step.tokens == sum(map(len, logps)) < sum(len(row.response) for row in data)
    assert (step.margin, step.accuracy) == (None, None)
    # A masked token that nothing comes after could be any other.
    results = []
    for last in (3, 7):
        other = [Row(r.prompt, [*r.response[:-1], last], mask=(*r.mask[:-1], False)) for r in data
                 if r.mask is not None and sum(r.mask[:-1])]  # fmt: skip
        trainer = lora_trainer()
        (step,) = fit_rows(trainer, other, fitting(lr=1e-3, batch=9), (1,), dropout=False)
        results.append((step.loss, step.grad_norm, lora_bytes(trainer)))
    assert results[0] == results[1]


# ---- groups -------------------------------------------------------------------------------------


def grpo_terms(
    logps: list[np.ndarray], old: list[np.ndarray], reference: list[np.ndarray] | None,
    rewards: tuple[float, ...], config: GrpoConfig,
) -> list[np.ndarray]:  # fmt: skip
    """[3, tokens] of each answer in float64: loss, KL, clipped; DeepSeekMath, equation 3."""
    spread = np.std(rewards, ddof=1) + 1e-4 if config.scale_rewards else 1.0
    found = []
    for i, now in enumerate(logps):
        advantage = (rewards[i] - np.mean(rewards)) / spread
        ratio = np.exp(now - old[i])
        if config.importance_sampling_level == "sequence":
            ratio = np.full_like(now, np.exp((now - old[i]).mean()))
        upper = config.epsilon_high or config.clip_ratio
        limited = np.clip(ratio, 1 - config.clip_ratio, 1 + upper)
        gain = np.minimum(ratio * advantage, limited * advantage)
        apart = np.zeros_like(now) if reference is None else reference[i] - now
        kl = np.exp(apart) - apart - 1
        held = limited * advantage < ratio * advantage
        found.append(np.stack([config.kl * kl - gain, kl, held]))
    return found


@pytest.mark.parametrize("average", ["sequence", "token"])
@pytest.mark.parametrize(
    ("scale", "kl", "keys"),
    [(True, 0.2, {}), (False, 0.0, {}), (True, 0.0, {"epsilon_high": 0.15}),
     (False, 0.2, {"clip_ratio": 0.02, "importance_sampling_level": "sequence"})],
)  # fmt: skip
def test_grpo_is_float64s_over_several_updates(
    average: str, scale: bool, kl: float, keys: dict[str, Any]
) -> None:
    """The policy that wrote the groups is that of the start, in every update; the KL's is the base.

    One that followed the policy would never clip.
    """
    trainer, base, groups = lora_trainer(), small_model(), make_groups(70)
    settings = fitting(lr=0.02, batch=2, accumulate=3, epochs=3, clip=0.0)
    given = {"average": average, "scale_rewards": scale, "kl": kl, "clip_ratio": 0.1, **keys}
    grpo = GrpoConfig.model_validate(given)

    def all_logps(model: nn.Module) -> list[list[np.ndarray]]:
        return [[kept(model, row) for row in group.rows] for group in groups]

    old, reference = all_logps(trainer.model), all_logps(base) if kl else [None] * len(groups)
    states = [old]
    steps = fit_groups(
        trainer, groups, base_reference(trainer.model), settings, (1,),
        lambda step: states.append(all_logps(trainer.model)), grpo=grpo,
    )  # fmt: skip
    assert len(steps) == 3
    for number, (step, now) in enumerate(zip(steps, states, strict=False)):
        terms = [grpo_terms(now[i], old[i], reference[i], g.rewards, grpo)
                 for i, g in enumerate(groups)]  # fmt: skip
        each = [one[0] for group in terms for one in group]
        expected = (
            np.concatenate(each).mean() if average == "token" else np.mean([e.mean() for e in each])
        )
        assert step.loss == pytest.approx(expected, abs=2e-5)
        kls, clips = (np.mean([np.mean([one[k].mean() for one in g]) for g in terms])
                      for k in (1, 2))  # fmt: skip
        assert step.kl == pytest.approx(kls, abs=2e-5)
        assert step.clipped == pytest.approx(clips, abs=1e-7)
        assert (clips > 0.05) == (number > 0)
        assert step.tokens == sum(map(len, each))
        assert (step.margin, step.accuracy) == (None, None)
    assert steps[2].loss < steps[0].loss


def test_the_first_update_of_groups_is_the_policy_gradient() -> None:
    """With one step and with several, where the log-probabilities of the start are kept apart."""
    groups, model = make_groups(71), lora_trainer().model
    total = sum(len(group.rows) for group in groups)

    def loss(model: nn.Module) -> mx.array:
        value = mx.zeros(())
        for group in groups:
            mean, spread = np.mean(group.rewards), np.std(group.rewards, ddof=1) + 1e-4
            for row, reward in zip(group.rows, group.rewards, strict=True):
                ids = mx.array([row.prompt + row.response])
                every = -nn.losses.cross_entropy(model(ids[:, :-1]), ids[:, 1:])
                flags = mx.array(row.mask or (True,) * len(row.response)).astype(mx.float32)
                logp = (every[0, len(row.prompt) - 1 :] * flags).sum() / flags.sum()
                value = value - logp * float((reward - mean) / spread)
        return value / total

    _, grads = nn.value_and_grad(model, loss)(model)
    expected = {k: np.array(v) for k, v in tree_flatten(grads)}
    largest = max(np.abs(v).max() for v in expected.values())
    for epochs in (1, 2):
        trainer = lora_trainer()
        settings = fitting(lr=1e-30, batch=2, accumulate=3, epochs=epochs, clip=0.0)
        objective = trainer.group_objective(groups, None, settings, GrpoConfig())
        next(trainer.train(objective, settings, (1,)))
        near(first_gradient(trainer, "grpo"), expected, 1e-5 * largest)


@pytest.mark.parametrize("average", ["sequence", "token"])
@pytest.mark.parametrize(("limit", "most", "scored"), [({"memory_gb": 1.3e-3}, 4, 7),
                         ({"memory_gb": 1e-9}, 1, 7), ({"part_tokens": 30}, 3, 2)])  # fmt: skip
def test_a_group_in_parts_is_the_whole_group(
    average: str, limit: dict[str, float], most: int, scored: int
) -> None:
    """Loss, gradients and figures; the prompt is shared inside a part."""
    begin, *ends = rows(72, [(40, 1), *((1, 5 + i) for i in range(7))])
    answers = tuple(Row(begin.prompt, end.response) for end in ends)
    groups = [Group(answers, (0.1, 0.9, 0.3, 0.0, 1.0, 0.4, 0.2))]
    grpo, found = GrpoConfig(average=average, kl=0.2), []
    for limited, sizes in (({}, (7, 7)), (limit, (most, scored))):
        trainer, seen = lora_trainer(), dict[bool, list[int]]()
        settings = fitting(lr=2e-3, clip=0.0, epochs=2, grad_checkpoint="no", **limited)
        network = trainer.understood([])
        run = network.logps

        def watched(
            batch: Batch, *, training: bool = False, run: Any = run, seen: Any = seen
        ) -> mx.array:
            assert (batch.prefix is not None) == (batch.group.size > 1)
            seen.setdefault(training, []).append(batch.group.size)
            return run(batch, training=training)

        network.logps = watched
        objective = trainer.group_objective(groups, base_reference(trainer.model), settings, grpo)
        training = trainer.train(objective, settings, (1,))
        first, gradient = next(training), first_gradient(trainer, "grpo")
        found.append(([first, *training], gradient))
        assert (max(seen[True]), max(seen[False])) == sizes
        assert sum(seen[True]) == sum(seen[False]) == 2 * 7
    (expected, whole), (steps, gradient) = found
    for a, b in zip(steps, expected, strict=True):
        for name in ("loss", "kl", "clipped", "grad_norm"):
            assert getattr(a, name) == pytest.approx(getattr(b, name), rel=1e-5, abs=1e-6), name
    near(gradient, whole, 1e-5 * max(np.abs(one).max() for one in whole.values()))


# ---- looking without training -------------------------------------------------------------------


def test_measuring_is_the_loss_of_a_step_and_changes_nothing() -> None:
    trainer, pairs, data = lora_trainer(dropout=0.5), make_pairs(65, 6), rows(65, SHAPES)
    settings = fitting(lr=1e-3, batch=2, accumulate=3, nll=0.2)
    for objective in (
        preference(pairs, None, settings, settings.objective),
        imitation(data, dropout=False),
    ):
        before = lora_bytes(trainer)
        found = trainer.measure(objective, settings)
        assert lora_bytes(trainer) == before
        (step,) = trainer.train(objective, settings, (1,))
        assert found["loss"] == pytest.approx(step.loss, rel=1e-6)
        assert found["margin"] == (step.margin and pytest.approx(step.margin, abs=1e-6))
        assert found["accuracy"] == step.accuracy
    trainer.model.train()
    assert trainer.measure(imitation(data), settings) == trainer.measure(imitation(data), settings)
    assert modes(trainer) == {False}


# ---- what must not matter -----------------------------------------------------------------------


def step_with(batch: int, accumulate: int, seed: int) -> tuple[Step, Trainer]:
    trainer, pairs = lora_trainer(), make_pairs(6, 8)
    settings = fitting(lr=1e-3, batch=batch, accumulate=accumulate, nll=0.3)
    (step,) = fit_pairs(trainer, pairs, base_reference(trainer.model), settings, (seed,))
    return step, trainer


@pytest.mark.parametrize(
    ("batch", "accumulate", "seed"),
    [(1, 8, 1), (4, 2, 1), (3, 3, 1), (8, 1, 2), (2, 4, 3)],
)
def test_batch_size_accumulation_padding_and_order_change_nothing(
    batch: int, accumulate: int, seed: int
) -> None:
    expected, whole = step_with(8, 1, 1)
    step, trainer = step_with(batch, accumulate, seed)
    assert step.loss == pytest.approx(expected.loss, abs=1e-6)
    assert step.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)
    assert step.accuracy == expected.accuracy
    gradient = first_gradient(whole, "dpo")
    largest = max(np.abs(g).max() for g in gradient.values())
    near(first_gradient(trainer, "dpo"), gradient, 1e-5 * largest)
    near(copied(trainer), copied(whole), 1e-5)


# ---- epochs and steps ---------------------------------------------------------------------------


def test_every_epoch_visits_every_pair_once() -> None:
    trainer, pairs = lora_trainer(), make_pairs(10, 11)
    sizes = [len(p.chosen.response + p.rejected.response) for p in pairs]
    assert len(set(sizes)) == len(sizes)  # a step of one pair is known by its tokens
    steps = fit_pairs(trainer, pairs, None, fitting(lr=1e-4, batch=1, epochs=3), (1,))
    seen = [[s.tokens for s in steps[i : i + 11]] for i in (0, 11, 22)]
    assert all(sorted(epoch) == sorted(sizes) for epoch in seen)
    assert len({tuple(epoch) for epoch in seen}) == 3  # another order each time
    for seed in (1, 2):
        again = fit_pairs(lora_trainer(), pairs, None, fitting(lr=1e-4, batch=1), (seed,))
        assert ([s.tokens for s in again] == seen[0]) == (seed == 1)


def test_a_step_is_batch_times_accumulate_and_the_last_may_be_short() -> None:
    pairs, seen = make_pairs(11, 7), []
    settings = fitting(lr=1e-4, batch=2, accumulate=2, epochs=2)
    steps = fit_pairs(lora_trainer(), pairs, None, settings, (1,), seen.append)
    assert [s.step for s in steps] == [1, 2, 3, 4]
    assert seen == steps
    total = sum(len(p.chosen.response + p.rejected.response) for p in pairs)
    assert [steps[0].tokens + steps[1].tokens, steps[2].tokens + steps[3].tokens] == [total] * 2


def test_nothing_to_train_is_no_step() -> None:
    trainer = lora_trainer()
    before = lora_bytes(trainer)
    assert fit_pairs(trainer, [], trainer.trainable(), fitting(lr=1.0, batch=1), (1,)) == []
    assert fit_rows(trainer, [], fitting(lr=1.0, batch=1), (1,)) == []
    assert lora_bytes(trainer) == before


def test_warmup_counts_over_calls_and_is_an_objectives_own() -> None:
    trainer, pairs, data = lora_trainer(), make_pairs(12, 3), rows(12, SHAPES[:2])
    settings = fitting(lr=8e-4, batch=1, warmup=4)
    rates = [s.lr for s in fit_pairs(trainer, pairs, None, settings, (1,))]
    sft = [s.lr for s in fit_rows(trainer, data, settings, (1,))]
    rates += [s.lr for s in fit_pairs(trainer, pairs, None, settings, (2,))]
    assert rates == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4, 8e-4, 8e-4])
    assert sft == pytest.approx([2e-4, 4e-4])
    (step,) = fit_rows(lora_trainer(), data, fitting(lr=3e-4, batch=2), (1,))
    assert step.lr == pytest.approx(3e-4)


def test_the_rate_goes_down_as_the_schedule_says() -> None:
    data = rows(68, SHAPES)
    for schedule, expected in {
        "constant": [1, 2, 2, 2, 2, 2],
        "linear": [1, 2, 2, 1.5, 1, 0.5],
        "cosine": [1, 2, 2, 1 + math.sqrt(0.5), 1, 1 - math.sqrt(0.5)],
    }.items():
        for warmup, share in ((2, 0.0), (0, 0.33), (1, 0.3)):
            settings = fitting(lr=1.0, batch=2, epochs=2, warmup=warmup)
            steps = lora_trainer().train(
                imitation(data), settings, (1,), lr=2e-4, schedule=LRSchedule(schedule, share)
            )
            assert [s.lr for s in steps] == pytest.approx([1e-4 * e for e in expected], rel=1e-5)


@pytest.mark.parametrize(("clip", "decay"), [(0.0, 0.0), (0.3, 0.0), (0.3, 0.1), (0.0, 0.1)])
def test_updates_are_adamw_on_the_clipped_gradient(clip: float, decay: float) -> None:
    """Four steps against AdamW in float64, on gradients of a loss written anew here."""
    trainer, data = lora_trainer(), rows(16, SHAPES)
    tokens = sum(len(row.response) for row in data)
    model = lora_trainer().model

    def loss(model: nn.Module) -> mx.array:
        total = mx.zeros(())
        for row in data:
            ids = mx.array([row.prompt + row.response])
            every = nn.losses.cross_entropy(model(ids[:, :-1]), ids[:, 1:])
            total = total + every[0, len(row.prompt) - 1 :].sum()
        return total / tokens

    values = {k: v.astype(np.float64) for k, v in copied(Trainer(model)).items()}
    m, v = ({k: np.zeros_like(a) for k, a in values.items()} for _ in range(2))
    norms = []
    for step, lr in enumerate((0.01, 0.02, 0.02, 0.02), 1):
        _, grads = nn.value_and_grad(model, loss)(model)
        found = {k: np.array(g, np.float64) for k, g in tree_flatten(grads)}
        norms.append(math.sqrt(sum((g**2).sum() for g in found.values())))
        cap = min(1.0, clip / norms[-1]) if clip else 1.0
        for k, g in found.items():
            m[k] = 0.9 * m[k] + 0.1 * cap * g
            v[k] = 0.999 * v[k] + 0.001 * (cap * g) ** 2
            m_hat, v_hat = m[k] / (1 - 0.9**step), v[k] / (1 - 0.999**step)
            values[k] -= lr * (m_hat / (np.sqrt(v_hat) + 1e-8) + decay * values[k])
        model.load_weights([(k, mx.array(a.astype(np.float32))) for k, a in values.items()], False)
    settings = fitting(lr=0.02, batch=6, epochs=4, warmup=2, clip=clip, weight_decay=decay)
    steps = fit_rows(trainer, data, settings, (1,), dropout=False)
    assert [s.grad_norm for s in steps] == pytest.approx(norms, rel=1e-3)
    near(copied(trainer), {k: a.astype(np.float32) for k, a in values.items()}, 1e-4)


# ---- what must stay as it is --------------------------------------------------------------------


@pytest.mark.parametrize("dequantize", ["no", "yes"])
def test_only_lora_changes(load_random: Load, dequantize: str) -> None:
    policy = load_random(dequantize=dequantize)
    attach_lora(policy.model, LoraConfig(rank=4, layers=1), 0)
    trainer = Trainer(policy.model)
    before = all_bytes(policy.model)
    fit_pairs(trainer, make_pairs(18, 4), trainer.trainable(), fitting(lr=1e-2, batch=2), (1,))
    fit_rows(trainer, rows(18, SHAPES), fitting(lr=1e-2, batch=3), (1,))
    after = all_bytes(policy.model)
    changed = {name for name, data in after.items() if data != before[name]}
    assert before.keys() == after.keys()
    assert changed == set(trainer.trainable())
    assert len(changed) == 14  # lora_a and lora_b of q, k, v, o, gate, up, down in the last layer
    if dequantize == "no":
        assert sum(name.endswith("scales") for name in before) == 2 + 2 * 7


# ---- dropout ------------------------------------------------------------------------------------


def modes(trainer: Trainer) -> set[bool]:
    return {module.training for _, module in trainer.model.named_modules()}


def test_dropout_is_off_in_preference_training() -> None:
    losses, pairs = [], make_pairs(21, 4)
    for dropout, seed in ((0.0, 1), (0.5, 1), (0.5, 2)):
        trainer = lora_trainer(dropout=dropout)
        trainer.model.train()
        reference = base_reference(trainer.model)
        (step,) = fit_pairs(trainer, pairs, reference, fitting(lr=1e-3, batch=4), (seed,))
        losses.append(step.loss)
        assert modes(trainer) == {False}
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-6)


def test_dropout_is_off_after_an_error() -> None:
    def stop(step: Any) -> None:
        raise KeyboardInterrupt

    trainer = lora_trainer(dropout=0.5)
    with pytest.raises(KeyboardInterrupt):
        fit_rows(trainer, rows(27, SHAPES), fitting(lr=1e-3, batch=2), (1,), stop)
    assert modes(trainer) == {False}


def test_dropout_is_on_in_sft_and_off_afterwards() -> None:
    data, losses = rows(22, SHAPES), []
    for dropout, seed, on in ((0.5, 1, True), (0.5, 1, True), (0.5, 2, True), (0.5, 1, False),
                              (0.0, 1, True)):  # fmt: skip
        trainer = lora_trainer(dropout=dropout)
        (step,) = fit_rows(trainer, data, fitting(lr=1e-3, batch=6), (seed,), dropout=on)
        losses.append(step.loss)
        assert modes(trainer) == {False}
    dropped, same, other, off, none = losses
    assert dropped == same
    assert len({round(x, 4) for x in (dropped, other, off)}) == 3
    assert off == pytest.approx(none, abs=1e-6)


# ---- seeds, checkpoints -------------------------------------------------------------------------


def one_run(load_random: Load, seed: int, dropout: float = 0.1) -> dict[str, bytes]:
    policy = load_random(dequantize="no")
    attach_lora(policy.model, LoraConfig(rank=4, dropout=dropout), seed)
    trainer = Trainer(policy.model)
    settings = fitting(lr=1e-2, batch=2)
    fit_pairs(trainer, make_pairs(23, 4), trainer.trainable(), settings, (seed, "a"))
    fit_rows(trainer, rows(23, SHAPES), settings, (seed, "b"))
    return lora_bytes(trainer)


def test_a_seed_decides_every_byte(load_random: Load) -> None:
    first = one_run(load_random, 1)
    mx.random.normal((100,))  # what others drew from MLX's generator does not matter
    assert one_run(load_random, 1) == first
    other = one_run(load_random, 2)
    assert other.keys() == first.keys()
    assert all(other[name] != first[name] for name in first)


# Weights alone: moments from zero, the first batches once more, other dropout, a new warm-up.
def test_training_goes_on_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    """With each objective's optimizer as it was."""
    objective, pairs = imitation(rows(16, [*SHAPES, (4, 5), (2, 8)])), make_pairs(16, 4)
    settings = fitting(lr=1e-2, batch=1, accumulate=2, epochs=2, warmup=3, weight_decay=0.1)
    cosine = LRSchedule("cosine")

    def begun(seed: int) -> Trainer:
        return lora_trainer(seed, dropout=0.2)

    def prefer(trainer: Trainer, seed: int) -> None:
        fit_pairs(trainer, pairs, None, settings, (seed,))

    whole, first, second = begun(0), begun(0), begun(9)
    prefer(whole, 1)
    steps = list(whole.train(objective, settings, (1,), schedule=cosine))
    assert len(steps) == 8
    prefer(whole, 2)

    prefer(first, 1)
    course = first.train(objective, settings, (1,), schedule=cosine)
    half = [next(course) for _ in range(3)]  # in the middle of an epoch
    course.close()
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), first.trainable())
    saved = save_trainer(tmp_path, first)

    load_parameters(tmp_path / "adapters.safetensors", second)
    load_trainer(tmp_path, second, saved)
    rest = list(second.train(objective, settings, (1,), schedule=cosine, start=3))
    prefer(second, 2)
    assert lora_bytes(second) == lora_bytes(whole)
    found = [(s.step, s.loss, s.lr, s.grad_norm, s.tokens) for s in half + rest]
    assert found == [(s.step, s.loss, s.lr, s.grad_norm, s.tokens) for s in steps]


# ---- gradient checkpointing ---------------------------------------------------------------------


def test_a_row_without_a_trained_token_is_refused() -> None:
    with pytest.raises(ValueError, match="no token for the loss"):
        imitation([Row([1, 2], [])])


def large_model() -> nn.Module:
    """About 21 MB of float32 weights."""
    mx.random.seed(0)
    model = qwen2.Model(
        qwen2.ModelArgs(
            model_type="qwen2", hidden_size=256, num_hidden_layers=8, intermediate_size=512,
            num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-6, vocab_size=800,
            tie_word_embeddings=True,
        )
    )  # fmt: skip
    mx.eval(model.parameters())
    return model


def nbytes(model: nn.Module) -> int:
    return sum(array.nbytes for _, array in tree_flatten(model.parameters()))


# A reference model of its own is as many bytes as the policy, from the first step on.
@pytest.mark.slow
def test_the_reference_is_no_second_copy_of_the_model(tmp_path: Path) -> None:
    model = large_model()
    attach_lora(model, LoraConfig(rank=2, keys=["self_attn.q_proj"]), 0)
    weights, pairs, found = nbytes(model), make_pairs(12, 2), []
    assert weights > 18e6
    settings = fitting(lr=1e-3, batch=1)
    references = References(tmp_path / "references.sqlite")
    for cache in (None, references):
        trainer = Trainer(model, cache)
        for reference in (trainer.trainable(), base_reference(model)):
            found.append(
                most_bytes(lambda t=trainer, r=reference: fit_pairs(t, pairs, r, settings, (1,)))
            )
    assert max(found) < 0.4 * weights
    references.close()


# With all weights trained, what the reference holds on to is a whole model once a step is made.
def test_no_second_copy_with_all_weights_trained(tmp_path: Path) -> None:
    model, pairs, settings = large_model(), make_pairs(12, 2), fitting(lr=1e-3, batch=2)
    references = References(tmp_path / "references.sqlite")
    trainer, before = Trainer(model, references), mx.get_active_memory()
    trainer.optimizer("dpo", 0.0)
    mx.eval(trainer.optimizers["dpo"].state)
    moments = mx.get_active_memory() - before
    assert moments > 1.9 * nbytes(model)
    objective = trainer.pair_objective(pairs, trainer.trainable(), settings, settings.objective)
    list(trainer.train(objective, settings, (1,)))
    mx.clear_cache()
    held = mx.get_active_memory() - before - moments
    assert held < 0.1 * nbytes(model)
    references.close()


# A patch that stays recomputes where nothing was asked for; on top of itself it does so twice.
def test_layers_are_recomputed_once_and_only_where_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls, original = [], mx.checkpoint
    monkeypatch.setattr(mx, "checkpoint", lambda f: calls.append(1) or original(f))
    trainer, data = lora_trainer(), rows(14, SHAPES)
    before, counts = qwen2.TransformerBlock.__call__, []
    for recomputed in ("yes", "yes", "no"):
        settings = fitting(lr=1e-3, batch=6, grad_checkpoint=recomputed)
        fit_rows(trainer, data, settings, (1,))
        assert qwen2.TransformerBlock.__call__ is before
        counts.append(len(calls))
        calls.clear()
    assert counts == [4, 4, 0]  # once a layer and part
