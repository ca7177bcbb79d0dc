"""worlds/people.py: the world of real people. Nobody knows its truth; files hold what they wrote.

In: files in the formats that people have.  Out: a `World` in the program's own formats.
A fixed fifth of all prompts is held out from training and makes the exam. A checksum of the text
chooses it, so a prompt is held out in every file and every run, or in none.
Left out on purpose: all turns of a conversation after the first answer, as in the paper.
"""

import random
import re
from dataclasses import replace
from pathlib import Path
from zlib import crc32

from core.config import Config
from core.errors import UserError
from core.files import (
    is_rank,
    is_text,
    read_lines,
    read_objects,
    read_ranked,
    read_texts,
    read_values,
)
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
                "instruction/input/output, messages and conversations, no text may be empty, and "
                "no tool may speak before the first answer."
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
        if record.get("history"):  # earlier turns, [[question, answer], ...]: the first one counts
            texts = first_of(record["history"])
        if record.get("system"):
            texts.insert(0, record["system"])
    else:
        texts = [record.get("prompt"), record.get("response")]
    if len(texts) < 2 or not all(map(is_text, texts)):
        return None
    # an input or a system message joins the prompt
    return {"prompt": "\n\n".join(texts[:-1]), "response": texts[-1]}


def first_of(history: object) -> list:
    """[question, answer]; [] where the history has another form."""
    first = history[0] if isinstance(history, list) else None
    return list(first) if isinstance(first, list) and len(first) == 2 else []


def texts_to_first_answer(turns: list) -> list:
    """What was said up to the first answer, the answer included; [] where nobody answers."""
    texts = []
    for turn in turns:
        if not isinstance(turn, dict):
            return []
        speaker = turn.get("role") or turn.get("from")
        texts.append(turn.get("content") or turn.get("value"))
        if speaker in ("assistant", "gpt"):
            return texts
        if speaker not in ("system", "user", "human"):  # a tool, whose words are not the user's
            return []
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
    return value.get("rank") is None or is_rank(value["rank"])


def read_prompts(path: str | Path) -> list[str]:
    """Prompts as plain text, one a line; or as JSON, objects with a "prompt" or texts, one a line
    or in an array. Raises UserError.
    """
    lines = read_lines(path)
    number, first = lines[0]
    if first.startswith(("{", "[")):
        return [prompt_in(value, place) for place, value in read_values(path)]
    if TABLE.match(first):
        raise UserError(
            f"{path}, line {number}: {first[:60]!r} looks like the head of a table; give one "
            f"prompt a line, or JSON objects with a 'prompt'."
        )
    return [line for _, line in lines]


def prompt_in(value: object, place: str) -> str:
    """The prompt of one JSON value: a text, or an object with a "prompt". Raises UserError."""
    prompt = value.get("prompt") if isinstance(value, dict) else value
    if not is_text(prompt):
        raise UserError(f"{place}: expected a text, or an object whose 'prompt' is one.")
    return prompt


def with_given_prompts(world: World, config: Config) -> World:
    """The world with the prompts of --prompts, but those of the exam. Raises UserError."""
    held_out = {bare_words(instruction) for instruction in world.exam.instructions()}
    found = read_prompts(config.prompts)
    given = [prompt for prompt in found if bare_words(prompt) not in held_out]
    notes = list(world.notes)
    if len(given) < len(found):
        count = len(found) - len(given)
        notes.append(f"{config.prompts}: {count} prompts are left out, as the exam holds them")
    needed = config.n_prompts * config.iters
    if len(given) < needed:
        raise UserError(
            f"{config.prompts} has {len(given)} prompts that the exam does not hold, but {needed} "
            f"are needed ({config.iters} iterations of {config.n_prompts}); lower --n-prompts or "
            f"--iters."
        )
    return replace(world, given=given, notes=notes)


def bare_words(text: str) -> str:
    """What makes two prompts the same: their words, in small letters."""
    return " ".join(text.lower().split())


def gather(config: Config, ift: list[dict]) -> tuple[list[dict], list[dict], list[str]]:
    """Instruction data, ranked answers of all files, and what was left out. Raises UserError."""
    ranked = []
    if config.oasst:
        ift_of_trees, ranked = read_oasst(config.oasst, lang=config.lang)
        ift = ift + ift_of_trees
    if config.ranked:
        ranked = read_ranked(config.ranked) + ranked
    telling = [group for group in ranked if len(set(group["ranks"])) > 1]
    notes = []
    if config.ranked and not telling:
        raise UserError(f"{config.ranked} ranks nothing: in every group all ranks are equal.")
    if len(telling) < len(ranked):
        count = len(ranked) - len(telling)
        notes.append(f"{count} groups of ranked answers are left out, as all their ranks are equal")
    return ift, telling, notes


def people_world(config: Config, ift: list[dict], eft: list[dict]) -> World:
    """Four fifths of all files as seed data, and the last fifth as exam. Raises UserError."""
    ift, ranked, notes = gather(config, ift)
    if not (ift or ranked or config.prompts):
        sources = "--ift, --oasst, --ranked or --prompts"
        raise UserError(f"there is nothing to start from: give {sources}.")
    train_ift, exam_ift = split_off_exam(ift)
    train_eft, _ = split_off_exam(eft)
    train_ranked, exam_ranked = split_off_exam(ranked)

    # what is cut is drawn by the seed, not taken from the top of a file
    rng = random.Random(f"people {config.seed}")
    rng.shuffle(train_eft)
    rng.shuffle(train_ranked)
    seed_ift = train_ift
    if len(train_ift) > config.seed_limit:
        seed_ift = rng.sample(train_ift, config.seed_limit)
        notes.append(
            f"{config.seed_limit} of {len(train_ift)} instruction examples are used, drawn at "
            f"random (--seed-limit)"
        )

    # prompts come from instruction data, or from ranked answers where there is none
    exam_prompts = prompts_of(exam_ift if ift else exam_ranked)
    train_prompts = prompts_of(train_ift or train_ranked)
    exam = Exam(exam_prompts[: config.exam], exam_ranked[: config.exam])
    train_eft = train_eft[: config.most_eft()]
    return World(seed_ift, train_eft, train_ranked, train_prompts, exam, notes=notes)


def split_off_exam(records: list[dict]) -> tuple[list[dict], list[dict]]:
    """(what training may see, what is held out for the exam), each in the order of `records`."""
    for_training, for_exam = [], []
    for record in records:
        if crc32(record["prompt"].encode()) % 5 == 0:
            for_exam.append(record)
        else:
            for_training.append(record)
    return for_training, for_exam


def best_answers(groups: list[dict]) -> list[dict]:
    """Of each group of ranked answers the best, as instruction data."""
    rows = []
    for group in groups:
        best = group["responses"][group["ranks"].index(min(group["ranks"]))]
        rows.append({"prompt": group["prompt"], "response": best})
    return rows


def prompts_of(records: list[dict]) -> list[str]:
    return [record["prompt"] for record in records]
