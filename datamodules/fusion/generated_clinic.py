"""Patients, visits and their healing: what a generated clinic writes down, and which phase each row is in.

The phase is cut from a healing score of four parts, so that each modality says something, both together more:

- metadata: days since the wound, HbA1c, size, smoking, infection;
- thermal: how far the warm rim reaches, and how much warmer the wound is than the skin;
- joint: what the wound's warmth means depends on the blood supply, which only the table knows: of a limb with poor
  supply a cold wound heals badly, of others a warm one does;
- what nobody sees: the patient's own habit, which makes rows of one patient alike, and noise.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PHASES = ("inflammatory", "proliferative", "remodeling")
SHARES = (0.3, 0.5, 0.2)
WEIGHTS = {"metadata": 1.0, "rim": 0.53, "warmth": 0.47, "joint": 0.36, "patient": 0.45, "noise": 0.05}
_POOR_SUPPLY = 0.35  # share of the patients
_MISSING = 0.06  # share of the cells of most columns
_WITHOUT_PICTURE = 0.06  # share of the rows
_MISSPELT = 0.08  # share of the cells
_SPELLINGS = {
    "venous": ("Venous", "venous ", "venuos", "VENOUS"),
    "diabetic": ("Diabetic ", "diabteic", "DIABETIC", "diabetc"),
    "pressure": ("Pressure", "presure"),
    "good": ("Good", "good "),
    "poor": ("Poor", "poor ", "POOR"),
    "none": ("None",),
    "local": ("Local", "locl"),
    "systemic": ("Systemic", "sistemic"),
}


@dataclass(frozen=True)
class Visit:
    """One row.

    Attributes:
        cells: of the table, but for id, image and label.
        phase: number of the label.
        contrast_deg: wound minus skin, degrees C.
        rim: reach of the warm rim, as a share of the wound's radius.
        skin_deg: temperature of the skin, degrees C.
        pictures: how many were taken.
    """

    cells: dict[str, Any]
    phase: int
    contrast_deg: float
    rim: float
    skin_deg: float
    pictures: int


def draw_visits(patients: int, rng: np.random.Generator) -> list[Visit]:
    """Rows of all patients, each with 1 to 4 visits."""
    visits = rng.choice([1, 2, 3, 4], patients, p=[0.1, 0.2, 0.3, 0.4])
    of = np.repeat(np.arange(patients), visits)
    seen = _draw_cells(patients, of, rng)
    warmth, rim, skin = rng.normal(size=len(of)), rng.normal(size=len(of)), rng.normal(size=patients)[of]
    phase = _phases(_score(seen, warmth, rim, of, rng))
    written = {name: _as_written(name, column, rng) for name, column in seen.items()}
    pictures = np.where(rng.random(len(of)) < _WITHOUT_PICTURE, 0, rng.choice([1, 2, 3], len(of), p=[0.4, 0.4, 0.2]))
    number = np.arange(len(of)) - np.searchsorted(of, of)
    return [
        Visit(
            {"patient_id": f"P{of[i]:03d}", "visit": int(number[i]) + 1} | {k: v[i] for k, v in written.items()},
            *(int(phase[i]), float(0.6 + 1.3 * warmth[i]), float(np.clip(0.6 + 0.25 * rim[i], 0.1, 1.3))),
            *(float(32 + 1.2 * skin[i]), int(pictures[i])),
        )
        for i in range(len(of))
    ]


def _score(
    seen: dict[str, NDArray[Any]],
    warmth: NDArray[np.float64],
    rim: NDArray[np.float64],
    of: NDArray[np.int64],
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """(N,) healing, the higher the better."""
    parts = {
        "metadata": _standard(_metadata_score(seen)),
        "rim": -rim,
        "warmth": -warmth,
        "joint": np.where(seen["blood_supply"] == "poor", warmth, -warmth),
        "patient": rng.normal(size=of.max() + 1)[of],
        "noise": rng.normal(size=len(of)),
    }
    return np.sum([WEIGHTS[name] * part for name, part in parts.items()], axis=0)


def _phases(score: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.searchsorted(np.quantile(score, np.cumsum(SHARES)[:-1]), score)


def _draw_cells(patients: int, of: NDArray[np.int64], rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    """The true values of the columns; a patient's own are those of all their visits, so that they tell who it is."""
    own: dict[str, NDArray[Any]] = {
        "age": np.clip(rng.normal(64, 13, patients), 19, 95).round(),
        "sex": rng.choice(["f", "m"], patients),
        "bmi": rng.normal(28, 4.5, patients).round(1),
        "hba1c": np.clip(rng.gamma(9, 0.75, patients), 4.5, 13).round(1),
        "smoker": rng.choice(["no", "yes"], patients, p=[0.7, 0.3]),
        "aetiology": rng.choice(["venous", "diabetic", "pressure"], patients, p=[0.4, 0.4, 0.2]),
        "blood_supply": np.where(rng.random(patients) < _POOR_SUPPLY, "poor", "good"),
    }
    first, gap = rng.gamma(2.0, 9.0, patients)[of], rng.uniform(7, 21, len(of))
    number = np.arange(len(of)) - np.searchsorted(of, of)
    infection = rng.choice(["none", "local", "systemic"], len(of), p=[0.6, 0.3, 0.1])
    visit = {
        "days_since_wound": (first + number * gap).round(),
        "size_cm2": np.exp(rng.normal(1.2, 0.7, len(of)) - 0.15 * number).round(1),
        "infection": infection,
    }
    return {name: column[of] for name, column in own.items()} | visit


def _metadata_score(seen: dict[str, NDArray[Any]]) -> NDArray[np.float64]:
    infected = np.select([seen["infection"] == "systemic", seen["infection"] == "local"], [1.6, 0.9], 0.0)
    numbers = 0.9 * _standard(np.sqrt(seen["days_since_wound"])) - 0.5 * _standard(seen["hba1c"])
    numbers -= 0.45 * _standard(np.log(seen["size_cm2"])) + 0.2 * _standard(seen["age"])
    return numbers - infected - 0.4 * (seen["smoker"] == "yes")


def _standard(values: NDArray[Any]) -> NDArray[np.float64]:
    return (values - values.mean()) / max(float(values.std()), 1e-9)


def _as_written(name: str, column: NDArray[Any], rng: np.random.Generator) -> list[str]:
    """Cells as people write them: some missing, some misspelt."""
    gone = rng.random(len(column)) < (0 if name in ("sex", "blood_supply") else _MISSING)
    wrong = rng.random(len(column)) < _MISSPELT
    cells = []
    for value, missing, misspelt in zip(column.tolist(), gone, wrong):
        text = f"{value:g}" if isinstance(value, float) else str(value)
        if misspelt and text in _SPELLINGS:
            text = str(rng.choice(_SPELLINGS[text]))
        cells.append("" if missing else text)
    return cells
