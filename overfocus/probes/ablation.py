"""Forwards without some patches: taken out of the attention, or corrupted in the image; what becomes of the predictions.

`remove` hides, in every layer over tokens, the k patch tokens that receive most of its attention in a forward of the same image
with all tokens. `corrupt` gives the model the clean image with the corrupted pixels of k patches: those of the image's patch grid
that receive most attention in the forward of the clean image, whatever the corruption.

- The image's patch grid is the finest one that the keys of a layer form, laid over the model's input; a pixel belongs to the
  patch that its centre lies in.
- Received attention is that of the mean over heads, from the patches (in class attention, from the class tokens). In each layer
  windows weigh the same and the shares sum to 1; a coarser grid's are spread evenly; then layers are averaged. Layers without a
  known grid are left out.

The controls are as many random patches, as many that receive least, and random ones of equal mass: in random order from those
that are not among the top k, until what they receive together comes nearest to what the top k receive, over all windows of a
layer. Where the others together receive less than the top k, there is no such control, and its values are NaN.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from overfocus.attention import TOKEN_KINDS, AttentionMap
from overfocus.capturing import capture
from overfocus.capturing.sources import FUNCTION_ARGUMENTS, Arrangement
from overfocus.capturing.watching import SDPA_ARGUMENTS, ModuleStack, function_name
from overfocus.checkpoints.loaded import LoadedModel
from overfocus.errors import CaptureError
from overfocus.forward import output_tensor
from overfocus.metrics.catalogue import top_count
from overfocus.metrics.formulas import agreement, confidence_drop
from overfocus.metrics.sums import tied
from overfocus.probes.probe import Array, Batch, Column, Described, ItemResult, Probe, Table
from overfocus.runs.description import RunDescription
from overfocus.variants import Variant

_ENTRIES_PER_BLOCK = 2**22
"""Weights that are looked at together: a map is summed in blocks of queries."""


@dataclass(frozen=True, eq=False)
class KeySite:
    """One map over tokens of a forward."""

    module: str
    arrangement: Arrangement
    """How the axes of the model's own weights split into images, windows and heads."""
    shape: tuple[int, int]
    """(queries, keys) of the model's own weights."""
    windows: int
    key_prefix_tokens: int
    received: Float[Tensor, "items tokens"]
    """Sum of the attention that each patch key receives from the patches, one row per image and window."""
    image_received: Float[Tensor, "images rows columns"] | None = None
    """The share of it on each cell of the image's patch grid, windows weighing the same; None where the grid is unknown."""

    @property
    def tokens(self) -> int:
        """Patch tokens among the keys of one window."""
        return self.received.shape[1]


def find_key_sites(model: nn.Module, inputs: Tensor) -> tuple[Tensor, list[KeySite]]:
    """Run the model as it is; what it returns, and its maps over tokens in call order.

    Raises:
        CaptureError: it has none.
    """
    with capture(model, reduce=_site_of) as captured:
        output = output_tensor(model(inputs))
    sites = [site for site in captured.reduced if site is not None]
    if not sites:
        raise CaptureError(f"no attention over tokens was found in {type(model).__name__}: nothing to remove")
    return output, sites


def ranks(received: Float[Tensor, "items tokens"], *, descending: bool) -> Tensor:
    """Place of each token when sorted by what it receives, from 0; equal ones in their own order."""
    order = torch.sort(tied(shares(received)), dim=-1, descending=descending, stable=True).indices
    return order.argsort(-1)


def _site_of(attention: AttentionMap) -> KeySite | None:
    if attention.kind not in TOKEN_KINDS:
        return None
    source = attention.source
    queries, keys = source.source.shape[-2:]
    received = _received(attention)
    return KeySite(
        module=attention.module,
        arrangement=source.arrangement,
        shape=(queries, keys),
        windows=attention.windows,
        key_prefix_tokens=attention.key_prefix_tokens,
        received=received,
        image_received=_on_image_grid(attention, received),
    )


def _received(attention: AttentionMap) -> Float[Tensor, "items tokens"]:
    items, heads, queries, keys = attention.shape
    first = 0 if attention.kind == "class" else attention.prefix_tokens
    step = max(1, _ENTRIES_PER_BLOCK // (items * heads * keys))
    total = torch.zeros(0)
    for start in range(first, queries, step):
        rows = attention.rows(start, min(start + step, queries)).mean(1)
        if not attention.normalised:  # mixed heads: as the metrics do, each entry's share of its row's magnitude
            rows = rows.abs() / rows.abs().sum(-1, keepdim=True)
        part = rows[..., attention.key_prefix_tokens :].sum(
            1, dtype=torch.float64 if rows.device.type != "mps" else torch.float32
        )
        total = total.to(part) + part if len(total) else part
    return total


def _on_image_grid(
    attention: AttentionMap, received: Float[Tensor, "items tokens"]
) -> Float[Tensor, "images rows columns"] | None:
    windows, tokens = attention.windows, received.shape[1]
    places, grid = attention.partition, attention.image_grid
    if grid is None:
        return None
    if places is None and tokens == math.prod(grid):
        places = torch.arange(tokens).unsqueeze(0)
    if places is None or places.shape != (windows, tokens):
        return None
    places = places.to(received.device)
    inside = received.view(-1, windows, tokens) * (places >= 0)
    by_window = shares(inside).flatten(1)
    total = by_window.new_zeros(len(by_window), math.prod(grid)).index_add_(1, places.clamp_min(0).flatten(), by_window)
    return shares(total).view(-1, *grid)


def shares(received: Float[Tensor, "*items tokens"]) -> Float[Tensor, "*items tokens"]:
    """Of their sum; 0 where nothing is received."""
    return received / received.sum(-1, keepdim=True).clamp_min(torch.finfo(received.dtype).tiny)


@contextmanager
def hide_keys(model: nn.Module, sites: Sequence[KeySite], hidden: Sequence[Bool[Tensor, "items tokens"]]) -> Iterator[None]:
    """Take keys out of the attention of the forwards of `model` inside the block.

    `sites` are the maps of a forward of this model, as `find_key_sites` gives them; `hidden` says for each which patch tokens
    are taken out, one row per image and window of the batch that will run.

    Raises:
        CaptureError: the attention of a site did not pass by, so that its keys are still there.
    """
    mode = _HidingMode(model, sites, hidden)
    mode.stack.watch(lambda *_: mode.begin(), lambda *_: None)
    try:
        with mode:
            yield
    finally:
        mode.stack.unwatch()
    mode.check()


class _HidingMode(TorchFunctionMode):
    def __init__(self, model: nn.Module, sites: Sequence[KeySite], hidden: Sequence[Bool[Tensor, "items tokens"]]) -> None:
        super().__init__()
        self.stack = ModuleStack(model)
        self._sites = list(sites)
        self._hidden = list(hidden)
        self._calls: Counter[tuple[str, tuple[int, int]]] = Counter()

    def begin(self) -> None:
        """A module is about to run; if it is the outermost, a new forward begins."""
        if not self.stack.running:
            self._calls.clear()

    def check(self) -> None:
        """Raise unless every site of the last forward was met."""
        expected = Counter((site.module, site.shape) for site in self._sites)
        missed = [module for (module, shape), number in expected.items() if self._calls[module, shape] < number]
        if missed:
            raise CaptureError(
                f"{missed[0]}: its keys cannot be removed: its weights come from no softmax or attention function of torch"
            )

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = function_name(func)
        if self.stack.running:
            if name == "scaled_dot_product_attention":
                args, kwargs = self._scaled_dot_product(args, kwargs)
            elif name == "softmax":
                args, kwargs = self._softmax(args, kwargs)
            elif name == "multi_head_attention_forward":
                args, kwargs = self._multihead(args, kwargs)
        return func(*args, **kwargs)

    def _kept(self, shape: tuple[int, ...]) -> tuple[KeySite, Bool[Tensor, "items keys"]] | None:
        """The site whose map (…, queries, keys) is being made, and which of its keys stay, prefix tokens first."""
        module, tokens = self.stack.site or type(self.stack.model).__name__, (shape[-2], shape[-1])
        places = [place for place, site in enumerate(self._sites) if site.module == module and site.shape == tokens]
        if not places:
            return None
        place = places[min(self._calls[module, tokens], len(places) - 1)]
        self._calls[module, tokens] += 1
        site, hidden = self._sites[place], self._hidden[place]
        prefix = hidden.new_zeros(len(hidden), site.key_prefix_tokens)
        return site, ~torch.cat([prefix, hidden], 1)

    def _scaled_dot_product(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = dict(zip(SDPA_ARGUMENTS, args, strict=False)) | kwargs
        query, key = given.pop("query"), given.pop("key")
        found = self._kept((*query.shape[:-1], key.shape[-2]))
        if found is None:
            return args, kwargs
        site, kept = found
        keep = _unfold(site, kept, key.shape[-2])
        if given.get("is_causal"):
            ones = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device)
            keep, given["is_causal"] = keep & ones.tril(), False
        mask = given.get("attn_mask")
        if mask is None:
            given["attn_mask"] = keep
        else:
            given["attn_mask"] = mask & keep if mask.dtype == torch.bool else torch.where(keep, mask, -torch.inf)
        return (query, key, given.pop("value")), given

    def _softmax(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        scores = args[0] if args else kwargs["input"]
        found = self._kept(tuple(scores.shape)) if scores.ndim >= 3 else None
        if found is None:
            return args, kwargs
        site, kept = found
        keep = _unfold(site, kept, scores.shape[-1])
        if keep.ndim != scores.ndim:  # heads folded into the batch, or not yet
            keep = keep.reshape(*scores.shape[:-2], 1, scores.shape[-1])
        masked = scores.masked_fill(~keep, -torch.inf)
        return ((masked, *args[1:]), kwargs) if args else (args, kwargs | {"input": masked})

    def _multihead(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = dict(zip(FUNCTION_ARGUMENTS, args, strict=False)) | kwargs
        own = len(given["key"])
        width = own + (given.get("bias_k") is not None) + bool(given.get("add_zero_attn"))
        found = self._kept((len(given["query"]), width))
        if found is None:
            return args, kwargs
        site, kept = found
        keep = _unfold(site, kept, width)[:, 0, 0, :own]  # one head for all, and not the keys that torch adds
        mask, padding = given.get("attn_mask"), given.get("key_padding_mask")
        hidden = ~keep
        if padding is not None and padding.dtype == torch.bool:
            hidden = hidden | padding
        elif padding is not None or (mask is not None and mask.dtype != torch.bool):  # torch wants both masks of one type
            zeros = torch.zeros(keep.shape, dtype=given["query"].dtype, device=keep.device) if padding is None else padding
            hidden = zeros.masked_fill(hidden, -torch.inf)
        return (), given | {"key_padding_mask": hidden}


def _unfold(site: KeySite, kept: Bool[Tensor, "items keys"], width: int) -> Tensor:
    with torch._C.DisableTorchFunction():  # how a mask is laid out has nothing to do with the model's tokens
        return site.arrangement.unfold(kept, width)


QUANTITIES = ("agreement", "confidence_drop", "output_cosine", "clean_agreement")
"""What is compared with the output for all tokens, or for the clean image where patches of it are corrupted."""
CHOICES = ("top", "random", "bottom", "mass")
"""Which patches: those that receive most attention, any, those that receive least, any others that together receive as much."""
DRAWN = ("random", "mass")
"""Choices that are drawn at random, as often as asked for."""
_MASS_TOLERANCE = 1e-6
"""By what share the other patches may miss the mass of the top ones: rounding."""

How = Literal["remove", "corrupt"]


class Job(NamedTuple):
    """One forward without some patches."""

    choice: str
    draw: int
    fraction: float
    counts: tuple[int, ...]
    """k in each layer; of the image where pixels are corrupted."""


def choose_counts(tokens: Sequence[int], fractions: Sequence[float]) -> list[tuple[float, tuple[int, ...]]]:
    """(fraction, tokens to take out of each layer), k = max(1, round(f·N)) and one left at least; each set of counts once."""
    counts: dict[tuple[int, ...], float] = {}
    for fraction in fractions:
        counts.setdefault(tuple(min(top_count(number, fraction), max(1, number - 1)) for number in tokens), fraction)
    return [(fraction, chosen) for chosen, fraction in counts.items()]


def image_profile(sites: Sequence[KeySite], model: nn.Module) -> Float[Tensor, "images rows columns"]:
    """The share of attention that each patch of the image's grid receives, averaged over layers: the rule is the module's.

    Raises:
        CaptureError: no layer has its keys on a known grid.
    """
    known = [site.image_received for site in sites if site.image_received is not None]
    if not known:
        raise CaptureError(
            f"{type(model).__name__}: expected attention over patches of a known grid to corrupt their pixels, got none with "
            "one; how='remove' needs no grid"
        )
    finest = max((tuple(part.shape[1:]) for part in known), key=math.prod)
    spread = [nn.functional.interpolate(part.unsqueeze(1), size=finest, mode="area").flatten(1) for part in known]
    mean = torch.stack([shares(part) for part in spread]).mean(0)
    return mean.view(-1, *finest)


class PatchChoice:
    """Chooses patches of one layer, or of the image, by what they receive."""

    def __init__(self, received: Float[Tensor, "images windows tokens"], images: Sequence[int], seed: int, layer: int) -> None:
        """`images`: the image that each input shows. Choices depend on it, the layer, the seed and the draw alone."""
        self._received = received
        self._images = images
        self._seed = seed
        self._layer = layer
        self._sorted = {descending: ranks(received, descending=descending) for descending in (True, False)}
        self._values: dict[int, Array] = {}

    def choose(self, job: Job, count: int) -> tuple[Bool[Tensor, "images windows tokens"], Bool[Tensor, " images"]]:
        """The patches of a job, `count` in each window, and for which images there are such ones."""
        every = torch.ones(len(self._images), dtype=torch.bool, device=self._received.device)
        if job.choice == "mass":
            return self._equal_mass(job.draw, self._sorted[True] < count)
        if job.choice == "random":
            return self._order(self._drawn(job.draw)) < count, every
        return self._sorted[job.choice == "top"] < count, every

    def _equal_mass(
        self, draw: int, top: Bool[Tensor, "images windows tokens"]
    ) -> tuple[Bool[Tensor, "images windows tokens"], Bool[Tensor, " images"]]:
        received, is_top = shares(self._received.flatten(1)), top.flatten(1)
        wanted = (received * is_top).sum(-1, keepdim=True)
        others = received.masked_fill(is_top, 0)
        known = (wanted > 0) & (others.sum(-1, keepdim=True) >= wanted * (1 - _MASS_TOLERANCE))
        order = (self._order(self._drawn(draw).reshape(len(self._images), -1)) + is_top * is_top.shape[1]).argsort(-1)
        in_order = others.gather(1, order)
        # one more patch brings the sum nearer as long as its middle lies below what is wanted
        taken = (in_order.cumsum(-1) - in_order / 2 < wanted) & ~is_top.gather(1, order) & known
        return torch.zeros_like(is_top).scatter(1, order, taken).view(top.shape), known.squeeze(1)

    def _drawn(self, draw: int) -> Array:
        """A random number for each patch."""
        if draw not in self._values:
            shape = tuple(self._received.shape[1:])
            further = [draw] if draw else []  # the first draw is that of runs with a single one
            drawn = {
                image: np.random.default_rng([self._seed, image, self._layer, *further]).random(shape)
                for image in dict.fromkeys(self._images)
            }
            self._values[draw] = np.stack([drawn[image] for image in self._images])
        return self._values[draw]

    def _order(self, values: Array) -> Int[Tensor, "*items tokens"]:
        return torch.from_numpy(values.argsort(-1).argsort(-1)).to(self._received.device)


class AblationProbe(Probe):
    """Takes patches out of the attention of every layer, or corrupts their pixels, and compares the outputs."""

    name: ClassVar[str] = "ablation"
    paired: ClassVar[bool] = True
    owns_forward: ClassVar[bool] = True

    def __init__(
        self, loaded: LoadedModel, fractions: Sequence[float], *, how: How = "remove", draws: int = 1, seed: int = 0
    ) -> None:
        self.loaded = loaded
        self.fractions = sorted(set(fractions))
        self.how = how
        self.draws = draws
        self.seed = seed
        self.tokens: list[int] = []
        """Patch tokens among the keys of each layer; of the image's patch grid alone where pixels are corrupted."""
        self._sites: list[KeySite] = []
        self._profile = torch.zeros(0)
        """Of each image, where pixels are corrupted."""

    def describe(self, inputs: Tensor) -> Described:
        """The patch tokens of each layer, or of the image.

        Raises:
            CaptureError: the model has no attention over tokens, or, to corrupt them, none over a known grid.
        """
        with torch.no_grad():
            _, sites = find_key_sites(self.loaded.model, inputs[:2])
        return Described({"tokens": self._tokens_of(sites)})

    def prepare(self, description: RunDescription) -> None:
        """Take the numbers of tokens."""
        self.tokens = description.tokens

    def rows(self, variants: Sequence[Variant]) -> Mapping[str, int]:
        """One per variant, choice, k and draw; k = 0 stands for all tokens, or for the clean image."""
        return {"ablation": len(variants) * (len(CHOICES) + len(self.jobs))}

    @property
    def jobs(self) -> list[Job]:
        """What is taken out, one forward each."""
        return [
            Job(choice, draw, *counted)
            for counted in choose_counts(self.tokens, self.fractions)
            for choice in CHOICES
            for draw in range(self.draws if choice in DRAWN else 1)
        ]

    def forward(self, batch: Batch) -> Tensor:
        """The output for all tokens; notes what each token receives."""
        inputs = batch.inputs
        alone = len(inputs) == 1  # one image alone does not show which axis of a map holds images
        whole, sites = find_key_sites(self.loaded.model, torch.cat([inputs, inputs]) if alone else inputs)
        if alone:
            whole, sites = whole[:1], [_first_half(site) for site in sites]
        if self._tokens_of(sites) != self.tokens:
            raise CaptureError("expected the attention layers of the first image in every batch, got others")
        self._sites = sites
        if self.how == "corrupt":
            self._profile = image_profile(sites, self.loaded.model)
        return whole

    def columns(self, batch: Batch, output: Any) -> Mapping[str, Column]:
        """`QUANTITIES` (images, choices and jobs, quantities), all tokens first; NaN where a job has nothing to change.

        Raises:
            CaptureError: keys cannot be taken out of a layer, or the output without them holds NaN.
        """
        clean = batch.reference
        assert clean is not None  # as the probe is paired
        unchanged: Tensor = output.float()
        of_clean = unchanged[clean]
        whole, changeable = unchanged, torch.ones(len(clean), dtype=torch.bool, device=clean.device)
        if self.how == "corrupt":
            whole, changeable = of_clean, torch.tensor([variant.corrupted for variant in batch.variants], device=clean.device)
        choosers = self._choosers(batch.each([sample.item for sample in batch.samples]), clean)
        cells = [self._compare(whole, whole, of_clean)] * len(CHOICES)
        for job in self.jobs:
            chosen = [chooser.choose(job, count) for chooser, count in zip(choosers, job.counts, strict=True)]
            images = torch.stack([changeable, *(known for _, known in chosen)]).all(0).nonzero().squeeze(1)
            values = torch.full_like(cells[0], torch.nan)
            if len(images):
                masks = [mask[images] for mask, _ in chosen]
                without = self._without(batch.inputs[images], batch.inputs[clean[images]], masks)
                values[images] = self._compare(without, whole[images], of_clean[images])
            cells.append(values)
        return {"cells": torch.stack(cells, dim=1).cpu().numpy()}

    def tables(self, results: Sequence[ItemResult]) -> Mapping[str, Table]:
        """The values of each image, variant, choice, k and draw."""
        cells = self.joined(results, "cells").astype(np.float64)
        kinds = [(choice, 0, 0.0, 0) for choice in CHOICES] + [
            (job.choice, job.counts[0], job.fraction, job.draw) for job in self.jobs
        ]
        choice, k, fraction, draw = (np.tile(np.array(values), len(cells)) for values in zip(*kinds, strict=True))
        values = {name: cells[:, :, place].ravel() for place, name in enumerate(QUANTITIES)}
        columns = {"choice": choice, "k": k, "fraction": fraction, "draw": draw} | values
        return {"ablation": Table(columns, repeats=len(kinds))}

    def _tokens_of(self, sites: Sequence[KeySite]) -> list[int]:
        if self.how == "remove":
            return [site.tokens for site in sites]
        return [image_profile(sites, self.loaded.model)[0].numel()]

    def _choosers(self, images: Sequence[int], clean: Int[Tensor, " images"]) -> list[PatchChoice]:
        """One per layer; for corruption one for the whole image, by its clean version."""
        if self.how == "remove":
            received = [site.received.view(-1, site.windows, site.tokens) for site in self._sites]
        else:
            received = [self._profile[clean].flatten(1).unsqueeze(1)]
        return [PatchChoice(part, images, self.seed, layer) for layer, part in enumerate(received)]

    def _without(self, inputs: Tensor, clean: Tensor, masks: Sequence[Bool[Tensor, "images windows tokens"]]) -> Tensor:
        """The output without the chosen patches; `clean` is the clean input beside each of `inputs`."""
        if self.how == "remove":
            with hide_keys(self.loaded.model, self._sites, [mask.flatten(0, 1) for mask in masks]):
                return output_tensor(self.loaded.model(inputs))
        corrupted = _over_pixels(masks[0].reshape(-1, *self._profile.shape[1:]), (inputs.shape[-2], inputs.shape[-1]))
        return output_tensor(self.loaded.model(torch.where(corrupted.unsqueeze(1), inputs, clean)))

    def _compare(self, output: Tensor, whole: Tensor, of_clean: Tensor) -> Float[Tensor, "images quantities"]:
        """An output compared with that for all tokens, and with that for the clean image."""
        output = output.float()
        if not bool(torch.isfinite(output).all()):
            raise CaptureError("the model's output without some patches holds NaN; try smaller fractions")
        undefined = torch.full((len(output),), torch.nan, device=output.device)
        values = dict.fromkeys(QUANTITIES, undefined)
        classes = self.loaded.num_classes
        if classes and output.shape[1:] == (classes,):
            values["agreement"] = agreement(whole, output)
            values["confidence_drop"] = confidence_drop(whole, output)
            values["clean_agreement"] = agreement(of_clean, output)
        values["output_cosine"] = nn.functional.cosine_similarity(whole.flatten(1), output.flatten(1))
        return torch.stack([values[name].float() for name in QUANTITIES], dim=1)


def _over_pixels(chosen: Bool[Tensor, "images rows columns"], size: tuple[int, int]) -> Bool[Tensor, "images height width"]:
    """For each pixel, whether the patch that its centre lies in is chosen."""
    row, column = (
        (torch.arange(pixels, device=chosen.device) * 2 + 1) * patches // (2 * pixels)
        for pixels, patches in zip(size, chosen.shape[1:], strict=True)
    )
    return chosen[:, row][:, :, column]


def _first_half(site: KeySite) -> KeySite:
    """The site of a batch whose second half repeats the first."""
    images = len(site.received) // site.windows // 2
    on_grid = None if site.image_received is None else site.image_received[:images]
    return replace(site, received=site.received[: images * site.windows], image_received=on_grid)
