"""What run.json, training.json and comparison.json say, as types, and the one way to read them.

The files come from outside: their size, types, counts and nesting are checked before anything is made of them. What a field
does not hold in files of an older format has a default. Fields that are not known here are left out.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal, TypeVar

from overfocus.errors import OverfocusError, RunError, TrainingError
from overfocus.files import read_bytes
from overfocus.metrics.catalogue import BUILT_IN, Metric, top_count
from overfocus.text import json_bytes, one_line, printable

FORMAT = 2
"""Version of the descriptions that this package writes."""
OLDEST_FORMAT = 1
"""The oldest version that it reads; overfocus 0.1.0 wrote it. Runs of it can be read but not continued."""

MOST = 2**53
"""No count is larger: JSON's numbers are exact up to here."""

LONGEST = 10_000
"""Characters of a text; names of files have at most 4,096."""

Status = Literal["running", "complete"]
Kind = Literal["analysis", "evaluation", "ablation"]
_SIGNED = ("seed", "layers")
"""Fields of settings whose numbers may be negative."""


@dataclass(frozen=True, kw_only=True)
class CheckpointEntry:
    """The model of a run: where it came from, how it was recognised, what did not match."""

    name: str
    source: str
    sha256: str | None = None
    """Of the weights file; None for a model that was downloaded or made."""
    weights_sha256: str | None = None
    """Of the names, types and values of the loaded parameters and buffers: tells whether two runs measure the same model."""
    found_by: str | None = None
    weights_entry: str | None = None
    missing_keys: list[str] = field(default_factory=list)
    unexpected_keys: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """One line each: assumed preprocessing, resampled tables, dropped heads, chosen weights."""
    lenient: bool = False
    """Whether the model was loaded although tensors were missing or unexpected."""
    parameters: int | None = None
    input_size: tuple[int, int, int]
    """(channels, height, width)."""
    num_classes: int = 0
    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)
    outputs: list[float] = field(default_factory=list)
    """Some outputs for one fixed image, which tell networks with the same weights apart; empty where they are not known."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One measured attention layer."""

    layer: int
    """Number in call order among the attention over tokens of the model, from 0."""
    module: str
    kind: str
    branch: str | None = None
    grid: tuple[int, int] | None = None
    key_grid: tuple[int, int] | None = None
    image_grid: tuple[int, int] | None = None
    prefix_tokens: int = 0
    key_prefix_tokens: int = 0
    windows: int = 1
    frames: int = 1
    """Of a video; 1 for images."""
    heads: int = 1
    queries: int
    keys: int
    top_fraction: float = 0.05
    """Share of the patch tokens that counts as the most attended; that of the run's settings."""

    def __post_init__(self) -> None:
        if self.keys <= self.key_prefix_tokens:
            raise ValueError(f"expected more keys than prefix tokens, got {self.keys} and {self.key_prefix_tokens}")
        if not 0 < self.top_fraction <= 1:
            raise ValueError(f"expected top_fraction above 0 and at most 1, got {self.top_fraction}")

    @property
    def number(self) -> int:
        """Number in call order, from 0."""
        return self.layer

    @property
    def label(self) -> str:
        """Number, module and branch: "7 · blocks.7.attn"."""
        return f"{self.layer} · {printable(self.module, 80)}" + (f" ({printable(self.branch, 20)})" if self.branch else "")

    @property
    def tokens(self) -> int:
        """N, the patch tokens among the keys of one window."""
        return self.keys - self.key_prefix_tokens

    @property
    def top(self) -> int:
        """k, the most attended tokens that are counted."""
        return top_count(self.tokens, self.top_fraction)

    @property
    def uniform_share(self) -> float:
        """top_share of uniform attention, k/N."""
        return self.top / self.tokens

    def excess(self, top_share: float) -> float:
        """top_share rescaled so that uniform attention is 0 and all attention on the top tokens 1; NaN where these are equal."""
        return math.nan if self.top == self.tokens else (top_share - self.uniform_share) / (1 - self.uniform_share)


@dataclass(frozen=True, kw_only=True)
class SiteEntry:
    """One attention-like module: captured, or the reason why not."""

    module: str
    class_name: str | None = None
    kind: str | None = None
    shape: list[int] | None = None
    captured: bool = False
    reason: str | None = None
    note: str | None = None
    """What is unknown of a captured map, or counts in its metrics beside patches."""
    branch: str | None = None
    grid: tuple[int, int] | None = None
    key_grid: tuple[int, int] | None = None
    prefix_tokens: int | None = None
    windows: int | None = None
    frames: int | None = None


@dataclass(frozen=True, kw_only=True)
class ImageEntry:
    """One image that was asked for."""

    image: int
    """Its number in the tables."""
    name: str
    path: str | None = None
    """The file it was read from; None for images in memory, and in evaluations."""
    label: str | None = None
    sha256: str | None = None
    """Of the pixels of an image that was given in memory."""
    width: int | None = None
    """In pixels; None until it is read."""
    height: int | None = None


@dataclass(frozen=True, kw_only=True)
class SkippedEntry:
    """One image that could not be read."""

    name: str
    reason: str
    image: int | None = None
    item: int | None = None
    """Place in the list of what the run reads; that of the image except in trees of corruptions."""


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """The geometry at which images are corrupted."""

    height: int | str
    """In pixels, or in words where images keep their own size."""
    width: int | str
    interpolation: str | None = None
    crop_pct: float | None = None
    crop_mode: str | None = None


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The settings of a run; None where one means nothing for its kind. The entry functions say what each means."""

    images: str | list[str] | None = None
    corruptions: list[str] = field(default_factory=list)
    severities: list[int] = field(default_factory=list)
    class_map: str | None = None
    """How the classes of labels were chosen: "number", "natural", "sorted" or a file; None for the usual rule."""
    constants: Literal["cifar-c", "tiny-imagenet-c", "imagenet-c"] | None = None
    """The set of corruption constants; None where nothing was corrupted here, and in runs of overfocus 0.1.0."""
    seed: int = 0
    batch_size: int | None = None
    limit: int | None = None
    amp: bool = False
    exact: bool = True
    """Whether the model's own attention ran beside the measured weights; if not, its output came from these."""
    device: str | None = None
    workers: int | None = None
    strict: bool = False
    image_size: int | list[int] | None = None
    max_pixels: int | None = None
    layers: list[int] | None = None
    per_head: bool = False
    top_fraction: float = 0.05
    displayed: int | None = None
    maps_limit: int | None = None
    made: str | None = None
    """Of an evaluation: how the corruptions were made, "on-the-fly", "none" or the name of the data set."""
    clean: str | None = None
    tree_geometry: Literal["as-is", "model"] | None = None
    """Of an evaluation of images corrupted on the disk: whether they are taken as they are or resized and cropped once more."""
    window: int | None = None
    stride: int | None = None
    whole: bool | None = None
    flip: bool | None = None
    scales: list[float] | None = None
    fractions: list[float] | None = None
    how: Literal["remove", "corrupt"] | None = None
    """Of an ablation: whether patches were removed from the attention, None as well, or corrupted in the image."""
    draws: int | None = None


@dataclass(frozen=True, kw_only=True)
class MeasureEntry:
    """A column that is not built in: what a metric or a probe of the user measures, as a row of the catalogue says it."""

    name: str
    table: Literal["metrics", "predictions"]
    group: str = "custom"
    title: str = ""
    formula: str = ""
    lowest: str = "−∞"
    highest: str = "∞"
    unit: str = "1"
    high: str = ""
    overfocused: Literal["high", "low", "neither"] = "neither"
    uniform: str = "undefined"
    chance: str = "none"
    identical: float | None = None
    kinds: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if any(self.name == metric.name for metric in BUILT_IN):
            raise ValueError(f"expected the name of a custom measure, got {self.name}, which is built in")
        self.row()

    def row(self) -> Metric:
        """The row of the catalogue."""
        return Metric(**{name: getattr(self, name) for name in MEASURE_FIELDS})


MEASURE_FIELDS = tuple(entry.name for entry in dataclasses.fields(MeasureEntry) if entry.name != "table")
"""What a row of the catalogue and a `MeasureEntry` have in common."""


@dataclass(frozen=True, kw_only=True)
class RunDescription:
    """The content of run.json."""

    ERROR: ClassVar[type[OverfocusError]] = RunError
    WHAT: ClassVar[str] = "a run"

    format: int
    overfocus: str
    kind: Kind = "analysis"
    created: str = ""
    status: Status
    done: int
    """Images, of a tree of corruptions files, that are measured or skipped: the first so many of the list."""
    parts: list[int] | None = None
    """Number of the first item of each committed part of the tables, rising; None in runs of overfocus 0.1.0."""
    checkpoint: CheckpointEntry
    settings: RunSettings
    images: list[ImageEntry]
    skipped: list[SkippedEntry] = field(default_factory=list)
    class_names: list[str] | None = None
    label_classes: dict[str, int] = field(default_factory=dict)
    """The class of each label that means one."""
    task: Literal["segmentation"] | None = None
    """None for classifiers and models that give features."""
    class_colours: list[list[int]] | None = None
    pixels: Pixels | None = None
    layers: list[Layer] = field(default_factory=list)
    attention_layers: int | None = None
    """Layers over tokens that the model has; those measured may be fewer."""
    coverage: list[SiteEntry] = field(default_factory=list)
    displayed: list[int] = field(default_factory=list)
    noise: dict[str, list[float | None]] = field(default_factory=dict)
    """By metric of stability, for each of `layers`: the distance between the same clean image at two places of a batch."""
    measures: list[MeasureEntry] = field(default_factory=list)
    functions: dict[str, str] = field(default_factory=dict)
    """SHA-256 of what each function of the user, a corruption, metric or preprocessing, makes of a fixed input."""
    notes: list[str] = field(default_factory=list)
    imagenet_labels: bool = False
    inference: str | None = None
    """How images go through a segmentation model that is evaluated, in words."""
    tokens: list[int] = field(default_factory=list)
    """Of an ablation: patch tokens among the keys of each layer; of one that corrupts, patches of the image alone."""
    versions: dict[str, str] = field(default_factory=dict)
    timing: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        fraction = self.settings.top_fraction
        layers = [dataclasses.replace(layer, top_fraction=fraction) for layer in self.layers]
        object.__setattr__(self, "layers", layers)
        numbers = [image.image for image in self.images]
        if numbers != list(range(len(numbers))):
            raise ValueError("expected images numbered 0, 1, 2, …")
        if wrong := [number for number in self.displayed if number >= len(numbers)]:
            raise ValueError(f"expected displayed images among the {len(numbers)} images, got {wrong[0]}")
        for name, values in self.noise.items():
            if len(values) != len(layers):
                raise ValueError(f"expected noise of {name} for {len(layers)} layers, got {len(values)}")

    @property
    def complete(self) -> bool:
        """Whether everything is measured."""
        return self.status == "complete"

    @property
    def segmented(self) -> bool:
        """Whether the model predicts a class for every pixel."""
        return self.task == "segmentation"

    def relative_depth(self, layer: Layer) -> float:
        """The position of a layer among all attention layers of its model: layer i of n at (i + ½)/n, in (0, 1)."""
        count = self.attention_layers or max(other.layer for other in self.layers) + 1
        return (layer.layer + 0.5) / count


@dataclass(frozen=True, kw_only=True)
class ArchitectureEntry:
    """The network of a training, as given to `save_checkpoint`."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    tap: dict[str, Any] | None = None
    """Arguments of `overfocus.models.add_tap`."""


@dataclass(frozen=True, kw_only=True)
class TrainingEntry:
    """Everything that the result of a training depends on."""

    recipe: dict[str, Any]
    """Of `overfocus.training.settings.Recipe`, as JSON holds it."""
    architecture: ArchitectureEntry
    task: str = "classification"
    objective: str = "supervised"
    init: str | None = None
    """Digest or name of the weights that it started from."""
    seed: int
    images: int
    """Images of the data set that are used."""
    class_names: list[str] = field(default_factory=list)
    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)
    input_size: tuple[int, int, int]
    """(channels, height, width)."""
    processes: int = 1


@dataclass(frozen=True, kw_only=True)
class TrainingDescription:
    """The content of training.json."""

    ERROR: ClassVar[type[OverfocusError]] = TrainingError
    WHAT: ClassVar[str] = "a training"

    format: int
    overfocus: str
    created: str = ""
    status: Status
    settings: TrainingEntry
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ComparedModel:
    """One model of a comparison."""

    name: str
    run: str
    """Its run folder: relative to the comparison's folder if inside it."""


@dataclass(frozen=True, kw_only=True)
class VerdictEntry:
    """One answer of a comparison."""

    question: str
    model: str
    answer: str
    sentence: str
    asked: str = ""


@dataclass(frozen=True, kw_only=True)
class ComparisonDescription:
    """The content of comparison.json."""

    ERROR: ClassVar[type[OverfocusError]] = RunError
    WHAT: ClassVar[str] = "a comparison"

    format: int
    overfocus: str
    kind: Literal["comparison"] = "comparison"
    baseline: str
    models: list[ComparedModel]
    images: int
    resamples: int
    corruptions: list[str] | None = None
    """Those asked for; None for all that the runs have in common."""
    severities: list[int] | None = None
    notes: list[str] = field(default_factory=list)
    rule: str = ""
    verdicts: list[VerdictEntry] = field(default_factory=list)
    table: list[dict[str, str | int | float | None]] = field(default_factory=list)
    fragility: list[dict[str, str | int | float | None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if len(self.models) < 2:
            raise ValueError(f"expected at least two models, got {len(self.models)}")
        if self.resamples < 1:
            raise ValueError(f"expected at least one resample, got {self.resamples}")


Description = TypeVar("Description", RunDescription, TrainingDescription, ComparisonDescription)


def read_description(path: Path, kind: type[Description]) -> Description:
    """The content of a description file, checked.

    Raises:
        RunError, TrainingError: `path` is missing, is no regular file, is damaged, describes something else, holds a wrong type
            or number, or was written in a format that this version does not read; one line.
    """
    text = read_bytes(path, f"the description of {kind.WHAT}", kind.ERROR)
    return decode_description(text, kind, path)


def decode_description(text: bytes, kind: type[Description], path: Path) -> Description:
    """The same for text read from `path`."""
    import msgspec

    error, where = kind.ERROR, printable(path)
    try:
        header = msgspec.json.decode(text, type=_Header)
        if header.format is None:
            raise error(
                f"{where}: expected the description of {kind.WHAT} of overfocus, but this file is something else; "
                "choose another folder"
            )
        if not isinstance(header.format, int) or not OLDEST_FORMAT <= header.format <= FORMAT:
            raise error(
                f"{where}: written in format {printable(header.format)}, this version reads formats {OLDEST_FORMAT} to {FORMAT}; "
                "upgrade overfocus, or measure again"
            )
        description = msgspec.json.decode(text, type=kind)
        _check_values(description, "$")
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError, RecursionError) as problem:
        reason = one_line(str(problem) or type(problem).__name__, 300)
        raise error(
            f"{where}: expected the description of {kind.WHAT}, but it cannot be read ({reason}); restore the file from a copy, "
            "or start again with --overwrite"
        ) from None
    return description


def encode_description(description: RunDescription | TrainingDescription | ComparisonDescription) -> bytes:
    """The text of a description file."""
    return json_bytes(dataclasses.asdict(description))


def inside(folder: Path, name: str) -> Path:
    """The path that `name`, relative and with forward slashes, has in a folder.

    Raises:
        RunError: it would be outside the folder.
    """
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or not relative.parts or "\0" in name:
        raise RunError(f"{folder}: expected the name of a file in this folder, got {printable(name)}")
    path = folder.joinpath(*relative.parts)
    if not path.resolve().is_relative_to(folder.resolve()):
        raise RunError(f"{folder}: {printable(name)} leads out of this folder")
    return path


@dataclass(frozen=True)
class _Header:
    format: Any = None


def _check_values(value: Any, where: str, *, signed: bool = False) -> None:
    """Raise `ValueError` where a number is no count or not finite, or a text longer than any name or sentence."""
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, str):
        if len(value) > LONGEST:
            raise ValueError(f"expected at most {LONGEST:,} characters, got {len(value):,} - at `{where}`")
        return
    if isinstance(value, int):
        if not (signed or value >= 0) or abs(value) > MOST:
            raise ValueError(f"expected a whole number from 0 to {MOST}, got {value} - at `{where}`")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"expected a finite number, got {value} - at `{where}`")
    elif isinstance(value, dict):
        for name, part in value.items():
            _check_values(part, f"{where}.{printable(name, 40)}", signed=True)
    elif isinstance(value, Sequence):
        for part in value:
            _check_values(part, f"{where}[…]", signed=signed)
    else:
        for name, part in vars(value).items():
            _check_values(part, f"{where}.{name}", signed=signed or name in _SIGNED)
