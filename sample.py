"""sample.py: everything that a model writes: prompts, answers and verdicts.

In: a Writer, token ids, and keys for the randomness.  Out: token ids, and records that carry them.
`generate` is the engine. It keeps many texts going side by side, one in each slot of a KV cache:
- A prompt is read once for its N answers: its keys and values are copied into N slots. What all
  prompts of a call begin with (a rubric, a system message) is read once for all of them.
- A slot whose text has ended goes to the next prompt, so short texts do not wait for long ones.
- Each token is drawn (core/draw.py) with a number that depends on (key, answer, position) alone. So
  the number of slots, their refill and a resume do not change what is drawn.
Left out on purpose: beam search, penalties, paged memory, speculative decoding.

Shapes: B slots, T tokens, D hidden, V vocabulary, P prompts, N texts for each of them
(`sampling.n`), M largest number of new tokens.

    python sample.py --model runs/toy/M4 "Count up from three to six for Mia."
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from core.batches import micro_batches, row_length, shared_prefix
from core.cache import KVCache
from core.chat import Chat
from core.cli import common_arguments, is_out_of_memory, printable, run_command
from core.device import free_cache, pick_device, pick_dtype, prepare_machine
from core.draw import Sampling, check_overflow, pick, pick_at_once, uniforms
from core.kernels import pack, picked_probs
from core.lora import merged_weights
from core.progress import progress_bar
from core.ranks import in_shares
from core.records import Candidate, Completion, Example, Work
from core.shards import whole
from core.start import check_room
from model import GPT, load

READ_AT_ONCE = 4096  # most prompt tokens of one pass
Groups = Sequence[Sequence[Example]]  # a group is one row of branches (core/batches.py)
PARTS = 8  # slots are refilled by eighths, and removed by eighths once no prompt waits


@dataclass
class Writer:
    """A model that only writes, its prompt format, and a meter.

    Its weights are packed for speed (core/kernels.py), so it can no longer be trained.
    """

    model: GPT
    chat: Chat
    work: Work = field(default_factory=Work)
    group_size: int = 1  # processes that write with this copy together (shards.split)

    def take_meter(self) -> str:
        """What was computed since the last call, in words. The meter starts at zero again."""
        text = self.work.summary()
        self.work = Work()
        return text

    def that_fit(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[int]:
        """The numbers of the prompts that leave room for new tokens. The meter names the others."""
        context = self.model.config.max_position_embeddings
        numbers = []
        for number, prompt in enumerate(prompts):
            if len(prompt) + new_tokens <= context:
                numbers.append(number)
            else:
                beginning = self.chat.decode(prompt[:64])[-40:]
                self.work.too_long.append(f"{beginning!r}, {len(prompt)} tokens")
        return numbers


def load_writer(folder: str, device: torch.device, dtype: torch.dtype | None = None) -> Writer:
    """The model of a folder. Without `dtype`: in what the device multiplies fastest."""
    dtype = dtype or pick_dtype("auto", device)
    chat = Chat(folder).check_template()
    return Writer(pack(load(folder, device=device, dtype=dtype)), chat)


def writing_copy(model: GPT, chat: Chat, dtype: torch.dtype) -> Writer:
    """A copy of a model that is still to be trained, in `dtype`, with what adapters learnt."""
    with torch.device("meta"):
        copied = GPT(model.config)
    plain = merged_weights(model)
    weights = {name: whole(weight).to(dtype, copy=True) for name, weight in plain}
    copied.load_state_dict(weights, assign=True)
    copied.frequencies = model.frequencies
    return Writer(pack(copied.eval()), chat)


# ---- reading prompts ----


def read_prompts_into_cache(
    writer: Writer, prompts: Sequence[Sequence[int]], shared: KVCache | None
) -> tuple[KVCache, Tensor | None]:
    """Runs the tokens that stand behind the shared beginning through the model.

    Returns a cache with one row per prompt (B), and the hidden states (B,T,D), right-padded. They
    are None if every prompt equals the shared beginning.
    """
    model = writer.model
    cache = model.new_cache(len(prompts), shared)
    rests = [list(prompt[cache.start :]) for prompt in prompts]  # start: of what is not shared
    lengths = [len(rest) for rest in rests]
    width = max(lengths)
    hidden = None
    if width > 0:
        padded = [rest + [0] * (width - len(rest)) for rest in rests]
        hidden = model(torch.tensor(padded, device=model.device), cache)
    cache.advance(torch.tensor(lengths, device=model.device), width)
    writer.work.read += sum(lengths)
    writer.work.pads += width * len(rests) - sum(lengths)
    return cache, hidden


def read_shared_beginning(writer: Writer, prompts: Sequence[Sequence[int]]) -> KVCache | None:
    """What all prompts begin with, read once: a cache of one row. None where that is too short.

    A shared beginning costs extra matrix products in every decode step. It is worth them if it
    holds at least half of all prompt tokens.
    """
    size = shared_prefix(prompts)
    tokens = sum(len(prompt) for prompt in prompts)
    if size * len(prompts) < tokens / 2:
        return None
    cache, _ = read_prompts_into_cache(writer, [prompts[0][:size]], None)
    # KVCache.fit rounded S up, and attend_shared (core/kernels.py) does not mask: cut the rest off.
    cache.k = cache.k[:, :, :, :size].contiguous()  # (layers,1,G,S,K)
    cache.v = cache.v[:, :, :, :size].contiguous()
    return cache


# ---- many texts side by side ----


class Request(NamedTuple):
    prompt: int  # which of the P prompts
    sample: int  # which of its N texts


class Facts(NamedTuple):
    """What a step tells the program, one entry a slot: its only wait for the device."""

    at_eos: list[bool]
    at_break: list[bool]  # after a line break: the stop rule must be asked
    at_limit: list[bool]
    unsure: list[bool]  # the token must be drawn again, slowly


class Slots:
    """The texts that are being written. Each slot is a row of the cache and serves one request.

    A free slot is computed too, and what it writes is ignored.
    """

    def __init__(self, writer: Writer, count: int, sampling: Sampling, shared: KVCache | None):
        device = writer.model.device
        self.writer = writer
        self.sampling = sampling
        self.cache = writer.model.new_cache(count, shared)
        self.requests: list[Request | None] = [None] * count  # None: the slot is free
        # (B,) whether the slot is taken; a tensor, so that a step need not look at the list
        self.live = torch.zeros(count, dtype=torch.bool, device=device)
        self.inputs = torch.zeros(count, dtype=torch.long, device=device)  # (B,) the next input
        self.sizes = torch.zeros(count, dtype=torch.long, device=device)  # (B,) tokens written
        self.limit = sampling.max_new_tokens  # M
        self.draws = torch.zeros(count, self.limit, device=device)  # (B,M) its random numbers
        self.texts = torch.zeros_like(self.draws, dtype=torch.long)  # (B,M) what was written
        self.is_eos = torch.zeros(writer.model.config.vocab_size, dtype=torch.bool, device=device)
        self.is_eos[writer.chat.eos_ids] = True  # (V,)
        self.is_break = torch.zeros_like(self.is_eos)  # (V,) the stop rule is asked after these
        if sampling.stop is not None:
            breaks = writer.chat.newline[: len(self.is_break)]
            self.is_break[: len(breaks)] = breaks.to(device)
        self.finite = torch.ones((), dtype=torch.bool, device=device)  # no overflow so far

    def admit(
        self, group: Sequence[int], prompts: Sequence[Sequence[int]], keys: Sequence[str]
    ) -> None:
        """Reads a group of prompts, and gives n free slots to each."""
        n = self.sampling.n
        requests = [Request(p, sample) for p in group for sample in range(n)]
        text_keys = [f"{keys[p]} {sample}" for p, sample in requests]
        # 1) read the prompts without their last tokens, which the first decode step reads
        beginnings = [prompts[p][:-1] for p in group]
        cache, _ = read_prompts_into_cache(self.writer, beginnings, self.cache.shared)
        # 2) copy each prompt into n free slots
        free = [slot for slot, request in enumerate(self.requests) if request is None]
        free = free[: len(requests)]
        slots = torch.tensor(free, device=self.inputs.device)
        sources = torch.arange(len(group), device=slots.device).repeat_interleave(n)
        self.cache.copy_rows(slots, cache, sources)
        # 3) set the slots up
        last_tokens = [prompts[p][-1] for p, _ in requests]
        self.inputs[slots] = torch.tensor(last_tokens, device=slots.device)
        self.draws[slots] = uniforms(text_keys, self.limit).to(slots.device)
        self.sizes[slots] = 0
        self.live[slots] = True
        for slot, request in zip(free, requests, strict=True):
            self.requests[slot] = request

    def free(self) -> int:
        """How many slots are free."""
        return self.requests.count(None)

    def step(self) -> Facts:
        """Writes one token in every slot."""
        self.writer.work.steps += len(self.requests)
        self.writer.work.written += len(self.requests) - self.free()
        model = self.writer.model
        hidden = model(self.inputs[:, None], self.cache)[:, -1]  # (B,1) -> (B,D)
        self.finite &= hidden.isfinite().all()
        logits = model.logits(hidden)  # (B,V)
        # A freed slot may have used all M columns. What it writes now, nobody reads.
        columns = self.sizes.clamp(max=self.limit - 1)[:, None]  # (B,1)
        u = self.draws.gather(1, columns)[:, 0]
        tokens, unsure = pick_at_once(logits, u, self.sampling)  # (B,) each
        self.cache.advance(self.live, 1)
        self.sizes += self.live
        facts = self.keep(tokens, columns, unsure & self.live)
        if any(facts.unsure):  # rare
            tokens = pick(logits, u, self.sampling)
            facts = self.keep(tokens, columns, torch.zeros_like(unsure))
        return facts

    def keep(self, tokens: Tensor, columns: Tensor, unsure: Tensor) -> Facts:
        """Puts the tokens (B,) into the texts, and into the next step."""
        self.texts.scatter_(1, columns, tokens[:, None])
        self.inputs = tokens
        at_limit = self.sizes == self.limit
        facts = torch.stack((self.is_eos[tokens], self.is_break[tokens], at_limit, unsure))  # (4,B)
        return Facts(*facts.tolist())

    def text(self, slot: int) -> list[int]:
        return self.texts[slot, : int(self.sizes[slot])].tolist()

    def release(self, facts: Facts) -> list[tuple[Request, Completion]]:
        """Frees the slots that ended or reached the limit, and returns what they wrote."""
        results = []
        ended = []
        for slot, request in enumerate(self.requests):
            if request is None:
                continue
            finished = facts.at_eos[slot]
            if facts.at_break[slot]:
                finished |= self.is_stopped(slot)
            if finished or facts.at_limit[slot]:
                results.append((request, Completion(self.text(slot), finished)))
                ended.append(slot)
        if ended:
            check_overflow(self.finite)  # once a text, not once a token
            self.live[ended] = False
            self.cache.empty_rows(ended)  # else a free row could keep the cache long (KVCache.fit)
        for slot in ended:
            self.requests[slot] = None
        return results

    def is_stopped(self, slot: int) -> bool:
        """Whether the stop rule accepts the text of a slot."""
        return self.sampling.stop(self.writer.chat.decode(self.text(slot)))

    def drop_free_slots(self) -> None:
        """Removes the free rows, once no prompt waits."""
        taken = [slot for slot, request in enumerate(self.requests) if request is not None]
        live = torch.tensor(taken, dtype=torch.long, device=self.inputs.device)
        self.cache.keep_rows(live)
        self.requests = [self.requests[slot] for slot in taken]
        self.live = self.live[live]
        self.inputs = self.inputs[live]
        self.sizes = self.sizes[live]
        self.draws = self.draws[live]
        self.texts = self.texts[live]


@in_shares("prompts", "keys")
@torch.inference_mode()
def generate(
    writer: Writer,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    keys: Sequence[str],
    *,
    label: str | None = None,
    on_token: Callable[[int], None] | None = None,
) -> list[list[Completion]]:
    """n texts for each of P prompts (token ids): a list of P lists of n.

    `keys[p]` names the randomness of prompt p; the number of the sample is added to it. `label`
    shows a progress bar. `on_token` sees each token as it is drawn, where there is one text only.
    Where the memory is full, half of the slots are tried, once: they do not change what is drawn.
    Raises UserError where a prompt leaves no room for new tokens, and where numbers overflow.
    """
    if not prompts:
        return []
    try:
        return write_all(writer, prompts, sampling, keys, label=label, on_token=on_token)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error) or sampling.slots == 1 or writer.group_size > 1:
            raise
    free_cache()
    print(f"the memory is full; {sampling.slots // 2} slots now (--slots)", file=sys.stderr)
    fewer = replace(sampling, slots=sampling.slots // 2)
    return write_all(writer, prompts, fewer, keys, label=label, on_token=on_token)


def write_all(
    writer: Writer,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    keys: Sequence[str],
    *,
    label: str | None,
    on_token: Callable[[int], None] | None,
) -> list[list[Completion]]:
    """`generate` with as many slots as it is told."""
    lengths = [len(prompt) for prompt in prompts]
    context = writer.model.config.max_position_embeddings
    check_room(context, max(lengths), sampling.max_new_tokens)
    n = sampling.n
    slot_count = min(max(sampling.slots, n), n * len(prompts))
    # Prompts are read in groups of like length, sorted shortest first, so `pop` takes the longest.
    # A group fills an eighth of the slots at most, so a refill need not wait for many free slots.
    group_size = max(1, slot_count // (PARTS * n))
    waiting = micro_batches(range(len(prompts)), lengths, READ_AT_ONCE, most=group_size)
    writer.work.prompts += len(prompts)
    slots = Slots(writer, slot_count, sampling, read_shared_beginning(writer, prompts))
    completions: list[list[Completion | None]] = [[None] * n for _ in prompts]
    bar = progress_bar(label, total=n * len(prompts), unit="text")
    while waiting or slots.free() < len(slots.requests):
        # 1) free slots go to the prompts that wait
        while waiting and n * len(waiting[-1]) <= slots.free():
            slots.admit(waiting.pop(), prompts, keys)
        # 2) every slot writes one token
        facts = slots.step()
        if on_token is not None:
            on_token(int(slots.inputs[0]))
        # 3) texts that ended leave their slots
        for request, completion in slots.release(facts):
            completions[request.prompt][request.sample] = completion
            bar.update()
        # 4) when no prompt waits, free slots are no longer computed
        if not waiting and PARTS * slots.free() >= len(slots.requests):
            slots.drop_free_slots()
    bar.close()
    return completions


# ---- probabilities without sampling ----


@in_shares("prompts")
@torch.inference_mode()
def next_probs(
    writer: Writer,
    prompts: Sequence[Sequence[int]],
    wanted: Sequence[int],
    *,
    slots: int,
    label: str | None = None,
) -> list[list[float]]:
    """p(the next token is w) for each id w of `wanted` after each of P prompts: P lists.

    A prompt that is too long for the model has zeros.
    """
    if not prompts:
        return []
    probs = torch.zeros(len(prompts), len(wanted))  # in fp32
    writer.work.prompts += len(prompts)
    shared = read_shared_beginning(writer, prompts)
    lengths = [len(prompt) for prompt in prompts]
    batches = micro_batches(writer.that_fit(prompts, 0), lengths, READ_AT_ONCE, slots)
    for batch in progress_bar(label, batches):
        cache, states = read_prompts_into_cache(writer, [prompts[p] for p in batch], shared)
        # shared_prefix leaves each prompt its last token, so `states` is not None.
        ends = cache.lengths - 1  # the shared beginning is not in the lengths, nor in the states
        last = states[torch.arange(len(batch)), ends]  # (B,T,D) -> (B,D)
        check_overflow(last.isfinite().all())
        probs[batch] = picked_probs(writer.model, last, wanted).cpu()
    return probs.tolist()


@in_shares("groups")
@torch.inference_mode()
def read_groups(
    writer: Writer, groups: Groups, read: Callable[[Groups], Tensor], label: str | None
) -> list[Tensor]:
    """One tensor for each group. `read` takes some groups, and gives one row for each example."""
    found: list[Tensor] = [torch.empty(0)] * len(groups)
    lengths = [row_length(group) for group in groups]
    writer.work.read += sum(lengths)
    for batch in progress_bar(label, micro_batches(range(len(groups)), lengths, READ_AT_ONCE)):
        rows = [groups[i] for i in batch]
        sizes = [len(row) for row in rows]
        values = read(rows).cpu()
        check_overflow(values.isfinite().all())
        for i, of_group in zip(batch, values.split(sizes), strict=True):
            found[i] = of_group
    return found


# ---- answers ----


def respond(
    writer: Writer,
    prompts: Sequence[str],
    sampling: Sampling,
    *,
    key: str,
    label: str | None = "answers",
    first: int = 0,
) -> list[Candidate]:
    """{x_i} -> {y_i^1 .. y_i^N}: n answers to each prompt, prompt by prompt.

    A prompt that leaves no room for an answer gets none. `first` is the number of the first one.
    """
    ids = [writer.chat.prompt(prompt) for prompt in prompts]
    keys = [f"{key} {first + i}" for i in range(len(prompts))]
    fitting = writer.that_fit(ids, sampling.max_new_tokens)
    ids, keys = [ids[i] for i in fitting], [keys[i] for i in fitting]
    groups = generate(writer, ids, sampling, keys, label=label)
    candidates = []
    for i, group in zip(fitting, groups, strict=True):
        for sample, (tokens, finished) in enumerate(group):
            text = writer.chat.decode(tokens).strip()
            candidates.append(Candidate(first + i, sample, prompts[i], text, tokens, finished))
    return candidates


# ---- command line: ask any M_t ----


def stream_answer(writer: Writer, messages: list[dict], sampling: Sampling, key: str) -> str:
    """Streams one answer to the terminal and returns it."""
    tokens: list[int] = []
    shown = ""

    def show_token(token: int) -> None:
        nonlocal shown
        tokens.append(token)
        text = writer.chat.decode(tokens).rstrip("\ufffd")  # half of a character: wait for the rest
        print(printable(text[len(shown) :]), end="", flush=True)
        shown = text

    generate(writer, [writer.chat.render(messages)], sampling, [f"{key} 0"], on_token=show_token)
    print()
    return shown.strip()


def talk(writer: Writer, sampling: Sampling, seed: int) -> None:
    """An interactive chat on standard input."""
    messages: list[dict] = []
    print("> ", end="", flush=True)
    for line in sys.stdin:
        question = line.strip()
        if question:
            messages.append({"role": "user", "content": question})
            answer = stream_answer(writer, messages, sampling, f"{seed} {len(messages)}")
            messages.append({"role": "assistant", "content": answer})
        else:
            messages.clear()
        print("> ", end="", flush=True)
    print()


def main() -> None:
    prepare_machine()
    parser = common_arguments(
        "Ask a model, or chat with it.", model="a Hugging Face directory, for example runs/toy/M4"
    )
    parser.add_argument("question", nargs="?", help="one question; without it, an interactive chat")
    args = parser.parse_args()
    writer = load_writer(args.model, pick_device(args.device))
    sampling = Sampling(args.max_new_tokens, args.temperature, args.top_p)
    if args.question:
        stream_answer(
            writer, [{"role": "user", "content": args.question}], sampling, f"{args.seed}"
        )
        return
    print("Chat with", args.model, "- an empty line starts anew, Ctrl-D ends.")
    talk(writer, sampling, args.seed)


if __name__ == "__main__":
    run_command(main)
