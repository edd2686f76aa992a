"""Does SMOTE on tiles make imbalanced-learn's synthetic set with a quarter of its memory?

    python benchmarks/landslide_smote.py            # --threads N, --pairs N, --quick, --folder DIR

500 tiles of 28 x 256 x 256 lie on the disk as float32 (3.7 GB), a fifth of them rich. Ours reads them from there one by
one and writes the synthetic ones to the disk; imbalanced-learn gets them flattened in memory, as it has to, and leaves
the synthetic ones there. Each runs in a process of its own, whose largest resident memory the system keeps; what the
imports take is in it, and beside it. The two sets must be the same, with imbalanced-learn's own neighbours and draws;
of its interpolated land cover the argmax is taken. Seconds are compared in turn in one process, on tiles that fit. A
reduced space (Gaussian random projection) is the alternative to exact neighbours: how many of them it would find.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from imblearn.over_sampling import SMOTE
from sklearn.random_projection import GaussianRandomProjection
from timing import agree, in_turn, parse, parser_of, ratio, show, spread, verdict, write

from stagewise.datamodules.landslide.channels import RECIPE, ChannelList
from stagewise.datamodules.landslide.parent_tiles import nearest
from stagewise.datamodules.landslide.tile_smote import TileSmote, TileSource

SIZE, QUICK, IN_TURN, IN_TURN_QUICK = (500, 256), (60, 64), (200, 64), (40, 32)  # tiles, side
CHANNELS = ChannelList(RECIPE)
SEED, LESS_MEMORY = 7, 4.0
RECIPE_SMOTE = TileSmote(target_share=0.15, seed=SEED)
RICH = 5  # one tile in so many
PROJECTED = 256


def tile(number: int, side: int) -> np.ndarray:
    """(C, side, side): a smooth field with noise a channel, one land cover a stripe."""
    rng = np.random.default_rng(number)
    coarse = rng.normal(size=(len(CHANNELS), 8, 8)) + rng.normal(size=(len(CHANNELS), 1, 1))
    channels = np.kron(coarse, np.ones((side // 8, side // 8))).astype(np.float32)
    channels += rng.normal(0, 0.3, channels.shape).astype(np.float32)
    cover = np.repeat(rng.integers(0, 11, 8), side // 8)
    channels[CHANNELS.one_hot] = (np.arange(11)[:, None] == cover)[:, :, None]
    return channels


def lay(folder: Path, tiles: int, side: int) -> None:
    """``tiles.npy``, written tile by tile."""
    with (folder / "tiles.npy").open("wb") as file:
        shape = (tiles, len(CHANNELS), side, side)
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for number in range(tiles):
            tile(number, side).tofile(file)


def ours(folder: Path, tiles: int, side: int, cache: Path) -> Any:
    """The synthetic tiles, parents among the first fifth."""
    path, pixels = folder / "tiles.npy", len(CHANNELS) * side * side
    header = path.stat().st_size - tiles * pixels * 4
    mask = np.repeat([0, 1], side * side // 2).reshape(side, side)

    def read(number: int) -> Any:
        values = np.fromfile(path, np.float32, pixels, offset=header + number * pixels * 4)
        return values.reshape(len(CHANNELS), side, side), mask

    counts = np.array([[1, 1]] * (tiles // RICH) + [[2, 0]] * (tiles - tiles // RICH)) * (side * side // 2)
    zeros, ones = [0.0] * len(CHANNELS), [1.0] * len(CHANNELS)
    source = TileSource(read, [str(i) for i in range(tiles)], counts, CHANNELS, zeros, ones, "benchmark")
    return RECIPE_SMOTE.make(source, cache)


def peer(folder: Path, tiles: int, count: int) -> Any:
    """What imbalanced-learn appends, (count, features)."""
    flat = np.load(folder / "tiles.npy").reshape(tiles, -1)
    rare = np.repeat([1, 0], [tiles // RICH, tiles - tiles // RICH])
    smote = SMOTE(sampling_strategy={1: tiles // RICH + count}, random_state=SEED, k_neighbors=RECIPE_SMOTE.k)
    return smote.fit_resample(flat, rare)[0][tiles:]


def largest_memory_mb() -> float:
    """Of this process: Linux hands ``ru_maxrss`` on from the parent, so its own status is asked where there is one."""
    status = Path("/proc/self/status")
    if status.is_file():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


def child(who: str, folder: Path, tiles: int, side: int, count: int) -> None:
    """One contestant in this process; the peer's set goes to the disk after its memory was asked."""
    room = psutil.Process().memory_info().vms + int(0.85 * psutil.virtual_memory().available)
    resource.setrlimit(resource.RLIMIT_AS, (room, room))  # a MemoryError here, not somebody else's process killed
    imports, start, made = largest_memory_mb(), time.perf_counter(), None
    try:
        made = ours(folder, tiles, side, folder) if who == "ours" else peer(folder, tiles, count)
    except MemoryError as error:
        print(f"{who} ran out of memory: {error}", file=sys.stderr)
    seconds, peak = time.perf_counter() - start, largest_memory_mb()
    if who == "peer" and made is not None:
        np.save(folder / "peer.npy", made)
    done = {"seconds": seconds, "peak_mb": peak, "imports_mb": imports}
    print(json.dumps({**done, "count": -1 if made is None else len(made)}))


def in_child(who: str, folder: Path, tiles: int, side: int, count: int = 0) -> dict[str, float]:
    """Figures of one contestant in a process of its own."""
    call = [sys.executable, __file__, "--child", who, str(folder), str(tiles), str(side), str(count)]
    return json.loads(subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def difference(mine: Any, theirs: Any) -> float:
    """Largest between the sets, tile by tile; their land cover by argmax."""
    largest, one_hot = 0.0, CHANNELS.one_hot
    for number in range(len(mine)):
        channels, other = mine[number][0], np.array(theirs[number]).reshape(mine.shape)
        other[one_hot] = np.arange(len(one_hot))[:, None, None] == other[one_hot].argmax(0)
        largest = max(largest, float(np.abs(channels - other).max()))
    return largest


def memory(folder: Path, tiles: int, side: int) -> dict[str, dict[str, float]]:
    """Both in turn, each in a process of its own, and whether they made the same."""
    lay(folder, tiles, side)
    found = {"ours": in_child("ours", folder, tiles, side)}
    found["imbalanced-learn"] = in_child("peer", folder, tiles, side, int(found["ours"]["count"]))
    if found["imbalanced-learn"]["count"] > 0:
        mine, theirs = ours(folder, tiles, side, folder), np.load(folder / "peer.npy", mmap_mode="r")  # opened again
        agree(f"{len(mine)} synthetic tiles", difference(mine, theirs), 1e-5)
    return found


def speed(folder: Path, tiles: int, side: int, pairs: int) -> dict[str, list[float]]:
    """Seconds of both in this process; ours with reading and writing, the peer with reading."""
    lay(folder, tiles, side)

    def anew() -> Any:
        with tempfile.TemporaryDirectory(dir=folder) as cache:
            return len(ours(folder, tiles, side, Path(cache)))

    mine = ours(folder, tiles, side, folder)
    count = len(mine)
    agree(f"{count} synthetic tiles", difference(mine, peer(folder, tiles, count)), 1e-5)
    return in_turn({"ours": anew, "imbalanced-learn": lambda: peer(folder, tiles, count)}, pairs)


def found_in_reduced_space(folder: Path) -> float:
    """Share of the exact neighbours that a random projection finds as well."""
    tiles = np.load(folder / "tiles.npy")
    flat = tiles.reshape(len(tiles), -1)
    small = GaussianRandomProjection(PROJECTED, random_state=0).fit_transform(flat).astype(np.float32)
    exact, reduced = nearest([flat], RECIPE_SMOTE.k), nearest([small], RECIPE_SMOTE.k)
    return float(np.mean([len(set(a) & set(b)) / len(a) for a, b in zip(exact.tolist(), reduced.tolist())]))


def rows_of(
    memories: dict[str, dict[str, float]], seconds: dict[str, list[float]], ratios: dict[str, dict[str, float]]
) -> list[dict[str, str]]:
    return [
        {
            "SMOTE": name,
            "peak MB": f"{one['peak_mb']:.0f}" + (", then out of memory" if one["count"] < 0 else ""),
            "of them imports": f"{one['imports_mb']:.0f}",
            "s, that run": f"{one['seconds']:.1f}",
            "s, in turn": show(spread(seconds[name])),
            "times ours": show(ratios[name]),
        }
        for name, one in memories.items()
    ]


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], Path(sys.argv[3]), *map(int, sys.argv[4:7]))
        return
    parser = parser_of(__doc__, pairs=5)
    parser.add_argument("--folder", help="for 9 GB of tiles (default: the system's temporary one)")
    options = parse(parser)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        memories = memory(Path(folder), *(QUICK if options.quick else SIZE))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        seconds = speed(Path(folder), *(IN_TURN_QUICK if options.quick else IN_TURN), options.pairs)
        reduced = found_in_reduced_space(Path(folder))
    ratios = {name: ratio(values, seconds["ours"]) for name, values in seconds.items()}
    less = memories["imbalanced-learn"]["peak_mb"] / memories["ours"]["peak_mb"]
    figures = {"memory": memories, "less_memory": less, "seconds": seconds, "ratio": ratios, "reduced_space": reduced}
    write("landslide_smote", options, figures, rows_of(memories, seconds, ratios))
    print(f"a projection to {PROJECTED} dimensions finds {reduced:.0%} of the exact neighbours; ours all of them")
    bound = " (at least: it ran out)" if memories["imbalanced-learn"]["count"] < 0 else ""
    print(verdict(f"peak memory of imbalanced-learn / ours{bound}", less, LESS_MEMORY, at_most=False))
    print(verdict("seconds of imbalanced-learn / ours", ratios["imbalanced-learn"]["median"], 1.0, at_most=False))


if __name__ == "__main__":
    main()
