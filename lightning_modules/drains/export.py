"""The trained classifier as ONNX: image tower, class head and the encoded prompts in one file."""

import contextlib
import copy
import json
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...datamodules.drains.vocabulary import CLASSES, TYPES
from ...datamodules.errors import StagewiseError
from ..clip import quiet

if TYPE_CHECKING:
    from .module import DrainModule
    from .network import DrainNetwork

log = logging.getLogger(__name__)
TOLERANCE = 1e-4
INPUTS = ("image", "box_type", "position", "context", "metadata")


class Exported(nn.Module):
    """The network with plain tensors for arguments, as ONNX wants them; the logits of impossible classes are -1e4.

    Args:
        network: is copied; in the copy LoRA's changes are written into the matrices, and the texts are encoded.
    """

    def __init__(self, network: "DrainNetwork") -> None:
        super().__init__()
        self.network = copy.deepcopy(network).cpu()
        if self.network.adapters is not None:
            self.network.adapters.merge(self.network.visual)
            self.network.adapters = None
        if self.network.text is not None:
            self.network.bank.fill(self.network.text)
            self.network.text = None
        self.eval()

    def forward(self, image: Tensor, box_type: Tensor, position: Tensor, context: Tensor, metadata: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1], (B), (B), (B), (B, F) -> (B, K)."""
        batch = dict(zip(INPUTS, (image, box_type, position, context, metadata)))
        found: Tensor = self.network(batch)["logits"]
        return found.clamp(min=-1e4)


def export_onnx(module: "DrainModule", path: str | Path) -> float:
    """Writes the file, and checks its answers against PyTorch's before it gets its name.

    Args:
        module: trained, on the CPU and in eval mode.
        path: of the ``.onnx``; classes, types and how crops are cut lie in its metadata.

    Returns:
        The largest difference of a logit on random pictures.

    Raises:
        StagewiseError: the libraries are missing, the path does not end in ``.onnx``, the network looks at two views,
            or the file answers otherwise than PyTorch.
    """
    _require()
    if module.schema["image"]["view"]:
        raise StagewiseError("export takes one view; train with datamodule.image.view=false.")
    target, exported = Path(path), Exported(module.network)
    if target.suffix != ".onnx":
        raise StagewiseError(f"output='{path}' must be a file that ends in .onnx.")
    target.parent.mkdir(parents=True, exist_ok=True)
    other = example_batch(module.schema, 5, seed=1)
    with torch.inference_mode():
        wanted = module.network(other)["logits"].numpy()
    with _whole(target) as part:
        _write(exported, example_batch(module.schema, 2), part, module.schema)
        found = difference(onnx_logits(part, [other]), wanted)
        if found > TOLERANCE:
            raise StagewiseError(f"the exported network differs from PyTorch by {found:.2g}; nothing is written.")
    log.info("written: %s, largest difference of a logit to PyTorch %.2g", target, found)
    return found


@contextlib.contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A name to write to, which becomes the target when all went well; quiet, as the libraries log every node."""
    part = target.with_name(f".{target.stem}.part.onnx")
    try:
        with quiet():
            yield part
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def difference(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """The largest, over the classes that are possible."""
    possible = (a > -1e3) & (b > -1e3)
    return float(np.abs(a - b)[possible].max())


def onnx_logits(path: str | Path, batches: Iterable[Mapping[str, Tensor]]) -> NDArray[np.float32]:
    """What onnxruntime answers on the CPU: (N, 9) of all batches together.

    Args:
        path: of the ``.onnx``.
        batches: of :data:`INPUTS`.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    wanted = [one.name for one in session.get_inputs()]  # what the network does not look at is not in the file
    return np.concatenate([session.run(None, {name: batch[name].numpy() for name in wanted})[0] for batch in batches])


def example_batch(schema: dict[str, Any], size: int, seed: int = 0) -> dict[str, Tensor]:
    """Random objects of every type."""
    g, px = torch.Generator().manual_seed(seed), int(schema["image"]["px"])
    kinds = torch.arange(size) % len(TYPES)
    features = torch.tensor(schema["feature_mean"]) + torch.randn(size, len(schema["features"]), generator=g)
    images = torch.rand(size, 3, px, px, generator=g)
    return dict(zip(INPUTS, (images, kinds, torch.arange(size) % 3, torch.zeros_like(kinds), features.float())))


def _write(exported: Exported, example: dict[str, Tensor], path: Path, schema: dict[str, Any]) -> None:
    batch = torch.export.Dim("batch", min=1, max=4096)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*axis name: batch will not be used")  # one name for all is meant
        program = torch.onnx.export(
            exported,
            tuple(example.values()),
            input_names=list(INPUTS),
            output_names=["logits"],
            dynamic_shapes={name: {0: batch} for name in INPUTS},
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    known = {"classes": [one.name for one in CLASSES], "types": list(TYPES), "image": schema["image"]}
    program.model.metadata_props.update({name: json.dumps(value) for name, value in known.items()})
    program.save(str(path))


def quantise(path: Path, target: Path) -> None:
    """Dynamic INT8 of an exported file's matrix products; :mod:`export_cost` says what that costs."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(path)
    del model.graph.value_info[:]  # the exporter's shapes, which onnx's own inference disputes
    with _whole(target) as part:
        quantize_dynamic(model, part, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"])


def _require() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]
    if missing:
        raise StagewiseError(f"export needs {', '.join(missing)}; run: pip install 'stagewise[onnx]'")
