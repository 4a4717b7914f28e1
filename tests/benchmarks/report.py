"""Time the report of a saved comparison: drawing it, its size, and how soon Chromium shows it.

    overfocus compare a.pth b.pth c.pth --images photos/ --limit 64 --output comparison
    python tests/benchmarks/report.py comparison [--rounds N]

Statistics (bootstrap, tests) are computed before the clock starts: `overfocus compare` needs them for its tables anyway.
Interactive means that the explorer of the first image is drawn; the time is from the start of the navigation.
"""

import argparse
import shutil
import statistics
import time
from pathlib import Path

from overfocus.results.comparison import read_comparison
from overfocus_reports import draw_comparison


def main() -> None:
    """Print seconds and megabytes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5, help="times that the page is opened")
    arguments = parser.parse_args()
    comparison = read_comparison(arguments.folder)
    _ = comparison.verdicts, comparison.fragility, comparison.reliability
    started = time.perf_counter()
    page = draw_comparison(comparison)
    seconds = time.perf_counter() - started
    images, layers = len(comparison.runs[0].displayed), [len(run.layers) for run in comparison.runs]
    print(f"{len(layers)} models of {', '.join(map(str, layers))} layers, {images} displayed images")
    print(f"drawn in {seconds:.1f} s; {page.stat().st_size / 1e6:.2f} MB")
    opened = [interactive(page) for _ in range(arguments.rounds)]
    print(f"interactive after {statistics.median(opened):.2f} s (median of {len(opened)}; at most {max(opened):.2f} s)")


def interactive(page: Path) -> float:
    """Seconds from navigation to a drawn explorer, in a browser that has just been started."""
    from playwright.sync_api import sync_playwright

    path = next(found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name)))
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1400, "height": 900})
        started = time.perf_counter()
        tab.goto(page.as_uri())
        tab.wait_for_function("document.documentElement.dataset.ready === 'yes'")
        tab.wait_for_selector("#versions[aria-busy=false]")
        seconds = time.perf_counter() - started
        browser.close()
    return seconds


if __name__ == "__main__":
    main()
