"""Settings that the Python interface and the command line share: one dataclass for each entry point, and nothing written twice.

A field carries its default, its help, its bounds and how the command line spells it (`setting`); the values are checked when the
dataclass is made, before any work; `takes` gives a function the signature and the documentation of the fields. Nothing here
imports torch, so that help comes at once.
"""

import dataclasses
import difflib
import functools
import inspect
import math
import operator
import os
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn, ParamSpec, TypeVar, Union, cast, get_args, get_origin

from overfocus.errors import OverfocusError, RunError
from overfocus.text import one_line, printable

P = ParamSpec("P")
S = TypeVar("S", bound="Settings")
R = TypeVar("R")
T = TypeVar("T")

LARGEST_COUNT = 10**12
"""Bound of counts that cost nothing by themselves, such as the number of images to take at most."""
MAX_PIXELS = 100_000_000
"""Width × height of an image; larger ones are refused before they are decoded unless asked for otherwise."""
LARGEST_SEED = 2**63 - 1
"""Seeds are stored as 64-bit integers."""
MOST_RESAMPLES = 10**7
"""Of the bootstrap: each takes a number of its own in memory."""
_SHOWN_CHOICES = 40
_LONGEST_PART, _LONGEST_PATH = 255, 4096
"""Bytes of a name in a folder, and of a path, that file systems take."""
_SHORT_RANGE = 1000
"""Bounds up to this are named both where one is broken."""


@dataclass(frozen=True)
class Setting:
    """What is known of one field beside its name, type and default; `setting` says what each entry means."""

    help: str
    none: str | None = None
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    one_of: Collection[str] | Callable[[], Collection[str]] | None = None
    check: Callable[[Any], str | None] | None = None
    may_be_empty: bool = False
    affects_result: bool = True
    command_line: bool = True
    spelling: tuple[str, ...] = ()
    metavar: str | None = None
    argument: bool = False
    commas: bool | None = None
    parse: Callable[[str], Any] | None = None

    def choices(self) -> list[str]:
        """The names allowed; empty where any text is."""
        known = self.one_of() if callable(self.one_of) else self.one_of
        return list(known or ())


def setting(default: Any = MISSING, help: str = "", **about: Any) -> Any:
    """A field of a settings dataclass.

    Args:
        default: the value where none is given; without it the setting must be given.
        help: what the setting means, for both interfaces: a phrase or sentences, beginning with a capital, ending with a period.
        about: any of
            none: what None stands for, such as "all layers";
            least, most, above, below: bounds of a number, or of each number of a list;
            one_of: the names allowed, or a function that lists them when a value is checked;
            check: takes the value (of a list, each entry) and returns what is wrong with it, in words that follow the setting's
                name, or None;
            may_be_empty: whether "" is a value; elsewhere it is an error, as it is what an unset shell variable gives;
            affects_result: whether another value makes another run; False for what only says where, how fast or how shown;
            command_line: whether the command line has it; False for what takes live objects;
            spelling: names of the option, where they are not the field's; one with --no- turns a switch off;
            metavar: what stands for the value in the help;
            argument: whether it is given by its place and not by an option;
            commas: whether entries of a list may be separated by commas; by default numbers may;
            parse: from the command line's text to the value, raising a ValueError that says what was expected.
    """
    return dataclasses.field(default=default, metadata={"setting": Setting(help, **about)})


def described(owner: type["Settings"], name: str) -> Setting:
    """What is known of a field, for another settings dataclass that has the same one."""
    return cast(Setting, next(field for field in dataclasses.fields(owner) if field.name == name).metadata["setting"])


@dataclass(frozen=True)
class Settings:
    """Base of settings dataclasses: values are brought into the types of their fields and checked when one is made.

    Raises:
        OverfocusError: of class `error`: a value is of another type, out of bounds, unknown or an empty text. Its `setting` is
            the name of the field.
    """

    error: ClassVar[type[OverfocusError]] = RunError

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = self._checked(field, getattr(self, field.name))
            object.__setattr__(self, field.name, value)

    def arguments(self) -> dict[str, Any]:
        """The values by name, as the function that takes these settings is called."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def refuse(self, name: str, problem: str) -> NoReturn:
        """Raise the error of these settings about one of them; `problem` follows its name."""
        error = self.error(f"{name} {problem}")
        error.setting = name
        raise error

    def _checked(self, field: "dataclasses.Field[Any]", value: Any) -> Any:
        known: Setting | None = field.metadata.get("setting")
        if known is None or (value is None and field.default is None):
            return value
        kind, whole = _resolved(type(self), field.name)
        for text in _texts(value):
            if not text and not known.may_be_empty:
                self.refuse(field.name, "is empty (is a shell variable unset?); leave it out or give it a value")
            if problem := _unusable(kind, text):
                self.refuse(field.name, problem)
        fits, value = _fitted(kind, value) if whole else _acceptable(kind, value)
        if not fits:
            names = [str(name) for part in members(kind) if get_origin(part) is Literal for name in get_args(part)]
            near = did_you_mean(value, names) if isinstance(value, str) else ""
            self.refuse(field.name, f"must be {describe_type(kind)}, got {shown(value)}{near}")
        for entry in _entries(value):
            if problem := _out_of_bounds(known, entry) or _unknown(known, entry) or (known.check and known.check(entry)):
                self.refuse(field.name, problem)
        return value


def takes(settings: Callable[P, S]) -> Callable[[Callable[[S], R]], Callable[P, R]]:
    """A decorator: the function, which takes the settings as one, is called with the fields as its arguments.

    Its signature is that of the settings, and its documentation gets their help as the section "Args".
    """
    signature = inspect.signature(settings)
    fields = dataclasses.fields(cast(type[Settings], settings))

    def decorate(function: Callable[[S], R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            for name in kwargs:
                if name not in signature.parameters:
                    near = difflib.get_close_matches(name, signature.parameters, n=1)
                    hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(signature.parameters)}"
                    raise TypeError(f"{function.__name__}() has no argument {name!r}; {hint}")
            return function(settings(*args, **kwargs))

        returned = inspect.signature(function).return_annotation
        call.__signature__ = signature.replace(return_annotation=returned)  # type: ignore[attr-defined]
        call.__annotations__ = {name: entry.annotation for name, entry in signature.parameters.items()} | {"return": returned}
        call.__doc__ = _documented(function.__doc__ or "", fields)
        return call

    return decorate


def typed(error: type[Exception]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator for functions that take no settings: it raises `error` before any work where an argument is of another type.

    The annotations say the types; numbers and pairs are brought into them, all else stays as it was given.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        module = inspect.getmodule(function)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                given = signature.bind(*args, **kwargs)
            except TypeError:  # too many, too few or unknown ones: Python's own words, with the function's name
                return function(*args, **kwargs)
            for name, value in given.arguments.items():
                entry = signature.parameters[name]
                if entry.annotation is entry.empty or entry.kind is entry.VAR_KEYWORD or value is entry.default:
                    continue
                kind = _evaluated(entry.annotation, module)[0]
                fits, given.arguments[name] = _acceptable(kind, value)
                if not fits:
                    raise error(f"{name} must be {describe_type(kind)}, got {shown(value)}")
                if isinstance(value, int) and not -LARGEST_SEED <= value <= LARGEST_SEED:
                    raise error(f"{name} must be a whole number of at most 64 bits, got {shown(value)}")
                if problem := _unusable(kind, given.arguments[name]):
                    raise error(f"{name} {problem}")
            return function(*given.args, **given.kwargs)

        return call

    return decorate


def _acceptable(kind: Any, value: Any) -> tuple[bool, Any]:
    """Whether a value is of a type, of which not all need be imported, and numbers and pairs in it; any text fits a choice.

    Of a list of anything, the function that takes it says what it can use.
    """
    for part in members(kind):
        inner = element(part)
        if isinstance(part, _NotImported):
            fits, made = part.__name__ in {base.__name__ for base in type(value).__mro__}, value
        elif get_origin(part) is Literal:
            fits, made = _fitted_one(str, value)
        elif hasattr(part, "array_type"):  # jaxtyping's, which would look at the shape
            fits, made = isinstance(value, part.array_type), value
        elif inner is Any:
            fits, made = True, value
        elif inner is not None:
            fits, made = _sequence(part, inner, value, _acceptable)
            if fits and isinstance(value, list):
                made = list(made)
        elif _is_mapping(part):
            fits, made = _mapping(part, value, _acceptable)
        else:
            fits, made = _fitted_one(part, value)
            if part is Path:
                made = value
        if fits:
            return True, made
    return value is None and type(None) in get_args(kind), value


def _unusable(kind: Any, text: Any) -> str | None:
    """What is wrong with a text that no file system would take where it may be a path; None where nothing is."""
    text = str.__str__(text) if isinstance(text, str) else text  # not a subclass's, which may raise anything
    inner = [part for entry in members(kind) for part in (entry, *members(element(entry)))]
    if not isinstance(text, str | Path) or (Path not in inner and "\0" not in str(text)):
        return None
    if "\0" in str(text):
        return f"must not hold a zero byte, got {printable(text)}"
    try:
        whole = os.fsencode(text)
    except UnicodeEncodeError:
        return f"must hold only characters that the name of a file can have, got {printable(text)}"
    longest = max(map(len, whole.split(b"/")))
    if longest > _LONGEST_PART or len(whole) >= _LONGEST_PATH:
        return f"must be a shorter path, of at most {_LONGEST_PART} bytes in each part, got {printable(text, 80)}"
    return None


def field_type(owner: type[Settings], name: str) -> Any:
    """The type of a field; None where it names classes that are not imported here, which may hold any object."""
    kind, whole = _resolved(owner, name)
    return kind if whole else None


def typed_type(owner: type[Settings], name: str) -> Any:
    """The type of a field as a command line sees it: classes that are not imported here are empty ones in it."""
    return _resolved(owner, name)[0]


class _NotImported(type):
    """Stands for a module or class that is imported for type checkers alone."""

    def __getattr__(cls, name: str) -> Any:
        return _NotImported(name, (), {})

    def __getitem__(cls, _item: Any) -> Any:
        return cls


def _resolved(owner: type[Settings], name: str) -> tuple[Any, bool]:
    """The type of a field, and whether all that it names is imported."""
    kind = next(field for field in dataclasses.fields(owner) if field.name == name).type
    return _evaluated(kind, inspect.getmodule(next(home for home in owner.__mro__ if name in inspect.get_annotations(home))))


def _evaluated(kind: Any, module: types.ModuleType | None) -> tuple[Any, bool]:
    """The type that an annotation means in its module, and whether all that it names is imported."""
    if not isinstance(kind, str):
        return kind, True
    known = dict(vars(module))
    whole = True
    while True:
        try:
            return eval(kind, known), whole
        except NameError as error:
            missing = str(error.name)
            known[missing] = _NotImported(missing, (), {})
            whole = False


def members(kind: Any) -> tuple[Any, ...]:
    """The types that a union allows, None left out; of another type itself."""
    parts = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    return tuple(part for part in parts if part is not type(None))


def element(kind: Any) -> Any | None:
    """Type of the entries, of a list; None for another type."""
    origin = get_origin(kind)
    if isinstance(origin, type) and issubclass(origin, Iterable) and not issubclass(origin, Mapping):
        return get_args(kind)[0]
    return None


def shown(value: object) -> str:
    """A value in an error: printable, and short however large it is."""
    try:
        return one_line(repr(value), 80)
    except Exception:  # Python prints no integers of more than 4,300 digits, and an object of the user's may raise anything
        bits = f" of {value.bit_length():,} bits" if isinstance(value, int) else ""
        return f"{'a number' if bits else one_line(type(value).__name__, 80)}{bits}"


def describe_type(kind: Any) -> str:
    """A type in words."""
    return " or ".join(dict.fromkeys(_described(part) for part in members(kind)))


def _described(kind: Any) -> str:
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", Path: "a path", type(None): "none"}
    if get_origin(kind) is Literal:
        return _listed(list(map(str, get_args(kind))))
    if get_origin(kind) is tuple and Ellipsis not in get_args(kind):
        numbers = {int, float}.issuperset(get_args(kind))
        return f"{len(get_args(kind))} numbers" if numbers else f"({', '.join(map(describe_type, get_args(kind)))})"
    if get_origin(kind) is Callable:
        return "a function"
    if (inner := element(kind)) is not None:
        return f"a list of {' or '.join(dict.fromkeys(_plural(part) for part in members(inner)))}"
    if _is_mapping(kind):
        held = members(get_args(kind)[1]) if get_args(kind) else (Any,)
        return "a table of names and values" if Any in held else f"a dict from names to {' or '.join(map(_plural, held))}"
    name = getattr(kind, "__name__", str(kind))
    return words.get(kind, _CLASSES.get(name, (name,))[0])


def _plural(kind: Any) -> str:
    """Several of a type in words."""
    words = {int: "whole numbers", float: "numbers", str: "texts", Path: "paths", Any: "values"}
    if get_origin(kind) is Callable:
        return "functions"
    if (inner := element(kind)) is not None and get_origin(kind) is not tuple:
        return f"lists of {' or '.join(dict.fromkeys(_plural(part) for part in members(inner)))}"
    name = getattr(kind, "__name__", str(kind))
    return words.get(kind) or _CLASSES.get(name, (name, name))[1]


_CLASSES = {
    "Module": ("a torch.nn.Module", "modules"),
    "LoadedModel": ("a loaded model", "loaded models"),
    "device": ("a torch.device", "devices"),
    "Tensor": ("a tensor", "tensors"),
    "Image": ("a PIL image", "PIL images"),
    "Run": ("an overfocus.Run", "runs (overfocus.Run)"),
    "AttentionMap": ("an AttentionMap of overfocus.capture", "attention maps of overfocus.capture"),
    "Metric": ("a metrics.Metric", "rows of the catalogue (metrics.Metric)"),
    "Probe": ("a probe", "probes"),
}
"""One and several of a class in words."""


def _fitted(kind: Any, value: Any) -> tuple[bool, Any]:
    """Whether the value is of the type, and the value in that type."""
    if value is None:
        return type(None) in (get_args(kind) or (kind,)), value
    for part in sorted(members(kind), key=lambda part: type(value) is not part):
        fits, made = _fitted_one(part, value)
        if fits:
            return True, made
    return False, value


def _fitted_one(kind: Any, value: Any) -> tuple[bool, Any]:
    if kind is Any or kind is object:
        return True, value
    if kind is str:
        return isinstance(value, str), str.__str__(value) if isinstance(value, str) else value
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind), value
    if kind in (bool, int, float):
        return _number(kind, value)
    if get_origin(kind) is Callable:
        return callable(value), value
    if kind is Path:
        return _converted(Path, value) if isinstance(value, str | os.PathLike) else (False, value)
    if (inner := element(kind)) is not None:
        return _sequence(kind, inner, value, _fitted)
    if _is_mapping(kind):
        return _mapping(kind, value, _fitted)
    return isinstance(value, kind) if isinstance(kind, type) else True, value


def _number(kind: type, value: Any) -> tuple[bool, Any]:
    truth = isinstance(value, bool) or type(value).__name__ in ("bool", "bool_")  # numpy's
    if kind is bool:
        return truth, bool(value) if truth else value
    if truth or isinstance(value, str | bytes | bytearray | complex):
        return False, value
    return _converted(operator.index if kind is int else float, value)


def _sequence(kind: Any, inner: Any, value: Any, fitted: Callable[[Any, Any], tuple[bool, Any]]) -> tuple[bool, Any]:
    """As a tuple; a set has no order, which matters in a sequence."""
    if isinstance(value, str | bytes | bytearray | memoryview | Mapping) or not isinstance(value, Iterable):
        return False, value
    if isinstance(value, set | frozenset) and issubclass(get_origin(kind), Sequence):
        return False, value
    listed, entries = _converted(list, value)
    fixed = get_origin(kind) is tuple and Ellipsis not in get_args(kind)
    if not listed or (fixed and len(entries) != len(get_args(kind))):
        return False, value
    kinds = get_args(kind) if fixed else (inner,) * len(entries)
    made = [fitted(part, entry) for part, entry in zip(kinds, entries, strict=True)]
    fits = all(fit for fit, _ in made)
    return fits, tuple(entry for _, entry in made) if fits else value


def _is_mapping(kind: Any) -> bool:
    return isinstance(get_origin(kind), type) and issubclass(get_origin(kind), Mapping)


def _mapping(kind: Any, value: Any, fitted: Callable[[Any, Any], tuple[bool, Any]]) -> tuple[bool, Any]:
    known, made = _converted(dict, value) if isinstance(value, Mapping) else (False, value)
    if not known:
        return False, value
    name, inner = get_args(kind) or (Any, Any)
    if Any in members(inner):
        return True, made
    pairs = [(fitted(name, key), fitted(inner, entry)) for key, entry in made.items()]
    fits = all(key[0] and entry[0] for key, entry in pairs)
    return fits, {key[1]: entry[1] for key, entry in pairs} if fits else value


def _converted(convert: Callable[[Any], Any], value: Any) -> tuple[bool, Any]:
    """Whether a value can be converted, and what it becomes; an object of the user's may raise anything."""
    try:
        return True, convert(value)
    except Exception:
        return False, value


def _entries(value: Any) -> Sequence[Any]:
    return value if isinstance(value, tuple | list) else (value,)


def _texts(value: Any) -> list[str]:
    entries = value if isinstance(value, tuple | list) else [value]
    return [str.__str__(entry) for entry in entries if isinstance(entry, str)]


def _out_of_bounds(known: Setting, value: Any) -> str | None:
    """What is wrong with a number, in words that follow the setting's name."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    rules = [
        (f"{words} {bound:,}", holds(value, bound), bound)
        for bound, holds, words in (
            (known.least, operator.ge, "at least"),
            (known.above, operator.gt, "above"),
            (known.most, operator.le, "at most"),
            (known.below, operator.lt, "below"),
        )
        if bound is not None
    ]
    if all(holds for _, holds, _ in rules):
        finite = isinstance(value, int) or math.isfinite(value)
        return None if finite else f"must be finite, got {shown(value)}"
    short = all(abs(bound) <= _SHORT_RANGE for *_, bound in rules)
    broken = [words for words, holds, _ in rules if short or not holds]
    return f"must be {' and '.join(broken)}, got {shown(value)}"


def _unknown(known: Setting, value: Any) -> str | None:
    """What is wrong with a name that is not allowed, in words that follow the setting's name."""
    if known.one_of is None or not isinstance(value, str):
        return None
    choices = known.choices()
    if value in choices:
        return None
    return f"must be {_listed(choices)}, got {shown(value)}{did_you_mean(value, choices)}"


def plain_number(text: str, kind: type[T]) -> T:
    """The number in a text: digits as everybody reads them, not Python's 1_0 for ten or digits of other scripts.

    Raises:
        ValueError: the text is no number of this kind.

    >>> plain_number("1e-3", float)
    0.001
    """
    if not text.isascii() or "_" in text:
        raise ValueError(f"expected a number in plain digits, got {shown(text)}")
    return cast(Callable[[str], T], kind)(text)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The nearest of the names as the end of an error, "; did you mean X?"; nothing where none is near."""
    by_folded = {entry.lower().replace("-", "_"): entry for entry in known}
    near = difflib.get_close_matches(name.lower().replace("-", "_"), by_folded, n=1)
    return f"; did you mean {by_folded[near[0]]}?" if near else ""


def _listed(names: list[str]) -> str:
    if len(names) > _SHOWN_CHOICES:
        return f"one of {len(names)} names ({', '.join(names[:3])}, …)"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _documented(text: str, fields: "tuple[dataclasses.Field[Any], ...]") -> str:
    """A docstring with the section "Args" before its other sections."""
    lines = ["Args:"]
    for field in fields:
        if known := field.metadata.get("setting"):
            none = f" None: {known.none}." if known.none else ""
            lines.append(f"    {field.name}: {known.help}{none}")
    arguments = "\n".join(lines)
    text = inspect.cleandoc(text)
    head, raises, tail = text.partition("\nRaises:")
    return f"{head.rstrip()}\n\n{arguments}\n" + (f"\nRaises:{tail}" if raises else "")
