"""One epoch of DPO: our trainer against mlx-lm-lora's, on the same pairs, batches and weights.

usage: python tests/bench/dpo_step.py [--models 5M 41M] [--bits 4] [--pairs 8] [--batch 4]
       [--repeats 1] [--clock cpu] [--full] [--json]

Both start from tokens and end with updated weights; the reference pass is part of it. Weights are
random, in float32 (--bits 4: quantised, and left so); LoRA of rank 16 on q, k, v, o
of all layers, its B not zero, AdamW. Each side warms up with a step on two pairs, whose gradient is
compared with that of the plain formulation below: the largest |a - b| over the largest |b|, of any
tensor. Peak memory includes the weights. Useful work: 4 FLOP a parameter for each distinct token
(2 forward, 2 for the gradients of activations) and 2 for the reference; a token that chosen and
rejected share counts once, the head's parameters count for response tokens only. "of peak": that
over time, as part of a measured float32 product of 1024 × 1024 matrices. --clock cpu counts this
process's CPU seconds, for a machine that others use too; --full adds the slowest case.
The other side needs `pip install mlx-lm-lora==5.10.2`, or the extra `bench`.
"""

import argparse
import contextlib
import gc
import io
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from unittest import mock

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from workload import CLOCKS, gemm_peak, random_model, random_pairs, useful_flops, with_lora

from mlxreflect.config.schema import Fitting
from mlxreflect.core.seeds import rng_for
from mlxreflect.train.batches import Pair, Row
from mlxreflect.train.trainer import Trainer

Arrays = dict[str, mx.array]
BETA, RATE, SEED = 0.1, 1e-4, (0, "bench")


class Case(NamedTuple):
    name: str
    base: Callable[[], nn.Module]
    pairs: list[Pair]


@dataclass
class Run:
    """What a side did: its seconds, peak bytes, and first moments of AdamW after the last step."""

    seconds: float
    peak: int
    moments: Arrays


# ---- models and data -----------------------------------------------------------------------------


def random_base(name: str, bits: int) -> nn.Module:
    model = random_model(name)
    if bits:
        nn.quantize(model, group_size=64, bits=bits)
    return model


def base_arrays(model: nn.Module) -> Arrays:
    """LoRA's arrays with which the model is its base: the reference."""
    arrays = dict(tree_flatten(model.trainable_parameters()))
    return {k: mx.zeros_like(v) if k.endswith("lora_b") else v for k, v in arrays.items()}


# ---- the plain formulation -----------------------------------------------------------------------


def plain_logps(model: nn.Module, rows: list[Row]) -> mx.array:
    width = max(row.length for row in rows)
    tokens = np.zeros((len(rows), width), dtype=np.int32)
    mask = np.zeros((len(rows), width - 1), dtype=np.float32)
    for i, row in enumerate(rows):
        tokens[i, : row.length] = row.prompt + row.response
        mask[i, len(row.prompt) - 1 : row.length - 1] = 1
    logits = model(mx.array(tokens[:, :-1])).astype(mx.float32)
    logps = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    taken = mx.take_along_axis(logps, mx.array(tokens[:, 1:, None]), axis=-1)[..., 0]
    return (taken * mx.array(mask)).sum(axis=-1)


def plain_gradient(model: nn.Module, pairs: list[Pair]) -> Arrays:
    """Whole forward passes over padded rows, float32 logits of all, automatic differentiation."""
    chosen, rejected = [p.chosen for p in pairs], [p.rejected for p in pairs]
    own = dict(tree_flatten(model.trainable_parameters()))
    model.update(tree_unflatten(list(base_arrays(model).items())))
    reference = plain_logps(model, chosen) - plain_logps(model, rejected)
    mx.eval(reference)
    model.update(tree_unflatten(list(own.items())))

    def loss(model: nn.Module) -> mx.array:
        margin = plain_logps(model, chosen) - plain_logps(model, rejected) - reference
        return -nn.log_sigmoid(BETA * margin).mean()

    _, gradient = nn.value_and_grad(model, loss)(model)
    mx.eval(gradient)
    return dict(tree_flatten(gradient))


def difference(run: Run, plain: Arrays) -> float:
    """After one step from zero, AdamW's first moment is a tenth of the gradient."""
    assert run.moments.keys() == plain.keys()
    return max(
        (mx.abs(10 * run.moments[k] - g).max() / mx.abs(g).max()).item() for k, g in plain.items()
    )


# ---- the sides -----------------------------------------------------------------------------------


def moments(optimizer: optim.Optimizer) -> Arrays:
    return {k[:-2]: v for k, v in tree_flatten(optimizer.state) if k.endswith(".m")}


def our_batches(pairs: list[Pair], batch: int) -> list[list[Pair]]:
    """The batches that our trainer makes of the pairs, for the other side to have the same."""
    order = list(range(len(pairs)))
    rng_for(*SEED, "dpo", "order", 0).shuffle(order)
    return [[pairs[i] for i in order[k : k + batch]] for k in range(0, len(order), batch)]


def ours(case: Case, pairs: list[Pair], batch: int, clock: Callable[[], float]) -> Run:
    model = with_lora(case.base())
    reference, trainer = base_arrays(model), Trainer(model)
    config = Fitting(lr=RATE, batch=batch, beta=BETA, clip=0.0, logps="sum")
    with measured(clock) as run:
        objective = trainer.pair_objective(pairs, reference, config, "dpo")
        list(trainer.train(objective, config, SEED))
    run.moments = moments(trainer.optimizers["dpo"])
    return run


def mlx_lm_lora(case: Case, pairs: list[Pair], batch: int, clock: Callable[[], float]) -> Run:
    """Its train_dpo, with the reference that its command line makes: a second, frozen copy.

    That is the cheapest it has: without a reference model, its reference scores are zeros.
    """
    from mlx_lm_lora.trainer import dpo_trainer

    model, reference = with_lora(case.base()), case.base().freeze()
    mx.eval(reference.parameters())
    optimizer = optim.AdamW(RATE, weight_decay=0.0, bias_correction=True)
    batches = our_batches(pairs, batch)
    collate, waiting = dpo_trainer.iterate_dpo_batches, iter(batches)

    def in_turn(dataset: Any, batch_size: int, max_seq_length: int, train: bool) -> Iterator[Any]:
        """Its own collation; but each pair once, where it draws batches with replacement."""
        rows = [
            {"chosen": p.chosen.prompt + p.chosen.response,
             "rejected": p.rejected.prompt + p.rejected.response,
             "chosen_prompt_length": len(p.chosen.prompt),
             "rejected_prompt_length": len(p.rejected.prompt)}
            for p in next(waiting)
        ]  # fmt: skip
        return collate(rows, len(rows), max_seq_length)

    # On the CPU there is no working set to ask for, where its trainer asks for one.
    info = {"max_recommended_working_set_size": 0, **mx.device_info()}
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(dpo_trainer, "iterate_dpo_batches", in_turn),
        mock.patch.object(mx, "device_info", lambda: info),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        never = 10**9
        args = dpo_trainer.DPOTrainingArgs(
            batch_size=batch, iters=len(batches), beta=BETA, max_seq_length=never,
            steps_per_report=never, steps_per_save=never,
            adapter_file=str(Path(folder) / "adapters.safetensors"),
        )  # fmt: skip
        with measured(clock) as run:
            dpo_trainer.train_dpo(model, reference, optimizer, pairs, args=args)
    run.moments = moments(optimizer)
    return run


@contextlib.contextmanager
def measured(clock: Callable[[], float]) -> Iterator[Run]:
    gc.collect()
    mx.clear_cache()
    mx.reset_peak_memory()
    run, started = Run(0.0, 0, {}), clock()
    yield run
    mx.synchronize()
    run.seconds, run.peak = clock() - started, mx.get_peak_memory()


# ---- the figures ---------------------------------------------------------------------------------

SIDES: dict[str, Callable[..., Run]] = {"mlx-lm-lora": mlx_lm_lora, "mlxreflect": ours}


def measure(case: Case, given: argparse.Namespace) -> list[dict[str, Any]]:
    clock, batch = CLOCKS[given.clock], given.batch
    first = case.pairs[:2]
    model = with_lora(case.base())
    plain, flops = plain_gradient(model, first), useful_flops(case.base(), case.pairs)
    del model
    runs: dict[str, list[Run]] = {name: [] for name, _ in given.sides}
    peaks = []
    for _ in range(given.repeats):
        peaks.append(gemm_peak(clock))
        for name, side in given.sides:
            runs[name].append(side(case, case.pairs, batch, clock))
    two = {name: done[0] if len(case.pairs) == batch == 2 else side(case, first, 2, clock)
           for (name, side), done in zip(given.sides, runs.values(), strict=True)}  # fmt: skip
    apart = {name: difference(run, plain) for name, run in two.items()}
    other = runs[given.sides[0][0]]
    return [
        {
            "case": case.name,
            "side": name,
            "pairs_per_second": len(case.pairs) / median(r.seconds for r in done),
            "faster": median(o.seconds / r.seconds for o, r in zip(other, done, strict=True)),
            "peak_mb": max(r.peak for r in done) / 1e6,
            "memory": max(r.peak for r in done) / max(r.peak for r in other),
            "gradient_difference": apart[name],
            "of_gemm_peak": flops / median(r.seconds for r in done) / median(peaks),
        }
        for name, done in runs.items()
    ]


def cases(given: argparse.Namespace) -> list[Case]:
    data = {"prompt 60": (60, 0.0), "prompt 450": (450, 0.0), "450, 60 % kept": (450, 0.6)}
    return [
        Case(
            f"{name}, {kind}",
            partial(random_base, name, given.bits),
            random_pairs(given.pairs, prompt, kept),
        )
        for name in given.models
        for kind, (prompt, kept) in data.items()
        if given.full or (name, kind) != ("41M", "prompt 450")
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=["5M", "41M"])
    parser.add_argument("--bits", type=int, choices=(4, 8), default=0)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    given.sides = [(name, SIDES[name]) for name in given.sides]
    results: list[dict[str, Any]] = []
    print(f"{'case':24}{'side':14}{'pairs/s':>15} {'peak MB':>15}{'gradient':>10}{'of peak':>9}")
    for case in cases(given):
        for r in measure(case, given):
            results.append(r)
            print(
                f"{r['case']:24}{r['side']:14}{r['pairs_per_second']:7.2f}{r['faster']:7.2f}× "
                f"{r['peak_mb']:8.0f}{r['memory']:6.2f}×{r['gradient_difference']:10.1e}"
                f"{r['of_gemm_peak']:9.0%}",
                flush=True,
            )
    if given.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
