"""Random numbers that depend on the seed and on what they are for, not on what was drawn before.

Every picture's augmentation and every step's dropout, drop path and mixing start from a seed of their own. So a training that
is continued draws what the uninterrupted one would have drawn, whatever the number of worker processes.
"""

import random

import numpy as np
import torch

ORDER, AUGMENTATION, STEP = range(3)
"""What a seed is for: the order of an epoch, the augmentation of one picture, one forward of one process."""


def derived_seed(seed: int, *parts: int) -> int:
    """A number below 2⁶³ that differs with each part."""
    high, low = np.random.SeedSequence([seed, *parts]).generate_state(2, np.uint32)
    return (int(high) << 31) ^ int(low)


def seed_all(seed: int) -> None:
    """Seed Python's, numpy's and torch's global generators, those of GPUs too."""
    seed_processor(seed)
    if torch.accelerator.is_available():
        torch.manual_seed(seed)


def seed_processor(seed: int) -> None:
    """Seed the global generators that timm's augmentations draw from: Python's, numpy's and torch's for the processor.

    `torch.manual_seed` would note a stack trace for every kind of device that is not in use yet: half a millisecond, as much as
    the augmentation of a small picture.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
