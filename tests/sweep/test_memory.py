"""Memory does not grow with the number of images."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import importlib.util, resource, sys
import overfocus
from overfocus.sweep import recorder

spec = importlib.util.spec_from_file_location("fixtures", sys.argv[1])
fixtures = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fixtures)
recorder.BYTES_PER_PART = 2**20
overfocus.analyze(
    fixtures._make_loaded(), sys.argv[2], corruptions=["noise", "fog"], severities=[1, 2, 3, 4, 5], output=sys.argv[3],
    workers=0, device="cpu", displayed=1,
)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_twice_the_images_take_no_more_memory(write_images, tmp_path):
    kilobytes = []
    for number in (300, 600):
        photos = write_images(tmp_path / f"photos-{number}", number)
        fixtures = Path(__file__).with_name("conftest.py")
        command = [sys.executable, "-c", PROGRAM, str(fixtures), str(photos), str(tmp_path / f"run-{number}")]
        kilobytes.append(int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
    # the images of 300 more images, 21 variants of 32×32 pixels each, would take 19 MB
    assert kilobytes[1] - kilobytes[0] < 6_000
