"""Rows of a CSV file as text, and all that is wrong with them in one error."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import BadRowsError, DatasetNotFoundError

MAX_NAMED = 10
MISSING = ("", "na", "n/a", "nan", "null")  # not `none`, which may be an answer


@dataclass(frozen=True)
class CsvRows:
    """The cells of a file without outer spaces; those that say that a value is missing are "".

    Args:
        path: of the file.
        header: names of the columns.
        cells: of each row, by column.
        lines: of each row the line that it ends on.
    """

    path: Path
    header: tuple[str, ...]
    cells: tuple[dict[str, str], ...]
    lines: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.cells)

    def column(self, name: str) -> list[str]:
        """One cell of each row; all missing where the file has no such column."""
        return [row.get(name, "") for row in self.cells]

    def where(self, row: int) -> str:
        """``file:line``."""
        return f"{self.path.name}:{self.lines[row]}"


@dataclass
class Faults:
    """What is wrong, collected, so that one error names it all.

    Args:
        source: file or folder that the error names.
        found: ``where what``, in the order of finding.
    """

    source: Path
    found: list[str] = field(default_factory=list)

    def add(self, where: str, what: str) -> None:
        """Notes one fault."""
        self.found.append(f"{where} {what}")

    def refuse(self) -> None:
        """Raises where there are faults.

        Raises:
            BadRowsError: counts all and names the first ten.
        """
        if self.found:
            more = f"; and {len(self.found) - MAX_NAMED} more" if len(self.found) > MAX_NAMED else ""
            named = "; ".join(self.found[:MAX_NAMED])
            raise BadRowsError(
                f"{len(self.found)} bad row(s) in '{self.source}': {named}{more}. Correct or remove them."
            )


def read_csv(path: Path, needed: Iterable[str], argument: str, faults: Faults) -> CsvRows:
    """Reads a CSV file with a header, UTF-8.

    Args:
        path: of the file.
        needed: columns without which nothing can be done.
        argument: that names the file, for the error.
        faults: takes rows with a wrong number of cells.

    Raises:
        DatasetNotFoundError: no such file; names the argument.
        BadRowsError: no UTF-8, no rows, a column is missing or there twice.
    """
    if not path.is_file():
        raise DatasetNotFoundError(f"no file '{path}'; pass datamodule.root=FOLDER and {argument}=NAME.")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            lines = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadRowsError(f"'{path}' is no CSV in UTF-8 ({error}); save it as one.") from error
    _check_header(path, header, needed, argument)
    if not lines:
        raise BadRowsError(f"'{path}' has no rows; fill it, or pass {argument}=FILE of another.")
    cells = []
    for line, row in lines:
        if len(row) != len(header):
            faults.add(f"{path.name}:{line}", f"has {len(row)} cells, the header {len(header)}")
        cells.append(
            {name: "" if (text := cell.strip()).lower() in MISSING else text for name, cell in zip(header, row)}
        )
    return CsvRows(path, tuple(header), tuple(cells), tuple(line for line, _ in lines))


def _check_header(path: Path, header: list[str], needed: Iterable[str], argument: str) -> None:
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise BadRowsError(f"'{path}' has the column(s) {twice} twice; rename them.")
    if absent := [name for name in needed if name not in header]:
        sign = next((sign for sign in ";\t|" if len(header) == 1 and sign in header[0]), None)
        remedy = "Name them in datamodule.columns." if argument.endswith("files.table") else "Rename those that it has."
        remedy = f"Put commas between its cells, not {sign!r}." if sign else remedy
        raise BadRowsError(
            f"'{path}' has no column {', '.join(map(repr, absent))}; it has {', '.join(header) or 'none'}. {remedy}"
        )
