"""worlds/people.py: the world of real people. Nobody knows its truth; files hold what they wrote.

In: files in the formats that people have.  Out: a `World` in the program's own formats.
A fixed fifth of all prompts is held out from training and makes the exam. A checksum of the text
chooses it, so a prompt is held out in every file and every run, or in none.
Left out on purpose: all turns of a conversation after the first answer, as in the paper.
"""

import random
import re
from pathlib import Path
from zlib import crc32

from core.config import Config
from core.errors import UserError
from core.files import is_text, read_lines, read_objects, read_ranked, read_texts, read_values
from core.verdicts import LABEL, label_of, parse_score
from worlds.world import Exam, World

# The first line of a file with columns, such as "id,prompt"
TABLE = re.compile(r"(?:[\w \"]+[,;\t])*\"?(?:prompt|instruction|question)\"?(?:[,;\t]|$)", re.I)


def read_ift(path: str | Path) -> list[dict]:
    """Instruction data in any mix of four formats -> [{"prompt", "response"}]. Raises UserError."""
    examples = []
    for place, record in read_objects(path):
        example = first_exchange(record)
        if example is None:
            raise UserError(
                f"{place}: no prompt with an answer; the formats are prompt/response, "
                "instruction/input/output, messages and conversations, and no text may be empty."
            )
        examples.append(example)
    return examples


def read_eft(path: str | Path, *, how: str) -> list[dict]:
    """Judge data {"prompt", "response", "verdict"}, for a judge that is read in the way `how`.

    Raises UserError where a verdict has no score from 0 to 5. Their label is the same in most of
    them, as in "Score: 3" or "Rating: 3".
    """
    rows = read_texts(path, "prompt", "response", "verdict")
    if how in ("checklist", "contrast"):
        return rows  # of the checklist a verdict is yes or no
    label = label_of(row["verdict"] for row in rows)
    if how == "expected" and label != LABEL:
        raise UserError(f"{path}: --judge expected reads 'Score: n', and not {label!r}.")
    unreadable = []
    for place, row in read_objects(path):
        if parse_score(row["verdict"], label) is None:
            unreadable.append((place, row["verdict"]))
    if unreadable:
        place, verdict = unreadable[0]
        raise UserError(
            f"{place}: the verdict has no score from 0 to 5 behind {label!r} ({verdict[-60:]!r}); "
            f"{len(unreadable)} of {len(rows)} rows are like this. Mend them or leave them out."
        )
    return rows


def first_exchange(record: dict) -> dict | None:
    """{"prompt", "response"} of one record; None where its format is unknown or a text is empty."""
    turns = record.get("messages") or record.get("conversations")
    if isinstance(turns, list):  # messages, or ShareGPT
        texts = texts_to_first_answer(turns)
    elif "instruction" in record:  # Alpaca
        texts = [record["instruction"], record.get("output")]
        if record.get("input"):
            texts.insert(1, record["input"])
    else:
        texts = [record.get("prompt"), record.get("response")]
    if len(texts) < 2 or not all(map(is_text, texts)):
        return None
    # an input or a system message joins the prompt
    return {"prompt": "\n\n".join(texts[:-1]), "response": texts[-1]}


def texts_to_first_answer(turns: list) -> list:
    """What was said up to the first answer, the answer included; [] where nobody answers."""
    texts = []
    for turn in turns:
        if isinstance(turn, dict):
            texts.append(turn.get("content") or turn.get("value"))
            if (turn.get("role") or turn.get("from")) in ("assistant", "gpt"):
                return texts
    return []


def read_oasst(path: str | Path, *, lang: str) -> tuple[list[dict], list[dict]]:
    """Open Assistant trees -> instruction data (first turn, best reply) and ranked first replies.

    Skips what is deleted, not ranked or in another language (the paper, 3.1). Raises UserError.
    """

    def usable(message: dict) -> bool:
        return message.get("lang") == lang and not message.get("deleted")

    ift, ranked = [], []
    for place, tree in read_objects(path, "prompt"):
        root = tree["prompt"]
        replies = root.get("replies", []) if isinstance(root, dict) else None
        if not isinstance(replies, list) or not all(map(is_message, [root, *replies])):
            fault = "'prompt' must be an Open Assistant message with its 'text' and 'replies'"
            raise UserError(f"{place}: {fault}.")
        if not usable(root):
            continue
        # the ranked replies to the first turn, best first
        replies = [m for m in replies if usable(m) and m.get("rank") is not None]
        replies.sort(key=lambda message: message["rank"])
        texts = [message["text"] for message in replies]
        ranks = [message["rank"] for message in replies]
        if ranks and ranks[0] == 0:
            ift.append({"prompt": root["text"], "response": texts[0]})
        if len(ranks) > 1:
            ranked.append({"prompt": root["text"], "responses": texts, "ranks": ranks})
    if not ranked:
        raise UserError(f"{path} has no ranked replies in language {lang!r}; see --lang.")
    return ift, ranked


def is_message(value: object) -> bool:
    """Whether this is an Open Assistant message with a text and, if it is ranked, a number."""
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        return False
    return isinstance(value.get("rank"), int | float | None)


def read_prompts(path: str | Path, count: int | None = None, *, iteration: int = 1) -> list[str]:
    """The `count` prompts of one iteration, or all. Raises UserError.

    Plain text, one prompt a line; or JSON, one object with a "prompt" a line, or an array of such
    objects or of texts.
    """
    lines = read_lines(path)
    number, first = lines[0]
    if first.startswith(("{", "[")):
        prompts = [prompt_in(value, place) for place, value in read_values(path)]
    elif TABLE.match(first):
        raise UserError(
            f"{path}, line {number}: {first[:60]!r} looks like the head of a table; give one "
            f"prompt a line, or JSON objects with a 'prompt'."
        )
    else:
        prompts = [line for _, line in lines]
    count = len(prompts) if count is None else count
    needed = count * iteration
    if len(prompts) < needed:
        raise UserError(
            f"{path} has {len(prompts)} prompts, but {needed} are needed by iteration {iteration}; "
            "lower --n-prompts."
        )
    return prompts[needed - count : needed]


def prompt_in(value: object, place: str) -> str:
    """The prompt of one JSON value: a text, or an object with a "prompt". Raises UserError."""
    prompt = value.get("prompt") if isinstance(value, dict) else value
    if not is_text(prompt):
        raise UserError(f"{place}: expected a text, or an object whose 'prompt' is one.")
    return prompt


def gather(config: Config, ift: list[dict]) -> tuple[list[dict], list[dict]]:
    """Instruction data and ranked answers of all files. Raises UserError."""
    ranked = []
    if config.oasst:
        ift_of_trees, ranked = read_oasst(config.oasst, lang=config.lang)
        ift = ift + ift_of_trees
    if config.ranked:
        ranked = read_ranked(config.ranked) + ranked
    return ift, ranked


def people_world(config: Config, ift: list[dict], eft: list[dict]) -> World:
    """Four fifths of all files as seed data, and the last fifth as exam. Raises UserError."""
    ift, ranked = gather(config, ift)
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
    train_eft = train_eft[: config.most_eft()]
    return World(train_ift[: config.seed_limit], train_eft, train_ranked, train_prompts, exam)


def split_off_exam(records: list[dict]) -> tuple[list[dict], list[dict]]:
    """(what training may see, what is held out for the exam), each in the order of `records`."""
    for_training, for_exam = [], []
    for record in records:
        if crc32(record["prompt"].encode()) % 5 == 0:
            for_exam.append(record)
        else:
            for_training.append(record)
    return for_training, for_exam


def prompts_of(records: list[dict]) -> list[str]:
    return [record["prompt"] for record in records]
