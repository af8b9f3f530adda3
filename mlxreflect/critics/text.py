"""What critics of all providers do to text: make it fit to send, leave out a thought before it."""

from mlxreflect.critics.base import Call
from mlxreflect.prompts import TAGS
from mlxreflect.records import Messages


def encodable(messages: Messages) -> Messages:
    """Half an emoji, as a policy's last token may leave it, has no UTF-8 form: send a "?"."""
    return [
        {key: value.encode("utf-8", "replace").decode("utf-8") for key, value in message.items()}
        for message in messages
    ]


def strip_thought(text: str, call: Call) -> str:
    """The text without a leading <think>…</think> that the critic wrote for itself.

    In a solution whose own tags are `think`, a single block is its reasoning and stays; the first
    of two is the critic's. One that has nothing but its thought to say is heard, but for verdicts.
    An attempt is left as it is.
    """
    start, end = TAGS["think"]
    head = text.lstrip()
    solution = call.role in ("rewrite", "continue", "integrate", "answer")
    own = solution and call.tags == "think" and text.count(end) < 2
    if call.role == "attempt" or own or not head.startswith(start) or end not in head:
        return text
    thought, _, said = head.removeprefix(start).partition(end)
    return said.lstrip() or ("" if call.schema else thought.strip())


def fold_system(messages: Messages) -> Messages:
    """The system message as the opening of the user's, for models that know no such role."""
    if len(messages) < 2 or messages[0]["role"] != "system":
        return messages
    text = f"{messages[0]['content']}\n\n{messages[1]['content']}"
    return [{**messages[1], "content": text}, *messages[2:]]


def put_back(thought: str, text: str, unfinished: bool = False) -> str:
    """A reply as it was written, before the server took the thought apart from the text.

    Of a rewrite that thought may be the solution's own; what is to stay, `strip_thought` decides.
    unfinished: the thought was cut off, so that nothing follows it.
    """
    start, end = TAGS["think"]
    if end in text:
        return text
    # Where the prompt speaks of tags, mlx_lm.server leaves the opening one in the thought.
    opened = ("" if thought.lstrip().startswith(start) else start) + thought
    return opened if unfinished else opened + end + text
