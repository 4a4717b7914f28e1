"""Read a checkpoint file without running anything that it contains.

PyTorch files go through `torch.load(weights_only=True)`, which knows tensors and plain containers and nothing else. What
trainers put beside the weights is added as data: every global that a pickle names is looked up here and nowhere else, and
nothing is imported on its behalf. A class of a trainer's own becomes an `Inert` object that keeps what it was given and does
nothing; what could be a function, or belongs to a module that can do harm, is refused. PyTorch older than 2.6 is no safe
reader (CVE-2025-32434), which is why it is no dependency of this project.
"""

import argparse
import collections
import datetime
import hashlib
import pathlib
import pickle
import re
import struct
import threading
import warnings
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from overfocus.checkpoints.formats import foreign_format
from overfocus.checkpoints.names import from_jax
from overfocus.checkpoints.networks import flatten
from overfocus.errors import CheckpointError, first_line
from overfocus.text import some, storable

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
    """Classes that torch's own unpickler may create, and under which names."""
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


_READING = threading.Lock()  # torch's list of allowed globals is one for the process
_MAPPED_FROM = 2**31
_MOST_CLASSES = 40
_QUANTISED = re.compile(
    r"(^|\.)(SCB|absmax|quant_map|quant_state\..*|weight_format|weight_scale(_inv)?|qweight|qzeros|g_idx|scale_inv"
    r"|_packed_params)$"
)
_LONGEST_NAME = 1000  # characters of a tensor's name
_LARGEST_CLAIM = 8  # shared and transposed storages make tensors somewhat larger than their file; a bomb is far above


@dataclass(frozen=True)
class CheckpointFile:
    """What a file holds: nested containers with tensors, and text metadata (safetensors only)."""

    path: Path
    content: dict[str, Any] = field(repr=False)
    metadata: dict[str, str]
    sha256: str


def read_checkpoint(path: Path) -> CheckpointFile:
    """Read one `.pth`, `.pt`, `.pth.tar`, `.bin` or `.safetensors` file; its content decides which.

    Raises:
        CheckpointError: the file is missing, truncated, no checkpoint, or asks for more than tensors and plain data.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: expected a checkpoint file or folder, found nothing there; check the path")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path}: expected a checkpoint, got an empty file; copy or download it again")
    with path.open("rb") as stream:
        start = stream.read(512)
    if (path.suffix == ".safetensors" and not start.startswith(b"version https://git-lfs")) or start[8:9] == b"{":
        content, metadata = _read_safetensors(path)
    else:
        foreign = foreign_format(start, path.suffix)
        if foreign:
            raise CheckpointError(f"{path}: expected a PyTorch or safetensors checkpoint, got {foreign}")
        content, metadata = _read_npz(path) if path.suffix == ".npz" else (_read_torch(path), {})
    _refuse_bomb(content, path)
    return CheckpointFile(path, content, metadata, sha256(path))


def sha256(path: Path) -> str:
    """SHA-256 of a file as hexadecimal digits; the file is streamed."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as reader:
            return {name: reader.get_tensor(name) for name in reader.keys()}, reader.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: not a complete safetensors file ({first_line(error)}); copy or download it again"
        ) from None


def _read_npz(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Arrays of numpy; nothing pickled in them is read. A Vision Transformer of Google's JAX code gets timm's names."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > _LARGEST_CLAIM * path.stat().st_size:
            raise CheckpointError(
                f"{path}: refused, a compressed archive that unpacks to {unpacked:,} bytes; "
                "write it without compression (numpy.savez)"
            )
        with np.load(path, allow_pickle=False) as arrays:
            read = {name: arrays[name] for name in arrays.files}
        strange = [name for name, array in read.items() if array.dtype.kind not in "fiubSU"]
        if strange:
            raise CheckpointError(f"{path}: {some(strange)} hold {read[strange[0]].dtype}; save the arrays as float32 or float16")
        tensors = {name: torch.from_numpy(array) for name, array in read.items() if array.dtype.kind in "fiub"}
        return from_jax(tensors) or (dict(tensors), {})
    except (KeyError, IndexError, RuntimeError) as error:
        said = first_line(error)
        raise CheckpointError(f"{path}: names of JAX's Vision Transformer, but not all of its arrays ({said})") from None
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, struct.error, NotImplementedError) as error:
        raise CheckpointError(
            f"{path}: not a complete .npz file of arrays ({first_line(error)}); copy or download it again"
        ) from None


def _read_torch(path: Path) -> dict[str, Any]:
    zipped = _begins_as_archive(path)
    if zipped:
        check_archive(path)
    made: list[Any] = []
    filled = False
    for _ in range(_MOST_CLASSES):
        try:
            with _READING, torch.serialization.safe_globals([*known_globals(), *made]), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped and _is_large(path))
            break
        except Exception as error:  # a damaged or hostile file may raise anything; every way ends in one line
            if "Can only SETITEM" in str(error) and made and not filled:
                made, filled = filled_stubs(made), True
                continue
            wanted = _wanted(path, error, zipped, made)
            inert, refused = stubs(wanted)
            if refused or not inert:
                raise _refusal(path, error, refused, zipped) from None
            made += filled_stubs(inert) if filled else inert
    else:
        raise CheckpointError(f"{path}: refused, its pickle names more than {_MOST_CLASSES} classes; save the state dict alone")
    if isinstance(content, Inert):
        name = str(getattr(made[0], "__getitem__", lambda _: "")(1)) if made else "an object"
        raise CheckpointError(
            f"{path}: expected a state dict, got a pickled object ({name[:80]}); where its code is installed, save "
            "model.state_dict() instead, or pass the code with --model package.module:factory"
        )
    if isinstance(content, torch.Tensor) or not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a state dict or a dict that holds one, got {type(content).__name__}")
    return content


def _wanted(path: Path, error: Exception, zipped: bool, made: list[Any]) -> list[str]:
    """The globals that a pickle names and that are not known."""
    text = str(error)
    named = [text.split("GLOBAL ", 1)[1].split()[0]] if "GLOBAL " in text else []
    if not zipped:
        return named
    try:
        with _READING, torch.serialization.safe_globals([*known_globals(), *made]):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path))) or named
    except Exception:  # the same damaged file once more
        return named


def _refusal(path: Path, error: Exception, refused: list[str], zipped: bool) -> CheckpointError:
    if refused:
        whole = any(name.startswith(("torch.nn.", "timm.", "torchvision.")) for name in refused)
        advice = (
            "it is a whole model: where you trust its source, torch.save(torch.load(file, weights_only=False).state_dict(), "
            "'weights.pth')"
            if whole
            else "if you trust its source, torch.load(file, weights_only=False) it and torch.save the state dict inside"
        )
        return CheckpointError(
            f"{path}: refused, its pickle wants {some([n[:80] for n in refused])}, which could run code; {advice}"
        )
    with path.open("rb") as stream:
        plain = re.match(rb"\x80[\x03-\x05]", stream.read(2)) is not None
    if isinstance(error, (pickle.UnpicklingError, EOFError)) and not zipped and plain:
        return CheckpointError(f"{path}: a pickle that torch.save did not write, which can run code; save with torch.save")
    if isinstance(error, (pickle.UnpicklingError, EOFError)) and not zipped:
        return CheckpointError(f"{path}: expected a PyTorch or safetensors checkpoint; this is something else, or truncated")
    if isinstance(error, MemoryError):
        return CheckpointError(f"{path}: there is not enough memory to read it ({path.stat().st_size:,} bytes)")
    expected = isinstance(error, RuntimeError | OSError | pickle.UnpicklingError)  # others are what damaged bytes lead to
    reason = f" ({first_line(error)})" if expected else ""
    return CheckpointError(f"{path}: the checkpoint is damaged, or not one of PyTorch{reason}; copy or download it again")


def _is_large(path: Path) -> bool:
    """Whether a file is mapped into memory rather than read, so that its optimiser state never takes room."""
    return path.stat().st_size > _MAPPED_FROM


def _begins_as_archive(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(4) == b"PK\x03\x04"


def check_archive(path: Path) -> None:
    """Refuse TorchScript archives and archives that unpack to more than they are (torch stores without compression)."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise CheckpointError(f"{path}: truncated or damaged archive ({first_line(error)}); copy or download it again") from None
    names = {entry.filename.partition("/")[2] for entry in entries}
    unpacked = sum(entry.file_size for entry in entries)
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        raise CheckpointError(f"{path}: a TorchScript archive, which holds code; save model.state_dict() instead")
    if any(re.match(r"archive_format$|models/|serialized_exported_program", name) for name in names):
        raise CheckpointError(f"{path}: a program of torch.export (pt2), which holds code; save model.state_dict() instead")
    if unpacked > path.stat().st_size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError(
            f"{path}: refused, a compressed archive that unpacks to {unpacked:,} bytes; torch.save never compresses: "
            "load it where it comes from and save it again"
        )
    if "data.pkl" not in names:
        raise CheckpointError(
            f"{path}: expected a PyTorch checkpoint, got another zip archive (no data.pkl inside); unpack it if it holds weights"
        )


def _refuse_bomb(content: dict[str, Any], path: Path) -> None:
    """Refuse tensors that claim more values than the file holds (expanded over a few bytes), and quantised weights."""
    limit = _LARGEST_CLAIM * path.stat().st_size
    for name, tensor in flatten(content).items():
        if len(name) > _LONGEST_NAME:
            raise CheckpointError(
                f"{path}: refused, a tensor's name has {len(name):,} characters ({name[:40]}…); at most {_LONGEST_NAME:,} fit"
            )
        if name != storable(name):
            raise CheckpointError(f"{path}: refused, {name[:40]} is not a tensor name; expected text")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            kind = "quantised (qint8)" if tensor.is_quantized else f"{tensor.layout} on {tensor.device}"
            raise CheckpointError(f"{path}: {name[:120]} is {kind}; expected plain dense tensors with data")
        if _QUANTISED.search(name):
            raise CheckpointError(
                f"{path}: {name[:120]} belongs to quantised weights (bitsandbytes, GPTQ, fp8 or the like); "
                "save the model dequantised"
            )
        limit -= tensor.numel() * tensor.element_size()
    if limit < 0:
        raise CheckpointError(
            f"{path}: refused, its tensors claim far more data than the file holds; save them again as contiguous tensors"
        )
