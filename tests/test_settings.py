"""Settings that the Python interface and the command line share."""

import contextlib
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overfocus.errors import OverfocusError, RunError
from overfocus.settings import Settings, element, field_type, members, setting, takes, typed_type


@dataclass(frozen=True)
class Brew(Settings):
    """What `brew` takes."""

    leaf: str = setting(help="Kind of tea.", one_of=("assam", "sencha"))
    pot: str | Path | None = setting(None, "Where to.", none="a cup")
    _: KW_ONLY
    minutes: float = setting(3.0, "How long.", above=0, most=10)
    cups: int = setting(1, "How many.", least=1, most=10**6)
    steps: Sequence[int] | None = setting(None, "Which.", least=0)
    milk: bool = setting(False, "With milk.")
    style: Literal["gongfu", "western"] = setting("western", "How.")
    extra: Mapping[str, Any] | None = setting(None, "Anything.")
    kettle: "str | shop.NotImported | None" = setting(None, "A live object.")  # type: ignore[name-defined]
    guests: "Sequence[str | NotImported] | None" = setting(None, "Live objects.")  # type: ignore[name-defined]


LIVE = type("NotImported", (), {})
"""A class that the module of the settings does not import."""


@takes(Brew)
def brew(settings: Brew) -> Brew:
    """Make tea.

    Raises:
        RunError: there is no such leaf.
    """
    return settings


def test_a_function_takes_the_fields_as_arguments() -> None:
    made = brew("sencha", "pot", minutes=2, steps=[np.int64(3), 4], extra={"a": 1}, kettle=LIVE())
    assert (made.leaf, made.minutes, made.steps, made.milk) == ("sencha", 2.0, (3, 4), False)
    assert type(made.minutes) is float
    parameters = inspect.signature(brew).parameters
    assert list(parameters) == ["leaf", "pot", "minutes", "cups", "steps", "milk", "style", "extra", "kettle", "guests"]
    assert parameters["cups"].default == 1
    assert parameters["cups"].kind is inspect.Parameter.KEYWORD_ONLY
    assert inspect.signature(brew).return_annotation is Brew


def test_the_documentation_has_the_help_before_what_is_raised() -> None:
    text = inspect.getdoc(brew) or ""
    assert text.index("Make tea.") < text.index("    pot: Where to. None: a cup.") < text.index("Raises:\n    RunError")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"leaf": "sencah"}, "leaf must be assam or sencha, got 'sencah'; did you mean sencha?"),
        ({"leaf": ""}, "leaf is empty"),
        ({"leaf": "a\0"}, r"leaf must not hold a zero byte, got a\\x00"),
        ({"leaf": None}, "leaf must be a text, got None"),
        ({"pot": ""}, "pot is empty"),
        ({"pot": 3}, "pot must be a text or a path, got 3"),
        ({"minutes": 0}, "minutes must be above 0 and at most 10, got 0"),
        ({"minutes": math.nan}, "minutes must be above 0 and at most 10, got nan"),
        ({"minutes": "2"}, "minutes must be a number, got '2'"),
        ({"minutes": True}, "minutes must be a number, got True"),
        ({"cups": 0}, "cups must be at least 1, got 0"),
        ({"cups": 1.0}, "cups must be a whole number, got 1.0"),
        ({"cups": 10**30}, "cups must be at most 1,000,000, got 1000"),
        ({"cups": 10**5000}, "cups must be at most 1,000,000, got a number of 16,610 bits"),
        ({"steps": [1, -1]}, "steps must be at least 0, got -1"),
        ({"steps": "12"}, "steps must be a list of whole numbers, got '12'"),
        ({"steps": [1.5]}, r"steps must be a list of whole numbers, got \[1.5\]"),
        ({"milk": 1}, "milk must be true or false, got 1"),
        ({"style": "cold"}, "style must be gongfu or western, got 'cold'"),
        ({"extra": [1]}, "extra must be a table of names and values"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_name_of_the_setting(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(RunError, match=words) as caught:
        brew(**{"leaf": "assam"} | arguments)
    assert caught.value.setting == next(iter(arguments))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_live_object_is_a_text_on_the_command_line() -> None:
    assert field_type(Brew, "kettle") is None
    assert str in members(typed_type(Brew, "kettle"))
    (texts,) = members(typed_type(Brew, "guests"))
    assert str in members(element(texts))
    assert brew("assam", guests=["a", LIVE()]).guests is not None


def test_an_unknown_argument_is_named_with_the_nearest() -> None:
    with pytest.raises(TypeError, match=r"brew\(\) has no argument 'minute'; did you mean minutes\?"):
        brew("assam", minute=2)  # type: ignore[call-arg]


@given(st.dictionaries(st.sampled_from(["leaf", "pot", "minutes", "cups", "steps", "milk", "style", "extra"]), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)))  # fmt: skip
def test_any_value_is_taken_or_refused_in_our_words(arguments: dict[str, Any]) -> None:
    with contextlib.suppress(OverfocusError):
        made = brew(**{"leaf": "assam"} | arguments)
        assert repr(made) == repr(Brew(**made.arguments()))
