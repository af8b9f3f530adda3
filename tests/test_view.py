"""The page of a run as data and as bytes, and the server of the live one over real sockets."""

import base64
import gzip
import hashlib
import http.client
import json
import math
import os
import random
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from support.arm_folders import gsm8k, write_arm
from support.view import HOSTILE, episode, metrics, write_run

from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import append_rows
from mlxreflect.core.records import make_problem, to_row
from mlxreflect.core.ui import Ui
from mlxreflect.evaluation.solve import read_question
from mlxreflect.tasks import get_task
from mlxreflect.view import page
from mlxreflect.view.gather import gather
from mlxreflect.view.page import html, keep_page, render, write_page
from mlxreflect.view.server import Server, serve

TEXTS = ["plain", "other", "third", "fourth"]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("view") / "mine", TEXTS, wave=2)


def tree_in(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="tree">(.*?)</script>', text, re.S)
    assert found
    return json.loads(found[1])


def stories_in(text: str) -> list[dict[str, Any]]:
    blocks = re.findall(r'<script type="text/plain" id="block-\d+">(.*?)</script>', text)
    packed = (gzip.decompress(base64.b64decode(block)) for block in blocks)
    return [story for block in packed for story in json.loads(block)]


# ---- what is gathered ----------------------------------------------------------------------------


def test_a_run_is_gathered(run_dir: Path) -> None:
    found = gather([run_dir])
    (run,) = found.tree["runs"]
    assert (run["kind"], run["name"], run["state"]) == ("run", "mine", "finished")
    assert run["facts"] == {"recipe": "quickstart", "method": "r3", "policy": "tiny",
                            "critic": "solver"}  # fmt: skip
    assert [arm["name"] for arm in run["arms"]] == ["base", "trained"]
    # Of five questions in a row base has two right and trained three; of these four, 2 and 3.
    (verdict,) = run["verdicts"]
    assert (verdict["gains"], verdict["losses"], verdict["n"]) == (1, 0, 4)
    assert run["cost"]["seconds"] == 60.0
    assert run["cost"]["generated"] == 200
    assert ["task.limit", "4", "400"] in run["keys"]["rows"]
    assert [row for row in run["keys"]["rows"] if len(row) > 2] == [["task.limit", "4", "400"]]


def test_the_rows_of_problems_and_their_stories(run_dir: Path) -> None:
    found = gather([run_dir])
    tables = found.tree["runs"][0]["tables"]
    learned, held_out = tables["learned"], tables["held_out"]
    rows = [dict(zip(learned["columns"], row, strict=True)) for row in learned["rows"]]
    assert [row["status"] for row in rows] == ["solved", "bucket", "bucket", "solved"]
    assert [row["waves"] for row in rows] == [[0], [0], [1], [1]]
    assert [row["error"] for row in rows] == ["truncated", *["wrong_answer"] * 3]
    assert [row["cut"] for row in rows] == [1, 0, 0, 0]
    story = found.stories[learned["first"] + 1]
    assert story["id"] == rows[1]["id"]
    (one,) = story["episodes"]
    assert [turn["role"] for turn in one["turns"]] == ["attempt", "critique", "rewrite", "verify"]
    assert one["turns"][2]["rewrites"] == 0
    assert one["examples"][0]["turns"] == [2, 0]
    changes = [dict(zip(held_out["columns"], row, strict=True))["change"]
               for row in held_out["rows"]]  # fmt: skip
    assert changes == ["right → right", "right → right", "wrong → right", "wrong → wrong"]
    answered = found.stories[held_out["first"] + 2]
    assert [arm["samples"][0]["parsed"] for arm in answered["arms"]] == ["0", "3"]


def test_the_curves(run_dir: Path) -> None:
    charts = {one["id"]: one for one in gather([run_dir]).tree["runs"][0]["charts"]}
    lines = {line["name"]: line["points"] for line in charts["accuracy"]["lines"]}
    assert lines["first answer right"] == [(0, 0.0), (1, 0.0)]
    assert lines["held-out problems"] == [(-0.5, 0.5), (1.5, 0.75)]
    assert charts["loss-dpo"]["lines"][0]["points"] == [(1, 0.7), (2, 0.6999)]
    assert charts["loss-dpo"]["marks"] == [{"x": 1.5, "what": "new reference"}]
    assert charts["accuracy"]["marks"] == [{"x": 0.5, "what": "new reference"}]


def test_answers_to_probes_that_are_the_same_are_one(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", TEXTS, wave=2)
    rows = [{"schema": "probe/1", "epoch": 1, "wave": wave, "probe": probe, "prompt": prompt,
             "text": text, "tokens": 3, "finish_reason": "stop"}
            for wave, texts in ((None, "ax"), (0, "ay"), (2, "by"))
            for probe, (prompt, text) in enumerate(
                zip(("Who?", "Why?"), texts, strict=True))]  # fmt: skip
    append_rows(folder / "probes.jsonl", rows)
    found = gather([folder])
    table = found.tree["runs"][0]["tables"]["probes"]
    assert table["rows"] == [["Who?", 2], ["Why?", 2]]
    told = [[(one["since"], one["until"], one["text"]) for one in story["answers"]]
            for story in found.stories[table["first"] :]]  # fmt: skip
    assert told == [[(None, 0, "a"), (2, 2, "b")], [(None, None, "x"), (0, 2, "y")]]


def test_the_knowledge_graph(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", TEXTS, wave=2)
    pairs = [("hub", f"leaf {i}") for i in range(70)] + [("leaf 3", "leaf 4"), ("hub", "leaf 3")]
    row = {"schema": "triple/1", "epoch": 1, "wave": 0, "problem": "p", "turn": 0,
           "role": "attempt", "relation": "<b>has"}  # fmt: skip
    append_rows(folder / "graph.jsonl", ({**row, "subject": a, "object": b} for a, b in pairs))
    graph = gather([folder]).tree["runs"][0]["graph"]
    assert graph["nodes"][:3] == [["hub", 70], ["leaf 3", 2], ["leaf 4", 2]]
    assert len(graph["nodes"]) == 60
    assert graph["edges"][0] == [0, graph["nodes"].index(["leaf 0", 1]), "<b>has", 1]
    assert [0, 1, "<b>has", 2] in graph["edges"]
    assert [1, 2, "<b>has", 1] in graph["edges"]
    assert len(graph["edges"]) == 60
    assert graph["sentence"].startswith("71 nodes, 71 edges")


def test_second_tries(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", TEXTS, wave=2)
    how = {"retry": "own", "gated": False}
    arm = {"arm": "base", **how, "acc_t1": 0.2, "acc_t2": 0.4, "wrong_to_right": 3,
           "right_to_wrong": 1, "failed": 0}  # fmt: skip
    (folder / "retries.json").write_text(
        json.dumps({"arms": [arm], "comparisons": [{**how, "difference": 0.1}]})
    )
    found = gather([folder]).tree["runs"][0]["retries"]
    assert found["arms"][0]["name"] == "base, own retry, ungated"
    assert found["arms"][0]["acc_t2"] == 0.4
    assert found["comparisons"][0]["b"] == "trained, own retry, ungated"


def test_a_run_under_way_and_a_stopped_one(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "open", TEXTS, wave=2, answers=False)
    (folder / "summary.json").unlink()
    (folder / ".lock").write_text(str(os.getpid()))
    (run,) = gather([folder]).tree["runs"]
    assert run["state"] == "working"
    # Four of 12 attempts (three epochs of four problems) took four seconds.
    assert (run["live"]["phase"], run["live"]["done"], run["live"]["total"]) == ("learning", 4, 12)
    assert run["live"]["seconds_left"] == pytest.approx(8.0)
    assert run["live"]["generating"] == 50
    assert run["live"]["memory"] > 10_000_000
    (written,) = tree_in(render(gather([folder])))["runs"]
    assert datetime.now() - datetime.fromisoformat(written["as_of"]) < timedelta(minutes=2)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (folder / ".lock").write_text(str(gone.pid))
    (run,) = tree_in(render(gather([folder])))["runs"]
    assert (run["state"], "as_of" in run) == ("stopped", False)


def test_evaluations_and_a_training(tmp_path: Path) -> None:
    problems = gsm8k(6)
    for name, right in (("base", 2), ("tuned", 4)):
        texts = [[f"<answer>{i + 1 if i < right else 0}</answer>"] for i in range(6)]
        write_arm(tmp_path / name, problems, texts, model=name)
    job = tmp_path / "job"
    job.mkdir()
    began = {"objective": "dpo", "policy": {"model": "tiny"}, "train": {"lr": 0.5}}
    (job / "job.json").write_text(json.dumps({"job": began}))
    append_rows(job / "metrics.jsonl", [metrics(0, 1)[0]])
    training, evaluation = gather([job, tmp_path / "base", tmp_path / "tuned"]).tree["runs"]
    assert (evaluation["verdicts"][0]["gains"], evaluation["verdicts"][0]["losses"]) == (2, 0)
    assert training["facts"]["objective"] == "dpo"
    assert [one["id"] for one in training["charts"]] == ["loss-dpo", "margin", "ranked"]


def test_runs_of_the_same_problems_are_compared(run_dir: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", TEXTS[::-1], wave=2)
    fewer = write_run(tmp_path / "fewer", TEXTS[:2], wave=2)
    latest = tmp_path / "latest"  # as in runs/*
    latest.symlink_to(other)
    tree = gather([latest, run_dir, fewer, other]).tree
    assert [run["name"] for run in tree["runs"]] == ["mine", "fewer", "other"]
    (compared,) = tree["against"]["comparisons"]
    assert (compared["a"], compared["b"], compared["difference"]) == ("mine", "other", 0)
    (fault,) = tree["against"]["faults"]  # and stops nothing
    assert fault.startswith("fewer with mine: not the same questions: ")
    assert str(tmp_path) not in fault


def test_a_problem_is_written_in_one_way() -> None:
    puzzle = make_problem("countdown", {"numbers": [92, 31, 30], "target": 31})
    assert puzzle.in_a_line(44) == "numbers 92 31 30, target 31"
    assert read_question(puzzle.in_a_line(44), get_task("countdown")).fields == puzzle.fields
    assert make_problem("jsonl", {"question": "So\n many  words"}).in_a_line(6) == "So ma…"


# ---- damaged rows --------------------------------------------------------------------------------

ODD: list[Any] = [None, "text", -3, 1.5, True, [], {}, [1], {"a": 1}, 10**400, math.inf, "\ud800"]


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every value in a row, the row itself first."""
    yield at
    if isinstance(value, dict | list):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(one, (*at, key))


def spoil(file: Path, times: int, draw: random.Random) -> int:
    """Adds damaged rows to a journal, some no objects at all; returns its rows then."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    lines = [json.dumps(row) for row in rows]
    for _ in range(times):
        row = json.loads(json.dumps(draw.choice(rows)))
        *above, last = draw.choice([*places(row)][1:])
        within = row
        for key in above:
            within = within[key]
        if draw.random() < 0.3:
            del within[last]
        else:
            within[last] = draw.choice(ODD)
        lines.insert(draw.randrange(len(lines)), json.dumps(row))
    lines.insert(draw.randrange(len(lines)), draw.choice(["[1]", "null", "{broken", "7", '"x"']))
    file.write_text("\n".join(lines) + "\n")
    return len(lines)


@pytest.mark.parametrize("seed", range(3))
def test_damaged_rows_are_left_out_and_counted(seed: int, tmp_path: Path) -> None:
    folder, draw = write_run(tmp_path / "run", TEXTS, wave=2), random.Random(seed)
    (folder / "summary.json").unlink()
    asked = {"n": 1, "kind": "ok", "try": 1, "tokens_in": 5, "tokens_out": 6, "usd": 0.1,
             "seconds": 0.5}  # fmt: skip
    append_rows(folder / "critic.jsonl", [asked, asked])
    drawn = {"schema": "triple/1", "epoch": 1, "wave": 0, "problem": "p", "turn": 0, "role":
             "attempt", "subject": "bees", "relation": "make", "object": "honey"}  # fmt: skip
    asked = {"schema": "probe/1", "epoch": 1, "wave": None, "probe": 0, "prompt": "Who?",
             "text": "I.", "tokens": 3, "finish_reason": "stop"}  # fmt: skip
    append_rows(folder / "graph.jsonl", [drawn])
    append_rows(folder / "probes.jsonl", [asked])
    names = ("episodes", "examples", "metrics", "critic", "graph", "probes")
    rows = {name: spoil(folder / f"{name}.jsonl", 300, draw) for name in names}
    found = gather([folder])
    (run,) = found.tree["runs"]
    counts = {name: re.search(rf"(\d+) rows? of {name}.jsonl", "\n".join(run["warnings"]))
              for name in names}  # fmt: skip
    left = {name: int(count[1]) for name, count in counts.items() if count}
    assert all(left[name] > 100 for name in names)
    learned = found.stories[run["tables"]["learned"]["first"] :]
    told = sum(len(story["episodes"]) for story in learned if story["kind"] == "learned")
    assert told + left["episodes"] == rows["episodes"]
    keep_page(folder, Ui())
    assert stories_in((folder / "report" / "page.html").read_text())


@pytest.mark.parametrize("name", ["samples", "problems"])
def test_an_evaluation_with_damaged_rows_is_left_out(name: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", TEXTS, wave=2)
    spoil(folder / "eval" / "trained" / f"{name}.jsonl", 20, random.Random(1))
    (run,) = gather([folder]).tree["runs"]
    assert [arm["name"] for arm in run["arms"]] == ["base"]
    assert f"{name}.jsonl" in run["warnings"][-1]
    with pytest.raises(UserError, match=f"{name}.jsonl"):
        gather([folder / "eval" / "trained"])


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no evaluation in it"):
        gather([tmp_path])


# ---- the file ------------------------------------------------------------------------------------


class Scripts(HTMLParser):
    """Collects elements and the text of each script and style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.texts.append("")
        self.inside = True

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.texts[-1] += data

    def of(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        both = zip(self.elements, self.texts, strict=True)
        return [(attributes, text) for (name, attributes), text in both if name == tag]


def test_only_our_script_and_style_may_run(run_dir: Path) -> None:
    found = Scripts(render(gather([run_dir])))
    (policy,) = [a["content"] for a, _ in found.of("meta") if "http-equiv" in a]
    assert policy
    running = [text for attributes, text in found.of("script") if "type" not in attributes]
    for kind, texts in (("script", running), ("style", [text for _, text in found.of("style")])):
        (text,) = texts
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}';" in policy
    assert "default-src 'none'" in policy
    assert "connect-src 'none'" in policy
    assert "unsafe" not in policy
    assert any(
        "connect-src 'self'" in str(a.get("content")) for a, _ in Scripts(html(None)).of("meta")
    )


def test_the_file_names_nothing_to_fetch(run_dir: Path) -> None:
    found = Scripts(render(gather([run_dir])))
    for _, attributes in found.elements:
        for name in ("src", "href", "srcset", "data", "action"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#"))
        assert not any(name.startswith("on") or name == "style" for name in attributes)


def test_hostile_texts_are_data(tmp_path: Path) -> None:
    assert len(set(HOSTILE)) == 200
    folder = write_run(tmp_path / "<img src=x onerror=hit()>", HOSTILE)
    size = write_page([folder], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert size == len(text.encode())
    plain = Scripts(render(gather([write_run(tmp_path / "plain", ["x"] * 200)])))
    assert [tag for tag, _ in Scripts(text).elements] == [tag for tag, _ in plain.elements]
    stories = stories_in(text)
    told = json.dumps(stories, ensure_ascii=False)
    for one in HOSTILE:
        assert json.dumps(one, ensure_ascii=False)[1:-1] in told
    learned = tree_in(text)["runs"][0]["tables"]["learned"]
    assert stories[learned["first"]]["id"] == learned["rows"][0][0]


@pytest.mark.slow
def test_a_thousand_problems_fit_into_five_megabytes(tmp_path: Path) -> None:
    """Texts that can hardly be packed, as a thinking model writes them."""
    texts = [hashlib.shake_256(bytes([i % 256, i // 256])).hexdigest(3_000) for i in range(1000)]
    assert write_page([write_run(tmp_path / "run", texts)], tmp_path / "page.html") < 5_000_000
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    stories = stories_in(text)
    assert len(stories) == 1200
    attempt = stories[3]["episodes"][0]["turns"][0]["text"]
    assert "characters are left out here" in attempt
    assert attempt.startswith(texts[3][:200])


def test_short_texts_are_whole_and_blocks_begin_where_they_say(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "BLOCK", 1000)
    found = gather([run_dir])
    text = render(found)
    assert json.loads(json.dumps(found.stories)) == stories_in(text)
    assert len(tree_in(text)["blocks"]) > 2


# ---- the server ----------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = write_run(tmp_path / "live", TEXTS, wave=2)
    (folder / "summary.json").unlink()
    with Server([folder]) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def ask(server: Server, path: str, method: str = "GET", **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.putrequest(method, path, skip_host="Host" in named)
    for name, value in named.items():
        connection.putheader(name, value)
    connection.endheaders()
    reply = connection.getresponse()
    return reply.status, reply.read().decode()


def test_the_server_listens_on_loopback_alone(server: Server) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert len(server.token) >= 32


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/", {}), ("/tree", {}), ("/wrong/tree", {}), ("/{half}/", {}), ("/{token}", {}),
        ("/{token}/../../etc/passwd", {}), ("/{token}/..%2f..%2frecipe.toml", {}),
        ("/{token}/recipe.toml", {}), ("/{token}//tree", {}), ("/%C3%A9{token}/", {}),
        ("http://[/", {"Host": "127.0.0.1"}),
        ("/{token}/", {"Host": "example.com"}), ("/{token}/", {"Host": "127.0.0.1"}),
        ("/{token}/tree", {"Origin": "https://example.com"}), ("/{token}/tree", {"Origin": "null"}),
        ("/{token}/tree", {"Sec_Fetch_Site": "cross-site"}),
    ],
)  # fmt: skip
def test_whoever_should_not_ask_gets_403(
    server: Server, path: str, headers: dict[str, str]
) -> None:
    asked = path.replace("{token}", server.token).replace("{half}", server.token[:16])
    status, text = ask(server, asked, **headers)
    assert status == 403
    assert "mlxreflect" not in text


def test_a_file_of_ours_may_lead_to_the_page_and_to_nothing_else(server: Server) -> None:
    opened = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate",
              "Sec_Fetch_Dest": "document"}  # fmt: skip
    here = f"/{server.token}/"
    assert ask(server, here, **opened)[0] == 200
    assert ask(server, f"{here}tree", **opened)[0] == 403
    assert ask(server, "/wrong/", **opened)[0] == 403
    assert ask(server, here, **opened, Host="example.com")[0] == 403
    for other in ({"Sec_Fetch_Dest": "iframe"}, {"Sec_Fetch_Mode": "no-cors"}):
        assert ask(server, here, **{**opened, **other})[0] == 403


def test_the_browser_is_not_told_the_token_where_others_see_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its command line names a file that only this user can read, and that is gone at the end."""
    opened, said = list[tuple[str, int, str]](), list[str]()

    def look(url: str) -> None:
        file = Path(unquote(urlsplit(url).path))
        opened.append((url, file.stat().st_mode & 0o777, file.read_text()))

    def stop(server: Server) -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr("webbrowser.open", look)
    monkeypatch.setattr(Server, "serve_forever", stop)
    serve([write_run(tmp_path / "run", TEXTS, wave=2)], said.append)
    ((url, mode, text),) = opened
    address = said[0].splitlines()[0]
    assert url.startswith("file://") and address.rsplit("/", 2)[1] not in url
    assert mode == 0o600 and f"url={address}" in text
    assert not Path(unquote(urlsplit(url).path)).exists()


def test_the_page_and_its_data(server: Server) -> None:
    here = f"/{server.token}/"
    status, text = ask(server, here)
    assert (status, tree_in(text)) == (200, None)
    origin = f"http://127.0.0.1:{server.server_port}"
    status, text = ask(server, f"{here}tree?seen=0", Origin=origin, Sec_Fetch_Site="same-origin")
    assert status == 200
    first = json.loads(text)
    assert first["tree"]["runs"][0]["state"] == "stopped"
    assert json.loads(ask(server, f"{here}tree?seen={first['version']}")[1]).get("tree") is None
    status, text = ask(server, f"{here}story?run=0&table=learned&row=2")
    assert json.loads(text)["id"] == first["tree"]["runs"][0]["tables"]["learned"]["rows"][2][0]
    # The first of the held-out problems follows the last that was learned from.
    beside = (
        "run=0&table=learned&row=4",
        "run=0&table=held_out&row=-1",
        "run=0&table=learned&row=99",
    )
    for wrong in ("", *beside, "run=x&table=y&row=0", "run=7&table=learned&row=0"):
        assert ask(server, f"{here}story?{wrong}") == (200, "null")
    assert ask(server, here, "POST")[0] == 501


def test_the_page_follows_the_journals(server: Server) -> None:
    (folder,) = server.watched.folders
    before = server.watched.now()[0]
    one, pair = episode(9, "new", 2)
    append_rows(folder / "episodes.jsonl", [to_row(one)])
    append_rows(folder / "examples.jsonl", [to_row(pair)])
    append_rows(folder / "metrics.jsonl", metrics(2, 1))
    server.watched.due = 0.0
    version, gathered = server.watched.now()
    assert version == before + 1
    assert gathered.tree["runs"][0]["tables"]["learned"]["rows"][-1][1].endswith("new")
    with (folder / "metrics.jsonl").open("a") as rows:
        rows.write("{broken}\n")
    server.watched.due = 0.0
    version, gathered = server.watched.now()
    assert (version, server.watched.fault) == (before + 2, "")
    assert gathered.tree["runs"][0]["warnings"][-1].startswith("1 row of metrics.jsonl is damaged")
    (folder / "summary.json").write_text('{"critic": 5}')
    server.watched.due = 0.0
    again, kept = server.watched.now()
    assert "has another form" in server.watched.fault
    assert (again, kept) == (version, gathered)


def test_the_command_writes_a_file(run_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    call = [sys.executable, "-m", "mlxreflect", "view", str(run_dir), "--out", str(out)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert str(out) in done.stdout
    assert tree_in(out.read_text(encoding="utf-8"))["runs"][0]["name"] == "mine"


def test_a_page_that_fails_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "run", TEXTS, wave=2)
    keep_page(folder, Ui())
    assert tree_in((folder / "report" / "page.html").read_text())["runs"][0]["name"] == "run"
    (folder / "summary.json").write_text("{broken}\n")
    keep_page(folder, Ui())
    assert "warning: no page of this run" in capsys.readouterr().out


def test_numbers_that_are_no_json_are_left_out() -> None:
    shown = page.embed({"loss": [float("inf"), float("nan"), 1.5], "text": "NaN <b>"})
    assert json.loads(shown) == {"loss": [None, None, 1.5], "text": "NaN <b>"}
    _, [block] = page.pack([{"loss": float("-inf")}])
    assert gzip.decompress(base64.b64decode(block)) == b'[{"loss":null}]'
