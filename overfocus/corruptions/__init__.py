"""The 19 image corruptions of ImageNet-C with the constants of ImageNet-C, CIFAR-C and Tiny-ImageNet-C."""

from overfocus.corruptions.apply import corrupt, corrupt_cached, prepare_corruptions
from overfocus.corruptions.constants import (
    CONSTANT_SETS,
    CORRUPTIONS,
    GROUPS,
    SEVERITIES,
    ConstantSet,
    check_constants,
    check_severity,
    choose_constants,
    describe_approximations,
    describe_constants,
    is_approximation,
    resolve_corruptions,
)

__all__ = [
    "CONSTANT_SETS",
    "CORRUPTIONS",
    "GROUPS",
    "SEVERITIES",
    "ConstantSet",
    "check_constants",
    "check_severity",
    "choose_constants",
    "corrupt",
    "corrupt_cached",
    "describe_approximations",
    "describe_constants",
    "is_approximation",
    "prepare_corruptions",
    "resolve_corruptions",
]
