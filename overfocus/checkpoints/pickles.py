"""What a pickle may contain beside tensors: plain data of known classes, and configurations as inert stubs of their fields.

Every global that a pickle names is looked up here and nowhere else; nothing is imported on its behalf. What is a class of a
trainer's own becomes an `Inert` object that keeps what it was given and does nothing. What could be a function, or belongs
to a module that can do harm, is refused.
"""

import argparse
import collections
import datetime
import pathlib
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

_MODELS = frozenset("torch timm torchvision transformers monai segmentation_models_pytorch open_clip vit_pytorch".split())
_DANGEROUS = frozenset(
    "builtins __builtin__ os posix nt sys subprocess shutil socket importlib runpy ctypes pickle _pickle code codecs marshal "
    "multiprocessing threading signal pty platform webbrowser http urllib ftplib smtplib operator functools itertools types "
    "inspect pydoc timeit cProfile pdb bdb trace tempfile io gc ast numpy pip setuptools site cffi commands asyncio".split()
)
_CLASS = re.compile(r"[A-Z]\w*")
_DEEPEST = 32
_MOST_ITEMS = 100_000


class Inert(dict[Any, Any]):
    """An object of a class that is not loaded: what it was made from, with no behaviour."""

    given: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any, **_: Any) -> "Inert":
        made = super().__new__(cls)
        made.given = args
        made.state = None
        return made

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __hash__(self) -> int:  # type: ignore[override]  # may stand in a set or as a key
        return id(self)

    def append(self, item: Any) -> None:
        """A list-like class is filled so."""
        self[len(self)] = item

    def extend(self, items: Iterable[Any]) -> None:
        """As `append`."""
        for item in items:
            self.append(item)


def plain_data(value: object) -> Any:
    """Nested plain data of a configuration, however its library keeps it.

    What refers to itself, lies too deep or is more than a configuration would hold is left out.
    """
    return _plain(value, _DEEPEST, frozenset(), [_MOST_ITEMS])


def _plain(value: object, deepest: int, above: frozenset[int], left: list[int]) -> Any:
    left[0] -= 1
    if deepest == 0 or left[0] < 0 or id(value) in above:
        return None

    def inside(item: object) -> Any:
        return _plain(item, deepest - 1, above | {id(value)}, left)

    if isinstance(value, Inert):
        return inside(_fields(value))
    if isinstance(value, argparse.Namespace):
        return inside(vars(value))
    if isinstance(value, dict):
        return {key: inside(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [inside(item) for item in value]
    if isinstance(value, pathlib.PurePath | datetime.date):
        return str(value)
    return value.item() if isinstance(value, np.generic) else value


def _fields(value: Inert) -> object:
    """What an object that is not loaded holds, by the ways in which libraries of configurations keep it."""
    state = getattr(value, "state", None)
    if isinstance(state, tuple):  # (fields, slots) or mmengine's (dictionary, file name, text)
        state = next((part for part in state if isinstance(part, dict) and part), None)
    if isinstance(state, dict) and not isinstance(state, Inert):
        for content in ("_content", "_val", "_cfg_dict", "_value_"):  # OmegaConf's containers and nodes, mmengine, enums
            if content in state:
                return state[content]
    elif state is not None:
        return state
    if value or state:
        return {**(state or {}), **value}
    given: tuple[Any, ...] = getattr(value, "given", ())
    return given[0] if len(given) == 1 else None


def known_globals() -> list[Any]:
    """Classes that torch's own unpickler is told to take, and under which names."""
    scalar = np.float64(0).__reduce__()[0]
    rebuild = np.zeros(1).__reduce__()[0]
    dtypes = {type(np.dtype(code)) for code in "?bBhHiIlLqQefdFDUSOM"}
    known: list[Any] = [argparse.Namespace, np.dtype, np.ndarray, *dtypes, (_without_default, "collections.defaultdict")]
    known += [datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.timezone]
    known += [(scalar, name) for name in ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")]
    known += [(rebuild, name) for name in ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")]
    for module in ("pathlib", "pathlib._local"):
        known += [(pathlib.PurePosixPath, f"{module}.{name}") for name in ("PosixPath", "PurePosixPath", "Path", "PurePath")]
        known += [(pathlib.PureWindowsPath, f"{module}.{name}") for name in ("WindowsPath", "PureWindowsPath")]
    for module in ("builtins", "__builtin__"):
        known += [(kind, f"{module}.{kind.__name__}") for kind in (list, dict, int, float, str, bool, tuple, set, frozenset)]
    known += [(_stub(name), name) for name in _GENERATORS]
    return known


_GENERATORS = (
    "numpy.random._pickle.__randomstate_ctor", "numpy.random._pickle.__bit_generator_ctor",
    "numpy.random._pickle.__generator_ctor",
    "numpy.random._mt19937.MT19937", "numpy.random._pcg64.PCG64", "numpy.random._pcg64.PCG64DXSM", "numpy.random._philox.Philox",
    "numpy.random._sfc64.SFC64", "numpy.random.bit_generator.SeedSequence", "numpy.random.mtrand.RandomState", "typing.Any",
    "numpy.random.bit_generator.__pyx_unpickle_SeedSequence",
)  # fmt: skip
"""States of random number generators, which are kept as data."""


def _without_default(*_: Any) -> collections.OrderedDict[Any, Any]:
    """In place of a `defaultdict`, which torch's unpickler does not fill."""
    return collections.OrderedDict()


def filled_stubs(made: list[Any]) -> list[Any]:
    """The same inert classes as plain dictionaries, for classes that are dictionaries themselves (EasyDict, yacs, addict).

    torch's unpickler sets items of its own dictionaries only.
    """
    return [(type(kind.__name__, (), {"__new__": lambda _, *__: collections.OrderedDict()}), name) for kind, name in made]


def stubs(names: Iterable[str]) -> tuple[list[Any], list[str]]:
    """Inert classes for the globals that are classes of a trainer's own, and the names of the others, which are refused."""
    made: list[Any] = []
    refused: list[str] = []
    for name in names:
        module, _, last = name.rpartition(".")
        top = module.partition(".")[0]
        if top in _DANGEROUS or (top in _MODELS and not _configures(name)) or not _CLASS.fullmatch(last):
            refused.append(name)
        else:
            made.append((_stub(name), name))
    return made, refused


def _configures(name: str) -> bool:
    """Whether a class of a library of models is one of settings, as trainers save them."""
    return (
        re.search(r"(Config|Arguments|Args|Strategy|Type|Settings|Format)$|trainer_utils|training_args|\.Size$", name) is not None
    )


def _stub(name: str) -> type[Inert]:
    return type(re.sub(r"\W", "_", name), (Inert,), {"__module__": __name__})
