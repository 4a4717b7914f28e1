"""The examples in the docstrings run, and each metric has one of three lines or fewer."""

import doctest
import importlib
import pkgutil

import pytest

import overfocus.metrics
from overfocus.metrics import METRICS, STABILITY

MODULES = [module.name for module in pkgutil.iter_modules(overfocus.metrics.__path__, "overfocus.metrics.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("function", [*METRICS.values(), *STABILITY.values()], ids=lambda function: function.__name__)
def test_each_metric_has_a_short_example(function):
    examples = doctest.DocTestParser().get_examples(function.__doc__)
    lines = sum(example.source.count("\n") + example.want.count("\n") for example in examples)
    assert 2 <= lines <= 3
    assert "Source:" in function.__doc__
