"""How a model is trained: the settings that a recipe file holds, named as in the file."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, get_type_hints

from overfocus.errors import TrainingError
from overfocus.training.setting_values import checked

PRECISIONS = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every setting of a training that its result depends on, beside the data, the model and the seed.

    Raises:
        TrainingError: a value is out of range.
    """

    epochs: int | None = None
    iterations: int | None = None
    """Steps to take; in place of `epochs`."""
    batch_size: int
    """Images in one forward of one process."""
    accumulation: int = 1
    """Forwards whose gradients are added up for one step of the optimiser."""

    optimizer: str = "adamw"
    """A name that timm.optim knows."""
    learning_rate: float
    """The highest one; with a `reference_batch`, that for so many images a step, scaled in proportion to their real number."""
    reference_batch: int | None = None
    weight_decay: float = 0.05
    """Not applied to biases, norms and what the model excepts (class token, position table)."""
    layer_decay: float | None = None
    """Factor on the learning rate from each layer to the one before it, for fine-tuning."""
    head_rate: float = 1.0
    """Factor on the learning rate of the classifier, or of all of a segmentation head."""
    clip_norm: float | None = None
    """Longest gradient; longer ones are scaled down."""
    schedule: str = "cosine"
    """A name that timm.scheduler knows, or "none"."""
    power: float = 1.0
    """Of the schedule "poly"."""
    warmup_epochs: float = 0.0
    warmup_iterations: int | None = None
    """Steps of the warm-up; in place of `warmup_epochs`."""
    warmup_rate: float = 1e-6
    """Learning rate at the first step of the warm-up."""
    minimum_rate: float = 1e-6
    cooldown_epochs: int = 0
    """Epochs at `minimum_rate`, after the others."""

    init_ema: bool = True
    """Start from the weights averaged over training, where the checkpoint to start from holds them beside others."""
    drop_path: float = 0.0
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Share of the picture's area that a random crop takes."""
    crop_ratio: tuple[float, float] = (0.75, 1.3333333)
    flip: float = 0.5
    interpolation: str = "random"
    color_jitter: float | None = None
    auto_augment: str | None = None
    """timm's notation, such as "rand-m9-mstd0.5-inc1"."""
    erasing: float = 0.0
    """Probability of random erasing (filled with noise pixel by pixel)."""
    patch_augmentation: bool = False
    """RVT's: a second forward on pictures whose patches are augmented one by one."""
    repeated_augmentation: int = 1
    """How often each picture occurs in a row, differently augmented; epochs stay as long."""
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_probability: float = 1.0
    mix_switch: float = 0.5
    """Probability of cutmix where both are on."""
    label_smoothing: float = 0.0

    resize_scale: tuple[float, float] = (0.5, 2.0)
    """Segmentation: factor on the picture's size, before a crop of the model's input size."""
    largest_share: float = 0.75
    """Segmentation: crops are tried until no class takes more of its pixels than this, ten at most."""
    photometric: bool = False
    """Segmentation: change brightness, contrast, saturation and hue."""

    ema_decay: float | None = None
    """Decay of the moving average of the weights per step; the averaged ones are then validated and saved."""
    ema_warmup: bool = False
    """Let the decay rise from 0, for short trainings."""
    masking: float = 0.75
    """Share of the patches that a masked autoencoder does not see; this and the next two matter to `objective` mae alone."""
    decoder_width: int = 128
    decoder_depth: int = 2

    precision: str = "auto"
    """"auto": bfloat16 on a GPU that has it, else float32."""

    adl: float | str = 0.0
    """Weight λ of the attention diversification loss; "auto" keeps its gradient at `adl_share` of the task's."""
    adl_threshold: float = 2.0
    adl_layers: tuple[int, ...] | None = None
    adl_warmup: float = 0.0
    """Epochs in which λ rises from 0."""
    adl_share: float = 0.1

    def __post_init__(self) -> None:
        for name, (low, high, rule) in _RANGES.items():
            value = getattr(self, name)
            for number in value if isinstance(value, tuple) else [value]:
                if number is not None and not (low <= number <= high if rule.startswith("from") else low < number <= high):
                    raise TrainingError(f"{name} must be {rule}, got {number}")
        if not (self.adl >= 0 if isinstance(self.adl, float) else self.adl == "auto"):
            raise TrainingError(f"adl must be a weight from 0 on or auto, got {self.adl!r}")
        if self.precision not in PRECISIONS:
            raise TrainingError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if self.decoder_width < 32 or self.decoder_width % 32:
            raise TrainingError(f"decoder_width must be a multiple of 32, got {self.decoder_width}")
        for name in ("crop_scale", "crop_ratio", "resize_scale"):
            low, high = getattr(self, name)
            if low > high:
                raise TrainingError(f"{name} must go from small to large, got {low} to {high}")
        if (self.epochs is None) == (self.iterations is None):
            raise TrainingError("expected either epochs or iterations in a recipe")
        if self.head_rate != 1 and self.schedule == "none":
            raise TrainingError("head_rate needs a schedule; constant keeps the learning rates as they are")
        if self.mixed and self.batch_size % 2:
            raise TrainingError(
                f"mixup and cutmix pair the images of a batch; expected an even batch_size, got {self.batch_size}"
            )
        if (
            self.epochs is not None
            and self.warmup_iterations is None
            and self.warmup_epochs >= self.epochs
            and self.schedule != "none"
        ):
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
        given = {name: checked(name, value, _types()) for name, value in changes.items()}
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
_LARGEST = sys.float_info.max
_RANGES: dict[str, tuple[float, float, str]] = {
    **dict.fromkeys(("epochs", "batch_size", "accumulation", "repeated_augmentation"), (1, _LARGEST, "from 1 on")),
    **dict.fromkeys(("reference_batch", "decoder_depth"), (1, _LARGEST, "from 1 on")),
    "iterations": (1, _LARGEST, "from 1 on"),
    **dict.fromkeys(
        ("learning_rate", "clip_norm", "adl_threshold", "head_rate", "power", "resize_scale"), (0, _LARGEST, "above 0")
    ),
    "warmup_iterations": (0, _LARGEST, "from 0 on"),
    **dict.fromkeys(
        ("weight_decay", "warmup_epochs", "warmup_rate", "minimum_rate", "cooldown_epochs", "mixup", "cutmix", "adl_warmup"),
        (0, _LARGEST, "from 0 on"),
    ),
    "color_jitter": (0, _LARGEST, "from 0 on"),
    **dict.fromkeys(("flip", "erasing", "mix_probability", "mix_switch"), (0, 1, "from 0 to 1")),
    **dict.fromkeys(("drop_path", "label_smoothing"), (0, 0.999, "from 0 to below 1")),
    "masking": (0, 0.999, "above 0 and below 1"),
    **dict.fromkeys(("layer_decay", "crop_scale", "adl_share", "largest_share"), (0, 1, "above 0 and at most 1")),
    "crop_ratio": (0, _LARGEST, "above 0"),
    "ema_decay": (0, 0.9999999, "above 0 and below 1"),
}  # fmt: skip


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.name.removesuffix(".yaml") for path in _folder().iterdir() if path.name.endswith(".yaml"))


def load_recipe(name: str | Path) -> Recipe:
    """A recipe that comes with the package by its name, or a YAML file.

    Raises:
        TrainingError: there is no such recipe, or its file is none.
    """
    import yaml

    if str(name) in recipe_names():
        text = (_folder() / f"{name}.yaml").read_text(encoding="utf-8")
    elif Path(name).is_file():
        text = Path(name).read_text(encoding="utf-8")
    else:
        raise TrainingError(f"no recipe {str(name)!r}; expected {', '.join(recipe_names())} or a YAML file")
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise TrainingError(f"{name}: expected YAML, got {' '.join(str(error).split())[:120]}") from None
    if not isinstance(content, dict):
        raise TrainingError(f"{name}: expected settings such as `epochs: 10`, got {type(content).__name__}")
    missing = [key for key in ("batch_size", "learning_rate") if key not in content]
    if not {"epochs", "iterations"} & set(content):
        missing = ["epochs (or iterations)", *missing]
    if missing:
        raise TrainingError(f"{name}: expected epochs, batch_size and learning_rate in a recipe, {', '.join(missing)} is missing")
    return Recipe(**{str(key): checked(str(key), value, _types()) for key, value in content.items()})


@cache
def _types() -> dict[str, Any]:
    hints = get_type_hints(Recipe)
    return {field.name: hints[field.name] for field in fields(Recipe)}


def _folder() -> Any:
    return files("overfocus.training") / "recipes"
