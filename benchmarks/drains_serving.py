"""How long does a picture with five objects take with CLIP ViT-L/14, how much memory, and how large is the file?

    python benchmarks/drains_serving.py      # --clip NAME, --boxes N, --threads N, --pairs N, --quick

Random weights cost what trained ones do. A picture is decoded already; timed is everything of stage 2: cutting, the
network on all boxes in one batch, the answer. PyTorch in float32, and the exported file in onnxruntime as it is and in
8 bits. Each way is a fresh process; memory is the peak of its resident set, libraries included.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from timing import parse, parser_of, show, spread, verdict, write

from stagewise.datamodules.drains.boxes import FEATURES
from stagewise.datamodules.drains.detections import Detection
from stagewise.datamodules.drains.vocabulary import CLASS_NAMES, TYPES
from stagewise.lightning_modules import DrainModule
from stagewise.lightning_modules.drains.export import export_onnx, quantise
from stagewise.lightning_modules.drains.serving import as_batch, classify

SECONDS_BAR, MEMORY_BAR_MB, FILE_BAR_MB = 2.0, 5000, 1000
WAYS = ("PyTorch", "ONNX", "ONNX, 8 bits")
SMALL = {
    "embed_dim": 32,
    "vision_cfg": {"layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"layers": 1, "width": 64, "heads": 2, "context_length": 32},
}


def module_of(clip: str, quick: bool) -> DrainModule:
    """Random weights."""
    module = DrainModule(clip=clip, network={"clip": {"pretrained": None, **(SMALL if quick else {})}})
    image = {"px": 64 if quick else 224, "input": "crop", "margin": 0.1, "pad": "mean", "view": False}
    known = {"classes": list(CLASS_NAMES), "features": list(FEATURES), "image": image, "splits": {}, "corrections": []}
    numbers = {"feature_mean": [0.0] * len(FEATURES), "feature_std": [1.0] * len(FEATURES), "class_count": [9] * 9}
    torch.manual_seed(0)
    module.build({**known, **numbers}, load=True)
    return module.eval()


def objects(count: int) -> list[Detection]:
    """Thin boxes of every type on a picture of 1280 px."""
    return [Detection((40.0 + 200 * i, 100.0, 90.0 + 200 * i, 500.0), TYPES[i % 4]) for i in range(count)]


def memory_mb() -> float:
    """Peak of the resident set of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def child(way: str, path: str, options: str) -> None:
    """One way, printed as JSON."""
    settings = json.loads(options)
    torch.set_num_threads(settings["threads"])
    picture = torch.randint(0, 256, (3, 1280, 1280), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = objects(settings["boxes"])
    call: Any
    if way == "PyTorch":
        module = module_of(settings["clip"], settings["quick"])
        call = lambda: classify(module, picture, found)  # noqa: E731
    else:
        import onnxruntime

        with open(f"{path}.json") as file:
            schema = json.load(file)
        wanted = onnxruntime.SessionOptions()
        wanted.intra_op_num_threads = settings["threads"]
        session = onnxruntime.InferenceSession(path, wanted, providers=["CPUExecutionProvider"])
        names = [one.name for one in session.get_inputs()]

        def call() -> Any:
            batch = as_batch(schema, picture, found)
            return session.run(None, {name: batch[name].numpy() for name in names})

    call()
    seconds = []
    for _ in range(settings["pairs"]):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"seconds": seconds, "peak_mb": memory_mb()}))


def main() -> None:
    parser = parser_of(__doc__, pairs=5)
    parser.add_argument("--clip", default="ViT-L-14", help="open_clip's name (default: %(default)s)")
    parser.add_argument("--boxes", type=int, default=5)
    options = parse(parser)
    clip = "ViT-B-32" if options.quick else options.clip
    with tempfile.TemporaryDirectory() as folder:
        files = {way: Path(folder) / f"{number}.onnx" for number, way in enumerate(WAYS)}
        sizes = make_files(module_of(clip, options.quick), files)
        settings = json.dumps({**vars(options), "clip": clip})
        rows, figures = [], {}
        for way in WAYS:
            command = [sys.executable, __file__, "--child", way, str(files[way]), settings]
            environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
            done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            figures[way] = {**found, "file_mb": sizes[way]}
            seconds = show(spread(found["seconds"]))
            rows.append({"stage 2 by": way, "s a picture": seconds, "peak MB": f"{found['peak_mb']:.0f}"})
            rows[-1]["file MB"] = f"{sizes[way]:.0f}"
    figures["half_mb"] = sizes["half"]
    write("drains_serving", options, figures, rows)
    print(f"weights in half precision: {sizes['half']:.0f} MB")
    for way in WAYS:
        print(verdict(f"{way}: s a picture", spread(figures[way]["seconds"])["median"], SECONDS_BAR, at_most=True))
        print(verdict(f"{way}: peak MB", figures[way]["peak_mb"], MEMORY_BAR_MB, at_most=True))
    print(verdict("MB of the file in half precision", sizes["half"], FILE_BAR_MB, at_most=True))


def make_files(module: DrainModule, files: dict[str, Path]) -> dict[str, float]:
    """Writes the exported files; MB of each, and of the weights in half precision."""
    _, whole, small = (files[way] for way in WAYS)
    export_onnx(module, whole)
    quantise(whole, small)
    for path in (whole, small):
        Path(f"{path}.json").write_text(json.dumps(module.schema))
    half = whole.with_suffix(".half.pt")
    torch.save({name: value.half() for name, value in module.network.state_dict().items()}, half)
    weights = sum(p.numel() * p.element_size() for p in module.network.parameters())
    sizes = {"PyTorch": weights, "ONNX": whole.stat().st_size, "ONNX, 8 bits": small.stat().st_size}
    return {way: size / 1e6 for way, size in {**sizes, "half": half.stat().st_size}.items()}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        main()
