"""Index WebDataset tars, whose members are read in place; those of compressed ones in a stream."""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from combicam.engine.inputs.entry import Entry, path_uri, printable
from combicam.engine.inputs.selection import (
    EXCLUDED,
    REPEATED,
    SelectionConfig,
    Tally,
    is_image_name,
    is_in_junk,
)
from combicam.engine.inputs.streams import DAMAGED, is_compressed, open_decompressed

_CHUNK = 2**20


def tar_entries(path: Path, name: str, selection: SelectionConfig, tally: Tally) -> list[Entry]:
    """Entries of a tar's images, in the tar's order.

    Hard and symbolic links are read where they lead; of members with the same name the last one
    counts, as for ``tar``; of concatenated archives all are read.

    Args:
        path: a tar, plain or compressed.
        name: of the tar in ids (``name::member``).
        selection: which members are inputs.
        tally: counts the others.

    Raises:
        ValueError: a truncated or corrupt tar.
    """
    files: dict[str, tuple[int, int]] = {}  # every member that is a file: offset, size
    images: dict[str, str] = {}  # image -> the member that has its bytes
    try:
        with path.open("rb") as file, open_decompressed(file, path.name) as plain:
            for member in _members(plain, path, tally):
                if member.issparse():
                    raise tarfile.ReadError(f"member {member.name} is sparse")
                if member.isreg():
                    files[member.name] = member.offset_data, member.size
                target = _target(member)
                if target is None or is_in_junk(member.name):
                    continue
                if not is_image_name(member.name):
                    tally.leave_out(member.name)
                elif not selection.takes(member.name, in_tar=True):
                    tally.ignored[EXCLUDED] += 1
                else:
                    if images.pop(member.name, None) is not None:
                        _say_repeated(path, member.name, tally)
                    images[member.name] = target
    except (tarfile.TarError, OSError, *DAMAGED) as error:
        kind = "compressed" if is_compressed(path.name) else "uncompressed"
        raise ValueError(
            f"list inputs: expected {path} to be a whole, {kind} tar, got: {error}"
        ) from error
    if not selection.ext:
        _say_several(path, images, tally)
    uri = path_uri(path)
    return [_entry(name, uri, member, target, files) for member, target in images.items()]


def _entry(
    name: str, uri: str, member: str, target: str, files: dict[str, tuple[int, int]]
) -> Entry:
    identity = f"{name}::{printable(member)}"
    if target not in files:  # a link to nothing, which will be missing
        return Entry(identity, f"{uri}::{printable(target)}")
    return Entry(identity, uri, *files[target])


def _target(member: tarfile.TarInfo) -> str | None:
    """The name of the member that has a member's bytes; None for folders and devices."""
    if member.isreg():
        return member.name
    if member.islnk():
        return member.linkname
    if member.issym():
        return posixpath.normpath(posixpath.join(posixpath.dirname(member.name), member.linkname))
    return None


def _members(file: IO[bytes], path: Path, tally: Tally) -> Iterator[tarfile.TarInfo]:
    """Members of an archive, and of those behind it."""
    start: int | None = 0
    while start is not None:
        file.seek(start)
        tar = tarfile.open(fileobj=file, mode="r:")
        yield from tar
        if start and tar.offset == start:
            tally.say_once(
                f"end of {path}",
                f"list inputs: {path}: left out what follows its end, from byte {start} on, which "
                "is no tar",
            )
            return
        start = _next_archive(file, tar.offset)


def _next_archive(file: IO[bytes], end: int) -> int | None:
    """Where another archive begins behind zeros; None if nothing but zeros follows."""
    file.seek(end)
    if any(file.read(tarfile.BLOCKSIZE)):  # tarfile takes a damaged header for the end
        raise tarfile.ReadError(f"damaged header at byte {end}")
    start = end + tarfile.BLOCKSIZE
    while chunk := file.read(_CHUNK):
        zeros = len(chunk) - len(chunk.lstrip(b"\0"))
        if zeros < len(chunk):
            return start + zeros // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
        start += len(chunk)
    return None


def _say_repeated(path: Path, member: str, tally: Tally) -> None:
    tally.ignored[REPEATED] += 1
    tally.say_once(
        REPEATED,
        f"list inputs: {path} has {printable(member)} more than once; the last one counts, as for "
        "tar",
    )


def _say_several(path: Path, images: dict[str, str], tally: Tally) -> None:
    """Say that a sample has several images, of which perhaps only one is a photo."""
    first: dict[str, str] = {}
    for member in images:
        folder, _, base = member.rpartition("/")
        key, _, extension = base.partition(".")
        other = first.setdefault(f"{folder}/{key}", extension)
        if other != extension and "." in other + extension:
            tally.say_once(
                "several",
                f"list inputs: {path} has several images of a sample ({printable(key)}.{other}, "
                f"{printable(key)}.{extension}), and all are inputs; choose with --ext "
                f"{min(other, extension, key=len)}",
            )
            return
