"""Forwards with tokens taken out: which, how many, and what becomes of the predictions."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from overfocus.ablation.ablation import CHOICES
from overfocus.ablation.masking import hide_keys
from overfocus.ablation.sites import KeySite, find_key_sites, ranks
from overfocus.analysis.variants import Variant
from overfocus.errors import CaptureError
from overfocus.forward import output_tensor
from overfocus.metrics.expectation import top_count
from overfocus.metrics.prediction import agreement, confidence_drop


def choose_counts(tokens: Sequence[int], fractions: Sequence[float]) -> list[tuple[float, tuple[int, ...]]]:
    """(fraction, tokens to take out of each layer), k = max(1, round(f·N)) and one left at least; each set of counts once."""
    counts: dict[tuple[int, ...], float] = {}
    for fraction in fractions:
        counts.setdefault(tuple(min(top_count(number, fraction), max(1, number - 1)) for number in tokens), fraction)
    return [(fraction, chosen) for chosen, fraction in counts.items()]


class Removal:
    """Measures one model on a few pictures at a time."""

    def __init__(
        self, model: nn.Module, num_classes: int, fractions: Sequence[float], *, batch_size: int = 16, seed: int = 0
    ) -> None:
        self.model = model
        self.num_classes = num_classes
        self.fractions = list(fractions)
        self.batch_size = batch_size
        self.seed = seed
        self.tokens: list[int] = []
        """Patch tokens among the keys of each layer, known after the first pictures."""

    def measure(
        self, inputs: Float[Tensor, "pictures channels height width"], images: Sequence[int], variants: Sequence[Variant]
    ) -> list[dict[str, Any]]:
        """One row per picture × choice × k: image, corruption, severity, choice, k, fraction and what the output does.

        `inputs` are the variants of each of `images`, the clean one first.

        Raises:
            CaptureError: the model has no attention over tokens that keys can be taken out of.
        """
        alone = len(inputs) == 1  # one picture alone does not show which axis of a map holds images
        whole, sites = find_key_sites(self.model, torch.cat([inputs, inputs]) if alone else inputs)
        if alone:
            whole, sites = whole[:1], [_first_half(site) for site in sites]
        self.tokens = [site.tokens for site in sites]
        numbers = [image for image in images for _ in variants]
        orders = self._orders(sites, numbers)
        identity = [
            {"image": image, "corruption": corruption, "severity": severity}
            for image in images
            for corruption, severity in variants
        ]
        clean = torch.arange(len(inputs), device=inputs.device) // len(variants) * len(variants)
        rows = []
        for choice in CHOICES:
            rows += self._rows(identity, choice, 0, 0.0, whole, whole, clean)
        jobs = [(choice, *counted) for counted in choose_counts(self.tokens, self.fractions) for choice in CHOICES]
        places = [(job, picture) for job in range(len(jobs)) for picture in range(len(inputs))]
        outputs = []
        for start in range(0, len(places), self.batch_size):
            part = places[start : start + self.batch_size]
            pictures = torch.tensor([picture for _, picture in part], device=inputs.device)
            outputs.append(self._forward(inputs[pictures], pictures, [jobs[job] for job, _ in part], sites, orders))
        without = torch.cat(outputs).reshape(len(jobs), len(inputs), *whole.shape[1:])
        for (choice, fraction, counts), output in zip(jobs, without, strict=True):
            rows += self._rows(identity, choice, counts[0], fraction, output, whole, clean)
        return rows

    def _forward(
        self,
        inputs: Tensor,
        pictures: Int[Tensor, "batch"],
        jobs: Sequence[tuple[str, float, tuple[int, ...]]],
        sites: Sequence[KeySite],
        orders: dict[str, list[Int[Tensor, "items tokens"]]],
    ) -> Tensor:
        """One batch, each picture with the tokens of its own job hidden."""
        hidden = []
        for place, site in enumerate(sites):
            by_choice = torch.stack([orders[choice][place].view(-1, site.windows, site.tokens) for choice in CHOICES])
            choice = torch.tensor([CHOICES.index(job[0]) for job in jobs], device=inputs.device)
            count = torch.tensor([job[2][place] for job in jobs], device=inputs.device)
            hidden.append((by_choice[choice, pictures] < count[:, None, None]).flatten(0, 1))
        with hide_keys(self.model, sites, hidden):
            return output_tensor(self.model(inputs))

    def _orders(self, sites: Sequence[KeySite], images: Sequence[int]) -> dict[str, list[Int[Tensor, "items tokens"]]]:
        """Place of each token in the order in which a choice takes them out, by choice and layer; one row per picture and window.

        The random order depends on the image, the layer and the seed alone: the variants of an image lose the same tokens.
        """
        random = []
        for layer, site in enumerate(sites):
            drawn = {
                image: np.random.default_rng([self.seed, image, layer])
                .random((site.windows, site.tokens))
                .argsort(-1)
                .argsort(-1)
                for image in dict.fromkeys(images)
            }
            random.append(torch.from_numpy(np.concatenate([drawn[image] for image in images])).to(site.received.device))
        return {
            "top": [ranks(site.received, descending=True) for site in sites],
            "random": random,
            "bottom": [ranks(site.received, descending=False) for site in sites],
        }

    def _rows(
        self,
        identity: Sequence[dict[str, Any]],
        choice: str,
        k: int,
        fraction: float,
        output: Tensor,
        whole: Tensor,
        clean: Int[Tensor, "pictures"],
    ) -> list[dict[str, Any]]:
        output, whole = output.float(), whole.float()
        if not bool(torch.isfinite(output).all()):
            raise CaptureError("the model's output without some tokens holds NaN; take out a smaller fraction")
        undefined = torch.full((len(output),), torch.nan, device=output.device)
        values = dict.fromkeys(("agreement", "confidence_drop", "clean_agreement"), undefined)
        if self.num_classes and output.shape[1:] == (self.num_classes,):
            values = {
                "agreement": agreement(whole, output),
                "confidence_drop": confidence_drop(whole, output),
                "clean_agreement": agreement(whole[clean], output),
            }
        values["output_cosine"] = nn.functional.cosine_similarity(whole.flatten(1), output.flatten(1))
        columns = {name: value.cpu().tolist() for name, value in values.items()}
        return [
            one | {"choice": choice, "k": k, "fraction": fraction} | {name: column[place] for name, column in columns.items()}
            for place, one in enumerate(identity)
        ]


def _first_half(site: KeySite) -> KeySite:
    """The site of a batch whose second half repeats the first."""
    return replace(site, received=site.received[: len(site.received) // 2])
