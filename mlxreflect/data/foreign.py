"""Rows of two methods' data → Examples: REL's ReasonSet, and ReflectEvo's D+, D± and Dpref.

ReasonSet (arXiv 2412.04645): problem, ground_truth, working_out, final_solution, is_correct,
iterations, error_description; the data set on the hub has problem, working_out, provided_solution.
ReflectEvo (arXiv 2505.16475): question, answer, first_trial_reasoning and so on, one name a field,
or the same inside trail1 and trail2 as its examples have them.
"""

from typing import Any

from mlxreflect.core.records import Example, Messages
from mlxreflect.data.messages import Fault, Values, answer, asked, messages_of, spoken, text_of
from mlxreflect.graders.text import agrees, stated
from mlxreflect.methods.examples import leak
from mlxreflect.prompts.templates import REFLECT, REFLECT_AND_RETRY

SIDES = ("chosen", "rejected")


def worked(values: Values) -> Example:
    """ReasonSet: the working that found and mended its error, and not the tidied solution.

    Left out is what the published data have much of: no gold answer, another answer than the gold
    one, and words that tell of an answer that was given.
    """
    if str(values.get("is_correct")).strip().lower() in ("false", "0", "0.0"):
        raise Fault("is_correct is false, so its working is none to imitate")
    prompt = asked(values, messages_of(values["problem"], "problem", "user"))
    text = written(values["working_out"], "working_out")
    golds = [values.get(name) for name in ("ground_truth", "provided_solution")]
    told = [str(one).strip() for one in golds if one is not None and one == one]  # not NaN
    gold = next(filter(None, told), "")
    if not gold:
        raise Fault("there is no ground_truth")
    said = stated(text)
    if said is not None and values.get("ground_truth") and not agrees(said, gold):
        raise Fault("its answer is not its ground_truth")
    if reason := leak(text, {}, "direct"):
        raise Fault(reason)
    return Example("sft", prompt, completion=text)


def reflected(values: Values) -> Example:
    """D+: question and failed attempt → reflection and right answer (its one-stage training)."""
    flat = flattened(values, {"": "trail2"})
    parts = [written(flat[name], name) for name in ("reflections", "second_trial_reasoning")]
    return Example("sft", reflecting(flat, REFLECT_AND_RETRY), completion="\n\n".join(parts))


def reflections(values: Values) -> Example:
    """D± and Dpref: two reflections on one failed attempt; their retries are not compared."""
    flat = flattened(values, {"_chosen": "trail2_true", "_rejected": "trail2_false"})
    given = flat.get("reflection_prompt") or flat.get("reflect_prompt")
    prompt = messages_of(given, "reflection_prompt", "user") if given else reflecting(flat, REFLECT)
    chosen, rejected = (written(flat[f"reflection_{s}"], f"reflection_{s}") for s in SIDES)
    if chosen == rejected:
        raise Fault("reflection_chosen and reflection_rejected are the same")
    return Example("preference", asked({}, prompt), chosen=chosen, rejected=rejected)


def reflecting(flat: Values, request: str) -> Messages:
    """The question, the attempt that failed, and the request to reflect."""
    question = messages_of(flat["question"], "question", "user")
    attempt = written(flat["first_trial_reasoning"], "first_trial_reasoning")
    return asked({}, [*question, *spoken(attempt), {"role": "user", "content": request}])


def written(value: Any, at: str) -> str:
    """A text, or a list of them; without what their environment said at its end."""
    if isinstance(value, list):
        value = "\n".join(text_of(part, at) for part in value)
    return answer(spoken(text_of(value, at).partition("\nObservation:")[0]), at)


def flattened(values: Values, trails: dict[str, str]) -> Values:
    """One name a field, whichever way a row has them. trails: name's ending → its second trial."""
    if "trail1" not in values:
        return values
    flat = {**values, "first_trial_reasoning": trail(values, "trail1").get("scratchpad")}
    for ending, name in trails.items():
        second = trail(values, name)
        flat[f"second_trial_reasoning{ending}"] = second.get("scratchpad")
        flat[f"reflection{ending}" if ending else "reflections"] = second.get("reflections")
    return flat


def trail(values: Values, name: str) -> Values:
    found = values[name]
    if not isinstance(found, dict):
        raise Fault(f"{name} is no object")
    return found
