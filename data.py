"""data.py: text <-> ids, records, readers.

In: files and texts of people.  Out: token ids in the model's own prompt format, and records that carry them on.
`Chat` is the one owner of the prompt format: what sampling asks with is what training trains with.
A response keeps the ids that the model drew: decoded text is for people and is never tokenised again.
Left out on purpose: other tokenizer libraries (tokenizer.json only) and streaming data sets; everything here fits in memory.

Shapes: B rows, T tokens (right-padded).
"""
import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer
from torch import Tensor

PLAIN_TEMPLATE = ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
                  "{% if add_generation_prompt %}assistant:{% endif %}")


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
    votes: tuple[float | None, ...] = ()        # K scores; None where a verdict could not be read
    reward: float | None = None                 # mean of the readable votes; None where none was


@dataclass(frozen=True)
class Pair:
    """x, y_w, y_l of one prompt, as the candidates that were compared."""

    chosen: Candidate
    rejected: Candidate


class Chat:
    """tokenizer.json and the chat template of one checkpoint."""

    def __init__(self, folder: str | Path):
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError(f"model directory {folder} does not exist; --model takes a Hugging Face directory.")
        if not (folder / "tokenizer.json").exists():
            raise UserError(f"{folder} has no tokenizer.json; only that tokenizer format is supported.")
        try:
            self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as e:                  # the tokenizers library raises bare Exception
            raise UserError(f"{folder / 'tokenizer.json'} is not a readable tokenizer ({e}).") from None
        settings = read_json(folder / "tokenizer_config.json")
        template, own = settings.get("chat_template"), folder / "chat_template.jinja"
        if own.exists():
            template = own.read_text(encoding="utf-8")
        if isinstance(template, list):          # some checkpoints name several
            template = next((t["template"] for t in template if t["name"] == "default"), None)
        self.has_template = template is not None
        special = {k: t["content"] if isinstance(t, dict) else t for k, t in settings.items() if k.endswith("_token") and t}
        env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        env.globals["raise_exception"] = _raise
        env.filters["tojson"] = lambda x, **kw: json.dumps(x, ensure_ascii=False, **kw)
        try:
            self.template = env.from_string(template or PLAIN_TEMPLATE, globals=special)
        except TemplateError as e:
            raise UserError(f"the chat template of {folder} cannot be read ({e}).") from None
        self.eos_ids, self.eos = self._ends(special.get("eos_token", ""), folder)

    def _ends(self, token: str, folder: Path) -> tuple[list[int], int]:
        """Every id that ends an answer, and the one that training writes: the tokenizer's own EOS where it has one."""
        listed = (read_json(folder / "config.json") | read_json(folder / "generation_config.json")).get("eos_token_id")
        ends = [] if listed is None else listed if isinstance(listed, list) else [listed]
        own = self.tokenizer.token_to_id(token)
        if own is None and not ends:
            raise UserError(f"{folder} names no EOS token (tokenizer_config.json or generation_config.json).")
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

    def example(self, prompt: str, response: str) -> Example:
        """One training example; the response is followed by EOS, so that stopping is learnt too."""
        text = response if self.has_template else " " + response
        return Example(self.prompt(prompt), self.tokenizer.encode(text, add_special_tokens=False).ids + [self.eos])

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


def read_lines(path: str | Path) -> list[tuple[int, str]]:
    """The lines of a text file that are not blank, with their numbers. Raises UserError."""
    try:
        lines = [(i, s.strip()) for i, s in enumerate(Path(path).read_text(encoding="utf-8").split("\n"), 1) if s.strip()]
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path} cannot be read ({e}).") from None
    if not lines:
        raise UserError(f"{path} is empty; one JSON object a line is expected.")
    return lines


def read_jsonl(path: str | Path, *keys: str, wrong: Callable[[dict], str | None] = lambda row: None) -> list[dict]:
    """JSON objects, one a line, that hold at least `keys` and of which `wrong` says nothing.

    Raises UserError with file and line number.
    """
    rows = []
    for number, line in read_lines(path):
        try:
            row = json.loads(line)
        except ValueError as e:
            raise UserError(f"{path}, line {number}: not valid JSON ({e}).") from None
        if not isinstance(row, dict) or any(k not in row for k in keys):
            raise UserError(f"{path}, line {number}: expected an object with the keys {', '.join(keys)}.")
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


def read_ranked(path: str | Path) -> list[dict]:
    """Groups of answers that people ranked: {"prompt", "responses": [...], "ranks": [...]}, rank 0 is the best."""
    def wrong(row: dict) -> str | None:
        texts, ranks = row["responses"], row["ranks"]
        if not isinstance(texts, list) or not isinstance(ranks, list) or not 2 <= len(texts) == len(ranks):
            return "'responses' and 'ranks' must be lists of one length, two at least"
        fine = all(isinstance(t, str) for t in [row["prompt"], *texts]) and all(isinstance(r, (int, float)) for r in ranks)
        return None if fine else "'prompt' and 'responses' must be texts and 'ranks' numbers"
    return read_jsonl(path, "prompt", "responses", "ranks", wrong=wrong)


def read_prompts(path: str | Path, count: int, *, trip: int) -> list[str]:
    """The `count` prompts of one trip, one a line: plain text, or JSON objects with a "prompt". Raises UserError."""
    lines = [line for _, line in read_lines(path)]
    prompts = [row["prompt"] for row in read_texts(path, "prompt")] if lines[0].startswith("{") else lines
    if len(prompts) < count * trip:
        raise UserError(f"{path} has {len(prompts)} prompts, but {count * trip} are needed by iteration {trip}; lower --n-prompts.")
    return prompts[count * (trip - 1):count * trip]


def eft_from_ranked(groups: Sequence[dict]) -> list[dict]:
    """Ranked answers -> judge examples {"prompt", "response", "verdict"}: the best gets 5, the worst 1, evenly between.

    The paper lets the SFT model write the verdict and keeps those that agree with the ranking; this is the bare
    score line, which a model too small to write a rationale can still learn.
    """
    rows = []
    for group in groups:
        order = sorted(set(group["ranks"]))
        for response, rank in zip(group["responses"], group["ranks"]):
            place = order.index(rank) / max(1, len(order) - 1)          # 0 best ... 1 worst
            rows.append({"prompt": group["prompt"], "response": response, "verdict": f"Score: {round(5 - 4 * place)}"})
    return rows


def drop_long(examples: Sequence[Example], limit: int, say: Callable[[str], None]) -> list[Example]:
    """The examples that fit into `limit` tokens; the others are counted aloud, never cut."""
    kept = [e for e in examples if len(e.prompt) + len(e.response) <= limit]
    if len(kept) < len(examples):
        say(f"{len(examples) - len(kept)} of {len(examples)} examples are longer than {limit} tokens and were left out")
    return kept


def asking(description: str, **texts: str) -> argparse.ArgumentParser:
    """The arguments that the command lines of sample.py and judge.py share; `texts` are further texts, with their help."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("--model", required=True, help="a Hugging Face directory, for example runs/toy/M4")
    for name, text in texts.items():
        parser.add_argument("--" + name, help=text)
    parser.add_argument("--temperature", type=float, default=0.7, help="0 is greedy [%(default)s]")
    parser.add_argument("--top-p", type=float, default=0.9, help="nucleus [%(default)s]")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="limit of one text [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same text [%(default)s]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    return parser


def command(main: Callable[[], None]) -> None:
    """Runs a command line; a user's mistake ends in one sentence and exit code 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        sys.exit(130)


def collate(examples: Sequence[Example], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Examples -> ids (B,T), right-padded, and mask (B,T): True on response tokens, EOS included."""
    width = max(len(e.prompt) + len(e.response) for e in examples)
    ids = torch.zeros(len(examples), width, dtype=torch.long)
    mask = torch.zeros(len(examples), width, dtype=torch.bool)
    for row, (prompt, response) in enumerate(examples):
        ids[row, :len(prompt) + len(response)] = torch.tensor(prompt + response)
        mask[row, len(prompt):len(prompt) + len(response)] = True
    return ids.to(device), mask.to(device)
