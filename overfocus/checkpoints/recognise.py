"""Decide which architecture a network belongs to: what the user asked for, what the file says, what its tensors say.

Nothing is accepted because most of it fits. An architecture is the one only if every tensor of the file's trunk has a place
of its shape in the model and every tensor of the model's trunk comes from the file.
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from overfocus.checkpoints.arguments import (
    classes_in,
    classifiers,
    fitting_arguments,
    infer_from_tensors,
    plain_vit,
    torchvision_maxvit,
)
from overfocus.checkpoints.build import (
    MAXVIT,
    UNREGISTERED,
    Accounts,
    account,
    added_tap,
    before_classifier,
    convert_tensors,
    is_architecture,
    is_head,
    outline,
    require_known,
    tap_branches,
)
from overfocus.checkpoints.index import (
    Candidate,
    Match,
    Shape,
    attends,
    candidates_named,
    exact_tables,
    fits_table,
    index_version,
    is_classifier,
    is_table,
    is_tap,
    look_up,
    look_up_by_sizes,
    tables,
)
from overfocus.checkpoints.metadata import Metadata
from overfocus.checkpoints.names import CHUNKED, CLIP, MASKED, Reading, readings
from overfocus.checkpoints.networks import ATTENTION
from overfocus.errors import CheckpointError
from overfocus.preprocessing import IMAGENET_MEAN
from overfocus.text import some

_FOREIGN = (
    (re.compile(r"encoder\.layer\.\d+\.attention\."), "Hugging Face transformers", "pass the folder with its config.json"),
    (
        re.compile(r"transformer\.layers\.\d+\.\d+\.(fn\.)?to_qkv"),
        "vit-pytorch",
        "pass your own model with --model package.module:factory",
    ),
    (
        re.compile(r"\.lora_[AB]\.|base_model\.model\."),
        "PEFT",
        "pass its folder with adapter_config.json, or merge it into its base model (merge_and_unload) and save that",
    ),
    (re.compile(r"transformer\.resblocks\.\d+\."), "CLIP", "try --model vit_base_patch32_clip_224 or the like"),
)
_OWN_CODE = "pass your own code with --model package.module:factory"
_TOO_MANY = 24
"""Tensors without a place after which architectures of the same fingerprint are not tried as well."""
_TELLING = ("num_heads", "window_size", "shift_size", "stride", "padding", "eps", "class")
"""Facts worth telling, the most telling first."""


@dataclass(frozen=True)
class Request:
    """What the user says of how to load."""

    model: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    """Of `--model-args`."""
    image_size: tuple[int, int] | None = None
    num_classes: int | None = None
    lenient: bool = False


@dataclass
class Fit:
    """An architecture that a network was held against."""

    name: str
    found_by: str
    reading: Reading
    arguments: dict[str, Any]
    tap: dict[str, Any] | None
    accounts: Accounts
    outline: nn.Module = field(repr=False)
    notes: list[str] = field(default_factory=list)
    plain: bool = False
    """Whether it was inferred from the tensors alone, so that timm's preprocessing for the name need not be its own."""


def recognise(tensors: Mapping[str, Tensor], metadata: Metadata, request: Request, path: Path) -> Fit:
    """Find the architecture; an explicit name goes first, then metadata, then the tensors.

    Raises:
        CheckpointError: the name is unknown, nothing fits, or several fit that attend differently.
    """
    try:
        return _recognise(tensors, metadata, request, path)
    except CheckpointError as error:
        if str(path) in str(error):
            raise
        raise CheckpointError(f"{path}: {error}") from error  # what cannot be built does not know the file


def _recognise(tensors: Mapping[str, Tensor], metadata: Metadata, request: Request, path: Path) -> Fit:
    named = [(name, origin) for name, origin in metadata.architectures if is_architecture(name)]
    if request.model is not None or named:
        name, origin = (request.model, "asked for") if request.model is not None else named[0]
        require_known(name)
        unseen = {key: value for key, value in stated(metadata, name).items() if key != "num_heads"}
        given = {**unseen, **metadata.model_args} if any(name == known for known, _ in named) else {}
        fits = []
        for reading in readings(tensors):
            shapes = {name: tuple(tensor.shape) for name, tensor in reading.tensors.items()}
            heads = _heads_said(metadata, request, shapes)
            plain = plain_vit(shapes, heads, path, request.image_size) if name == UNREGISTERED and not given else None
            built, arguments = plain[:2] if plain is not None else (name, given)
            fits.append(fit(built, origin, reading, arguments, metadata, request, path))
            fits[-1].plain = plain is not None
        best = min(fits, key=_faults)
        if best.accounts.exact or request.lenient:
            if request.model is None and "num_heads" not in {**given, **request.arguments}:
                _require_heads_as_said(best, metadata, path)
            return best
        better = known_by_shapes(tensors)
        raise CheckpointError(f"{path}: {_refusal(best, better)}")
    notes = [
        f"the checkpoint calls its architecture {name[:60]!r} ({origin}), which timm does not know"
        for name, origin in metadata.architectures[:1]
    ]
    best = _by_tensors(tensors, metadata, request, path)
    best.notes[:0] = notes
    return best


def _heads_said(metadata: Metadata, request: Request, shapes: Mapping[str, Shape]) -> int | None:
    """Attention heads that the user, or settings that are those of this network, say."""
    said, width = stated(metadata).get("num_heads"), shapes.get("patch_embed.proj.weight", (1,))[0]
    asked = request.arguments.get("num_heads")
    return asked if asked is not None or said is None or width % said else said


def _require_heads_as_said(found: Fit, metadata: Metadata, path: Path) -> None:
    """Refuse an architecture that a file names where its settings give another number of heads, which no tensor shows."""
    said, own = metadata.unseen.get("num_heads"), heads_of(found.outline)
    if said is not None and own is not None and own != said:
        raise CheckpointError(
            f"{path}: names {found.name}, which has {own} attention heads, and num_heads={said}; choose --model-args "
            f"num_heads={own} or --model-args num_heads={said}"
        )


def heads_of(model: nn.Module) -> int | None:
    """Attention heads of a Vision Transformer of timm, the same in every block; None for any other network."""
    if not isinstance(model, VisionTransformer):
        return None
    return next((part.num_heads for part in model.blocks[0].modules() if hasattr(part, "num_heads")), None)  # type: ignore[return-value]


def known_by_shapes(tensors: Mapping[str, Tensor]) -> str | None:
    """Name of an architecture with exactly these shapes, as advice where another was named, or None."""
    candidates = look_up({name: tuple(tensor.shape) for name, tensor in tensors.items()}).candidates
    return candidates[0].name if candidates and candidates[0].share == 1 else None


def fit(
    name: str, found_by: str, reading: Reading, given: Mapping[str, Any], metadata: Metadata, request: Request, path: Path
) -> Fit:
    """Hold the tensors of a file against an architecture, with the arguments that follow from them.

    Raises:
        CheckpointError: it cannot be built, is far larger than the file, or has no attention and was not asked for.
    """
    arguments = {**given, **request.arguments}
    unsure = {key for key, value in given.items() if metadata.unseen.get(key) == value and key not in request.arguments}
    try:
        model, convert = outline(name, arguments, metadata.tap)
    except CheckpointError:
        if not unsure:
            raise
        arguments = {key: value for key, value in arguments.items() if key not in unsure}  # settings of another part
        model, convert = outline(name, arguments, metadata.tap)
    tap, notes = metadata.tap, []
    branches = tap_branches(reading.tensors)
    if branches is not None and branches != tap_branches(model.state_dict()):
        added = added_tap(reading.tensors, model)
        if added is None:
            arguments["num_scales"] = branches
        else:
            tap = added
            blocks = f"TAP added to {len(added['layers'])} blocks of {name} as the names say"
            notes.append(f"{blocks}: {added['branches']} branches, {added['pooling']} pooling")
        model, convert = outline(name, arguments, tap)
    if found_by != "asked for" and not attends(model):
        raise CheckpointError(f"{path}: {_without_attention(name)}")
    _demand_size(model, reading.tensors, path, name)
    shapes = {key: tuple(tensor.shape) for key, tensor in reading.tensors.items()}
    inferred = {
        key: value for key, value in infer_from_tensors(shapes, model, request.image_size).items() if key not in request.arguments
    }
    if arguments.get("global_pool", "token") != "token" and inferred.get("global_pool") == "token":
        inferred |= {"global_pool": arguments["global_pool"], "fc_norm": False}  # the tensors only say where the norm stands
    if inferred:
        try:
            model, convert = outline(name, arguments | inferred, tap)
        except CheckpointError:
            inferred = {}  # not an argument of this one; what does not match is said below
    arguments |= inferred
    if inferred:
        notes.append(f"built with {', '.join(f'{key}={value}' for key, value in inferred.items())}, as its tensors say")
    apart = {key: torch.empty_like(tensor, device="meta") for key, tensor in reading.tensors.items()}

    def names() -> dict[str, Tensor]:
        try:
            return convert_tensors(model, apart, convert, path)
        except CheckpointError:
            return apart

    fitting = fitting_arguments(reading.tensors, model, arguments, image_size=request.image_size, num_classes=request.num_classes)
    if not fitting["num_classes"] and request.num_classes is None and not any(key.startswith("pre_logits.") for key in apart):
        fitting["num_classes"] = classes_in(names(), model)  # the original's classifier has another name
    if any(arguments.get(key, getattr(model, key, None)) != value for key, value in fitting.items()):
        model, convert = outline(name, fitting, tap)
    converted = names()
    layers = classifiers(model)
    accounts = account(model, apart, converted, layers)
    own_head = {
        key: tensor.shape for key, tensor in model.state_dict().items() if key.endswith("weight") and is_head(key, layers)
    }
    lacks = any(key not in converted or converted[key].shape != shape for key, shape in own_head.items())
    dropped = {key: apart[key] for key in accounts.harmless if key in apart}
    between = before_classifier(dropped, {key: converted[key] for key in own_head if key in converted})
    if fitting["num_classes"] and request.num_classes is None and (lacks or between):
        fitting["num_classes"] = 0  # a classifier of another form: rather none than one that is not the file's
        if between and not lacks:
            notes.append(f"the classifier is left out: {some(between)} may stand before it, which {name} does not have")
        model, convert = outline(name, fitting, tap)
        accounts = account(model, apart, converted, layers)
    return Fit(name, found_by, reading, fitting, tap, accounts, model, notes)


def _faults(fit: Fit) -> tuple[int, int]:
    accounts = fit.accounts
    return len(accounts.missing) + len(accounts.unexpected) + 2 * len(accounts.unfit), len(accounts.heads)


def _refusal(best: Fit, better: str | None) -> str:
    advice = [f"try --model {better}, whose shapes it has" if better and better != best.name else "try another --model"]
    if not best.accounts.unfit:
        advice.append("or --lenient to load it without them")
    shapes = f"; its shapes are those of {better}" if better and better != best.name else ""
    return f"does not match {best.name} in every tensor: {best.accounts.faults}{shapes}; {', '.join(advice)}"


def _by_tensors(tensors: Mapping[str, Tensor], metadata: Metadata, request: Request, path: Path) -> Fit:
    ways = readings(tensors)
    tried: list[Fit] = []
    unsaid: CheckpointError | None = None
    known = _known(ways, metadata, path)
    if known is not None:
        reading, chosen, notes = known
        tried.append(_noted(fit(chosen, "shapes", reading, stated(metadata, chosen), metadata, request, path), notes))
        if tried[-1].accounts.exact:
            _require_no_plain_rival(tried[-1], metadata, request, path)
            return tried[-1]
    for reading in ways:
        if reading.origin == CLIP and metadata.model_args.get("fc_norm"):
            tensors = {re.sub(r"^norm\.", "fc_norm.", name): tensor for name, tensor in reading.tensors.items()}
            reading = replace(reading, tensors=tensors)
        shapes = {name: tuple(tensor.shape) for name, tensor in reading.tensors.items()}
        heads = _heads_said(metadata, request, shapes)
        maxvit = torchvision_maxvit(shapes)
        try:
            plain = (MAXVIT, maxvit, []) if maxvit is not None else plain_vit(shapes, heads, path, request.image_size)
            if plain is not None and reading.origin == CLIP:
                plain[1].update(_activation(metadata, request, path))
        except CheckpointError as error:
            unsaid = error
            continue
        if plain is None:
            continue
        name, arguments, assumed = plain
        found = fit(name, "tensors", reading, stated(metadata, name) | arguments, metadata, request, path)
        found.plain = True
        tried.append(_noted(found, assumed))
        if found.accounts.exact:
            return found
    base = next((way for way in ways if way.origin in (CHUNKED, MASKED)), ways[0])
    match = _best_match({name: tuple(tensor.shape) for name, tensor in base.tensors.items()})
    if match.without_attention is not None:
        raise CheckpointError(f"{path}: {_without_attention(match.without_attention)}")
    exact: list[tuple[Fit, Candidate]] = []
    hopeless: set[str] = set()
    for reading, candidate in _near(ways, base, match):
        if not is_architecture(candidate.name) or candidate.group in hopeless or (exact and candidate.share != exact[0][1].share):
            continue
        try:
            found = fit(candidate.name, "tensors", reading, stated(metadata, candidate.name), metadata, request, path)
        except CheckpointError:
            continue
        tried.append(found)
        if found.accounts.exact:
            exact.append((found, candidate))
        elif _faults(found)[0] > _TOO_MANY:
            hopeless.add(candidate.group)
    if exact:
        chosen, notes = _one_of([candidate for _, candidate in exact], base, metadata, path)
        return _noted(next(found for found, candidate in exact if candidate.name == chosen), notes)
    best = min(tried, key=_faults, default=None)
    if unsaid is not None and (best is None or best.accounts.unfit):
        raise unsaid
    if best is not None and request.lenient and not best.accounts.unfit:
        return best
    raise CheckpointError(f"{path}: {_nothing_fits(tensors, best)}")


def _require_no_plain_rival(found: Fit, metadata: Metadata, request: Request, path: Path) -> None:
    """Refuse a network with rotary positions or norms elsewhere that no tensor shows, where a plain ViT has the same tensors."""
    blocks: Any = getattr(found.outline, "blocks", None)
    plain_itself = isinstance(found.outline, VisionTransformer) and type(blocks[0]) is Block
    if plain_itself or blocks is None or _named(found.name, path) or any(map(is_tap, found.reading.tensors)):
        return
    shapes = {name: tuple(tensor.shape) for name, tensor in found.reading.tensors.items()}
    plain = plain_vit(shapes, 1, path, request.image_size)
    if plain is not None and fit(plain[0], "tensors", found.reading, plain[1], metadata, request, path).accounts.exact:
        raise CheckpointError(
            f"{path}: its tensors are those of {found.name} and of a plain Vision Transformer, which differ in rotary positions "
            f"or in the place of norms, and no tensor shows either; choose --model {found.name} or --model {UNREGISTERED}"
        )


def _named(architecture: str, path: Path) -> bool:
    """Whether a file's name says a part that no tensor shows, as far as the architecture's name does."""
    name = path.name.lower()
    return architecture in name or any(f"_{word}" in architecture and word in name for word in ("rope", "rpn"))


def _near(ways: list[Reading], base: Reading, match: Match) -> list[tuple[Reading, Candidate]]:
    """What to try where no architecture has exactly the tensors' names and shapes, the likeliest first."""
    by_name = [(reading, candidate) for reading in ways for candidate in candidates_named(reading.architectures)]
    named = [(base, candidate) for candidate in match.candidates if candidate.covered > 0.5][:2]
    sizes = look_up_by_sizes({name: tuple(tensor.shape) for name, tensor in base.tensors.items()})
    return by_name + named + [(base, candidate) for candidate in sizes]


def _activation(metadata: Metadata, request: Request, path: Path) -> dict[str, Any]:
    """The activation of a Vision Transformer of CLIP, which no tensor says.

    Raises:
        CheckpointError: neither the file's origin nor the user says it.
    """
    if "act_layer" in {**stated(metadata), **request.arguments}:
        return {}
    if metadata.quick_gelu is None:
        raise CheckpointError(
            f"{path}: a CLIP Vision Transformer, whose activation no tensor shows; choose --model-args act_layer=quick_gelu as "
            "OpenAI trained them, act_layer=gelu as OpenCLIP does"
        )
    return {"act_layer": "quick_gelu"} if metadata.quick_gelu else {}


def _known(ways: list[Reading], metadata: Metadata, path: Path) -> tuple[Reading, str, list[str]] | None:
    """The reading, name and notes of the architecture that the index knows to have exactly these names and shapes."""
    found: list[tuple[Reading, Candidate]] = []
    for reading in ways:
        match = _best_match({name: tuple(tensor.shape) for name, tensor in reading.tensors.items()})
        if match.without_attention is not None:
            raise CheckpointError(f"{path}: {_without_attention(match.without_attention)}")
        found += [(reading, candidate) for candidate in match.candidates if candidate.share == 1]
    if not found:
        return None
    installed = [(reading, candidate) for reading, candidate in found if is_architecture(candidate.name)]
    if not installed:
        names = some([candidate.name for _, candidate in found])
        raise CheckpointError(
            f"{path}: its shapes are those of {names}; timm {timm.__version__} does not have it, install timm {index_version()}"
        )
    told = "rope" in path.name.lower()
    plain = [(r, candidate) for r, candidate in installed if ("rope" in candidate.name) == told] or installed
    if told:
        notes = ["rotary positions, as the file's name says; no tensor shows them"]
    elif not any("rope" in name for name in ways[0].tensors) and len(plain) < len(installed):
        rotary = some([candidate.name for _, candidate in installed if "rope" in candidate.name])
        notes = [f"{rotary} has the same tensors and rotary positions, which no tensor shows; --model takes it"]
    else:
        plain, notes = installed, []
    reading = plain[-1][0]
    chosen, more = _one_of([candidate for way, candidate in plain if way is reading], reading, metadata, path)
    return reading, chosen, [*notes, *more]


def _one_of(candidates: list[Candidate], reading: Reading, metadata: Metadata, path: Path) -> tuple[str, list[str]]:
    """One of several architectures that have the tensors, and what to say of the others.

    Raises:
        CheckpointError: they attend differently, and neither tables, names nor origin tell them apart.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in reading.tensors.items()}
    candidates = _by_tables(candidates, shapes)
    notes: list[str] = []
    if metadata.quick_gelu is not None and len({"quickgelu" in candidate.name for candidate in candidates}) > 1:
        candidates = [candidate for candidate in candidates if ("quickgelu" in candidate.name) == metadata.quick_gelu]
        notes.append(f"{'QuickGELU' if metadata.quick_gelu else 'GELU'} taken, as the file's origin says; no tensor shows it")
    windows = _window(shapes, path)
    if windows is not None:
        fitting = [c for c in candidates if re.search(rf"window(\d+to)?{windows}(_|$)", c.name)]
        candidates = fitting or candidates
    kinds: defaultdict[str, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        kinds[repr(_differing_attributes(candidate, candidates))].append(candidate)
    if len(kinds) > 1:
        raise CheckpointError(f"{path}: {_ambiguous(list(kinds.values()), path)}")
    chosen, *others = sorted(candidates, key=lambda candidate: _rank(candidate, path))
    return chosen.name, [*notes, *_others(chosen, others)]


def _window(shapes: Mapping[str, Shape], path: Path) -> int | None:
    """Side of Swin's windows: by a coordinate table or an index in the file, else by the file's name."""
    for name, shape in shapes.items():
        if name.endswith("relative_coords_table") and len(shape) == 4:
            return int(shape[1] + 1) // 2
        if name.endswith("relative_position_index") and len(shape) == 2:
            return math.isqrt(shape[0])
    said = re.search(r"window(?:\d+to)?(\d+)", path.name)
    return int(said[1]) if said and any("relative_position" in n or "cpb_mlp" in n for n in shapes) else None


def _best_match(shapes: Mapping[str, Shape]) -> Match:
    """The look-up of a state dict; without its TAP where that fits better: it was added to an architecture of timm."""
    match = look_up(shapes)
    plain = {name: shape for name, shape in shapes.items() if not is_tap(name)}
    if len(plain) == len(shapes) or any(found.share == 1 and exact_tables(found, shapes) for found in match.candidates):
        return match
    without = look_up(plain)
    if any(found.share == 1 and exact_tables(found, plain) for found in without.candidates):
        return without
    return match if any(found.share == 1 for found in match.candidates) else without


def _by_tables(candidates: list[Candidate], shapes: Mapping[str, Shape]) -> list[Candidate]:
    """Those whose position tables agree exactly; else those whose absolute table may have another image size."""
    exact = [candidate for candidate in candidates if exact_tables(candidate, shapes)]
    if not exact and len(_table_rows(tables(shapes))) == 1:  # one window everywhere
        exact = [candidate for candidate in candidates if len(_table_rows(candidate.tables)) == 1]
    return exact or [candidate for candidate in candidates if fits_table(shapes, candidate.prefix)] or candidates


def _table_rows(counted: Mapping[str, int]) -> set[str]:
    """Rows of Swin's relative position tables, of which each window size has its own number."""
    return {text.rsplit(" ", 1)[1].partition("x")[0] for text in counted if "relative_position_bias_table" in text}


def _differing_attributes(candidate: Candidate, among: list[Candidate]) -> dict[str, Any]:
    """The attributes in which the candidates that are left still differ."""
    return {
        key: value for key, value in candidate.attributes.items() if any(other.attributes.get(key) != value for other in among)
    }


def _rank(candidate: Candidate, path: Path) -> tuple[bool, int, bool, int, str]:
    """Which of several equals is taken: the one in the file's name; ImageNet's mean, as most trainers use; the shortest name."""
    words = [word for word in candidate.name.split("_") if len(word) > 4 and word in path.name.lower()]
    return (
        candidate.name not in path.name,
        -len(words),
        _mean(candidate.name) != IMAGENET_MEAN,
        len(candidate.name),
        candidate.name,
    )


def _mean(name: str) -> tuple[float, ...] | None:
    config = timm.get_pretrained_cfg(name)
    return tuple(config.mean) if config is not None and config.mean else None


def _others(chosen: Candidate, others: list[Candidate]) -> list[str]:
    if not others:
        return []
    names = ", ".join(candidate.name for candidate in others)
    if any(_mean(candidate.name) != _mean(chosen.name) for candidate in others):
        return [f"{names} has the same layers and attention but may have other preprocessing (mean, std); --model takes it"]
    return [f"{names} has the same layers and attention"]


def _ambiguous(kinds: list[list[Candidate]], path: Path) -> str:
    every = [candidate for group in kinds for candidate in group]
    options = []
    for group in kinds:
        differing = _differing_attributes(group[0], every)
        keys = sorted(
            differing,
            key=lambda key: next((rank for rank, word in enumerate(_TELLING) if key.endswith(f":{word}")), len(_TELLING)),
        )
        detail = ", ".join(f"{key.replace(':', '.')} {differing[key]}"[:80] for key in keys[:1])
        options.append(f"{' or '.join(candidate.name for candidate in group[:3])} ({detail or 'other parameters'})")
    named = next((f"; the file's name suggests {candidate.name}" for candidate in every if candidate.name in path.name), "")
    return f"its shapes fit architectures that attend differently: {'; '.join(options)}; name the right one with --model{named}"


_UNSEEN = ("num_heads", "global_pool", "fc_norm", "act_layer", "pool_include_prefix")
"""Arguments of a Vision Transformer that its tensors do not tell."""


def stated(metadata: Metadata, name: str = UNREGISTERED) -> dict[str, Any]:
    """What the file says of an architecture that it does not name and its tensors do not tell."""
    if not name.startswith(("vit_", "deit", "flexivit", "test_vit", UNREGISTERED)):
        return {}
    return {key: value for key, value in (metadata.unseen | metadata.model_args).items() if key in _UNSEEN}


def _noted(found: Fit, notes: list[str]) -> Fit:
    found.notes[:0] = notes
    return found


def _demand_size(model: nn.Module, tensors: Mapping[str, Tensor], path: Path, name: str) -> None:
    """Refuse, before memory is taken for it, an architecture that is far larger than the checkpoint."""
    wanted = sum(parameter.numel() for key, parameter in model.named_parameters() if not (is_classifier(key) or is_table(key)))
    given = sum(tensor.numel() for tensor in tensors.values())
    if 2 * given < wanted:
        advice = known_by_shapes(tensors)
        hint = f"its shapes are those of {advice}" if advice else "try another --model"
        raise CheckpointError(f"{path}: {name} has {wanted:,} parameters, the checkpoint holds {given:,} values; {hint}")


def _without_attention(name: str) -> str:
    return f"a {name}, which has no attention weights between tokens; overfocus measures those, so give a transformer"


def _nothing_fits(tensors: Mapping[str, Tensor], nearest: Fit | None) -> str:
    for expression, library, advice in _FOREIGN:
        if any(expression.search(name) for name in tensors):
            faults = f" (against {nearest.name}: {nearest.accounts.faults})" if nearest is not None else ""
            return f"parameter names of {library}, in an unknown form{faults}; {advice}; or --lenient"
    if any(name.endswith(("flat_param", "flat_params")) for name in tensors):
        return "parameters flattened by FSDP, one part of a network each; save a full state dict (StateDictType.FULL_STATE_DICT)"
    if not any(ATTENTION.search(name) for name in tensors):
        return "no parameter belongs to an attention layer (a convolutional network?); a Vision Transformer is needed"
    if nearest is None:
        return f"its tensors match no architecture of timm or overfocus; name it with --model, or {_OWN_CODE}"
    lenient = ", or load it without them (--lenient)" if not nearest.accounts.unfit else ""
    table = nearest.accounts.unfit.get("pos_embed", ((), ()))
    if len(table[0]) == len(table[1]) == 3:
        rows = tuple(tensors["pos_embed"].shape)[1:2] if "pos_embed" in tensors else ()
        return (
            f"its position table {some([f'of {row} rows' for row in rows])} fits no square patch grid of {nearest.name}; "
            "give the size of its images with --image-size HEIGHTxWIDTH"
        )
    return (
        f"its tensors match no architecture of timm or overfocus; the nearest is {nearest.name}, but "
        f"{nearest.accounts.faults}; name the right one with --model{lenient}, or {_OWN_CODE}"
    )
