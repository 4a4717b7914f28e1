"""Kill a command with SIGKILL at random moments, start it again, and see that what it leaves is that of one undisturbed.

    python kills.py FOLDER COMMAND PROCESSES MOMENTS SEED

A moment is counted in file events (files opened for reading or writing, renamed, deleted, folders made), not in time, so that
nothing depends on how busy the machine is. Torch is imported once and each start is a fork. Two processes find each other as
those of torchrun do; when one is killed, the other is told to end, as torchrun does.
"""

import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from overfocus_cli.main import app

MEASURE = ["--workers", "0", "--device", "cpu", "--batch-size", "2"]
VARIANTS = ["--corruption", "fog", "--severity", "3"]
COMMANDS = {
    "analyze": ["analyze", "a.pth", "--images", "photos", "--no-report", *MEASURE, *VARIANTS],
    "compare": ["compare", "a.pth", "b.pth", "--images", "photos", "--no-report", "--resamples", "50", *MEASURE, *VARIANTS],
    "evaluate": ["evaluate", "a.pth", "--data", "photos", *MEASURE, *VARIANTS],
    "ablate": ["ablate", "a.pth", "--images", "photos", "--fraction", "0.1", *MEASURE, *VARIANTS],
    "train": [
        *["train", "photos", "--init", "a.pth", "--epochs", "2", "--learning-rate", "0.001", "--save-every", "1"],
        *["--log-every", "1", *MEASURE],
    ],
}
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir")
PATIENCE = 300
"""Seconds that a start may take, on a machine that does other things."""


def make_room(folder: Path) -> None:
    import timm

    for number, name in enumerate(("a", "b")):
        torch.manual_seed(number)
        model = timm.create_model("test_vit", num_classes=2, img_size=32)
        state = {"arch": "test_vit", "model_args": {"num_classes": 2, "img_size": 32}, "state_dict": model.state_dict()}
        torch.save(state, folder / f"{name}.pth")
    for number in range(6):
        path = folder / "photos" / "xy"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)).save(path)


def start(arguments: list[str], rank: int, count: int, port: int, kill_at: int | None) -> int:
    """The process of a fork that runs the program, and kills itself at that file event."""
    process = os.fork()
    if process:
        return process
    if count > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    output = os.open(f"log-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    seen = 0
    here = str(Path.cwd())

    def count_events(event: str, details: Any) -> None:
        nonlocal seen
        if event in EVENTS and isinstance(details[0], str) and (details[0].startswith(here) or not details[0].startswith("/")):
            seen += 1
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count_events)
    status = 1
    try:
        app(arguments, prog_name="overfocus")
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    finally:
        sys.stdout.flush()
        Path(f"seen-{rank}").write_text(str(seen))
        os._exit(status)


def run(arguments: list[str], count: int, victim: int = -1, kill_at: int | None = None) -> list[int]:
    """Exit statuses of so many processes that work together, negative where a signal ended one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    living = {start(arguments, rank, count, port, kill_at if rank == victim else None): rank for rank in range(count)}
    statuses = [0] * count
    until = time.monotonic() + PATIENCE
    while living:
        ended, status = os.waitpid(-1, os.WNOHANG)
        if not ended:
            if time.monotonic() > until:
                for process in living:
                    os.kill(process, signal.SIGKILL)
                raise SystemExit(f"{' '.join(arguments)}: no end in sight; " + Path("log-0.txt").read_text()[-2000:])
            time.sleep(0.02)
            continue
        if ended not in living:
            continue
        statuses[living.pop(ended)] = os.waitstatus_to_exitcode(status)
        if os.waitstatus_to_exitcode(status) < 0:
            for process in living:
                os.kill(process, signal.SIGTERM)
    return statuses


def content(folder: Path) -> dict[str, Any]:
    """What a command left, by the names of its files: tables and weights to the bit, of the rest that it is there."""
    import pandas as pd
    from safetensors.torch import load_file

    read: dict[str, Callable[[Path], Any]] = {
        ".parquet": lambda path: pd.read_parquet(path).to_csv(index=False),
        ".safetensors": lambda path: {name: tensor.numpy().tobytes() for name, tensor in load_file(path).items()},
    }
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "trackers" not in path.parts:  # files of TensorBoard are named after the time
            name = path.relative_to(folder).as_posix()
            if "/part-" in name:  # how many parts there are depends on the clock
                table = found.setdefault(name.partition("/part-")[0], [])
                table.append(pd.read_parquet(path))
            elif "/received-" not in name:
                found[name] = read.get(path.suffix, lambda _: None)(path)
    return {
        name: pd.concat(value, ignore_index=True).to_csv(index=False) if isinstance(value, list) else value
        for name, value in found.items()
    }


def main(folder: Path, command: str, count: int, moments: int, seed: int) -> None:
    os.chdir(folder)
    torch.set_num_threads(1)
    make_room(folder)
    arguments = COMMANDS[command]
    whole = [*arguments, "--output", "whole"]
    if any(run(whole, count)):
        raise SystemExit(Path("log-0.txt").read_text())
    events = [int(Path(f"seen-{rank}").read_text()) for rank in range(count)]
    expected = content(Path("whole"))
    draws = random.Random(seed)
    for moment in range(moments):
        output = f"killed-{moment}"
        started = [*arguments, "--output", output]
        victim = draws.randrange(count)
        kill_at = draws.randint(1, max(1, events[victim]))
        said = f"{command}, {count} processes, {victim} killed at file event {kill_at} of {events[victim]}"
        killed = run(started, count, victim, kill_at)
        if killed[victim] not in (-signal.SIGKILL, 0):  # 0: an event late in the run came earlier than the last time
            raise SystemExit(f"{said}: ended with {killed}\n" + Path(f"log-{victim}.txt").read_text()[-2000:])
        if any(run(started, count)):
            raise SystemExit(f"{said}: cannot be continued\n" + Path("log-0.txt").read_text()[-2000:])
        left = content(Path(output))
        different = [name for name in left.keys() | expected.keys() if left.get(name, "") != expected.get(name, "")]
        if different:
            raise SystemExit(f"{said}: other content of {sorted(different)}")
        print(f"{said}: same", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:6]))
