"""core/start.py: what a run needs, checked before it writes its first file; and room for a text.

In: a model and settings.  Out: nothing, or a UserError. Left out on purpose: files of people, which
are checked as they are read.
"""

from pathlib import Path

from torch import nn

from core.config import Config
from core.device import check_disk, check_memory
from core.errors import UserError
from core.progress import trained_weights
from core.shards import check_split, held


def check_start(folder: Path, config: Config, base: nn.Module, *, rubric: int) -> None:
    """All checks of a run in `folder`. `rubric` is what the judge reads around an answer."""
    check_space(folder, base, config.iters)
    check_context(config, base.config.max_position_embeddings, rubric)
    check_split(base.config, config.split)


def check_space(folder: Path, base: nn.Module, iters: int) -> None:
    """Raises UserError where a run would die of memory in training, or of a full disk at M_t."""
    weights = sum(weight.nbytes for weight in base.parameters())
    trained = sum(held(weight).nbytes for weight in trained_weights(base).values())  # fp32
    moments_and_gradient = 3 * trained
    device = next(base.parameters()).device
    check_memory(moments_and_gradient, device, "training this model")
    check_disk(folder, (iters + 1) * weights)


def check_context(config: Config, context: int, rubric: int) -> None:
    """Raises UserError where no answer, or no verdict, could ever fit. Both are numbers of tokens.

    In: the model's context, and what the judge reads around an answer.
    """
    if config.max_new_tokens >= context:
        raise UserError(
            f"--max-new-tokens {config.max_new_tokens} leaves no room for a prompt in the model's "
            f"context of {context}."
        )
    if config.judge == "sampled" and rubric + config.max_verdict_tokens >= context:
        raise UserError(
            f"the rubric has {rubric} tokens, so with --max-verdict-tokens "
            f"{config.max_verdict_tokens} no answer fits into the model's context of {context}."
        )


def check_room(context: int, longest: int, limit: int) -> None:
    """Raises UserError where a prompt and `limit` new tokens do not fit."""
    if longest + limit > context:
        raise UserError(
            f"a prompt of {longest} tokens and {limit} new ones do not fit the model's context of "
            f"{context}; shorten the prompt or lower the limit."
        )
