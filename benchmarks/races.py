"""Every benchmark of the repository: how ``race_card.py`` runs it, and the one line that says most about it.

A new benchmark is one more ``Race``; a test finds those that are missing here.
"""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

Cell = tuple[str, str] | str
"""Row (how one of its cells begins; ``""`` is the first) and column of the table, or a dotted path in the figures."""


@dataclass(frozen=True)
class Line:
    """What one benchmark found, in one line.

    Args:
        what: was measured.
        ours: our figure.
        unit: of it.
        peer: what it is compared with; empty where there is nothing.
        beside: the comparison's figure.
        form: how it reads, such as ``{} times``.
    """

    what: str
    ours: Cell
    unit: str = ""
    peer: str = ""
    beside: Cell = ""
    form: str = "{} times"


@dataclass(frozen=True)
class Race:
    """A benchmark.

    Args:
        name: of its script and of its JSON.
        line: that stands for it; None has its table alone.
        data: folder that it reads, of those beside the repository, which does not hold them.
        peers: modules that it compares with, which an installation may lack.
        limit_s: of its quick run.
    """

    name: str
    line: Line | None = None
    data: str = ""
    peers: tuple[str, ...] = ()
    limit_s: int = 600

    def arguments(self, data: Path) -> list[str]:
        """Of the script.

        Args:
            data: folder of the data that the repository does not hold.
        """
        return [str(data / self.data)] if self.data else []

    def why_not(self, data: Path, pythons: Sequence[str]) -> str:
        """Why the quick run is left out; empty if it is not."""
        if self.data and not (data / self.data).is_dir():
            return f"reads a folder '{self.data}' of real data, which the repository does not hold: --data FOLDER"
        if not self.interpreter(pythons):
            return f"needs {', '.join(lacking(pythons[-1], self.peers))}: pip install 'stagewise[peers,crf-peer,dev]'"
        return ""

    def interpreter(self, pythons: Sequence[str]) -> str | None:
        """The first of them that has all peers."""
        return next((python for python in pythons if not lacking(python, self.peers)), None)


def lacking(python: str, peers: Sequence[str]) -> list[str]:
    """Those that its environment has not."""
    code = "import sys, importlib.util as u; print(*[name for name in sys.argv[1:] if u.find_spec(name) is None])"
    done = subprocess.run([python, "-c", code, *peers], check=True, capture_output=True, text=True)
    return done.stdout.split()


# fmt: off
RACES = (
    Race("full_size", Line(
        "GeoPak Phase 2 at full size, training", ("GeoPak Phase 2", "images/s, ours"), "pictures/s",
        "of a bare PyTorch loop's speed", ("GeoPak Phase 2", "ours / bare loop"))),
    Race("training_step", Line(
        "a training step of GeoPak, small network", ("", "Lightning, ms a step"), "ms",
        "of a bare PyTorch loop's time", ("", "ratio"))),
    Race("callback_overhead", Line(
        "a training step with all callbacks", ("", "step with all callbacks, ms"), "ms",
        "of the time without any", ("", "ratio"))),
    Race("cell_loss", Line(
        "soft labels and cell loss of a batch", ("ours", "ms"), "ms",
        "faster than a loop over samples", ("loop", "times ours"))),
    Race("sampler", Line(
        "an epoch of balanced batches, a million rows", ("ours", "ms an epoch"), "ms",
        "faster than pytorch-metric-learning", ("MPerClassSampler", "times ours")),
        peers=("pytorch_metric_learning",)),
    Race("ten_million_rows", Line(
        "peak memory of 10 million rows, to the first batch", ("peak_gb", "cold"), "GB",
        "until that batch, nothing cached", ("setup_and_batch_s", "cold"), "{} s")),
    Race("feature_cache", Line(
        "Phase 1 on cached features", ("cached", "pictures a second"), "pictures/s",
        "faster than with the encoders run", ("cached / recomputed", "pictures a second"))),
    Race("streaming", Line(
        "reading shards, warm", ("shards, warm", "images a second"), "pictures/s",
        "of the speed of files", ("shards, warm", "times the files")), peers=("litdata",)),
    Race("durable_saves", Line(
        "unreadable checkpoints after kills within a save", ("timed: unreadable", "durable"), "",
        "with Lightning's default", ("timed: unreadable", "lightning"), "{}")),
    Race("peers_callbacks", peers=("finetuning_scheduler", "pytorch_metric_learning")),
    Race("focal_coral", Line(
        "focal + CORAL, forward and backward, compiled", ("ours, compiled", "ms"), "ms",
        "faster than kornia and coral-pytorch", ("peers", "times ours, compiled")),
        peers=("kornia", "coral_pytorch")),
    Race("landslide_crf", Line(
        "dense CRF, the largest picture", ("2048 x 2048", "ours s"), "s",
        "faster than pydensecrf2", ("2048 x 2048", "times faster")), peers=("pydensecrf",)),
    Race("landslide_inference", Line(
        "a raster in windows, from and to disk", ("ours", "Mpx/s"), "Mpx/s",
        "faster than MONAI", ("MONAI", "ours is faster by")), peers=("monai", "pytorch_toolbelt")),
    Race("landslide_memory", Line("peak memory of a map 16 times larger", "ratio", "of the smaller one's")),
    Race("landslide_smote", Line(
        "SMOTE on tiles, peak MB", ("ours", "peak MB"), "",
        "imbalanced-learn", ("imbalanced-learn", "peak MB"), "{}")),
    Race("landslide_channels", Line("the recipe's 28 channels", ("recipe: all", "Mpx/s"), "Mpx/s")),
    Race("landslide_points", Line(
        "AUROC on real landslide points, spatial folds", ("network", "AUROC"), "",
        "logistic regression", ("logistic regression", "AUROC"), "{}"),
        data="ecuador"),
    Race("drains_training_step", Line(
        "a training step of drains", ("ours", "objects a second"), "objects/s",
        "faster than Hugging Face, its text frozen too", ("text frozen", "ours is faster by")),
        peers=("transformers",)),
    Race("drains_loader", Line(
        "crops of objects, first pass", ("ours, first pass", "crops a second"), "crops/s",
        "faster than a picture opened per object", ("ours, first pass", "times the peer"))),
    Race("drains_serving", Line(
        "a picture with five objects, CLIP in 8 bits", ("ONNX, 8 bits", "s a picture"), "s",
        "PyTorch in float32", ("PyTorch", "s a picture"), "{} s"), peers=("onnxruntime",)),
    Race("drains_folds", Line(
        "macro-F1 on real drains, location folds", ("pixels", "macro_f1"), "",
        "lead over a forest on the boxes", ("pixels", "lead in macro_f1"), "{}"), data="drains"),
    Race("fusion_demo", Line(
        "three folds of the fusion demo", "seconds.stagewise", "s", "of a plain script's time", "ratio"), limit_s=900),
    Race("fusion_seeds", Line(
        "kappa of fusion, a generated clinic", ("0", "fusion"), "", "lead over one branch", ("0", "lead"), "{}"),
        limit_s=900),
    Race("fusion_folds", Line(
        "kappa on real houses, folds by zip code", ("fusion, average", "kappa"), "",
        "lead over the forest", ("fusion, average", "kappa minus metadata"), "{}"),
        data="houses"),
)
# fmt: on
TELLING = (
    "streaming",
    "feature_cache",
    "sampler",
    "cell_loss",
    "ten_million_rows",
    "durable_saves",
    "focal_coral",
    "landslide_inference",
    "landslide_smote",
    "drains_training_step",
)  # fmt: skip
"""Those whose lines README shows."""
