"""Text from outside made printable: names of files, classes, tensors and architectures, and the words of other libraries.

A file name may hold a terminal escape, a class name the mark that reverses reading order, a tensor's name five megabytes. What
goes to a terminal, a warning, a table or a page passes through `printable` first; JSON through `json_text`.
"""

import codecs
import json
import os
import re
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import PurePath
from typing import IO, Any

LONGEST_NAME = 200
"""Characters of a name that are shown."""
LONGEST_LINE = 2000
"""Characters of a message that are shown."""

_SHAPES_LETTERS = "\u200c\u200d"
"""Joiners without which Persian, Indic scripts and emoji are misspelt; they change no order and move no cursor."""
_ASCII = str.maketrans(
    {"×": "x", "–": "-", "—": "-", "−": "-", "…": "...", "→": "->", "≥": ">=", "≤": "<=", "±": "+-", "·": "*", "’": "'", "│": "|"}
    | {
        "━": "-",
        "─": "-",
        "╸": "-",
        "╺": "-",
        "“": '"',
        "”": '"',
        "°": " deg",
        "λ": "lambda",
        "τ": "tau",
        "\u202f": " ",
        "\xa0": " ",
    }
)
_ENDINGS = (".tar", ".pth", ".pt", ".safetensors", ".bin", ".ckpt", ".gz")
_GENERAL = frozenset({"best", "checkpoint", "checkpoint_best", "last", "model", "model_best", "pytorch_model", "weights"})
_CACHED = re.compile(r"/models--(?:[^/]+--)?([^/]+?)/snapshots/")
"""Path of a model in the hub's cache: models--owner--name/snapshots/hash."""
_CLASS = re.compile(r"[A-Z]\w*")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet reads as the start of a formula."""


def printable(text: object, limit: int = LONGEST_NAME) -> str:
    r"""The text with every character that cannot be seen escaped, and at most `limit` characters of it.

    Escaped are control characters (`\x1b`), marks that change the reading order (`\u202e`), other invisible ones, separators of
    lines, and surrogates: those that stand for the bytes of a file name that is not UTF-8 as these bytes (`\xff`), others as
    themselves.

    >>> printable("photo\x1b[31m.png"), printable("abcdefgh", limit=5)
    ('photo\\x1b[31m.png', 'abcd…')
    """
    shown = str(text)
    return visible(shown if len(shown) <= limit else shown[: max(limit - 1, 0)] + "…", "")


def visible(text: str, kept: str = "\n\t") -> str:
    r"""All of a text of any length, such as a page or labels of a figure, with what cannot be seen escaped but what is `kept`.

    >>> visible("one\ntwo\u202e")
    'one\ntwo\\u202e'
    """
    if not (text.isascii() and text.isprintable()):
        for sign in set(text).difference(kept):
            if (shown := _visible(sign)) != sign:
                text = text.replace(sign, shown)
    return text


def one_line(text: object, limit: int = LONGEST_LINE) -> str:
    """The text on one line, white space folded, printable, and at most `limit` characters long.

    Words of more than `LONGEST_NAME` characters are shortened first, so that what follows them is still shown.
    """
    words = (word if len(word) <= LONGEST_NAME else f"{word[: LONGEST_NAME - 2]}…{word[-1]}" for word in str(text).split())
    return printable(" ".join(words), limit)


def storable(text: str, escape: str = "") -> str:
    r"""The text as a file in UTF-8 can hold it: surrogates, bytes of a name that is not UTF-8, as `printable` shows them.

    `escape` stands before the backslash of each.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return "".join(escape + _visible(sign) if "\ud800" <= sign <= "\udfff" else sign for sign in text)
    return text


def json_bytes(value: Any) -> bytes:
    """JSON for a file, indented by one, `storable`.

    Raises:
        ValueError: a number in it is NaN or infinite, which JSON cannot say.
    """
    return storable(json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False), "\\").encode()


def some(names: Sequence[str]) -> str:
    """The first three names and how many more there are."""
    if not names:
        return "none"
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def source_name(source: str | PurePath) -> str:
    """A file's name without its endings; where that says nothing (`model.safetensors`), the name of its folder.

    Of a model in the cache of the Hugging Face hub, whose folders are named by hashes, the model's name there.

    >>> source_name("runs/tap/model.safetensors"), source_name("deit.pth.tar"), source_name("vit_tiny_patch16_224.augreg_in21k")
    ('tap', 'deit', 'vit_tiny_patch16_224.augreg_in21k')
    """
    path = PurePath(source)
    if cached := _CACHED.search(path.as_posix()):
        return cached[1]
    name = path.name
    while name.endswith(_ENDINGS):
        name = name.rpartition(".")[0]
    return path.parent.name or name if name in _GENERAL else name


def model_title(architecture: str, source: str) -> str:
    """What a model is called: its architecture, or its file where that is only a class, which many different models share.

    >>> model_title("deit_tiny_patch16_224", "runs/deit.pth"), model_title("VisionTransformer", "runs/mine.pth")
    ('deit_tiny_patch16_224', 'mine')
    """
    file = source_name(source)
    return file if _CLASS.fullmatch(architecture) and file not in ("", *_GENERAL) else architecture


def json_text(value: Any, *, ascii_only: bool = False) -> str:
    """JSON with an indent of two, invisible characters and surrogates as JSON's own escapes: nothing is lost, nothing acts.

    Raises:
        ValueError: a number in it is NaN or infinite, which JSON cannot say.
    """
    text = json.dumps(value, ensure_ascii=ascii_only, indent=2, allow_nan=False)
    return text if text.isascii() else "".join(_json_escape(character) for character in text)


def csv_cell(value: object) -> object:
    """A cell of a CSV file: text printable, with an apostrophe in front where a spreadsheet would run it; numbers stay."""
    if not isinstance(value, str):
        return value
    return f"'{printable(value)}" if value.startswith(_FORMULA) else printable(value)


def make_streams_printable() -> None:
    """Let no character end the program: on a terminal of ASCII or Latin-1 the nearest signs stand for those it lacks.

    What was closed by `>&-` writes nowhere, and no file that is opened later takes its place.
    """
    codecs.register_error("overfocus", _nearest)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is that of the stream
            setattr(sys, name, open(number, "r" if name == "stdin" else "w", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="overfocus")


def shows_unicode(stream: IO[str]) -> bool:
    """Whether the stream can carry any character."""
    return (getattr(stream, "encoding", None) or "ascii").lower().replace("-", "").startswith("utf")


def _nearest(error: UnicodeError) -> tuple[str | bytes, int]:
    """For `codecs.register_error`: × as x, – as -; what has no like is escaped."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    replaced = error.object[error.start : error.end].translate(_ASCII)
    return replaced.encode("ascii", "backslashreplace").decode("ascii"), error.end


def _visible(character: str) -> str:
    if character in _SHAPES_LETTERS or not _acts(character):
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a name that is not UTF-8, as Python keeps it
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _json_escape(character: str) -> str:
    if character in _SHAPES_LETTERS or character == "\n" or not _acts(character):
        return character
    return json.dumps(character)[1:-1]


def _acts(character: str) -> bool:
    """Whether a character moves the cursor, changes the order or cannot be seen, in place of being seen."""
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
