"""core/device.py: what depends on the machine: devices, precision, memory.

In: names from the command line.  Out: torch devices and dtypes.
"""

import contextlib
import ctypes
import os
import shutil
from pathlib import Path

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
        name = available[0]
    if name.split(":")[0] not in available:
        raise UserError(
            f"device {name!r} is not available here; use one of auto, {', '.join(available)}."
        )
    if name == "cuda" and "LOCAL_RANK" in os.environ:  # torchrun: a GPU for each process
        name = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(name)
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


def waits_cost_nothing(device: torch.device) -> bool:
    """Whether program and device take turns anyway. A GPU works on a queue, which would run dry."""
    return device.type == "cpu"


def free_memory(device: torch.device) -> int | None:
    """Bytes that a program could still take there; None where nobody says it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return entry_of("/proc/meminfo", "MemAvailable")


def take_peak() -> int | None:
    """The most bytes held at once since the last call; None where nobody says it.

    Of a GPU what tensors took, else what the process took.
    """
    if torch.cuda.is_initialized():
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return peak
    peak = entry_of("/proc/self/status", "VmHWM")
    # what was freed is given back, else the next stage would show it
    glibc_call("malloc_trim", 0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    return peak


def entry_of(path: str, wanted: str) -> int | None:
    """Bytes, from a file of lines "name: number kB"; None where there is none."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:  # no Linux
        return None
    for line in lines:
        name, _, rest = line.partition(":")
        if name == wanted:
            return 1024 * int(rest.split()[0])
    return None


def free_cache() -> None:
    """Gives back what torch keeps for later: cuBLAS takes its memory past torch."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def check_memory(needed: int, device: torch.device, what: str) -> None:
    """Raises UserError where so many bytes are not free."""
    free = free_memory(device)
    if free is not None and needed > free:
        raise UserError(
            f"{what} needs {needed / 2**30:.1f} GB, of which {free / 2**30:.1f} are free on "
            f"{device}; take a smaller model or another device."
        )


def check_disk(folder: Path, needed: int) -> None:
    """Raises UserError where so many bytes do not fit onto the disk of a folder to be."""
    folder = folder.resolve()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"the models of this run need {needed / 2**30:.1f} GB, of which {free / 2**30:.1f} are "
            f"free on the disk of {folder}; make room, or lower --iters."
        )


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
    step. But the memory gets holes. Who lacks memory sets MALLOC_MMAP_THRESHOLD_=1000000 before the
    command, and this leaves it as it is (docs/scale.md).
    """
    if "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return
    glibc_call("mallopt", M_MMAP_THRESHOLD, 1 << 30)  # tensors below 1 GB come from the heap
    glibc_call("mallopt", M_TRIM_THRESHOLD, (1 << 31) - 1)  # and the heap is not given back


def glibc_call(name: str, *numbers: int) -> None:
    """Calls a function of the C library, where it has one of this name."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        getattr(ctypes.CDLL(None), name)(*numbers)


# ---- random numbers of training (dropout) ----


def random_states() -> dict[str, torch.Tensor]:
    """Where torch's generators stand."""
    states = {"random": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["random cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random_states(states: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(states["random"])
    if "random cuda" in states:
        torch.cuda.set_rng_state(states["random cuda"])
