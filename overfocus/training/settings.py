"""How a model is trained, for the Python interface and the command line: the recipe, and what `train` takes besides."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from overfocus.errors import OverfocusError, TrainingError
from overfocus.files import read_text
from overfocus.settings import (
    LARGEST_COUNT,
    LARGEST_SEED,
    Settings,
    describe_type,
    described,
    did_you_mean,
    element,
    field_type,
    members,
    setting,
)
from overfocus.text import one_line, printable

_FOLDER = Path(__file__).parent / "recipes"
_LARGEST_FILE = 1_000_000
"""Bytes of a recipe file; those here have 800."""
_MANY = 10**9
_DEEPEST = 200
"""Opening brackets in a recipe."""


@dataclass(frozen=True, kw_only=True)
class Recipe(Settings):
    """Every setting of a training that its result depends on, beside the data, the model and the seed.

    Raises:
        TrainingError: a value is out of range, or two do not go together.
    """

    error: ClassVar[type[OverfocusError]] = TrainingError

    epochs: int | None = setting(None, "Passes over the data.", least=1, most=1_000_000, metavar="N")
    iterations: int | None = setting(None, "Number of steps, instead of epochs.", least=1, most=_MANY, metavar="N")
    batch_size: int = setting(help="Images in one forward of one process.", least=1, most=1_000_000, metavar="N")
    accumulation: int = setting(
        1, "Forwards whose gradients are added up for one step of the optimiser.", least=1, most=1_000_000, metavar="N"
    )

    optimizer: str = setting("adamw", "A name that timm.optim knows.")
    learning_rate: float = setting(
        help="Peak learning rate; with a reference_batch, the rate for that many images per step, scaled in proportion.",
        above=0,
        metavar="RATE",
    )
    reference_batch: int | None = setting(None, "Images per step that learning_rate is meant for.", least=1, most=_MANY)
    weight_decay: float = setting(
        0.05, "Not applied to biases, norms and what the model excepts (class token, position table).", least=0
    )
    layer_decay: float | None = setting(
        None, "Factor on the learning rate from each layer to the one before it, for fine-tuning.", above=0, most=1
    )
    head_rate: float = setting(1.0, "Factor on the learning rate of the classifier, or of all of a segmentation head.", above=0)
    clip_norm: float | None = setting(None, "Maximum gradient norm; larger gradients are scaled down.", above=0)
    schedule: str = setting("cosine", 'A name that timm.scheduler knows, or "none".')
    power: float = setting(1.0, 'Of the schedule "poly".', above=0)
    warmup_epochs: float = setting(0.0, "Epochs over which the learning rate rises.", least=0)
    warmup_iterations: int | None = setting(None, "Steps of the warm-up; in place of warmup_epochs.", least=0, most=_MANY)
    warmup_rate: float = setting(1e-6, "Learning rate at the first step of the warm-up.", least=0)
    minimum_rate: float = setting(1e-6, "Lowest learning rate.", least=0)
    cooldown_epochs: int = setting(0, "Epochs at minimum_rate, after the others.", least=0, most=1_000_000)

    init_ema: bool = setting(
        True, "Start from the weights averaged over training, where the checkpoint to start from holds them beside others."
    )
    drop_path: float = setting(0.0, "Largest probability of leaving out a residual branch.", least=0, most=0.999)
    crop_scale: tuple[float, float] = setting((0.08, 1.0), "Share of the image's area that a random crop takes.", above=0, most=1)
    crop_ratio: tuple[float, float] = setting((0.75, 1.3333333), "Width by height of a random crop.", above=0)
    flip: float = setting(0.5, "Probability of mirroring an image.", least=0, most=1)
    interpolation: str = setting("random", "Of the crop.")
    color_jitter: float | None = setting(None, "Largest change of brightness, contrast and saturation.", least=0)
    auto_augment: str | None = setting(None, 'timm\'s notation, such as "rand-m9-mstd0.5-inc1".')
    erasing: float = setting(0.0, "Probability of random erasing (filled with noise pixel by pixel).", least=0, most=1)
    patch_augmentation: bool = setting(False, "RVT's: a second forward on images whose patches are augmented one by one.")
    repeated_augmentation: int = setting(
        1, "How often each image occurs in a row, differently augmented; epochs stay as long.", least=1, most=1000
    )
    mixup: float = setting(0.0, "α of mixup.", least=0)
    cutmix: float = setting(0.0, "α of cutmix.", least=0)
    mix_probability: float = setting(1.0, "Probability of mixing a batch.", least=0, most=1)
    mix_switch: float = setting(0.5, "Probability of cutmix where both are on.", least=0, most=1)
    label_smoothing: float = setting(0.0, "Share of the target spread over all classes.", least=0, most=0.999)

    resize_scale: tuple[float, float] = setting(
        (0.5, 2.0), "Segmentation: factor on the image's size, before a crop of the model's input size.", above=0, most=16
    )
    largest_share: float = setting(
        0.75, "Segmentation: crops are tried until no class takes more of the pixels than this, ten at most.", above=0, most=1
    )
    photometric: bool = setting(False, "Segmentation: change brightness, contrast, saturation and hue.")

    ema_decay: float | None = setting(
        None,
        "Decay of the moving average of the weights per step; the averaged ones are then validated and saved.",
        above=0,
        most=0.9999999,
    )
    ema_warmup: bool = setting(False, "Let the decay rise from 0, for short trainings.")
    masking: float = setting(0.75, "Masked autoencoder: share of the patches that it does not see.", above=0, most=0.999)
    decoder_width: int = setting(
        128,
        "Masked autoencoder: width of the decoder.",
        least=32,
        most=16_384,
        check=lambda width: f"must be a multiple of 32, got {width}" if width % 32 else None,
    )
    decoder_depth: int = setting(2, "Masked autoencoder: blocks of the decoder.", least=1, most=1000)

    precision: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto", "Of the computation; auto is bfloat16 on a GPU that has it, else float32."
    )

    adl: float | Literal["auto"] = setting(
        0.0,
        "Weight λ of the attention diversification loss (the paper: 1), or auto, which keeps its gradient at adl_share of the "
        "task's.",
        least=0,
        metavar="WEIGHT|auto",
    )
    adl_threshold: float = setting(2.0, "τ of the paper: attention above so many times the mean is left out.", above=0)
    adl_layers: tuple[int, ...] | None = setting(None, "Only these layers, e.g. 3,4,-1.", none="all", metavar="N,N,…")
    adl_warmup: float = setting(0.0, "Epochs over which λ rises from 0.", least=0, metavar="EPOCHS")
    adl_share: float = setting(0.1, "What auto keeps the gradient of ADL at, as a share of the task's.", above=0, most=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("crop_scale", "crop_ratio", "resize_scale"):
            low, high = getattr(self, name)
            if low > high:
                self.refuse(name, f"must go from small to large, got {low} to {high}")
        if (self.epochs is None) == (self.iterations is None):
            raise TrainingError("expected either epochs or iterations in a recipe")
        if self.head_rate != 1 and self.schedule == "none":
            raise TrainingError("head_rate needs a schedule; constant keeps the learning rates as they are")
        if self.mixed and self.batch_size % 2:
            raise TrainingError(
                f"mixup and cutmix pair the images of a batch; expected an even batch_size, got {self.batch_size}"
            )
        timed = self.epochs is not None and self.warmup_iterations is None and self.schedule != "none"
        if timed and self.warmup_epochs >= (self.epochs or 0):
            raise TrainingError(
                f"a warm-up of {self.warmup_epochs:g} epochs leaves nothing of {self.epochs}; lower warmup_epochs or train longer"
            )

    @property
    def mixed(self) -> bool:
        """Whether images are blended with others."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def diversified(self) -> bool:
        """Whether the attention diversification loss takes part."""
        return self.adl == "auto" or float(self.adl) > 0

    def rate(self, images_per_step: int) -> float:
        """The highest learning rate with this many images a step."""
        return self.learning_rate * (images_per_step / self.reference_batch if self.reference_batch else 1)

    def changed(self, changes: Mapping[str, Any]) -> "Recipe":
        """A recipe with some settings replaced; texts are read as in a recipe file.

        Raises:
            TrainingError: there is no such setting, or its value makes no sense.
        """
        given = {str(name): _value(str(name), value) for name, value in changes.items()}
        if given.get("epochs") is not None and given.get("iterations") is not None:
            raise TrainingError("expected either epochs or iterations, got both; leave one out")
        for one, other in _ALTERNATIVES:  # what is asked for takes the place of what the recipe had
            if given.get(one) is not None and other not in given:
                given[other] = None if other != "warmup_epochs" else 0.0
        return replace(self, **given)


_ALTERNATIVES = (
    ("epochs", "iterations"), ("iterations", "epochs"),
    ("warmup_epochs", "warmup_iterations"), ("warmup_iterations", "warmup_epochs"),
)  # fmt: skip


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load_recipe(name: str | Path) -> Recipe:
    """A recipe that comes with the package by its name, or a YAML file.

    Raises:
        TrainingError: there is no such recipe, or its file is not a recipe.
    """
    shown = printable(name)
    path = _FOLDER / f"{name}.yaml" if str(name) in recipe_names() else Path(name)
    try:
        there = path.exists()
    except OSError:  # too long a name, a folder that may not be entered
        there = False
    if not there:
        near = did_you_mean(str(name), recipe_names())
        raise TrainingError(f"no recipe {shown!r}; expected {', '.join(recipe_names())} or a YAML file{near}")
    text = read_text(path, "a recipe in YAML", TrainingError, most=_LARGEST_FILE)
    try:
        content = _yaml(text)
    except ValueError as error:
        raise TrainingError(f"{shown}: expected a recipe in YAML, got {one_line(error, 120)}") from None
    if not isinstance(content, dict):
        raise TrainingError(f"{shown}: expected settings such as `epochs: 10`, got {type(content).__name__}")
    missing = [key for key in ("batch_size", "learning_rate") if key not in content]
    if not {"epochs", "iterations"} & set(content):
        missing = ["epochs (or iterations)", *missing]
    if missing:
        raise TrainingError(
            f"{shown}: expected epochs, batch_size and learning_rate in a recipe, {', '.join(missing)} is missing"
        )
    try:
        return Recipe(**{str(key): _value(str(key), value) for key, value in content.items()})
    except TrainingError as error:
        raise TrainingError(f"recipe {shown}: {error}") from error


def _value(name: str, value: Any) -> Any:
    """The value of a setting, a text read as YAML where the setting is no text.

    Raises:
        TrainingError: there is no such setting, or the text is no YAML.
    """
    known = [field.name for field in dataclasses.fields(Recipe)]
    if name not in known:
        near = did_you_mean(name, known)
        raise TrainingError(f"no setting {printable(name, 80)!r} in a recipe; valid ones are {', '.join(known)}{near}")
    kinds = members(field_type(Recipe, name))
    if str in kinds or not isinstance(value, str):
        return value
    try:
        value = _yaml(value)
    except ValueError as error:
        raise TrainingError(
            f"{name} must be {describe_type(field_type(Recipe, name))}, which this is not in YAML: {one_line(error, 120)}"
        ) from None
    if isinstance(value, str) and any(kind in (int, float) or element(kind) for kind in kinds):
        try:
            return float(value)  # YAML reads 1e-3 as text for want of a dot
        except ValueError:
            return value
    return value


_MISREAD = re.compile(r"[-+]?(0\d+|0b[01_]+|\d[\d_]*(:\d+)+(\.\d*)?|[\d.]+_[\d_.]*)")
"""Octal 010, binary, 1:30 for ninety and 1_0 for ten: YAML 1.1 has them, and nobody means them here."""


def _yaml(text: str) -> Any:
    """What a YAML text says, which may not refer to itself: a few such lines can stand for gigabytes.

    Raises:
        ValueError: it is no YAML.
    """
    import yaml

    if any(text.count(opening) > _DEEPEST for opening in "[{"):
        raise ValueError("lists nested too deeply")
    try:
        for event in yaml.parse(text, yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("an alias (*), which a recipe may not have")
            if isinstance(event, yaml.ScalarEvent) and event.implicit[0] and _MISREAD.fullmatch(event.value):
                raise ValueError(f"{printable(event.value, 40)}, which YAML reads as another number; write it in plain digits")
        root = yaml.compose(text, yaml.SafeLoader)
        keys = [key.value for key, _ in root.value if isinstance(key.value, str)] if isinstance(root, yaml.MappingNode) else []
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise ValueError(f"{printable(twice[0], 80)} twice; remove one")
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except RecursionError:
        raise ValueError("lists nested too deeply") from None


CLASSIFICATION, SEGMENTATION = "classification", "segmentation"
SUPERVISED, MASKED_AUTOENCODING = "supervised", "mae"
DEFAULT_RECIPES = {SUPERVISED: "small", MASKED_AUTOENCODING: "mae", SEGMENTATION: "segmentation_small"}
OF_THE_RECIPE = (
    "epochs", "iterations", "batch_size", "accumulation", "learning_rate", "precision", "adl", "adl_warmup", "adl_layers",
)  # fmt: skip
"""Settings of a recipe that `train` takes directly too."""
_IMAGES_ALONE = ("mixup", "cutmix", "erasing", "auto_augment", "color_jitter", "patch_augmentation")
"""Settings of a recipe that change images and not their masks."""


def _of_recipe(name: str, **about: Any) -> Any:
    """A setting of the recipe as one of `train`; None leaves it as the recipe has it."""
    known = described(Recipe, name)
    bounds = {key: getattr(known, key) for key in ("least", "most", "above", "below", "metavar", "commas")}
    return setting(None, known.help, **{"none": "the recipe's"} | bounds | about)


@dataclass(frozen=True)
class TrainSettings(Settings):
    """The arguments of `train`.

    Raises:
        TrainingError: a value is out of bounds, or task, objective and recipe do not fit each other.
    """

    error: ClassVar[type[OverfocusError]] = TrainingError

    data: str | Path = setting(
        help="Folder of class folders (or of train/ and val/ with them), of IDX files, or a Hugging Face data set. For "
        "segmentation: Cityscapes, ACDC, or images/ beside masks/.",
        argument=True,
        metavar="DATA",
    )
    output: str | Path = setting(Path("overfocus-training"), "Folder of the training.", affects_result=False, metavar="FOLDER")
    _: KW_ONLY
    task: Literal["classification", "segmentation"] = setting(
        "classification", "classification, or segmentation: a class for every pixel."
    )
    model: str | None = setting(
        None,
        "Architecture: a name of timm or overfocus, or VisionTransformer; for segmentation it gets the SegFormer head.",
        none="that of the checkpoint to start from",
        metavar="NAME",
    )
    model_args: Mapping[str, Any] | None = setting(
        None, "Arguments of the architecture, e.g. patch_size=4.", spelling=("--model-args", "--model-arg")
    )
    init: str | Path | None = setting(
        None,
        "Weights to start from: a checkpoint or a timm name; a classifier's go into the backbone of a segmentation model.",
        metavar="CHECKPOINT",
    )
    objective: Literal["supervised", "mae"] = setting(
        "supervised",
        "supervised, or mae: a masked autoencoder (He et al. 2022), which needs no labels and gives an encoder to start from.",
    )
    recipe: str | Path | Recipe | None = setting(
        None,
        f"{', '.join(recipe_names())} (fan, rvt and segmentation are the paper's), or a YAML file.",
        none="small, segmentation_small or mae, by task and objective",
        metavar="NAME",
    )
    changes: Mapping[str, Any] | None = setting(None, "Settings of the recipe to replace, e.g. mixup=0.8.", spelling=("--set",))
    tap: int | None = setting(
        None,
        "Token-aware average pooling before the attention, with this number of branches (the paper: 4); for a model that "
        "has it already, its number of branches. On top of trained weights it starts as the identity.",
        least=1,
        most=64,
        metavar="K",
    )
    tap_pooling: Literal["average", "max", "gaussian", "learned"] = setting("average", "How a branch pools its neighbourhood.")
    adl: float | Literal["auto"] | None = _of_recipe("adl")
    adl_warmup: float | None = _of_recipe("adl_warmup")
    adl_layers: Sequence[int] | None = _of_recipe("adl_layers")
    epochs: int | None = _of_recipe("epochs")
    iterations: int | None = _of_recipe("iterations")
    batch_size: int | None = _of_recipe("batch_size")
    accumulation: int | None = _of_recipe("accumulation")
    learning_rate: float | None = _of_recipe(
        "learning_rate", none="the recipe's, scaled by the images in a step where it says so; a rate given here is not scaled"
    )
    validation: str | Path | None = setting(
        None, "Data to validate with.", none="the validation part of the data, if there is one", metavar="DATA"
    )
    image_size: int | None = setting(
        None, "Side of the model's input in pixels.", none="the model's own", least=1, most=16_384, metavar="PIXELS"
    )
    class_names: Sequence[str] | None = setting(
        None, "Names of the classes, if the data only number them.", commas=True, metavar="NAME,NAME,…"
    )
    limit: int | None = setting(
        None, "Train on this many images only, spread evenly over the data.", least=1, most=LARGEST_COUNT, metavar="N"
    )
    seed: int = setting(0, "Seed of weights, order, augmentation and dropout.", least=0, most=LARGEST_SEED, metavar="N")
    precision: Literal["auto", "float32", "bfloat16", "float16"] | None = _of_recipe("precision")
    checkpointing: bool = setting(
        False, "Activation checkpointing: recompute activations in the backward pass, for less memory and a third more time."
    )
    compiled: bool = setting(False, "Compile the model with torch.compile.", spelling=("--compile",))
    device: str | None = setting(None, "cpu or cuda.", none="what accelerate finds", affects_result=False, metavar="DEVICE")
    workers: int | None = setting(
        None,
        "Worker processes that read and augment images; 0 uses the main process.",
        none="by the number of cores",
        least=0,
        most=256,
        affects_result=False,
        metavar="N",
    )
    log_every: int = setting(
        50, "Steps between two rows of log.csv.", least=1, most=LARGEST_COUNT, affects_result=False, metavar="STEPS"
    )
    save_every: int | None = setting(
        None,
        "Steps between two checkpoints.",
        none="an epoch",
        least=1,
        most=LARGEST_COUNT,
        affects_result=False,
        metavar="STEPS",
    )
    validate_every: int | None = setting(
        1, "Epochs between two validations.", none="never", least=1, most=LARGEST_COUNT, affects_result=False, metavar="EPOCHS"
    )
    watch_every: int | None = setting(
        None,
        "Steps between two measurements of the attention on four fixed images, into log.csv, the curves and the trackers; they "
        "do not change the training.",
        none="never",
        least=1,
        most=LARGEST_COUNT,
        affects_result=False,
        metavar="STEPS",
    )
    trackers: Sequence[str] | None = setting(
        None,
        "Trackers of accelerate, e.g. wandb.",
        none="tensorboard where it is installed",
        affects_result=False,
        metavar="NAME",
    )
    overwrite: bool = setting(False, "Start again, replacing the training in the output folder.", affects_result=False)
    progress: bool | None = setting(
        None, "Whether to show a progress bar.", none="on a terminal", affects_result=False, command_line=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model is None and self.init is None:
            raise TrainingError("expected an architecture or weights to start from; give --model NAME or --init CHECKPOINT")
        if self.task == SEGMENTATION and self.objective != SUPERVISED:
            raise TrainingError(
                f"objective {self.objective} trains no {SEGMENTATION}; train it first and give its result to --init"
            )
        changes = self.changes or {}
        for name in OF_THE_RECIPE:
            if name in changes and getattr(self, name) is not None:
                self.refuse("changes", f"must leave {name} out where it is given by itself")
        if "reference_batch" in changes and self.learning_rate is not None:
            self.refuse("changes", "must leave reference_batch out where learning_rate is given by itself, which is not scaled")

    def whole_recipe(self) -> Recipe:
        """The recipe with everything that replaces a part of it.

        Raises:
            TrainingError: there is no such recipe, or a value in it makes no sense.
        """
        recipe = self.recipe
        if recipe is None:
            recipe = DEFAULT_RECIPES[SEGMENTATION if self.task == SEGMENTATION else self.objective]
        changes = dict(self.changes or {})
        changes |= {name: getattr(self, name) for name in OF_THE_RECIPE if getattr(self, name) is not None}
        if self.learning_rate is not None:
            changes["reference_batch"] = None
        whole = (recipe if isinstance(recipe, Recipe) else load_recipe(recipe)).changed(changes)
        if self.task == SEGMENTATION and (given := [name for name in _IMAGES_ALONE if getattr(whole, name)]):
            raise TrainingError(
                f"{given[0]} changes images but not their masks; set it to 0 or null, or take the recipe segmentation or "
                "segmentation_small"
            )
        return whole
