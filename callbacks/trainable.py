"""Makes a module agree with a set of trainable parameters, again and again without harm."""

import sys
from collections.abc import Set as AbstractSet

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from .evaluation import check_choice

BATCHNORM = ("frozen_eval", "batch_stats", "train")


def set_trainable(module: nn.Module, names: AbstractSet[str]) -> None:
    """Sets ``requires_grad`` of every parameter.

    A frozen parameter loses its gradient: a stale one of zeros would let weight decay move it.
    """
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in names)
        if name not in names:
            parameter.grad = None


def clear_gradients(module: nn.Module) -> None:
    """Drops all gradients: an accumulation window restarts when the trainable set or the weights change."""
    for parameter in module.parameters():
        parameter.grad = None


def rewrap(trainer: Trainer) -> None:
    """Builds the DDP wrapper anew: it reduces only the parameters that were trainable when it was built.

    Where none is, there is nothing to reduce, and torch refuses to wrap.
    """
    strategy, module = trainer.strategy, trainer.lightning_module
    trains = any(parameter.requires_grad for parameter in module.parameters())
    if trains and isinstance(strategy, DDPStrategy) and isinstance(strategy.model, DistributedDataParallel):
        strategy.model = module
        strategy.configure_ddp()
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


class BatchNormGuard:
    """Keeps the batch normalisation of frozen parts as it should be, whoever calls ``train()``.

    Args:
        mode: ``frozen_eval`` (frozen layers use and keep their running statistics), ``batch_stats`` (frozen layers use
            the statistics of the batch and keep their running ones) or ``train`` (left alone).
    """

    def __init__(self, mode: str) -> None:
        check_choice("batchnorm", mode, BATCHNORM)
        self.mode = mode
        self._held: dict[_BatchNorm, RemovableHandle | None] = {}
        self._released: list[_BatchNorm] = []

    def apply(self, module: nn.Module) -> None:
        """Holds the layers whose parameters are all frozen and releases the others."""
        if self.mode == "train":
            return
        frozen = set(frozen_batchnorms(module))
        for layer in set(self._held) - frozen:
            self._release(layer)
        for layer in frozen:
            if layer not in self._held:
                self._held[layer] = self._hold(layer)
            if self.mode == "frozen_eval":
                layer.training = False

    def resume_training(self) -> None:
        """Puts released layers into train mode: Lightning restores the mode of before a validation after it."""
        for layer in self._released:
            layer.train()
        self._released.clear()

    def release_all(self) -> None:
        """Lets go of every layer."""
        for layer in list(self._held):
            self._release(layer)
        self.resume_training()

    def _hold(self, layer: _BatchNorm) -> RemovableHandle | None:
        if self.mode == "batch_stats":
            layer.track_running_stats = False
            return None
        # a hook, because a module may call `self.train()` between any hook of Lightning and its forward
        return layer.register_forward_pre_hook(_to_eval)

    def _release(self, layer: _BatchNorm) -> None:
        handle = self._held.pop(layer)
        if handle is None:
            layer.track_running_stats = True
        else:
            handle.remove()
            self._released.append(layer)


def frozen_batchnorms(module: nn.Module) -> list[_BatchNorm]:
    """Batch normalisation of every kind that has running statistics and nothing trainable.

    A layer without parameters of its own follows the nearest module around it that has some.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).requires_grad_(False)
    >>> frozen_batchnorms(net) == [net[1]]
    True
    """
    modules = dict(module.named_modules())
    found = []
    for name, layer in modules.items():
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None:
            around = name
            while around and not any(True for _ in modules[around].parameters()):
                around = around.rpartition(".")[0]
            if not any(parameter.requires_grad for parameter in modules[around].parameters()):
                found.append(layer)
    return found


def _to_eval(layer: nn.Module, _: object) -> None:
    layer.training = False
