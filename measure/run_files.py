"""measure/run_files.py: what the files of a run hold so far.

In: the directory that train.py writes.  Out: its files as lists of JSON objects. A file that is
not there yet is an empty list, so this works in the middle of a run.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from core.errors import UserError
from core.files import read_existing, read_json
from core.records import votes_by_text
from core.statistics import mean

Records = list[dict]  # of one file


class IterationFiles(NamedTuple):
    """The stages from M_t to M_{t+1}; each is the file of its name."""

    prompts: Records
    responses: Records
    verdicts: Records
    pairs: Records
    dpo: Records  # one object a step


class RunFiles(NamedTuple):
    """One run."""

    name: str
    record: dict  # config.json: the settings, and on what machine they ran
    models: Records  # metrics.jsonl: the figures of each model
    log: Records  # one object a stage
    sft: Records  # one object a step
    exam: dict[int, Records]  # t -> the held-out answers of M_t
    iterations: dict[int, IterationFiles]  # t -> the stages from M_t to M_{t+1}
    control: bool = False  # others are compared with it: it is grey in the charts
    damaged: Sequence[str] = ()  # what could not be read, and why


def load_run(folder: Path) -> RunFiles:
    """Reads a run. Raises UserError where it is none.

    What is damaged counts as empty, and is named. The models are the rows of metrics.jsonl that
    have a number.
    """
    record = read_json(folder / "config.json")
    if not isinstance(record.get("settings"), dict):
        raise UserError(f"{folder} is no run of train.py: its config.json has no settings.")
    damaged: list[str] = []

    def rows_of(name: str) -> Records:
        try:
            return read_existing(folder / name)
        except UserError as error:
            damaged.append(str(error))
            return []

    models = []
    for row in rows_of("metrics.jsonl"):
        if isinstance(row.get("t"), int):
            models.append(row | {"model": f"M{row['t']}"})
        else:
            damaged.append(f"{folder}/metrics.jsonl: a model without a number is left out.")
    exam = {}
    iterations = {}
    for t in [figures["t"] for figures in models]:
        exam[t] = rows_of(f"exam/M{t}.jsonl")
        if (folder / f"t{t}").is_dir():
            stages = [f"t{t}/{stage}.jsonl" for stage in IterationFiles._fields]
            iterations[t] = IterationFiles(*map(rows_of, stages))
    log = rows_of("log.jsonl")
    sft = rows_of("sft.jsonl")
    return RunFiles(folder.name, record, models, log, sft, exam, iterations, damaged=damaged)


def answer_rewards(files: IterationFiles) -> dict[tuple[int, int], float]:
    """(prompt id, sample) -> the mean of the readable scores; answers without one are left out."""
    texts = {(row["id"], row["sample"]): row["response"] for row in files.responses}
    votes = votes_by_text(texts, files.verdicts)
    rewards = {(i, sample): mean(votes[i, text]) for (i, sample), text in texts.items()}
    return {answer: reward for answer, reward in rewards.items() if reward is not None}
