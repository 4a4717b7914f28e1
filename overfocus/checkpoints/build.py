"""Build the model that a state dict belongs to, with timm's own conversion of foreign names and position tables."""

import contextlib
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import timm
import timm.models._builder as timm_builder
import torch
from timm.models import vision_transformer
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from overfocus.checkpoints.fit import trunk
from overfocus.checkpoints.messages import first_line
from overfocus.errors import CheckpointError, OverfocusError

Convert = Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]]
UNREGISTERED = "VisionTransformer"
"""Architecture of a model made by `timm.models.vision_transformer.VisionTransformer(**model_args)` rather than by name."""
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
        raise CheckpointError(f"{name} cannot be built with {given}: {first_line(error)}") from error
    return model, convert


def is_architecture(name: str) -> bool:
    """Whether `create` makes a model of this name."""
    import overfocus.models  # noqa: F401  registers our architectures with timm

    backbone = name.removesuffix(SEGFORMER)
    return name == UNREGISTERED or bool(timm.is_model(name)) or (backbone != name and is_architecture(backbone))


def create(name: str, arguments: Mapping[str, Any], *, pretrained: bool = False) -> nn.Module:
    """A model by a name that timm or overfocus registers, "VisionTransformer", or either of them with `_segformer` behind it.

    Whatever timm raises about arguments that do not fit goes through.
    """
    from overfocus.models.segmentation import segmentation_model

    backbone = name.removesuffix(SEGFORMER)
    if name == UNREGISTERED:
        return vision_transformer.VisionTransformer(**arguments)
    if backbone == name or timm.is_model(name):
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **arguments)
        return model
    head = {key: arguments[key] for key in ("num_classes", "in_chans") if key in arguments}
    return segmentation_model(create(backbone, {**arguments, "num_classes": 0}, pretrained=pretrained), **head)


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
