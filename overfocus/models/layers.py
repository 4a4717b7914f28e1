"""What the blocks of every model here share: tokens seen as maps, and activation checkpointing that spares batch norms."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def to_maps(tokens: Float[Tensor, "batch tokens channels"], grid: tuple[int, ...]) -> Float[Tensor, "batch channels *grid"]:
    """View row-major tokens as maps; contiguous tokens give a map in channels-last memory format."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *grid)


def to_tokens(maps: Float[Tensor, "batch channels *grid"]) -> Float[Tensor, "batch tokens channels"]:
    """View maps as row-major tokens; a map in channels-last memory format gives contiguous tokens."""
    return maps.flatten(2).transpose(1, 2)


def run_block(block: nn.Module, *inputs: object, checkpointed: bool) -> Tensor:
    """Return `block(*inputs)`; `checkpointed` keeps only its inputs and runs it again in the backward pass.

    The second run would move the running mean and variance of each batch norm a second time; they are held still for it.
    """
    out: Tensor
    if not (checkpointed and torch.is_grad_enabled()):
        out = block(*inputs)
    elif torch.compiler.is_compiling():  # the compiler repeats no update of a buffer and takes no context
        out = checkpoint(block, *inputs, use_reentrant=False)
    else:
        out = checkpoint(block, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), held_statistics(block)))
    return out


@contextmanager
def held_statistics(block: nn.Module) -> Iterator[None]:
    """Leave the running statistics of every batch norm in `block` as they are, whatever it runs meanwhile."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    counts = [(count, count.clone()) for norm in norms if (count := norm.num_batches_tracked) is not None]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for count, before in counts:
            count.copy_(before)
