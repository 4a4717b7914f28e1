"""Forwards with tokens taken out of the attention: which, how many, and what becomes of the predictions."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from overfocus.checkpoints.loaded import LoadedModel
from overfocus.errors import CaptureError
from overfocus.forward import output_tensor
from overfocus.metrics.expectation import top_count
from overfocus.metrics.prediction import agreement, confidence_drop
from overfocus.probes.key_masking import KeySite, find_key_sites, hide_keys, ranks
from overfocus.probes.probe import Batch, Column, Described, ItemResult, Probe, Table
from overfocus.runs.description import RunDescription
from overfocus.variants import Variant

QUANTITIES = ("agreement", "confidence_drop", "output_cosine", "clean_agreement")
"""What is compared with the output for all tokens."""
CHOICES = ("top", "random", "bottom")
"""Which tokens are taken out: those that receive most attention, any, those that receive least."""

Job = tuple[str, float, tuple[int, ...]]
"""Choice, fraction of the tokens, and how many are taken out of each layer."""


def choose_counts(tokens: Sequence[int], fractions: Sequence[float]) -> list[tuple[float, tuple[int, ...]]]:
    """(fraction, tokens to take out of each layer), k = max(1, round(f·N)) and one left at least; each set of counts once."""
    counts: dict[tuple[int, ...], float] = {}
    for fraction in fractions:
        counts.setdefault(tuple(min(top_count(number, fraction), max(1, number - 1)) for number in tokens), fraction)
    return [(fraction, chosen) for chosen, fraction in counts.items()]


class AblationProbe(Probe):
    """Takes tokens out of the attention of every layer at once and compares the output with that for all tokens."""

    name: ClassVar[str] = "ablation"
    paired: ClassVar[bool] = True
    owns_forward: ClassVar[bool] = True

    def __init__(self, loaded: LoadedModel, fractions: Sequence[float], *, batch_size: int = 16, seed: int = 0) -> None:
        self.loaded = loaded
        self.fractions = sorted(set(fractions))
        self.batch_size = batch_size
        self.seed = seed
        self.tokens: list[int] = []
        """Patch tokens among the keys of each layer."""
        self._sites: list[KeySite] = []

    def describe(self, inputs: Tensor) -> Described:
        """The patch tokens of each layer.

        Raises:
            CaptureError: the model has no attention over tokens.
        """
        with torch.no_grad():
            _, sites = find_key_sites(self.loaded.model, inputs[:2])
        return Described({"tokens": [site.tokens for site in sites]})

    def prepare(self, description: RunDescription) -> None:
        """Take the numbers of tokens."""
        self.tokens = description.tokens

    def rows(self, variants: Sequence[Variant]) -> Mapping[str, int]:
        """One per variant, choice and k; k = 0 stands for all tokens."""
        return {"ablation": len(variants) * (len(CHOICES) + len(self.jobs))}

    @property
    def jobs(self) -> list[Job]:
        """What is taken out, one forward each."""
        return [(choice, *counted) for counted in choose_counts(self.tokens, self.fractions) for choice in CHOICES]

    def forward(self, batch: Batch) -> Tensor:
        """The output for all tokens; notes what each token receives."""
        inputs = batch.inputs
        alone = len(inputs) == 1  # one picture alone does not show which axis of a map holds images
        whole, sites = find_key_sites(self.loaded.model, torch.cat([inputs, inputs]) if alone else inputs)
        if alone:
            whole, sites = whole[:1], [_first_half(site) for site in sites]
        if [site.tokens for site in sites] != self.tokens:
            raise CaptureError("expected the attention layers of the first image in every batch, got others")
        self._sites = sites
        return whole

    def columns(self, batch: Batch, output: Any) -> Mapping[str, Column]:
        """`QUANTITIES` (pictures, choices and counts, quantities), all tokens first.

        Raises:
            CaptureError: keys cannot be taken out of a layer, or the output without them holds NaN.
        """
        whole: Tensor = output.float()
        clean = batch.reference
        assert clean is not None  # as the probe is paired
        orders = self._orders(batch.each([sample.item for sample in batch.samples]))
        jobs, pictures = self.jobs, len(batch.pixels)
        places = [(job, picture) for job in range(len(jobs)) for picture in range(pictures)]
        outputs = []
        for start in range(0, len(places), self.batch_size):
            part = places[start : start + self.batch_size]
            chosen = torch.tensor([picture for _, picture in part], device=batch.device)
            outputs.append(self._without(batch.inputs[chosen], chosen, [jobs[job] for job, _ in part], orders))
        without = torch.cat(outputs).reshape(len(jobs), pictures, *whole.shape[1:])
        cells = [self._compare(whole, whole, clean)] * len(CHOICES)
        cells += [self._compare(one, whole, clean) for one in without]
        return {"cells": torch.stack(cells, dim=1).cpu().numpy()}

    def tables(self, results: Sequence[ItemResult]) -> Mapping[str, Table]:
        """The values of each image, variant, choice and k."""
        cells = self.joined(results, "cells").astype(np.float64)
        kinds = [(choice, 0, 0.0) for choice in CHOICES] + [
            (choice, counts[0], fraction) for choice, fraction, counts in self.jobs
        ]
        choice, k, fraction = (np.tile(np.array(values), len(cells)) for values in zip(*kinds, strict=True))
        values = {name: cells[:, :, place].ravel() for place, name in enumerate(QUANTITIES)}
        return {"ablation": Table({"choice": choice, "k": k, "fraction": fraction} | values, repeats=len(kinds))}

    def _without(
        self, inputs: Tensor, pictures: Tensor, jobs: Sequence[Job], orders: Mapping[str, list[Int[Tensor, "items tokens"]]]
    ) -> Tensor:
        """One batch, each picture with the tokens of its own job hidden."""
        hidden = []
        for place, site in enumerate(self._sites):
            by_choice = torch.stack([orders[choice][place].view(-1, site.windows, site.tokens) for choice in CHOICES])
            choice = torch.tensor([CHOICES.index(job[0]) for job in jobs], device=inputs.device)
            count = torch.tensor([job[2][place] for job in jobs], device=inputs.device)
            hidden.append((by_choice[choice, pictures] < count[:, None, None]).flatten(0, 1))
        with hide_keys(self.loaded.model, self._sites, hidden):
            return output_tensor(self.loaded.model(inputs))

    def _orders(self, images: Sequence[int]) -> dict[str, list[Int[Tensor, "items tokens"]]]:
        """Place of each token in the order in which a choice takes them out, by choice and layer; one row per picture and window.

        The random order depends on the image, the layer and the seed alone: the variants of an image lose the same tokens.
        """
        random = []
        for layer, site in enumerate(self._sites):
            drawn = {
                image: np.random.default_rng([self.seed, image, layer])
                .random((site.windows, site.tokens))
                .argsort(-1)
                .argsort(-1)
                for image in dict.fromkeys(images)
            }
            random.append(torch.from_numpy(np.concatenate([drawn[image] for image in images])).to(site.received.device))
        return {
            "top": [ranks(site.received, descending=True) for site in self._sites],
            "random": random,
            "bottom": [ranks(site.received, descending=False) for site in self._sites],
        }

    def _compare(self, output: Tensor, whole: Tensor, clean: Int[Tensor, "pictures"]) -> Tensor:
        """(pictures, quantities) of an output compared with that for all tokens."""
        output = output.float()
        if not bool(torch.isfinite(output).all()):
            raise CaptureError("the model's output without some tokens holds NaN; take out a smaller fraction")
        undefined = torch.full((len(output),), torch.nan, device=output.device)
        values = dict.fromkeys(QUANTITIES, undefined)
        classes = self.loaded.num_classes
        if classes and output.shape[1:] == (classes,):
            values["agreement"] = agreement(whole, output)
            values["confidence_drop"] = confidence_drop(whole, output)
            values["clean_agreement"] = agreement(whole[clean], output)
        values["output_cosine"] = nn.functional.cosine_similarity(whole.flatten(1), output.flatten(1))
        return torch.stack([values[name].float() for name in QUANTITIES], dim=1)


def _first_half(site: KeySite) -> KeySite:
    """The site of a batch whose second half repeats the first."""
    return replace(site, received=site.received[: len(site.received) // 2])
