"""What capture, metrics, TAP and ADL cost on a GPU: time, peak memory, launches and waits.

    python tests/benchmarks/gpu.py                    # every table; a few minutes on an H100
    python tests/benchmarks/gpu.py --only capture     # one of capture, peers, launches, training, analyze
    python tests/benchmarks/gpu.py --rounds 5         # fewer rounds

Ways run in turn within a round, each timed by events on the device; given are medians of milliseconds and of the ratios to the
plain forward of the same round. Peak memory is what a way allocates above the model and its inputs. Weights are random: nothing
here depends on them. The first lines name the card and the versions.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from tap import convolved_weights, unfolded_mixture
from timm.layers import set_fused_attn
from timm.utils import AttentionExtract
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import overfocus
from overfocus.attention import AttentionMap
from overfocus.capturing.sources import ArrangedWeights, Arrangement, MaterialisedWeights
from overfocus.metrics import ForwardMeasurement

DEVICE = torch.device("cuda")
Run = Callable[[], Any]

SIZES = [
    ("vit_tiny_patch16_224", 224, 64),
    ("vit_tiny_patch16_224", 224, 256),
    ("vit_small_patch16_224", 224, 64),
    ("vit_small_patch16_224", 224, 256),
    ("vit_base_patch16_224", 224, 64),
    ("vit_base_patch16_224", 224, 256),
    ("vit_small_patch16_224", 1024, 8),
]
"""Model, side of the images in pixels, images in a batch."""


def build(name: str, pixels: int, *, fused: bool = True) -> nn.Module:
    """A model with random weights on the device, in evaluation."""
    torch.manual_seed(0)
    set_fused_attn(fused)
    model: nn.Module = timm.create_model(name, img_size=pixels).eval().to(DEVICE)
    set_fused_attn(True)
    return model


def precision(dtype: torch.dtype) -> Any:
    """Automatic mixed precision, or none for float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast("cuda", dtype=dtype)


class Streaming:
    """Capture and all metrics of a model's forwards, as `analyze` does it: each image clean, then corrupted."""

    def __init__(self, model: nn.Module, images: Tensor, **arguments: Any) -> None:
        self.model, self.images = model, images
        self.measurement = ForwardMeasurement(**arguments)
        self.reference = [image // 8 * 8 for image in range(len(images))]

    def __enter__(self) -> "Streaming":
        self._block = overfocus.capture(self.model, reduce=self.measurement.add, norms=True)
        self.captured = self._block.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._block.__exit__(None, None, None)

    def __call__(self) -> Any:
        self.measurement.begin(self.reference)
        self.captured.clear()
        self.model(self.images)
        return self.measurement.finish(self.captured.norms)


def extract(model: nn.Module, images: Tensor) -> Any:
    """The maps that timm's extractor takes from an unfused model, measured by the same metrics."""
    extractor = AttentionExtract(model, method="hook")
    maps = extractor(images)
    extractor.hooks = None
    for module in model.modules():
        module._forward_hooks.clear()
    side = images.shape[-1] // 16
    measurement = ForwardMeasurement()
    measurement.begin([image // 8 * 8 for image in range(len(images))])
    for name, weights in maps.items():
        arrangement = Arrangement((("image",), ("head",)), ((-1,), (weights.shape[1],)))
        measurement.add(
            AttentionMap(
                name, "global", ArrangedWeights(MaterialisedWeights(weights), arrangement),
                prefix_tokens=1, key_prefix_tokens=1, grid=(side, side), key_grid=(side, side), image_grid=(side, side),
                precision=weights.dtype,
            )
        )  # fmt: skip
    return measurement.finish()


def opened(run: Run) -> Any:
    """The block in which a way runs: a capture is open over many forwards, so that opening it is not timed."""
    return run if isinstance(run, Streaming) else nullcontext()


def timed(runs: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each way in each round, by events on the device."""
    for run in runs.values():
        with opened(run):
            for _ in range(3):
                run()
    torch.cuda.synchronize()
    times: dict[str, list[float]] = {way: [] for way in runs}
    for _ in range(rounds):
        for way, run in runs.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            with opened(run):
                torch.cuda.synchronize()
                start.record()
                run()
                end.record()
                torch.cuda.synchronize()
            times[way].append(start.elapsed_time(end))
    return times


def peak(run: Run) -> float:
    """Megabytes that a run allocates at most, above what is held before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with opened(run):
        run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def report(title: str, runs: dict[str, Run], rounds: int) -> None:
    """Print one line per way; the first is what the others are compared with."""
    try:
        times = timed(runs, rounds)
    except torch.cuda.OutOfMemoryError as error:
        print(f"| {title} | out of memory: {str(error).splitlines()[0][:80]} | | | |", flush=True)
        torch.cuda.empty_cache()
        return
    plain = next(iter(runs))
    for way, run in runs.items():
        ratio = statistics.median(a / b for a, b in zip(times[way], times[plain], strict=True))
        print(f"| {title} | {way} | {statistics.median(times[way]):.2f} | {ratio:.2f} | {peak(run):.0f} |", flush=True)


def heading(*columns: str) -> None:
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)


@torch.inference_mode()
def capture_table(rounds: int) -> None:
    """Capture + all metrics ÷ plain forward."""
    heading("bf16, capture + all metrics, pairs, norms", "way", "ms", "÷ plain", "peak MB")
    for name, pixels, batch in SIZES:
        model, images = build(name, pixels), torch.randn(batch, 3, pixels, pixels, device=DEVICE)
        with precision(torch.bfloat16):
            runs: dict[str, Run] = {"plain": partial(model, images), "measured": Streaming(model, images)}
            report(f"{name}, {pixels} px, {batch}", runs, rounds)
        torch.cuda.empty_cache()


@torch.inference_mode()
def peers_table(rounds: int) -> None:
    """timm's extractor on an unfused model, and transformers' output_attentions, each with the same metrics."""
    heading("bf16, peers with the same metrics", "way", "ms", "÷ plain", "peak MB")
    for name, batch in (("vit_tiny_patch16_224", 64), ("vit_base_patch16_224", 64)):
        images = torch.randn(batch, 3, 224, 224, device=DEVICE)
        fused, unfused = build(name, 224), build(name, 224, fused=False)
        with precision(torch.bfloat16):
            runs: dict[str, Run] = {
                "plain, fused": partial(fused, images),
                "ours": Streaming(fused, images),
                "ours on the unfused model": Streaming(unfused, images),
                "AttentionExtract, unfused": partial(extract, unfused, images),
            }
            report(f"{name}, {batch}", runs, rounds)
    transformers_peer(rounds)


def transformers_peer(rounds: int) -> None:
    """ViT-B of transformers: output_attentions of the eager model (maps only, nothing measured) against ours on the fused one."""
    from transformers import ViTConfig, ViTModel

    images = torch.randn(64, 3, 224, 224, device=DEVICE)
    fused = ViTModel(ViTConfig(attn_implementation="sdpa")).eval().to(DEVICE)
    eager = ViTModel(ViTConfig(attn_implementation="eager")).eval().to(DEVICE)
    with precision(torch.bfloat16):
        runs: dict[str, Run] = {
            "plain, sdpa": partial(fused, images),
            "ours": Streaming(fused, images),
            "output_attentions, eager, no metrics": partial(eager, images, output_attentions=True),
        }
        report("transformers ViT-B, 64", runs, rounds)


@torch.inference_mode()
def launches_table() -> None:
    """Kernels that the profiler sees, a layer, and waits of the host."""
    heading("kernels a layer, ViT-B, bf16", "plain", "measured", "more", "waits a forward")
    for batch in (8, 64, 256):
        model, images = build("vit_base_patch16_224", 224), torch.randn(batch, 3, 224, 224, device=DEVICE)
        streaming = Streaming(model, images)
        with precision(torch.bfloat16):
            counted = [kernels_and_waits(run) for run in (partial(model, images), streaming)]
        (plain, others), (measured, waits) = counted
        print(
            f"| batch {batch} | {plain / 12:.1f} | {measured / 12:.1f} | {(measured - plain) / 12:.1f} | {waits - others} |",
            flush=True,
        )


def kernels_and_waits(run: Run) -> tuple[int, int]:
    """Kernels on the device and calls that make the host wait, of one run."""
    with opened(run):
        for _ in range(3):
            run()
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
            run()
    events = profiled.events()
    kernels = sum(1 for event in events if event.device_type == torch.autograd.DeviceType.CUDA and "Memcpy" not in event.name)
    waits = sum(1 for event in events if event.name in ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"))
    return kernels, waits


def training_table(rounds: int) -> None:
    """TAP against the same mixture by unfold, and a training step with TAP and ADL against one without."""
    from overfocus.losses import AttentionDiversificationLoss
    from overfocus.models import TokenAwareAveragePooling, add_tap

    heading("TAP and ADL, bf16", "way", "ms", "÷ baseline", "peak MB")
    tokens, grid = torch.randn(64, 196, 384, device=DEVICE), (14, 14)
    tap = TokenAwareAveragePooling(channels=384, branches=4).to(DEVICE).eval()
    with torch.inference_mode(), precision(torch.bfloat16):
        runs: dict[str, Run] = {
            "unfold": lambda: unfolded_mixture(tokens, convolved_weights(tokens, tap.predictor.proj, grid), grid),
            "TAP": lambda: tap(tokens, grid=grid),
        }
        report("TAP, 64 × 196 × 384", runs, rounds)
    images, labels = torch.randn(64, 3, 224, 224, device=DEVICE), torch.randint(0, 1000, (64,), device=DEVICE)

    def step_of(model: nn.Module, adl: bool) -> Run:
        optimiser = torch.optim.AdamW(model.parameters(), fused=True)
        loss_of = AttentionDiversificationLoss(threshold=2.0)

        def step() -> None:
            with precision(torch.bfloat16):
                if adl:
                    with overfocus.capture(model, gradients=True) as captured:
                        logits = model(images)
                    extra = loss_of([attention.weights for attention in captured.maps])
                else:
                    logits, extra = model(images), torch.zeros((), device=DEVICE)
                loss = torch.nn.functional.cross_entropy(logits, labels) + extra
            loss.backward()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

        return step

    baseline = build("vit_small_patch16_224", 224).train()
    ours = add_tap(build("vit_small_patch16_224", 224), branches=4).to(DEVICE).train()
    report("training step, ViT-S, 64", {"baseline": step_of(baseline, False), "TAP + ADL": step_of(ours, True)}, rounds)


def analyze_table() -> None:
    """`analyze` end to end in images a second, by the number of worker processes that corrupt for it."""
    heading("analyze, ViT-S, 128 images × gaussian noise 3", "images/s", "seconds")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "images"
        folder.mkdir()
        generator = np.random.default_rng(0)
        for number in range(128):
            Image.fromarray(generator.integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(folder / f"{number:03d}.png")
        model = build("vit_small_patch16_224", 224)
        for workers in (0, 4, 12):
            began = time.perf_counter()
            overfocus.analyze(
                overfocus.wrap(model, input_size=(3, 224, 224)), images=folder, corruptions=["gaussian_noise"], severities=[3],
                output=Path(place) / f"run-{workers}", device="cuda", workers=workers, batch_size=64,
            )  # fmt: skip
            seconds = time.perf_counter() - began
            print(f"| {workers} workers | {128 / seconds:.1f} | {seconds:.1f} |", flush=True)


def main() -> None:
    """Print the tables."""
    tables = {"capture": capture_table, "peers": peers_table, "launches": lambda _: launches_table(), "training": training_table}
    tables["analyze"] = lambda _: analyze_table()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=list(tables))
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(1, "no CUDA device here; the tables need one\n")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, timm {timm.__version__}")
    for name in arguments.only or tables:
        try:
            tables[name](arguments.rounds)
        except Exception as error:  # one table must not cost the others
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
