"""`load_model`: from a checkpoint, a hub folder or a timm name to a model with its preprocessing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from overfocus.checkpoints.build import SEGFORMER, build, is_architecture, skeleton
from overfocus.checkpoints.data_config import class_colours_for, class_names_for, preprocess_for
from overfocus.checkpoints.facts import attends
from overfocus.checkpoints.fingerprint import is_classifier
from overfocus.checkpoints.fit import classifiers, fitting_arguments
from overfocus.checkpoints.hints import Hints, hints_of_config, hints_of_content, hints_of_metadata
from overfocus.checkpoints.hub import find_folder
from overfocus.checkpoints.layout import StateDict, find_state_dict
from overfocus.checkpoints.loaded import LoadedModel, wrap
from overfocus.checkpoints.pretrained import load_named
from overfocus.checkpoints.read import CheckpointFile, read_checkpoint
from overfocus.checkpoints.recognise import Recognised, known_by_shapes, recognise
from overfocus.checkpoints.tap import added_tap, tap_branches
from overfocus.checkpoints.weights import fill
from overfocus.errors import CheckpointError
from overfocus.samples import sample_checkpoint

__all__ = ["LoadedModel", "Source", "load_model", "resolve_model"]

Source = str | Path | nn.Module | LoadedModel
"""What can be measured: a checkpoint file or folder, a timm name, a module in memory, or one that was loaded or wrapped."""

_ON = ("use_ema", "pretrained")  # options that are on unless they are turned off
_SUFFIXES = (".pth", ".pt", ".tar", ".safetensors", ".bin", ".ckpt")


def load_model(
    source: str | Path,
    *,
    model: str | None = None,
    use_ema: bool = True,
    image_size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    pretrained: bool = True,
    device: str | torch.device = "cpu",
) -> LoadedModel:
    """Load a checkpoint file, a hub folder or a timm model by name.

    Args:
        source: `.pth`, `.pt`, `.pth.tar`, `.bin` or `.safetensors` file; folder with `config.json`; or a timm name.
        model: architecture, where the checkpoint does not say it and its shapes fit several.
        use_ema: take weights averaged over training where the file holds them.
        image_size: side or (height, width) to run at instead of the checkpoint's own; position tables are resampled.
        num_classes: a new classifier of that size instead of the checkpoint's (0: none).
        pretrained: for a timm name, load its trained weights; False gives random ones.
        device: where the model goes.

    Raises:
        CheckpointError: the source cannot be read, trusted, recognised or loaded; its text says what to try.
    """
    if not str(source).strip() or source == Path():
        raise CheckpointError("expected a checkpoint's path or a timm name, got an empty one (is a variable of the shell unset?)")
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    path = Path(source)
    if path.exists() or path.suffix in _SUFFIXES:
        file, hints = _read(path)
        state = find_state_dict(
            file.content, use_ema=use_ema, is_whole=lambda tensors: _is_segmentation(tensors, hints), path=path
        )
        loaded = _load(file, hints, state, recognise(state.tensors, hints, model, path), size, num_classes)
    else:
        loaded = load_named(str(source), size, num_classes, pretrained)
    loaded.model.to(device).eval()
    return loaded


def resolve_model(source: Source | None, *, device: str | torch.device | None = None, **options: Any) -> LoadedModel:
    """The model to measure, in eval mode: `source` loaded, wrapped, or as it is where it is loaded already.

    Args:
        source: what `load_model` takes; a module, which says of itself how images become its input (a timm or transformers
            model does; `overfocus.wrap` says it for any other); a `LoadedModel`; None for the bundled checkpoint.
        device: where the model goes; None leaves a model in memory where it is and loads a file to the CPU.
        options: as for `load_model`, for what is loaded here.

    Raises:
        CheckpointError: it cannot be loaded, or options of loading were given for a model that is in memory.
    """
    if isinstance(source, nn.Module | LoadedModel):
        given = [name for name, value in options.items() if value is not None and value is not (name in _ON)]
        if given:
            raise CheckpointError(f"{', '.join(given)}: said how to load a checkpoint, but the model given is in memory already")
        loaded = source if isinstance(source, LoadedModel) else wrap(source)
        loaded.model.eval()
        if device is not None:
            loaded.model.to(device)
        return loaded
    return load_model(sample_checkpoint() if source is None else source, device=device or "cpu", **options)


def _read(path: Path) -> tuple[CheckpointFile, Hints]:
    if path.is_dir():
        weights, config = find_folder(path)
        hints = hints_of_config(config, path / "config.json")
        return read_checkpoint(weights), hints
    file = read_checkpoint(path)
    return file, hints_of_metadata(file.metadata, path) if file.metadata.get("architecture") else hints_of_content(file.content)


def _load(
    file: CheckpointFile,
    hints: Hints,
    state: StateDict,
    recognised: Recognised,
    image_size: tuple[int, int] | None,
    num_classes: int | None,
) -> LoadedModel:
    name = recognised.name
    outline, arguments, tap, notes = _outline(name, recognised.arguments, hints.tap, state.tensors)
    if recognised.found_by != "asked for" and not attends(outline):
        raise CheckpointError(
            f"{file.path}: a {name}, which has no attention between tokens (--model {name} loads it all the same)"
        )
    _demand_size(outline, state, file.path, name)
    arguments = fitting_arguments(state.tensors, outline, arguments, image_size=image_size, num_classes=num_classes)
    tensors = _without_classifier(state.tensors, classifiers(outline)) if num_classes is not None else state.tensors
    model, convert = build(name, arguments, tap)
    try:
        filled = fill(model, tensors, convert, file.path)
    except CheckpointError as error:
        better = known_by_shapes(state.tensors)
        if better is None or better == name:
            raise
        raise CheckpointError(f"{error}; its shapes are those of {better}") from error
    preprocess, assumed = preprocess_for(model, hints, image_size or _pair(arguments.get("img_size")))
    return LoadedModel(
        model=model,
        preprocess=preprocess,
        name=name.partition(".")[0],
        source=str(file.path),
        sha256=file.sha256,
        found_by=recognised.found_by,
        weights_entry=state.entry,
        missing_keys=filled.missing,
        unexpected_keys=[*filled.unexpected, *state.left_out],
        notes=(*_weights_notes(state), *recognised.notes, *notes, *filled.notes, *assumed),
        model_args=arguments,
        class_names=class_names_for(hints, model),
        class_colours=class_colours_for(hints, model),
    )


def _is_segmentation(tensors: Mapping[str, Tensor], hints: Hints) -> bool:
    """Whether tensors `backbone.*` and `decode_head.*` are one model, as the checkpoint says or their shapes show."""
    if not all(any(name.startswith(front) for name in tensors) for front in ("backbone.", "decode_head.")):
        return False
    said = any(name.endswith(SEGFORMER) and is_architecture(name) for name, _ in hints.architectures)
    return said or known_by_shapes(tensors) is not None


def _outline(
    name: str, given: dict[str, Any], tap: dict[str, Any] | None, tensors: Mapping[str, Tensor]
) -> tuple[nn.Module, dict[str, Any], dict[str, Any] | None, list[str]]:
    """The architecture without memory, with the TAP that the state dict has: (model, its arguments, its `add_tap`, notes)."""
    outline = skeleton(name, given, tap)
    branches = tap_branches(tensors)
    if branches is None or branches == tap_branches(outline.state_dict()):
        return outline, given, tap, []
    added = added_tap(tensors, outline)
    if added is None:
        arguments = given | {"num_scales": branches}
        return skeleton(name, arguments, tap), arguments, tap, []
    note = (
        f"TAP added to {len(added['layers'])} blocks of {name} as the names say: {branches} branches, {added['pooling']} pooling"
    )
    return skeleton(name, given, added), given, added, [note]


def _demand_size(outline: nn.Module, state: StateDict, path: Path, name: str) -> None:
    """Refuse, before memory is taken for it, an architecture that is far larger than the checkpoint."""
    wanted = sum(parameter.numel() for key, parameter in outline.named_parameters() if not is_classifier(key))
    given = sum(tensor.numel() for tensor in state.tensors.values())
    if 2 * given < wanted:
        advice = known_by_shapes(state.tensors)
        hint = f"its shapes are those of {advice}" if advice else "try another --model"
        raise CheckpointError(f"{path}: {name} has {wanted:,} parameters, the checkpoint holds {given:,} values; {hint}")


def _pair(size: int | tuple[int, int] | list[int] | None) -> tuple[int, int] | None:
    return None if size is None else (size, size) if isinstance(size, int) else (size[0], size[1])


def _without_classifier(tensors: Mapping[str, Tensor], layers: tuple[str, ...]) -> dict[str, Tensor]:
    dropped = tuple(f"{layer}." for layer in layers)
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(dropped)}


def _weights_notes(state: StateDict) -> list[str]:
    if state.alternative is None:
        return []
    if state.averaged:
        return [
            f"EMA weights taken ({state.entry}); the file also holds {state.alternative}, which use_ema=False (--no-ema) takes"
        ]
    return [f"plain weights taken ({state.entry}); the file also holds EMA weights ({state.alternative})"]
