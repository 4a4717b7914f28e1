"""Find the networks in what a checkpoint file holds, whichever trainer wrote it.

No list of entries or prefixes: everything in the file is laid out as dotted names, and a network begins at the lowest name
that has both a first convolution (or patch projection) and attention beneath it. `state_dict_ema.module.` of timm,
`student.module.backbone.` of DINO, `visual.` of CLIP and `generator.net.0.` of somebody are the same to it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from overfocus.checkpoints.build import before_classifier
from overfocus.errors import CheckpointError
from overfocus.text import some

_DEEPEST = 64
_MOST_CHANNELS = 4
"""Of an image; a layer of more units takes features."""
_MOST_TENSORS = 100_000
ATTENTION = re.compile(
    r"att(?!ention_bias|ended)|qkv|query|q_proj|in_proj|to_q|mhsa|w_msa|(^|\.)q\.|(^|\.)wq\.|token_mixer|relative_position_bias",
    re.IGNORECASE,
)
_BESIDE_TRAINING = re.compile(
    r"\w*optim\w*|opt(_state\w*)?|exp_avg\w*|grad(ient)?s?|lr_scheduler\w*|\w*scheduler\w*|\w*scaler\w*|rng\w*|\w*rng_state\w*|loops|callbacks|amp|trainer_state",
    re.IGNORECASE,
)
_FIRST_PROJECTION = re.compile(r"(patch_embed\w*|pixel_embed|to_patch_embedding|patchifier|patch_generator|embeds)\b.*weight$")
_AVERAGED = frozenset({"ema", "teacher", "target", "averaged", "swa", "polyak", "shadow"})
_AUXILIARY = frozenset({"predictor", "decoder"})
"""Networks that only a training needs, beside the encoder."""
_LAST_NORM = re.compile(r"(norm|ln|layer_?norm|ln_post|fc_norm|norm_post|final_norm|last_norm|encoder_norm|ln_f)\.(weight|bias)")
_OWN_HEADS = (
    (re.compile(r"\.ffn\.layers\.0\.0\.weight$"), "head.", re.compile(r"head\.(?:fc|layers\.head)\.(weight|bias)")),
    (re.compile(r"\.attention\.(attention\.query|q_proj)\.weight$"), "classifier.", re.compile(r"classifier\.(weight|bias)")),
)
"""Libraries that keep a classifier beside the encoder: what tells them, its name with the encoder's, its name in the file."""
_MOMENTUM = frozenset({"momentum", "k"})
_COUNTER = "n_averaged"
"""What `torch.optim.swa_utils.AveragedModel` puts beside its `module.`."""
WRAPPER = re.compile(r"(?<![^.])_(orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module|forward_module|ddp_module)\.")
"""What torch.compile, FSDP and activation checkpointing put into names, before the network or inside it."""
_CHANGES_INPUT = re.compile(
    r"prompt(?!_encoder)|lora|adapter|ssf|prefix|token(?!_embedding)|stem|patch|pos_|_pos(?!t)|gate|scale_shift|^(side|ladder|inject|simfp)"
    r"|polic(y|ies)|prun(e|ing)|router|selector|halting|^(?!decoder|token|text|word|label|class|query|bbox|box)\w*emb(ed|$|_)"
    r"|^(?!text|decoder|\w*head|\w*proj|\w*predict)(\w+_)?(layer_?)?norm\w*$",
    re.IGNORECASE,
)
_ELSEWHERE = re.compile(
    r"text|word|token_emb|prompt_encoder|bert|gpt|llama|language|llm|lm_|caption|question|q_?former|transformer|decoder|loss|criterion|perceptual"
    r"|lpips|vgg|inception|discriminator|metric|\bacc|memory|queue|bank|mask_|sam_|prototypes",
    re.IGNORECASE,
)
"""Parts beside a network that have inputs of their own: text towers, losses, decoders of prompts."""
_NORMALISATION = re.compile(
    r"(?!.*(target|label|output|feat|latent|logit|regress|score|(^|[._])y_))(^|.*[._])(mean|mu|std|sigma)"  # of the input
)
_HARMLESS_PARAMETER = re.compile(
    r"^(n_averaged|logit_scale|logit_bias|temperature|temp|tau|text_projection|image_projection|visual_projection"
    r"|positional_embedding|center\w*|queue\w*|queue_ptr|attn_mask|context_length|vocab_size|input_resolution|mean|std|pixel_mean"
    r"|pixel_std|class_weights?|\w*mask_token\w*|epoch|step|iteration|num_updates|decay|initted|maskmem_tpos_enc"
    r"|no_(mem|obj)_(embed|pos_enc|ptr|embed_spatial)|(y|targets?|labels?|outputs?)_(mean|std))$"
)


@dataclass(frozen=True, eq=False)
class Network:
    """The tensors of one network."""

    tensors: dict[str, Tensor] = field(repr=False)
    path: str
    """Where it was, e.g. "state_dict_ema.module"; empty where the file is the network itself."""
    beside: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    """Tensors beside it that belong to no other network: heads, a text tower, a loss."""
    head: str = ""
    """Where the linear layer stood that was taken as its classifier, where it is not called `head`."""
    normalisation: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Mean and standard deviation that the network itself subtracts and divides by, of values in [0, 1]; empty without."""

    @property
    def entry(self) -> str:
        """Where it was, for the user."""
        return self.path or "the file itself"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}


def flatten(content: Mapping[str, object]) -> dict[str, Tensor]:
    """Every tensor in nested dictionaries under its dotted name, without those of optimisers and the like."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    stack: list[tuple[str, object]] = [("", content)]
    while stack:
        front, value = stack.pop()
        if isinstance(value, Mapping | list | tuple):
            if id(value) in seen or front.count(".") > _DEEPEST or len(found) > _MOST_TENSORS:
                continue  # shared or self-referring, or no checkpoint of a network
            seen.add(id(value))
        if isinstance(value, Tensor):
            found[front] = value
        elif isinstance(value, Mapping):
            inside = [(f"{front}.{key}" if front else str(key), item) for key, item in value.items() if not _of_training(key)]
            stack += reversed(inside)
        elif isinstance(value, list | tuple) and "param" not in front.rpartition(".")[2]:  # values without names, of an average
            stack += [(f"{front}.{number}", item) for number, item in reversed(list(enumerate(value)))]
    return found


def _of_training(key: object) -> bool:
    """Whether an entry, at whatever depth, holds the state of an optimiser or the like; `scaler.weight` is a network's own."""
    return _BESIDE_TRAINING.fullmatch(str(key)) is not None


def find_networks(content: Mapping[str, object], path: object = "checkpoint") -> list[Network]:
    """Every vision network in a file, in the order of the file.

    Raises:
        CheckpointError: there are no tensors in it.
    """
    tensors = flatten(content)
    constants, normalisation = _normalisation(tensors)
    tensors = {name: tensor for name, tensor in tensors.items() if name not in constants}
    if not tensors:
        keys = some([str(key)[:60] for key in content])
        raise CheckpointError(f"{path}: expected a state dict (names → tensors), got a dict with {keys} and no weights in it")
    roots = _roots(tensors)
    if not roots:
        return [Network(_largest(tensors), _largest_path(tensors), normalisation=normalisation)]
    roots = [_with_last_norm(root, roots, tensors) for root in roots]
    networks = []
    for root in roots:
        front = f"{root}." if root else ""
        own = {name.removeprefix(front): tensor for name, tensor in tensors.items() if name.startswith(front)}
        others = tuple(f"{other}." for other in roots)
        base = _entry(content, root)
        around = [name for name in tensors if _within(name, base) and not name.startswith(others)] if root != base else []
        heads = _own_heads(own, root, {name: tensors[name] for name in around})
        own = {WRAPPER.sub("", name): tensor for name, tensor in own.items()}
        own |= {target: tensors[name] for name, target in heads.items()}
        around = [name for name in around if name not in heads and not name.endswith(_COUNTER)]
        head = _linear_head(own, {name: tensors[name] for name in around})
        if head:
            both = own | {name: tensors[name] for name in around}
            own = {name: tensor for name, tensor in own.items() if not name.startswith(f"{head}.")}
            own |= {f"head.{kind}": both[f"{head}.{kind}"] for kind in ("weight", "bias")}
            around = [name for name in around if not name.startswith(f"{head}.")]
        networks.append(Network(own, root, {name: tensors[name] for name in around}, head, normalisation))
    return networks


def _normalisation(tensors: Mapping[str, Tensor]) -> tuple[list[str], dict[str, tuple[float, ...]]]:
    """The one pair of constants by which a network normalises its input itself: names, mean and std of values in [0, 1].

    Without effect, as where the network was saved before they were set, are zeros and ones.
    """
    found: dict[str, list[str]] = {"mean": [], "std": []}
    for name, tensor in tensors.items():
        match = _NORMALISATION.fullmatch(name)
        if match and tensor.is_floating_point() and tensor.numel() in (1, 3) and tensor.numel() == max(tensor.shape, default=1):
            found["mean" if name.endswith(("mean", "mu")) else "std"].append(name)
    if not len(found["mean"]) == len(found["std"]) == 1:
        return [], {}
    names = [found["mean"][0], found["std"][0]]
    mean, std = (tuple(round(value, 6) for value in tensors[name].flatten().tolist()) for name in names)
    if max(std) > 1.5:  # of values in 0 … 255
        mean, std = (tuple(round(value / 255, 6) for value in values) for values in (mean, std))
    if len(mean) != len(std) or not all(-1 <= value <= 1 for value in mean) or not all(0 < value <= 1 for value in std):
        return [], {}
    return names, {} if not any(mean) and set(std) == {1.0} else {"mean": mean, "std": std}


def choose_network(networks: list[Network], weights: str | None, use_ema: bool, path: object) -> tuple[Network, list[str]]:
    """The network to take, and what to say about the others.

    Raises:
        CheckpointError: `weights` names none or several, or several are there and nothing says which to take.
    """
    if weights is not None:
        wanted = weights.strip(".")
        exact = [network for network in networks if network.path == wanted]
        inside = [n for n in networks if f".{n.path}.".find(f".{wanted}.") >= 0]
        if len(exact or inside) != 1:
            raise CheckpointError(f"{path}: expected --weights to name one of {_names(networks)}, got {weights!r}")
        return (exact or inside)[0], []
    networks = [network for network in networks if not _words(network.path) & _AUXILIARY] or networks
    if len(networks) == 1:
        return networks[0], []
    distilled = any("distil" in network.path.lower() for network in networks)  # there the teacher is no average of the student
    averaged = [network for network in networks if _words(network.path) & _AVERAGED and not distilled]
    momentum = [n for n in networks if n not in averaged and _words(n.path) & _MOMENTUM]
    plain = [network for network in networks if network not in averaged and network not in momentum]
    plain = plain or momentum
    choice = f"--weights {networks[0].path or networks[1].path}"
    if len(plain) > 1 or len(averaged) > 1:
        raise CheckpointError(f"{path}: holds {len(networks)} networks, {_names(networks)}; choose one ({choice})")
    if averaged and plain and averaged[0].shapes.items() ^ plain[0].shapes.items():
        heads_apart = {k: v for k, v in averaged[0].shapes.items() if ATTENTION.search(k)}.items() ^ {
            k: v for k, v in plain[0].shapes.items() if ATTENTION.search(k)
        }.items()
        if heads_apart:
            raise CheckpointError(
                f"{path}: holds two networks of different shapes, {_names([*plain, *averaged])} (student and teacher?); "
                f"say which one to take ({choice})"
            )
    taken = averaged[0] if averaged and (use_ema or not plain) else plain[0]
    others = [network for network in networks if network is not taken]
    kind = "EMA weights" if taken in averaged else "plain weights"
    turn = " (--no-ema takes the plain ones)" if taken in averaged and plain else ""
    return taken, [f"{kind} taken ({taken.entry}); the file also holds {_names(others)}, which --weights takes{turn}"]


def suspects(network: Network) -> list[str]:
    """Names of tensors beside a network that may change what it computes.

    That is what is called so (a prompt, an adapter, an embedding), a bare parameter, what has to do with an image's channels,
    and what a head cannot be: it takes none of the network's widths, nor what another part makes of them.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in network.beside.items():
        parts.setdefault(relative_name(name, network).partition(".")[0], {})[name] = tensor
    known = {size for tensor in network.tensors.values() for size in tensor.shape if size > _MOST_CHANNELS}
    known |= {n * t.shape[0] for t in network.tensors.values() if t.ndim == 1 for n in (2, 3, 4) if t.shape[0] > _MOST_CHANNELS}
    matrices = {part: [t.shape for t in inside.values() if t.ndim > 1 and t.numel() > 1] for part, inside in parts.items()}
    behind: set[str] = set()
    while new := {part for part in parts.keys() - behind if any({*shape[len(shape) < 4 :]} & known for shape in matrices[part])}:
        behind |= new
        known |= {size for part in new for shape in matrices[part] for size in shape if size > _MOST_CHANNELS}
    stem = next((t.shape[1] for t in network.tensors.values() if t.ndim == 4), 3)
    found: list[str] = []
    for part, inside in parts.items():
        if any(relative_name(name, network) == part for name in inside):
            changes = _HARMLESS_PARAMETER.match(part) is None
        elif _CHANGES_INPUT.search(part) or _ELSEWHERE.search(part):
            changes = _CHANGES_INPUT.search(part) is not None
        else:
            changes = (bool(matrices[part]) and part not in behind) or _of_images(list(inside.values()), stem)
        found += inside if changes else []
    return found


def _of_images(tensors: list[Tensor], channels: int) -> bool:
    """Whether tensors have to do with an image's channels: a convolution of or to them, a norm of them, one image."""
    shapes = [tuple(tensor.shape) for tensor in tensors if tensor.is_floating_point()]
    convolutions = [shape for shape in shapes if len(shape) == 4]
    rows = {shape[0] for shape in shapes if len(shape) > 1}
    return (
        any(shape[1] == channels > 1 for shape in convolutions)
        or (channels in {shape[0] for shape in convolutions} and min(shape[1] for shape in convolutions) <= _MOST_CHANNELS)
        or any(len(shape) == 3 and shape[0] == channels and min(shape[1:]) > 4 for shape in shapes)
        or any(shape == (channels,) and channels > 1 and channels not in rows for shape in shapes)
    )


def relative_name(name: str, network: Network) -> str:
    """The name of a tensor beside a network as seen from the place where both part."""
    parts, root = name.split("."), network.path.split(".")
    while root and len(parts) > 1 and parts[0] == root[0]:
        parts, root = parts[1:], root[1:]
    return ".".join(parts)


def _roots(tensors: Mapping[str, Tensor]) -> list[str]:
    attention: set[str] = set()
    for name, tensor in tensors.items():
        last = max((match.start() for match in ATTENTION.finditer(name)), default=-1)
        if last >= 0 and tensor.ndim >= 2:  # what stands before the last such word: an encoder may itself be called attention
            parts = name[:last].split(".")[:-1]
            attention |= {".".join(parts[:count]) for count in range(len(parts) + 1)}
    firsts = [name for name, tensor in tensors.items() if tensor.ndim in (4, 5) and tensor.shape[1] == 3]
    firsts += [
        name
        for name, tensor in tensors.items()
        if _FIRST_PROJECTION.search(name) and (tensor.ndim == 2 or (tensor.ndim in (4, 5) and tensor.shape[1] <= 16))
    ]
    roots: dict[str, None] = {}
    for name in firsts:
        parts = name.split(".")
        for count in range(len(parts) - 1, -1, -1):
            node = ".".join(parts[:count])
            if node in attention:
                roots[node] = None
                break
    outer = [root for root in roots if not any(other != root and _within(root, other) for other in roots)]
    order = {name: number for number, name in enumerate(tensors)}
    return sorted(outer, key=lambda root: next(order[n] for n in tensors if _within(n, root)))


def _with_last_norm(root: str, roots: list[str], tensors: Mapping[str, Tensor]) -> str:
    """The root one level higher where the network's last normalisation stands beside it (torchvision's Swin, own classes)."""
    above, front = root.rpartition(".")[0], root.rpartition(".")[0] + "." if "." in root else ""
    if not root or any(other != root and _within(other, above) for other in roots):
        return root
    beside = (name for name in tensors if name.startswith(front) and not _within(name, root))
    return above if any(_LAST_NORM.fullmatch(name.removeprefix(front)) for name in beside) else root


def _own_heads(own: Mapping[str, Tensor], root: str, around: Mapping[str, Tensor]) -> dict[str, str]:
    """Tensors of a classifier beside an encoder that belong to it, by their names there, and their names with the encoder's.

    None where something may stand between the two.
    """
    front = root.rpartition(".")[0] + "." if "." in root else ""
    for mark, target, expression in _OWN_HEADS:
        if any(mark.search(name) for name in own) and not any(name.startswith(target) for name in own):
            found = {name: expression.fullmatch(name.removeprefix(front)) for name in around if name.startswith(front)}
            heads = {name: target + match[1] for name, match in found.items() if match}
            rest = {name.removeprefix(front): tensor for name, tensor in around.items() if name not in heads}
            return {} if before_classifier(rest, {name: around[name] for name in heads}) else heads
    return {}


_LINEAR_HEAD = re.compile(
    r"(?P<layer>(?:\w+\.)*?(?:fc|classifier|linear|last_linear|(?:cls_|classification_|linear_|mlp_)?head|heads)(?:\.\d+|\.head)?)"
    r"\.(?:weight|bias)"
)


def _linear_head(own: Mapping[str, Tensor], around: Mapping[str, Tensor]) -> str:
    """The one linear layer behind a Vision Transformer that is its classifier under another name or beside it; "" for none.

    Nothing else may stand between: neither a normalisation nor a second layer, in the network or beside it.
    """
    tokens = own.get("blocks.0.attn.qkv.weight")
    if tokens is None or tokens.ndim != 2 or any(name.startswith(("head.", "pre_logits.")) for name in own):
        return ""
    there = around or {name: tensor for name, tensor in own.items() if _LINEAR_HEAD.fullmatch(name) and "blocks." not in name}
    layers = {match["layer"] for name in there if (match := _LINEAR_HEAD.fullmatch(name))}
    layer = next(iter(layers), "")
    if len(layers) != 1 or there.keys() != {f"{layer}.weight", f"{layer}.bias"}:
        return ""
    weight, bias = there[f"{layer}.weight"], there[f"{layer}.bias"]
    return layer if tuple(weight.shape) == (*bias.shape, tokens.shape[1]) else ""


def _within(name: str, root: str) -> bool:
    return not root or name.startswith(f"{root}.")


def _entry(content: Mapping[str, object], path: str) -> str:
    """The front of a path that leads through nested dictionaries, up to the names of a state dict."""
    value: object = content
    taken: list[str] = []
    parts = path.split(".")
    while parts and isinstance(value, Mapping):
        count = next((n for n in range(1, len(parts) + 1) if ".".join(parts[:n]) in value), 0)
        if not count:
            break
        value = value[".".join(parts[:count])]
        taken += parts[:count]
        parts = parts[count:]
    return ".".join(taken)


def _largest_path(tensors: Mapping[str, Tensor]) -> str:
    """The part before every name that all the tensors share."""
    shared: list[str] = []
    parts = [name.split(".")[:-1] for name in tensors]
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return ".".join(shared)


def _largest(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    front = _largest_path(tensors)
    return {name.removeprefix(f"{front}.") if front else name: tensor for name, tensor in tensors.items()}


def _words(path: str) -> set[str]:
    return {word for word in re.split(r"[._\-/]+", path.lower()) if word}


def _names(networks: list[Network]) -> str:
    return ", ".join(network.entry for network in networks[:6]) + (" …" if len(networks) > 6 else "")
