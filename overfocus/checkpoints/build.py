"""Build the model that a state dict belongs to, account for every tensor of both, and put the values in.

timm's own conversion (foreign names, position tables, patch sizes) is kept and used for each architecture.
"""

import contextlib
import difflib
import inspect
import io
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
import timm.models._builder as timm_builder
import torch
from timm.models import vision_transformer
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from overfocus.checkpoints.arguments import trunk
from overfocus.checkpoints.index import CLASSIFIERS, is_table, is_tap, is_tap_predictor
from overfocus.errors import CheckpointError, OverfocusError, first_line
from overfocus.text import some

Convert = Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]]
UNREGISTERED = "VisionTransformer"
"""Architecture of a model made by `timm.models.vision_transformer.VisionTransformer(**model_args)` rather than by name."""
MAXVIT = "MaxVit"
"""Architecture of a model made by torchvision's `MaxVit`, which timm's of that name differs from in scale, padding and head."""
SEGFORMER = "_segformer"
"""Behind the name of a backbone: this one under the SegFormer head, where no architecture of that name is registered."""

_BUILDING = threading.Lock()


def build(name: str, arguments: Mapping[str, Any], tap: Mapping[str, Any] | None = None) -> tuple[nn.Module, Convert]:
    """A new model and the function by which timm brings weights into its form (names, position tables, patch size).

    Raises:
        CheckpointError: the architecture does not take these arguments.
    """
    import overfocus.models  # registers our architectures with timm

    try:
        with _recorded_conversion() as recorded:
            model = create(name, arguments, pretrained=True)
        if name.removesuffix(SEGFORMER) == UNREGISTERED:
            convert: Convert = _convert_vit
        else:
            convert = _with_two_arguments(recorded[0]) if recorded and recorded[0] is not None else lambda state, _: state
        if trunk(model)[1]:
            convert = partial(_convert_trunk, convert)
        if tap is not None:
            model = overfocus.models.add_tap(model, **tap)
    except (TypeError, ValueError, AssertionError, RuntimeError, KeyError, AttributeError, OverfocusError) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items()) or "its defaults"
        raise CheckpointError(f"{name} cannot be built with {given} ({first_line(error)}); check model_args") from error
    return model, convert


def is_architecture(name: str) -> bool:
    """Whether `create` makes a model of this name."""
    import overfocus.models  # noqa: F401  registers our architectures with timm

    backbone = name.removesuffix(SEGFORMER)
    return name in (UNREGISTERED, MAXVIT) or bool(timm.is_model(name)) or (backbone != name and is_architecture(backbone))


def require_known(name: str) -> None:
    """Raise a `CheckpointError` that lists the nearest names unless timm or overfocus knows the architecture."""
    if not is_architecture(name.partition(".")[0]):
        near = difflib.get_close_matches(name, timm.list_models(), n=4, cutoff=0.5)
        nearest = f"the nearest are {', '.join(near)}" if near else "`overfocus list models` lists them"
        raise CheckpointError(
            f"{name!r} is neither a file nor an architecture of timm {timm.__version__} or overfocus; {nearest}"
        )


def create(name: str, arguments: Mapping[str, Any], *, pretrained: bool = False) -> nn.Module:
    """A model by a name that timm or overfocus registers, "VisionTransformer" (all with `_segformer` behind, too) or "MaxVit".

    Whatever timm raises about arguments that do not fit goes through.
    """
    from overfocus.models.segmentation import segmentation_model

    backbone = name.removesuffix(SEGFORMER)
    if name == UNREGISTERED:
        return vision_transformer.VisionTransformer(**arguments)
    if name == MAXVIT:
        return _maxvit(**arguments)
    if backbone == name or timm.is_model(name):
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **arguments)
        return model
    head = {key: arguments[key] for key in ("num_classes", "in_chans") if key in arguments}
    return segmentation_model(create(backbone, {**arguments, "num_classes": 0}, pretrained=pretrained), **head)


def _maxvit(img_size: int | tuple[int, int] = 224, num_classes: int = 1000, **arguments: Any) -> nn.Module:
    """MaxViT of torchvision, saying of itself what timm's models say; without classes it gives the mean of its last grid."""
    from torchvision.models.maxvit import MaxVit  # timm requires torchvision

    size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    plain = {"stem_channels": 64, "partition_size": 7, "block_channels": (64, 128, 256, 512), "block_layers": (2, 2, 5, 2)}
    given: Any = plain | {"head_dim": 32} | arguments
    given |= {key: list(given[key]) for key in ("block_channels", "block_layers")}
    model: Any = MaxVit(size, stochastic_depth_prob=0.0, num_classes=max(num_classes, 1), **given)
    if not num_classes:
        model.classifier = model.classifier[:2]
    model.num_classes, model.img_size = num_classes, size
    model.pretrained_cfg = {"classifier": "classifier.5", "first_conv": "stem.0.0", "input_size": (3, *size)}
    result: nn.Module = model
    return result


def outline(name: str, arguments: Mapping[str, Any], tap: Mapping[str, Any] | None = None) -> tuple[nn.Module, Convert]:
    """`build` without memory or initialisation (on torch's meta device), to compare names and shapes with."""
    with torch.device("meta"), _WithoutInitialisation():
        return build(name, arguments, tap)


def build_empty(name: str, arguments: Mapping[str, Any], tap: Mapping[str, Any] | None = None) -> tuple[nn.Module, Convert]:
    """`build` with parameters that hold no values yet, for a model that is going to be filled to the last tensor.

    What a model computes when it is built (position indices, frequencies) is there.
    """
    with _WithoutRandomValues():
        return build(name, arguments, tap)


def skeleton(name: str, arguments: Mapping[str, Any], tap: Mapping[str, Any] | None = None) -> nn.Module:
    """The same model without memory or initialisation (on torch's meta device), to compare shapes with."""
    return outline(name, arguments, tap)[0]


class _WithoutRandomValues(TorchFunctionMode):
    """Leaves parameters as they were allocated: drawing random values for them takes longer than loading the real ones."""

    _DRAWING = frozenset(
        "uniform_ normal_ erfinv_ mul_ add_ clamp_ fill_ zero_ trunc_normal_ kaiming_uniform_ kaiming_normal_ xavier_uniform_ "
        "xavier_normal_ orthogonal_ constant_".split()
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        first = args[0] if args else given.get("tensor")
        if isinstance(first, nn.Parameter) and getattr(func, "__name__", "") in self._DRAWING:
            return first
        return func(*args, **given)


class _WithoutInitialisation(TorchFunctionMode):
    """Leaves out filling tensors that have no memory: torch's detour for it costs more than building the model."""

    _FILLING = frozenset({"uniform_", "normal_", "erfinv_", "mul_", "add_", "clamp_", "fill_", "zero_", "copy_"})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if args and isinstance(args[0], Tensor) and args[0].is_meta and getattr(func, "__name__", "") in self._FILLING:
            return args[0]
        given = kwargs or {}
        if func is torch.linspace and "device" not in given:
            given = {**given, "device": "cpu"}  # older timm reads its drop path rates from such a tensor
        return func(*args, **given)


def _with_two_arguments(convert: Callable[..., dict[str, Tensor]]) -> Convert:
    """Some of timm's conversions take the state dict alone."""
    if len(inspect.signature(convert).parameters) > 1:
        return convert
    return lambda state, _: convert(state)


def _convert_trunk(convert: Convert, state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The conversion of a backbone on its part of the weights of a segmentation model."""
    backbone, front = trunk(model)
    inside = {name.removeprefix(front): tensor for name, tensor in state.items() if name.startswith(front)}
    beside = {name: tensor for name, tensor in state.items() if not name.startswith(front)}
    return {**{front + name: tensor for name, tensor in convert(inside, backbone).items()}, **beside}


def _convert_vit(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    assert isinstance(model, vision_transformer.VisionTransformer)
    return vision_transformer.checkpoint_filter_fn(state, model)


@contextlib.contextmanager
def _recorded_conversion() -> Iterator[list[Convert | None]]:
    """Have timm hand its weight conversion over instead of downloading weights.

    timm keeps that function inside each model's builder and passes it to `load_pretrained` alone; in this block that call,
    from this thread, records it and loads nothing.
    """
    recorded: list[Convert | None] = []
    original, owner = timm_builder.load_pretrained, threading.get_ident()

    def record(*args: Any, **kwargs: Any) -> None:
        if threading.get_ident() != owner:
            original(*args, **kwargs)
        else:
            recorded.append(kwargs.get("filter_fn"))

    with _BUILDING:
        timm_builder.load_pretrained = record
        try:
            yield recorded
        finally:
            timm_builder.load_pretrained = original


def tap_branches(tensors: Mapping[str, Tensor]) -> int | None:
    """Number of branches (K) of the TAP predictors in a state dict, None if there are none."""
    for name, tensor in tensors.items():
        if is_tap_predictor(name) and tensor.ndim == 4:
            return tensor.shape[0]
    return None


def added_tap(tensors: Mapping[str, Tensor], outline: nn.Module) -> dict[str, Any] | None:
    """Arguments of `add_tap` that give an architecture without TAP the TAP that a state dict has; None where it has none."""
    from overfocus.models.add_tap import find_sites

    branches = tap_branches(tensors)
    if branches is None or tap_branches(outline.state_dict()) is not None:
        return None
    names = {module: name for name, module in outline.named_modules()}
    blocks = {name.partition(".dilation_predictor.")[0] for name in tensors if is_tap_predictor(name)}
    layers = [number for number, site in enumerate(find_sites(outline)) if names[site.block] in blocks]
    marks = {name.rpartition(".")[2] for name in tensors if is_tap(name) and not is_tap_predictor(name)}
    pooling = "learned" if "kernels" in marks else next(iter(marks), "average")
    return {"branches": branches, "layers": layers, "pooling": pooling} if layers else None


_HARMLESS = re.compile(
    r"(^|\.)(relative_position_index|rel_pos_index|relative_coords_table|attn_mask|attention_bias_idxs|num_batches_tracked"
    r"|rope\.freqs_(cos|sin)|freqs_(cos|sin)|inv_freq|periods|bias_mask|position_ids|(dino_|ibot_|\w*_)?mask_tokens?|masked_embed"
    r"|rope_embed\.\w+|rope\.periods|n_averaged|k_bias|(y|targets?|labels?|outputs?)_(mean|std))$"
    r"|^(decoder(_\w+)?|decode_head|auxiliary_head|mask_decoder|prompt_encoder|lm_head|mim_head|((online|student|byol|moco|jepa|dino|box|bbox|class|mask)_)?predictor|projector|projection"
    r"|projection_head|proj_head|contrastive_head|prototypes|dino_head|ibot_head|bbox_head|rpn_head|roi_head|sem_seg_head|text"
    r"|text_model|text_encoder|token_embedding|logit_scale|logit_bias|local_cls_norm|cls_pt_layers|neck|outer_tokens|criterion|loss\w*)(\.|$)"
)
"""What cannot change an encoder's output for an unmasked image: heads of other tasks, mask tokens, computable buffers."""
_CLASSIFIER = re.compile(rf"^({CLASSIFIERS})\.")
_ALIGNMENT = 64
_COMPUTED = re.compile(r"running_(mean|var)$")


_ROTARY = re.compile(r"(^|\.)(rope|freqs|inv_freq|periods)(_|\.|$)")
_MASK = re.compile(r"(^|\.)attn_mask$")


def _computes(model: nn.Module, name: str) -> bool:
    """Whether a model has of itself what a buffer of the file is: rotary positions and masks change what it computes without."""
    if _ROTARY.search(name):
        own = [*dict(model.named_modules()), *dict(model.named_buffers())]
        return any(_ROTARY.search(other) for other in own)
    return not _MASK.search(name) or any(_MASK.search(other) for other, _ in model.named_buffers())


def contradicted(model: nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    """Buffers of a file that a model computes for itself and computes otherwise: another window, shift, scale or rotation.

    `tensors` are the file's with the names of `model`, which has been built with memory. Compared is what has the same shape;
    values that were rounded to half precision are equal.
    """
    own, kept = dict(model.named_buffers()), model.state_dict()
    rotary = [part for name, buffer in own.items() if _ROTARY.search(name) for part in (buffer, *buffer.tensor_split(2, -1))]
    found = []
    for name, tensor in tensors.items():
        if not is_harmless(name) or name in kept:
            continue
        if name.endswith(".k_bias"):
            same = not bool(tensor.any())  # only rotary positions make it count
        else:
            rivals = [own[name]] if name in own else rotary if _ROTARY.search(name) else []
            rivals = [rival for rival in rivals if rival.shape == tensor.shape]
            same = not rivals or any(torch.allclose(tensor.float(), rival.float(), rtol=0.01, atol=0.01) for rival in rivals)
        if not same:
            found.append(name)
    return found


def is_harmless(name: str) -> bool:
    """Whether a tensor cannot change what the encoder computes for an unmasked image."""
    return _HARMLESS.search(name) is not None


def is_buffer(name: str) -> bool:
    """Whether a harmless tensor is one that a model computes for itself, of which nothing need be said."""
    return "." in name and not re.match(r"\w*(decoder|head|predictor|project|prototypes|text)", name)


def is_running(name: str) -> bool:
    """Whether a buffer is a statistic that training gathers."""
    return _COMPUTED.search(name) is not None


def is_head(name: str, classifiers: tuple[str, ...]) -> bool:
    """Whether a tensor belongs to a classifier, the model's own or another."""
    if name.startswith(tuple(f"{layer}." for layer in classifiers)):
        return True
    return _CLASSIFIER.match(name) is not None and not re.match(r"head\.(norm|mlp|attn)", name)


BEFORE_CLASSIFIER = re.compile(r"(?!text|decod)\w*(neck|proj(ect(or|ion))?(_head)?|contrastive_head)\.")
"""Names of what trainers put between an encoder and its classifier."""


def before_classifier(dropped: Mapping[str, Tensor], heads: Mapping[str, Tensor]) -> list[str]:
    """Tensors that a model leaves out and that may stand between an encoder and its classifier: what it reads is their output."""
    widths = {tensor.shape[1] for tensor in heads.values() if tensor.ndim > 1}
    return [
        name for name, tensor in dropped.items() if BEFORE_CLASSIFIER.match(name) and tensor.ndim and tensor.shape[0] in widths
    ]


@dataclass(frozen=True)
class Accounts:
    """What becomes of the tensors of a file in a model."""

    missing: list[str]
    """Tensors of the model's trunk that the file does not have."""
    unexpected: list[str]
    """Tensors of the file's trunk that the model does not have."""
    unfit: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    """Tensors of the trunk that have another shape: (the file's, the model's)."""
    heads: list[str]
    """Tensors of classifiers that have no place in the model."""
    harmless: list[str]
    """Tensors of the file without part in the encoder: a decoder, a mask token, a buffer."""

    @property
    def exact(self) -> bool:
        """Whether every tensor of the trunk has its place, in both directions."""
        return not (self.missing or self.unexpected or self.unfit)

    @property
    def faults(self) -> str:
        """What does not match, in words."""
        parts = []
        if self.unfit:
            name, (got, expected) = next(iter(self.unfit.items()))
            more = f" and {len(self.unfit) - 1} more" if len(self.unfit) > 1 else ""
            parts.append(f"{name} has shape {got}, expected {expected}{more}")
        if self.unexpected:
            parts.append(f"no place for {some(self.unexpected)}")
        if self.missing:
            parts.append(f"missing {some(self.missing)}")
        return "; ".join(parts)


def convert_tensors(model: nn.Module, tensors: Mapping[str, Tensor], convert: Convert, path: object) -> dict[str, Tensor]:
    """The tensors in the form that timm gives them for this model (names, position tables).

    Raises:
        CheckpointError: timm's conversion, which indexes into whatever it is given, fails on them.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # some conversions print
            converted = convert(dict(tensors), model)
    except Exception as error:
        raise CheckpointError(
            f"{path}: its weights do not fit {type(model).__name__} ({first_line(error)}); try another --model"
        ) from error
    return {name: tensor for name, tensor in converted.items() if isinstance(tensor, Tensor)}


def account(
    model: nn.Module, tensors: Mapping[str, Tensor], converted: Mapping[str, Tensor], classifiers: tuple[str, ...]
) -> Accounts:
    """Compare a model with the tensors of a file, before (`tensors`) and after (`converted`) timm's conversion."""
    ours = model.state_dict()
    needed = {name for name, _ in model.named_parameters()} | {name for name in ours if _COMPUTED.search(name)}
    given = {tensor.untyped_storage()._cdata for tensor in tensors.values()}
    unfit = {}
    for name, tensor in converted.items():
        before = tensors.get(name)
        expected = tuple(ours[name].shape) if name in ours else None
        if expected is not None and tuple(tensor.shape) != expected:
            unfit[name] = (tuple(tensor.shape), expected)
        elif expected is not None and before is not None and before.numel() != tensor.numel() and not is_table(name):
            resampled = tensor.untyped_storage()._cdata not in given
            unfit |= {name: (tuple(before.shape), expected)} if resampled else {}
    lost, buffers = _swallowed(tensors, converted)
    if "norm.weight" in tensors.keys() - converted.keys() and "fc_norm.weight" in converted.keys() - tensors.keys():
        lost.append("norm.weight")  # timm starts a fine-tuning so; the network that the file is of normalised every token
    strange = [name for name in tensors if is_harmless(name) and not _computes(model, name)]
    left = [name for name in converted if name not in ours] + lost + buffers
    heads = [name for name in left if is_head(name, classifiers)]
    harmless = [name for name in left if name not in heads and name not in strange and is_harmless(name)]
    return Accounts(
        missing=[name for name in ours if name in needed and name not in converted and not is_head(name, classifiers)],
        unexpected=[name for name in dict.fromkeys(left + strange) if name not in heads and name not in harmless],
        unfit={name: shapes for name, shapes in unfit.items() if not is_head(name, classifiers)},
        heads=heads + [name for name in unfit if is_head(name, classifiers)],
        harmless=harmless,
    )


def _swallowed(tensors: Mapping[str, Tensor], converted: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """Tensors that a conversion left out, and the harmless ones among them.

    Neither their name nor their memory is in its result, nor, where it joined some, their number of values.
    """
    kept = {tensor.untyped_storage()._cdata for tensor in converted.values()}
    lost = [name for name, t in tensors.items() if name not in converted and t.untyped_storage()._cdata not in kept]
    given = {tensor.untyped_storage()._cdata for tensor in tensors.values()}
    made = sum(t.numel() for name, t in converted.items() if t.untyped_storage()._cdata not in given and name not in tensors)
    harmless = [name for name in lost if is_harmless(name)]
    lost = [name for name in lost if name not in harmless]
    return ([] if made and made == sum(tensors[name].numel() for name in lost) else lost), harmless


def fill(model: nn.Module, converted: Mapping[str, Tensor], path: object) -> None:
    """Make the tensors those of the model; values are not copied where type and memory are right already.

    Raises:
        CheckpointError: a value is NaN or infinite, or a weight is quantised or complex.
    """
    ours = model.state_dict()
    landing: dict[str, Tensor] = {}
    for name, tensor in converted.items():
        if name not in ours or ours[name].shape != tensor.shape:
            continue
        if ours[name].is_floating_point() and (not tensor.is_floating_point() or tensor.element_size() < 2):
            raise CheckpointError(
                f"{path}: {name} holds {str(tensor.dtype).removeprefix('torch.')}, a quantised or complex weight; "
                "save the model dequantised, as float32, float16 or bfloat16"
            )
        if not _finite(tensor):
            raise CheckpointError(
                f"{path}: {name} holds NaN or infinite values; the training that wrote it diverged, take an earlier one"
            )
        value = tensor.detach().to(ours[name].dtype).contiguous()
        part_of_larger = value.untyped_storage().nbytes() > value.numel() * value.element_size()
        aligned = value.data_ptr() % _ALIGNMENT == 0  # kernels may round differently on memory that is not
        landing[name] = value.clone() if part_of_larger or not aligned else value
    model.load_state_dict(landing, strict=False, assign=True)


def resampled_note(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """What was resampled to the image size, in words."""
    names = [n for n, t in after.items() if is_table(n) and n in before and before[n].shape != t.shape]
    if not names:
        return []
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    first = names[0]
    return [f"position tables resampled: {first} {tuple(before[first].shape)} → {tuple(after[first].shape)}{others}"]


def _finite(tensor: Tensor) -> bool:
    """Whether every value is finite; the sum says it at a tenth of the cost, but may overflow."""
    return bool(torch.isfinite(tensor.sum(dtype=torch.float32))) or bool(torch.isfinite(tensor).all())
