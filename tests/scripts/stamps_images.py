"""Pictures with exact masks: photographed cut-outs of Debian's tuxpaint-stamps-default on photographs of scikit-image.

    python tests/scripts/stamps_images.py --output /tmp/stamps/images

Seven kinds of things and the background. A quarter of the cut-outs of each kind and the right third of each photograph are kept
for validation, so that no pixel is in both parts. Seeded: the same files each time. The cut-outs are GPL; nothing of them is
part of this project. Layout: images/{train,val}/00000.png, masks/{train,val}/00000.png (class numbers), classes.txt.
"""

import argparse
from pathlib import Path

import numpy as np
import skimage
from PIL import Image

STAMPS = Path("/usr/share/tuxpaint/stamps")
KINDS = {
    "bird": ("animals/birds",),
    "fish": ("animals/fish",),
    "mammal": ("animals/mammals", "animals/marsupials"),
    "flower": ("plants/flowers",),
    "fruit": ("food/fruit",),
    "vegetable": ("food/vegetables",),
    "vehicle": ("vehicles",),
}
"""Folders of cut-outs by kind."""
LEFT_OUT = ("cartoon", "toys", "plastic")
"""Folders of drawings and toys."""
CLASS_NAMES = ["background", *KINDS]
PHOTOGRAPHS = (
    "astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg", "motorcycle_left.png", "retina.jpg", "ihc.png",
    "hubble_deep_field.jpg", "camera.png", "coins.png", "moon.png", "brick.png", "grass.png", "gravel.png",
)  # fmt: skip
TRAINED = 2 / 3
"""The left part of each photograph is for training, the rest for validation."""
SIDE = 48
"""Pixels."""
COUNTS = {"train": 4000, "val": 300}


def cut_outs(split: str) -> dict[str, list[Image.Image]]:
    """The cut-outs of a part by kind, in colour with their alpha, as large as they can become."""
    found = {}
    for kind, folders in KINDS.items():
        paths = sorted(path for folder in folders for path in (STAMPS / folder).rglob("*.png"))
        paths = [path for path in paths if not set(path.parts) & set(LEFT_OUT)]
        own = [path for number, path in enumerate(paths) if (number % 4 == 1) == (split == "val")]
        found[kind] = [_trimmed(Image.open(path).convert("RGBA")) for path in own]
    return found


def photographs(split: str) -> list[Image.Image]:
    """The photographs' parts for a split."""
    folder = Path(skimage.__file__).parent / "data"
    parts = []
    for name in PHOTOGRAPHS:
        whole = Image.open(folder / name).convert("RGB")
        edge = round(TRAINED * whole.width)
        parts.append(whole.crop((0, 0, edge, whole.height) if split == "train" else (edge, 0, whole.width, whole.height)))
    return parts


def compose(
    random: np.random.Generator, stamps: dict[str, list[Image.Image]], backgrounds: list[Image.Image]
) -> tuple[Image.Image, Image.Image]:
    """A picture and its mask: one or two cut-outs, later ones before earlier ones."""
    picture = _background(random, backgrounds[random.integers(len(backgrounds))])
    mask = Image.new("L", picture.size, 0)
    for _ in range(random.integers(1, 3)):
        number = int(random.integers(len(KINDS)))
        chosen = stamps[CLASS_NAMES[number + 1]]
        stamp = chosen[random.integers(len(chosen))]
        if random.random() < 0.5:
            stamp = stamp.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        stamp = stamp.rotate(float(random.uniform(-25, 25)), Image.Resampling.BICUBIC, expand=True)
        scale = random.uniform(0.5, 0.95) * SIDE / max(stamp.size)
        stamp = stamp.resize((max(4, round(stamp.width * scale)), max(4, round(stamp.height * scale))), Image.Resampling.LANCZOS)
        place = tuple(int(random.integers(-size // 5, SIDE - size + size // 5 + 1)) for size in stamp.size)
        picture.paste(stamp.convert("RGB"), place, stamp.getchannel("A"))
        mask.paste(number + 1, (*place, place[0] + stamp.width, place[1] + stamp.height), _solid(stamp))
    return picture, mask


def write(folder: Path, counts: dict[str, int] = COUNTS) -> Path:
    """Write the data set unless it is there already."""
    if (folder / "classes.txt").is_file():
        return folder
    for part, split in enumerate(("train", "val")):
        stamps, backgrounds = cut_outs(split), photographs(split)
        for kind in ("images", "masks"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        for number in range(counts[split]):
            picture, mask = compose(np.random.default_rng([part, number]), stamps, backgrounds)
            picture.save(folder / "images" / split / f"{number:05d}.png")
            mask.save(folder / "masks" / split / f"{number:05d}.png")
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in CLASS_NAMES), encoding="utf-8")
    return folder


def _trimmed(stamp: Image.Image) -> Image.Image:
    """Without its transparent border and not larger than is of use."""
    stamp = stamp.crop(_solid(stamp).getbbox())
    stamp.thumbnail((2 * SIDE, 2 * SIDE), Image.Resampling.LANCZOS)
    return stamp


def _solid(stamp: Image.Image) -> Image.Image:
    """White where a cut-out is more solid than transparent."""
    return stamp.getchannel("A").point(lambda alpha: 255 if alpha > 127 else 0)


def _background(random: np.random.Generator, photograph: Image.Image) -> Image.Image:
    side = int(random.uniform(0.3, 1.0) * min(photograph.size))
    left, top = (int(random.integers(length - side + 1)) for length in photograph.size)
    part = photograph.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else part


def main() -> None:
    parser = argparse.ArgumentParser(description="Compose pictures with exact masks.")
    parser.add_argument("--output", type=Path, required=True)
    folder = write(parser.parse_args().output)
    print(f"{folder}: {COUNTS['train']} pictures to train on, {COUNTS['val']} to validate with, {len(CLASS_NAMES)} classes")


if __name__ == "__main__":
    main()
