"""The networks that are trained: their architecture, weights to start from, and the masked autoencoder.

The result of a training must say of its architecture what `load_model` needs to build it again. Source of the masked autoencoder:
He et al., "Masked Autoencoders Are Scalable Vision Learners", 2022, https://arxiv.org/abs/2111.06377.
"""

import contextlib
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from overfocus.checkpoints.arguments import classifiers, takes_image_size, trunk
from overfocus.checkpoints.build import SEGFORMER, UNREGISTERED, added_tap, create, is_architecture, skeleton, tap_branches
from overfocus.checkpoints.index import is_classifier, is_tap
from overfocus.checkpoints.load import LoadedModel, load_model
from overfocus.checkpoints.metadata import metadata_of_safetensors
from overfocus.checkpoints.read import read_checkpoint
from overfocus.errors import CheckpointError, OverfocusError, TrainingError, first_line
from overfocus.models.segmentation import SegmentationModel
from overfocus.training.objective import Part


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
            raise TrainingError(f"{self.name} cannot be built with {given}: {first_line(error)}") from error
        return model

    def outline(self) -> nn.Module:
        """The model without memory.

        Raises:
            TrainingError: as `build`.
        """
        try:
            return skeleton(self.name, self.arguments, self.tap)
        except CheckpointError as error:
            raise TrainingError(str(error)) from error


def require_registered(name: str) -> None:
    """Raise a `TrainingError` that names the nearest unless timm or overfocus knows the architecture."""
    import timm

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
    from overfocus.checkpoints.build import tap_branches

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


_DERIVED = ("num_classes", "in_chans", "img_size", "num_scales")
"""Arguments that follow from the data or from what is asked for."""


def load_initial(
    source: str, model: str | None, image_size: tuple[int, int] | None = None, *, use_ema: bool = True
) -> LoadedModel:
    """A checkpoint or timm model; `model` helps where the checkpoint does not say what it is.

    A backbone to put under a segmentation head is loaded as the classifier that it was trained as.

    Raises:
        CheckpointError: it cannot be read or recognised.
    """
    try:
        return load_model(source, image_size=image_size, use_ema=use_ema)
    except CheckpointError as error:
        for name in () if model is None else dict.fromkeys((model, model.removesuffix(SEGFORMER))):
            with contextlib.suppress(CheckpointError):
                return load_model(source, model=name, image_size=image_size, use_ema=use_ema)
        raise error from None


def describe_architecture(loaded: LoadedModel) -> Architecture:
    """The architecture of a checkpoint, as far as the checkpoint says or shows it, without what follows from the data."""
    path = Path(loaded.source)
    arguments = {}
    if path.is_file() and (metadata := read_checkpoint(path).metadata):
        arguments = {
            key: value for key, value in metadata_of_safetensors(metadata, path).model_args.items() if key not in _DERIVED
        }
    plain = Architecture(loaded.name, arguments)
    return Architecture(loaded.name, arguments, added_tap(loaded.model.state_dict(), plain.outline()))


def fill_from(model: nn.Module, loaded: LoadedModel, class_names: Sequence[str]) -> list[str]:
    """Copy a checkpoint's weights into a model; returns which of its parts stay as they were made.

    The classifier is taken over only if it has the same classes by name (by number, where the checkpoint does not name
    them), and the model may have TAP that the checkpoint has not.

    Raises:
        TrainingError: the checkpoint is of another architecture.
    """
    given = dict(loaded.model.state_dict())
    if isinstance(model, SegmentationModel) and not isinstance(loaded.model, SegmentationModel):
        given = _as_backbone(given, model)
        heads: tuple[str, ...] = ("decode_head.",)
    else:
        heads = tuple(f"{name}." for name in classifiers(model))
        if isinstance(model, SegmentationModel):
            heads += ("decode_head.conv_seg.",)
    same = loaded.num_classes == len(class_names) and loaded.class_names in (None, list(class_names))
    if not same:
        given = {name: tensor for name, tensor in given.items() if not name.startswith(heads)}
    own = model.state_dict()
    missing = [name for name in own if name not in given]
    unfit = [name for name in given if name not in own or own[name].shape != given[name].shape]
    unfit += [name for name in missing if not (is_tap(name) or name.startswith(heads))]
    if unfit:
        raise TrainingError(
            f"{loaded.source}: a {loaded.name} whose weights do not fit the model to train (first: {unfit[0]}); "
            "leave --model out to take the checkpoint's architecture"
        )
    model.load_state_dict(given, strict=False)
    return sorted({_part(name) for name in missing})


def _as_backbone(given: dict[str, Tensor], model: SegmentationModel) -> dict[str, Tensor]:
    """A classifier's weights named as in the backbone of a segmentation model, without classifier and last norm."""
    front = trunk(model)[1] or "backbone."
    own = model.state_dict()
    unneeded = ("norm.", "fc_norm.", "head.", "head_dist.")
    return {
        front + name: tensor
        for name, tensor in given.items()
        if front + name in own or not (is_classifier(name) or name.startswith(unneeded))
    }


def _part(name: str) -> str:
    """What a new weight belongs to, in words for the user."""
    if is_tap(name):
        return "TAP"
    return "decode_head" if name.startswith("decode_head.") else name.rpartition(".")[0]


class Reconstruction(NamedTuple):
    """What a masked autoencoder gives back."""

    patches: Float[Tensor, "batch patches values"]
    """Decoded pixels of every patch."""
    expected: Float[Tensor, "batch patches values"]
    """What they should be: the image's, each patch normalised to mean 0 and standard deviation 1."""
    masked: Bool[Tensor, "batch patches"]
    """Which patches the encoder did not see."""


class VisibleTokens(nn.Module):
    """Stands where timm's ViT drops patches: passes the prefix tokens and the visible patches on, in their order."""

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix
        self.visible: Int[Tensor, "batch visible"] | None = None

    def forward(self, tokens: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch kept width"]:
        if self.visible is None:
            return tokens
        patches = tokens[:, self.prefix :].gather(1, self.visible[:, :, None].expand(-1, -1, tokens.shape[2]))
        return torch.cat([tokens[:, : self.prefix], patches], dim=1)


class MaskedAutoencoder(nn.Module):
    """Images (batch, channels, height, width) → `Reconstruction`.

    A plain ViT encodes the visible patches alone, as in the paper. Where the encoder needs the whole grid of tokens (TAP,
    convolutional stems, windows), it sees the image with a learned patch in the place of every masked one. The decoder is the
    paper's: transformer blocks over all patches, with a learned token for each masked one and a fixed position encoding.
    Masked patches are drawn from the global generator; in evaluation mode they are always the same.

    Args:
        encoder: gives features as a map (`forward_intermediates`, as timm's models and those of overfocus have it).
        input_size: (channels, height, width).
        masking: share of the patches that are masked, between 0 and 1.
        width: of the decoder, a multiple of 32.
        depth: blocks of the decoder.

    Raises:
        TrainingError: the encoder gives no feature maps, or the image holds too few patches.
    """

    def __init__(
        self, encoder: nn.Module, input_size: tuple[int, int, int], *, masking: float = 0.75, width: int = 128, depth: int = 2
    ) -> None:
        from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
        from timm.models.vision_transformer import Block

        super().__init__()
        channels, height, rows_of_pixels = input_size
        self.encoder = encoder
        features, (rows, columns) = _features(encoder, input_size)
        self.grid = rows, columns
        self.patch = height // rows, rows_of_pixels // columns
        count = rows * columns
        self.kept = round(count * (1 - masking))
        if not 0 < self.kept < count:
            raise TrainingError(
                f"masking {masking:g} of {count} patches leaves {self.kept}; choose a share that keeps and masks at least one"
            )
        self.sees_visible_alone = _sees_visible_alone(encoder)
        values = channels * self.patch[0] * self.patch[1]
        if self.sees_visible_alone:
            encoder.patch_drop = VisibleTokens(int(encoder.num_prefix_tokens))  # type: ignore[arg-type]
        else:
            self.masked_patch = nn.Parameter(torch.zeros(channels, *self.patch))
        self.embed = nn.Linear(features, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions: Tensor
        self.register_buffer("positions", build_sincos2d_pos_embed(list(self.grid), width), persistent=False)
        self.blocks = nn.Sequential(*(Block(width, width // 32, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.predict = nn.Linear(width, values)
        nn.init.normal_(self.mask_token, std=0.02)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the inputs of the encoder's blocks for the backward pass."""
        encoder: Any = self.encoder
        encoder.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Parameters with more than one axis that take no weight decay."""
        excepted: set[str] = getattr(self.encoder, "no_weight_decay", set)()
        return {"mask_token", "masked_patch", *(f"encoder.{name}" for name in excepted)}

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Reconstruction:
        batch, count = images.shape[0], self.grid[0] * self.grid[1]
        order = self._noise(batch, count).to(images.device).argsort(dim=1)
        visible = order[:, : self.kept].sort(dim=1).values
        masked = torch.ones(batch, count, dtype=torch.bool, device=images.device).scatter_(1, visible, False)
        tokens = self.embed(self._encoded(images, visible, masked))
        everywhere = self.mask_token.to(tokens.dtype).expand(batch, count, -1)
        if self.sees_visible_alone:
            tokens = everywhere.scatter(1, visible[:, :, None].expand(-1, -1, tokens.shape[2]), tokens)
        else:
            tokens = torch.where(masked[:, :, None], everywhere, tokens)
        tokens = self.norm(self.blocks(tokens + self.positions))
        return Reconstruction(self.predict(tokens), self.patches_of(images), masked)

    def patches_of(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch patches values"]:
        """The pixels of each patch, normalised to mean 0 and standard deviation 1 over the patch."""
        rows, columns = self.grid
        cut = images.reshape(*images.shape[:2], rows, self.patch[0], columns, self.patch[1])
        patches = cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2).float()
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        normalised: Tensor = (patches - mean) / (variance + 1e-6).sqrt()
        return normalised

    def _encoded(self, images: Tensor, visible: Int[Tensor, "batch visible"], masked: Bool[Tensor, "batch patches"]) -> Tensor:
        """Features of the visible patches, or of all where the encoder needs the whole grid."""
        encoder: Any = self.encoder
        if self.sees_visible_alone:
            encoder.patch_drop.visible = visible
            try:
                features: Tensor = encoder.forward_features(images)
            finally:
                encoder.patch_drop.visible = None
            return features[:, encoder.patch_drop.prefix :]
        rows, columns = self.grid
        hidden = masked.view(-1, 1, rows, columns)
        hidden = hidden.repeat_interleave(self.patch[0], 2).repeat_interleave(self.patch[1], 3)
        images = torch.where(hidden, self.masked_patch.repeat(1, rows, columns), images)
        return _last_map(encoder, images).flatten(2).mT

    def _noise(self, batch: int, count: int) -> Float[Tensor, "batch patches"]:
        if self.training:
            return torch.rand(batch, count)
        return torch.rand(batch, count, generator=torch.Generator().manual_seed(0))


def _sees_visible_alone(encoder: nn.Module) -> bool:
    """Whether the encoder's tokens are patches of their own that the rest can do without."""
    from timm.models.vision_transformer import VisionTransformer

    return (
        isinstance(encoder, VisionTransformer)
        and isinstance(encoder.patch_embed.proj, nn.Conv2d)
        and tap_branches(encoder.state_dict()) is None
    )


def _features(encoder: nn.Module, input_size: tuple[int, int, int]) -> tuple[int, tuple[int, int]]:
    """Width and grid of the encoder's last feature map.

    Raises:
        TrainingError: there is none, or it does not divide the image.
    """
    if not hasattr(encoder, "forward_intermediates"):
        raise TrainingError(f"{type(encoder).__name__} gives no feature maps (forward_intermediates); choose a timm encoder")
    training = encoder.training
    with torch.no_grad():
        shape = _last_map(encoder.eval(), torch.zeros(1, *input_size)).shape
    encoder.train(training)
    rows, columns = int(shape[2]), int(shape[3])
    if input_size[1] % rows or input_size[2] % columns:
        raise TrainingError(
            f"images of {input_size[1]}×{input_size[2]} do not divide into the encoder's {rows}×{columns} patches; "
            "choose another image_size"
        )
    return int(shape[1]), (rows, columns)


def _last_map(encoder: Any, images: Tensor) -> Float[Tensor, "batch width rows columns"]:
    maps: Tensor = encoder.forward_intermediates(images, indices=1, norm=True, output_fmt="NCHW", intermediates_only=True)[-1]
    return maps


class MaskedAutoencoding:
    """Mean squared error of the masked patches, each normalised; labels do not count."""

    unit = "squared error, normalised pixels"
    sums = 2

    def network(self, model: nn.Module) -> nn.Module:
        """The encoder."""
        assert isinstance(model, MaskedAutoencoder)
        return model.encoder

    def parts(self, images: Float[Tensor, "batch channels height width"], targets: Tensor) -> list[Part]:
        """One forward."""
        return [Part(images, targets, True)]

    def loss(self, output: Reconstruction, targets: Tensor) -> Float[Tensor, ""]:
        """Mean over the masked patches of all images."""
        del targets
        return self._errors(output).mean()

    def right(self, output: Reconstruction, targets: Tensor) -> Float[Tensor, " 2"]:
        """Nothing can be right."""
        del targets
        return torch.zeros(2, device=output.patches.device)

    def score(self, output: Reconstruction, targets: Tensor) -> Float[Tensor, " 2"]:
        """Sum of the errors of the masked patches, and their number."""
        del targets
        errors = self._errors(output)
        return torch.stack([errors.sum(), torch.ones_like(errors).sum()])

    def summarise(self, sums: Float[Tensor, " 2"]) -> dict[str, float]:
        """validation_loss; 1 is what a decoder that knows nothing gets."""
        error, count = sums.tolist()
        return {"validation_loss": error / count}

    def _errors(self, output: Reconstruction) -> Float[Tensor, " masked"]:
        errors = (output.patches.float() - output.expected).square().mean(-1)
        return errors[output.masked]
