"""Peak memory of streaming, in a process of its own, above what the plain forward needs there."""

import json
import subprocess
import sys

import pytest
import timm
import torch

import overfocus
from overfocus.metrics import measure

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads peak memory from Linux's /proc"),
]

PROGRAM = """
import json, re, sys
import timm, torch, overfocus
from overfocus.metrics import measure

pixels, patch, width, heads, depth, batches = json.loads(sys.argv[1])
torch.set_num_threads(1)
settings = dict(img_size=pixels, patch_size=patch, embed_dim=width, num_heads=heads, depth=depth, num_classes=0)
model = timm.models.VisionTransformer(**settings).eval()

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024

with torch.inference_mode():
    model(torch.randn(1, 3, pixels, pixels))
    plain = peak()
    with overfocus.capture(model, reduce=measure) as captured:
        for _ in range(batches):
            model(torch.randn(1, 3, pixels, pixels))
            assert len(captured.reduced) == depth
            captured.clear()
print(json.dumps(peak() - plain))
"""


def above_plain(*, pixels, patch=16, width=64, heads=4, depth=2, batches=1):
    """Peak memory of streaming above that of a plain forward before it, in MB."""
    settings = json.dumps([pixels, patch, width, heads, depth, batches])
    command = [sys.executable, "-c", PROGRAM, settings]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(result.stdout)


def test_memory_does_not_grow_with_depth_or_with_the_number_of_images():
    """At 1,025 tokens and four heads a map is 17 MB; one more that stayed would show."""
    settings = {"pixels": 256, "patch": 8}
    once = above_plain(**settings)
    assert once < 100
    assert above_plain(**settings | {"depth": 5}) - once < 8
    assert above_plain(**settings | {"batches": 4}) - once < 8


def test_4097_tokens_stay_within_400_mb_above_the_plain_forward():
    """1024×1024 pixels and six heads, as vit_small_patch16 has: the maps of two layers would take 800 MB."""
    assert above_plain(pixels=1024, width=96, heads=6, depth=2) < 400


def test_9217_tokens_work_for_one_image():
    """1536×1536 pixels: the map of one layer would take 680 MB."""
    assert above_plain(pixels=1536, width=64, heads=2, depth=1) < 400


@pytest.mark.parametrize("pixels", [128, 512])
def test_blocks_of_queries_give_what_the_whole_map_gives(family, pixels):
    """In blocks and whole, at 65 and at 1,025 tokens, to 1e-5."""
    model = timm.models.VisionTransformer(img_size=pixels, patch_size=16, embed_dim=64, num_heads=2, depth=2, num_classes=0)
    family.sharpen(model)
    with torch.inference_mode(), overfocus.capture(model) as captured:
        model(family.images(pixels, batch=1))
    for attention in captured.maps:
        tokens = attention.shape[2]
        whole = measure(attention, chunk_size=tokens)
        assert len(whole) > 5
        for size in (tokens // 7, 1000):
            blocks = measure(attention, chunk_size=size)
            assert blocks.keys() == whole.keys()
            for name, value in whole.items():
                torch.testing.assert_close(blocks[name], value, rtol=1e-5, atol=1e-5, msg=name)
