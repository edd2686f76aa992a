"""How many crops a second does the drains dataset give, beside one that opens the whole picture once per object?

    python benchmarks/drains_loader.py      # --pictures N, --size PX, --threads N, --pairs N, --quick

Generated pictures on disk (in the page cache), crops of 224 px, no workers. The peer is the usual torch Dataset: PIL
opens the picture of each object, crops the box with its margin, pads to a square and resizes with antialiasing. Ours
cuts all crops of a picture from one decoding, once, and then maps them; the first pass is timed with that cutting, the
later ones without. One call is one pass over all objects. The crops must agree before anything is timed.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from timing import agree, in_turn, parse, parser_of, ratio, show, spread, write
from torch import Tensor
from torch.utils.data import Dataset

from stagewise.datamodules.drains import crop_store
from stagewise.datamodules.drains.boxes import to_corners
from stagewise.datamodules.drains.crops import MEAN_COLOUR
from stagewise.datamodules.drains.dataset import DrainDataset
from stagewise.datamodules.drains.generated import write_generated_drains
from stagewise.datamodules.drains.table import DrainTable
from stagewise.datamodules.drains.yolo import read_yolo

PX, MARGIN, TOLERANCE = 224, 0.1, 6.0


class OnePictureAnObject(Dataset[Tensor]):
    """The usual way, in a dozen lines."""

    def __init__(self, table: DrainTable) -> None:
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, row: int) -> Tensor:
        picture = Image.open(self.table.paths[self.table.picture[row]]).convert("RGB")
        left, top, right, bottom = to_corners(self.table.boxes[row : row + 1], picture.size)[0]
        wide = MARGIN * max(right - left, bottom - top)
        box = (
            max(left - wide, 0),
            max(top - wide, 0),
            min(right + wide, picture.width),
            min(bottom + wide, picture.height),
        )
        scale = PX / max(box[2] - box[0], box[3] - box[1])
        size = (max(1, round((box[2] - box[0]) * scale)), max(1, round((box[3] - box[1]) * scale)))
        crop = picture.resize(size, Image.Resampling.BILINEAR, box=box)
        square = Image.new("RGB", (PX, PX), MEAN_COLOUR)
        square.paste(crop, ((PX - size[0]) // 2, (PX - size[1]) // 2))
        return torch.from_numpy(np.array(square)).permute(2, 0, 1)


def one_pass(dataset: Dataset[Any]) -> None:
    """Every object once."""
    for row in range(len(dataset)):  # type: ignore[arg-type]
        dataset[row]


def first_pass(table: DrainTable, cache: Path) -> None:
    """With the cutting."""
    shutil.rmtree(cache, ignore_errors=True)
    one_pass(DrainDataset(table, crop_store.open_crops(table, cache, px=PX, margin=MARGIN)))


def decodings(table: DrainTable, cache: Path) -> int:
    """How often a file is decoded in a first pass."""
    with mock.patch.object(crop_store, "read_image", wraps=crop_store.read_image) as read:
        first_pass(table, cache)
    return read.call_count


def main() -> None:
    parser = parser_of(__doc__, pairs=5)
    parser.add_argument("--pictures", type=int, default=60)
    parser.add_argument("--size", type=int, default=1024, help="side of a picture in pixels (default: %(default)s)")
    options = parse(parser)
    pictures, size = (10, 320) if options.quick else (options.pictures, options.size)
    with tempfile.TemporaryDirectory() as folder:
        root, cache = Path(folder) / "data", Path(folder) / "cache"
        write_generated_drains(root, pictures=pictures, px=size)
        table = read_yolo(root).table
        ours = DrainDataset(table, crop_store.open_crops(table, cache, px=PX, margin=MARGIN))
        peer = OnePictureAnObject(table)
        apart = [(ours[row]["image"].float() - peer[row].float()).abs().mean().item() for row in range(len(table))]
        agree("crops, mean grey levels apart, median over objects", float(np.median(apart)), TOLERANCE)
        count = decodings(table, cache)
        contestants = {
            "peer: a picture opened per object": lambda: one_pass(peer),
            "ours, first pass with cutting": lambda: first_pass(table, Path(folder) / "fresh"),
            "ours, later passes": lambda: one_pass(ours),
        }
        seconds = in_turn(contestants, options.pairs)
    first = next(iter(seconds))
    rows = [
        {
            "dataset": name,
            "crops a second": show(spread([len(table) / value for value in values]), "{:.0f}"),
            "times the peer": show(ratio(seconds[first], values)),
        }
        for name, values in seconds.items()
    ]
    figures = {"objects": len(table), "pictures": len(table.paths), "decoded": count, "seconds": seconds}
    write("drains_loader", options, figures, rows)
    print(f"{len(table)} objects in {len(table.paths)} pictures: {count} decodings")


if __name__ == "__main__":
    main()
