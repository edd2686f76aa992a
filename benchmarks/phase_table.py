"""Puts the phases of a run beside each other: ``python benchmarks/phase_table.py checkpoints/demo --split test``."""

import argparse
import json
from pathlib import Path

COLUMNS = (("median_km", "median km", "{:.1f}"), ("mean_km", "mean km", "{:.1f}"), ("p90_km", "p90 km", "{:.1f}"))
ACCURACY = (("province_accuracy", "province", "{:.1%}"), ("province_macro_accuracy", "macro", "{:.1%}"))
BASELINES = {"majority": "majority centroid", "nearest": "nearest features", "histogram": "colour histogram forest"}


def rows_of(folder: Path, split: str) -> list[dict[str, str]]:
    """A row a phase, then a row a baseline (its figures from the first phase: encoders as they started)."""
    found = [(p.parent.parent.name, p) for p in sorted(folder.glob(f"phase?/evaluation_{split}/metrics.json"))]
    if not found:
        raise SystemExit(f"no phase?/evaluation_{split}/metrics.json under {folder}; run evaluate.py first.")
    metrics = {name: json.loads(path.read_text()) for name, path in found}
    rows = [{"": name, **_cells(values, f"{split}/")} for name, values in metrics.items()]
    for (key, title), (name, values) in ((b, m) for b in BASELINES.items() for m in metrics.items()):
        cells = _cells(values, f"{split}/baseline_{key}_")
        if any(cells.values()) and (key == "nearest" or name == found[0][0]):
            rows.append({"": f"{title}, {name}'s encoders" if key == "nearest" else title, **cells})
    return rows


def _cells(values: dict[str, float], prefix: str) -> dict[str, str]:
    found = ((title, form, values.get(prefix + key)) for key, title, form in COLUMNS + ACCURACY)
    return {title: "" if value is None else form.format(value) for title, form, value in found}


def as_table(rows: list[dict[str, str]]) -> str:
    """Columns aligned, in Markdown."""
    names = list(rows[0])
    width = {n: max(len(n), *(len(row[n]) for row in rows)) for n in names}
    header, *body = [
        "| " + " | ".join(row[n].ljust(width[n]) for n in names) + " |" for row in [dict(zip(names, names)), *rows]
    ]
    return "\n".join([header, "|" + "|".join("-" * (width[n] + 2) for n in names) + "|", *body])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", default="test")
    arguments = parser.parse_args()
    print(as_table(rows_of(arguments.folder, arguments.split)))
    print(f"\npicture: {arguments.folder}/phase2/evaluation_{arguments.split}/map.png\nfiles:   {arguments.folder}/")


if __name__ == "__main__":
    main()
