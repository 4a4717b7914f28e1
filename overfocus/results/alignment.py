"""Runs brought together: the same images, the same variants of them, made with the same settings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from overfocus.errors import RunError
from overfocus.statistics.panel import ImageKey, Panel, read_panel
from overfocus.variants import CLEAN_VARIANT, RESERVED, Variant

if TYPE_CHECKING:
    from overfocus.run import Run

GEOMETRY = ("height", "width", "interpolation", "crop_pct", "crop_mode")
"""What decides which pixels are corrupted; as in a run's `pixels`."""


@dataclass(frozen=True, eq=False)
class Alignment:
    """What several runs have in common."""

    panels: list[Panel]
    """One per run, with the same images and variants in the same order."""
    normalised: bool
    """Whether metrics were rescaled because the runs' layers have different numbers of tokens."""
    notes: list[str]
    """What was left out, and what differs."""

    @property
    def images(self) -> list[ImageKey]:
        """The images of every run."""
        return self.panels[0].images

    @property
    def variants(self) -> list[Variant]:
        """The variants of each image, clean first where it is known."""
        return self.panels[0].variants


def align(
    runs: Sequence["Run"],
    names: Sequence[str],
    corruptions: Sequence[str] | None = None,
    severities: Sequence[int] | None = None,
) -> Alignment:
    """Match the images of runs by name and label, and their corruptions; keep what all have.

    `corruptions` and `severities` take only these.

    Raises:
        RunError: the runs have no image or version in common, or their pixels or top tokens were chosen in different ways.
    """
    measured = [run for run in runs if len(run.table)]
    _check_settings(runs, names)
    normalised = len({_token_counts(run) for run in measured}) > 1
    notes = _input_notes(runs, names)
    if normalised:
        notes.append("the models have different numbers of tokens: metrics whose range depends on it are rescaled to that range")
    panels = [read_panel(run, normalised=normalised) for run in runs]
    if measured and panels[0].pixels is not None:
        notes.append(
            "a prediction is a class for each pixel: it counts as flipped where more pixels change theirs than in the model's "
            "median corrupted image"
        )
    _require_same_classes(panels, names)
    images, missing = _common_images(panels, names)
    variants, absent = _common_variants(panels, names, corruptions, severities)
    return Alignment([panel.select(images, variants) for panel in panels], normalised, notes + missing + absent)


def pixel_geometry(run: "Run") -> dict[str, Any]:
    """How a run's images were resized and cropped before they were corrupted; as much of it as the run says."""
    pixels = run.description.pixels
    if pixels is not None:
        return {name: getattr(pixels, name) for name in GEOMETRY if getattr(pixels, name) is not None}
    _, height, width = run.description.checkpoint.input_size
    return {"height": height, "width": width}


def _check_settings(runs: Sequence["Run"], names: Sequence[str]) -> None:
    first, settings = runs[0], runs[0].description.settings
    for run, name in zip(runs[1:], names[1:], strict=True):
        other = run.description.settings
        which = ["seed", "constants", *(["top_fraction"] if len(run.table) and len(first.table) else [])]
        for setting in which:
            here, there = getattr(settings, setting), getattr(other, setting)
            if here != there:
                raise RunError(
                    f"{name} was measured with {setting} {there}, {names[0]} with {here}; "
                    "runs compare with the same settings only: measure one again"
                )
        pixels, others = pixel_geometry(first), pixel_geometry(run)
        different = [key for key in pixels if key in others and pixels[key] != others[key]]
        if different:
            ours, theirs = (", ".join(f"{key} {part[key]}" for key in different) for part in (pixels, others))
            raise RunError(
                f"{name} was measured on other pixels ({theirs}) than {names[0]} ({ours}), which were corrupted otherwise; "
                "give `overfocus compare` the checkpoints, and it shows all models the same"
            )


def _require_same_classes(panels: Sequence[Panel], names: Sequence[str]) -> None:
    """Raise `RunError` where only some models predict pixels, or not the same number of classes."""
    classes = [0 if panel.pixels is None else panel.pixels.shape[-1] for panel in panels]
    for name, count in zip(names[1:], classes[1:], strict=True):
        if count != classes[0]:
            ours, theirs = (
                f"{number} classes of pixels" if number else "one class for an image" for number in (count, classes[0])
            )
            raise RunError(f"{name} predicts {ours}, {names[0]} {theirs}; runs compare only where they answer the same question")


def _input_notes(runs: Sequence["Run"], names: Sequence[str]) -> list[str]:
    notes = []
    for run, name in zip(runs, names, strict=True):
        geometry, (_, height, width) = pixel_geometry(run), run.description.checkpoint.input_size
        whole = isinstance(geometry["height"], str)  # images at their own size, not at the model's
        if not whole and (geometry["height"], geometry["width"]) != (height, width):
            notes.append(
                f"{name} takes {height}×{width} pixels: images were corrupted at {geometry['height']}×{geometry['width']} "
                "and resized for it"
            )
        if not run.complete:
            notes.append(f"the run of {name} is not finished: what it has is compared")
    return notes


def _token_counts(run: "Run") -> tuple[tuple[int, tuple[int, int] | None], ...]:
    return tuple(sorted({(layer.tokens, layer.grid) for layer in run.description.layers}, key=str))


def _common_images(panels: Sequence[Panel], names: Sequence[str]) -> tuple[list[ImageKey], list[str]]:
    held = [set(panel.images) for panel in panels]
    common = set.intersection(*held)
    if not common:
        name, label, _ = panels[0].images[0]
        raise RunError(
            f"the runs have no image in common: images are matched by name and label, such as {name!r} with label {label!r} "
            f"of {names[0]}; measure the same images"
        )
    notes = []
    for name, keys in zip(names, held, strict=True):
        if extra := len(keys) - len(common):
            images = f"{extra} images" if extra > 1 else "1 image"
            notes.append(f"{images} of {name} left out: not measured for every model")
    return [key for key in panels[0].images if key in common], notes


def _common_variants(
    panels: Sequence[Panel], names: Sequence[str], corruptions: Sequence[str] | None, severities: Sequence[int] | None
) -> tuple[list[Variant], list[str]]:
    common = [variant for variant in panels[0].variants if all(variant in panel.variants for panel in panels)]
    notes = []
    for panel, name in zip(panels, names, strict=True):
        if extra := [variant for variant in panel.variants if variant not in common]:
            shown = ", ".join(variant.label for variant in extra[:3])
            notes.append(f"{len(extra)} variants of {name} left out, not measured for every model: {shown}")
    for asked, there, what in (
        (corruptions, [name for name, _ in common], "corruption"),
        (severities, [severity for _, severity in common], "severity"),
    ):
        for value in asked or []:
            if value not in there:
                known = ", ".join(str(one) for one in dict.fromkeys(there) if one not in (*RESERVED, 0)) or "none"
                raise RunError(f"the runs have no {what} {value} in common; they share {known}")
    kept = [
        Variant(name, severity)
        for name, severity in common
        if (name, severity) == CLEAN_VARIANT
        or ((corruptions is None or name in corruptions) and (severities is None or severity in severities))
    ]
    if not kept:
        raise RunError("the runs have no corruption and severity in common; measure the same")
    return kept, notes
