"""`add_tap`: token-aware average pooling in front of the attention of an existing timm model."""

from collections.abc import Sequence

from torch import nn

from overfocus.errors import OverfocusError
from overfocus.models.add_tap_sites import FAMILIES, find_sites
from overfocus.models.tap import DilationPredictor
from overfocus.models.tap_pooling import TokenPooling

INITS = ("default", "identity")


def add_tap(
    model: nn.Module,
    branches: int = 4,
    layers: Sequence[int] | None = None,
    init: str = "default",
    pooling: str = "average",
) -> nn.Module:
    """Put TAP in front of the attention of a timm ViT, DeiT, BEiT, EVA, CaiT, XCiT or Swin; changes `model` and returns it.

    The pooled tokens feed the norm and attention, the residual bypasses them, prefix tokens stay as they are, as in the
    paper; Swin pools the whole grid before it is cut into windows. Existing weights keep their names, and each block gains
    `dilation_predictor.proj.*` (and `token_pools.*` for a pooling other than "average").

    XCiT attends over channels: there TAP smooths what the channels are compared on, which is not what the paper studies. The
    class attention of CaiT and XCiT is left alone.

    Args:
        model: a timm model, or a model that contains one.
        branches: K, the number of neighbourhoods to choose from, dilations 0 … K−1.
        layers: which blocks, counted from 0 in order (negative from the end); all of them by default.
        init: "default" starts the predictor at random as in the paper. "identity" starts it with all but 1e-6 of the weight on
            the token itself, so that a pretrained model keeps its output and can be fine-tuned from there.
        pooling: "average" (the paper), "max", "gaussian" or "learned", see `TokenPooling`.

    Raises:
        OverfocusError: the model has no patch grid known here, or blocks without a place in front of the attention alone.
        ValueError: fewer than one branch, no such layer, init or pooling, or a block that has TAP already.
    """
    if init not in INITS:
        raise ValueError(f"expected init to be one of {', '.join(INITS)}, got {init!r}")
    sites = find_sites(model)
    if not sites:
        raise OverfocusError(
            f"expected a timm model of the families {', '.join(FAMILIES)}, got {type(model).__name__}, "
            "which has no patch grid known here; build TokenAwareAveragePooling into its blocks instead"
        )
    chosen = range(len(sites)) if layers is None else layers
    for layer in chosen:
        if not -len(sites) <= layer < len(sites):
            raise ValueError(f"expected layers from 0 to {len(sites) - 1}, got {layer}")
        if hasattr(sites[layer].block, "dilation_predictor"):
            raise ValueError(f"expected a model without TAP in layer {layer}, got one that has it; add it once")
    for layer in dict.fromkeys(layer % len(sites) for layer in chosen):
        site = sites[layer]
        predictor = DilationPredictor(site.channels, branches)
        pools = TokenPooling(site.channels, branches, pooling)
        if init == "identity":
            predictor.favour_identity()
        reference = next(site.block.parameters())
        for name, module in (("dilation_predictor", predictor), ("token_pools", pools)):
            module.to(reference.device, reference.dtype).train(site.block.training)
            site.block.add_module(name, module)
        site.connect()
    return model
