"""Runs every benchmark at its quick size, one after the other, and writes all figures to ``results.md``.

    python benchmarks/race_card.py      # --only A,B: these alone; --card: runs nothing, writes the card;
                                        # --readme: runs and writes nothing, prints README's table;
                                        # --data FOLDER: of the folders of real data that three of them read;
                                        # --python PYTHON: of an environment that also has the peers that the first
                                        # one lacks, some of which make every process of it larger

``make bench`` is this. A benchmark that fails or takes too long is named with its last line, the others go on, and the
exit status is 1. In the card the figures of a full run (``results/NAME.json``) stand before those of a quick one
(``results/NAME_quick.json``), which show that a benchmark runs and that its contestants agree, and say little else.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from races import RACES, TELLING, Cell, Line, Race
from timing import RESULTS, as_table, git, machine, show, spread, versions, when

FOLDER = Path(__file__).parent
CARD = FOLDER / "results.md"
QUICK = "_quick"


@dataclass(frozen=True)
class Run:
    """How a quick run ended.

    Args:
        name: of the benchmark.
        state: ``ran``, ``skipped``, ``failed`` or ``too slow``.
        detail: seconds, or the reason.
    """

    name: str
    state: str
    detail: str


def run(race: Race, data: Path, pythons: Sequence[str]) -> Run:
    """One benchmark at its quick size, with its output on the screen."""
    if why := race.why_not(data, pythons):
        return Run(race.name, "skipped", why)
    print(f"--- {race.name}", flush=True)
    start, script = time.perf_counter(), str(FOLDER / f"{race.name}.py")
    process = subprocess.Popen(
        [str(race.interpreter(pythons)), script, *race.arguments(data), "--quick"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output = process.communicate(timeout=race.limit_s)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with the processes that it started
        output = process.communicate()[0]
        return Run(race.name, "too slow", f"ended after {race.limit_s} s")
    finally:
        print(output, flush=True)
    if process.returncode:
        return Run(race.name, "failed", (output.strip().splitlines() or ["no output"])[-1])
    return Run(race.name, "ran", f"{time.perf_counter() - start:.0f} s")


def results() -> dict[str, dict[str, Any]]:
    """Every JSON by its stem; a quick one only where there is no full one."""
    found = {path.stem: path for path in sorted(RESULTS.glob("*.json"))}
    kept = [stem for stem in found if not (stem.endswith(QUICK) and stem.removesuffix(QUICK) in found)]
    return {stem: json.loads(found[stem].read_text()) for stem in kept}


def race_of(stem: str) -> Race:
    """Whose results a file has: the longest name that its own begins with.

    >>> race_of("durable_saves_lightning").name
    'durable_saves'
    """
    owners = [race for race in RACES if stem == race.name or stem.startswith(f"{race.name}_")]
    if not owners:
        raise SystemExit(f"benchmarks/results/{stem}.json belongs to no benchmark in benchmarks/races.py.")
    return max(owners, key=lambda race: len(race.name))


def origin(stem: str, content: Mapping[str, Any]) -> str:
    """Size, day and commit of a result; those of files that do not say are git's."""
    told = content.get("measured") or {}
    date, commit = told.get("date", ""), told.get("commit", "")
    if not date:
        date, _, commit = git("log", "-1", "--format=%cs %h", "--", f"results/{stem}.json").partition(" ")
    return " ".join(part for part in ("quick" if stem.endswith(QUICK) else "full", date, commit) if part)


def parity(content: Mapping[str, Any]) -> str:
    """The largest difference of the contestants, or how far they agree where that was measured."""
    if told := content.get("parity"):
        return f"{max(told.values()):.1e}"
    leaves = list(_leaves(content.get("figures", {})))
    worst = [value for path, value in leaves if "parity" in path]
    alike = [value for path, value in leaves if "cosine" in path or "agreements" in path]
    return f"{max(worst):.1e}" if worst else f"agreement {min(alike):.6f}" if alike else ""


def _leaves(node: Any, path: tuple[str, ...] = ()) -> Any:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _leaves(value, (*path, key))
    elif isinstance(node, int | float):
        yield path, node


def cell(content: Mapping[str, Any], where: Cell) -> str:
    """A cell of the table, or a figure; empty where this result has none."""
    if isinstance(where, tuple):
        words, column = where
        rows = [row for row in content["table"] if any(str(value).startswith(words) for value in row.values())]
        exact = [row for row in rows if words in row.values()]
        return str((exact or rows or [{}])[0].get(column, ""))
    found: Any = content["figures"]
    for key in where.split("."):
        found = found.get(key, "") if isinstance(found, Mapping) else ""
    if isinstance(found, list) and found:
        found = spread(found)
    return show(found) if isinstance(found, Mapping) and "median" in found else f"{found:.4g}" if found else ""


def line_of(stem: str, content: Mapping[str, Any], line: Line) -> dict[str, str]:
    """The benchmark in one line: median and, in parentheses, the smallest and largest."""
    beside = cell(content, line.beside) if line.beside else ""
    return {
        "benchmark": f"`{race_of(stem).name}`",
        "what": line.what,
        "ours": f"{cell(content, line.ours)} {line.unit}".strip(),
        "beside it": f"{line.peer}: {line.form.format(beside)}" if beside else "",
        "parity": parity(content),
        "measured": origin(stem, content),
    }


def lines(found: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    """Of every benchmark that has one and a result, in the order of the list."""
    made = []
    for race in RACES:
        stem = race.name if race.name in found else race.name + QUICK
        if race.line and stem in found:
            made.append(line_of(stem, found[stem], race.line))
    return made


def telling() -> str:
    """The lines that README shows, with fewer columns."""
    columns = {"what": "what", "ours": "here", "beside it": "beside it"}
    found = {line["benchmark"].strip("`"): line for line in lines(results())}
    chosen = [found[name] for name in TELLING if name in found]
    rows = [list(columns.values()), ["---"] * len(columns), *([line[key] for key in columns] for line in chosen)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def section(stem: str, content: Mapping[str, Any]) -> str:
    """The whole table of a result, with what it was measured on."""
    question = (FOLDER / f"{race_of(stem).name}.py").read_text().split('"""')[1].splitlines()[0]
    on = content["machine"]
    device = on.get("gpu") or f"{on['cpu']}, {on['cores']} cores, {on['torch_threads']} threads"
    agreed = f", parity {parity(content)}" if parity(content) else ""
    facts = f"{origin(stem, content)}, {device}, torch {on['torch']}, load {on['load_1min']:.1f}{agreed}"
    return f"## {stem.removesuffix(QUICK)}\n\n{question} ({facts})\n\n{as_table(content['table'])}\n"


def card(runs: list[Run]) -> str:
    """All of it in Markdown."""
    found, on = results(), machine()
    head = ["# Race card", "Written by `make bench`. Median, and in parentheses the smallest and largest measurement."]
    told = {"date": when()["date"], "commit": when()["commit"], **{k: v for k, v in on.items() if v is not None}}
    told |= {"versions": ", ".join(f"{name} {number}" for name, number in versions().items())}
    head.append("\n".join(f"- {name}: {value}" for name, value in told.items()))
    if runs:
        head += ["## This run, at quick sizes", as_table([vars(one) for one in runs])]
    head += ["## In one line each", as_table(lines(found))]
    return "\n\n".join([*head, *(section(stem, content) for stem, content in found.items())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="some benchmarks, with , between")
    parser.add_argument("--card", action="store_true", help="runs nothing")
    parser.add_argument("--readme", action="store_true", help="prints README's table")
    parser.add_argument("--data", type=Path, default=FOLDER.parents[1] / "shared" / "data", help="of real data")
    parser.add_argument("--python", help="of an environment with more peers")
    options = parser.parse_args()
    if options.readme:
        print(telling())
        return
    names = options.only.split(",") if options.only else [race.name for race in RACES]
    if unknown := sorted(set(names) - {race.name for race in RACES}):
        parser.error(f"--only has {', '.join(unknown)}; known: {', '.join(race.name for race in RACES)}")
    pythons = [sys.executable, *([options.python] if options.python else [])]
    runs = [] if options.card else [run(race, options.data, pythons) for race in RACES if race.name in names]
    CARD.write_text(card(runs))
    for one in runs:
        print(f"{one.name}: {one.state}, {one.detail}")
    print(f"written to {CARD}")
    sys.exit(1 if any(one.state in ("failed", "too slow") for one in runs) else 0)


if __name__ == "__main__":
    main()
