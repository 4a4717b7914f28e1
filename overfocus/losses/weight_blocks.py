"""Attention weights a block at a time, as a function of the tensors they come from, so that a backward pass can repeat it."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from jaxtyping import Float
from torch import Tensor

from overfocus.capturing.sources import ArrangedWeights, Arrangement, MaterialisedWeights, QueryKeyWeights, WeightSource

CPU_BLOCK = 2**20
"""Weights of images to work on at a time: few enough for a processor's cache, enough that a call costs more than its overhead."""
GPU_BLOCK = 2**26
"""Weights of images to work on at a time, so that a GPU is busy."""
LIMIT = 2**22
"""Weights of one image from which its queries are taken in blocks: computing them twice then costs less than their memory."""

Tensors = Sequence[Tensor | None]


@dataclass(frozen=True)
class WeightForm:
    """How the weights of a site are computed from its tensors: query, key and mask, or the map that the model made."""

    build: Callable[..., WeightSource]
    arrangement: Arrangement

    @classmethod
    def of(cls, source: ArrangedWeights) -> tuple["WeightForm", Tensors]:
        """The form of a source, and its tensors."""
        raw = source.source
        if isinstance(raw, QueryKeyWeights):
            build = partial(QueryKeyWeights, scale=raw.scale, is_causal=raw.is_causal)
            return cls(build, source.arrangement), (raw.query, raw.key, raw.mask)
        assert isinstance(raw, MaterialisedWeights)
        return cls(MaterialisedWeights, source.arrangement), (raw.weights,)

    def source(self, tensors: Tensors) -> ArrangedWeights:
        """The weights of these tensors."""
        return ArrangedWeights(self.build(*tensors), self.arrangement)

    def images(self, tensors: Tensors) -> Iterator[slice]:
        """Slices of the tensors' first axis that hold whole images (or windows), and about as many weights as suit the device.

        One slice with everything where the first axis does not begin with the images.
        """
        source, arrangement = self.source(tensors), self.arrangement
        entries = source.source.shape[0]
        per_image = math.prod(arrangement.sizes[0][1:]) if arrangement.images_first else entries
        together = 1 if arrangement.folded else per_image
        weights = math.prod(source.shape) * together // entries
        size = together * max(1, _block_size(tensors) // weights)
        return (slice(start, min(start + size, entries)) for start in range(0, entries, size))

    def shared(self, tensors: Tensors) -> list[bool]:
        """Which tensors all images share, like a position bias: they have no axis of images to slice."""
        shape = self.build(*tensors).shape
        return [tensor is None or tensor.ndim < len(shape) or tensor.shape[0] != shape[0] for tensor in tensors]

    def queries(self, tensors: Tensors, wanted: slice) -> list[slice]:
        """The wanted queries, at once or in blocks."""
        maps, heads, _, keys = self.source(tensors).shape
        size = max(1, max(LIMIT, _block_size(tensors)) // (maps * heads * keys))
        return [slice(start, min(start + size, wanted.stop)) for start in range(wanted.start, wanted.stop, size)]


def arrange(weights: Float[Tensor, "images heads queries keys"]) -> ArrangedWeights:
    """A map that is there already, as a source of weights."""
    return ArrangedWeights(MaterialisedWeights(weights), Arrangement((("image",), ("head",)), ((-1,), (weights.shape[1],))))


def _block_size(tensors: Tensors) -> int:
    on_cpu = tensors[0] is not None and tensors[0].device.type == "cpu"
    return CPU_BLOCK if on_cpu else GPU_BLOCK
