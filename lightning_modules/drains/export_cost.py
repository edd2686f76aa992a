"""What an exported file costs: its answers on a split beside PyTorch's, its size and its time."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..text_tables import number, table
from .export import INPUTS, export_onnx, onnx_logits, quantise
from .scores import confusions, scores

if TYPE_CHECKING:
    from .module import DrainModule

HEADER = ("", "MB", "accuracy", "macro-F1", "other answers", "ms an object")


def export(module: "DrainModule", output: str, int8: bool, datamodule: Any, split: str | None) -> str:
    """Writes the file, with ``int8`` a second one in 8 bits beside it, and scores what was written.

    Args:
        module: trained, on the CPU.
        output: path of the ``.onnx``; the second one ends in ``.int8.onnx``.
        int8: whether to write it.
        datamodule: set up; may be None where ``split`` is.
        split: to score on; None only compares with PyTorch on random pictures.

    Returns:
        What was written, as a person reads it.
    """
    batches = [] if split is None else _batches(datamodule, split)  # before anything is written
    files = [Path(output)]
    lines = [f"largest difference of a logit to PyTorch: {export_onnx(module, files[0]):.2g}"]
    if int8:
        files.append(files[0].with_suffix(".int8.onnx"))
        quantise(files[0], files[1])
    if split is not None:
        lines += [f"{split}, {len(_all(batches, 'label'))} objects, CPU:", *_costs(module, files, batches)]
    return "\n".join([*lines, "written: " + ", ".join(map(str, files))])


def _batches(datamodule: Any, split: str) -> list[dict[str, Tensor]]:
    kept = (*INPUTS, "label", "picture")
    finished = (datamodule.on_after_batch_transfer(batch, 0) for batch in datamodule.split_dataloader(split))
    return [{name: batch[name] for name in kept} for batch in finished]


def _all(batches: list[dict[str, Tensor]], name: str) -> NDArray[np.int64]:
    found: NDArray[np.int64] = torch.cat([batch[name] for batch in batches]).numpy()
    return found


@torch.inference_mode()
def _torch_logits(module: "DrainModule", batches: list[dict[str, Tensor]]) -> NDArray[np.float32]:
    return np.concatenate([module.network(batch)["logits"].numpy() for batch in batches])


def _costs(module: "DrainModule", files: list[Path], batches: list[dict[str, Tensor]]) -> list[str]:
    """Lines of a table: PyTorch's network, then each file."""
    label, picture = _all(batches, "label"), _all(batches, "picture")
    weights = sum(p.numel() * p.element_size() for p in module.network.parameters())
    ways: list[tuple[str, int, Callable[[], NDArray[np.float32]]]] = [
        ("PyTorch", weights, partial(_torch_logits, module, batches)),
        *((path.name, path.stat().st_size, partial(onnx_logits, path, batches)) for path in files),
    ]
    rows, first = [], np.zeros(0)
    for name, size, answer in ways:
        start = time.perf_counter()
        said = answer().argmax(1)
        seconds = time.perf_counter() - start
        first = said if name == "PyTorch" else first
        found = scores(confusions(label, said, picture).sum(0))
        figures = [number(float(found["accuracy"])), number(float(found["macro_f1"])), f"{(said != first).mean():.1%}"]
        rows.append([name, f"{size / 1e6:.1f}", *figures, f"{1000 * seconds / len(label):.1f}"])
    return table(HEADER, rows)
