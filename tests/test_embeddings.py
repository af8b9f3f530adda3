"""Embeddings over real sockets: what is sent, what is kept, what is refused, and what finds it."""

import json
import math
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import fake_server as wire
from support.corpus import TEXTS, teacher, write_corpus
from support.critics import TRIES
from support.fake_ollama import FakeOllama
from support.fake_openai import FakeOpenAI, refusal
from support.fake_server import STALL, Fault, Loopback, free_port, http
from support.run_outputs import run_process
from support.whole_runs import contents, finish

from mlxreflect.config.recipe import load_recipe
from mlxreflect.config.schema import CriticConfig, method_of
from mlxreflect.core.cache import KeyedCache
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import read_rows
from mlxreflect.core.ui import Ui
from mlxreflect.critics import open_embedder
from mlxreflect.critics.embeddings import BATCH, Embedder
from mlxreflect.critics.ledger import Ledger
from mlxreflect.methods.preflexor_corpus import Neighbours
from mlxreflect.setup.doctor import doctor
from mlxreflect.setup.dry_run import dry

FAKES: dict[str, type[Loopback]] = {"ollama": FakeOllama, "openai": FakeOpenAI}
both = pytest.mark.parametrize("provider", FAKES)
BEES, RAIN, IRON = TEXTS.values()


@contextmanager
def embedder(server: Loopback, ledger: Ledger | None = None, **settings: Any) -> Iterator[Embedder]:
    usual = {"model": "critic", "base_url": server.url, "cache": "off", "deadline_s": 10.0}
    config = CriticConfig(provider=server.name, **usual | settings)  # type: ignore[arg-type]
    with ExitStack() as stack:
        yield open_embedder(config, "run", stack, ledger)


def length_one(row: list[float]) -> list[float]:
    norm = math.sqrt(sum(x * x for x in row))
    return [x / norm for x in row]


# ---- what is sent --------------------------------------------------------------------------------


@both
def test_texts_in_batches_and_their_vectors_in_order(provider: str, tmp_path: Path) -> None:
    texts = [f"{'bee ' * (i % 5)}{'sea ' * i}{i}" for i in range(2 * BATCH + 3)]
    ledger = Ledger(tmp_path / "critic.jsonl")
    with FAKES[provider]() as server, embedder(server, ledger) as model:
        found = model.vectors([*texts, texts[0]])
        sent = [seen.body for seen in server.requests if seen.path in wire.EMBEDDINGS]
    assert sorted(len(body["input"]) for body in sent) == [3, BATCH, BATCH]
    assert sorted(server.embedded) == sorted(texts)  # each once
    expected = [length_one(row) for row in server.embed(texts)]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [*expected, expected[0]], atol=1e-6)
    for body in sent:
        own = {"truncate": False, "options": {"num_ctx": 8192}}
        own = own if provider == "ollama" else {"encoding_format": "float"}
        assert body == {"model": "critic", "input": body["input"], **own}
    rows = list(ledger.rows())
    assert [(row["role"], row["kind"], row["tokens_out"]) for row in rows] == [
        ("embed", "ok", 0)
    ] * 3
    assert sum(row["tokens_in"] for row in rows) == pytest.approx(sum(map(len, texts)) / 4, abs=200)


def test_the_key_the_servers_refusals_and_its_faults_are_the_critics(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OWN_KEY", "sk-embeds")
    faults = [http(503), wire.RESET]
    with FakeOpenAI(faults=faults, key="sk-embeds", refuses=["encoding_format"]) as server:
        with embedder(server, key_env="OWN_KEY") as model:
            assert model.vectors(["bee"]).shape == (1, 1 + len(wire.WORDS))
        # Two that failed, one refused, and one without what was refused.
        sent = [seen.body for seen in server.requests if seen.path in wire.EMBEDDINGS]
        assert ["encoding_format" in body for body in sent] == [True, True, True, False]
        with pytest.raises(UserError, match="wants a key"), embedder(server):
            pass


@both
def test_a_model_that_is_not_there(provider: str) -> None:
    with (
        FAKES[provider](models=["critic"]) as server,
        pytest.raises(UserError) as caught,
        embedder(server, model="nomic-embed-text"),
    ):
        pass
    message, hint = {
        "ollama": ("Ollama has no model nomic-embed-text", "run: ollama pull nomic-embed-text"),
        "openai": ("has no model nomic-embed-text", "set critic.model to one that it has: critic"),
    }[provider]
    assert message in caught.value.message and caught.value.hint == hint


def test_a_budget_holds_for_embeddings_too(tmp_path: Path) -> None:
    budget = load_recipe("r3", ["critic.budget.max_calls=2"]).critic.budget
    ledger = Ledger(tmp_path / "critic.jsonl", budget)
    texts = [f"bee {i}" for i in range(3 * BATCH)]
    with (
        FakeOllama() as server,
        embedder(server, ledger, concurrency=1) as model,
        pytest.raises(UserError, match="max_calls = 2 is reached"),
    ):
        model.vectors(texts)
    assert len(server.embedded) == 2 * BATCH


# ---- what is refused -----------------------------------------------------------------------------

GOOD = [1.0, 2.0, 0.5]
BAD = [
    ([GOOD], "1 embeddings for 2 texts"),
    ([GOOD] * 3, "3 embeddings for 2 texts"),
    ([], "0 embeddings for 2 texts"),
    ([GOOD, GOOD[:2]], "embeddings of 2 and of 3 numbers"),
    ([[], []], "an empty embedding"),
    ([GOOD, [1.0, None, 0.5]], "holds what is no number"),  # NaN, as llama.cpp writes it
    ([GOOD, [1.0, "2", 0.5]], "holds what is no number"),
    ([GOOD, [1.0, True, 0.5]], "holds what is no number"),
    ([GOOD, [1.0, [2.0], 0.5]], "holds what is no number"),
    ([GOOD, "AACAPwAAAEA="], "no lists of numbers"),  # base64, which was not asked for
    ([GOOD, 0.5], "no lists of numbers"),
    ([GOOD, [1.0, math.nan, 0.5]], "not finite"),
    ([GOOD, [1.0, math.inf, 0.5]], "not finite"),
    ([GOOD, [1e200, 1e200, 0.5]], "not finite"),
    ([GOOD, [0.0, 0.0, 0.0]], "all zeros"),
]  # fmt: skip


@both
@pytest.mark.parametrize(("rows", "said"), BAD)
def test_what_is_no_embedding(provider: str, rows: Any, said: str, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache.sqlite")
    with FAKES[provider]() as server:
        server.embed = lambda texts: rows  # type: ignore[method-assign]
        with embedder(server, cache=cache) as model, pytest.raises(UserError, match=said) as caught:
            model.vectors(["one", "two"])
        assert len(server.embedded) == 2  # the same would come again
        assert caught.value.message.startswith(f"{provider}:critic does not embed the texts: ")
        # Nothing of it was kept.
        del server.embed
        with embedder(server, cache=cache) as model:
            model.vectors(["one", "two"])
        assert len(server.embedded) == 4


ANSWERS = {
    "ollama": [{}, {"embeddings": None}, {"embeddings": {"a": 1}}, {"embedding": [1.0]}],
    "openai": [{}, {"data": 7}, {"data": [{"embedding": [1.0], "index": 1}]},
               {"data": [{"index": 0}]}, {"data": ["text"]},
               {"data": [{"embedding": [1.0], "index": [0]}]}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("provider", "answer"), [(p, answer) for p, answers in ANSWERS.items() for answer in answers]
)
def test_an_answer_of_another_kind(provider: str, answer: Any) -> None:
    with FAKES[provider]() as server:
        server.embed = lambda texts: wire.ok(answer)  # type: ignore[method-assign]
        with embedder(server) as model, pytest.raises(UserError, match="does not embed the texts"):
            model.vectors(["one"])


@pytest.mark.parametrize(
    ("fault", "tries", "said"),
    [
        (http(500, "the runner died"), TRIES, "the runner died"),
        (http(500, "input (600 tokens) is too large to process. increase the physical batch size"),
         1, "too large to process"),
        (refusal(400, "This model's maximum context length is 8192 tokens"), 1, "8192 tokens"),
        (http(404, "404 page not found"), 1, "404 page not found"),
    ],
)  # fmt: skip
def test_what_a_server_refuses(fault: Fault, tries: int, said: str) -> None:
    with FakeOpenAI(faults=[fault] * 10) as server, embedder(server) as model:
        with pytest.raises(UserError) as caught:
            model.vectors(["one"])
        assert len(server.embedded) == tries
    assert said in caught.value.message
    long = "tokens" in said or "large" in said
    assert caught.value.hint.startswith("lower preflexor.chunk" if long else "look at")


def test_a_text_longer_than_the_models_window_is_not_cut() -> None:
    with (
        FakeOllama(context=512) as server,
        embedder(server) as model,
        pytest.raises(UserError, match="the model's window has 512 tokens") as caught,
    ):
        model.vectors(["bee " * 600])
    assert caught.value.hint.startswith("lower preflexor.chunk")


def test_a_server_that_hangs_is_waited_for_as_long_as_a_critic() -> None:
    with (
        FakeOllama(faults=[STALL]) as server,
        embedder(server, deadline_s=0.3) as model,
        pytest.raises(UserError, match=r"no reply within 0\.3 s"),
    ):
        model.vectors(["one"])


# ---- what is kept --------------------------------------------------------------------------------


@both
def test_nothing_is_asked_twice(provider: str, tmp_path: Path) -> None:
    """Whatever texts it comes with; but anew where the server says that the model is another."""
    cache = str(tmp_path / "cache.sqlite")
    with FAKES[provider]() as server:
        with embedder(server, cache=cache) as model:
            first = model.vectors([BEES, RAIN])
        with embedder(server, cache=cache) as model:
            again = model.vectors([IRON, RAIN, BEES, "half \ud83d an emoji"])
        assert server.embedded == [BEES, RAIN, IRON, "half ? an emoji"]
        np.testing.assert_array_equal(again[[2, 1]], first)
        with embedder(server, cache=cache, model="critic", num_ctx=99) as model:
            model.vectors([BEES])  # no other vector comes of that
        assert len(server.embedded) == 4
        if isinstance(server, FakeOllama):
            server.digests["critic:latest"] = "anew"
            with embedder(server, cache=cache) as model:
                model.vectors([BEES])
            assert server.embedded[4:] == [BEES]
    # A replay asks nobody, though only the server knew the digest.
    with embedder(server, cache=cache, replay=True) as model:
        np.testing.assert_array_equal(model.vectors([BEES]), first[:1])
        with pytest.raises(UserError, match="1 texts have no embedding of"):
            model.vectors([BEES, "another"])


def test_what_a_batch_gave_is_kept_where_the_next_one_fails(tmp_path: Path) -> None:
    cache, texts = str(tmp_path / "cache.sqlite"), [f"bee {i}" for i in range(2 * BATCH)]
    with FakeOllama(faults=[None, http(400)]) as server:
        with embedder(server, cache=cache, concurrency=1) as model, pytest.raises(UserError):
            model.vectors(texts)
        with embedder(server, cache=cache, concurrency=1) as model:
            model.vectors(texts)
    assert server.embedded == [*texts, *texts[BATCH:]]


def test_another_model_under_the_same_name(tmp_path: Path) -> None:
    """OpenAI's API has no digests: other sizes are noticed, whichever came first."""
    cache = str(tmp_path / "cache.sqlite")
    with FakeOpenAI() as server:
        with embedder(server, cache=cache) as model:
            model.vectors([BEES])
        server.embed = lambda texts: [GOOD] * len(texts)  # type: ignore[method-assign]
        other = pytest.raises(UserError, match="has 3 numbers and those before have 8: another")
        with embedder(server, cache=cache) as model, other:
            model.vectors([BEES, RAIN])
        with embedder(server, cache=cache) as model:
            model.vectors([RAIN])
            with pytest.raises(UserError, match="has 8 numbers and those before have 3"):
                model.vectors([BEES])


@pytest.mark.parametrize("kept", [b"", b"abc", np.array([math.nan], "<f4").tobytes()])
def test_a_damaged_cache(kept: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    with FakeOpenAI() as server, embedder(server, cache=str(path)) as model:
        cache = KeyedCache(path, "critic cache", "critic.cache")
        cache.put(model.key("bee"), kept)
        cache.close()
        with pytest.raises(UserError, match="the critic cache is damaged"):
            model.vectors(["bee"])


# ---- looking up ----------------------------------------------------------------------------------


def test_the_closest_by_cosine_first() -> None:
    """Against cosines computed one by one, whatever the vectors' lengths."""
    rng = np.random.default_rng(0)
    rows: dict[str, list[float]] = {}
    with FakeOllama() as server, embedder(server) as model:
        server.embed = lambda texts: [  # type: ignore[method-assign]
            rows.setdefault(text, (rng.normal(size=5) * rng.uniform(0.1, 9)).tolist())
            for text in texts
        ]
        passages = [f"passage {i}" for i in range(40)]
        library = Neighbours(passages, model)
        library.expect([])
        library.expect(["one", "two"])
        asked = len(server.embedded)
        found = {text: library.related(text) for text in ("one", "two")}
        assert len(server.embedded) == asked  # both were expected
        assert library.related("one", 3) == found["one"][:3]
    for text, order in found.items():

        def cosine(i: int, text: str = text) -> float:
            a, b = rows[passages[i]], rows[text]
            return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)

        assert order == sorted(range(40), key=cosine, reverse=True)


# ---- in a recipe ---------------------------------------------------------------------------------

POSED = [
    "preflexor.corpus=notes",
    "task.name=jsonl",
    "task.source=asked.jsonl",
    "eval.spec=countdown",
]


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_corpus(tmp_path / "notes")
    row = {"question": "What do bees make?", "answer": "honey"}
    (tmp_path / "asked.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ([*POSED, "preflexor.retriever=bm26"], "is no way to look passages up"),
        ([*POSED, "preflexor.retriever=ollama:"], "is no way to look passages up"),
        ([*POSED, "preflexor.retriever=bedrock:titan"], "is no way to look passages up"),
        (["preflexor.retriever=ollama:m"], "does nothing where no passage is looked up"),
        ([*POSED, "preflexor.retriever=ollama:m", "preflexor.retrieve=0"], "does nothing where"),
    ],
)  # fmt: skip
def test_a_retriever_that_is_none(settings: list[str], said: str, notes: Path) -> None:
    with pytest.raises(UserError, match=said):
        load_recipe("preflexor", settings)


OPENAI = ["critic.provider=openai", "critic.base_url=http://h:1/v1", "critic.key_env=K",
          "critic.price_in=2.0", "critic.thinking=high"]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "name", "expected"),
    [
        ([], "bm25", None),
        (["critic.base_url=http://h:1"], "ollama:m:7b", ("ollama", "m:7b", "http://h:1", "", 0)),
        (OPENAI, "openai:m", ("openai", "m", "http://h:1/v1", "K", 2)),
        (OPENAI, "ollama:m", ("ollama", "m", "", "", 0)),
        ([], "openai:m", ("openai", "m", "", "OPENAI_API_KEY", 0)),
        (["critic.judge.provider=openai", "critic.judge.base_url=http://j:1"], "openai:m",
         ("openai", "m", "http://j:1", "", 0)),
    ],
)  # fmt: skip
def test_the_server_is_that_of_the_providers_critic(
    settings: list[str], name: str, expected: Any, notes: Path
) -> None:
    recipe = load_recipe("preflexor", [*POSED, *settings, f"preflexor.retriever={name}"])
    found = method_of(recipe).embedder(recipe)
    shown = ("provider", "model", "base_url", "key_env", "price_in")
    assert (found and tuple(getattr(found, key) for key in shown)) == expected
    assert found is None or found.thinking == "auto"
    assert (f"{name} (embedder)" in method_of(recipe).critic_names(recipe)) == (found is not None)


def test_a_dry_run_counts_the_calls(notes: Path) -> None:
    topics = ["preflexor.topics=bees,rain", "preflexor.rounds=3", "preflexor.two.rounds=2",
              "preflexor.questions=33"]  # fmt: skip
    recipe = load_recipe("preflexor", [*POSED, *topics, "preflexor.retriever=ollama:m"])
    shown = dry(recipe)
    # 3 passages, 2 topics, and 66 questions in each of 5 rounds.
    one = shown["estimate"]["critics"]["embedder"]
    assert one["critic"] == "ollama:m"
    assert one["expected"]["calls"] == one["at_most"]["calls"] == 1 + 1 + 5 * 3
    assert one["at_most"]["tokens_in"] == (3 + 2 + 330) * 1500 / 4
    calls = (c["at_most"]["calls"] for c in shown["estimate"]["critics"].values())
    assert shown["estimate"]["at_most"]["calls"] == sum(calls)
    assert "embedder, ollama:m: 17 calls expected, 17 at most" in shown["text"]


@pytest.mark.parametrize(
    ("models", "rows", "status", "said"),
    [
        (["critic", "m"], None, "ok", "ollama:m embeds in 8 numbers, after "),
        (["critic", "m"], [[]], "fail", "ollama:m: an empty embedding"),
        (["critic"], None, "fail", "Ollama has no model m"),
    ],
)
def test_doctor_asks_it(models: list[str], rows: Any, status: str, said: str, notes: Path) -> None:
    with FakeOllama(models=models, context=8192) as server:
        if rows is not None:
            server.embed = lambda texts: rows  # type: ignore[method-assign]
        keys = ["critic.model=critic", f"critic.base_url={server.url}", "policy.model=tiny",
                "prompt.tags=think", "preflexor.retriever=ollama:m"]  # fmt: skip
        found = doctor(load_recipe("preflexor", [*POSED, *keys]), Ui(quiet=True))
    (check,) = [check for check in found["checks"] if check["name"] == "embedder"]
    assert (
        check["status"] == status
        and check["detail"].startswith(said)
        and found["ok"] == (status == "ok")
    )
    assert len(server.embedded) == (len(models) == 2)


def test_bm25s_is_not_needed(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    recipe = load_recipe("preflexor", [*POSED, "preflexor.retriever=ollama:m"])
    assert len(method_of(recipe).sources(recipe) or []) == 3


@pytest.mark.slow
def test_a_killed_run_asks_for_no_embedding_twice(notes: Path) -> None:
    """And ends with the same bytes as one that was never stopped."""
    number = count()
    runs = []
    for driver in ((), ("appended half a journal", 3)):
        with FakeOllama(models=["critic", "m"], reply=teacher) as server:
            keys = {
                "profile": "quick", "task.name": "jsonl", "task.source": "asked.jsonl",
                "preflexor.corpus": "notes", "preflexor.retriever": "ollama:m",
                "preflexor.questions": 2, "preflexor.rounds": 2, "preflexor.two.rounds": 0,
                "critic.provider": "ollama", "critic.model": "critic",
                "critic.base_url": server.url, "eval.spec": "countdown", "eval.limit": 2,
                "critic.cache": str(notes / f"{next(number)}.sqlite"), "train.batch": 2,
            }  # fmt: skip
            run_dir = notes / f"run{next(number)}"
            run_process("preflexor", keys, run_dir, *driver)
            if driver:
                finish(run_dir)
            assert len(server.embedded) == len(set(server.embedded)) > 3
        runs.append(run_dir)
        rows = [row for row in read_rows(run_dir / "critic.jsonl") if row["role"] == "embed"]
        assert rows and {row["kind"] for row in rows} == {"ok"}
    expected, found = map(contents, runs)
    assert not [name for name in expected if found[name] != expected[name]]


def test_no_server_is_named_in_two_lines(notes: Path) -> None:
    config = CriticConfig(provider="ollama", model="m", base_url=f"http://127.0.0.1:{free_port()}")
    with ExitStack() as stack, pytest.raises(UserError, match="Ollama does not answer") as caught:
        open_embedder(config, "run", stack)
    assert caught.value.hint.startswith("start it with `ollama serve`")
