"""One row → Examples, by its columns: the forms of TRL and mlx-lm, ShareGPT, groups, our own.

A row that cannot be trained on is a Fault with its reason, never mended by a guess.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from mlxreflect.core.records import Example, Messages
from mlxreflect.data import foreign as methods
from mlxreflect.data.messages import Fault, Values, answer, asked, messages_of, number, text_of
from mlxreflect.data.rows import listed

Turns = Literal["all", "last"]

KINDS = {
    "sft": "texts to imitate: train sft",
    "preference": "preference pairs: train dpo, ipo, exo_pair or orpo",
    "group": "groups of answers with rewards: train grpo",
}


class Misfit(Fault):
    """A row of a kind that the objective does not train."""


class Unknown(Fault):
    """A row without the columns of any form."""


def shared(one: Sequence[Any], other: Sequence[Any]) -> int:
    """With how many characters or messages both begin."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def shared_words(chosen: str, rejected: str) -> int:
    """Where two texts part, cut back to the end of a word; what follows keeps its space."""
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
    asking = asked(values, joined(asking, good[:size]))
    chosen, rejected = answer(good[size:], "chosen"), answer(poor[size:], "rejected")
    return [Example("preference", asking, chosen=chosen, rejected=rejected)]


def completion(values: Values, turns: Turns) -> list[Example]:
    """TRL's prompt-completion forms and mlx-lm's completions; the last message is trained."""
    label = values.get("label")
    if isinstance(label, bool) or label in ("True", "False", "true", "false"):
        raise Fault("prompt, completion and label are unpaired preferences, which nothing trains")
    said = messages_of(values["completion"], "completion", "assistant")
    prompt = joined(messages_of(values["prompt"], "prompt", "user"), said[:-1])
    return [Example("sft", asked(values, prompt), completion=answer(said[-1:], "completion"))]


def chat(values: Values, turns: Turns) -> list[Example]:
    """TRL's and mlx-lm's messages, ShareGPT's conversations: an example for each turn trained."""
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
    return [
        Example(
            "sft",
            asked(values, talk[:end]),
            completion=answer([talk[end]], f"{name}, message {end + 1},"),
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
    prompt = asked(values, messages_of(values["prompt"], "prompt", "user"))
    worth = [number(reward, f"reward {i}") for i, reward in enumerate(rewards, 1)]
    texts = [messages[0]["content"] for messages in said]
    return [Example("group", prompt, completions=texts, rewards=worth)]


class Form(NamedTuple):
    """Columns that a row must have, the kind of its examples, and what makes them.

    once: a row that says the same as one before is left out; published data are full of them.
    """

    columns: tuple[str, ...]
    kind: str
    make: Callable[[Values, Turns], list[Example]]
    once: bool = False


def one(make: Callable[[Values], Example]) -> Callable[[Values, Turns], list[Example]]:
    return lambda values, turns: [make(values)]


REFLECTED = (
    ("question", "first_trial_reasoning", "reflections", "second_trial_reasoning"),
    ("question", "trail1", "trail2"),
)
REFLECTIONS = (
    ("question", "first_trial_reasoning", "reflection_chosen", "reflection_rejected"),
    ("question", "trail1", "trail2_true", "trail2_false"),
)
COMMON = (
    Form(("chosen", "rejected"), "preference", preference),
    Form(("prompt", "completions", "rewards"), "group", group),
    Form(("prompt", "completion"), "sft", completion),
    Form(("messages",), "sft", chat),
    Form(("conversations",), "sft", chat),
    Form(("text",), "sft", raw_text),
)
PUBLISHED = (  # data sets of methods
    Form(("problem", "working_out"), "sft", one(methods.worked), once=True),
    *(Form(columns, "sft", one(methods.reflected), once=True) for columns in REFLECTED),
    *(Form(columns, "preference", one(methods.reflections), once=True) for columns in REFLECTIONS),
)
FORMS = (*COMMON, *PUBLISHED)


def forms_of(values: Values) -> list[Form]:
    """The forms whose columns a row has."""
    given = {name for name, value in values.items() if value is not None}
    return [form for form in FORMS if given.issuperset(form.columns)]


def plain_form(values: Values) -> Form:
    """The first form of a row, whatever it trains. Raises Fault."""
    whole = forms_of(values)
    return whole[0] if whole else form_of(values, "")


def form_of(values: Values, kind: str) -> Form:
    """The form of a row's columns, one of `kind` where there are several. Raises Fault."""
    whole = forms_of(values)
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
