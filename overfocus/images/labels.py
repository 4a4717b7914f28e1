"""Which class of the model a label means."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class Classes:
    """Names of the model's classes, and the class of each label that was recognised."""

    names: list[str] | None
    ids: dict[str, int]


def match_labels(labels: Iterable[str | None], class_names: Sequence[str] | None, num_classes: int) -> Classes:
    """Find the class of each label; labels that mean no class are left out, and their images have no `correct`.

    The first rule that fits a label decides:

    1. it is the name of a class, case and punctuation aside ("T-shirt" for "T-shirt/top", "tench" for "tench, Tinca tinca"), and
       no other class has that name; where the model has 1000 classes and does not name them, they are ImageNet's, and ImageNet's
       identifiers ("n01440764", also at the front of a label, "n01440764_tench") count as names too;
    2. it is a whole number: the class of that number, from 0;
    3. the model does not name its classes and there are as many different labels as classes: the labels in natural order
       ("2" before "10"), as timm and torchvision number the class folders of a data set.
    """
    present = sorted({label for label in labels if label is not None}, key=_natural_key)
    names = list(class_names) if class_names else None
    identifiers: list[str] = []
    if num_classes == IMAGENET_CLASSES:
        imagenet, wordnet = imagenet_classes()
        if names in (None, imagenet):
            names, identifiers = imagenet, wordnet
    known = _unique_names(names or []) | {identifier: number for number, identifier in enumerate(identifiers)}
    ids = {}
    for label in present:
        found = known.get(_plain(label))
        if found is None and identifiers and (wordnet_id := re.match(r"n\d{8}(?=[\W_])", label)):
            found = known.get(wordnet_id[0])
        if found is not None:
            ids[label] = found
        elif label.isdecimal() and int(label) < num_classes:
            ids[label] = int(label)
    if names is None and not ids and 1 < len(present) == num_classes:
        return Classes(present, {label: number for number, label in enumerate(present)})
    return Classes(names, ids)


def _unique_names(names: Sequence[str]) -> dict[str, int]:
    """Number of each class by its name, and by the parts of it between commas or slashes; ambiguous ones are left out."""
    parts = [(_plain(part), number) for number, name in enumerate(names) for part in re.split(r"[,/]", name)]
    whole = [(_plain(name), number) for number, name in enumerate(names)]
    known: dict[str, int] = {}
    for spellings in (parts, whole):  # a whole name comes before another's part
        often = Counter(name for name, _ in spellings)
        known.update({name: number for name, number in spellings if name and often[name] == 1})
    return known


def _plain(name: str) -> str:
    return " ".join(re.findall(r"\w+", name.replace("_", " ").casefold()))


def _natural_key(label: str) -> list[tuple[int, int, str]]:
    parts = re.findall(r"\d+|\D+", label)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part.casefold()) for part in parts] + [(2, 0, label)]


@cache
def imagenet_classes() -> tuple[list[str], list[str]]:
    """Names and identifiers of ImageNet's 1000 classes, from timm."""
    import timm.data

    info = timm.data.imagenet_info.ImageNetInfo("imagenet-1k")
    numbers = range(IMAGENET_CLASSES)
    return [info.index_to_description(number) for number in numbers], [info.index_to_label_name(number) for number in numbers]
