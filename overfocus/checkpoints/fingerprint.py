"""What the names and shapes of a state dict say about its architecture, without what users change.

A parameter becomes a *feature*: its name with layer numbers replaced by `*`, and its shape, for example
`blocks.*.attn.qkv.weight 576x192`. A fingerprint counts the features. Left out or left open are the classifier, position
tables (absolute and relative), the number of input channels and the branches of a TAP predictor, so that a model
fine-tuned to other classes, sizes, channels or branches still has the fingerprint of its architecture.
"""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping

Shape = tuple[int, ...]

_CLASSIFIER = re.compile(
    r"^(head|heads|head_dist|heads_dist|aux_head|fc|classifier|classif|last_linear|pre_logits|decode_head\.(linear_pred|conv_seg))\."
)
_ALIASES = {"register_tokens": "reg_token"}
"""Names that timm changes when it converts weights of others (DINOv2)."""
_BUFFER = re.compile(
    r"(^|\.)(relative_position_index|rel_pos_index|attn_mask|attention_bias_idxs|relative_coords_table|num_batches_tracked"
    r"|mask_token|k_bias|inv_freq|periods|pos_embed_temporal)$"
)
_TABLE = re.compile(
    r"(^|\.)(\w*pos_embed\w*|pixel_pos|patch_pos|rel_pos_[hw]|relative_position_bias_table|attention_biases|att_mask)(\.\d+)?$"
    r"|(^|\.)(attention_biases|rope)\."
)
_TAP_PREDICTOR = re.compile(r"(^|\.)dilation_predictor\.")
_TAP = re.compile(r"(^|\.)(dilation_predictor|token_pools)\.")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
_INPUT_CHANNELS = 4


def is_classifier(name: str) -> bool:
    """Whether a parameter belongs to a classification head."""
    return _CLASSIFIER.match(name) is not None


def is_head(name: str) -> bool:
    """Whether a parameter belongs to a classification head or to the head of a segmentation model."""
    return is_classifier(name) or name.startswith("decode_head.")


def is_table(name: str) -> bool:
    """Whether a tensor is a position table, the size of which follows the image or window size."""
    return _TABLE.search(name) is not None


def is_tap_predictor(name: str) -> bool:
    """Whether a parameter belongs to a TAP predictor, the shapes of which follow the number of branches."""
    return _TAP_PREDICTOR.search(name) is not None


def is_tap(name: str) -> bool:
    """Whether a parameter belongs to TAP, predictor or pooling."""
    return _TAP.search(name) is not None


def pattern(name: str) -> str:
    """A parameter's name with its layer numbers replaced by `*`."""
    return _NUMBER.sub("*", name)


def feature(name: str, shape: Shape) -> str | None:
    """One parameter as a feature, or None where it says nothing about the architecture."""
    name = _ALIASES.get(name, name)
    if is_classifier(name) or _BUFFER.search(name):
        return None
    if is_table(name) or is_tap(name):
        return f"{pattern(name)} ?"
    dimensions = list(map(str, shape))
    if len(shape) == 4 and shape[1] <= _INPUT_CHANNELS:
        dimensions[1] = "c"
    return f"{pattern(name)} {'x'.join(dimensions)}"


def fingerprint(shapes: Mapping[str, Shape]) -> Counter[str]:
    """Count the features of a state dict given as name → shape."""
    features = (feature(name, shape) for name, shape in shapes.items())
    return Counter(found for found in features if found is not None)


def tables(shapes: Mapping[str, Shape]) -> Counter[str]:
    """Count the position tables with their exact shapes, which tell image and window sizes apart."""
    found = ((name, shape) for name, shape in shapes.items() if is_table(name) and not _BUFFER.search(name))
    return Counter(f"{pattern(name)} {'x'.join(map(str, shape))}" for name, shape in found)


def weight(text: str) -> int:
    """Number of values in one tensor of a feature; 1 where its shape is left open."""
    size = 1
    for dimension in text.rsplit(" ", 1)[1].split("x"):
        size *= int(dimension) if dimension.isdigit() else 1
    return size


def digest(features: Mapping[str, int]) -> str:
    """A short name for a fingerprint."""
    text = "\n".join(f"{name} {count}" for name, count in sorted(features.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def square_side(number: int) -> int | None:
    """The side of a square of that many tokens, None where it is no square."""
    root = math.isqrt(max(number, 0))
    return root if root > 0 and root * root == number else None


def fits_table(shapes: Mapping[str, Shape], prefix: int) -> bool:
    """Whether the absolute position table without its prefix tokens covers a square patch grid."""
    shape = shapes.get("pos_embed")
    return shape is not None and len(shape) == 3 and square_side(shape[1] - prefix) is not None
