"""Where and in what precision a run computes: chosen with a reason, printed, and always overridable.

Nothing here changes a setting of the process by being imported; `use_fast_cpu` is called by the command only.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

MOST_THREADS = 1024  # where a system cannot start as many as asked for, torch ends the process without a word


class Setting(NamedTuple):
    """A choice and the reason for it, to be printed together."""

    value: str
    reason: str


def choose_device(asked: str = "auto") -> Setting:
    """The fastest device present, or the one asked for. Raises `ValueError` where torch does not know or have it."""
    if asked == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return Setting(str(found), f"{found} is available") if found else Setting("cpu", "no accelerator is available")
    try:
        torch.empty(0, device=asked).to("cpu")
    except (RuntimeError, AssertionError, ImportError):
        raise ValueError(f"device {asked!r} is not available here; use 'auto' or 'cpu'") from None
    return Setting(asked, "you asked for it")


def choose_precision(device: str, asked: str = "auto") -> Setting:
    """bf16 where the hardware multiplies it faster than fp32, else fp32."""
    if asked not in ("auto", "fp32", "bf16"):
        raise ValueError(f"precision must be 'auto', 'fp32' or 'bf16', not {asked!r}")
    if asked != "auto":
        return Setting(asked, "you asked for it")
    kind = torch.device(device).type
    if kind == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        return (
            Setting("bf16", "this GPU multiplies it natively") if fast else Setting("fp32", "this GPU has no fast bf16")
        )
    if kind == "cpu":
        able = [name for name in ("avx512_bf16", "amx_bf16") if torch.cpu.get_capabilities().get(name)]
        return Setting("bf16", f"this CPU has {able[0]}") if able else Setting("fp32", "this CPU has no fast bf16")
    return Setting("fp32", f"bf16 was not tried on {kind}")


def use_fast_cpu(threads: int | None = None) -> list[Setting]:
    """Sets the process's threads and float32 kernel for small models on a CPU, and says what was set.

    More than four threads wait for each other longer than they compute at these sizes. oneDNN's float32 products are the
    faster ones on many CPUs, but where a CPU has AMX they may round to bf16; so exactness is measured, not assumed.
    """
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise ValueError(f"threads must be at least 1 and at most {MOST_THREADS}, not {threads}")
    torch.set_num_threads(threads or min(4, torch.get_num_threads()))
    set_to = torch.get_num_threads()
    why = "you asked for it" if threads else "small models gain no more" if set_to == 4 else "all that torch finds"
    said = [Setting(f"{set_to} thread{'s' * (set_to != 1)}", why)]
    torch.set_float32_matmul_precision("medium")
    if products_are_exact():
        said.append(Setting("fp32 by oneDNN", "measured to be exact float32 here"))
    else:
        torch.set_float32_matmul_precision("highest")
    return said


def products_are_exact() -> bool:
    """Whether a float32 matrix product here is as good as float32 allows, compared with float64."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 128, 128, generator=generator)
    return bool(((a @ b).double() - a.double() @ b.double()).abs().max() < 1e-4)


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """The context of a forward pass: bf16 matrix products with float32 weights, or plain float32."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def move(x: Tensor, device: torch.device) -> Tensor:
    """`x` on `device`; from the CPU to a GPU without making the CPU wait."""
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)
