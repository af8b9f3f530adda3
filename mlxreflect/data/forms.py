"""Foreign forms ⇄ Examples: TRL's, mlx-lm's, ShareGPT's, raw text, groups; two methods' data read.

A row's form is told by its columns. A row that cannot be trained on is a Fault with its reason,
never mended by a guess.

ReasonSet (arXiv 2412.04645): problem, ground_truth, working_out, final_solution, is_correct,
iterations, error_description; the data set on the hub has problem, working_out, provided_solution.
Reflections (arXiv 2505.16475): question, answer, first_trial_reasoning and so on, one name a field,
or the same inside trail1 and trail2 as its examples have them.
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from mlxreflect.core.records import SURROGATE, Example, Messages, flat_from_row
from mlxreflect.data.leaks import leak
from mlxreflect.data.rows import listed
from mlxreflect.graders.text import agrees, stated
from mlxreflect.prompts.roles import REFLECT, REFLECT_AND_RETRY

Turns = Literal["all", "last"]

KINDS = {
    "sft": "texts to imitate: train sft",
    "preference": "preference pairs: train dpo, ipo, exo_pair or orpo",
    "group": "groups of answers with rewards: train grpo",
}


Values = dict[str, Any]
SIDES = ("chosen", "rejected")
MOST_REWARD = 1e9

# Roles in the words of several programs, in any capitals → a chat template's.
ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant",
    "model": "assistant", "function_call": "assistant", "tool": "tool", "observation": "tool",
    "function": "tool", "ipython": "tool",
}  # fmt: skip
THOUGHTS = ("reasoning_content", "thinking", "reasoning")  # names of a thought beside its answer
WRITTEN_OUT = re.compile(r"\s*\[\s*\{\s*['\"](role|content|from|value)['\"]\s*:")


class Fault(ValueError):
    """Why a row is bad."""


class Misfit(Fault):
    """A row of a kind that the objective does not train."""


class Unknown(Fault):
    """A row without the columns of any form."""


def text_of(value: Any, at: str) -> str:
    """A content: a string, or text parts, joined. `at` names it in a Fault."""
    if isinstance(value, list):
        if not all(isinstance(p, dict) and p.get("type") == "text" for p in value):
            raise Fault(f"{at} has content other than text")
        texts = [part.get("text") for part in value]
        value = "".join(texts) if all(isinstance(text, str) for text in texts) else None
    if not isinstance(value, str):
        raise Fault(f"{at} is no text")
    if SURROGATE.search(value):
        raise Fault(f"{at} has half a surrogate pair, which no tokenizer takes")
    return value


def messages_of(value: Any, at: str, role: str = "") -> Messages:
    """Messages as TRL or ShareGPT write them; where `role` is given, a string is one of it."""
    if isinstance(value, str) and role:
        if WRITTEN_OUT.match(value):
            raise Fault(f"{at} is a list of messages written out as text; save the data as JSONL")
        return [{"role": role, "content": text_of(value, at)}]
    if not isinstance(value, list) or not value:
        raise Fault(f"{at} is no list of messages")
    return [message_of(message, f"{at}, message {i},") for i, message in enumerate(value, 1)]


def message_of(value: Any, at: str) -> dict[str, Any]:
    """A message of role and content, with a thought, tool calls and names where it has them."""
    if not isinstance(value, dict):
        raise Fault(f"{at} is no object with role and content")
    told = str(value.get("role") or value.get("from")).strip().lower()
    role = ROLES.get(told)
    if role is None:
        raise Fault(f"{at} has no role out of {', '.join(ROLES)}")
    content = value.get("value") if value.get("content") is None else value["content"]
    calls = value.get("tool_calls") or value.get("function_call")
    if told == "function_call":  # ShareGPT's: the call is the text
        calls, content = calls or from_json(content), None
    message: dict[str, Any] = {"role": role, "content": ""}
    if calls:
        message["tool_calls"] = calls_of(calls, at)
    if not calls or content is not None:
        message["content"] = text_of(content, at)
    thought = next((value[n] for n in THOUGHTS if value.get(n)), None)
    if thought is not None and role == "assistant":
        message["reasoning_content"] = text_of(thought, at)
    names = {n: value[n] for n in ("name", "tool_call_id") if isinstance(value.get(n), str)}
    return {**message, **(names if role == "tool" else {})}


def from_json(text: Any) -> Any:
    """Returns what JSON in a text says; anything else as it is."""
    try:
        return json.loads(text) if isinstance(text, str) else text
    except (ValueError, RecursionError):
        return text


def calls_of(value: Any, at: str) -> list[dict[str, Any]]:
    """Tool calls as chat templates take them, their arguments an object where they are one."""
    made = []
    for call in value if isinstance(value, list) else [value]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Fault(f"{at} calls a tool without a name")
        given = {**function, "arguments": from_json(function.get("arguments", {}))}
        known = {key: call[key] for key in ("id",) if isinstance(call.get(key), str)}
        made.append({**known, "type": "function", "function": given})
    return made


def tools_of(values: Values) -> list[dict[str, Any]] | None:
    """The row's tools, a list or one in JSON; None for none."""
    tools = from_json(values.get("tools") or values.get("functions") or None)
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise Fault("tools is no list of objects")
    return [t if "function" in t else {"type": "function", "function": t} for t in tools]


def parts_of(**messages: dict[str, Any]) -> dict[str, dict[str, Any]] | None:
    """By name, what the assistant's messages have besides their text; None for nothing."""
    names = ("reasoning_content", "tool_calls")
    found = {text: {n: message[n] for n in names if n in message}
             for text, message in messages.items()}  # fmt: skip
    return {text: parts for text, parts in found.items() if parts} or None


def as_assistant(text: str) -> Messages:
    return [{"role": "assistant", "content": text}]


def prompt_of(values: Values, prompt: Messages) -> Messages:
    """A prompt that an answer can follow, the row's system text before it."""
    if isinstance(system := values.get("system"), str) and system.strip():
        first = {"role": "system", "content": text_of(system, "system")}
        prompt = prompt if prompt[:1] == [first] else [first, *prompt]
    if any(message["role"] == "system" for message in prompt[1:]):
        raise Fault("a system message stands behind another message")
    if not prompt:
        raise Fault("there is no prompt")
    if prompt[-1]["role"] not in ("user", "tool"):
        raise Fault("the prompt does not end in a user's message")
    if not prompt[-1]["content"].strip() and prompt[-1]["role"] == "user":
        raise Fault("the prompt is empty")
    return prompt


def answer(messages: Messages, at: str) -> str:
    """The text of the one message that is left after the prompt."""
    if not messages or messages[-1]["role"] != "assistant":
        raise Fault(f"the last message of {at} is not the assistant's")
    if len(messages) > 1:
        raise Fault(f"{at} goes on for {len(messages)} messages; only one answer can be trained")
    if not messages[0]["content"].strip() and "tool_calls" not in messages[0]:
        raise Fault(f"{at} is empty")
    return str(messages[0]["content"])


def number(value: Any, at: str) -> float:
    """A finite number; a numeral, as a table has it, is one too, also with a decimal comma."""
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]+,[0-9]+\s*", value):
        value = value.replace(",", ".")
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise Fault(f"{at} is no finite number")
    return found


# ---- read ----------------------------------------------------------------------------------------


def shared(one: Sequence[Any], other: Sequence[Any]) -> int:
    """With how many characters or messages both begin."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def shared_words(chosen: str, rejected: str) -> int:
    """Returns where two texts part, cut back to the end of a word; what follows keeps its space."""
    at = shared(chosen, rejected)
    if any(at < len(text) and not text[at].isspace() for text in (chosen, rejected)):
        while at and not chosen[at - 1].isspace():
            at -= 1
    return len(chosen[:at].rstrip())


def joined(prompt: Messages, begun: Messages) -> Messages:
    """A prompt and the messages that stand before the answer, which may repeat it."""
    if not begun or prompt[-len(begun) :] == begun:
        return prompt
    if prompt in (begun[: len(prompt)], begun[-len(prompt) :]):
        return begun
    if begun[0]["role"] != "assistant":
        raise Fault("before the answer stand other messages than the prompt's")
    return prompt + begun


def preference(values: Values, turns: Turns) -> list[Example]:
    """TRL's preference forms, standard, conversational and with an implicit prompt, and
    LLaMA-Factory's: conversations, and one message each as chosen and rejected."""
    prompt, chosen, rejected = (values.get(name) for name in ("prompt", "chosen", "rejected"))
    if prompt is None and isinstance(chosen, dict):
        prompt, chosen, rejected = values.get("conversations"), [chosen], [rejected]
    if prompt is None and isinstance(values.get("instruction"), str):
        values, prompt = {**values, "prompt": None}, instructed(values)
    if "prompt" not in values and isinstance(chosen, str) and isinstance(rejected, str):
        size = shared_words(chosen, rejected)
        if not size:
            raise Fault("there is no prompt, and chosen and rejected do not begin alike")
        prompt, chosen, rejected = chosen[:size], chosen[size:], rejected[size:]
    asking = [] if prompt is None else messages_of(prompt, "prompt", "user")
    good = messages_of(chosen, "chosen", "assistant")
    poor = messages_of(rejected, "rejected", "assistant")
    if good == poor:
        raise Fault("chosen and rejected are the same")
    size = shared(good, poor)
    asking = prompt_of(values, joined(asking, good[:size]))
    chosen, rejected = answer(good[size:], "chosen"), answer(poor[size:], "rejected")
    parts = parts_of(chosen=good[-1], rejected=poor[-1])
    return [Example("preference", asking, chosen=chosen, rejected=rejected, parts=parts)]


def instructed(values: Values) -> str:
    """Alpaca's prompt: the instruction and, below it, the input where there is one."""
    texts = [text_of(values["instruction"], "instruction")]
    if values.get("input"):
        texts.append(text_of(values["input"], "input"))
    return "\n\n".join(texts)


def alpaca(values: Values, turns: Turns) -> list[Example]:
    """Alpaca's instruction, input and output."""
    text = answer(as_assistant(text_of(values["output"], "output")), "output")
    prompt = messages_of(instructed(values), "instruction", "user")
    return [Example("sft", prompt_of(values, prompt), completion=text)]


def completion(values: Values, turns: Turns) -> list[Example]:
    """TRL's prompt-completion forms and mlx-lm's completions; the last message is trained."""
    label = values.get("label")
    if isinstance(label, bool) or label in ("True", "False", "true", "false"):
        raise Fault("prompt, completion and label are unpaired preferences, which nothing trains")
    said = messages_of(values["completion"], "completion", "assistant")
    prompt = joined(messages_of(values["prompt"], "prompt", "user"), said[:-1])
    text, parts = answer(said[-1:], "completion"), parts_of(completion=said[-1])
    return [Example("sft", prompt_of(values, prompt), completion=text, parts=parts)]


def chat(values: Values, turns: Turns) -> list[Example]:
    """TRL's and mlx-lm's messages, ShareGPT's conversations: an example for each turn trained.

    A turn of weight 0, as OpenAI's fine-tuning has it, is not trained.
    """
    name = "messages" if values.get("messages") is not None else "conversations"
    talk = messages_of(values[name], name)
    if talk[-1]["role"] != "assistant":
        raise Fault("the last message is not the assistant's")
    roles = [message["role"] for message in talk]
    first = roles.index("user") if "user" in roles else len(roles)
    # A greeting before any user's message answers nothing: it is context, and not trained.
    ends = [i for i in range(first, len(roles)) if roles[i] == "assistant"]
    if not ends:
        raise Fault("no user's message stands before the assistant's")
    weights = {i: number(values[name][i].get("weight", 1), "weight") for i in ends}
    ends = [i for i in ends if weights[i] > 0]
    if not ends:
        raise Fault("every answer has the weight 0")
    return [
        Example(
            "sft",
            prompt_of(values, talk[:end]),
            completion=answer([talk[end]], f"{name}, message {end + 1},"),
            weight=weights[end],
            parts=parts_of(completion=talk[end]),
            source={"message": end + 1},
        )
        for end in (ends if turns == "all" else ends[-1:])
    ]


def raw_text(values: Values, turns: Turns) -> list[Example]:
    """TRL's and mlx-lm's text: no prompt, everything is trained."""
    text = text_of(values["text"], "text")
    if not text.strip():
        raise Fault("text is empty")
    return [Example("sft", [], completion=text)]


def group(values: Values, turns: Turns) -> list[Example]:
    """Several answers to one prompt and what each was worth. An answer may be empty."""
    answers, rewards = values.get("completions"), values.get("rewards")
    if not isinstance(answers, list) or not isinstance(rewards, list):
        raise Fault("completions and rewards are not two lists")
    if len(answers) != len(rewards) or len(answers) < 2:
        raise Fault(f"{len(answers)} completions with {len(rewards)} rewards: two of each at least")
    said = [messages_of(a, f"completion {i}", "assistant") for i, a in enumerate(answers, 1)]
    if any([message["role"] for message in messages] != ["assistant"] for messages in said):
        raise Fault("each completion must be one message of the assistant")
    if any(parts_of(completion=messages[0]) for messages in said):
        raise Fault("completions hold their thoughts in their text, and call no tools")
    prompt = prompt_of(values, messages_of(values["prompt"], "prompt", "user"))
    worth = [number(reward, f"reward {i}") for i, reward in enumerate(rewards, 1)]
    if max(map(abs, worth)) > MOST_REWARD:
        raise Fault(f"rewards beyond {MOST_REWARD:g}, whose differences would mean nothing")
    texts = [messages[0]["content"] for messages in said]
    return [Example("group", prompt, completions=texts, rewards=worth)]


def native(values: Values, kind: str) -> Example:
    """A row of our examples.jsonl. Its token ids are kept."""
    own = values.get("kind")
    if not isinstance(own, str) or own not in KINDS:
        raise Fault(f"kind is none of {', '.join(KINDS)}")
    if own != kind:
        raise Misfit(f"rows of the kind {own} are {KINDS[own]}")
    given = {name: value for name, value in values.items() if value is not None}
    told = given.pop("parts", None)
    messages = told.items() if isinstance(told, dict) else ()
    parts = {name: message_of({**as_assistant("")[0], **m}, name) for name, m in messages
             if isinstance(m, dict)}  # fmt: skip
    example: Example = flat_from_row(Example, {"prompt": None, **given})
    example = replace(example, tools=tools_of(values), parts=parts_of(**parts))
    if not isinstance(example.source, dict) or not isinstance(example.mask, str):
        raise Fault("source is no object, or mask is no text")
    for name in {"sft": ("completion",), "preference": SIDES, "group": ()}[kind]:
        check_written(getattr(example, name), getattr(example, f"{name}_ids"), name)
    same = (example.chosen, example.chosen_ids) == (example.rejected, example.rejected_ids)
    if kind == "preference" and same:
        raise Fault("chosen and rejected are the same")
    if kind == "sft" and example.prompt == []:  # raw text
        return example
    prompt = prompt_of({}, messages_of(example.prompt, "prompt"))
    if kind != "group":
        return replace(example, prompt=prompt)
    texts = given.get("completions")
    said = [as_assistant(text) for text in texts] if isinstance(texts, list) else texts
    made = group({**given, "prompt": prompt, "completions": said}, "all")[0]
    return replace(example, prompt=prompt, completions=made.completions, rewards=made.rewards)


def check_written(text: Any, ids: Any, at: str) -> None:
    """A text of our own; one with the tokens that the policy generated may be empty."""
    if ids is None:
        answer(as_assistant(text_of(text, at)), at)
    elif not isinstance(text, str):
        raise Fault(f"{at} is no text")
    elif not isinstance(ids, list) or not ids or any(type(i) is not int or i < 0 for i in ids):
        raise Fault(f"{at}_ids is no list of token ids")


# ---- of two methods ------------------------------------------------------------------------------


def reasonset(values: Values, turns: Turns) -> list[Example]:
    """ReasonSet: the working that found and mended its error, and not the tidied solution.

    Left out is what the published data have much of: no gold answer, another answer than the gold
    one, and words that tell of an answer that was given.
    """
    if str(values.get("is_correct")).strip().lower() in ("false", "0", "0.0"):
        raise Fault("is_correct is false, so its working is none to imitate")
    prompt = prompt_of(values, messages_of(values["problem"], "problem", "user"))
    text = written(values["working_out"], "working_out")
    golds = [values.get(name) for name in ("ground_truth", "provided_solution")]
    told = [str(one).strip() for one in golds if one is not None and one == one]  # not NaN
    gold = next(filter(None, told), "")
    if not gold:
        raise Fault("there is no ground_truth")
    said = stated(text)
    if said is not None and values.get("ground_truth") and not agrees(said, gold):
        raise Fault("its answer is not its ground_truth")
    if reason := leak(text, {}, "direct", str(values["problem"])):
        raise Fault(reason)
    return [Example("sft", prompt, completion=text)]


def d_plus(values: Values, turns: Turns) -> list[Example]:
    """D+: question and failed attempt → reflection and right answer (its one-stage training)."""
    flat = flattened(values, {"": "trail2"})
    parts = [written(flat[name], name) for name in ("reflections", "second_trial_reasoning")]
    return [Example("sft", reflecting(flat, REFLECT_AND_RETRY), completion="\n\n".join(parts))]


def reflections(values: Values, turns: Turns) -> list[Example]:
    """D± and Dpref: two reflections on one failed attempt; their retries are not compared."""
    flat = flattened(values, {"_chosen": "trail2_true", "_rejected": "trail2_false"})
    given = flat.get("reflection_prompt") or flat.get("reflect_prompt")
    prompt = messages_of(given, "reflection_prompt", "user") if given else reflecting(flat, REFLECT)
    chosen, rejected = (written(flat[f"reflection_{s}"], f"reflection_{s}") for s in SIDES)
    if chosen == rejected:
        raise Fault("reflection_chosen and reflection_rejected are the same")
    return [Example("preference", prompt_of({}, prompt), chosen=chosen, rejected=rejected)]


def reflecting(flat: Values, request: str) -> Messages:
    """The question, the attempt that failed, and the request to reflect."""
    question = messages_of(flat["question"], "question", "user")
    attempt = written(flat["first_trial_reasoning"], "first_trial_reasoning")
    return prompt_of({}, [*question, *as_assistant(attempt), {"role": "user", "content": request}])


def written(value: Any, at: str) -> str:
    """A text, or a list of them; without what their environment said at its end."""
    if isinstance(value, list):
        value = "\n".join(text_of(part, at) for part in value)
    return answer(as_assistant(text_of(value, at).partition("\nObservation:")[0]), at)


def flattened(values: Values, trails: dict[str, str]) -> Values:
    """One name a field, whichever way a row has them. trails: name's ending → its second trial."""
    if values.get("trail1") is None:
        return values
    for name in ("trail1", *trails.values()):
        if not isinstance(values.get(name), dict):
            raise Fault(f"{name} is no object")
    flat = {**values, "first_trial_reasoning": values["trail1"].get("scratchpad")}
    for ending, name in trails.items():
        flat[f"second_trial_reasoning{ending}"] = values[name].get("scratchpad")
        flat[f"reflection{ending}" if ending else "reflections"] = values[name].get("reflections")
    return flat


# ---- which form ----------------------------------------------------------------------------------


class Form(NamedTuple):
    """Columns that a row must have, the kind of its examples, and what makes them."""

    columns: tuple[str, ...]
    kind: str
    make: Callable[[Values, Turns], list[Example]]


COMMON = (
    Form(("chosen", "rejected"), "preference", preference),
    Form(("prompt", "completions", "rewards"), "group", group),
    Form(("prompt", "completion"), "sft", completion),
    Form(("messages",), "sft", chat),
    Form(("conversations",), "sft", chat),
    Form(("instruction", "output"), "sft", alpaca),
    Form(("text",), "sft", raw_text),
)
# What some of these forms read besides.
ALSO = {"prompt", "conversations", "instruction", "input", "system", "tools", "functions", "label"}
BEGUN = ("question", "first_trial_reasoning")
# Data sets of methods: a row that says the same as one before is left out, they are full of them.
PUBLISHED = (
    Form(("problem", "working_out"), "sft", reasonset),
    Form((*BEGUN, "reflections", "second_trial_reasoning"), "sft", d_plus),
    Form(("question", "trail1", "trail2"), "sft", d_plus),
    Form((*BEGUN, "reflection_chosen", "reflection_rejected"), "preference", reflections),
    Form(("question", "trail1", "trail2_true", "trail2_false"), "preference", reflections),
)
FORMS = (*COMMON, *PUBLISHED)


def form_of(values: Values, kind: str) -> Form:
    """Returns the form of a row's columns, one of `kind` where there are several. Raises Fault."""
    given = {name for name, value in values.items() if value is not None}
    whole = [form for form in FORMS if given.issuperset(form.columns)]
    for form in whole:
        if form.kind == kind:
            return form
    if whole:
        shown = ["prompt"] if values.get("prompt") is not None else []
        names = dict.fromkeys((*shown, *whole[0].columns))
        raise Misfit(f"rows with {', '.join(names)} are {KINDS[whole[0].kind]}")
    for form in FORMS:
        if values.keys() >= {*form.columns}:
            raise Fault(f"{next(n for n in form.columns if values[n] is None)} has no value")
    wanted = " or ".join(", ".join(form.columns) for form in COMMON if form.kind == kind)
    raise Unknown(f"its columns are: {listed(values)}; it should have {wanted}")


# ---- written -------------------------------------------------------------------------------------

NAMES = {"system": "system", "user": "human", "assistant": "gpt"}
FILES = {"sft": "sft.jsonl", "preference": "preference.jsonl", "group": "group.jsonl"}
# What LLaMA-Factory wants to be told of the two files.
SHAREGPT: Values = {
    "sft": {"file_name": FILES["sft"], "formatting": "sharegpt",
            "columns": {"messages": "conversations"}},
    "preference": {"file_name": FILES["preference"], "formatting": "sharegpt", "ranking": True,
                   "columns": {"messages": "conversations", "chosen": "chosen",
                               "rejected": "rejected"}},
}  # fmt: skip


def trl_row(example: Example) -> Values:
    """Returns TRL's conversational form: of a pair, a text to imitate or a group; or its `text`."""
    prompt = chat_of(example.prompt)
    if example.kind == "group":
        answers = [answered(text) for text in example.completions or []]
        return {"prompt": prompt, "completions": answers, "rewards": example.rewards or []}
    if example.kind == "preference":
        chosen, rejected = answered(example.chosen), answered(example.rejected)
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    if not prompt:
        return {"text": whole(example.completion or "")}
    return {"prompt": prompt, "completion": answered(example.completion)}


def sharegpt_row(example: Example) -> Values:
    """Returns conversations of {from, value}; a pair's answers are one such message each."""

    def said(role: str, text: str | None) -> dict[str, str]:
        return {"from": NAMES.get(role, role), "value": whole(text or "")}

    if example.kind == "group":
        return trl_row(example)
    talk = [said(message["role"], message["content"]) for message in example.prompt]
    if example.kind == "sft":
        return {"conversations": [*talk, said("assistant", example.completion)]}
    answers = {s: said("assistant", getattr(example, s)) for s in SIDES}
    return {"conversations": talk, **answers}


def mlx_row(example: Example) -> Values:
    """Returns mlx-lm's messages, all that it trains on: of a pair, the chosen answer."""
    if example.kind == "group":
        return trl_row(example)
    text = example.chosen if example.kind == "preference" else example.completion
    return {"messages": [*chat_of(example.prompt), *answered(text)]}


def answered(text: str | None) -> Messages:
    return as_assistant(whole(text or ""))


def chat_of(messages: Messages) -> Messages:
    return [{"role": m["role"], "content": whole(m["content"])} for m in messages]


def whole(text: str) -> str:
    """Half a character (a lone surrogate) becomes �: for one, other readers give a file up."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
