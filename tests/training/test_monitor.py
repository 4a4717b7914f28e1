"""`monitor`: attention watched while a model trains, without changing the training by a bit."""

import copy
import io
import math
import random
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import overfocus
from overfocus.curves import ATTENTION as COLUMNS
from overfocus.curves import write_curves
from overfocus.errors import CaptureError, ImageError, RunError
from overfocus.monitoring import Monitor, unchanged
from overfocus.preprocessing import Preprocess
from overfocus.training.loop import Trainer

PREPROCESS = Preprocess((3, 16, 16), (0.5,) * 3, (0.25,) * 3, crop_pct=1.0)


class Small(nn.Module):
    """A ViT with dropout behind a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.vit = VisionTransformer(
            img_size=16, patch_size=4, embed_dim=16, depth=3, num_heads=2, num_classes=5, drop_rate=0.2, drop_path_rate=0.2
        )

    def forward(self, images: Tensor) -> Tensor:
        made: Tensor = self.vit(self.norm(images))
        return made


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Small()


@pytest.fixture
def images() -> Tensor:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    return torch.stack([PREPROCESS.normalize(image) for image in pixels])


def steps(model: nn.Module, count: int = 6) -> Iterator[Tensor]:
    """A short training whose every step draws random numbers of all kinds."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    model.train()
    for _ in range(count):
        batch = torch.randn(4, 3, 16, 16) * random.random() + float(np.random.rand())  # noqa: NPY002
        loss = nn.functional.cross_entropy(model(batch), torch.randint(0, 5, (4,)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield loss.detach()


@pytest.mark.parametrize("autocast", [False, True])
def test_the_training_is_the_same_to_the_last_bit(autocast: bool, model: nn.Module, images: Tensor) -> None:
    watched = copy.deepcopy(model)
    watched.vit.blocks[1].eval()  # a frozen part stays in its mode  # type: ignore[operator, union-attr, index]
    model.vit.blocks[1].eval()  # type: ignore[operator, union-attr, index]
    context: Any = torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext()
    with context:
        losses = [float(loss) for loss in steps(model)]
    ends = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    with context, overfocus.monitor(watched, images, every=1, preprocess=PREPROCESS) as watch:
        assert [float(loss) for loss in steps(watched) if watch(loss)] == losses
    assert torch.equal(torch.get_rng_state(), ends[0])
    assert random.getstate() == ends[1]
    assert np.random.get_state()[1].tolist() == ends[2]  # type: ignore[index]  # noqa: NPY002
    for (name, before), after in zip(model.state_dict().items(), watched.state_dict().values(), strict=True):
        assert torch.equal(before, after), name
    assert [module.training for module in model.modules()] == [module.training for module in watched.modules()]
    assert not any(module._forward_hooks for module in watched.modules())


def test_gradients_stay_between_backward_and_step(model: nn.Module, images: Tensor) -> None:
    model.train()(images).sum().backward()
    before = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    overfocus.monitor(model, images).measure()
    after = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))  # type: ignore[arg-type]


def test_what_is_measured(model: nn.Module, images: Tensor) -> None:
    watch = overfocus.monitor(model, images, every=2, preprocess=PREPROCESS)
    for loss in steps(model, 5):
        watch(loss)
    assert [row["step"] for row in watch.rows] == [2, 4]
    assert all(math.isfinite(row[name]) for row in watch.rows for name in COLUMNS)
    row = watch.measure()

    model.eval()
    with torch.no_grad(), overfocus.capture(model) as captured:
        model(images)
    first = captured.maps[0]
    entropy = overfocus.metrics.METRICS["row_entropy"](first.weights, prefix_tokens=1).mean()
    assert row["row_entropy_early"] == pytest.approx(float(entropy), abs=1e-5)
    queries, keys = first.source.source.query, first.source.source.key
    logits = queries @ keys.transpose(-2, -1) / math.sqrt(queries.shape[-1])
    watch.rows.clear()
    assert row["largest_logit_early"] >= float(logits.abs().max()) * 0.999  # corrupted images are among those measured
    assert row["retained_late"] <= 1


def test_of_uniform_attention_nothing_is_retained(model: nn.Module, images: Tensor) -> None:
    """Its maps differ by rounding alone, clean or corrupted."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "qkv" in name:
                parameter.mul_(1e-3)
    row = overfocus.monitor(model, images, preprocess=PREPROCESS).measure()
    assert math.isnan(row["retained_early"])
    assert row["effective_tokens_early"] == pytest.approx(1, abs=1e-4)


def test_without_a_way_to_corrupt_nothing_is_retained(model: nn.Module, images: Tensor) -> None:
    row = overfocus.monitor(model, images).measure()
    assert math.isnan(row["retained_early"])
    assert math.isfinite(row["top_share_early"])


def test_the_layer_whose_attention_became_nan_first_is_named(model: nn.Module, images: Tensor) -> None:
    watch = overfocus.monitor(model, images, every=2)
    for number, loss in enumerate(steps(model, 5)):
        watch(loss)
        if number == 2:  # in the weights of one layer, so in all layers after the next step
            model.vit.blocks[1].attn.qkv.weight.data[0, 0] = math.nan  # type: ignore[union-attr, index, operator]
    assert watch.first_nan == (4, "vit.blocks.1.attn")
    assert watch.find_nan() == "vit.blocks.1.attn"


def test_nan_is_found_before_anything_was_measured(model: nn.Module, images: Tensor) -> None:
    watch = overfocus.monitor(model, images, every=1000)
    model.vit.blocks[2].attn.qkv.weight.data.fill_(math.inf)  # type: ignore[union-attr, index, operator]
    watch(math.nan)
    assert watch.first_nan == (1, "vit.blocks.2.attn")


def test_distributed_and_compiled_models_are_run_inside(model: nn.Module, images: Tensor, tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        watch = overfocus.monitor(nn.parallel.DistributedDataParallel(model), images, every=1)
        assert watch(0.5) is not None
    finally:
        torch.distributed.destroy_process_group()


def test_images_files_and_loaded_models(model: nn.Module, images: Tensor, tmp_path: Path) -> None:
    pixels = [pixels_of(image) for image in images]
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    wrapped = overfocus.wrap(model.train(), PREPROCESS)
    by_path = overfocus.monitor(wrapped, sorted(tmp_path.glob("*.png"))).measure()
    assert by_path == overfocus.monitor(model, images, preprocess=PREPROCESS).measure()


def pixels_of(image: Tensor) -> np.ndarray[Any, Any]:
    pixels = (image * 0.25 + 0.5).mul(255).round().to(torch.uint8)
    made: np.ndarray[Any, Any] = pixels.permute(1, 2, 0).numpy()
    return made


def test_rows_go_to_a_file_and_images_to_a_writer(model: nn.Module, images: Tensor, tmp_path: Path) -> None:
    drawn = []
    log = tmp_path / "attention.csv"
    watch = overfocus.monitor(
        model, images, every=1, log=log, log_images=lambda title, image, step: drawn.append((title, image, step))
    )
    for loss in steps(model, 2):
        watch(loss)
    table = pd.read_csv(log)
    assert list(table.columns) == ["step", *COLUMNS]
    assert table["step"].tolist() == [1, 2]
    assert table["top_share_late"].tolist() == pytest.approx([row["top_share_late"] for row in watch.rows])
    title, image, step = drawn[-1]
    assert (title, step) == ("attention received", 2)
    assert image.shape == (3 * 96, 3 * 96, 3)
    assert (image[95:97] == 255).all()  # white lines part the maps
    assert (image[:, 191:193] == 255).all()
    assert (image < 255).any()
    assert image.dtype == np.uint8
    assert 0 < watch.overhead < 1


def test_heat_maps_reach_weights_and_biases(model: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through accelerate's tracker in `overfocus train`, and through Lightning's logger; wandb itself is replaced."""
    tracking = pytest.importorskip("accelerate.tracking")
    loggers = pytest.importorskip("lightning.pytorch.loggers")
    pytest.importorskip("accelerate").PartialState(cpu=True)  # which its trackers ask for the number of this process
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(Image=lambda image: image))
    watch = overfocus.monitor(model, images, every=2)
    logged: list[tuple[dict[str, Any], int]] = []

    class Tracker(tracking.WandBTracker):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            """No run of wandb."""

        def log(self, values: dict[str, Any], step: int, **_: Any) -> None:
            logged.append((values, step))

    class Logger(loggers.WandbLogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            """No run of wandb."""

        def log_metrics(self, metrics: dict[str, Any], step: int) -> None:
            logged.append((metrics, step))

    accelerator = SimpleNamespace(is_main_process=True, trackers=[Tracker()])
    training: Any = SimpleNamespace(watch=watch, step=2, accelerator=accelerator)
    Trainer._look(training)
    callback = watch.lightning_callback()
    callback.on_train_batch_end(SimpleNamespace(global_step=4, loggers=[Logger()]), None, None, None, 0)
    (train, _), (scalars, _), (lightning, _) = logged
    assert [step for _, step in logged] == [2, 4, 4]
    assert set(scalars) == {f"overfocus/{name}" for name in COLUMNS}
    for (drawn,) in (train["attention received"], lightning["overfocus/attention received"]):
        np.testing.assert_array_equal(drawn, watch.heat_maps())


def test_steps_that_repeat_or_jump_are_measured_once(model: nn.Module, images: Tensor) -> None:
    watch = overfocus.monitor(model, images, every=2, quiet=True)
    for step in (0, 0, 1, 1, 2, 2, 3, 6, 9, 9):  # accumulation repeats, several optimisers jump
        watch(step=step)
    assert [row["step"] for row in watch.rows] == [2, 6, 9]
    watch = overfocus.monitor(model, images, every=4, quiet=True)
    for step in (5, 6, 8):  # a training that goes on from step 4
        watch(step=step)
    assert [row["step"] for row in watch.rows] == [8]


def test_a_loss_that_is_nan_before_any_attention_names_no_layer(
    model: nn.Module, images: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    watch = overfocus.monitor(model, images, every=2)
    losses = steps(model, 4)
    for number, loss in enumerate(losses):
        if number == 1:  # from the head: all weights become NaN in this step, after a forward that was sound
            model.vit.head.weight.data.fill_(math.nan)  # type: ignore[union-attr]
        watch(loss if number == 0 else loss * math.nan)
    assert watch.first_nan is None
    told = capsys.readouterr().err
    assert "the loss became NaN or infinite at step 2, while every attention layer gave finite numbers" in told
    assert told.count("NaN") == 1


def test_what_is_said(model: nn.Module, images: Tensor, capsys: pytest.CaptureFixture[str]) -> None:
    with overfocus.monitor(model, images, every=2) as watch:
        for loss in steps(model, 4):
            watch(loss)
    assert f"overfocus: attention was measured 2 times, taking {watch.overhead:.2%} of" in capsys.readouterr().err
    watch.close()
    with overfocus.monitor(model, images, quiet=True) as watch:
        model.vit.blocks[0].attn.qkv.weight.data.fill_(math.nan)  # type: ignore[union-attr, index, operator]
        watch(math.nan)
    assert capsys.readouterr().err == ""


def test_copies_of_a_watched_model_are_not_watched(model: nn.Module, images: Tensor) -> None:
    with overfocus.monitor(model, images, quiet=True) as watch:
        saved = io.BytesIO()
        torch.save(model, saved)
        for copied in (copy.deepcopy(model), torch.load(io.BytesIO(saved.getvalue()), weights_only=False)):
            copied.train().vit.blocks[0].attn.qkv.weight.data.fill_(math.nan)
            copied(images)
        assert watch.find_nan() is None


def test_a_buffer_that_the_forward_replaces_is_put_back(model: nn.Module, images: Tensor) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, images: Tensor) -> Tensor:
            self.seen = self.seen + len(images)
            made: Tensor = self.model(images)
            return made

    counting = Counting()
    before = counting.seen
    overfocus.monitor(counting, images).measure()
    assert counting.seen is before
    assert float(before) == 0


def test_a_log_goes_on_and_other_files_are_not_replaced(model: nn.Module, images: Tensor, tmp_path: Path) -> None:
    log = tmp_path / "attention.csv"
    for first, last in ((1, 6), (5, 8)):  # killed after step 6, continued from the checkpoint of step 4
        watch = overfocus.monitor(model, images, every=2, log=log, quiet=True)
        for step in range(first, last + 1):
            watch(step=step)
    assert pd.read_csv(log)["step"].tolist() == [2, 4, 6, 8]
    other = tmp_path / "results.csv"
    other.write_text("name,value\na,1\n")
    with pytest.raises(RunError, match="expected the log of a training"):
        overfocus.monitor(model, images, log=other)
    assert other.read_text() == "name,value\na,1\n"


def test_a_log_that_cannot_be_written_does_not_end_the_training(
    model: nn.Module, images: Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    watch = overfocus.monitor(model, images, every=1, log=folder / "attention.csv")
    folder.rmdir()
    assert watch(0.5) is not None
    assert "attention.csv: cannot be written" in capsys.readouterr().err


def test_curves_of_a_log(model: nn.Module, images: Tensor, tmp_path: Path) -> None:
    log = tmp_path / "attention.csv"
    watch = overfocus.monitor(model, images, every=1, preprocess=PREPROCESS, log=log, quiet=True)
    for loss in steps(model, 3):
        watch(loss)
    page = write_curves(log, tmp_path / "curves.html").read_text()
    row = watch.rows[-1]
    assert f"<td>{watch.rows[0]['top_share_late']:.4g}</td><td>1</td><td>{row['top_share_late']:.4g}</td><td>3</td>" in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert write_curves(log, tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    log.write_text("step,<b>\n1,<script>\n")
    with pytest.raises(RunError, match="holds no values yet"):
        write_curves(log, tmp_path / "other.html")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"every": 0}, RunError, "every must be at least 1, got 0"),
        ({"images": torch.zeros(0, 3, 16, 16)}, ImageError, "got none"),
        ({"images": torch.zeros(3, 16, 16)}, ImageError, r"expected inputs \(images, channels"),
        ({"images": ["a.png"]}, RunError, "images need preprocess="),
        ({"images": ["a.png"], "preprocess": PREPROCESS}, ImageError, "a.png"),
        ({"severity": 9}, overfocus.CorruptionError, "9"),
        ({"corruption": "fogg"}, overfocus.CorruptionError, "fog"),
    ],
)
def test_what_cannot_be_watched(options: dict[str, Any], error: type[Exception], words: str, model: nn.Module) -> None:
    with pytest.raises(error, match=words):
        overfocus.monitor(model, options.pop("images", torch.zeros(2, 3, 16, 16)), **options)


def test_a_model_without_attention_is_refused(images: Tensor) -> None:
    with pytest.raises(CaptureError, match="no attention over tokens"):
        Monitor(nn.Conv2d(3, 3, 1), images, None, every=1, log=None, log_images=None).measure()


def test_a_forward_that_raises_leaves_no_trace(model: nn.Module) -> None:
    model.train()
    state = torch.get_rng_state()
    with pytest.raises(AssertionError), unchanged(model):
        model(torch.rand(1, 3, 17, 18))
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_overfocus_train_watches_into_its_log(train_tiny: Any) -> None:
    plain = train_tiny("plain")
    watched = train_tiny("watched", watch_every=2)
    weights = load_file(plain.checkpoint)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in load_file(watched.checkpoint).items())
    assert set(COLUMNS) <= set(watched.log.columns)
    assert watched.log["top_share_late"].notna().any()
    assert '<th scope="row"' in (watched.path / "curves.html").read_text()
    assert not set(COLUMNS) & set(plain.log.columns)
