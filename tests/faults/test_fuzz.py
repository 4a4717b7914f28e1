"""Whatever a file says or holds: an error of ours in one line, or something that can be used."""

import copy
import io
import json
import math
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save, save_file

from overfocus import Run, load_model
from overfocus.checkpoints.loaded import class_names_for, preprocess_for
from overfocus.checkpoints.metadata import metadata_of_config, metadata_of_safetensors, metadata_of_trainer
from overfocus.checkpoints.read import read_checkpoint
from overfocus.curves import read_log
from overfocus.datasets import open_images
from overfocus.errors import CheckpointError, ImageError, OverfocusError, RunError, TrainingError
from overfocus.images.labels import match_labels
from overfocus.images.sources import decode_image, find_images
from overfocus.results.comparison import read_comparison
from overfocus.runs.description import (
    ComparisonDescription,
    RunDescription,
    TrainingDescription,
    decode_description,
    encode_description,
)
from overfocus.runs.folder import read_arrays, read_table
from overfocus.training.settings import Recipe, load_recipe

AMOUNTS = [pytest.param(25, id="few"), pytest.param(1500, id="many", marks=pytest.mark.slow)]
TEXTS = st.text(st.characters(exclude_categories=[]), max_size=30) | st.sampled_from(
    ["", "../../etc/passwd", "\x1b[31m\u202e", "\ud800", "[red]", "=1+1", "os.system", "nan", "1e999", "[" * 5000, "k" * 20_000]
)
NUMBERS = st.integers() | st.floats() | st.sampled_from([0, -1, 10**9, 10**40, 2**53, 2**64, 1e-300, 1e300])
PLAIN = st.none() | st.booleans() | NUMBERS | TEXTS
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=8)
METADATA = ("architecture", "model_args", "tap", "class_names", "class_colours", "input_size", "mean", "std", "interpolation")
METADATA += ("crop_pct", "crop_mode")
CONTENT = ("arch", "args", "model_args", "model_kwargs", "hyper_parameters", "meta", "config", "class_names", "classes", "cfg")
CONFIG = ("architecture", "model_type", "num_classes", "pretrained_cfg", "model_args", "label_names", "label_descriptions")
CONFIG += METADATA


def says_one_line(error: OverfocusError, words: str = "") -> None:
    assert str(error).isprintable()
    assert len(str(error)) < 2200
    assert words in str(error)


def tables(keys: tuple[str, ...]) -> st.SearchStrategy[dict[str, Any]]:
    """Dictionaries with some of these keys, at two depths."""
    inner = st.dictionaries(st.sampled_from(keys), VALUES, max_size=4)
    return st.dictionaries(st.sampled_from(keys), VALUES | inner, max_size=5)


@pytest.fixture(scope="module")
def small() -> torch.nn.Module:
    model: torch.nn.Module = timm.create_model("test_vit")
    return model


@pytest.mark.parametrize("examples", AMOUNTS)
@pytest.mark.parametrize(
    ("read", "keys", "as_text"),
    [
        (metadata_of_safetensors, METADATA, True),
        (metadata_of_config, CONFIG, False),
        (metadata_of_trainer, CONTENT + METADATA, False),
    ],
    ids=["safetensors metadata", "config.json", "checkpoint"],
)
def test_metadata(read: Callable[..., Any], keys: tuple[str, ...], as_text: bool, examples: int, small: torch.nn.Module) -> None:
    @settings(max_examples=examples)
    @given(tables(keys))
    def check(values: dict[str, Any]) -> None:
        given = {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
        try:
            metadata = read(given if as_text else values, "file")
            preprocess, _ = preprocess_for(small, metadata, None)
        except CheckpointError as error:
            says_one_line(error)
        else:
            assert all(math.isfinite(number) for number in (*preprocess.mean, *preprocess.std))
            assert all(number > 0 for number in preprocess.std)
            assert max(preprocess.input_size) <= 16_384
            assert preprocess.crop_pct > 0
            assert all(isinstance(name, str) for name in class_names_for(metadata, small) or [])

    check()


def places(value: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value, of lists the first two entries."""
    yield where
    inside = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, part in inside:
        yield from places(part, (*where, key))


def changed(value: Any, where: tuple[Any, ...], new: Any, *, gone: bool) -> Any:
    """A copy with another value at one place, or without it."""
    if not where:
        return new
    whole = at = copy.deepcopy(value)
    for key in where[:-1]:
        at = at[key]
    if gone:
        del at[where[-1]]
    else:
        at[where[-1]] = new
    return whole


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, synthetic_run: Callable[..., Path]) -> Path:
    return synthetic_run(tmp_path_factory.mktemp("fuzz") / "run", images=2, layers=2, displayed=1)


TRAINING = {"format": 2, "overfocus": "0.2.0", "created": "", "status": "running", "notes": ["a"]}
SETTINGS = {"recipe": {"epochs": 1}, "architecture": {"name": "test_vit"}, "seed": 0, "images": 4, "class_names": ["a", "b"]}
TRAINING |= {"settings": SETTINGS | {"input_size": [3, 32, 32], "processes": 1}}
MODELS = [{"name": "a", "run": "runs/a"}, {"name": "b", "run": "../b"}]
COMPARISON = {"format": 2, "overfocus": "0.2.0", "baseline": "a", "models": MODELS, "images": 3, "resamples": 10}
COMPARISON |= {
    "table": [{"model": "b", "mean": 0.5}],
    "verdicts": [{"question": "q", "model": "b", "answer": "yes", "sentence": "s"}],
}


@pytest.mark.parametrize("examples", AMOUNTS)
@pytest.mark.parametrize("kind", [RunDescription, TrainingDescription, ComparisonDescription])
def test_descriptions(kind: Any, examples: int, sound: Path) -> None:
    known = {TrainingDescription: TRAINING, ComparisonDescription: COMPARISON}
    whole = known.get(kind) or json.loads((sound / "run.json").read_text())
    where = list(places(whole))

    @settings(max_examples=examples)
    @given(st.sampled_from(where), VALUES, st.booleans(), st.none() | st.tuples(st.integers(0, 3000), st.binary(max_size=3)))
    def check(place: tuple[Any, ...], new: Any, gone: bool, bytes_in: tuple[int, bytes] | None) -> None:
        text = json.dumps(changed(whole, place, new, gone=gone)).encode()
        if bytes_in is not None:
            text = text[: bytes_in[0]] + bytes_in[1] + text[bytes_in[0] + 1 :]
        try:
            description = decode_description(text, kind, Path("description.json"))
        except (RunError, TrainingError) as error:
            says_one_line(error, "description.json")
            return
        assert decode_description(encode_description(description), kind, Path("again.json")) == description
        for layer in getattr(description, "layers", []):
            assert 0 < layer.uniform_share <= 1
            assert 0 < description.relative_depth(layer) < 10**6
            assert layer.label.isprintable()

    check()


@pytest.mark.parametrize("examples", AMOUNTS)
def test_safetensors_headers(examples: int, tmp_path: Path) -> None:
    whole = save({"blocks.0.attn.qkv.weight": torch.zeros(6, 2), "b": torch.ones(3)}, {"architecture": "test_vit"})
    length = struct.unpack("<Q", whole[:8])[0]
    header, body = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    where = list(places(header))
    path = tmp_path / "file.safetensors"

    @settings(max_examples=examples)
    @given(st.sampled_from(where), VALUES, st.booleans(), st.none() | st.integers(0, 2**64 - 1), st.integers(0, len(body)))
    def check(place: tuple[Any, ...], new: Any, gone: bool, claimed: int | None, kept: int) -> None:
        text = json.dumps(changed(header, place, new, gone=gone)).encode()
        path.write_bytes(struct.pack("<Q", len(text) if claimed is None else claimed) + text + body[:kept])
        try:
            file = read_checkpoint(path)
            metadata_of_safetensors(file.metadata, path)
        except CheckpointError as error:
            says_one_line(error, "file.safetensors")

    check()


@pytest.mark.parametrize("examples", AMOUNTS)
def test_recipes(examples: int, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    names = [field.name for field in fields(Recipe)]
    sound = {"epochs": 1, "batch_size": 2, "learning_rate": 0.1}

    @settings(max_examples=examples)
    @given(st.dictionaries(st.sampled_from(names) | TEXTS, VALUES, max_size=5), st.none() | TEXTS)
    def check(values: dict[str, Any], text: str | None) -> None:
        try:
            content = yaml.safe_dump(sound | values, allow_unicode=True) if text is None else text
        except (yaml.YAMLError, RecursionError):
            return
        path.write_bytes(content.encode("utf-8", "surrogatepass"))
        try:
            recipe = load_recipe(str(path))
        except TrainingError as error:
            says_one_line(error, "recipe")
        else:
            assert all(math.isfinite(value) for value in vars(recipe).values() if isinstance(value, float))

    check()


@pytest.mark.parametrize("examples", AMOUNTS)
@pytest.mark.parametrize("kind", ["parquet", "npz"])
def test_tables_and_arrays(kind: str, examples: int, sound: Path, tmp_path: Path) -> None:
    source = next(sound.glob("metrics/*.parquet") if kind == "parquet" else sound.glob("maps/image-*.npz"))
    whole = source.read_bytes()
    path = tmp_path / f"damaged.{kind}"
    read: Callable[[Path], Any] = (
        read_table if kind == "parquet" else lambda path: read_arrays(path, {}, {"attention_*": ("f", 4)})
    )

    @settings(max_examples=examples)
    @given(st.integers(0, len(whole)), st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), max_size=3))
    def check(kept: int, flips: list[tuple[int, int]]) -> None:
        damaged = bytearray(whole)
        for place, value in flips:
            damaged[place] = value
        path.write_bytes(damaged[:kept] if len(flips) < 2 else damaged)
        try:
            read(path)
        except RunError as error:
            says_one_line(error, "damaged")

    check()


CELLS = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=5) | st.binary(max_size=5)
CELLS |= st.sampled_from(["fog", "clean", "other image", "a" * 5000, [1], {"a": 1}])
COLUMNS = (
    "image",
    "corruption",
    "severity",
    "layer",
    "head",
    "gini",
    "top_share",
    "js_divergence",
    "predicted",
    "label",
    "agreement",
)


@pytest.mark.parametrize("examples", AMOUNTS)
@pytest.mark.parametrize("name", ["metrics", "predictions"])
def test_tables_of_others(name: str, examples: int, sound: Path, tmp_path: Path) -> None:
    """Parts of a run that are Parquet files with other columns, types, values or rows."""
    folder = tmp_path / "run"
    shutil.copytree(sound, folder)
    part = next((folder / name).glob("*.parquet"))
    whole = pd.read_parquet(part)

    @settings(max_examples=examples)
    @given(
        st.dictionaries(st.sampled_from((*whole.columns, *COLUMNS)), st.lists(CELLS, min_size=1, max_size=3), max_size=3),
        st.sets(st.sampled_from(list(whole.columns)), max_size=2),
        st.integers(0, len(whole) + 2),
    )
    def check(changed: dict[str, list[Any]], gone: set[str], rows: int) -> None:
        table = whole.iloc[[row % len(whole) for row in range(rows)]].reset_index(drop=True).drop(columns=list(gone))
        try:
            for column, values in changed.items():
                table[column] = pd.Series([values[row % len(values)] for row in range(rows)])
            table.to_parquet(part)
        except Exception:  # what pyarrow cannot write needs not be read
            return
        for read in (
            lambda run: (run.table, run.predictions, run.variants, run.measured),
            lambda run: run.summary(),
            lambda run: run.retained,
        ):
            try:
                read(Run(folder))
            except OverfocusError as error:
                says_one_line(error)

    check()


@pytest.mark.parametrize(
    ("name", "column"), [*product(("metrics", "predictions"), ("image", "corruption", "severity")), ("metrics", "layer")]
)
def test_tables_that_do_not_say_what_their_rows_are(name: str, column: str, sound: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(sound, folder)
    for part in (folder / name).glob("*.parquet"):
        pd.read_parquet(part).drop(columns=column).to_parquet(part)
    for read in (lambda run: run.table if name == "metrics" else run.predictions, lambda run: run.summary()):
        with pytest.raises(OverfocusError, match=f"the {name} table has no column {column}; measure again"):
            read(Run(folder))


@pytest.mark.parametrize("examples", AMOUNTS)
def test_maps_of_others(examples: int, sound: Path, tmp_path: Path) -> None:
    """Maps of a run that are npz files with other arrays, types, shapes or values."""
    folder = tmp_path / "run"
    shutil.copytree(sound, folder)
    files = sorted((folder / "maps").glob("*.npz"))
    arrays = {path: dict(np.load(path)) for path in files}
    kinds = st.sampled_from(["u1", "i8", "f2", "f4", "f8", "c8", "?", "U3", "S2", "M8[s]", "i4,f4"])

    @settings(max_examples=examples)
    @given(st.sampled_from(files), st.data(), kinds, st.lists(st.integers(0, 3), max_size=5), st.booleans())
    def check(path: Path, data: st.DataObject, kind: str, shape: list[int], gone: bool) -> None:
        name = data.draw(st.sampled_from(sorted(arrays[path])))
        made = dict(arrays[path])
        if gone:
            del made[name]
        else:
            made[name] = np.zeros(shape, kind)
        np.savez(path, **made)
        for read in (lambda run: run.maps(run.displayed[0]), lambda run: run.received(0), lambda run: run.received(1, "fog", 3)):
            try:
                read(Run(folder))
            except OverfocusError as error:
                says_one_line(error)
        np.savez(path, **arrays[path])

    check()


@pytest.mark.parametrize("examples", AMOUNTS)
def test_class_maps(examples: int, tmp_path: Path) -> None:
    labels, names = ["cat", "dog", "7", "\x1b[31m"], ["dog", "cat, tabby", "bird"]
    parts = st.sampled_from([*labels, *names, "0", "1", "2", "-1", "1e3", "9" * 5000, "label", "class", '"', ",", "\t", " ", "#"])
    lines = st.lists(st.lists(parts | TEXTS, max_size=4).map(",".join), max_size=6).map("\n".join)
    entries = st.dictionaries(parts, st.integers(-2, 4) | parts | VALUES, max_size=4) | st.lists(parts | VALUES, max_size=4)
    maps = entries | st.dictionaries(st.sampled_from(["class_to_idx", "label2id", "id2label"]), entries, max_size=2)

    @settings(max_examples=examples)
    @given(st.sampled_from(["map.json", "map.csv", "map.txt", "map.tsv", "map"]), lines.map(str) | maps | VALUES | st.binary())
    def check(name: str, content: Any) -> None:
        text = content if isinstance(content, bytes | str) else json.dumps(content)
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
        try:
            found = match_labels(labels, names, 3, class_map=tmp_path / name)
        except ImageError as error:
            says_one_line(error, name)
        else:
            assert all(label in labels and 0 <= number < 3 for label, number in found.ids.items())
            assert all(note.isprintable() for note in found.notes)

    check()


@pytest.mark.parametrize("examples", AMOUNTS)
def test_lists_and_tables_of_images(examples: int, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    parts = st.sampled_from(
        ["a.png", "b.png", "a", "b", "cat", "1", "1.0", "file", "label", "../a.png", "/dev/zero", "", '"', "\0"]
    )
    lines = st.lists(st.lists(parts | TEXTS, max_size=4).map(",".join), max_size=6).map("\n".join)

    @settings(max_examples=examples)
    @given(
        st.sampled_from(["list.txt", "table.csv", "list.tsv"]),
        lines.map(lambda text: text.encode("utf-8", "replace")) | st.binary(),
    )
    def check(name: str, content: bytes) -> None:
        path = tmp_path / name
        path.write_bytes(content)
        for read in (lambda: find_images(path), lambda: find_images(tmp_path), lambda: open_images(tmp_path, "train")):
            try:
                read()
            except ImageError as error:
                says_one_line(error)
        path.unlink()

    check()


@pytest.mark.parametrize("examples", AMOUNTS)
def test_images(examples: int) -> None:
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 13, 3), np.uint8))
    kinds = {"PNG": {}, "JPEG": {"progressive": True}, "WEBP": {}, "GIF": {}, "BMP": {}, "TIFF": {"compression": "tiff_lzw"}}
    kinds |= {"PPM": {}, "TGA": {}, "JPEG2000": {}, "AVIF": {"speed": 10}}
    whole = {}
    for kind, options in kinds.items():
        file = io.BytesIO()
        pixels.save(file, kind, **options)
        whole[kind] = file.getvalue()

    @settings(max_examples=10 * examples)
    @given(st.sampled_from(list(whole)), st.data(), st.booleans())
    def check(kind: str, data: st.DataObject, cut: bool) -> None:
        damaged = bytearray(whole[kind])
        flips = st.tuples(st.integers(0, len(damaged) - 1), st.integers(0, 255))
        for place, value in data.draw(st.lists(flips, max_size=4)):
            damaged[place] = value
        content = bytes(damaged[: data.draw(st.integers(0, len(damaged)))] if cut else damaged)
        try:
            image = decode_image(io.BytesIO(content), "image.png", 10**6)
        except ImageError as error:
            says_one_line(error, "image.png")
        else:
            assert image.mode == "RGB"

    check()


@pytest.mark.parametrize("examples", AMOUNTS)
def test_logs_of_training(examples: int, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    cells = (
        st.sampled_from(["step", "epoch", "loss", "learning_rate", "validation_loss", "1", "nan", "", '"', "1e999", "\n"]) | TEXTS
    )
    rows = st.lists(st.lists(cells, max_size=4).map(",".join), max_size=6).map("\n".join)

    @settings(max_examples=examples)
    @given(rows | rows.map(lambda text: "step,loss\n" + text) | TEXTS)
    def check(text: str) -> None:
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            read_log(path)
        except RunError as error:
            says_one_line(error, "log.csv")

    check()


@pytest.mark.parametrize("examples", AMOUNTS)
def test_comparisons(examples: int, sound: Path, tmp_path: Path) -> None:
    whole = COMPARISON | {"models": [{"name": "a", "run": str(sound)}, {"name": "b", "run": str(sound)}]}
    where = list(places(whole))

    @settings(max_examples=examples)
    @given(st.sampled_from(where), VALUES, st.booleans())
    def check(place: tuple[Any, ...], new: Any, gone: bool) -> None:
        (tmp_path / "comparison.json").write_text(json.dumps(changed(whole, place, new, gone=gone)))
        try:
            comparison = read_comparison(tmp_path)
        except RunError as error:
            says_one_line(error)
        else:
            assert comparison.names

    check()


ADAPTER = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "base_model_name_or_path": "base.pth", "rank_pattern": {"qkv": 2}}
ADAPTER |= {"target_modules": ["qkv"], "init_lora_weights": True, "bias": "none", "use_rslora": False, "fan_in_fan_out": False}
TRANSFORMER = {"model_type": "vit", "architectures": ["ViTForImageClassification"], "hidden_size": 8, "num_hidden_layers": 1}
TRANSFORMER |= {"num_attention_heads": 2, "intermediate_size": 8, "image_size": 32, "patch_size": 16, "id2label": {"0": "a"}}
TRANSFORMER |= {"hidden_act": "gelu", "label2id": {"a": 0}, "num_channels": 3, "layer_norm_eps": 1e-12, "qkv_bias": True}
PROCESSOR = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}, "image_mean": [0.5, 0.5, 0.5]}
PROCESSOR |= {"image_std": [0.5, 0.5, 0.5], "do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "resample": 2}
PROCESSOR |= {"do_normalize": True, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True, "crop_pct": 0.9}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adapter_config.json", "config.json", "preprocessor_config.json"])
def test_configurations_of_other_libraries(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    if kind == "adapter_config.json":
        pytest.importorskip("peft")
        model = timm.create_model("test_vit")
        torch.save({"arch": "test_vit", "state_dict": model.state_dict()}, tmp_path / "base.pth")
        inner, outer = model.blocks[0].attn.qkv.weight.shape[::-1]
        front = "base_model.model.blocks.0.attn.qkv."
        tensors = {f"{front}lora_A.weight": torch.zeros(2, inner), f"{front}lora_B.weight": torch.zeros(outer, 2)}
        save_file(tensors, tmp_path / "adapter_model.safetensors")
    else:
        made = transformers.ViTForImageClassification(transformers.ViTConfig(**TRANSFORMER))
        made.save_pretrained(tmp_path)
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    whole = {"adapter_config.json": ADAPTER, "config.json": TRANSFORMER}.get(kind, PROCESSOR)
    where = list(places(whole))
    (tmp_path / kind).write_text(json.dumps(whole))
    assert load_model(tmp_path).num_classes in (1, 1000)

    @settings(max_examples=100, deadline=None)
    @given(st.sampled_from(where), VALUES, st.booleans())
    def check(place: tuple[Any, ...], new: Any, gone: bool) -> None:
        (tmp_path / kind).write_text(json.dumps(changed(whole, place, new, gone=gone)))
        try:
            load_model(tmp_path)
        except OverfocusError as error:
            says_one_line(error)

    check()
