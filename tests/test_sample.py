"""sample.py and core/draw.py: what is drawn depends on the request alone.

It follows the distribution asked for, and keeps its EOS.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from conftest import flat_gpt, tiny_gpt
from torch.utils._python_dispatch import TorchDispatchMode

from core.draw import Sampling, pick, pick_at_once, uniforms
from core.errors import UserError
from core.records import Work
from sample import Completion, Slots, Writer, generate, next_probs, respond, writing_copy

DRAW = Sampling(24, temperature=1.0, top_p=0.9)
GREEDY = Sampling(24, temperature=0)


def ragged(count: int, *, prefix: int = 0) -> list[list[int]]:
    rng = random.Random(count)
    shared = [rng.randrange(4, 260) for _ in range(prefix)]
    own = [[rng.randrange(4, 260) for _ in range(rng.randrange(1, 30))] for _ in range(count)]
    return [shared + tokens for tokens in own]


def named(key: str, names: Sequence) -> list[str]:
    """The keys of a call: one for each prompt."""
    return [f"{key} {name}" for name in names]


def write(model, chat, prompts, sampling, *, key: str = "k", **more) -> list[list[Completion]]:
    """`generate` by a writer of its own; each prompt is named after its place."""
    keys = named(key, range(len(prompts)))
    return generate(Writer(model, chat), prompts, sampling, keys, **more)


@pytest.fixture
def model():
    """Doubles, so that rounding in another batch shape cannot tip a draw."""
    return tiny_gpt().double()


@pytest.fixture
def chat(chat):
    chat.eos_ids = list(range(30))  # answers of very different lengths
    return chat


@torch.no_grad()
def alone(model, chat, prompt: list[int]) -> list[int]:
    """Greedy decoding spelt out: no cache, no batch, no padding."""
    tokens: list[int] = []
    while len(tokens) < GREEDY.max_new_tokens and not (tokens and tokens[-1] in chat.eos_ids):
        logits = model.logits(model(torch.tensor([prompt + tokens])))  # (1, T, V)
        tokens.append(int(logits[0, -1].argmax()))
    return tokens


# ---- the same text, however it is batched ----


@pytest.mark.parametrize("prefix", [0, 40])
@pytest.mark.parametrize("slots", [1, 3, 64])
def test_batched_equals_alone(model, chat, prefix, slots):
    """Guards against: logits read at a pad (lucidrains).

    Also against: pads seen by shorter rows (unsloth #3699, reasoning-from-scratch #33), a refilled
    slot that keeps its old row, a shared prefix read wrongly.
    """
    prompts = ragged(12, prefix=prefix)
    found = write(model, chat, prompts, replace(GREEDY, slots=slots))
    expected = [alone(model, chat, p) for p in prompts]
    assert [c.tokens for (c,) in found] == expected
    assert len({len(t) for t in expected}) > 3, "the test wants answers of different lengths"


@pytest.mark.parametrize("slots", [1, 4, 5, 11])
def test_batch_size_and_refill_change_no_draw(model, chat, slots):
    """Guards against: randomness that belongs to the batch.

    Then another --slots or a resume draws other texts.
    """
    prompts = ragged(10, prefix=8)
    whole = write(model, chat, prompts, replace(DRAW, n=3))
    assert write(model, chat, prompts, replace(DRAW, n=3, slots=slots)) == whole


def test_reading_prompts_together_changes_no_draw(model, chat):
    """Guards against: numbers or slots mixed up among prompts that are read in one pass."""
    prompts = ragged(40, prefix=8)
    together = write(model, chat, prompts, DRAW)  # five prompts a pass
    assert write(model, chat, prompts, replace(DRAW, slots=4)) == together  # one a pass


def test_company_changes_no_draw(model, chat):
    """Guards against: a shared prefix, or its absence, that reaches into what is drawn."""
    prompts = [*ragged(4, prefix=20), [5, 6, 7]]
    writer = Writer(model, chat)
    keys = named("k", "abcde")
    whole = generate(writer, prompts, DRAW, keys)
    assert generate(writer, prompts[:4], DRAW, keys[:4]) == whole[:4]
    for prompt, key, found in zip(prompts, keys, whole):
        assert generate(writer, [prompt], DRAW, [key]) == [found]


def test_prompts_of_one_token_and_prompts_inside_prompts(model, chat):
    """Guards against: a prefix that swallows the whole of a prompt."""
    prompts = [[9], [9, 10], [9, 10, 11], [9, 10, 11], [12]]
    found = write(model, chat, prompts, GREEDY)
    assert [c.tokens for (c,) in found] == [alone(model, chat, p) for p in prompts]
    assert write(model, chat, [], GREEDY) == []


def test_same_key_same_draws(model, chat):
    """Guards against: a seed that is ignored (torchtune #2335)."""
    prompts = ragged(6)
    sampling = replace(DRAW, n=2)
    first = write(model, chat, prompts, sampling, key="0 answers 1")
    assert write(model, chat, prompts, sampling, key="0 answers 1") == first
    assert write(model, chat, prompts, sampling, key="1 answers 1") != first


def test_limit_changes_no_draw(model, chat):
    """Guards against: numbers that depend on how many were asked for."""
    short = write(model, chat, ragged(6), replace(DRAW, max_new_tokens=5))
    long = write(model, chat, ragged(6), DRAW)
    assert [c.tokens for (c,) in short] == [c.tokens[:5] for (c,) in long]


@pytest.mark.parametrize("slots", [1, 3, 64])
def test_the_copy_that_writes_writes_the_same(chat, slots):
    """Guards against: speed that changes results.

    Greedy texts of the weights laid out for this processor, cached, in batches and behind a prefix,
    against the plain model in fp32, one text at a time, without a cache.
    """
    model, prompts = tiny_gpt(), ragged(12, prefix=40)
    copied = writing_copy(model, chat, torch.float32)
    greedy = replace(GREEDY, slots=slots)
    found = generate(copied, prompts, greedy, named("k", range(12)))
    assert [c.tokens for (c,) in found] == [alone(model, chat, p) for p in prompts]


def test_the_copy_in_bf16_places_tokens_as_the_model_does(chat):
    """Guards against: rotations rounded with the weights.

    Then the model that writes is not the one that is trained.
    """
    model = tiny_gpt()
    place = torch.tensor([[400]])
    plain = model.rotations(place, torch.float32)
    copied = writing_copy(model, chat, torch.bfloat16).model.rotations(place, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(plain, copied)) and plain[0].dtype == torch.float32


# ---- what it costs ----


def test_tokens_read_for_a_prompt(chat):
    """Guards against: reading a prompt for each of its answers.

    Also against: reading the rubric and an answer for each verdict (5,760 tokens).
    """
    model = tiny_gpt(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    rng, P, N = random.Random(0), 64, 4

    def text(size: int) -> list[int]:
        return [rng.randrange(30, 260) for _ in range(size)]

    prompts, rubric = [text(60) for _ in range(P)], text(250)
    judged = [rubric + x + text(150) for x in prompts for _ in range(N)]
    writer = Writer(model, chat)
    generate(writer, prompts, Sampling(1, n=N), named("k", range(P)))
    generate(writer, judged, Sampling(1, n=3), named("k", range(P * N)))
    assert writer.work.read == P * 59 + 250 + P * N * 209 and writer.work.read / P <= 900
    assert writer.work.written == P * N * 4 and writer.work.prompts == P + P * N


def test_slots_stay_full(chat):
    """Guards against: short answers that wait for long ones.

    512 requests, 1 to 100 tokens long, 32 on average.
    """
    chat.eos_ids = [0]
    writer = Writer(flat_gpt({0: 1, 40: 15, 41: 15}), chat)
    found = generate(writer, ragged(128), Sampling(100, n=4, slots=64), named("k", range(128)))
    lengths = [len(c.tokens) for group in found for c in group]
    assert min(lengths) < 3 and max(lengths) == 100 and writer.work.written == sum(lengths)
    assert writer.work.written / writer.work.steps >= 0.85


def test_cost_in_words():
    """Guards against: figures under the wrong name."""
    work = Work(prompts=4, read=80, pads=20, steps=200, written=150)
    assert work.summary() == "read 20 tokens a prompt, wrote 150, slots 75% full, 23% thrown away"
    assert Work(prompts=4, read=80).summary() == "read 20 tokens a prompt, 0% thrown away"
    assert Work().summary() == "read 0 tokens a prompt, 0% thrown away"


def test_a_meter_that_was_read_starts_again(model, chat):
    """Guards against: the cost of a stage told with the cost of those before it."""
    writer = Writer(model, chat)
    readings = []
    for _ in range(2):
        generate(writer, [[7, 8, 9]], DRAW, ["k"])
        readings.append(writer.take_meter())
    assert readings[0] == readings[1] != Work().summary()
    assert writer.work == Work()


# ---- the end of an answer ----


def test_eos_is_kept(chat):
    """Guards against: a stripped stop token (nanochat), so that DPO never teaches where to stop."""
    found = write(flat_gpt({0: 2, 1: 2, 50: 3, 51: 3}), chat, ragged(40), Sampling(200))
    assert {c.tokens[-1] for (c,) in found} == {0, 1}  # any of several EOS ids ends
    for (completion,) in found:
        assert completion.finished
        assert not set(completion.tokens[:-1]) & {0, 1}


def test_limit_is_not_an_end(chat):
    """Guards against: answers cut off at the limit and passed on as complete (TRL #1025)."""
    ((endless,),) = write(flat_gpt({50: 1}), chat, [[7]], Sampling(9))
    assert endless == Completion([50] * 9, False)
    groups = write(flat_gpt({0: 1, 50: 2}), chat, [[7]] * 200, Sampling(3))
    found = [c for (c,) in groups]
    assert all(c.finished == (c.tokens[-1] == 0) for c in found)
    ends = {(len(c.tokens), c.finished) for c in found}
    assert ends == {(1, True), (2, True), (3, True), (3, False)}


def test_stop_rule(chat):
    """Guards against: verdicts that run on after their score.

    Also against: a stop rule that is asked about other rows' text.
    """
    chat.eos_ids, asked = [0], []
    a, b, newline = (chat.tokenizer.token_to_id(c) for c in "abĊ")

    def stop(text: str) -> bool:
        asked.append(text)
        return text.endswith("a\n")

    model = flat_gpt({a: 1, b: 1, newline: 2})
    for (c,) in write(model, chat, [[7]] * 50, Sampling(60, stop=stop)):
        text = chat.decode(c.tokens)
        assert c.finished and text.endswith("a\n") and text.count("a\n") == 1
    assert all(text.endswith("\n") for text in asked)


def test_vocabulary_wider_than_the_tokenizer(chat):
    """Guards against: an index error when an id that has no text is drawn.

    It happens with padded embeddings (qwen2, qwen3).
    """
    chat.eos_ids = [0]
    model = flat_gpt({300: 1}, vocab=320)
    ((found,),) = write(model, chat, [[7]], Sampling(4, stop=lambda text: True))
    assert found == Completion([300] * 4, False)


def test_response_never_holds_the_prompt(chat):
    """Guards against: lucidrains' `out != pad & ~prompt_mask`.

    It lets the prompt leak into the response.
    """
    prompts = [[200 + i, 210, 220] for i in range(8)]
    for group in write(flat_gpt({0: 1, 60: 1, 61: 2}), chat, prompts, replace(DRAW, n=2)):
        assert all(set(c.tokens) <= {0, 60, 61} for c in group)


def test_first_tokens_of_n_answers_differ(chat):
    """Guards against: N copies of one answer. False alarm: 260 ** -15 = 6e-37, on one fixed key."""
    model = flat_gpt({i: 1 for i in range(260)})
    (group,) = write(model, chat, [[7]], Sampling(1, n=16))
    assert len({c.tokens[0] for c in group}) > 8


def test_streaming_shows_every_token(model, chat):
    """Guards against: a streamed answer that is not the answer."""
    shown = []
    ((found,),) = write(model, chat, [[7, 8, 9]], DRAW, on_token=shown.append)
    assert shown == found.tokens


def test_prompt_longer_than_the_context(chat):
    """Guards against: silent truncation, and positions past the end of RoPE."""
    model = tiny_gpt(max_position_embeddings=32)
    write(model, chat, [[7] * 22], Sampling(10))
    with pytest.raises(UserError, match="context of 32"):
        write(model, chat, [[7], [7] * 23], Sampling(10))


def test_one_long_prompt_ends_nothing(chat):
    """Guards against: a run that one overlong text stops; one that is left out without a word; an
    answer filed under another prompt."""
    writer = Writer(tiny_gpt(max_position_embeddings=128), chat)
    sampling = Sampling(16, temperature=1.0, n=2)
    texts = ["Why?", "long " * 40, "So?", "longer " * 40, "No?"]
    found = respond(writer, texts, sampling, key="k")
    assert [(y.id, y.sample, y.prompt) for y in found] == [
        (i, sample, texts[i]) for i in (0, 2, 4) for sample in (0, 1)
    ]
    told = writer.take_meter()
    assert "2 left out as too long: 'g long long" in told and "tokens" in told
    assert "left out" not in writer.take_meter()
    # and they are drawn as if the long ones were not there
    alone = respond(writer, [texts[0]], sampling, key="k")
    assert [y.tokens for y in alone] == [y.tokens for y in found[:2]]
    assert respond(writer, [texts[1]], sampling, key="k") == []


def test_probabilities_after_a_long_prompt(chat):
    """Guards against: positions past the end of RoPE, read as if they meant something."""
    writer = Writer(tiny_gpt(max_position_embeddings=32), chat)
    probs = next_probs(writer, [[7] * 32, [7] * 33, [8] * 5], [1, 2], slots=4)
    assert probs[1] == [0, 0] and min(probs[0] + probs[2]) > 0
    assert "1 left out as too long" in writer.take_meter()


def test_respond_carries_the_drawn_ids(model, chat):
    """Guards against: decoded text that is tokenised again.

    Also against: answers filed under another prompt.
    """
    texts = ["one", "two words", "three short words"]
    sampling = replace(DRAW, n=2)
    found = respond(Writer(model, chat), texts, sampling, key="k", label=None)
    groups = write(model, chat, [chat.prompt(t) for t in texts], sampling)
    places = [(c.id, c.sample, c.prompt) for c in found]
    assert places == [(i, s, t) for i, t in enumerate(texts) for s in range(2)]
    assert [(c.tokens, c.finished) for c in found] == [tuple(c) for group in groups for c in group]


# ---- probabilities without sampling ----


@torch.no_grad()
def plain_probs(model, prompt: list[int]) -> torch.Tensor:
    return model.logits(model(torch.tensor([prompt])))[0, -1].softmax(-1).float()


@pytest.mark.parametrize("prefix", [0, 40])
@pytest.mark.parametrize("slots", [1, 4, 64])
def test_next_probs_equal_a_plain_forward_pass(model, chat, prefix, slots):
    """Guards against: a probability read at a pad or behind a wrong prefix.

    Also against: rows handed back sorted by length.
    """
    prompts, wanted = ragged(9, prefix=prefix), [259, 5, 7]
    found = next_probs(Writer(model, chat), prompts, wanted, slots=slots)
    assert len({len(p) for p in prompts}) > 5
    expected = torch.stack([plain_probs(model, p)[wanted] for p in prompts])
    torch.testing.assert_close(torch.tensor(found), expected, atol=1e-6, rtol=1e-4)


def test_next_probs_of_short_and_equal_prompts(model, chat):
    """Guards against: a prefix that swallows the whole of a prompt.

    Also against: an index error where nothing is asked.
    """
    writer = Writer(model, chat)
    for prompts in (
        [[9], [9, 10], [9, 10, 11], [9, 10, 11], [12]],
        [[9, 10, 11], [9, 10]],
        [[9, 10, 11]] * 3,
        [[9]],
        [[9, 10]],
    ):
        expected = torch.stack([plain_probs(model, p)[[3, 4]] for p in prompts])
        found = torch.tensor(next_probs(writer, prompts, [3, 4], slots=2))
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
    assert next_probs(writer, [], [3, 4], slots=2) == []


# ---- waits for the device ----


class Waits(TorchDispatchMode):
    """Counts the calls that need a number of the device before the program can go on."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = [x for x in args[1] if x is not None] if name.startswith("index") else []
        by_mask = any(isinstance(x, torch.Tensor) and x.dtype == torch.bool for x in masks)
        if by_mask or name in ("item", "is_nonzero", "nonzero", "masked_select"):
            Waits.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_a_step_waits_once_for_the_device(monkeypatch, chat, top_p):
    """Guards against: a GPU that stands still while the program asks for lengths and candidates.

    It would wait for numbers several times a token.
    """
    steps, shapes, to_list = [], [], torch.Tensor.tolist
    monkeypatch.setattr("core.draw.waits_cost_nothing", lambda device: False)
    monkeypatch.setattr(Waits, "count", 0)

    def counted_list(tensor):
        Waits.count += 1
        return to_list(tensor)

    def counted_step(slots):
        before = Waits.count
        facts = step(slots)
        steps.append(Waits.count - before)
        shapes.append((len(slots.requests), slots.cache.k.shape[3]))
        return facts

    step = Slots.step
    monkeypatch.setattr(Slots, "step", counted_step)
    monkeypatch.setattr(torch.Tensor, "tolist", counted_list)
    chat.eos_ids = list(range(10))
    sampling = Sampling(70, top_p=top_p, slots=4, stop=lambda text: text.endswith("x\n"))
    with Waits():
        found = write(tiny_gpt(), chat, ragged(12), sampling)
    assert steps == [1] * len(steps) and len(steps) > 60
    # a text that ends costs a few more
    assert Waits.count < len(steps) + 6 * len(found)
    assert len(set(shapes)) < 20  # few, so that each could be a graph of its own


def test_a_wide_nucleus_is_drawn_again(monkeypatch, chat):
    """Guards against: a nucleus cut at what one look holds, where waits cost something."""
    model = flat_gpt({40 + i: 1.0 for i in range(100)})
    expected = write(model, chat, [[7], [8]], Sampling(20, top_p=0.9, n=8))
    monkeypatch.setattr("core.draw.waits_cost_nothing", lambda device: False)
    monkeypatch.setattr("core.draw.NUCLEUS_LOOKS", (4, 30))
    assert write(model, chat, [[7], [8]], Sampling(20, top_p=0.9, n=8)) == expected
    assert len({t for group in expected for c in group for t in c.tokens}) > 60


# ---- distributions ----


def pick_both_ways(logits: torch.Tensor, u: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """`pick`, after a look at what `pick_at_once` says where waits cost something, as on a GPU."""
    tokens = pick(logits, u, sampling)
    some = slice(0, None, 17)  # rows, as looking at all of them takes a while
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("core.draw.waits_cost_nothing", lambda device: False)
        at_once, unsure = pick_at_once(logits[some], u[some], sampling)
    assert torch.equal(at_once[~unsure], tokens[some][~unsure])
    if sampling.top_p < 1:  # a row that is sure has its whole nucleus among the candidates
        mass = logits[some].softmax(-1).topk(min(1024, logits.shape[-1])).values.sum(-1)
        assert (mass[~unsure] > sampling.top_p - 1e-5).all()
    return tokens


def shares(probs: list[float], sampling: Sampling, *, draws: int = 20_000) -> torch.Tensor:
    """How often each token is drawn for evenly spread u.

    It is exact to one draw, so nothing here is left to luck.
    """
    u = (torch.arange(draws) + 0.5) / draws
    tokens = pick_both_ways(torch.tensor(probs).log().expand(draws, -1), u, sampling)
    return torch.bincount(tokens, minlength=len(probs)) / draws


def assert_shares(found: torch.Tensor, expected: list[float]) -> None:
    expected = torch.tensor(expected)
    torch.testing.assert_close(found, expected / expected.sum(), atol=2e-4, rtol=0)
    assert not found[expected == 0].any(), "a token outside of the kept set was drawn"


KEPT = [
    (dict(), [5, 25, 15, 40, 12, 3]),
    (dict(top_p=0.39), [0, 0, 0, 40, 0, 0]),
    (dict(top_p=0.41), [0, 25, 0, 40, 0, 0]),
    (dict(top_p=0.7), [0, 25, 15, 40, 0, 0]),
    (dict(top_p=0.9), [0, 25, 15, 40, 12, 0]),
    (dict(top_p=0.96), [5, 25, 15, 40, 12, 0]),
    (dict(top_p=0.999), [5, 25, 15, 40, 12, 3]),
    (dict(top_k=1), [0, 0, 0, 1, 0, 0]),
    (dict(top_k=3), [0, 25, 15, 40, 0, 0]),
    (dict(top_k=99), [5, 25, 15, 40, 12, 3]),
    (dict(top_k=3, top_p=0.6), [0, 25, 0, 40, 0, 0]),
    (dict(top_k=3, top_p=0.9), [0, 25, 15, 40, 0, 0]),
    (dict(temperature=0.5), [25, 625, 225, 1600, 144, 9]),
    (dict(temperature=0.5, top_p=0.6), [0, 0, 0, 1, 0, 0]),
    (dict(temperature=0), [0, 0, 0, 1, 0, 0]),
]


@pytest.mark.parametrize("how, kept", KEPT, ids=str)
def test_distribution(how, kept):
    """Guards against: top-p that is one token short or long.

    Also against: top-k after top-p, temperature applied to probabilities.
    """
    assert_shares(shares([0.05, 0.25, 0.15, 0.40, 0.12, 0.03], Sampling(1, **how)), kept)


@pytest.mark.parametrize("top_p, size", [(0.101, 21), (0.301, 61), (0.9001, 181), (0.99999, 200)])
def test_wide_nucleus(top_p, size):
    """Guards against: a nucleus cut at the first few tokens looked at."""
    steps = [1 + 1e-6 * (200 - i) for i in range(200)]  # nearly equal, and yet in a definite order
    found = shares([s / sum(steps) for s in steps], Sampling(1, top_p=top_p), draws=40_000)
    assert_shares(found, [s if i < size else 0 for i, s in enumerate(steps)])
    assert (found[:size] > 0).all()


def test_nucleus_wider_than_every_look():
    """Guards against: a large vocabulary cut at the last of the first looks.

    Also against: rows that need another look filed under others.
    """
    V, draws = 3000, 6000
    # Nearly flat: 0.9 of it are some 2,690 tokens.
    wide = torch.linspace(0.01, 0, V).expand(draws, -1)
    narrow = torch.full((V,), -20.0).index_fill(0, torch.tensor([2900]), 9.0).expand(draws, -1)
    middle = torch.full((V,), -20.0).index_fill(0, torch.arange(100, 300), 9.0).expand(draws, -1)
    u = ((torch.arange(draws) + 0.5) / draws).repeat_interleave(3)
    logits = torch.stack((wide, narrow, middle), 1).flatten(0, 1)
    tokens = pick_both_ways(logits, u, Sampling(1, top_p=0.9)).view(draws, 3)
    probs = wide[0].double().softmax(-1)
    size = int((probs.cumsum(-1) - probs < 0.9).sum())
    assert set(tokens[:, 0].tolist()) == set(range(size)) and 2600 < size < 2750
    assert (tokens[:, 1] == 2900).all()
    assert 178 <= len(tokens[:, 2].unique()) <= 182
    assert (tokens[:, 2] >= 100).all()
    assert (tokens[:, 2] < 300).all()


def test_wide_and_narrow_rows_together():
    """Guards against: rows mixed up where only some of a batch need the nucleus."""
    wide, narrow, draws = torch.zeros(100), torch.full((100,), -9.0), 3000
    narrow[70] = 9.0
    logits = torch.stack([wide, narrow] * draws)
    tokens = pick_both_ways(logits, uniforms(["k"], 2 * draws)[0], Sampling(1, top_p=0.5))
    assert (tokens[1::2] == 70).all()
    assert len(tokens[0::2].unique()) == 50


def test_top_k_beyond_the_first_look():
    """Guards against: top_k silently capped."""
    found = shares([1 / 100] * 100, Sampling(1, top_k=60))
    assert (found > 0).sum() == 60


def test_numbers_are_uniform_and_belong_to_the_name():
    """Guards against: u = 1 (an index past the end) and requests that share their numbers.

    99.99 % point of chi2(99): 161.
    """
    u = uniforms([f"0 answers 1 {i} {s}" for i in range(500) for s in range(4)], 20)
    assert u.min() >= 0 and u.max() < 1
    for numbers in (u.flatten(), u[:, 0], u[0::4].flatten()):
        counts = torch.histc(numbers, 100, 0, 1)
        assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 161
    assert len({tuple(row) for row in u.tolist()}) == len(u)
    assert abs(torch.corrcoef(torch.stack((u[:-1, 0], u[1:, 0])))[0, 1]) < 0.1
    assert torch.equal(uniforms(["a", "b"], 9)[1:, :4], uniforms(["b"], 4))


def test_generate_follows_the_distribution(chat):
    """Guards against: a sampler that is right alone and wrong in the loop.

    99.99 % point of chi2(3): 21.1, on one key.
    """
    weights = {40: 0.1, 41: 0.2, 42: 0.3, 43: 0.4}
    found = write(flat_gpt(weights), chat, [[7], [8]], Sampling(20, n=50))
    counts = Counter(t for group in found for c in group for t in c.tokens)
    assert set(counts) == set(weights) and counts.total() == 2000
    assert sum((counts[t] - 2000 * w) ** 2 / (2000 * w) for t, w in weights.items()) < 21.1
