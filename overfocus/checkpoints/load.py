"""`load_model`: from a checkpoint, a hub folder or a timm name to a model with its preprocessing."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from overfocus.checkpoints.arguments import checked_arguments, parse_arguments
from overfocus.checkpoints.build import SEGFORMER, build, build_empty, is_architecture
from overfocus.checkpoints.data_config import class_colours_for, class_names_for, preprocess_for
from overfocus.checkpoints.fit import classifiers
from overfocus.checkpoints.formats import find_folder, transformers_folder
from overfocus.checkpoints.hints import Hints, hints_of_config, hints_of_content, hints_of_metadata
from overfocus.checkpoints.loaded import LoadedModel, wrap
from overfocus.checkpoints.messages import some
from overfocus.checkpoints.networks import Network, changes_encoder, choose_network, find_networks, flatten
from overfocus.checkpoints.own_code import is_factory, load_own
from overfocus.checkpoints.pretrained import fetch_folder, is_hub_name, load_named
from overfocus.checkpoints.read import CheckpointFile, read_checkpoint
from overfocus.checkpoints.recognise import Fit, Request, known_by_shapes, recognise
from overfocus.checkpoints.transformers_models import load_transformers
from overfocus.checkpoints.weights import Accounts, account, convert_tensors, fill, is_buffer, resampled_note
from overfocus.errors import CheckpointError
from overfocus.samples import sample_checkpoint

__all__ = ["LoadedModel", "Source", "load_model", "resolve_model"]

Source = str | Path | nn.Module | LoadedModel
"""What can be measured: a checkpoint file or folder, a timm name, a module in memory, or one that was loaded or wrapped."""

_ON = ("use_ema", "pretrained")  # options that are on unless they are turned off
_SUFFIXES = (".pth", ".pt", ".tar", ".safetensors", ".bin", ".ckpt", ".npz")


def load_model(
    source: str | Path,
    *,
    model: str | None = None,
    model_args: Mapping[str, Any] | str | None = None,
    weights: str | None = None,
    use_ema: bool = True,
    lenient: bool = False,
    image_size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    pretrained: bool = True,
    device: str | torch.device = "cpu",
) -> LoadedModel:
    """Load a checkpoint file, a hub folder or a timm model by name.

    Args:
        source: `.pth`, `.pt`, `.pth.tar`, `.bin` or `.safetensors` file; folder with `config.json`; or a timm name.
        model: architecture, where the checkpoint does not say it and its tensors fit several; or "package.module:factory", a
            function of your own that returns a module or `overfocus.wrap(module, …)`, filled from the checkpoint.
        model_args: arguments of the architecture that the checkpoint does not say, as a mapping or "num_heads=12,qk_norm=true".
        weights: which network of the file to take, by where it stands there, e.g. "teacher.backbone".
        use_ema: take weights averaged over training where the file holds them.
        lenient: load although tensors of the trunk are missing or left over; the first of `notes` says which.
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
    given = parse_arguments(model_args) if isinstance(model_args, str) else checked_arguments(model_args or {}, "model_args")
    request = Request(model, given, size, num_classes, lenient)
    path = Path(source)
    if not path.exists() and is_hub_name(str(source)):
        path = fetch_folder(str(source))
    folder = transformers_folder(path)
    if model is not None and is_factory(model):
        loaded = load_own(read_checkpoint(path), model, weights=weights, use_ema=use_ema, lenient=lenient)
    elif folder is not None and model is None:
        loaded = load_transformers(*folder, size, lenient)
    elif path.exists() or path.suffix in _SUFFIXES:
        file, hints = _read(path)
        network, taken = choose_network(find_networks(file.content, path), weights, use_ema, path)
        network = _whole(network, file.content, hints)
        loaded = _load(file, hints, network, recognise(network.tensors, hints, request, path), request, taken)
    else:
        loaded = load_named(str(source), size, num_classes, pretrained)
    loaded.model.to(device).eval()
    if loaded.lenient:
        warnings.warn(f"{source}: this may be another network: {loaded.notes[0]}", stacklevel=2)
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
    return file, hints_of_metadata(file.metadata, path) if file.metadata.get("architecture") else hints_of_content(
        file.content, path
    )


def _load(file: CheckpointFile, hints: Hints, network: Network, found: Fit, request: Request, taken: list[str]) -> LoadedModel:
    accounts, path = found.accounts, file.path
    complete = not accounts.missing and not accounts.unfit and request.num_classes is None
    model, convert = (build_empty if complete else build)(found.name, found.arguments, found.tap)
    if found.reading.norm_eps is not None:
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = found.reading.norm_eps
    tensors = found.reading.tensors
    if request.num_classes is not None:
        dropped = tuple(f"{layer}." for layer in classifiers(model))
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(dropped)}
    converted = convert_tensors(model, tensors, convert, path)
    real = account(model, tensors, converted, classifiers(model))
    if not real.exact and not request.lenient:
        raise CheckpointError(f"{path}: {found.name} does not take every tensor: {real.faults}; try another --model")
    fill(model, converted, path)
    outside = [name for name in network.beside if changes_encoder(name, network)]
    if outside and not request.lenient:
        raise CheckpointError(
            f"{path}: {some(outside)} beside {network.entry} may change what the network computes and has no place in "
            f"{found.name}; merge it into the weights, or --lenient to load without it"
        )
    lenient = bool(outside) or not real.exact
    said = (
        [f"LENIENT: loaded although it is not {found.name} to the last tensor: {real.faults or some(outside)}"] if lenient else []
    )
    try:
        preprocess, assumed = preprocess_for(
            model, hints, request.image_size or _pair(found.arguments.get("img_size")), imagenet=found.plain
        )
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}; correct it in config.json or in the file's metadata") from None
    lacking = [name for name in model.state_dict() if name not in converted]
    notes = [*said, *taken, *hints.notes, *found.notes, *_heads_note(model, found, hints, request)]
    notes += [*_dropped_notes(real, network), *resampled_note(tensors, converted), *assumed]
    return LoadedModel(
        model=model,
        preprocess=preprocess,
        name=found.name.partition(".")[0],
        source=str(path),
        sha256=file.sha256,
        found_by=found.found_by,
        weights_entry=network.entry,
        missing_keys=lacking,
        unexpected_keys=[*real.unexpected, *real.heads, *real.harmless, *network.beside],
        notes=tuple(dict.fromkeys(notes)),
        lenient=lenient,
        model_args=found.arguments,
        class_names=class_names_for(hints, model),
        class_colours=class_colours_for(hints, model),
    )


def _heads_note(model: nn.Module, found: Fit, hints: Hints, request: Request) -> list[str]:
    """What a plain Vision Transformer's tensors do not say and was assumed."""
    if found.found_by not in ("shapes", "tensors") or not isinstance(model, VisionTransformer):
        return []
    block: Any = model.blocks[0]
    assumed = [] if hints.heads or "num_heads" in request.arguments else [f"{block.attn.num_heads} attention heads"]
    norm, activation = getattr(block.norm1, "eps", None), type(getattr(block.mlp, "act", None)).__name__
    if found.reading.norm_eps is None and norm is not None:
        assumed.append(f"normalisation with eps {norm:g}")
    assumed.append(activation)
    return [f"assumed, as no tensor says them: {', '.join(assumed)} (--model-args num_heads=… sets heads)"]


def _dropped_notes(accounts: Accounts, network: Network) -> list[str]:
    """Heads and other parts of the file that are not measured."""
    names = [*accounts.heads, *[name for name in accounts.harmless if not is_buffer(name)], *network.beside]
    parts = list(dict.fromkeys(name.partition(".")[0] if "." in name else name for name in names))
    return [f"left out, no part of the encoder: {some(parts)}"] if parts else []


def _whole(network: Network, content: Mapping[str, Any], hints: Hints) -> Network:
    """The segmentation model that a backbone is part of, where the file holds its head and it is one that we build."""
    front, _, last = network.path.rpartition(".")
    if last != "backbone" and not network.path.endswith("backbone.model"):
        return network
    front = front.removesuffix("backbone").rstrip(".") if last == "model" else front
    tensors = {
        name.removeprefix(f"{front}.") if front else name: tensor
        for name, tensor in flatten(content).items()
        if not front or name.startswith(f"{front}.")
    }
    if not any(name.startswith("decode_head.") for name in tensors):
        return network
    said = any(name.endswith(SEGFORMER) and is_architecture(name) for name, _ in hints.architectures)
    return Network(tensors, front) if said or known_by_shapes(tensors) is not None else network


def _pair(size: int | tuple[int, int] | list[int] | None) -> tuple[int, int] | None:
    return None if size is None else (size, size) if isinstance(size, int) else (size[0], size[1])
