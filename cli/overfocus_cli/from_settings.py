"""Commands made of settings dataclasses: arguments, options, defaults and help come from the fields and are written nowhere else.

And what was probably meant where an argument is something else than a command takes.
"""

import functools
import inspect
import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import Field, fields
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from overfocus.errors import CheckpointError, OverfocusError, RunError
from overfocus.settings import Setting, Settings, element, members, plain_number, shown, typed_type
from overfocus.text import printable

Command = Callable[..., None]
_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm")
_WEIGHTS = (".pth", ".pt", ".tar", ".safetensors", ".bin", ".ckpt")
_LOOKED_AT = 200
"""Entries of a folder."""


def from_settings(settings: type[Settings], *, without: Collection[str] = ()) -> Callable[[Command], Command]:
    """A decorator: the function, which takes the settings and its own options by keyword, becomes a command.

    The command has an argument or option for each field that is for the command line, but those named in `without`, and then
    the function's own.
    """
    given = [
        field
        for field in fields(settings)
        if "setting" in field.metadata and field.metadata["setting"].command_line and field.name not in without
    ]

    def decorate(function: Command) -> Command:
        own = [entry for entry in inspect.signature(function).parameters.values() if entry.kind is entry.KEYWORD_ONLY]

        @functools.wraps(function)
        def command(**values: Any) -> None:
            known = {field.name for field in given}
            for name, value in values.items():
                _require_no_option(option_name(settings, name) if name in known else f"--{name}", value)
            extra = {entry.name: values.pop(entry.name) for entry in own}
            function(_made(settings, given, values), **extra)

        first = inspect.get_annotations(settings)  # what it shares with others stands behind
        shown = sorted(given, key=lambda field: (not field.metadata["setting"].argument, field.name not in first))
        parameters = [_parameter(settings, field) for field in shown]
        parameters = [entry.replace(kind=entry.KEYWORD_ONLY) for entry in parameters] + own
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {entry.name: entry.annotation for entry in parameters}
        return command

    return decorate


def _require_no_option(name: str, value: object) -> None:
    """Raise a usage error if the value of an option is the next option, as where it was forgotten."""
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str | Path) and str(text).startswith("--"):
            raise typer.BadParameter(
                f"expected a value, got {shown(str(text))}; a name that begins with -- is given as ./{printable(text, 40)}",
                param_hint=f"'{name}'",
            )


def option_name(settings: type[Settings], name: str) -> str:
    """How a setting is spelled on the command line."""
    known: Setting = next(field for field in fields(settings) if field.name == name).metadata["setting"]
    if known.argument:
        return known.metavar or name.upper()
    if known.spelling:
        return known.spelling[0]
    kind = _kind(settings, name)
    plural = any(element(part) is not None for part in members(kind)) and name.endswith("s") and not _takes_commas(known, kind)
    return "--" + (name.removesuffix("s") if plural else name).replace("_", "-")


def _parameter(settings: type[Settings], field: "Field[Any]") -> inspect.Parameter:
    """A field as a parameter that typer reads: a switch, a list of texts or a text, brought into its type by `_made`."""
    known: Setting = field.metadata["setting"]
    kind = _kind(settings, field.name)
    required = field.default is field.default_factory  # both missing
    text = _help(known, kind, field, required=required)
    default: Any = inspect.Parameter.empty if required else None
    if bool in members(kind):
        names = known.spelling or (f"--{field.name.replace('_', '-')}",)
        return inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, typer.Option(*names, help=text)]
        )
    about: dict[str, Any] = {"help": text, "show_default": False, "metavar": known.metavar or _metavar(kind)}
    if choices := _choices(known, kind) or _COMPLETED.get(field.name):
        about["autocompletion"] = _completion(choices)
    several = _is_list(known, kind)
    shape: Any = list[str] if several else str
    made = typer.Argument(**about) if known.argument else typer.Option(*_names(settings, field.name), **about)
    annotation = Annotated[shape if required else shape | None, made]  # type: ignore[valid-type]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _names(settings: type[Settings], name: str) -> tuple[str, ...]:
    known: Setting = next(field for field in fields(settings) if field.name == name).metadata["setting"]
    return known.spelling or (option_name(settings, name),)


def _made(settings: type[Settings], given: "list[Field[Any]]", values: Mapping[str, Any]) -> Settings:
    """The settings that the texts of the command line mean.

    Raises:
        typer.BadParameter: a text is of another kind than the setting.
        OverfocusError: a value is out of bounds or unknown.
    """
    taken = {}
    for field in given:
        value = values[field.name]
        known: Setting = field.metadata["setting"]
        kind = _kind(settings, field.name)
        if isinstance(value, bool):
            inverted = any(name.startswith("--no-") for name in known.spelling)
            if value:
                taken[field.name] = not inverted
        elif value is not None and value != []:
            try:
                taken[field.name] = _read(known, kind, value)
            except ValueError as error:
                raise typer.BadParameter(str(error), param_hint=f"'{option_name(settings, field.name)}'") from None
    try:
        return settings(**taken)
    except OverfocusError as error:
        if error.setting is None:
            raise
        raise type(error)(option_name(settings, error.setting) + str(error).removeprefix(error.setting)) from error


def _read(known: Setting, kind: Any, value: str | list[str]) -> Any:
    """The value of one option.

    Raises:
        ValueError: it is of another kind; the words say what was expected.
    """
    if isinstance(value, str):
        return known.parse(value) if known.parse else _read_one(kind, value)
    if _is_table(kind):
        pairs = [entry for text in value for entry in re.split(r",(?=\s*[A-Za-z_][\w.]*=)", text)]
        table: dict[str, Any] = {}
        for entry in pairs:
            name, value_of = _pair(entry, known.parse)
            if name in table:
                raise ValueError(f"expected each name once, got {shown(name)} twice; remove one")
            table[name] = value_of
        return table
    inner = next(part for part in map(element, members(kind)) if part is not None)
    entries = [entry for text in value for entry in text.split(",")] if _takes_commas(known, kind) else value
    return [
        known.parse(entry) if known.parse else _read_one(inner, entry, f"numbers such as {_EXAMPLES.get(inner, '')}")
        for entry in entries
    ]


_EXAMPLES = {int: "0,5,-1", float: "0.5,1,1.5"}


def _read_one(kind: Any, text: str, expected: str = "") -> Any:
    parts = members(kind)
    for part, read in ((int, int), (float, float)):
        if part in parts:
            try:
                return plain_number(text, read)
            except ValueError:
                if not {str} & set(parts) and not any(text in get_args(other) for other in parts if get_origin(other) is Literal):
                    word = "a whole number" if float not in parts else "a number"
                    literal = "".join(
                        f" or {name}" for other in parts if get_origin(other) is Literal for name in get_args(other)
                    )
                    raise ValueError(f"expected {expected or word + literal}, got {shown(text)}") from None
    return text


def _pair(entry: str, parse: Callable[[str], Any] | None) -> tuple[str, Any]:
    """NAME=VALUE; unless the setting reads it, the value is a number, truth value, list or null as in JSON, or else text."""
    name, equals, text = entry.partition("=")
    if not (equals and name.strip()):
        raise ValueError(f"expected NAME=VALUE, got {shown(entry)}")
    if parse:
        return name.strip(), parse(text)
    try:
        return name.strip(), json.loads(text)
    except (ValueError, RecursionError):
        return name.strip(), text.strip()


def _kind(settings: type[Settings], name: str) -> Any:
    """Type of a field, as far as the command line can give it."""
    return typed_type(settings, name)


def _is_table(kind: Any) -> bool:
    return any(isinstance(get_origin(part), type) and issubclass(get_origin(part), Mapping) for part in members(kind))


def _is_list(known: Setting, kind: Any) -> bool:
    return _is_table(kind) or (not known.parse and any(element(part) is not None for part in members(kind)))


def _takes_commas(known: Setting, kind: Any) -> bool:
    inner = next((part for part in map(element, members(kind)) if part is not None), None)
    return inner is not None and (known.commas if known.commas is not None else inner in (int, float))


def _choices(known: Setting, kind: Any) -> list[str]:
    literals = [str(name) for part in members(kind) if get_origin(part) is Literal for name in get_args(part)]
    return literals or ([] if callable(known.one_of) else known.choices())


def _completion(choices: list[str] | Callable[[], list[str]]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return [choice for choice in (choices() if callable(choices) else choices) if choice.startswith(incomplete)]

    return complete


def _corruptions() -> list[str]:
    from overfocus.corruptions.constants import CORRUPTIONS, GROUPS

    return [*CORRUPTIONS, *GROUPS]


def _metrics() -> list[str]:
    from overfocus.metrics.catalogue import CATALOGUE

    return list(CATALOGUE)


def _recipes() -> list[str]:
    from overfocus.training.settings import recipe_names

    return list(recipe_names())


_COMPLETED: dict[str, Callable[[], list[str]]] = {"corruptions": _corruptions, "metrics": _metrics, "recipe": _recipes}
"""Names that the shell completes though others are taken too, by setting."""


def _metavar(kind: Any) -> str:
    if literals := [str(name) for part in members(kind) if get_origin(part) is Literal for name in get_args(part)]:
        return "|".join(literals)
    if _is_table(kind):
        return "NAME=VALUE"
    return "N" if {int, float} & set(members(kind)) else "TEXT"


def _help(known: Setting, kind: Any, field: "Field[Any]", *, required: bool) -> str:
    """The setting's help, whether it may be repeated, and its default."""
    text = known.help
    if _is_list(known, kind) and not _takes_commas(known, kind) and not known.argument:
        text = f"{text.rstrip('.')}; repeatable."
    if known.none and field.default is None:
        text += f" Default: {known.none}."
    elif not required and field.default is not None and not isinstance(field.default, bool):
        usual = field.default if isinstance(field.default, tuple) else (field.default,)
        text += f" Default: {', '.join(map(str, usual))}."
    return text


def require_checkpoint(checkpoint: object, images: object = None, *, command: str) -> None:
    """Raise a `CheckpointError` that says how to give them if images were given in place of the checkpoint."""
    if checkpoint is None or not _is_images(Path(str(checkpoint))):
        return
    first = str(next(iter(images), "")) if isinstance(images, list | tuple) else str(images or "")
    if Path(first).suffix.lower() in _WEIGHTS:
        right = f"overfocus {command} {printable(first)} {'' if command == 'heatmap' else '--images '}{printable(checkpoint)}"
        raise CheckpointError(
            f"{printable(checkpoint)}: expected a checkpoint, but this is an image; the checkpoint comes first: {right}"
        )
    right = f"overfocus {command} CHECKPOINT {'' if command == 'heatmap' else '--images '}{printable(checkpoint)}"
    raise CheckpointError(f"{printable(checkpoint)}: expected a checkpoint, but this holds images; pass them like this: {right}")


def require_run(folder: Path) -> None:
    """Raise a `RunError` that names the runs in the folder unless the folder is one itself."""
    names = ("run.json", "comparison.json")
    if any((folder / name).is_file() for name in names) or not folder.is_dir():
        return
    inside = sorted({path.parent for name in names for path in folder.glob(f"*/{name}")})
    if inside:
        listed = " ".join(printable(path) for path in inside[:5]) + (" …" if len(inside) > 5 else "")
        raise RunError(
            f"{printable(folder)}: expected a run folder, but this folder holds {len(inside)} runs; name them: {listed}"
        )


def _is_images(path: Path) -> bool:
    """Whether a path is an image, or a folder that holds images, directly or in its folders, and no weights."""
    try:
        if not path.is_dir():
            return path.suffix.lower() in _IMAGES
        endings = {entry.suffix.lower() for pattern in ("*", "*/*") for entry in islice(path.glob(pattern), _LOOKED_AT)}
    except (OSError, ValueError):
        return False
    return bool(endings & set(_IMAGES)) and not endings & {*_WEIGHTS, ".json"}
