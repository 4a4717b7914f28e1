"""Labels find their class by name, identifier, number, or by their order where the classes have no names."""

import pytest

from overfocus.images.labels import match_labels


def test_names_of_classes():
    classes = match_labels(["T-shirt", "ankle_boot", None, "hat"], ["T-shirt/top", "Trouser", "Ankle boot"], 3)
    assert classes.ids == {"T-shirt": 0, "ankle_boot": 2}
    assert classes.names == ["T-shirt/top", "Trouser", "Ankle boot"]


def test_names_that_two_classes_share_are_left_out():
    assert match_labels(["crane", "wader"], ["crane, wader", "crane, lifting gear", "x"], 3).ids == {"wader": 0}
    assert match_labels(["cat"], ["cat", "cat"], 2).ids == {}


def test_a_whole_name_comes_before_a_part_of_another():
    assert match_labels(["cat"], ["cat, domestic", "cat"], 2).ids == {"cat": 1}


def test_imagenet_names_and_identifiers():
    classes = match_labels(["n01440764", "tench", "Tabby cat", "n99999999"], None, 1000)
    assert classes.ids["n01440764"] == classes.ids["tench"] == 0
    assert classes.names[281].startswith("tabby")
    assert classes.ids.get("Tabby cat") == 281
    assert "n99999999" not in classes.ids
    assert match_labels(["n01440764_tench", "n01443537-goldfish", "n014407640"], None, 1000).ids == {
        "n01440764_tench": 0,
        "n01443537-goldfish": 1,
    }


def test_a_thousand_classes_with_other_names_are_not_imagenet():
    assert match_labels(["n01440764"], [f"class {number}" for number in range(1000)], 1000).ids == {}


def test_numbers():
    assert match_labels(["0", "12", "15"], None, 13).ids == {"0": 0, "12": 12}
    assert match_labels(["1", "0"], ["0", "1"], 2).ids == {"0": 0, "1": 1}
    assert match_labels(["1", "0"], ["1", "0"], 2).ids == {"1": 0, "0": 1}


def test_order_of_the_folders_where_classes_have_no_names():
    classes = match_labels(["class 10", "class 2", "class 2"], None, 2)
    assert classes.ids == {"class 2": 0, "class 10": 1}
    assert classes.names == ["class 2", "class 10"]


@pytest.mark.parametrize("labels", [["a"], ["a", "b", "c"], [None, None]])
def test_another_number_of_folders_says_nothing(labels):
    classes = match_labels(labels, None, 2)
    assert (classes.names, classes.ids) == (None, {})
