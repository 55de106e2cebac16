"""The page in a real browser: what people see, click and type."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from combicam.engine.drawing.colormaps import colormap
from combicam.engine.report.report import write_report
from combicam.engine.run.open_run import open_run
from combicam.kernels.extremes import min_max

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]
OPTIONS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
TRAP = "<img src=x onerror=window.hacked=1>.jpg"

# The pixels of a card's map, and how they are waited for.
PIXELS = """(canvas) => canvas.width === 300 ? null :
  [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data]"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield found
        found.close()


@pytest.fixture(scope="module")
def path(layers_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(layers_run, tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture
def opened(browser: Any, path: Path) -> Iterator[Callable[..., Any]]:
    """Opens the page; at the end nothing was asked of a network, and nothing went wrong."""
    contexts: list[Any] = []
    troubles: list[str] = []
    asked: list[str] = []
    files = {path.as_uri()}

    def open_page(address: str = "", file: Path = path, **options: Any) -> Any:
        files.add(file.as_uri())
        context = browser.new_context(**{"viewport": {"width": 1300, "height": 900}} | options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        # These tests themselves read canvases back.
        page.on("console", lambda m: "Canvas2D:" in m.text or troubles.append(m.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri() + address)
        page.wait_for_selector("#page:not([hidden])")
        page.troubles = troubles
        return page

    yield open_page
    for context in contexts:
        for page in context.pages:
            assert page.evaluate("window.hacked") is None
        context.close()
    assert troubles == []
    assert {url.split("#")[0] for url in asked if not url.startswith("data:")} <= files


def names(page: Any) -> list[str]:
    found: list[str] = page.locator(".card .row3").all_text_contents()
    return found


def pixels(page: Any, index: int = 0) -> np.ndarray[Any, Any]:
    """[n,4] of a card's map, as soon as it is drawn."""
    canvas = page.locator(".card canvas").nth(index)
    canvas.scroll_into_view_if_needed()
    handle = canvas.element_handle()
    page.wait_for_function("(canvas) => canvas.width !== 300", arg=handle)
    page.wait_for_timeout(60)
    return np.reshape(page.evaluate(PIXELS, handle), (-1, 4)).astype(np.int16)


def test_filters_and_order(opened: Callable[..., Any], layers_run: Path) -> None:
    page = opened()
    assert page.locator(".card").count() == 13 and "13 of 13" in page.inner_text("#count")
    page.fill("input[name=q]", "P03")
    assert names(page) == ["p03.jpg"]
    page.fill("input[name=q]", "onerror")
    assert names(page) == [TRAP]
    page.click("#reset")
    page.select_option("select[name=status]", "decode_error")
    assert names(page) == ["broken.jpg"] and "decode:" in page.inner_text(".card.failed .gone")
    page.click("#reset")
    page.select_option("select[name=sort]", "score_up")
    table = open_run(layers_run).table(["id", "scores", "class_name"]).to_pylist()
    scores = {row["id"]: row["scores"][0] for row in table if row["scores"]}
    found = names(page)
    assert [scores[name] for name in found[:-1]] == sorted(scores.values())
    assert found[-1] == "broken.jpg"
    middle = 100 * sorted(scores.values())[6]
    page.fill("input[name=low]", f"{middle - 1e-4:.6f}")
    assert set(names(page)) == {name for name, s in scores.items() if 100 * s > middle - 1e-4}
    page.click("#reset")
    wanted = next(row["class_name"] for row in table if row["class_name"])
    page.select_option("select[name=klass]", wanted)
    assert set(names(page)) == {row["id"] for row in table if row["class_name"] == wanted}
    page.fill("input[name=q]", "nothing has this name")
    assert page.is_visible("#empty")
    # The choice is in the address.
    page.reload()
    page.wait_for_selector("#empty")
    assert page.input_value("input[name=q]") == "nothing has this name"


def test_what_is_drawn_are_the_maps_of_the_run(
    opened: Callable[..., Any], layers_run: Path
) -> None:
    page = opened()
    stored = pixels(page)
    page.click("[data-name=glow][data-value='0']")
    page.keyboard.press("Escape")
    card = names(page).index("p00.jpg")
    shown = [i for i, name in enumerate(names(page)) if name != "broken.jpg"].index(card)
    assert (pixels(page, shown)[:, 3] == 255).all()
    assert not np.array_equal(stored, pixels(page))
    shard, row = open_run(layers_run).find("p00.jpg")
    maps = list(shard.layer_maps(row).values())
    canvas = page.locator(".card canvas").nth(shown)
    size = tuple(canvas.evaluate("(canvas) => [canvas.height, canvas.width]"))
    assert max(size) == 128

    def expected(values: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        full = [
            interpolate(torch.from_numpy(m)[None, :1], size, mode="bilinear", align_corners=True)
            for m in values
        ]
        total = torch.stack(full).sum(0)
        unit = min_max(total)[0].flatten().numpy()
        return colormap("viridis", 256)[np.rint(unit * 255).astype(int)]

    def difference(values: list[np.ndarray[Any, Any]]) -> float:
        return float(np.abs(pixels(page, shown)[:, :3] - expected(values)).mean())

    fused = pixels(page, shown)
    page.locator("input[name=layer]").first.fill("2")  # moves to "up to"
    assert difference(maps) < 2.5
    assert np.abs(pixels(page, shown)[:, :3] - fused[:, :3]).mean() < 3
    page.locator("input[name=layer]").first.fill("1")
    assert difference(maps[:2]) < 2.5 < difference(maps[:1])
    assert "3, 2 of 3" in page.locator(".layername").first.inner_text()
    page.click("[data-name=mode][data-value=only]")
    assert difference(maps[1:2]) < 2.5
    page.select_option("select[name=k]", "1")
    second = [m[1:] for m in maps[1:2]]
    assert difference(second) < 2.5
    page.select_option("select[name=colormap]", "jet")
    assert difference(second) > 20


def test_layers_are_gated_as_the_run_did(
    opened: Callable[..., Any], path: Path, layers_run: Path
) -> None:
    """The page of the run, had it been gated: up to a layer, that layer is the gate."""
    text = path.read_text(encoding="utf-8")
    assert text.count('"fuse":"sum"') == 1
    gated = path.with_name("gated.html")
    gated.write_text(text.replace('"fuse":"sum"', '"fuse":"gated"'), encoding="utf-8")
    page = opened(file=gated)
    pixels(page)
    page.click("[data-name=glow][data-value='0']")
    page.locator("input[name=layer]").first.fill("1")
    shard, row = open_run(layers_run).find("p00.jpg")
    maps = list(shard.layer_maps(row).values())[:2]
    card = [name for name in names(page) if name != "broken.jpg"].index("p00.jpg")
    size = tuple(
        page.locator(".card canvas").nth(card).evaluate("(canvas) => [canvas.height, canvas.width]")
    )
    full = [
        interpolate(torch.from_numpy(m)[None, :1], size, mode="bilinear", align_corners=True)
        for m in maps
    ]
    total = min_max(torch.stack(full).sum(0))[0]
    for values, is_drawn in ((total * min_max(full[-1])[0], True), (total, False)):
        shown = np.rint(255 * min_max(values)[0].flatten().numpy()).astype(int)
        error = np.abs(pixels(page, card)[:, :3] - colormap("viridis", 256)[shown]).mean()
        assert (error < 2.5) == is_drawn, error


def test_opacity_and_keys(opened: Callable[..., Any]) -> None:
    page = opened()
    pixels(page)
    frame = page.locator(".card .photo").first
    faint, strong = [], []
    for value, shots in (("0", faint), ("100", strong)):
        page.locator("input[name=opacity]").first.fill(value)
        page.wait_for_timeout(50)
        shots.append(frame.screenshot())
    assert faint != strong
    page.locator(".card").nth(2).focus()
    page.keyboard.press("o")
    assert page.evaluate("getComputedStyle(document.querySelector('.card canvas')).opacity") == "0"
    page.keyboard.press("o")
    assert page.evaluate("getComputedStyle(document.querySelector('.card canvas')).opacity") == "1"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_selector("#detail[open]")
    assert page.locator("#detail dd").first.inner_text() == names(page)[3]
    page.keyboard.press("ArrowRight")
    assert page.locator("#detail dd").first.inner_text() == names(page)[4]
    page.keyboard.press("]")
    page.keyboard.press("[")
    assert page.locator("#detail .columns button.on").count() == 2
    assert page.locator("#detail [data-name=k]").count() == 2
    page.keyboard.press("t")
    assert page.locator("#detail [data-name=k]").nth(1).get_attribute("aria-pressed") == "true"
    page.keyboard.press("g")
    page.wait_for_function("() => document.querySelectorAll('#detail .columns .on').length === 3")
    page.keyboard.press("Escape")
    page.wait_for_selector("#detail:not([open])", state="attached")
    assert page.evaluate("document.activeElement.card.id") == names(page)[4]
    page.keyboard.press("/")
    page.keyboard.type("o?")
    assert page.input_value("input[name=q]") == "o?" and not page.is_visible("#help")
    page.locator("h1").click()
    page.keyboard.press("?")
    assert "search" in page.inner_text("#help")


def test_points_of_the_map_lead_to_pictures(opened: Callable[..., Any], layers_run: Path) -> None:
    page = opened()
    rows = [r for r in open_run(layers_run).table().to_pylist() if r["status"] == "ok"]
    places = {(row["lat"], row["lon"]) for row in rows}
    links = page.locator(".world a")
    assert links.count() == len(places) and page.locator(".world circle.truth").count() == 6
    label = links.first.get_attribute("aria-label")
    page.locator(".world a circle").first.hover(force=True)
    assert label in page.inner_text("#tip") and page.locator("#tip img").count() > 0
    links.first.focus()
    page.keyboard.press("Enter")
    name, count = str(label).rsplit(": ", 1)
    assert len(names(page)) == int(count.split()[0])
    assert set(page.locator(".card b").all_text_contents()) == {name}
    box = page.locator(".world").get_attribute("viewBox")
    page.click("[aria-label=closer]")
    assert page.locator(".world").get_attribute("viewBox") != box


def test_traps_are_text(opened: Callable[..., Any]) -> None:
    page = opened()
    trap = page.locator(".card", has_text="onerror").first
    trap.click()
    page.wait_for_selector("#detail[open]")
    assert page.locator("#detail dd").first.inner_text() == TRAP
    assert page.locator("img[src=x]").count() == page.locator("b[onclick]").count() == 0
    assert page.troubles == []
    # Even markup that got in would not run.
    page.evaluate("document.body.innerHTML = '<p onclick=window.hacked=1>x</p>'")
    page.click("p")
    (blocked,) = page.troubles
    assert "Content Security Policy" in blocked
    page.troubles.clear()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone(opened: Callable[..., Any], scheme: str, tmp_path: Path) -> None:
    page = opened(
        "",
        viewport={"width": 360, "height": 740},
        is_mobile=True,
        has_touch=True,
        color_scheme=scheme,
    )
    width = "[document.documentElement.scrollWidth, innerWidth]"
    assert page.evaluate(width) == [360, 360]
    pixels(page)
    shots = Path(os.environ.get("COMBICAM_SCREENSHOTS", tmp_path))
    page.screenshot(path=shots / f"phone-{scheme}.png", full_page=True)
    page.locator(".card").first.tap()
    page.wait_for_selector("#detail[open]")
    assert page.evaluate(width) == [360, 360]
    page.screenshot(path=shots / f"phone-{scheme}-open.png")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(17, 19, 21)"
    assert dark == (scheme == "dark")


def test_nothing_is_drawn_of_nothing(browser: Any, layers_run: Path, tmp_path: Path) -> None:
    """Of failures alone: neither an empty map of the world nor controls without a use."""
    path = write_report(layers_run, tmp_path / "failed.html", where="status <> 'ok'")
    page = browser.new_page()
    page.goto(path.as_uri())
    page.wait_for_selector(".card.failed")
    assert "1 of 1 image" in page.inner_text("#count") and "images" not in page.inner_text("#count")
    assert page.locator(".world").count() == page.locator(".histogram").count() == 0
    assert (
        page.locator("input[name=opacity]").count() == page.locator("input[name=low]").count() == 0
    )
    page.close()


def test_a_finger_moves_the_map_once_it_shows_a_part(opened: Callable[..., Any]) -> None:
    page = opened("", viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    world = page.locator(".world")
    drag = """(map) => [['pointerdown', 200], ['pointermove', 160], ['pointerup', 160]].forEach(
      ([kind, clientX]) => map.dispatchEvent(new PointerEvent(kind,
        { bubbles: true, pointerType: 'touch', clientX, clientY: 300 })))"""
    for zoomed in (False, True):
        if zoomed:
            page.tap("[aria-label=closer]")
        before = world.get_attribute("viewBox")
        world.evaluate(drag)
        assert (world.get_attribute("viewBox") != before) == zoomed
        action = world.evaluate("(map) => getComputedStyle(map).touchAction")
        assert action == ("none" if zoomed else "pan-y")


def test_the_map_stays_in_sight_of_its_sliders(opened: Callable[..., Any]) -> None:
    page = opened("", viewport={"width": 360, "height": 640}, is_mobile=True, has_touch=True)
    page.locator(".card").first.tap()
    page.wait_for_selector("#detail[open]")
    page.evaluate("document.getElementById('detail').scrollTop = 10_000")
    assert page.evaluate("document.getElementById('detail').scrollTop") > 100
    assert page.locator("#detail .stage").bounding_box()["y"] == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("state", ["finished", "running", "failed"])
def test_the_state_can_be_read(opened: Callable[..., Any], scheme: str, state: str) -> None:
    """Contrast of text as WCAG AA wants it."""
    page = opened("", color_scheme=scheme)
    page.evaluate(f"document.getElementById('state').dataset.state = '{state}'")
    style = "getComputedStyle(document.getElementById('state'))"
    found = page.evaluate(f"[{style}.color, {style}.backgroundColor]")
    light, dark = sorted((luminance(colour) for colour in found), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5


def luminance(colour: str) -> float:
    """Relative luminance of ``rgb(r, g, b)``, by WCAG 2."""
    parts = np.array([int(part) for part in re.findall(r"\d+", colour)[:3]]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_a_page_of_a_run_that_goes_on_follows_it(
    browser: Any, layers_run: Path, tmp_path: Path
) -> None:
    path = tmp_path / "live.html"
    write_report(layers_run, path, live_s=0.2, where="id < 'p05.jpg' and status = 'ok'")
    page = browser.new_page()
    page.goto(path.as_uri() + "#q=p0")
    page.wait_for_selector(".card")
    before = len(names(page))
    write_report(layers_run, path, where="status = 'ok'")
    page.wait_for_function(f"() => document.querySelectorAll('.card').length > {before}")
    assert names(page) == [f"p{i:02d}.jpg" for i in range(10)]
    assert "written" in page.inner_text("#age") and "#q=p0" in page.url
    page.close()


LONG = "a rather long name of a class, with commas, " + "unbreakable" * 12
# Makes all names long; then counts figures of more than one line, and notes on top of rows.
WRAPPED = """(name) => {
  for (const node of document.querySelectorAll('.row1 b, .bars .name')) node.textContent = name;
  const lines = (node) => {
    const range = document.createRange();
    range.selectNodeContents(node);
    return new Set([...range.getClientRects()].map((box) => Math.round(box.top))).size;
  };
  const figures = [...document.querySelectorAll('.row1 span, .amount, .tile .value, h2 span')];
  const box = (node) => node.getBoundingClientRect();
  const notes = [...document.querySelectorAll('.panel > h2 span')].filter((note) =>
    box(note).bottom > box(note.closest('h2').nextElementSibling).top);
  return [figures.length, figures.filter((node) => lines(node) > 1).length, notes.length,
    document.documentElement.scrollWidth - innerWidth];
}"""


@pytest.mark.parametrize("width", [320, 390, 760, 1100, 1300, 1900])
def test_long_names_leave_figures_whole(opened: Callable[..., Any], width: int) -> None:
    page = opened(viewport={"width": width, "height": 900})
    figures, wrapped, covered, overflow = page.evaluate(WRAPPED, LONG)
    assert figures > 20 and (wrapped, covered, overflow) == (0, 0, 0)
