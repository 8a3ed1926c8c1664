"""index.html in a real browser: every chart is drawn, nothing complains, nothing is fetched; dark, phone, print, hover and legend."""

from __future__ import annotations

import shutil

import pytest

from experiments.report.__main__ import main
from tests.suite_runs import run, suite_yaml

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
ALGOS = ("PPO", "MyAlgo", "a very long name of an algorithm")
CHARTS = ["improvement", "aggregates-IQM", "aggregates-median", "aggregates-mean", "aggregates-optimality-gap", "profiles"]
CHARTS += [f"{name}-{axis}" for name in ("efficiency", "task-CartPole", "task-Pendulum") for axis in ("frames", "time")]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    for level, algo in enumerate(ALGOS):
        for task in ("CartPole", "Pendulum"):
            for seed in range(5 - level):
                run(folder, algo, task, seed, 40.0 + 15 * level + 3 * seed, config={"train": {"name": algo, "params": {"gamma": level}}})
    suite = suite_yaml(folder, ("CartPole", "Pendulum"))
    return main([f"suite={suite}", f"runs_dir={folder}", f"algos=[{','.join(ALGOS)}]", "reps=100"])


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=BROWSER, args=list(FLAGS))
        yield started
        started.close()


@pytest.fixture
def opened(browser, page_file):
    """open(width, scheme) -> a page with every chart drawn. Whatever it complains of or fetches fails the test."""
    contexts, complaints = [], []

    def heard(request):
        if not request.url.startswith(("file://", "data:")):
            complaints.append(f"fetched {request.url}")

    def open_(width=1280, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}") if message.type != "log" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", heard)
        page.goto(page_file.as_uri())
        page.wait_for_function("document.documentElement.dataset.drawn", timeout=30_000)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []


DRAWN = """div => [...div.querySelectorAll('.scatterlayer .trace')].map(trace => {
    const box = trace.getBoundingClientRect(); return [box.width, box.height]; })"""
OVERFLOW = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.mark.parametrize("width", [1280, 390])
def test_every_chart_is_drawn_inside_its_figure(opened, width):
    page = opened(width)
    assert [chart.get_attribute("data-chart") for chart in page.query_selector_all("[data-chart]")] == CHARTS
    for chart in page.query_selector_all("[data-chart]"):
        traces = chart.evaluate(DRAWN)
        assert len(traces) >= 3, chart.get_attribute("data-chart")
        assert all(w > 0 and h > 0 for w, h in traces), chart.get_attribute("data-chart")
        outer = chart.bounding_box()
        for text in chart.query_selector_all("text"):
            box = text.bounding_box()
            if box and box["width"]:
                assert box["x"] >= outer["x"] - 1, text.text_content()
                assert box["x"] + box["width"] <= outer["x"] + outer["width"] + 1, text.text_content()


@pytest.mark.parametrize("width", [390, 760, 1280])
def test_the_page_never_scrolls_sideways(opened, width):
    assert opened(width).evaluate(OVERFLOW) <= 0


def colors(page):
    return page.evaluate(
        """() => [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.querySelector('section')).backgroundColor,
            getComputedStyle(document.querySelector('[data-chart] .xtick text')).fill,
            getComputedStyle(document.querySelector('[data-chart] .gridlayer path')).stroke]"""
    )


def brightness(color):
    return sum(int(part) for part in color.removeprefix("rgb(").removesuffix(")").split(",")[:3]) / 3


def test_dark_mode_is_dark_with_its_charts_and_paper_is_light(opened):
    light, page = colors(opened(scheme="light")), opened(scheme="dark")
    dark = colors(page)
    assert brightness(light[1]) > 200 > 100 > brightness(light[2])
    assert brightness(dark[1]) < 60 < 180 < brightness(dark[2])
    assert all(one != other for one, other in zip(light, dark, strict=True))
    page.emulate_media(media="print")
    assert brightness(colors(page)[2]) < 100


def test_on_paper_charts_fit_the_width(opened):
    page = opened()
    page.set_viewport_size({"width": 700, "height": 900})
    page.emulate_media(media="print")
    page.wait_for_timeout(300)
    for chart in page.query_selector_all("[data-chart]"):
        outer, drawing = chart.bounding_box(), chart.query_selector(".main-svg").bounding_box()
        assert 0.9 * outer["width"] < drawing["width"] <= outer["width"] + 1
        assert drawing["height"] == pytest.approx(outer["height"], abs=2)
    assert page.evaluate(OVERFLOW) <= 0


def test_a_pdf_has_several_pages(opened):
    assert opened().pdf(format="A4").count(b"/Type /Page\n") >= 3


VISIBLE = (
    "algo => [...document.querySelectorAll('[data-chart]')].flatMap(d => d.data.filter(t => t.meta === algo).map(t => t.visible ?? true))"
)


def test_a_click_on_the_legend_hides_the_algorithm_in_every_chart_and_another_brings_it_back(opened):
    page = opened()
    entry = page.locator("#chart-profiles .legendtoggle").nth(1)
    before = len(page.query_selector_all("#chart-task-Pendulum-frames .scatterlayer .trace"))
    entry.click()
    page.wait_for_function(f"algo => ({VISIBLE})(algo).every(v => v === 'legendonly')", arg="MyAlgo")
    assert page.evaluate(VISIBLE, "PPO").count("legendonly") == 0
    assert len(page.query_selector_all("#chart-task-Pendulum-frames .scatterlayer .trace")) == before - 2  # its line and its band
    page.wait_for_timeout(400)  # a second click at once would be a double click
    entry.click()
    page.wait_for_function(f"algo => ({VISIBLE})(algo).every(v => v === true)", arg="MyAlgo")


def test_a_double_click_shows_one_algorithm_alone(opened):
    page = opened()
    page.locator("#chart-profiles .legendtoggle").nth(1).dblclick()
    page.wait_for_function(f"algo => ({VISIBLE})(algo).every(v => v === 'legendonly')", arg="PPO")
    assert page.evaluate(VISIBLE, "MyAlgo").count("legendonly") == 0


def test_hovering_tells_the_figures(opened):
    page = opened()
    plot = page.locator("#chart-task-CartPole-frames .nsewdrag")
    plot.scroll_into_view_if_needed()
    page.wait_for_timeout(500)  # until the page has come to rest
    box = plot.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.5)
    page.wait_for_selector("#chart-task-CartPole-frames .hoverlayer .legendtext")
    told = page.locator("#chart-task-CartPole-frames .hoverlayer").text_content()
    assert "PPO" in told
    assert "MyAlgo" in told
    assert "[" in told, "the interval is told too"


def test_warnings_stand_in_the_tables_cells(opened):
    page = opened()
    cell = page.locator("#aggregates tr", has_text=ALGOS[2]).locator("td").nth(1)
    assert "3 seeds only" in cell.locator(".warning").first.text_content()
    assert page.locator("#aggregates tr", has_text="PPO").first.locator("td").nth(1).locator(".warning").count() == 0
