"""The report in a browser, from a file and without a network: nothing fetched, everything drawn, usable by keyboard."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kdzoo import records
from kdzoo.records import Record
from kdzoo.report import stage_view
from kdzoo.report.html import bench_page, stage_page
from kdzoo.report.table import arm_names, metric_columns

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks/results"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BINS = {"count": [10, 30], "accuracy": [0.4, 0.9], "confidence": [0.45, 0.8]}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium of this system; where it is absent the tests are skipped, but fail in continuous integration."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        said = f"no browser: none of {', '.join(BROWSERS)} is on the PATH (Debian: apt install chromium)"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(said)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def record() -> Record:
    """The committed record with the most arms, with bins of calibration as a new bench would keep them."""
    paths = sorted(RESULTS.glob("*.json"), key=lambda path: path.stat().st_size)
    found = records.read(paths[-1])
    for row in found.runs:
        row.reliability = {"student": BINS}
    return found


@pytest.fixture(scope="module")
def page_file(record: Record, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(bench_page(record), encoding="utf-8")
    return path


@contextmanager
def opened(browser: Any, path: Path, width: int = 1280, **more: Any) -> Iterator[Any]:
    """The page, with all that it asks for refused but itself; fails on any message of the console."""
    context = browser.new_context(viewport={"width": width, "height": 900}, offline=True, **more)
    asked: list[str] = []
    said: list[str] = []

    def answer(route: Any) -> None:
        asked.append(route.request.url)
        route.continue_() if route.request.url == path.as_uri() else route.abort()

    context.route("**/*", answer)
    page = context.new_page()
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: (said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.goto(path.as_uri())
    try:
        yield page
    finally:
        context.close()
    assert asked == [path.as_uri()]
    assert not said


def unfold(page: Any) -> None:
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")


def column(page: Any, number: int) -> list[str]:
    return page.locator(f"table.results tbody tr :is(th, td):nth-child({number})").evaluate_all(
        "cells => cells.map((cell) => cell.dataset.v)"
    )


# --- whole --------------------------------------------------------------------------------------------------------


def test_everything_is_drawn(browser: Any, page_file: Path, record: Record) -> None:
    """Would catch a chart without size, a chart that lost an arm, a request to the network, an error in the console."""
    arms = arm_names(record)
    done = [arm for arm in arms if any(row.arm == arm and row.status == "done" for row in record.runs)]
    trained = [arm for arm in done if any(row.arm == arm and row.curves for row in record.runs)]
    termed = [arm for arm in done if any(row.arm == arm and "loss/task" in row.losses for row in record.runs)]
    compared = [c for c in record.comparisons if c["metric"] == metric_columns(record)[0]]
    with opened(browser, page_file) as page:
        unfold(page)
        boxes = page.locator("svg.chart").evaluate_all(
            "all => all.map((one) => [one.id, one.getBoundingClientRect().width, one.getBoundingClientRect().height])"
        )
        assert len(boxes) > 20
        assert not [box for box in boxes if box[1] < 100 or box[2] < 20]
        names = page.locator("svg.chart").evaluate_all("all => all.map((one) => one.id)")
        assert len(set(names)) == len(names)
        assert page.locator("table.results tbody tr").count() == len(arms)
        first = page.locator("#differences .stack").first
        assert first.locator(".row").count() == len(compared)
        assert page.locator("#curves .stack").first.locator(".series").count() == len(trained)
        assert page.locator("#curves .legend button[data-arm]").count() == len(trained)
        assert page.locator("#terms .tiles .figure").count() >= len(termed) > 0
        assert page.locator("#calibration .reliability").count() == len(done)
        assert page.locator("#calibration .reliability .dot").count() == 2 * len(done)
        assert page.locator("#front-0 .dot").count() == len(done)
        claims = {claim["claim"] for claim in record.claims}
        assert page.locator("#verdicts .claim").count() == len(claims)
        line = page.locator("#curves .series:not(.off) .line").first
        assert line.bounding_box()["width"] > 100
        assert page.locator("#curves .series:not(.off) .dot").first.bounding_box()["height"] > 3


def test_headings_tables_and_charts_have_names(browser: Any, page_file: Path) -> None:
    """Would catch a picture, a table or a section that a screen reader announces as nothing."""
    with opened(browser, page_file) as page:
        assert page.locator("h1").count() == 1
        assert not page.evaluate("[...document.querySelectorAll('table')].filter((t) => !t.caption).length")
        assert not page.evaluate(
            "[...document.querySelectorAll('section')].filter((s) => !s.querySelector('h2')).length"
        )
        unnamed = page.evaluate(
            """[...document.querySelectorAll('svg.chart')].filter((one) => one.getAttribute('role') !== 'img'
            || one.getAttribute('aria-labelledby').split(' ')
              .some((id) => !document.getElementById(id)?.textContent)).length"""
        )
        assert not unnamed
        order = page.locator("h2").all_text_contents()
        assert (
            order.index("Verdicts on the paper's claims")
            < order.index("Results")
            < order.index("Differences")
        )
        assert page.locator("nav a").count() >= len(order)


# --- sorting, switching, copying ----------------------------------------------------------------------------------


def test_the_table_sorts(browser: Any, page_file: Path) -> None:
    """Would catch numbers sorted as text, missing values on top, and a table that only a mouse can sort."""
    with opened(browser, page_file) as page:
        before = column(page, 1)
        button = page.locator("table.results thead th:nth-child(3) button")
        head = page.locator("table.results thead th:nth-child(3)")
        button.click()
        rising = [float(v) for v in column(page, 3) if v]
        assert rising == sorted(rising)
        assert len(set(rising)) > 2
        assert head.get_attribute("aria-sort") == "ascending"
        button.focus()
        page.keyboard.press("Enter")
        assert [float(v) for v in column(page, 3) if v] == rising[::-1]
        assert head.get_attribute("aria-sort") == "descending"
        difference = page.locator("table.results thead th:nth-child(4) button")
        for key in ("Space", "Space"):
            difference.focus()
            page.keyboard.press(key)
            values = column(page, 4)
            assert values[-1] == "", "what is missing comes last in both directions"
        assert (
            page.locator("table.results thead th[aria-sort='none']").count()
            == page.locator("table.results thead th").count() - 1
        )
        page.locator("table.results thead th:first-child button").click()
        assert column(page, 1) == before, "the first column brings the first order back"
        assert "sorted by arm" in page.locator("#said").text_content()


def test_lines_are_switched(browser: Any, page_file: Path) -> None:
    """Would catch a legend that hides the wrong line, or names that stay where the hidden ones were."""
    with opened(browser, page_file) as page:
        legend = page.locator("#curves .legend")
        shown = page.locator("#curves .stack").first.locator(".series:not(.off)")
        legend.locator("[data-all=off]").click()
        assert shown.count() == 0
        button = legend.locator("button[data-arm]").nth(1)
        button.focus()
        page.keyboard.press("Enter")
        assert button.get_attribute("aria-pressed") == "true"
        assert shown.count() == 1
        assert shown.get_attribute("data-arm") == button.get_attribute("data-arm")
        at = float(shown.locator("text.end").get_attribute("y"))
        assert abs(at - float(shown.get_attribute("data-y"))) < 0.02
        legend.locator("[data-all=on]").click()
        assert shown.count() == legend.locator("button[data-arm]").count()
        names = shown.locator("text.end:visible")
        places = sorted(map(float, names.evaluate_all("all => all.map((one) => one.getAttribute('y'))")))
        assert all(b - a > 8 for a, b in pairwise(places))
        button.hover()
        # Where all of them have no room: that of the line pointed at.
        assert names.count() == (len(places) or 1)


def test_the_command_is_copied(browser: Any, page_file: Path, record: Record) -> None:
    """Would catch a button that does nothing."""
    with opened(browser, page_file) as page:
        assert page.locator(".command code").first.text_content() == record.command
        page.locator("button.copy").first.click()
        page.wait_for_function(
            "['Copied', 'Selected'].includes(document.querySelector('button.copy').textContent)"
        )


# --- colours and sizes --------------------------------------------------------------------------------------------

CONTRAST = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
  const parse = (text) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (one) => {
    for (let at = one; at; at = at.parentElement) {
      const color = parse(getComputedStyle(at).backgroundColor);
      if (color[3] === 255) return color;
    }
    return [255, 255, 255, 255];
  };
  const poor = [];
  for (const one of document.querySelectorAll('body *')) {
    const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    const unseen = ['SCRIPT', 'TITLE', 'DESC'].includes(one.tagName.toUpperCase());
    if (!own || unseen || !one.getClientRects().length) continue;
    const style = getComputedStyle(one);
    const ink = parse(one instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [ink, behind(one)].map(light).sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) poor.push([one.tagName, one.getAttribute('class'), one.textContent.slice(0, 30), ratio]);
  }
  return poor;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_by_day_and_by_night(browser: Any, page_file: Path, scheme: str) -> None:
    """Would catch grey on grey: every text has a contrast of at least 4.5 to 1 (WCAG AA)."""
    with opened(browser, page_file, color_scheme=scheme) as page:
        unfold(page)
        assert page.evaluate(CONTRAST) == []
        page.evaluate("document.documentElement.style.setProperty('--soft', '#888')")
        assert page.evaluate(CONTRAST), "the measure itself must be able to fail"


def test_day_and_night(browser: Any, page_file: Path) -> None:
    """Would catch a theme that does not follow the system, or a button that does not change it."""
    paper = "getComputedStyle(document.body).backgroundColor"
    lines = "getComputedStyle(document.querySelector('#curves .line')).stroke"
    with opened(browser, page_file, color_scheme="light") as page:
        day, day_line = page.evaluate(paper), page.evaluate(lines)
        page.locator("#theme").click()
        night = page.evaluate(paper)
        assert night != day
        assert page.evaluate(lines) != day_line
        assert page.locator("#theme").text_content() == "Light colours"
        page.locator("#theme").click()
        assert page.evaluate(paper) == day
    with opened(browser, page_file, color_scheme="dark") as page:
        assert page.evaluate(paper) == night
        page.emulate_media(media="print")
        assert page.evaluate(paper) == "rgb(255, 255, 255)"


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_no_page_scrolls_sideways(browser: Any, page_file: Path, width: int) -> None:
    """Would catch a table or a long name that makes a phone's page wider than the phone."""
    with opened(browser, page_file, width) as page:
        for _ in range(2):
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            unfold(page)
        inner = page.locator("table.results").evaluate("(t) => [t.scrollWidth, t.parentElement.clientWidth]")
        if width <= 360:
            assert inner[0] > inner[1], "wide tables scroll in their own box"
            assert page.locator("#verdicts .verdict-cell").first.bounding_box()["x"] < width


def test_it_fits_on_paper(browser: Any, page_file: Path) -> None:
    """Would catch columns that are cut off at the edge of the paper (A4 with margins is about 700 px wide)."""
    with opened(browser, page_file, 703) as page:
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        page.emulate_media(media="print")
        assert page.locator("details:not([open])").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth") <= 703
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert page.locator("details:not([open])").count() > 0


# --- other pages --------------------------------------------------------------------------------------------------


def test_hostile_names_run_nothing(browser: Any, record: Record, tmp_path: Path) -> None:
    """Would catch a card whose arm is called <script>, or whose text closes an attribute."""
    attack = (
        "<script>window.hit = 1</script><img src=x onerror='window.hit = 2'>\"' onfocus='window.hit = 3' "
    )
    text = msgspec.json.encode(record).decode()
    method = json.dumps(record.id["method"])[1:-1]
    bad = msgspec.json.decode(text.replace(f'"{method}', f'"{json.dumps(attack)[1:-1]}{method}'), type=Record)
    path = tmp_path / "hostile.html"
    path.write_text(bench_page(bad), encoding="utf-8")
    with opened(browser, path) as page:
        unfold(page)
        page.locator("table.results thead button").first.click()
        assert page.evaluate("window.hit === undefined")
        assert page.locator("img").count() == 0
        assert page.locator("script").count() == 1
        assert attack.strip() in page.locator("h1").text_content()
        assert page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_the_page_of_a_stage(browser: Any, tmp_path: Path) -> None:
    """Would catch a stage's page that is drawn for benches only."""
    manifest = {
        "key": "ab" * 16, "name": "fit", "call": "kdzoo.fit:fit_stage", "version": 1, "source_hash": "cd",
        "task": "toy", "method": "toy-kd", "seed": 0, "needs": {"teacher": "ef" * 16}, "settings": {"lr": 0.1},
        "seconds": 3.0, "facts": {"reliability": {"student": BINS}}, "files": {"student.safetensors": "0" * 64},
        "metrics": {"test/accuracy": {"value": 0.5, "n": 4}}, "cost": {"steps": 10, "spent": {}},
        "curves": {"val/accuracy": [[5, 0.2], [10, 0.5]]}, "logs": {"loss/task": [[0, 2.0], [5, 1.0]]},
    }  # fmt: skip
    path = tmp_path / "stage.html"
    path.write_text(stage_page(stage_view.stage_view(manifest, tmp_path)), encoding="utf-8")
    for width in (360, 1280):
        with opened(browser, path, width) as page:
            assert page.locator("svg.chart").count() == 3
            assert page.locator("#curves .dot").count() == 2
            assert page.locator("#terms .series .dot").count() == 2
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate(CONTRAST) == []


@pytest.mark.parametrize("name", sorted(path.name for path in RESULTS.glob("*.json")))
def test_every_committed_record_has_a_page(
    browser: Any, tmp_path: Path, name: str, kdzoo: Callable[..., Any]
) -> None:
    """Would catch a record of ours that the command cannot show."""
    out = tmp_path / "page.html"
    done = kdzoo("report", str(RESULTS / name), "--out", str(out))
    assert (done.code, done.err) == (0, "")
    with opened(browser, out, 360) as page:
        claims = {claim["claim"] for claim in records.read(RESULTS / name).claims}
        assert page.locator("#verdicts .claim").count() == len(claims)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
