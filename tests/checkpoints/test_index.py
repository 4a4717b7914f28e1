"""The index ships with the package: it is small, up to date and rebuilt by one command."""

import gzip
import json

import pytest
import timm

import overfocus.models  # noqa: F401  registers our architectures
from overfocus.checkpoints.index import INDEX_PATH, digest, index_names, index_version, read_index
from tests.scripts.build_index import describe, index_of

SAMPLE = [
    "test_vit",
    "test_vit4",
    "vit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "resnet18",
    "levit_128s",
    "cait_xxs24_224",
]
OURS = [name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith("overfocus.")]
REBUILD = "the index is stale: run python -m tests.scripts.build_index"


def assert_current(name: str) -> None:
    built = describe(name)
    key = digest(built.fingerprint)
    if not built.attends:
        assert key in read_index()["without attention"], REBUILD
        return
    assert name in read_index()["groups"].get(key, {"members": {}})["members"], f"{name}: {REBUILD}"


def test_size() -> None:
    assert INDEX_PATH.stat().st_size < 1_000_000
    assert len(gzip.decompress(INDEX_PATH.read_bytes())) < 5_000_000


def test_every_name_of_the_timm_it_was_built_from_is_in_it() -> None:
    if index_version() != timm.__version__:
        pytest.skip(f"built from timm {index_version()}, installed is {timm.__version__}")
    attending = {
        name for family in ("vit_*", "swin*", "deit*", "beit*", "eva*", "*fan_*", "*rvt_*") for name in timm.list_models(family)
    }
    assert attending <= index_names(), REBUILD


@pytest.mark.parametrize("name", OURS)
def test_our_architectures_are_current(name: str) -> None:
    assert_current(name)


@pytest.mark.parametrize("name", SAMPLE)
def test_sample_of_timm_is_current(name: str) -> None:
    if index_version() != timm.__version__:
        pytest.skip(f"built from timm {index_version()}, installed is {timm.__version__}")
    assert_current(name)


@pytest.mark.slow
def test_whole_registry_is_current() -> None:
    if index_version() != timm.__version__:
        pytest.skip(f"built from timm {index_version()}, installed is {timm.__version__}")
    built = index_of([describe(name) for name in timm.list_models()])
    assert json.loads(json.dumps(built)) == read_index(), REBUILD


def test_equal_shapes_keep_only_the_facts_that_differ() -> None:
    index = index_of([describe(name) for name in ("vit_base_patch16_gap_224", "vit_base_patch16_siglip_gap_224", "test_vit")])
    groups = list(index["groups"].values())
    assert [len(group["members"]) for group in groups] == [2, 1]
    attributes = {name: member[2] for name, member in groups[0]["members"].items()}
    assert attributes["vit_base_patch16_gap_224"]["blocks.*.attn:num_heads"] == 16
    assert attributes["vit_base_patch16_siglip_gap_224"]["blocks.*.attn:num_heads"] == 12
    assert all(":img_size" not in key for key in attributes["vit_base_patch16_gap_224"])
    assert groups[1]["members"]["test_vit"][2] == {}
