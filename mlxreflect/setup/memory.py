"""The memory of a run, phase by phase, before it begins. No weight is read.

Phases follow each other; what is there in several is the policy, what is trained, and the critics.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import mlx.nn as nn
from mlx.utils import tree_flatten

from mlxreflect.config.recipe import eval_specs, read_shared
from mlxreflect.config.schema import CriticConfig, EvalSpec, Recipe, method_of
from mlxreflect.core.records import Messages, Problem
from mlxreflect.evaluation.evaluate import problem_set
from mlxreflect.methods.session import attempt_prompt
from mlxreflect.models.load import cache_limit, on_cpu
from mlxreflect.models.memory import Decoding, weights_of
from mlxreflect.models.template import ChatTemplate
from mlxreflect.tasks import get_task
from mlxreflect.train import batches
from mlxreflect.train.cpu import LANES
from mlxreflect.train.lora import attach_lora
from mlxreflect.train.memory import Footprint, memory_limit, plan
from mlxreflect.train.network import has_plain_caches

PROMPT = 512  # tokens of a prompt where none is at hand
MOMENTS = 2 * 2  # of what is trained, a copy: AdamW keeps two, of pairs and of imitation each
GRADIENTS = 2  # of a part of the batch, and of those before it
GB = 1e9


class Row(NamedTuple):
    """A thing that takes memory in some phases.

    bytes: None where a model is not here. lower: the keys that make it less.
    """

    what: str
    bytes: int | None
    phases: list[str]
    lower: str


@dataclass
class Known:
    """The findings of doctor about a run.

    policy: its shapes; None: not here. critics: bytes of those on this machine; None: not known.
    local: shapes of critics that this process loads. held_out: the problems of each evaluation.
    """

    policy: nn.Module | None = None
    template: ChatTemplate | None = None
    critics: dict[str, int | None] = field(default_factory=dict)
    local: dict[str, tuple[nn.Module, CriticConfig]] = field(default_factory=dict)
    problems: Sequence[Problem] = ()
    held_out: Mapping[str, Sequence[Problem]] = field(default_factory=dict)


def memory_rows(recipe: Recipe, known: Known) -> list[Row]:
    """Returns what the run takes, each for the longest that its texts may be.

    Raises UserError for LoRA layers that the model does not have.
    """
    phases = ["attempts", *(["critics"] if known.local else []), "training", "evaluation"]
    rows = [Row(name, size, phases, "critic.model") for name, size in known.critics.items()]
    if known.policy is None:
        shared = read_shared()
        sizes = {model: shared.memory_gb[name] for name, model in shared.models("policy").items()}
        size = sizes.get(recipe.policy.model)
        told = Row(
            "policy and its answers", int(size * GB) if size else None, phases, "policy.model"
        )
        most = memory_limit(recipe.train.memory_gb)
        return [told, Row("training, at most", most, ["training"], "train.memory_gb"), *rows]
    prompt = attempt_length(recipe, known)
    trained = parameters_trained(recipe, known.policy)  # first: attempts are with LoRA layers
    weights, decoding = weights_of(known.policy), Decoding(known.policy)
    limit = cache_limit(recipe.policy.cache_gb, weights)
    policy = recipe.policy
    evaluations = [
        generation("evaluation", decoding, spec.batch, eval_length(name, spec, known),
                   spec.max_new_tokens, limit, "policy.cache_gb, eval.max_new_tokens or batch in "
                   "the spec")
        for name, spec in eval_specs(recipe).items()
    ]  # fmt: skip
    generated = [
        generation("attempts", decoding, policy.batch, prompt, policy.max_new_tokens, limit,
                   "policy.batch, policy.max_new_tokens or policy.cache_gb"),
        max(evaluations, key=lambda row: row.bytes or 0),
    ]  # fmt: skip
    for name, (model, config) in known.local.items():
        room = cache_limit("auto", weights_of(model))
        quoted = prompt + policy.max_new_tokens
        generated.append(generation("critics", Decoding(model), config.concurrency, quoted,
                                    config.max_tokens, room, f"{name}: concurrency"))  # fmt: skip
    full = recipe.train.tune == "full"
    kept = [
        Row("policy", trained if full else weights, phases, "policy.model"),
        Row("moments" if full else "LoRA and moments", (MOMENTS + (not full)) * trained, phases,
            "train.lora.rank"),
    ]  # fmt: skip
    activations = GRADIENTS * trained + step_bytes(recipe, known.policy, decoding, prompt)
    length = min(prompt + policy.max_new_tokens, recipe.train.max_length)
    training = Row(f"training: rows of {length:,} tokens", activations, ["training"],
                   "train.memory_gb, train.max_length or train.lora.rank")  # fmt: skip
    return [*kept, *generated, training, *rows]


def totals(rows: Sequence[Row]) -> dict[str, int]:
    """Returns the known bytes of each phase."""
    phases = dict.fromkeys(phase for row in rows for phase in row.phases)
    return {p: sum(row.bytes or 0 for row in rows if p in row.phases) for p in phases}


def generation(
    phase: str, decoding: Decoding, batch: int, prompt: int, new: int, limit: int, lower: str
) -> Row:
    fits = decoding.batch(batch, prompt, new, limit)
    many = f"{fits}" if fits == batch else f"{batch} → {fits}"
    what = f"{phase}: {many} × {prompt + new:,} tokens"
    return Row(what, decoding.bytes(fits, prompt, new), [phase], lower)


# ---- lengths -------------------------------------------------------------------------------------


def attempt_length(recipe: Recipe, known: Known) -> int:
    task = get_task(recipe.task.name)
    return longest([attempt_prompt(recipe, task, one) for one in known.problems], known.template)


def eval_length(name: str, spec: EvalSpec, known: Known) -> int:
    """Returns the tokens of an evaluation's longest prompt; of a chain's, with an answer in it."""
    quoted = spec.max_new_tokens if spec.chain.rounds > 1 else 0
    if not (problems := known.held_out.get(name)):
        return PROMPT + quoted
    asked = problem_set(get_task(spec.task.name), spec, problems)
    return longest(asked.prompts, known.template) + quoted


def longest(prompts: Sequence[Messages | str], template: ChatTemplate | None) -> int:
    return template.longest(prompts) if prompts and template else PROMPT


# ---- training ------------------------------------------------------------------------------------


def parameters_trained(recipe: Recipe, model: nn.Module) -> int:
    """Returns the bytes of what is trained, in float32. LoRA layers are put on the model."""
    if recipe.train.tune == "full":
        return sum(4 * int(array.size) for _, array in tree_flatten(model.parameters()))
    attach_lora(model, recipe.train.lora, recipe.seed)
    return sum(int(array.nbytes) for _, array in tree_flatten(model.trainable_parameters()))


def step_bytes(recipe: Recipe, model: nn.Module, decoding: Decoding, prompt: int) -> int:
    """Returns what a step's activations take, with every response as long as it may be."""
    train = recipe.train
    length = min(prompt + recipe.policy.max_new_tokens, train.max_length)
    response = min(recipe.policy.max_new_tokens, length - 1)
    sides = 2 if method_of(recipe).compares(recipe) else 1
    item = tuple(
        batches.Row([0] * (length - response), [1 + side] * response) for side in range(sides)
    )
    footprint, shares = Footprint(model, decoding.vocabulary), has_plain_caches(model)
    items = dict.fromkeys(range(train.batch * train.accumulate), item)
    parts, recompute = plan(items, shares, False, footprint, train)
    shapes = [batches.shape_of([item[rows] for rows in part.values()], shares) for part in parts]
    sizes = sorted(footprint.bytes(shape, recompute) for shape in shapes)
    return sum(sizes[-LANES:] if on_cpu() else sizes[-1:])
