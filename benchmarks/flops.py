"""How many floating-point operations a step takes, and how many a second the device could do at most."""

from collections.abc import Callable
from typing import Any

import torch
from bare_loop import Bare, clock
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

PEAK = {  # dense, from the vendors' data sheets: bf16 and, for float32, TF32
    "H200": (989e12, 494e12),
    "H100 NVL": (835e12, 417e12),
    "H100 PCIe": (756e12, 378e12),
    "H100": (989e12, 494e12),
    "A100": (312e12, 156e12),
    "L40S": (362e12, 183e12),
    "RTX 4090": (165e12, 83e12),
    "RTX 3090": (71e12, 36e12),
}
SIDE = {"cuda": 8192, "mps": 4096, "cpu": 2048}  # of the matrices whose product is timed on a device without an entry
REPEATS = 5


def flops_of(bare: Bare) -> int:
    """Floating-point operations of a forward and a backward pass of one batch; the optimizer is left out."""

    def step() -> None:
        with bare.autocast():
            loss = bare.loss(bare.module, bare.network, bare.batch())
        loss.backward()  # type: ignore[no-untyped-call]

    found = counted(step)
    bare.optimizer.zero_grad()
    return found


def counted(call: Callable[[], Any]) -> int:
    """Operations of a call, counted while it is made.

    Attention counts as its plain matrix products: the fused kernels, and what frozen layers take instead of them, are
    unknown to the counter. ViT-B/16 has 35.1 GFLOP a picture so, ViT-L/14 162.0, as published. The counter's own
    formula for the gradients of a convolution takes one in groups for a full one, which an EfficientNet is full of.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        own = {torch.ops.aten.convolution_backward: convolution_backward_flops}
        with FlopCounterMode(display=False, custom_mapping=own) as counter, sdpa_kernel(SDPBackend.MATH):
            call()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops())


def convolution_backward_flops(grad_shape: Any, x_shape: Any, w_shape: Any, *options: Any, **out: Any) -> int:
    """Each of the two gradients that are asked for costs what the forward pass did."""
    *_, transposed, _, _, wanted = options  # bias sizes, stride, padding, dilation; output padding, groups
    return sum(wanted[:2]) * int(conv_flop_count(x_shape, w_shape, grad_shape, transposed=transposed))


def peak_of(device: torch.device, bf16: bool) -> tuple[float, str]:
    """Operations a second at most, and where that figure comes from."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known, (half, single) in PEAK.items():
            if known in name:
                return (half if bf16 else single), f"{known}'s data sheet"
    return measured_peak(device, torch.bfloat16 if bf16 else torch.float32), "a measured matrix product"


def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """The best of a few large matrix products."""
    side = SIDE.get(device.type, 2048)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = [_seconds(lambda: a @ b) for _ in range(REPEATS)]
    return 2 * side**3 / min(seconds[1:])


def _seconds(call: Callable[[], Any]) -> float:
    start = clock()
    call()
    return clock() - start
