"""A masked autoencoder sees the visible patches alone, learns to fill in the others, and hands its encoder on."""

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from overfocus import load_model, train
from overfocus.errors import TrainingError
from overfocus.losses import diversify
from overfocus.models import add_tap
from overfocus.training.architecture import MaskedAutoencoder, MaskedAutoencoding, Reconstruction
from overfocus.training.train import Training

SIZE = (1, 32, 32)
FASHION = Path("/usr/share/datasets/fashion-mnist")
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


def vit(**arguments: object) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(**{**SMALL, "in_chans": 1, "num_classes": 0, **arguments})  # type: ignore[arg-type]


def encoders() -> dict[str, nn.Module]:
    with_tap = vit()
    add_tap(with_tap, branches=3)
    arguments = {"img_size": 64, "in_chans": 1, "num_classes": 0}
    return {
        "ViT": vit(),
        "ViT without class token": vit(class_token=False, global_pool="avg"),
        "ViT with registers": vit(reg_tokens=2),
        "ViT with TAP": with_tap,
        "Swin": timm.create_model("swin_tiny_patch4_window7_224", embed_dim=16, depths=(1, 1, 1, 1), window_size=2, **arguments),
        "FAN": timm.create_model("tap_fan_tiny_12_p16_224", in_chans=1, num_classes=0),
    }


@pytest.mark.parametrize("name", list(encoders()))
def test_every_encoder_gives_all_patches_and_masks_the_same_share(name: str) -> None:
    encoder = encoders()[name]
    side = 32 if name.startswith("ViT") else 64
    autoencoder = MaskedAutoencoder(encoder, (1, side, side), masking=0.5, width=32, depth=1)
    assert autoencoder.sees_visible_alone == (name.startswith("ViT") and "TAP" not in name)
    images = torch.rand(3, 1, side, side)
    output = autoencoder(images)
    count = autoencoder.grid[0] * autoencoder.grid[1]
    assert output.patches.shape == (3, count, side * side // count)
    assert output.masked.sum(1).tolist() == [count - round(count * 0.5)] * 3
    objective = MaskedAutoencoding()
    with diversify(objective.network(autoencoder)) as adl:
        loss = objective.loss(autoencoder(images), images) + adl.loss()
    loss.backward()
    assert all(parameter.grad is not None for parameter in autoencoder.blocks.parameters())
    assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in encoder.parameters())


@pytest.mark.parametrize("name", ["ViT", "ViT with registers", "ViT with TAP", "Swin"])
def test_masked_pixels_do_not_matter(name: str) -> None:
    encoder = encoders()[name]
    side = 32 if name.startswith("ViT") else 64
    autoencoder = MaskedAutoencoder(encoder, (1, side, side), masking=0.5, width=32, depth=1).eval()
    images = torch.rand(2, 1, side, side)
    with torch.no_grad():
        before = autoencoder(images)
        rows, columns = autoencoder.grid
        hidden = before.masked.view(2, 1, rows, columns).repeat_interleave(side // rows, 2).repeat_interleave(side // columns, 3)
        after = autoencoder(torch.where(hidden, torch.rand_like(images), images))
        torch.testing.assert_close(after.patches, before.patches, rtol=0, atol=1e-6)
        seen = autoencoder(torch.where(hidden, images, torch.rand_like(images)))
    assert not torch.allclose(seen.patches, before.patches, atol=1e-4)


def test_visible_tokens_keep_their_positions() -> None:
    """The encoder's output for the visible patches is that of a ViT that never had the others."""
    encoder = vit()
    autoencoder = MaskedAutoencoder(encoder, SIZE, masking=0.5, width=32, depth=1).eval()
    images = torch.rand(1, *SIZE)
    with torch.no_grad():
        masked = autoencoder(images).masked[0]
        tokens = encoder._pos_embed(encoder.patch_embed(images))
        kept = torch.cat([tokens[:, :1], tokens[:, 1:][:, ~masked]], dim=1)
        expected = encoder.norm(encoder.blocks(kept))[:, 1:]
        encoded = autoencoder._encoded(images, (~masked).nonzero().T, masked[None])
    torch.testing.assert_close(encoded, expected)


def test_patches_are_cut_and_normalised_like_numpy() -> None:
    autoencoder = MaskedAutoencoder(vit(in_chans=3), (3, 32, 32), width=32, depth=1)
    images = torch.rand(2, 3, 32, 32)
    patches = autoencoder.patches_of(images).numpy()
    for image in range(2):
        for number in range(16):
            row, column = divmod(number, 4)
            part = images[image, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8].numpy().transpose(1, 2, 0).ravel()
            expected = (part - part.mean()) / np.sqrt(part.var(ddof=1) + 1e-6)
            np.testing.assert_allclose(patches[image, number], expected, rtol=1e-4, atol=1e-5)


def test_loss_counts_masked_patches_alone() -> None:
    autoencoder = MaskedAutoencoder(vit(), SIZE, width=32, depth=1)
    objective = MaskedAutoencoding()
    images = torch.rand(2, *SIZE)
    target = autoencoder.patches_of(images)
    masked = torch.zeros(2, 16, dtype=torch.bool)
    masked[0, 3] = masked[1, 5] = masked[1, 6] = True
    wrong = target.clone()
    wrong[0, 3] += 3.0
    wrong[0, 4] += 100.0  # visible
    output = Reconstruction(wrong, target, masked)
    assert objective.loss(output, images).item() == pytest.approx(3.0)  # 9 of 3 patches
    assert objective.summarise(objective.score(output, images)) == {"validation_loss": pytest.approx(3.0)}
    assert objective.right(output, images).tolist() == [0, 0]


@pytest.mark.parametrize("masking", [0.01, 0.99])
def test_nothing_to_see_or_to_fill_in_is_told(masking: float) -> None:
    with pytest.raises(TrainingError, match="keeps and masks at least one"):
        MaskedAutoencoder(vit(), SIZE, masking=masking, width=32, depth=1)


def test_images_that_do_not_divide_are_told() -> None:
    encoder = timm.create_model("fan_tiny_12_p16_224", num_classes=0)  # its stem takes any size
    with pytest.raises(TrainingError, match="images of 72×64 do not divide into the encoder's 5×4 patches"):
        MaskedAutoencoder(encoder, (3, 72, 64), width=32, depth=1)
    with pytest.raises(TrainingError, match="Linear gives no feature maps"):
        MaskedAutoencoder(nn.Linear(2, 2), SIZE)


@pytest.mark.parametrize("tap", [None, 3])
def test_the_loss_falls_and_the_encoder_starts_a_classifier(train_tiny: Callable[..., Training], tap: int | None) -> None:
    data = Path(str(files("overfocus.samples") / "fashion_mnist"))
    changes = {
        "mixup": 0,
        "epochs": 60,
        "crop_scale": [0.8, 1.0],
        "batch_size": 20,
        "learning_rate": 3e-3,
        "decoder_width": 32,
        "adl": 0.1,
        "adl_threshold": 0.5,
    }
    changes |= {"drop_path": 0, "erasing": 0, "auto_augment": None}
    before = train_tiny(
        "mae",
        changes,
        data=data,
        validation=data,
        objective="mae",
        recipe="mae",
        model_args=SMALL,
        tap=tap,
        log_every=5,
        validate_every=30,
    )
    for column, share in (("loss", 0.95), ("validation_loss", 1.0)):
        losses = before.log[column].dropna()
        assert losses.iloc[-1] < share * losses.iloc[0]
    assert before.log["accuracy"].isna().all()
    assert before.log["adl"].iloc[-1] > 0
    pretrained = load_model(before.checkpoint)
    assert pretrained.num_classes == 0
    still = {"epochs": 1, "warmup_epochs": 0, "learning_rate": 1e-12, "batch_size": 20, "ema_decay": None, "weight_decay": 0}
    after = train_tiny("classifier", still, data=data, model=None, model_args=None, init=before.checkpoint)
    assert "new: head" in after.info.notes[0]
    ours, theirs = load_model(after.checkpoint).model.state_dict(), pretrained.model.state_dict()
    shared = [name for name in theirs if "running" not in name and "num_batches" not in name]
    assert len(ours) > len(theirs) > 20
    for name in shared:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(not FASHION.is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_the_loss_falls_on_fashion_mnist(train_tiny: Callable[..., Training]) -> None:
    changes = {"epochs": 3, "warmup_epochs": 0.5, "learning_rate": 2e-3, "reference_batch": None, "batch_size": 100, "mixup": 0}
    changes |= {"ema_decay": None, "drop_path": 0, "erasing": 0, "auto_augment": None, "decoder_width": 64, "adl": 0.1}
    arguments = SMALL | {"patch_size": 4, "embed_dim": 64}
    training = train_tiny(
        "mae", changes, data=FASHION, objective="mae", recipe="mae", limit=3000, model_args=arguments, tap=4, log_every=20
    )
    losses = training.log["validation_loss"].dropna()
    assert losses.is_monotonic_decreasing
    assert losses.iloc[-1] < 0.8 * training.log["loss"].iloc[0]


def test_a_continued_autoencoder_ends_the_same(train_tiny: Callable[..., Training], monkeypatch: pytest.MonkeyPatch) -> None:
    from overfocus.training.loop import Trainer

    def run(name: str) -> Training:
        return train_tiny(name, {"mixup": 0, "decoder_width": 32, "decoder_depth": 1}, objective="mae", model_args=SMALL)

    whole = load_model(run("whole").checkpoint).model.state_dict()
    original = Trainer.save

    def save_and_stop(trainer: Trainer) -> None:
        original(trainer)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            run("stopped")
    continued = load_model(run("stopped").checkpoint).model.state_dict()
    assert all(torch.equal(whole[name], continued[name]) for name in whole)


def test_images_need_no_labels(train_tiny: Callable[..., Training]) -> None:
    data = Path(str(files("overfocus.samples") / "photographs"))  # one folder of images
    changes = {"mixup": 0, "epochs": 1, "warmup_epochs": 0, "batch_size": 4, "decoder_width": 32, "auto_augment": None}
    training = train_tiny("mae", changes, data=data, objective="mae", recipe="mae", model_args=SMALL)
    assert training.info.settings.class_names == []
    assert load_model(training.checkpoint).input_size == (3, 32, 32)


def test_another_objective_does_not_continue_it(train_tiny: Callable[..., Training]) -> None:
    train_tiny("mae", {"mixup": 0, "decoder_width": 32}, objective="mae", model_args=SMALL, recipe="mae")
    with pytest.raises(TrainingError, match="objective mae there, supervised asked for"):
        train_tiny("mae", {"mixup": 0, "decoder_width": 32}, model_args=SMALL, recipe="mae")


def test_unknown_objective_is_told(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="objective must be supervised or mae"):
        train(tmp_path, tmp_path / "out", model="vit_tiny_patch16_224", objective="simclr")
