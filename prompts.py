"""prompts.py: {x_i}, the new prompts that a model writes itself.

In: a writer, and prompts of people as examples.  Out: up to `count` new prompts, unlike those and
unlike each other, and a count of why others were refused. Source: Self-Instruct (Wang et al. 2023),
as in the paper, section 2.2.
Left out on purpose: a judge of prompts. A bad prompt shows later, as answers that all tie.
"""

import math
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from core.chat import Chat
from core.draw import Sampling
from core.errors import UserError
from core.likeness import KnownPrompts, PromptText
from sample import Writer, generate

SHOTS = 8  # tasks that the model sees before it writes one (Self-Instruct)
OWN_SHOTS = 2  # of them written by the model itself, once it has written some
MIN_WORDS = 3  # of a prompt (Self-Instruct)
MAX_WORDS = 150
SURPLUS = 1.25  # prompts written for each one wanted, as some are refused
MAX_CALLS = 12  # a model that writes nothing usable must not block the run
# A text model cannot do tasks with one of these words (PromptText.words are lower case).
UNANSWERABLE = re.compile("image|picture|photo|graph|plot|draw|file|map|video|audio|music|diagram")


def refusal(text: PromptText, finished: bool, known: KnownPrompts) -> str | None:
    """Why a prompt is not taken; None where it is."""
    if not finished:
        return "unfinished"
    if not MIN_WORDS <= len(text.words) <= MAX_WORDS:
        return "length"
    if text.line in known.lines:
        return "duplicate"
    if any(UNANSWERABLE.fullmatch(word.strip(".,:;!?")) for word in text.words):
        return "keyword"
    if known.limit < 1 and known.like(text):  # limit 1: copies only
        return "similar"
    return None


def few_shot(
    chat: Chat, seeds: Sequence[str], written: Sequence[str], rng: random.Random, room: int
) -> list[int]:
    """Eight tasks, up to two of them the model's own, as a list for the model to go on with.

    They are fewer where eight take more than `room` tokens.
    """
    shots = rng.sample(list(written), min(OWN_SHOTS, len(written)))
    shots += rng.sample(list(seeds), min(SHOTS - len(shots), len(seeds)))
    rng.shuffle(shots)
    while True:
        lines = [f"Task: {' '.join(shot.split())}\n" for shot in shots]
        ids = chat.raw("".join(lines) + "Task:")
        if len(ids) <= room or not shots:
            return ids
        shots.pop()


def stop_after_first_line(text: str) -> bool:
    """Sampling.stop, asked after each line break: ends the prompt, unless it is blank so far."""
    return bool(text.strip())


def first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0].strip() if lines else ""


def new_prompts(
    writer: Writer,
    seeds: Sequence[str],
    count: int,
    *,
    sampling: Sampling,
    key: str,
    known: KnownPrompts,
) -> tuple[list[str], Counter[str]]:
    """At most `count` prompts of the model itself, and why others were refused.

    Eight examples are drawn anew for each prompt. `known` holds what a prompt must not be
    like, and grows. Good prompts beyond `count` are dropped. Raises UserError where nothing usable
    comes out.
    """
    rng = random.Random(key)
    written: list[str] = []
    refused: Counter[str] = Counter()
    sampling = replace(sampling, n=1, stop=stop_after_first_line)
    room = writer.model.config.max_position_embeddings - sampling.max_new_tokens
    for call in range(MAX_CALLS):
        if len(written) == count:
            break
        # The first call writes a quarter, so that later prompts see two of the model's own.
        wanted = count - len(written) if call else math.ceil(count / 4)
        attempts = math.ceil(wanted * SURPLUS)
        shots = [few_shot(writer.chat, seeds, written, rng, room) for _ in range(attempts)]
        keys = [f"{key} {call} {i}" for i in range(attempts)]
        for [completion] in generate(writer, shots, sampling, keys, label="prompts"):
            line = first_line(writer.chat.decode(completion.tokens))
            text = PromptText(line)
            if reason := refusal(text, completion.finished, known):
                refused[reason] += 1
            elif len(written) < count:
                written.append(line)
                known.add(text)
    if not written:
        raise UserError(
            f"the model wrote no usable prompt ({dict(refused)}); give it prompts with --prompts "
            f"FILE."
        )
    return written, refused
