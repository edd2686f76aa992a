"""A bare PyTorch loop that takes turns with Lightning inside one fit; the benchmarks of training steps share it."""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn

Loss = Callable[[Any, nn.Module, dict[str, Tensor]], Tensor]


def clock() -> float:
    """Seconds, once the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Bare:
    """The loop without Lightning, on a copy of the network as the fit starts.

    The batches are those of the fit, moved and augmented as the data module says, and the optimizer has its groups.

    Args:
        module: in a fit; its ``network`` is copied.
        loss: (module, network, batch) -> loss.
        clip_norm: of all gradients together.
        bf16: whether it runs under autocast.
    """

    def __init__(self, module: L.LightningModule, loss: Loss, clip_norm: float = 1.0, bf16: bool = False) -> None:
        self.module, self.loss, self.clip_norm, self.bf16 = module, loss, clip_norm, bf16
        ours: Any = module.network
        self.network: nn.Module = copy.deepcopy(ours)
        twin = {id(theirs): mine for mine, theirs in zip(self.network.parameters(), ours.parameters(), strict=True)}
        optimizer = module.trainer.optimizers[0]
        groups = [
            {"params": [twin[id(p)] for p in g["params"]], "lr": g["lr"], "weight_decay": g["weight_decay"]}
            for g in optimizer.param_groups
        ]
        self.optimizer = torch.optim.AdamW(groups, fused=optimizer.defaults["fused"])
        self.data: Any = module.trainer.datamodule  # type: ignore[attr-defined]
        self.batches: Iterator[Any] = iter(self.data.train_dataloader())
        self.losses: list[Tensor] = []

    def batch(self) -> dict[str, Tensor]:
        """The next one, on the device."""
        moved = move_data_to_device(next(self.batches), self.module.device)
        found: dict[str, Tensor] = self.data.on_after_batch_transfer(moved, 0)
        return found

    def autocast(self) -> AbstractContextManager[Any]:
        """What the forward pass and the loss run under."""
        return torch.autocast(self.module.device.type, torch.bfloat16, enabled=self.bf16)

    def steps(self, number: int) -> None:
        """Each a forward, a backward, a clipping and a step."""
        for _ in range(number):
            batch = self.batch()
            torch.manual_seed(len(self.losses))
            with self.autocast():
                loss = self.loss(self.module, self.network, batch)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.network.parameters(), self.clip_norm)
            self.optimizer.step()
            self.losses.append(loss.detach())


class InTurn(L.Callback):
    """Alternates blocks of Lightning's steps with blocks of the bare loop's, and times both.

    Args:
        block: steps in a block; the first block of each is not counted.
        bare: makes the loop, at the first batch.
    """

    def __init__(self, block: int, bare: Callable[[Any], Bare]) -> None:
        self.block, self.make_bare = block, bare
        self.ours: list[float] = []
        self.bare_s: list[float] = []
        self.losses: list[Tensor] = []
        self.bare: Any = None
        self.started = 0.0

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """The first callback to be called: whatever happened since the last block's start is Lightning's."""
        if batch_idx % self.block == 0:
            now = clock()
            if self.bare is None:
                self.bare = self.make_bare(pl_module)
            else:
                times = (now - self.started) / self.block, self._time_bare()
                if batch_idx > self.block:
                    self.ours.append(times[0])
                    self.bare_s.append(times[1])
            self.started = clock()
        torch.manual_seed(batch_idx)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Keeps the loss for the comparison."""
        self.losses.append(outputs["loss"].detach())

    def _time_bare(self) -> float:
        start = clock()
        self.bare.steps(self.block)
        return (clock() - start) / self.block

    def steps(self, pairs: int) -> int:
        """Of a fit that counts so many blocks of each."""
        return self.block * (pairs + 1) + 1

    def parity(self, first: int | None = None) -> float:
        """Largest difference of the losses of both, of the first steps or of all, relative where they are above 1."""
        both = zip(self.losses[:first], self.bare.losses[:first])
        return max(float((a - b).abs() / a.abs().clamp(min=1.0)) for a, b in both)
