"""Write a run as WebDataset tars: columns, heatmaps and files of every explained image."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from combicam.engine.images.formats import HEAD, image_format
from combicam.engine.inputs.entry import Entry
from combicam.engine.inputs.manifest import Manifest
from combicam.engine.run.open_run import open_run
from combicam.engine.shards.files import ShardData
from combicam.engine.storage.new_file import new_file
from combicam.engine.storage.paths import is_remote, location
from combicam.errors import RunError


def write_webdataset(run: str | Path, folder: str | Path, photos: bool = False) -> int:
    """Write one tar per committed shard, with its rows whose status is ok.

    A sample's key is shard and row, ``00003000042``; its files are ``.json`` (all columns but
    maps), ``.heatmap0.png`` … (uint8 grey as stored, one per target) and, with ``photos``, the
    original bytes under their own suffix. Tars are written atomically; existing ones are kept.

    Args:
        run: run directory.
        folder: for the tars; created if missing.
        photos: also copy the images, without those that no longer exist.

    Returns:
        The number of samples in the tars that this call wrote.

    Raises:
        RunError: no committed shards, or a folder that contains other files, or is not a folder.
    """
    opened, folder = open_run(run), location(folder)
    if is_remote(folder) or (folder.exists() and not folder.is_dir()):
        raise RunError(
            f"webdataset: expected a folder on this machine, got {folder}; choose another folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    if foreign := [p.name for p in folder.iterdir() if p.suffix != ".tar" and p.name[0] != "."]:
        raise RunError(
            f"webdataset: expected {folder} to be empty or to contain tars, got {foreign[0]}; use "
            "another folder"
        )
    samples = 0
    with Manifest(opened.layout.manifest) as manifest:
        for index in opened.shards:
            path = folder / f"{index:05d}.tar"
            if path.exists():
                continue
            shard, entries = opened.shard(index), manifest.shard(index)
            with new_file(path, "convert") as temporary, tarfile.open(temporary, "w") as tar:
                for row in np.flatnonzero(shard.ok):
                    key = f"{index:05d}{row:06d}"
                    for suffix, data in _files(shard, int(row), entries[row] if photos else None):
                        _add(tar, f"{key}.{suffix}", data)
                    samples += 1
    return samples


def _files(shard: ShardData, row: int, entry: Entry | None) -> Iterator[tuple[str, bytes]]:
    columns: dict[str, Any] = shard.table.slice(row, 1).to_pylist()[0]
    yield "json", json.dumps(columns).encode()
    for k, heatmap in enumerate(shard.heatmaps[row]):
        buffer = io.BytesIO()
        Image.fromarray(heatmap).save(buffer, "PNG")
        yield f"heatmap{k}.png", buffer.getvalue()
    if entry is not None:
        try:
            data = entry.read()
        except OSError:
            return  # deleted since; the sample has its path
        # An id need not be a file name, except for a tar's member; in tables images have no names.
        name = entry.uri if entry.offset is None else entry.id.rpartition("::")[2]
        in_table = entry.offset is not None and entry.size is None
        suffix = "" if in_table else Path(name).suffix.lower().lstrip(".")
        yield suffix or (image_format(data[:HEAD]) or "bin").lower(), data


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # time 0, owner 0: the same run gives the same bytes
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
