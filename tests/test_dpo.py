"""dpo.py and core/batches.py: log-probs against brute force, the loss by hand.

And what a step may and may not change.
"""

import copy
import math
import random
from dataclasses import replace

import pytest
import torch
from conftest import tiny_gpt
from torch.utils._python_dispatch import TorchDispatchMode

import dpo as dpo_module
from core.batches import collate, drop_long, group_alike, micro_batches, row_length
from core.errors import UserError
from core.recipe import Recipe, blocks_of, plan, rate
from core.records import Example
from dpo import (
    Objective,
    Pass,
    dpo,
    dpo_loss,
    fit,
    pair_logps,
    reference_logps,
    sequence_logps,
    sft,
    sft_loss,
    token_logps,
)
from experiments.make_seed import Muon, muon
from model import GPT

STEADY = Recipe(lr=1e-2, lr_end=1e-2, warmup=0, batch_size=4)


def examples(count: int, seed: int = 0) -> list[Example]:
    rng = random.Random(seed)

    def text(most: int) -> list[int]:
        return [rng.randrange(2, 260) for _ in range(rng.randrange(1, most))]

    return [Example(text(9), text(7) + [1]) for _ in range(count)]


def pairs(count: int) -> list[tuple[Example, Example]]:
    sides = zip(examples(count), examples(count, seed=1))
    return [(a, Example(a.prompt, b.response)) for a, b in sides]


def weights(model: GPT) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def same(a: dict, b: dict) -> bool:
    return all(torch.equal(a[n], b[n]) for n in a)


@torch.no_grad()
def brute(model: GPT, example: Example) -> list[float]:
    """log p of each response token, one softmax at a time, one row at a time."""
    found = []
    read = list(example.prompt)
    for token in example.response:
        logits = model.logits(model(torch.tensor([read])))[0, -1]  # (V)
        found.append(logits.double().softmax(-1)[token].log().item())
        read.append(token)
    return found


# ---- log-probabilities ----


def test_the_shift(model):
    """Guards against: lucidrains' missing shift.

    It scores a perfect prediction at -40 a token.
    """
    for example in examples(5):
        ids, mask, *_ = collate([[example]])
        found = token_logps(model, ids, mask)[0]
        start = len(example.prompt) - 1
        assert found[start:].tolist() == pytest.approx(brute(model, example), abs=1e-4)
        assert not found[:start].any()


def test_sum_over_response_and_eos(model):
    """Guards against: the mean in place of the sum (lucidrains).

    Also against: a lost first token (verl #3287, OpenRLHF #973), a lost EOS.
    """
    rows = examples(6)
    expected = [sum(brute(model, e)) for e in rows]
    assert sequence_logps(model, [[e] for e in rows]).tolist() == pytest.approx(expected, abs=1e-3)
    assert sft_loss(model, [[e] for e in rows]).item() == pytest.approx(-sum(expected), abs=1e-2)


def test_padding_cannot_matter(model):
    """Guards against: pads counted in the log-probs (0xallam DPO #4)."""
    rows = examples(6) + [Example([5] * 30, [6] * 30)]
    together = sequence_logps(model, [[e] for e in rows])
    apart = torch.cat([sequence_logps(model, [[e]]) for e in rows])
    torch.testing.assert_close(together, apart, atol=1e-3, rtol=0)


def gradients(model: GPT, rows: list[Example]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    sft_loss(model, [[e] for e in rows]).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("tied", [True, False])
def test_chunks_change_nothing(monkeypatch, tied):
    """Guards against: a memory trick that is only nearly the same loss.

    Also against: one that loses the gradient of the head.
    """
    model, rows = tiny_gpt(tie_word_embeddings=tied), examples(6)
    whole, expected = gradients(model, rows), sft_loss(model, [[e] for e in rows]).item()
    monkeypatch.setattr("core.kernels.LOGITS_AT_ONCE", 3 * 260)
    assert sft_loss(model, [[e] for e in rows]).item() == pytest.approx(expected, rel=1e-5)
    for name, gradient in gradients(model, rows).items():
        torch.testing.assert_close(gradient, whole[name], atol=1e-3, rtol=1e-4)


class Sizes(TorchDispatchMode):
    """The shape of every tensor that any operation makes, backward passes included."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        results = made if isinstance(made, (tuple, list)) else [made]
        self.shapes += [tuple(x.shape) for x in results if isinstance(x, torch.Tensor)]
        return made


@pytest.mark.parametrize("at_once", [1 << 24, 4 * 260], ids=["whole", "chunks of 4"])
def test_only_response_positions_meet_the_head(monkeypatch, model, at_once):
    """Guards against: logits of B x T x V, forward or backward.

    (TRL #3985, LlamaFactory #4810: out of memory.)
    """
    monkeypatch.setattr("core.kernels.LOGITS_AT_ONCE", at_once)
    rows = examples(6)
    V, D = model.config.vocab_size, model.config.hidden_size
    groups = [rows[:3], rows[3:4], rows[4:]]
    size = collate(groups)[0].numel()
    with Sizes() as seen:
        sequence_logps(model, groups).sum().backward()
    # (D,V) is the head's weight.
    met = [math.prod(s[:-1]) for s in seen.shapes if s[-1:] == (V,) and s != (D, V)]
    answered = sum(len(e.response) for e in rows)
    assert max(met) == min(answered, at_once // V) < size
    assert max(map(math.prod, seen.shapes)) < size * V


def test_a_pair_in_one_row_is_two_rows(model):
    """Guards against: a rejected answer that sees the chosen one.

    Also against: one that stands at the wrong position, or is told by the wrong token.
    """
    both = pairs(7)
    chosen, rejected = pair_logps(model, both)
    for found, side in ((chosen, 0), (rejected, 1)):
        alone = sequence_logps(model, [[p[side]] for p in both])
        torch.testing.assert_close(found, alone, atol=1e-4, rtol=1e-5)
    together = torch.autograd.grad((chosen * 2 - rejected * 3).sum(), list(model.parameters()))
    better = sequence_logps(model, [[w] for w, _ in both])
    worse = sequence_logps(model, [[loser] for _, loser in both])
    apart = torch.autograd.grad(2 * better.sum() - 3 * worse.sum(), list(model.parameters()))
    for a, b in zip(together, apart):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)
    for w, loser in both:
        assert row_length([w, loser]) == len(w.prompt) + 1 + len(w.response) + len(loser.response)


def alike(count: int) -> list[Example]:
    """Examples that begin with the same nine tokens.

    Two of them have nothing else before the response.
    """
    start = [7] * 9
    longer = [Example(start + e.prompt, e.response) for e in examples(count - 2)]
    return longer + [Example(start, e.response) for e in examples(2, 5)]


def test_what_begins_alike_is_read_together(model):
    """Guards against: examples that see each other, or a beginning counted twice.

    Also against: a group too long for a pass; a row lost or doubled.
    """
    rows = alike(11) + examples(5)
    groups = group_alike(rows, range(16), 60)
    assert sorted(r for g in groups for r in g) == list(range(16))
    assert {len(g) for g in groups} >= {1, 4}
    grouped = [[rows[r] for r in g] for g in groups]
    for g in grouped:
        assert row_length(g) <= 60
        assert len(g) == 1 or g[0].prompt[:9] == g[-1].prompt[:9] == [7] * 9
    assert collate(grouped)[0].shape == (len(groups), max(row_length(g) for g in grouped))
    narrow = group_alike(alike(11), range(11), 25)
    assert [len(g) for g in narrow].count(1) > 0  # no room for many
    found = sequence_logps(model, grouped)
    alone = sequence_logps(model, [[e] for g in grouped for e in g])
    torch.testing.assert_close(found, alone, atol=1e-4, rtol=1e-5)
    weights = torch.randn(16)
    parameters = list(model.parameters())
    gradient = torch.autograd.grad((found * weights).sum(), parameters)
    expected = torch.autograd.grad((alone * weights).sum(), parameters)
    for a, b in zip(gradient, expected):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def counted(layer, calls: list[int]):
    """The layer's forward pass, which notes in `calls` that it was called."""
    forward = type(layer).forward

    def noting(*args):
        calls.append(1)
        return forward(layer, *args)

    return noting


def test_recompute_changes_no_gradient(model):
    """Guards against: a cheaper backward pass through other numbers, dropout among them.

    Also against: a switch that is never thrown.
    """
    rows, logs, counts = examples(8), [], []
    for recompute in (False, True):
        trained = copy.deepcopy(model)
        calls = []
        recipe = replace(STEADY, recompute=recompute, dropout=0.2, seed=3)
        trained.layers[0].forward = counted(trained.layers[0], calls)
        logs.append([(s["loss"], s["grad_norm"]) for s in sft(trained, rows, recipe)])
        counts.append(len(calls))
        assert not trained.recompute
    assert logs[0] == [pytest.approx(pair, rel=1e-5) for pair in logs[1]]
    assert counts[1] == 2 * counts[0]


# ---- the losses ----


def test_dpo_loss_by_hand():
    """Guards against: a flipped sign or a beta in the wrong place.

    beta ((-1 + 3) - (-6 + 4)) = 2.
    """
    numbers = [torch.tensor([x]) for x in (-1.0, -6.0, -3.0, -4.0)]
    assert dpo_loss(*numbers, beta=0.5).item() == pytest.approx(math.log(1 + math.exp(-2)))
    far = dpo_loss(*(torch.tensor([x]) for x in (-2000.0, 0.0, 0.0, 0.0)), beta=0.1)
    assert far.item() == pytest.approx(200)  # no overflow, and no NaN (TRL #1199)


def test_gradient_sign():
    """Guards against: training on the rejected answers."""
    chosen = torch.tensor([-5.0], requires_grad=True)
    rejected = torch.tensor([-5.0], requires_grad=True)
    dpo_loss(chosen, rejected, chosen.detach(), rejected.detach(), beta=0.1).sum().backward()
    assert chosen.grad.item() == pytest.approx(-0.05)
    assert rejected.grad.item() == pytest.approx(0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_first_loss_is_ln_2(dtype):
    """Guards against: a reference that is not M_t.

    Also against: dropout in it, or batches of another shape (lucidrains #31, TRL #1311).
    """
    recipe = Recipe(lr=1e-4, batch_size=10, tokens=60, dtype=dtype)
    log = dpo(tiny_gpt(), pairs(10), recipe, Objective(beta=0.1))
    near = 1e-6 if dtype == torch.float32 else 2e-2
    assert log[0]["dpo_loss"] == pytest.approx(math.log(2), abs=near)
    assert log[0]["loss"] == pytest.approx(log[0]["dpo_loss"], rel=1e-5)


def test_the_reference_is_m_t_and_stays(model):
    """Guards against: a reference that moves with the model; a reference of other weights."""
    seen, rows = [], pairs(3)
    before = copy.deepcopy(model)

    def noting(*args, **more):
        seen.append(torch.stack(args[2:], 1))
        return dpo_loss(*args, **more)

    recipe = Recipe(epochs=5, batch_size=3, lr=1e-2, tokens=10_000)
    dpo(model, rows, recipe, Objective(beta=0.1, loss=noting))
    sides = [sequence_logps(before, [[p[i]] for p in rows]) for i in (0, 1)]
    expected = torch.stack(sides, 1).detach().sort(0).values
    assert len(seen) == 5
    for reference in seen:
        torch.testing.assert_close(reference.sort(0).values, expected, atol=1e-4, rtol=0)
        assert not reference.requires_grad


def test_reference_follows_its_pairs(model):
    """Guards against: batches sorted by length that are not put back in order."""
    rows = pairs(12)
    found = reference_logps(model, rows, Recipe(tokens=50))
    for pair, logps in zip(rows, found.tolist()):
        expected = [sum(brute(model, example)) for example in pair]
        assert logps == pytest.approx(expected, abs=1e-3)


def test_margin_grows_on_one_pair(model):
    """Guards against: a loop that runs and learns nothing.

    Chosen goes up against rejected, and the loss falls.
    """
    recipe = Recipe(epochs=30, lr=1e-3, lr_end=1e-3, warmup=0)
    log = dpo(model, pairs(1), recipe, Objective(beta=0.1))
    assert log[0]["margin"] == pytest.approx(0, abs=1e-5)
    assert log[-1]["margin"] > 0.5 and log[-1]["accuracy"] == 1 and log[-1]["dpo_loss"] < 0.5
    assert log[-1]["chosen_change"] > log[-1]["rejected_change"]


def test_replay_joins_every_step():
    """Guards against: a switch that is never wired up (lucidrains).

    Also against: one that leaks into the DPO figures.
    """
    rows, judged = pairs(8), examples(20, seed=2)
    models = [tiny_gpt(), tiny_gpt()]
    without = dpo(models[0], rows, STEADY, Objective(beta=0.1, replay=judged, replay_size=0))
    replayed = dpo(models[1], rows, STEADY, Objective(beta=0.1, replay=judged, replay_size=4))
    assert len(without) == len(replayed) == 2
    for step in replayed:
        assert step["loss"] > step["dpo_loss"] + 0.1
    assert replayed[0]["dpo_loss"] == pytest.approx(without[0]["loss"])
    assert not same(weights(models[0]), weights(models[1]))


def test_replay_draws_whole_blocks(monkeypatch):
    """Guards against: questions on one text that are drawn apart, so that each is read by itself.

    Also against: more replay than was asked for, the same blocks in every step.
    """
    drawn = []

    def sft_passes(model: GPT, replay: list, numbers: list[int], recipe: Recipe) -> list[Pass]:
        drawn.append(numbers)
        return []

    monkeypatch.setattr(dpo_module, "sft_passes", sft_passes)
    objective = Objective(beta=0.1, replay=examples(24, seed=2), replay_size=8)
    recipe = replace(STEADY, block=4, batch_size=2)
    dpo(tiny_gpt(), pairs(8), recipe, objective)
    assert len(drawn) == 4
    blocks = [list(block) for block in blocks_of(24, 4)]
    for numbers in drawn:
        assert len(numbers) == 8
        assert numbers[:4] in blocks and numbers[4:] in blocks and numbers[:4] != numbers[4:]
    assert len(set(map(tuple, drawn))) > 1
    drawn.clear()
    dpo(tiny_gpt(), pairs(8), replace(recipe, block=1), objective)
    assert all(len(set(numbers)) == 8 and numbers[:4] not in blocks for numbers in drawn)


# ---- the loop ----


def test_examples_too_long_are_left_out_aloud():
    """Guards against: responses cut in the middle, or dropped in silence."""
    said = []
    short, long = Example([1] * 4, [2] * 4), Example([1] * 4, [2] * 5)
    assert drop_long([short, long, short], 8, said.append) == [short, short]
    assert len(said) == 1 and "1 of 3" in said[0]
    assert drop_long([short], 8, said.append) == [short] and len(said) == 1


def test_weights_are_fp32_and_small_steps_move_them():
    """Guards against: bf16 weights, which a learning rate of 1e-6 does not move."""
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny_gpt()
        before = weights(model)
        sft(model, examples(4), Recipe(lr=1e-6, lr_end=1e-6, warmup=0, dtype=dtype))
        moved = {n: (p - before[n]).abs() for n, p in model.named_parameters()}
        assert all(p.dtype == torch.float32 for p in model.parameters())
        assert all(0 < d.max() < 3e-6 for d in moved.values())


def test_sft_learns(model):
    """Guards against: the NaN of lucidrains' README data, and labels that never reach the loss."""
    logps = [x for e in examples(4) for x in brute(model, e)]
    log = sft(model, examples(4), Recipe(epochs=40, lr=1e-2, lr_end=1e-3, batch_size=4))
    assert log[0]["loss"] == pytest.approx(-sum(logps) / len(logps), rel=1e-4)
    assert log[-1]["loss"] < 0.5 * log[0]["loss"]


def test_every_example_weighs_the_same(model):
    """Guards against: the digit of a short verdict drowned among the words of the answers."""
    rows = [Example([5, 6], [7, 1]), Example([5, 8], [9] * 40 + [1]), Example([5], [1])]
    logps = [brute(model, e) for e in rows]
    by_example = sft(copy.deepcopy(model), rows, Recipe(per_example=True))[0]["loss"]
    by_token = sft(copy.deepcopy(model), rows, Recipe(per_example=False))[0]["loss"]
    assert by_example == pytest.approx(-sum(sum(x) / len(x) for x in logps) / 3, rel=1e-4)
    assert by_token == pytest.approx(-sum(map(sum, logps)) / sum(map(len, logps)), rel=1e-4)


@pytest.mark.parametrize(
    "train",
    [
        lambda model, recipe: sft(model, examples(8), recipe),
        lambda model, recipe: sft(model, examples(8), replace(recipe, per_example=True)),
        lambda model, recipe: dpo(
            model, pairs(8), recipe, Objective(beta=0.1, replay=examples(9, 2), replay_size=3)
        ),
    ],
    ids=["sft", "sft, examples", "dpo"],
)
def test_a_step_cut_into_passes_is_the_same_step(monkeypatch, train):
    """Guards against: a loss averaged per micro-batch, so that rows in short batches weigh more."""
    seen, clip = [], torch.nn.utils.clip_grad_norm_

    def record(parameters, most):
        parameters = list(parameters)
        seen.append([p.grad.clone() for p in parameters])
        return clip(parameters, most)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", record)
    logs = [train(tiny_gpt(), Recipe(batch_size=8, tokens=tokens))[0] for tokens in (10_000, 40, 1)]
    for gradients in seen[1:]:
        for a, b in zip(seen[0], gradients):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)
    for log in logs[1:]:
        assert log == pytest.approx(logs[0], abs=1e-4)  # reported: the step, not its last pass


def test_micro_batches():
    """Guards against: rows lost or doubled when a step is cut; memory over the budget."""
    rng = random.Random(0)
    for _ in range(50):
        lengths = [rng.randrange(1, 60) for _ in range(40)]
        rows, budget = rng.sample(range(40), rng.randrange(1, 40)), rng.randrange(20, 300)
        batches = micro_batches(rows, lengths, budget)
        assert sorted(r for b in batches for r in b) == sorted(rows)
        assert all(len(b) * max(lengths[r] for r in b) <= budget or len(b) == 1 for b in batches)


@pytest.mark.parametrize(
    "count, size, epochs", [(10, 4, 3), (8, 4, 1), (3, 16, 2), (33, 16, 1), (1, 1, 4)]
)
def test_plan(count, size, epochs):
    """Guards against: rows seen twice or never in an epoch.

    Also against: a last step of one row, and one order for all epochs.
    """
    steps = plan(count, Recipe(epochs=epochs, batch_size=size, seed=1))
    each = math.ceil(count / size)
    assert len(steps) == each * epochs
    assert max(map(len, steps)) <= size
    assert max(map(len, steps)) - min(map(len, steps)) <= 1
    orders = [[r for s in steps[e * each : (e + 1) * each] for r in s] for e in range(epochs)]
    assert all(sorted(o) == list(range(count)) for o in orders)
    if count > 3:
        orders.append([r for s in plan(count, Recipe(batch_size=size, seed=2)) for r in s])
        assert len(set(map(tuple, orders))) == epochs + 1


@pytest.mark.parametrize("count, size", [(10, 4), (33, 16), (1, 1), (64, 16)])
def test_blocks_of_one_are_the_old_plan(count, size):
    """Guards against: another order of examples in every run that has no blocks."""
    rng = random.Random("order 7")
    steps = []
    for _ in range(2):
        order = rng.sample(range(count), count)
        n = math.ceil(count / size)
        steps += [order[count * i // n : count * (i + 1) // n] for i in range(n)]
    assert plan(count, Recipe(epochs=2, batch_size=size, seed=7)) == steps
    assert plan(count, Recipe(epochs=2, batch_size=size, seed=7, block=1)) == steps


@pytest.mark.parametrize("count, size", [(64, 16), (37, 16), (30, 8), (3, 16), (9, 3)])
def test_blocks_stay_together(count, size):
    """Guards against: questions on one text that part where no step ends.

    Also against: a row that is lost with the short block.
    """
    recipe = Recipe(epochs=3, batch_size=size, seed=1, block=4)
    steps = plan(count, recipe)
    each = math.ceil(count / size)
    orders = []
    for epoch in range(3):
        of_epoch = steps[epoch * each : (epoch + 1) * each]
        order = [row for step in of_epoch for row in step]
        assert sorted(order) == list(range(count))
        orders.append(order)
        for block in blocks_of(count, 4):
            start = order.index(block[0])
            assert order[start : start + len(block)] == list(block)
        # a border of two steps parts one block at most
        firsts = {block[0] for block in blocks_of(count, 4)}
        parted = sum(step[0] not in firsts for step in of_epoch)
        assert parted <= each - 1
        if count == 64:
            assert parted == 0
    if count > 4:
        assert len(set(map(tuple, orders))) == 3
    # from the end, where the judge examples stand
    assert [list(block) for block in blocks_of(10, 4)] == [[0, 1], [2, 3, 4, 5], [6, 7, 8, 9]]


def test_learning_rate():
    """Guards against: a rate that rises where it should fall (RAM's lr 5.5e-8, final_lr 1.1e-6)."""
    recipe = Recipe(lr=1e-3, lr_end=1e-4, warmup=0.2)
    rates = [rate(i, 10, recipe) for i in range(10)]
    assert rates[:2] == pytest.approx([0.5, 1.0]) and rates[-1] == pytest.approx(0.1)
    assert all(a > b for a, b in zip(rates[1:], rates[2:]))
    assert rate(0, 1, recipe) == 1


@pytest.mark.parametrize(
    "train",
    [
        lambda model: sft(model, examples(9), STEADY),
        lambda model: dpo(model, pairs(9), STEADY, Objective(beta=0.1)),
    ],
    ids=["sft", "dpo"],
)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_loss_stops(train, bad):
    """Guards against: a run that goes on with NaN weights (TRL #1199).

    The message names the stage, the step and the rows.
    """
    model = tiny_gpt()
    with torch.no_grad():
        model.norm.weight[0] = bad
    with pytest.raises(UserError, match=r"(sft|dpo).*step 0.*rows \[+\d"):
        train(model)


def test_non_finite_gradient_stops(model):
    """Guards against: a loss that looks well while its gradient turns every weight into NaN.

    The case is sqrt at 0.
    """

    def loss_fn():
        return (model.norm.weight.sum() * 0).sqrt(), {}

    with pytest.raises(UserError):
        fit(model, [[Pass(loss_fn, [0], 1.0)]], STEADY, name="sft")


def test_dropout_ends_with_training():
    """Guards against: answers written with dropout still on; dropout that is never on."""
    model, plain = tiny_gpt(), tiny_gpt()
    logs = [sft(m, examples(8), Recipe(dropout=d)) for m, d in ((model, 0.5), (plain, 0.0))]
    assert logs[0][0]["loss"] != logs[1][0]["loss"]
    assert not model.training and model.dropout == 0
    ids = torch.arange(20)[None]
    assert torch.equal(model(ids), model(ids))


@pytest.mark.parametrize(
    "train",
    [
        lambda model, recipe: sft(model, examples(9), recipe),
        lambda model, recipe: dpo(
            model, pairs(9), recipe, Objective(beta=0.1, replay=examples(9, 2), replay_size=2)
        ),
    ],
    ids=["sft", "dpo"],
)
def test_same_seed_same_weights(train):
    """Guards against: a seed that is ignored (torchtune #2335). Bit by bit."""
    models = [tiny_gpt() for _ in range(3)]
    for model, seed in zip(models, (5, 5, 6)):
        train(model, Recipe(dropout=0.1, lr=1e-3, epochs=2, batch_size=4, seed=seed))
    a, b, c = map(weights, models)
    assert same(a, b) and not same(a, c)


# ---- experiments/make_seed.py ----


def test_muon_moves_every_weight(model):
    """Guards against: a parameter that no optimizer owns, or that two own."""
    before, recipe = weights(model), Recipe(epochs=10, lr=1e-2, lr_end=1e-3)
    owned = [id(p) for o in muon(model, recipe) for g in o.param_groups for p in g["params"]]
    assert sorted(owned) == sorted(map(id, model.parameters()))
    log = sft(model, examples(8), recipe, optimizers=muon)
    assert log[-1]["loss"] < log[0]["loss"]
    assert not any(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_muon_is_torch_muon():
    """Guards against: another step than torch.optim.Muon's, which computes it in bf16.

    Also against: matrices of one shape mixed up.
    """
    rng = torch.Generator().manual_seed(0)
    shapes = [(24, 60), (60, 24), (24, 60), (16, 48), (40, 16)]
    ours, theirs = ([torch.nn.Parameter(torch.zeros(s)) for s in shapes] for _ in range(2))
    steppers = Muon(ours, lr=0.02), torch.optim.Muon(theirs, lr=0.02, weight_decay=0.0)
    for _ in range(4):
        before = [[p.detach().clone() for p in side] for side in (ours, theirs)]
        for p, q in zip(ours, theirs):
            p.grad = torch.randn(p.shape, generator=rng)
            q.grad = p.grad.clone()
        for stepper in steppers:
            stepper.step()
        for p, q, p_before, q_before in zip(ours, theirs, *before):
            moved, expected = p.detach() - p_before, q.detach() - q_before
            assert (moved - expected).norm() < 0.04 * expected.norm()
