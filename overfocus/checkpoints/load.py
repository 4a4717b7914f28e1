"""`load_model`: from a checkpoint, a folder, a name or a function of the user's own to a model with its preprocessing."""

import contextlib
import importlib
import re
import socket
import sys
import urllib.parse
import urllib.request
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants as hub
from huggingface_hub import snapshot_download
from timm.models.beit import Beit
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from overfocus.checkpoints.arguments import (
    checked_arguments,
    classifiers,
    image_size_of,
    parse_arguments,
    takes_image_size,
    trunk,
)
from overfocus.checkpoints.build import (
    SEGFORMER,
    Accounts,
    account,
    before_classifier,
    build,
    build_empty,
    contradicted,
    convert_tensors,
    create,
    fill,
    is_architecture,
    is_buffer,
    is_head,
    is_running,
    require_known,
    resampled_note,
    skeleton,
)
from overfocus.checkpoints.formats import adapter_folder, configuration_beside, find_folder, transformers_folder
from overfocus.checkpoints.index import is_table
from overfocus.checkpoints.loaded import LoadedModel, class_colours_for, class_names_for, preprocess_for, wrap
from overfocus.checkpoints.metadata import (
    MOCO_HEADS,
    MOCO_NOTE,
    PREPROCESSING,
    Metadata,
    metadata_of_config,
    metadata_of_jax,
    metadata_of_safetensors,
    metadata_of_trainer,
)
from overfocus.checkpoints.names import CLIP_PREPROCESSING, SIGLIP_PREPROCESSING, TRANSFORMERS, Reading, has_moco_positions
from overfocus.checkpoints.networks import WRAPPER, Network, choose_network, find_networks, flatten, relative_name, suspects
from overfocus.checkpoints.read import CheckpointFile, read_checkpoint
from overfocus.checkpoints.recognise import Fit, Request, heads_of, known_by_shapes, recognise, stated
from overfocus.checkpoints.transformers_models import load_transformers, merge_adapter
from overfocus.errors import CheckpointError, OverfocusError, first_line, is_out_of_memory
from overfocus.samples import sample_checkpoint
from overfocus.settings import typed
from overfocus.text import printable, some

_HUB_NAME = re.compile(r"(hf[-_]hub:)?[\w.-]{1,96}/[\w.-]{1,96}")


def is_hub_name(source: str) -> bool:
    """Whether a source is an id on the Hugging Face hub: owner/name, or hf-hub: before it."""
    return _HUB_NAME.fullmatch(source) is not None


def fetch_folder(source: str) -> Path:
    """The folder of a model on the Hugging Face hub, fetched or from its cache: configuration and weights, never code.

    Raises:
        CheckpointError: it cannot be had.
    """
    name = source.partition(":")[2] or source
    wanted = ["*.json", "*.safetensors", "pytorch_model*.bin", "model*.bin", "adapter_model.bin", "open_clip_*.bin"]
    try:
        with _hub_as_reachable() as reachable:
            return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # hub clients raise whatever their network layer does
        reason = first_line(error) if reachable else "the hub cannot be reached and the model is not in the local cache"
        raise CheckpointError(
            f"{source}: neither a file or folder nor a model that can be fetched from the hub ({reason}); "
            "check the path or the name"
        ) from error


def load_named(name: str, image_size: tuple[int, int] | None, num_classes: int | None, pretrained: bool) -> LoadedModel:
    """Create a timm model; its weights are downloaded unless `pretrained` is False.

    Raises:
        CheckpointError: the name is unknown, has no trained weights, or they cannot be fetched.
    """
    require_known(name)
    arguments: dict[str, Any] = {"num_classes": num_classes} if num_classes is not None else {}
    if image_size is not None and takes_image_size(skeleton(name, {})):
        arguments["img_size"] = image_size
    model = _create(name, pretrained, arguments)
    config: dict[str, Any] = dict(model.pretrained_cfg)  # type: ignore[arg-type]  # timm attaches a dict
    known = {key: value for key, value in config.items() if key in PREPROCESSING and value is not None}
    preprocess, notes = preprocess_for(model, Metadata(preprocessing=known), image_size)
    if not pretrained:
        notes = [f"WEIGHTS ARE RANDOM: {name} was made without its trained weights, so its attention means nothing", *notes]
    return LoadedModel(
        model=model,
        preprocess=preprocess,
        name=name.partition(".")[0],
        source=name,
        sha256=None,
        found_by="name",
        weights_entry="timm's trained weights" if pretrained else "random",
        notes=tuple(notes),
        model_args=arguments,
        class_names=class_names_for(Metadata(), model),
    )


def _create(name: str, pretrained: bool, arguments: dict[str, Any]) -> nn.Module:
    try:
        with _hub_as_reachable() as reachable:
            model = create(name, arguments, pretrained=pretrained)
    except Exception as error:  # hub clients raise whatever their network layer does
        if not pretrained:
            raise CheckpointError(f"{name}: the model cannot be built ({first_line(error)})") from error
        reason = first_line(error) if reachable else "the hub cannot be reached and the weights are not in the local cache"
        raise CheckpointError(
            f"{name}: its trained weights cannot be fetched ({reason}); pass a checkpoint file (pretrained=False: random weights)"
        ) from error
    return model


@contextlib.contextmanager
def _hub_as_reachable() -> Iterator[bool]:
    """Whether the hub's address resolves; where it does not, only its cache is asked, without a minute of attempts."""
    reachable, before = _resolves(hub.ENDPOINT), hub.HF_HUB_OFFLINE
    hub.HF_HUB_OFFLINE = before or not reachable
    try:
        yield reachable
    finally:
        hub.HF_HUB_OFFLINE = before


def _resolves(address: str) -> bool:
    if urllib.request.getproxies():
        return True  # the proxy resolves it
    try:
        socket.getaddrinfo(urllib.parse.urlsplit(address).hostname, 443)
    except OSError:
        return False
    return True


_SPELLING = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def is_factory(model: str | None) -> bool:
    """Whether a `--model` names a function: package.module:factory."""
    return model is not None and _SPELLING.fullmatch(model) is not None


def make(spelling: str) -> LoadedModel:
    """What the function makes: a module, or one that `overfocus.wrap` was given. The current folder can be imported from.

    Raises:
        CheckpointError: it cannot be imported, fails, or gives something else.
    """
    module_name, _, attribute = spelling.partition(":")
    here = str(Path.cwd())
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, here)
    importlib.invalidate_caches()  # the file may have been written a moment ago
    try:
        found: object = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
        made = found() if callable(found) and not isinstance(found, nn.Module) else found
        return made if isinstance(made, LoadedModel) else wrap(made, name=spelling)  # type: ignore[arg-type]
    except (OverfocusError, KeyboardInterrupt):
        raise
    except BaseException as error:  # the user's own code
        raise CheckpointError(
            f"--model {spelling}: expected a function without arguments that returns a torch.nn.Module or overfocus.wrap(…), "
            f"got {type(error).__name__}: {first_line(error)}"
        ) from error
    finally:
        if added:
            sys.path.remove(here)


def load_own(file: CheckpointFile, spelling: str, *, weights: str | None, use_ema: bool, lenient: bool) -> LoadedModel:
    """A module of the user's own code with the weights of a checkpoint, whatever prefix and entry they are stored under.

    Raises:
        CheckpointError: the weights are not those of the module to the last tensor.
    """
    made = make(spelling)
    own = made.model.state_dict()
    tensors = flatten(file.content)
    if not any(WRAPPER.search(name) for name in own):
        tensors = {WRAPPER.sub("", name): tensor for name, tensor in tensors.items()}
    networks = _fronts(tensors, own)
    if not networks:
        raise CheckpointError(f"{file.path}: has none of the tensors of {spelling} ({some(list(own))}); is it another network?")
    network, notes = choose_network(networks, weights, use_ema, file.path)
    network = replace(network, tensors=_with_shared(network.tensors, own))
    accounts = account(made.model, network.tensors, network.tensors, ())
    dropped = {name: network.tensors[name] for name in accounts.harmless}
    between = before_classifier(dropped, {name: tensor for name, tensor in own.items() if is_head(name, ())})
    shapes = {name: (tuple(network.tensors[name].shape), tuple(own[name].shape)) for name in own if name in network.tensors}
    accounts = replace(  # a classifier is not random either
        accounts,
        missing=list(dict.fromkeys([*accounts.missing, *_not_computed(made.model, network.tensors, spelling)])),
        unexpected=[*accounts.unexpected, *between],
        unfit={name: (theirs, ours) for name, (theirs, ours) in shapes.items() if theirs != ours},
    )
    if not accounts.exact and not lenient:
        raise CheckpointError(
            f"{file.path}: its tensors are not those of {spelling}: {accounts.faults}; change the function, or --lenient"
        )
    fill(made.model, network.tensors, file.path)
    said = [f"LENIENT: loaded although not every tensor matches {spelling}: {accounts.faults}"] if not accounts.exact else []
    left = [f"left out, not part of the encoder: {some(accounts.heads)}"] if accounts.heads else []
    made.source, made.sha256, made.found_by, made.weights_entry = str(file.path), file.sha256, "own code", network.entry
    made.missing_keys, made.unexpected_keys = accounts.missing, [*accounts.unexpected, *accounts.heads, *accounts.harmless]
    made.notes, made.lenient = (*said, *notes, *left, *made.notes), not accounts.exact
    return made


def _not_computed(module: nn.Module, tensors: Mapping[str, Tensor], spelling: str) -> list[str]:
    """What a file lacks of a module and its code does not compute: parameters, and buffers that differ when it is made again."""
    lacking = [name for name in module.state_dict() if name not in tensors]
    buffers = {name: buffer for name, buffer in module.named_buffers() if name in lacking and not is_running(name)}
    again = dict(make(spelling).model.named_buffers()) if buffers else {}
    return [name for name in lacking if name not in buffers or name not in again or not torch.equal(buffers[name], again[name])]


def _with_shared(tensors: dict[str, Tensor], own: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors with those that a file left out because the module has each of them under a second name."""
    places: dict[tuple[int, torch.Size], list[str]] = {}
    for name, value in own.items():
        if isinstance(value, Tensor) and value.numel():
            places.setdefault((value.data_ptr(), value.shape), []).append(name)
    whole = dict(tensors)
    for names in places.values():
        held = next((name for name in names if name in tensors), None)
        if held is not None:
            whole |= {name: tensors[held] for name in names if name not in tensors}
    return whole


def _fronts(tensors: dict[str, Tensor], own: dict[str, Tensor | object]) -> list[Network]:
    """The networks in a file that have a module's names behind one prefix, those with the most of them."""
    names = [name for name, value in own.items() if isinstance(value, torch.Tensor)]
    counts: dict[str, int] = {}
    for name in names[:: max(1, len(names) // 50)]:
        for full in tensors:
            if full == name or full.endswith(f".{name}"):
                front = full[: len(full) - len(name)]
                counts[front] = counts.get(front, 0) + 1
    most = max(counts.values(), default=0)
    found = []
    for front, count in counts.items():
        if count == most:
            inside = {name.removeprefix(front): tensor for name, tensor in tensors.items() if name.startswith(front)}
            found.append(Network(inside, front.rstrip(".")))
    return found


__all__ = ["LoadedModel", "Source", "load_model", "resolve_model"]

Source = str | Path | nn.Module | LoadedModel
"""What can be measured: a checkpoint file or folder, a timm name, a module in memory, or one that was loaded or wrapped."""

MOST_CLASSES = 200_000
_ON = ("use_ema", "pretrained")  # options that are on unless they are turned off
_SUFFIXES = (".pth", ".pt", ".tar", ".safetensors", ".bin", ".ckpt", ".npz")


@typed(CheckpointError)
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
        source: `.pth`, `.pt`, `.pth.tar`, `.bin` or `.safetensors` file; folder with `config.json`; or a timm name. An adapter
            of PEFT (a folder with `adapter_config.json`) is merged into its base model.
        model: architecture, where the checkpoint does not say it and its tensors fit several; or "package.module:factory", a
            function of your own that returns a module or `overfocus.wrap(module, …)`, filled from the checkpoint. Of an adapter
            the base model: anything that can be a `source`, or such a function; by default the one that its configuration names.
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
        raise CheckpointError("expected a checkpoint's path or a timm name, got an empty string (is a shell variable unset?)")
    if num_classes is not None and not 0 <= num_classes <= MOST_CLASSES:
        raise CheckpointError(f"num_classes must be between 0 and {MOST_CLASSES:,}, got {num_classes}")
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    given = parse_arguments(model_args) if isinstance(model_args, str) else checked_arguments(model_args or {}, "model_args")
    request = Request(model, given, size, num_classes, lenient)
    path = Path(source)
    try:
        path.exists()
    except OSError as error:  # too long a name, a folder that may not be entered
        raise CheckpointError(f"{printable(source)}: cannot be opened ({error.strerror}); check the path") from None
    if not path.exists() and is_hub_name(str(source)):
        path = fetch_folder(str(source))
    folder, adapter = transformers_folder(path), adapter_folder(path)
    if adapter is not None:
        options: dict[str, Any] = {"model_args": model_args, "weights": weights, "use_ema": use_ema, "lenient": lenient}
        options |= {"image_size": size, "num_classes": num_classes}
        loaded = _with_adapter(*adapter, model, options)
    elif model is not None and is_factory(model):
        _require_unused(source, "an architecture of your own code", model_args=given, image_size=size, num_classes=num_classes)
        loaded = load_own(read_checkpoint(path), model, weights=weights, use_ema=use_ema, lenient=lenient)
    elif folder is not None and model is None:
        _require_unused(source, "a folder of transformers", model_args=given, weights=weights, num_classes=num_classes)
        loaded = load_transformers(*folder, size, lenient)
    elif path.exists() or path.suffix in _SUFFIXES:
        file, metadata = _read(path)
        network, taken = choose_network(find_networks(file.content, path), weights, use_ema, path)
        network = _whole(network, file.content, metadata)
        if "num_heads" not in metadata.unseen and has_moco_positions(network.tensors):
            metadata = replace(metadata, unseen={**metadata.unseen, "num_heads": MOCO_HEADS}, unseen_notes=(MOCO_NOTE,))
        loaded = _load(file, metadata, network, recognise(network.tensors, metadata, request, path), request, taken)
        _require_taken(source, given, loaded.model_args)
    else:
        _require_unused(source, "the name of a timm model", model=model, model_args=given, weights=weights)
        loaded = load_named(str(source), size, num_classes, pretrained)
    try:
        loaded.model.to(device).eval()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        if is_out_of_memory(error):
            raise
        raise CheckpointError(f"device {printable(device)!r} cannot be used ({first_line(error)}); try cpu or cuda") from error
    if loaded.lenient:
        warnings.warn(f"{source}: this may be another network: {loaded.notes[0]}", stacklevel=2)
    return loaded


def _require_unused(source: str | Path, what: str, **options: Any) -> None:
    """Raise a `CheckpointError` where an option is given that this kind of source has no use for."""
    if given := [name for name, value in options.items() if value not in (None, {})]:
        raise CheckpointError(f"{printable(source)}: {given[0]} has no meaning for {what}; leave it out")


def _require_taken(source: str | Path, given: Mapping[str, Any], built: Mapping[str, Any]) -> None:
    """Raise a `CheckpointError` where an argument was asked for and the tensors of the file made it another."""

    def spread(value: Any) -> Any:
        return (value, value) if isinstance(value, int | float) else tuple(value) if isinstance(value, list) else value

    for name, value in given.items():
        if name in built and spread(built[name]) != spread(value):
            raise CheckpointError(
                f"{printable(source)}: expected {name}={built[name]}, as the file's tensors say, got {name}={value}; leave it out"
            )


def _with_adapter(
    folder: Path, weights: Path, config: Mapping[str, Any], model: str | None, options: Mapping[str, Any]
) -> LoadedModel:
    """The base model of a PEFT adapter with the adapter merged into it."""
    named = str(config.get("base_model_name_or_path") or "")[:1000]
    near: list[Path] = []
    with contextlib.suppress(OSError):  # no name of a file
        near = [place for place in (Path(named), folder / named, folder.parent / named) if named and place.exists()]
    base = model or (str(near[0]) if near else named)
    if not base:
        raise CheckpointError(f"{folder}: a PEFT adapter whose adapter_config.json names no base model; name it with --model")
    if near and model is None and adapter_folder(near[0]) is not None:
        raise CheckpointError(
            f"{folder}: a PEFT adapter of {base}, which is one itself; merge that first, or name the base (--model)"
        )
    try:
        loaded = make(base) if is_factory(base) and model is not None else load_model(base, **options)
    except CheckpointError as error:
        raise CheckpointError(
            f"{folder}: a PEFT adapter, whose base model cannot be loaded ({error}); --model names it"
        ) from error
    return merge_adapter(loaded, folder, config, flatten(read_checkpoint(weights).content))


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
            raise CheckpointError(f"{', '.join(given)}: options of loading, but the model is already in memory; leave them out")
        loaded = source if isinstance(source, LoadedModel) else wrap(source)
        loaded.model.eval()
        if device is not None:
            loaded.model.to(device)
        return loaded
    return load_model(sample_checkpoint() if source is None else source, device=device or "cpu", **options)


def _read(path: Path) -> tuple[CheckpointFile, Metadata]:
    if path.is_dir():
        weights, described, config = find_folder(path)
        return read_checkpoint(weights), metadata_of_config(config, described)
    file, beside = read_checkpoint(path), configuration_beside(path)
    if file.metadata.get("origin") == "JAX":
        return file, metadata_of_jax(file.metadata)
    if file.metadata.get("architecture"):
        return file, metadata_of_safetensors(file.metadata, path)
    return file, metadata_of_trainer(file.content, path) if beside is None else metadata_of_config(beside[1], beside[0])


def _load(
    file: CheckpointFile, metadata: Metadata, network: Network, found: Fit, request: Request, taken: list[str]
) -> LoadedModel:
    path = file.path
    model, tensors, converted, real = _filled(found, request, path)
    bare = _without_bias(model, converted)
    doubts = [
        (names, said) for names, said in _doubts(model, tensors, {*converted, *bare}, network, found, request, metadata) if names
    ]
    if doubts and not request.lenient:
        raise CheckpointError(f"{path}: {doubts[0][1]}")
    lenient = bool(doubts) or not real.exact
    faults = real.faults or some(list(dict.fromkeys(name for names, _ in doubts for name in names)))
    said = [f"LENIENT: loaded although not every tensor matches {found.name}: {faults}"] if lenient else []
    origin = (found.reading.preprocessing, found.reading.origin) if found.reading.preprocessing else _of_open_clip(network)
    if network.normalisation:
        metadata = replace(metadata, preprocessing={**metadata.preprocessing, **network.normalisation})
        said.append("mean and std are the file's own tensors, by which the network normalises its input")
    elif origin is not None and not metadata.preprocessing.keys() & {"mean", "std"}:
        metadata = replace(metadata, preprocessing={**metadata.preprocessing, **origin[0]})
        said.append(f"mean and std are those of {origin[1]}, which the tensors' names show")
    try:
        size = request.image_size or _pair(found.arguments.get("img_size"))
        preprocess, assumed = preprocess_for(model, metadata, size, imagenet=found.plain)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    notes = [*said, *taken, *metadata.notes, *found.notes, *_heads_note(model, found, metadata, request)]
    notes += _size_note(model, found, metadata, request)
    notes += [f"classifier: new, of {request.num_classes} classes, with random weights"] if request.num_classes else []
    notes += [f"classifier: {network.head}, the only layer behind the encoder"] if network.head and model.num_classes else []
    notes += [f"a classifier without bias ({some(bare)} is not in the file)"] if bare else []
    notes += [*_dropped_notes(real, found.reading, network), *resampled_note(tensors, converted), *assumed]
    return LoadedModel(
        model=model,
        preprocess=preprocess,
        name=found.name.partition(".")[0],
        source=str(path),
        sha256=file.sha256,
        found_by=found.found_by,
        weights_entry=network.entry,
        missing_keys=[name for name in model.state_dict() if name not in converted],
        unexpected_keys=[*real.unexpected, *real.heads, *real.harmless, *network.beside],
        notes=tuple(dict.fromkeys(notes)),
        lenient=lenient,
        model_args=found.arguments,
        class_names=class_names_for(metadata, model),
        class_colours=class_colours_for(metadata, model),
    )


def _filled(found: Fit, request: Request, path: Path) -> tuple[nn.Module, dict[str, Tensor], dict[str, Tensor], Accounts]:
    """The model with the file's values, the tensors before and after timm's conversion, and what became of each."""
    accounts, tensors = found.accounts, found.reading.tensors
    complete = not (accounts.missing or accounts.unfit or request.lenient) and request.num_classes is None
    model, convert = (build_empty if complete else build)(found.name, found.arguments, found.tap)
    if found.reading.norm_eps is not None:
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = found.reading.norm_eps
    if request.num_classes is not None:
        dropped = tuple(f"{layer}." for layer in classifiers(model))
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(dropped)}
    converted = convert_tensors(model, tensors, convert, path)
    real = account(model, tensors, converted, classifiers(model))
    if not real.exact and not request.lenient:
        raise CheckpointError(f"{path}: {found.name} does not take every tensor: {real.faults}; try another --model")
    fill(model, converted, path)
    return model, tensors, {name: tensor for name, tensor in converted.items() if name not in {*real.unfit, *real.heads}}, real


def _without_bias(model: nn.Module, converted: Mapping[str, Tensor]) -> list[str]:
    """Biases of layers that were trained without one, a classifier's: set to zero, and named."""
    own = model.state_dict()
    weighted = [name.removesuffix("weight") + "bias" for name in converted if name.endswith("weight")]
    bare = [name for name in weighted if name in own and name not in converted]
    for name in bare:
        model.get_parameter(name).data.zero_()
    return bare


def _doubts(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    filled: set[str],
    network: Network,
    found: Fit,
    request: Request,
    metadata: Metadata,
) -> Iterator[tuple[list[str], str]]:
    """What may make a filled model another network than the file's although every tensor has its place: names, what to say."""
    computed = contradicted(model, tensors)
    said = (
        f"{some(computed)} of the file has other values than {found.name} computes (another window, shift or scale of positions?)"
    )
    yield computed, f"{said}; try another --model or --model-args, or --lenient to take what it computes"
    random = [name for name, _ in model.named_parameters() if name not in filled] if request.num_classes is None else []
    yield random, f"the file lacks {some(random)} of {found.name}; --lenient gives it random values"
    blocks: Any = model.blocks if isinstance(model, VisionTransformer) else ()
    depth = metadata.unseen.get("depth", 0)
    other = ["depth"] if 0 < len(blocks) < depth else []
    said = f"the file's settings say a depth of {depth}, and it has the weights of {len(blocks)} (shared by several layers?)"
    yield other, f"{said}; pass your own code with --model package.module:factory, or --lenient to load those {len(blocks)}"
    other = ["the place of norms"] if blocks and metadata.unseen.get("post_norm") and type(blocks[0]) is Block else []
    said = f"the file's settings say norms after each layer, {found.name} has them before"
    yield other, f"{said}; name another architecture with --model, pass your own code, or --lenient to load it so"
    beside = suspects(network)
    windows = [name for name in beside if relative_name(name, network).startswith("simfp")]
    said = "the backbone of a ViTDet, whose blocks attend in windows that no tensor shows; pass your own code with --model"
    yield windows, f"{said} package.module:factory, or --lenient to load it without windows"
    said = f"{some(beside)} beside {network.entry} may change what the network computes and has no place in {found.name}"
    yield beside, f"{said}; merge it into the weights, or --lenient to load without it"


def _of_open_clip(network: Network) -> tuple[Mapping[str, tuple[float, ...]], str] | None:
    """Mean and standard deviation of an image tower of timm in OpenCLIP, and whose they are; None for any other network.

    SigLIP's loss has a bias and its towers pool by attention; everything else is trained with CLIP's by default.
    """
    if not f".{network.path}".endswith(".visual.trunk"):
        return None
    siglip = "attn_pool.latent" in network.tensors or any(name.endswith("logit_bias") for name in network.beside)
    return (SIGLIP_PREPROCESSING, "SigLIP (0.5)") if siglip else (CLIP_PREPROCESSING, "CLIP, as OpenCLIP trains by default")


def _heads_note(model: nn.Module, found: Fit, metadata: Metadata, request: Request) -> list[str]:
    """What a plain Vision Transformer's tensors do not say and was assumed."""
    if (found.found_by not in ("shapes", "tensors") and not found.plain) or not isinstance(model, VisionTransformer):
        return []
    parts: list[Any] = [model.blocks[0], *model.blocks[0].modules()]
    heads = heads_of(model)
    told = heads == stated(metadata).get("num_heads") or "num_heads" in request.arguments
    assumed = [f"{heads} attention heads"] if heads and not told else []
    norm = next((part.eps for part in parts if isinstance(part, nn.LayerNorm)), None)
    activation = next((type(part.act).__name__ for part in parts if hasattr(part, "act")), "GELU")
    if (found.reading.norm_eps is None or found.reading.origin == TRANSFORMERS) and norm is not None:
        assumed.append(f"normalisation with eps {norm:g}, before each layer")
    assumed += [activation] if "act_layer" not in found.arguments else []
    if found.plain and "img_size" in found.arguments:
        height, width = _pair(found.arguments["img_size"]) or (0, 0)
        assumed.append(f"patches without overlap, so images of {height}x{width} pixels")
    if model.num_classes and model.global_pool == "token" and "global_pool" not in found.arguments:
        assumed.append("the class token classified")
    advice = "--model-args num_heads=… sets heads"
    said = list(metadata.unseen_notes) if metadata.unseen.get("num_heads", heads) == heads else []
    return said + ([f"assumed, because no tensor shows it: {', '.join(assumed)} ({advice})"] if assumed else [])


def _size_note(model: nn.Module, found: Fit, metadata: Metadata, request: Request) -> list[str]:
    """The image size of a network that takes any, as one whose positions are relative to windows does."""
    inside, _ = trunk(model)
    shown = isinstance(inside, Beit) or any(is_table(name) and "relative" not in name for name in model.state_dict())
    shown = shown or any(name.endswith("attn_mask") for name in found.reading.tensors)
    said = "input_size" in metadata.preprocessing or "img_size" in {**metadata.model_args, **request.arguments}
    if shown or said or request.image_size is not None:
        return []
    height, width = image_size_of(model)
    return [f"assumed, because no tensor shows it: images of {height}x{width} pixels (--image-size sets another size)"]


def _dropped_notes(accounts: Accounts, reading: Reading, network: Network) -> list[str]:
    """Heads and other parts of the file that are not measured."""
    beside = [relative_name(name, network) for name in network.beside]
    names = [*reading.dropped, *accounts.heads, *[name for name in accounts.harmless if not is_buffer(name)], *beside]
    parts = list(dict.fromkeys(name.partition(".")[0] for name in names))
    return [f"left out, not part of the encoder: {some(parts)}"] if parts else []


def _whole(network: Network, content: Mapping[str, Any], metadata: Metadata) -> Network:
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
    said = any(name.endswith(SEGFORMER) and is_architecture(name) for name, _ in metadata.architectures)
    return Network(tensors, front) if said or known_by_shapes(tensors) is not None else network


def _pair(size: int | tuple[int, int] | list[int] | None) -> tuple[int, int] | None:
    return None if size is None else (size, size) if isinstance(size, int) else (size[0], size[1])
