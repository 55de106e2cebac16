"""Keep the finished rows of an evaluation, so that a stopped one can go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from combicam.engine.storage.atomic import temporary_path


class PartialRows:
    """Finished rows on disk, a line of JSON each; the first line holds the settings.

    A file of other settings is begun anew; a line that was cut off when the evaluation was killed
    is left out.

    Args:
        path: of the file; its folder is created.
        settings: what the rows depend on, JSON-ready.

    Attributes:
        images: id -> row of an image.
        mosaics: ids -> row of a mosaic.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self._path = path
        self.images: dict[str, dict[str, Any]] = {}
        self.mosaics: dict[tuple[str, ...], dict[str, Any]] = {}
        head = json.dumps(settings, sort_keys=True)
        lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
        # Behind the last line break there is nothing whole.
        kept = lines[1:-1] if lines and lines[0] == head else []
        for line in kept:
            self._keep(json.loads(line))
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = temporary_path(path)
        try:
            draft.write_text("\n".join([head, *kept, ""]), encoding="utf-8")
            draft.replace(path)
        except OSError:
            draft.unlink(missing_ok=True)
            raise

    def _keep(self, row: dict[str, Any]) -> None:
        if "images" in row:
            self.mosaics[tuple(row["images"])] = row
        else:
            self.images[row["id"]] = row

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Append rows of images or of mosaics."""
        with self._path.open("a", encoding="utf-8") as file:
            for row in rows:
                self._keep(row)
                file.write(json.dumps(row) + "\n")

    def close(self) -> None:
        """Delete the file: the evaluation is written."""
        self._path.unlink()
