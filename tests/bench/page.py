"""The page of many problems in a real browser: seconds to open, to filter, and the memory it takes.

usage: page.py [PROBLEMS] [TIMES] — writes a run of so many problems (20,000), and prints medians.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parent.parent))
from support.view import write_run

from mlxreflect.view.page import write_page

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
# Types into the search box and waits until the rows are painted.
FILTER = """text => new Promise(done => {
  const box = document.querySelector("input[type=search]"), begun = performance.now();
  box.value = text;
  box.dispatchEvent(new Event("input"));
  requestAnimationFrame(() => setTimeout(() => done(performance.now() - begun)));
})"""


def measure(page: Page, address: str) -> tuple[float, float, float, float]:
    """Returns seconds to open, ms of the first search and of others, MB of the heap afterwards."""
    begun = time.monotonic()
    page.goto(address + "#/0/learned")
    page.locator(".body .row").first.wait_for()
    opened = time.monotonic() - begun
    first = page.evaluate(FILTER, "question 77")
    page.get_by_label("status").select_option("solved")
    again = statistics.median(page.evaluate(FILTER, f"text {i}") for i in range(9))
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")
    metrics = session.send("Performance.getMetrics")["metrics"]
    (heap,) = [one["value"] for one in metrics if one["name"] == "JSHeapUsedSize"]
    return opened, first, again, heap / 1e6


def main(problems: int, times: int) -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        run = write_run(Path(folder) / "run", [f"text {i}" for i in range(problems)])
        begun = time.monotonic()
        size = write_page([run], Path(folder) / "page.html")
        print(
            f"{problems} problems: {size / 1e6:.1f} MB, written in {time.monotonic() - begun:.1f} s"
        )
        found = []
        for _ in range(times):
            browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
            found.append(measure(browser.new_page(), (Path(folder) / "page.html").as_uri()))
            browser.close()
        opened, first, again, heap = map(statistics.median, zip(*found, strict=True))
        print(f"opens in {opened:.2f} s, searches at first in {first:.0f} ms, then in {again:.0f} "
              f"ms, {heap:.0f} MB of heap (medians of {times})")  # fmt: skip


if __name__ == "__main__":
    main(*map(int, [*sys.argv[1:], *["20000", "5"][len(sys.argv) - 1 :]]))
