"""How cost grows with tokens, batch, depth and images: time and memory, one process for each cell.

    python tests/benchmarks/costs.py                          # every table
    python tests/benchmarks/costs.py --table images --most 10000

tokens, batch, depth: capture with every metric, ViT-Ti with random weights; processor time ÷ the plain forward (medians of
rounds in turn) and peak memory above the plain forward's. Rows to 16,384 tokens need some minutes.
images: a run folder of so many images × 75 variants and the control × 12 layers, of random values (100 kB an image); seconds,
processor time and peak memory (torch's 0.8 GB included) of a process for each: resuming (run.json read, every part looked at);
reading (the same, then every metric's mean and interval by variant and layer, `Run.summary`, and the verdict on overfocusing);
and comparing (the same check, then the paired difference of one metric of stability between the run and itself opened twice).
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import timm
import torch
from capture import peak_memory, stream
from PIL import Image
from side_by_side import measure, median_ratio

import overfocus
from overfocus.corruptions import CORRUPTIONS, SEVERITIES
from overfocus.runs.description import ImageEntry, RunDescription, encode_description, read_description
from overfocus.runs.folder import RunFolder, read_table, write_table
from overfocus.statistics.differences import paired_differences
from overfocus.statistics.panel import over_layers, read_panel, with_every
from overfocus.statistics.verdicts import judge_overfocusing
from overfocus.variants import CLEAN, CONTROL_VARIANT, Variant

TOKENS = (196, 784, 1024, 4096, 16_384)
BATCHES = (1, 4, 16, 64)
DEPTHS = (2, 6, 12, 24)
IMAGES = (10, 100, 1000, 10_000, 50_000)
VARIANTS, LAYERS, PART = 75, 12, 64
LOOKS = ("resume", "read", "compare")
"""What is done with a run folder."""


def main() -> None:
    """Print the tables asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="append", choices=("tokens", "batch", "depth", "images"))
    parser.add_argument("--most", type=int, help="leave out larger rows")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cell", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cell:
        print(json.dumps(cell(*arguments.cell)))
        return
    tables = {"tokens": TOKENS, "batch": BATCHES, "depth": DEPTHS}
    for name in arguments.table or (*tables, "images"):
        sizes = [size for size in tables.get(name, IMAGES) if arguments.most is None or size <= arguments.most]
        if name == "images":
            show_images(sizes)
            continue
        print(f"\n| {name} | plain, s | measured ÷ plain, processor time | MB above plain |\n|---|---|---|---|")
        for size in sizes:
            tokens, batch, depth = ({"tokens": 196, "batch": 4 if name == "depth" else 1, "depth": 2} | {name: size}).values()
            shape = [str(number) for number in (tokens, batch, depth)]
            timed = in_process("time", *shape, str(arguments.rounds))
            memory = [in_process(way, *shape)["mb"] for way in ("plain", "measured")]
            print(f"| {size:,} | {timed['plain']:.3f} | {timed['ratio']:.2f} | {memory[1] - memory[0]:+.0f} |", flush=True)


def in_process(*what: str) -> dict[str, Any]:
    """A cell measured in a process of its own."""
    command = [sys.executable, __file__, "--cell", *what]
    found: dict[str, Any] = json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    )
    return found


def cell(way: str, *numbers: str) -> dict[str, Any]:
    """What one process measures."""
    if way in LOOKS:
        return look(way, Path(numbers[0]))
    tokens, batch, depth, *rounds = map(int, numbers)
    torch.manual_seed(0)
    side = 16 * round(tokens**0.5)
    model = timm.create_model("vit_tiny_patch16_224", img_size=side, depth=depth).eval()
    images = torch.randn(batch, 3, side, side)
    forms = {"plain": lambda: model(images), "measured": lambda: stream(model, images)}
    with torch.inference_mode():
        if way == "time":
            times = measure(forms, rounds[0], warm_up=2)
            return {
                "plain": statistics.median(times["wall"]["plain"]),
                "ratio": median_ratio(times, "processor", "measured", "plain"),
            }
        before = peak_memory()
        forms[way]()
        return {"mb": peak_memory() - before}


def show_images(sizes: list[int]) -> None:
    """The table of run folders."""
    columns = [f"{way}, {unit}" for way in LOOKS for unit in ("s", "processor", "MB")]
    print(f"\n| images | rows | {' | '.join(columns)} |\n|{'---|' * (2 + len(columns))}")
    with tempfile.TemporaryDirectory() as work:
        for size in sizes:
            folder = simulate(Path(work), size)
            cells = [f"{size:,}", f"{size * (VARIANTS + 2) * LAYERS:,}"]
            for way in LOOKS:
                try:
                    found = in_process(way, str(folder))
                    cells += [f"{found['seconds']:.1f}", f"{found['processor']:.1f}", f"{found['mb']:.0f}"]
                except subprocess.CalledProcessError as error:
                    cells += [f"failed ({error.returncode})", "", ""]
            print(f"| {' | '.join(cells)} |", flush=True)
            shutil.rmtree(folder)


def simulate(work: Path, images: int) -> Path:
    """A complete run of so many images; each part has the same values."""
    small, folder = work / "small", work / f"run-{images}"
    if not small.exists():
        torch.manual_seed(0)
        model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=LAYERS, num_classes=5)
        loaded = overfocus.wrap(model, input_size=(3, 32, 32), mean=(0, 0, 0), std=(1, 1, 1))
        photos = work / "photos"
        photos.mkdir()
        for number in range(2):
            pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(photos / f"{number}.png")
        asked = {"corruptions": [CORRUPTIONS[0]], "severities": [1], "workers": 0, "device": "cpu", "progress": False}
        overfocus.analyze(loaded, photos, output=small, **asked)
    description = read_description(small / "run.json", RunDescription)
    starts = list(range(0, images, PART))
    corruptions, severities = list(CORRUPTIONS[: VARIANTS // len(SEVERITIES)]), list(SEVERITIES)
    description = replace(
        description,
        done=images,
        parts=starts,
        images=[ImageEntry(image=number, name=f"class/{number:05d}.jpg", label="class") for number in range(images)],
        settings=replace(description.settings, corruptions=corruptions, severities=severities),
    )
    variants = [Variant(CLEAN, 0), *(Variant(name, severity) for name in corruptions for severity in severities)]
    random = np.random.default_rng(0)
    for kind, of_item, layers in (("metrics", [*variants, CONTROL_VARIANT], LAYERS), ("predictions", variants, 1)):
        (folder / kind).mkdir(parents=True)
        one = read_table([next((small / kind).glob("part-*.parquet"))])
        repeats = len(of_item) * layers
        full = one.take(np.resize(np.arange(one.num_rows), PART * repeats))
        own: dict[str, Any] = {
            "corruption": np.tile(np.repeat([variant.corruption for variant in of_item], layers), PART),
            "severity": np.tile(np.repeat(np.int32([variant.severity for variant in of_item]), layers), PART),
            "layer": np.tile(np.arange(layers, dtype=np.int32), PART * len(of_item)),
        }
        for name in full.schema.names:
            if full.schema.field(name).type == "float":
                own[name] = random.random(PART * repeats, dtype=np.float32)
            if name in own:
                full = full.set_column(full.schema.get_field_index(name), name, pa.array(own[name]))
        for start in starts:
            numbers = np.repeat(np.arange(start, min(start + PART, images)), repeats)
            part = full.slice(0, len(numbers)).set_column(full.schema.get_field_index("image"), "image", pa.array(numbers))
            write_table(folder / kind / f"part-{start:05d}.parquet", part)
    (folder / "run.json").write_bytes(encode_description(description))
    return folder


def look(way: str, folder: Path) -> dict[str, float]:
    """Seconds, processor time and the process's peak megabytes of one of `LOOKS` at a run."""
    began, used = time.perf_counter(), time.process_time()
    wanted = read_description(folder / "run.json", RunDescription)
    per_item = {"metrics": (VARIANTS + 2) * LAYERS, "predictions": VARIANTS + 1}
    there = RunFolder(folder).verified(wanted, per_item)
    assert there.done == len(wanted.images)
    if way == "read":
        run = overfocus.Run(folder)
        assert run.summary()["count"].max() == there.done
        assert judge_overfocusing(run).effective.count == there.done
    if way == "compare":
        panels = [read_panel(overfocus.Run(folder)) for _ in range(2)]
        means = over_layers(panels, [panel.values["js_divergence"] for panel in panels], "all")
        values, _ = with_every(means, panels[0].corrupted)
        found = paired_differences(values[0][None], values[1][None])
        assert (found.count[panels[0].corrupted] == there.done).all()
        assert not found.difference[panels[0].corrupted].any()
    return {"seconds": time.perf_counter() - began, "processor": time.process_time() - used, "mb": peak_memory()}


if __name__ == "__main__":
    main()
