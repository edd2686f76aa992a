"""Which checkpoint is left when a save is killed, the disk is full or the folder takes no files?

    python benchmarks/durable_saves.py            # --kills N, --megabytes N, --only durable, --results FOLDER, --quick

DurableCheckpointIO against Lightning's default, TorchCheckpointIO, the same scenarios in turn, Linux only. A forked
child saves to one path, and every tensor of a save holds the save's number, so a reader knows whether it has one whole
save, and which. TMPDIR, where the default writes first, is on another filesystem than the target where there is one.

timed  the parent kills a save after a part of the median save's time, one kill for each of N equal parts, so all of a
       save is hit. A save that was over before the kill does not count, and the part is tried again.
steps  the child kills itself just before each step of a save in turn (opening, renaming, linking, removing a file,
       changing its mode, fsync), as the interpreter's audit events tell them: moments too short for a clock.

After a kill the file is read as it is, and by the IO, in a copy of the folder. Then a new process saves by the same IO,
as a restarted run does, and what still lies about is an orphan after the restart. SIGKILL says nothing about a loss of
power: the system's cache outlives the process. The exit status is 1 if DurableCheckpointIO lost anything.
"""

import argparse
import logging
import os
import random
import signal
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

import timing
from durable_kills import AT_ONCE, HARM, IOS, RESTARTED, Figures, Place, Trial, place_of, steps, timed
from durable_refusals import REFUSALS, filesystem, problems_of, provoke, told


def kill_rows(kind: str, trials: dict[str, Trial]) -> list[dict[str, str]]:
    """What the kills did, the moments of the kills first."""
    rows = [{"scenario": f"{kind}: kills within a save"} | {io: str(len(t.kills)) for io, t in trials.items()}]
    if kind == "timed":
        rows.append({"scenario": "timed: kills in quarters of the median save, and after it"})
        for io, trial in trials.items():
            quarters = Counter(min(4, int(kill["part"] * 4)) for kill in trial.kills)
            rows[-1][io] = " ".join(str(quarters[quarter]) for quarter in range(5))
    for what in (*HARM, AT_ONCE, RESTARTED):
        rows.append({"scenario": f"{kind}: {what}"} | {io: str(t.found[what]) for io, t in trials.items()})
    return rows


def print_moments(kind: str, io: str, trial: Trial) -> None:
    moments = Counter(kill["after"] for kill in trial.kills)
    print(f"{kind}, {io}: {trial.late} kills came too late; the others after")
    for step, kills in moments.items():
        print(f"  {kills:3d} {step}")


def in_seconds(places: dict[str, Place], pairs: int) -> timing.Seconds:
    """Of one save."""

    def save(place: Place, content: Figures) -> None:
        tempfile.tempdir = str(place.tmp)
        place.save(content)

    return timing.in_turn({io: partial(save, place, place.content(1)) for io, place in places.items()}, pairs)


def time_rows(where: str, seconds: timing.Seconds) -> list[dict[str, str]]:
    """Milliseconds, and how many times as long as the default."""
    spread = {io: timing.show(timing.spread(values), scale=1e3) for io, values in seconds.items()}
    rows = [{"scenario": f"ms a save, TMPDIR {where}"} | spread]
    if len(seconds) > 1:
        ratios = {io: timing.show(timing.ratio(values, seconds["lightning"])) for io, values in seconds.items()}
        rows.append({"scenario": f"times the default, TMPDIR {where}"} | ratios)
    return rows


def lost(trials: list[Trial], refusals: list[Figures]) -> list[str]:
    """Everything that speaks against an IO."""
    found = sum((trial.found for trial in trials), Counter())
    kills = [f"{what}: {found[what]}" for what in (*HARM, RESTARTED) if found[what]]
    return kills + [problem for seen in refusals if "skipped" not in seen for problem in problems_of(seen)]


def options_of() -> argparse.Namespace:
    parser = timing.parser_of(__doc__, pairs=15)
    parser.set_defaults(threads=1)  # forks cannot use the parent's threads
    parser.add_argument("--kills", type=int, help="timed ones (default: 40, 6 if quick)")
    parser.add_argument("--megabytes", type=int, help="of a save (default: 40, 20 if quick)")
    parser.add_argument("--only", choices=list(IOS), help="one IO; its results have a file of their own")
    parser.add_argument("--results", type=Path, help="folder for the JSON")
    options = timing.parse(parser)
    options.kills = options.kills or (6 if options.quick else 40)
    options.megabytes = options.megabytes or (20 if options.quick else 40)
    timing.RESULTS = options.results or timing.RESULTS
    return options


def run(options: argparse.Namespace, base: Path, elsewhere: Path) -> tuple[Figures, list[dict[str, str]]]:
    """All scenarios; figures and rows."""
    ios, size = [options.only] if options.only else list(IOS), options.megabytes
    systems = f"target on {filesystem(base)}, TMPDIR on {filesystem(elsewhere)}"
    if base.stat().st_dev == elsewhere.stat().st_dev:
        systems += ", THE SAME FILESYSTEM"
    rows, figures = [{"scenario": "filesystems"} | dict.fromkeys(ios, systems)], {"filesystems": systems, "seconds": {}}
    killers = {"timed": partial(timed, kills=options.kills, draw=random.Random(0)), "steps": steps}
    trials = {kind: {io: kill(place_of(io, base, elsewhere, size)) for io in ios} for kind, kill in killers.items()}
    for kind, by_io in trials.items():
        for io, trial in by_io.items():
            print_moments(kind, io, trial)
        rows += kill_rows(kind, by_io)
    refusals = {name: {io: provoke(how, io, base, elsewhere, size) for io in ios} for name, how in REFUSALS.items()}
    rows += [{"scenario": name} | {io: told(seen[io]) for io in ios} for name, seen in refusals.items()]
    for where, tmp in {"elsewhere": elsewhere, "on the target's filesystem": base}.items():
        figures["seconds"][where] = in_seconds({io: place_of(io, base, tmp, size) for io in ios}, options.pairs)
        rows += time_rows(where, figures["seconds"][where])
    figures["kills"] = {kind: {io: trial.figures() for io, trial in by_io.items()} for kind, by_io in trials.items()}
    figures["lost"] = {io: lost([t[io] for t in trials.values()], [r[io] for r in refusals.values()]) for io in ios}
    return figures | {"refusals": refusals}, rows


def main() -> None:
    options = options_of()
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory() as base, tempfile.TemporaryDirectory(dir=shared) as elsewhere:
        os.chmod(base, 0o711)
        os.chmod(elsewhere, 0o711)
        figures, rows = run(options, Path(base), Path(elsewhere))
    options.results = None  # a path of this machine
    timing.write("durable_saves" + (f"_{options.only}" if options.only else ""), options, figures, rows)
    for io, problems in figures["lost"].items():
        print(f"{io}: {'; '.join(problems) or 'nothing lost'}")
    sys.exit(1 if figures["lost"].get("durable") else 0)


if __name__ == "__main__":
    main()
