"""How often predictions flip from frame to frame of short films, the measure of ImageNet-P.

Source: Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019,
section 4.3.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int
from PIL import Image

from overfocus.errors import ImageError

FILMS = (".mp4", ".avi", ".mkv", ".webm")


class FilmFolders:
    """Films of one perturbation in class folders; as a picture, a film is its first frame."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._paths = _films(folder)
        self.class_names = sorted({path.parent.name for path in self._paths})
        self.labels = np.array([self.class_names.index(path.parent.name) for path in self._paths], np.int64)
        self.channels = 3

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, index: int) -> str:
        """Path below the folder."""
        return self._paths[index].relative_to(self.folder).as_posix()

    def image(self, index: int) -> Image.Image:
        """The first frame."""
        return next(self.frames(index))

    def frames(self, index: int) -> Iterator[Image.Image]:
        """All frames as RGB.

        Raises:
            ImageError: the file is no film, or has fewer than two frames.
        """
        import cv2

        reader = cv2.VideoCapture(str(self._paths[index]))
        count = 0
        try:
            while (read := reader.read())[0]:
                count += 1
                yield Image.fromarray(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB))
        finally:
            reader.release()
        if count < 2:
            raise ImageError(f"{self._paths[index]}: expected a film of at least two frames, got {count}; replace or remove it")


def film_folders(folder: Path) -> list[Path]:
    """The perturbations of ImageNet-P's layout, `perturbation/class/film.mp4`; none where there are no films."""
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".") and _films(path)]


def flip_rate(predicted: Int[np.ndarray, " frames"] | Sequence[int], *, noisy: bool) -> float:
    """Share of the frames after the first whose class differs from that of the frame before; of the first where `noisy`.

    Frames of a noise perturbation differ by noise that is drawn anew, so that none of them comes before another.

    >>> round(flip_rate([1, 1, 2, 1], noisy=False), 3), round(flip_rate([1, 1, 2, 1], noisy=True), 3)
    (0.667, 0.333)
    """
    classes = np.asarray(predicted)
    before = classes[:1] if noisy else classes[:-1]
    return float(np.mean(classes[1:] != before))


def _films(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*/*")) if path.suffix.lower() in FILMS and not path.name.startswith(".")]
