"""prompts.py: {x_i}, the new prompts that a model writes itself (Self-Instruct, Wang et al. 2023; the paper, section 2.3).

In: a model, and prompts of people to go by.  Out: as many new ones, unlike those and unlike each other, and why others
were refused. Left out on purpose: judging the prompts; a bad one shows later, as answers that all tie.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain

from data import Chat, UserError
from model import GPT
from sample import Sampling, generate

UNANSWERABLE = (
    "image",
    "picture",
    "photo",
    "graph",
    "plot",
    "draw",
    "file",
    "map",
    "video",
    "audio",
    "music",
    "diagram",
)


# ---- likeness ----
def lcs(masks: dict[str, int], size: int, words: Sequence[str]) -> int:
    """Length of the longest common subsequence of `words` and a text of `size` words given as bit masks (Hyyro 2004)."""
    row = (1 << size) - 1
    for word in words:
        both = row & masks.get(word, 0)
        row = (row + both) | (row - both)
    return size - (row & ((1 << size) - 1)).bit_count()


class Text:
    """A prompt as lower-case words, with what makes comparing it fast."""

    def __init__(self, text: str):
        self.words, seen = text.lower().split(), Counter()
        self.masks, self.bag = (
            {},
            set(),
        )  # word -> its places as bits; {(word, how often before)}: a multiset
        for place, word in enumerate(self.words):
            self.masks[word] = self.masks.get(word, 0) | 1 << place
            self.bag.add((word, seen[word]))
            seen[word] += 1


class Texts:
    """The prompts so far, and which of them hold a word: of thousands only those that share enough are compared."""

    def __init__(self, texts: Iterable[str] = ()):
        self.all, self.lines, self.holders = [], set(), defaultdict(list)
        for text in texts:
            self.add(Text(text))

    def add(self, text: Text) -> None:
        for word in text.bag:
            self.holders[word].append(len(self.all))
        self.all.append(text)
        self.lines.add(" ".join(text.words))

    def like(self, text: Text, limit: float) -> bool:
        """Whether ROUGE-L F1 with one of them reaches `limit` (> 0). How many words two texts share bounds their subsequence."""
        shared = Counter(
            chain.from_iterable(self.holders[word] for word in text.bag if word in self.holders)
        )
        return any(
            n >= (least := limit * (len(text.words) + len(self.all[i].words)) / 2)
            and lcs(text.masks, len(text.words), self.all[i].words) >= least
            for i, n in shared.items()
        )


# ---- writing ----
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


def few_shot(
    chat: Chat, seeds: Sequence[str], written: Sequence[str], rng: random.Random
) -> list[int]:
    """Eight tasks, up to two of them the model's own, as a list that is to be continued."""
    own = rng.sample(list(written), min(2, len(written)))
    shots = own + rng.sample(list(seeds), min(8 - len(own), len(seeds)))
    rng.shuffle(shots)
    return chat.raw("".join(f"Task: {' '.join(s.split())}\n" for s in shots) + "Task:")


def new_prompts(
    model: GPT,
    chat: Chat,
    seeds: Sequence[str],
    count: int,
    sampling: Sampling,
    *,
    key: str,
    rouge: float,
    exclude: Sequence[str] = (),
    calls: int = 12,
) -> tuple[list[str], Counter]:
    """`count` prompts by the model itself, unlike the seeds, `exclude` and each other; and why others were refused.

    Every prompt has a draw of demonstrations of its own. Raises UserError where nothing usable comes out.
    """
    rng, written, refused = random.Random(key), [], Counter()
    kept = Texts((*seeds, *exclude))
    for call in range(calls):  # bounded: a mute model must not hold the run
        wanted = (
            count - len(written) if call else -(-count // 4)
        )  # a first quarter, so that the rest sees two of its own
        shots = [few_shot(chat, seeds, written, rng) for _ in range(-(-wanted * 5 // 4))]
        texts = generate(
            model,
            chat,
            shots,
            sampling,
            key=f"{key} {call}",
            stop=lambda t: bool(t.strip()),
            label="prompts",
        )
        for [completion] in texts:
            line = (chat.decode(completion.tokens).strip().splitlines() or [""])[0].strip()
            text = Text(line)
            if reason := refusal(text, completion.finished, kept, rouge):
                refused[reason] += 1
            elif len(written) < count:
                written.append(line)
                kept.add(text)
    if not written:
        raise UserError(
            f"the model wrote no usable prompt ({dict(refused)}); give it prompts with --prompts FILE."
        )
    return written, refused
