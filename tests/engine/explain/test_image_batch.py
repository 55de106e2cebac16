"""What people call an explainer with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from combicam import Explainer
from combicam.engine.explain.image_batch import image_tensor

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), np.uint8)
FLOATS = torch.from_numpy(PIXELS).permute(0, 3, 1, 2).float().contiguous()
BGR = np.ascontiguousarray(PIXELS[..., ::-1])


@pytest.mark.parametrize(
    "images",
    [
        PIXELS,
        torch.from_numpy(PIXELS),
        BGR[..., ::-1],
        BGR[:, :, :, ::-1][::-1][::-1],
        list(PIXELS),
        tuple(torch.from_numpy(PIXELS)),
        [Image.fromarray(image) for image in PIXELS],
        [Image.fromarray(image).convert("RGBA") for image in PIXELS],
        torch.from_numpy(PIXELS).permute(0, 3, 1, 2),
        torch.from_numpy(PIXELS).permute(0, 3, 1, 2).contiguous(),
        [image.transpose(2, 0, 1) for image in PIXELS],
        np.broadcast_to(PIXELS, PIXELS.shape),
    ],
)
def test_bytes_in_every_shape_are_the_same_batch(images: Any) -> None:
    found = image_tensor(images)
    assert found.dtype == torch.uint8 and np.array_equal(found.numpy(), PIXELS)


@pytest.mark.parametrize(
    "images",
    [
        FLOATS,
        FLOATS.numpy(),
        FLOATS.numpy().astype(">f4"),
        list(FLOATS),
        FLOATS.contiguous(memory_format=torch.channels_last),
        FLOATS.numpy()[..., ::-1][..., ::-1],
        FLOATS.tolist(),
    ],
)
def test_floats_in_every_shape_are_the_same_batch(images: Any) -> None:
    assert torch.equal(image_tensor(images).float(), FLOATS)


def test_one_pil_image_is_a_batch_of_one() -> None:
    assert np.array_equal(image_tensor(Image.fromarray(PIXELS[0])), PIXELS[:1])


@pytest.mark.parametrize(
    ("images", "error", "words"),
    [
        (PIXELS[0], ValueError, r"a single image \(4, 6, 3\); pass images\[None\]"),
        (FLOATS[0], ValueError, r"a single image \(3, 4, 6\); pass images\[None\]"),
        (FLOATS.permute(0, 2, 3, 1), ValueError, r"float32 \(2, 4, 6, 3\); pass images.permute"),
        ([PIXELS[0], PIXELS[1][:2]], ValueError, r"several shapes \(\(2, 6, 3\), \(4, 6, 3\)\)"),
        ([], ValueError, "an empty list"),
        ("photo.jpg", TypeError, "got str of"),
        (["photo.jpg"], TypeError, "got str of"),
        (None, TypeError, "got NoneType of object"),
    ],
)
def test_what_is_refused_is_named(images: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=rf"expected images as float \[B,3,H,W\].*{words}"):
        image_tensor(images)


def test_an_explainer_takes_opencvs_flip_and_pil(demo_model: Any, postcards: Any) -> None:
    explainer = Explainer(demo_model, layers="last")
    batch = postcards(2, 0)
    expected = explainer(batch)
    flipped = np.ascontiguousarray(batch.numpy()[..., ::-1])[..., ::-1]
    for images in (flipped, [Image.fromarray(image) for image in batch.numpy()]):
        assert torch.equal(explainer(images).heatmaps, expected.heatmaps)
    with pytest.raises(ValueError, match=r"got torch.uint8 \(1, 8, 8, 3\); resize"):
        explainer(Image.new("RGB", (8, 8)))
