"""Images in memory, data sets and loaders of them."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

from overfocus.errors import ChangedImageError, ImageError
from overfocus.images.live import as_image, identify, image_sources, numbering

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
TENSORS = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)
LABELS = torch.tensor([3, 1, 2, 0])


def read(source) -> list[np.ndarray]:
    return [np.asarray(image.read()) for image in identify(image_sources(source))]


@pytest.mark.parametrize(
    "source",
    [
        list(PIXELS),
        tuple(Image.fromarray(pixels) for pixels in PIXELS),
        PIXELS,
        TENSORS,
        [(pixels, 1) for pixels in PIXELS],
        [{"img": Image.fromarray(pixels), "label": 2} for pixels in PIXELS],
        [pixels / 255 for pixels in PIXELS],
        [pixels.astype(np.float32) / 255 for pixels in PIXELS],
        [np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)]) for pixels in PIXELS],
        TensorDataset(TENSORS, LABELS),
        TensorDataset(TENSORS / 255, LABELS),
        DataLoader(TensorDataset(TENSORS, LABELS), batch_size=3),
        DataLoader(TensorDataset(TENSORS, LABELS), batch_size=None),
        ConcatDataset([TensorDataset(TENSORS[:2], LABELS[:2]), TensorDataset(TENSORS[2:], LABELS[2:])]),
    ],
)
def test_the_same_images_in_every_form(source):
    assert np.array_equal(read(source), PIXELS)


def test_grey_is_spread_over_colours_and_transparency_is_white():
    (grey,) = read([PIXELS[0, ..., 0]])
    assert np.array_equal(grey, np.repeat(PIXELS[0, ..., :1], 3, axis=2))
    (tensor,) = read([TENSORS[0, :1]])
    assert np.array_equal(tensor, grey)
    (clear,) = read([np.dstack([PIXELS[0], np.zeros(PIXELS[0].shape[:2], np.uint8)])])
    assert (clear == 255).all()


def test_the_order_of_a_loader():
    dataset = TensorDataset(TENSORS, LABELS)
    assert [image.label for image in identify(image_sources(DataLoader(dataset, batch_size=3, drop_last=True)))] == [
        "3",
        "1",
        "2",
    ]
    assert [image.label for image in identify(image_sources(DataLoader(Subset(dataset, [2, 0]))))] == ["2", "3"]
    state = torch.get_rng_state()
    image_sources(DataLoader(dataset))
    assert torch.equal(state, torch.get_rng_state())


class Stream(IterableDataset):
    def __iter__(self):
        return iter(TENSORS)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (DataLoader(TensorDataset(TENSORS, LABELS), shuffle=True), "one that shuffles"),
        (DataLoader(TensorDataset(TENSORS, LABELS), sampler=WeightedRandomSampler([1.0] * 4, 4)), "one that shuffles"),
        (DataLoader(TensorDataset(TENSORS, LABELS), sampler=[0, 0, 1]), "some several times"),
        (DataLoader(TensorDataset(TENSORS, LABELS), sampler=DistributedSampler(TENSORS, 2, 0)), "DistributedSampler"),
        (DataLoader(Stream()), "got Stream; collect what you need from a stream in a list"),
        (Stream(), "got Stream; collect what you need from a stream in a list"),
        (iter(PIXELS), "got .*iterator"),
        ({"a": 1}, "got dict"),
        (5, "got int"),
        ([], "got an empty list"),
        ([5], "image-00000: expected a PIL image, an array or a tensor, got int"),
        (TensorDataset(TENSORS / 127.5 - 1, LABELS), r"expected floats from 0 to 1 or uint8 .*, got -[01]"),
        (TensorDataset(TENSORS.float(), LABELS), r"got \d+ … 2\d\d"),
        (TensorDataset(TENSORS.long(), LABELS), "got int64"),
        ([PIXELS[0] > 3], "got bool"),
        ([PIXELS[0] * np.nan], "not finite"),
        ([PIXELS[0].transpose(2, 0, 1)], r"got \(3, 6, 5\)"),
        ([np.zeros((0, 3, 3), np.uint8)], r"got \(0, 3, 3\)"),
        ([(PIXELS[0], np.eye(3))], r"as the label, got ndarray of shape \(3, 3\)"),
        ([{"audio": 1}], "expected an item with the key image, got audio"),
    ],
)
def test_what_is_no_set_of_images_is_told_in_one_line(source, says):
    with pytest.raises(ImageError, match=says) as told:
        identify(image_sources(source))
    assert "\n" not in str(told.value)


class Photos(Dataset):
    """Like torchvision's: names of classes, a transform, one damaged item."""

    def __init__(self, classes, transform=None):
        self.classes, self.transform = classes, transform

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == 2:
            raise OSError("truncated")
        return Image.fromarray(PIXELS[index]), int(LABELS[index]) % 2


def test_names_of_classes_and_an_item_that_fails():
    images = identify(image_sources(Photos(["cat", "dog"])))
    assert [image.label for image in images] == ["dog", "dog", None, "cat"]
    assert numbering(images) == ["cat", "dog"]
    with pytest.raises(ImageError, match="Photos-00002: the data set cannot give it"):
        images[2].read()
    twins = identify(image_sources(Photos([("crane", "bird"), ("crane", "bird")])))
    assert [image.label for image in twins][::3] == ["crane, bird (1)", "crane, bird (0)"]


def test_labels_of_texts_have_no_numbering_and_negative_numbers_are_none():
    images = identify(image_sources([(PIXELS[0], "cat"), (PIXELS[1], None)]))
    assert [image.label for image in images] == ["cat", None]
    assert numbering(images) is None
    assert identify(image_sources([(PIXELS[0], -1)]))[0].label is None


class Normalize:
    pass


class Compose:
    transforms = (Normalize(),)


def test_a_normalising_transform_is_refused_whatever_its_values():
    with pytest.raises(ImageError, match="a transform with Normalize"):
        image_sources(Photos(["a"], Compose()))


class Augmented(Photos):
    def __getitem__(self, index):
        return torch.rand(3, 6, 5), 0


def test_an_image_that_changes_is_found_out():
    (image, *_) = identify(image_sources(Augmented(["a"])))
    with pytest.raises(ChangedImageError, match="turn random augmentation off"):
        image.read()


def test_a_large_image_is_refused():
    (image,) = identify(image_sources([PIXELS[0]]))
    with pytest.raises(ImageError, match="5×6 pixels exceed the limit of 29"):
        image.read(max_pixels=29)


def test_sixteen_bits_and_floats_of_pillow():
    assert np.asarray(as_image(Image.fromarray(np.full((2, 2), 65535, np.uint16)))).max() == 255
    assert np.asarray(as_image(Image.fromarray(np.full((2, 2), 0.5, np.float32)))).max() == 128
    with pytest.raises(ImageError, match="expected floats from 0 to 1"):
        as_image(Image.fromarray(np.full((2, 2), 2.5, np.float32)))


@pytest.mark.parametrize("tensor", [torch.rand(3, 8, 8).to_sparse(), torch.empty(3, 8, 8, device="meta")], ids=["sparse", "meta"])
def test_tensors_without_values_in_a_row(tensor):
    with pytest.raises(ImageError, match="expected a dense tensor with values"):
        as_image(tensor)


@pytest.mark.parametrize("length", [lambda _: 1 // 0, lambda _: 2.5, lambda _: -1])
def test_a_data_set_that_does_not_say_its_length(length):
    kind = type("Strange", (Dataset,), {"__len__": length})
    with pytest.raises(ImageError, match="Strange: the data set does not say how many images it has"):
        image_sources(kind())
