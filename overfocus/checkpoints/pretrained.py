"""A model by its timm name: trained weights from timm's hub, or random ones where asked for."""

import contextlib
import difflib
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import constants as hub
from huggingface_hub import snapshot_download
from torch import nn

from overfocus.checkpoints.build import create, is_architecture, skeleton
from overfocus.checkpoints.data_config import class_names_for, preprocess_for
from overfocus.checkpoints.fit import takes_image_size
from overfocus.checkpoints.hints import PREPROCESSING, Hints
from overfocus.checkpoints.loaded import LoadedModel
from overfocus.checkpoints.messages import first_line
from overfocus.errors import CheckpointError

_HUB_NAME = re.compile(r"(hf[-_]hub:)?[\w.-]{1,96}/[\w.-]{1,96}")


def require_known(name: str) -> None:
    """Raise a `CheckpointError` that lists the nearest names unless timm or overfocus knows the architecture."""
    if not is_architecture(name.partition(".")[0]):
        near = difflib.get_close_matches(name, timm.list_models(), n=4, cutoff=0.5)
        nearest = f"the nearest are {', '.join(near)}" if near else "`overfocus list models` lists them"
        raise CheckpointError(f"{name!r} is no file, and no architecture of timm {timm.__version__} or overfocus; {nearest}")


def is_hub_name(source: str) -> bool:
    """Whether a source is an id on the Hugging Face hub: owner/name, or hf-hub: before it."""
    return _HUB_NAME.fullmatch(source) is not None


def fetch_folder(source: str) -> Path:
    """The folder of a model on the Hugging Face hub, fetched or from its cache: configuration and weights, never code.

    Raises:
        CheckpointError: it cannot be had.
    """
    name = source.partition(":")[2] or source
    wanted = ["*.json", "*.safetensors", "pytorch_model*.bin", "model*.bin"]
    try:
        with _hub_as_reachable() as reachable:
            return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # hub clients raise whatever their network layer does
        reason = first_line(error) if reachable else "the hub cannot be reached and it is not in its local cache"
        raise CheckpointError(f"{source}: no file or folder, and no model of the hub that can be had ({reason})") from error


def load_named(name: str, image_size: tuple[int, int] | None, num_classes: int | None, pretrained: bool) -> LoadedModel:
    """Create a timm model; its weights are downloaded unless `pretrained` is False.

    Raises:
        CheckpointError: the name is unknown, has no trained weights, or they cannot be fetched.
    """
    require_known(name)
    arguments: dict[str, Any] = {"num_classes": num_classes} if num_classes is not None else {}
    if image_size is not None and takes_image_size(skeleton(name, {})):
        arguments["img_size"] = image_size
    model = _create(name, pretrained, arguments)
    config: dict[str, Any] = dict(model.pretrained_cfg)  # type: ignore[arg-type]  # timm attaches a dict
    known = {key: value for key, value in config.items() if key in PREPROCESSING and value is not None}
    preprocess, notes = preprocess_for(model, Hints(preprocessing=known), image_size)
    if not pretrained:
        notes = [f"WEIGHTS ARE RANDOM: {name} was made without its trained weights, so its attention means nothing", *notes]
    return LoadedModel(
        model=model,
        preprocess=preprocess,
        name=name.partition(".")[0],
        source=name,
        sha256=None,
        found_by="name",
        weights_entry="timm's trained weights" if pretrained else "random",
        notes=tuple(notes),
        model_args=arguments,
        class_names=class_names_for(Hints(), model),
    )


def _create(name: str, pretrained: bool, arguments: dict[str, Any]) -> nn.Module:
    try:
        with _hub_as_reachable() as reachable:
            model = create(name, arguments, pretrained=pretrained)
    except Exception as error:  # hub clients raise whatever their network layer does
        if not pretrained:
            raise CheckpointError(f"{name}: the model cannot be built ({first_line(error)})") from error
        reason = first_line(error) if reachable else "the hub cannot be reached and they are not in its local cache"
        raise CheckpointError(
            f"{name}: its trained weights cannot be had ({reason}); pass a checkpoint file (pretrained=False: random weights)"
        ) from error
    return model


@contextlib.contextmanager
def _hub_as_reachable() -> Iterator[bool]:
    """Whether the hub's address resolves; where it does not, only its cache is asked, without a minute of attempts."""
    reachable, before = _resolves(hub.ENDPOINT), hub.HF_HUB_OFFLINE
    hub.HF_HUB_OFFLINE = before or not reachable
    try:
        yield reachable
    finally:
        hub.HF_HUB_OFFLINE = before


def _resolves(address: str) -> bool:
    if urllib.request.getproxies():
        return True  # the proxy resolves it
    try:
        socket.getaddrinfo(urllib.parse.urlsplit(address).hostname, 443)
    except OSError:
        return False
    return True
