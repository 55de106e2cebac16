"""Encoded photos -> a model's input: each library's decoder, and the engine's whole path.

Disk is in no figure; every decoder is held to Pillow's pixels before it is timed.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.harness import Contender, Result, check_device, measure
from combicam import Preprocess
from combicam.demo.planet import CELLS, postcard
from combicam.engine.images.decode import DecodeConfig, Encoded, decode_image, decode_or_leave
from combicam.engine.images.gpu_jpeg import GpuDecoder

Pixels = NDArray[np.uint8]
BASELINE = "decode, Pillow"
_PIXELS_PER_CALL = 4_000_000
_BATCH = 128  # photos that a GPU decodes at once
_PHOTOS = 8  # that differ
_SIDE = 4096  # of the matrices that keep it busy


@dataclass(frozen=True)
class DecodeBenchmark:
    """Decoding alone, and decoding with resizing to 224 x 224 as a run does it.

    Args:
        cases: WIDTHxHEIGHT:QUALITY, and :progressive where the file is.
        threads: how many photos are decoded at once; the figures are photos a second of all.
        rounds: how often every contender is timed, in turn; medians are reported.
        device: ``cuda`` adds decoding there, in batches, as many at once as ``threads``; alone, and
            while the GPU multiplies matrices, as it explains in a run.
        output: where the JSON goes.
    """

    cases: tuple[str, ...] = (
        "640x480:85",
        "1920x1080:85",
        "1920x1080:85:progressive",
        "4032x3024:85",
        "4032x3024:95",
    )
    threads: tuple[int, ...] = (1, 2)
    rounds: int = 5
    device: str = "cpu"
    output: Path = Path("benchmarks/results/decode-cpu.json")


def encoded(case: str, number: int = 3) -> tuple[bytes, tuple[int, int]]:
    """A postcard as JPEG of 4:2:0, and its (width, height)."""
    size, quality, *kind = case.split(":")
    width, height = (int(side) for side in size.split("x"))
    image = Image.fromarray(postcard(number % len(CELLS), number).image).resize((width, height))
    # Cameras' noise: what a decoder spends its time on.
    noise = np.random.default_rng(number).normal(0, 6, (height, width, 3))
    image = Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=int(quality), progressive=bool(kind))
    return file.getvalue(), (width, height)


def by_pillow(data: bytes) -> Pixels:
    """The reference."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def _simplejpeg() -> Callable[[bytes], Pixels]:
    decode = importlib.import_module("simplejpeg").decode_jpeg
    return lambda data: decode(data, "RGB")


def _torchvision() -> Callable[[bytes], Pixels]:
    io_ = importlib.import_module("torchvision.io")

    def decode(data: bytes) -> Pixels:
        tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return io_.decode_jpeg(tensor, mode=io_.ImageReadMode.RGB).permute(1, 2, 0).numpy()

    return decode


def _torchcodec() -> Callable[[bytes], Pixels]:
    codec = importlib.import_module("torchcodec.decoders")

    def decode(data: bytes) -> Pixels:
        tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return codec.decode_jpeg(tensor).permute(1, 2, 0).numpy()

    return decode


def _opencv() -> Callable[[bytes], Pixels]:
    cv2: Any = importlib.import_module("cv2")
    cv2.setNumThreads(0)
    return lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)


LIBRARIES: dict[str, Callable[[], Callable[[bytes], Pixels]]] = {
    BASELINE: lambda: by_pillow,
    "decode, simplejpeg": _simplejpeg,
    "decode, torchvision.io": _torchvision,
    "decode, torchcodec": _torchcodec,
    "decode, OpenCV": _opencv,
}
ENGINE = {
    "run, --decoder pillow": DecodeConfig("pillow"),
    "run": DecodeConfig(),
    "run, --fast-scale": DecodeConfig(fast_scale=True),
}


def contenders(data: bytes, size: tuple[int, int], pool: ThreadPoolExecutor) -> Iterator[Contender]:
    """Every library and every way of a run; those not installed fail as rows."""
    count = max(4, _PIXELS_PER_CALL // (size[0] * size[1]))

    def times(one: Callable[[bytes], Pixels]) -> Callable[[], list[Pixels]]:
        return lambda: list(pool.map(one, [data] * count))

    whole = by_pillow(data).astype(np.int16)
    for name, load in LIBRARIES.items():
        yield Contender(
            name,
            lambda load=load: times(load()),
            count,
            lambda found: float(np.abs(found[0] - whole).max()),
            tolerance=0,
        )
    preprocess = Preprocess((224, 224))
    covering = np.asarray(_pillow_only(data, preprocess)).astype(np.int16)
    yield Contender(
        "decode and resize, Pillow",
        lambda: times(lambda d: _pillow_only(d, preprocess)),
        count,
    )
    for name, config in ENGINE.items():
        yield Contender(
            name,
            lambda config=config: times(lambda d: decode_image(d, preprocess, config).pixels),
            count,
            lambda found: float(np.abs(found[0] - covering).max()),
            tolerance=float("inf") if config.fast_scale else 1,
        )


def gpu_contenders(
    case: str, pool: ThreadPoolExecutor, threads: int, device: torch.device
) -> Iterator[Contender]:
    """A run's decoder on a GPU; what it leaves to the CPU fails as rows.

    Neighbours of a batch, and batches at the same time, have different photos: one that another
    overwrites shows.
    """
    preprocess = Preprocess((224, 224))
    files = [encoded(case, number)[0] for number in range(_PHOTOS)]
    order = [[(place + 3 * t) % _PHOTOS for place in range(_BATCH)] for t in range(threads)]

    def prepare(busy: bool) -> Callable[[], list[list[torch.Tensor | None]]]:
        decoder = GpuDecoder(preprocess, device)
        photos = [decode_or_leave(data, preprocess, DecodeConfig("gpu")) for data in files]
        left = [photo for photo in photos if isinstance(photo, Encoded)]
        if len(left) < len(photos):
            raise ValueError("expected JPEGs that are left to the GPU, got others")
        batches = [[left[i] for i in batch] for batch in order]

        def call() -> list[list[torch.Tensor | None]]:
            if not busy:
                return list(pool.map(decoder, batches))
            with _multiplying(device):
                return list(pool.map(decoder, batches))

        return call

    expected = [torch.from_numpy(decode_image(data, preprocess).pixels).short() for data in files]

    def check(found: list[list[torch.Tensor | None]]) -> float:
        off = 0.0
        for batch, numbers in zip(found, order, strict=True):
            for pixels, i in zip(batch, numbers, strict=True):
                if pixels is None:
                    return float("inf")
                off = max(off, float((pixels.cpu().short() - expected[i]).abs().max()))
        return off

    for name, busy in (("run, --decoder gpu", False), ("the same, the GPU busy", True)):
        yield Contender(name, lambda busy=busy: prepare(busy), threads * _BATCH, check, tolerance=3)


@contextmanager
def _multiplying(device: torch.device) -> Iterator[None]:
    """While active, a thread multiplies matrices, one product after the other."""
    over = Event()
    a = torch.ones(_SIDE, _SIDE, device=device, dtype=torch.bfloat16)

    def multiply() -> None:
        while not over.is_set():
            for _ in range(8):
                a @ a
            if device.type == "cuda":
                torch.cuda.synchronize(device)

    thread = Thread(target=multiply)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _pillow_only(data: bytes, preprocess: Preprocess) -> Pixels:
    """Resize, then crop the centre, as torchvision and timm do with Pillow."""
    height, width = preprocess.input_size
    short = int(height / preprocess.crop_pct)
    with Image.open(io.BytesIO(data)) as image:
        scale = short / min(image.size)
        size = tuple(int(side * scale + 1e-6) for side in image.size)
        whole = image.convert("RGB").resize(size, Image.Resampling.BILINEAR)
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    return np.asarray(whole.crop((left, top, left + width, top + height)))


def decoding(
    config: DecodeBenchmark,
    say: Callable[[str], None],
    timed: Callable[[list[Result]], None] = lambda rows: None,
) -> list[Result]:
    """Measure every case with every number of threads.

    Args:
        config: what and how often.
        say: progress.
        timed: gets all rows after each round, so that what ends the process leaves them.
    """
    check_device("decode", config.device)
    torch.set_num_threads(1)
    rows: list[Result] = []
    for case in config.cases:
        data, size = encoded(case)
        for threads in config.threads:
            params = {"case": case, "threads": threads, "bytes": len(data)}
            say(f"{case}: {params}")
            with ThreadPoolExecutor(threads) as pool:
                compared = [*contenders(data, size, pool)]
                if config.device != "cpu":
                    device = torch.device(config.device, 0)
                    compared += gpu_contenders(case, pool, threads, device)

                before = list(rows)
                rows += measure(
                    compared,
                    params,
                    config.rounds,
                    say,
                    lambda found, before=before: timed(before + found),
                )
    return rows


def decode_table(rows: list[Result]) -> str:
    """Markdown: photos a second, one row a contender, one column a case and number of threads."""
    columns = list(dict.fromkeys((r.params["case"], r.params["threads"]) for r in rows))
    found = {(r.name, r.params["case"], r.params["threads"]): r for r in rows}
    lines = [
        "| photos/s | " + " | ".join(_column(*column) for column in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name in dict.fromkeys(r.name for r in rows):
        cells = [_cell(found[name, *column]) for column in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _column(case: str, threads: int) -> str:
    size, _, quality = case.partition(":")
    number = "1 thread" if threads == 1 else f"{threads} threads"
    return f"{size} q{quality.replace(':', ' ')}, {number}"


def _cell(row: Result) -> str:
    if row.images_per_s is None:
        return "failed" if row.error is None else row.error.partition(":")[0]
    level = "" if not row.max_abs_err else f" (±{row.max_abs_err:.0f})"
    return f"{row.images_per_s:.0f}{level}"
