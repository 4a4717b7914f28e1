"""`ablate`: take the most attended tokens out of the attention of every layer, and see what the predictions do."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from overfocus.ablation.ablation import Ablation, write_ablation
from overfocus.ablation.removal import Removal, choose_counts
from overfocus.analysis.description import describe_checkpoint
from overfocus.analysis.groups import Group, GroupDataset, GroupLoader
from overfocus.analysis.pixels import InputSize
from overfocus.analysis.preparation import choose_images, load_for_run, place_of
from overfocus.analysis.progress import progress_bar
from overfocus.analysis.settings import choose_corruptions, choose_severities, choose_workers, describe_source
from overfocus.analysis.variants import list_variants
from overfocus.errors import ImageError, RunError
from overfocus.images.reading import MAX_PIXELS
from overfocus.statistics.ablation import tabulate_ablation
from overfocus.version import __version__

if TYPE_CHECKING:
    from overfocus.checkpoints.load import LoadedModel

FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
_OURS = {"ablation.json", "ablation.csv", "ablation.parquet", "differences.csv", "differences.parquet", "figures", "report.html"}


def ablate(
    checkpoint: "str | Path | LoadedModel | None" = None,
    images: str | Path | Sequence[str | Path] | None = None,
    corruptions: str | Sequence[str] | None = None,
    severities: int | Sequence[int] | None = None,
    output: str | Path = "overfocus-ablation",
    *,
    fractions: Sequence[float] = FRACTIONS,
    model: str | None = None,
    use_ema: bool = True,
    image_size: int | None = None,
    device: str | torch.device | None = None,
    batch_size: int = 16,
    workers: int | None = None,
    seed: int = 0,
    limit: int | None = None,
    max_pixels: int = MAX_PIXELS,
    strict: bool = False,
    overwrite: bool = False,
    progress: bool | None = None,
    resamples: int = 10_000,
) -> Ablation:
    """Measure what predictions lose without the most attended tokens, against as many random and as many least attended ones.

    In every layer over tokens, the k patch tokens that receive most of its attention (in a forward of the same picture with
    all tokens) are hidden as keys: their weights become 0 and the others are normalised again. The same is done under
    corruption. Nothing of the model is changed, and no map is kept.

    - images, corruptions, severities: as for `analyze`; severities None takes 3 alone.
    - output: the folder that is written.
    - fractions: shares of the patch tokens to take out, above 0 and below 1; k = max(1, round(f·N)) in each layer.
    - resamples: of the bootstrap.

    All others are those of `analyze`; an ablation is not continued where it was interrupted.

    Raises:
        RunError: a setting is out of range, or the folder holds something else or cannot be written.
        CaptureError: the model has no attention over tokens, or some that keys cannot be taken out of.
        CheckpointError, CorruptionError, ImageError: as `analyze` says.
    """
    if not fractions or not all(0 < fraction < 1 for fraction in fractions):
        raise RunError(
            f"fractions must be above 0 and below 1, got {', '.join(map(str, fractions)) or 'none'}; 0.05 is a twentieth"
        )
    if batch_size < 1:
        raise RunError(f"batch_size must be at least 1, got {batch_size}")
    folder = Path(output)
    _check_folder(folder, overwrite=overwrite)
    place = place_of(checkpoint, device)
    loaded = load_for_run(checkpoint, place, model=model, use_ema=use_ema, image_size=image_size)
    sources = choose_images(images, loaded, limit)
    variants = list_variants(choose_corruptions(corruptions), choose_severities(3 if severities is None else severities))
    dataset = GroupDataset(sources, variants, loaded.preprocess, seed, max_pixels)
    together = max(1, batch_size // len(variants))
    rows: list[dict[str, Any]] = []
    skipped: list[dict[str, Any]] = []
    removal = Removal(loaded.model, loaded.num_classes, sorted(set(fractions)), batch_size=batch_size, seed=seed)
    with (
        torch.no_grad(),
        GroupLoader(dataset, 0, workers=choose_workers(workers), together=together) as groups,
        progress_bar(len(sources), 0, show=progress) as show,
    ):
        for pack in _packs(groups, together):
            readable = [group for group in pack if group.pictures]
            for group in pack:
                if not group.pictures:
                    if strict:
                        raise ImageError(str(group.reason))
                    skipped.append({"image": group.image, "name": sources[group.image].name, "reason": group.reason})
            if readable:
                pictures = np.concatenate([group.pictures[InputSize.of(loaded.preprocess)] for group in readable])
                inputs = loaded.preprocess.normalize_batch(list(pictures), place)
                rows += removal.measure(inputs, [group.image for group in readable], variants)
            show(pack[-1].image + 1)
    if not rows:
        raise ImageError(f"none of the {len(sources)} images can be read; the first: {skipped[0]['reason']}")
    import pandas as pd

    info = {
        "overfocus": __version__,
        "checkpoint": describe_checkpoint(loaded),
        "settings": {
            "images": describe_source(images), "variants": variants, "fractions": list(fractions), "seed": seed, "limit": limit,
            "batch_size": batch_size, "device": str(place), "image_size": image_size, "resamples": resamples,
        },
        "images": len(sources) - len(skipped),
        "skipped": skipped,
        "tokens": removal.tokens,
        "counts": [[fraction, *counts] for fraction, counts in choose_counts(removal.tokens, sorted(set(fractions)))],
    }  # fmt: skip
    return write_ablation(folder, info, tabulate_ablation(pd.DataFrame(rows)))


def _packs(groups: GroupLoader, size: int) -> Iterator[list[Group]]:
    pack: list[Group] = []
    for group in groups:
        pack.append(group)
        if len(pack) == size:
            yield pack
            pack = []
    if pack:
        yield pack


def _check_folder(folder: Path, *, overwrite: bool) -> None:
    try:
        names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    except NotADirectoryError:
        raise RunError(
            f"{folder}: expected a folder to write the ablation into, but this is a file; choose another output"
        ) from None
    except OSError as error:
        raise RunError(f"{folder}: the output folder cannot be read ({error.strerror}); choose another output") from None
    if "ablation.json" in names and not overwrite:
        raise RunError(f"{folder}: holds an ablation already; choose another output, or --overwrite to replace it")
    if (others := sorted(name for name in names - _OURS if not name.startswith("."))) and not overwrite:
        raise RunError(
            f"{folder}: holds other files ({', '.join(others[:3])}); choose another output, or --overwrite to write beside them"
        )
