"""What an ablation says of its values per image."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

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
        (5, 28, None, "predictions of vit depend on the most attended patches; we cannot tell whether on their attention"),
        (5, 28, 27, "predictions of vit depend on what the most attended patches show"),
        (5, 28, 6, "predictions of vit depend on the attention: losing others that receive as much costs about as much"),
        (20, 28, 22, "predictions of vit depend on the most attended patches; from 30 images we cannot tell whether on"),
        (
            10,
            28,
            1,
            "predictions of vit depend on the attention: losing others that receive as much, more in number, costs even more",
        ),
        (28, 5, None, "predictions of vit depend less on the most attended patches than on random ones"),
        (15, 15, 15, "we cannot tell whether predictions of vit depend more on the most attended patches than on random ones"),
    ],
)
def test_answers(top, random, mass, claim):
    tables = _made_up(top, random, mass)
    (sentence,) = map(str, describe_ablation(tables, "vit"))
    assert sentence.startswith(f"On clean images, {claim}")
    assert all(part.count(":") <= 1 for part in sentence.split(". "))
    kept = f"With the top 3 patches (5 %) removed, the share of images that keep their class is {top / 30:.3f}; it is "
    assert kept + f"{random / 30:.3f} with as many random ones (difference " in sentence
    row = tables.differences.query("quantity == 'agreement' and against == 'random'").iloc[0]
    assert row["difference"] == pytest.approx((top - random) / 30)
    assert row["low"] <= row["difference"] <= row["high"]
    assert row["low"] < row["high"]


def test_few_images_tell_nothing():
    (sentence,) = map(str, describe_ablation(_made_up(1, 15, images=15), "vit", how="corrupt"))
    assert "15 images are too few to tell what predictions of vit depend on, at least 20 are needed" in sentence
    assert "corrupted" in sentence


def test_equal_mass_in_few_images_tells_nothing():
    rows = _rows(5, 28, 6)
    rows.loc[(rows["choice"] == "mass") & (rows["image"] >= 10) & (rows["k"] > 0), list(QUANTITIES)] = np.nan
    (sentence,) = map(str, describe_ablation(tabulate_ablation(rows), "vit"))
    assert "because in too few images the others together receive as much. With" in sentence
    assert "after Holm over 3, 10 images)" in sentence


def test_speaks_of_a_share_with_enough_images_of_equal_mass():
    """The three top patches take most of the attention, so that only a single one has a control of equal mass."""
    many, one = _rows(5, 28, 6), _rows(10, 29, 28)
    many.loc[(many["choice"] == "mass") & (many["k"] > 0), list(QUANTITIES)] = np.nan
    one = one[one["k"] > 0].assign(k=1, fraction=0.01)
    (sentence,) = map(str, describe_ablation(tabulate_ablation(pd.concat([many, one])), "vit"))
    assert "depend on what the most attended patches show" in sentence
    assert "With the top patch (1 %) removed, the share of images that keep their class is 0.333" in sentence


def test_draws_are_averaged_for_each_image():
    one, many = _made_up(5, 28, 20), _made_up(5, 28, 20, draws=4)
    pd.testing.assert_frame_equal(
        one.table[["choice", "k", "agreement", "count"]], many.table[["choice", "k", "agreement", "count"]]
    )
    assert one.differences["difference"].tolist() == many.differences["difference"].tolist()


def test_differences_are_those_of_paired_outcomes():
    """Eight images that keep their class without the top patches and 26 without random ones: McNemar and Newcombe by hand."""
    row = _made_up(8, 26).differences.query("quantity == 'agreement' and against == 'random'").iloc[0]
    assert row["p_value"] == pytest.approx(2 * 0.5**18)  # 18 of 18 images change sides
    wilson = {kept: stats.binomtest(kept, 30).proportion_ci(method="wilson") for kept in (8, 26)}
    down, up = 8 / 30 - wilson[8].low, wilson[8].high - 8 / 30
    other_down, other_up = 26 / 30 - wilson[26].low, wilson[26].high - 26 / 30
    covariance = 8 / 30 - 8 / 30 * 26 / 30
    correlation = (covariance - 0.5 / 30) / (8 / 30 * 22 / 30 * 26 / 30 * 4 / 30) ** 0.5
    below = (down**2 - 2 * correlation * down * other_up + other_up**2) ** 0.5
    above = (up**2 - 2 * correlation * up * other_down + other_down**2) ** 0.5
    assert (row["low"], row["high"]) == pytest.approx((-0.6 - below, -0.6 + above))


def test_outputs_without_classes_are_compared_by_their_cosine():
    random = np.random.default_rng(0)
    rows = _rows(5, 28, 27).assign(agreement=np.nan, confidence_drop=np.nan, clean_agreement=np.nan)
    rows["output_cosine"] = np.where(rows["choice"] == "top", 0.4, 0.9) + 0.01 * random.normal(size=len(rows))
    tables = tabulate_ablation(rows)
    (sentence,) = map(str, describe_ablation(tables, "dino"))
    assert "predictions of dino depend on what the most attended patches show" in sentence
    mean = tables.table.query("choice == 'top' and k == 3")["output_cosine"].iloc[0]
    assert f"removed, the mean cosine with the usual output is {mean:.3f}; it is 0." in sentence


def test_one_image_and_images_that_all_keep_their_class():
    (sentence,) = map(str, describe_ablation(_made_up(1, 1, 1, images=1), "vit"))
    assert "1 image are too few" not in sentence
    assert "1 image is too few to tell" in sentence
    tables = _made_up(30, 30, 30)
    assert "we cannot tell whether predictions of vit depend more" in describe_ablation(tables, "vit")[0].claim
    row = tables.differences.query("quantity == 'agreement'").iloc[0]
    assert row["low"] < 0 < row["high"]  # never of zero width
    assert row["p_value"] == 1
