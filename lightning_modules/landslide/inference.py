"""From the channels of an area to the layers of its map, in steps that leave what they finished on disk."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...datamodules.errors import StagewiseError
from ...datamodules.landslide.prepared import CHANNELS_FILE, PreparedArea, Window
from ...datamodules.landslide.rasters import Grid, bounded_cache
from .calibration import apply
from .crf import DenseCRF
from .map_model import MapModel, MapSettings, guide_of, guide_positions, novelty_of
from .maps import KEY_TAG, Layer, LayerFiles, has_key, layer_values, make_cog, map_layers
from .passes import Passes
from .sliding_window import finished_units, predict_tiled
from .stage import Stage

WORK = ".work"
LAYER_PX = 512


class Inference:
    """The chain for one area.

    network (ensemble, turns, dropout) -> blended -> CRF -> calibrated -> layers. Blended and refined probabilities lie
    in a folder each, named after everything that they depend on: a run that was killed, or found the disk full, is
    taken up where it stopped, and nothing is taken from a run with other weights, settings or input.

    Args:
        area: with its channels prepared.
        model: to use.
        settings: how.
        work: folder for what lies between the steps.

    Raises:
        StagewiseError: the area's channels are not the model's, or there is nothing that could guide the CRF.
    """

    def __init__(self, area: PreparedArea, model: MapModel, settings: MapSettings, work: str | Path) -> None:
        if area.channels.names != model.channels.names:
            raise StagewiseError(
                f"area '{area.name}' has the channels {list(area.channels.names)}, the model was trained on "
                f"{list(model.channels.names)}; prepare the area with the model's."
            )
        self.area, self.model, self.settings, self.work = area, model, settings, Path(work)
        self.guide = guide_positions(model.channels) if settings.crf is not None else []
        aspect = model.channels.aspect
        classes, turns = len(model.classes), settings.turns
        self.passes = Passes(model.members, classes, turns, settings.mc_passes, aspect, settings.seed)
        plain = {k: v for k, v in asdict(settings).items() if k not in ("crf", "device")}
        counts = {"model": model.key, "members": len(model.members), "classes": list(model.classes)}
        self.network_key = _digest({**counts, "input": _fingerprint(area), **plain})
        guide = {"crf": settings.crf, "mean": list(model.mean), "std": list(model.std)}
        self.refined_key = _digest({"network": self.network_key, **guide}) if settings.crf is not None else ""
        last = {"calibration": model.calibration, "typical": model.typical}
        self.key = _digest({"network": self.network_key, "refined": self.refined_key, **last})

    def run(self) -> None:
        """Predicts and refines what is not there yet.

        Raises:
            OSError: the disk is full; what is finished stays.
        """
        with bounded_cache():
            size = self.area.height, self.area.width
            self.network = Stage(self.work / f"network-{self.network_key}", finished_units(*size, self.settings.tiling))
            if len(self.network.done) < len(self.network.windows):
                tiling, device, done = self.settings.tiling, self.settings.device, frozenset(self.network.done)
                channels, write = len(self.model.channels), self.network.write
                predict_tiled(self.passes, self._fill, channels, *size, write, tiling, device=device, done=done)
            self.refined = self.network if self.settings.crf is None else self._refine(self.settings.crf)

    def _fill(self, window: Window, pixels: NDArray[np.float32]) -> None:
        pixels[:] = self.area.read_channels(window)

    def _refine(self, arguments: Mapping[str, Any]) -> Stage:
        crf = DenseCRF(**arguments)
        size = self.area.height, self.area.width
        stage = Stage(self.work / f"refined-{self.refined_key}", list(crf.windows(*size)))
        for window in stage.windows:
            if window not in stage.done:
                stage.write(window, crf.refine_window(self._crf_input, window, *size).cpu().numpy())
        return stage

    def _crf_input(self, window: Window) -> tuple[Tensor, Tensor, Tensor]:
        channels = self.area.read_channels(window)
        guide = guide_of(channels, self.guide, self.model.mean, self.model.std)
        parts = self.network.read(window)[: len(self.model.classes)], guide, _valid(channels)
        on_device = [torch.from_numpy(x).to(self.settings.device) for x in parts]
        return on_device[0], on_device[1], on_device[2]

    def probability(self, window: Window, calibrated: bool = True) -> NDArray[np.float32]:
        """Class probabilities of a window after :meth:`run`.

        Args:
            window: inside the raster.
            calibrated: False gives what a calibration is fitted on.

        Returns:
            (K, rows, columns), NaN where a channel has no data.
        """
        return self._probability(window, _valid(self.area.read_channels(window)), calibrated)

    def _probability(self, window: Window, valid: NDArray[np.bool_], calibrated: bool) -> NDArray[np.float32]:
        found = np.where(valid, self.refined.read(window)[: len(self.model.classes)], np.float32(np.nan))
        if calibrated and self.model.calibration is not None:
            found[:, valid] = apply(found[:, valid], self.model.calibration)
        return found

    def layers(self, window: Window) -> dict[str, NDArray[Any]]:
        """All layers of a window after :meth:`run`; see :func:`layer_values`."""
        channels = self.area.read_channels(window)
        uncertainty = self.network.read(window)[len(self.model.classes)]
        novelty = novelty_of(channels, self.model.typical)
        return layer_values(self._probability(window, _valid(channels), True), uncertainty, novelty, self._weights)

    @property
    def _weights(self) -> list[float] | None:
        decision = (self.model.calibration or {}).get("decision")
        return decision["weights"] if decision else None

    def write(self, output: str | Path, tags: Mapping[str, str] | None = None) -> None:
        """Writes what is missing of the map.

        Args:
            output: folder of the layers.
            tags: of every layer, such as the model's name.

        Raises:
            OSError: the disk is full; layers that are finished stay, and no other has its name.
        """
        output, uncompressed = Path(output), self.work / f"layers-{self.key}"
        output.mkdir(parents=True, exist_ok=True)
        waiting = self.waiting(output)
        missing = [layer for layer in waiting if not (uncompressed / f"{layer.name}.tif").is_file()]
        grid = Grid(self.area.crs, self.area.transform, self.area.width, self.area.height)
        with bounded_cache():
            if missing:
                files = LayerFiles(uncompressed, grid, missing, {**(tags or {}), KEY_TAG: self.key})
                with files.writing():
                    for window in squares(self.area.height, self.area.width):
                        files.write(window, self.layers(window))
            for layer in waiting:
                make_cog(uncompressed / f"{layer.name}.tif", output / f"{layer.name}.tif", layer)
                (uncompressed / f"{layer.name}.tif").unlink()

    def waiting(self, output: str | Path) -> list[Layer]:
        """Layers that are not in ``output``, or are there from another run."""
        layers = map_layers(self.model.classes, self.passes.kind, self._weights)
        return [layer for layer in layers if not has_key(Path(output) / f"{layer.name}.tif", self.key)]


def map_area(
    area: PreparedArea,
    model: MapModel,
    output: str | Path,
    settings: MapSettings | None = None,
    tags: Mapping[str, str] | None = None,
) -> dict[str, Path]:
    """Makes the map of an area.

    Args:
        area: with its channels prepared.
        model: to use.
        output: folder of the layers; ``.work`` in it holds what lies between the steps until all are there.
        settings: how.
        tags: of every layer.

    Returns:
        Layer -> Cloud-Optimised GeoTIFF.
    """
    work = Path(output) / WORK
    inference = Inference(area, model, settings or MapSettings(), work)
    if inference.waiting(output):
        inference.run()
        inference.write(output, tags)
        shutil.rmtree(work)
    return {
        layer.name: Path(output) / f"{layer.name}.tif" for layer in map_layers(model.classes, inference.passes.kind)
    }


def squares(height: int, width: int, side: int = LAYER_PX) -> list[Window]:
    """Windows without overlap.

    >>> squares(3, 5, side=4)
    [(0, 0, 3, 4), (0, 4, 3, 1)]
    """
    tops, lefts = range(0, height, side), range(0, width, side)
    return [(r, c, min(side, height - r), min(side, width - c)) for r in tops for c in lefts]


def _valid(channels: NDArray[np.float32]) -> NDArray[np.bool_]:
    valid: NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(channels))
    return valid


def _fingerprint(area: PreparedArea) -> list[Any]:
    found = (area.folder / CHANNELS_FILE).stat()
    return [area.folder.name, found.st_size, found.st_mtime_ns, list(area.channels.names)]


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=list).encode()).hexdigest()[:16]
