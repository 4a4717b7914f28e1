"""The grid of sliding windows and the mean over them, against mmsegmentation's loop written out in numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from overfocus.segmentation.inference import sliding_logits, window_starts


class Quarter(nn.Module):
    """Logits at half the size that depend on where in the window a pixel lies."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.calls.append(len(images))
        place = torch.linspace(-1, 1, images.shape[3] // 2)
        means = nn.functional.avg_pool2d(images, 2)
        return torch.cat([means.sum(1, keepdim=True), means[:, :1] * place, means[:, 1:2].square()], dim=1)


def reference(model: nn.Module, image: Tensor, window: tuple[int, int], stride: tuple[int, int]) -> np.ndarray:
    """As mmsegmentation: windows one by one, sums and counts of every pixel."""
    height, width = image.shape[2:]
    sums, counts = np.zeros((3, height, width)), np.zeros((height, width))
    for row in range(max(height - window[0] + stride[0] - 1, 0) // stride[0] + 1):
        for column in range(max(width - window[1] + stride[1] - 1, 0) // stride[1] + 1):
            bottom, right = min(row * stride[0] + window[0], height), min(column * stride[1] + window[1], width)
            rows, columns = slice(max(bottom - window[0], 0), bottom), slice(max(right - window[1], 0), right)
            logits = nn.functional.interpolate(model(image[:, :, rows, columns]), size=window, mode="bilinear")
            sums[:, rows, columns] += logits[0].numpy()
            counts[rows, columns] += 1
    return sums / counts


def test_cityscapes_grid() -> None:
    assert window_starts(1024, 1024, 768) == [0]
    assert window_starts(2048, 1024, 768) == [0, 768, 1024]


@given(st.integers(1, 40), st.data())
def test_windows_cover_everything_and_stay_inside(length: int, data: st.DataObject) -> None:
    window = data.draw(st.integers(1, length))
    stride = data.draw(st.integers(1, window))
    starts = window_starts(length, window, stride)
    assert len(starts) == max(length - window + stride - 1, 0) // stride + 1
    assert {place for start in starts for place in range(start, start + window)} == set(range(length))


@pytest.mark.parametrize(("length", "window", "stride"), [(8, 9, 3), (8, 4, 5), (8, 4, 0)])
def test_what_makes_no_grid(length: int, window: int, stride: int) -> None:
    with pytest.raises(ValueError, match="expected 1 ≤ stride ≤ window ≤ length"):
        window_starts(length, window, stride)


@pytest.mark.parametrize("together", [1, 4, 100])
@pytest.mark.parametrize(("window", "stride"), [((8, 8), (6, 6)), ((6, 10), (6, 4)), ((20, 8), (20, 3))])
def test_mean_over_windows(together: int, window: tuple[int, int], stride: tuple[int, int]) -> None:
    images = torch.randn(2, 3, 20, 26, generator=torch.Generator().manual_seed(0))
    model = Quarter()
    found = sliding_logits(model, images, window, stride, together)
    assert max(model.calls) <= together
    for number in range(2):
        expected = reference(model, images[number : number + 1], window, stride)
        np.testing.assert_allclose(found[number].numpy(), expected, atol=1e-5)
