"""Labels find their class by name, identifier, number, or by their order where the classes have no names."""

import re

import pytest

from overfocus.errors import ImageError
from overfocus.images.labels import imagenet_classes, match_labels


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


def numbers(first: int, last: int) -> list[str]:
    return [str(number) for number in range(first, last + 1)]


@pytest.mark.parametrize(
    ("labels", "classes", "label", "number", "rule"),
    [
        (numbers(1, 10), 10, "2", 1, "--class-map sorted"),
        (numbers(0, 11), 12, "2", 2, "--class-map sorted"),
        ([f"class{number}" for number in range(1, 13)], 12, "class2", 1, "--class-map sorted"),
        (["Zebra", "ant"], 2, "ant", 0, "--class-map sorted"),
        (["100", "1000", "200"], 3, "200", 1, "--class-map sorted"),
        (["3", "7"], 10, "3", 3, "from 1"),
        (numbers(1, 10), 11, "1", 1, "from 1"),
        (["1", "10"], 10, "10", 9, "from 1"),
        (numbers(1, 1000), 1000, "2", 1, "--class-map sorted"),
        (numbers(0, 999), 1000, "2", 2, "--class-map sorted"),
    ],
)
def test_what_is_not_sure_is_said_with_how_to_choose(labels, classes, label, number, rule):
    found = match_labels(labels, None, classes)
    assert found.ids[label] == number
    assert "labels assumed" in found.notes[0]
    assert rule in found.notes[0]
    assert "--class-map" in found.notes[0]


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (numbers(0, 9), 10),
        ([f"{number:02d}" for number in range(12)], 12),
        (["ant", "bee"], 2),
        (["0", "4"], 10),
    ],
)
def test_orders_that_agree_need_no_word(labels, classes):
    found = match_labels(labels, None, classes)
    assert found.notes == ()
    assert all(number == sorted(labels).index(label) or label == "4" for label, number in found.ids.items())


def test_a_chosen_order():
    labels = numbers(0, 11)
    assert match_labels(labels, None, 12, class_map="sorted").ids["2"] == 4
    assert match_labels(labels, None, 12, class_map="natural").ids["2"] == 2
    assert match_labels(["7"], None, 12, class_map="number").ids == {"7": 7}
    with pytest.raises(ImageError, match="expects a label for each of the model's 12 classes, got 2"):
        match_labels(["a", "b"], None, 12, class_map="sorted")
    with pytest.raises(ImageError, match="expects labels that are whole numbers, got 'a'"):
        match_labels(["a"], None, 2, class_map="number")


@pytest.mark.parametrize(
    ("name", "text", "ids"),
    [
        ("map.json", '{"a": 2, "b": 0}', {"a": 2, "b": 0}),
        ("map.json", '{"a": "z", "b": "x"}', {"a": 2, "b": 0}),
        ("map.json", '{"2": "a", "0": "b"}', {"a": 2, "b": 0}),
        ("map.json", '{"2": ["a", "ant"], "0": ["b", "bee"]}', {"a": 2, "b": 0}),
        ("map.json", '["b", "q", "a"]', {"a": 2, "b": 0}),
        ("map.txt", "b\nq\na\n", {"a": 2, "b": 0}),
        ("map.txt", "b bee, a big one\nq\na ant\n", {"a": 2, "b": 0}),
        ("map.csv", "label,class\nb,0\na,2\n", {"a": 2, "b": 0}),
        ("map.csv", "b;x\na;z\n", {"a": 2, "b": 0}),
        ("map.csv", "class,label\n0,b\n2,a\n", {"a": 2, "b": 0}),
        ("map.txt", "a 2\nb 0\n", {"a": 2, "b": 0}),
        ("map.txt", "0 b\n2 a\n", {"a": 2, "b": 0}),
        ("map.txt", "a,2\nb,0\n", {"a": 2, "b": 0}),
        ("map.txt", "label\tclass\na\t2\nb\t0\n", {"a": 2, "b": 0}),
        ("config.json", '{"model_type": "vit", "id2label": {"0": "b", "2": "a"}}', {"a": 2, "b": 0}),
        ("map.json", '{"class_to_idx": {"b": 0, "a": 2}}', {"a": 2, "b": 0}),
    ],
)
def test_a_file_says_the_class_of_each_label(tmp_path, name, text, ids):
    (tmp_path / name).write_text(text)
    assert match_labels(["a", "b"], ["x", "y", "z"], 3, class_map=tmp_path / name).ids == ids


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("map.json", "{", "expected JSON"),
        ("map.json", '{"a": 7}', "'7', expected a number from 0 to 2 or a name"),
        ("map.json", '{"a": true}', "expected a JSON object"),
        ("map.json", '{"a": 1, "a": 2}', "a twice; remove one"),
        ("map.txt", "a\na\n", "'a' twice"),
        ("map.txt", "x\ny\n", "got those of x, y"),
        ("map.txt", "", "the file is empty"),
        ("map.csv", "label,class\na,1\na,2\n", "two classes, 1 and 2"),
    ],
)
def test_a_file_that_says_no_class_is_refused(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    with pytest.raises(ImageError, match=re.escape(says)):
        match_labels(["a"], None, 3, class_map=tmp_path / name)


def test_numbers_of_the_data_set_itself():
    fashion = ["T-shirt", "Trouser", "Ankle boot"]
    assert match_labels(fashion, None, 3, numbering=fashion).ids == {"T-shirt": 0, "Trouser": 1, "Ankle boot": 2}
    assert match_labels(["dog", "cat"], ["cat", "dog"], 2, numbering=["dog", "cat"]).ids == {"cat": 0, "dog": 1}
    said = match_labels(["Hund"], ["cat", "dog"], 2, numbering=["Hund", "Katze"])
    assert said.ids == {"Hund": 0}
    assert "numbers are taken" in said.notes[0]
    offset = match_labels(["0", "1"], ["1", "2"], 2, numbering=["0", "1"])
    assert offset.ids == {"0": 0, "1": 1}
    assert "though the model calls class 0 '1'" in offset.notes[0]


def test_numbers_are_no_classes_of_a_model_that_names_its_classes_by_other_numbers():
    assert match_labels(["0"], ["1", "2"], 2).ids == {}
    assert match_labels(["-1", "1"], ["1", "2"], 2).ids == {"1": 0}
    assert match_labels(["5", "tench"], None, 1000).ids == {"tench": 0}


def test_spelling():
    assert match_labels(["cafe\u0301"], ["café", "bar"], 2).ids == {"cafe\u0301": 0}
    assert match_labels(["C", "C++"], ["C++", "D"], 2).ids == {"C++": 0}
    assert match_labels(["a", "b"], ["LABEL_0", "LABEL_1"], 2).ids == {"a": 0, "b": 1}


def test_imagenet_as_others_spell_it():
    names = ["tench, Tinca tinca", *imagenet_classes()[0][1:]]
    assert match_labels(["n01440764", "n01443537_goldfish"], names, 1000).ids == {"n01440764": 0, "n01443537_goldfish": 1}
