"""Weights of the best evaluations on disk, never half a file."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from .durable_files import save_durably, versions
from .trainable import clear_gradients


class BestWeights:
    """Keeps the weights of the best evaluation and of the ones it replaced.

    More than one, so that a run killed right after a new best can still resume from the checkpoint before it.

    Args:
        folder: where ``best_weights.pt``, ``best_weights.previous.pt`` and so on lie.
        keep: how many of them.

    >>> import tempfile
    >>> net, store = nn.Linear(1, 1), BestWeights(tempfile.mkdtemp())
    >>> store.save(net, "run-3")
    >>> sorted(store.load("run-3"))
    ['bias', 'weight']
    """

    def __init__(self, folder: str, keep: int = 3) -> None:
        self.newest, self.keep = Path(folder) / "best_weights.pt", keep
        self._written: str | None = None  # evaluation of the newest file, where this object has written it

    def save(self, module: nn.Module, evaluation: str) -> None:
        """Writes the module's weights under the key of their run and evaluation."""
        self._write({"evaluation": evaluation, "state_dict": module.state_dict()})

    def has(self, evaluation: str) -> bool:
        """Whether the weights of that evaluation are still there."""
        return self._find(evaluation) is not None

    def load(self, evaluation: str) -> dict[str, Any]:
        """The state dict of that evaluation, on the CPU.

        Raises:
            FileNotFoundError: they are gone.
        """
        content = self._find(evaluation)
        if content is None:
            raise FileNotFoundError(self._missing(evaluation))
        state: dict[str, Any] = content["state_dict"]
        return state

    def restore(self, trainer: Trainer, pl_module: LightningModule, evaluation: str) -> None:
        """Loads those weights into the module on every rank; rank 0 reads, since no other may see its disk."""
        state = self.load(evaluation) if trainer.is_global_zero else {}
        pl_module.load_state_dict(trainer.strategy.broadcast(state), strict=pl_module.strict_loading)
        clear_gradients(pl_module)

    def adopt(self, trainer: Trainer, pl_module: LightningModule, evaluation: str, origin: str, is_best: bool) -> None:
        """Makes sure on a resume that the best weights are here.

        Args:
            trainer: its rank 0 does the work.
            pl_module: with the weights of the checkpoint.
            evaluation: key of the best one.
            origin: the folder of the run that wrote the checkpoint.
            is_best: the checkpoint holds the very weights of the best evaluation.

        Raises:
            FileNotFoundError: they are nowhere.
        """
        if trainer.is_global_zero and not self.has(evaluation):
            if is_best:
                self.save(pl_module, evaluation)
            elif (old := BestWeights(origin, self.keep)).has(evaluation):
                self._write({"evaluation": evaluation, "state_dict": old.load(evaluation)})
        if not trainer.strategy.broadcast(trainer.is_global_zero and self.has(evaluation)):
            raise FileNotFoundError(self._missing(evaluation))

    def _find(self, evaluation: str) -> dict[str, Any] | None:
        contents = map(self._read, versions(self.newest))
        return next((content for content in contents if content["evaluation"] == evaluation), None)

    def _write(self, content: dict[str, Any]) -> None:
        # an evaluation that is repeated after a kill takes its own place, not that of an older one
        if self._written is None and self.newest.exists():
            self._written = self._read(self.newest)["evaluation"]
        save_durably(content, self.newest, keep=1 if self._written == content["evaluation"] else self.keep)
        self._written = content["evaluation"]

    def _missing(self, evaluation: str) -> str:
        return (
            f"The weights of evaluation {evaluation} are not in {self.newest.parent}; resume from a newer checkpoint, "
            "from the one of that evaluation, or with on_no_gain='keep' and at_end='last' (keep_best keeps more)."
        )

    @staticmethod
    def _read(path: Path) -> dict[str, Any]:
        # mapped, so that asking for the number does not read the weights
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return content
