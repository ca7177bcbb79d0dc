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
import random
import sys
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data import Candidate, Chat, Text, Texts, UserError, asking, command
from model import GPT, KVCache, load, pick_device, pick_dtype

TOP = 32                # candidates looked at first; the nucleus of nearly every row lies among them


@dataclass(frozen=True)
class Sampling:
    """How to draw. temperature 0 is greedy; top_p 1 and top_k None keep the whole vocabulary."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    slots: int = 64


class Completion(NamedTuple):
    tokens: list[int]           # as drawn, EOS included
    finished: bool              # ended by EOS or by the stop rule, not by the limit


# ---- one token ----
def uniforms(names: Sequence[str], count: int) -> Tensor:
    """(len(names), count) numbers in [0, 1): a hash of each name seeds a splitmix64 sequence, number i is its i-th."""
    seeds = [int.from_bytes(hashlib.blake2b(n.encode(), digest_size=8).digest(), "little") for n in names]
    with np.errstate(over="ignore"):
        z = np.array(seeds, np.uint64)[:, None] + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return torch.from_numpy(((z ^ (z >> np.uint64(31))) >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24))


def nucleus(probs: Tensor, *, top_p: float, top_k: int | None) -> tuple[Tensor, Tensor]:
    """Probabilities (B,V) -> those kept (B,C), in falling order, 0 outside the kept set, and their token ids (B,C).

    top_k first, then top_p within it. Exact: where the first TOP tokens hold less than top_p, whole rows are sorted.
    """
    top, ids = probs.topk(min(top_k or TOP, probs.shape[-1]))
    if top_k:
        top = top / top.sum(-1, keepdim=True)
    elif (top.sum(-1) < top_p).any():
        top, ids = probs.sort(-1, descending=True)
    before = top.cumsum(-1) - top                       # mass of what is likelier: the first token is always kept
    return torch.where(before < top_p, top, 0), ids


def inverse_cdf(probs: Tensor, u: Tensor) -> Tensor:
    """The column where the running sum of a row of weights (B,C) passes u (B,) of its total: (B,1)."""
    cdf = probs.cumsum(-1)
    last = (probs > 0).long().cumsum(-1).argmax(-1, keepdim=True)       # rounding must not reach past the last weight
    return torch.searchsorted(cdf, u[:, None] * cdf[:, -1:], right=True).minimum(last)


def pick(logits: Tensor, u: Tensor, sampling: Sampling) -> Tensor:
    """Draws one token a row by inverse CDF: logits (B,V), u (B,) in [0,1) -> ids (B,)."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probs = (logits.float() / sampling.temperature).softmax(-1)
    if sampling.top_p >= 1 and not sampling.top_k:
        return inverse_cdf(probs, u)[:, 0]
    best, token = probs.max(-1)
    rows = (best < sampling.top_p).nonzero()[:, 0]      # elsewhere the likeliest token alone is the nucleus
    if len(rows):
        kept, ids = nucleus(probs[rows], top_p=sampling.top_p, top_k=sampling.top_k)
        token[rows] = ids.gather(-1, inverse_cdf(kept, u[rows]))[:, 0]
    return token


# ---- many requests ----
def shared_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """How many leading tokens all prompts share, the last token of each left out."""
    first, last = min(prompts), max(prompts)            # lexicographic extremes share what all share
    size = min(map(len, prompts)) - 1
    return next((i for i in range(size) if first[i] != last[i]), size)


def prefill(model: GPT, prompts: Sequence[Sequence[int]], prefix: KVCache | None) -> KVCache:
    """Reads prompts, all but their last token, behind the shared prefix: a cache with a row a prompt, and room for that token."""
    start, device = int(prefix.lengths[0]) if prefix else 0, model.device
    rest = [list(p[start:-1]) for p in prompts]
    width, rows = max(map(len, rest)), torch.arange(len(rest), device=device)
    cache = KVCache(model.config, len(rest), start + width + 1, device=device, dtype=model.norm.weight.dtype)
    if prefix:
        cache.put(rows, prefix, torch.zeros_like(rows))
    if width:
        model(torch.tensor([r + [0] * (width - len(r)) for r in rest], device=device), cache)
        cache.lengths += torch.tensor([len(r) for r in rest], device=device)
    return cache


class Slots:
    """The rows being decoded: a cache, and for each row its request, its next input, its numbers and what it wrote."""

    def __init__(self, model: GPT, rows: int, capacity: int, limit: int):
        self.cache = KVCache(model.config, rows, capacity, device=model.device, dtype=model.norm.weight.dtype)
        self.owner: list[tuple[int, int] | None] = [None] * rows            # (prompt, answer)
        self.input = torch.zeros(rows, dtype=torch.long, device=model.device)
        self.count, self.live = self.input.clone(), self.input.bool()       # tokens written; whether the row is in use
        self.u = torch.zeros(rows, limit, device=model.device)
        self.out = self.u.long()

    def admit(self, requests: list[tuple[int, int]], inputs: list[int], u: Tensor, read: KVCache, sources: list[int]) -> None:
        """Gives free rows to `requests`, whose prompts are the rows `sources` of the cache `read`."""
        rows = [row for row, owner in enumerate(self.owner) if owner is None][:len(requests)]
        at = torch.tensor(rows, device=self.input.device)
        self.cache.put(at, read, torch.tensor(sources, device=at.device))
        self.input[at] = torch.tensor(inputs, device=at.device)
        self.count[at], self.live[at], self.u[at] = 0, True, u.to(at.device)
        for row, request in zip(rows, requests):
            self.owner[row] = request

    def step(self, model: GPT, sampling: Sampling) -> Tensor:
        """One token for every row: (B,). Rows that are not live are computed and ignored."""
        hidden = model(self.input[:, None], self.cache)[:, -1]              # (B,1) -> (B,D)
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
        found = [(self.owner[row], self.out[row, :int(self.count[row])].tolist(), row) for row in rows]
        for row in rows:
            self.owner[row] = None
        self.live &= ~done
        self.cache.lengths[done] = 0            # attention reads as far as the longest row that is in use
        return found

    def shrink(self) -> None:
        """Drops the rows that are free; for the end of a call, when no request is waiting."""
        rows = self.live.nonzero()[:, 0]
        self.cache.keep(rows)
        self.owner = [self.owner[r] for r in rows.tolist()]
        self.input, self.count, self.live, self.u, self.out = (x[rows] for x in (self.input, self.count, self.live, self.u, self.out))


def stopped(slots: Slots, tokens: Tensor, chat: Chat, stop: Callable[[str], bool]) -> Tensor:
    """(B,) bool: rows whose text the stop rule accepts. It is asked only after a token that holds a line break."""
    found, breaks = torch.zeros_like(slots.live), chat.newline.to(tokens.device)
    for row in (slots.live & breaks[tokens.clamp(max=len(breaks) - 1)]).nonzero()[:, 0].tolist():
        found[row] = stop(chat.decode(slots.out[row, :int(slots.count[row])].tolist()))
    return found


def refill(model: GPT, slots: Slots, waiting: deque, prompts: Sequence[Sequence[int]], prefix: KVCache | None,
           name: Callable[[int, int], str], n: int) -> None:
    """Reads as many waiting prompts as there are n free slots for, and puts n requests for each into slots."""
    group = [waiting.popleft() for _ in range(min(slots.owner.count(None) // n, len(waiting)))]
    requests = [(p, s) for p in group for s in range(n)]
    numbers = uniforms([name(p, s) for p, s in requests], slots.u.shape[1])
    slots.admit(requests, [prompts[p][-1] for p, _ in requests], numbers,
                prefill(model, [prompts[p] for p in group], prefix), [i for i in range(len(group)) for _ in range(n)])


@torch.inference_mode()
def generate(model: GPT, chat: Chat, prompts: Sequence[Sequence[int]], sampling: Sampling, *, key: str, n: int = 1,
             names: Sequence[str] | None = None, stop: Callable[[str], bool] | None = None,
             on_token: Callable[[int], None] | None = None, label: str | None = None) -> list[list[Completion]]:
    """N completions for each of P prompts (token ids): a list of P lists of N.

    `key` names the randomness, together with the prompt's name (its index, unless `names` says otherwise) and the
    sample number. `stop` is asked with the text so far whenever a line ends; True finishes the answer. `on_token` sees
    each token of slot 0 as it is drawn. `label` shows a progress bar. Raises UserError where a prompt leaves no room.
    """
    if not prompts:
        return []
    longest, limit = max(map(len, prompts)), sampling.max_new_tokens
    if longest + limit > model.config.max_position_embeddings:
        raise UserError(f"a prompt of {longest} tokens and {limit} new ones do not fit the model's context of "
                        f"{model.config.max_position_embeddings}; shorten the prompt or lower the limit.")
    start = shared_prefix(prompts)
    prefix = prefill(model, [prompts[0][:start + 1]], None) if start else None
    waiting = deque(sorted(range(len(prompts)), key=lambda p: -len(prompts[p])))    # neighbours of like length
    slots = Slots(model, min(max(sampling.slots, n), n * len(prompts)), longest + limit, limit)
    ends = torch.zeros(model.config.vocab_size, dtype=torch.bool, device=model.device)
    ends[chat.eos_ids] = True
    found: list[list[Completion | None]] = [[None] * n for _ in prompts]
    called = lambda p, s: f"{key} {names[p] if names else p} {s}"
    bar = tqdm(total=n * len(prompts), desc=label, unit="text", leave=False, disable=None if label else True)
    while waiting or slots.live.any():
        if waiting and slots.owner.count(None) >= max(n, len(slots.owner) // 4):        # a quarter at a time: wide reads
            refill(model, slots, waiting, prompts, prefix, called, n)
        tokens = slots.step(model, sampling)
        if on_token:
            on_token(int(tokens[0]))
        ended = ends[tokens] | stopped(slots, tokens, chat, stop) if stop else ends[tokens]
        for (p, s), text, row in slots.release(slots.live & (ended | (slots.count == limit))):
            found[p][s] = Completion(text, bool(ended[row]))
            bar.update()
        if not waiting and 2 * int(slots.live.sum()) <= len(slots.owner):
            slots.shrink()
    bar.close()
    return found


def sampling_copy(model: GPT, dtype: torch.dtype) -> GPT:
    """The weights to write with: the model itself or, for bf16, one rounded copy of it."""
    return (model if dtype == torch.float32 else copy.deepcopy(model).to(dtype)).eval()


@torch.inference_mode()
def next_probs(model: GPT, prompts: Sequence[Sequence[int]], wanted: Sequence[int], *, slots: int, label: str | None = None) -> Tensor:
    """p(the next token is w) for each of the `wanted` ids after each prompt, in one forward pass a prompt: (P,W), fp32."""
    if not prompts:
        return torch.zeros(0, len(wanted))
    start, probs = shared_prefix(prompts), torch.zeros(len(prompts), len(wanted))
    prefix = prefill(model, [prompts[0][:start + 1]], None) if start else None
    order = sorted(range(len(prompts)), key=lambda p: len(prompts[p]))              # neighbours of like length
    for rows in tqdm([order[i:i + slots] for i in range(0, len(order), slots)], desc=label, leave=False, disable=None if label else True):
        cache = prefill(model, [prompts[p] for p in rows], prefix)
        last = torch.tensor([prompts[p][-1:] for p in rows], device=model.device)   # (B,1)
        probs[rows] = model.logits(model(last, cache)[:, -1]).float().softmax(-1)[:, list(wanted)].cpu()
    return probs


# ---- answers ----
def respond(model: GPT, chat: Chat, prompts: Sequence[str], sampling: Sampling, *, key: str, n: int,
            label: str | None = "answers") -> list[Candidate]:
    """{x_i} -> {y_i^1 .. y_i^N}: N answers to each prompt, prompt by prompt."""
    groups = generate(model, chat, [chat.prompt(p) for p in prompts], sampling, key=key, n=n, label=label)
    return [Candidate(i, s, prompts[i], chat.decode(c.tokens).strip(), c.tokens, c.finished)
            for i, group in enumerate(groups) for s, c in enumerate(group)]


# ---- new prompts (Self-Instruct, Wang et al. 2023) ----

UNANSWERABLE = ("image", "picture", "photo", "graph", "plot", "draw", "file", "map", "video", "audio", "music", "diagram")


def refusal(text: Text, finished: bool, kept: Texts, rouge: float) -> str | None:
    """Why a written prompt is not taken; None where it is."""
    if not finished:
        return "unfinished"
    if not 3 <= len(text.words) <= 150:
        return "length"
    if " ".join(text.words) in kept.lines:
        return "duplicate"
    if any(w.strip(".,:;!?") in UNANSWERABLE for w in text.words):
        return "keyword"
    return "similar" if rouge < 1 and kept.like(text, rouge) else None


def few_shot(chat: Chat, seeds: Sequence[str], written: Sequence[str], rng: random.Random) -> list[int]:
    """Eight tasks, up to two of them the model's own, as a list that is to be continued."""
    own = rng.sample(list(written), min(2, len(written)))
    shots = own + rng.sample(list(seeds), min(8 - len(own), len(seeds)))
    rng.shuffle(shots)
    return chat.raw("".join(f"Task: {' '.join(s.split())}\n" for s in shots) + "Task:")


def new_prompts(model: GPT, chat: Chat, seeds: Sequence[str], count: int, sampling: Sampling, *, key: str, rouge: float,
                exclude: Sequence[str] = (), calls: int = 12) -> tuple[list[str], Counter]:
    """`count` prompts by the model itself, unlike the seeds, `exclude` and each other; and why others were refused.

    Every prompt has a draw of demonstrations of its own. Raises UserError where nothing usable comes out.
    """
    rng, written, refused = random.Random(key), [], Counter()
    kept = Texts((*seeds, *exclude))
    for call in range(calls):                                       # bounded: a mute model must not hold the run
        wanted = count - len(written) if call else -(-count // 4)   # a first quarter, so that the rest sees two of its own
        shots = [few_shot(chat, seeds, written, rng) for _ in range(-(-wanted * 5 // 4))]
        texts = generate(model, chat, shots, sampling, key=f"{key} {call}", stop=lambda t: bool(t.strip()), label="prompts")
        for [completion] in texts:
            line = (chat.decode(completion.tokens).strip().splitlines() or [""])[0].strip()
            text = Text(line)
            if reason := refusal(text, completion.finished, kept, rouge):
                refused[reason] += 1
            elif len(written) < count:
                written.append(line)
                kept.add(text)
    if not written:
        raise UserError(f"the model wrote no usable prompt ({dict(refused)}); give it prompts with --prompts FILE.")
    return written, refused


# ---- command line: ask any M_t ----
def say(model: GPT, chat: Chat, messages: list[dict], sampling: Sampling, key: str) -> str:
    """Streams one answer to the terminal and returns it."""
    tokens, shown = [], ""

    def show(token: int) -> None:
        nonlocal shown
        tokens.append(token)
        text = chat.decode(tokens).rstrip("\ufffd")                 # half of a character: wait for the rest
        print(text[len(shown):], end="", flush=True)
        shown = text

    generate(model, chat, [chat.render(messages)], sampling, key=key, on_token=show)
    print()
    return shown.strip()


def main() -> None:
    parser = asking("Ask a model, or chat with it.", model="a Hugging Face directory, for example runs/toy/M4")
    parser.add_argument("question", nargs="?", help="one question; without it, an interactive chat")
    args = parser.parse_args()
    device, messages = pick_device(args.device), []
    model, chat = load(args.model, device=device, dtype=pick_dtype("auto", device)), Chat(args.model)
    sampling = Sampling(args.max_new_tokens, args.temperature, args.top_p)
    if args.question:
        say(model, chat, [{"role": "user", "content": args.question}], sampling, f"{args.seed}")
        return
    print("Chat with", args.model, "- an empty line starts anew, Ctrl-D ends.")
    print("> ", end="", flush=True)
    for line in sys.stdin:
        messages = messages + [{"role": "user", "content": line.strip()}] if line.strip() else []
        if messages:
            messages.append({"role": "assistant", "content": say(model, chat, messages, sampling, f"{args.seed} {len(messages)}")})
        print("> ", end="", flush=True)
    print()


if __name__ == "__main__":
    command(main)
