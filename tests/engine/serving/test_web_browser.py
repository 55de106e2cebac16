"""A web site in a real browser: its numbers, what people see, click and type, what it may load."""

from __future__ import annotations

import base64
import functools
import http.server
import io
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, PngImagePlugin
from torch import nn

from combicam import ClassTable, Explainer, Preprocess, export_web_site
from combicam.engine.drawing.colormaps import colormap
from combicam.engine.images.decode import decode_image
from combicam.engine.serving.web_runtime import FILES, GPU_FILES, copy_runtime, runtime_folder

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]
OPTIONS = ["--no-sandbox", "--no-first-run", "--disable-background-networking"]
# An adapter in software: slow, the same everywhere.
SWIFTSHADER = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]
SWIFTSHADER += ["--enable-features=Vulkan,WebGPU", "--use-vulkan=swiftshader"]
TRAP = "<img src=x onerror=window.hacked=1>"
NAMES = (TRAP, "Suva", "Nuuk", "Quito", "Lagos", "Perth", "Oslo")
ISOLATED = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
}
# Asks the worker itself: answers of photos (base64), and of a class of each.
ASK = """async ([photos, target, query]) => {
  const source = `import ${JSON.stringify(new URL('worker.js' + query, location).href)};`;
  const url = URL.createObjectURL(new Blob([source], { type: 'text/javascript' }));
  const worker = new Worker(url, { type: 'module' });
  const next = () => new Promise((resolve) => { worker.onmessage = ({ data }) => {
    if ('id' in data || 'failed' in data) resolve(data);
  }; });
  const plain = (key, value) => (ArrayBuffer.isView(value) ? [...value] : value);
  const answers = [];
  for (const [id, photo] of photos.entries()) {
    const bytes = Uint8Array.from(atob(photo), (c) => c.charCodeAt(0));
    const answer = next();
    worker.postMessage({ id, photo: new Blob([bytes]) });
    answers.push([await answer]);
    if (answers[id][0].error) continue;
    const other = next();
    worker.postMessage({ id, target });
    answers[id].push(await other);
  }
  worker.terminate();
  return JSON.stringify(answers, plain);
}"""


class Network(nn.Sequential):
    """Two blocks of convolutions and seven classes, which say something else of every noise."""

    def __init__(self, width: int) -> None:
        torch.manual_seed(0)
        super().__init__(
            nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.ReLU()),
            nn.Sequential(nn.Conv2d(width, 8, 3, 2, 1), nn.SiLU()),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, len(NAMES)),
        )
        with torch.no_grad():
            self[-1].weight *= 8


@pytest.fixture(scope="module")
def explainer() -> Explainer:
    return explainer_of(Network(6))


@pytest.fixture(scope="module")
def gpu_explainer() -> Explainer:
    """Of widths that ONNX Runtime 1.30's WebGPU computes rightly; it does not with six channels."""
    return explainer_of(Network(4))


def explainer_of(network: Network) -> Explainer:
    return Explainer(
        network,
        preprocess=Preprocess((48, 64), crop_pct=0.9, interpolation="bicubic"),
        layers=["0", "1"],
        targets=2,
        classes=ClassTable(names=NAMES),
        keep_layers=True,
    )


def encoded(pixels: np.ndarray[Any, Any], form: str = "png", **options: Any) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, form, **options)
    return data.getvalue()


def soft_noise(width: int, height: int, channels: int = 3) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng([width, height])
    coarse = rng.integers(0, 256, (9, 12, channels), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def site(explainer: Explainer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(explainer, tmp_path_factory.mktemp("web"), webgpu=False)


@pytest.fixture(scope="module")
def gpu_site(gpu_explainer: Explainer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(gpu_explainer, tmp_path_factory.mktemp("web-gpu"), webgpu=True)


def written(explainer: Explainer, root: Path, webgpu: bool) -> Path:
    names = GPU_FILES if webgpu else FILES
    runtime = runtime_folder(None, Path(__file__).parent, names)
    if runtime is None:
        runtime = root / "ort"
        if missing := copy_runtime(None, runtime, names).missing:
            pytest.skip(f"needs onnxruntime-web: {missing}")
    samples = root / "samples"
    samples.mkdir()
    for i in range(2):
        (samples / f"noise_{i}.png").write_bytes(encoded(soft_noise(90 + 40 * i, 80)))
    return export_web_site(
        explainer, root / "site", samples=[samples], runtime=runtime, webgpu=webgpu, title=TRAP
    ).path


@dataclass
class Server:
    """Serves a folder, and remembers what was asked for."""

    url: str
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers = []

    def start(folder: Path, headers: dict[str, str] | None = None) -> Server:
        asked: list[str] = []

        class Handler(http.server.SimpleHTTPRequestHandler):
            def end_headers(self) -> None:
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                super().end_headers()

            def log_message(self, *_: Any) -> None:
                asked.append(self.path)

        handler = functools.partial(Handler, directory=str(folder))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return Server(f"http://127.0.0.1:{server.server_port}/", asked)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def playwright() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with sync_api.sync_playwright() as found:
        yield found


@pytest.fixture(scope="module")
def browser(playwright: Any) -> Iterator[Any]:
    options = [*OPTIONS, "--disable-gpu"]
    found = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
    yield found
    found.close()


@pytest.fixture(scope="module")
def gpu_browser(playwright: Any) -> Iterator[Any]:
    options = [*OPTIONS, *SWIFTSHADER]
    found = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
    yield found
    found.close()


@pytest.fixture
def opened(browser: Any, site: Path, serve: Callable[..., Server]) -> Iterator[Callable[..., Any]]:
    """Opens the page; at the end only its server was asked, and nothing went wrong."""
    contexts: list[Any] = []
    troubles: list[str] = []
    asked: list[str] = []
    own = ["blob:", "data:"]

    def open_page(
        headers: dict[str, str] | None = None, state: str = "ready", query: str = "", **options: Any
    ) -> Any:
        server = serve(options.pop("folder", site), headers)
        own.append(server.url)
        context = options.pop("browser", browser).new_context(
            **{"viewport": {"width": 1300, "height": 900}} | options
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda m: "Canvas2D:" in m.text or troubles.append(m.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        context.on("request", lambda request: asked.append(request.url))
        page.goto(server.url + query)
        page.wait_for_selector(f"#state[data-state={state}]")
        page.troubles, page.allowed = troubles, own
        return page

    yield open_page
    for context in contexts:
        for page in context.pages:
            assert page.evaluate("window.hacked") is None
        context.close()
    assert troubles == []
    assert all(url.startswith(tuple(own)) for url in asked)


def explained(page: Any, words: str = "Explained in") -> None:
    page.wait_for_selector(f'#status:has-text("{words}")')
    page.wait_for_selector(".seen canvas:not([hidden])")


def take(page: Any, name: str, data: bytes) -> None:
    kind = "image/png" if data.startswith(b"\x89PNG") else "image/jpeg"
    page.set_input_files("#file", [{"name": name, "mimeType": kind, "buffer": data}])


def ask(page: Any, photos: list[bytes], target: int, query: str = "") -> list[Any]:
    texts = [base64.b64encode(photo).decode() for photo in photos]
    answers: list[Any] = json.loads(page.evaluate(ASK, [texts, target, query]))
    return answers


def errors(explainer: Explainer, data: bytes, answers: list[Any], target: int) -> dict[str, float]:
    """Largest differences from Python's explanation of the same file."""
    pixels = decode_image(data, explainer.preprocess).pixels[None]
    first, other = explainer(pixels), explainer(pixels, torch.full((1, 2), target))
    found: dict[str, float] = {}
    for expected, answer, count in ((first, answers[0], 2), (other, answers[1], 1)):
        probabilities = torch.softmax(expected.logits[0].double(), 0)
        for index, probability in answer["best"]:
            found[f"class {index}"] = abs(float(probabilities[index]) - probability)
        assert len(answer["explained"]) == count
        for k, shown in enumerate(answer["explained"]):
            assert shown["target"] == int(expected.targets[0, k])
            found[f"score {k}"] = abs(float(expected.scores[0, k]) - shown["score"])
            heatmap = np.reshape(shown["heatmap"], (48, 64))
            found[f"heatmap {k}"] = float(np.abs(expected.heatmaps[0, k].numpy() - heatmap).max())
            for (name, maps), layer in zip(
                expected.layer_maps.items(), shown["layers"], strict=True
            ):
                map_ = np.reshape(layer["values"], (layer["h"], layer["w"]))
                error = np.abs(maps[0, k].numpy() - map_).max() / float(
                    maps[0, k].abs().max() + 1e-9
                )
                found[f"{name} {k}"] = float(error)
    return found


def with_profile(pixels: np.ndarray[Any, Any]) -> bytes:
    """A PNG of a profile that swaps red and blue, which neither Python nor the page applies."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = profile.find(b"rXYZ"), profile.find(b"bXYZ")
    assert red > 0 and blue > 0
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return encoded(pixels, icc_profile=bytes(profile))


def with_gamma(pixels: np.ndarray[Any, Any]) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add(b"gAMA", (100_000).to_bytes(4, "big"))
    return encoded(pixels, pnginfo=info)


def test_numbers_are_those_of_python(opened: Callable[..., Any], explainer: Explainer) -> None:
    """PNGs within 1e-4; blended transparency and JPEGs, which decoders may round, within 1e-2."""
    turned = Image.Exif()
    turned[0x0112] = 6
    veil = np.dstack([soft_noise(120, 90), soft_noise(90, 120, 4)[..., 3].T])
    pngs = [
        encoded(soft_noise(48, 64)),
        encoded(soft_noise(64, 48)),
        encoded(soft_noise(301, 207)),
        encoded(soft_noise(30, 200)),
        encoded(soft_noise(80, 80)[..., 0]),
        with_profile(soft_noise(150, 100)),
        with_gamma(soft_noise(100, 150)),
    ]
    others = [
        encoded(veil),
        encoded(soft_noise(200, 133), "jpeg", quality=95, exif=turned.tobytes()),
        encoded(soft_noise(333, 250), "jpeg", quality=80),
    ]
    answers = ask(opened(), [*pngs, *others], 3)
    for i, (data, answer) in enumerate(zip([*pngs, *others], answers, strict=True)):
        found = errors(explainer, data, answer, 3)
        assert max(found.values()) <= (1e-4 if data in pngs else 1e-2), (i, found)


def test_threads_where_headers_allow_them(opened: Callable[..., Any], explainer: Explainer) -> None:
    page = opened(ISOLATED)
    assert page.evaluate("crossOriginIsolated")
    threads = min(4, int(page.evaluate("navigator.hardwareConcurrency")))
    assert page.inner_text("#state") == f"ready, {threads} thread{'s' * (threads > 1)}"
    data = encoded(soft_noise(64, 48))
    (answers,) = ask(page, [data], 2)
    assert max(errors(explainer, data, answers, 2).values()) <= 1e-4
    assert opened().inner_text("#state") == "ready, 1 thread"


def pixels(page: Any) -> np.ndarray[Any, Any]:
    page.wait_for_timeout(60)
    data = page.locator(".seen canvas").evaluate(
        "(c) => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    )
    return np.reshape(data, (-1, 4)).astype(np.int16)


def expected_pixels(heatmap: torch.Tensor) -> np.ndarray[Any, Any]:
    return colormap("viridis", 256)[np.rint(heatmap.flatten().numpy() * 255).astype(int)]


def test_classes_and_heatmaps(opened: Callable[..., Any], explainer: Explainer) -> None:
    page = opened()
    data = encoded(soft_noise(160, 100))
    take(page, "noise.png", data)
    explained(page)
    best = torch.softmax(explainer(decode_image(data, explainer.preprocess).pixels[None]).logits, 1)
    order = best[0].argsort(descending=True)[:5].tolist()
    rows = page.locator("[data-target]")
    assert [int(r.get_attribute("data-target")) for r in rows.all()] == order
    assert page.locator("[data-target] .name").all_text_contents() == [NAMES[i] for i in order]
    assert [r.get_attribute("aria-pressed") for r in rows.all()] == ["true"] + 4 * ["false"]
    assert NAMES[order[0]] in page.inner_text("#status")
    page.click("[data-name=glow][data-value='0']")
    image = decode_image(data, explainer.preprocess).pixels[None]
    for index in (0, 1, 3):  # two were explained together, another was not
        rows.nth(index).focus()
        page.keyboard.press("Enter")
        explained(page, NAMES[order[index]])
        assert rows.nth(index).get_attribute("aria-pressed") == "true"
        heatmap = explainer(image, torch.full((1, 2), order[index])).heatmaps[0, 0]
        assert np.abs(pixels(page)[:, :3] - expected_pixels(heatmap)).max() <= 2
    box = [
        float(page.locator(".seen").evaluate(f"(n) => n.style.getPropertyValue('--{side}')"))
        for side in ("left", "top", "width", "height")
    ]
    # 160 x 100 covers 71 x 53 (crop_pct 0.9) as 84 x 53.
    np.testing.assert_allclose(box, [10 / 84, 2 / 53, 64 / 84, 48 / 53])
    assert page.locator(".photo img").get_attribute("alt") == "noise.png"


def test_opacity_colours_and_layers(opened: Callable[..., Any], explainer: Explainer) -> None:
    page = opened()
    page.locator(".sample").first.click()
    explained(page)
    slider = page.locator("input[name=opacity]")
    slider.focus()
    before = int(slider.input_value())
    page.keyboard.press("ArrowLeft")
    assert int(slider.input_value()) == before - 1
    opacity = "getComputedStyle(document.querySelector('.seen canvas')).opacity"
    assert float(page.evaluate(opacity)) == pytest.approx((before - 1) / 100)
    fused = pixels(page)
    page.select_option("select[name=colormap]", "jet")
    assert not np.array_equal(pixels(page), fused)
    page.select_option("select[name=colormap]", "viridis")
    page.click("[data-name=glow][data-value='0']")
    layer = page.locator("input[name=layer]")
    layer.focus()
    page.keyboard.press("Home")
    page.click("[data-name=mode][data-value=only]")
    data = encoded(soft_noise(90, 80))
    maps = explainer(decode_image(data, explainer.preprocess).pixels[None]).layer_maps
    first = nn.functional.interpolate(
        maps["0"][:, :1], (48, 64), mode="bilinear", align_corners=True
    )
    low, high = first.min(), first.max()
    assert np.abs(pixels(page)[:, :3] - expected_pixels((first - low) / (high - low))).max() <= 2
    layer.focus()
    page.keyboard.press("End")
    page.click("[data-name=mode][data-value=upto]")
    both, heatmap = pixels(page), explainer(decode_image(data, explainer.preprocess).pixels[None])
    assert np.abs(both[:, :3] - expected_pixels(heatmap.heatmaps[0, 0])).max() <= 2
    assert page.locator(".columns button.on").count() == 2
    # The look is in the address.
    page.reload()
    page.wait_for_selector("#state[data-state=ready]")
    assert page.locator("[data-name=mode][data-value=upto]").get_attribute("aria-pressed") == "true"


def test_the_keyboard_alone(opened: Callable[..., Any]) -> None:
    page = opened()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    explained(page, "noise 0")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    explained(page, "noise 1")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.dataset.target") is not None
    nameless = """[...document.querySelectorAll('button, input, select, img')]
      .filter((n) => !(n.ariaLabel || n.alt || n.textContent.trim() || n.labels?.length
        || n.querySelector('img[alt]'))).map((n) => n.outerHTML)"""
    assert page.evaluate(nameless) == []
    assert page.locator("[role=status], [role=alert]").count() == 2


def test_broken_photos(opened: Callable[..., Any]) -> None:
    page = opened()
    whole = encoded(soft_noise(100, 80), "jpeg")
    for name, data in (
        ("broken.jpg", b"\xff\xd8 no photo"),
        (f"{TRAP}.txt", b"text"),
        ("0.png", b""),
    ):
        take(page, name, data)
        page.wait_for_selector(f"#trouble:has-text({json.dumps(name)})")
        assert (
            page.inner_text("#trouble") == f"{name}: this is not a photo that the browser can read"
        )
    take(page, "whole.jpg", whole)
    explained(page, "whole.jpg")
    assert not page.is_visible("#trouble")
    take(page, "again.jpg", b"no photo")
    page.wait_for_selector("#trouble:not([hidden])")
    page.locator("[data-target]").nth(2).click()  # what was shown is still there
    explained(page, "whole.jpg")


def test_dropped_files(opened: Callable[..., Any]) -> None:
    page = opened()
    drop = """([name, data]) => {
      const dataTransfer = new DataTransfer();
      const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
      if (data) dataTransfer.items.add(new File([bytes], name));
      document.body.dispatchEvent(
        new DragEvent('drop', { bubbles: true, cancelable: true, dataTransfer }));
    }"""
    page.evaluate(drop, ["", ""])
    assert "not a file" in page.inner_text("#trouble")
    data = base64.b64encode(encoded(soft_noise(100, 80))).decode()
    page.evaluate(drop, ["dropped.png", data])
    explained(page, "dropped.png")


def test_the_last_photo_counts(opened: Callable[..., Any]) -> None:
    page = opened()
    for i in range(4):
        take(page, f"photo {i}.png", encoded(soft_noise(100 + i, 80)))
    explained(page, "photo 3.png")
    assert page.inner_text("#facts").startswith("photo\nphoto 3.png, 103 × 80 px")


def test_twenty_megapixels(opened: Callable[..., Any], explainer: Explainer) -> None:
    """The page goes on while the worker decodes and resizes."""
    page = opened()
    large = encoded(np.repeat(np.repeat(soft_noise(684, 456), 8, 0), 8, 1), "jpeg", quality=90)
    page.evaluate("window.ticks = 0; setInterval(() => { window.ticks += 1; }, 10)")
    take(page, "large.jpg", large)
    page.wait_for_selector("#stage[aria-busy=true]", state="attached")
    before = page.evaluate("window.ticks")
    explained(page, "large.jpg")
    assert page.evaluate("window.ticks") - before > 10
    assert "5472 × 3648 px" in page.inner_text("#facts")
    found = torch.softmax(
        explainer(decode_image(large, explainer.preprocess).pixels[None]).logits, 1
    )
    shares = page.locator("[data-target] .track").all()
    first = float(shares[0].evaluate("(n) => n.style.getPropertyValue('--part')"))
    assert first == pytest.approx(float(found.max()), abs=1e-2)


def test_nothing_leaves_the_machine(
    opened: Callable[..., Any], serve: Callable[..., Server], tmp_path: Path
) -> None:
    elsewhere = serve(tmp_path)
    page = opened()
    page.allowed.append(elsewhere.url)  # to be asked for, not to be reached
    send = "(url) => fetch(url, { mode: 'no-cors' }).then(() => 'sent', () => 'refused')"
    assert page.evaluate(send, elsewhere.url) == "refused"
    (worker,) = page.workers
    assert worker.evaluate(send, elsewhere.url) == "refused"
    page.evaluate("(url) => { document.createElement('img').src = url; }", f"{elsewhere.url}i.png")
    page.wait_for_timeout(200)
    assert elsewhere.asked == []
    assert all("Content Security Policy" in text for text in page.troubles) and page.troubles
    page.troubles.clear()
    # Even markup that got in would not run.
    page.evaluate("document.body.innerHTML = '<p onclick=window.hacked=1>x</p>'")
    page.click("p")
    assert "Content Security Policy" in page.troubles.pop()


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        ("ort", "ONNX Runtime is missing: copy ort.wasm.min.mjs"),
        ("model.onnx", "model.onnx cannot be loaded (404"),
    ],
)
def test_sites_that_lack_files(
    lost: str, words: str, opened: Callable[..., Any], site: Path, tmp_path: Path
) -> None:
    ignored = [] if lost != "ort" else ["ort"]
    shutil.copytree(site, tmp_path / "site", ignore=lambda *_: [*ignored, lost])
    page = opened(state="failed", folder=tmp_path / "site")
    assert words in page.inner_text("#trouble")
    take(page, "noise.png", encoded(soft_noise(100, 80)))
    page.wait_for_selector('#trouble:has-text("noise.png")')


def test_webgpu_says_the_same(
    opened: Callable[..., Any], gpu_site: Path, gpu_browser: Any, gpu_explainer: Explainer
) -> None:
    page = opened(folder=gpu_site, browser=gpu_browser, query="?webgpu=always")
    assert page.inner_text("#state") == "ready, WebGPU"
    photos = [encoded(soft_noise(64, 48)), encoded(soft_noise(301, 207))]
    for query in ("?webgpu=always", "?webgpu=never"):
        for data, answers in zip(photos, ask(page, photos, 3, query), strict=True):
            assert max(errors(gpu_explainer, data, answers, 3).values()) <= 1e-3
    page.locator(".sample").first.click()
    explained(page)
    assert page.inner_text("#why") == ""


# Changes what onnxruntime-web's sessions do, by the number of the run, from 1.
PATCH = """async () => {
  const ort = await import(new URL('ort/ort.webgpu.min.mjs', location.origin + '/').href);
  const { prototype } = ort.InferenceSession, { run } = prototype;
  let count = 0;
  prototype.run = async function (...inputs) {
    const number = ++count, found = await run.apply(this, inputs);
    CHANGE
    return found;
  };
}"""
SLOW_WASM = "if (number === 3) await new Promise((resolve) => setTimeout(resolve, 4000));"


@pytest.mark.parametrize(
    ("change", "state", "why"),
    [
        ("", "1 thread", r"A photo takes [\d.]+ s by WebGPU, [\d.]+ s by WebAssembly\."),
        (SLOW_WASM, "WebGPU", r"A photo takes [\d.]+ s by WebGPU, 4\.\d s by WebAssembly\."),
        (
            SLOW_WASM + "if (number === 4) found.heatmaps.data[7] += 0.0625;",
            "1 thread",
            r"WebGPU differs by 0\.06\d, so WebAssembly goes on\.",
        ),
        (
            SLOW_WASM + "if (number === 4) found.scores.data[0] = NaN;",
            "1 thread",
            r"WebGPU differs by Infinity, so WebAssembly goes on\.",
        ),
        ("if (number === 2) throw new Error('no memory');", "1 thread", "WebGPU failed: no memory"),
        (
            SLOW_WASM + "if (number === 5) throw new Error('device lost');",
            "1 thread",
            "WebGPU failed: device lost",
        ),
    ],
    ids=["slower", "faster", "differs", "no number", "fails", "fails later"],
)
def test_webgpu_where_it_agrees_and_is_faster(
    change: str,
    state: str,
    why: str,
    opened: Callable[..., Any],
    gpu_site: Path,
    gpu_browser: Any,
    gpu_explainer: Explainer,
) -> None:
    """Runs 1: the answer; 2 and 4: WebGPU; 3: WebAssembly; then what was chosen."""
    page = opened(folder=gpu_site, browser=gpu_browser)
    (worker,) = page.workers
    worker.evaluate(PATCH.replace("CHANGE", change))
    data = encoded(soft_noise(160, 100))
    take(page, "noise.png", data)
    explained(page)
    page.locator("[data-target]").nth(4).click()  # waits for the choice
    explained(page, page.locator("[data-target] .name").nth(4).inner_text())
    assert page.inner_text("#state") == f"ready, {state}"
    assert re.fullmatch(why, page.inner_text("#why")), page.inner_text("#why")
    page.click("[data-name=glow][data-value='0']")
    index = int(page.locator("[data-target]").nth(4).get_attribute("data-target"))
    image = decode_image(data, gpu_explainer.preprocess).pixels[None]
    heatmap = gpu_explainer(image, torch.full((1, 2), index)).heatmaps[0, 0]
    assert np.abs(pixels(page)[:, :3] - expected_pixels(heatmap)).max() <= 2


def test_browsers_without_webgpu(opened: Callable[..., Any], gpu_site: Path) -> None:
    page = opened(folder=gpu_site)
    assert page.inner_text("#state") == "ready, 1 thread"
    page.locator(".sample").first.click()
    explained(page)
    words = "WebGPU cannot be used: this browser offers no adapter"
    assert page.inner_text("#why") == words
    page = opened(folder=gpu_site, query="?webgpu=never")
    page.locator(".sample").first.click()
    explained(page)
    assert page.inner_text("#why") == ""
    page = opened(folder=gpu_site, query="?webgpu=always", state="failed")
    assert page.inner_text("#trouble") == words


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone(opened: Callable[..., Any], scheme: str, tmp_path: Path) -> None:
    page = opened(
        viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True, color_scheme=scheme
    )
    width = "[document.documentElement.scrollWidth, innerWidth]"
    assert page.evaluate(width) == [390, 390]
    page.locator(".sample").first.tap()
    explained(page)
    assert page.evaluate(width) == [390, 390]
    shots = Path(os.environ.get("COMBICAM_SCREENSHOTS", tmp_path))
    page.screenshot(path=shots / f"site-{scheme}.png", full_page=True)
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(17, 19, 21)"
    assert dark == (scheme == "dark")


def test_opened_from_disk_it_asks_for_a_server(browser: Any, site: Path) -> None:
    page = browser.new_page()
    page.goto((site / "index.html").as_uri())
    page.wait_for_timeout(300)
    assert "web server" in page.inner_text("#start") and not page.is_visible("#page")
    page.close()
