"""Every usual kind of image file is read as upright 8-bit RGB; what is no image is refused in one line."""

import io
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from overfocus import ImageError
from overfocus.datasets.masks import read_mask
from overfocus.images.live import as_image
from overfocus.images.sources import decode_image, read_image


@pytest.fixture
def gradient():
    """An RGB image of 24×40 pixels without symmetry."""
    rows, columns = np.mgrid[0:24, 0:40]
    return np.stack([rows * 10, columns * 6, (rows + columns) * 3], axis=-1).astype(np.uint8)


def png_header(width, height):
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def test_png_is_read_as_it_is(tmp_path, gradient):
    Image.fromarray(gradient).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), gradient)


@pytest.mark.parametrize("ending", ["jpg", "bmp", "tif", "webp", "ppm", "tga", "jp2"])
def test_formats(tmp_path, gradient, ending):
    Image.fromarray(gradient).save(tmp_path / f"a.{ending}")
    image = read_image(tmp_path / f"a.{ending}")
    assert (image.mode, image.size) == ("RGB", (40, 24))
    assert np.abs(np.asarray(image).astype(int) - gradient).mean() < 6


def test_cmyk(tmp_path, gradient):
    Image.fromarray(gradient).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    assert Image.open(tmp_path / "a.jpg").mode == "CMYK"
    assert np.abs(np.asarray(read_image(tmp_path / "a.jpg")).astype(int) - gradient).mean() < 6


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, ending):
    values = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    Image.fromarray(values).save(tmp_path / f"a.{ending}")
    read = np.asarray(read_image(tmp_path / f"a.{ending}"))
    np.testing.assert_array_equal(read[..., 0], np.round(values / 257))
    np.testing.assert_array_equal(read[..., 0], read[..., 2])


def test_16_bit_rgb(tmp_path):
    import cv2

    values = np.linspace(0, 65535, 8 * 8 * 3).astype(np.uint16).reshape(8, 8, 3)
    cv2.imwrite(str(tmp_path / "a.png"), values[..., ::-1])
    np.testing.assert_allclose(np.asarray(read_image(tmp_path / "a.png")), values / 257, atol=1)


def test_floating_point(tmp_path):
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.tif"))[..., 1], np.round(values * 255))
    Image.fromarray(values * 300).save(tmp_path / "b.tif")
    with pytest.raises(ImageError, match=r"b\.tif.*floating-point values expected in 0…1"):
        read_image(tmp_path / "b.tif")


def test_palette(tmp_path, gradient):
    flat = (gradient // 64) * 64
    Image.fromarray(flat).quantize(256).save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").mode == "P"
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.png")), flat)


def test_grey_and_bilevel(tmp_path, gradient):
    grey = Image.fromarray(gradient).convert("L")
    grey.save(tmp_path / "grey.png")
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "grey.png"))[..., 1], np.asarray(grey))
    grey.convert("1").save(tmp_path / "bilevel.png")
    assert set(np.unique(np.asarray(read_image(tmp_path / "bilevel.png")))) == {0, 255}


def test_alpha_is_laid_over_white(tmp_path):
    pixels = np.array([[[200, 0, 0, 255], [200, 0, 0, 0], [0, 0, 0, 128]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    read = np.asarray(read_image(tmp_path / "a.png"))
    np.testing.assert_allclose(read, [[[200, 0, 0], [255, 255, 255], [127, 127, 127]]], atol=1)


def test_grey_alpha_and_transparent_palette(tmp_path):
    Image.fromarray(np.array([[[10, 255], [10, 0]]], np.uint8), mode="LA").save(tmp_path / "la.png")
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "la.png"))[0, :, 0], [10, 255])
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), mode="P")
    palette.putpalette([9, 9, 9, 100, 0, 0])
    palette.save(tmp_path / "p.png", transparency=0)
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "p.png")), [[[255, 255, 255], [100, 0, 0]]])


def test_exif_orientation_is_applied(tmp_path, gradient):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90° clockwise to see it right
    Image.fromarray(gradient).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.png")), np.rot90(gradient, k=-1))


def test_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for ending in ("gif", "png", "webp"):
        options = {"lossless": True} if ending == "webp" else {}
        frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:], **options)
        assert read_image(tmp_path / f"a.{ending}").getpixel((3, 3)) == (255, 0, 0), ending


def test_one_pixel(tmp_path):
    Image.new("RGB", (1, 1), (3, 4, 5)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").getpixel((0, 0)) == (3, 4, 5)


def test_content_decides_not_the_ending(tmp_path, gradient):
    Image.fromarray(gradient).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.jpg")), gradient)


def test_text_named_jpg(tmp_path):
    (tmp_path / "note.jpg").write_text("this is not an image")
    with pytest.raises(ImageError, match=r"note\.jpg: expected an image, but Pillow cannot read"):
        read_image(tmp_path / "note.jpg")


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
def test_truncated(tmp_path, ending):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / f"a.{ending}")
    content = (tmp_path / f"a.{ending}").read_bytes()
    (tmp_path / f"a.{ending}").write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match=rf"a\.{ending}: expected an? (whole )?image") as raised:
        read_image(tmp_path / f"a.{ending}")
    assert "\n" not in str(raised.value)


def encoded(pixels, kind, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def png_of(rows, width, height, *, interlaced=False, colour=2):
    """An 8-bit PNG with these filtered rows."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, interlaced)
    packed = zlib.compress(rows)
    parts = b"".join(chunk(b"IDAT", packed[place : place + 500]) for place in range(0, len(packed), 500))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + parts + chunk(b"IEND", b"")


def adam7(pixels):
    """The rows of the seven passes."""
    passes = ((0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2), (0, 1, 1, 2))
    parts = [pixels[top::down, left::right] for left, right, top, down in passes]
    return b"".join(b"\0" + row.tobytes() for part in parts if part.shape[1] for row in part)


def tiff_of(pixels, strips):
    """An uncompressed grey TIFF with a strip for each of the first rows."""
    height, width = pixels.shape
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    start = 8 + 2 + 12 * 9 + 4
    body = start + 8 * strips
    entries += [(273, 4, strips, start), (277, 3, 1, 1), (278, 4, 1, 1), (279, 4, strips, start + 4 * strips)]
    content = struct.pack("<2sHIH", b"II", 42, 8, 9) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    content += struct.pack(f"<{strips}I", *(body + width * row for row in range(strips)))
    return content + struct.pack(f"<{strips}I", *[width] * strips) + pixels[:strips].tobytes()


def ended_early():
    """Files of an image that ends early, is properly ended, and that Pillow reads without a word."""
    rows, columns = np.mgrid[0:200, 0:256]
    smooth = np.stack([rows, columns, (rows + columns) // 2], axis=-1).astype(np.uint8)
    pixels = smooth + np.random.default_rng(0).integers(0, 20, smooth.shape, np.uint8)
    filtered = b"".join(b"\0" + row.tobytes() for row in pixels)
    woven = adam7(pixels)
    yield "short.png", png_of(filtered[: len(filtered) // 2], 256, 200), png_of(filtered, 256, 200)
    yield "one_row_short.png", png_of(filtered[: -3 * 256 - 1], 256, 200), png_of(filtered, 256, 200)
    yield "interlaced.png", png_of(woven[: -3 * 256 - 1], 256, 200, interlaced=True), png_of(woven, 256, 200, interlaced=True)
    jpeg = encoded(pixels, "JPEG", quality=90)
    half = len(jpeg) // 2
    yield "ended.jpg", jpeg[:half] + b"\xff\xd9", jpeg
    yield "zeros.jpg", jpeg[:half] + bytes(half) + b"\xff\xd9", jpeg + bytes(100)
    yield "gap.jpg", jpeg[:half] + jpeg[half + 500 :], jpeg + jpeg
    grey = encoded(pixels[..., 0], "JPEG", optimize=True)
    yield "grey.jpg", grey[: len(grey) // 2] + b"\xff\xd9", grey
    apart = encoded(pixels, "JPEG", restart_marker_rows=1)
    yield "restarts.jpg", apart[: len(apart) // 2] + b"\xff\xd9", apart
    progressive = encoded(pixels, "JPEG", progressive=True)
    yield "progressive.jpg", progressive[:-300] + b"\xff\xd9", progressive
    yield "last_scan.jpg", progressive[: progressive.rindex(b"\xff\xda")] + b"\xff\xd9", progressive
    for name, options in {"lossy": {}, "lossless": {"lossless": True}}.items():
        webp = encoded(pixels, "WEBP", **options)
        yield f"{name}.webp", webp[: len(webp) // 2] + bytes(len(webp) - len(webp) // 2), webp
    yield "strips.tif", tiff_of(pixels[..., 0], 100), tiff_of(pixels[..., 0], 200)


@pytest.mark.parametrize(("name", "cut", "whole"), list(ended_early()), ids=lambda value: value if isinstance(value, str) else "")
def test_data_that_end_early_in_a_file_that_does_not(tmp_path, name, cut, whole):
    (tmp_path / name).write_bytes(cut)
    with Image.open(tmp_path / name) as image:
        image.load()  # Pillow does not notice
    with pytest.raises(
        ImageError, match=rf"{re.escape(name)}: expected a whole image, reading it failed \(.*\); replace or remove"
    ):
        read_image(tmp_path / name)
    with pytest.raises(ImageError, match=rf"{re.escape(name)}: .*expected"):
        read_mask(tmp_path / name)
    for opened in (Image.open(tmp_path / name), Image.open(io.BytesIO(cut))):  # not read yet
        with pytest.raises(ImageError, match="an image: cannot be read"):
            as_image(opened)
    (tmp_path / name).write_bytes(whole)
    with Image.open(tmp_path / name) as image:
        assert np.array_equal(np.asarray(read_image(tmp_path / name)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("size", [(1, 1), (9, 7), (33, 17), (130, 8)])
@pytest.mark.parametrize("fill", ["black", "grey", "near grey", "grey corner", "noise"])
def test_whole_images_are_not_mistaken_for_cut_off_ones(size, fill):
    """Those that end in the grey or black that Pillow fills up with, in every mode and way to write them."""
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (*size, 3), np.uint8)
    corner = noise.copy()
    corner[-20:, -20:] = 128
    near = random.integers(126, 131, (*size, 3)).astype(np.uint8)
    made = {"black": noise * 0, "grey": noise * 0 + 128, "near grey": near, "grey corner": corner, "noise": noise}[fill]
    for mode in ("RGB", "L", "CMYK", "1", "P", "RGBA", "LA"):
        image = Image.fromarray(made).convert(mode)
        ways = [("PNG", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("WEBP", {}), ("WEBP", {"lossless": True})]
        jpegs = ({}, {"progressive": True}, {"optimize": True, "subsampling": 0}, {"restart_marker_rows": 1})
        ways = ways[:3] * (mode != "CMYK") + ways[3:] * (mode == "RGB")
        for kind, options in ways + [("JPEG", options) for options in jpegs] * (mode in ("RGB", "L", "CMYK")):
            file = io.BytesIO()
            image.save(file, kind, **options)
            assert decode_image(file, "image").size == size[::-1]
    woven = png_of(adam7(made), size[1], size[0], interlaced=True)
    assert np.array_equal(np.asarray(decode_image(io.BytesIO(woven), "image")), made)


def test_empty_missing_and_folder(tmp_path):
    (tmp_path / "a.png").touch()
    for path, words in [
        (tmp_path / "a.png", "Pillow cannot read its content"),
        (tmp_path / "b.png", "no such file"),
        (tmp_path, "expected an image, but this is a folder"),
    ]:
        with pytest.raises(ImageError, match=words):
            read_image(path)


def test_huge_image_is_refused_from_its_header(tmp_path):
    (tmp_path / "huge.png").write_bytes(png_header(30_000, 30_000))
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(ImageError, match=r"huge\.png: 30000×30000 pixels exceed the limit of 100,000,000.*max_pixels"):
        read_image(tmp_path / "huge.png")
    assert before == Image.MAX_IMAGE_PIXELS
    with pytest.raises(ImageError, match="expected a whole image"):  # with the limit raised it is loaded, and found cut off
        read_image(tmp_path / "huge.png", max_pixels=30_000 * 30_000)


def test_limit_can_be_lowered(tmp_path, gradient):
    Image.fromarray(gradient).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", max_pixels=40 * 24).size == (40, 24)
    with pytest.raises(ImageError, match="40×24 pixels exceed the limit of 959"):
        read_image(tmp_path / "a.png", max_pixels=959)


def test_postscript_is_not_run(tmp_path, gradient):
    Image.fromarray(gradient).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match="Pillow cannot read its content"):
        read_image(tmp_path / "a.jpg")
