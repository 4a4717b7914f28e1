"""Running several forms of one computation in turn, so that whatever else the machine does falls on all of them alike."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
"""Wall time is what a user waits; processor time is hardly disturbed by other programs, if there is one thread."""
Times = dict[str, dict[str, list[float]]]


def measure(forms: dict[str, Callable[[], object]], rounds: int, warm_up: int = 2) -> Times:
    """Seconds of each form in each round, by clock: times[clock][form]."""
    times: Times = {clock: {form: [] for form in forms} for clock in CLOCKS}
    for number in range(warm_up + rounds):
        for form, run in forms.items():
            before = {clock: read() for clock, read in CLOCKS.items()}
            run()
            if number >= warm_up:
                for clock, read in CLOCKS.items():
                    times[clock][form].append(read() - before[clock])
    return times


def median_ratio(times: Times, clock: str, above: str, below: str) -> float:
    """Median over the rounds of the time of one form over that of another."""
    return statistics.median(a / b for a, b in zip(times[clock][above], times[clock][below], strict=True))


def median(times: Times, clock: str, form: str) -> float:
    """Median time of a form in milliseconds."""
    return 1e3 * statistics.median(times[clock][form])


def peak_memory(warm_up: Callable[[], object], run: Callable[[], object]) -> float:
    """Megabytes that the process grew by at most during `run`, after `warm_up` has loaded what any run needs (Linux)."""
    warm_up()
    before = _resident("VmRSS")
    run()
    return _resident("VmHWM") - before


def _resident(field: str) -> float:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024
