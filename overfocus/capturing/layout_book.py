"""The layouts of a model's maps: worked out in the first forward with inputs of a size, looked up in every later one."""

import weakref
from collections import Counter
from typing import Any

from torch import Tensor, nn

from overfocus.capturing.functions import tensors_in
from overfocus.capturing.guess import guess_layout
from overfocus.capturing.layout import Layout, channel_layout, infer_layout, is_channel_map, token_positions
from overfocus.capturing.positions import Positions, PositionTracker
from overfocus.capturing.sources import WeightSource

_PACKED = ("packed",)
_BOOKS: weakref.WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], dict[tuple[str, int], Layout]]] = weakref.WeakKeyDictionary()


class LayoutBook:
    """Layouts of one model, by the shapes of its inputs, the module and how often it has run in this forward."""

    def __init__(self, model: nn.Module) -> None:
        self.positions = PositionTracker()
        self.tracing = False
        """Whether positions are followed in this forward, because its layouts are not known yet."""
        self.started = False
        """Whether an input has been seen in this forward."""
        self._model = model
        self._pages = _BOOKS.setdefault(model, {})
        self._signature: tuple[Any, ...] = ()
        self._calls: Counter[str] = Counter()
        self._images = 1
        self._image_size: tuple[int, int] | None = None

    def begin(self) -> None:
        """A new forward begins."""
        self.positions.clear()
        self._calls.clear()
        self.started = False

    def start(self, name: str, args: tuple[Any, ...]) -> None:
        """See the first inputs of a forward, given to module `name`: images (b, c, h, w), sequences, or packed patches."""
        packed = next((item for item in args if isinstance(item, dict) and "patch_coord" in item), None)
        tensors = [tensor for tensor in tensors_in(args) if tensor.ndim >= 2 and not tensor.is_nested]
        if not tensors:
            return
        self.started = True
        self._images = int(tensors[0].shape[0])
        images = next((tensor for tensor in tensors if tensor.ndim == 4), None)
        self._image_size = None if images is None else (int(images.shape[2]), int(images.shape[3]))
        if packed is not None:  # every batch has sizes and padding of its own, so its layouts are not kept
            self._signature, self.tracing = _PACKED, True
            self.positions.start_patches(packed["patches"], packed["patch_coord"], packed.get("patch_valid"))
        else:
            self._signature = (name, self._images == 1, *(tuple(tensor.shape[1:]) for tensor in tensors))
            self.tracing = self._signature not in self._pages
            if self.tracing:
                for tensor in tensors:
                    self.positions.start(tensor)
        if self.tracing:
            self._pages[self._signature] = {}

    def find(
        self,
        name: str,
        weights: WeightSource,
        positions: tuple[Positions | None, Positions | None] | None,
        *,
        running: list[nn.Module],
        images: int | None = None,
    ) -> Layout | None:
        """Layout of the weights (…, queries, keys) that module `name` has just made; None where nothing fits.

        `positions` are those of its queries and of its keys or values, (…, tokens, width), in a forward that is traced.
        """
        shape = weights.shape
        page = self._pages.get(self._signature, {})
        key = name, self._calls[name]
        self._calls[name] += 1
        layout = page.get(key)
        if self.tracing:
            layout = _inferred(weights, positions) if positions is not None else None
        elif layout is None or layout.tokens != shape[-2:]:
            layout = None
            self._pages.pop(self._signature, None)  # the model runs otherwise than it did: trace the next forward again
        if layout is None:
            heads, prefix = (_number(running, self._model, attribute) for attribute in ("num_heads", "num_prefix_tokens"))
            layout = guess_layout(shape, images or self._images, heads, prefix, self._image_size)
        if layout is not None:
            page[key] = layout
        return layout


def _inferred(weights: WeightSource, positions: tuple[Positions | None, Positions | None]) -> Layout | None:
    queries, keys = positions
    shape = weights.shape
    if keys is None:
        return None
    if is_channel_map(keys):
        return channel_layout(shape)
    key_ids = token_positions(keys)
    if len(shape) > 2 and key_ids.ndim == len(shape) - 1 and key_ids.shape[-2] not in (1, shape[-3]):
        key_ids = key_ids.repeat_interleave(shape[-3] // key_ids.shape[-2], dim=-2)  # grouped queries share keys
    query_ids = None if queries is None else token_positions(queries)
    try:
        attended = bool((key_ids == 0).any()) and bool(
            (weights.rows(0, 1).squeeze(-2)[key_ids.expand(*shape[:-2], -1) == 0] > 0).any()
        )
        query_image = keys.grid if queries is None else queries.grid
        return infer_layout(shape, query_ids, key_ids, query_image, keys.grid, padding_attended=attended)
    except RuntimeError:  # positions that do not fit the map's axes
        return None


def _number(running: list[nn.Module], model: nn.Module, attribute: str) -> int | None:
    for module in (*reversed(running), model):
        value: Tensor | nn.Module | int | None = getattr(module, attribute, None)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None
