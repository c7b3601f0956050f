"""The report in a real browser, without a network."""

import shutil

import pytest
from made import make_result, save_run

from mame_lab import report

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the PATH")

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SCATTERED = "#charts path[aria-roledescription=point]"
LINES = "#charts .mark-line path[aria-roledescription='line mark']"


@pytest.fixture(scope="module")
def context():
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        context = browser.new_context(viewport={"width": 1280, "height": 1000})
        context.set_offline(True)
        yield context
        browser.close()


@pytest.fixture
def opened(context):
    """Opens a report; nothing may be fetched, nothing may be said on the console."""
    page = context.new_page()
    said, fetched = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: fetched.append(request.url))

    def open_report(path):
        page.goto(path.as_uri())
        page.wait_for_selector("#charts svg")
        return page

    yield open_report
    page.close()
    assert [url for url in fetched if not url.startswith(("file:", "data:", "blob:"))] == []
    assert said == []


def names(page):
    return page.locator(SCATTERED).evaluate_all("points => points.map(point => point.getAttribute('aria-label'))")


def test_every_run_and_reference_is_a_point_of_both_charts(opened, sweep_report):
    page = opened(sweep_report)
    shown = [*(f"run {name}" for name in ("0", "1", "2", "10")), "unmerged, in run 0, 1", "unmerged, in run 2, 10"]
    assert names(page) == 2 * shown
    assert page.locator(LINES).count() == 2 + 4  # fronts, runs
    assert page.locator("#charts line[aria-roledescription='rule mark']").count() == 2 * 6  # intervals
    assert "6 runs: 4 finished" in page.inner_text("body")


def test_pareto_optimal_runs_are_bigger(opened, sweep_report):
    page = opened(sweep_report)
    widths = page.locator(SCATTERED).evaluate_all("points => points.map(point => point.getBBox().width)")
    speed = dict(zip(names(page), widths[:6], strict=False))
    assert speed["run 0"] == speed["run 1"] == speed["run 2"] > speed["run 10"]


def test_pointing_at_a_run_shows_it_everywhere(opened, sweep_report):
    page = opened(sweep_report)
    page.locator(SCATTERED).nth(1).hover()
    page.wait_for_selector("#vg-tooltip-element.visible")
    keys, values = (page.locator(f"#vg-tooltip-element .{part}").all_inner_texts() for part in ("key", "value"))
    tip = dict(zip(keys, values, strict=True))
    assert page.inner_text("#vg-tooltip-element h2") == "run 1"
    assert {
        "model": "s",
        "mame.r": "8",
        "top-1": "77.0 % [74.3, 79.5]",
        "samples/s": "2,000",
    }.items() <= tip.items()
    opacity = page.locator(SCATTERED).evaluate_all("points => points.map(point => point.getAttribute('opacity'))")
    assert [i for i, each in enumerate(opacity) if each == "1"] == [1, 1 + 6]
    lit = page.locator(f"{LINES}[opacity='1']")
    assert lit.count() == 2 + 1  # the fronts stay


def test_sixty_runs_and_one(opened, tmp_path):
    for i in range(60):
        run = save_run(tmp_path / str(i), f"mame.r={i}", result=make_result(800 - i, 1000 + 9 * i, 4 - i / 20))
    page = opened(report.make([tmp_path], tmp_path))
    assert len(names(page)) == 2 * 61
    assert page.locator("tbody tr").count() == 60
    page = opened(report.make([run], run))
    assert names(page) == 2 * ["run 59", "unmerged, in run 59"]
