"""What `train` takes, for the Python interface and the command line."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from overfocus.errors import OverfocusError, TrainingError
from overfocus.settings import LARGEST_COUNT, LARGEST_SEED, Settings, described, setting
from overfocus.training.recipe import Recipe, load_recipe, recipe_names

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
        "classification", "What is learned: classification, or segmentation, a class for every pixel."
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
        "What is optimised: supervised, or mae, a masked autoencoder (He et al. 2022), which needs no labels and gives an "
        "encoder to start from.",
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
        "Token-aware average pooling in front of the attention, with this number of branches (the paper: 4); for a model that "
        "has it, the number of its branches. On top of trained weights it starts as the identity.",
        least=1,
        most=64,
        metavar="K",
    )
    tap_pooling: Literal["average", "max", "gaussian", "learned"] = setting(
        "average", "What a branch takes of its neighbourhood."
    )
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
        None, "Names of the classes, where the data only number them.", commas=True, metavar="NAME,NAME,…"
    )
    limit: int | None = setting(
        None, "Train on this many images only, spread evenly over the data.", least=1, most=LARGEST_COUNT, metavar="N"
    )
    seed: int = setting(0, "Seed of weights, order, augmentation and dropout.", least=0, most=LARGEST_SEED, metavar="N")
    precision: Literal["auto", "float32", "bfloat16", "float16"] | None = _of_recipe("precision")
    checkpointing: bool = setting(
        False, "Keep fewer activations and compute them again in the backward pass: less memory, a third more time."
    )
    compiled: bool = setting(False, "Compile the model with torch.compile.", spelling=("--compile",))
    device: str | None = setting(None, "cpu or cuda.", none="what accelerate finds", affects_result=False, metavar="DEVICE")
    workers: int | None = setting(
        None,
        "Processes that read and augment images beside the model; 0 does it in this one.",
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
        "Steps between two measurements of the attention on four fixed images, into log.csv, curves.png and the trackers; they "
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
    overwrite: bool = setting(False, "Start again, replacing the training that the output folder holds.", affects_result=False)
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
