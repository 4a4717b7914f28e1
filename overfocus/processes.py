"""The processes that `torchrun` or `accelerate launch` started together: who they are, and what they exchange.

The first process decides, writes and reports; the others measure. A program that set up torch.distributed for purposes of its
own, such as a training that calls `analyze` in one of its processes, is not drawn in: each call is alone there.
"""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from overfocus.errors import OverfocusError, RunError, first_line

if TYPE_CHECKING:
    import torch

Value = TypeVar("Value")

_LOST = "another process of this run ended; what was measured is kept, start the same command again to go on"
_ours = False
"""Whether the group of processes was set up here."""
_main: tuple[str, int] | None = None
"""Host and process of the first of several processes, where it is known."""


class Ended(KeyboardInterrupt):
    """Another program asked this one to end, or its terminal is gone: as after Ctrl-C, what is measured is written first."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.signal = signal.Signals(number)


def end_in_order() -> None:
    """Let SIGTERM and SIGHUP raise `Ended` in the main thread, unless they are ignored, as under nohup, or handled already."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _end)


def _end(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # what is written now is written whole
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would raise that the workers end, who were asked too
    raise Ended(number)


def started_together() -> int:
    """Processes that the launcher started; 1 without one."""
    count = os.environ.get("WORLD_SIZE", "1")
    return int(count) if count.isdecimal() and len(count) < 10 else 1


def is_main_process() -> bool:
    """Whether this process prints and draws: the first of those that were started together, or the only one. Imports nothing."""
    return os.environ.get("RANK", "0") == "0" or started_together() == 1


def reports_errors() -> bool:
    """Whether this process reports errors: the first one, or the second where the first was killed."""
    if is_main_process():
        return True
    if os.environ.get("RANK") != "1" or _main is None:
        return False
    host, number = _main
    if host != socket.gethostname():
        return True
    import psutil

    try:
        return bool(psutil.Process(number).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


@dataclass(frozen=True)
class Processes:
    """The process that runs, among those that share the images."""

    device: "torch.device"
    index: int = 0
    count: int = 1
    main: bool = field(init=False)
    """Whether this is the process that writes."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "main", self.index == 0)

    def decide(self, decision: Callable[[], Value]) -> Value:
        """What the first process decides, in all of them; where it raises, all do.

        Raises:
            OverfocusError: as the decision does.
        """
        if self.count == 1:
            return decision()
        decided: list[Any] = [None, None]
        if self.main:
            try:
                decided = [decision(), None]
            except OverfocusError as error:
                decided = [None, error]
        with _loss_in_one_line():
            _distributed().broadcast_object_list(decided, src=0)
        if decided[1] is not None:
            raise decided[1]
        value: Value = decided[0]
        return value

    def gather(self, value: Value, error: OverfocusError | None = None) -> list[Value]:
        """The values of all processes in the first one, none in the others; an error of one is raised in all.

        Raises:
            OverfocusError: the first error that was given, or another process ended.
        """
        if self.count == 1:
            if error is not None:
                raise error
            return [value]
        with _loss_in_one_line():
            errors: list[OverfocusError | None] = [None] * self.count
            _distributed().all_gather_object(errors, error)
            values: list[Any] | None = [None] * self.count if self.main else None
            _distributed().gather_object(None if error else value, values, dst=0)
        problem = next((one for one in errors if one is not None), None)
        if problem is not None:
            raise problem
        return values or []

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.count > 1:
            with _loss_in_one_line():
                _distributed().barrier()


def join_processes(device: "str | torch.device | None") -> Processes:
    """The processes that share the images: those that a launcher started, or this one alone; with the device of this one.

    Raises:
        RunError: there is no such device.
    """
    import torch

    chosen = choose_device(device)
    if started_together() == 1:
        return Processes(chosen)
    global _main, _ours
    distributed = _distributed()
    if distributed.is_initialized() and not _ours:
        return Processes(chosen)
    from accelerate import PartialState

    _ours = True
    try:
        state = PartialState(cpu=chosen.type == "cpu")
    except (ValueError, KeyError, distributed.DistError) as error:
        raise RunError(
            f"{started_together()} processes are announced (WORLD_SIZE), but they cannot find each other ({first_line(error)}); "
            "start them with torchrun or accelerate launch, or leave WORLD_SIZE out"
        ) from error
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, _end):
        signal.signal(signal.SIGTERM, _terminated)
    processes = Processes(torch.device(state.device), state.process_index, state.num_processes)
    _main = processes.decide(lambda: (socket.gethostname(), os.getpid()))
    return processes


def choose_device(device: "str | torch.device | None") -> "torch.device":
    """The device asked for, or a CUDA device where there is one.

    Raises:
        RunError: there is no such device.
    """
    import torch

    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=chosen).item()
    except (RuntimeError, AssertionError, TypeError, ValueError, ImportError) as error:
        reason = first_line(error).partition(". ")[0]
        raise RunError(f"device {str(device)!r} cannot be used ({reason}); try cpu, cuda or cuda:1") from None
    return chosen


def _terminated(_signal: int, _frame: FrameType | None) -> None:
    """The launcher ends the others when one process has ended."""
    _finish_undisturbed()
    raise RunError(_LOST)


def _finish_undisturbed() -> None:
    """Let what is measured be written; the launcher, which asks the others to end, kills them half a minute later."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextlib.contextmanager
def _loss_in_one_line() -> Iterator[None]:
    """Turn the loss of another process into one line."""
    try:
        yield
    except RunError:
        raise
    except RuntimeError as error:  # what gloo and NCCL raise
        _finish_undisturbed()
        raise RunError(_LOST) from error


def _distributed() -> Any:
    import torch.distributed

    return torch.distributed
