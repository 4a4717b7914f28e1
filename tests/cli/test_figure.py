"""`overfocus figure` writes what was asked for where it was asked for."""

import pytest

Image = pytest.importorskip("PIL.Image")


@pytest.fixture
def folder(tmp_path, synthetic_run):
    return synthetic_run(tmp_path / "run", images=3, layers=2)


def test_formats_and_sizes(overfocus, folder):
    assert overfocus("figure", "layers", folder).stdout.strip() == "layers.pdf"
    result = overfocus("figure", "matrix", folder, folder, "--format", "png", "--width", "3in", "--output", "sub/matrix")
    assert result.exit_code == 0, result.output
    assert Image.open("sub/matrix.png").width == 900
    assert overfocus("figure", "stability", folder, "--output", "stability.svg").exit_code == 0
    result = overfocus("figure", "columns", folder, "--image", "1", "--layer", "0", "--corruption", "fog", "--output", "c.png")
    assert result.stdout.strip() == "c.png"


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--metric", "ginny"], 1, "did you mean 'gini'"),
        (["--severity", "9"], 1, "severity 9 was not measured"),
        (["--width", "wide"], 2, "expected a width such as 3.3in"),
        (["--output", "figure.doc"], 1, "--output must end in .pdf or .svg or .png, got .doc"),
        (["--output", "figure.png", "--format", "pdf"], 1, "--output must end in .pdf, got .png"),
    ],
)
def test_trouble_in_one_line(overfocus, folder, options, status, message):
    result = overfocus("figure", "layers", folder, *options)
    assert result.exit_code == status
    assert message in " ".join(result.stderr.split())
    assert status == 2 or result.stderr.count("\n") == 1


def test_no_run(overfocus):
    result = overfocus("figure", "layers", "nowhere")
    assert result.exit_code == 1
    assert "expected a run folder" in result.stderr
