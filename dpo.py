"""dpo.py: everything that moves weights; the only backward() of the program.

In: a model, and examples or preference pairs as token ids.  Out: the same model, changed in place, and a log of figures.
Against the DPO of large libraries this file leaves out, on purpose:
1. the second network: the reference is M_t itself, so two log-probs a pair, taken before step 1, stand for it;
2. the KL term, the reward model, the value function: DPO has none of them (Rafailov et al. 2023, eq. 7);
3. loss zoos and trainers: `fit` is one loop, and a step is a list of (loss function, rows) it adds up.

Shapes: B rows, T tokens, E examples, D hidden, V vocabulary, M response tokens of all rows together.
"""

import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from data import Example, UserError, collate, micro_batches, shared_prefix
from model import GPT, SPELT

LOGITS_AT_ONCE = 1 << 24  # elements of one chunk of logits; 134 MB in fp32
PreferencePair = tuple[Example, Example]  # (chosen, rejected), the same prompt twice
LossFn = Callable[
    [list], tuple[Tensor, dict[str, Tensor]]
]  # rows, or groups of rows -> sum of losses, sums of figures


@dataclass(frozen=True)
class Recipe:
    """How one training stage steps. Defaults are plain; train.py's settings fill them."""

    epochs: int = 1
    batch_size: int = 16  # examples or pairs a step
    lr: float = 1e-6
    lr_end: float = 1e-7  # linear decay from lr to this
    warmup: float = 0.1  # share of the steps that rise from 0 to lr
    clip: float = 1.0  # largest gradient norm
    dropout: float = 0.0
    recompute: bool = (
        False  # keep only what goes into a block, and compute the rest again in the backward pass
    )
    even: bool = False  # SFT: every example weighs the same, else every token; a verdict may be one digit long
    tokens: int = (
        2048  # tokens of one forward and backward pass; a step adds up as many as it needs
    )
    dtype: torch.dtype = torch.float32  # of the arithmetic; weights and sums stay fp32
    seed: int = 0


# ---- log-probabilities ----
class PickedLogps(torch.autograd.Function):
    """log softmax(hidden W^T) at the targets: hidden (M,D), W (V,D), targets (M,) -> (M,) in fp32.

    In chunks, whose logits the backward pass computes again: of the (M,V) logits never more than one chunk is there.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        norms, picked = [], []
        for h, y in zip(hidden.split(rows := chunk(weight)), targets.split(rows)):
            logits = (h @ weight.T).float()  # (C,V)
            norms.append(logits.logsumexp(-1))
            picked.append(logits.gather(-1, y[:, None])[:, 0] - norms[-1])
        ctx.save_for_backward(hidden, weight, targets, torch.cat(norms))
        return torch.cat(picked)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden, weight, targets, norms = ctx.saved_tensors
        to_hidden, to_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        for h, y, norm, g, out in zip(
            *(x.split(chunk(weight)) for x in (hidden, targets, norms, grad, to_hidden))
        ):
            d = (
                (h @ weight.T).float().sub_(norm[:, None]).exp_().mul_(-g[:, None])
            )  # -g softmax   (C,V)
            d = d.scatter_add_(-1, y[:, None], g[:, None]).to(
                h.dtype
            )  # g (1 - softmax) at the target
            torch.mm(d, weight, out=out)
            to_weight.addmm_(d.T, h)
        return to_hidden, to_weight, None


def chunk(weight: Tensor) -> int:
    """How many rows of logits are made at once."""
    return max(1, LOGITS_AT_ONCE // len(weight))


def token_logps(model: GPT, ids: Tensor, mask: Tensor, **layout: Tensor) -> Tensor:
    """log p(token | all it sees before it) of the masked tokens: ids, mask (B,T) -> (B,T-1), 0 where the target is not masked.

    The one place of the shift: the hidden state at i predicts token i + 1. `layout` goes to the model. Only response
    positions meet the head.
    """
    rows, at = mask[:, 1:].nonzero(as_tuple=True)  # (M,), (M,)
    hidden = model(ids, **layout)[rows, at]  # (B,T,D) -> (M,D)
    picked = PickedLogps.apply(hidden, model.head.to(hidden.dtype), ids[rows, at + 1])
    return picked.new_zeros(mask[:, 1:].shape).index_put((rows, at), picked)


def sequence_logps(model: GPT, groups: Sequence[Sequence[Example]]) -> Tensor:
    """log p(response | prompt), the sum, not the mean, over response tokens, EOS included, of each example of each group: (E,).

    A group is one row (see collate): what its prompts begin with is read once, and its examples do not see each other.
    """
    ids, mask, branch, position = collate(groups, model.device)  # (B,T) each
    sizes, layout = torch.tensor([len(g) for g in groups], device=ids.device), {}
    if (most := int(sizes.max())) > 1:
        own, all_see = (
            branch[..., None] == branch[:, None],
            branch[:, None] == 0,
        )  # (B,T,T), (B,1,T)
        layout = {"positions": position, "seen": (own | all_see).tril()}
    logps = token_logps(model, ids, mask, **layout)  # (B,T-1)
    sums = logps.new_zeros(len(groups), most + 1).scatter_add(1, branch[:, 1:], logps)[:, 1:]
    return sums[torch.arange(most, device=ids.device) < sizes[:, None]]  # (B,most) -> (E,)


def sft_loss(
    model: GPT, groups: Sequence[Sequence[Example]], weights: Tensor | float = 1.0
) -> Tensor:
    """Sum of the negative log-probs of the responses, each times its weight (E,); whoever calls divides."""
    return -(sequence_logps(model, groups) * weights).sum()


def dpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float,
    kind: str = "dpo",
    smoothing: float = 0.0,
) -> Tensor:
    """The loss of each pair, from log p of whole responses under the policy and under the reference, all (B,).

    "dpo": -log sigmoid(beta * h), h = (log pi_w - log ref_w) - (log pi_l - log ref_l)      Rafailov et al. 2023, eq. 7
    "ipo": (h - 1 / (2 beta))^2, which stops widening the margin                             Azar et al. 2023, eq. 17
    `smoothing` is the believed share of pairs that are the wrong way round                  Mitchell 2023, cDPO
    """
    h = (chosen - ref_chosen) - (rejected - ref_rejected)
    one = (
        (lambda x: -F.logsigmoid(beta * x))
        if kind == "dpo"
        else (lambda x: (x - 1 / (2 * beta)) ** 2)
    )
    return (1 - smoothing) * one(h) + smoothing * one(-h)


# ---- batches ----
def length(*group: Example) -> int:
    """Tokens of the row that these examples make together."""
    return sum(len(e.prompt) + len(e.response) for e in group) - (len(group) - 1) * shared_prefix(
        [e.prompt for e in group]
    )


def together(examples: Sequence[Example], rows: Sequence[int], tokens: int) -> list[list[int]]:
    """Groups of up to four rows that begin alike for a third of their length, verdicts under one rubric; none longer than `tokens`."""
    groups: list[list[int]] = []
    for row in sorted(rows, key=lambda r: examples[r].prompt):
        more = [examples[r] for r in (*groups[-1], row)] if groups else []
        if (
            1 < len(more) <= 4
            and length(*more) <= tokens
            and 3 * len(more) * shared_prefix([e.prompt for e in more]) >= sum(map(length, more))
        ):
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def drop_long(examples: Sequence[Example], limit: int, say: Callable[[str], None]) -> list[Example]:
    """The examples that fit into `limit` tokens; the others are counted aloud, never cut."""
    kept = [e for e in examples if length(e) <= limit]
    if len(kept) < len(examples):
        say(
            f"{len(examples) - len(kept)} of {len(examples)} examples are longer than {limit} tokens and were left out"
        )
    return kept


def plan(count: int, recipe: Recipe) -> list[list[int]]:
    """Each epoch's rows, shuffled and cut into steps of nearly equal size, so that no step is a small remainder."""
    rng, steps, n = random.Random(f"order {recipe.seed}"), [], math.ceil(count / recipe.batch_size)
    for _ in range(recipe.epochs):
        order = rng.sample(range(count), count)
        steps += [order[count * i // n : count * (i + 1) // n] for i in range(n)]
    return steps


# ---- the loop ----
def precision(model: GPT, dtype: torch.dtype) -> torch.autocast:
    """Arithmetic in `dtype` over fp32 weights: at lr 1e-6 a bf16 weight would not move."""
    return torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


def adamw(model: GPT, recipe: Recipe) -> list[torch.optim.Optimizer]:
    return [
        torch.optim.AdamW(
            model.parameters(), lr=recipe.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        )
    ]


def rate(step: int, steps: int, recipe: Recipe) -> float:
    """The learning rate as a share of its peak: a linear rise, then a linear fall to lr_end."""
    rise, end = max(1, round(recipe.warmup * steps)), recipe.lr_end / recipe.lr
    return (
        (step + 1) / rise
        if step < rise
        else 1 - (1 - end) * (step + 1 - rise) / max(1, steps - rise)
    )


def check(value: float, what: str, name: str, step: int, rows: list) -> None:
    if not math.isfinite(value):
        raise UserError(
            f"{name}: the {what} became {value} at step {step}, rows {rows[:8]}; the last saved model is untouched. "
            f"Lower the learning rate or look at these rows."
        )


def fit(
    model: GPT,
    steps: Sequence[Sequence[tuple[LossFn, list, float]]],
    recipe: Recipe,
    *,
    name: str,
    optimizers: Callable[[GPT, Recipe], list[torch.optim.Optimizer]] = adamw,
) -> list[dict]:
    """Trains `model` in place; returns one dict of figures a step.

    A step is a list of (loss function, rows, weight); the loss is the weighted sum over the list, so a step may be
    cut into as many passes as memory asks for without changing its gradient. Raises UserError on a non-finite loss or gradient.
    """
    torch.manual_seed(recipe.seed)  # dropout
    model.train()
    model.dropout, model.recompute = recipe.dropout, recipe.recompute
    opts, log = optimizers(model, recipe), []
    peaks = [g["lr"] for o in opts for g in o.param_groups]
    bar = tqdm(steps, desc=name, unit="step", leave=False, disable=None)
    for number, step in enumerate(bar):
        share = rate(number, len(steps), recipe)
        for group, peak in zip((g for o in opts for g in o.param_groups), peaks):
            group["lr"] = peak * share
        figures: dict[str, float] = defaultdict(float)
        for loss_fn, rows, weight in step:
            with precision(model, recipe.dtype):
                loss, sums = loss_fn(rows)
            check(loss.item(), "loss", name, number, rows)
            (loss * weight).backward()
            figures["loss"] += loss.item() * weight
            for key, value in sums.items():
                figures[key] += float(value) * weight
        figures["grad_norm"] = float(
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        )
        check(
            figures["grad_norm"],
            "gradient",
            name,
            number,
            [row for _, rows, _ in step for row in rows],
        )
        for opt in opts:
            opt.step()
            opt.zero_grad()
        log.append({"step": number, **figures, "lr": recipe.lr * share})
        bar.set_postfix(loss=f"{figures['loss']:.3f}", refresh=False)
    model.eval()
    model.dropout, model.recompute = 0.0, False
    return log


# ---- the two stages ----
def _sft_parts(model: GPT, examples: Sequence[Example], rows: Sequence[int], recipe: Recipe):
    """The passes of one supervised step over `rows`; together they weigh one mean over response tokens, or over examples."""
    sizes = {r: len(examples[r].response) for r in rows}
    total = len(rows) if recipe.even else sum(sizes.values())
    groups = together(examples, rows, min(recipe.tokens, SPELT))
    lengths = [length(*(examples[r] for r in group)) for group in groups]

    def loss_fn(batch: list[list[int]]) -> tuple[Tensor, dict[str, Tensor]]:
        weights = torch.tensor(
            [1 / sizes[r] if recipe.even else 1.0 for group in batch for r in group],
            device=model.device,
        )
        return sft_loss(model, [[examples[r] for r in group] for group in batch], weights), {}

    return [
        (loss_fn, [groups[i] for i in batch], 1 / total)
        for batch in micro_batches(range(len(groups)), lengths, recipe.tokens)
    ]


def sft(
    model: GPT, examples: Sequence[Example], recipe: Recipe, *, name: str = "sft", optimizers=adamw
) -> list[dict]:
    """Supervised fine-tuning on the response tokens of `examples`. Changes `model`; returns the log."""
    return fit(
        model,
        [_sft_parts(model, examples, rows, recipe) for rows in plan(len(examples), recipe)],
        recipe,
        name=name,
        optimizers=optimizers,
    )


def pair_logps(model: GPT, pairs: Sequence[PreferencePair]) -> tuple[Tensor, Tensor]:
    """log p of the chosen and of the rejected responses, (B,) each."""
    return sequence_logps(model, pairs).view(-1, 2).unbind(1)


@torch.no_grad()
def reference_logps(model: GPT, pairs: Sequence[Sequence[Example]], recipe: Recipe) -> Tensor:
    """log p of every pair under fixed weights, in eval mode: (pairs, examples in each). Of M_t, before step 1, this is the whole reference."""
    assert not model.training
    reference = torch.zeros(len(pairs), len(pairs[0]), device=model.device)
    for batch in micro_batches(range(len(pairs)), [length(*p) for p in pairs], recipe.tokens):
        with precision(model, recipe.dtype):
            reference[batch] = sequence_logps(model, [pairs[r] for r in batch]).view(len(batch), -1)
    return reference


def dpo(
    model: GPT,
    pairs: Sequence[PreferencePair],
    recipe: Recipe,
    *,
    beta: float,
    replay: Sequence[Example] = (),
    replay_size: int = 0,
    nll: float = 0.0,
    kind: str = "dpo",
    smoothing: float = 0.0,
    ref: GPT | None = None,
    name: str = "dpo",
) -> list[dict]:
    """M_t -> M_{t+1}, in place, with the frozen M_t (or another model, `ref`) as reference; returns the log.

    `replay_size` seed judge examples join every step as an SFT term: without them the judge is forgotten.
    `nll` weighs the chosen answer's mean negative log-prob a token (Iterative RPO, Pang et al. 2024, eq. 1): DPO alone
    may widen the margin by pushing both answers down. `kind` and `smoothing`: see dpo_loss.
    """
    start = reference_logps(model, pairs, recipe)  # (pairs, 2)
    reference = start if ref is None else reference_logps(ref, pairs, recipe)
    lengths = [length(*p) for p in pairs]

    def loss_fn(batch: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
        chosen, rejected = pair_logps(model, [pairs[r] for r in batch])
        ref_chosen, ref_rejected = reference[batch].unbind(1)
        keep = -chosen / torch.tensor(
            [len(pairs[r][0].response) for r in batch], device=chosen.device
        )
        losses = dpo_loss(
            chosen, rejected, ref_chosen, ref_rejected, beta=beta, kind=kind, smoothing=smoothing
        )
        margin = beta * ((chosen - ref_chosen) - (rejected - ref_rejected)).detach()
        moved = torch.stack([chosen, rejected], dim=1).detach() - start[batch]
        return (losses + nll * keep).sum(), {
            "dpo_loss": losses.detach().sum(),
            "margin": margin.sum(),
            "accuracy": (margin > 0).sum(),
            "chosen_change": moved[:, 0].sum(),
            "rejected_change": moved[:, 1].sum(),
        }

    rng, steps = random.Random(f"replay {recipe.seed}"), []
    for rows in plan(len(pairs), recipe):
        step = [
            (loss_fn, batch, 1 / len(rows)) for batch in micro_batches(rows, lengths, recipe.tokens)
        ]
        if replay and replay_size:
            step += _sft_parts(
                model, replay, rng.sample(range(len(replay)), min(replay_size, len(replay))), recipe
            )
        steps.append(step)
    return fit(model, steps, recipe, name=name)
