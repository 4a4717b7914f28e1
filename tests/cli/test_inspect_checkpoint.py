"""`overfocus inspect`: the facts of a checkpoint, for people and for scripts."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from typer.testing import Result

from overfocus.capturing.sources import QueryKeyWeights

Program = Callable[..., Result]


def test_facts_for_scripts(overfocus: Program, checkpoint: Path) -> None:
    facts = json.loads(overfocus("inspect", checkpoint, "--json").stdout)
    assert facts["architecture"] == "test_vit"
    assert facts["found_by"] == "arch"
    assert facts["input_size"] == [3, 160, 160]
    assert facts["parameters"] == sum(parameter.numel() for parameter in timm.create_model("test_vit").parameters())
    assert facts["missing_keys"] == facts["unexpected_keys"] == []
    assert len(facts["sha256"]) == 64
    sites = facts["attention"]
    assert [site["module"] for site in sites] == [f"blocks.{number}.attn" for number in range(len(sites))]
    assert all(site["kind"] == "global" and site["captured"] and site["grid"] == [10, 10] for site in sites)


def test_facts_for_people(overfocus: Program, checkpoint: Path) -> None:
    shown = overfocus("inspect", checkpoint).stdout
    for words in ("test_vit, found by: arch", "3 × 160 × 160", "blocks.0.attn", "101 × 101", "global"):
        assert words in shown


def test_keys_that_do_not_match_are_shown(overfocus: Program, tmp_path: Path) -> None:
    state = timm.create_model("test_vit").state_dict()
    del state["norm.bias"]
    state["teacher.temperature"] = torch.ones(1)
    torch.save({"arch": "test_vit", "state_dict": state}, tmp_path / "odd.pth")
    refused = overfocus("inspect", "odd.pth")
    assert refused.exit_code == 1
    assert "norm.bias" in refused.stderr
    assert "--lenient" in refused.stderr
    shown = overfocus("inspect", "odd.pth", "--lenient").stdout
    assert "1: norm.bias" in shown
    assert "1: teacher.temperature" in shown


def test_averaged_weights_are_preferred_and_said_so(overfocus: Program, tmp_path: Path) -> None:
    state = timm.create_model("test_vit").state_dict()
    averaged = {name: tensor + 0.01 for name, tensor in state.items()}
    torch.save({"arch": "test_vit", "state_dict": state, "state_dict_ema": averaged}, tmp_path / "both.pth")
    assert json.loads(overfocus("inspect", "both.pth", "--json").stdout)["weights_entry"] == "state_dict_ema"
    assert json.loads(overfocus("inspect", "both.pth", "--json", "--no-ema").stdout)["weights_entry"] == "state_dict"


def test_verification_for_people_and_scripts(overfocus: Program, checkpoint: Path) -> None:
    shown = overfocus("inspect", checkpoint, "--verify").stdout
    assert "identical to the bit" in shown
    assert "verified: yes" in shown
    found = json.loads(overfocus("inspect", checkpoint, "--verify", "--json").stdout)["verification"]
    assert found["passed"]
    assert found["identical"]
    assert all(0 <= site["output_error"] < 1e-4 and site["row_error"] < 1e-5 for site in found["sites"])


def test_verification_that_fails_exits_with_1(overfocus: Program, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = QueryKeyWeights.rows
    monkeypatch.setattr(QueryKeyWeights, "rows", lambda self, *where: exact(self, *where).roll(1, -1))
    result = overfocus("inspect", checkpoint, "--verify")
    assert result.exit_code == 1
    assert "verified: no" in result.stdout


def test_image_size_can_be_chosen(overfocus: Program, checkpoint: Path) -> None:
    facts = json.loads(overfocus("inspect", checkpoint, "--image-size", 64, "--json").stdout)
    assert facts["input_size"] == [3, 64, 64]
    assert facts["attention"][0]["grid"] == [4, 4]
