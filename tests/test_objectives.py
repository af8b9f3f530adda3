"""Objectives against float64 NumPy, TRL's formulas, and finite differences of the former."""

import math
from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np
import pytest

from mlxreflect.train import losses
from mlxreflect.train.losses import (
    PREFERENCE,
    STEEP,
    exo_pair_loss,
    group_advantages,
    grpo_loss,
    log_ratio,
    orpo_loss,
)

Array = np.ndarray
Formula = Callable[..., Array]


def log_sigmoid(x: Array) -> Array:
    """In float64 for any x: −log(1 + e^−x)."""
    return -np.logaddexp(0.0, -x)


def dpo(h: Array, beta: float, smoothing: float) -> Array:
    return -log_sigmoid(beta * h) * (1 - smoothing) - log_sigmoid(-beta * h) * smoothing


def ipo(h: Array, beta: float, smoothing: float) -> Array:
    return (h - 1 / (2 * beta)) ** 2


def exo_pair(h: Array, beta: float, smoothing: float) -> Array:
    z = beta * h
    yes, no = np.exp(log_sigmoid(z)), np.exp(log_sigmoid(-z))
    right = yes * (log_sigmoid(z) - np.log(1 - smoothing))
    return right + no * (log_sigmoid(-z) - np.log(smoothing))


def trl_log_odds(chosen: Array, rejected: Array) -> Array:
    """ORPO as TRL writes it, in float64."""
    rest = np.log1p(-np.exp(chosen)) - np.log1p(-np.exp(rejected))
    return (chosen - rejected) - rest


CASES = [("dpo", 0.0), ("dpo", 0.1), ("dpo", 0.5), ("ipo", 0.0), ("exo_pair", 0.005),
         ("exo_pair", 0.3), ("exo_pair", 1e-6)]  # fmt: skip
FORMULAS: dict[str, Formula] = {"dpo": dpo, "ipo": ipo, "exo_pair": exo_pair}


def f32(array: Array | Sequence[float]) -> mx.array:
    return mx.array(np.asarray(array, np.float32))


def f64(array: mx.array) -> Array:
    assert array.dtype == mx.float32
    return np.array(array, np.float64)


def four(seed: int, n: int = 64) -> Array:
    """chosen, rejected, ref_chosen, ref_rejected [4, n], exact in float32."""
    return np.random.default_rng(seed).normal(-40, 12, (4, n)).astype(np.float32).astype(np.float64)


def ratio(logps: Array) -> Array:
    return (logps[0] - logps[2]) - (logps[1] - logps[3])


def slope(formula: Callable[[Array], Array], x: Array, step: float = 1e-5) -> Array:
    """Central differences of a float64 formula that takes each element by itself."""
    step = step * np.maximum(1, np.abs(x))
    return (formula(x + step) - formula(x - step)) / (2 * step)


# ---- preference pairs ----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "smoothing"), CASES)
@pytest.mark.parametrize("beta", [0.01, 0.1, 2.0])
def test_pair_losses_are_the_formulas(name: str, smoothing: float, beta: float) -> None:
    logps = four(1)
    h = ratio(logps)
    loss, margin = PREFERENCE[name](log_ratio(*map(f32, logps)), beta, smoothing)
    np.testing.assert_allclose(f64(margin), beta * h, rtol=1e-5, atol=2e-5)
    expected = FORMULAS[name](h, beta, smoothing)
    # h itself is a difference of float32 numbers around 80: 1e-5 of it is rounding.
    allowed = 2e-5 * np.abs(slope(lambda x: FORMULAS[name](x, beta, smoothing), h))
    assert (np.abs(f64(loss) - expected) <= allowed + 3e-6 * (1 + np.abs(expected))).all()


@pytest.mark.parametrize(("name", "smoothing"), CASES)
def test_pair_losses_at_extreme_margins(name: str, smoothing: float) -> None:
    z = np.array([-500, -120, -88.5, -30, -1e-3, 0, 1e-3, 17, 30, 88.5, 120, 500.0])
    loss, margin = PREFERENCE[name](f32(z), 1.0, smoothing)
    z = np.array(f32(z), np.float64)
    assert (f64(margin) == z).all()
    np.testing.assert_allclose(f64(loss), FORMULAS[name](z, 1.0, smoothing), rtol=1e-6, atol=3e-7)


@pytest.mark.parametrize(("name", "smoothing"), CASES)
@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_gradients_of_pair_losses(name: str, smoothing: float, beta: float) -> None:
    """Each of the four arguments, by finite differences of the float64 formula."""
    extremes = [[-500, -90, -20, -3, 0, 3, 20, 90, 500.0], *[[0.0] * 9] * 3]
    for logps in (four(2), np.array(extremes)):

        def total(*arrays: mx.array) -> mx.array:
            return PREFERENCE[name](log_ratio(*arrays), beta, smoothing)[0].sum()

        found = mx.grad(total, argnums=(0, 1, 2, 3))(*map(f32, logps))
        h = ratio(logps)
        expected = slope(lambda x: FORMULAS[name](x, beta, smoothing), h)
        for sign, gradient in zip((1, -1, -1, 1), found, strict=True):
            np.testing.assert_allclose(f64(gradient), sign * expected, rtol=1e-4, atol=1e-5)


def test_exo_is_least_where_the_labels_are() -> None:
    """A reverse KL: zero and flat where σ(z) = 1 − ε, positive elsewhere."""
    for smoothing in (0.005, 0.1, 0.4):
        z = math.log((1 - smoothing) / smoothing)
        spread = f32([z - 2, z - 0.5, z, z + 0.5, z + 2])

        def total(z: mx.array, smoothing: float = smoothing) -> mx.array:
            return exo_pair_loss(z, 1.0, smoothing)[0].sum()

        loss = f64(exo_pair_loss(spread, 1.0, smoothing)[0])
        assert loss[2] == pytest.approx(0, abs=1e-6)
        assert (np.delete(loss, 2) > 1e-4).all()
        assert (np.sign(f64(mx.grad(total)(spread)))[[0, 1, 3, 4]] == [-1, -1, 1, 1]).all()


# ---- ORPO ----------------------------------------------------------------------------------------

MEANS = np.concatenate(
    [
        -np.random.default_rng(6).gamma(2, 0.7, 60),
        [-1e-5, -1e-3, -0.6931, math.log(0.5), -0.6932, -30, -500],
    ]
)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_orpo_is_trls_formula(beta: float) -> None:
    chosen = np.array(f32(MEANS), np.float64)
    rejected = np.random.default_rng(7).permutation(chosen)
    loss, log_odds = orpo_loss(f32(chosen), f32(rejected), beta)
    expected = trl_log_odds(chosen, rejected)
    np.testing.assert_allclose(f64(log_odds), expected, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(f64(loss), -beta * log_sigmoid(expected), rtol=3e-6, atol=1e-6)


def test_gradients_of_orpo() -> None:
    chosen = np.array(f32(MEANS), np.float64)
    rejected = np.random.default_rng(8).permutation(chosen)
    found = mx.grad(lambda c, r: orpo_loss(c, r, 0.5)[0].sum(), argnums=(0, 1))(
        f32(chosen), f32(rejected)
    )

    def loss(share: Array, side: int) -> Array:
        """With one of the two multiplied by a share."""
        given = [chosen, rejected]
        given[side] = given[side] * share
        return -0.5 * log_sigmoid(trl_log_odds(*given))

    for side, x in enumerate((chosen, rejected)):
        expected = slope(lambda share, side=side: loss(share, side), np.ones(len(x)), 3e-5) / x
        np.testing.assert_allclose(f64(found[side]), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("certain", [0.0, -0.0, 1e-6, -1e-9, -1e-30])
@pytest.mark.parametrize("limit", [losses.CERTAIN, -1e-9])
def test_orpo_of_a_sure_policy_is_finite(
    monkeypatch: pytest.MonkeyPatch, limit: float, certain: float
) -> None:
    """Nor does it hang on the clamp alone: at −1e-9 float32's exp is 1."""
    monkeypatch.setattr(losses, "CERTAIN", limit)
    for pair in ((certain, -1.0), (-1.0, certain), (certain, certain), (certain, -700.0)):
        arrays = [f32([a]) for a in pair]
        values = orpo_loss(*arrays, 0.1)
        grads = mx.grad(lambda c, r: orpo_loss(c, r, 0.1)[0].sum(), argnums=(0, 1))(*arrays)
        assert np.isfinite([a.item() for a in (*values, *grads)]).all()
    assert orpo_loss(f32([certain]), f32([-1.0]), 0.1)[1].item() > 10


# ---- GRPO ----------------------------------------------------------------------------------------


def test_advantages_are_trls() -> None:
    rewards = np.random.default_rng(9).normal(1, 3, 8)
    found = group_advantages(list(rewards), scale=True)
    expected = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-4)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    bare = group_advantages(list(rewards), scale=False)
    np.testing.assert_allclose(bare, rewards - rewards.mean(), rtol=1e-12)
    assert group_advantages([1, 0, 0, 1], scale=False) == [0.5, -0.5, -0.5, 0.5]


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("rewards", [[], [3.0], [0.1] * 3, [0.7] * 7, [0, 0.0, -0.0], [1e9] * 5])
def test_equal_rewards_say_nothing(rewards: list[float], scale: bool) -> None:
    assert group_advantages(rewards, scale) == [0.0] * len(rewards)


def grpo(
    logps: Array, old: Array, reference: Array | None, advantages: Array, clip: float, kl: float,
    upper: float = 0.0, lengths: Array | None = None,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """GRPO as TRL writes it, in float64: loss, KL estimate, clipped."""
    ratio, column = np.exp(logps - old), advantages[:, None]
    if lengths is not None:
        mask = np.arange(logps.shape[1]) < lengths[:, None]
        product = np.prod(np.where(mask, ratio, 1.0), axis=1) ** (1 / lengths)
        ratio = np.repeat(product[:, None], logps.shape[1], axis=1)
    upper = upper or clip
    clamped = np.clip(ratio, 1 - clip, 1 + upper)
    loss = -np.minimum(ratio * column, clamped * column)
    low = (ratio < 1 - clip) & (column < 0)
    high = (ratio > 1 + upper) & (column > 0)
    estimate = np.zeros_like(logps)
    if reference is not None:
        estimate = np.exp(reference - logps) - (reference - logps) - 1
    return loss + kl * estimate, estimate, (low | high).astype(float)


def rollouts(seed: int, spread: float = 0.3) -> tuple[Array, Array, Array, Array]:
    """logps, old, reference [6, 20] and advantages [6], exact in float32; the last row's is 0."""
    rng = np.random.default_rng(seed)
    old = -rng.gamma(1, 1.5, (6, 20))
    logps, reference = old + rng.normal(0, spread, old.shape), old + rng.normal(0, 0.5, old.shape)
    advantages = np.append(rng.normal(0, 1, 5), 0.0)
    exact = [np.array(f32(a), np.float64) for a in (logps, old, reference, advantages)]
    return exact[0], exact[1], exact[2], exact[3]


@pytest.mark.parametrize("kl", [0.0, 0.04, 1.0])
@pytest.mark.parametrize("clip", [0.1, 0.2])
@pytest.mark.parametrize("referenced", [True, False])
@pytest.mark.parametrize("spread", [0.0, 0.3, 4.0])
def test_grpo_is_trls_formula(spread: float, referenced: bool, clip: float, kl: float) -> None:
    logps, old, reference, advantages = rollouts(10, spread)
    ref = reference if referenced else None
    loss, metrics = grpo_loss(
        f32(logps), f32(old), f32(ref) if ref is not None else None, f32(advantages), clip, kl
    )
    expected, estimate, clipped = grpo(logps, old, ref, advantages, clip, kl)
    np.testing.assert_allclose(f64(loss), expected, rtol=5e-6, atol=2e-6)
    np.testing.assert_allclose(f64(metrics["kl"]), estimate, rtol=5e-6, atol=1e-6)
    assert (f64(metrics["clipped"]) == clipped).all()
    assert clipped.any() == (spread > 0)


@pytest.mark.parametrize("kl", [0.0, 0.1])
def test_gradient_of_grpo(kl: float) -> None:
    logps, old, reference, advantages = rollouts(11)
    near = np.minimum(abs(logps - old - np.log(0.8)), abs(logps - old - np.log(1.2))) < 1e-3
    logps += np.where(near, 0.01, 0)  # off the corners of the clip
    found = mx.grad(
        lambda x: grpo_loss(x, f32(old), f32(reference), f32(advantages), 0.2, kl)[0].sum()
    )(f32(logps))
    expected = slope(lambda x: grpo(x, old, reference, advantages, 0.2, kl)[0], logps)
    np.testing.assert_allclose(f64(found), expected, rtol=1e-4, atol=1e-5)
    held = grpo(logps, old, reference, advantages, 0.2, kl)[2] > 0
    assert held.any()
    assert (np.abs(f64(found)[held]) > 0).all() == (kl > 0)  # a clipped token feels the KL alone


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.28), (0.2, 0.05), (3e-2, 0.0)])
@pytest.mark.parametrize("sequence", [False, True])
def test_clip_higher_and_one_ratio_a_response(low: float, high: float, sequence: bool) -> None:
    """DAPO's range, whose half above 1 is another, and GSPO's ratio; loss and gradient."""
    logps, old, reference, advantages = rollouts(12, 1.0)
    lengths = np.array([20.0, 5.0, 13.0, 1.0, 8.0, 20.0])
    beyond = np.arange(20) >= lengths[:, None]
    for array in (logps, old, reference):
        array[beyond] = 0  # as rows are padded
    lengthwise = lengths if sequence else None

    def mine(x: mx.array) -> tuple[mx.array, dict[str, mx.array]]:
        return grpo_loss(x, f32(old), f32(reference), f32(advantages), low, 0.1, high,
                         f32(lengths) if sequence else None)  # fmt: skip

    def theirs(x: Array) -> tuple[Array, Array, Array]:
        return grpo(x, old, reference, advantages, low, 0.1, high, lengthwise)

    loss, metrics = mine(f32(logps))
    expected, _, clipped = theirs(logps)
    np.testing.assert_allclose(f64(loss), expected, rtol=5e-6, atol=2e-6)
    assert (f64(metrics["clipped"]) == clipped).all() and 0 < clipped.mean() < 1
    assert (expected != grpo(logps, old, reference, advantages, low, 0.1)[0]).any() or not high
    if sequence:  # all tokens of a response have its ratio
        assert all(len(set(row)) == 1 for row in clipped.tolist())
    found = mx.grad(lambda x: (mine(x)[0] * f32(~beyond)).sum())(f32(logps))

    def masked(x: Array) -> Array:
        return theirs(np.where(beyond, 0.0, x))[0] * ~beyond

    for row in range(len(lengths)):
        way = np.zeros_like(logps)
        way[row, : int(lengths[row])] = 1.0
        step = 1e-6
        difference = (masked(logps + step * way) - masked(logps - step * way)).sum() / (2 * step)
        assert (f64(found) * way).sum() == pytest.approx(difference, rel=2e-4, abs=2e-4)


@pytest.mark.parametrize("apart", [19.0, 21.0, 88.0, 100.0, 500.0])
def test_grpo_far_from_where_it_sampled(apart: float) -> None:
    """No overflow in loss or gradient; the KL still pulls towards the reference."""
    logps = f32([[-apart, -1.0, -1.0, 0.0]] * 2)
    old, reference = f32([[-1.0, -apart, -1.0, 0.0]] * 2), f32([[-1.0, -1.0, -apart, 0.0]] * 2)
    mask = f32([1.0, 1.0, 1.0, 0.0])

    def total(logps: mx.array) -> mx.array:
        loss, _ = grpo_loss(logps, old, reference, f32([1.0, -1.0]), 0.2, 0.1)
        return (loss * mask).sum()

    loss, metrics = grpo_loss(logps, old, reference, f32([1.0, -1.0]), 0.2, 0.1)
    gradient = f64(mx.grad(total)(logps))
    for values in (f64(loss), gradient, *map(f64, metrics.values())):
        assert np.isfinite(values).all()
    assert (gradient[:, 0] < -1e5).all()  # far below the reference: up
    assert gradient[:, 2].tolist() == pytest.approx([-0.9, 1.1])  # far above: down by the KL's 0.1
    assert gradient[0, 1] == 0 and gradient[1, 1] > 1e5  # only a wrong response is pushed down
    assert (gradient[:, 3] == 0).all()
    assert metrics["kl"].tolist()[0][3] == 0


def test_grpo_is_the_formula_up_to_the_steep_part() -> None:
    apart = np.array([[STEEP - 0.5, 10.0, -10.0, -STEEP, -80.0]])
    zero = np.zeros_like(apart)
    loss, metrics = grpo_loss(f32(apart), f32(zero), f32(2 * apart), f32([-1.0]), 0.2, 1.0)
    expected, estimate, _ = grpo(apart, zero, 2 * apart, np.array([-1.0]), 0.2, 1.0)
    np.testing.assert_allclose(f64(loss), expected, rtol=3e-6)
    np.testing.assert_allclose(f64(metrics["kl"]), estimate, rtol=3e-6)
