"""dpo.py: everything that moves weights; the only backward() of the program.

In: a model, and examples or preference pairs as token ids.  Out: the same model, changed in place,
and a log of figures. Against the DPO of large libraries this file leaves out, on purpose:
1. the second network: the reference is M_t itself, so two log-probs a pair, taken before step 1,
   stand for it;
2. the KL term, the reward model and the value function: DPO has none (Rafailov et al. 2023, eq. 7);
3. loss zoos and trainers: `fit` is one loop, and it adds up what a step is made of.

Shapes: B rows, T tokens, E examples, D hidden, V vocabulary, M response tokens of all rows
together.
"""

import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from core.batches import collate, group_alike, micro_batches, row_length
from core.device import precision
from core.errors import UserError
from core.kernels import picked_logps
from core.records import Example
from model import GPT, PLAIN_ATTENTION_LIMIT

PreferencePair = tuple[Example, Example]  # (chosen, rejected), with the same prompt
PairLoss = Callable[..., Tensor]  # as dpo_loss: four log-probs a pair, and beta -> a loss a pair
# what one pass goes through -> the sum of its losses, and sums of figures for the log
PassLoss = Callable[[list], tuple[Tensor, dict[str, Tensor]]]
Optimizers = Callable[[GPT, "Recipe"], list[torch.optim.Optimizer]]


@dataclass(frozen=True)
class Recipe:
    """How one training stage steps."""

    epochs: int = 1
    batch_size: int = 16  # examples or pairs a step
    lr: float = 1e-6
    lr_end: float = 1e-7  # linear decay from lr to this
    warmup: float = 0.1  # share of the steps in which the rate rises from 0 to lr
    clip: float = 1.0  # largest gradient norm
    dropout: float = 0.0
    recompute: bool = False  # keep less in the forward pass, and compute it again in the backward
    even: bool = False  # SFT: every example weighs the same; else every token does
    tokens: int = 2048  # of one forward and backward pass; a step adds up as many as it needs
    dtype: torch.dtype = torch.float32  # of the arithmetic; weights and sums stay fp32
    seed: int = 0


# ---- log-probabilities ----


def token_logps(model: GPT, ids: Tensor, mask: Tensor, **layout: Tensor) -> Tensor:
    """log p(token | what stands before it) of the masked tokens: ids, mask (B,T) -> (B,T-1).

    The one place of the shift: the hidden state at i predicts token i + 1. Elsewhere the result is
    0. `layout` goes to the model. Only response positions meet the head.
    """
    rows, places = mask[:, 1:].nonzero(as_tuple=True)  # (M,), (M,)
    hidden = model(ids, **layout)[rows, places]  # (B,T,D) -> (M,D)
    picked = picked_logps(hidden, model.head.to(hidden.dtype), ids[rows, places + 1])  # (M,)
    return picked.new_zeros(mask[:, 1:].shape).index_put((rows, places), picked)


def sequence_logps(model: GPT, groups: Sequence[Sequence[Example]]) -> Tensor:
    """log p(response | prompt) of each example of each group: (E,).

    It is the sum, not the mean, over response tokens, EOS included. A group is one row, whose
    examples are branches behind a beginning that they share: see the picture in core/batches.py.
    """
    ids, mask, branch, position = collate(groups, model.device)  # (B,T) each
    sizes = torch.tensor([len(group) for group in groups], device=ids.device)  # (B,)
    most = int(sizes.max())
    layout = {}
    if most > 1:
        same_branch = branch[:, :, None] == branch[:, None, :]  # (B,T,T)
        beginning = branch[:, None, :] == 0  # (B,1,T)
        layout = {"positions": position, "seen": (same_branch | beginning).tril()}
    logps = token_logps(model, ids, mask, **layout)  # (B,T-1)
    # Column j of the sums is branch j; column 0, the beginning, holds no response.
    sums = logps.new_zeros(len(groups), most + 1).scatter_add(1, branch[:, 1:], logps)
    is_example = torch.arange(most, device=ids.device) < sizes[:, None]  # (B,most)
    return sums[:, 1:][is_example]


def pair_logps(model: GPT, pairs: Sequence[PreferencePair]) -> tuple[Tensor, Tensor]:
    """log p of the chosen and of the rejected responses, (B,) each."""
    return sequence_logps(model, pairs).view(-1, 2).unbind(1)


@torch.no_grad()
def reference_logps(model: GPT, groups: Sequence[Sequence[Example]], recipe: Recipe) -> Tensor:
    """log p of the examples of equally large groups under fixed weights: (groups, examples in
    each).

    Of pairs under M_t, before step 1, this is the whole reference of DPO.
    """
    assert not model.training, "dropout in the reference would make it another model"
    logps = torch.zeros(len(groups), len(groups[0]), device=model.device)
    lengths = [row_length(group) for group in groups]
    for batch in micro_batches(range(len(groups)), lengths, recipe.tokens):
        with precision(model.device, recipe.dtype):
            found = sequence_logps(model, [groups[i] for i in batch])
        logps[batch] = found.view(len(batch), -1)
    return logps


# ---- losses ----


def sft_loss(
    model: GPT, groups: Sequence[Sequence[Example]], weights: Tensor | float = 1.0
) -> Tensor:
    """Sum of the negative log-probs of the responses, each times its weight (E,).

    Callers divide.
    """
    return -(sequence_logps(model, groups) * weights).sum()


def margins(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> Tensor:
    """h = (log pi_w - log ref_w) - (log pi_l - log ref_l), (B,) each."""
    return (chosen - ref_chosen) - (rejected - ref_rejected)


def dpo_loss(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float
) -> Tensor:
    """-log sigmoid(beta h), a loss a pair (Rafailov et al. 2023, eq. 7).

    In: log p of whole responses under the policy and under the reference, (B,) each.
    """
    h = margins(chosen, rejected, ref_chosen, ref_rejected)
    return -F.logsigmoid(beta * h)


# ---- one loop for all training ----


class Pass(NamedTuple):
    """A part of a step that goes through the model at once. Its loss counts `weight` times."""

    loss: PassLoss
    batch: list
    weight: float


def plan(count: int, recipe: Recipe) -> list[list[int]]:
    """The rows of each step: every epoch in another order, cut into steps of nearly equal size."""
    rng = random.Random(f"order {recipe.seed}")
    n = math.ceil(count / recipe.batch_size)
    steps = []
    for _ in range(recipe.epochs):
        order = rng.sample(range(count), count)
        for i in range(n):
            steps.append(order[count * i // n : count * (i + 1) // n])
    return steps


def adamw(model: GPT, recipe: Recipe) -> list[torch.optim.Optimizer]:
    weights = model.parameters()
    return [
        torch.optim.AdamW(weights, lr=recipe.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    ]


def rate(step: int, steps: int, recipe: Recipe) -> float:
    """The learning rate as a share of its peak: a linear rise, then a linear fall to lr_end."""
    rise = max(1, round(recipe.warmup * steps))
    if step < rise:
        return (step + 1) / rise
    end = recipe.lr_end / recipe.lr
    return 1 - (1 - end) * (step + 1 - rise) / max(1, steps - rise)


def fit(
    model: GPT,
    steps: Sequence[Sequence[Pass]],
    recipe: Recipe,
    *,
    name: str,
    optimizers: Optimizers = adamw,
) -> list[dict]:
    """Trains `model` in place; returns one dict of figures a step.

    The loss of a step is the weighted sum over its passes. So a step can be cut into as many passes
    as memory asks for, and its gradient stays the same. Raises UserError where a loss or a gradient
    is not finite.
    """
    torch.manual_seed(recipe.seed)  # for dropout
    model.train()
    model.dropout = recipe.dropout
    model.recompute = recipe.recompute
    opts = optimizers(model, recipe)
    param_groups = [group for opt in opts for group in opt.param_groups]
    peaks = [group["lr"] for group in param_groups]
    log = []
    bar = tqdm(steps, desc=name, unit="step", leave=False, disable=None)
    for number, passes in enumerate(bar):
        share = rate(number, len(steps), recipe)
        for group, peak in zip(param_groups, peaks, strict=True):
            group["lr"] = peak * share
        figures = add_up_gradients(model, passes, recipe, place=f"{name}, step {number}")
        for opt in opts:
            opt.step()
            opt.zero_grad()
        log.append({"step": number, **figures, "lr": recipe.lr * share})
        bar.set_postfix(loss=f"{figures['loss']:.3f}", refresh=False)
    model.eval()
    model.dropout = 0.0
    model.recompute = False
    return log


def add_up_gradients(
    model: GPT, passes: Sequence[Pass], recipe: Recipe, *, place: str
) -> dict[str, float]:
    """Forward and backward of all passes of one step, then clipping; returns the step's figures."""
    figures: dict[str, float] = defaultdict(float)
    for loss_of, batch, weight in passes:
        with precision(model.device, recipe.dtype):
            loss, sums = loss_of(batch)
        check_finite(loss.item(), "loss", place, batch)
        (loss * weight).backward()
        figures["loss"] += loss.item() * weight
        for key, value in sums.items():
            figures[key] += float(value) * weight
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip))
    check_finite(norm, "gradient", place, [i for p in passes for i in p.batch])
    return {**figures, "grad_norm": norm}


def check_finite(value: float, what: str, place: str, batch: list) -> None:
    if not math.isfinite(value):
        raise UserError(
            f"{place}: the {what} became {value}, rows {batch[:8]}; the last saved model is "
            f"untouched. Lower the learning rate or look at these rows."
        )


# ---- SFT ----


def sft(
    model: GPT,
    examples: Sequence[Example],
    recipe: Recipe,
    *,
    name: str = "sft",
    optimizers: Optimizers = adamw,
) -> list[dict]:
    """Supervised fine-tuning on the responses of `examples`. Changes `model`; returns the log."""
    steps = [sft_passes(model, examples, ids, recipe) for ids in plan(len(examples), recipe)]
    return fit(model, steps, recipe, name=name, optimizers=optimizers)


def sft_passes(
    model: GPT, examples: Sequence[Example], ids: Sequence[int], recipe: Recipe
) -> list[Pass]:
    """One supervised step over the examples `ids`, cut into passes.

    Together they weigh one mean: over examples where the recipe is `even`, else over tokens.
    """
    tokens = sum(len(examples[i].response) for i in ids)
    total = len(ids) if recipe.even else tokens
    # Plain attention has T x T weights, so a group is no longer than it can bear.
    most = min(recipe.tokens, PLAIN_ATTENTION_LIMIT)
    groups = group_alike([examples[i] for i in ids], most)

    def loss_of(batch: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
        rows = [groups[g] for g in batch]
        sizes = [len(example.response) for row in rows for example in row]
        weights = [1 / size if recipe.even else 1.0 for size in sizes]
        return sft_loss(model, rows, torch.tensor(weights, device=model.device)), {}

    lengths = [row_length(group) for group in groups]
    batches = micro_batches(range(len(groups)), lengths, recipe.tokens)
    return [Pass(loss_of, batch, 1 / total) for batch in batches]


# ---- DPO ----


@dataclass(frozen=True)
class Objective:
    """What DPO asks for, and what joins it in every step."""

    beta: float = 0.1  # how strongly the model holds on to the reference
    loss: PairLoss = dpo_loss
    nll: float = 0.0  # weight of the chosen answer's negative log-prob a token
    replay: Sequence[Example] = ()  # judge examples of the seed data
    replay_size: int = 0  # how many of them join a step
    reference: GPT | None = None  # None: the frozen M_t


def dpo(
    model: GPT, pairs: Sequence[PreferencePair], recipe: Recipe, objective: Objective
) -> list[dict]:
    """M_t -> M_{t+1}, in place; returns the log.

    The NLL term is that of Iterative RPO (Pang et al. 2024, eq. 1): DPO alone may widen the margin
    by pushing both answers down. Replay keeps the judge: without it the model forgets how to judge.
    """
    start = reference_logps(model, pairs, recipe)  # (pairs, 2)
    reference = start
    if objective.reference is not None:
        reference = reference_logps(objective.reference, pairs, recipe)

    def loss_of(batch: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
        chosen, rejected = pair_logps(model, [pairs[i] for i in batch])
        logps = (chosen, rejected, *reference[batch].unbind(1))
        losses = objective.loss(*logps, beta=objective.beta)
        sizes = torch.tensor([len(pairs[i][0].response) for i in batch], device=chosen.device)
        nll = -chosen / sizes
        margin = objective.beta * margins(*logps).detach()
        changes = torch.stack([chosen, rejected], dim=1).detach() - start[batch]  # (B,2)
        figures = {
            "dpo_loss": losses.detach().sum(),
            "margin": margin.sum(),
            "accuracy": (margin > 0).sum(),
            "chosen_change": changes[:, 0].sum(),
            "rejected_change": changes[:, 1].sum(),
        }
        return (losses + objective.nll * nll).sum(), figures

    lengths = [row_length(pair) for pair in pairs]
    rng = random.Random(f"replay {recipe.seed}")
    steps = []
    for ids in plan(len(pairs), recipe):
        batches = micro_batches(ids, lengths, recipe.tokens)
        passes = [Pass(loss_of, batch, 1 / len(ids)) for batch in batches]
        if objective.replay and objective.replay_size:
            size = min(objective.replay_size, len(objective.replay))
            drawn = rng.sample(range(len(objective.replay)), size)
            passes += sft_passes(model, objective.replay, drawn, recipe)
        steps.append(passes)
    return fit(model, steps, recipe, name="dpo")
