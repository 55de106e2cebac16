"""Map heat in [0, 1] to colours."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

# RGB, equal steps, low to high. Viridis: van der Walt and Smith, CC0. Cividis: Nuñez, Anderton
# and Renslow, 2018 (10.1371/journal.pone.0199239), CC0. Inferno without its black end, CC0.
_ANCHORS = {
    "viridis": (
        "44015446085c471063481769481d6f482475472a7a46307e453781433d844142873f48893d4e8a"
        "3a538b38598c355e8d33638d31688e2e6d8e2c718e2a768e297b8e27808e25848e23898e218e8d"
        "20928c1f978b1e9c891fa18821a58524aa8328ae802eb37c35b7793dbc7446c06f50c46a5ac864"
        "65cb5e70cf577cd25089d54895d840a2da37b0dd2fbddf26cae11fd8e219e5e419f1e51dfde725"
    ),
    "cividis": (
        "00224e002656002a5f002d68003070083370163770203a6f273e6e2e416d34456c3a486c3f4c6c"
        "444f6c49536c4e566c535a6d575d6d5c616e60646f656870696b716d6f727272747676767a7a78"
        "7e7d788381798885788d8878928c789690779b9476a09875a59c74aaa073afa471b5a86fbaac6d"
        "bfb06bc4b468c9b965cfbd62d4c15fdac65bdfca57e5cf52ead34cf0d846f6dd3ffce236fee838"
    ),
    "inferno": "300c5c550f6d88226aba3655e35933f98c0af9c932fcffa4",
    "jet": "00007f0000ff007fff00ffff7fff7fffff00ff7f00ff00007f0000",
}
COLORMAPS = tuple(_ANCHORS)
DEFAULT_COLORMAP = "viridis"


@functools.cache
def colormap(name: str = DEFAULT_COLORMAP, steps: int = 256) -> NDArray[np.float32]:
    """RGB [steps,3] in 0…255, from low to high.

    In ``viridis``, ``cividis`` and ``inferno``, lightness increases evenly, so they can be read
    without colour vision. ``jet``, common in papers, shows edges that the map does not have.

    Args:
        name: one of ``COLORMAPS``.
        steps: number of colours.

    Raises:
        ValueError: an unknown name.
    """
    if name not in _ANCHORS:
        raise ValueError(f"colormap: expected one of {COLORMAPS}, got {name!r}")
    anchors = np.frombuffer(bytes.fromhex(_ANCHORS[name]), np.uint8).reshape(-1, 3)
    at = np.linspace(0, len(anchors) - 1, steps)
    known = np.arange(len(anchors))
    colours = np.stack([np.interp(at, known, channel) for channel in anchors.T], axis=-1)
    found: NDArray[np.float32] = colours.astype(np.float32)
    found.setflags(write=False)
    return found


def colormap_hex(name: str, steps: int = 64) -> str:
    """A colormap as concatenated RRGGBB colours at equal steps, for pages.

    Args:
        name: one of ``COLORMAPS``.
        steps: number of colours.

    Raises:
        ValueError: an unknown name.
    """
    return np.rint(colormap(name, steps)).astype(np.uint8).tobytes().hex()
