"""Build the embedded policy from random weights.

Usage: python tests/bench/build_tiny.py OUT [STEPS].

It learns to attempt, to reflect on an attempt and to retry, in the project's own prompts, on
problems of Countdown's training part only. Full fine-tuning with the project's own SFT trainer from
a fixed seed, then 4 bits.
"""

import json
import random
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models import qwen2
from mlx_lm.tokenizer_utils import load as load_tokenizer

from mlxreflect.core.records import Messages, Problem, make_problem
from mlxreflect.critics.base import Call
from mlxreflect.critics.solver import SolverCritic
from mlxreflect.prompts.roles import role_messages
from mlxreflect.tasks.countdown import (
    TASK,
    Term,
    draw,
    finish,
    given,
    part_of,
    steps_from,
)

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.tiny_tokenizer import build_tokenizer

from mlxreflect.config.schema import Fitting
from mlxreflect.core.seeds import rng_for, seed_mlx
from mlxreflect.models.load import GROUP_SIZE
from mlxreflect.models.policy import Policy
from mlxreflect.train.batches import Row
from mlxreflect.train.objectives import imitation
from mlxreflect.train.trainer import Trainer

SEED = 0
STEPS = 700
BATCH = 128
MICRO_BATCH = 32  # alike lengths together
LR = 3e-3  # constant after the warm-up: a policy that is not annealed has more to learn
WARMUP = 50  # steps


def config(vocabulary: int, end: int) -> dict[str, object]:
    return {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "intermediate_size": 384,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 1024,
        "vocab_size": vocabulary,
        "tie_word_embeddings": True,
        "eos_token_id": end,
    }


# ---- what it learns ------------------------------------------------------------------------------


def problem(rng: random.Random) -> Problem:
    while True:
        drawn = draw(rng, 3)
        if drawn and part_of(*drawn) == "train":
            return make_problem("countdown", {"numbers": drawn[0], "target": drawn[1]})


def response(thought: str, answer: str) -> str:
    return f"<think>\n{thought}\n</think>\n<answer> {answer} </answer>"


def solution(p: Problem, rng: random.Random) -> str:
    solved = finish(p, [], rng.getrandbits(32))
    assert solved is not None  # problems are solvable by construction
    return response(*solved)


def attempt(p: Problem, rng: random.Random) -> str:
    """An attempt as the policy makes them: right, a dead end, or bent to end at the target.

    The last is what a small model does most: it writes the target, whatever the step comes to.
    """
    kind, target = rng.random(), Fraction(p.fields["target"])
    if kind < 0.15:
        return solution(p, rng)
    first, (other, made) = plain_step(given(p), rng)
    if kind < 0.55:  # the first step comes to what the second one needs, or nearly to the truth
        near = [made.value + d for d in (-10, -3, -2, -1, 1, 2, 3, 10) if made.value + d > 0]
        wanted = ways_to(target, other.value) if rng.random() < 0.5 else near
        made = Term(rng.choice(wanted), made.text, False)
    second, (last,) = plain_step([other, made], rng)
    if kind < 0.85:
        last = Term(target, last.text, False)
    lines = [f"step 1: {left(first)} = {made.value}", f"step 2: {left(second)} = {last.value}"]
    return response("\n".join(lines), last.text)


def left(step: str) -> str:
    return step.split(" = ")[0]


def ways_to(target: Fraction, other: Fraction) -> list[Fraction]:
    """Whole numbers up to 200 from which one step with `other` comes to the target."""
    ways = [target - other, target + other, other - target, target * other, target / other]
    return [v for v in ways if v.denominator == 1 and 0 < v <= 200] or [target]


def plain_step(terms: list[Term], rng: random.Random) -> tuple[str, list[Term]]:
    """A random step with a whole, positive result of at most 200."""
    options = [
        (step, after)
        for step, after in steps_from(terms)
        if after[-1].value.denominator == 1 and 0 < after[-1].value <= 200
    ]
    return rng.choice(options)


def example(rng: random.Random) -> tuple[Messages, str]:
    """One training example in one of the roles: (prompt, response)."""
    p = problem(rng)
    shown = {"question": TASK.show(p), "instruction": TASK.instruction(p)}
    role = rng.random()
    if role < 0.56:
        return role_messages("attempt_thinking", "think", **shown), solution(p, rng)
    if role < 0.60:
        text = solution(p, rng)
        direct = text[text.index("<answer>") :]
        return role_messages("attempt_direct", "think", **shown), direct
    text = attempt(p, rng)
    call = Call("critique", p, [], text, seed=rng.getrandbits(32))
    solver = SolverCritic(TASK.name)
    feedback = solver.reply(call).text
    if role < 0.78:
        return role_messages("critique", "think", **shown, attempt=text), feedback
    passed = TASK.grade(p, text, "think", "thinking").verdict.passed
    again = text if passed else solver.reply(replace(call, role="rewrite")).text
    said = None if rng.random() < 0.15 else feedback
    return role_messages("rewrite", "think", **shown, attempt=text, feedback=said), again


# ---- training ------------------------------------------------------------------------------------


def train(policy: Policy, steps: int) -> None:
    trainer = Trainer(policy.model)
    rng = rng_for("tiny", SEED, "data")
    settings = Fitting(batch=MICRO_BATCH, accumulate=BATCH // MICRO_BATCH, weight_decay=0.01)
    seconds = loss = 0.0
    for number in range(1, steps + 1):
        rows = []
        for _ in range(BATCH):
            messages, text = example(rng)
            prompt = policy.encode(messages)
            rows.append(Row(prompt, policy.encode_response(prompt, text)))
        lr = LR * min(1.0, number / WARMUP)
        (step,) = trainer.train(imitation(rows), settings, ("tiny", SEED, number), lr)
        seconds += step.seconds
        loss += step.loss
        if number % 50 == 0:
            print(f"step {number}/{steps}  loss {loss / 50:.4f}  {seconds:.0f} s", flush=True)
            loss = 0.0


def main(out: Path, steps: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(out)
    settings = config(len(tokenizer), tokenizer.eos_token_id)
    (out / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    seed_mlx("tiny", SEED, "weights")
    model = qwen2.Model(qwen2.ModelArgs.from_dict(settings))
    policy = Policy(model, load_tokenizer(out), "tiny")
    train(policy, steps)
    nn.quantize(model, GROUP_SIZE, 4)
    arrays = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(out / "model.safetensors"), arrays, metadata={"format": "mlx"})
    settings["quantization"] = {"group_size": GROUP_SIZE, "bits": 4}
    (out / "config.json").write_text(json.dumps(settings, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else STEPS)
