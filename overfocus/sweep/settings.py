"""What `analyze`, `compare`, `evaluate` and `ablate` take, for the Python interface and the command line; without torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from overfocus.errors import CaptureError, OverfocusError
from overfocus.settings import LARGEST_COUNT, LARGEST_SEED, MAX_PIXELS, MOST_RESAMPLES, Settings, plain_number, setting, shown

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, Dataset

    from overfocus.checkpoints.loaded import LoadedModel
    from overfocus.corruptions.custom import CustomCorruption
    from overfocus.metrics.catalogue import Metric
    from overfocus.probes.probe import Probe
    from overfocus.run import Run

Corruption = Callable[..., Any] | tuple[str, Callable[..., Any]]
"""One of the user's own, named by its function or beside it."""

DEFAULT_CORRUPTIONS = ("gaussian_noise", "defocus_blur", "fog", "jpeg_compression")
"""One of each group: noise, blur, weather, digital."""
DEFAULT_SEVERITIES = (1, 3, 5)
FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
LARGEST_BATCH = 65_536
LARGEST_SIDE = 16_384
HeatMapMethod = Literal["received", "rollout", "row", "gradient-rollout", "grad-cam"]
METHODS: tuple[HeatMapMethod, ...] = get_args(HeatMapMethod)
CLASS_METHODS: tuple[HeatMapMethod, ...] = ("gradient-rollout", "grad-cam")
"""Methods that explain a class."""
Query = tuple[int, int] | Literal["class"]
"""(row, column) of a patch, counted from 0, or the class token."""


def parse_size(text: str) -> int | tuple[int, int]:
    """The side of a square or (height, width): "224" or "224x336".

    Raises:
        ValueError: the text is something else.

    >>> parse_size("224"), parse_size("224x336")
    (224, (224, 336))
    """
    sides = text.lower().replace("×", "x").split("x")
    if len(sides) > 2 or not all(side.strip().isascii() and side.strip().isdecimal() and len(side) < 10 for side in sides):
        raise ValueError(f"expected pixels, such as 224, or HEIGHTxWIDTH, such as 224x336, got {shown(text)}")
    return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


def _images() -> Any:
    return setting(
        None,
        "Folder (class sub-folders or a CSV file give labels), image file, text list or CSV file of images; several one after "
        "the other. For a segmentation model also a data set with masks to score against (Cityscapes, ACDC, images/ beside "
        "masks/). In Python also PIL images or arrays, a torch Dataset or a DataLoader of (image, label).",
        none="the bundled ones that suit the model",
        spelling=("--images",),
        metavar="PATH",
    )


def _class_map() -> Any:
    return setting(
        None,
        "How labels that name no class are matched: number (that of the class, from 0), natural (2 before 10) or sorted (as "
        "plain text, 10 before 2) for the order of the class folders, or a file with the class of each label (JSON, CSV, or "
        "one label a line in the order of the classes).",
        none="numbers, else natural order; a note says where this is uncertain",
        metavar="FILE|sorted|natural|number",
    )


def _corruptions(none: str) -> Any:
    return setting(
        None,
        "Corruption or group (`overfocus list corruptions`); in Python also functions (rgb, severity, generator) -> rgb.",
        none=none,
        metavar="NAME",
    )


def _severities(none: str) -> Any:
    return setting(None, "From 1 (weak) to 5 (strong).", none=none, spelling=("--severity",), commas=False, metavar="N")


def _checkpoint() -> Any:
    return setting(
        None,
        "Checkpoint (.pth, .pt, .tar, .safetensors), hub folder or timm name; in Python also a module or a loaded model.",
        none="the bundled small ViT",
        argument=True,
        metavar="CHECKPOINT",
    )


def _model() -> Any:
    return setting(None, "Architecture (a timm name), if the checkpoint does not determine it.", metavar="NAME")


@dataclass(frozen=True)
class LoadingSettings(Settings):
    """How checkpoints are loaded, and where they run."""

    _: KW_ONLY
    use_ema: bool = setting(
        True, "Load the plain weights, even if the checkpoint also holds averaged (EMA) ones.", spelling=("--no-ema",)
    )
    image_size: int | tuple[int, int] | None = setting(
        None,
        "Side of the model's input in pixels, or HEIGHTxWIDTH.",
        none="as trained",
        least=1,
        most=LARGEST_SIDE,
        parse=parse_size,
        metavar="PIXELS",
    )
    model_args: str | None = setting(
        None,
        "Arguments of the architecture that the checkpoint does not determine, such as num_heads=12,qk_norm=true.",
        metavar="KEY=VALUE,…",
    )
    weights: str | None = setting(
        None, "Which network of the checkpoint to load, by its path in the file, such as teacher.backbone.", metavar="ENTRY"
    )
    lenient: bool = setting(
        False, "Load a checkpoint even if tensors of its backbone are missing or left over; every result says so."
    )
    device: "str | torch.device | None" = setting(
        None, "cpu, cuda, cuda:1, …", none="CUDA if available; a loaded model stays where it is", metavar="DEVICE"
    )

    def loading(self) -> dict[str, Any]:
        """How `resolve_model` is to load a checkpoint."""
        return {
            "model": getattr(self, "model", None),
            "use_ema": self.use_ema,
            "image_size": self.image_size,
            "model_args": self.model_args,
            "weights": self.weights,
            "lenient": self.lenient,
        }


@dataclass(frozen=True)
class InspectSettings(LoadingSettings):
    """The arguments of `inspect`."""

    checkpoint: "str | Path | nn.Module | LoadedModel | None" = _checkpoint()
    _: KW_ONLY
    model: str | None = _model()
    verify: bool = setting(False, "Check the captured attention against what the model produces; exit status 1 if it differs.")


@dataclass(frozen=True)
class SweepSettings(LoadingSettings):
    """What all sweeps take: how images go through the models."""

    _: KW_ONLY
    limit: int | None = setting(
        None, "Take at most this many images, spread evenly over the list.", least=1, most=LARGEST_COUNT, metavar="N"
    )
    constants: Literal["cifar-c", "tiny-imagenet-c", "imagenet-c"] | None = setting(
        None,
        "Benchmark whose constants the corruptions have.",
        none="the one that fits the size at which images are corrupted",
        metavar="NAME",
    )
    seed: int = setting(0, "Seed of the corruptions and of the control.", least=0, most=LARGEST_SEED, metavar="N")
    cache: str | Path | None = setting(
        None,
        "Folder in which corrupted images are kept (64 GB at most), so that other models are measured without corrupting again.",
        none="no cache",
        affects_result=False,
        metavar="FOLDER",
    )
    workers: int | None = setting(
        None,
        "Worker processes that read and corrupt images; 0 uses the main process.",
        none="by the number of cores",
        least=0,
        most=256,
        affects_result=False,
        metavar="N",
    )
    overwrite: bool = setting(False, "Replace the run in the output folder.", affects_result=False)
    progress: bool | None = setting(
        None, "Whether to show a progress bar.", none="on a terminal", affects_result=False, command_line=False
    )

    def chosen_corruptions(self, usual: Sequence[str] = DEFAULT_CORRUPTIONS) -> "tuple[list[str], dict[str, CustomCorruption]]":
        """Names of the corruptions asked for by name, group or function, or the usual ones; and the functions by name.

        Raises:
            CorruptionError: there is no such corruption.
        """
        from overfocus.corruptions.custom import choose_corruptions

        given = getattr(self, "corruptions", None)
        return choose_corruptions(usual if given is None else given)

    def chosen_severities(self, usual: Sequence[int] = DEFAULT_SEVERITIES) -> list[int]:
        """The severities asked for, rising, or the usual ones."""
        severities: int | Sequence[int] | None = getattr(self, "severities", None)
        return sorted(set(usual if severities is None else listed(severities)))

    def __post_init__(self) -> None:
        super().__post_init__()
        severities: int | Sequence[int] | None = getattr(self, "severities", None)
        if severities is not None:
            from overfocus.corruptions import check_severity

            for severity in listed(severities):
                check_severity(severity)


def listed(value: Any) -> list[Any]:
    """One value or several as a list."""
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]


@dataclass(frozen=True)
class MeasuringSettings(SweepSettings):
    """What `analyze` and `compare` take: how attention is measured."""

    _: KW_ONLY
    batch_size: int | None = setting(
        None,
        "Images in one forward; a corrupted one needs its clean one beside it, so at least two.",
        none="16, and 4 for segmentation",
        least=1,
        most=LARGEST_BATCH,
        metavar="N",
    )
    amp: bool = setting(False, "Compute in mixed precision (bfloat16, or float16 on a GPU without it); metrics in float32.")
    exact: bool = setting(
        True,
        "Let the measured weights give the model's output too (on a processor, in float32): its fused attention need not run, "
        "but outputs differ by rounding, 1e-6, and rank correlations where tokens are nearly equal, by up to 5e-4. Otherwise "
        "outputs stay bit-identical.",
        spelling=("--no-exact",),
    )
    layers: Sequence[int] | None = setting(
        None, "Layers to measure, counted in call order from 0, from the end where negative.", none="all", metavar="N,N,…"
    )
    per_head: bool = setting(False, "A row for each head instead of the mean over heads.")
    top_fraction: float = setting(0.05, "Share of the patches that count as the most attended.", above=0, most=1, metavar="SHARE")
    metrics: "Sequence[str | Callable[..., Any] | Metric] | None" = setting(
        None,
        "Metrics beside the built-in ones: functions of attention weights, or rows of the catalogue (`metrics.Metric`).",
        command_line=False,
    )
    class_map: str | Path | None = _class_map()
    probes: "Sequence[Probe] | None" = setting(
        None, "What is asked of each batch besides: subclasses of `overfocus.probes.probe.Probe`.", command_line=False
    )
    displayed: int = setting(4, "Images to keep full maps of, for the report.", least=0, most=10_000, command_line=False)
    maps_limit: int = setting(
        1000, "Images to keep received attention of; the tables hold all.", least=0, most=LARGEST_COUNT, command_line=False
    )
    max_pixels: int = setting(
        MAX_PIXELS,
        "Larger images (width × height) are refused before they are decoded.",
        least=1,
        most=LARGEST_COUNT,
        affects_result=False,
        metavar="N",
    )
    strict: bool = setting(
        False, "Stop at an image that cannot be read; otherwise it is left out and counted.", affects_result=False
    )


@dataclass(frozen=True)
class AnalyzeSettings(MeasuringSettings):
    """The arguments of `analyze`.

    Raises:
        RunError: a value is out of bounds.
        CorruptionError: there is no such severity.
    """

    checkpoint: "str | Path | nn.Module | LoadedModel | None" = _checkpoint()
    images: "str | Path | Sequence[Any] | Dataset[Any] | DataLoader[Any] | None" = _images()
    corruptions: "str | Corruption | Sequence[str | Corruption] | None" = _corruptions("one of each group")
    severities: int | Sequence[int] | None = _severities("1, 3 and 5")
    output: str | Path = setting(Path("overfocus-run"), "Folder of the run.", affects_result=False, metavar="FOLDER")
    _: KW_ONLY
    model: str | None = _model()


@dataclass(frozen=True)
class CompareSettings(MeasuringSettings):
    """The arguments of `compare`.

    Raises:
        RunError: a value is out of bounds.
        CorruptionError: there is no such severity.
    """

    sources: "Sequence[str | Path | Run | nn.Module | LoadedModel] | None" = setting(
        None,
        "Checkpoints (files, hub folders, timm names), or folders of saved runs; the first is the baseline.",
        none="the two bundled ones",
        argument=True,
        metavar="BASELINE OTHER",
    )
    _: KW_ONLY
    groups: "Mapping[str, Sequence[str | Path | Run]] | None" = setting(
        None,
        "Instead of sources, saved runs of several seeds under the name of their model, the baseline first; intervals then cover "
        "images and runs.",
        spelling=("--group",),
        metavar="NAME=RUN,RUN…",
        parse=lambda text: [run for run in text.split(",") if run],
    )
    images: "str | Path | Sequence[Any] | Dataset[Any] | DataLoader[Any] | None" = _images()
    corruptions: "str | Corruption | Sequence[str | Corruption] | None" = _corruptions(
        "one of each group; all that saved runs have in common"
    )
    severities: int | Sequence[int] | None = _severities("1, 3 and 5; all that saved runs have in common")
    output: str | Path = setting(
        Path("overfocus-comparison"), "Folder of the comparison.", affects_result=False, metavar="FOLDER"
    )
    model: str | Sequence[str | None] | None = setting(
        None,
        "Architecture, if checkpoints do not determine it: one for all, or one for each ('' if it is determined).",
        metavar="NAME",
        may_be_empty=True,
    )
    resamples: int = setting(
        10_000, "Bootstrap resamples for the intervals of ratios and of mIoU.", least=1, most=MOST_RESAMPLES, metavar="N"
    )


@dataclass(frozen=True)
class AblateSettings(SweepSettings):
    """The arguments of `ablate`.

    Raises:
        RunError: a value is out of bounds.
        CorruptionError: there is no such severity.
    """

    checkpoint: "str | Path | nn.Module | LoadedModel | None" = _checkpoint()
    images: "str | Path | Sequence[Any] | Dataset[Any] | DataLoader[Any] | None" = _images()
    corruptions: "str | Corruption | Sequence[str | Corruption] | None" = _corruptions("one of each group")
    severities: int | Sequence[int] | None = _severities("3")
    output: str | Path = setting(Path("overfocus-ablation"), "Folder of the ablation.", affects_result=False, metavar="FOLDER")
    _: KW_ONLY
    how: Literal["remove", "corrupt"] = setting(
        "remove",
        "remove: hide the patches from the attention of every layer. corrupt: corrupt their pixels; the rest of the image "
        "stays clean.",
        metavar="NAME",
    )
    draws: int | None = setting(
        None,
        "Number of random draws, each of as many patches as the most attended ones and of patches that receive as much.",
        none="1 for remove, 5 for corrupt",
        least=1,
        most=1000,
        metavar="N",
    )
    fractions: Sequence[float] = setting(
        FRACTIONS,
        "Shares of the patches to remove or corrupt; k = max(1, round(f·N)) in each layer, or of the image.",
        above=0,
        below=1,
        spelling=("--fraction",),
        commas=True,
        metavar="SHARE",
    )
    model: str | None = _model()
    batch_size: int = setting(16, "Images in one forward.", least=1, most=LARGEST_BATCH, metavar="N")
    max_pixels: int = setting(
        MAX_PIXELS,
        "Larger images (width × height) are refused before they are decoded.",
        least=1,
        most=LARGEST_COUNT,
        affects_result=False,
        metavar="N",
    )
    strict: bool = setting(
        False, "Stop at an image that cannot be read; otherwise it is left out and counted.", affects_result=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.fractions:
            self.refuse("fractions", "must be above 0 and below 1, got none; 0.05 is a twentieth")


@dataclass(frozen=True)
class EvaluateSettings(SweepSettings):
    """The arguments of `evaluate`.

    Raises:
        RunError: a value is out of bounds.
        CorruptionError: there is no such severity.
    """

    checkpoints: "str | Path | nn.Module | LoadedModel | Sequence[str | Path | nn.Module | LoadedModel]" = setting(
        help="Checkpoints, hub folders or timm names; in Python also modules or loaded models.",
        argument=True,
        metavar="CHECKPOINT",
    )
    data: "str | Path | Sequence[Any] | Dataset[Any] | DataLoader[Any]" = setting(
        help="Class folders, IDX files, a Hugging Face data set (their validation split if there is one), a CSV file of labels "
        "or images with one beside them, ImageNet-A, -R (known by the folder's name) or -P, or a tree corruption/severity/class. "
        "For segmentation: Cityscapes, Cityscapes-C, ACDC, or images/ beside masks/. In Python also images in memory and their "
        "labels.",
        parse=str,
        metavar="FOLDER",
    )
    output: str | Path = setting(
        Path("overfocus-evaluation"),
        "Folder of the run; with several checkpoints, a subfolder for each.",
        affects_result=False,
        metavar="FOLDER",
    )
    _: KW_ONLY
    task: str | None = setting(None, "classification or segmentation.", none="what the checkpoints are for", metavar="NAME")
    corruptions: "str | Corruption | Sequence[str | Corruption] | None" = setting(
        None,
        "Corruption or group to apply on the fly, or to select from a tree.",
        none="none; all those of a tree",
        metavar="NAME",
    )
    severities: int | Sequence[int] | None = _severities("all")
    class_map: str | Path | None = _class_map()
    clean: str | Path | None = setting(
        None,
        "The data set that a tree of corruptions was made from, for accuracy without corruption and relative mCE. Not for "
        "segmentation.",
        metavar="FOLDER",
    )
    tree_geometry: Literal["as-is", "model"] = setting(
        "as-is",
        "How images of ImageNet-C, C-bar, -P or another tree of corruptions come to the model's input: as-is, since they were "
        "resized and cropped when they were made (they are resized, not cropped, where the input has another size), or resized "
        "and cropped once more as the model's own preprocessing does. Not for segmentation.",
        metavar="NAME",
    )
    baseline: str | Path | None = setting(
        None,
        "Folder of a finished evaluation, or a checkpoint, by whose errors those of the others are divided for mCE, where "
        "AlexNet's published errors do not apply. Not for segmentation.",
        none="the first of several checkpoints",
        metavar="RUN|CHECKPOINT",
    )
    model: str | None = _model()
    window: int | None = setting(
        None,
        "Segmentation: side of the sliding windows in pixels.",
        none="the model's input size",
        least=1,
        most=LARGEST_SIDE,
        metavar="PIXELS",
    )
    stride: int | None = setting(
        None,
        "Segmentation: step from one window to the next in pixels.",
        none="three quarters of the window",
        least=1,
        most=LARGEST_SIDE,
        metavar="PIXELS",
    )
    whole: bool = setting(False, "Segmentation: process each image whole, whatever its size, instead of in windows.")
    flip: bool = setting(False, "Segmentation: average with the prediction for the mirrored image.")
    scales: float | Sequence[float] | None = setting(
        None,
        "Segmentation: scales at which each image is predicted; predictions are averaged.",
        none="1 alone",
        above=0,
        most=100,
        commas=True,
        metavar="FACTOR",
    )
    batch_size: int | None = setting(
        None,
        "Images in one forward, or windows of images.",
        none="64 images, or windows of as many pixels together as four of 1024×1024",
        least=1,
        most=LARGEST_BATCH,
        metavar="N",
    )
    amp: bool = setting(False, "Compute in mixed precision.")


def _query(text: str) -> Any:
    """The patch in "3,4", or the class token."""
    row, _, column = text.partition(",")
    try:
        return text if text == "class" else (int(row), int(column))
    except ValueError:
        raise ValueError(f"expected ROW,COL such as 3,4, or class, got {shown(text)}") from None


def _layer(text: str) -> int | None:
    """The number of a layer, or None for all."""
    try:
        return None if text == "all" else plain_number(text, int)
    except ValueError:
        raise ValueError(f"expected a whole number or all, got {shown(text)}") from None


@dataclass(frozen=True)
class HeatMapRequest(Settings):
    """What a heat map shows.

    Raises:
        CaptureError: an unknown method, or options that the method has no meaning for.
    """

    error: ClassVar[type[OverfocusError]] = CaptureError

    method: HeatMapMethod = setting(
        "received",
        "received: the attention that each patch receives from all; row: where one query attends; rollout: attention followed "
        "through all layers (Abnar and Zuidema 2020). For a class: gradient-rollout, attention × its gradient followed through "
        "all layers (Chefer et al. 2021); grad-cam, the tokens that enter each layer × their gradient.",
        metavar="NAME",
    )
    layer: int | None = setting(
        None, "Layer in call order from 0, from the end where negative, or all.", none="all", metavar="N|all", parse=_layer
    )
    head: int | Literal["all"] | None = setting(
        None, "Head, from 0, or all for a contact sheet of every head.", none="the mean over heads", metavar="N|all"
    )
    query: Query | None = setting(
        None,
        "Query token, for row and the rollouts.",
        none="the class token, or without one the middle patch (for rollout the mean over patches)",
        metavar="ROW,COL|class",
        parse=_query,
    )
    head_fusion: Literal["mean", "max", "min"] = setting("mean", "How rollout combines heads: mean, max or min.", metavar="NAME")
    discard_ratio: float = setting(
        0.0, "Share of each layer's weights, the smallest ones, that rollout drops.", least=0, below=1, metavar="SHARE"
    )
    target: int | str | None = setting(
        None,
        "Class to explain with gradient-rollout or grad-cam, by number or name.",
        none="the one predicted for the clean image",
        spelling=("--class",),
        metavar="NAME|N",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        method, by_class = self.method, self.method in CLASS_METHODS
        if method in ("rollout", "gradient-rollout") and self.layer is not None:
            self.refuse("layer", f"must be left out, as {method} goes through all layers; or take the method row or received")
        if by_class and self.head is not None:
            self.refuse("head", f"must be left out, as {method} is of all heads; or take the method row or received")
        if method == "rollout" and self.head == "all":
            self.refuse("head", "must be one number or left out, as rollout is of one head or of all together, got 'all'")
        if method == "grad-cam" and self.query is not None:
            self.refuse("query", "must be left out, as grad-cam is of the class; or take the method gradient-rollout")
        if self.target is not None and not by_class:
            self.refuse(
                "target", f"must be left out, as {method} is of no class; or take the method {' or '.join(CLASS_METHODS)}"
            )
        if method == "received" and self.query is not None:
            self.refuse("query", "must be left out, as received attention is that of all queries; or take the method row")
        for name, usual in (("head_fusion", "mean"), ("discard_ratio", 0.0)):
            if method != "rollout" and getattr(self, name) != usual:
                self.refuse(name, f"belongs to the method rollout; leave it out, or take that in place of {method}")


@dataclass(frozen=True)
class HeatMapSettings(LoadingSettings, HeatMapRequest):
    """What `draw_heat_maps` takes: whose heat maps of which images, and where they are written.

    Raises:
        CaptureError: a value is out of bounds or does not go with another.
    """

    checkpoint: "str | Path | LoadedModel | None" = _checkpoint()
    images: str | Path | Sequence[str | Path] | None = setting(
        None, "Images, folders or text lists of images.", none="bundled ones", argument=True, metavar="IMAGE"
    )
    corruptions: str | Sequence[str] | None = setting(
        None, "Show the image under this corruption or group too.", none="none", metavar="NAME"
    )
    severity: int = setting(3, "Severity of the corruptions, from 1 (weak) to 5 (strong).", least=1, most=5, metavar="N")
    seed: int = setting(0, "Seed of the corruptions.", least=0, most=LARGEST_SEED, metavar="N")
    output: str | Path = setting(Path("overfocus-heatmaps"), "Folder of the PNG files.", metavar="FOLDER")
    _: KW_ONLY
    model: str | None = _model()
