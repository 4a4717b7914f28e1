"""Interval of a mean difference over seeds and images, both of which are samples."""

import numpy as np
from jaxtyping import Float
from scipy import stats


def crossed_interval(differences: Float[np.ndarray, "seeds images"], level: float = 0.95) -> tuple[float, float]:
    """Interval of the mean of paired differences, for other seeds and other images of the same kind.

    Every seed sees every image: crossed random effects, whose mean has the variance (MS_seeds + MS_images − MS_rest) /
    (seeds · images). The part of the seeds, MS_seeds, is known with seeds − 1 degrees of freedom only, and that of the images,
    MS_images − MS_rest, with images − 1: each gets its own quantile of Student's t, and the two half-widths add up like errors.
    With three seeds it is wide rather than too narrow. With one seed it holds for other images alone. NaN where there are
    fewer than two images.

    Source of the variance: Searle, Casella, McCulloch, "Variance Components", 1992, section 4.6.
    """
    seeds, images = differences.shape
    if images < 2:
        return float("nan"), float("nan")
    mean = float(differences.mean())
    by_seed, by_image = differences.mean(1, keepdims=True), differences.mean(0, keepdims=True)
    of_images = seeds * np.sum((by_image - mean) ** 2) / (images - 1)
    squared = stats.t.ppf((1 + level) / 2, images - 1) ** 2 * of_images
    if seeds > 1:
        of_seeds = images * np.sum((by_seed - mean) ** 2) / (seeds - 1)
        rest = np.sum((differences - by_seed - by_image + mean) ** 2) / ((seeds - 1) * (images - 1))
        squared = stats.t.ppf((1 + level) / 2, images - 1) ** 2 * max(of_images - rest, 0.0)
        squared += stats.t.ppf((1 + level) / 2, seeds - 1) ** 2 * of_seeds
    half = float(np.sqrt(squared / differences.size))
    return mean - half, mean + half
