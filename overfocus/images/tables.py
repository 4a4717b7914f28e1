"""Labels in a CSV file beside images, as competitions and data set cards give them.

The first row may be a header. The column of the files is one that is called file, filename, image, image_id, id, path … or whose
values are files; the column of the labels one that is called label, class, target, category … or the only other one. Files are
named by their path relative to the CSV file, or by their name below its folder, with or without its ending.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from overfocus.errors import ImageError
from overfocus.files import read_text
from overfocus.images.labels import MOST_BYTES, read_rows
from overfocus.text import one_line, printable

_FILES = (
    "file", "filename", "filepath", "image", "imageid", "imagename", "imagepath", "imagefile", "img", "imgname", "imgpath",
    "path", "id", "name", "picture", "photo",
)  # fmt: skip
_LABELS = (
    "label", "labels", "class", "classname", "classid", "target", "category", "categoryid", "labelname", "species", "breed",
)  # fmt: skip
"""Names of columns, best first, without case and punctuation."""
_LOOKED_AT = 20


class LabelledFile(NamedTuple):
    """One row of a table."""

    path: Path
    name: str
    """As the table calls it."""
    label: str | None


def read_labels_table(path: Path, images: Callable[[], Iterable[Path]], *, strict: bool = True) -> list[LabelledFile] | None:
    """The files that a CSV file names, in its order, with their labels.

    `images` gives those that may be meant by their name alone. Without `strict`, None where no column names any of them, or
    the table cannot be read.

    Raises:
        ImageError: it names an image that is not there, or one twice; with `strict`, also if it names none.
    """
    try:
        rows = _rows(path)
        resolve = _Resolver(path.absolute().parent, images)
        columns = _columns(path, rows, resolve)
    except ImageError:
        if strict:
            raise
        return None
    header, files, labels = columns
    body = rows[header:]
    found: list[LabelledFile] = []
    missing: list[str] = []
    for row in body:
        name = row[files] if files < len(row) else ""
        place = resolve(name)
        if place is None:
            missing.append(name)
        else:
            label = row[labels] if labels < len(row) else ""
            found.append(LabelledFile(place, name, _plain_number(label) or None))
    if missing:
        raise ImageError(
            f"{printable(path)}: {len(missing)} of the {len(body)} images that it names are not there (first: "
            f"{printable(missing[0], 80)!r}); add them or remove their rows"
        )
    place, often = Counter(entry.path for entry in found).most_common(1)[0]
    if often > 1:
        raise ImageError(
            f"{printable(path)}: names {printable(place.name, 80)} {often} times; expected one row with one label for each image"
        )
    return found


def _rows(path: Path) -> list[list[str]]:
    import csv

    try:
        rows = read_rows(read_text(path, "a CSV file with the names and labels of images", ImageError, most=MOST_BYTES))
    except csv.Error as error:
        raise ImageError(f"{printable(path)}: expected a CSV file, reading it failed ({one_line(error, 100)})") from None
    if not rows:
        raise ImageError(f"{printable(path)}: expected the name and label of one image per line, but the file is empty")
    return rows


class _Resolver:
    """Finds the file that a cell of a table names."""

    def __init__(self, root: Path, images: Callable[[], Iterable[Path]]) -> None:
        self._root = root
        self._images = images
        self._known: dict[str, Path | None] | None = None

    def __call__(self, cell: str) -> Path | None:
        """None where there is no such file, or several are called so."""
        if not cell or "\0" in cell or len(cell) > 4096:
            return None
        cell = cell.replace("\\", "/")
        beside = Path(os.path.normpath(self._root / cell))
        try:
            if beside.is_file():
                return beside
        except OSError:
            return None
        if self._known is None:
            self._known = {}
            for path in self._images():
                for name in {path.name, path.stem, path.relative_to(self._root).with_suffix("").as_posix()}:
                    self._known[name] = path if self._known.get(name, path) == path else None
        return self._known.get(cell, self._known.get(Path(cell).name))


def _columns(path: Path, rows: Sequence[Sequence[str]], resolve: _Resolver) -> tuple[bool, int, int]:
    """Whether the first row is a header, and the columns of the files and of the labels."""
    width = max(len(row) for row in rows[: _LOOKED_AT + 1])
    titles = [re.sub(r"[\W_]+", "", cell.casefold()) for cell in rows[0]]
    header = not any(resolve(cell) for cell in rows[0])
    looked_at = rows[header : header + _LOOKED_AT]
    named = [
        column for column in range(width) if any(column < len(row) and resolve(row[column]) is not None for row in looked_at)
    ]
    preferred = sorted(named, key=lambda column: _rank(titles, column, _FILES) if header else column)
    if not preferred:
        what = ", ".join(printable(cell, 40) for cell in rows[0][:6])
        raise ImageError(
            f"{printable(path)}: expected a column that names image files in {printable(path.absolute().parent)}, got {what}; "
            "give the names as they are there"
        )
    files = preferred[0]
    others = [column for column in range(width) if column != files]
    known = [column for column in others if header and _rank(titles, column, _LABELS) < len(_LABELS)]
    if len(others) > 1 and not known:
        what = ", ".join(printable(cell, 40) for cell in rows[0][:6])
        raise ImageError(
            f"{printable(path)}: expected a column called label, class or target, got {what}; rename the column of the labels"
        )
    if not others:
        raise ImageError(f"{printable(path)}: expected a label beside each image, got one column; give files and labels")
    return header, files, min(known, key=lambda column: _rank(titles, column, _LABELS)) if known else others[0]


def _rank(titles: Sequence[str], column: int, known: Sequence[str]) -> int:
    return known.index(titles[column]) if column < len(titles) and titles[column] in known else len(known)


def _plain_number(label: str) -> str:
    """A label as text; whole numbers without the point that spreadsheets give them."""
    return re.sub(r"(?<=\d)\.0+$", "", label) if re.fullmatch(r"\d+\.0+", label) else label
