"""One test for each fault found in other trainers (design/trainer.md); ours must not have it.

Where it can be done, the fault is put in and the same check is seen to tell the two apart. The
comment above a test says what a trainer with the fault would fail at. Two faults have no place here
to live: KTO without a reference (there is no KTO) and equal batches on every rank (one process).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models import qwen2
from mlx_lm.tuner.trainer import default_loss, grad_checkpoint
from mlx_lm.tuner.utils import linear_to_lora_layers
from support.methods import attempt_messages
from support.training import (
    KEYS,
    SHAPES,
    all_bytes,
    first_gradient,
    fit_groups,
    fit_pairs,
    fit_rows,
    fitting,
    kinds,
    log_softmax,
    long_pairs,
    lora_bytes,
    lora_trainer,
    make_groups,
    make_pairs,
    margins_of,
    pair_scores,
    rows,
    small_model,
    softplus,
)

from mlxreflect.config.recipe import load_recipe
from mlxreflect.config.schema import LoraConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Example
from mlxreflect.models.fuse import write_folder
from mlxreflect.models.policy import Policy
from mlxreflect.train import memory
from mlxreflect.train import trainer as trainer_module
from mlxreflect.train.batches import Batch, Pair, Row, collate, padded
from mlxreflect.train.encode import Dropped, Encoder
from mlxreflect.train.lora import attach_lora, base_reference, save_adapter
from mlxreflect.train.network import Network
from mlxreflect.train.objectives import imitation
from mlxreflect.train.references import References
from mlxreflect.train.trainer import (
    LRSchedule,
    Trainer,
    load_parameters,
    load_trainer,
    save_trainer,
)

Gradient = dict[str, np.ndarray]
MESSAGES = attempt_messages("Do it.", "Numbers: 3 4 5\nTarget: 35", "think", "thinking")
TEXT = "<think>\nstep 1: 3 + 4 = 7\nstep 2: 7 * 5 = 35\n</think>\n<answer> ( 3 + 4 ) * 5 </answer>"


@pytest.fixture(scope="module")
def policy(tiny_random: Path) -> Policy:
    from mlxreflect.config.schema import PolicyConfig
    from mlxreflect.models.load import load_policy

    return load_policy(PolicyConfig(model=str(tiny_random)))


def off_by(found: Gradient, expected: Gradient) -> float:
    """The largest difference, as a share of the largest gradient."""
    assert found.keys() == expected.keys()
    largest = max(np.abs(g).max() for g in expected.values())
    return float(max(np.abs(found[k] - expected[k]).max() for k in found) / largest)


# ---- losses -------------------------------------------------------------------------------------


# The sigmoid loss has another value, and gradients in another ratio to IPO's.
def test_ipo_asked_for_and_sigmoid_trained() -> None:
    results, (pair,) = {}, make_pairs(1, 3)[2:]
    for name in ("ipo", "dpo"):
        trainer = lora_trainer()
        scores = pair_scores(trainer.model, [pair]), pair_scores(small_model(), [pair])
        settings = fitting(lr=1e-3, batch=1, objective=name, beta=0.3, clip=0.0)
        (step,) = fit_pairs(trainer, [pair], base_reference(trainer.model), settings, (1,))
        results[name] = step.loss, first_gradient(trainer, name)
    (h,) = margins_of(*scores, [pair], "sum", 1.0)
    target = 1 / (2 * 0.3)
    assert results["ipo"][0] == pytest.approx((h - target) ** 2, rel=1e-5)
    assert results["dpo"][0] == pytest.approx(softplus(np.array(-0.3 * h)), rel=1e-5)
    assert results["ipo"][0] != pytest.approx(results["dpo"][0], rel=0.1)
    ratio = 2 * (h - target) / (-0.3 / (1 + math.exp(0.3 * h)))
    scaled = {k: g * ratio for k, g in results["dpo"][1].items()}
    assert off_by(results["ipo"][1], scaled) < 1e-4
    assert off_by(results["ipo"][1], results["dpo"][1]) > 0.1


# Without log(1 − p) the odds are those of log-probabilities: another loss for every pair.
def test_orpo_without_its_other_terms() -> None:
    trainer, pairs = lora_trainer(), make_pairs(2, 5)
    lengths = np.array([[len(p.chosen.response), len(p.rejected.response)] for p in pairs])
    mean = pair_scores(trainer.model, pairs) / lengths
    whole = mean - np.log1p(-np.exp(mean))
    losses = {name: (0.5 * softplus(odds[:, 1] - odds[:, 0]) - mean[:, 0]).mean()
              for name, odds in (("right", whole), ("faulty", mean))}  # fmt: skip
    settings = fitting(lr=1e-3, batch=5, objective="orpo", beta=0.5)
    (step,) = fit_pairs(trainer, pairs, None, settings, (1,))
    assert step.loss == pytest.approx(losses["right"], rel=2e-6)
    assert abs(step.loss - losses["faulty"]) > 1e-4


# A sum, or a mean over something else than pairs or tokens, grows with the copies.
def test_a_loss_that_depends_on_the_batch_size() -> None:
    pairs, data = make_pairs(3, 4), rows(3, SHAPES)
    for copies in (1, 3):
        for batch in (1, 4, 99):
            settings = fitting(lr=1e-3, batch=batch, accumulate=99)
            trainer = lora_trainer()
            (step,) = fit_pairs(trainer, pairs * copies, base_reference(trainer.model), settings,
                                        (1,))  # fmt: skip
            (sft,) = fit_rows(lora_trainer(), data * copies, settings, (1,), dropout=False)
            (group,) = fit_groups(lora_trainer(), make_groups(3) * copies, None, settings, (1,))
            found = (step.loss, step.grad_norm, sft.loss, sft.grad_norm, group.grad_norm)
            if copies == batch == 1:
                expected = found
            assert found == pytest.approx(expected, rel=1e-5)


# Sums in bfloat16 have steps of 8 at −2000: off by more than any margin.
def test_log_probabilities_summed_in_bf16() -> None:
    model = small_model()
    model.set_dtype(mx.bfloat16)
    (row,) = rows(4, [(3, 600)])
    tokens = np.array([row.prompt + row.response])
    logits = model(mx.array(tokens[:, :-1]))
    assert logits.dtype == mx.bfloat16
    each = np.array(logits.astype(mx.float32), np.float64)[0]
    expected = log_softmax(each)[np.arange(602), tokens[0, 1:]][2:].sum()
    assert expected < -1900
    trainer = Trainer(model)
    ((found,),) = trainer.score([(row,)], trainer.trainable(), "sums")
    # Padded to another length, bfloat16 states differ by themselves; nothing like a sum's step.
    assert found == pytest.approx(expected, abs=0.5)
    whole = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    each = mx.take_along_axis(whole, mx.array(tokens[:, 1:, None]), axis=-1)[0, 2:, 0]
    assert each.dtype == mx.bfloat16
    assert abs(each.sum().item() - expected) > 1


# ---- which data, how often ----------------------------------------------------------------------


# Eight steps of two pairs each where two of eight were asked for.
def test_accumulation_read_and_ignored() -> None:
    pairs = make_pairs(5, 16)
    steps = fit_pairs(lora_trainer(), pairs, None, fitting(lr=1e-4, batch=2, accumulate=4), (1,))
    ignored = fit_pairs(lora_trainer(), pairs, None, fitting(lr=1e-4, batch=2), (1,))
    whole = fit_pairs(lora_trainer(), pairs, None, fitting(lr=1e-4, batch=8), (1,))
    assert (len(steps), len(ignored)) == (2, 8)
    assert [s.tokens for s in steps] == [s.tokens for s in whole]
    assert [s.grad_norm for s in steps] == pytest.approx([s.grad_norm for s in whole], rel=1e-4)
    assert [s.grad_norm for s in steps] != pytest.approx([s.grad_norm for s in ignored[:2]])


# An epoch of draws with replacement leaves about a third of the pairs out.
def test_sampling_with_replacement(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = make_pairs(6, 24)
    sizes = sorted(len(p.chosen.response + p.rejected.response) for p in pairs)
    settings = fitting(lr=1e-4, batch=1)

    def once_each() -> bool:
        steps = fit_pairs(lora_trainer(), pairs, None, settings, (1,))
        return sorted(s.tokens for s in steps) == sizes

    assert len(set(sizes)) == len(sizes)  # a step of one pair is known by its tokens
    assert once_each()

    class Drawing:
        def shuffle(self, order: list[int]) -> None:
            order[:] = np.random.default_rng(0).integers(0, len(order), len(order)).tolist()

    monkeypatch.setattr(trainer_module, "rng_for", lambda *names: Drawing())
    assert not once_each()


# There is one process and no rank; what should differ by name, wave or seed, does.
def test_equal_batches_everywhere() -> None:
    pairs = make_pairs(7, 12)
    orders = [
        tuple(s.tokens for s in fit_pairs(lora_trainer(), pairs, None, settings, seed))
        for settings in (fitting(lr=1e-4, batch=1),)
        for seed in ((0, "wave", 1), (0, "wave", 2), (1, "wave", 1), (0, "wave", 1))
    ]
    assert orders[0] == orders[3]
    assert len(set(orders)) == 3


# The mean over batches of 2, 2 and 1 counts the last pair twice.
def test_accuracy_of_batch_means() -> None:
    trainer, pairs = lora_trainer(), make_pairs(5, 5)
    base = base_reference(trainer.model)
    zero = pair_scores(small_model(), pairs)
    right = margins_of(pair_scores(trainer.model, pairs), zero, pairs, "sum", 0.1) > 0
    by_length = sorted(
        range(5), key=lambda i: max(pairs[i].chosen.length, pairs[i].rejected.length)
    )
    batches = [np.mean([right[i] for i in by_length[s : s + 2]]) for s in (0, 2, 4)]
    assert np.mean(batches) != pytest.approx(np.mean(right))  # else this test shows nothing
    (step,) = fit_pairs(trainer, pairs, base, fitting(lr=1e-3, batch=2, accumulate=3), (1,))
    assert step.accuracy == pytest.approx(np.mean(right), abs=1e-9)


def by_hand(trainer: Trainer, parts: list[list[Row]]) -> Gradient:
    """The mean of each part's gradient of its own mean: what averaging micro-batches gives."""
    found: list[Gradient] = []
    for part in parts:
        one = lora_trainer()
        fit_rows(one, part, fitting(lr=1e-3, batch=99, clip=0.0), (1,), dropout=False)
        found.append(first_gradient(one, "sft"))
    return {k: np.mean([g[k] for g in found], axis=0) for k in found[0]}


# Averaged means give a token of a short batch more weight than one of a long batch.
def test_accumulation_that_averages_means_of_batches() -> None:
    data = sorted(rows(8, [(4, 1), (4, 2), (4, 3), (4, 30), (4, 40), (4, 50)]),
                  key=lambda row: row.length)  # fmt: skip
    results = []
    for batch, accumulate in ((6, 1), (2, 3)):
        trainer = lora_trainer()
        settings = fitting(lr=1e-3, batch=batch, accumulate=accumulate, clip=0.0)
        (step,) = fit_rows(trainer, data, settings, (1,), dropout=False)
        results.append((step.loss, first_gradient(trainer, "sft")))
    faulty = by_hand(trainer, [data[0:2], data[2:4], data[4:6]])
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-6)
    assert off_by(results[1][1], results[0][1]) < 1e-5
    assert off_by(faulty, results[0][1]) > 0.1


# Rows in the order of anything but their length, such as their number of keys, are mostly padding.
def test_a_length_sort_that_measures_something_else() -> None:
    rng = np.random.default_rng(9)
    data = rows(9, [(int(p), int(r)) for p, r in rng.integers(4, 200, (128, 2))])
    real = sum(row.length - 1 for row in data)
    trainer, settings = lora_trainer(), fitting(lr=1.0, batch=8, accumulate=16)
    objective = imitation(data)
    network = trainer.understood(objective.items)

    def padding() -> float:
        parts, _ = trainer.plan(network, objective, list(range(128)), settings)
        tokens = sum(collate([objective.items[i] for i in part]).inputs.size for part in parts)
        return 1 - real / tokens

    lengths = sorted(row.length - 1 for row in data)
    possible = 1 - real / sum(8 * padded(max(lengths[i : i + 8])) for i in range(0, 128, 8))
    assert possible < 0.06
    assert padding() <= possible + 1e-9
    by_keys = sorted(range(128), key=lambda i: len(vars(data[i])))
    tokens = sum(
        8 * padded(max(data[i].length - 1 for i in by_keys[s : s + 8])) for s in range(0, 128, 8)
    )
    assert 1 - real / tokens > 0.25


# ---- tokens -------------------------------------------------------------------------------------


# A prompt that is not the template's, or a response without its end, or with two.
def test_no_chat_template_or_end_of_turn(policy: Policy) -> None:
    example = Example("preference", MESSAGES, TEXT, TEXT[:40])
    pair = Encoder(policy, 500).encode(example)
    assert isinstance(pair, Pair)
    end = policy.end_of_turn
    assert end in policy.eos
    template = policy.tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True)
    bare = policy.tokenizer.encode("".join(m["content"] for m in MESSAGES))
    for row, text in ((pair.chosen, TEXT), (pair.rejected, TEXT[:40])):
        assert row.prompt == template != bare
        assert row.response == [*policy.tokenizer.encode(text, add_special_tokens=False), end]
        batch = collate([(row,)])
        assert batch.targets.tolist() == row.response  # the end is trained, and trained once
        assert batch.targets.tolist().count(end) == 1


def scribbled(batch: Batch, token: int) -> Batch:
    """The batch with another token wherever there is padding."""
    inputs = np.array(batch.inputs)
    rows_ = np.arange(len(inputs))[:, None]
    real = np.zeros(inputs.shape, bool)
    used = np.array(batch.from_rows)
    last = np.full(len(inputs), -1)
    for index in used:
        last[index // inputs.shape[1]] = max(last[index // inputs.shape[1]],
                                             index % inputs.shape[1])  # fmt: skip
    real = np.arange(inputs.shape[1])[None] <= last[rows_]
    prefix = None
    if batch.prefix is not None:
        prefix = np.array(batch.prefix)
        ends = np.array(batch.prefix_lengths)[:, None]
        prefix = mx.array(np.where(np.arange(prefix.shape[1])[None] < ends, prefix, token))
    inputs = np.where(real, inputs, token).astype(np.int32)
    return batch._replace(prefix=prefix, inputs=mx.array(inputs))


# A mask one too long scores a pad token: one target more a row, and a loss that padding changes.
def test_a_pad_token_is_trained() -> None:
    network = Network(lora_trainer().model)
    items = [(row,) for row in rows(10, SHAPES)]
    pairs = [(p.chosen, p.rejected) for p in long_pairs(10)]
    for some, share in ((items, False), (pairs, False), (pairs, True)):
        batch = collate(some, share=share)
        assert (batch.prefix is not None) == share
        assert batch.mask.sum().item() == sum(len(row.response) for item in some for row in item)
        expected = np.array(network.logps(batch))
        other = scribbled(batch, 17)
        assert (np.array(other.inputs) != np.array(batch.inputs)).any()
        np.testing.assert_allclose(np.array(network.logps(other)), expected, atol=1e-6)
    # mlx-lm's loss has one more target a row, and another value for another pad token.
    data, model, losses = rows(10, [(3, 2), (3, 9)]), small_model(), []
    spans = mx.array([[len(row.prompt), row.length] for row in data])
    for pad in (0, 17):
        tokens = np.full((2, 33), pad, np.int32)
        for i, row in enumerate(data):
            tokens[i, : row.length] = row.prompt + row.response
        loss, count = default_loss(model, mx.array(tokens), spans)
        losses.append(loss.item())
        assert count.item() == collate([(row,) for row in data]).targets.size + 2
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


# Truncation from the right leaves a row without a response: 0 tokens, and 0 / 0.
def test_truncation_that_empties_a_mask(load_random: Callable[..., Any]) -> None:
    policy = load_random(dequantize="no")
    example = Example("sft", MESSAGES, completion=TEXT)
    whole = Encoder(policy, 500).encode(example)
    assert isinstance(whole, Row)
    dropped, kept = 0, []
    for limit in range(1, whole.length + 1, 7):
        found = Encoder(policy, limit).encode(example)
        dropped += isinstance(found, Dropped)
        if isinstance(found, Row):
            assert found.length <= limit
            assert found.response == whole.response and found.trained == len(whole.response)
            kept.append(found)
    assert dropped and kept
    attach_lora(policy.model, LoraConfig(rank=2), 0)
    for settings in (fitting(lr=1e-3, batch=1), fitting(lr=1e-3, batch=9)):
        steps = fit_rows(Trainer(policy.model), kept, settings, (1,))
        assert all(math.isfinite(s.loss) and math.isfinite(s.grad_norm) for s in steps)
    # What truncation from the right would have made is NaN in mlx-lm, and refused here.
    cut = mx.array([whole.prompt[:20]])
    assert math.isnan(default_loss(policy.model, cut, mx.array([[40, 20]]))[0].item())
    with pytest.raises((ZeroDivisionError, ValueError)):
        fit_rows(Trainer(policy.model), [Row(whole.prompt, [])], fitting(lr=1.0, batch=1), (1,))


# ---- weights ------------------------------------------------------------------------------------


# Weights that are no adapter's have other bytes after training.
def test_frozen_weights_that_change() -> None:
    for thawed in (False, True):
        trainer = lora_trainer()
        lora = set(trainer.trainable())
        if thawed:
            trainer.model.layers[0].mlp.unfreeze()
        before, settings = all_bytes(trainer.model), fitting(lr=1e-2, batch=2)
        fit_pairs(trainer, make_pairs(11, 4), base_reference(trainer.model), settings, (1,))
        fit_rows(trainer, rows(11, SHAPES), settings, (1,))
        fit_groups(trainer, make_groups(11), None, settings, (1,))
        after = all_bytes(trainer.model)
        changed = {name for name, data in after.items() if data != before[name]}
        assert before.keys() == after.keys()
        assert (changed == lora) != thawed


# Without a seed the same recipe begins from other values each time.
def test_unseeded_lora_init() -> None:
    def begun(seed: int | None) -> bytes:
        model = small_model()
        mx.random.seed(np.random.default_rng().integers(2**31))  # what was drawn before
        if seed is None:
            model.freeze()
            parameters = {"rank": 4, "scale": 2.0, "dropout": 0.0, "keys": KEYS}
            linear_to_lora_layers(model, 2, parameters)
        else:
            attach_lora(model, LoraConfig(rank=4, keys=KEYS), seed)
        return b"".join(lora_bytes(Trainer(model)).values())

    assert begun(1) == begun(1)
    assert begun(1) != begun(2)
    assert begun(None) != begun(None)


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


@contextmanager
def counted(found: list[int]) -> Iterator[None]:
    """Appends the most bytes held at once beyond what was held at first."""
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    yield
    found.append(mx.get_peak_memory() - before)


# A reference model of its own is as many bytes as the policy, from the first step on.
def test_a_second_copy_of_the_model_as_reference(tmp_path: Path) -> None:
    model = large_model()
    attach_lora(model, LoraConfig(rank=2, keys=["self_attn.q_proj"]), 0)
    weights, pairs, found = nbytes(model), make_pairs(12, 2), []
    assert weights > 18e6
    settings = fitting(lr=1e-3, batch=1)
    references = References(tmp_path / "references.sqlite")
    for cache in (None, references):
        trainer = Trainer(model, cache)
        for reference in (trainer.trainable(), base_reference(model)):
            with counted(found):
                fit_pairs(trainer, pairs, reference, settings, (1,))
    assert max(found) < 0.4 * weights
    with counted(found):
        copy = large_model()
        fit_pairs(trainer, pairs, trainer.trainable(), settings, (1,))
    assert nbytes(copy) > 18e6
    assert found[-1] > 0.9 * weights
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
    trainer.fit(objective, settings, (1,))
    mx.clear_cache()
    held = mx.get_active_memory() - before - moments
    assert held < 0.1 * nbytes(model)
    references.close()


# Packed again, a small change falls between two of 16 values and is gone.
def test_fusing_that_loses_a_small_change(
    load_random: Callable[..., Any], tiny_random: Path, tmp_path: Path
) -> None:
    policy = load_random(dequantize="no")
    config = attach_lora(policy.model, LoraConfig(rank=4, scale=1.0), 0)
    mx.random.seed(3)
    arrays = {name: 2e-2 * mx.random.normal(array.shape) if name.endswith("lora_b") else array
              for name, array in Trainer(policy.model).trainable().items()}  # fmt: skip
    save_adapter(tmp_path / "adapter", arrays, config, str(tiny_random))
    ids = mx.array([[5, 6, 7, 8, 9, 10, 11, 12]])
    plain = np.array(policy.model(ids), np.float64)
    policy.model.update(tree_unflatten(list(arrays.items())))
    change = np.array(policy.model(ids), np.float64) - plain
    shares = []
    for bits in (0, 4):
        out = tmp_path / f"out-{bits}"
        write_folder(str(tiny_random), str(tmp_path / "adapter"), out, bits)
        from mlxreflect.config.schema import PolicyConfig
        from mlxreflect.models.load import load_policy

        fused = load_policy(PolicyConfig(model=str(out), dequantize="no")).model
        left = np.array(fused(ids), np.float64) - plain
        shares.append(np.abs(left - change).max() / np.abs(change).max())
    assert shares[0] < 1e-3
    assert shares[1] > 0.3


# ---- layers computed twice ----------------------------------------------------------------------


# Keys and values that do not enter and leave as values lose their gradients; the loss stays right.
def test_shared_prefixes_with_recomputed_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, results = long_pairs(13), {}
    for name in ("no", "yes", "faulty"):
        if name == "faulty":
            monkeypatch.setattr(memory, "find_cache", lambda args, kwargs: None)
        trainer = lora_trainer()
        settings = fitting(lr=1e-3, batch=3, clip=0.0, nll=0.2,
                            grad_checkpoint="no" if name == "no" else "yes")  # fmt: skip
        items = [(p.chosen, p.rejected) for p in pairs]
        assert collate(items, share=trainer.understood(items).shares).prefix is not None
        (step,) = fit_pairs(trainer, pairs, base_reference(trainer.model), settings, (1,))
        results[name] = step.loss, first_gradient(trainer, "dpo")
    losses = [loss for loss, _ in results.values()]
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-6)
    assert off_by(results["yes"][1], results["no"][1]) < 1e-5
    assert off_by(results["faulty"][1], results["no"][1]) > 0.1


# A patch that stays recomputes where nothing was asked for; on top of itself it does so twice.
def test_a_patch_for_ever_or_nested(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, original = [], mx.checkpoint
    monkeypatch.setattr(mx, "checkpoint", lambda f: calls.append(1) or original(f))
    trainer, data = lora_trainer(), rows(14, SHAPES)
    before, counts = kinds(trainer.model), []
    for recomputed in ("yes", "yes", "no"):
        settings = fitting(lr=1e-3, batch=6, grad_checkpoint=recomputed)
        fit_rows(trainer, data, settings, (1,))
        assert kinds(trainer.model) == before
        counts.append(len(calls))
        calls.clear()
    assert counts == [4, 4, 0]  # once a layer and part
    try:
        for _ in range(2):  # mlx-lm's
            grad_checkpoint(trainer.model.layers[0])
        assert kinds(trainer.model) != before
        fit_rows(trainer, data, fitting(lr=1e-3, batch=6, grad_checkpoint="no"), (1,))
        assert len(calls) > 2
    finally:
        type(trainer.model.layers[0]).__call__ = before[0]


# Masks drawn anew in the backward pass: gradients of another function than the loss.
def test_dropout_drawn_anew_where_layers_are_recomputed(monkeypatch: pytest.MonkeyPatch) -> None:
    objective, settings = imitation(rows(15, SHAPES)), fitting(lr=1.0, batch=3, accumulate=2)
    everything = list(range(len(SHAPES)))

    def off(recomputed: str) -> float:
        """How far the gradient along a direction is from central differences of the loss."""
        trainer = lora_trainer(dropout=0.3)
        trainer.model.train()
        network = trainer.understood(objective.items)
        chosen = fitting(lr=1.0, batch=3, accumulate=2, grad_checkpoint=recomputed)
        start, rng = trainer.trainable(), np.random.default_rng(1)
        way = {k: mx.array(rng.normal(size=v.shape).astype(np.float32)) for k, v in start.items()}

        def at(step: float) -> tuple[float, Any]:
            moved = [(k, v + step * way[k]) for k, v in start.items()]
            trainer.model.update(tree_unflatten(moved))
            loss, grads, _ = trainer.gradients(network, objective, everything, chosen, (1, "a"))
            return loss, grads

        (loss, grads), h = at(0.0), 2e-3
        assert at(0.0)[0] == loss
        found = sum((g * way[k]).sum().item() for k, g in tree_flatten(grads))
        difference = (8 * (at(h)[0] - at(-h)[0]) - (at(2 * h)[0] - at(-2 * h)[0])) / (12 * h)
        assert abs(difference) > 0.1
        return abs(found / difference - 1)

    assert settings.grad_checkpoint == "auto"
    assert off("no") < 2e-3
    assert off("yes") < 2e-3
    monkeypatch.setattr(memory, "seed_mlx", lambda *names: None)
    assert off("yes") > 0.02


# ---- resuming -----------------------------------------------------------------------------------


# Weights alone: moments from zero, the first batches once more, other dropout, a new warm-up.
def test_resuming_with_the_weights_only(tmp_path: Path) -> None:
    data = rows(16, [*SHAPES, (4, 5), (2, 8)])
    objective = imitation(data)
    settings = fitting(lr=1e-2, batch=1, accumulate=2, epochs=2, warmup=3, weight_decay=0.1)
    cosine = LRSchedule("cosine")

    def begun(seed: int) -> Trainer:
        return lora_trainer(seed, dropout=0.2)

    whole = begun(0)
    steps = whole.fit(objective, settings, (1,), schedule=cosine)
    assert len(steps) == 8
    first = begun(0)
    course = first.train(objective, settings, (1,), schedule=cosine)
    half = [next(course) for _ in range(3)]  # in the middle of an epoch
    course.close()
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), first.trainable())
    saved = save_trainer(tmp_path, first)

    results = []
    for keeps in (True, False):
        second = begun(9)
        load_parameters(tmp_path / "adapters.safetensors", second)
        if keeps:
            load_trainer(tmp_path, second, saved)
        start = 3 if keeps else 0
        rest = list(second.train(objective, settings, (1,), schedule=cosine, start=start))
        results.append(lora_bytes(second) == lora_bytes(whole))
        if keeps:
            found = [(s.step, s.loss, s.lr, s.grad_norm, s.tokens) for s in half + rest]
            assert found == [(s.step, s.loss, s.lr, s.grad_norm, s.tokens) for s in steps]
    assert results == [True, False]


# ---- what we do not have ------------------------------------------------------------------------


# KTO without its reference point is another loss; we have none, and say so.
def test_kto_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("quickstart", ["train.objective=kto"])
    assert "'dpo', 'ipo', 'exo_pair' or 'orpo'" in caught.value.message
    with pytest.raises(KeyError):
        lora_trainer().pair_objective(make_pairs(17, 1), None, fitting(), "kto").loss(
            mx.zeros((2, 3)), collate([(row,) for row in rows(17, SHAPES[:2])]), [0]
        )
