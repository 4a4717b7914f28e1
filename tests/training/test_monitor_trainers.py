"""`monitor` in the trainers that people use: Lightning's, that of transformers, and processes that train together.

What is watched must end with the same weights, bit for bit, as what is not.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import overfocus
from overfocus.curves import ATTENTION
from overfocus.preprocessing import Preprocess

pytestmark = pytest.mark.slow

PREPROCESS = Preprocess((3, 16, 16), (0.5,) * 3, (0.25,) * 3, crop_pct=1.0)
NAMES = {f"overfocus/{name}" for name in ATTENTION}


def small_vit() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(img_size=16, patch_size=4, embed_dim=16, depth=3, num_heads=2, num_classes=5, drop_rate=0.2)


def inputs(count: int = 3) -> Tensor:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), np.uint8)
    return torch.stack([PREPROCESS.normalize(image) for image in pixels])


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(*pair) for pair in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_lightning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lightning = pytest.importorskip("lightning.pytorch")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Classifier(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.vit = small_vit()

        def training_step(self, batch: list[Tensor], _number: int) -> Tensor:
            loss: Tensor = nn.functional.cross_entropy(self.vit(batch[0]), batch[1])
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), 1e-3)

    data = torch.utils.data.TensorDataset(inputs(24), torch.arange(24) % 5)
    ends = []
    for watched in (False, True):
        module = Classifier()
        watch = overfocus.monitor(module.vit, inputs(), every=2, preprocess=PREPROCESS)
        logger = lightning.loggers.TensorBoardLogger(tmp_path, name=str(watched))
        lightning.seed_everything(1, verbose=False)
        trainer = lightning.Trainer(
            max_steps=5,
            accumulate_grad_batches=2,
            accelerator="cpu",
            logger=logger,
            callbacks=[watch.lightning_callback()] if watched else [],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            log_every_n_steps=1,
        )
        trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=2, shuffle=True))
        ends.append(module)
    assert same(*ends)
    assert [row["step"] for row in watch.rows] == [2, 4]
    events = EventAccumulator(str(Path(logger.log_dir)))
    events.Reload()
    assert set(events.Tags()["scalars"]) >= NAMES
    assert [event.step for event in events.Scalars("overfocus/top_share_late")] == [2, 4]
    assert events.Tags()["images"] == ["overfocus/attention received"]
    assert "attention was measured 2 times" in capsys.readouterr().err


def test_overfocus_train(train_tiny: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    training = train_tiny(watch_every=2, trackers=["tensorboard"], progress=True)
    file = max(training.path.rglob("events*"), key=lambda path: path.stat().st_size)  # beside it, one of hyperparameters
    events = EventAccumulator(str(file))
    events.Reload()
    measured = training.log.dropna(subset=["top_share_late"])
    for name in ("top_share_late", "effective_tokens_early", "row_entropy_late", "largest_logit_late", "retained_late"):
        known = measured.dropna(subset=[name])  # where attention is uniform but for rounding, nothing is retained
        recorded = events.Scalars(name) if name in events.Tags()["scalars"] else []
        assert len(known) or name == "retained_late"
        assert [event.step for event in recorded] == known["step"].tolist()
        assert [event.value for event in recorded] == pytest.approx(known[name].tolist())
    assert [event.step for event in events.Images("attention received")] == measured["step"].tolist()
    assert "overfocus: attention was measured" in capsys.readouterr().err


def classifier(**options: Any) -> Any:
    """A ViT of transformers."""
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(**size, image_size=16, patch_size=4, num_labels=5, **options)
    )


def trainer_of(model: Any, folder: Path, **options: Any) -> Any:
    """The Trainer of transformers on two images a batch."""
    transformers = pytest.importorskip("transformers")
    data = [{"pixel_values": image, "labels": number % 5} for number, image in enumerate(inputs(24))]
    fixed = {"per_device_train_batch_size": 2, "save_strategy": "no", "use_cpu": True, "disable_tqdm": True}
    arguments = transformers.TrainingArguments(output_dir=str(folder), **fixed, **options)
    return transformers.Trainer(model=model, args=arguments, train_dataset=data)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_transformers(attention: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    ends, trainers, watch = [], [], None
    for watched in (False, True):
        torch.manual_seed(0)
        model = classifier(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1, attn_implementation=attention)
        own = {"max_steps": 5, "gradient_accumulation_steps": 2, "logging_steps": 2, "report_to": ["tensorboard"], "seed": 1}
        trainer = trainer_of(model, tmp_path / str(watched), **own)
        if watched:
            watch = overfocus.monitor(model, inputs(), every=2, preprocess=PREPROCESS)
            trainer.add_callback(watch.transformers_callback(trainer))
        trainer.train()
        ends.append(model)
        trainers.append(trainer)
    assert same(*ends)
    assert watch is not None
    assert [row["step"] for row in watch.rows] == [2, 4]
    plain, logged = ([row for row in trainer.state.log_history if "loss" in row] for trainer in trainers)
    assert [(row["step"], row["loss"]) for row in plain] == [(row["step"], row["loss"]) for row in logged]
    own = [row for row in trainers[1].state.log_history if "overfocus/top_share_late" in row]
    assert [row["step"] for row in own] == [2, 4]
    files = sorted((tmp_path / "True").rglob("events*"))
    events = EventAccumulator(str(files[0]))
    events.Reload()
    tags = {tag.removeprefix("train/") for tag in events.Tags()["scalars"]}
    assert tags >= NAMES
    assert "loss" in tags
    assert "attention was measured 2 times" in capsys.readouterr().err


def test_transformers_names_the_layer_although_it_hides_the_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transformers = pytest.importorskip("transformers")
    model = classifier()
    trainer = trainer_of(model, tmp_path, max_steps=6, logging_steps=1, report_to=[])
    watch = overfocus.monitor(model, inputs(), every=1000)
    trainer.add_callback(watch.transformers_callback())
    with torch.no_grad(), overfocus.capture(model) as captured:
        model(inputs())
    second = captured.maps[1].module

    class Breaking(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        def on_step_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
            if state.global_step == 3:
                next(model.get_submodule(second).parameters()).data.fill_(float("nan"))

    trainer.add_callback(Breaking())
    trainer.train()
    assert watch.first_nan is not None
    assert watch.first_nan == (4, second)
    assert f"NaN or infinity at step 4: {second}" in capsys.readouterr().err


def train_together(rank: int, folder: str, how: str, watched: bool) -> None:
    """One of two processes; its weights at the end go to a file, and the second one's loss becomes NaN."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/{how}-{watched}", rank=rank, world_size=2)
    model: nn.Module = small_vit()
    if how == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (2,))
        for block in model.blocks:  # type: ignore[union-attr]
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        trained = model
    else:
        trained = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(trained.parameters(), 1e-3)
    torch.manual_seed(rank)
    log = Path(folder) / f"{how}.csv"
    watch = overfocus.monitor(trained, inputs(), every=2, preprocess=PREPROCESS, log=log) if watched else None
    for step in range(1, 7):
        batch = torch.randn(4, 3, 16, 16) * (float("nan") if (step, rank) == (6, 1) else 1.0)
        loss = nn.functional.cross_entropy(trained(batch), torch.randint(0, 5, (4,)))
        if step < 6:
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        if watch is not None:
            watch(loss)
    state = {
        name: tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # all processes
        for name, tensor in model.state_dict().items()
    }
    torch.save(state, f"{folder}/{how}-{watched}-{rank}.pt")
    if watch is not None:
        watch.close()
        named = None if watch.first_nan is None else watch.first_nan[1]
        Path(f"{folder}/{how}-{rank}.txt").write_text(str(named))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_two_processes(how: str, tmp_path: Path) -> None:
    for watched in (False, True):
        torch.multiprocessing.spawn(train_together, (str(tmp_path), how, watched), nprocs=2)  # type: ignore[no-untyped-call]
    for rank in range(2):
        plain, seen = (torch.load(tmp_path / f"{how}-{watched}-{rank}.pt", weights_only=True) for watched in (False, True))
        assert all(torch.equal(tensor, seen[name]) for name, tensor in plain.items())
    assert pd.read_csv(tmp_path / f"{how}.csv")["step"].tolist() == [2, 4, 6]  # written by the first process alone
    assert (tmp_path / f"{how}-1.txt").read_text() == "blocks.0.attn"
    assert (tmp_path / f"{how}-0.txt").read_text() == "None"
