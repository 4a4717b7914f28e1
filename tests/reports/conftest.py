"""Pages with hostile names, and a browser to open them in."""

import base64
import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from overfocus.run import Run

HOSTILE = ("<script>alert(1)</script>.png", '=HYPERLINK("x")&\'.png')
CLASSES = ("</script><img src=x onerror=alert(2)>", '"quoted" & <b>bold</b>', "coffee mug")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory, synthetic_run: Callable[..., Path]) -> Path:
    """The page of a small run whose file and class names are hostile; drawn once, only read."""
    from overfocus_reports import draw_report

    folder = tmp_path_factory.mktemp("drawn") / "run"
    return draw_report(Run(synthetic_run(folder, names=HOSTILE, class_names=CLASSES, labels=True, heads=2)))


@pytest.fixture(scope="session")
def compared(tmp_path_factory: pytest.TempPathFactory, synthetic_run: Callable[..., Path]) -> Path:
    """The page of a comparison of three models of different depth with hostile names everywhere; drawn once, only read."""
    from overfocus.results.comparison import Comparison
    from overfocus_reports import draw_comparison

    folder = tmp_path_factory.mktemp("compared")
    options: dict[str, Any] = {"names": HOSTILE, "class_names": CLASSES, "labels": True, "images": 12}
    runs = [
        Run(synthetic_run(folder / "runs" / "one", **options)),
        Run(synthetic_run(folder / "runs" / "two", layers=7, **options)),
        Run(synthetic_run(folder / "runs" / "three", severities=(1, 3, 5), displayed=2, **options)),
    ]
    names = ["plain", "<script>alert(3)</script>", "=1+1&\"'</option>"]
    return draw_comparison(Comparison(runs, names, resamples=200, path=folder / "comparison"))


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, where it and Playwright are installed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


class Page:
    """The opened page; remembers what the console said and what was asked of the network."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.context = browser.new_context(**({"viewport": {"width": 1400, "height": 900}} | options))
        self.tab = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.tab.on("console", lambda message: self.complaints.append(message.text))
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.goto(path.as_uri())
        self.settle()

    def settle(self) -> None:
        """Wait until the explorer shows what is picked."""
        self.tab.wait_for_function("document.documentElement.dataset.ready === 'yes'")
        self.tab.wait_for_selector("#versions[aria-busy=false]")

    def canvas(self, selector: str) -> Any:
        """The pixels of a canvas."""
        self.settle()
        address = self.tab.evaluate("selector => document.querySelector(selector).toDataURL('image/png')", selector)
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))).convert("RGBA"))

    def pixels(self, role: str, what: str) -> Any:
        """The pixels of one of the explorer's canvases."""
        return self.canvas(f"#versions canvas[data-role={role}][data-what={what}]")

    def side(self, role: str, model: int) -> Any:
        """The pixels of one canvas of all models side by side."""
        return self.canvas(f"#side canvas[data-role={role}][data-model-number='{model}']")

    def line(self, metric: str, part: str) -> str:
        """The path of a curve."""
        return str(self.tab.get_attribute(f"#curves-{metric}-{part} path", "d"))

    def text(self, selector: str) -> str:
        return str(self.tab.inner_text(selector))

    def download(self, figure: str, format: str) -> bytes:
        """What a download button gives."""
        with self.tab.expect_download() as waiting:
            self.tab.click(f"[data-figure='{figure}'][data-download={format}] >> visible=true")
        return bytes(Path(waiting.value.path()).read_bytes())

    def close(self) -> None:
        """Check that nothing went wrong and nothing was loaded, and close."""
        assert self.complaints == []
        assert [url for url in self.requests if not url.startswith(("file:", "data:", "blob:"))] == []
        assert sum(url.startswith("file:") for url in self.requests) == 1
        self.context.close()


@pytest.fixture
def open_page(browser: Any) -> Callable[..., Page]:
    """`open_page(path, **options)` opens a page in a fresh window; close it to check it."""
    return lambda path, **options: Page(browser, path, **options)
