"""Which class of the model a label means: by name, by number, or by the place of its folder among all."""

import csv
import io
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from overfocus.errors import ImageError
from overfocus.files import read_text
from overfocus.text import printable

IMAGENET_CLASSES = 1000
CLASS_MAPS = ("number", "natural", "sorted")
"""Rules to choose between where the names of class folders can be understood in several ways."""
MOST_BYTES = 256 * 2**20
"""Of a text file of labels."""
_RULES = {
    "number": "a number is that of its class, from 0",
    "from one": "a number is that of its class, from 1",
    "natural": "classes in natural order of the labels, 2 before 10, whatever the letter case, as timm numbers them",
    "sorted": "classes in the order of the labels as plain text, 10 before 2, as torchvision, Keras and Hugging Face number them",
}


@dataclass(frozen=True)
class Classes:
    """Names of the model's classes, and the class of each label that was recognised."""

    names: list[str] | None
    ids: dict[str, int]
    notes: tuple[str, ...] = ()
    """What was assumed, and how to choose otherwise; what was not recognised."""


def match_labels(
    labels: Iterable[str | None],
    class_names: Sequence[str] | None,
    num_classes: int,
    *,
    class_map: str | Path | None = None,
    numbering: Sequence[str] | None = None,
) -> Classes:
    """Find the class of each label; labels that mean no class are left out, and their images have no `correct`.

    One rule holds for all labels of a data set, the first that fits:

    1. `class_map`, where it is given;
    2. `numbering`: where the data set says only numbers, these are the model's; where it has as many names as the model has
       classes, its numbers are the model's unless a name says otherwise;
    3. a label is the name of a class, case and punctuation aside ("T-shirt" for "T-shirt/top", "tench" for "tench, Tinca
       tinca"), and no other class has that name; where the model has 1000 classes and does not name them, they are ImageNet's,
       and ImageNet's identifiers ("n01440764", also at the front of a label, "n01440764_tench") count as names too;
    4. all labels are whole numbers: they are those of the classes, counted from 0; from 1 where none is 0 and one is the
       number of classes;
    5. the model does not name its classes and there are as many different labels as classes: they are numbered in natural order
       ("2" before "10"), as timm numbers the class folders of a data set.

    Where another of the rules 4 and 5, or the order of the labels as plain text (as torchvision's `ImageFolder` numbers them),
    would give a label another class, `notes` says what was assumed and how to choose.

    Args:
        labels: of the images; None for an image without one.
        class_names: of the model.
        num_classes: of the model.
        class_map: "number", "natural" or "sorted", or a file that says the class of each label: JSON ({label: class} or
            {class: label}), CSV (label, class), or one label per line in the order of the classes.
        numbering: names of the classes in the order in which the data set itself numbers them, if it does; "0", "1", … where it
            knows no names.

    Raises:
        ImageError: the class map cannot be read, or its rule does not fit the labels.
    """
    present = sorted({label for label in labels if label is not None}, key=_natural_key)
    own_names = not _unnamed(class_names)
    names = list(class_names or []) if own_names else None
    identifiers: list[str] = []
    if num_classes == IMAGENET_CLASSES and (names is None or _says_imagenet(names)):
        imagenet, identifiers = imagenet_classes()
        names = names or imagenet
    if class_map is not None and present:
        return _mapped(present, names, identifiers, num_classes, class_map)
    ordered = {name: number for number, name in enumerate(numbering or ()) if number < num_classes}
    ids = _named(present, names or [], identifiers)
    if numbering is not None and all(name == str(number) for number, name in enumerate(numbering)):
        other = next((label for label, number in ids.items() if ordered.get(label) != number), None)
        note = f"labels: its own numbers are those of classes, though the model calls class {ids.get(other or '')} {other!r}"
        return _told(names, ordered, present, () if other is None else (note,))
    whole = numbering is not None and len(numbering) == num_classes == len(ordered)
    if whole and all(ordered.get(label, number) == number for label, number in ids.items()):
        note = f"labels: no name in common, so that the data set's numbers are taken for the model's ({_shown(ordered)})"
        return _told(names if own_names else list(ordered), ordered, present, (note,) if own_names and not ids else ())
    if ids or numbering is not None:
        return _told(names, ids, present)
    return _by_rule(present, names, num_classes, own_names=own_names)


def _by_rule(present: Sequence[str], names: list[str] | None, num_classes: int, *, own_names: bool) -> Classes:
    """The classes of labels that name none: the first rule that fits, with a note where another fits as well."""
    numbers = own_names and any(_is_number(name) for name in names or ())  # and no label is among them
    possible = {} if numbers else _readings(present, num_classes, named=own_names)
    if not possible:
        return _told(names, {}, present)
    chosen, ids = next(iter(possible.items()))
    notes = []
    for label in sorted(present, key=lambda label: (label not in ids, _natural_key(label))):
        others = {rule: found[label] for rule, found in possible.items() if label in found and found[label] != ids.get(label)}
        if others:
            other = {rule: f"{_RULES[rule]}, would make it class {number}" for rule, number in others.items()}
            ours = f"class {ids[label]}" if label in ids else "no class"
            choice = " or ".join(f"--class-map {rule}" for rule in others if rule in CLASS_MAPS)
            choice = f"{choice} or --class-map FILE" if choice else "--class-map FILE"
            notes.append(
                f"labels assumed: {_RULES[chosen]}; so {printable(label, 40)!r} is {ours}; {'; '.join(other.values())}: "
                f"choose with {choice}"
            )
            break
    if chosen == "from one" and not notes:
        notes.append(f"labels assumed: {_RULES[chosen]}; choose otherwise with --class-map FILE")
    if chosen == "natural" and not all(map(_is_number, present)):
        names = sorted(ids, key=ids.__getitem__)
    return _told(names, ids, present, tuple(notes))


def _readings(present: Sequence[str], num_classes: int, *, named: bool) -> dict[str, dict[str, int]]:
    """The class of each label by each rule that fits, the likeliest first."""
    values = {label: int(label) for label in present if _is_number(label)}
    distinct = len(set(values.values())) == len(values)
    number = {label: value for label, value in values.items() if value < num_classes}
    from_one = {label: value - 1 for label, value in values.items() if 0 < value <= num_classes}
    whole = 1 < len(present) == num_classes and not named
    natural = {label: place for place, label in enumerate(sorted(present, key=_natural_key))} if whole else {}
    plain = {label: place for place, label in enumerate(sorted(present))} if whole else {}
    found: dict[str, dict[str, int]] = {}
    if len(values) == len(present) and distinct and number:
        if len(number) == len(present) or 0 in values.values():
            found["number"] = number
        if len(from_one) == len(present):
            found["from one"] = from_one
    if natural:
        found["natural"] = natural
        found["sorted"] = plain
    if not found and distinct and 0 in values.values():
        found["number"] = number
    return found


def _told(names: list[str] | None, ids: dict[str, int], present: Sequence[str], notes: tuple[str, ...] = ()) -> Classes:
    """The classes, with a note on the labels that mean none."""
    unknown = [label for label in present if label not in ids]
    if unknown:
        listed = ", ".join(printable(label, 40) for label in unknown[:3])
        notes += (f"{len(unknown)} of {len(present)} labels match no class of the model ({listed})",)
    return Classes(names, {label: ids[label] for label in present if label in ids}, notes)


def _mapped(
    present: Sequence[str], names: list[str] | None, identifiers: Sequence[str], num_classes: int, class_map: str | Path
) -> Classes:
    """The classes that a rule or a file gives."""
    rule = str(class_map)
    if rule not in CLASS_MAPS:
        return _told(names, _of_file(Path(class_map), present, names or [], identifiers, num_classes), present)
    if rule == "number":
        if strange := [label for label in present if not _is_number(label)]:
            raise ImageError(
                f"class_map 'number' expects labels that are whole numbers, got {printable(strange[0], 40)!r}; "
                "try natural or sorted (--class-map)"
            )
        return _told(names, {label: int(label) for label in present if int(label) < num_classes}, present)
    if len(present) != num_classes:
        raise ImageError(
            f"class_map {rule!r} numbers the labels by their place, so that it expects a label for each of the model's "
            f"{num_classes} classes, got {len(present)}; give a file that says the class of each (--class-map FILE)"
        )
    ordered = sorted(present) if rule == "sorted" else sorted(present, key=_natural_key)
    ids = {label: number for number, label in enumerate(ordered)}
    return _told(names or (None if all(map(_is_number, ordered)) else ordered), ids, present)


def _of_file(
    path: Path, present: Sequence[str], names: Sequence[str], identifiers: Sequence[str], num_classes: int
) -> dict[str, int]:
    """The class of each label as a file says it, by number or by name.

    Raises:
        ImageError: it cannot be read, gives a label two classes, or one that the model does not have.
    """
    pairs = _pairs(path, present)
    known = _named([str(value) for _, value in pairs], names, identifiers)
    ids: dict[str, int] = {}
    for label, value in pairs:
        text = str(value).strip()
        number = int(text) if _is_number(text) and text not in names else known.get(text)
        if number is None or number >= num_classes:
            raise ImageError(
                f"{printable(path)}: gives {printable(label, 40)!r} the class {printable(text, 40)!r}, expected a number from 0 "
                f"to {num_classes - 1} or a name of the model's; correct the line"
            )
        if ids.setdefault(label, number) != number:
            raise ImageError(
                f"{printable(path)}: gives {printable(label, 40)!r} two classes, {ids[label]} and {number}; remove one of them"
            )
    if not any(label in ids for label in present):
        raise ImageError(
            f"{printable(path)}: expected the classes of labels such as {printable(present[0], 40)!r}, got those of "
            f"{', '.join(printable(label, 40) for label in list(ids)[:3]) or 'none'}; use the folder names as labels"
        )
    return ids


def _pairs(path: Path, present: Sequence[str]) -> list[tuple[str, Any]]:
    """Labels and their classes, by number or name, in a file."""
    text = read_text(path, "a file with the class of each label", ImageError, most=MOST_BYTES)
    if path.suffix.lower() == ".json" or text.lstrip()[:1] in ("{", "["):
        try:
            content = json.loads(text, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise ImageError(f"{printable(path)}: expected JSON, reading it failed ({printable(error, 100)})") from None
        return _pairs_of_json(content, path, present)
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not lines:
        raise ImageError(f"{printable(path)}: expected one label per line, but the file is empty")
    try:
        rows = read_rows("\n".join(lines))
    except csv.Error as error:
        raise ImageError(
            f"{printable(path)}: expected one label per line, but reading failed ({printable(error, 100)})"
        ) from None
    known = set(present)
    for table in (rows, *([line.split(None, 1) for line in lines], [line.rsplit(None, 1) for line in lines])):
        for label, number in ((0, 1), (1, 0)):
            columns = not known & set(lines) and all(len(row) == 2 for row in table)
            if columns and known & {row[label] for row in table} and all(_is_number(row[number]) for row in table[1:]):
                return [(row[label], row[number]) for row in table if _is_number(row[number])]
    if path.suffix.lower() in (".csv", ".tsv") and all(len(row) == 2 for row in rows):
        header = rows[0][0] not in known and not _is_number(rows[0][1]) and any(row[0] in known for row in rows[1:])
        return [(label, value) for label, value in rows[header:]]
    first = {line: re.split(r"[\s,]", line)[0] for line in lines}
    whole = set(lines) & set(present) or not set(first.values()) & set(present)
    ordered = lines if whole else [first[line] for line in lines]
    if len(set(ordered)) != len(ordered):
        twice = Counter(ordered).most_common(1)[0][0]
        raise ImageError(f"{printable(path)}: expected each label once, got {printable(twice, 40)!r} twice; remove one")
    return [(label, number) for number, label in enumerate(ordered)]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, in which JSON itself would take the last of two values of one name."""
    table = dict(pairs)
    if len(table) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"{printable(twice, 40)} twice; remove one")
    return table


def _pairs_of_json(content: Any, path: Path, present: Sequence[str]) -> list[tuple[str, Any]]:
    """{label: class}, {class: label or labels}, or a list of labels in the order of the classes."""
    if isinstance(content, list):
        content = {str(number): label for number, label in enumerate(content)}
    if isinstance(content, dict):  # a configuration of transformers, what a trainer saved of an ImageFolder
        content = next((content[key] for key in ("class_to_idx", "label2id", "id2label") if key in content), content)
    simple = (str, int, list)
    if not isinstance(content, dict) or not all(
        isinstance(value, simple) and not isinstance(value, bool) for value in content.values()
    ):
        raise ImageError(f"{printable(path)}: expected a JSON object {{label: class}} or {{class: label}}, or a list of labels")
    keys = {str(key): value for key, value in content.items()}
    if any(label in keys for label in present) and not any(isinstance(value, list) for value in keys.values()):
        return list(keys.items())
    turned = [(str(label), key) for key, value in keys.items() for label in (value if isinstance(value, list) else [value])]
    often = Counter(label for label, _ in turned)
    return [(label, key) for label, key in turned if often[label] == 1 or label in present]


def read_rows(text: str) -> list[list[str]]:
    """The rows of a table in text, blank ones left out; its columns are separated by tabs, semicolons or commas."""
    first = text.lstrip().partition("\n")[0]
    delimiter = next((mark for mark in "\t;" if mark in first), ",")
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    return [[cell.strip() for cell in row] for row in rows if any(cell.strip() for cell in row)]


def _named(present: Sequence[str], names: Sequence[str], identifiers: Sequence[str]) -> dict[str, int]:
    """The class of each label that is a name or identifier of one, spelled alike before case and punctuation aside."""
    spelled = {name: number for number, name in enumerate(names)} if len(set(names)) == len(names) else {}
    known = _unique_names(names) | {identifier: number for number, identifier in enumerate(identifiers)}
    ids = {label: spelled[label] for label in present if label in spelled}
    taken = set(ids.values())
    for label in present:
        found = known.get(_plain(label))
        if found is None and identifiers and (wordnet_id := re.match(r"n\d{8}(?=[\W_])", label)):
            found = known.get(wordnet_id[0])
        if found is not None and found not in taken:
            ids.setdefault(label, found)
    return ids


def class_named(name: str, class_names: Sequence[str]) -> int | None:
    """Number of the class with this name or synonym, case and punctuation aside; None if there is none, or several.

    >>> class_named("Tabby", ["tench, Tinca tinca", "tabby, tabby cat"])
    1
    """
    return _unique_names(class_names).get(_plain(name))


def _unique_names(names: Sequence[str]) -> dict[str, int]:
    """Number of each class by its name, and by the parts of it between commas or slashes; ambiguous ones are left out."""
    parts = [(_plain(part), number) for number, name in enumerate(names) for part in re.split(r"[,/]", name)]
    whole = [(_plain(name), number) for number, name in enumerate(names)]
    known: dict[str, int] = {}
    for spellings in (parts, whole):  # a whole name comes before another's part
        often = Counter(name for name, _ in spellings)
        known.update({name: number for name, number in spellings if name and often[name] == 1})
    return known


def _unnamed(names: Sequence[str] | None) -> bool:
    """Whether a model does not name its classes: transformers calls them LABEL_0, LABEL_1, … then."""
    return not names or all(name == f"LABEL_{number}" for number, name in enumerate(names))


def _is_number(label: str) -> bool:
    return label.isascii() and label.isdecimal() and len(label) < 10


def _shown(ids: Mapping[str, int]) -> str:
    label, number = next(iter(ids.items()))
    return f"{printable(label, 40)!r} is class {number}"


def _says_imagenet(names: Sequence[str]) -> bool:
    """Whether names are those of ImageNet's classes in its order, but for the spelling of some."""
    pairs = zip(names, imagenet_classes()[0], strict=True)
    alike = sum(_plain(re.split("[,/]", ours)[0]) == _plain(re.split("[,/]", theirs)[0]) for ours, theirs in pairs)
    return len(names) == IMAGENET_CLASSES and alike > 0.9 * IMAGENET_CLASSES


def _plain(name: str) -> str:
    """A name without case and punctuation; empty where it has no letters, since signs and points change a number."""
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", name).replace("_", " ").casefold())
    return " ".join(words) if any(character.isalpha() for word in words for character in word) else ""


def _natural_key(label: str) -> list[tuple[int, int, str]]:
    parts = re.findall(r"\d+|\D+", label)
    return [(0, int(part), "") if _is_number(part) else (1, 0, part.casefold()) for part in parts] + [(2, 0, label)]


@cache
def imagenet_classes() -> tuple[list[str], list[str]]:
    """Names and identifiers of ImageNet's 1000 classes, from timm."""
    import timm.data

    info = timm.data.imagenet_info.ImageNetInfo("imagenet-1k")
    numbers = range(IMAGENET_CLASSES)
    return [info.index_to_description(number) for number in numbers], [info.index_to_label_name(number) for number in numbers]
