"""The smooth fields of the generated country: what a place looks like, as a function of its coordinates alone.

Borders do not enter: neighbouring provinces share their fields. The landform follows the real country in outline (plain
along the Indus, dry ranges to the west of it, high mountains in the north); the wave cues have no counterpart.
"""

import math
from collections.abc import Sequence

import numpy as np

Look = dict[str, float]

_INDUS_LAT = (24.0, 26.0, 28.0, 30.0, 32.0, 34.0, 36.0)  # course of the river, in degrees
_INDUS_LON = (67.6, 68.1, 69.2, 70.8, 71.4, 72.4, 74.5)
_CITIES = (  # latitude and longitude in degrees, reach of the built-up area in km
    (24.90, 67.05, 35.0), (31.52, 74.34, 32.0), (33.69, 73.06, 16.0), (34.01, 71.55, 18.0), (30.19, 67.00, 20.0),
    (25.39, 68.36, 18.0), (31.42, 73.09, 22.0), (30.20, 71.47, 22.0),
)  # fmt: skip
WAVES = {  # cue: (bearing of travel in degrees, wavelength in km, offset in cycles); the painter says how it reads it
    "stripe_angle": (35.0, 520.0, 0.10), "stripe_period": (120.0, 640.0, 0.35), "emblem_turn": (100.0, 430.0, 0.60),
    "sign_hue": (160.0, 700.0, 0.20), "window_shape": (10.0, 300.0, 0.80), "pole_arms": (75.0, 380.0, 0.45),
    "pole_angle": (145.0, 260.0, 0.15), "kerb": (55.0, 330.0, 0.70), "furrow": (20.0, 800.0, 0.05),
    "tree_mix": (130.0, 240.0, 0.55), "roof_trim": (90.0, 190.0, 0.25), "wall": (65.0, 140.0, 0.90),
}  # fmt: skip


def _rise(value: float, middle: float, width: float) -> float:
    """Returns a smooth step from 0 to 1 around ``middle``, in the unit of ``value``."""
    return 1.0 / (1.0 + math.exp(-(value - middle) / width))


def look_at(lat_lon_deg: Sequence[float]) -> Look:
    """Returns the smooth fields of the country at a point.

    Args:
        lat_lon_deg: Latitude and longitude in degrees, length 2.

    Returns:
        Field values by name: landform and building fields in [0, 1], wave cues as unbounded phases in cycles.
    """
    lat, lon = float(lat_lon_deg[0]), float(lat_lon_deg[1])
    east_km, north_km = (lon - 69.5) * 95.8, (lat - 30.5) * 111.2
    west_deg = float(np.interp(lat, _INDUS_LAT, _INDUS_LON)) - lon
    alps, peaks = _rise(lat + 0.25 * (lon - 73.3), 34.0, 0.22), _rise(lat, 35.3, 0.30)
    ranges, desert = _rise(west_deg, 1.1, 0.35), _rise(-west_deg, 1.6, 0.4) * _rise(-lat, -30.3, 0.6)
    city_km = (math.hypot((lat - a) * 111.2, (lon - o) * 95.8) / reach for a, o, reach in _CITIES)
    look = {"urban": max(math.exp(-0.5 * distance**2) for distance in city_km)}
    look["height"] = min(1.0, 0.03 + 0.45 * alps + 0.50 * peaks + 0.40 * ranges * (1.0 - peaks))
    look["rugged"] = 0.25 + 0.45 * ranges * (1.0 - alps) + 0.5 * peaks
    look["snow"] = peaks * 0.8 + 0.25 * alps
    look["arid"] = min(1.0, max(0.0, 0.3 + 0.5 * ranges * (1 - alps) + 0.4 * desert + 0.3 * peaks - 0.3 * alps))
    look["timber"] = alps * (1.0 - 0.4 * peaks) * (0.25 + 0.75 * _rise(lon, 73.5, 0.10))
    look["mud"] = (1.0 - alps) * (0.25 + 0.5 * ranges + 0.3 * desert) + 0.5 * peaks
    look["palm"], look["sun_deg"] = _rise(-lat, -28.0, 0.8), 78.0 - 1.3 * (lat - 24.0)
    bent_km = east_km + 45.0 * math.sin(north_km / 60.0), north_km + 45.0 * math.sin(east_km / 70.0)
    for name, (bearing_deg, wave_km, offset) in WAVES.items():
        turn = math.radians(bearing_deg)
        look[name] = (bent_km[0] * math.sin(turn) + bent_km[1] * math.cos(turn)) / wave_km + offset
    return look


def swing(phase: float) -> float:
    """Returns a phase in cycles as a smooth value in [0, 1]."""
    return 0.5 + 0.5 * math.sin(2.0 * math.pi * phase)
