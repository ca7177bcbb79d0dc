"""measure/ifeval.py: whether answers do what the prompts of IFEval demand.

In: prompts in the format of IFEval (Zhou et al. 2023, arXiv 2311.07911) and one answer to each.
Out: shares of prompts and of requirements that are met. No model judges; the checks are those of
worlds/requirements.py. Prompts with a kind that needs a language tool are left out and named.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core.errors import UserError
from core.files import is_text, read_objects
from core.records import Candidate
from core.statistics import bootstrap_interval, mean
from worlds.requirements import CHECKS, LEFT_OUT, Requirement, read_requirement

# ---- prompts ----


@dataclass(frozen=True)
class DemandingPrompt:
    """One line of a file in IFEval's format."""

    prompt: str
    requirements: list[Requirement]

    def checkable(self) -> bool:
        """A prompt with one kind that is left out is left out whole."""
        return all(requirement.kind in CHECKS for requirement in self.requirements)


def read_ifeval(path: str | Path) -> list[DemandingPrompt]:
    """JSON Lines of {"prompt", "instruction_id_list", "kwargs"}; the last two of one length.

    Arguments that are null count as absent, as some copies of the file name all of them everywhere.
    Raises UserError with file and line.
    """
    prompts = []
    for place, row in read_objects(path, "prompt", "instruction_id_list", "kwargs"):
        kinds, arguments = row["instruction_id_list"], row["kwargs"]
        are_lists = isinstance(kinds, list) and isinstance(arguments, list)
        if not is_text(row["prompt"]) or not are_lists or not 1 <= len(kinds) == len(arguments):
            raise UserError(
                f"{place}: 'prompt' must be a text, and 'instruction_id_list' and 'kwargs' lists "
                "of one length, one at least."
            )
        requirements = []
        for kind, of_kind in zip(kinds, arguments, strict=True):
            requirements.append(read_requirement(place, kind, of_kind))
        prompts.append(DemandingPrompt(row["prompt"], requirements))
    return prompts


def checkable_prompts(prompts: Sequence[DemandingPrompt]) -> list[DemandingPrompt]:
    """Those whose requirements can all be checked. Raises UserError where there is none."""
    checkable = [prompt for prompt in prompts if prompt.checkable()]
    if not checkable:
        raise UserError(
            f"none of these prompts can be checked: {', '.join(LEFT_OUT)} are left out."
        )
    return checkable


# ---- figures ----


def ifeval_figures(prompts: Sequence[DemandingPrompt], answers: Sequence[Candidate]) -> dict:
    """Prompts of a file, and one answer to each of its `checkable_prompts`, in their order.

    Shares of prompts with all requirements met and of requirements met, strict and loose, each with
    a 95 % bootstrap interval over prompts; and what was left out, by kind. As in the reference, an
    answer that never ended is checked like every other.
    """
    checked = checkable_prompts(prompts)
    sizes = [len(prompt.requirements) for prompt in checked]
    kinds = Counter(one.kind for prompt in prompts for one in prompt.requirements)
    figures = {
        "prompts": len(checked),
        "prompts_left_out": len(prompts) - len(checked),
        "instructions": sum(sizes),
        "left_out": {kind: kinds[kind] for kind in LEFT_OUT},
    }
    figures["finished_rate"] = mean(answer.finished for answer in answers)
    figures["mean_length"] = mean(len(answer.tokens) for answer in answers)
    for mode, met in (("strict", Requirement.met), ("loose", Requirement.met_loosely)):
        counts = []
        for prompt, answer in zip(checked, answers, strict=True):
            text = answer.response
            counts.append(sum(met(requirement, text) for requirement in prompt.requirements))
        complete = [count == size for count, size in zip(counts, sizes, strict=True)]
        figures[f"prompt_{mode}"] = mean(complete)
        figures[f"prompt_{mode}_interval"] = bootstrap_interval(complete, [1] * len(checked))
        figures[f"instruction_{mode}"] = sum(counts) / sum(sizes)
        figures[f"instruction_{mode}_interval"] = bootstrap_interval(counts, sizes)
    return figures


def ifeval_text(figures: dict) -> str:
    """Three lines for people."""
    total = figures["prompts"] + figures["prompts_left_out"]
    left_out = ", ".join(f"{kind} ({count})" for kind, count in figures["left_out"].items())
    finished, length = figures["finished_rate"], figures["mean_length"]
    lines = [f"{figures['prompts']} of {total} prompts checked; left out: {left_out}"]
    for mode in ("strict", "loose"):
        shares = []
        for level in ("prompt", "instruction"):
            low, high = figures[f"{level}_{mode}_interval"]
            share = figures[f"{level}_{mode}"]
            shares.append(f"{level}s {share:.1%} ({low:.1%} to {high:.1%})")
        lines.append(f"{mode}: {', '.join(shares)}")
    lines[-1] += f" | finished {finished:.1%}, mean length {length:.1f} tokens"
    return "\n".join(lines)
