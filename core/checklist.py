"""core/checklist.py: prompts that list what their answer must keep.

In: an instruction, and requirements as sentences.  Out: one prompt, and its parts again:

    Write a sentence about rain.

    Requirements:
    - Use no commas.
    - End with the exact phrase "That is all."
"""

from collections.abc import Sequence

HEADING = "\n\nRequirements:\n"


def with_requirements(instruction: str, requirements: Sequence[str]) -> str:
    lines = [f"- {requirement}" for requirement in requirements]
    return instruction + HEADING + "\n".join(lines)


def instruction_of(prompt: str) -> str:
    """The prompt without its list, where it has one."""
    return prompt.rpartition(HEADING)[0] if requirements_of(prompt) else prompt


def requirements_of(prompt: str) -> list[str]:
    """The sentences of the list; [] where the prompt has none."""
    instruction, _, lines = prompt.rpartition(HEADING)
    requirements = lines.split("\n")
    if not instruction or not all(line.startswith("- ") for line in requirements):
        return []
    return [line.removeprefix("- ") for line in requirements]
