"""core/ranks.py: the processes that torchrun starts work as one program.

In: work that can be cut into shares.  Out: the results of all, in every process.
Every process runs the same program on the same rows. Each writes and judges its share (`in_shares`)
with a model of its own, and holds its shard of what is trained (core/shards.py). Only the first one
writes files (`first_only`) and speaks. Without torchrun there is one process, and no group.
Left out on purpose: whatever torch.distributed has. Texts and scores travel as Python objects.
"""

import functools
import inspect
import os
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TypeVar

from core.errors import UserError

T = TypeVar("T")
# torch.distributed, once there is a group. Small commands, which have none, import no torch.
dist = None


def join() -> None:
    """Joins the other processes, where torchrun started this one."""
    global dist
    if "TORCHELASTIC_RUN_ID" not in os.environ or dist is not None:
        return
    import torch.distributed as dist

    # Objects travel over gloo, tensors of GPUs over NCCL.
    backend = "cpu:gloo,cuda:nccl" if dist.is_nccl_available() else "gloo"
    # torchrun sees a process that died; a process that waits for a long share is not dead.
    dist.init_process_group(backend, timeout=timedelta(days=1))


def leave() -> None:
    """Ends the group, once all work is done."""
    if dist is not None:
        dist.destroy_process_group()


def count() -> int:
    """How many processes there are."""
    return 1 if dist is None else dist.get_world_size()


def rank() -> int:
    """Which of them this is; 0 is the first one."""
    return 0 if dist is None else dist.get_rank()


def exchange(value: T) -> list[T]:
    """The values of all processes. Each waits for the others here.

    Raises UserError where one of them has ended.
    """
    if dist is None:
        return [value]
    values: list = [None] * count()
    try:
        dist.all_gather_object(values, value)
    except RuntimeError as error:
        raise UserError(
            f"another process of this run has ended, and torchrun says which ({error}); the same "
            f"command goes on."
        ) from None
    return values


def first_only(function: Callable[..., None]) -> Callable[..., None]:
    """A function that only the first process runs: it writes files. The others wait for it.

    They wait before it, too: so all have looked at the files that are there.
    """

    @functools.wraps(function)
    def in_turn(*args, **kwargs) -> None:
        exchange(None)
        if rank() == 0:
            function(*args, **kwargs)
        exchange(None)

    return in_turn


def in_shares(*names: str) -> Callable[[Callable[..., list]], Callable[..., list]]:
    """A function of a writer, which each process runs on its share of its work.

    `names` are those of its arguments that are cut: lists of one length. It returns one result for
    each item. All processes get the results of all, in order, and the meter counts them all.
    """

    def decorate(function: Callable[..., list]) -> Callable[..., list]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def shared(*args, **kwargs) -> list:
            if count() == 1:
                return function(*args, **kwargs)
            return share_out(function, signature.bind(*args, **kwargs).arguments, names)

        return shared

    return decorate


def share_out(function: Callable[..., list], given: dict, names: Sequence[str]) -> list:
    """The work of `in_shares`. `given` are all arguments by name."""
    # 1) a share for each process, or for each group that has one copy of the model
    items = given[names[0]]
    writer = given["writer"]
    size = writer.group_size
    costs = [tokens_in(item) + tokens_to_write(given) for item in items]
    shares = deal(costs, count() // size)
    numbers = shares[rank() // size]
    mine = {}
    for name in names:
        mine[name] = [given[name][i] for i in numbers]
    # 2) its work, metered apart
    total = writer.work
    writer.work = type(total)()
    started = time.time()
    found = function(**(given | mine))
    writer.work.seconds = [0.0] * (rank() // size) + [time.time() - started]
    # 3) the results and the work of all
    results: list = [None] * len(items)
    found_by_all = exchange((found, writer.work))[::size]
    for share, (theirs, work) in zip(shares, found_by_all, strict=True):
        total.add(work)
        for number, result in zip(share, theirs, strict=True):
            results[number] = result
    writer.work = total
    return results


def tokens_in(item: int | Sequence) -> int:
    """Token ids in lists of any depth: a prompt, or a group of examples."""
    return 1 if isinstance(item, int) else sum(map(tokens_in, item))


def tokens_to_write(given: dict) -> int:
    """The most tokens that may be written for an item; 0 where nothing is."""
    sampling = given.get("sampling")
    return sampling.n * sampling.max_new_tokens if sampling else 0


def deal(costs: Sequence[float], shares: int) -> list[list[int]]:
    """The numbers of the items, in shares that cost alike: the dearest first, to the cheapest."""
    dealt: list[list[int]] = [[] for _ in range(shares)]
    totals = [0.0] * shares
    for number in sorted(range(len(costs)), key=lambda i: -costs[i]):
        cheapest = totals.index(min(totals))
        dealt[cheapest].append(number)
        totals[cheapest] += costs[number]
    return [sorted(share) for share in dealt]
