"""The corruptions are the library's, depend on nothing but their arguments, and leave no trace."""

import multiprocessing
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import imagecorruptions
import numpy as np
import pytest

import overfocus
from overfocus import CorruptionError, corrupt
from overfocus.corruptions import (
    CONSTANT_SETS,
    CORRUPTIONS,
    GROUPS,
    choose_constants,
    describe_constants,
    is_approximation,
    resolve_corruptions,
)

RANDOM = [
    name
    for name in CORRUPTIONS
    if name
    not in {
        "defocus_blur",
        "zoom_blur",
        "brightness",
        "contrast",
        "pixelate",
        "jpeg_compression",
        "gaussian_blur",
        "saturate",
    }
]


@pytest.fixture(scope="module")
def image():
    """A smooth 48×64 image with colours and an edge."""
    rows, columns = np.mgrid[0:48, 0:64]
    pixels = np.stack([rows * 5, columns * 4, 255 - rows * 3], axis=-1).astype(np.uint8)
    pixels[10:30, 20:40] = (200, 30, 60)
    return pixels


def test_names_are_those_of_the_library():
    assert list(CORRUPTIONS) == imagecorruptions.get_corruption_names("all")
    assert len(CORRUPTIONS) == 19
    for group in ("common", "noise", "blur", "weather", "digital"):
        assert list(GROUPS[group]) == imagecorruptions.get_corruption_names(group)
    assert list(GROUPS["extra"]) == imagecorruptions.get_corruption_names("validation")


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_every_corruption_keeps_shape_and_is_repeatable(image, name, severity):
    before = image.copy()
    first = corrupt(image, name, severity, seed=7)
    assert (first.dtype, first.shape) == (np.uint8, image.shape)
    assert (first != image).any()
    np.testing.assert_array_equal(image, before)
    corrupt(np.zeros_like(image), "gaussian_noise", 1)
    np.testing.assert_array_equal(corrupt(image, name, severity, seed=7), first)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(224, 224), (32, 32), (518, 518), (160, 240), (240, 33), (28, 28), (5, 90), (1, 1)])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_size(name, size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    for severity in (1, 2, 3, 4, 5):
        assert corrupt(pixels, name, severity).shape == (*size, 3)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("size", [(28, 28), (1, 1), (7, 50)])
def test_below_the_librarys_limit(name, size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    result = corrupt(pixels, name, 3)
    assert (result.dtype, result.shape) == (np.uint8, (*size, 3))


def test_small_images_keep_the_strength_of_the_noise():
    for side in (16, 64):
        grey = np.full((side, side, 3), 128, np.uint8)
        noise = np.concatenate([corrupt(grey, "gaussian_noise", 1, seed, "imagenet-c").astype(float) - 128 for seed in range(20)])
        assert noise.std() == pytest.approx(0.08 * 255, rel=0.05)


@pytest.mark.parametrize("name", RANDOM)
def test_seed_and_severity_and_pixels_change_the_draw(image, name):
    result = corrupt(image, name, 3, seed=0)
    assert any((corrupt(image, name, 3, seed) != result).any() for seed in range(1, 4))


def test_different_images_get_different_noise():
    grey = np.full((40, 40, 3), 128, np.uint8)
    lighter = np.full((40, 40, 3), 129, np.uint8)
    one = corrupt(grey, "gaussian_noise", 1).astype(int) - 128
    two = corrupt(lighter, "gaussian_noise", 1).astype(int) - 129
    assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 0.1


def test_layout_in_memory_does_not_matter(image):
    flipped = image[:, ::-1]
    np.testing.assert_array_equal(corrupt(flipped, "glass_blur"), corrupt(flipped.copy(), "glass_blur"))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_numpys_global_generator_is_left_alone(image, name):
    np.random.seed(11)  # noqa: NPY002
    expected = np.random.standard_normal(3)  # noqa: NPY002
    np.random.seed(11)  # noqa: NPY002
    first = np.random.standard_normal(1)  # noqa: NPY002  # leaves half a Box–Muller pair in the state
    corrupt(image, name, 2)
    np.testing.assert_array_equal(np.concatenate([first, np.random.standard_normal(2)]), expected)  # noqa: NPY002


def test_generator_is_put_back_when_the_package_fails(image, monkeypatch):
    def fail(*_args, **_keywords):
        np.random.standard_normal(5)  # noqa: NPY002
        raise ZeroDivisionError

    state = np.random.get_state()[1].copy()  # noqa: NPY002
    monkeypatch.setattr(imagecorruptions, "corrupt", fail)
    with pytest.raises(ZeroDivisionError):
        corrupt(image, "fog", constants="imagenet-c")
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def _all(pixels):
    return {name: corrupt(pixels, name, 3, seed=5) for name in RANDOM}


def test_order_threads_and_processes_do_not_matter(image):
    alone = _all(image)
    with ThreadPoolExecutor(4) as threads:
        threaded = list(threads.map(lambda name: (name, corrupt(image, name, 3, seed=5)), RANDOM * 3))
    for name, result in threaded:
        np.testing.assert_array_equal(result, alone[name], err_msg=name)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        elsewhere = pool.apply(_all, (image,))
    for name in RANDOM:
        np.testing.assert_array_equal(elsewhere[name], alone[name], err_msg=name)


def test_new_process_gives_the_same(image, tmp_path):
    """Another interpreter with another hash seed."""
    np.save(tmp_path / "picture.npy", image)
    names = ["glass_blur", "impulse_noise", "frost"]
    program = (
        "import numpy, sys; from overfocus import corrupt; "
        f"image = numpy.load(sys.argv[1]); numpy.savez(sys.argv[2], **{{n: corrupt(image, n, 4, 3) for n in {names}}})"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path / "picture.npy", tmp_path / "out.npz"], check=True)
    with np.load(tmp_path / "out.npz") as results:
        for name in names:
            np.testing.assert_array_equal(results[name], corrupt(image, name, 4, 3), err_msg=name)


def test_values_are_those_of_the_package(image):
    for name in ("defocus_blur", "brightness", "contrast", "pixelate", "jpeg_compression", "saturate"):
        expected = imagecorruptions.corrupt(image, corruption_name=name, severity=4)
        np.testing.assert_array_equal(corrupt(image, name, 4, constants="imagenet-c"), expected, err_msg=name)


def test_constants_follow_the_shorter_side():
    assert [choose_constants(side) for side in (1, 28, 32, 48)] == ["cifar-c"] * 4
    assert [choose_constants(side) for side in (49, 64, 96)] == ["tiny-imagenet-c"] * 3
    assert [choose_constants(side) for side in (97, 224, 1024)] == ["imagenet-c"] * 3
    with pytest.raises(CorruptionError, match="at least 1 pixel"):
        choose_constants(0)
    wide = np.random.default_rng(0).integers(0, 256, (40, 200, 3)).astype(np.uint8)
    np.testing.assert_array_equal(corrupt(wide, "contrast", 5), corrupt(wide, "contrast", 5, constants="cifar-c"))
    assert (corrupt(wide, "contrast", 5) != corrupt(wide, "contrast", 5, constants="imagenet-c")).any()


def test_constants_in_words():
    described = {side: describe_constants("imagenet-c", side) for side in (97, 191, 192, 224, 256, 257)}
    assert [side for side, words in described.items() if words == "ImageNet-C constants"] == [192, 224, 256]
    assert described[191] == "ImageNet-C constants at 191 pixels"
    assert describe_constants("cifar-c", 28) == "CIFAR-C constants"
    assert describe_constants("cifar-c", 224) == "CIFAR-C constants at 224 pixels"
    assert describe_constants("tiny-imagenet-c", 64) == "Tiny-ImageNet-C constants"


def test_approximations_are_motion_blur_and_snow():
    for constants in CONSTANT_SETS:
        assert [name for name in CORRUPTIONS if is_approximation(name, constants)] == ["motion_blur", "snow"]
    with pytest.raises(CorruptionError, match="unknown corruption 'rain'"):
        is_approximation("rain", "cifar-c")


@pytest.mark.parametrize("constants", ["imagenet", "CIFAR-C", "", 3, b"cifar-c"])
def test_unknown_constants(image, constants):
    with pytest.raises(CorruptionError, match=r"constants .*cifar-c, tiny-imagenet-c(,| or) imagenet-c"):
        corrupt(image, "fog", constants=constants)


def test_names_and_groups_resolve():
    assert resolve_corruptions(["fog", "noise", "fog", "shot_noise"]) == ["fog", "gaussian_noise", "shot_noise", "impulse_noise"]
    assert resolve_corruptions("all") == list(CORRUPTIONS)
    assert len(resolve_corruptions("common")) == 15
    assert resolve_corruptions([]) == []


def test_unknown_names_list_the_valid_ones_and_the_nearest(image):
    with pytest.raises(
        CorruptionError, match=r"unknown corruption 'gausian-noise'; did you mean 'gaussian_noise'.*Valid names:.*fog"
    ):
        corrupt(image, "gausian-noise")
    with pytest.raises(CorruptionError, match=r"unknown corruption 'wether'; did you mean 'weather'.*common"):
        resolve_corruptions(["wether"])
    with pytest.raises(ValueError, match="unknown corruption"):
        resolve_corruptions(["xyzzy"])


@pytest.mark.parametrize("severity", [0, 6, -1, 2.5, True, "3"])
def test_severity_outside_1_to_5(image, severity):
    with pytest.raises(CorruptionError, match="severity must be a whole number from 1"):
        corrupt(image, "fog", severity)


def test_wrong_pixels(image):
    for pixels, words in [
        (image[..., 0], r"uint8 \(48, 64\)"),
        (image / 255, r"float64 \(48, 64, 3\)"),
        (image.tolist(), "got list"),
        (image[:0], "at least 1×1"),
    ]:
        with pytest.raises(CorruptionError, match=words):
            corrupt(pixels, "fog")


def test_importing_overfocus_does_not_import_the_library():
    program = "import sys, overfocus.corruptions; assert 'imagecorruptions' not in sys.modules and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert callable(overfocus.corrupt)
