"""A masked autoencoder: an encoder of timm or overfocus that sees part of a picture, and a decoder that fills in the rest.

Source: He et al., "Masked Autoencoders Are Scalable Vision Learners", 2022, https://arxiv.org/abs/2111.06377.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from overfocus.errors import TrainingError
from overfocus.training.objective import Part


class Reconstruction(NamedTuple):
    """What a masked autoencoder gives back."""

    patches: Float[Tensor, "batch patches values"]
    """Decoded pixels of every patch."""
    expected: Float[Tensor, "batch patches values"]
    """What they should be: the picture's, each patch normalised to mean 0 and standard deviation 1."""
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
    convolutional stems, windows), it sees the picture with a learned patch in the place of every masked one. The decoder is the
    paper's: transformer blocks over all patches, with a learned token for each masked one and a fixed position encoding.
    Masked patches are drawn from the global generator; in evaluation mode they are always the same.

    Args:
        encoder: gives features as a map (`forward_intermediates`, as timm's models and those of overfocus have it).
        input_size: (channels, height, width).
        masking: share of the patches that are masked, between 0 and 1.
        width: of the decoder, a multiple of 32.
        depth: blocks of the decoder.

    Raises:
        TrainingError: the encoder gives no feature maps, or the picture holds too few patches.
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

    from overfocus.checkpoints.build import tap_branches

    return (
        isinstance(encoder, VisionTransformer)
        and isinstance(encoder.patch_embed.proj, nn.Conv2d)
        and tap_branches(encoder.state_dict()) is None
    )


def _features(encoder: nn.Module, input_size: tuple[int, int, int]) -> tuple[int, tuple[int, int]]:
    """Width and grid of the encoder's last feature map.

    Raises:
        TrainingError: there is none, or it does not divide the picture.
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
            f"pictures of {input_size[1]}×{input_size[2]} do not divide into the encoder's {rows}×{columns} patches; "
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
        """Mean over the masked patches of all pictures."""
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
