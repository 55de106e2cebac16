"""Choose which files are inputs, and count those that are left out."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .gif .bmp .tif .tiff .ppm .pgm .pbm .pnm .jp2 .j2k .avif "
    ".heic .heif .hif .jxl .dng".split()
)
# What operating systems leave in folders.
_JUNK = ("._*", ".DS_Store", "Thumbs.db", "desktop.ini", "__MACOSX")
NO_SUFFIX, EXCLUDED, REPEATED = "no suffix", "excluded", "repeated in a tar"

log = logging.getLogger("combicam.inputs")


@dataclass(frozen=True)
class SelectionConfig:
    """Which of the images found in a folder, glob, list or tar are inputs; default: all.

    Args:
        include: globs; an image that matches none of them is left out. A glob without a slash is
            compared with the file's name, any other with its path in INPUT, and ``*`` matches
            slashes, too: ``--include 'train/*'``.
        exclude: globs; an image that matches one of them is left out.
        ext: suffixes such as ``jpg,png``. In a tar it is all that follows the first dot of the
            name, as WebDataset has it: ``png`` does not take ``0.seg.png``, but ``seg.png`` does.

    Raises:
        ValueError: an empty pattern.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    ext: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("include", "exclude", "ext"):
            given = getattr(self, name)
            values = (given,) if isinstance(given, str) else tuple(given)
            if name == "ext":
                words = [word for value in values for word in value.split(",")]
                values = tuple(word.strip().lower().removeprefix(".") for word in words)
            if not all(values):
                raise ValueError(f"RunConfig: expected {name} without an empty word, got {given!r}")
            object.__setattr__(self, name, values)

    def takes(self, name: str, *, in_tar: bool = False) -> bool:
        """Whether an image is an input.

        Args:
            name: its path in the folder, glob, list or tar.
            in_tar: whether it is a tar's member.
        """
        if self.include and not any(_matches(name, pattern) for pattern in self.include):
            return False
        if any(_matches(name, pattern) for pattern in self.exclude):
            return False
        return not self.ext or _extension(name, in_tar) in self.ext

    def to_dict(self) -> dict[str, list[str]]:
        """JSON-ready, without defaults."""
        fields = {name: list(getattr(self, name)) for name in ("include", "exclude", "ext")}
        return {name: values for name, values in fields.items() if values}


@dataclass
class Tally:
    """What a listing leaves out.

    Attributes:
        ignored: suffix, or reason -> number of files.
    """

    ignored: Counter[str] = field(default_factory=Counter)
    _said: set[str] = field(default_factory=set)

    def leave_out(self, name: str) -> None:
        """Count a file that is no image by its suffix."""
        self.ignored[PurePosixPath(name).suffix.lower() or NO_SUFFIX] += 1

    def say_once(self, topic: str, text: str) -> None:
        """Log a warning, the first of its topic in this listing."""
        if topic not in self._said:
            self._said.add(topic)
            log.warning(text)


def is_image_name(name: str) -> bool:
    """Whether a file is one by its suffix."""
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def is_junk(name: str) -> bool:
    """Whether an operating system made a file, or a folder, of this name; they are not counted."""
    return any(fnmatchcase(name, pattern) for pattern in _JUNK)


def is_in_junk(name: str) -> bool:
    """Whether a path has such a part."""
    return any(is_junk(part) for part in name.split("/"))


def ignored_words(ignored: Mapping[str, int]) -> str:
    """``3 (2 .txt, 1 no suffix)``, most frequent first."""
    parts = sorted(ignored.items(), key=lambda item: (-item[1], item[0]))
    return f"{sum(ignored.values())} ({', '.join(f'{n} {name}' for name, n in parts)})"


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name if "/" in pattern else name.rpartition("/")[2], pattern)


def _extension(name: str, in_tar: bool) -> str:
    base = name.rpartition("/")[2].lower()
    return base.partition(".")[2] if in_tar else base.rpartition(".")[2]
