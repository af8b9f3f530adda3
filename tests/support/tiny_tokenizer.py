"""The tokenizer of the embedded policy: Qwen2's, over single bytes, with whole words added.

transformers builds a Qwen2Tokenizer for every Qwen2-shaped model, whatever its files say: NFC, a
split that takes numbers apart, byte-level BPE. Added tokens are matched before all that, the
longest first, which makes " 17" one token; any other text falls back to its bytes.
"""

from pathlib import Path

from tokenizers import AddedToken, pre_tokenizers
from transformers import Qwen2Tokenizer

USER, ASSISTANT, END, DIRECT = "<|user|>", "<|assistant|>", "<|end|>", "<|direct|>"
SPECIAL = [END, USER, ASSISTANT, DIRECT]
WORDS = [
    "<think>", "</think>", "<answer>", "</answer>", "\n</think>", "\n<answer>", " </answer>",
    "<attempt>\n", "\n<attempt>\n", "\n</attempt>", "\n<feedback>\n", "\n</feedback>",
    "Numbers:", "\nTarget:", "\nReflect:", "\nRetry:",
    *[f"\nstep {i}:" for i in (1, 2, 3)], *[f"step {i}" for i in (1, 2, 3)],
    " is wrong:", " leads nowhere", " ends at", " uses", ", which is not there:", ", not", " is",
    "every step holds", "the answer is", " instead of", ":",
    " +", " -", " *", " /", " =", " (", " )",
]  # fmt: skip
# The system prompt is left out: this policy has only ever known one kind of problem. What it must
# know of it, that an answer without reasoning is asked for, becomes one token.
CHAT_TEMPLATE = (
    "{%- for m in messages -%}"
    "{%- if m['role'] == 'system' -%}"
    "{%- if 'and nothing else' in m['content'] -%}<|direct|>{%- endif -%}"
    "{%- elif m['role'] == 'user' -%}{{- '<|user|>' + m['content'] + '<|end|>' -}}"
    "{%- else -%}{{- '<|assistant|>' + m['content'] + '<|end|>' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)


def build_tokenizer(folder: Path) -> Qwen2Tokenizer:
    """Write the tokenizer files of an mlx-lm model folder."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Qwen2Tokenizer(
        vocab={byte: i for i, byte in enumerate(alphabet)},
        merges=[],
        unk_token=END,
        eos_token=END,
        pad_token=END,
    )
    special = [AddedToken(token, special=True, normalized=False) for token in SPECIAL]
    tokenizer.add_tokens(special, special_tokens=True)
    words = [*WORDS, *(f" {n}" for n in range(201))]
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return tokenizer
