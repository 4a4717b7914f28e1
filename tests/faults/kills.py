"""End a command by a signal at random moments, start it again, and see that what it leaves is that of one undisturbed.

    python kills.py FOLDER COMMAND PROCESSES MOMENTS SEED SIGNAL

A moment is counted in file events (files opened for reading or writing, renamed, deleted, folders made), not in time, so that
nothing depends on how busy the machine is. What a start imports is imported once, and each start is a fork. Two processes find
each other as those of torchrun do; when one is killed, the other is told to end, as torchrun does. Signals other than SIGKILL
go to the program and the process that reads images for it, as a terminal sends them, and are answered in one line.
"""

import contextlib
import importlib
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
import psutil
import torch
from PIL import Image

from overfocus_cli.main import run as run_program

MEASURE = ["--device", "cpu", "--batch-size", "2"]
VARIANTS = ["--corruption", "fog", "--severity", "3"]
COMMANDS = {
    "analyze": ["analyze", "a.pth", "--images", "photos", "--no-report", *MEASURE, *VARIANTS],
    "compare": ["compare", "a.pth", "b.pth", "--images", "photos", "--no-report", "--resamples", "50", *MEASURE, *VARIANTS],
    "evaluate": ["evaluate", "a.pth", "--data", "photos", *MEASURE, *VARIANTS],
    "ablate": ["ablate", "a.pth", "--images", "photos", "--fraction", "0.1", *MEASURE, *VARIANTS],
    "train": [
        *["train", "photos", "--init", "a.pth", "--epochs", "2", "--learning-rate", "0.001", "--save-every", "1"],
        *["--log-every", "1", "--tap", "2", "--adl", "0.5", "--set", "ema_decay=0.9", *MEASURE],
    ],
}
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir")
PATIENCE = 300
"""Seconds in which a start may use no processor time: one that hangs uses none, on a machine that is ever so busy."""


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


def start(arguments: list[str], rank: int, count: int, port: int, end: tuple[int, int] | None) -> int:
    """The process of a fork that runs the program, and at `end`, a signal and a file event, sends itself that signal."""
    process = os.fork()
    if process:
        return process
    os.setpgid(0, 0)
    if count > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    output = os.open(f"log-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    seen = 0
    here, process = str(Path.cwd()), os.getpid()

    def count_events(event: str, details: Any) -> None:
        nonlocal seen
        if event not in EVENTS or not isinstance(details[0], str) or os.getpid() != process:
            return
        if details[0].startswith(here) or not details[0].startswith("/"):
            seen += 1
            if end is not None and seen == end[1]:
                os.killpg(0, end[0])

    signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored in what a shell starts in the background
    sys.addaudithook(count_events)
    sys.argv = ["overfocus", *arguments]
    status = 1
    try:
        run_program()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    finally:
        sys.stdout.flush()
        Path(f"seen-{rank}").write_text("\n".join([str(seen), *sys.modules]))
        os._exit(status)


def run(arguments: list[str], count: int, victim: int = -1, end: tuple[int, int] | None = None) -> list[int]:
    """Exit statuses of so many processes that work together, negative where a signal ended one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    living = {start(arguments, rank, count, port, end if rank == victim else None): rank for rank in range(count)}
    statuses = [0] * count
    used, until = 0.0, time.monotonic() + PATIENCE
    while living:
        ended, status = os.waitpid(-1, os.WNOHANG)
        if not ended:
            now = sum(sum(psutil.Process(process).cpu_times()[:2]) for process in living)
            if now > used + 0.5:
                used, until = now, time.monotonic() + PATIENCE
            if time.monotonic() > until:
                for process in living:
                    os.kill(process, signal.SIGKILL)
                raise SystemExit(f"{' '.join(arguments)}: no end in sight; " + Path("log-0.txt").read_text()[-2000:])
            time.sleep(0.02)
            continue
        if ended not in living:
            continue
        used = 0.0
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


def require_one_line(said: str, log: str) -> None:
    """End unless a program that a signal ended says so in one line."""
    lines = [line for line in log.splitlines() if line.startswith("overfocus: ") and "warning: " not in line]
    if len(lines) != 1 or not lines[0].endswith("the same command continues where it stopped") or "Traceback" in log:
        raise SystemExit(f"{said}: expected one line\n" + log[-2000:])


def main(folder: Path, command: str, count: int, moments: int, seed: int, name: str) -> None:
    os.chdir(folder)
    torch.set_num_threads(1)
    make_room(folder)
    number = signal.Signals[name]
    arguments = [*COMMANDS[command], "--workers", "0" if number == signal.SIGKILL else "1"]
    whole = [*arguments, "--output", "whole"]
    if any(run(whole, count)):
        raise SystemExit(Path("log-0.txt").read_text())
    seen = [Path(f"seen-{rank}").read_text().splitlines() for rank in range(count)]
    events = [int(lines[0]) for lines in seen]
    for module in seen[0][1:]:  # no start has to import them again
        with contextlib.suppress(Exception):
            importlib.import_module(module)
    expected = content(Path("whole"))
    draws = random.Random(seed)
    for moment in range(moments):
        output = f"ended-{moment}"
        started = [*arguments, "--output", output]
        victim = draws.randrange(count)
        event = draws.randint(1, max(1, events[victim]))
        said = f"{command}, {count} processes, {name} to {victim} at file event {event} of {events[victim]}"
        status = run(started, count, victim, (number, event))[victim]
        log = Path(f"log-{victim}.txt").read_text()
        if number != signal.SIGKILL and status == 128 + number:
            require_one_line(said, log)
        elif status not in (-signal.SIGKILL, 0):  # 0: an event late in the run came earlier than the last time
            raise SystemExit(f"{said}: ended with {status}\n" + log[-2000:])
        if any(run(started, count)):
            raise SystemExit(f"{said}: cannot be continued\n" + Path("log-0.txt").read_text()[-2000:])
        left = content(Path(output))
        different = [name for name in left.keys() | expected.keys() if left.get(name, "") != expected.get(name, "")]
        if different:
            raise SystemExit(f"{said}: other content of {sorted(different)}")
        print(f"{said}: same", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:6]), sys.argv[6])
