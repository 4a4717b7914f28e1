"""Models of Hugging Face transformers: folders that `save_pretrained` and its Trainer write, built by transformers itself.
Adapters of PEFT, merged into their base model by peft itself.

No code comes with the weights: remote code is off, kernels are torch's own, pickles are read as tensors only, and nothing is
fetched for a folder on the disk but the base model that an adapter names. Of an adapter's configuration, plain numbers and
switches are passed on; which layers it changes is read from its tensors' names, never from a regular expression in the file.
"""

import contextlib
import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import constants as hub
from PIL import Image
from torch import Tensor, nn

from overfocus.checkpoints.arguments import checked_arguments
from overfocus.checkpoints.build import BEFORE_CLASSIFIER, is_harmless, is_head
from overfocus.checkpoints.formats import OF_TRANSFORMERS
from overfocus.checkpoints.loaded import LoadedModel, hash_weights
from overfocus.errors import CheckpointError, first_line
from overfocus.files import read_json, require_regular_file
from overfocus.preprocessing import IMAGENET_MEAN, IMAGENET_STD, LARGEST_SIDE, Preprocess
from overfocus.text import some

_TOWERS = {
    "clip": "CLIPVisionModel", "siglip": "SiglipVisionModel", "siglip2": "Siglip2VisionModel", "altclip": "AltCLIPVisionModel",
    "chinese_clip": "ChineseCLIPVisionModel", "clip_vision_model": "CLIPVisionModel", "siglip_vision_model": "SiglipVisionModel",
    "vit_mae": "ViTModel",
}  # fmt: skip
"""By `model_type`: the part that takes the image. MAE's own class hides most patches at random, its encoder is a plain ViT."""
_BOUNDS = {
    "hidden_size": 8192, "num_hidden_layers": 200, "num_attention_heads": 256, "intermediate_size": 65_536, "image_size": 4096,
    "patch_size": 256, "num_channels": 16, "embed_dim": 8192, "mlp_ratio": 32, "num_labels": 200_000, "vocab_size": 1_000_000,
    "num_register_tokens": 256, "window_size": 512, "max_position_embeddings": 65_536, "decoder_hidden_size": 8192,
    "decoder_num_hidden_layers": 200, "projection_dim": 8192, "decoder_intermediate_size": 65_536,
}  # fmt: skip
_LEVELS = ("out_indices", "features_only")
_DEEPEST = 16
_SAME = 0.005  # mean difference of values in [0, 1]
_RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
_NEEDLESS = ("pooler.", "classifier.", "cls_classifier.", "distillation_classifier.", "decode_head.", "lm_head.", "decoder.")
"""What a model of transformers may lack or have left over without a change to the encoder."""
_OTHER_TOWER = ("text_model.", "text_projection", "visual_projection", "logit_scale", "logit_bias")


def load_transformers(folder: Path, config: dict[str, Any], image_size: tuple[int, int] | None, lenient: bool) -> LoadedModel:
    """The vision model that a folder of transformers holds.

    Raises:
        CheckpointError: transformers is not installed or does not know it, or weights and configuration do not agree.
    """
    try:
        import transformers
    except ImportError:
        raise CheckpointError(
            f"{folder}: a Hugging Face transformers model; install that package first: pip install 'overfocus[transformers]'"
        ) from None
    _require_sound(folder, config)
    _require_inside(folder)
    kind = str(config.get("model_type", ""))
    named = config.get("architectures")
    names = [str(name) for name in named] if isinstance(named, list) else []
    kinds = {n: getattr(transformers, n, None) for n in names if n.isidentifier()}
    own = next((n for n, k in kinds.items() if isinstance(k, type) and issubclass(k, transformers.PreTrainedModel)), "AutoModel")
    tower = None if own.endswith("ForImageClassification") else _TOWERS.get(kind)
    name = tower or own
    built = getattr(transformers, name)
    notes: list[str] = []
    try:
        with _offline():
            settings = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if kind == "vit_mae":
            settings = transformers.ViTConfig(**{key: config[key] for key in transformers.ViTConfig().to_dict() if key in config})
            notes.append("MAE's encoder built as a ViT: every patch is seen, none is masked")
        elif tower is not None and hasattr(settings, "vision_config"):
            settings = settings.vision_config
            notes.append("left out, not part of the encoder: the text model and the projections")
        with _quiet(transformers.utils.logging), _offline():
            model, loading_info = built.from_pretrained(
                folder,
                config=settings,
                local_files_only=True,
                output_loading_info=True,
                dtype=torch.float32,
                attn_implementation="sdpa" if getattr(built, "_supports_sdpa", False) else "eager",  # never a kernel of the hub
            )
    except Exception as error:  # transformers raises whatever its parts raise
        raise CheckpointError(
            f"{folder}: transformers cannot load this {kind[:60] or 'model'} ({first_line(error)}); correct config.json, or "
            "pass the weights file with code of your own (--model package.module:factory)"
        ) from error
    _require_images(model, folder)
    missing = [key for key in loading_info["missing_keys"] if not _needless(key)]
    left = [key for key in loading_info["unexpected_keys"] if not key.startswith(_OTHER_TOWER)]
    classifies = own.endswith("ForImageClassification")
    unexpected = [key for key in left if not _needless(key) or (classifies and BEFORE_CLASSIFIER.match(key))]
    unfit = [str(key[0] if isinstance(key, tuple) else key) for key in loading_info.get("mismatched_keys", ())]
    faults = "; ".join(
        f"{label} {some(sorted(keys))}"
        for label, keys in (("missing", missing), ("no place for", unexpected), ("other shapes of", unfit))
        if keys
    )
    if faults and not lenient:
        raise CheckpointError(
            f"{folder}: not every tensor matches {name}: {faults}; "
            "does config.json belong to these weights? --lenient loads them anyway"
        )
    preprocess, assumed = _preprocess(folder, settings, image_size)
    said = [f"LENIENT: loaded although not every tensor matches {name}: {faults}"] if faults else []
    labels = getattr(settings, "id2label", None) if "Classification" in type(model).__name__ else None
    classes = int(getattr(settings, "num_labels", 0)) if labels is not None else 0
    return LoadedModel(
        model=model,
        preprocess=preprocess,
        name=type(model).__name__,
        source=str(folder),
        sha256=hash_weights(model),
        found_by="config.json of transformers",
        weights_entry="save_pretrained",
        missing_keys=sorted(loading_info["missing_keys"]),
        unexpected_keys=sorted(loading_info["unexpected_keys"]),
        notes=(*said, *notes, *assumed),
        lenient=bool(faults),
        class_names=[str(labels[number]) for number in sorted(labels)] if labels else None,
        classes=classes,
    )


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Nothing is fetched: a configuration may name other models, such as a backbone."""
    before, hub.HF_HUB_OFFLINE = hub.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = before


@contextlib.contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Without the tables and progress bars that transformers prints: what matters is in our messages and notes."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _require_images(model: Any, folder: Path) -> None:
    """Refuse what does not take a batch of images and nothing else: text models, and those of patches cut beforehand."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    more = [p.name for p in parameters[1:] if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    first = parameters[0].name if parameters else "nothing"
    if (getattr(model.config, "num_frames", 1) or 1) > 1:
        first = f"videos of {model.config.num_frames} frames"
    if first != "pixel_values" or more:
        takes = " and ".join([first, *more])
        raise CheckpointError(
            f"{folder}: a {type(model).__name__}, which takes {takes}; expected a model whose only input is a batch of images"
        )


def _needless(key: str) -> bool:
    return is_harmless(key) or any(f".{part}" in f".{key}" for part in _NEEDLESS)


def _require_inside(folder: Path) -> None:
    """Refuse weights that are no regular files, and parts that an index looks for outside the folder."""
    for path in sorted(folder.iterdir()):
        if not OF_TRANSFORMERS.fullmatch(path.name):
            continue
        require_regular_file(path, "weights of a model", CheckpointError)
        if path.suffix == ".json":
            parts = read_json(path, "an index of parts", CheckpointError).get("weight_map")
            names = {str(part) for part in parts.values()} if isinstance(parts, dict) else {str(parts)}
            strange = next((name for name in sorted(names) if not OF_TRANSFORMERS.fullmatch(name)), None)
            if strange is not None:
                raise CheckpointError(
                    f"{path}: refused, names {strange[:60]!r} as a part of the weights; expected files of this folder such as "
                    "model-00001-of-00002.safetensors"
                )


def _require_sound(folder: Path, config: dict[str, Any]) -> None:
    """Refuse, before anything is built, sizes out of reason and quantised weights."""
    if config.get("quantization_config"):
        raise CheckpointError(f"{folder}: its weights are quantised; save the model dequantised (model.dequantize())")
    stack: list[tuple[dict[str, Any], int]] = [(config, 0)]
    while stack:
        values, depth = stack.pop()
        for key, value in values.items():
            numbers = value if isinstance(value, list) else [value]
            if depth < _DEEPEST and key not in ("id2label", "label2id"):
                stack += [(item, depth + 1) for item in numbers if isinstance(item, dict)]
            if key in ("model_args", "backbone_kwargs") and isinstance(value, dict):  # what timm is going to be given
                checked_arguments({k: v for k, v in value.items() if k not in _LEVELS}, folder / "config.json")
            if key in ("architecture", "backbone") and isinstance(value, str) and not re.fullmatch(r"[\w.-]{0,200}", value):
                said = f"{folder / 'config.json'}: refused, its {key} is {value[:60]!r}"
                raise CheckpointError(f"{said}; expected a name of timm, no place to load from")
            if key in _BOUNDS and any(isinstance(n, int | float) and not 0 <= n <= _BOUNDS[key] for n in numbers):
                raise CheckpointError(
                    f"{folder / 'config.json'}: refused, {key} is {str(value)[:60]}; expected 0 to {_BOUNDS[key]}"
                )


def _preprocess(folder: Path, settings: Any, image_size: tuple[int, int] | None) -> tuple[Preprocess, list[str]]:
    """What the folder's image processor does: in our own steps where they give the same, else by the processor itself."""
    path = folder / "preprocessor_config.json"
    said = read_json(path, "the preprocessing of a model", CheckpointError) if path.is_file() else {}
    ours, notes = _steps(path, said, settings, None)
    sized = (_steps(path, said, settings, image_size)[0] if image_size is not None else ours), notes
    processor = _processor(folder, said) if path.is_file() else None
    if processor is None:
        return sized
    try:
        processor(Image.new("RGB", (8, 8)))
    except Exception:  # some raise for sizes that others of their class, or of other versions, take
        name = type(processor).__name__
        return sized[0], [*notes, f"images are prepared as the folder's settings say; {name} itself cannot work with them"]
    try:
        own = Preprocess.from_callable(processor)
    except ValueError as error:
        if "other sizes" not in str(error):
            advice = "pass the weights with code of your own that does it (--model package.module:factory)"
            raise CheckpointError(f"{path}: {first_line(error)}; {advice}") from None
        height, width = sized[0].input_size[1:]
        return sized[0], [
            *notes,
            f"images resized to {height}x{width}; the folder's own preprocessing leaves them of different sizes",
        ]
    except Exception:  # transformers raises whatever its parts raise
        return sized
    if own.channels != ours.channels or _alike(ours, own):
        return sized
    if image_size is None:
        return own, [f"preprocessing by {type(processor).__name__} of transformers"]
    return sized[0], [*notes, f"at another size, images are not prepared as by the folder's {type(processor).__name__}"]


def _alike(first: Preprocess, second: Preprocess) -> bool:
    """Whether two ways to prepare images give the same, rounding and rival kernels of resizing aside."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    pairs = [
        [made(noise.resize(size, Image.Resampling.BICUBIC)) for made in (first, second)] for size in ((256, 192), (160, 320))
    ]
    level = min(first.std)
    return all(one.shape == other.shape and float((one - other).abs().mean()) * level < _SAME for one, other in pairs)


def _processor(folder: Path, said: Mapping[str, Any]) -> Any:
    """The image processor of a folder, as transformers builds it; None where it cannot, or sizes are out of reason."""
    import transformers

    numbers: list[Any] = [said]
    while numbers:
        part = numbers.pop()
        numbers += part.values() if isinstance(part, dict) else part if isinstance(part, list) else []
        if isinstance(part, int | float) and not abs(part) <= LARGEST_SIDE:
            return None
    try:
        with _quiet(transformers.utils.logging), _offline():
            return transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception:  # transformers raises whatever its parts raise
        return None


def _steps(
    path: Path, said: Mapping[str, Any], settings: Any, image_size: tuple[int, int] | None
) -> tuple[Preprocess, list[str]]:
    """Size, crop, mean and standard deviation as a configuration says them."""
    notes = []
    if not said.get("image_mean"):
        notes.append("preprocessing assumed: ImageNet's mean and std; preprocessor_config.json does not say")
    channels = int(getattr(settings, "num_channels", 3) or 3)
    own = getattr(settings, "image_size", None) or getattr(getattr(settings, "vision_config", None), "image_size", None) or 224
    side = own if isinstance(own, int) else max(own)
    size, crop = said.get("size"), said.get("crop_size")
    mean, std = said.get("image_mean") or IMAGENET_MEAN, said.get("image_std") or IMAGENET_STD
    if not said.get("do_normalize", True):
        mean, std = [0.0] * channels, [1.0] * channels
    factor = said.get("rescale_factor", 1 / 255) if said.get("do_rescale", True) else 1
    scale = 255 * factor if isinstance(factor, int | float) and factor > 0 else 1.0
    try:
        crop_pct, mode, target = 1.0, "squash", _sides(size, side)
        if (isinstance(size, dict) and "shortest_edge" in size) or said.get("do_center_crop"):
            edge = min(_sides(size, side))
            target = _sides(crop, side) if said.get("do_center_crop") and crop else (edge, edge)
            crop_pct, mode = min(max(target) / edge, 1.0), "center"
            if "crop_pct" in said and isinstance(said["crop_pct"], int | float):
                crop_pct = float(said["crop_pct"])
        return (
            Preprocess(
                (channels, *(image_size or target)),
                tuple(value / scale for value in mean)[:channels],  # of values from 0 to 1, whatever the pixels are scaled to
                tuple(value / scale for value in std)[:channels],
                _RESAMPLING.get(said.get("resample", 2), "bilinear"),
                crop_pct,
                mode,
            ),
            notes,
        )
    except (ValueError, TypeError, ArithmeticError) as error:
        raise CheckpointError(f"{path}: the preprocessing is not usable: {first_line(error)}") from None


def _sides(size: Any, default: int) -> tuple[int, int]:
    """(height, width) in any of the forms that transformers writes."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, dict):
        if "height" in size and "width" in size:
            return int(size["height"]), int(size["width"])
        edge = size.get("shortest_edge") or size.get("longest_edge") or default
        return int(edge), int(edge)
    if isinstance(size, list) and len(size) == 2:
        return int(size[0]), int(size[1])
    return default, default


_ADAPTED = re.compile(r"(?P<module>.+)\.(?P<tensor>(lora|hada|lokr|ia3)_\w+(\.(weight|bias))?)")
"""A tensor of an adapter, behind the name of the layer that it changes."""
_METHODS = {
    "LORA": "lora_alpha r use_rslora use_dora fan_in_fan_out lora_bias".split(),
    "LOHA": "alpha r use_effective_conv2d".split(),
    "LOKR": "alpha r use_effective_conv2d decompose_both decompose_factor".split(),
    "IA3": ["fan_in_fan_out"],
}
"""Methods that can be merged into the weights, and what decides how."""
_OF_TRAINING = frozenset(
    "task_type peft_type auto_mapping peft_version base_model_name_or_path revision inference_mode target_modules "
    "exclude_modules feedforward_modules modules_to_save bias layers_to_transform layers_pattern rank_pattern alpha_pattern "
    "lora_dropout rank_dropout module_dropout init_weights init_ia3_weights megatron_core qalora_group_size runtime_config "
    "eva_config loftq_config".split()
)
"""Settings of an adapter without effect on what it is once trained, and those that its tensors say better."""
_PLAIN_STARTS = ("gaussian", "eva", "orthogonal")
"""Ways to start a LoRA that leave the base model as it was."""


def merge_adapter(base: LoadedModel, folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LoadedModel:
    """The base model with a PEFT adapter merged into its weights.

    Args:
        base: is changed in place.
        folder: of the adapter, for messages.
        config: what its `adapter_config.json` says.
        tensors: what its weights file holds.

    Raises:
        CheckpointError: peft is not installed, the adapter is of a kind that cannot be merged, or it is not one of this base.
    """
    try:
        import peft
    except ImportError:
        raise CheckpointError(f"{folder}: a PEFT adapter; install what merges it: pip install 'overfocus[peft]'") from None
    settings = _adapter_settings(folder, config)
    tuned, plain = _sorted_out(base, folder, tensors)
    names = list(tuned)
    settings["target_modules"] = names
    if settings["peft_type"] == "IA3":
        settings["feedforward_modules"] = [name for name, parts in tuned.items() if parts["ia3_l"].shape[0] == 1]
    else:
        settings |= {key: _by_layer(folder, config.get(key), names) for key in ("rank_pattern", "alpha_pattern")}
    kind = settings.pop("peft_type")
    notes = _replace(base, folder, plain)
    try:
        wrapped = peft.get_peft_model(base.model, getattr(peft, _CONFIGURATIONS[kind])(**settings))
        state = {f"base_model.model.{name}.{part}": t for name, parts in tuned.items() for part, t in parts.items()}
        result: Any = peft.set_peft_model_state_dict(wrapped, state)
        left = [key for key in result.missing_keys if _ADAPTED.fullmatch(key.replace(".default", ""))]
        if left or result.unexpected_keys:
            raise ValueError(f"missing {some(left)}" if left else f"no place for {some(result.unexpected_keys)}")
        model = wrapped.merge_and_unload(safe_merge=True)
    except Exception as error:  # peft raises whatever its parts raise
        raise CheckpointError(f"{folder}: peft cannot merge this adapter into {base.source} ({first_line(error)})") from error
    base.model, base.sha256 = model.eval(), hash_weights(model)
    base.notes = (f"adapter ({kind}, {len(names)} layers) merged into {base.source}", *notes, *base.notes)
    base.source, base.found_by, base.weights_entry = str(folder), f"{base.found_by} of the base", "base model and adapter"
    return base


_CONFIGURATIONS = {"LORA": "LoraConfig", "LOHA": "LoHaConfig", "LOKR": "LoKrConfig", "IA3": "IA3Config"}


def _adapter_settings(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """What of an adapter's configuration goes to peft: numbers within bounds and switches.

    Raises:
        CheckpointError: it is of another method, or asks for something that merging would leave out.
    """
    kind = str(config.get("peft_type"))
    advice = "merge it where it was trained (merge_and_unload) and save that"
    if kind not in _METHODS:
        raise CheckpointError(f"{folder}: a PEFT adapter of the kind {kind[:40]}, expected {', '.join(_METHODS)}; {advice}")
    settings: dict[str, Any] = {"peft_type": kind}
    for key, value in config.items():
        start = key == "init_lora_weights" and (not isinstance(value, str) or value in _PLAIN_STARTS)
        if key in _METHODS[kind]:
            if not isinstance(value, int | float) or not -1 <= value <= 65_536 or (key == "r" and not 1 <= value <= 8192):
                raise CheckpointError(f"{folder}: refused, {key} of its adapter_config.json is {str(value)[:60]!r}")
            settings[key] = value
        elif value and key not in _OF_TRAINING and not start:
            asked = f"{str(key)[:60]} ({str(value)[:60]})"
            raise CheckpointError(f"{folder}: its adapter_config.json asks for {asked}, which is not supported; {advice}")
    return settings


def _sorted_out(
    base: LoadedModel, folder: Path, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """The tensors of an adapter by the layer of the base that they change, and those that replace one of the base's own."""
    tuned: dict[str, dict[str, Tensor]] = {}
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        short = name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".modules_to_save.", ".")
        match = _ADAPTED.fullmatch(short)
        if match:
            tuned.setdefault(match["module"], {})[match["tensor"]] = tensor
        else:
            plain[short] = tensor
    if not tuned:
        raise CheckpointError(f"{folder}: none of its tensors belong to an adapter of a layer ({some(list(tensors))})")
    theirs = {name for name, _ in base.model.named_modules()}
    words = next(iter(tuned)).split(".")
    fronts = [".".join(words[:count]) + "." for count in range(1, len(words))]
    own = {name.partition(".")[0] + "." for name in theirs}
    cut = next((front for front in ["", *fronts] if all(_moved(name, front, "") in theirs for name in tuned)), None)
    added = "" if cut is not None else next((f for f in own if all(f + name in theirs for name in tuned)), None)
    if added is None:
        raise CheckpointError(
            f"{folder}: it changes {some(list(tuned))}, which its base {base.source} ({base.name}) does not have; "
            "is it an adapter of another model? --model names the base"
        )
    return (
        {_moved(name, cut or "", added): parts for name, parts in tuned.items()},
        {_moved(name, cut or "", added): tensor for name, tensor in plain.items()},
    )


def _moved(name: str, cut: str, added: str) -> str:
    return added + name.removeprefix(cut)


def _by_layer(folder: Path, patterns: object, names: list[str]) -> dict[str, Any]:
    """Ranks or alphas that an adapter's configuration gives single layers, by the full names of these layers.

    peft reads the keys as regular expressions that match the end of a name. Names and ends of names are taken, nothing else.
    """
    found: dict[str, Any] = {}
    for key, value in (patterns if isinstance(patterns, dict) else {}).items():
        ending = str(key).removeprefix("^").replace("\\.", ".").removesuffix("$")
        if not re.fullmatch(r"[\w.-]{1,500}", ending) or not isinstance(value, int | float) or not 0 < value <= 8192:
            raise CheckpointError(
                f"{folder}: refused, its adapter_config.json gives {str(value)[:40]!r} to the layers {key[:60]!r}"
            )
        for name in names:
            if f".{name}".endswith(f".{ending}") or f".{ending}".endswith(f".{name}"):
                found.setdefault(name, value)
    return found


def _replace(base: LoadedModel, folder: Path, plain: Mapping[str, Tensor]) -> list[str]:
    """Put the tensors that an adapter's training saved whole (a classifier, biases) in place of the base's; gives notes."""
    state, left = base.model.state_dict(), []
    for name, tensor in sorted(plain.items(), reverse=True):  # a layer's weight before its bias
        layer, _, kind = name.rpartition(".")
        if name not in state:
            if not is_head(name, ()) and not _needless(name):
                raise CheckpointError(f"{folder}: {name[:120]} has no place in its base {base.source} ({base.name})")
            left.append(name)
        elif state[name].shape != tensor.shape:
            module = base.model.get_submodule(layer)
            if not isinstance(module, nn.Linear) or tensor.shape[1:] != state[name].shape[1:] or kind != "weight":
                shapes = f"{tuple(tensor.shape)}, its base {base.source} has {tuple(state[name].shape)}"
                raise CheckpointError(f"{folder}: {name[:120]} has shape {shapes}; is it an adapter of another model?")
            other = nn.Linear(tensor.shape[1], tensor.shape[0], bias=f"{layer}.bias" in plain)
            base.model.set_submodule(layer, other)
            if hasattr(base.model, "num_classes"):
                setattr(base.model, "num_classes", tensor.shape[0])  # noqa: B010  # torch says attributes are tensors or modules
            base.classes, base.class_names, state = tensor.shape[0], None, base.model.state_dict()
    fitting = {name: tensor for name, tensor in plain.items() if name in state}
    for name, tensor in fitting.items():
        with torch.no_grad():
            state[name].copy_(tensor)
    notes = [f"left out, not part of the encoder: {some(left)}"] if left else []
    return [*notes, f"replaced by the adapter's own: {some(sorted(fitting))}"] if fitting else notes
