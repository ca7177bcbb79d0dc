"""dpo.py: everything that moves weights; the only backward() of the program.

In: a model, and examples or preference pairs as token ids.  Out: the same model, changed in place,
and a log of figures. Compared with large libraries this file leaves out, on purpose:
1. a second network: the reference is M_t before training, so its two log-probs of each pair are
   computed once, and the numbers are kept;
2. a KL term, a reward model, a value function: DPO has none (Rafailov et al. 2023, eq. 7);
3. a menu of losses and a trainer class: `fit` is one loop for SFT and for DPO.

Shapes: B rows, T tokens, E examples, D hidden, V vocabulary, M response tokens of all rows
together.
"""

import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from core.batches import branch_view, collate, group_alike, micro_batches, row_length
from core.device import precision
from core.errors import UserError
from core.kernels import picked_logps
from core.progress import Progress, trained_weights
from core.ranks import exchange, rank
from core.recipe import Recipe, blocks_of, plan, rate
from core.records import Example
from core.shards import keep_shards, my_share, share_size, whole
from model import GPT, PLAIN_ATTENTION_LIMIT

PreferencePair = tuple[Example, Example]  # (chosen, rejected), with the same prompt


# ---- log-probabilities ----


def token_logps(model: GPT, ids: Tensor, mask: Tensor, **view: Tensor) -> Tensor:
    """log p(token | what stands before it) of responses (mask True), else 0: (B,T) -> (B,T-1).

    The one place of the shift: the hidden state at i predicts token i + 1. Only the responses meet
    the head. `view` tells the model where tokens stand and what they see (GPT.forward).
    """
    rows, places = mask[:, 1:].nonzero(as_tuple=True)  # (M,), (M,)
    hidden = model(ids, **view)[rows, places]  # (B,T,D) -> (M,D)
    picked = picked_logps(hidden, model.head.to(hidden.dtype), ids[rows, places + 1])  # (M,)
    return picked.new_zeros(mask[:, 1:].shape).index_put((rows, places), picked)


def sequence_logps(model: GPT, groups: Sequence[Sequence[Example]]) -> Tensor:
    """log p(response | prompt) of each example of each group: (E,).

    It is the sum, not the mean, over response tokens, EOS included. A group is one row. A pair is
    such a row: x | y_w | y_l, where the prompt x is read once (but for its last token, which each
    branch has), and y_l must not see y_w. The picture in core/batches.py shows the tensors.
    """
    ids, mask, branch, position = collate(groups, model.device)  # (B,T) each
    sizes = torch.tensor([len(group) for group in groups], device=ids.device)  # (B,)
    most = int(sizes.max())
    # 1) each token with the tokens that its branch may look at
    logps = token_logps(model, ids, mask, **branch_view(branch, position))  # (B,T-1)
    # 2) add up each branch. logps[:, i] is of token i + 1, hence branch[:, 1:]. Column j of the
    #    sums is branch j; column 0, the beginning, is 0
    sums = logps.new_zeros(len(groups), most + 1).scatter_add(1, branch[:, 1:], logps)
    # 3) rows with fewer than `most` examples have empty columns
    is_example = torch.arange(most, device=ids.device) < sizes[:, None]  # (B,most)
    return sums[:, 1:][is_example]


def pair_logps(model: GPT, pairs: Sequence[PreferencePair]) -> tuple[Tensor, Tensor]:
    """log p of the chosen and of the rejected responses, (B,) each. A pair is a group of two."""
    return sequence_logps(model, pairs).view(-1, 2).unbind(1)


@torch.no_grad()
def reference_logps(model: GPT, groups: Sequence[Sequence[Example]], recipe: Recipe) -> Tensor:
    """log p of every example, without gradients: (groups, examples in each).

    All groups have the same number of examples. `dpo` calls this once, before training changes the
    model. The numbers stand for a second, frozen network.
    """
    assert not model.training, "dropout in the reference would make it another model"
    logps = torch.zeros(len(groups), len(groups[0]))
    lengths = [row_length(group) for group in groups]
    batches = micro_batches(range(len(groups)), lengths, recipe.tokens, share_size(len(groups)))
    found = []
    for batch in my_share(batches):
        with precision(model.device, recipe.dtype):
            values = sequence_logps(model, take(groups, batch))
        found.append((batch, values.view(len(batch), -1).cpu()))
    for of_process in exchange(found):
        for batch, values in of_process:
            logps[batch] = values
    return logps.to(model.device)


# ---- losses ----


def sft_loss(
    model: GPT, groups: Sequence[Sequence[Example]], weights: Tensor | float = 1.0
) -> Tensor:
    """Sum of the negative log-probs of the responses, each times its weight (E,)."""
    return -(sequence_logps(model, groups) * weights).sum()


def margins(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> Tensor:
    """h = (log pi_w - log ref_w) - (log pi_l - log ref_l), (B,) each."""
    return (chosen - ref_chosen) - (rejected - ref_rejected)


def dpo_loss(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float
) -> Tensor:
    """-log sigmoid(beta h), one loss per pair (Rafailov et al. 2023, eq. 7).

    In: log p of whole responses under the policy and under the reference, (B,) each.
    """
    h = margins(chosen, rejected, ref_chosen, ref_rejected)
    return -F.logsigmoid(beta * h)


# ---- one loop for all training ----


class Pass(NamedTuple):
    """A part of a step: what goes through the model at once.

    `weight` is 1 / (the number of pairs, or of examples, or of tokens) of its part of the step:
    the pairs, or the replay. So the passes of a part add up to a mean, however it is cut.
    """

    loss_of: Callable[[], tuple[Tensor, dict[str, Tensor]]]  # -> summed loss, summed figures
    numbers: list[int]  # of the pairs or examples in it, for messages
    weight: float


def take(items: Sequence, numbers: Sequence[int]) -> list:
    return [items[number] for number in numbers]


def adamw(model: GPT, recipe: Recipe) -> list[torch.optim.Optimizer]:
    weights = trained_weights(model).values()
    return [
        torch.optim.AdamW(weights, lr=recipe.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    ]


MakeOptimizers = Callable[[GPT, Recipe], list[torch.optim.Optimizer]]


def fit(
    model: GPT,
    steps: Sequence[Sequence[Pass]],
    recipe: Recipe,
    *,
    name: str,
    optimizers: MakeOptimizers = adamw,
    progress: Progress | None = None,
) -> list[dict]:
    """Trains `model` in place; returns one dict of figures per step.

    `optimizers` makes them; only experiments/make_seed.py has others. A training that was killed
    goes on where `progress` stands. Raises UserError where a loss or a gradient is not finite.
    """
    torch.manual_seed(recipe.seed)  # for dropout
    model.train()
    model.dropout = recipe.dropout
    model.recompute = recipe.recompute
    keep_shards(model)
    opts = optimizers(model, recipe)
    param_groups = [group for opt in opts for group in opt.param_groups]
    peaks = [group["lr"] for group in param_groups]
    log = progress.restore(model, opts, len(steps)) if progress else []
    rest = range(len(log), len(steps))
    bar = tqdm(rest, desc=name, unit="step", leave=False, disable=True if rank() else None)
    for step in bar:
        share = rate(step, len(steps), recipe)  # of the peak
        for group, peak in zip(param_groups, peaks, strict=True):
            group["lr"] = peak * share
        figures = add_up_gradients(model, steps[step], recipe, place=f"{name}, step {step}")
        for opt in opts:
            opt.step()
            opt.zero_grad()
        log.append({"step": step, **figures, "lr": recipe.lr * share})
        bar.set_postfix(loss=f"{figures['loss']:.3f}", refresh=False)
        if progress:
            progress.keep(model, opts, log, len(steps))
    model.eval()
    model.dropout = 0.0
    model.recompute = False
    return log


def add_up_gradients(
    model: GPT, passes: Sequence[Pass], recipe: Recipe, *, place: str
) -> dict[str, float]:
    """Forward and backward of all passes of a step, then clipping. Returns the step's figures."""
    figures: dict[str, float] = defaultdict(float)
    for loss_of, numbers, weight in my_share(passes, lambda one: one._replace(weight=0.0)):
        with precision(model.device, recipe.dtype):
            loss, sums = loss_of()
        check_finite(loss.item(), "loss", place, numbers)
        (loss * weight).backward()
        figures["loss"] += loss.item() * weight
        for key, value in sums.items():
            figures[key] += float(value) * weight
    shares = exchange(figures)  # of each process
    for name in shares[0]:
        figures[name] = sum(share.get(name, 0.0) for share in shares)
    norm = float(whole(torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)))
    check_finite(norm, "gradient", place, [i for one in passes for i in one.numbers])
    return {**figures, "grad_norm": norm}


def check_finite(value: float, what: str, place: str, numbers: list[int]) -> None:
    """Raises UserError for NaN and infinity."""
    if not math.isfinite(value):
        raise UserError(
            f"{place}: the {what} became {value}, rows {numbers[:8]}; the last saved model is "
            f"untouched. Lower the learning rate or look at these rows."
        )


# ---- SFT ----


def sft(
    model: GPT,
    examples: Sequence[Example],
    recipe: Recipe,
    *,
    name: str = "sft",
    optimizers: MakeOptimizers = adamw,
    progress: Progress | None = None,
) -> list[dict]:
    """Supervised fine-tuning on the responses of `examples`. Changes `model`; returns the log."""
    steps = [sft_passes(model, examples, step, recipe) for step in plan(len(examples), recipe)]
    return fit(model, steps, recipe, name=name, optimizers=optimizers, progress=progress)


def sft_passes(
    model: GPT, examples: Sequence[Example], numbers: Sequence[int], recipe: Recipe
) -> list[Pass]:
    """One supervised step over the examples with these numbers, cut into passes."""
    # 1) the divisor of the mean
    divisor = len(numbers)
    if not recipe.per_example:
        divisor = sum(len(example.response) for example in take(examples, numbers))
    # 2) examples that begin alike share a row, if it stays short enough for attend_plain (speed)
    longest = min(recipe.tokens, PLAIN_ATTENTION_LIMIT)
    rows = group_alike(examples, numbers, longest)  # each a list of numbers
    lengths = [row_length(take(examples, row)) for row in rows]
    # 3) rows that fit into one pass
    passes = []
    for batch in micro_batches(range(len(rows)), lengths, recipe.tokens, share_size(len(rows))):
        members = take(rows, batch)
        groups = [take(examples, row) for row in members]
        in_pass = [number for row in members for number in row]
        loss_of = partial(sft_sums, model, groups, recipe.per_example)
        passes.append(Pass(loss_of, in_pass, 1 / divisor))
    return passes


def sft_sums(
    model: GPT, groups: Sequence[Sequence[Example]], per_example: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of one pass, before it is divided: a mean for each example, or all tokens alike."""
    sizes = [len(example.response) for group in groups for example in group]
    weights = [1 / size if per_example else 1.0 for size in sizes]
    return sft_loss(model, groups, torch.tensor(weights, device=model.device)), {}


# ---- DPO ----


@dataclass(frozen=True)
class Objective:
    """What DPO asks for, and what joins it in every step."""

    beta: float = 0.1  # how strongly the model holds on to the reference
    nll: float = 0.0  # weight of the chosen answer's negative log-prob per token
    replay: Sequence[Example] = ()  # judge examples of the seed data
    replay_size: int = 0  # how many of them join each step
    # For experiments/variants.py:
    loss: Callable[..., Tensor] = dpo_loss  # four log-probs (B,) and beta -> a loss per pair (B,)
    reference: GPT | None = None  # None: the frozen M_t


def dpo(
    model: GPT,
    pairs: Sequence[PreferencePair],
    recipe: Recipe,
    objective: Objective,
    *,
    progress: Progress | None = None,
) -> list[dict]:
    """M_t -> M_{t+1}, in place; returns the log.

    Loss of a step = mean over pairs of (DPO loss + nll x NLL of chosen per token)
                   + mean SFT loss of the replay (as recipe.per_example says)
    In the log, `loss` is all of it, and `dpo_loss` the first term alone. The NLL term is that of
    Iterative RPO (Pang et al. 2024, eq. 1): DPO alone may widen the margin by pushing both answers
    down. Without replay the model forgets how to judge.
    """
    start = reference_logps(model, pairs, recipe)  # (pairs, 2): where M_t stood, for the log
    reference = start  # for the loss; a variant has another
    if objective.reference is not None:
        reference = reference_logps(objective.reference, pairs, recipe)

    def loss_of(batch: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
        chosen, rejected = pair_logps(model, take(pairs, batch))  # (B,) each
        logps = (chosen, rejected, *reference[batch].unbind(1))
        losses = objective.loss(*logps, beta=objective.beta)  # (B,)
        sizes = torch.tensor([len(pairs[i][0].response) for i in batch], device=chosen.device)
        chosen_nll = -chosen / sizes  # per token
        # For the log: beta h, whatever the loss, and how both log-probs moved since M_t.
        margin = objective.beta * margins(*logps).detach()
        changes = torch.stack([chosen, rejected], dim=1).detach() - start[batch]  # (B,2)
        figures = {
            "dpo_loss": losses.detach().sum(),
            "margin": margin.sum(),
            "accuracy": (margin > 0).sum(),
            "chosen_change": changes[:, 0].sum(),
            "rejected_change": changes[:, 1].sum(),
        }
        return (losses + objective.nll * chosen_nll).sum(), figures

    lengths = [row_length(pair) for pair in pairs]
    rng = random.Random(f"replay {recipe.seed}")
    steps = []
    for step in plan(len(pairs), replace(recipe, block=1)):
        batches = micro_batches(step, lengths, recipe.tokens, share_size(len(step)))
        passes = [Pass(partial(loss_of, batch), batch, 1 / len(step)) for batch in batches]
        if objective.replay and objective.replay_size:
            blocks = blocks_of(len(objective.replay), recipe.block)
            size = min(math.ceil(objective.replay_size / recipe.block), len(blocks))
            drawn = [number for block in rng.sample(blocks, size) for number in block]
            drawn = drawn[: objective.replay_size]
            passes += sft_passes(model, objective.replay, drawn, recipe)
        steps.append(passes)
    return fit(model, steps, recipe, name="dpo", progress=progress)
