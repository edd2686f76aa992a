"""Stage 1: where the objects of a picture are, from any detector."""

from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...datamodules.drains.detections import (
    Detection,
    DetectionSource,
    JsonDetections,
    YoloDetections,
    make_detections,
)
from ...datamodules.errors import DatasetNotFoundError, StagewiseError
from .detector_output import decode, letterbox, names_of_metadata, suppress


def open_detector(source: str | Path, names: Sequence[str] | None = None, **settings: Any) -> DetectionSource:
    """The source of detections that a path means.

    Args:
        source: a folder of YOLO rows, a ``.json``, an exported ``.onnx``, or a ``.pt`` of Ultralytics.
        names: of the detector's classes by id, where the source does not know them itself.
        settings: of :class:`OnnxDetector` or :class:`UltralyticsDetector`.

    Raises:
        DatasetNotFoundError: nothing lies there.
        StagewiseError: it is none of the four, a setting is out of range, or settings are given for files of
            detections.
    """
    path = Path(source)
    if not path.exists():
        raise DatasetNotFoundError(f"no detections at '{source}'; pass a folder of YOLO rows, a .json, .onnx or .pt.")
    suffix = path.suffix.lower()
    _check(names, settings)
    if suffix == ".onnx":
        return OnnxDetector(path, names, **settings)
    if suffix == ".pt":
        return UltralyticsDetector(path, **settings)
    if settings:
        raise StagewiseError(f"'{source}' holds finished detections; {sorted(settings)} are settings of a model.")
    if path.is_dir():
        return YoloDetections(path, names)
    if suffix == ".json":
        return JsonDetections(path)
    raise StagewiseError(f"'{source}' is no source of detections; pass a folder of YOLO rows, a .json, .onnx or .pt.")


def _check(names: Sequence[str] | None, settings: dict[str, Any]) -> None:
    if isinstance(names, str):
        raise StagewiseError(f"`names` must be a list of the detector's classes by id, got '{names}'.")
    for key, value in settings.items():
        if key not in ("px", "conf", "iou"):
            raise StagewiseError(f"`{key}` is no setting of a detector; those are px, conf and iou.")
        if key != "px" and not (isinstance(value, int | float) and 0 <= value <= 1):
            raise StagewiseError(f"`{key}` must be a number from 0 to 1, got {value!r}.")


class OnnxDetector:
    """A YOLO v8 or v11 exported to ONNX, run by onnxruntime.

    Args:
        path: of the ``.onnx``. Outputs (1, 4 + C, N) and (1, N, 4 + C) are decoded, and the (1, N, 6) of an
            end-to-end export.
        names: of the C classes by id, the nine or the four types; None for those that the export wrote into the file.
        px: side of the network's input; taken from the file where that fixes it.
        conf: least score of a detection.
        iou: of two boxes of one type with more overlap than this the weaker is dropped. Classes of one type count as
            one, since the condition is stage 2's to say.

    Raises:
        StagewiseError: onnxruntime is missing, the file is no ONNX of one input with four sides, or it has no names and
            none are given.
    """

    def __init__(
        self,
        path: str | Path,
        names: Sequence[str] | None = None,
        px: int = 640,
        conf: float = 0.25,
        iou: float = 0.7,
    ) -> None:
        self.unknown: Counter[str] = Counter()
        self.path = str(path)
        self.conf, self.iou = conf, iou
        self._session = _open_session(self.path)
        known = names_of_metadata(self._session.get_modelmeta().custom_metadata_map.get("names", ""))
        if names is None and not known:
            raise StagewiseError(f"'{path}' does not say how its classes are called; pass their `names` by id.")
        self.names = list(names) if names is not None else known
        shapes = [one.shape for one in self._session.get_inputs()]
        if len(shapes) != 1 or len(shapes[0]) != 4:
            raise StagewiseError(f"'{path}' takes {shapes}; a detector takes one batch of pictures, (1, 3, H, W).")
        self._input = self._session.get_inputs()[0]
        self.size = tuple(side if isinstance(side, int) else px for side in shapes[0][2:])  # height, width

    def detect(self, path: Path, picture: Tensor) -> list[Detection]:
        """Runs the network on a picture; ``picture`` is uint8 (3, H, W) in RGB.

        Raises:
            StagewiseError: the network's input or output has another layout.
        """
        boxed, scale, offset = letterbox(picture, self.size)
        half = "float16" in self._input.type
        values = boxed.to(torch.float16 if half else torch.float32).div(255)[None].numpy()
        outputs = self._run(values)
        if len(outputs) != 1:
            shapes = [tuple(output.shape) for output in outputs]
            raise StagewiseError(f"'{self.path}' gives {len(outputs)} outputs {shapes}; export a detection model.")
        output = torch.from_numpy(outputs[0]).float()
        boxes, scores, classes = decode(output, len(self.names), f"'{self.path}'")
        boxes = (boxes - torch.tensor(offset).repeat(2)) / scale
        kept = suppress(boxes, scores, classes, self.names, self.conf, self.iou)
        rows = zip(boxes[kept].tolist(), classes[kept].tolist(), scores[kept].tolist())
        return make_detections(
            [((b[0], b[1], b[2], b[3]), self.names[label], score) for b, label, score in rows],
            path,
            picture,
            self.unknown,
        )

    def _run(self, values: Any) -> Any:
        try:
            return self._session.run(None, {self._input.name: values})
        except Exception as error:  # as in _open_session
            why = " ".join(str(error).split())
            raise StagewiseError(
                f"'{self.path}' does not take a picture as {values.dtype} {values.shape}; export a detection model of "
                f"YOLO v8 or v11. onnxruntime says: {why}"
            ) from error


def _open_session(path: str) -> Any:
    if find_spec("onnxruntime") is None:
        raise StagewiseError("an ONNX detector needs onnxruntime; run: pip install 'stagewise[onnx]'")
    import onnxruntime

    if not Path(path).is_file():
        raise DatasetNotFoundError(f"no detector at '{path}'; pass the exported .onnx.")
    try:
        return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class of its own for every fault, of no common base
        raise StagewiseError(f"'{path}' is no ONNX model that onnxruntime can run: {error}.") from error


class UltralyticsDetector:
    """A detector of the Ultralytics library, where the user installed it (its licence is AGPL-3.0).

    Args:
        path: of the ``.pt``.
        conf: least score of a detection.
        iou: overlap above which the weaker of two boxes is dropped.

    Raises:
        StagewiseError: the library is missing.
    """

    def __init__(self, path: str | Path, conf: float = 0.25, iou: float = 0.7) -> None:
        if find_spec("ultralytics") is None:
            raise StagewiseError(
                f"'{path}' needs Ultralytics (AGPL-3.0); run: pip install ultralytics, or export ONNX."
            )
        from ultralytics import YOLO

        self.unknown: Counter[str] = Counter()
        self.conf, self.iou = conf, iou
        self._model = YOLO(str(path))

    def detect(self, path: Path, picture: Tensor) -> list[Detection]:
        """Runs the network on a picture; ``picture`` is uint8 (3, H, W) in RGB."""
        # Ultralytics reads an array as BGR, as OpenCV decodes it: RGB would swap red and blue without a word
        bgr = picture.flip(0).permute(1, 2, 0).contiguous().numpy()
        found = self._model.predict(bgr, conf=self.conf, iou=self.iou, agnostic_nms=False, verbose=False)[0]
        boxes, classes, scores = (
            values.cpu().tolist() for values in (found.boxes.xyxy, found.boxes.cls, found.boxes.conf)
        )
        rows = [((b[0], b[1], b[2], b[3]), found.names[int(c)], score) for b, c, score in zip(boxes, classes, scores)]
        return make_detections(rows, path, picture, self.unknown)
