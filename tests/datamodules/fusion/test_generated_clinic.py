"""The generated clinic: its layout, and the signals that are in it."""

import hashlib

import numpy as np
import pytest

from stagewise.datamodules import GeneratedFusionDataModule
from stagewise.datamodules.errors import DatasetNotFoundError, StagewiseError
from stagewise.datamodules.fusion.generated import write_generated_clinic
from stagewise.datamodules.fusion.generated_clinic import PHASES, SHARES, draw_visits
from stagewise.datamodules.fusion.generated_thermal import SCALE_DEG, draw_wound, false_colours
from stagewise.datamodules.fusion.pictures import from_false_colour

CROPS = {"px": 32, "channels": 1, "colormap": "inferno"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("generated")
    folder = str(root / "clinic")
    made = GeneratedFusionDataModule(
        folder,
        {"root": folder, "patients": 40, "px": 48},
        classes=list(PHASES),
        files={"boxes": "boxes.csv"},
        image=CROPS,
        loader={"num_workers": 0},
        cache_dir=str(root / "cache"),
    )
    made.prepare_data()
    made.prepare_data()  # once is enough
    made.setup("fit")
    return made


def test_a_generated_clinic_reads_like_a_real_one(data):
    tables = list(data.splits.values())
    assert sum(len(set(table.group.tolist())) for table in tables) == 40
    counts = {len(own) for table in tables for own in table.pictures}
    assert counts == {0, 1, 2, 3} and all(box for table in tables for own in table.boxes for box in own)
    assert any(np.isnan(table.numbers).any() for table in tables)
    at = tables[0].category_names.index("aetiology")
    spellings = {name for table in tables for name in table.categories[:, at]}
    assert {"venous", "diabetic", "pressure", ""} < spellings and len(spellings) > 5
    assert {"id", "patient_id", "label", "image"}.isdisjoint((*tables[0].number_names, *tables[0].category_names))


def test_the_crop_is_of_the_wound_in_the_units_of_the_scale(data):
    image = data.dataset("train")[0]["image"]
    assert image.shape == (1, 32, 32)
    rows = [i for i in range(len(data.dataset("val"))) if data.dataset("val")[i]["has_image"]]
    middle = np.array([data.dataset("val")[i]["image"][0, 12:20, 12:20].float().mean() for i in rows])
    degrees = SCALE_DEG[0] + middle / 255 * (SCALE_DEG[1] - SCALE_DEG[0])
    assert 28 < degrees.min() and degrees.max() < 38


def test_the_same_arguments_give_the_same_bytes(tmp_path):
    def digest(name, **options):
        write_generated_clinic(tmp_path / name, patients=9, px=32, **options)
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        return hashlib.blake2b(b"".join(path.read_bytes() for path in files)).hexdigest()

    assert digest("a") == digest("b") != digest("c", seed=1)


def test_false_colours_hold_absolute_temperature():
    rng = np.random.default_rng(0)
    field, (left, top, right, bottom) = draw_wound(2.0, 0.5, 32.0, 64, rng)
    back, _ = from_false_colour(false_colours(field), "inferno")
    np.testing.assert_allclose(20 + back / 255 * 20, field.clip(*SCALE_DEG), atol=0.25)
    assert 0 <= left < right <= 64 and 0 <= top < bottom <= 64
    middle = field[int(top + bottom) // 2 - 2 : int(top + bottom) // 2 + 2, int(left + right) // 2 - 2 :][:, :4]
    assert middle.mean() > 33


def test_phases_are_unbalanced_as_said_and_each_part_carries_some_of_them():
    visits = draw_visits(600, np.random.default_rng(0))
    phase = np.array([visit.phase for visit in visits])
    np.testing.assert_allclose(np.bincount(phase) / len(phase), SHARES, atol=0.01)
    contrast = np.array([visit.contrast_deg for visit in visits])
    poor = np.array([visit.cells["blood_supply"].strip().lower() == "poor" for visit in visits])
    days = np.array([float(visit.cells["days_since_wound"] or "nan") for visit in visits])
    known = ~np.isnan(days)
    related = {
        "metadata": np.corrcoef(days[known], phase[known])[0, 1],
        "rim": -np.corrcoef([visit.rim for visit in visits], phase)[0, 1],
        "warmth": -np.corrcoef(contrast, phase)[0, 1],
    }
    assert all(value > 0.15 for value in related.values()), related
    apart = [np.corrcoef(contrast[rows], phase[rows])[0, 1] for rows in (poor, ~poor)]
    assert apart[0] - apart[1] > 0.2  # what the wound's warmth means depends on the supply


def test_a_patients_rows_are_alike():
    visits = draw_visits(600, np.random.default_rng(0))
    by_patient = {}
    for visit in visits:
        by_patient.setdefault(visit.cells["patient_id"], []).append(visit)
    several = [own for own in by_patient.values() if len(own) > 1]
    assert max(map(len, by_patient.values())) == 4
    pairs = np.array([[own[0].phase, own[1].phase] for own in several])
    assert np.corrcoef(pairs.T)[0, 1] > 0.2
    assert all(own[0].skin_deg == own[1].skin_deg for own in several)


@pytest.mark.parametrize("options", [{"patients": 3}, {"px": 8}])
def test_arguments_out_of_range_are_refused(tmp_path, options):
    with pytest.raises(StagewiseError, match="a generated clinic needs"):
        write_generated_clinic(tmp_path / "clinic", **options)


def test_nothing_is_overwritten_and_a_mistyped_root_is_an_error(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    with pytest.raises(StagewiseError, match="not an empty folder"):
        write_generated_clinic(tmp_path / "full")
    made = GeneratedFusionDataModule(
        str(tmp_path / "typo"), {"root": str(tmp_path / "clinic")}, classes=list(PHASES), cache_dir=str(tmp_path)
    )
    made.prepare_data()
    with pytest.raises(DatasetNotFoundError):
        made.setup("fit")
