"""The values of a recipe's settings, brought into the types that they have."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from overfocus.errors import TrainingError


def checked(name: str, value: Any, types: Mapping[str, Any]) -> Any:
    """The value of a setting in its type, one of `types` by name; a text is read as YAML first.

    Raises:
        TrainingError: there is no such setting, or its value is of another type.
    """
    import yaml

    if name not in types:
        near = difflib.get_close_matches(name, types, n=1)
        raise TrainingError(
            f"no setting {name!r} in a recipe; {f'did you mean {near[0]}? ' if near else ''}There are {', '.join(types)}"
        )
    expected = types[name]
    if isinstance(value, str) and expected is not str:
        value = yaml.safe_load(value)
    if isinstance(value, str) and value != "auto" and expected not in (str, str | None):
        value = _number(value)
    wanted = get_args(expected) if get_args(expected) and not _is_pair(expected) else (expected,)
    if value is None and type(None) in wanted:
        return None
    for part in wanted:
        if _is_pair(part) and isinstance(value, Sequence) and not isinstance(value, str):
            inner = get_args(part)[0]
            length = None if Ellipsis in get_args(part) else len(get_args(part))
            if length in (None, len(value)) and all(isinstance(entry, int | inner) for entry in value):
                return tuple(inner(entry) for entry in value)
        elif part is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        elif part in (int, bool, str) and type(value) is part:
            return value
    raise TrainingError(f"{name}: expected {_described(wanted)}, got {value!r}")


def _number(text: str) -> Any:
    """A text as a number where it is one: YAML reads 1e-3 as text for want of a dot."""
    try:
        return float(text)
    except ValueError:
        return text


def _is_pair(kind: Any) -> bool:
    return getattr(kind, "__origin__", None) is tuple


def _described(kinds: Sequence[Any]) -> str:
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}
    return " or ".join(words.get(kind, "a list of numbers") for kind in kinds)
