"""sample.py: everything the model writes, prompts and answers, through one batched, KV-cached `generate`.

In: a model, token ids, and a key for the randomness.  Out: token ids, and records that carry them.
- What all prompts of a call share (a rubric, a system message) is read once; so is each prompt, however many answers
  it gets: its keys and values are copied into as many slots. Its last token is fed by the first decode step.
- A slot is a row of the cache. A finished one goes to the next request, so short answers do not wait for long ones.
- A token is drawn by inverse CDF with a number that depends on (key, prompt, answer, position) alone, so batch size
  and refill do not change what is drawn.
Left out on purpose: beam search, penalties, paged memory, speculative decoding.

Shapes: B slots, T tokens, V vocabulary, P prompts, N answers a prompt, M largest number of new tokens.

    python sample.py --model runs/toy/M4 "Count up from three to six for Mia."
"""

import copy
import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from config import asking, command, pick_device, pick_dtype
from data import Candidate, Chat, UserError, micro_batches, shared_prefix
from model import GPT, KVCache, Linear, load

READ = 4096  # tokens read in one pass, at most; what they share counted in
LOOKS = (
    32,
    1024,
)  # candidates looked at before the whole vocabulary; the nucleus of nearly every row lies among the first


@dataclass(frozen=True)
class Sampling:
    """How to draw. temperature 0 is greedy; top_p 1 and top_k None keep the whole vocabulary."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    slots: int = 64
    work: Counter = field(
        default_factory=Counter, compare=False, repr=False
    )  # what the calls cost; see cost


def cost(work: Counter) -> str:
    """What was computed, in words. Thrown away: pads that were read, and steps of slots that wrote nothing."""
    told = f"read {work['read'] / max(1, work['prompts']):.0f} tokens a prompt"
    if work["rows"]:
        told += f", wrote {work['written']}, slots {work['written'] / work['rows']:.0%} full"
    wasted = work["pads"] + work["rows"] - work["written"]
    return f"{told}, {wasted / max(1, work['read'] + work['pads'] + work['rows']):.0%} thrown away"


class Completion(NamedTuple):
    tokens: list[int]  # as drawn, EOS included
    finished: bool  # ended by EOS or by the stop rule, not by the limit


# ---- one token ----
def uniforms(names: Sequence[str], count: int) -> Tensor:
    """(len(names), count) numbers in [0, 1): a hash of each name seeds a splitmix64 sequence, number i is its i-th."""
    seeds = [
        int.from_bytes(hashlib.blake2b(n.encode(), digest_size=8).digest(), "little") for n in names
    ]
    with np.errstate(over="ignore"):
        z = np.array(seeds, np.uint64)[:, None] + np.arange(
            1, count + 1, dtype=np.uint64
        ) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return torch.from_numpy(
        ((z ^ (z >> np.uint64(31))) >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24)
    )


def inverse_cdf(weights: Tensor, u: Tensor) -> Tensor:
    """The column where the running sum of a row of weights (B,C) passes u (B,) of its total: (B,)."""
    cdf = weights.cumsum(-1)
    below = cdf[:, -1:].nextafter(cdf.new_zeros(1))  # rounding must not reach past the last weight
    return torch.searchsorted(cdf, (u[:, None] * cdf[:, -1:]).minimum(below), right=True)[:, 0]


def pick(logits: Tensor, u: Tensor, sampling: Sampling) -> Tensor:
    """Draws one token a row by inverse CDF: logits (B,V), u (B,) in [0,1) -> ids (B,).

    top_k first, then top_p within it. Exact: a row whose likeliest tokens hold less than top_p is looked at again, wider.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probs, top_p, top_k = (
        (logits.float() / sampling.temperature).softmax(-1),
        sampling.top_p,
        sampling.top_k,
    )
    if top_p >= 1 and not top_k:
        return inverse_cdf(probs, u)
    best, token = probs.max(-1)
    rows = (best < top_p).nonzero()[:, 0]  # elsewhere the likeliest token alone is the nucleus
    for size in (top_k,) if top_k else (*LOOKS, probs.shape[-1]):
        if not len(rows):
            break
        top, ids = probs[rows].topk(min(size, probs.shape[-1]))  # (rows,C), falling
        if top_k:
            top = top / top.sum(-1, keepdim=True)
        before = top.cumsum(-1) - top  # mass of what is likelier: the first token is always kept
        drawn = inverse_cdf(torch.where(before < top_p, top, 0), u[rows])[:, None]
        enough = (top.sum(-1) >= top_p) | (size >= (top_k or probs.shape[-1]))
        token[rows[enough]] = ids.gather(-1, drawn)[:, 0][enough]
        rows = rows[~enough]
    return token


# ---- many requests ----
def read(
    model: GPT, prompts: Sequence[Sequence[int]], shared: KVCache | None, work: Counter
) -> tuple[KVCache, Tensor | None]:
    """Reads prompts behind the prefix they share: a cache with a row a prompt, and the hidden states (B,T,D), right-padded."""
    cache = KVCache(
        model.config,
        len(prompts),
        device=model.device,
        dtype=model.norm.weight.dtype,
        shared=shared,
    )
    rest = [list(p[cache.start :]) for p in prompts]
    sizes, hidden = torch.tensor([len(r) for r in rest], device=model.device), None
    if width := max(map(len, rest)):
        hidden = model(
            torch.tensor([r + [0] * (width - len(r)) for r in rest], device=model.device), cache
        )
    cache.lengths += sizes
    work.update(read=sum(map(len, rest)), pads=width * len(rest) - sum(map(len, rest)))
    return cache, hidden


def read_shared(model: GPT, prompts: Sequence[Sequence[int]], work: Counter) -> KVCache | None:
    """What all prompts begin with, read once: a cache of one row that theirs stand behind."""
    work.update(prompts=len(prompts))
    if 2 * len(prompts) * (size := shared_prefix(prompts)) < sum(map(len, prompts)):
        return None  # a short one is not worth matrix products of its own at every step
    cache, _ = read(model, [prompts[0][:size]], None, work)
    cache.k, cache.v = (
        x[:, :, :, :size].contiguous() for x in (cache.k, cache.v)
    )  # no room for more
    return cache


class Slots:
    """The rows being decoded: a cache, and for each row its request, its next input, its numbers and what it wrote."""

    def __init__(self, model: GPT, rows: int, limit: int, shared: KVCache | None):
        self.cache = KVCache(
            model.config, rows, device=model.device, dtype=model.norm.weight.dtype, shared=shared
        )
        self.owner: list[tuple[int, int] | None] = [None] * rows  # (prompt, answer)
        self.input = torch.zeros(rows, dtype=torch.long, device=model.device)
        self.count, self.live = (
            self.input.clone(),
            self.input.bool(),
        )  # tokens written; whether the row is in use
        self.u = torch.zeros(rows, limit, device=model.device)
        self.out = self.u.long()

    def admit(
        self,
        requests: list[tuple[int, int]],
        inputs: list[int],
        u: Tensor,
        read: KVCache,
        sources: list[int],
    ) -> None:
        """Gives free rows to `requests`, whose prompts are the rows `sources` of the cache `read`."""
        rows = [row for row, owner in enumerate(self.owner) if owner is None][: len(requests)]
        at = torch.tensor(rows, device=self.input.device)
        self.cache.put(at, read, torch.tensor(sources, device=at.device))
        self.input[at] = torch.tensor(inputs, device=at.device)
        self.count[at], self.live[at], self.u[at] = 0, True, u.to(at.device)
        for row, request in zip(rows, requests):
            self.owner[row] = request

    def step(self, model: GPT, sampling: Sampling) -> Tensor:
        """One token for every row: (B,). Rows that are not live are computed and ignored."""
        hidden = model(self.input[:, None], self.cache)[:, -1]  # (B,1) -> (B,D)
        at = self.count.clamp(max=self.u.shape[1] - 1)[:, None]
        tokens = pick(model.logits(hidden), self.u.gather(1, at)[:, 0], sampling)
        self.out.scatter_(1, at, tokens[:, None])
        self.cache.lengths += self.live
        self.count += self.live
        self.input = tokens
        return tokens

    def release(self, done: Tensor) -> list[tuple[tuple[int, int], list[int], int]]:
        """Frees the rows of `done` (B,) bool: (request, its tokens, its row) of each."""
        rows = done.nonzero()[:, 0].tolist()
        found = [
            (self.owner[row], self.out[row, : int(self.count[row])].tolist(), row) for row in rows
        ]
        for row in rows:
            self.owner[row] = None
        self.live &= ~done
        self.cache.lengths[done] = 0  # attention reads as far as the longest row that is in use
        return found

    def shrink(self) -> None:
        """Drops the rows that are free; for the end of a call, when no request is waiting."""
        rows = self.live.nonzero()[:, 0]
        self.cache.keep(rows)
        self.owner = [self.owner[r] for r in rows.tolist()]
        self.input, self.count, self.live, self.u, self.out = (
            x[rows] for x in (self.input, self.count, self.live, self.u, self.out)
        )


def stopped(slots: Slots, tokens: Tensor, chat: Chat, stop: Callable[[str], bool]) -> Tensor:
    """(B,) bool: rows whose text the stop rule accepts. It is asked only after a token that holds a line break."""
    found, breaks = torch.zeros_like(slots.live), chat.newline.to(tokens.device)
    for row in (slots.live & breaks[tokens.clamp(max=len(breaks) - 1)]).nonzero()[:, 0].tolist():
        found[row] = stop(chat.decode(slots.out[row, : int(slots.count[row])].tolist()))
    return found


def refill(
    model: GPT,
    slots: Slots,
    group: Sequence[int],
    prompts: Sequence[Sequence[int]],
    name: Callable[[int, int], str],
    n: int,
    work: Counter,
) -> None:
    """Reads a group of prompts, and puts n requests for each into free slots."""
    requests = [(p, s) for p in group for s in range(n)]
    numbers = uniforms([name(p, s) for p, s in requests], slots.u.shape[1])
    cache, _ = read(
        model, [prompts[p][:-1] for p in group], slots.cache.shared, work
    )  # the last token: by the first step
    slots.admit(
        requests,
        [prompts[p][-1] for p, _ in requests],
        numbers,
        cache,
        [i for i in range(len(group)) for _ in range(n)],
    )


@torch.inference_mode()
def generate(
    model: GPT,
    chat: Chat,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    key: str,
    n: int = 1,
    names: Sequence[str] | None = None,
    stop: Callable[[str], bool] | None = None,
    on_token: Callable[[int], None] | None = None,
    label: str | None = None,
) -> list[list[Completion]]:
    """N completions for each of P prompts (token ids): a list of P lists of N.

    `key` names the randomness, together with the prompt's name (its index, unless `names` says otherwise) and the
    sample number. `stop` is asked with the text so far whenever a line ends; True finishes the answer. `on_token` sees
    each token of slot 0 as it is drawn. `label` shows a progress bar. Raises UserError where a prompt leaves no room.
    """
    if not prompts:
        return []
    longest, limit = max(map(len, prompts)), sampling.max_new_tokens
    if longest + limit > model.config.max_position_embeddings:
        raise UserError(
            f"a prompt of {longest} tokens and {limit} new ones do not fit the model's context of "
            f"{model.config.max_position_embeddings}; shorten the prompt or lower the limit."
        )
    work, lengths, rows = (
        sampling.work,
        list(map(len, prompts)),
        min(max(sampling.slots, n), n * len(prompts)),
    )
    waiting = micro_batches(
        range(len(prompts)), lengths, READ, most=max(1, rows // (8 * n))
    )  # the longest are read first
    slots = Slots(model, rows, limit, read_shared(model, prompts, work))
    ends = torch.zeros(model.config.vocab_size, dtype=torch.bool, device=model.device)
    ends[chat.eos_ids] = True
    found: list[list[Completion | None]] = [[None] * n for _ in prompts]
    called = lambda p, s: f"{key} {names[p] if names else p} {s}"
    bar = tqdm(
        total=n * len(prompts),
        desc=label,
        unit="text",
        leave=False,
        disable=None if label else True,
    )
    while waiting or slots.live.any():
        while waiting and n * len(waiting[-1]) <= slots.owner.count(None):
            refill(model, slots, waiting.pop(), prompts, called, n, work)
        work.update(rows=len(slots.owner), written=int(slots.live.sum()))
        tokens = slots.step(model, sampling)
        if on_token:
            on_token(int(tokens[0]))
        ended = ends[tokens] | stopped(slots, tokens, chat, stop) if stop else ends[tokens]
        for (p, s), text, row in slots.release(slots.live & (ended | (slots.count == limit))):
            found[p][s] = Completion(text, bool(ended[row]))
            bar.update()
        if not waiting and 8 * int(slots.live.sum()) <= 7 * len(slots.owner):
            slots.shrink()
    bar.close()
    return found


@torch.no_grad()
def pack(model: GPT) -> GPT:
    """Lays out the weights of a model that only writes for oneDNN, once; F.linear does so at every call, half of a step.

    By private operators of torch, so each is tried against the plain product; what is missing or differs stays plain.
    """
    if model.device.type == "cpu" and torch.backends.mkldnn.is_available():
        if model.lm_head is None:
            model.lm_head = Linear(
                model.config.hidden_size, model.config.vocab_size, bias=False, device="meta"
            )
            model.lm_head.weight = model.embed_tokens.weight
        for linear in (m for m in model.modules() if isinstance(m, Linear)):
            probe = linear.weight[:2]  # (2,in)
            plain = linear(probe)
            try:
                linear.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight, 64)
                same = torch.allclose(
                    linear(probe).float(),
                    plain.float(),
                    rtol=2e-2,
                    atol=1e-2 * float(plain.abs().max()),
                )
            except (AttributeError, RuntimeError):
                same = False
            if same:
                linear.weight = None
            else:
                linear.packed = None
    return model


def writer(folder: str, device: torch.device, dtype: torch.dtype | None = None) -> tuple[GPT, Chat]:
    """A model that stays as it is, ready to write, and its prompt format; without `dtype`, in what the device multiplies fastest."""
    return pack(load(folder, device=device, dtype=dtype or pick_dtype("auto", device))), Chat(
        folder
    )


def sampling_copy(model: GPT, dtype: torch.dtype) -> GPT:
    """The weights to write with: a copy of the model in `dtype`, laid out for this processor."""
    return pack(copy.deepcopy(model).to(dtype).eval())


@torch.inference_mode()
def next_probs(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    wanted: Sequence[int],
    *,
    slots: int,
    work: Counter | None = None,
    label: str | None = None,
) -> Tensor:
    """p(the next token is w) for each of the `wanted` ids after each prompt, in one forward pass a prompt: (P,W), fp32."""
    if not prompts:
        return torch.zeros(0, len(wanted))
    work, probs = Counter() if work is None else work, torch.zeros(len(prompts), len(wanted))
    shared = read_shared(model, prompts, work)
    batches = micro_batches(range(len(prompts)), list(map(len, prompts)), READ, most=slots)
    for rows in tqdm(batches, desc=label, leave=False, disable=None if label else True):
        cache, hidden = read(model, [prompts[p] for p in rows], shared, work)
        last = hidden[torch.arange(len(rows)), cache.lengths - 1]  # (B,T,D) -> (B,D)
        probs[rows] = model.logits(last).float().softmax(-1)[:, list(wanted)].cpu()
    return probs


# ---- answers ----
def respond(
    model: GPT,
    chat: Chat,
    prompts: Sequence[str],
    sampling: Sampling,
    *,
    key: str,
    n: int,
    label: str | None = "answers",
) -> list[Candidate]:
    """{x_i} -> {y_i^1 .. y_i^N}: N answers to each prompt, prompt by prompt."""
    groups = generate(
        model, chat, [chat.prompt(p) for p in prompts], sampling, key=key, n=n, label=label
    )
    return [
        Candidate(i, s, prompts[i], chat.decode(c.tokens).strip(), c.tokens, c.finished)
        for i, group in enumerate(groups)
        for s, c in enumerate(group)
    ]


# ---- command line: ask any M_t ----
def say(model: GPT, chat: Chat, messages: list[dict], sampling: Sampling, key: str) -> str:
    """Streams one answer to the terminal and returns it."""
    tokens, shown = [], ""

    def show(token: int) -> None:
        nonlocal shown
        tokens.append(token)
        text = chat.decode(tokens).rstrip("\ufffd")  # half of a character: wait for the rest
        print(text[len(shown) :], end="", flush=True)
        shown = text

    generate(model, chat, [chat.render(messages)], sampling, key=key, on_token=show)
    print()
    return shown.strip()


def main() -> None:
    parser = asking(
        "Ask a model, or chat with it.", model="a Hugging Face directory, for example runs/toy/M4"
    )
    parser.add_argument("question", nargs="?", help="one question; without it, an interactive chat")
    args = parser.parse_args()
    (model, chat), messages = writer(args.model, pick_device(args.device)), []
    sampling = Sampling(args.max_new_tokens, args.temperature, args.top_p)
    if args.question:
        say(model, chat, [{"role": "user", "content": args.question}], sampling, f"{args.seed}")
        return
    print("Chat with", args.model, "- an empty line starts anew, Ctrl-D ends.")
    print("> ", end="", flush=True)
    for line in sys.stdin:
        messages = messages + [{"role": "user", "content": line.strip()}] if line.strip() else []
        if messages:
            messages.append(
                {
                    "role": "assistant",
                    "content": say(model, chat, messages, sampling, f"{args.seed} {len(messages)}"),
                }
            )
        print("> ", end="", flush=True)
    print()


if __name__ == "__main__":
    command(main)
