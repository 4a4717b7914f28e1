"""Text from outside is made printable; regular files only are read; files are written whole or not at all."""

import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overfocus.errors import ImageError
from overfocus.files import atomic_file, remove_unfinished, require_regular_file
from overfocus.text import csv_cell, json_text, make_streams_printable, model_title, one_line, printable, source_name


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü 猫 🦊", "plain ü 猫 🦊"),
        ("\x1b[2J", r"\x1b[2J"),
        ("a\nb\r\t\x07", r"a\x0ab\x0d\x09\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("abc\u202etxt.exe\u2066\u200f", r"abc\u202etxt.exe\u2066\u200f"),
        ("zero\u200bwidth\ufeff\u2028", r"zero\u200bwidth\ufeff\u2028"),
        ("caf\udce9 \ud800", r"caf\xe9 \ud800"),
        ("\U000e0041", r"\U000e0041"),
        ("می\u200cخواهم", "می\u200cخواهم"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(st.characters(exclude_categories=[]), max_size=400))
def test_whatever_comes_is_short_and_can_be_encoded(text: str) -> None:
    shown = one_line(text, limit=100)
    assert shown.replace("\u200c", "").replace("\u200d", "").isprintable()
    assert len(shown) <= 100 * len(r"\U00000000")
    shown.encode()


@given(st.text(st.characters(exclude_categories=[])))
def test_json_loses_nothing_and_shows_everything(text: str) -> None:
    assert json.loads(json_text({"name": text})) == {"name": text}
    assert json_text([text], ascii_only=True).isascii()
    json_text([text]).encode()
    assert "\u202e" not in json_text([text + "\u202e"])


def test_formulas_are_quoted_for_spreadsheets() -> None:
    assert csv_cell("=HYPERLINK(1)") == "'=HYPERLINK(1)"
    assert csv_cell("-1+2") == "'-1+2"
    assert csv_cell(-1.5) == -1.5
    assert csv_cell("plain") == "plain"


def test_a_terminal_of_ascii_gets_the_nearest_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    bytes_written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(bytes_written, "ascii"))
    make_streams_printable()
    print("224×224 – 猫 \udcff", flush=True)
    assert bytes_written.getvalue() == b"224x224 - \\u732b \\udcff\n"


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        for path, kind in (
            (tmp_path / "pipe", "but this is a named pipe"),
            (tmp_path / "folder.png", "but this is a folder"),
            (tmp_path / "socket", "but this is a socket"),
            ("/dev/zero", "but this is a device"),
            (tmp_path / "none.png", "no such file; expected an image"),
            (tmp_path / "loop", "cannot be read"),
            (tmp_path / ("a" * 300), "cannot be read"),
            ("zero\0byte", "cannot be read"),
            (tmp_path / "pipe" / "below", "cannot be read"),
        ):
            with pytest.raises(ImageError, match=kind):
                require_regular_file(path, "an image", ImageError)
    (tmp_path / "file").write_bytes(b"12")
    (tmp_path / "link").symlink_to("file")
    assert require_regular_file(tmp_path / "link", "an image").st_size == 2


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with atomic_file(path) as file:
        file.write(b"first")
    with pytest.raises(TypeError), atomic_file(path) as file:
        file.writelines([b"second", "no bytes"])  # type: ignore[list-item]
    assert path.read_bytes() == b"first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_what_killed_processes_left_is_removed_and_what_living_ones_write_is_kept(tmp_path: Path) -> None:
    (tmp_path / "maps").mkdir()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    leftover = tmp_path / "maps" / f".part.npz.{ended.pid}.unfinished"
    living = tmp_path / f".run.json.{os.getppid()}.unfinished"
    foreign = tmp_path / "my.unfinished"
    for path in (leftover, living, foreign):
        path.touch()
    remove_unfinished(tmp_path)
    assert not leftover.exists()
    assert living.exists()
    assert foreign.exists()


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("runs/deit_ti.pth", "deit_ti"),
        ("tapadl_fan_base.pth.tar", "tapadl_fan_base"),
        (Path("trained/tap/model.safetensors"), "tap"),
        ("trained/tap/model_best.pth.tar", "tap"),
        ("best.pth", "best"),
        ("hub/dinov2-small", "dinov2-small"),
        ("vit_base_patch16_224.augreg_in21k", "vit_base_patch16_224.augreg_in21k"),
        ("weights-0.5.ckpt", "weights-0.5"),
        ("/home/me/.cache/huggingface/hub/models--google--vit-base/snapshots/3f49326eb077187d", "vit-base"),
        ("hub/models--gpt2/snapshots/3f49/model.safetensors", "gpt2"),
    ],
)
def test_names(source: str | Path, name: str) -> None:
    assert source_name(source) == name


@pytest.mark.parametrize(
    ("architecture", "source", "title"),
    [
        ("vit_tiny_patch16_224", "mine.pth", "vit_tiny_patch16_224"),
        ("fan_tiny_12_p16_224", "tapadl.pth.tar", "fan_tiny_12_p16_224"),
        ("VisionTransformer", "runs/mine.pth", "mine"),
        ("VisionTransformer", "runs/tap/model.safetensors", "tap"),
        ("VisionTransformer", "model.pth", "VisionTransformer"),
        ("ViTForImageClassification", "models/vit-base", "vit-base"),
        ("Dinov2Model", "/cache/hub/models--facebook--dinov2-small/snapshots/ed25f3a31f01", "dinov2-small"),
        ("MyViT", "MyViT", "MyViT"),
        ("package.module:factory", "package.module:factory", "package.module:factory"),
    ],
)
def test_a_class_that_many_models_share_is_called_by_its_file(architecture: str, source: str, title: str) -> None:
    assert model_title(architecture, source) == title
