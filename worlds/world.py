"""worlds/world.py: what a world gives to a run: the records `World` and `Exam`.

Where the truth is known, it labels the seed data and marks the exam. In between, nothing reads it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from core.checklist import instruction_of

Truth = Callable[[str, str], int | None]  # (prompt, answer) -> 0 to 5; None: no task of this world
Checks = Callable[[str, str], dict[str, bool]]  # (prompt, answer) -> kind of requirement -> kept?


@dataclass(frozen=True)
class Exam:
    """Held-out material. `truth` is None where nobody knows it."""

    prompts: Sequence[str]
    groups: Sequence[dict]  # answers that people ranked: {"prompt", "responses", "ranks"}
    truth: Truth | None = None
    checks: Checks | None = None  # where the truth has parts
    unseen: Sequence[str] = ()  # kinds of requirement that training never sees

    def instructions(self) -> list[str]:
        """What it asks, without requirements: no new prompt may be like it."""
        prompts = [*self.prompts, *(group["prompt"] for group in self.groups)]
        return [instruction_of(prompt) for prompt in prompts]


@dataclass(frozen=True)
class World:
    """What people wrote, without what the exam holds out."""

    ift: list[dict]  # instruction data: {"prompt", "response"}
    eft: list[dict]  # judge data: {"prompt", "response", "verdict"}
    groups: list[dict]  # ranked answers, from which more judge data can be made
    prompts: list[str]  # new prompts are modelled on these
    exam: Exam
    # (instruction, key) -> prompt: what the world adds to an instruction that a model wrote
    finish_prompt: Callable[[str, str], str] | None = None
    given: list[str] | None = None  # new prompts that people wrote (--prompts)
    notes: Sequence[str] = ()  # what of the files was left out, and why
