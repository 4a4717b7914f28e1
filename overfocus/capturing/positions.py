"""The position in the image that each entry of an intermediate tensor comes from.

A tensor of token positions accompanies every activation of one forward: reshapes, rolls, paddings and slices are
repeated on it, whatever computes along channels leaves it alone, and a convolution that changes the size starts a new
grid. At an attention site the positions of queries and values then say, without any knowledge of the architecture,
which axes are images, windows, heads, tokens and channels, and where on the image each window lies.

How a position is written as a number stands in `overfocus.capturing.places`.
"""

import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from overfocus.capturing.places import (
    FAR,
    FREQUENCY,
    GRID_BITS,
    IMAGE,
    MIXTURE,
    NOWHERE,
    SEVERAL,
    UNKNOWN,
    cell_count,
    constant,
    entry_images,
    everywhere,
    first_of_runs,
    flattened,
    grid_of,
    image_of,
    index_of,
    is_batch,
    mixes_all,
    moved_cells,
    of_one_image,
    place_count,
    renumber,
    representative,
    same_places,
    unrepeated,
    without_image,
)
from overfocus.capturing.watching import (
    PRODUCTS,
    Operands,
    TensorNotes,
    argument,
    einsum_letters,
    first_argument,
    product_operands,
    tensors_in,
)

_COLOURS = (1, 3, 4)

# Functions that move entries and compute nothing: they are repeated on the positions as they are.
MOVES = frozenset(
    "view reshape permute transpose swapaxes swapdims movedim moveaxis flatten unflatten squeeze unsqueeze expand expand_as "
    "roll flip fliplr flipud unbind chunk split split_with_sizes tensor_split __getitem__ index slice narrow select index_select "
    "gather take_along_dim t repeat tile repeat_interleave stack cat hstack vstack pad pixel_shuffle pixel_unshuffle contiguous "
    "clone alias unfold im2col view_as reshape_as ravel T.__get__ mT.__get__ mT T channel_shuffle rot90 scatter scatter_ "
    "index_put index_put_ index_copy index_copy_ broadcast_to view_as_complex view_as_real transpose_ swapaxes_ swapdims_ t_ "
    "squeeze_ unsqueeze_ adjoint H.__get__ mH.__get__ take put put_ masked_scatter masked_scatter_ slice_scatter select_scatter "
    "diagonal_scatter hsplit vsplit dsplit unsafe_chunk unsafe_split dstack column_stack row_stack fft_fftshift fft_ifftshift "
    "as_strided".split()
)
# What gives a grid of another size: convolutions, pooling, and sampling up or down.
_RESIZING = ("conv", "pool", "interpolate", "upsample")
_REDUCTIONS = frozenset("mean sum amax amin max min std var norm linalg_vector_norm median logsumexp prod nanmean".split())
_POOLS = frozenset("avg_pool1d max_pool1d adaptive_avg_pool1d adaptive_max_pool1d".split())
_CHANNEL_MIXING = frozenset("linear conv1d conv2d conv3d".split())
_MADE = frozenset(
    "zeros_like ones_like empty_like full_like rand_like randn_like randint_like new_zeros new_ones new_empty new_full "
    "new_tensor empty zeros ones full".split()
)
# What these return are not the tokens that went in.
_UNRELATED = _MADE | frozenset("argsort argmax argmin nonzero bernoulli multinomial size stride numel dim".split())
# What these return is in an order that only values determine, or sums the tokens up to each one.
_REORDERING = frozenset(
    "sort topk kthvalue msort unique grid_sample grid_sampler grid_sampler_2d grid_sampler_3d cumsum cumprod cummax cummin "
    "logcumsumexp".split()
)
# What these return are tokens to which others were added where an index says.
_ADDING = frozenset(
    "index_add index_add_ index_reduce index_reduce_ scatter_add scatter_add_ scatter_reduce scatter_reduce_".split()
)
_LIKE = frozenset("type_as to expand_as view_as reshape_as".split())
_COPYING = frozenset("expand repeat tile broadcast_to expand_as".split())
_COPIES = _COPYING | frozenset("view reshape contiguous to type".split())
_PLAIN = (int, str, bool, float)
_MANY = 100
_GROWING = frozenset("cat stack repeat tile repeat_interleave index_select __getitem__ index vstack expand".split())


@dataclass(eq=False, slots=True)
class Positions:
    """Positions of a tensor's entries, of the tensor's own shape (axes of one value are expanded, not stored)."""

    ids: Tensor
    raw: bool = False
    """Whether nothing has computed with the input yet: entries are pixels."""
    lost: bool = False
    """Whether a function has put the tokens where nothing tells."""


@dataclass(frozen=True)
class Grid:
    """A grid that positions point into."""

    root: int
    """Number of the input that it belongs to."""
    size: tuple[int, ...] | None
    """(rows, columns), or (frames, rows, columns) of a video; None for sequences that are no image."""


class PositionTracker:
    """Follows token positions through the functions of one forward."""

    def __init__(self, constants: frozenset[int] = frozenset()) -> None:
        self.notes: TensorNotes[Positions] = TensorNotes()
        self.grids: list[Grid] = []
        self.origins: list[int] = []
        """Of each image the one of the input that it is a copy or a crop of."""
        self._moved: set[int] = set()
        """Copies that show other places than their image, or the same elsewhere."""
        self._frames: set[int] = set()
        """Images that are frames of a video, or crops of an image that came in an axis of their own."""
        self._shown: dict[tuple[int, int], Tensor] = {}
        """By such a copy and a grid of it, which cell of the image each cell shows, where it is mirrored or turned."""
        self.follows_data = False
        """Whether tokens were put in an order that this input's values may tell: the next forward may have another."""
        self._strangers: list[weakref.ref[Tensor]] = []
        """Tensors that tokens met and no function made that capture saw."""
        self._constants = constants
        self._here: TensorNotes[bool] = TensorNotes()
        """Tensors that functions made of nothing that is followed."""
        self._copies: TensorNotes[bool] = TensorNotes()
        self._unplaced: TensorNotes[list[Any]] = TensorNotes()
        """Where tokens without a place were written into tensors."""
        self._made: dict[int, weakref.ref[Tensor]] = {}
        """Tensors that were made empty, by their memory, into whose views tokens may be written."""
        self._calls: dict[Hashable, tuple[list[Positions | None], list[Positions]]] = {}
        """Positions of what calls returned, and of what they were given, so that these stay apart from later ones."""
        self._unbatched: Positions | None = None
        """Those of an input (c, h, w) that may be a single image: it is one if the model puts an axis before it."""
        self._roots = 0
        self._lists: dict[int, int] = {}

    def start(self, tensor: Tensor, *, sequences: bool = True) -> None:
        """Number the places of a network's input.

        Pixels of images (b, c, h, w) or (b, h, w, c), of videos (b, c, t, h, w) or (b, t, c, h, w), or items of sequences
        (b, n, c), unless `sequences` is off, and of token numbers (b, n).
        """
        shape = tuple(tensor.shape)
        if tensor.ndim == 4:
            last = shape[3] in _COLOURS and shape[1] not in _COLOURS
            size = shape[1:3] if last else shape[2:]
            ids = self._numbered(shape[0], self._root(size), tensor)
            self.notes[tensor] = Positions((ids.unsqueeze(-1) if last else ids.unsqueeze(1)).expand(shape), raw=True)
        elif tensor.ndim == 5 and (channel := _channel_axis(shape)) is not None:
            size = tuple(length for axis, length in enumerate(shape) if axis not in (0, channel))
            ids = self._numbered(shape[0], self._root(size), tensor)
            self.notes[tensor] = Positions(ids.unsqueeze(channel).expand(shape), raw=True)
        elif tensor.ndim == 2 and not tensor.is_floating_point() and tensor.dtype != torch.bool:
            length = shape[1]
            grid = self._lists.get(length)
            if grid is None:
                grid = self._lists[length] = self._root(None)
            self.notes[tensor] = Positions(self._numbered(shape[0], grid, tensor, length))
        elif tensor.ndim == 3 and sequences and tensor.is_floating_point():
            ids = self._numbered(shape[0], self._root(None), tensor, shape[1])
            self.notes[tensor] = known = Positions(ids.unsqueeze(-1).expand(shape))
            self._unbatched = known if shape[0] in _COLOURS else None

    def start_list(self, images: list[Tensor]) -> None:
        """Number the pixels of images (c, h, w) that come in a list, each of its own size."""
        for image, tensor in enumerate(images):
            size = tuple(tensor.shape[1:])
            ids = self._numbered(1, self._grid(0, size), tensor) + image * IMAGE
            self.notes[tensor] = Positions(ids.expand(tensor.shape), raw=True)
        self.origins += range(len(self.origins), len(images))

    def start_patches(self, patches: Tensor, coordinates: Tensor, valid: Tensor | None) -> None:
        """Number patches (b, n, …) that come with their (row, column), (b, n, 2), some of them padding (NaFlexViT)."""
        columns = int(coordinates[..., 1].max()) + 1
        grid = self._root((int(coordinates[..., 0].max()) + 1, columns))
        self.origins += range(len(self.origins), len(patches))
        index = coordinates[..., 0] * columns + coordinates[..., 1] + 1
        ids = index + (grid << GRID_BITS) + torch.arange(len(index), device=index.device)[:, None] * IMAGE
        if valid is not None:
            ids = ids.masked_fill(~valid, 0)
        ids = ids.reshape(ids.shape + (1,) * (patches.ndim - 2)).expand(patches.shape)
        self.notes[patches] = Positions(ids)

    def is_stranger(self, tensor: Tensor) -> bool:
        """Whether a tensor of activations was made where capture does not see it."""
        known = self.notes.get(tensor) is not None or self._here.get(tensor) or id(tensor) in self._constants
        return not known and tensor.is_floating_point() and tensor.ndim >= 2 and not isinstance(tensor, torch.nn.Parameter)

    @property
    def apart(self) -> set[int]:
        """Images that show something else than the image that they come from."""
        return self._moved | self._frames

    def made(self, result: Any) -> None:
        """Note what a function returned that is not followed."""
        for output in tensors_in(result):
            if self.get(output) is None:
                self._here[output] = True

    def met_strangers(self, output: Any) -> bool:
        """Whether the forward, which has just returned this, used tensors that were made in it where capture does not see it.

        What outlives the forward was there before it: a constant that is no buffer.
        """
        made = any((tensor := known()) is None or tensor.grad_fn is not None for known in self._strangers)
        return made or any(map(self.is_stranger, tensors_in(output)))

    def get(self, tensor: Any) -> Positions | None:
        """Positions of this tensor, if they are known."""
        return self.notes.get(tensor)

    def operand(self, operands: Operands, side: int) -> Tensor | None:
        """Positions of an operand with its summed axis last, and before it the axes of its own, which hold tokens."""
        known = self.get(operands.tensors[side])
        letters, others = operands.letters[side], operands.letters[1 - side]
        summed = operands.summed(side)
        if known is None or len(summed) != 1 or known.ids.ndim != len(letters):
            return None
        shared = [letter for letter in operands.output if letter in letters and letter in others]
        own = [letter for letter in operands.output if letter in letters and letter not in others]
        return known.ids.permute([letters.index(letter) for letter in (*shared, *own, *summed)])

    def copy(self, source: Any, target: Any) -> None:
        """Give a tensor of the same shape the positions of another (for calls that cannot be looked into)."""
        known = self.get(source)
        if known is not None and isinstance(target, Tensor) and target.shape == known.ids.shape:
            self.notes[target] = Positions(known.ids)

    def follow(self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Note the positions of what `func` returned for these arguments."""
        if name in _UNRELATED:
            self.made(result)
            if name in _MADE and isinstance(result, Tensor) and result.layout == torch.strided:
                self._made[result.untyped_storage().data_ptr()] = weakref.ref(result)
            return
        if name in ("__setitem__", "copy_"):
            self._written(args if len(args) > 2 else (args[0], ..., *args[1:], *kwargs.values()))
            return
        get = self.notes.get
        sources = tensors_in(args[:1] if name in _LIKE else (args, kwargs))
        tracked = [(tensor, known) for tensor in sources if (known := get(tensor)) is not None]
        outputs = tensors_in(result)
        if len(tracked) < len(sources) and self.notes.entries and len(self._strangers) < _MANY:
            self._strangers += [weakref.ref(tensor) for tensor in sources if self.is_stranger(tensor)]
        if not tracked:
            for output in outputs:
                self._here[output] = True
            if name in _COPIES:
                self._copied(name, args, outputs)
            return
        key = self._call(name, args, kwargs, outputs)
        if key is not None and key in self._calls:
            found = self._calls[key][0]
        else:
            before = len(self.origins), len(self.grids)
            found = self._found(func, name, args, kwargs, tracked, outputs)
            if key is not None and before == (len(self.origins), len(self.grids)):
                self._calls[key] = found, [known for _, known in tracked]
        for output, positions in zip(outputs, found, strict=True):
            if positions is None and output.ndim >= 2 and (output.is_floating_point() or output.is_complex()):
                positions = _lost(output)
            if positions is not None and get(output) is not positions:
                self.notes[output] = positions

    def _found(
        self,
        func: Callable[..., Any],
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tracked: list[tuple[Tensor, Positions]],
        outputs: list[Tensor],
    ) -> list[Positions | None]:
        """Positions of what a function returned; None where they are unknown."""
        if tracked[0][1] is self._unbatched and [output.shape for output in outputs] == [(1, *tracked[0][0].shape)]:
            shape = outputs[0].shape
            return [Positions(self._numbered(1, self._root(tuple(shape[2:])), outputs[0]).unsqueeze(1).expand(shape), raw=True)]
        if name in _REORDERING and not self._along_channels(args, kwargs):
            several = [Positions(everywhere(output, SEVERAL)) for output in outputs]
            return [found if output.is_floating_point() else None for found, output in zip(several, outputs, strict=True)]
        if name.startswith("fft_") and name not in MOVES and not self._in_channels(name, args, kwargs):
            return [None if name[4] == "i" else Positions(everywhere(output, FREQUENCY)) for output in outputs]
        if name in _ADDING and (summed := self._added(name, args, kwargs)) is not None:
            return [summed]
        if name in MOVES:
            moved = self._move(func, name, args, kwargs, tracked)
            if moved is not None and [ids.shape for ids in moved] == [output.shape for output in outputs]:
                raw = all(known.raw for _, known in tracked)
                return [Positions(ids, raw) for ids in moved]
            if not any(isinstance(value, torch.dtype) for value in args[1:]):
                return [None] * len(outputs)
        if name == "einsum" and len(tracked) == 1 and (permuted := self._permuted(args, kwargs)) is not None:
            return [permuted]
        if name == "embedding" and tracked[0][0].is_floating_point():  # rows of the tokens, looked up
            return [self._looked_up(args, kwargs, *tracked[0])]
        if name in PRODUCTS and (operands := product_operands(name, args, kwargs)) is not None:
            return [self._product(operands, output) for output in outputs]
        return [
            (self._reduced(args, kwargs, output) if name in _REDUCTIONS else None)
            or self._computed(name, [known for _, known in tracked], output, argument(args, kwargs, 1, "weight"))
            for output in outputs
        ]

    def _permuted(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Positions | None:
        """Positions of the only tensor that an `einsum` is given, its axes in another order, some of them summed."""
        parts = einsum_letters(args, kwargs)
        if parts is None or len(parts[0]) != 1 or (known := self.get(parts[0][0])) is None:
            return None
        kept, output = list(parts[1][0]), parts[2]
        summed = [axis for axis, letter in enumerate(kept) if letter not in output]
        ids = self.merged(known.ids, summed) if summed else known.ids
        for axis in reversed(summed):
            ids = ids.squeeze(axis)
            kept.pop(axis)
        return Positions(ids.permute([kept.index(letter) for letter in output]), known.raw and not summed)

    def _looked_up(self, args: tuple[Any, ...], kwargs: dict[str, Any], tokens: Tensor, known: Positions) -> Positions | None:
        """Positions of the rows of (n, c) tokens that a call of `embedding` chooses."""
        index = next((tensor for tensor in tensors_in((args, kwargs)) if tensor is not tokens), None)
        if index is None or index.is_floating_point() or known.ids.ndim != 2:
            return None
        self.follows_data |= id(index) not in self._constants
        return Positions(known.ids[index])

    def _along_channels(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a function runs along an axis all of whose entries are at one place."""
        known, axis = self.get(first_argument(args, kwargs)), kwargs.get("dim")
        axis = next((value for value in reversed(args[1:]) if type(value) is int), -1) if axis is None else axis
        return known is not None and -known.ids.ndim <= axis < known.ids.ndim and constant(known.ids, axis)

    def _in_channels(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a Fourier transform leaves tokens where they are: otherwise each frequency is one of the whole image."""
        known, axes = self.get(first_argument(args, kwargs)), argument(args, kwargs, 2, "dim")
        if known is None:
            return False
        if axes is None:
            axes = (-2, -1) if name.endswith("2") else range(known.ids.ndim) if name.endswith("n") else -1
        return all(constant(known.ids, axis) for axis in ((axes,) if isinstance(axes, int) else axes))

    def _call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: list[Tensor]) -> Hashable:
        """What the positions that a call gives depend on, since blocks repeat each other's calls; None where it is too much.

        That is the function, the positions of its tensors, its other arguments and the shapes of what it returned.
        """
        if name.endswith("_") and name[:2] != "__":
            return None
        parts: list[Hashable] = [name, *(output.shape for output in outputs)]
        seen: dict[int, int] = {}
        known = self._parts(args, parts, seen) and (not kwargs or self._parts(tuple(kwargs.items()), parts, seen))
        return tuple(parts) if known else None

    def _parts(self, values: Sequence[Any], parts: list[Hashable], seen: dict[int, int]) -> bool:
        """Append what is said of arguments; False where one of them can not be said. `seen` numbers the tensors."""
        for value in values:
            if isinstance(value, Tensor):
                known = self.notes.get(value)
                if known is not None:
                    parts.append((id(known), seen.setdefault(id(value), len(seen))))
                elif value.is_floating_point():
                    parts.append((value.shape, self._copies.get(value)))
                else:
                    return False  # numbers that may be an order
            elif value is None or type(value) in _PLAIN:
                parts.append(value)
            elif isinstance(value, slice):
                parts.append("slice")
                if not self._parts((value.start, value.stop, value.step), parts, seen):
                    return False
            elif isinstance(value, (tuple, list)):
                parts.append(len(value))
                if not self._parts(value, parts, seen):
                    return False
            elif value is Ellipsis or isinstance(value, (torch.dtype, torch.device)):
                parts.append(value)
            else:
                return False
        return True

    def size(self, grid: int) -> tuple[int, ...] | None:
        """(rows, columns) or (frames, rows, columns) of a grid."""
        return self.grids[grid].size

    def clear(self) -> None:
        """Forget the forward that was followed."""
        self.notes.clear()
        self._copies.clear()
        self._here.clear()
        self._strangers.clear()
        self._unplaced.clear()
        self._made.clear()
        self._calls.clear()
        self.grids.clear()
        self.origins.clear()
        self._moved.clear()
        self._frames.clear()
        self._shown.clear()
        self._lists.clear()
        self._roots = 0
        self._unbatched = None
        self.follows_data = False

    def _root(self, size: tuple[int, ...] | None) -> int:
        self._roots += 1
        return self._grid(self._roots, size)

    def _grid(self, root: int, size: tuple[int, ...] | None) -> int:
        grid = Grid(root, size)
        if grid not in self.grids:
            self.grids.append(grid)
        return self.grids.index(grid)

    def _numbered(self, images: int, grid: int, like: Tensor, length: int | None = None) -> Tensor:
        """Positions (images, *size) of a whole grid, or (images, length)."""
        self.origins += range(len(self.origins), images)
        size = (length,) if length is not None else self.grids[grid].size
        assert size is not None
        index = torch.arange(1, cell_count(size) + 1, device=like.device).reshape(1, *size) + (grid << GRID_BITS)
        return index + torch.arange(images, device=like.device).reshape(-1, *([1] * len(size))) * IMAGE

    def _copied(self, name: str, args: tuple[Any, ...], outputs: list[Tensor]) -> None:
        """Note tensors whose tokens are one token over and over: mask tokens, not the prefix that a model learns."""
        source = args[0] if args else None
        if not isinstance(source, Tensor) or not outputs or outputs[0].ndim < 3:
            return
        output = outputs[0]
        if self._copies.get(source) and output.shape == source.shape:
            self._copies[output] = True
        elif name in _COPYING:
            before = (1,) * (output.ndim - source.ndim) + tuple(source.shape)
            if before[-2] == 1 < output.shape[-2] and before[-1] == output.shape[-1]:
                self._copies[output] = True

    def _swap(self, value: Any, *, index: bool = False) -> Any:
        """Arguments with positions in the place of tensors; whole numbers stay where they are an `index`."""
        if isinstance(value, Tensor):
            known = self.get(value)
            if known is not None and (value.is_floating_point() or not index):
                return known.ids
            if value.is_floating_point():
                return torch.full_like(value, UNKNOWN if self._copies.get(value) else NOWHERE, dtype=torch.int64)
            if value.numel() > 1 and id(value) not in self._constants:
                self.follows_data = True
            return value
        if isinstance(value, (tuple, list)):
            return type(value)(self._swap(item, index=index) for item in value)
        return value

    def _move(
        self,
        func: Callable[..., Any],
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tracked: list[tuple[Tensor, Positions]],
    ) -> list[Tensor] | None:
        index = isinstance(args[0], Tensor) and args[0].is_floating_point() if args else False
        swapped = (*self._swap(args[:1]), *self._swap(args[1:], index=index))
        named = {key: self._swap(value, index=index) for key, value in kwargs.items()}
        try:
            if name == "view_as_complex":
                moved = [swapped[0][..., 0]]
            elif name == "view_as_real":
                moved = [swapped[0].unsqueeze(-1).expand(*swapped[0].shape, 2)]
            elif any(isinstance(value, torch.dtype) for value in swapped[1:]):
                return None  # another type of the same memory
            elif name in ("im2col", "unfold") and swapped and swapped[0].ndim == 4:
                moved = [func(swapped[0].double(), *swapped[1:], **named).long()]
            elif name == "pad":
                mode = argument(swapped, named, 2, "mode")
                sides = argument(swapped, named, 1, "pad")
                ids = first_argument(swapped, named)
                if isinstance(mode, str) and mode != "constant":
                    moved = [torch.nn.functional.pad(ids.double(), sides, mode=mode).long()]
                else:
                    moved = [torch.nn.functional.pad(ids, sides)]
            elif name == "as_strided":
                source = args[0]
                moved = [torch.empty_strided(source.shape, source.stride(), dtype=torch.int64).copy_(swapped[0])]
                moved = [func(moved[0], *swapped[1:], **named)]
            elif name.endswith("_"):
                moved = list(tensors_in(func(swapped[0].contiguous().clone(), *swapped[1:], **named)))
            else:
                moved = tensors_in(func(*swapped, **named))
        except (TypeError, ValueError, IndexError, NotImplementedError):
            return None
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            return None
        if name == "cat" and len(moved) == 1:
            moved = [self._beside(args, kwargs, tracked, moved[0])]
        if len(moved) == 1:
            moved = [self._grown(name, args, kwargs, tracked, moved[0])]
        memory = {known.ids.untyped_storage().data_ptr() for _, known in tracked}
        return [ids if ids.untyped_storage().data_ptr() in memory else flattened(ids) for ids in moved]

    @staticmethod
    def _beside(args: tuple[Any, ...], kwargs: dict[str, Any], tracked: list[tuple[Tensor, Positions]], ids: Tensor) -> Tensor:
        """Channels of an image and of shifted copies of it belong to the place in the image.

        Of tokens, channels of several places that are put beside each other (patch merging) make one new token.
        """
        axis = (argument(args, kwargs, 1, "dim", "axis") or 0) % ids.ndim
        parts = [known.ids for _, known in tracked]
        channels = axis > 0 and all(known.raw and constant(known.ids, axis) for _, known in tracked)
        if not channels or len(parts) < 2 or all(torch.equal(part.select(axis, 0), parts[0].select(axis, 0)) for part in parts):
            return ids
        return parts[0].narrow(axis, 0, 1).expand(ids.shape)

    def _grown(
        self,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tracked: list[tuple[Tensor, Positions]],
        ids: Tensor,
    ) -> Tensor:
        """New images where a function has put the images of a batch into it once more."""
        known = tracked[0][1]
        if known.raw and known.ids.ndim == 5 and ids.ndim == 4 and ids.shape[1:] == known.ids.shape[2:] and not is_batch(ids):
            return self._frames_as_images(ids)  # (b, crops or frames, c, h, w) → (b · crops, c, h, w)
        if name not in _GROWING or ids.ndim < 3:
            return ids
        if name == "stack" and known.raw and all(item.raw for _, item in tracked):
            axis = argument(args, kwargs, 1, "dim") or 0
            parts = [self._new_images(part) if place else part for place, part in enumerate(ids.unbind(axis))]
            return torch.stack(parts, axis)
        if ids.ndim != known.ids.ndim or ids.shape[0] <= known.ids.shape[0] or not is_batch(known.ids):
            return ids
        if name == "cat" and not known.raw and len({id(tensor) for tensor, _ in tracked}) > 1:
            others = (item.ids for _, item in tracked[1:])
            if all(other.shape == known.ids.shape and torch.equal(other, known.ids) for other in others):
                return ids  # the same tokens in other channels: heads that lie behind each other
            parts = [torch.unique(item.ids[item.ids > 0]) for _, item in tracked]
            if len(torch.unique(torch.cat(parts))) == sum(map(len, parts)):
                return ids  # other tokens of these images: windows that lie behind each other
        seen: set[int] = set()
        images = [int(number) for number in entry_images(ids)]
        if name in ("cat", "vstack") and min(images) < 0:
            ids = self._with_strangers(ids, images)
            images = [int(number) for number in entry_images(ids)]
        if min(images) < 0:
            return ids
        parts = []
        for part, number in zip(ids.chunk(len(ids)), images, strict=True):
            parts.append(self._new_images(part) if number in seen else part)
            seen.add(number)
        return torch.cat(parts)

    def _with_strangers(self, ids: Tensor, images: list[int]) -> Tensor:
        """Entries without places beside images of the batch (noise, an empty image) are more images, with the same grid."""
        places = without_image(ids[next(entry for entry, number in enumerate(images) if number >= 0)])
        entries = list(ids.unbind())
        for entry, number in enumerate(images):
            if number < 0 and bool((entries[entry] == NOWHERE).all()):
                entries[entry] = torch.where(places > 0, places + len(self.origins) * IMAGE, places)
                self.origins.append(len(self.origins))
        return torch.stack(entries)

    def _new_images(self, ids: Tensor) -> Tensor:
        """The same places of images that the batch did not have before."""
        old = torch.unique(image_of(ids[ids > 0]))
        result = ids
        for number in old.tolist():
            mine = (ids > 0) & (image_of(ids) == number)
            result = torch.where(mine, ids + (len(self.origins) - number) * IMAGE, result)
            self.origins.append(self.origins[number])
        return result

    def _frames_as_images(self, ids: Tensor) -> Tensor:
        size = tuple(ids.shape[2:])
        grid = self._grid(self.grids[int(grid_of(ids.flatten()[0]))].root, size)
        images = len(self.origins)
        self.origins += [self.origins[number] for number in image_of(ids[:, 0, 0, 0]).tolist()]
        self._frames.update(range(images, len(self.origins)))
        fresh = self._numbered(1, grid, ids) + (torch.arange(len(ids), device=ids.device).reshape(-1, 1, 1) + images) * IMAGE
        return fresh.unsqueeze(1).expand(ids.shape)

    def _written(self, args: tuple[Any, ...]) -> None:
        """`target[key] = value`: the places of the value now stand in the target, the rest of which is padding."""
        view, key, value = args[:3]
        if not isinstance(view, Tensor):
            return
        target = self._owner(view)
        known, given = self.get(target), self.get(value)
        if given is None and not (isinstance(value, Tensor) and value.ndim > 0 and value.is_floating_point()):
            return
        places = torch.zeros_like(target, dtype=torch.int64) if known is None else known.ids.contiguous().clone()
        shown = places
        if view is not target:
            shown = places.as_strided(view.shape, view.stride(), view.storage_offset())
        key = self._swap(key)
        earlier = self._unplaced.get(target) or []
        try:
            if known is None and given is None:  # tokens without a place, if places come to stand beside them
                shown[key] = NOWHERE
                self._unplaced[target] = [*earlier, places < 0]
                return
            for unplaced in earlier if known is None else ():
                places[unplaced] = NOWHERE
            shown[key] = self._swap(value)
        except (RuntimeError, IndexError, TypeError, ValueError):
            self.notes[target] = _lost(target)
            return
        self.notes[target] = Positions(places)
        if view is not target:
            self.notes[view] = Positions(shown)

    def _owner(self, view: Tensor) -> Tensor:
        """The tensor whose memory a tensor shows, where that was made empty in this forward; else the tensor itself."""
        made = self._made.get(view.untyped_storage().data_ptr()) if view.layout == torch.strided else None
        owner = None if made is None else made()
        if owner is None or not owner.is_contiguous() or owner.storage_offset() or owner.dtype != view.dtype:
            return view
        return owner

    def _reduced(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Positions | None:
        known = self.get(first_argument(args, kwargs))
        axes = argument(args, kwargs, 1, "dim", "axis")
        if known is None or axes is None or not isinstance(axes, (int, tuple, list)):
            return None
        axes = sorted(axis % known.ids.ndim for axis in ([axes] if isinstance(axes, int) else axes))
        ids = self.merged(known.ids, axes)
        if all(place_count(image) <= 1 for image in ids[: min(2, len(ids))]) and place_count(known.ids[0]) > 1:
            ids = torch.where(ids == MIXTURE, ids, NOWHERE)  # the whole image in one token: a pooled query, no place
        for axis in reversed(axes):
            ids = ids.squeeze(axis) if ids.squeeze(axis).shape == output.shape or ids.ndim > output.ndim else ids
        return Positions(ids) if ids.shape == output.shape else None

    def _added(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Positions | None:
        """Places of tokens (`index_add` and its like) to which others were added; None where these have none."""
        target, axis = first_argument(args, kwargs), argument(args, kwargs, 1, "dim")
        index, source = argument(args, kwargs, 2, "index"), argument(args, kwargs, 3, "source", "src")
        given = self.get(source)
        if given is None or not isinstance(target, Tensor) or not isinstance(index, Tensor):
            return None
        self.follows_data |= id(index) not in self._constants
        nothing = torch.zeros_like(target, dtype=torch.int64)
        put = nothing.index_copy if name.startswith("index") else nothing.scatter
        added, known = Positions(flattened(put(axis, index, given.ids))), self.get(target)
        return added if known is None else self._summed([known, added], known)

    def _summed(self, operands: list[Positions], known: Positions) -> Positions:
        """Places `known` of a function's result, but for entries that are made of several places, or of several images.

        What is one token for all (a mean that is taken away from every token, say) changes no place.
        """
        compact, changed = unrepeated(known.ids), None
        for other in operands:
            if other is known or other.ids is known.ids or other.lost:
                continue
            ids = unrepeated(other.ids)
            if any(a == 1 < b for a, b in zip(ids.shape, compact.shape, strict=True)):
                continue
            both = (compact > 0) & (ids > 0)
            if self._shown:  # a copy's tokens, put back, are where the image's are
                own = compact if changed is None else changed
                alike = both & (compact != ids) & (self.shown(compact) == self.shown(ids))
                if bool(alike.any()):
                    changed = torch.where(alike, torch.minimum(own, self.shown(own)), own)
                both = both & ~alike
            differ = both & (compact != ids)
            if not bool((differ | ((ids <= SEVERAL) & (compact != ids))).any()):
                continue
            changed = compact if changed is None else changed
            images = differ & (self._origin(compact) != self._origin(ids))
            unclear = (without_image(compact) != without_image(ids)) & (
                self._same_grid(compact, ids) | self._turned(compact, ids)
            )
            if self._moved:
                unclear |= (image_of(compact) != image_of(ids)) & (self._shown_elsewhere(compact) | self._shown_elsewhere(ids))
            changed = torch.where(images, MIXTURE, torch.where(differ & unclear, SEVERAL, changed))
            changed = torch.where(ids <= SEVERAL, torch.minimum(ids, changed), changed)
        return known if changed is None else Positions(changed.expand(known.ids.shape), known.raw)

    def _origin(self, ids: Tensor) -> Tensor:
        """The image of the input that each place comes from; −1 where there is none."""
        origins = torch.tensor(self.origins, device=ids.device)
        return torch.where(ids > 0, origins[image_of(ids.clamp(min=0))], -1)

    def _shown_elsewhere(self, ids: Tensor) -> Tensor:
        return torch.isin(image_of(ids), torch.tensor(sorted(self._moved), device=ids.device))

    @staticmethod
    def _same_grid(ids: Tensor, others: Tensor) -> Tensor:
        return grid_of(ids.clamp(min=0)) == grid_of(others.clamp(min=0))

    def _turned(self, ids: Tensor, others: Tensor) -> bool:
        """Whether both point into grids of one input, of as many cells but other sides."""
        grids = [{self.grids[number] for number in torch.unique(grid_of(one[one > 0])).tolist()} for one in (ids, others)]
        if any(len(found) != 1 for found in grids):
            return False
        (one,), (other,) = grids
        return (
            one.root == other.root
            and one.size is not None
            and other.size is not None
            and cell_count(one.size) == cell_count(other.size)
        )

    def _several_images(self, ids: Tensor, axes: Sequence[int]) -> Tensor:
        """Where the entries along axes, of size 1 in the result, are of several images of the input."""
        origin = self._origin(unrepeated(ids))
        highest = origin.amax(tuple(axes), keepdim=True)
        return (highest >= 0) & (highest != origin.masked_fill(origin < 0, FAR).amin(tuple(axes), keepdim=True))

    def merged(self, ids: Tensor, axes: Sequence[int]) -> Tensor:
        """One position for all entries along axes, of size 1 in the result, that a function mixes.

        Places that stand for several are numbered anew, as a coarser grid. They are unknown where two tokens would have the same:
        the function mixed two orders of tokens.
        """
        if self._shown and not of_one_image(unrepeated(ids), axes):
            ids = self.shown(ids)
        merged = ids
        for axis in axes:
            merged = representative(merged, axis)
        if all(constant(ids, axis) for axis in axes):
            return merged
        if len(self.origins) > 1:
            mixed = self._several_images(ids, axes)
            if bool(mixed.any()):
                return torch.where(mixed, MIXTURE, merged)
            stored = unrepeated(ids)
            if self._moved and bool(self._shown_elsewhere(stored).any()) and not of_one_image(stored, axes):
                return torch.where(merged > 0, SEVERAL, merged)
        distinct = unrepeated(merged)
        for axis in range(distinct.ndim):
            if constant(distinct, axis):
                distinct = distinct.narrow(axis, 0, 1)
        places = distinct[distinct > 0]
        if len(torch.unique(places)) < len(places):
            return torch.where(merged > 0, SEVERAL, merged)
        return self.numbered_anew(merged)

    def numbered_anew(self, ids: Tensor) -> Tensor:
        """Places that each are several of a grid, as those of a grid of their own."""
        real = ids > 0
        numbers = torch.unique(grid_of(ids[real])).tolist()
        if len(numbers) != 1 or (size := self.grids[numbers[0]].size) is None:
            return ids
        renumbered = renumber(index_of(ids.clamp(min=1)), real, size)
        if renumbered is None or renumbered[1] == size:
            return ids
        index, lines = renumbered
        grid = self._grid(self.grids[numbers[0]].root, tuple(map(len, lines)))
        return torch.where(real, index + 1 + (grid << GRID_BITS) + image_of(ids) * IMAGE, ids)

    def _product(self, operands: Operands, output: Tensor) -> Positions | None:
        """Rows of a product a @ b keep the places of a's rows where a's row is one place, else columns those of b's."""
        for operand, letters in zip(operands.tensors, operands.letters, strict=True):
            known = self.get(operand)
            if known is None or known.ids.ndim != len(letters):
                continue
            ids, kept = known.ids, list(letters)
            summed = [axis for axis, letter in enumerate(letters) if letter not in operands.output]
            if not all(constant(ids, axis) for axis in summed):
                if len(self.origins) > 1 and self._several_images(ids, summed).any():
                    return Positions(everywhere(output, MIXTURE))
                continue
            for axis in reversed(summed):
                ids = ids.select(axis, 0)
                kept.pop(axis)
            order = [letter for letter in operands.output if letter in kept]
            ids = ids.permute([kept.index(letter) for letter in order])
            for axis, letter in enumerate(operands.output):
                if letter not in kept:
                    ids = ids.unsqueeze(axis)
            return _expanded(ids, output)
        return None

    def _computed(self, name: str, tracked: list[Positions], output: Tensor, kernel: Any) -> Positions | None:
        """Positions after a function that computes: elementwise, along channels, or over a neighbourhood."""
        if name.startswith("conv") and self.get(kernel) is not None:
            return None  # scores: the kernel holds tokens
        same = [item for item in tracked if item.ids.shape == output.shape]
        known = next((item for item in (*same, *tracked) if not item.lost), tracked[0])
        if len(same) > 1:  # what is one token for all, or has no place, changes no place
            known = max((item for item in same if not item.lost), key=_placed, default=known)
        ids = known.ids
        if name in _CHANNEL_MIXING:
            channel = ids.ndim - 1 if name == "linear" else 1
            if output.shape[channel] > 1 and mixes_all(ids, channel):
                return None
            if name == "linear" and known.raw and ids.ndim == 4 and ids.shape[1] > 1 and not ids.stride(1) and ids.stride(3):
                return None  # channels last: neither rows nor columns are where an image has them
            ids = self.merged(ids, (channel,))
            if output.ndim == ids.ndim and all(output.shape[a] == ids.shape[a] for a in range(ids.ndim) if a != channel):
                return Positions(ids.expand(output.shape))
        elif ids.shape == output.shape:
            return self._summed(same, known)
        elif name in _POOLS:
            return _expanded(self.numbered_anew(first_of_runs(ids, -1, output.shape[-1])), output)
        elif output.ndim == ids.ndim:
            differing = [axis for axis in range(ids.ndim) if ids.shape[axis] != output.shape[axis]]
            if len(differing) == 1 and not (
                output.ndim in (4, 5)
                and differing[0] >= 2
                and name in ("interpolate", "max_pool2d", "avg_pool2d", "max_pool3d", "avg_pool3d")
            ):
                if output.shape[differing[0]] > 1 and mixes_all(ids, differing[0]):
                    return None
                return _expanded(representative(ids, differing[0]), output)
            if all(ids.shape[axis] == 1 for axis in differing):
                return _expanded(ids, output)
        if output.ndim in (4, 5) and ids.ndim == output.ndim and output.shape[0] == ids.shape[0]:
            resized = any(word in name for word in _RESIZING) and "deform" not in name
            return self._new_grid(known, output) if resized else None
        if name == "fold" and ids.ndim == 3 and ids.shape[-1] == output.shape[-2:].numel():
            return _expanded(torch.unflatten(representative(ids, 1), -1, output.shape[-2:]), output)
        if name == "embedding" and output.ndim == ids.ndim + 1:
            return _expanded(ids.unsqueeze(-1), output)
        return None

    def _new_grid(self, known: Positions, output: Tensor) -> Positions | None:
        """Positions behind a function that changes the size of (b, c, *size): the grid that it puts out."""
        ids = known.ids
        if bool((unrepeated(ids) == MIXTURE).any()):
            return Positions(everywhere(output, MIXTURE))
        first = representative(ids.flatten(1), 1)
        if bool((first <= 0).all()):
            return None
        images = image_of(first.clamp(min=0))
        if len(torch.unique(images)) < len(images):
            copies = known.raw and same_places(ids, images)
            if not copies:  # an entry is a part of an image (TNT): its places stay those of that part
                thinned = representative(ids, 1)
                for axis in range(2, output.ndim):
                    thinned = first_of_runs(thinned, axis, output.shape[axis])
                return _expanded(thinned, output)
            start = len(self.origins)
            self.origins += [self.origins[number] for number in images.flatten().tolist()]
            images = torch.arange(start, start + len(images), device=ids.device)
        before = self.grids[int(grid_of(first[first > 0].min()))]
        size = tuple(output.shape[2:])
        own = not known.raw or len(set(self.origins)) == len(self.origins)
        # copies of an image have a grid of their own, as they are; the images themselves that of the pixels as they came
        index = moved_cells(ids[:, 0], before.size, size) if own and before.size is not None else None
        if index is not None:
            order, size = index
            if order is None:
                return None
            fresh = order + 1 + (self._grid(before.root, size) << GRID_BITS)
        else:
            fresh = self._numbered(1, self._grid(before.root, size), output)
        if not own or self._moved:
            self._note_moved(ids, images.flatten().tolist(), before, fresh)
        fresh = fresh + images.reshape(-1, *([1] * (output.ndim - 2))) * IMAGE
        return Positions(fresh.unsqueeze(1).expand(output.shape))

    def _note_moved(self, ids: Tensor, images: list[int], before: Grid, fresh: Tensor) -> None:
        """Note which images of a batch that has grown show other places than the one they come from, and which.

        `ids` are those that a function was given, `fresh` the places (1 or b, *size) in the grid that it puts out.
        """
        places, shown, size = without_image(ids), self.shown(ids[:, 0]), tuple(fresh.shape[1:])
        whole = {self.origins[number]: place for place, number in reversed(list(enumerate(images)))}
        for place, number in enumerate(images):
            first = whole[self.origins[number]]
            known = not torch.equal(shown[place], ids[place, 0])
            if number not in self._moved and (place == first or torch.equal(places[place], places[first])):
                continue
            self._moved.add(number)
            cells = moved_cells(shown[place : place + 1], before.size, size) if before.size is not None else (None, size)
            order = cells[0] if cells is not None else torch.arange(cell_count(size), device=ids.device) if known else None
            if order is not None and (cells is None or cells[1] == size):
                labels = fresh.expand(len(images), *size)[place].flatten()
                self._shown[number, int(grid_of(labels[0]))] = torch.empty_like(labels).index_copy(
                    0, index_of(labels), order.flatten()
                )

    def shown(self, ids: Tensor) -> Tensor:
        """Places of copies as those of the images that they show, mirrored or turned; unchanged where that is not known."""
        found = ids
        for (number, grid), order in self._shown.items():
            first = number * IMAGE + (grid << GRID_BITS) + 1
            places = order[(ids - first).clamp(0, len(order) - 1)] + (first - (number - self.origins[number]) * IMAGE)
            found = torch.where((ids >= first) & (ids < first + len(order)), places, found)
        return found

    def of_images(self, ids: Tensor) -> Tensor:
        """Places of mirrored or turned copies as those of their images, where these are not there themselves."""
        if self._shown and set(torch.unique(image_of(ids[ids > 0])).tolist()) <= self._moved:
            return self.shown(ids)
        return ids


def _placed(known: Positions) -> int:
    """How many places positions hold, at most; 0 for none."""
    ids = unrepeated(known.ids)
    return ids.numel() if bool((ids > 0).any()) else 0


def _lost(output: Tensor) -> Positions:
    return Positions(everywhere(output, UNKNOWN), lost=True)


def _channel_axis(shape: tuple[int, ...]) -> int | None:
    """Which axis of a video holds its colours; None where both could."""
    for colours in ((3,), _COLOURS):
        fitting = [axis for axis in (1, 2) if shape[axis] in colours]
        if len(fitting) == 1:
            return fitting[0]
    return None


def _expanded(ids: Tensor, output: Tensor) -> Positions | None:
    try:
        return Positions(ids.expand(output.shape))
    except RuntimeError:
        return None
