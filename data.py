"""data.py: text <-> ids, records, readers.

In: files and texts of people.  Out: token ids in the model's own prompt format, and records that carry them on.
`Chat` is the one owner of the prompt format: what sampling asks with is what training trains with.
An answer to learn from keeps the ids that the model drew: it is never decoded and tokenised again.
Left out on purpose: other tokenizer libraries (tokenizer.json only) and streaming data sets; everything here fits in memory.

Shapes: B rows, T tokens (right-padded).
"""

import gzip
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

PLAIN_TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
TRAVELS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
    "chat_template.jinja",
    "rubric.txt",
    "LICENSE",
)
GENERATION = r"(\{%[-+]?\s*)(end)?generation(?=\s*[-+]?%\})"  # marks what the assistant says; means nothing here


class UserError(Exception):
    """Something the user can mend: one sentence that says what is wrong and what to do. The CLIs exit with code 2."""


class Example(NamedTuple):
    """One sequence to learn from: only `response` ids (EOS included) carry loss."""

    prompt: list[int]
    response: list[int]


@dataclass(frozen=True)
class Candidate:
    """One answer y to one prompt x. `tokens` are the drawn ids, EOS included where the answer ended by itself."""

    id: int
    sample: int
    prompt: str
    response: str
    tokens: list[int]
    finished: bool
    votes: tuple[float | None, ...] = ()  # K scores; None where a verdict could not be read
    reward: float | None = None  # mean of the readable votes; None where none was


@dataclass(frozen=True)
class Pair:
    """x, y_w, y_l of one prompt, as the candidates that were compared."""

    chosen: Candidate
    rejected: Candidate

    def row(self) -> dict:
        """As it is written to pairs.jsonl, whose first three keys are those that TRL reads."""
        w, l = self.chosen, self.rejected
        return {
            "prompt": w.prompt,
            "chosen": w.response,
            "rejected": l.response,
            "chosen_score": w.reward,
            "rejected_score": l.reward,
            "id": w.id,
            "chosen_sample": w.sample,
            "rejected_sample": l.sample,
        }


class Chat:
    """tokenizer.json and the chat template of one checkpoint."""

    def __init__(self, folder: str | Path):
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError(
                f"model directory {folder} does not exist; --model takes a Hugging Face directory."
            )
        if not (folder / "tokenizer.json").exists():
            raise UserError(
                f"{folder} has no tokenizer.json; only that tokenizer format is supported."
            )
        try:
            self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as e:  # the tokenizers library raises bare Exception
            raise UserError(
                f"{folder / 'tokenizer.json'} is not a readable tokenizer ({e})."
            ) from None
        settings = read_json(folder / "tokenizer_config.json")
        own = folder / "chat_template.jinja"
        template = (
            own.read_text(encoding="utf-8") if own.exists() else settings.get("chat_template")
        )
        if isinstance(template, list):  # some checkpoints name several
            template = next((t["template"] for t in template if t["name"] == "default"), None)
        self.has_template = template is not None
        special = {
            k: t["content"] if isinstance(t, dict) else t
            for k, t in settings.items()
            if k.endswith("_token") and t
        }
        env = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        env.globals |= {
            "raise_exception": _raise,
            "strftime_now": lambda form: datetime.now().strftime(form),
        }
        env.filters["tojson"] = lambda x, ensure_ascii=False, **kw: json.dumps(
            x, ensure_ascii=ensure_ascii, **kw
        )
        try:
            plain = re.sub(
                GENERATION,
                lambda m: m[1] + ("endif" if m[2] else "if true"),
                template or PLAIN_TEMPLATE,
            )
            self.template = env.from_string(
                plain, globals=special | {"tools": None, "documents": None}
            )
        except TemplateError as e:
            raise UserError(f"the chat template of {folder} cannot be read ({e}).") from None
        self.eos_ids, self.eos = self._ends(special.get("eos_token", ""), folder)

    def _ends(self, token: str, folder: Path) -> tuple[list[int], int]:
        """Every id that ends an answer, and the one that training writes: the tokenizer's own EOS where it has one."""
        listed = (
            read_json(folder / "config.json") | read_json(folder / "generation_config.json")
        ).get("eos_token_id")
        ends = [] if listed is None else listed if isinstance(listed, list) else [listed]
        own = self.tokenizer.token_to_id(token)
        if own is None and not ends:
            raise UserError(
                f"{folder} names no EOS token (tokenizer_config.json or generation_config.json)."
            )
        own = ends[0] if own is None else own
        return sorted({own, *ends}), own

    def render(self, messages: Sequence[dict]) -> list[int]:
        """Messages -> ids that end where the assistant is to speak. Special tokens come from the template alone."""
        try:
            text = self.template.render(messages=messages, add_generation_prompt=True)
        except TemplateError as e:
            raise UserError(f"the chat template refuses these messages ({e}).") from None
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def prompt(self, text: str) -> list[int]:
        return self.render([{"role": "user", "content": text}])

    def raw(self, text: str) -> list[int]:
        """Plain text to be continued, with whatever the tokenizer puts in front (BOS)."""
        return self.tokenizer.encode(text).ids

    def response(self, text: str) -> list[int]:
        """The ids of an answer that somebody else wrote, without EOS."""
        return self.tokenizer.encode(
            text if self.has_template else " " + text, add_special_tokens=False
        ).ids

    def example(self, prompt: str, response: str) -> Example:
        """One training example; the response is followed by EOS, so that stopping is learnt too."""
        return Example(self.prompt(prompt), self.response(response) + [self.eos])

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    @cached_property
    def newline(self) -> Tensor:
        """(V,) bool: the ids whose text holds a line break. Sampling asks its stop rule only after one of these."""
        texts = self.tokenizer.decode_batch([[i] for i in range(self.tokenizer.get_vocab_size())])
        return torch.tensor(["\n" in t for t in texts])


def _raise(message: str):
    raise TemplateError(message)


def read_json(path: Path) -> dict:
    """A JSON object, empty where the file is absent. Raises UserError where it is there and broken."""
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise UserError(f"{path} is not valid JSON ({e}).") from None


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of one or several safetensors files, in HF names. Raises UserError where a file is absent or broken."""
    index = read_json(folder / "model.safetensors.index.json").get(
        "weight_map", {"": "model.safetensors"}
    )
    tensors = {}
    for name in sorted(set(index.values())):
        if not (folder / name).exists():
            raise UserError(
                f"{folder} has no {name}; weights are read from safetensors files only."
            )
        try:
            tensors |= load_file(folder / name)
        except (SafetensorError, OSError) as e:
            raise UserError(
                f"{folder / name} is not a readable safetensors file ({e}); copy or download it again."
            ) from None
    return tensors


def write_checkpoint(
    folder: Path, config: dict, tensors: dict[str, Tensor], source: str | Path | None
) -> None:
    """A Hugging Face directory, whole or not at all; the files that travel with a model are copied from `source`."""
    temporary = Path(f"{folder}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
    (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name in TRAVELS if source else ():
        if (Path(source) / name).exists():
            shutil.copy(Path(source) / name, temporary / name)
    if not folder.exists():
        temporary.rename(folder)
    else:  # what else lies in an existing folder is not ours to delete
        for file in temporary.iterdir():
            file.replace(folder / file.name)
        temporary.rmdir()


def read_lines(path: str | Path) -> list[tuple[int, str]]:
    """The lines of a text file (or .gz) that are not blank, with their numbers. Raises UserError."""
    try:
        with (gzip.open if str(path).endswith(".gz") else open)(
            path, "rt", encoding="utf-8"
        ) as file:
            lines = [(i, s.strip()) for i, s in enumerate(file, 1) if s.strip()]
    except (OSError, EOFError, UnicodeDecodeError) as e:
        raise UserError(f"{path} cannot be read ({e}).") from None
    if not lines:
        raise UserError(f"{path} is empty; one JSON object a line is expected.")
    return lines


def read_jsonl(
    path: str | Path, *keys: str, wrong: Callable[[dict], str | None] = lambda row: None
) -> list[dict]:
    """JSON objects, one a line, with at least `keys` and of which `wrong` says nothing. Raises UserError with file and line."""
    rows = []
    for number, line in read_lines(path):
        try:
            row = json.loads(line)
        except ValueError as e:
            raise UserError(f"{path}, line {number}: not valid JSON ({e}).") from None
        if not isinstance(row, dict) or any(k not in row for k in keys):
            raise UserError(
                f"{path}, line {number}: expected an object with the keys {', '.join(keys)}."
            )
        if complaint := wrong(row):
            raise UserError(f"{path}, line {number}: {complaint}.")
        rows.append(row)
    return rows


def write_whole(path: Path, text: str) -> None:
    """Writes under a temporary name and renames: a file that is there is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_jsonl(path: Path, rows: Iterable[dict]) -> None:
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_own(path: Path) -> list[dict]:
    """The rows of a file of this run; none where it is not there yet."""
    return read_jsonl(path) if path.exists() and path.stat().st_size else []


def read_texts(path: str | Path, *keys: str) -> list[dict]:
    """Like read_jsonl, for rows whose `keys` must all hold text."""

    def wrong(row: dict) -> str | None:
        bad = [k for k in keys if not isinstance(row[k], str) or not row[k].strip()]
        return f"{bad[0]!r} must be a text that is not empty" if bad else None

    return read_jsonl(path, *keys, wrong=wrong)


def exchange(row: dict) -> tuple[str, str] | None:
    """(prompt, response) of one row of instruction data, whichever of four formats it has; None where it has none.

    Of a conversation the first exchange is taken, as in the paper; a system message stands before the prompt.
    """
    turns = row.get("messages") or row.get("conversations")
    if isinstance(turns, list):  # messages, or ShareGPT
        said = [
            (t.get("role") or t.get("from"), t.get("content") or t.get("value"))
            for t in turns
            if isinstance(t, dict)
        ]
        asked = next((i for i, (who, _) in enumerate(said) if who in ("assistant", "gpt")), 0)
        texts = [text for _, text in said[: asked + 1]] if asked else [None]
    elif "instruction" in row:  # Alpaca
        texts = [
            row["instruction"],
            *([row["input"]] if row.get("input") else []),
            row.get("output"),
        ]
    else:
        texts = [row.get("prompt"), row.get("response")]
    fine = all(isinstance(t, str) and t.strip() for t in texts)
    return ("\n\n".join(texts[:-1]), texts[-1]) if fine else None


def read_ift(path: str | Path) -> list[dict]:
    """Instruction data -> {"prompt", "response"}: JSONL of prompt/response, Alpaca, messages or ShareGPT. Raises UserError."""
    unknown = (
        "no prompt with an answer; the formats are prompt/response, instruction/input/output, messages and conversations, "
        "and no text may be empty"
    )
    rows = read_jsonl(path, wrong=lambda row: None if exchange(row) else unknown)
    return [dict(zip(("prompt", "response"), exchange(row))) for row in rows]


def read_oasst(path: str | Path, *, lang: str) -> tuple[list[dict], list[dict]]:
    """Open Assistant trees -> instruction data (first turn, reply of rank 0) and groups of ranked first replies.

    What is deleted, not ranked or in another language is passed over. Raises UserError. Source: the paper, section 3.1.
    """

    def wrong(row: dict) -> str | None:
        replies = row["prompt"].get("replies", []) if isinstance(row["prompt"], dict) else None
        fine = isinstance(replies, list) and all(
            isinstance(m, dict)
            and isinstance(m.get("text"), str)
            and isinstance(m.get("rank"), (int, float, type(None)))
            for m in [row["prompt"], *replies]
        )
        return (
            None
            if fine
            else "'prompt' must be an Open Assistant message with its 'text' and 'replies'"
        )

    ift, ranked = [], []
    usable = lambda m: m.get("lang") == lang and not m.get("deleted")
    for root in (
        row["prompt"] for row in read_jsonl(path, "prompt", wrong=wrong) if usable(row["prompt"])
    ):
        replies = sorted(
            (m for m in root.get("replies", []) if usable(m) and m.get("rank") is not None),
            key=lambda m: m["rank"],
        )
        if replies and replies[0]["rank"] == 0:
            ift.append({"prompt": root["text"], "response": replies[0]["text"]})
        if len(replies) > 1:
            ranked.append(
                {
                    "prompt": root["text"],
                    "responses": [m["text"] for m in replies],
                    "ranks": [m["rank"] for m in replies],
                }
            )
    if not ranked:
        raise UserError(f"{path} has no ranked replies in language {lang!r}; see --lang.")
    return ift, ranked


def read_ranked(path: str | Path) -> list[dict]:
    """Groups of answers that people ranked: {"prompt", "responses": [...], "ranks": [...]}, rank 0 is the best."""

    def wrong(row: dict) -> str | None:
        texts, ranks = row["responses"], row["ranks"]
        if (
            not isinstance(texts, list)
            or not isinstance(ranks, list)
            or not 2 <= len(texts) == len(ranks)
        ):
            return "'responses' and 'ranks' must be lists of one length, two at least"
        fine = all(isinstance(t, str) for t in [row["prompt"], *texts]) and all(
            isinstance(r, (int, float)) for r in ranks
        )
        return None if fine else "'prompt' and 'responses' must be texts and 'ranks' numbers"

    return read_jsonl(path, "prompt", "responses", "ranks", wrong=wrong)


def read_prompts(path: str | Path, count: int | None = None, *, trip: int = 1) -> list[str]:
    """The `count` prompts of one trip (or all), one a line: plain text, or JSON objects with a "prompt". Raises UserError."""
    lines = [line for _, line in read_lines(path)]
    prompts = (
        [row["prompt"] for row in read_texts(path, "prompt")] if lines[0].startswith("{") else lines
    )
    count = len(prompts) if count is None else count
    if len(prompts) < count * trip:
        raise UserError(
            f"{path} has {len(prompts)} prompts, but {count * trip} are needed by iteration {trip}; lower --n-prompts."
        )
    return prompts[count * (trip - 1) : count * trip]


def shared_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """How many leading tokens all prompts share, the last token of each left out."""
    first, last = min(prompts), max(prompts)  # lexicographic extremes share what all share
    size = max(0, min(map(len, prompts)) - 1)
    return next((i for i in range(size) if first[i] != last[i]), size)


def collate(
    groups: Sequence[Sequence[Example]], device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Groups of examples -> one row each, all (B,T), right-padded: ids, mask, branch, position.

    A row holds what the prompts of its group begin with, and behind it the rest of each example. `mask` is True on
    response tokens, EOS included; `branch` is 0 at the beginning that all share and i + 1 in the rest of example i;
    `position` counts on from the beginning in each of them.
    """
    rows = []
    for group in groups:
        start = shared_prefix([e.prompt for e in group])
        row = [(token, False, 0, i) for i, token in enumerate(group[0].prompt[:start])]
        for branch, (prompt, response) in enumerate(group, 1):
            row += [
                (token, i >= len(prompt), branch, i)
                for i, token in enumerate(prompt + response)
                if i >= start
            ]
        rows.append(torch.tensor(row))  # (T,4)
    ids, mask, branch, position = (
        torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device).unbind(-1)
    )
    return ids, mask.bool(), branch, position


def micro_batches(
    rows: Iterable[int], lengths: Sequence[int], budget: int, most: int | None = None
) -> list[list[int]]:
    """Rows sorted by length and cut so that rows x longest row stays within `budget` tokens, and each has at most `most` rows."""
    batches = []
    for row in sorted(rows, key=lambda r: lengths[r]):
        if batches and lengths[row] * (len(batches[-1]) + 1) <= budget and len(batches[-1]) != most:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches
