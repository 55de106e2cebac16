"""Write the photographs of scikit-image as files; their licences allow any use."""

from __future__ import annotations

import csv
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from PIL import Image

from combicam.requirements import require

JPEG_QUALITY = 95


@dataclass(frozen=True)
class Photograph:
    """A photograph in the wheel of scikit-image; nothing is downloaded.

    Attributes:
        name: of its function in ``skimage.data``, whose docstring states author and licence.
        shows: what can be seen.
        author: who took it.
        license: CC0, or in the public domain.
    """

    name: str
    shows: str
    author: str
    license: str

    @property
    def file(self) -> str:
        """Name of its file."""
        return f"{self.name}.jpg"


PHOTOGRAPHS = (
    Photograph("camera", "a cameraman behind a tripod", "Lav Varshney", "CC0"),
    Photograph("chelsea", "Chelsea the cat", "Stefan van der Walt", "CC0"),
    Photograph("coffee", "a cup of the Pikolo Espresso Bar", "Rachel Michetti", "CC0"),
    Photograph("rocket", "the launch of DSCOVR on a Falcon 9", "SpaceX", "public domain"),
)


def write_photographs(folder: Path, table: Path) -> None:
    """Write the photographs as JPEG files, and their authors and licences as CSV.

    Args:
        folder: of the JPEG files.
        table: CSV file with the columns file, shows, author, license and source.

    Raises:
        MissingExtra: scikit-image is not installed.
    """
    data = require("skimage.data", extra="photos", operation="demo --photos")
    folder.mkdir(parents=True, exist_ok=True)
    for photo in PHOTOGRAPHS:
        pixels = getattr(data, photo.name)()
        Image.fromarray(pixels).save(folder / photo.file, quality=JPEG_QUALITY)
    with table.open("w", newline="", encoding="utf-8") as file:
        names = [field.name for field in fields(Photograph) if field.name != "name"]
        writer = csv.DictWriter(file, ["file", *names, "source"], lineterminator="\n")
        writer.writeheader()
        for photo in PHOTOGRAPHS:
            row = {**asdict(photo), "file": photo.file, "source": f"skimage.data.{photo.name}"}
            del row["name"]
            writer.writerow(row)
