"""Account for every tensor of a file and of a model, and put the one into the other."""

import contextlib
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from overfocus.checkpoints.build import Convert
from overfocus.checkpoints.fingerprint import is_table
from overfocus.checkpoints.messages import first_line, some
from overfocus.errors import CheckpointError

_HARMLESS = re.compile(
    r"(^|\.)(relative_position_index|rel_pos_index|relative_coords_table|attn_mask|attention_bias_idxs|num_batches_tracked"
    r"|rope\.freqs_(cos|sin)|freqs_(cos|sin)|inv_freq|periods|bias_mask|position_ids|(dino_|ibot_|\w*_)?mask_tokens?|masked_embed"
    r"|rope_embed\.\w+|rope\.periods|n_averaged|k_bias)$"
    r"|^(decoder(_\w+)?|decode_head|auxiliary_head|mask_decoder|prompt_encoder|lm_head|mim_head|\w*predictor|projector|projection"
    r"|projection_head|proj_head|contrastive_head|prototypes|dino_head|ibot_head|bbox_head|rpn_head|roi_head|sem_seg_head|text"
    r"|text_model|text_encoder|token_embedding|logit_scale|logit_bias|local_cls_norm|criterion|loss\w*)(\.|$)"
)
"""What cannot change an encoder's output for an unmasked image: heads of other tasks, mask tokens, computable buffers."""
_CLASSIFIER = re.compile(r"^(head|heads|head_dist|heads_dist|aux_head|fc|classifier|classif|last_linear|pre_logits)\.")
_ALIGNMENT = 64
_COMPUTED = re.compile(r"running_(mean|var)$")


def is_harmless(name: str) -> bool:
    """Whether a tensor cannot change what the encoder computes for an unmasked image."""
    return _HARMLESS.search(name) is not None


def is_buffer(name: str) -> bool:
    """Whether a harmless tensor is one that a model computes for itself, of which nothing need be said."""
    return "." in name and not re.match(r"\w*(decoder|head|predictor|project|prototypes|text)", name)


def is_head(name: str, classifiers: tuple[str, ...]) -> bool:
    """Whether a tensor belongs to a classifier, the model's own or another."""
    if name.startswith(tuple(f"{layer}." for layer in classifiers)):
        return True
    return _CLASSIFIER.match(name) is not None and not re.match(r"head\.(norm|mlp|attn)", name)


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
    left = [name for name in converted if name not in ours] + lost + buffers
    heads = [name for name in left if is_head(name, classifiers)]
    harmless = [name for name in left if name not in heads and is_harmless(name)]
    return Accounts(
        missing=[name for name in ours if name in needed and name not in converted and not is_head(name, classifiers)],
        unexpected=[name for name in left if name not in heads and name not in harmless],
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
