"""worlds/people.py: the world of real people. Nobody knows its truth; files hold what they wrote.

In: files in the formats that people have.  Out: a `World` in the program's own formats.
A fixed fifth of all prompts is held out from training and makes the exam. A checksum of the text
chooses it, so a prompt is held out in every file and every run, or in none.
Left out on purpose: all turns of a conversation after the first answer, as in the paper.
"""

import random
from pathlib import Path
from zlib import crc32

from core.config import Config
from core.errors import UserError
from core.files import read_jsonl, read_lines, read_ranked, read_texts
from worlds.world import Exam, World

UNKNOWN_FORMAT = (
    "no prompt with an answer; the formats are prompt/response, instruction/input/output, "
    "messages and conversations, and no text may be empty"
)


# ---- instruction data ----
def read_ift(path: str | Path) -> list[dict]:
    """Instruction data -> [{"prompt", "response"}]. Raises UserError.

    Four formats may be mixed: prompt/response, Alpaca, messages and ShareGPT.
    """

    def find_fault(record: dict) -> str | None:
        return None if first_exchange(record) else UNKNOWN_FORMAT

    exchanges = [first_exchange(record) for record in read_jsonl(path, find_fault=find_fault)]
    return [{"prompt": prompt, "response": response} for prompt, response in exchanges]


def first_exchange(record: dict) -> tuple[str, str] | None:
    """(prompt, response) of one record; None where its format is unknown or a text is empty.

    Of a conversation the first exchange counts, as in the paper. A system message joins the prompt.
    """
    turns = record.get("messages") or record.get("conversations")
    if isinstance(turns, list):  # messages, or ShareGPT
        texts = texts_to_first_answer(turns)
    elif "instruction" in record:  # Alpaca
        texts = [record["instruction"], record.get("output")]
        if record.get("input"):
            texts.insert(1, record["input"])
    else:
        texts = [record.get("prompt"), record.get("response")]
    if len(texts) < 2 or not all(isinstance(text, str) and text.strip() for text in texts):
        return None
    return "\n\n".join(texts[:-1]), texts[-1]


def texts_to_first_answer(turns: list) -> list:
    """What was said up to the first answer, the answer included; [] where nobody answers."""
    texts = []
    for turn in turns:
        if not isinstance(turn, dict):
            continue
        texts.append(turn.get("content") or turn.get("value"))
        speaker = turn.get("role") or turn.get("from")
        if speaker in ("assistant", "gpt"):
            return texts
    return []


# ---- Open Assistant trees ----
def read_oasst(path: str | Path, *, lang: str) -> tuple[list[dict], list[dict]]:
    """Open Assistant trees -> instruction data (first turn, best reply) and ranked first replies.

    Skips what is deleted, not ranked or in another language. Raises UserError where no ranked
    replies are left. Source: the paper, section 3.1.
    """

    def usable(message: dict) -> bool:
        return message.get("lang") == lang and not message.get("deleted")

    ift, ranked = [], []
    for tree in read_jsonl(path, "prompt", find_fault=fault_of_tree):
        root = tree["prompt"]
        if not usable(root):
            continue
        # the ranked replies to the first turn, best first
        replies = [m for m in root.get("replies", []) if usable(m) and m.get("rank") is not None]
        replies.sort(key=lambda message: message["rank"])
        texts = [message["text"] for message in replies]
        ranks = [message["rank"] for message in replies]
        if replies and ranks[0] == 0:
            ift.append({"prompt": root["text"], "response": texts[0]})
        if len(replies) > 1:
            ranked.append({"prompt": root["text"], "responses": texts, "ranks": ranks})
    if not ranked:
        raise UserError(f"{path} has no ranked replies in language {lang!r}; see --lang.")
    return ift, ranked


def fault_of_tree(tree: dict) -> str | None:
    """What is wrong with one line of Open Assistant trees; None where nothing is."""
    root = tree["prompt"]
    replies = root.get("replies", []) if isinstance(root, dict) else None
    if isinstance(replies, list) and all(is_message(message) for message in [root, *replies]):
        return None
    return "'prompt' must be an Open Assistant message with its 'text' and 'replies'"


def is_message(message: object) -> bool:
    """Whether this is an Open Assistant message with a text and, if it is ranked, a number."""
    if not isinstance(message, dict) or not isinstance(message.get("text"), str):
        return False
    return isinstance(message.get("rank"), int | float | None)


# ---- prompts ----
def read_prompts(path: str | Path, count: int | None = None, *, trip: int = 1) -> list[str]:
    """The `count` prompts of one trip round the loop, or all prompts of the file. Raises UserError.

    One prompt a line: plain text, or a JSON object with a "prompt".
    """
    prompts = [line for _, line in read_lines(path)]
    if prompts[0].startswith("{"):
        prompts = [record["prompt"] for record in read_texts(path, "prompt")]
    if count is None:
        count = len(prompts)
    needed = count * trip
    if len(prompts) < needed:
        raise UserError(
            f"{path} has {len(prompts)} prompts, but {needed} are needed by iteration {trip}; "
            "lower --n-prompts."
        )
    return prompts[needed - count : needed]


# ---- the world ----
def people_world(config: Config) -> World:
    """What the files of the settings hold: four fifths as seed data, and the last fifth as exam.

    Raises UserError where a file cannot be read, and where there is nothing to start from.
    """
    ift, eft, ranked = read_files(config)
    if not (ift or ranked or config.prompts):
        sources = "--ift, --oasst, --ranked or --prompts"
        raise UserError(f"there is nothing to start from: give {sources}.")
    train_ift, exam_ift = split_off_exam(ift)
    train_eft, _ = split_off_exam(eft)
    train_ranked, exam_ranked = split_off_exam(ranked)

    # instruction data stays in the order of the file; judge data is shuffled before it is cut
    rng = random.Random(f"people {config.seed}")
    rng.shuffle(train_eft)
    rng.shuffle(train_ranked)

    # prompts come from instruction data, or from ranked answers where there is none
    exam_prompts = prompts_of(exam_ift if ift else exam_ranked)
    train_prompts = prompts_of(train_ift or train_ranked)
    exam = Exam(exam_prompts[: config.exam], exam_ranked[: config.exam])
    limit = config.seed_limit
    return World(train_ift[:limit], train_eft[:limit], train_ranked, train_prompts, exam)


def read_files(config: Config) -> tuple[list[dict], list[dict], list[dict]]:
    """(instruction data, judge data, ranked answers) of all files. Raises UserError."""
    ift = read_ift(config.ift) if config.ift else []
    eft = read_texts(config.eft, "prompt", "response", "verdict") if config.eft else []
    tree_ift, tree_ranked = read_oasst(config.oasst, lang=config.lang) if config.oasst else ([], [])
    ranked = read_ranked(config.ranked) if config.ranked else []
    return ift + tree_ift, eft, ranked + tree_ranked


def prompts_of(records: list[dict]) -> list[str]:
    return [record["prompt"] for record in records]


def split_off_exam(records: list[dict]) -> tuple[list[dict], list[dict]]:
    """(what training may see, what is held out for the exam), each in the order of `records`."""
    for_training, for_exam = [], []
    for record in records:
        if crc32(record["prompt"].encode()) % 5 == 0:
            for_exam.append(record)
        else:
            for_training.append(record)
    return for_training, for_exam
