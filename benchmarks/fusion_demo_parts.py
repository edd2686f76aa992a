"""What the wall time of the programs of ``fusion_demo.py`` consists of; it answers no question of its own.

    python benchmarks/fusion_demo_parts.py PROGRAM FILE.json ARGUMENTS…

Runs ``stagewise`` (train.py) or ``plain script`` (peers_fusion.py) with a clock around its parts.
"""

import atexit
import functools
import importlib
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

OURS, PLAIN = "stagewise", "plain script"
MODULES = {OURS: "stagewise.train", PLAIN: "peers_fusion"}
IMPORTS, REST = "imports", "the rest"
_LOOPS, _CALLBACKS = "lightning.pytorch.loops", "stagewise.callbacks"
_DATA, _TASK = "stagewise.datamodules.fusion.datamodule", "stagewise.lightning_modules.fusion"
PARTS = {  # of each program: what is called -> the part that its time belongs to, but for what is called within it
    OURS: {
        f"{_DATA}:FusionDataModule.setup": "table and splits",
        f"{_DATA}:open_pictures": "pictures",
        f"{_TASK}.module:forest_probabilities": "forest",
        f"{_LOOPS}.training_epoch_loop:_TrainingEpochLoop.advance": "training",
        f"{_LOOPS}.evaluation_loop:_EvaluationLoop.run": "val",
        "lightning:Trainer.save_checkpoint": "checkpoints",
        f"{_CALLBACKS}.best_weights:BestWeights.save": "checkpoints",
        f"{_TASK}.module:FusionModule.finish": "test",
        f"{_TASK}.pooled:pool_runs": "test",
        f"{_TASK}.evaluation:draw_all": "figures",
        f"{_TASK}.pooled:draw_all": "figures",
        f"{_CALLBACKS}.run_report:draw_curves": "figures",
    },
    PLAIN: {
        "peers_fusion:read_table": "table and splits",
        "peers_fusion:splits_of": "table and splits",
        "peers_fusion:read_pictures": "pictures",
        "peers_fusion:forest_answers": "forest",
        "peers_fusion:Trainer.train_epoch": "training",
        "peers_fusion:Trainer.val_kappa": "val",
        "peers_fusion:Trainer.save": "checkpoints",
        "peers_fusion:report": "test",
        "peers_fusion:draw_report": "figures",
        "peers_fusion:draw_curves": "figures",
    },
}


class Clock:
    """Seconds of a program's parts, each without those that are called within it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._within: list[float] = [0.0]

    def around(self, call: Callable[..., Any], part: str) -> Callable[..., Any]:
        """The same call, timed."""

        @functools.wraps(call)
        def timed(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            self._within.append(0.0)
            try:
                return call(*args, **options)
            finally:
                whole = time.perf_counter() - start
                self.seconds[part] = self.seconds.get(part, 0.0) + whole - self._within.pop()
                self._within[-1] += whole

        return timed

    def watch(self, parts: Mapping[str, str]) -> None:
        """Puts itself around what ``module:name`` or ``module:class.name`` are."""
        for place, part in parts.items():
            module, _, path = place.partition(":")
            *owners, name = path.split(".")
            owner = functools.reduce(getattr, owners, importlib.import_module(module))
            setattr(owner, name, self.around(getattr(owner, name), part))


def main(program: str, target: str, *arguments: str) -> None:
    clock, start = Clock(), time.perf_counter()
    module = importlib.import_module(MODULES[program])
    clock.watch(PARTS[program])
    clock.seconds[IMPORTS] = time.perf_counter() - start
    atexit.register(lambda: Path(target).write_text(json.dumps(clock.seconds)))
    sys.argv = [program, *arguments]
    module.main()


if __name__ == "__main__":
    main(*sys.argv[1:])
