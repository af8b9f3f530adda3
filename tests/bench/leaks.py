"""Learns the weights of the leak filter, and says how well it judges lists that it has not seen.

usage: python tests/bench/leaks.py [LIST …] [--gsm8k DIR] [--write]

Learns from tests/data/leaks.tsv, from sentences made of tests/data/leak_patterns.txt, and with
--gsm8k from lines of GSM8K's train.jsonl as innocent ones. Each LIST, none for all, is then judged
by what the others teach; the threshold is where FALSE_DROPS of their innocent ones are dropped.
--write puts it and what all lists teach together into mlxreflect/data/leak_wordings.json.
"""

import argparse
import csv
import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse
from scipy.optimize import minimize

from mlxreflect.data import leak_wordings
from mlxreflect.data.leaks import by_rules, giveaway

TESTS = Path(__file__).parents[1]
SHIPPED = Path(leak_wordings.__file__).with_suffix(".json")
MADE, LINES = "made", "gsm8k"  # lists that teach and are not judged
PER_PATTERN = 30
WEIGHT_OF = {MADE: 0.3}
DECAY = 1.0  # L2, beside a sum over the texts
RARE = 3  # words and phrases that fewer texts have are left out
MOST = 6000  # weights
FALSE_DROPS = 0.015


class Text(NamedTuple):
    leaks: bool
    list: str
    text: str


# ---- texts ---------------------------------------------------------------------------------------


def listed() -> list[Text]:
    with (TESTS / "data/leaks.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [Text(row["kind"] == "leak", row["list"], row["text"]) for row in rows]


def made(rng: random.Random, clauses: list[str]) -> list[Text]:
    """Sentences of the patterns: of "{a|b}" one is chosen, and of a NAME one of its words."""
    lines = (TESTS / "data/leak_patterns.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("\t") for line in lines if line and not line.startswith("#")]
    words = {name: text.split("|") for name, text in pairs if name not in ("leak", "fine")}
    words["CLAUSE"] += clauses
    texts = []
    for kind, pattern in pairs:
        if kind in ("leak", "fine"):
            filled = {fill(pattern, words, rng) for _ in range(PER_PATTERN)}
            texts += [Text(kind == "leak", MADE, text) for text in sorted(filled)]
    return texts


def fill(text: str, words: dict[str, list[str]], rng: random.Random) -> str:
    while found := re.search(r"\{([^{}]*)\}", text):
        text = text[: found.start()] + rng.choice(found[1].split("|")) + text[found.end() :]
    while found := re.search(rf"\b({'|'.join(words)})\b", text):
        text = text[: found.start()] + rng.choice(words[found[1]]) + text[found.end() :]
    text = re.sub(r"\bNUM\b", lambda _: str(rng.randint(2, 120)), text)
    text = re.sub(r" (?=[,.;:!?])", "", " ".join(text.split()))
    return text[:1].upper() + text[1:]


def gsm8k(path: Path) -> list[tuple[str, str]]:
    """Questions and worked solutions."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(r["question"], re.sub("<<.*?>>", "", r["answer"].split("####")[0])) for r in rows]


# ---- learning ------------------------------------------------------------------------------------


class Corpus:
    """The sentences of the texts as rows of phrases, 1 for each that occurs."""

    def __init__(self, texts: list[Text], classes: dict[str, str]) -> None:
        self.texts = texts
        of = {word: kind for kind, words in classes.items() for word in words.split()}
        read = [leak_wordings.read(text.text.translate(leak_wordings.MARKUP)) for text in texts]
        seen = Counter(t.text for tokens, _ in read for t in tokens)
        known = sorted({word for word in seen if seen[word] >= RARE} | set(classes))
        ids = {part: i for i, part in enumerate(known, 1)}
        self.parts = {i: part for part, i in ids.items()}
        scorer = leak_wordings.Scorer(ids, of, None, None, 0)
        tokens = [token for part, _ in read for token in part]
        lengths = [end - start for _, bounds in read for start, end in bounds]
        self.of_text = np.repeat(np.arange(len(texts)), [len(bounds) for _, bounds in read])
        sentence = np.repeat(np.arange(len(lengths)), lengths)
        rows, keys = [], []
        ends = np.cumsum(lengths)[sentence]
        for reach, found in leak_wordings.phrases(*leak_wordings.encode(scorer, tokens, set())):
            at = np.flatnonzero((found > 0) & (np.arange(len(tokens)) + reach < ends))
            rows += [sentence[at]]
            keys += [found[at]]
        row = np.concatenate(rows)
        self.keys, column = np.unique(np.concatenate(keys), return_inverse=True)
        shape = (len(lengths), len(self.keys))
        counts = sparse.csr_matrix((np.ones(len(row)), (row, column)), shape)
        counts.data[:] = 1
        often = np.flatnonzero(counts.getnnz(axis=0) >= RARE)
        self.keys, self.counts = self.keys[often], counts[:, often]
        self.leaks = np.array([text.leaks for text in texts])
        self.lists = np.array([text.list for text in texts])
        self.weight = np.array([WEIGHT_OF.get(text.list, 1.0) for text in texts])

    def scores(self, weights: Any) -> Any:
        """Of each text the highest score of its sentences."""
        best = np.full(len(self.texts), -np.inf)
        np.maximum.at(best, self.of_text, self.counts @ weights)
        return best

    def learn(self, teach: Any) -> Any:
        """Returns the weights of the phrases and, last, the bias, from the texts where teach is.

        Of a text that leaks, the sentence that leaks most teaches; of others, each does.
        """
        weights = np.zeros(len(self.keys))
        kept = np.arange(len(self.keys))
        for most in (len(kept), MOST):
            by = self.counts @ weights
            order = np.lexsort((-by, self.of_text))
            _, first = np.unique(self.of_text[order], return_index=True)
            top = np.isin(np.arange(len(by)), order[first])
            rows = np.flatnonzero(teach[self.of_text] & (top | ~self.leaks[self.of_text]))
            text = self.of_text[rows]
            if most < len(kept):
                used = self.counts[rows].getnnz(axis=0)
                kept = np.sort(np.argsort(-np.abs(weights) * np.sqrt(used), kind="stable")[:most])
            found = fit(self.counts[rows][:, kept], self.leaks[text], self.weight[text])
            weights = np.zeros(len(self.keys))
            weights[kept] = found[:-1]
        return weights, found[-1]


def fit(counts: Any, leaks: Any, weight: Any) -> Any:
    """Logistic regression with L2, by L-BFGS. Returns weights and, last, the bias."""
    sign = np.where(leaks, 1.0, -1.0)
    across = counts.T.tocsr()

    def loss(values: Any) -> tuple[float, Any]:
        margin = sign * (counts @ values[:-1] + values[-1])
        pull = -sign * weight / (1 + np.exp(np.clip(margin, -30, 30)))
        slope = np.append(across @ pull + DECAY * values[:-1], pull.sum())
        decay = DECAY / 2 * (values[:-1] @ values[:-1])
        return float((weight * np.logaddexp(0, -margin)).sum() + decay), slope

    start = np.zeros(counts.shape[1] + 1)
    return minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 40}).x


# ---- the figures ---------------------------------------------------------------------------------


def left_out(corpus: Corpus, names: list[str]) -> Any:
    """Of each text of these lists the score by what the other lists teach."""
    scores = np.full(len(corpus.texts), np.nan)
    for name in names:
        judged = corpus.lists == name
        weights, bias = corpus.learn(~judged)
        scores[judged] = (corpus.scores(weights) + bias)[judged]
    return scores


def table(corpus: Corpus, names: list[str], dropped: Any) -> list[str]:
    lines = [f"{'list':8}  caught          innocent dropped"]
    for name, of in [(name, [name]) for name in names] + [("all", names)]:
        rows = np.isin(corpus.lists, of)
        shares = [dropped[rows & (corpus.leaks == kind)] for kind in (True, False)]
        lines += [f"{name:8} " + "   ".join(f"{x.mean():7.1%} of {len(x):4}" for x in shares)]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lists", nargs="*")
    parser.add_argument("--gsm8k", type=Path)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    rng = random.Random(0)
    solved = rng.sample(gsm8k(args.gsm8k / "train.jsonl"), 3000) if args.gsm8k else []
    steps = [rng.choice(answer.strip().splitlines()) for _, answer in solved]
    clauses = [step[:1].lower() + step[1:].rstrip(". ") for step in steps if len(step) < 110]
    texts = listed()
    names = args.lists or list(dict.fromkeys(text.list for text in texts))
    texts += made(rng, clauses)
    texts += [Text(False, LINES, text) for text in steps]
    classes = json.loads(SHIPPED.read_text(encoding="utf-8"))["classes"]
    corpus = Corpus(texts, classes)
    scores = left_out(corpus, names)
    innocent = scores[np.isin(corpus.lists, names) & ~corpus.leaks]
    threshold = float(np.quantile(innocent, 1 - FALSE_DROPS))
    ruled = np.array([bool(by_rules(text.text)) for text in texts])
    print("\n".join(table(corpus, names, (scores > threshold) | ruled)))
    if args.write:
        weights, bias = corpus.learn(np.ones(len(texts), bool))
        write(corpus, classes, weights, threshold - bias)
    if args.gsm8k:
        tried = gsm8k(args.gsm8k / "test.jsonl")
        dropped = [bool(giveaway(answer, question)) for question, answer in tried]
        print(f"solutions of GSM8K's test.jsonl: {np.mean(dropped):.2%} of {len(tried)} dropped")


def write(corpus: Corpus, classes: dict[str, str], weights: Any, threshold: float) -> None:
    found = {}
    for key, weight in zip(corpus.keys.tolist(), weights.round(2).tolist(), strict=True):
        if weight:
            parts = []
            while key:
                key, part = divmod(key, leak_wordings.RADIX)
                parts.append(corpus.parts.get(part, "…"))
            found[" ".join(parts)] = weight
    data = {"classes": classes, "threshold": round(threshold, 2), "weights": found}
    SHIPPED.write_text(json.dumps(data, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
