"""`evaluate`: how well checkpoints predict labels or masks, and what corruptions leave of it."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from overfocus.checkpoints.load import resolve_model
from overfocus.checkpoints.loaded import LoadedModel
from overfocus.corruptions import GROUPS, ConstantSet, choose_constants, describe_approximations, open_cache
from overfocus.corruptions.custom import CustomCorruption, named_corruptions
from overfocus.datasets.segmented import is_segmented
from overfocus.errors import ImageError, RunError
from overfocus.evaluation.corruption_error import describe_variants
from overfocus.evaluation.layouts import (
    EvaluationData,
    Item,
    LabelledReader,
    SegmentedReader,
    VideoFolders,
    add_clean_images,
    choose_portions,
    is_imagenet,
    list_items,
    open_evaluation_data,
    open_segmented_data,
    uncropped,
)
from overfocus.evaluation.results import Evaluation, errors_of, write_segmented_summary, write_summary
from overfocus.images.labels import Classes, match_labels
from overfocus.preprocessing import Preprocess
from overfocus.probes.predictions import SEGMENTATION, ScoresProbe, WindowsProbe
from overfocus.probes.probe import Probe
from overfocus.processes import Processes, join_processes
from overfocus.run import folder_names
from overfocus.runs.description import FORMAT, ImageEntry, Pixels, RunDescription, RunSettings
from overfocus.segmentation.inference import InferenceSettings, is_segmentation, usual_batch
from overfocus.settings import takes
from overfocus.sweep.reading import OWN_SIZE, InputSize, Reader, Work, choose_workers, describe_pixels, plan_images
from overfocus.sweep.recorder import Stopwatch
from overfocus.sweep.settings import EvaluateSettings, listed
from overfocus.sweep.sweep import Subject, describe_checkpoint, describe_source, described_size, open_run, place_of, sweep
from overfocus.text import source_name
from overfocus.variants import CLEAN_VARIANT, Variant, list_variants
from overfocus.version import __version__

ALL_SEVERITIES = (1, 2, 3, 4, 5)
USUAL_BATCH = 64
"""Images of a classifier in one forward."""
FRAMES = 30
"""Frames that a video has about."""
TASKS = ("classification", SEGMENTATION)
OWN_SIZE_WORDS = "the image's own"
"""In run.json's `pixels`: the size at which images with masks are corrupted."""
NOT_PUBLISHED = (
    "Cityscapes was corrupted on the fly, as RGB images; published scores on Cityscapes-C rest on files that were corrupted as "
    "BGR and with other random numbers, so these are close to but not on that benchmark"
)


@takes(EvaluateSettings)
def evaluate(settings: EvaluateSettings) -> list[Evaluation]:
    """Evaluate classifiers or segmentation models; each gets a run folder in `output` that `compare` reads.

    Corruptions are made on the fly from clean images, or lie in a tree of ImageNet-C's or Cityscapes-C's layout; the results
    say which of the two. Images whose label means no class of a model do not count. Started by
    `accelerate launch` or `torchrun`, the processes share the images. Interrupted, the same call goes on.

    Segmentation models see images at their own size, in sliding windows where one is larger than the window, and are scored
    at the size of the masks.

    Raises:
        CheckpointError: a checkpoint cannot be loaded.
        CorruptionError: a corruption or severity does not exist.
        ImageError: the data cannot be read.
        RunError: a setting is out of range, labels or masks do not fit the classes, checkpoints and data are for different tasks,
            a folder holds something else or cannot be written, or memory ran out.
    """
    sources: list[Any] = listed(settings.checkpoints)
    if not sources:
        raise RunError("expected at least one checkpoint to evaluate, got none")
    clean, baseline, limit = settings.clean, settings.baseline, settings.limit
    data: Any = Path(settings.data) if isinstance(settings.data, str | Path) else settings.data
    levels = settings.chosen_severities(usual=ALL_SEVERITIES)
    _require_task(settings.task, data)
    sizes = [1.0] if settings.scales is None else [float(size) for size in listed(settings.scales)]
    inference = InferenceSettings(settings.window, settings.stride, settings.whole, settings.flip, sizes)
    divisor = None if baseline is None or not _is_run(baseline) else Evaluation(baseline)
    if baseline is not None and divisor is None:
        sources = [baseline, *(source for source in sources if not _is_path(source) or str(source) != str(baseline))]

    processes = join_processes(place_of(sources[0], settings.device))
    models = [resolve_model(source, device=processes.device, **settings.loading()) for source in sources]
    segmented = _task_of(models, settings.task, data) == SEGMENTATION
    again = settings.tree_geometry == "model"
    _require_options(inference, baseline, clean, segmented=segmented)
    opened = _open(data, models[0], limit, segmented=segmented)
    names: list[str] | None = None
    custom: Mapping[str, CustomCorruption] = {}
    if settings.corruptions is not None and opened.corrupted:
        names = named_corruptions(settings.corruptions)
    elif settings.corruptions is not None:
        names, custom = settings.chosen_corruptions()
    if opened.corrupted:
        opened = choose_portions(opened, names, levels if settings.severities is not None else None)
        names = list(dict.fromkeys(portion.corruption for portion in opened.portions if portion.severity))
        levels = sorted({portion.severity for portion in opened.portions if portion.severity})
    elif settings.severities is not None and not names:
        raise RunError("severities need a corruption to apply; name one or a group, such as common")
    elif names and opened.layout == "ACDC":
        raise RunError(f"{data}: the images of ACDC show real fog, night, rain and snow; corruptions are made from clean ones")
    if again and (segmented or not opened.corrupted):
        raise RunError("tree_geometry is for images of a classifier that are corrupted on the disk, which the data are not")
    if clean is not None:
        opened = add_clean_images(opened, clean)
    usual = usual_batch(models[0], settings.window) if segmented else USUAL_BATCH
    fitting = _constants(opened, models[0], segmented=segmented) if names and not opened.corrupted else None
    described = RunSettings(
        images=str(data.absolute()) if isinstance(data, Path) else describe_source(data),
        corruptions=names or [],
        severities=levels if names else [],
        constants=fitting and (settings.constants or fitting),
        made=opened.layout if opened.corrupted else "on-the-fly" if names else "none",
        seed=settings.seed,
        batch_size=settings.batch_size or usual,
        limit=limit,
        amp=settings.amp,
        device=processes.device.type,
        workers=choose_workers(settings.workers),
        image_size=described_size(settings.image_size),
        clean=None if clean is None else str(Path(clean).absolute()),
        tree_geometry=settings.tree_geometry if opened.corrupted and not segmented else None,
        class_map=None if settings.class_map is None else str(settings.class_map),
        **(asdict(inference) if segmented else {}),
    )
    items, images = list_items(opened.portions, limit)
    if divisor is not None:
        _require_comparable(divisor, images, described)
    called = [source if _is_path(source) else loaded.source for source, loaded in zip(sources, models, strict=True)]
    folders = run_folders(Path(settings.output), called)
    task_class = _Segmentation if segmented else _Classification
    plan = task_class(opened, items, images, described, inference, custom, open_cache(settings.cache))
    _evaluate_models(models, folders, plan, processes, overwrite=settings.overwrite, progress=settings.progress)
    found = [Evaluation(folder) for folder in folders]
    for evaluation in found:
        skipped = evaluation.run.skipped
        if len(skipped) >= len(items):
            raise ImageError(f"none of the {len(items)} images can be used; the first: {skipped[0].name}: {skipped[0].reason}")
    if divisor is None and len(found) > 1:
        divisor = found[0]
    if processes.main:
        for evaluation in found:
            if segmented:
                write_segmented_summary(evaluation)
            else:
                write_summary(evaluation, divisor)
    processes.wait()
    return found


class _Plan:
    """What an evaluation does with each of its models."""

    def __init__(
        self,
        data: EvaluationData[Any],
        items: Sequence[Item],
        images: Sequence[tuple[str, str | None]],
        settings: RunSettings,
        inference: InferenceSettings,
        custom: Mapping[str, CustomCorruption],
        cache: Path | None,
    ) -> None:
        self.data = data
        self.items = items
        self.images = images
        self.settings = settings
        self.inference = inference
        self.custom = custom
        self.cache = cache
        self.batch_size = settings.batch_size or 1
        self.variants: list[Variant] = (
            [CLEAN_VARIANT] if data.corrupted else list_variants(settings.corruptions, settings.severities)
        )

    def wanted(self, loaded: LoadedModel) -> RunDescription:
        """What a new run says.

        Raises:
            RunError: the model does not fit the task or the data.
        """
        hashes = getattr(self.data.portions[0].images, "hashes", {})
        return RunDescription(
            format=FORMAT,
            overfocus=__version__,
            kind="evaluation",
            status="running",
            done=0,
            parts=[],
            checkpoint=describe_checkpoint(loaded),
            settings=self.settings,
            images=[
                ImageEntry(image=number, name=name, label=label, sha256=hashes.get(name))
                for number, (name, label) in enumerate(self.images)
            ],
            functions={name: corruption.fingerprint(self.settings.severities) for name, corruption in self.custom.items()}
            | loaded.preprocess.fingerprints(),
            **self.described(loaded),
        )

    def approximations(self) -> list[str]:
        """A note on corruptions made here with another algorithm than the benchmark's."""
        settings = self.settings
        note = describe_approximations(settings.corruptions, settings.constants) if settings.constants else ""
        return [note] if note else []

    def described(self, loaded: LoadedModel) -> dict[str, Any]:
        """What the task adds to that."""
        raise NotImplementedError

    def geometry(self, loaded: LoadedModel) -> object:
        """Models for which this is equal share the images."""
        raise NotImplementedError

    def work(self, loaded: LoadedModel) -> Work:
        """What is read for a model and others of the same geometry."""
        raise NotImplementedError

    def probe(self, loaded: LoadedModel) -> Probe:
        """What is asked of a model."""
        raise NotImplementedError

    def input_size(self, loaded: LoadedModel) -> InputSize:
        """At which a model takes the images that are read."""
        raise NotImplementedError

    def _work(self, reader: Reader, plan: Any) -> Work:
        return Work(reader, [item.image for item in self.items], self.variants, plan, workers=self.settings.workers or 0)


class _Classification(_Plan):
    """Images at the model's input size, one class each."""

    @property
    def labels(self) -> list[str]:
        """Those of the images, each once."""
        return list(dict.fromkeys(label for _, label in self.images if label is not None))

    def described(self, loaded: LoadedModel) -> dict[str, Any]:
        """Class names, and which labels mean none of them."""
        labels = self.labels
        if loaded.num_classes == 0:
            raise RunError(f"{loaded.source}: expected a classifier, but the checkpoint gives features")
        classes = self._classes(loaded)
        if not classes.ids:
            names = ", ".join((classes.names or [])[:3]) or "not named"
            raise RunError(
                f"{loaded.source}: none of the labels ({', '.join(labels[:3])}) matches one of its {loaded.num_classes} classes "
                f"({names}); name the folders after the classes or by their numbers"
            )
        notes = [*classes.notes, *(note for portion in self.data.portions for note in portion.images.notes)]
        if self.data.synsets is not None:
            notes.append(f"{self.data.layout}: predictions are restricted to its {len(self.data.synsets)} classes")
        if self.data.layout == "ImageNet-P":
            notes.append("ImageNet-P: accuracy and calibration are those of the first frame of each video")
        return {
            "pixels": describe_pixels(self._tree(loaded) or loaded.preprocess),
            "class_names": classes.names,
            "label_classes": classes.ids,
            "imagenet_labels": is_imagenet(labels),
            "notes": notes + self._resized(loaded) + self.approximations(),
        }

    def _classes(self, loaded: LoadedModel) -> Classes:
        """Which class of the model each label means."""
        numberings = [portion.images.numbering for portion in self.data.portions]
        return match_labels(
            self.labels,
            loaded.class_names,
            loaded.num_classes,
            class_map=self.settings.class_map,
            numbering=numberings[0] if all(other == numberings[0] for other in numberings) else None,
        )

    def _resized(self, loaded: LoadedModel) -> list[str]:
        """A note where images of a tree are not of the input's size; the first one that can be read represents all."""
        if self._tree(loaded) is None:
            return []
        height, width = loaded.input_size[1:]
        for item in self.items:
            portion = self.data.portions[item.portion]
            if portion.severity:
                with contextlib.suppress(ImageError):
                    size = portion.images.image(item.index).size
                    there = f"{size[0]}×{size[1]}"
                    return [] if size == (width, height) else [f"images of the tree are {there}, resized to {width}×{height}"]
        return []

    def _tree(self, loaded: LoadedModel) -> Preprocess | None:
        """What is done with images that are corrupted on the disk, where it is not the model's preprocessing."""
        return uncropped(loaded.preprocess) if self.settings.tree_geometry == "as-is" else None

    def geometry(self, loaded: LoadedModel) -> object:
        """How images are resized and cropped."""
        preprocess = loaded.preprocess
        own = None if preprocess.transform is None else id(preprocess.transform)
        return preprocess.input_size[1:], preprocess.interpolation, preprocess.crop_pct, preprocess.crop_mode, own

    def work(self, loaded: LoadedModel) -> Work:
        """All variants of an image together, and as many images as fill a batch."""
        settings = self.settings
        reader = LabelledReader(
            self.items,
            self.data.portions,
            self.variants,
            loaded.preprocess,
            settings.seed,
            settings.constants,
            self.custom,
            self._tree(loaded),
            self.cache,
        )
        plan = plan_images(len(self.variants), self.batch_size)
        if self.data.layout == "ImageNet-P":
            plan = plan_images(len(self.variants), max(1, self.batch_size // FRAMES))
        return self._work(reader, plan)

    def probe(self, loaded: LoadedModel) -> Probe:
        """The classes of the labels, in the order of the model; videos by the portion that they are of."""
        ids = self._classes(loaded).ids
        targets = [ids.get(self.images[item.image][1] or "", -1) for item in self.items]
        allowed = None
        if self.data.synsets is not None:
            allowed = sorted(match_labels(self.data.synsets, loaded.class_names, loaded.num_classes).ids.values())
        videos = {
            number: "noise" in self.data.portions[item.portion].corruption
            for number, item in enumerate(self.items)
            if isinstance(self.data.portions[item.portion].images, VideoFolders)
        }
        return ScoresProbe(loaded, targets, allowed=allowed, videos=videos)

    def input_size(self, loaded: LoadedModel) -> InputSize:
        """That of the model."""
        return InputSize.of(loaded.preprocess)


class _Segmentation(_Plan):
    """Images at their own size, a class for each pixel."""

    def described(self, loaded: LoadedModel) -> dict[str, Any]:
        """Classes and their colours, and how images go through the model."""
        images = self.data.portions[0].images
        names = list(images.class_names)
        if loaded.num_classes != len(names):
            raise RunError(
                f"{loaded.source}: predicts {loaded.num_classes} classes, the masks have {len(names)} "
                f"({', '.join(names[:3])} …); evaluate it on masks of the classes that it was trained on"
            )
        own = loaded.class_names if _named(loaded.class_names) else None
        if own is not None and _named(names) and own != names:
            place = next(number for number, pair in enumerate(zip(own, names, strict=True)) if len(set(pair)) > 1)
            raise RunError(
                f"{loaded.source}: its class {place} is {own[place]}, that of the masks {names[place]}; "
                "give the masks' classes.txt the order of the model"
            )
        inference = self.inference.for_model(loaded, self.batch_size)
        colours = [[int(part) for part in colour] for colour in images.colours]
        published = self.data.layout == "Cityscapes" and self.settings.corruptions
        return {
            "task": SEGMENTATION,
            "pixels": Pixels(height=OWN_SIZE_WORDS, width=OWN_SIZE_WORDS),
            "class_names": own or names,
            "class_colours": loaded.class_colours or colours,
            "inference": self.inference.describe(inference),
            "notes": ([NOT_PUBLISHED] if published else []) + self.approximations(),
        }

    def geometry(self, loaded: LoadedModel) -> object:
        """All see the same images; they are normalised for each model."""
        del loaded
        return None

    def work(self, loaded: LoadedModel) -> Work:
        """As many variants as go through a model at a time."""
        del loaded
        settings = self.settings
        reader = SegmentedReader(
            self.items, self.data.portions, self.variants, settings.seed, settings.constants, self.custom, self.cache
        )
        return self._work(reader, plan_images(len(self.variants), self.batch_size, split=True))

    def probe(self, loaded: LoadedModel) -> Probe:
        """Whole images or sliding windows, as the settings say."""
        return WindowsProbe(loaded, self.inference, self.batch_size, [self.images[item.image][0] for item in self.items])

    def input_size(self, loaded: LoadedModel) -> InputSize:
        """The images' own."""
        del loaded
        return OWN_SIZE


def _evaluate_models(
    models: Sequence[LoadedModel],
    folders: Sequence[Path],
    plan: _Plan,
    processes: Processes,
    *,
    overwrite: bool,
    progress: bool | None,
) -> None:
    """Evaluate all models, those that take the same images together."""
    groups: dict[object, list[Subject]] = {}
    works: dict[object, Work] = {}
    for loaded, folder in zip(models, folders, strict=True):
        wanted = plan.wanted(loaded)
        geometry = plan.geometry(loaded)
        work = works.setdefault(geometry, plan.work(loaded))
        subject = Subject(
            loaded,
            [plan.probe(loaded)],
            Stopwatch(),
            device=processes.device,
            input_size=plan.input_size(loaded),
            batch_size=plan.batch_size,
            amp=plan.settings.amp,
        )
        description = open_run(subject, folder, wanted, work, processes, example=None, overwrite=overwrite)
        if not description.complete:
            groups.setdefault(geometry, []).append(subject)
    for geometry, subjects in groups.items():
        sweep(subjects, works[geometry], processes, progress=progress)
    processes.wait()


def run_folders(output: Path, sources: Sequence[str | Path]) -> list[Path]:
    """The folder of each checkpoint's run: `output`, or for several a folder in it with a name of its own."""
    if len(sources) == 1:
        return [output]
    return [output / name for name in folder_names([source_name(source) for source in sources])]


def _constants(data: EvaluationData[Any], loaded: LoadedModel, *, segmented: bool) -> ConstantSet:
    """The set of constants for all images: by the first one's own size for segmentation, else by that of the model's input."""
    return choose_constants(min(data.portions[0].images.size(0) if segmented else loaded.input_size[1:]))


def _open(data: Any, loaded: LoadedModel, limit: int | None, *, segmented: bool) -> EvaluationData[Any]:
    return open_segmented_data(data, loaded) if segmented else open_evaluation_data(data, limit)


def _is_path(source: object) -> bool:
    """Whether something lies on the disk or is a timm name, not in memory."""
    return isinstance(source, str | Path)


def _named(names: Sequence[str] | None) -> bool:
    """Whether classes have names, not numbers."""
    return names is not None and not all(name.isdecimal() for name in names)


def _require_options(
    inference: InferenceSettings, baseline: str | Path | None, clean: str | Path | None, *, segmented: bool
) -> None:
    """Raise a `RunError` for options of the other task."""
    if segmented and baseline is not None:
        raise RunError("a baseline is what mCE is divided by, which segmentation does not have; compare the runs instead")
    if segmented and clean is not None:
        raise RunError("clean images beside a tree are for relative mCE, which segmentation does not have; evaluate them alone")
    if not segmented and inference != InferenceSettings():
        raise RunError("window, stride, whole, flip and scales are for segmentation models, but the checkpoint is a classifier")


def _require_task(task: str | None, data: Any) -> None:
    """Find out before any model is loaded whether the task exists and the data can be for it.

    Raises:
        RunError: there is no such task, or the data are for the other one.
        ImageError: there is no such folder.
    """
    if task is not None and task not in TASKS:
        raise RunError(f"unknown task {task!r}; valid tasks: {', '.join(TASKS)}")
    if not isinstance(data, Path):
        if task == SEGMENTATION:
            raise RunError("segmentation models are evaluated on images with masks in a folder; images in memory have none")
        return
    if not data.is_dir() and not (data.suffix.lower() == ".csv" and data.is_file()):
        problem = "it is a file" if data.exists() else "there is no such folder"
        raise ImageError(f"{data}: expected a folder of labelled images, or of images and masks, but {problem}")
    if task == "classification" and is_segmented(data):
        raise RunError(f"{data}: holds images with masks, which classification has no use for; try --task segmentation")


def _task_of(models: Sequence[LoadedModel], task: str | None, data: Any) -> str:
    """What the checkpoints are for: "segmentation" or "classification".

    Raises:
        RunError: they are not what was asked for, not all of one kind, or classifiers with images and masks.
    """
    kinds = [TASKS[is_segmentation(loaded.model)] for loaded in models]
    wanted = task or kinds[0]
    for loaded, kind in zip(models, kinds, strict=True):
        if kind != wanted:
            asked = f"--task {wanted}" if task else f"{models[0].source} is for {wanted}"
            what = "a segmentation model" if kind == "segmentation" else "no segmentation model"
            raise RunError(
                f"{loaded.source}: {what} ({loaded.name}), but {asked}; evaluate checkpoints of one kind with their task"
            )
    if wanted == SEGMENTATION and not _is_path(data):
        raise RunError("segmentation models are evaluated on images with masks in a folder; images in memory have none")
    if wanted == "classification" and _is_path(data) and is_segmented(data):
        raise RunError(
            f"{models[0].source}: {models[0].name} is no segmentation model, but {data} holds images with masks; "
            "give labelled images, or a segmentation checkpoint"
        )
    return wanted


def _is_run(source: str | Path) -> bool:
    """Whether a baseline is a run folder, not a checkpoint."""
    return (Path(source) / "run.json").is_file()


def _require_comparable(baseline: Evaluation, images: Sequence[tuple[str, str | None]], settings: RunSettings) -> None:
    """Find out before anything is evaluated whether mCE can be relative to a baseline.

    Raises:
        RunError: it is not finished, saw other images or others of their corruptions, or none of the severities.
    """
    where, description = baseline.path, baseline.run.description
    if not baseline.run.complete:
        raise RunError(f"{where}: expected a finished evaluation as the baseline, got an interrupted one; finish it first")
    alike = {
        "made": "corruptions",
        "constants": "constants",
        "tree_geometry": "tree geometry",
        "seed": "seed",
        "limit": "limit",
    }
    for name, words in alike.items():
        mine, other = getattr(settings, name), getattr(description.settings, name)
        if mine != other:
            raise RunError(f"{where}: the baseline was evaluated with {words} {other!r}, expected {mine!r}; evaluate it alike")
    if [(image.name, image.label) for image in description.images] != list(images):
        raise RunError(f"{where}: the baseline was evaluated on other images; evaluate it on the same data")
    wanted = [(name, level) for name in settings.corruptions if name in GROUPS["common"] for level in settings.severities]
    there = list(errors_of(baseline.table)[0])
    if wanted and not set(wanted) & set(there):
        raise RunError(
            f"{where}: the baseline was evaluated under {describe_variants(there)} alone, expected some of "
            f"{describe_variants(wanted)}; evaluate it under the same corruptions and severities"
        )
