"""What an ablation says of its values per image."""

import numpy as np
import pandas as pd
import pytest

from overfocus.statistics.ablation import QUANTITIES, describe_ablation, tabulate_ablation


def _rows(top, random, mass=None, images=30, draws=1):
    """Images that keep their class without the top patches, random ones, and random ones of equal mass."""
    choices = [("top", top), ("random", random), ("bottom", images), *([("mass", mass)] if mass is not None else [])]
    rows = [
        {"image": image, "corruption": "clean", "severity": 0, "choice": choice, "k": k, "fraction": 0.05 if k else 0.0,
         "agreement": float(image < kept) if k else 1.0, "confidence_drop": 0.0, "output_cosine": 1.0, "clean_agreement": 1.0}
        for image in range(images)
        for k in (0, 3)
        for choice, kept in choices
        for _ in range(1 if choice in ("top", "bottom") else draws)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def _made_up(*kept, **options):
    return tabulate_ablation(_rows(*kept, **options))


@pytest.mark.parametrize(
    ("top", "random", "mass", "claim"),
    [
        (5, 28, None, "predictions depend on the most attended patches"),
        (5, 28, 27, "predictions depend on what the most attended patches show"),
        (5, 28, 6, "predictions depend on the attention: other patches that receive as much"),
        (28, 5, None, "predictions depend less on the most attended patches than on random ones"),
        (15, 15, 15, "predictions cannot be told to depend more on the most attended patches than on random ones"),
    ],
)
def test_answers(top, random, mass, claim):
    tables = _made_up(top, random, mass)
    (sentence,) = describe_ablation(tables, "vit")
    assert sentence.startswith(f"On clean images, vit: {claim}")
    assert "With the top 3 patches (5 %) removed" in sentence
    row = tables.differences.query("quantity == 'agreement' and against == 'random'").iloc[0]
    assert row["difference"] == pytest.approx((top - random) / 30)
    assert row["low"] <= row["difference"] <= row["high"]
    assert row["low"] < row["high"]


def test_few_images_tell_nothing():
    (sentence,) = describe_ablation(_made_up(1, 15, images=15), "vit", how="corrupt")
    assert "15 images are too few to tell what predictions depend on, at least 20 are needed" in sentence
    assert "corrupted" in sentence


def test_equal_mass_in_few_images_tells_nothing():
    rows = _rows(5, 28, 6)
    rows.loc[(rows["choice"] == "mass") & (rows["image"] >= 10) & (rows["k"] > 0), list(QUANTITIES)] = np.nan
    (sentence,) = describe_ablation(tabulate_ablation(rows), "vit")
    assert sentence.startswith("On clean images, vit: predictions depend on the most attended patches. ")


def test_draws_are_averaged_for_each_image():
    one, many = _made_up(5, 28, 20), _made_up(5, 28, 20, draws=4)
    pd.testing.assert_frame_equal(
        one.table[["choice", "k", "agreement", "count"]], many.table[["choice", "k", "agreement", "count"]]
    )
    assert one.differences["difference"].tolist() == many.differences["difference"].tolist()
