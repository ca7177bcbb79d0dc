"""core/shards.py: a model of which each of several processes holds a part.

In: a model on the meta device, which has no weights yet.  Out: the same model, cut into shards for
training (FSDP) or split for writing (tensor parallelism). Then `place` gives each process its part
of each tensor, and `whole` brings the parts together again. With one process they change nothing.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from core.errors import UserError
from core.model_config import GPTConfig
from core.ranks import count, rank

T = TypeVar("T")


# ---- training ----


def shard(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Leaves each process its shard of the model, one block a unit.

    Weights travel in the dtype of the arithmetic, and gradients in fp32. The gradients of all
    processes are added up, as those of the passes of a step are.
    """
    if count() == 1:
        return
    mesh = mesh_of(device.type, count())
    policy = MixedPrecisionPolicy(dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for unit in [*model.layers, model]:
        fully_shard(unit, mesh=mesh, mp_policy=policy)
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)  # gloo knows no other


def keep_shards(model: nn.Module) -> None:
    """Frees the weights that a forward pass gathered, so that an optimiser sees shards."""
    if isinstance(model, FSDPModule):
        model.reshard()


def share_size(items: int) -> int:
    """How many of a step's items a process takes at most."""
    return math.ceil(items / count())


def my_share(passes: Sequence[T], idle: Callable[[T], T] | None = None) -> list[T]:
    """The passes of this process, of those of a step.

    All shares have one size, since the processes exchange weights in every pass. One that lacks a
    pass makes the first one again, as `idle` changes it.
    """
    most = share_size(len(passes))
    mine = list(passes[rank() :: count()])
    if len(mine) < most:
        mine.append(idle(passes[0]) if idle else passes[0])
    return mine


# ---- writing ----


def check_split(c: GPTConfig, size: int) -> None:
    """Raises UserError where a model cannot be split over groups of so many processes."""
    for name, number in (
        ("processes", count()),
        ("key/value heads", c.num_key_value_heads),
        ("query heads", c.num_attention_heads),
        ("inner numbers of the MLP", c.intermediate_size),
    ):
        if number % size:
            raise UserError(f"--split {size} does not divide {number} {name}; take a divisor.")


def split(model: nn.Module, device: torch.device, size: int) -> None:
    """Splits every block over groups of `size` processes (Megatron, Shoeybi et al. 2019).

    Each has some of the heads and of the MLP's inner numbers: q, k, v, gate and up give a part, and
    o and down add the parts up. Embeddings, head and norms are whole in each.
    """
    if size == 1:
        return
    check_split(model.config, size)
    mesh = mesh_of(device.type, size)
    parts, sums = ColwiseParallel(), RowwiseParallel()
    plan = {f"self_attn.{name}_proj": parts for name in "qkv"}
    plan |= {"self_attn.o_proj": sums, "mlp.down_proj": sums}
    plan |= {"mlp.gate_proj": parts, "mlp.up_proj": parts}
    for block in model.layers:
        parallelize_module(block, mesh, plan)
    model.kv_heads //= size


@functools.cache
def mesh_of(device: str, size: int) -> DeviceMesh:
    """This process's group of `size`. There is one set of groups, however many models it serves."""
    mesh = init_device_mesh(device, (count() // size, size), mesh_dim_names=("copy", "part"))
    return mesh["part"]


# ---- tensors ----


def place(
    tensor: Tensor, parameter: Tensor, device: str | torch.device, dtype: torch.dtype
) -> Tensor:
    """A copy of what this process holds of a tensor: its part where `parameter` has parts."""
    if isinstance(parameter, DTensor):
        mesh, placements = parameter.device_mesh, parameter.placements
        tensor = tensor.to(device, dtype)
        return distribute_tensor(tensor, mesh, placements, src_data_rank=None).clone()
    return tensor.to(device, dtype, copy=True)


def held(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which each process may hold a part. All of them call it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
