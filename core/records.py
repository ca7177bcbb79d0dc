"""core/records.py: what one stage hands to the next.

In: token ids and texts.  Out: records that nobody changes afterwards. An answer carries the ids
that the model drew. It is never decoded and tokenised again on its way to DPO.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby, zip_longest
from typing import NamedTuple


class Example(NamedTuple):
    """One sequence to learn from. Only the `response` ids carry loss; EOS is one of them."""

    prompt: list[int]
    response: list[int]


class Completion(NamedTuple):
    """One text that a model wrote."""

    tokens: list[int]  # as drawn, EOS included
    finished: bool  # ended by EOS or by the stop rule, not by the limit


@dataclass(frozen=True)
class Candidate:
    """One answer y to one prompt x. `tokens` are the drawn ids, with EOS where the answer ended."""

    id: int  # of the prompt
    sample: int  # which of the N answers
    prompt: str
    response: str
    tokens: list[int]
    finished: bool
    votes: tuple[float | None, ...] = ()  # K scores; None where a verdict could not be read
    reward: float | None = None  # mean of the readable votes; None where no vote could be read

    def row(self) -> dict:
        """The line of responses.jsonl. Other files of the iteration hold prompts and votes."""
        columns = ("id", "sample", "response", "finished", "tokens")
        return {name: getattr(self, name) for name in columns}


@dataclass(frozen=True)
class Pair:
    """(x, y_w, y_l): two answers to one prompt, as the candidates that were compared."""

    chosen: Candidate
    rejected: Candidate

    def gap(self) -> float:
        """How much larger the reward of the chosen answer is."""
        return self.chosen.reward - self.rejected.reward

    def extra_length(self) -> int:
        """How many tokens longer the chosen answer is."""
        return len(self.chosen.tokens) - len(self.rejected.tokens)

    def row(self) -> dict:
        """The line of pairs.jsonl. Its first three keys are those that TRL reads."""
        chosen, rejected = self.chosen, self.rejected
        texts = {"prompt": chosen.prompt, "chosen": chosen.response, "rejected": rejected.response}
        return texts | {
            "chosen_score": chosen.reward,
            "rejected_score": rejected.reward,
            "id": chosen.id,
            "chosen_sample": chosen.sample,
            "rejected_sample": rejected.sample,
            "extra_length": self.extra_length(),
        }


def most_certain(pairs: Sequence[Pair], share: float) -> list[Pair]:
    """The share of the pairs whose rewards differ most, in their old order; one pair at least.

    Of equal gaps the first pairs count.
    """
    order = sorted(range(len(pairs)), key=lambda i: -pairs[i].gap())
    kept = sorted(order[: max(1, round(share * len(pairs)))])
    return [pairs[i] for i in kept]


def by_prompt(candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    """The answers of each prompt, together. They stand together in the list already."""
    return [list(group) for _, group in groupby(candidates, key=lambda y: y.id)]


def rewards_by_prompt(scored: Sequence[Candidate]) -> list[list[float | None]]:
    rewards = []
    for group in by_prompt(scored):
        rewards.append([y.reward for y in group])
    return rewards


def votes_by_text(
    texts: dict[tuple[int, int], str], verdicts: Sequence[dict]
) -> dict[tuple[int, str], list[float | None]]:
    """(prompt id, text) -> votes. Answers to one prompt that read the same share their votes."""
    votes = defaultdict(list)
    for verdict in verdicts:
        text = texts[verdict["id"], verdict["sample"]]
        votes[verdict["id"], text].append(verdict["score"])
    return votes


@dataclass
class Work:
    """What was computed, counted in tokens."""

    prompts: int = 0
    read: int = 0  # prompt tokens
    pads: int = 0  # pads that were read along with them
    steps: int = 0  # decode steps times slots
    written: int = 0  # new tokens
    too_long: list[str] = field(default_factory=list)  # prompts without room, in words
    seconds: list[float] = field(default_factory=list)  # of each process

    def add(self, other: "Work") -> None:
        """Counts what another one counted."""
        both = zip_longest(self.seconds, other.seconds, fillvalue=0.0)
        seconds = [sum(pair) for pair in both]
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)
        self.seconds = seconds

    def summary(self) -> str:
        """In words. Thrown away: pads, and the steps of slots that wrote nothing."""
        text = f"read {self.read / max(1, self.prompts):.0f} tokens a prompt"
        if self.steps:
            text += f", wrote {self.written}, slots {self.written / self.steps:.0%} full"
        wasted = self.pads + self.steps - self.written
        computed = self.read + self.pads + self.steps
        text += f", {wasted / max(1, computed):.0%} thrown away"
        if len(self.seconds) > 1:
            times = ", ".join(f"{seconds:.1f}" for seconds in self.seconds)
            text += f", processes took {times} s"
        if self.too_long:
            text += f"; {len(self.too_long)} left out as too long: {'; '.join(self.too_long[:3])}"
        return text
