"""From a picture to the input of an exported YOLO, and from its output back to boxes."""

import ast
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_convert
from torchvision.transforms.v2 import functional as F

from ...datamodules.drains.detections_rows import type_of_name
from ...datamodules.drains.vocabulary import UNKNOWN
from ...datamodules.errors import StagewiseError

_GREY = 114  # what YOLO is trained with around a picture
_END_TO_END = 6  # left, top, right, bottom, score, class
_MOST = 1.01  # of a score: one of 8 bits may lie a little over 1


def letterbox(picture: Tensor, size: Sequence[int]) -> tuple[Tensor, float, tuple[float, float]]:
    """Lays a whole picture into the network's input, as YOLO's own preprocessing does: centred on grey.

    Args:
        picture: uint8 (3, H, W).
        size: height and width of the input.

    Returns:
        uint8 (3, *size); pixels of the input a pixel of the picture; where the picture begins, x and y.

    >>> boxed, scale, offset = letterbox(torch.zeros(3, 100, 200, dtype=torch.uint8), (64, 64))
    >>> tuple(boxed.shape), scale, offset, int(boxed[0, 0, 0])
    ((3, 64, 64), 0.32, (0.0, 16.0), 114)
    """
    height, width = picture.shape[-2:]
    scale = min(size[0] / height, size[1] / width)
    inner = [max(1, round(height * scale)), max(1, round(width * scale))]
    small = F.resize(picture, inner, antialias=False)  # as OpenCV does it, with which YOLO is trained
    top, left = (round((outer - side) / 2 - 0.1) for outer, side in zip(size, inner))
    boxed = torch.full((3, *size), _GREY, dtype=torch.uint8)
    boxed[:, top : top + inner[0], left : left + inner[1]] = small
    return boxed, scale, (float(left), float(top))


def decode(output: Tensor, num_classes: int, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Reads the output of a detector.

    Args:
        output: (1, 4 + C, N) or (1, N, 4 + C) centre, size and a score a class; or (1, N, 6) corners, score, class.
        num_classes: C. The layouts are told apart by it; of two that both fit the first is meant.
        name: of the detector, for the error.

    Returns:
        boxes (N, 4) left, top, right, bottom; scores (N,); classes (N,). All in the pixels of the network's input.

    Raises:
        StagewiseError: none of the three, or columns that are no scores.
    """
    columns, shape = 4 + num_classes, tuple(output.shape)
    if len(shape) == 3 and shape[0] == 1 and columns in shape[1:]:
        rows = output[0].T if shape[1] == columns else output[0]
        scores, classes = rows[:, 4:].max(1)
        if (scores.abs() > _MOST).any():
            raise StagewiseError(
                f"{name} gives scores up to {scores.abs().max():.3g}, not 1; export a detector of YOLO v8 or v11."
            )
        return box_convert(rows[:, :4], "cxcywh", "xyxy"), scores, classes
    if len(shape) == 3 and shape[0] == 1 and shape[2] == _END_TO_END:
        rows = output[0]
        classes = rows[:, 5].long()
        if rows[:, 4].gt(0).logical_and((classes < 0) | (classes >= num_classes)).any():
            raise StagewiseError(f"{name} found a class beyond the {num_classes} that have a name; pass all `names`.")
        return rows[:, :4], rows[:, 4], classes
    raise StagewiseError(
        f"{name} gives {shape}; expected (1, {columns}, N) or (1, N, {columns}) for its {num_classes} classes, or "
        f"(1, N, 6) of an end-to-end export. Export a detection model of YOLO v8 or v11, or pass its `names`."
    )


def suppress(boxes: Tensor, scores: Tensor, classes: Tensor, names: Sequence[str], conf: float, iou: float) -> Tensor:
    """Which detections stay: those that score enough and are not the weaker of two of one type on one place.

    Args:
        boxes: (N, 4) left, top, right, bottom.
        scores: (N,)
        classes: (N,) ids.
        names: of the classes; those of one type compete with each other, unknown ones among their own class.
        conf: least score.
        iou: overlap above which two boxes compete.

    Returns:
        Indices, best score first.
    """
    types = [type_of_name(name) for name in names]
    group = [f"{kind} {i}" if kind == UNKNOWN else kind for i, kind in enumerate(types)]
    number = torch.tensor([group.index(one) for one in group])
    likely = (scores >= conf).nonzero().flatten()
    kept = batched_nms(boxes[likely], scores[likely], number[classes[likely]], iou)
    return likely[kept]


def names_of_metadata(text: str) -> list[str]:
    """The class names that Ultralytics writes into an export; none where the text says nothing.

    >>> names_of_metadata("{0: 'rock_toe', 1: 'toe_drain'}"), names_of_metadata("")
    (['rock_toe', 'toe_drain'], [])
    """
    try:
        names = ast.literal_eval(text) if text else {}
    except (ValueError, SyntaxError):
        return []
    ordered = isinstance(names, dict) and sorted(names) == list(range(len(names)))
    return [str(names[i]) for i in range(len(names))] if ordered else []
