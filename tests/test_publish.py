"""`publish`: what goes to the hub, what never does, and that a run is never in its way."""

import base64
import gzip
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
import yaml
from huggingface_hub import DatasetCard, ModelCard, constants
from support.fake_hub import TOKEN, FakeHub
from support.run_outputs import run_process
from support.shell import Shell
from support.view import HOSTILE, HOSTILE_YAML, write_run
from support.whole_runs import finish

from mlxreflect.config.recipe import dump_recipe, load_recipe, resolved
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import digest_of
from mlxreflect.core.ui import safe_text
from mlxreflect.evaluation.compare import compare_all
from mlxreflect.report import card
from mlxreflect.runs import publish
from mlxreflect.runs.outgoing import Outgoing
from mlxreflect.runs.publish import Pusher

TO = "ann/sums"
TEXTS = [f"text {i}" for i in range(12)]


def make_run(folder: Path, *settings: str, texts: list[str] = TEXTS) -> Path:
    """A finished run, also as `publish` wants it: identity, adapter, comparison, summary."""
    run = write_run(folder, texts)
    recipe = load_recipe("quickstart", [f"task.limit={len(texts)}", *settings])
    (run / "recipe.toml").write_text(dump_recipe(recipe), encoding="utf-8")
    told = {"id": run.name, "version": "0.1.0", "recipe": resolved(recipe)}
    (run / "run.json").write_text(json.dumps({**told, "sha256": digest_of(told)}))
    for place in (run / "adapter", run / "checkpoints" / "epoch-1"):
        place.mkdir(parents=True)
        mx.save_safetensors(str(place / "adapters.safetensors"), {"a.lora_a": mx.ones((4, 2))})
        about = {"fine_tune_type": "lora", "model": recipe.policy.model}
        (place / "adapter_config.json").write_text(json.dumps(about))
    compared = compare_all([run])
    (run / "comparison.json").write_text(json.dumps(compared))
    for arm, ends in (("base", compared["ci_a"]), ("trained", compared["ci_b"])):
        file = run / "eval" / arm / "results.json"
        results = json.loads(file.read_text()) | dict(zip(("ci_low", "ci_high"), ends, strict=True))
        file.write_text(json.dumps(results))
    summary = json.loads((run / "summary.json").read_text())
    summary |= {"problems": 12, "statuses": {"solved": 4, "bucket": 8}, "tokens_trained": 1234,
                "decontaminated": {"dropped": 0}}  # fmt: skip
    (run / "summary.json").write_text(json.dumps(summary))
    return run


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    with FakeHub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("made") / "run")


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


# ---- what goes up --------------------------------------------------------------------------------


def test_a_run_on_the_hub(shell: Shell, hub: FakeHub, run: Path) -> None:
    told = json.loads(shell.works("publish", run, "--to", TO, "--json").out)
    model, data = hub.model(TO), hub.dataset(TO)
    assert model.private and data.private
    assert told["model"] == f"{hub.url}/{TO}" and told["dataset"] == f"{hub.url}/datasets/{TO}"
    assert {one["path"] for one in told["files"] if one["repository"] == "model"} == {*model.files}
    assert {one["path"]: one["bytes"] for one in told["files"] if one["repository"] == "model"} == {
        name: len(content) for name, content in model.files.items()
    }
    weights = (run / "adapter" / "adapters.safetensors").read_bytes()
    assert model.files["adapters.safetensors"] == weights
    assert any("PUT" in one for one in hub.requests), "large files go through LFS"
    assert [path for _, path in model.commits] == [[*model.files]], "one commit"
    rows = data.files["preference.jsonl"].decode().splitlines()
    assert [list(json.loads(row)) for row in rows] == [["prompt", "chosen", "rejected"]] * 12
    again = tmp_recipe(run, model.files["recipe.toml"])
    assert load_recipe(str(again)).task.limit == 12

    shell.works("publish", run, "--to", TO)
    assert len(model.commits) == len(data.commits) == 1, "nothing is new"


def tmp_recipe(run: Path, content: bytes) -> Path:
    file = run.parent / "again.toml"
    file.write_bytes(content)
    return file


def test_the_card_is_what_the_hub_reads(hub: FakeHub, run: Path, shell: Shell) -> None:
    shell.works("publish", run, "--to", TO)
    file = run.parent / "README.md"
    file.write_bytes(hub.model(TO).files["README.md"])
    found = ModelCard.load(file)
    results = json.loads((run / "eval" / "trained" / "results.json").read_text())
    (one,) = found.data.eval_results
    assert (one.metric_type, one.dataset_type) == ("accuracy", "openai/gsm8k")
    assert one.metric_value == pytest.approx(results["accuracy"], abs=1e-4)
    assert f"on {results['n']} questions (95% interval {results['ci_low']:.1%}" in one.metric_name
    assert found.data.license == "mit" and found.data.base_model is None  # of "tiny"
    assert found.data.datasets == [TO] and found.data.library_name == "mlx"
    compared = json.loads((run / "comparison.json").read_text())
    assert card.prose(compared["sentence"]) in found.text
    for said in ("12 of the task countdown: 4 right later, 8 never solved", "1,234 tokens",
                 "no training problem occurs in the evaluation", "mlxreflect 0.1.0"):  # fmt: skip
        assert said in found.text
    file.write_bytes(hub.dataset(TO).files["README.md"])
    data = DatasetCard.load(file)
    assert data.data.configs == [{"config_name": "preference", "data_files": "preference.jsonl"}]
    assert "12 preference pairs" in data.text


def test_a_dry_run_sends_nothing(shell: Shell, hub: FakeHub, run: Path) -> None:
    said = shell.works("publish", run, "--to", TO, "--dry-run").out
    assert not hub.requests
    for name in ("adapters.safetensors", "recipe.toml", "page.html", "preference.jsonl"):
        assert re.search(rf"{name} +[\d,]+", said), name
    assert "## Is it better than its base model?" in said and "model-index:" in said
    assert not (run / "published.json").exists()


def test_public_only_where_it_is_said(shell: Shell, hub: FakeHub, run: Path) -> None:
    assert "(public)" in shell.works("publish", run, "--to", TO, "--public").out
    assert not hub.model(TO).private
    before = len(hub.requests)
    fault, hint = shell.mistake("publish", run, "--to", TO)
    assert "is public on the hub" in fault and "add --public" in hint
    assert not any("commit" in one for one in hub.requests[before:])


@pytest.mark.slow
def test_the_whole_model(shell: Shell, hub: FakeHub) -> None:
    shell.works("run", "quickstart", *shell.small, "--run-dir", "run", "--set", "train.lr=1e-3")
    shell.works("publish", "run", "--to", TO, "--fused")
    files = hub.model(TO).files
    assert "adapters.safetensors" not in files
    place = shell.folder / "from-hub"
    place.mkdir()
    for name, content in files.items():
        (place / name).write_bytes(content)
    shell.works("fuse", "--model", shell.model, "--adapter", "run/adapter", "--out", "ours")
    ours, theirs = (mx.load(str(shell.folder / one / "model.safetensors"))
                    for one in ("ours", "from-hub"))  # fmt: skip
    assert ours.keys() == theirs.keys()
    assert all(mx.array_equal(ours[key], theirs[key]).item() for key in ours)
    assert str(shell.folder).encode() not in b"".join(files.values())
    assert not [*(shell.folder / "run").glob(".fused-*")]


# ---- what never does -----------------------------------------------------------------------------


def decompressed(content: bytes) -> bytes:
    """The bytes of a file, and of a page what is packed in it."""
    blocks = re.findall(rb'id="block-\d+">([^<]*)<', content)
    return content + b"".join(gzip.decompress(base64.b64decode(one)) for one in blocks)


def test_nothing_private_leaves(
    shell: Shell, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home" / "zacharias"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("MY_ROUTER_KEY", "sk-or-1234567890")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "aws/very+secret")
    monkeypatch.setenv("OLLAMA_HOST", "http://zach:hunter22@10.1.2.3:11434")
    home.mkdir(parents=True)
    monkeypatch.chdir(home)
    run = home / "my runs" / "sums-1"
    secrets = ["sk-or-1234567890", "aws/very+secret", TOKEN, "hunter22", "10.1.2.3:11434",
               "MY_ROUTER_KEY", "router.internal", "zacharias", "janes-profile", str(tmp_path),
               "someone"]  # fmt: skip
    leaky = [f"it failed at {run}/x.py with http://zach:hunter22@10.1.2.3:11434/v1",
             "Bearer sk-or-1234567890 at https://router.internal:8443/v1/chat",
             f"{home}/data/mine.jsonl", f"AWS said aws/very+secret, MY_ROUTER_KEY, {TOKEN}",
             "/Users/someone/x", "/home/someone", f"{home}, and {run.parent}."]  # fmt: skip
    make_run(
        run, f"policy.model={home}/models/small-4bit", f"task.source={home}/data/mine.jsonl",
        "task.name=jsonl", f"name={run}", "critic.provider=openai", "critic.model=m",
        "critic.base_url=https://router.internal:8443/v1", "critic.key_env=MY_ROUTER_KEY",
        "critic.profile=janes-profile", f"critic.cache={home}/cache.db", "r3.rewrites=1",
        "track=wandb", f"critic.advanced.base_url={home}", texts=leaky,
    )  # fmt: skip
    shell.works("publish", run, "--to", TO)
    for repo in (hub.model(TO), hub.dataset(TO)):
        for name, content in repo.files.items():
            for secret in secrets:
                text = decompressed(content).decode(errors="replace")
                at = text.find(secret)
                assert at < 0, (name, text[max(0, at - 60) : at + 200])
    files = hub.model(TO).files
    assert b'policy.model = "small-4bit"' in files["recipe.toml"]
    assert b'task.source = "mine.jsonl"' in files["recipe.toml"]
    assert b"small-4bit" in decompressed(files["page.html"])
    assert json.loads(files["adapter_config.json"])["model"] == "small-4bit"
    assert not {*files} & {"critic.jsonl", "episodes.jsonl", "run.json"}


def test_texts_keep_what_is_not_private(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    clean = Outgoing(run, {"policy.model": "org/model", "critic.base_url": ""})
    for text in ("1/2 + 3/4 = 5/4", "see https://example.org/home/page", "a@b.org", "and/or",
                 "/homes/x", "x" * 100, "", "step 1: 8 / 2 = 4"):  # fmt: skip
        assert clean.text(text) in (text, text.replace("/home/page", "~"))
    assert clean.text("/home/ann/x and /home/anna/y") == "~/x and ~/y"
    assert clean.tree({"a": ["/home/ann", 1, None, True, ("/home/ann",)]}) == {
        "a": ["~", 1, None, True, ["~"]]
    }


def check_card(content: str) -> None:
    """Texts in it stay text, in Markdown and in YAML, which has as many documents as before."""
    found = ModelCard(content)
    assert found.data.tags == ["mlx", "mlxreflect", "r3", "lora"]
    outside = re.sub(r"^(````*)\w*\n.*?\n\1$", "", found.text, flags=re.S | re.M)
    assert not re.search(r"<(script|img|svg|iframe|style|base|meta|a|math)\b", outside)
    assert "evil" not in outside and "license: evil" not in content.split("---\n")[1]
    assert content.isprintable() or not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", content)


def test_hostile_texts(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(HOSTILE[:29])
    monkeypatch.setattr(publish, "licence_of", lambda model: {"license": text, "base_model": text})
    name = f"{text}\n---\nlicense: evil\n```".encode("utf-8", "replace").decode()
    recipe = load_recipe("quickstart").model_copy(update={"name": name})
    (run / "recipe.toml").write_text(dump_recipe(recipe), encoding="utf-8")
    (run / "run.json").write_text(json.dumps({"version": text}))
    packed = publish.pack(run, TO)
    check_card(publish.bytes_of(packed.model["README.md"]).decode())


@pytest.mark.slow
@pytest.mark.parametrize("at", range(0, 200, 20))
def test_hostile_texts_one_by_one(at: int, run: Path) -> None:
    recipe, compared = load_recipe("quickstart"), json.loads((run / "comparison.json").read_text())
    for text in HOSTILE[at : at + 20]:
        (run / "comparison.json").write_text(json.dumps({**compared, "sentence": text}))
        (run / "run.json").write_text(json.dumps({"version": text}))
        named = recipe.model_copy(update={"name": f"{text}\n---\nlicense: evil\n```"})
        licence = {"license": text, "license_name": text, "base_model": text}
        content = card.model_card(card.Subject(run, TO, named, {}, "lora", licence))
        check_card(content.encode("utf-8", "replace").decode())


def metadata(content: str) -> tuple[dict[str, Any], str]:
    """A card's metadata and text, as PyYAML and huggingface_hub both read them."""
    content = content.encode("utf-8", "replace").decode()
    found = ModelCard(content)
    head, text = re.fullmatch(r"---\n(.*?)\n---\n(.*)", content, re.S).groups()  # type: ignore[union-attr]
    assert found.text == text
    return yaml.safe_load(head), text


@pytest.mark.slow
def test_hostile_yaml(tmp_path: Path) -> None:
    """Each text is one value of a card's metadata again, whatever YAML would make of it."""
    (tmp_path / "run.json").write_text("{}")
    recipe = load_recipe("quickstart", ["policy.model=somewhere/"])
    keys = ("license", "license_name", "license_link", "base_model")
    ours = {"library_name", "pipeline_tag", "tags", "base_model_relation", "metrics", "model-index"}
    for text in HOSTILE_YAML:
        read = safe_text(text)
        problems = {"part": text, "task": {"source": text}}
        arm = {"accuracy": 0.5, "ci_low": 0.4, "ci_high": 0.6, "n": 9, "task": "gsm8k",
               "spec": problems}  # fmt: skip
        task = recipe.task.model_copy(update={"source": text})
        named = recipe.model_copy(update={"task": task})
        licence = dict.fromkeys(keys, read)
        subject = card.Subject(tmp_path, TO, named, {"sft.jsonl": 1}, "lora", licence)
        data = card.model_data(subject, {text: {"base": arm, "trained": arm}}, [])
        found, said = metadata(card.card(data, "# Text\n"))
        assert said == "# Text\n" and found.keys() == {*ours, *keys, "datasets"}
        assert {key: found[key] for key in keys} == licence
        assert found["model-index"][0]["results"][0]["dataset"] == {
            "name": read, "type": read, "split": read
        }  # fmt: skip
        found, said = metadata(card.dataset_card(subject))
        assert found.keys() == {"task_categories", "tags", "configs"}
        assert said.count("\n- **") == 3 and "\nlicense:" not in said


# ---- honest words --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"verdict": "significant", "gains": 9, "losses": 1}, "Yes, on these questions."),
        ({"verdict": "significant", "gains": 1, "losses": 9}, "No. On these questions it is worse"),
        ({"verdict": "not significant"}, "Not shown: the difference may be chance."),
        ({"verdict": "borderline", "gains": 9, "losses": 1}, "Not shown: the interval says"),
        (None, "Not known: it was not compared with it."),
    ],
)
def test_the_verdict_is_said_as_it_is(changes: dict[str, Any] | None, said: str, run: Path) -> None:
    file = run / "comparison.json"
    if changes is None:
        file.unlink()
    else:
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    text = publish.bytes_of(publish.pack(run, TO).model["README.md"]).decode()
    assert f"**{said}" in text
    assert text.count("Yes, on these") == (said == "Yes, on these questions.")


def test_a_run_that_goes_on(run: Path) -> None:
    (run / "summary.json").unlink()
    packed = publish.pack(run, TO, epoch=1)
    text = publish.bytes_of(packed.model["README.md"]).decode()
    assert "Not known yet. This is the state after epoch 1" in text
    assert "page.html" not in packed.model and "model-index" not in text


def test_a_base_model_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("---\nlicense: apache-2.0\n---\n# Small\n")
    asked = []
    monkeypatch.setattr(card, "hf_hub_download", lambda *a: asked.append(a) or str(readme))
    run = make_run(tmp_path / "run", "policy.model=mlx-community/Small-4bit")
    found = ModelCard(publish.bytes_of(publish.pack(run, TO).model["README.md"]).decode())
    assert asked == [("mlx-community/Small-4bit", "README.md")]
    assert found.data.base_model_relation == "adapter"
    assert (found.data.base_model, found.data.license) == ("mlx-community/Small-4bit", "apache-2.0")
    assert "--model mlx-community/Small-4bit --adapter-path sums" in found.text
    assert (
        "[mlx-community/Small-4bit](https://huggingface.co/mlx-community/Small-4bit)" in found.text
    )


# ---- mistakes ------------------------------------------------------------------------------------


def unfinished(run: Path) -> None:
    (run / "summary.json").unlink()


def unjudged(run: Path) -> None:
    told = {"unjudged": {"why": "no judge", "hint": "start one"}}
    (run / "summary.json").write_text(json.dumps(told))


def untrained(run: Path) -> None:
    told = {"untrained": {"why": "no pair", "hint": "give more"}}
    (run / "summary.json").write_text(json.dumps(told))


def training(run: Path) -> None:
    (run / "run.json").rename(run / "job.json")


def other(run: Path) -> None:
    (run / "run.json").unlink()


def test_each_needs_an_address() -> None:
    with pytest.raises(UserError, match=r"publish\.each = 'epoch' does nothing"):
        load_recipe("quickstart", ["publish.each=epoch"])
    with pytest.raises(UserError, match=r"publish\.to"):
        load_recipe("quickstart", ["publish.to=sums"])


def lost(run: Path) -> None:
    (run / "adapter" / "adapters.safetensors").unlink()


@pytest.mark.parametrize(
    ("spoil", "fault", "hint"),
    [
        (unfinished, "is not finished", "mlxreflect resume"),
        (unjudged, "is not judged yet: no judge", "start one"),
        (untrained, "learned nothing: no pair", "give more"),
        (training, "is a training", "hf upload USER/NAME"),
        (other, "is not a run folder", "give the folder"),
        (lost, "is not an adapter folder", "adapters.safetensors"),
    ],
)
def test_nothing_to_publish(
    spoil: Callable[[Path], None], fault: str, hint: str, run: Path, shell: Shell, hub: FakeHub
) -> None:
    spoil(run)
    told = shell.mistake("publish", run, "--to", TO)
    assert fault in told[0] and hint in told[1]
    assert not hub.requests


@pytest.mark.parametrize("to", ["sums", "ann/", "/sums", "a/b/c", "ann/..", "ann/x--y", "ann/a b"])
def test_no_name_of_the_hub(to: str, run: Path, shell: Shell, hub: FakeHub) -> None:
    assert "--to USER/NAME" in shell.mistake("publish", run, "--to", to)[1]
    assert not hub.requests


def test_the_hub_says_no(
    run: Path, shell: Shell, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault, hint = shell.mistake("publish", run, "--to", "bob/sums")
    assert "refuses bob/sums: You don't have the rights to create a dataset" in fault
    assert "give a --to that is yours" in hint
    hub.faults["/commit/"] = 409
    fault, hint = shell.mistake("publish", run, "--to", TO)
    assert "the hub refuses it (409): scripted 409" in fault
    assert hint == f"later: mlxreflect publish {run} --to {TO}"
    monkeypatch.setenv("HF_TOKEN", "hf_old")
    fault, hint = shell.mistake("publish", run, "--to", TO)
    assert "does not know you" in fault and hint == "log in to the hub: hf auth login"
    monkeypatch.delenv("HF_TOKEN")
    fault, hint = shell.mistake("publish", run, "--to", TO)
    assert "you are not logged in" in fault and "hf auth login" in hint
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "the hub cannot be reached" in shell.mistake("publish", run, "--to", TO)[0]


# ---- a run that pushes as it goes ----------------------------------------------------------------


def test_a_push_that_fails_is_a_warning_and_the_next_catches_up(hub: FakeHub, run: Path) -> None:
    said = list[str]()
    hub.faults["/repos/create"] = 403
    first = Pusher(run, TO, said.append)
    first.close()
    (line,) = said
    assert line.startswith("warning: not pushed to the hub: the hub refuses ann/sums")
    hub.faults.clear()
    Pusher(run, TO, said.append).close()
    assert said[1:] == [f"the trained model is on the hub: {hub.url}/{TO}"]
    before = len(hub.requests)
    Pusher(run, TO, said.append).close()
    assert len(hub.requests) == before and len(said) == 2, "the same is not pushed twice"
    assert len(hub.model(TO).commits) == 1


def test_of_epochs_that_wait_the_newest_is_pushed(
    hub: FakeHub, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed: list[int | None] = []
    monkeypatch.setattr(Pusher, "push", lambda self, epoch: packed.append(epoch))
    pusher = Pusher(run, TO, print)
    pusher.queue.put(None)
    pusher.thread.join()
    for told in (0, 1, 2, None):
        pusher.queue.put(told)
    pusher.work()
    assert packed == [None, None]


def test_a_hub_that_hangs(hub: FakeHub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = list[str]()
    hub.faults["/repos/create"] = 0  # no answer
    monkeypatch.setattr(publish, "PATIENCE_S", 0.3)
    Pusher(run, TO, said.append).close()
    assert said == ["warning: not pushed to the hub: it does not answer; later: mlxreflect publish "
                    f"{run} --to {TO}"]  # fmt: skip


@pytest.mark.slow
def test_a_run_that_was_killed_pushes_each_epoch_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """publish.to, publish.each: also without a token at first, which is a warning."""
    settings = {
        "task.limit": 8, "r3.wave": 8, "r3.epochs": 3, "train.batch": 4, "eval.limit": 6,
        "publish.to": TO, "publish.each": "epoch",
    }  # fmt: skip
    run = tmp_path / "run"
    with FakeHub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        said = run_process("quickstart", settings, run, "after a commit's rename", 3)
        assert "warning: publish.to = ann/sums, and you are not logged in" in said
        assert not hub.repos
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        finish(run)
        commits = hub.model(TO).commits
        assert commits[-1][0] == "the trained model"
        names = [name for name, _ in commits]  # an epoch may have waited, and given way
        assert names == sorted({*names}) and len(names) > 1
        weights = (run / "adapter" / "adapters.safetensors").read_bytes()
        assert hub.model(TO).files["adapters.safetensors"] == weights
        count = len(commits)
        finish(run)
        assert len(hub.model(TO).commits) == count, "it was pushed already"
        assert b"publish" not in hub.model(TO).files["recipe.toml"]
