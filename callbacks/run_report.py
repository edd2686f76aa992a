"""Writes what a person reads of a run: ``log.txt``, ``losses.csv``, ``curves.png``, ``summary.json``."""

import csv
import json
import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from .curves import draw_curves
from .evaluation import counts

log = logging.getLogger(__name__)
SPLITS = ("train", "val")


class RunReport(Checkpoint):
    """One row an epoch and split, a block on the console and in the log, curves and a summary.

    It is a ``Checkpoint`` only because Lightning runs those last: the epoch's train metrics exist by then.

    Args:
        dirpath: the run's folder.
        experiment: name in the summary.
        monitor: logged name of the figure that the run is judged by.
        mode: ``min`` or ``max``.
        columns: column of ``losses.csv`` -> logged name without the split; ``{"*_acc": "accuracy/*"}`` gives a column
            for each logged name that fits, in the order they were logged.
        start_from: checkpoint that the run started from, for the summary.
        logger_name: the Python logger whose records also go to ``log.txt``.

    ``summary.json`` has the keys ``experiment, monitor, mode, best, best_epoch, best_checkpoint, epochs, stopped_by,
    start_from, start_value, seconds``. ``stopped_by`` is the ``reason`` of the callback that stopped the run.
    """

    def __init__(
        self,
        dirpath: str,
        experiment: str,
        monitor: str,
        mode: str,
        columns: Mapping[str, str],
        start_from: str | None = None,
        logger_name: str = "stagewise",
    ) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"`mode` must be 'min' or 'max', got {mode!r}.")
        self.dirpath, self.experiment, self.monitor, self.mode = Path(dirpath), experiment, monitor, mode
        self.columns, self.start_from, self.logger_name = dict(columns), start_from, logger_name
        self.seconds, self._began = 0.0, time.monotonic()
        self._handler: logging.Handler | None = None
        self.rows: list[dict[str, Any]] = []
        self._finished = self._evaluated = False

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        """The rows and the time so far, so that a resumed run continues the same table."""
        return {"rows": self.rows, "seconds": self._elapsed(), "evaluated": self._evaluated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues the table of the run that was resumed."""
        self.rows, self.seconds, self._began = list(state_dict["rows"]), state_dict["seconds"], time.monotonic()
        self._evaluated = bool(state_dict.get("evaluated"))

    def _elapsed(self) -> float:
        return self.seconds + time.monotonic() - self._began

    # --- log ---

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Opens ``log.txt``."""
        if trainer.is_global_zero and self._handler is None:
            self.dirpath.mkdir(parents=True, exist_ok=True)
            self._handler = logging.FileHandler(self.dirpath / "log.txt")
            self._handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
            logging.getLogger(self.logger_name).addHandler(self._handler)
            logging.getLogger(self.logger_name).setLevel(logging.INFO)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Closes ``log.txt``."""
        if self._handler is not None:
            logging.getLogger(self.logger_name).removeHandler(self._handler)
            self._handler.close()
            self._handler = None

    # --- epochs ---

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Adds the epoch's rows and prints the block."""
        epoch, logged = trainer.current_epoch + 1, trainer.callback_metrics
        splits = SPLITS if self._evaluated else SPLITS[:1]  # what an evaluation before this epoch logged is still there
        self._evaluated = False
        for split in splits:
            found = {column: logged[f"{split}/{name}"].item() for column, name in self._expand(logged, split)}
            if found:
                self.rows.append({"epoch": epoch, "split": split, **found})
                log.info("%s", self._block(epoch, trainer.max_epochs, split, found))
        if trainer.is_global_zero:
            self._write_table()

    def _expand(self, logged: Mapping[str, Any], split: str) -> list[tuple[str, str]]:
        pairs: list[tuple[str, str]] = []
        for column, name in self.columns.items():
            if "*" not in name:
                pairs += [(column, name)] if f"{split}/{name}" in logged else []
                continue
            head, tail = (f"{split}/{name}").split("*")
            stars = [
                key[len(head) : len(key) - len(tail)] for key in logged if key.startswith(head) and key.endswith(tail)
            ]
            pairs += [(column.replace("*", star), name.replace("*", star)) for star in stars]
        return pairs

    def _block(self, epoch: int, last: int | None, split: str, found: Mapping[str, float]) -> str:
        starred = {c.replace("*", "") for c in self.columns if "*" in c}
        single = [f"{c} {v:.4g}" for c, v in found.items() if not any(c.endswith(s) for s in starred)]
        many = [f"{c} {v:.3f}" for c, v in found.items() if any(c.endswith(s) for s in starred)]
        lines = [f"epoch {epoch}/{last} {split:5s} " + " | ".join(single)]
        return "\n    ".join([*lines, "  ".join(many)] if many else lines)

    def _write_table(self) -> None:
        names = list(dict.fromkeys(key for row in self.rows for key in row))
        with _replacing(self.dirpath / "losses.csv") as path, open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(
                {k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()} for row in self.rows
            )

    # --- the end ---

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Notes an evaluation; after the closing one of the best checkpoint, asks the module for its pictures."""
        self._evaluated |= counts(trainer)
        draw = getattr(pl_module, "draw_report", None)
        if trainer.state.fn == "validate" and trainer.is_global_zero and callable(draw):
            draw(self.dirpath)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the summary and the curves."""
        self._finish(trainer, self._reason(trainer) or "max_epochs")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The same for a finished run that was resumed: Lightning trains nothing and skips ``on_train_end``."""
        if not self._finished:
            self.on_train_end(trainer, pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Keeps a usable checkpoint, closes the table and the log, and says why the run ended."""
        self._finish_after(trainer, exception)
        self.teardown(trainer, pl_module, "fit")  # which Lightning leaves out; in a sweep the next run follows

    def _finish_after(self, trainer: L.Trainer, exception: BaseException) -> None:
        if trainer.state.fn != "fit" or (not self.rows and not trainer.global_step):
            return
        if isinstance(exception, KeyboardInterrupt):
            trainer.save_checkpoint(self.dirpath / f"{self.experiment}_interrupted.ckpt")
            self._finish(trainer, "interrupted")
        elif isinstance(exception, SystemExit):
            self._finish(trainer, str(exception))  # preempted, and saved by who left
        else:
            self._finish(trainer, f"error: {type(exception).__name__}: {exception}")

    def _reason(self, trainer: L.Trainer) -> str | None:
        reasons = [r for r in (getattr(c, "reason", None) for c in trainer.callbacks) if r]  # type: ignore[attr-defined]
        return "; ".join(reasons) or None

    def _finish(self, trainer: L.Trainer, stopped_by: str) -> None:
        if not trainer.is_global_zero:
            return
        self._finished = True
        summary = self.summary(trainer, stopped_by)
        with _replacing(self.dirpath / "summary.json") as path:
            path.write_text(json.dumps(summary, indent=1))
        if self.rows:
            draw_curves(self.rows, self.dirpath / "curves.png")
        best = "none" if summary["best"] is None else f"{summary['best']:.6g}"
        log.info("stopped by: %s; best %s %s in epoch %s", stopped_by, self.monitor, best, summary["best_epoch"])

    def summary(self, trainer: L.Trainer, stopped_by: str) -> dict[str, Any]:
        """The content of ``summary.json``."""
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        best = next((c for c in callbacks if hasattr(c, "best_score") and hasattr(c, "best_epoch")), None)
        start = next((c.start_value for c in callbacks if getattr(c, "start_value", None) is not None), None)
        score = getattr(best, "best_score", None)
        return {
            "experiment": self.experiment,
            "monitor": self.monitor,
            "mode": self.mode,
            "best": None if score is None or math.isnan(score) else float(score),
            "best_epoch": getattr(best, "best_epoch", None),
            "best_checkpoint": str(getattr(best, "best_model_path", "") or "") or None,
            "epochs": len({row["epoch"] for row in self.rows}),
            "stopped_by": stopped_by,
            "start_from": self.start_from,
            "start_value": start,
            "seconds": round(self._elapsed(), 1),
        }


class _replacing:
    """A path to write to that takes its final name only when the block ends well."""

    def __init__(self, final: Path) -> None:
        self.final, self.part = final, final.with_name(final.name + ".part")

    def __enter__(self) -> Path:
        return self.part

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is None:
            os.replace(self.part, self.final)
        else:
            self.part.unlink(missing_ok=True)
