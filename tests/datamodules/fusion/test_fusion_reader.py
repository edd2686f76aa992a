"""The table of a clinic: what becomes a feature, and every row that cannot be used in one error."""

import logging
import math

import numpy as np
import pytest

from stagewise.datamodules.errors import BadRowsError, DatasetNotFoundError
from stagewise.datamodules.fusion.reader import read_table

CLASSES = ["low", "mid", "high"]
COLUMNS = {"id": "id", "group": "patient_id", "label": "label", "image": "image", "drop": [], "categories": []}
FILES = {"table": "metadata.csv", "boxes": None}


def read(clinic, files=FILES, columns=COLUMNS, **options):
    return read_table(clinic.write(), files, columns, CLASSES, **options)


def refused(clinic, *words, files=FILES, **options):
    with pytest.raises(BadRowsError) as caught:
        read(clinic, files, **options)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message
    return message


def test_a_row_is_read_as_it_stands(clinic):
    clinic.rows[1] |= {"age": "", "kind": " b "}
    clinic.rows[2]["image"] = "images/2.png; images/3.png"
    clinic.rows[3]["image"] = ""
    table = read(clinic)
    assert len(table) == 36 and table.number_names == ("age",) and table.category_names == ("kind",)
    assert table.numbers[0, 0] == 40 and math.isnan(table.numbers[1, 0])
    assert table.categories[:3, 0].tolist() == ["a", "b", ""]
    assert table.label.tolist()[:6] == [0, 0, 1, 1, 2, 2] and table.group[3] == "p1" and table.ids[3] == "r3"
    assert [len(own) for own in table.pictures[:4]] == [1, 1, 2, 0] and table.boxes[2] == (None, None)


def test_numbers_that_are_names_and_columns_that_are_dropped(clinic):
    for number, row in enumerate(clinic.rows):
        row |= {"zip": 10000 + number % 2, "price": number, "empty": ""}
    table = read(clinic, columns=COLUMNS | {"drop": ["price"], "categories": ["zip"]})
    assert table.number_names == ("age",) and table.category_names == ("kind", "zip")
    assert table.categories[1, 1] == "10001"


@pytest.mark.parametrize("missing", ["", "NA", "n/a", "NaN", "null"])
def test_what_counts_as_missing(clinic, missing):
    clinic.rows[0] |= {"age": missing, "kind": missing}
    table = read(clinic)
    assert np.isnan(table.numbers[0, 0]) and table.categories[0, 0] == ""


def test_a_column_of_numbers_with_a_word_in_it_or_with_decimal_commas_is_told(clinic, caplog):
    clinic.rows[4]["age"] = "sixty"
    for row in clinic.rows:
        row["bmi"] = "20,5"
    assert {"age", "bmi"} <= set(read(clinic).category_names)
    assert "'age' counts as categories" in caplog.text and "'sixty' in metadata.csv:6" in caplog.text
    assert "'bmi' counts as categories" in caplog.text and "'20,5' in metadata.csv:2" in caplog.text


def test_a_label_in_other_letters_or_spaces_is_the_same_label(clinic):
    clinic.rows[0]["label"], clinic.rows[2]["label"] = " LOW ", "Mid"
    assert read(clinic).label.tolist()[:3] == [0, 0, 1]
    clinic.rows[0]["label"], clinic.rows[1]["label"] = "NaN", "low"
    refused(clinic, "metadata.csv:2 has no label")
    with pytest.raises(BadRowsError, match="label 'Mid' is none of"):  # where letters tell classes apart they count
        read_table(clinic.write(), FILES, COLUMNS, ["low", "Low", "mid", "high"])


def test_a_table_without_the_column_of_pictures_has_none(clinic, caplog):
    path = clinic.write(header=["id", "patient_id", "age", "label"])
    assert not any(read_table(path, FILES, COLUMNS, CLASSES).pictures)
    assert "no column 'image' (columns.image)" in caplog.text


def test_all_bad_rows_are_in_one_error(clinic):
    clinic.rows[0]["label"] = "lov"
    clinic.rows[1]["id"] = "r0"
    clinic.rows[2]["image"] = "images/none.png"
    clinic.rows[3]["patient_id"] = ""
    clinic.rows[4]["id"] = ""
    path = clinic.root / "images/5.png"
    path.write_bytes(path.read_bytes()[:300])
    (clinic.root / "images/6.png").write_text("no picture")
    files = clinic.boxes(("images/7.png", 0, 0, 25, 8), ("images/8.png", 4, 4, 4, 8), ("images/9.png", "x", 0, 2, 2))
    message = refused(
        clinic,
        "10 bad row(s)",
        "metadata.csv:2 label 'lov' is none of datamodule.classes: low, mid, high",
        "metadata.csv:3 id 'r0' is also in metadata.csv:2",
        "metadata.csv:5 has no group",
        "metadata.csv:6 has no id",
        "metadata.csv:4 picture",
        "no such file",
        "metadata.csv:8 picture",
        "boxes.csv:2 box 0, 0, 25, 8 is outside the picture of 24 x 16",
        "boxes.csv:3 box 4, 4, 4, 8 is less than 1 px",
        "boxes.csv:4 box has a side that is no number",
        files=files,
    )
    assert "5.png': truncated" in message


def test_ten_bad_rows_are_named_and_all_are_counted(clinic):
    for row in clinic.rows[:14]:
        row["label"] = "?"
    message = refused(clinic, "14 bad row(s)", "and 4 more")
    assert message.count("label '?'") == 10 and "metadata.csv:12" not in message


@pytest.mark.parametrize("box", [(-1, 0, 5, 5), (0, 0, 5, 17), (5, 5, 2, 9), ("nan", 0, 5, 5), ("", 0, 5, 5)])
def test_boxes_that_are_none_are_refused(clinic, box):
    refused(clinic, "boxes.csv:2 box", files=clinic.boxes(("images/1.png", *box)))


def test_a_second_box_and_a_picture_of_two_patients_are_refused(clinic):
    refused(clinic, "a second box of 'images/1.png'", files=clinic.boxes(*[("images/1.png", 0, 0, 4, 4)] * 2))
    clinic.rows[4]["image"] = "images/1.png"
    refused(clinic, "metadata.csv:6 picture 'images/1.png' is of another group in metadata.csv:3")


def test_boxes_go_by_path_or_file_name_and_those_of_no_picture_are_told(clinic, caplog):
    clinic.write()
    files = clinic.boxes(("images/1.png", 1, 2, 9, 8), ("2.png", 0, 0, 24, 16), ("gone.png", 0, 0, 1, 1))
    table = read(clinic, files)
    assert table.boxes[:3] == ((None,), ((1, 2, 9, 8),), ((0, 0, 24, 16),))
    assert "1 box(es) of no picture of the table, first boxes.csv:4" in caplog.text
    caplog.clear()
    read(clinic)
    assert "files.boxes=boxes.csv crops to it" in caplog.text


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"label": "phase"}, "has no column 'phase'; it has id, patient_id"),
        ({"drop": ["prise"]}, r"columns.drop names \['prise'\]"),
        ({"categories": ["zip"]}, r"columns.categories names \['zip'\]"),
    ],
)
def test_columns_that_are_not_there(clinic, columns, words):
    with pytest.raises(BadRowsError, match=words):
        read(clinic, columns=COLUMNS | columns)


def test_files_that_are_none(clinic, tmp_path):
    with pytest.raises(DatasetNotFoundError, match=r"pass datamodule\.root"):
        read_table(tmp_path / "nowhere", FILES, COLUMNS, CLASSES)
    with pytest.raises(DatasetNotFoundError, match=r"datamodule\.files\.boxes"):
        read(clinic, FILES | {"boxes": "boxen.csv"})
    (clinic.root / "metadata.csv").write_bytes(b"id,\xff\n")
    with pytest.raises(BadRowsError, match="UTF-8"):
        read_table(clinic.root, FILES, COLUMNS, CLASSES)
    (clinic.root / "metadata.csv").write_text("id,id,patient_id,label,image\n")
    with pytest.raises(BadRowsError, match="twice"):
        read_table(clinic.root, FILES, COLUMNS, CLASSES)
    (clinic.root / "metadata.csv").write_text("id,patient_id,label,image\n")
    with pytest.raises(BadRowsError, match="no rows"):
        read_table(clinic.root, FILES, COLUMNS, CLASSES)
    (clinic.root / "metadata.csv").write_text("id,patient_id,label,image\nr0,p0,low,\nr1,p0,low\n")
    with pytest.raises(BadRowsError, match=r"metadata\.csv:3 has 3 cells, the header 4"):
        read_table(clinic.root, FILES, COLUMNS, CLASSES)


def test_a_table_that_is_none_names_the_remedy(clinic):
    (clinic.root / "metadata.csv").write_text("id;patient_id;label;image\n1;2;low;\n")
    with pytest.raises(BadRowsError, match="Put commas between its cells, not ';'"):
        read_table(clinic.root, FILES, COLUMNS, CLASSES)
    (clinic.root / "metadata.csv").write_text("id,age\n")
    with pytest.raises(BadRowsError, match="has no rows; fill it, or pass input="):
        read_table(clinic.root, FILES, COLUMNS, CLASSES, labelled=False)
    clinic.write()
    clinic.table("boxes.csv", [{"file": "images/1.png"}])
    with pytest.raises(BadRowsError, match="Rename those that it has"):
        read_table(clinic.root, FILES | {"boxes": "boxes.csv"}, COLUMNS, CLASSES)


def test_a_box_of_a_picture_that_is_missing_is_no_box_of_an_unknown_one(clinic, caplog):
    clinic.rows[1]["image"] = "images/none.png"
    refused(clinic, "none.png", files=clinic.boxes(("none.png", 0, 0, 4, 4)))
    assert "of no picture of the table" not in caplog.text


def test_new_rows_need_neither_label_nor_picture_nor_all_columns(clinic, caplog):
    like = {"number_names": ["age", "bmi"], "category_names": ["kind"]}
    clinic.rows[0] |= {"image": "images/none.png", "kind": "unheard of"}
    (clinic.root / "images/1.png").write_bytes((clinic.root / "images/1.png").read_bytes()[:300])
    clinic.write(header=["id", "age", "kind", "image"])
    with caplog.at_level(logging.WARNING):
        table = read_table(clinic.root, FILES, COLUMNS, CLASSES, labelled=False, like=like)
    assert table.number_names == ("age", "bmi") and np.isnan(table.numbers[:, 1]).all()
    assert (table.label == -1).all() and table.categories[0, 0] == "unheard of"
    assert [len(own) for own in table.pictures[:3]] == [0, 0, 1]
    for words in ("no column bmi: all missing", "metadata.csv:2 goes without", "metadata.csv:3 goes without"):
        assert words in caplog.text
    clinic.rows[2]["age"], clinic.rows[3]["id"] = "old", "r2"
    clinic.write(header=["id", "age", "kind", "image"])
    with pytest.raises(BadRowsError, match=r"2 bad row.*age 'old' is no number.*id 'r2' is also|id 'r2'.*age 'old'"):
        read_table(clinic.root, FILES, COLUMNS, CLASSES, labelled=False, like=like)


def test_the_key_of_a_table_names_its_content(clinic):
    key = read(clinic).content_key()
    assert read(clinic).content_key() == key
    for change in ({"age": 99}, {"kind": "c"}, {"label": "high"}, {"image": ""}, {"patient_id": "p9"}):
        before = dict(clinic.rows[0])
        clinic.rows[0] |= change
        assert read(clinic).content_key() != key, change
        clinic.rows[0] = before
    files = clinic.boxes(("images/1.png", 1, 2, 9, 8))
    assert read(clinic, files).content_key() != key
