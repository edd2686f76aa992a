import csv

import numpy as np
import pytest

from stagewise.datamodules.errors import DatasetNotFoundError, StagewiseError
from stagewise.lightning_modules import load_module
from stagewise.lightning_modules.fusion.answers import answer


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(path, rows, names=None):
    with path.open("w", newline="") as file:
        lines = csv.DictWriter(file, names or list(rows[0]), extrasaction="ignore")
        lines.writeheader()
        lines.writerows(rows)
    return str(path)


@pytest.fixture
def given(fusion_run):
    """The folder of the data, its rows of test as written, and where new CSV may lie."""
    root = fusion_run.data.root
    test = set(fusion_run.data.table("test").ids.tolist())
    rows = [row for row in read(root / "metadata.csv") if row["id"] in test]
    yield root, rows
    for path in root.glob("new*.csv"):
        path.unlink()


def test_new_rows_are_answered_as_test_rows_were(fusion_run, given, tmp_path):
    root, rows = given
    module = load_module(fusion_run.path)
    unlabelled = [name for name in rows[0] if name not in ("label", "patient_id")]
    found = module.predict_folder(write(root / "new.csv", rows, unlabelled), str(tmp_path))
    expected = answer(module, fusion_run.data, "test")
    order = {one: i for i, one in enumerate(expected["ids"].tolist())}
    for one in found:
        p = [one[f"p_{name}"] for name in module.schema["classes"]]
        assert np.allclose(p, expected["probability"][order[one["id"]]], atol=2e-6)
    written = read(tmp_path / "predictions.csv")
    assert [row["id"] for row in written] == [row["id"] for row in rows]
    assert list(written[0]) == ["id", "phase", *(f"p_{n}" for n in module.schema["classes"]), "used", "note"]


def test_the_other_branch_answers_where_one_source_is_missing_and_the_file_says_so(fusion_run, given, tmp_path):
    root, rows = given
    own = [name for name in rows[0] if name not in ("id", "patient_id", "label", "image")]
    shown = next(row for row in rows if row["image"])
    blind, mute, nothing = {**shown, "id": "blind", "image": ""}, {**shown, "id": "mute"}, {**shown, "id": "nothing"}
    for name in own:
        mute[name] = nothing[name] = ""
    nothing["image"] = ""
    strange = {**shown, "id": "strange", fusion_run.data.table("test").category_names[0]: "Zebra stripes"}
    gone = {**shown, "id": "gone", "image": "images/not_there.png"}
    path = write(root / "new.csv", [shown, blind, mute, nothing, strange, gone])
    module = load_module(fusion_run.path)
    found = {one["id"]: one for one in module.predict_folder(path, str(tmp_path))}
    used = {one: found[one]["used"] for one in found}
    assert used == {
        shown["id"]: "both",
        "blind": "metadata",
        "mute": "image",
        "nothing": "neither",
        "strange": "both",
        "gone": "metadata",
    }
    assert "zebra stripes" in found["strange"]["note"] and found["blind"]["note"] == ""
    prior = module.network.prior.tolist()
    assert [found["nothing"][f"p_{c}"] for c in module.schema["classes"]] == pytest.approx(prior, abs=1e-6)
    assert found["blind"]["p_inflammatory"] == found["gone"]["p_inflammatory"]


def test_a_limit_and_files_that_cannot_be_answered(fusion_run, given, tmp_path):
    root, rows = given
    module = load_module(fusion_run.path)
    assert len(module.predict_folder(write(root / "new.csv", rows), str(tmp_path), limit=3)) == 3
    with pytest.raises(StagewiseError, match="no row to answer"):
        module.predict_folder(write(root / "new.csv", rows), str(tmp_path), limit=0)
    with pytest.raises(DatasetNotFoundError):
        module.predict_folder(str(root / "nowhere.csv"), str(tmp_path))


def test_a_table_that_says_nothing_to_the_model_is_refused_and_nothing_is_written(fusion_run, given, tmp_path):
    root, rows = given
    module = load_module(fusion_run.path)
    with pytest.raises(StagewiseError, match=r"no row of input=.* has a value that the model reads: image, .*age"):
        module.predict_folder(write(root / "new.csv", rows, ["id", "label"]), str(tmp_path / "answers"))
    assert not (tmp_path / "answers").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(StagewiseError, match=r"output='.*file' is a file; pass a folder"):
        module.predict_folder(write(root / "new.csv", rows), str(tmp_path / "file"))


def test_single_modalities_answer_too(clinic, image_run, fusion_run, given, tmp_path):
    root, rows = given
    path = write(root / "new.csv", rows)
    used = {one["used"] for one in load_module(image_run.path).predict_folder(path, str(tmp_path), limit=12)}
    assert used <= {"image", "neither"} and "image" in used
    run = clinic.train(clinic.module(modality="metadata"), "metadata_only")
    assert {one["used"] for one in load_module(run.path).predict_folder(path, str(tmp_path), limit=5)} == {"metadata"}
