"""What every test of a family asks: are the maps all there, rightly labelled, and the ones that the model used?"""

import copy
import math

import pytest
import timm
import torch
from torch import nn

import overfocus

LABELS = ("module", "kind", "heads", "grid", "key_grid", "image_grid", "prefix", "key_prefix", "windows", "branch", "normalised")


class Family:
    """Builds sharp models and holds captured maps to what the architecture says."""

    def images(self, rows, columns=None, *, batch=2, channels=3):
        return torch.randn(batch, channels, rows, columns or rows, generator=torch.Generator().manual_seed(1))

    def sharpen(self, model, images=None):
        """Give a model weights under which attention is far from uniform, so that a wrong map can not pass for a right one."""
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim >= 2 and parameter[0].numel() == 1:
                    parameter.fill_(2.5)  # a temperature or its logarithm per head
                elif parameter.ndim >= 2:
                    parameter.normal_(0, 1.2 / math.sqrt(max(parameter[0].numel(), 4)), generator=generator)
                elif name.endswith("bias"):
                    parameter.normal_(0, 0.2, generator=generator)
                elif "gamma" in name or "scale" in name:
                    parameter.fill_(0.5)
        norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        if norms and images is not None:
            for norm in norms:
                norm.momentum = 1.0
            with torch.no_grad():
                model.train()(images)
        return model.eval()

    def sites(self, template, numbers, kind, heads, grid, **labels):
        """Expected labels of one map for each number put into the module's name; what is not given is as for plain attention."""
        key_grid = labels.get("key_grid", grid)
        expected = {
            "kind": kind,
            "heads": heads,
            "grid": grid,
            "key_grid": key_grid,
            "image_grid": key_grid,
            "prefix": 0,
            "key_prefix": 1 if kind == "class" else labels.get("prefix", 0),
            "windows": 1,
            "branch": None,
            "normalised": True,
        } | labels
        return [{"module": template.format(number)} | expected for number in numbers]

    def class_sites(self, template, numbers, heads, grid, **labels):
        """Expected labels of maps with one class query."""
        return self.sites(template, numbers, "class", heads, grid, **({"prefix": 1} | labels))

    def channel_sites(self, template, numbers, heads):
        """Expected labels of maps of channels that attend channels."""
        return self.sites(template, numbers, "channel", heads, None)

    def labels(self, attention):
        return {
            "module": attention.module,
            "kind": attention.kind,
            "heads": attention.shape[1],
            "grid": attention.grid,
            "key_grid": attention.key_grid,
            "image_grid": attention.image_grid,
            "prefix": attention.prefix_tokens,
            "key_prefix": attention.key_prefix_tokens,
            "windows": attention.windows,
            "branch": attention.branch,
            "normalised": attention.normalised,
        }

    def check(self, model, inputs, expected, *, silent=None, unfused="attn_drop", order=None, sharp=True):
        """Capture a forward and hold it to the expected labels, to the model's own result, and to the unfused model's maps.

        `silent` names the modules of the coverage table without token attention, with a word of the reason each.
        `unfused` says where the unfused model shows its weights: "attn_drop", "softmax", or None where it does nowhere.
        `order(raw, attention)` puts those into captured order: (batch · windows, heads, queries, keys), patches in place.
        """
        arguments = inputs if isinstance(inputs, tuple) else (inputs,)
        with torch.inference_mode():
            plain = model(*arguments)
            with overfocus.capture(model) as captured:
                observed = model(*arguments)
        for before, after in zip(self.tensors(plain), self.tensors(observed), strict=True):
            assert torch.equal(before, after)
        assert [self.labels(attention) for attention in captured.maps] == expected
        for attention in captured.maps:
            weights = attention.weights
            assert weights.shape == attention.shape
            assert weights.dtype == torch.float32
            if sharp and attention.shape[-1] > 1:
                assert weights.abs().amax() * attention.shape[-1] > 1.5, f"{attention.module} is too uniform to test anything"
        self._check_places(captured.maps)
        with torch.inference_mode(), overfocus.capture(model) as remembered:
            model(*arguments)  # two forwards are traced; what is learnt there
            model(*arguments)  # is looked up in this one
        labels = [self.labels(attention) for attention in remembered.maps]
        assert labels[: len(expected)] == labels[len(expected) :] == expected
        if isinstance(inputs, torch.Tensor) and len(inputs) > 1:
            self._check_single_image(model, inputs, captured.maps)
        self._check_coverage(captured, expected, silent or {})
        verification = overfocus.verify(model, arguments)
        assert [site for site in verification.sites if not site.passed] == []
        assert verification.passed
        if unfused is not None:
            self._check_unfused(model, arguments, captured.maps, unfused, order)
        return captured

    def tensors(self, result):
        if isinstance(result, torch.Tensor):
            return [result]
        values = result.values() if isinstance(result, dict) else result
        return [
            tensor for value in values if isinstance(value, (torch.Tensor, tuple, list, dict)) for tensor in self.tensors(value)
        ]

    def _check_places(self, maps):
        """Windows lie on the image grid, and without overlap each place is in one window at most."""
        for attention in maps:
            if attention.partition is None:
                assert attention.windows == 1
                continue
            keys = attention.shape[-1] - attention.key_prefix_tokens
            assert attention.partition.shape == (attention.windows, keys)
            assert attention.partition.min() >= -1
            assert attention.partition.max() == math.prod(attention.image_grid) - 1

    def _check_single_image(self, model, images, maps):
        """One image shows no axis of images, and gives the same labels and weights as in a batch."""
        with torch.inference_mode(), overfocus.capture(model) as captured:
            model(images[:1])
        assert [self.labels(attention) for attention in captured.maps] == [self.labels(attention) for attention in maps]
        for single, attention in zip(captured.maps, maps, strict=True):
            torch.testing.assert_close(single.weights, attention.weights[: attention.windows], rtol=0, atol=1e-4)
            if attention.partition is not None:
                assert torch.equal(single.partition, attention.partition)

    def _check_coverage(self, captured, expected, silent):
        rows = {(site.module, site.kind): site for site in captured.coverage}
        names = {(labels["module"], labels["kind"]) for labels in expected}
        assert {key for key, site in rows.items() if site.captured} == names
        for name, word in silent.items():
            assert word in " ".join(site.reason or "" for site in captured.coverage if site.module == name), name
        assert {site.module for site in captured.coverage if not site.captured} == {
            name for name in silent if (name, "channel") not in names
        }
        for site in captured.coverage:
            assert site.class_name
            assert (site.kind == "channel" or not site.captured) == (site.reason is not None)

    def _check_unfused(self, model, arguments, maps, place, order):
        raw = self.unfused_maps(model, arguments, place, {attention.module for attention in maps})
        assert len(raw) == len(maps)
        for attention, weights in zip(maps, raw, strict=True):
            weights = weights.float() if order is None else order(weights.float(), attention)
            # the unfused forward rounds otherwise on its way to a deep layer: 1e-5, and as much of large weights as float32 keeps
            torch.testing.assert_close(
                attention.weights, weights, rtol=1e-4, atol=1e-5, msg=lambda text, a=attention: f"{a.module}: {text}"
            )

    def unfused_maps(self, model, arguments, place="attn_drop", sites=()):
        """Attention weights in call order of a copy of the model with every `fused_attn` off, taken without overfocus.

        They are read from the modules `attn_drop` of these sites, or from every softmax.
        """
        model = copy.deepcopy(model).eval()
        for module in model.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = False
        found = []
        if place == "attn_drop":
            for name, module in model.named_modules():
                parent, _, own = name.rpartition(".")
                if own == "attn_drop" and parent in sites:
                    module.register_forward_pre_hook(lambda _, args: found.append(args[0].clone()))
            with torch.inference_mode():
                model(*arguments)
            return found
        method = torch.Tensor.softmax
        with pytest.MonkeyPatch.context() as patch, torch.inference_mode():

            def recorded(*args, **kwargs):
                found.append(method(*args, **kwargs))
                return found[-1]

            patch.setattr(torch.Tensor, "softmax", recorded)  # torch.nn.Softmax and torch.nn.functional.softmax call it too
            model(*arguments)
        return found


@pytest.fixture
def make_vit(family):
    """Builds small Vision Transformers (32×32 pixels, 4×4 patches and a class token, two heads) far from uniform attention."""

    def make(**settings):
        settings = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5} | settings
        return family.sharpen(timm.models.VisionTransformer(**settings))

    return make


@pytest.fixture(scope="session")
def family():
    return Family()
