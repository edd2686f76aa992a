"""Reads and checks the CSV of a split: ``id, image, latitude, longitude, province, province_id[, cell_id]``."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from ..errors import BadRowsError, DatasetNotFoundError
from .columns import as_numpy, strings, system_memory

REQUIRED = ("id", "image", "latitude", "longitude", "province", "province_id")
_TYPES = {
    "id": pa.string(),
    "image": pa.string(),
    "latitude": pa.float64(),
    "longitude": pa.float64(),
    "province": pa.dictionary(pa.int32(), pa.string()),
    "province_id": pa.int64(),
    "cell_id": pa.int64(),
}
Faults = dict[int, str]  # row position -> what is wrong with it


@dataclass(frozen=True)
class PhotoTable:
    """The rows of a split. Strings stay in Arrow memory: 10 million rows need well under 2 GB.

    Args:
        path: of the CSV.
        id: (N,) strings.
        image: (N,) strings, relative to ``image_root``.
        image_root: folder of the pictures.
        lat_lon_deg: (N, 2) float64.
        region: (N,) region index.
        cell_id: (N,) ids as in the CSV, or None.
        line: (N,) line of each row in the CSV, counted from 1 (the header).
    """

    path: Path
    id: pa.ChunkedArray
    image: pa.ChunkedArray
    image_root: Path
    lat_lon_deg: NDArray[np.float64]
    region: NDArray[np.int16]
    cell_id: NDArray[np.int64] | None
    line: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.region)

    def image_path(self, row: int) -> str:
        """Path of one picture; an absolute path in the CSV stays as it is."""
        return str(self.image_root / self.image[row].as_py())

    def image_paths(self) -> list[str]:
        """Paths of all pictures."""
        return [str(self.image_root / name) for name in self.image.to_pylist()]

    def content_key(self) -> str:
        """Hash of the CSV, the same wherever it lies."""
        with open(self.path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]

    def take(self, rows: NDArray[np.int64]) -> "PhotoTable":
        """The rows at these positions."""
        cells = None if self.cell_id is None else self.cell_id[rows]
        return replace(
            self,
            id=self.id.take(pa.array(rows)),
            image=self.image.take(pa.array(rows)),
            lat_lon_deg=self.lat_lon_deg[rows],
            region=self.region[rows],
            cell_id=cells,
            line=self.line[rows],
        )

    def without(self, faults: Faults, on_bad_rows: str, report: Callable[[str], None] = print) -> "PhotoTable":
        """Raises on bad rows, or drops and reports them.

        Args:
            faults: row position -> reason.
            on_bad_rows: ``"raise"`` or ``"drop"``.
            report: gets the message when rows are dropped.

        Raises:
            BadRowsError: all bad rows in one message, the first ten by line; also when no row is left.
        """
        if not faults:
            return self
        first = [f"line {self.line[i]} (id '{self.id[i]}'): {faults[i]}" for i in sorted(faults)[:10]]
        more = [f"and {len(faults) - 10} more"] if len(faults) > 10 else []
        message = f"'{self.path}': {len(faults)} of {len(self)} rows cannot be used:\n  " + "\n  ".join(first + more)
        if on_bad_rows == "raise" or len(faults) == len(self):
            raise BadRowsError(f"{message}\nMend the rows, or pass datamodule.on_bad_rows=drop to leave them out.")
        report(f"{message}\nThey are left out (on_bad_rows=drop).")
        keep = np.ones(len(self), bool)
        keep[list(faults)] = False
        return self.take(np.flatnonzero(keep))


def read_photo_table(
    path: str | Path, regions: list[str] | None, image_root: str | Path | None = None
) -> tuple[PhotoTable, list[str], Faults]:
    """Reads one split.

    Args:
        path: of the CSV.
        regions: names in the order of their ids; None reads them from this file.
        image_root: folder that ``image`` is relative to; None is the CSV's folder.

    Returns:
        The table with all its rows, the region names, and what is wrong with which row.

    Raises:
        DatasetNotFoundError: no such file.
        BadRowsError: a column is missing, no row, or ids and names of the regions that do not form a list.
    """
    with system_memory():
        return _read(Path(path), regions, image_root)


def _read(path: Path, regions: list[str] | None, image_root: str | Path | None) -> tuple[PhotoTable, list[str], Faults]:
    faults: Faults = {}
    columns = _read_columns(path, faults)
    names = columns.pop("province").combine_chunks()
    codes, values = names.indices.to_numpy(zero_copy_only=False), names.dictionary.to_pylist()
    ids = as_numpy(columns.pop("province_id"), -1)
    regions = regions or _regions_of(path, codes, values, ids)
    lat_lon = np.stack([as_numpy(columns.pop(c), float("nan")) for c in ("latitude", "longitude")], 1)
    region = _check_regions(codes, values, ids, regions, faults)
    _check_coordinates(lat_lon, faults)
    _check_ids(columns["id"], faults)
    cells = as_numpy(columns.pop("cell_id"), -1) if "cell_id" in columns else None
    root = Path(image_root) if image_root else path.parent
    lines = np.arange(2, len(region) + 2, dtype=np.int32)
    table = PhotoTable(path, columns["id"], columns["image"], root, lat_lon, region, cells, lines)
    return table, regions, faults


def _read_columns(path: Path, faults: Faults) -> dict[str, pa.ChunkedArray]:
    if not path.is_file():
        raise DatasetNotFoundError(f"no {path.name} under root='{path.parent}'; pass datamodule.root=FOLDER.")
    try:
        header = pa.csv.open_csv(path).schema.names
    except pa.ArrowInvalid as error:
        _refuse_ragged(path, error)
        raise BadRowsError(
            f"'{path}' is empty or no CSV ({error}); its first line must be {','.join(REQUIRED)}."
        ) from error
    missing = [c for c in REQUIRED if c not in header]
    if missing:
        raise BadRowsError(f"'{path}' lacks the column(s) {', '.join(missing)}; it needs {', '.join(REQUIRED)}.")
    wanted = [c for c in _TYPES if c in header]
    try:
        table = _parse(path, {c: _TYPES[c] for c in wanted})
    except pa.ArrowInvalid:
        table = _parse_with_faults(path, wanted, faults)
    if not len(table):
        raise BadRowsError(f"'{path}' has a header but no row; add rows or pass another datamodule.root.")
    return {c: table[c] for c in wanted}


def _parse(path: Path, types: dict[str, Any]) -> pa.Table:
    convert = pa.csv.ConvertOptions(column_types=types, include_columns=list(types), strings_can_be_null=False)
    try:
        return pa.csv.read_csv(path, convert_options=convert)
    except pa.ArrowInvalid as error:
        _refuse_ragged(path, error)
        if "UTF8" in str(error):
            raise BadRowsError(f"'{path}': {error}; save the file as UTF-8.") from error
        raise


def _refuse_ragged(path: Path, error: pa.ArrowInvalid) -> None:
    if "Expected" in str(error) and "columns" in str(error):
        raise BadRowsError(f"'{path}': {error}; every line needs the columns of the header.") from error


def _parse_with_faults(path: Path, columns: list[str], faults: Faults) -> pa.Table:
    """The slow way, taken when some number does not parse: reads text and names every row that is none."""
    table = _parse(path, {c: pa.string() for c in columns})
    for name in columns:
        kind = _TYPES[name]
        if pa.types.is_floating(kind) or pa.types.is_integer(kind):
            numbers = [_number(text, float if pa.types.is_floating(kind) else int) for text in table[name].to_pylist()]
            for i, (number, text) in enumerate(zip(numbers, table[name].to_pylist())):
                if number is None and (text.strip() or name != "cell_id"):
                    faults.setdefault(
                        i, f"{name} '{text}' is not a {'number' if pa.types.is_floating(kind) else 'whole number'}"
                    )
            column = pa.chunked_array([pa.array(numbers, kind)])
        else:
            column = table[name].cast(pa.string()).dictionary_encode() if name == "province" else table[name]
        table = table.set_column(table.column_names.index(name), name, column)
    return table


def _number(text: str, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError:
        return None


def _regions_of(path: Path, codes: NDArray[Any], values: list[str], ids: NDArray[np.int64]) -> list[str]:
    """The region list from the data: the most frequent name of each id must give 0, 1, … without gaps."""
    found: dict[int, str] = {}
    for i in np.unique(ids[ids >= 0]).tolist():
        found[i] = values[int(np.bincount(codes[ids == i]).argmax())]
    if not found or sorted(found) != list(range(len(found))) or len(set(found.values())) != len(found):
        raise BadRowsError(f"'{path}': province_id must number the provinces 0, 1, …, one name each; found {found}.")
    return [found[i] for i in range(len(found))]


def _check_regions(
    codes: NDArray[Any], values: list[str], ids: NDArray[np.int64], regions: list[str], faults: Faults
) -> NDArray[np.int16]:
    number = {name: i for i, name in enumerate(regions)}
    by_name = np.array([number.get(v, -1) for v in values], np.int16)[codes]
    for i in np.flatnonzero(by_name < 0):
        faults.setdefault(int(i), f"unknown province '{values[codes[i]]}'; known: {', '.join(regions)}")
    for i in np.flatnonzero((by_name >= 0) & (by_name != ids)):
        name = values[codes[i]]
        faults.setdefault(int(i), f"province_id {ids[i]} is not the id of '{name}', which is {by_name[i]}")
    return by_name


def _check_coordinates(lat_lon: NDArray[np.float64], faults: Faults) -> None:
    for axis, (name, limit) in enumerate((("latitude", 90), ("longitude", 180))):
        for i in np.flatnonzero(~(np.abs(lat_lon[:, axis]) <= limit)):
            faults.setdefault(int(i), f"{name} {lat_lon[i, axis]} is not between -{limit} and {limit}")


def _check_ids(ids: pa.ChunkedArray, faults: Faults) -> None:
    hashes = np.fromiter(map(hash, strings(ids)), np.int64, len(ids))  # a tenth of the memory of a set of strings
    hashes.sort()
    repeated = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    if not repeated:
        return
    seen: dict[str, int] = {}
    for i, text in enumerate(strings(ids)):
        if hash(text) not in repeated:
            continue
        if text in seen:
            faults.setdefault(i, f"duplicate id '{text}', first on line {seen[text] + 2}")
        seen.setdefault(text, i)
