"""Tokens a second of attempts: Policy.generate against mlx-lm, on the same prompts and weights.

usage: python tests/bench/rollout.py [--in-flight 32] [--tokens 64] [--repeats 3] [--clock cpu]
       [--json]

sequential: mlx_lm.stream_generate (what mlx_lm.generate is made of), one at a time, on every fourth
of the completions asked for; batch_generate: mlx_lm's own, as many in flight; policy:
Policy.generate. In the cases with samples the other two get each prompt as often as it is sampled,
as they have no other way. A round runs every side once; a ratio is the median of the rounds'
ratios. --clock cpu counts this process's CPU seconds, for a machine that others use too.
"""

import argparse
import json
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from mlx_lm import batch_generate, stream_generate
from mlx_lm.sample_utils import make_sampler
from mlx_lm.tokenizer_utils import TokenizerWrapper
from workload import CLOCKS, random_model

from mlxreflect.config.schema import EvalSpec, PolicyConfig, TaskConfig
from mlxreflect.models.load import lay_out_for_blas, load_policy
from mlxreflect.models.policy import Policy
from mlxreflect.prompts.roles import role_messages
from mlxreflect.tasks import get_task

Tokens = list[list[int]]
PART = 4  # the sequential side is slow, and as fast on a part


class Case(NamedTuple):
    name: str
    policy: Policy
    prompts: Tokens
    samples: int
    temperature: float
    tokens: int


def random_policy(name: str) -> Policy:
    """Its end token is none that the model can write."""
    model = random_model(name)
    lay_out_for_blas(model)
    inner = load_policy(PolicyConfig(model="tiny")).tokenizer._tokenizer
    wrapped = TokenizerWrapper(inner, eos_token_ids=[model.args.vocab_size])
    return Policy(model, wrapped, name)


def random_prompts(policy: Policy, count: int, length: int) -> Tokens:
    """Of lengths within a tenth of `length`."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(length - length // 10, length + length // 10 + 1, count)
    return [rng.integers(0, policy.model.args.vocab_size, n).tolist() for n in lengths]


def countdown_prompts(policy: Policy, count: int) -> Tokens:
    task, spec = get_task("countdown"), EvalSpec(task=TaskConfig(name="countdown"))
    problems = task.load(spec.task, "heldout", 0)[:count]
    tags, style = spec.prompt.tags, spec.prompt.style
    return [
        policy.encode(
            role_messages(
                f"attempt_{style}", tags, instruction=task.instruction(p), question=task.show(p)
            )
        )
        for p in problems
    ]


def repeated(case: Case) -> Tokens:
    return [prompt for prompt in case.prompts for _ in range(case.samples)]


def sequential(case: Case) -> Tokens:
    policy, sampler = case.policy, make_sampler(case.temperature)
    found = []
    for prompt in repeated(case)[::PART]:
        steps = stream_generate(
            policy.model, policy.tokenizer, prompt, max_tokens=case.tokens, sampler=sampler
        )
        found.append([step.token for step in steps])
    return found


def batched(case: Case, in_flight: int) -> Tokens:
    """Its answer leaves the end tokens out, which were generated all the same."""
    policy = case.policy
    found: Tokens = batch_generate(
        policy.model,
        policy.tokenizer,
        repeated(case),
        max_tokens=case.tokens,
        return_token_ids=True,
        sampler=make_sampler(case.temperature),
        completion_batch_size=in_flight,
        prefill_batch_size=in_flight,
    ).token_ids
    end = min(policy.eos)
    return [ids if len(ids) == case.tokens else [*ids, end] for ids in found]


def ours(case: Case, in_flight: int) -> Tokens:
    found = case.policy.generate(
        case.prompts,
        temperature=case.temperature,
        top_p=1.0,
        max_new_tokens=case.tokens,
        batch=in_flight,
        seed=(0,),
        samples=case.samples,
    )
    return [completion.token_ids for completion in found]


def measure(case: Case, in_flight: int, repeats: int, clock: Callable[[], float]) -> dict[str, Any]:
    sides: dict[str, Callable[[Case], Tokens]] = {
        "sequential": sequential,
        "batch_generate": lambda case: batched(case, in_flight),
        "policy": lambda case: ours(case, in_flight),
    }
    for run_side in sides.values():
        run_side(case._replace(prompts=case.prompts[:2], tokens=4))
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    found: dict[str, Tokens] = {}
    for _ in range(repeats):
        for name, run_side in sides.items():
            started = clock()
            found[name] = run_side(case)
            seconds = clock() - started
            speeds[name].append(sum(map(len, found[name])) / seconds)
    rounds = {
        f"over_{other}": [a / b for a, b in zip(speeds["policy"], speeds[other], strict=True)]
        for other in ("sequential", "batch_generate")
    }
    pairs = zip(found["policy"][::PART], found["sequential"], strict=True)
    same = [a == b for a, b in pairs]
    return {
        "case": case.name,
        **{f"{name}_tokens_per_second": median(found) for name, found in speeds.items()},
        **{name: median(ratios) for name, ratios in rounds.items()},
        # Rounding may turn over a tie of random weights; sampled texts are different ones.
        "same_greedy": sum(same) / len(same) if case.temperature == 0 else None,
    }


def cases(in_flight: int, tokens: int) -> list[Case]:
    small, tiny = random_policy("5M"), load_policy(PolicyConfig(model="tiny"))
    short = random_prompts(small, in_flight, 60)
    long = random_prompts(small, in_flight // 8, 450)
    countdown = countdown_prompts(tiny, 2 * in_flight)
    return [
        Case("5M greedy", small, short, 1, 0.0, tokens),
        Case("5M sampled", small, short, 1, 1.0, tokens),
        Case("5M, prompt 450, 8 samples", small, long, 8, 1.0, tokens),
        Case("tiny greedy", tiny, countdown, 1, 0.0, 160),
        Case("tiny sampled", tiny, countdown, 1, 1.0, 160),
        Case("tiny, 8 samples", tiny, countdown[: in_flight // 4], 8, 1.0, 160),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--in-flight", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    results = []
    print(f"{'':28}{'tokens/s':^34}{'policy over':^24}{'same':>8}")
    print(
        f"{'case':28}{'sequential':>10}{'batch_generate':>16}{'policy':>8}"
        f"{'sequential':>12}{'batch_generate':>16}{'greedy':>8}"
    )
    for case in cases(given.in_flight, given.tokens):
        r = measure(case, given.in_flight, given.repeats, CLOCKS[given.clock])
        results.append(r)
        same = "" if r["same_greedy"] is None else f"{r['same_greedy']:.0%}"
        print(
            f"{r['case']:28}{r['sequential_tokens_per_second']:10.0f}"
            f"{r['batch_generate_tokens_per_second']:16.0f}{r['policy_tokens_per_second']:8.0f}"
            f"{r['over_sequential']:11.2f}×{r['over_batch_generate']:15.2f}×{same:>8}",
            flush=True,
        )
    if given.json:
        print(json.dumps({"in_flight": given.in_flight, "cases": results}))


if __name__ == "__main__":
    main()
