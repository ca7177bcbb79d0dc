"""core/device.py: what depends on the machine: devices, precision, memory.

In: names from the command line.  Out: torch devices and dtypes.
"""

import contextlib
import ctypes

import torch

from core.errors import UserError

M_TRIM_THRESHOLD = -1  # names of glibc's mallopt(3)
M_MMAP_THRESHOLD = -3


def pick_device(name: str) -> torch.device:
    """A device by name; "auto" is CUDA, else MPS, else the CPU.

    Raises UserError where it is not there.
    """
    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if torch.cuda.is_available():
        available.insert(0, "cuda")
    if name == "auto":
        return torch.device(available[0])
    if name.split(":")[0] not in available:
        raise UserError(
            f"device {name!r} is not available here; use one of auto, {', '.join(available)}."
        )
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The precision of the arithmetic: "auto", "fp32" or "bf16". Raises UserError for another name.

    "auto" is bf16 where the hardware multiplies it (CUDA, CPUs with AMX or AVX512-BF16), else fp32.
    """
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if name == "auto":
        return torch.bfloat16 if multiplies_bf16(device) else torch.float32
    if name not in dtypes:
        raise UserError(f"dtype {name!r} is not known; use auto, fp32 or bf16.")
    return dtypes[name]


def multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    if device.type == "cpu":
        return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return False


def precision(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Arithmetic in `dtype` over fp32 weights: at lr 1e-6 a bf16 weight would not move."""
    bf16 = dtype == torch.bfloat16
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16)


def prepare_machine() -> None:
    """What every command that computes does first."""
    torch.set_flush_denormal(True)
    keep_memory()


def keep_memory() -> None:
    """Lets glibc keep the memory that is freed.

    Else each large tensor is new memory, and the first touch of it costs a third of a training
    step.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 1 << 30)  # tensors below 1 GB come from the heap
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)  # and the heap is not given back
