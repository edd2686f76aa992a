"""Writes a streamed store: shards of pictures in litdata's format, their tables, and a manifest."""

import csv
import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from tqdm import tqdm

from ..errors import StagewiseError
from ..folders import whole_folder
from .photo_splits import PhotoSplits
from .photo_table import PhotoTable
from .shard_manifest import NAME, Manifest, StoredFile

_ROWS_AT_A_TIME = 65_536  # of a table
_CELLS = "cell_metadata.csv"


def write_store(splits: PhotoSplits, names: list[str], output: str, shard_mb: float, seed: int) -> str:
    """Writes shards, tables and manifest; nothing is there until all of it is.

    The rows of train are sorted by region and mixed inside each, so that a shard is a sample of its region. Those of
    the other splits stay in order.

    Args:
        splits: reads and checks the tables.
        names: of the splits, train first.
        output: folder that is made.
        shard_mb: size of a shard in MB; a larger picture is a shard of its own.
        seed: of the mixing.

    Returns:
        What was written, as text.

    Raises:
        StagewiseError: litdata is not installed, or ``output`` is there, remote, or being written.
    """
    if find_spec("litdata") is None:
        raise StagewiseError("this needs litdata; run: pip install 'stagewise[streaming]'")
    target = _new_folder(output)
    tables = {name: splits.get(name) for name in names}
    made: list[Manifest] = []

    def make(folder: Path) -> None:
        shards = {name: _write_split(folder, name, table, shard_mb, seed) for name, table in tables.items()}
        files = [StoredFile.of(folder, f"{name}.csv") for name in names]
        if cells := splits.cell_file():
            shutil.copy(cells, folder / _CELLS)
            files.append(StoredFile.of(folder, _CELLS))
        made.append(Manifest(files, shards, bool(splits.checks["images"])))
        (folder / NAME).write_text(made[0].as_json(), encoding="utf-8")

    try:
        with FileLock(f"{target}.lock", timeout=0) as lock:
            try:
                whole_folder(target, make)
            finally:
                Path(lock.lock_file).unlink()
    except Timeout as error:
        raise StagewiseError(f"another conversion is writing output='{output}'; wait for it.") from error
    return _summary(made[0], output)


def _new_folder(output: str) -> Path:
    if "://" in output:
        raise StagewiseError(f"output='{output}' is remote; write a local folder and copy it there afterwards.")
    if Path(output).exists():
        raise StagewiseError(f"output='{output}' is there already; pass another folder, or remove it.")
    Path(output).absolute().parent.mkdir(parents=True, exist_ok=True)
    return Path(output).absolute()


def _write_split(folder: Path, name: str, table: PhotoTable, shard_mb: float, seed: int) -> list[StoredFile]:
    """The table in the order of its shards, and the shards: of train a folder for each region."""
    rows = {name: np.arange(len(table))}
    if name == "train":
        regions = np.unique(table.region).tolist()
        rows = {f"{name}/{region}": _mixed(np.flatnonzero(table.region == region), seed, region) for region in regions}
    _write_table(folder / f"{name}.csv", table, np.concatenate(list(rows.values())))
    with tqdm(total=len(table), desc=f"shards of {name}", leave=False) as bar:
        return [shard for part, own in rows.items() for shard in _write_shards(folder, part, table, own, shard_mb, bar)]


def _mixed(rows: NDArray[np.int64], seed: int, region: int) -> NDArray[np.int64]:
    return np.random.Generator(np.random.Philox(key=[seed, region])).permutation(rows)


def _write_table(path: Path, table: PhotoTable, rows: NDArray[np.int64]) -> None:
    """All columns of the CSV as they are, also those that nothing here reads."""
    names = pa.csv.open_csv(table.path).schema.names
    text = pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
    columns = pa.csv.read_csv(table.path, convert_options=text)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        for start in range(0, len(rows), _ROWS_AT_A_TIME):
            few = columns.take(pa.array(table.line[rows[start : start + _ROWS_AT_A_TIME]] - 2))
            writer.writerows(zip(*(column.to_pylist() for column in few.columns)))


def _write_shards(
    folder: Path, part: str, table: PhotoTable, rows: NDArray[np.int64], shard_mb: float, bar: "tqdm[None]"
) -> list[StoredFile]:
    """One data set of litdata: its index and its chunks."""
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder / part), chunk_bytes=int(shard_mb * 1e6))
    for number, row in enumerate(rows.tolist()):
        writer[number] = Path(table.image_path(row)).read_bytes()
        bar.update()
    writer.done()
    writer.merge()
    index = json.loads((folder / part / "index.json").read_text())
    return [StoredFile.of(folder, f"{part}/{c['filename']}", c["chunk_size"]) for c in index["chunks"]]


def _summary(manifest: Manifest, output: str) -> str:
    lines = []
    for name, shards in manifest.splits.items():
        rows, size = sum(shard.rows for shard in shards), sum(shard.bytes for shard in shards)
        lines.append(f"{name}: {rows} pictures in {len(shards)} shards, {size / 1e6:,.1f} MB")
    return "\n".join([*lines, f"written to {output}; train with datamodule.storage=litdata datamodule.root={output}"])
