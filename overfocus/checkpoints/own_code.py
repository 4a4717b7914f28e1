"""`--model package.module:factory`: a network of the user's own code, filled from a checkpoint."""

import importlib
import re
import sys
from pathlib import Path

import torch
from torch import Tensor

from overfocus.checkpoints.loaded import LoadedModel, wrap
from overfocus.checkpoints.messages import first_line, some
from overfocus.checkpoints.networks import Network, choose_network, flatten
from overfocus.checkpoints.read import CheckpointFile
from overfocus.checkpoints.weights import account, fill
from overfocus.errors import CheckpointError, OverfocusError

_SPELLING = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def is_factory(model: str | None) -> bool:
    """Whether a `--model` names a function: package.module:factory."""
    return model is not None and _SPELLING.fullmatch(model) is not None


def make(spelling: str) -> LoadedModel:
    """What the function makes: a module, or one that `overfocus.wrap` was given. The current folder can be imported from.

    Raises:
        CheckpointError: it cannot be imported, fails, or gives something else.
    """
    module_name, _, attribute = spelling.partition(":")
    here = str(Path.cwd())
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        found: object = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
        made = found() if callable(found) else found
        return made if isinstance(made, LoadedModel) else wrap(made, name=spelling)  # type: ignore[arg-type]
    except OverfocusError:
        raise
    except Exception as error:  # the user's own code
        raise CheckpointError(
            f"--model {spelling}: expected a function without arguments that returns a torch.nn.Module or overfocus.wrap(…), "
            f"got {type(error).__name__}: {first_line(error)}"
        ) from error
    finally:
        if added:
            sys.path.remove(here)


def load_own(file: CheckpointFile, spelling: str, *, weights: str | None, use_ema: bool, lenient: bool) -> LoadedModel:
    """A module of the user's own code with the weights of a checkpoint, whatever prefix and entry they stand under.

    Raises:
        CheckpointError: the weights are not those of the module to the last tensor.
    """
    made = make(spelling)
    own = made.model.state_dict()
    networks = _fronts(flatten(file.content), own)
    if not networks:
        raise CheckpointError(f"{file.path}: has none of the tensors of {spelling} ({some(list(own))}); is it another network?")
    network, notes = choose_network(networks, weights, use_ema, file.path)
    accounts = account(made.model, network.tensors, network.tensors, ())
    if not accounts.exact and not lenient:
        raise CheckpointError(
            f"{file.path}: its tensors are not those of {spelling}: {accounts.faults}; change the function, or --lenient"
        )
    fill(made.model, network.tensors, file.path)
    said = [f"LENIENT: loaded although it is not {spelling} to the last tensor: {accounts.faults}"] if not accounts.exact else []
    left = [f"left out, no part of the encoder: {some(accounts.heads)}"] if accounts.heads else []
    made.source, made.sha256, made.found_by, made.weights_entry = str(file.path), file.sha256, "own code", network.entry
    made.missing_keys, made.unexpected_keys = accounts.missing, [*accounts.unexpected, *accounts.heads, *accounts.harmless]
    made.notes, made.lenient = (*said, *notes, *left, *made.notes), not accounts.exact
    return made


def _fronts(tensors: dict[str, Tensor], own: dict[str, Tensor | object]) -> list[Network]:
    """The networks in a file that have a module's names behind one prefix, those with the most of them."""
    names = [name for name, value in own.items() if isinstance(value, torch.Tensor)]
    counts: dict[str, int] = {}
    for name in names[:: max(1, len(names) // 50)]:
        for full in tensors:
            if full == name or full.endswith(f".{name}"):
                front = full[: len(full) - len(name)]
                counts[front] = counts.get(front, 0) + 1
    most = max(counts.values(), default=0)
    found = []
    for front, count in counts.items():
        if count == most:
            inside = {name.removeprefix(front): tensor for name, tensor in tensors.items() if name.startswith(front)}
            found.append(Network(inside, front.rstrip(".")))
    return found
