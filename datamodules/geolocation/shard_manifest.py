"""What a streamed store holds: its tables and shards, with their sizes and hashes, in ``manifest.json``."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import DatasetNotFoundError, ShardError

NAME = "manifest.json"
REMEDY = "copy it from where the store was made, or convert the pictures again."
_FORMAT = 1


@dataclass(frozen=True)
class StoredFile:
    """A file of the store.

    Args:
        file: path under the store's folder, with ``/``.
        bytes: its size.
        sha256: of its content.
        rows: pictures in a shard; 0 for a table.
    """

    file: str
    bytes: int
    sha256: str
    rows: int = 0

    @classmethod
    def of(cls, root: Path, file: str, rows: int = 0) -> "StoredFile":
        """Describes a file that is there."""
        return cls(file, (root / file).stat().st_size, file_hash(root / file), rows)


@dataclass(frozen=True)
class Manifest:
    """What a store holds.

    Args:
        tables: the CSVs.
        splits: split -> its shards; their pictures one after the other are the rows of the split's CSV.
        checked: every picture was decoded when the store was made.
    """

    tables: list[StoredFile]
    splits: dict[str, list[StoredFile]]
    checked: bool

    def as_json(self) -> str:
        """Its text; equal stores have equal ones."""
        splits = {name: [asdict(shard) for shard in shards] for name, shards in self.splits.items()}
        tables = [asdict(table) for table in self.tables]
        return json.dumps({"format": _FORMAT, "checked": self.checked, "tables": tables, "splits": splits}, indent=0)

    def key(self, split: str) -> str:
        """Hash of a split's pictures."""
        text = json.dumps([(shard.sha256, shard.rows) for shard in self.splits[split]])
        return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()

    @classmethod
    def read(cls, folder: Path, store: str) -> "Manifest":
        """Reads ``manifest.json``.

        Args:
            folder: that it lies in.
            store: what messages call the store.

        Raises:
            DatasetNotFoundError: there is none.
            ShardError: it cannot be read.
        """
        if not (folder / NAME).is_file():
            raise DatasetNotFoundError(
                f"no {NAME} under root='{store}', so it holds no shards; make them with: python convert.py "
                "datamodule.root=FOLDER output=STORE, or pass datamodule.storage=folder."
            )
        try:
            content = json.loads((folder / NAME).read_text(encoding="utf-8"))
            splits = {name: [StoredFile(**shard) for shard in shards] for name, shards in content["splits"].items()}
            made = cls([StoredFile(**table) for table in content["tables"]], splits, bool(content["checked"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ShardError(f"'{store}/{NAME}' is damaged ({error}); copy or convert the store again.") from error
        if content.get("format") != _FORMAT:
            raise ShardError(f"'{store}/{NAME}' has format {content.get('format')}, not {_FORMAT}; convert it again.")
        return made

    def check_tables(self, folder: Path, store: str) -> None:
        """Compares the CSVs with their hashes: rows are found by their number.

        Raises:
            ShardError: names the file.
        """
        for table in self.tables:
            if not (folder / table.file).is_file():
                raise ShardError(f"'{store}/{table.file}' is missing; copy or convert the store again.")
            if file_hash(folder / table.file) != table.sha256:
                raise ShardError(
                    f"'{store}/{table.file}' is not the file that the shards were made from; change the rows in the "
                    "folder of pictures and convert it again."
                )

    def check_shards(self, folder: Path) -> None:
        """Compares the size of every shard.

        Raises:
            ShardError: names the first that is missing or has another size, and how many there are.
        """
        faults = []
        for shard in (shard for shards in self.splits.values() for shard in shards):
            path = folder / shard.file
            found = path.stat().st_size if path.is_file() else None
            if found != shard.bytes:
                what = "is missing" if found is None else f"has {found} of {shard.bytes} bytes"
                faults.append(f"the shard '{path}' {what}")
        if faults:
            more = f" ({len(faults)} shards in all)" if len(faults) > 1 else ""
            raise ShardError(f"{faults[0]}{more}; {REMEDY}")


def file_hash(path: Path) -> str:
    """sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
