import numpy as np
import pytest

from stagewise.datamodules.errors import BadRowsError, DatasetNotFoundError
from stagewise.datamodules.geolocation.geocells import COLUMNS, CellTable

NAMES = ["Hills", "Coast"]
GOOD = ["0,Hills,0,30.0,70.0,5.0,1", "1,Hills,0,31.0,70.0,5.0,0", "7,Coast,1,25.0,67.0,8.0,"]


def table(centres, region=None, ids=None):
    n = len(centres)
    region = np.zeros(n, np.int64) if region is None else np.asarray(region)
    return CellTable(np.arange(n) if ids is None else np.asarray(ids), region, np.array(centres), np.ones(n), [[]] * n)


def nearest_by_haversine(points, centres):
    lat, lon = np.radians(points).T[:, :, None]
    lat_c, lon_c = np.radians(centres).T[:, None, :]
    h = np.sin((lat - lat_c) / 2) ** 2 + np.cos(lat) * np.cos(lat_c) * np.sin((lon - lon_c) / 2) ** 2
    return h.argmin(1)


@pytest.mark.parametrize(
    ("lat", "lon"),
    [((20, 40), (60, 80)), ((-20, 20), (170, 190)), ((80, 90), (-180, 180)), ((-90, -85), (-180, 180))],
    ids=["plain", "date line", "north pole", "south pole"],
)
def test_assign_is_the_nearest_centre_on_the_sphere(lat, lon):
    rng = np.random.default_rng(0)

    def places(n):
        drawn = np.stack([rng.uniform(*lat, n), rng.uniform(*lon, n)], 1)
        drawn[:, 1] = (drawn[:, 1] + 180) % 360 - 180
        return drawn

    centres, points = places(40), places(1000)
    assigned = table(centres).assign(points, np.zeros(1000, np.int64))
    assert np.array_equal(assigned, nearest_by_haversine(points, centres))


def test_assign_stays_in_the_points_region():
    cells = table([[30.0, 70.0], [30.5, 70.0], [30.2, 70.0]], region=[0, 0, 1])
    points = np.array([[30.2, 70.0], [30.2, 70.0], [30.4, 70.0]])
    assert cells.assign(points, np.array([0, 1, 0])).tolist() == [0, 2, 1]


def test_assign_refuses_a_region_without_cells():
    with pytest.raises(BadRowsError, match=r"region 3 has rows but no cell"):
        table([[30.0, 70.0]]).assign(np.array([[30.0, 70.0]]), np.array([3]))


def test_position_of_knows_ids_in_any_order_and_gives_minus_one_for_others():
    cells = table([[0.0, 0.0]] * 4, ids=[40, 7, 900, 3])
    assert cells.position_of(np.array([900, 3, 40, 7])).tolist() == [2, 3, 0, 1]
    assert cells.position_of(np.array([-1, 0, 8, 901, 3])).tolist() == [-1, -1, -1, -1, 3]


def test_dict_round_trip_is_exact_and_plain():
    rng = np.random.default_rng(0)
    cells = table(rng.normal(0, 30, (6, 2)), region=[0, 0, 1, 1, 1, 2], ids=[5, 9, 1, 2, 30, 4])
    plain = cells.as_dict()
    again = CellTable.from_dict(plain)
    assert again.as_dict() == plain
    assert {type(x) for x in plain["cell_id"] + plain["region"]} == {int}
    assert {type(x) for row in plain["centre_deg"] for x in row} == {float}


def test_from_dict_sorts_by_region_then_id_and_keeps_rows_together():
    plain = {
        "cell_id": [9, 2, 5],
        "region": [1, 0, 0],
        "centre_deg": [[9.0, 9.5], [2.0, 2.5], [5.0, 5.5]],
        "radius_km": [9.0, 2.0, 5.0],
        "neighbours": [[], [5], [2]],
    }
    cells = CellTable.from_dict(plain)
    assert cells.cell_id.tolist() == [2, 5, 9]
    assert cells.centre_deg[:, 0].tolist() == cells.radius_km.tolist() == [2.0, 5.0, 9.0]
    assert cells.neighbours == [[5], [2], []]


HEADER = ",".join(COLUMNS)


def write(tmp_path, lines, header=HEADER):
    path = tmp_path / "cell_metadata.csv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def test_csv_round_trip(tmp_path):
    cells = CellTable.read_csv(write(tmp_path, GOOD), NAMES)
    assert cells.cell_id.tolist() == [0, 1, 7] and cells.region.tolist() == [0, 0, 1]
    assert cells.centre_deg.tolist() == [[30.0, 70.0], [31.0, 70.0], [25.0, 67.0]]
    assert cells.neighbours == [[1], [0], []]
    cells.write_csv(tmp_path / "again.csv", NAMES)
    assert CellTable.read_csv(tmp_path / "again.csv", NAMES).as_dict() == cells.as_dict()


def test_csv_round_trip_of_random_cells_keeps_a_decimetre(tmp_path):
    rng = np.random.default_rng(0)
    drawn = table(rng.uniform(-89, 89, (50, 2)), region=np.sort(rng.integers(0, 2, 50)))
    drawn.write_csv(tmp_path / "cells.csv", NAMES)
    again = CellTable.read_csv(tmp_path / "cells.csv", NAMES)
    assert np.abs(again.centre_deg - drawn.centre_deg).max() <= 1e-6
    assert np.array_equal(again.cell_id, drawn.cell_id) and np.array_equal(again.region, drawn.region)


@pytest.mark.parametrize("written", ['"1, 7"', '"[1, 7]"', "1 7", "1;7"])
def test_neighbours_are_read_in_any_of_the_usual_spellings(tmp_path, written):
    cells = CellTable.read_csv(write(tmp_path, ["0,Hills,0,30,70,5," + written]), NAMES)
    assert cells.neighbours == [[1, 7]]


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    assert len(CellTable.read_csv(write(tmp_path, GOOD, "\ufeff" + HEADER), NAMES)) == 3


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("8,Hills,0,north,70.0,5.0,", "'north'"),
        ("8,Hills,0,30.0,70.0,wide,", "'wide'"),
        ("8.5,Hills,0,30.0,70.0,5.0,", "'8.5'"),
        ("8,Hills,0,30.0,70.0,5.0,x", "'x'"),
        ("8,Moon,0,30.0,70.0,5.0,", "unknown province 'Moon'; known: Hills, Coast"),
        ("8,Hills,1,30.0,70.0,5.0,", "province_id 1 is not the id of 'Hills'"),
        ("8,Hills,-2,30.0,70.0,5.0,", "province_id -2 is not the id of 'Hills'"),
        ("8,Hills,0,30.0,70.0,0.0,", "radius 0.0 km is out of range"),
        ("8,Hills,0,30.0,70.0,-3,", "radius -3.0 km is out of range"),
        ("8,Hills,0,30.0,70.0,nan,", "radius nan km is out of range"),
        ("8,Hills,0,30.0,70.0,25000,", "radius 25000.0 km is out of range"),
        ("8,Hills,0,91.0,70.0,5.0,", r"centre \[91.0, 70.0\]"),
        ("8,Hills,0,nan,70.0,5.0,", "out of range"),
        ("8,Hills,0,30.0,181.0,5.0,", "out of range"),
        ("8,Hills,0,30.0", "fewer values than the header has columns"),
    ],
)
def test_a_bad_row_is_named_with_file_and_line(tmp_path, row, words):
    path = write(tmp_path, [*GOOD, row])
    with pytest.raises(BadRowsError, match=words) as error:
        CellTable.read_csv(path, NAMES)
    assert f"'{path}' line 5" in str(error.value)


def test_lines_are_counted_across_blank_lines(tmp_path):
    with pytest.raises(BadRowsError, match=r"line 4: unknown province 'Moon'"):
        CellTable.read_csv(write(tmp_path, [GOOD[0], "", "8,Moon,0,30,70,5,"]), NAMES)


def test_duplicate_ids_are_named_with_file_and_lines(tmp_path):
    path = write(tmp_path, [*GOOD, "1,Coast,1,25.0,68.0,5.0,"])
    with pytest.raises(BadRowsError, match=r"cell_id 1 on lines 3 and 5; each cell needs exactly one row") as error:
        CellTable.read_csv(path, NAMES)
    assert f"'{path}'" in str(error.value)


def test_missing_columns_rows_or_file(tmp_path):
    path = write(tmp_path, ["0,Hills,0,30.0,70.0"], "cell_id,province,province_id,center_lat,center_lon")
    with pytest.raises(BadRowsError, match=r"cell_metadata.csv' lacks the column\(s\) radius_km, neighbor_cell_ids"):
        CellTable.read_csv(path, NAMES)
    with pytest.raises(BadRowsError, match=r"cell_metadata.csv': no cell"):
        CellTable.read_csv(write(tmp_path, []), NAMES)
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(BadRowsError, match=r"empty.csv' lacks the column\(s\) cell_id"):
        CellTable.read_csv(tmp_path / "empty.csv", NAMES)
    with pytest.raises(DatasetNotFoundError, match=r"no cell table at '.*nowhere.csv'; pass datamodule.cells=null"):
        CellTable.read_csv(tmp_path / "nowhere.csv", NAMES)
