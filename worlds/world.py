"""worlds/world.py: what a world gives to a run: the records `World` and `Exam`.

Where the truth is known, it labels the seed data and marks the exam. In between, nothing reads it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Truth = Callable[[str, str], int | None]  # (prompt, answer) -> 0 to 5; None: no task of this world


@dataclass(frozen=True)
class Exam:
    """Held-out material. `truth` is None where nobody knows it."""

    prompts: Sequence[str]
    groups: Sequence[dict]  # answers that people ranked: {"prompt", "responses", "ranks"}
    truth: Truth | None = None


@dataclass(frozen=True)
class World:
    """What people wrote, without what the exam holds out."""

    ift: list[dict]  # instruction data: {"prompt", "response"}
    eft: list[dict]  # judge data: {"prompt", "response", "verdict"}
    groups: list[dict]  # ranked answers, from which more judge data can be made
    prompts: list[str]  # new prompts are modelled on these
    exam: Exam
