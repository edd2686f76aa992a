"""Which pictures and boxes belong to a row, and what is wrong with them."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import BadRowsError
from ..images import unreadable_images
from .csv_rows import CsvRows, Faults, read_csv
from .pictures import picture_size
from .table import Corners

log = logging.getLogger(__name__)
SEPARATOR = ";"
SIDES = ("xmin", "ymin", "xmax", "ymax")
USUAL_BOXES = "boxes.csv"
_LEAST_PX = 1


class PictureRows:
    """Pictures of the rows of a table, each file looked at once.

    Args:
        root: the cells' paths start there.
        rows: of the table.
        column: that holds the paths.
        strict: a picture that is missing or does not open is a fault of its row; else the row goes without it.
        faults: takes what is wrong.
    """

    def __init__(self, root: Path, rows: CsvRows, column: str, strict: bool, faults: Faults) -> None:
        self.root, self.rows, self.strict, self.faults = root, rows, strict, faults
        self.cells = [[part.strip() for part in cell.split(SEPARATOR) if part.strip()] for cell in rows.column(column)]
        self._named = {name for names in self.cells for name in names}
        self.size: dict[str, tuple[int, int]] = {}
        self._leave_out(self._without_header())
        if not strict:
            self.decode()

    def decode(self) -> None:
        """Decodes every picture: of a strict table only where something else is wrong, so that one error names all.

        Else the store of crops decodes them, once.
        """
        names = list(self.size)
        found = unreadable_images([str(self.root / name) for name in names], progress=False)
        self._leave_out({names[i]: f"'{self.root / names[i]}': {why}" for i, why in found.items()})

    def check_groups(self, groups: list[str]) -> None:
        """A picture that belongs to two groups would stand in two splits: a fault."""
        owner: dict[str, tuple[int, str]] = {}
        for row, names in enumerate(self.cells):
            for name in names:
                first, group = owner.setdefault(name, (row, groups[row]))
                if group != groups[row]:
                    where = self.rows.where(first)
                    self.faults.add(self.rows.where(row), f"picture '{name}' is of another group in {where}")

    def paths(self) -> tuple[tuple[str, ...], ...]:
        """Of each row the paths of its pictures."""
        return tuple(tuple(str(self.root / name) for name in names) for names in self.cells)

    def boxes(self, name: str | None) -> tuple[tuple[Corners | None, ...], ...]:
        """Of each picture of each row its box; None where there is no file of boxes or no box in it."""
        box_of = self._read_boxes(self.root / name) if name else {}
        if not name and (self.root / USUAL_BOXES).is_file():
            log.warning("fusion: '%s' is there but not used; files.boxes=%s crops to it", *[USUAL_BOXES] * 2)
        return tuple(tuple(box_of.get(picture) for picture in own) for own in self.cells)

    def _without_header(self) -> dict[str, str]:
        broken: dict[str, str] = {}
        for name in dict.fromkeys(name for names in self.cells for name in names):
            try:
                self.size[name] = picture_size(self.root / name)
            except BadRowsError as error:
                broken[name] = str(error).split(";")[0]
        return broken

    def _leave_out(self, broken: Mapping[str, str]) -> None:
        for row, names in enumerate(self.cells):
            for name in names:
                if name in broken:
                    self._miss(row, broken[name])
            self.cells[row] = [name for name in dict.fromkeys(names) if name not in broken]

    def _miss(self, row: int, why: str) -> None:
        if self.strict:
            self.faults.add(self.rows.where(row), f"picture {why}")
        else:
            log.warning("fusion: %s goes without the picture %s", self.rows.where(row), why)

    def _read_boxes(self, path: Path) -> dict[str, Corners]:
        table = read_csv(path, ("filename", *SIDES), "datamodule.files.boxes", self.faults)
        by_end = self._by_end()
        found: dict[str, Corners] = {}
        lost = []
        for row, cells in enumerate(table.cells):
            where, name = table.where(row), by_end.get(cells.get("filename", ""), cells.get("filename", ""))
            if name not in self.size:
                lost += [where] if name not in self._named else []
            elif name in found:
                self.faults.add(where, f"is a second box of '{name}'")
            elif box := self._box(cells, where, self.size[name]):
                found[name] = box
        if lost:
            log.warning("fusion: %d box(es) of no picture of the table, first %s", len(lost), lost[0])
        return found

    def _by_end(self) -> dict[str, str]:
        """File name -> picture, where only one has that name: many tools write boxes without the folder."""
        ends: dict[str, list[str]] = {}
        for name in self._named:
            ends.setdefault(Path(name).name, []).append(name)
        return {end: names[0] for end, names in ends.items() if len(names) == 1}

    def _box(self, cells: Mapping[str, Any], where: str, size: tuple[int, int]) -> Corners | None:
        try:
            left, top, right, bottom = (float(cells.get(side, "")) for side in SIDES)
        except ValueError:
            self.faults.add(where, f"box has a side that is no number: {[cells.get(side, '') for side in SIDES]}")
            return None
        told = f"box {left:g}, {top:g}, {right:g}, {bottom:g}"
        if not (right - left >= _LEAST_PX and bottom - top >= _LEAST_PX):
            self.faults.add(where, f"{told} is less than {_LEAST_PX} px wide or high")
        elif not (left >= 0 and top >= 0 and right <= size[0] and bottom <= size[1]):
            self.faults.add(where, f"{told} is outside the picture of {size[0]} x {size[1]}")
        else:
            return left, top, right, bottom
        return None
