"""`overfocus evaluate`: how well checkpoints predict labels or masks, and what corruptions leave of it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from overfocus.processes import is_main_process
from overfocus_cli.options import AsJson, Device, ImageSize, Model, NoEma
from overfocus_cli.segmentation_table import print_segmentation

if TYPE_CHECKING:
    from overfocus.evaluation.evaluation import Evaluation


def evaluate(
    checkpoints: Annotated[
        list[str], typer.Argument(metavar="CHECKPOINT...", help="Checkpoints, hub folders or timm names.", show_default=False)
    ],
    data: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER",
            help="Class folders, IDX files, a Hugging Face data set, ImageNet-A, -R or -P, or a tree corruption/severity/class. "
            "For segmentation: Cityscapes, Cityscapes-C, ACDC, or images/ beside masks/.",
            show_default=False,
        ),
    ],
    task: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="classification or segmentation. Default: what the checkpoint is for.", show_default=False
        ),
    ] = None,
    corruption: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Corruption or group to make on the fly, or to take of a tree; repeatable. Default: none; all of a tree.",
            show_default=False,
        ),
    ] = None,
    severity: Annotated[
        list[int] | None,
        typer.Option(metavar="N", help="1 (weak) to 5 (strong); repeatable. Default: all five.", show_default=False),
    ] = None,
    clean: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Data set that a tree was made from, for clean accuracy and relative mCE.",
            show_default=False,
        ),
    ] = None,
    tree_geometry: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Images of a tree: as-is (they were resized and cropped when they were made), or model (resized and cropped "
            "once more).",
        ),
    ] = "as-is",
    output: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Run folder, or for several checkpoints the folder of theirs.")
    ] = Path("overfocus-evaluation"),
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="CHECKPOINT",
            help="Checkpoint or finished evaluation that mCE is relative to, where AlexNet's published errors do not fit. "
            "Default: the first of several.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the evaluations that the output holds.")] = False,
    model: Model = None,
    no_ema: NoEma = False,
    image_size: ImageSize = None,
    window: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS",
            help="Segmentation: side of the sliding windows. Default: the model's input size.",
            show_default=False,
        ),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS",
            help="Segmentation: from window to window. Default: three quarters of the window.",
            show_default=False,
        ),
    ] = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="Segmentation: every picture in one forward, whatever its size.")
    ] = False,
    flip: Annotated[bool, typer.Option("--flip", help="Segmentation: average with the mirrored picture.")] = False,
    scales: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,…",
            help="Segmentation: average over sizes of the picture, e.g. 0.5,0.75,1,1.25.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", help="Take at most this many images.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the corruptions.")] = 0,
    device: Device = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Pictures, or windows of pictures, in one forward. Default: 64, or as many windows as four of 1024×1024.",
            show_default=False,
        ),
    ] = None,
    amp: Annotated[bool, typer.Option("--amp", help="Compute in mixed precision.")] = False,
    workers: Annotated[
        int | None,
        typer.Option(metavar="N", help="Processes that read and corrupt. Default: by the number of cores.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate classifiers or segmentation models, clean and corrupted.

    Of classifiers accuracy, calibration and mCE; of segmentation models mIoU and pixel accuracy.

    The same command continues an interrupted evaluation. Several GPUs: accelerate launch -m overfocus evaluate …

    Example: overfocus evaluate baseline.pth robust.pth --data val/ --corruption common
    """
    sizes = _numbers(scales)
    from overfocus.evaluation.evaluate import evaluate as evaluate_checkpoints

    found = evaluate_checkpoints(
        list(checkpoints),
        data,
        output,
        task=task,
        corruptions=corruption or None,
        severities=severity or None,
        clean=clean,
        tree_geometry=tree_geometry,
        baseline=baseline,
        model=model,
        use_ema=not no_ema,
        image_size=image_size,
        window=window,
        stride=stride,
        whole=whole,
        flip=flip,
        scales=sizes,
        device=device,
        batch_size=batch_size,
        amp=amp,
        workers=workers,
        seed=seed,
        limit=limit,
        overwrite=overwrite,
    )
    if not is_main_process():
        return
    if as_json:
        typer.echo(json.dumps([{"run": str(entry.path)} | entry.summary for entry in found], ensure_ascii=False, indent=2))
        return
    for entry in found:
        if entry.summary.get("task") == "segmentation":
            print_segmentation(entry)
        else:
            typer.echo(_described(entry))


def _numbers(text: str | None) -> list[float] | None:
    """The numbers in "0.5,1".

    Raises:
        typer.BadParameter: something in it is no number.
    """
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"expected numbers such as 0.5,1,1.5, got {text!r}", param_hint="--scales") from None


def _described(evaluation: "Evaluation") -> str:
    """An evaluation in some lines."""
    summary = evaluation.summary
    lines = [f"{summary['model']} ({summary['checkpoint']}), {summary['data']['images']:,} images"]
    films = summary["flips"] is not None
    made = "first frames of films" if films else f"corrupted ({summary['data']['corruptions']})"
    width = max(24, len(made))
    for kind, words in (("clean", "clean"), ("corrupted", made)):
        if summary[kind] is not None:
            mean = summary[kind]
            five = f"{mean['top5']:7.2%}" if mean["top5"] is not None else "      –"
            shares = f"top-1 {mean['top1']:7.2%}   top-5 {five}"
            lines.append(f"{words:{width}} {shares}   ECE {mean['ece']:.4f}   NLL {mean['nll']:.4f}")
    table = evaluation.table
    corrupted = table[table["severity"] > 0]
    if len(corrupted):
        levels = sorted({int(level) for level in corrupted["severity"]})
        title = "top-1 of first frames" if films else "top-1 by severity"
        lines.append(f"\n{title:24}" + "".join(f"{level:>9}" for level in levels) + "     mean")
        for name, part in corrupted.groupby("corruption", sort=False):
            by_level = dict(zip(part["severity"], part["top1"], strict=True))
            cells = "".join(f"{by_level[level]:9.2%}" if level in by_level else " " * 9 for level in levels)
            lines.append(f"{str(name).replace('_', ' '):24}{cells}{part['top1'].mean():9.2%}")
    if films:
        rates = "".join(f"\n{name.replace('_', ' '):24}{rate:9.2%}" for name, rate in summary["flips"]["perturbations"].items())
        lines.append(f"\nmean flip rate {summary['flips']['mean_flip_rate']:.2%}: {summary['flips']['note']}{rates}")
    mce = summary["mce"]
    if mce is not None:
        value = f"mCE {mce['mce']:.1f} %" if mce["mce"] is not None else "mCE not defined"
        relative = f", relative mCE {mce['relative_mce']:.1f} %" if mce["relative_mce"] is not None else ""
        lines.append(f"\n{value}{relative}: {mce['note']}" if mce["relative_to"] else f"\n{mce['note']}")
        lines += [mce["relative_note"]] if mce["relative_note"] else []
    lines += [f"note: {note}" for note in summary["notes"]]
    if summary["data"]["skipped"]:
        lines.append(f"note: pictures left out because they could not be read: {summary['data']['skipped']}")
    return "\n".join([*lines, f"run: {evaluation.path}\n"])
