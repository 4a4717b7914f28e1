"""Models by their timm name."""

import pytest
import timm
import torch

from overfocus import CheckpointError, load_model


def test_trained_weights_come_through_timm(monkeypatch: pytest.MonkeyPatch, tmp_path, vit) -> None:
    path = tmp_path / "weights.pth"
    torch.save(vit.state_dict(), path)
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **arguments):  # the hub is replaced by a file, timm does the rest
        overlay = {"file": str(path), "hf_hub_id": None, "url": ""} if pretrained else None
        return create(name, pretrained=pretrained, pretrained_cfg_overlay=overlay, **arguments)

    monkeypatch.setattr(timm, "create_model", offline)
    loaded = load_model("test_vit")
    torch.testing.assert_close(loaded.model.state_dict(), vit.state_dict())
    assert (loaded.name, loaded.found_by, loaded.sha256, loaded.num_classes) == ("test_vit", "name", None, 1000)
    assert not any("assumed" in note or "RANDOM" in note for note in loaded.notes)
    assert load_model("test_vit", image_size=96).input_size == (3, 96, 96)


def test_no_connection_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    from huggingface_hub import constants

    def unresolved(*_: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr("socket.getaddrinfo", unresolved)
    with pytest.raises(CheckpointError) as caught:
        load_model("test_vit")
    assert "the hub cannot be reached" in str(caught.value)
    assert "pass a checkpoint file" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not constants.HF_HUB_OFFLINE


def test_random_weights_only_on_request_and_said_loudly() -> None:
    loaded = load_model("test_vit", pretrained=False)
    assert loaded.notes[0].startswith("WEIGHTS ARE RANDOM")
    assert loaded.weights_entry == "random"
    assert loaded.model(torch.rand(1, *loaded.input_size)).shape == (1, 1000)


def test_name_with_a_tag() -> None:
    loaded = load_model("vit_tiny_patch16_224.augreg_in21k", pretrained=False)
    assert loaded.name == "vit_tiny_patch16_224"
    assert loaded.num_classes == 21843


def test_name_without_trained_weights() -> None:
    with pytest.raises(CheckpointError, match="pass a checkpoint file"):
        load_model("vit_small_patch14_dinov2.nonsense")


def test_unknown_name_lists_the_nearest() -> None:
    with pytest.raises(CheckpointError) as caught:
        load_model("vit_smal_patch16_224")
    assert "vit_small_patch16_224" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_name_of_nothing() -> None:
    with pytest.raises(CheckpointError, match="overfocus list models"):
        load_model("qqqqqqqq")
