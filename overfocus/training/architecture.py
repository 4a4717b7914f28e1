"""The model to train, and what its result must say for `load_model` to build it again."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from overfocus.errors import CheckpointError, OverfocusError, TrainingError


@dataclass(frozen=True)
class Architecture:
    """Everything that `save_checkpoint` needs to know of a model beside its weights."""

    name: str
    """One that timm or overfocus registers, or "VisionTransformer" with `arguments`."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Of the function that builds it; num_classes, in_chans and (where it has one) img_size among them."""
    tap: dict[str, Any] | None = None
    """Of `overfocus.models.add_tap`."""

    def build(self, *, drop_path: float = 0.0, tap_init: str = "default") -> nn.Module:
        """The model with random weights.

        Raises:
            TrainingError: there is no such architecture, or it does not take the arguments.
        """
        import overfocus.models
        from overfocus.checkpoints.build import create

        arguments = dict(self.arguments) | ({"drop_path_rate": drop_path} if drop_path else {})
        try:
            require_registered(self.name)
            model = create(self.name, arguments)
            if self.tap is not None:
                overfocus.models.add_tap(model, **self.tap, init=tap_init)
        except TrainingError:
            raise
        except (TypeError, ValueError, AssertionError, RuntimeError, KeyError, AttributeError, OverfocusError) as error:
            given = ", ".join(f"{key}={value!r}" for key, value in {**arguments, **(self.tap or {})}.items())
            raise TrainingError(f"{self.name} cannot be built with {given}: {str(error).splitlines()[0]}") from error
        return model

    def outline(self) -> nn.Module:
        """The model without memory.

        Raises:
            TrainingError: as `build`.
        """
        from overfocus.checkpoints.build import skeleton

        try:
            return skeleton(self.name, self.arguments, self.tap)
        except CheckpointError as error:
            raise TrainingError(str(error)) from error


def require_registered(name: str) -> None:
    """Raise a `TrainingError` that names the nearest unless timm or overfocus knows the architecture."""
    import timm

    from overfocus.checkpoints.build import SEGFORMER, UNREGISTERED, is_architecture

    if not is_architecture(name.partition(".")[0]):
        name = name.removesuffix(SEGFORMER)
        near = difflib.get_close_matches(name, [*timm.list_models(), UNREGISTERED], n=4, cutoff=0.5)
        nearest = f"the nearest are {', '.join(near)}" if near else "`overfocus list models` lists them"
        raise TrainingError(f"no architecture {name!r}; {nearest}")


def choose_architecture(
    name: str,
    *,
    classes: int,
    channels: int,
    image_size: int | None,
    arguments: Mapping[str, Any],
    tap: Mapping[str, Any] | None,
) -> Architecture:
    """An architecture with as many classes and input channels as the data have; `arguments` come before what is derived here.

    Where `tap` asks for branches and the architecture has TAP of its own, these are its branches; otherwise TAP is added.

    Raises:
        TrainingError: there is no such architecture, or it does not take the arguments.
    """
    from overfocus.checkpoints.fit import takes_image_size
    from overfocus.checkpoints.tap import tap_branches

    require_registered(name)
    given: dict[str, Any] = {"num_classes": classes, "in_chans": channels} | dict(arguments)
    outline = Architecture(name, given).outline()
    if image_size is not None and takes_image_size(outline):
        given["img_size"] = image_size
    if tap is not None and tap_branches(outline.state_dict()) is not None:
        given["num_scales"] = tap["branches"]
        tap = None
    chosen = Architecture(name, given, None if tap is None else dict(tap))
    chosen.outline()
    return chosen
