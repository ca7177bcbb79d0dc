"""core/cache.py: what a model has read, so that it need not read it again.

In: keys and values of each layer, as the forward pass makes them.  Out: all that attention looks
at. Left out on purpose: pages of memory, and caches that stay on the model.

Shapes: B rows, T new tokens, S tokens that a row holds, R tokens that all rows share,
G key/value heads, K width of a head.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

CACHE_STEP = 32  # a cache grows by so many tokens


class Memory(NamedTuple):
    """The keys and values that the queries of one layer look at."""

    k: Tensor  # (B,G,S,K)
    v: Tensor  # (B,G,S,K)
    # What stands before every row, where all rows share a beginning:
    shared_k: Tensor | None = None  # (G,R,K)
    shared_v: Tensor | None = None  # (G,R,K)


class KVCache:
    """Keys and values of B rows. Row b holds `lengths[b]` tokens, and none more than `longest`.

    All rows may stand behind `shared`, a cache of one row, whose tokens are kept and read once.
    The cache is an argument of the forward pass, never state of the model. Memory and attention
    reach as far as the longest row, rounded up to CACHE_STEP. `longest` is a number, so a pass
    need not wait for the device to know its shapes, and they change once in CACHE_STEP tokens.
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        *,
        device: torch.device,
        dtype: torch.dtype,
        shared: "KVCache | None" = None,
    ):
        layers, rows, groups, width = shape  # layers, B, G, K
        self.k = torch.zeros(layers, rows, groups, 0, width, device=device, dtype=dtype)
        self.v = torch.zeros(layers, rows, groups, 0, width, device=device, dtype=dtype)
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)  # (B,)
        self.longest = 0
        self.shared = shared
        self.start = shared.longest if shared else 0  # position of a row's first own token

    def fit(self, more: int) -> None:
        """Makes room for `more` tokens in every row, and gives back what is no longer needed.

        k and v are made anew and stay contiguous, which attention needs to be fast.
        """
        size = math.ceil((self.longest + more) / CACHE_STEP) * CACHE_STEP
        if size != self.k.shape[3]:
            self.k = resize(self.k, size)
            self.v = resize(self.v, size)

    def advance(self, counts: Tensor, most: int) -> None:
        """Row b holds counts[b] more tokens (B,), of those that a pass wrote; `most` at most."""
        self.lengths += counts
        self.longest += most

    def empty_rows(self, rows: list[int]) -> None:
        """These rows hold nothing any more."""
        self.lengths[rows] = 0
        self.longest = int(self.lengths.max())

    def copy_rows(self, rows: Tensor, other: "KVCache", sources: Tensor) -> None:
        """Copies the rows `sources` of `other` into `rows`. One prompt can so fill many rows."""
        self.lengths[rows] = other.lengths[sources]
        self.longest = max(self.longest, other.longest)
        self.fit(1)
        reach = min(other.k.shape[3], self.k.shape[3])
        self.k[:, rows, :, :reach] = other.k[:, sources, :, :reach]
        self.v[:, rows, :, :reach] = other.v[:, sources, :, :reach]

    def keep_rows(self, rows: Tensor) -> None:
        """Forgets every row that is not listed."""
        self.k = self.k[:, rows]
        self.v = self.v[:, rows]
        self.lengths = self.lengths[rows]

    def write(self, layer: int, k: Tensor, v: Tensor, places: Tensor) -> Memory:
        """Stores k and v (B,T,G,K) of one layer at `places` (B,T). Returns all that is there."""
        rows = torch.arange(len(places), device=k.device)[:, None]
        self.k[layer][rows, :, places] = k
        self.v[layer][rows, :, places] = v
        if self.shared is None:
            return Memory(self.k[layer], self.v[layer])
        shared_k = self.shared.k[layer, 0]
        shared_v = self.shared.v[layer, 0]
        return Memory(self.k[layer], self.v[layer], shared_k, shared_v)


def resize(x: Tensor, size: int) -> Tensor:
    """x (layers,B,G,S,K) with room for `size` tokens: cut, or filled up with zeros."""
    kept = x[:, :, :, :size]
    layers, rows, groups, length, width = kept.shape
    zeros = x.new_zeros(layers, rows, groups, size - length, width)
    return torch.cat((kept, zeros), 3)
