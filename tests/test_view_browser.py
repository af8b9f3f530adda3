"""The page in a real browser: Debian's Chromium, driven by Playwright. Skipped where either lacks.

What a page logs as an error, and any request beyond itself, fails the test.
"""

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from support.run_outputs import written
from support.view import HOSTILE, write_run
from support.whole_runs import command

from mlxreflect.core.journal import append_rows
from mlxreflect.core.ui import UNSAFE
from mlxreflect.view.page import write_page

pytestmark = pytest.mark.slow
playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync",
         "--disable-component-update", "--no-first-run"]  # fmt: skip
SMALL = {"task.limit": 12, "eval.limit": 20}
METHODS = {
    "quickstart": {"r3.epochs": 2}, "rel": {"profile": "quick"},
    "preflexor": {"profile": "quick"}, "reflectevo": {"profile": "quick"},
    "traces": {"profile": "quick"},
}  # fmt: skip


class Browser:
    """Pages that are watched. faults: what a page logged or asked for that it should not have."""

    def __init__(self, chromium: Any) -> None:
        self.chromium, self.faults = chromium, list[str]()

    def open(self, address: str, *, width: int = 1280, before: str = "", **how: Any) -> Any:
        view = {"width": width, "height": 900}
        page = self.chromium.new_context(viewport=view, **how).new_page()
        own = urlsplit(address)
        page.on("console", lambda said: said.type == "error" and self.faults.append(said.text))
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("request", lambda asked: self.check(own, urlsplit(asked.url)))
        if before:
            page.add_init_script(before)
        page.goto(address)
        page.wait_for_selector("#main h1")
        return page

    def check(self, own: Any, asked: Any) -> None:
        same = (asked.scheme, asked.netloc) == (own.scheme, own.netloc)
        fine = asked.scheme == "data" or (same and (own.scheme == "http" or asked.path == own.path))
        if not fine:
            self.faults.append(f"asked for {asked.geturl()}")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    if not Path(CHROMIUM).exists():
        pytest.skip("no Chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def browser(chromium: Any) -> Iterator[Browser]:
    watched = Browser(chromium)
    yield watched
    assert not watched.faults
    for context in chromium.contexts:
        context.close()


def page_of(out: Path, *folders: Path) -> str:
    write_page(folders, out)
    return out.as_uri()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("plain")
    texts = [f"text {i}" for i in range(120)]
    return page_of(folder / "page.html", write_run(folder / "mine", texts, wave=40))


@pytest.mark.parametrize("recipe", METHODS)
def test_the_page_of_each_method(recipe: str, browser: Browser, tmp_path: Path) -> None:
    sets = [f"--set={one}" for one in written({**METHODS[recipe], **SMALL})]
    call = command(
        "run", recipe, "--run-dir", tmp_path / "run", *sets, "--set=allow_untrained=true"
    )
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = browser.open(page_of(tmp_path / "page.html", tmp_path / "run"))
    assert page.locator("#part-verdict .says").is_visible()
    assert page.locator("svg.curves").count() >= 1
    assert page.locator("#part-arms tbody tr").count() >= 2
    for tab in ("Training problems", "Held-out problems"):
        page.get_by_role("link", name=tab).click()
        page.locator(".body .row a").first.click()
        page.wait_for_selector("#part-story .turn")
    page.get_by_role("link", name="Recipe").click()
    page.wait_for_selector(".keys tbody tr")


def test_search_filters_and_sorting(browser: Browser, plain: str) -> None:
    page = browser.open(plain + "#/0/learned")
    found = page.locator("#found")
    assert found.inner_text() == "120 of 120 problems"
    assert page.locator(".body .row").count() < 60  # only those that can be seen
    page.get_by_role("searchbox").fill("text 11")
    assert found.inner_text() == "11 of 120 problems"  # 11 and 110 to 119
    page.get_by_label("status").select_option("solved")
    assert found.inner_text() == "3 of 120 problems"  # 111, 114 and 117
    page.get_by_role("button", name="Clear").click()
    page.get_by_label("wave").select_option("2")
    assert found.inner_text() == "40 of 120 problems"
    page.get_by_label("cut off").check()
    assert found.inner_text() == "4 of 120 problems"
    page.get_by_role("button", name="Clear").click()
    first = page.locator(".body .row .col-question").first
    page.get_by_role("button", name="problem").click()
    assert first.inner_text() == "Question 0: text 0"
    page.get_by_role("button", name="problem").click()
    assert first.inner_text() == max(f"Question {i}: text {i}" for i in range(120))


def test_the_story_by_keyboard_alone(browser: Browser, plain: str) -> None:
    page = browser.open(plain + "#/0/learned")
    page.locator(".body").focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowUp", "Enter"):
        page.keyboard.press(key)
    page.wait_for_selector("#part-story .turn")
    assert "Question" not in page.locator(".turn").first.inner_text()
    rewrite = page.locator(".turn").nth(2)
    assert rewrite.locator("del").all_inner_texts() == ["2", "0"]
    assert rewrite.locator("ins").all_inner_texts() == ["3", "1"]
    assert "step 1: 2 3\n" in rewrite.locator("pre").first.inner_text()
    pair = page.locator(".turn:nth-of-type(3) + .example + .turn")  # before the verification
    assert "3 verify" in pair.inner_text()
    assert "turn 2 preferred to turn 0" in page.locator(".example").inner_text()
    page.get_by_role("link", name="Next").focus()
    page.keyboard.press("Enter")
    page.locator("ins").nth(1).filter(has_text="2").wait_for()
    page.go_back()
    page.locator("ins").nth(1).filter(has_text="1").wait_for()


def test_gains_lead_to_their_problems(browser: Browser, plain: str) -> None:
    page = browser.open(plain + "#/constructor/constructor")  # no such view: the first one
    assert page.locator("#part-verdict .says").inner_text() == "Trained is better"
    page.get_by_role("link", name="24 gained").click()
    assert page.locator("#found").inner_text() == "24 of 120 problems"
    page.locator(".body .row a").first.click()
    page.wait_for_selector(".arm")
    assert page.locator(".arm h2").all_inner_texts() == ["base", "trained"]
    readings = page.locator(".arm .reading").all_inner_texts()
    assert ["wrong" in one for one in readings] == [True, False]


def add_thoughts(run: Path, nodes: list[str], answers: list[str]) -> None:
    """Adds a knowledge graph of one node with all others, and answers to a probe."""
    at = {"schema": "triple/1", "epoch": 1, "wave": 0, "problem": "p", "turn": 0, "role": "attempt"}
    drawn = {**at, "subject": "<b>bees", "relation": "make"}
    append_rows(run / "graph.jsonl", ({**drawn, "object": node} for node in nodes))
    asked = {"schema": "probe/1", "epoch": 1, "probe": 0, "prompt": "Who?", "tokens": 3}
    append_rows(run / "probes.jsonl", (
        {**asked, "wave": wave, "text": text, "finish_reason": "stop"}
        for wave, text in zip((None, 0), answers, strict=True)))  # fmt: skip


def test_the_knowledge_graph_and_the_probes(browser: Browser, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ["a", "b"])
    add_thoughts(run, [f"{text} {i}" for i, text in enumerate(HOSTILE[:30])], HOSTILE[:2])
    page = browser.open(page_of(tmp_path / "page.html", run))
    page.get_by_role("link", name="Probes").click()
    page.wait_for_selector(".over .turn")
    assert page.locator(".over .prose").all_inner_texts() == HOSTILE[:2]
    assert page.locator(".over h3").first.inner_text().startswith("before training")
    page.get_by_role("link", name="Knowledge graph").click()
    drawn = page.locator(".net g")
    assert drawn.count() > 20
    places = "[...document.querySelectorAll('.net g')].map(one => one.innerHTML.split(' r=')[0])"
    ends = page.evaluate(places)
    assert len(set(ends)) == drawn.count()
    drawn.first.hover()
    assert "<b>bees — make → " in page.locator("#tip").inner_text()
    page.locator(".nodes summary").first.focus()
    page.keyboard.press("Enter")
    assert page.locator(".nodes li").first.is_visible()
    page.reload()
    page.wait_for_selector(".net g")
    assert page.evaluate(places) == ends
    assert page.evaluate("window.hit") is None


def test_curves_are_read_and_zoomed(browser: Browser, plain: str) -> None:
    page = browser.open(plain)
    curves = page.locator("svg.curves").first
    curves.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert "first answer right" in page.locator("#tip").inner_text()
    box = curves.bounding_box()
    page.mouse.move(box["x"] + 60, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + 100, steps=5)
    page.mouse.up()
    whole = page.get_by_role("button", name="Whole").first
    whole.click()
    assert not whole.is_visible()


def test_dark_and_narrow(browser: Browser, plain: str) -> None:
    page = browser.open(plain, width=390, color_scheme="dark")
    paper = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(paper)
    page.get_by_role("button", name="Switch to light").click()
    assert page.evaluate(paper) != dark
    for place in ("", "#/0/learned", "#/0/held_out", "#/0/recipe"):
        page.goto(plain + place)
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        ends = [box["x"] + box["width"] for box in boxes(page.locator(".tabs a"))]
        assert len(ends) == 4 and max(ends) <= 390


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(scheme: str, chromium: Any, tmp_path: Path) -> None:
    """By axe-core, which looks at contrast, names, roles and what a keyboard reaches."""
    axe = pytest.importorskip("axe_playwright_python", reason="pip install axe-playwright-python")
    script = Path(axe.__file__).with_name("axe.min.js").read_text(encoding="utf-8")
    run = write_run(tmp_path / "run", [f"text {i}" for i in range(12)], wave=4)
    add_thoughts(run, [f"comb {i}" for i in range(9)], ["I am.", "I was."])
    # The page lets no other script run, also not one that a test brings.
    page = chromium.new_context(bypass_csp=True, color_scheme=scheme).new_page()
    address = page_of(tmp_path / "page.html", run)
    views = {"overview": ".curves", "learned": ".row a", "learned/0-": ".turn",
             "held_out": ".row a", "held_out/0-": ".turn", "probes": ".turn",
             "graph": ".net g", "recipe": ".keys"}  # fmt: skip
    page.goto(address)
    page.evaluate(script)
    faults = []
    for view, shown in views.items():
        page.evaluate("place => { location.hash = place }", f"#/0/{view}")
        page.wait_for_selector(f"#main {shown}")
        looked = page.evaluate("axe.run()")
        assert "color-contrast" in [one["id"] for one in looked["passes"]]
        grave = [one for one in looked["violations"] if one["impact"] in ("serious", "critical")]
        faults += [(view, one["id"], [node["html"] for node in one["nodes"]][:3]) for one in grave]
    assert faults == []


def boxes(found: Any) -> list[Any]:
    return [one.bounding_box() for one in found.all()]


def test_several_runs(browser: Browser, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, ["a", "b", "c", "d"], wave=wave) for name, wave in
            (("one", 2), ("two", 1))]  # fmt: skip
    page = browser.open(page_of(tmp_path / "page.html", *runs))
    assert "two answers 75.0% of 4 questions right" in page.locator("#part-against").inner_text()
    assert page.locator("#part-curves figure").count() >= 5
    page.get_by_role("link", name="two").first.click()
    assert page.locator("h1").inner_text() == "two"


@pytest.mark.parametrize("own", [False, True], ids=["DecompressionStream", "our own inflate"])
def test_no_hostile_text_runs(own: bool, browser: Browser, tmp_path: Path) -> None:
    texts = [*HOSTILE, "x" * 1_000_000, "<b>" * 300_000]
    name = "<img src=x onerror='window.hit=1'>"
    address = page_of(tmp_path / "page.html", write_run(tmp_path / name, texts))
    without = "delete window.DecompressionStream" if own else ""
    page = browser.open(address, before=without)
    assert page.locator("h1").inner_text() == name
    tables = tree_of(page)["runs"][0]["tables"]
    for view, most in (("learned", len(texts)), ("held_out", 20)):
        for i, row in enumerate(tables[view]["rows"][:most]):
            page.evaluate("place => { location.hash = place }", f"#/0/{view}/{i}-{row[0]}")
            page.locator("#part-story .asked p.dim").filter(has_text=row[0]).wait_for()
            shown = page.locator("#part-story .turn .prose").first.text_content()
            assert visible(texts[i]) in shown or len(texts[i]) > 100_000
    assert page.evaluate("window.hit") is None
    assert page.locator("img, iframe, #main script, #main style, math, base").count() == 0


def tree_of(page: Any) -> Any:
    return page.evaluate("JSON.parse(document.getElementById('tree').textContent)")


def visible(text: str) -> str:
    """What the page shows for a text: marks in place of what could steer it."""

    def mark(found: Any) -> str:
        code = ord(found[0])
        return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"

    return UNSAFE.sub(mark, text)


def test_a_live_run_is_followed_to_its_verdict(browser: Browser, tmp_path: Path) -> None:
    """From its first wave, through a SIGKILL and a resume, on one page that nobody reloads."""
    run = tmp_path / "run"
    keys = {"task.limit": 60, "r3.wave": 10, "r3.epochs": 6, "eval.limit": 40}
    sets = [f"--set={one}" for one in written(keys)]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    working = subprocess.Popen(command("run", "quickstart", "--run-dir", run, *sets), **quiet)
    # A wave after the first is committed, so there is a curve to draw.
    wait_for(lambda: any(int(p.name[5:]) > 1 for p in run.glob("checkpoints/wave-*[0-9]")))
    working.send_signal(signal.SIGSTOP)  # or it ends before a slow browser has looked
    serving = subprocess.Popen(command("view", run), stdout=subprocess.PIPE, text=True)
    try:
        assert serving.stdout
        page = browser.open(serving.stdout.readline().strip())
        assert page.locator(".badge").inner_text() == "working"
        page.wait_for_selector("#part-latest .turn", timeout=120_000)
        curves, latest = boxes(page.locator("#part-charts, #part-latest"))
        assert curves["y"] < latest["y"]
        file = page_of(tmp_path / "page.html", run)
        assert browser.open(file).locator(".badge").inner_text().startswith("as of 2")
        live = page.locator("#part-live")
        assert "learning" in live.locator(".says").inner_text().lower()
        before = live.inner_text()
        working.send_signal(signal.SIGCONT)
        wait_for(lambda: live.inner_text() != before)
        working.send_signal(signal.SIGKILL)
        working.wait()
        page.wait_for_selector(".badge.stopped", timeout=30_000)
        assert f"mlxreflect resume {run}" in page.locator("#part-live").inner_text()
        resumed = subprocess.run(command("resume", run), check=False, **quiet)
        assert resumed.returncode == 0
        page.wait_for_selector(".badge.finished", timeout=30_000)
        page.wait_for_selector("#part-verdict .says", timeout=30_000)
        assert "of 40 questions right" in page.locator("#part-verdict .sentence").inner_text()
    finally:
        working.kill()
        serving.send_signal(signal.SIGINT)
        assert serving.wait(20) == 0


def wait_for(done: Any) -> None:
    for _ in range(600):
        if done():
            return
        time.sleep(0.1)
    raise AssertionError("it did not happen in a minute")
