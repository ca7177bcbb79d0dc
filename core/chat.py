"""core/chat.py: the one owner of the prompt format.

In: the tokenizer and chat template of a checkpoint.  Out: token ids for prompts and answers, and
texts again. What sampling asks with is what training trains with, because both ask this class.
Left out on purpose: other tokenizer libraries; tokenizer.json is the only format.
Shapes: V vocabulary.
"""

import json
import re
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path

import torch
from jinja2 import Template, TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer
from torch import Tensor

from core.errors import UserError
from core.files import read_json
from core.records import Example

# For base models, which have no template of their own.
PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
# {% generation %} and {% endgeneration %} mark what the assistant says. They change nothing here.
GENERATION_START = re.compile(r"(\{%[-+]?\s*)generation(?=\s*[-+]?%\})")
GENERATION_END = re.compile(r"(\{%[-+]?\s*)endgeneration(?=\s*[-+]?%\})")


class Chat:
    """tokenizer.json and the chat template of one checkpoint."""

    def __init__(self, folder: str | Path):
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError(
                f"model directory {folder} does not exist; --model takes a Hugging Face directory."
            )
        self.tokenizer = read_tokenizer(folder)
        settings = read_json(folder / "tokenizer_config.json")
        special = {}  # bos_token, eos_token and the like; some checkpoints write them as objects
        for name, token in settings.items():
            if name.endswith("_token") and token:
                special[name] = token["content"] if isinstance(token, dict) else token
        template = read_template(folder, settings)
        self.has_template = template is not None
        self.template = compile_template(template or PLAIN_TEMPLATE, special, folder)
        # the tokenizer's own EOS comes first, where it has one
        eos = self.tokenizer.token_to_id(special.get("eos_token", ""))
        ends = read_ends(folder) if eos is None else [eos, *read_ends(folder)]
        if not ends:
            raise UserError(
                f"{folder} names no EOS token (tokenizer_config.json or generation_config.json)."
            )
        self.eos = ends[0]  # training writes this one
        self.eos_ids = sorted(set(ends))  # each of these ends an answer

    def render(self, messages: Sequence[dict]) -> list[int]:
        """Messages -> ids, up to where the assistant speaks. The template writes special tokens."""
        try:
            text = self.template.render(messages=messages, add_generation_prompt=True)
        except TemplateError as error:
            raise UserError(f"the chat template refuses these messages ({error}).") from None
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def prompt(self, text: str) -> list[int]:
        """One question of a user."""
        return self.render([{"role": "user", "content": text}])

    def raw(self, text: str) -> list[int]:
        """Plain text for the model to go on with, after what the tokenizer puts in front (BOS)."""
        return self.tokenizer.encode(text).ids

    def response(self, text: str) -> list[int]:
        """The ids of an answer that somebody else wrote, without EOS."""
        text = text if self.has_template else " " + text
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def example(self, prompt: str, response: str) -> Example:
        """One training example. EOS follows the response, so that the model learns to stop."""
        return Example(self.prompt(prompt), self.response(response) + [self.eos])

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    @cached_property
    def newline(self) -> Tensor:
        """(V+1,) bool: the ids with a line break. Sampling asks its stop rule after these only.

        The last entry is False. It is for ids of a model that the tokenizer lacks.
        """
        ids = range(self.tokenizer.get_vocab_size())
        texts = self.tokenizer.decode_batch([[i] for i in ids])
        return torch.tensor([*("\n" in text for text in texts), False])


def read_tokenizer(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.exists():
        raise UserError(f"{folder} has no tokenizer.json; only that tokenizer format is supported.")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise UserError(f"{path} is not a readable tokenizer ({error}).") from None


def read_template(folder: Path, settings: dict) -> str | None:
    """chat_template.jinja where there is one, else the template in tokenizer_config.json."""
    path = folder / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):  # some checkpoints name several templates
        return next((entry["template"] for entry in template if entry["name"] == "default"), None)
    return template


def read_ends(folder: Path) -> list[int]:
    """The ids that end an answer, as the two config files list them."""
    config = read_json(folder / "config.json") | read_json(folder / "generation_config.json")
    ends = config.get("eos_token_id")
    if isinstance(ends, list):
        return ends
    return [] if ends is None else [ends]


def compile_template(text: str, special: dict[str, str], folder: Path) -> Template:
    """A jinja template in a sandbox, with the helpers that the transformers library gives to it."""

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: object, ensure_ascii: bool = False, **options) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    sandbox = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    sandbox.globals["raise_exception"] = refuse
    sandbox.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    sandbox.filters["tojson"] = tojson
    text = GENERATION_START.sub(r"\1if true", text)
    text = GENERATION_END.sub(r"\1endif", text)
    try:
        return sandbox.from_string(text, globals=special | {"tools": None, "documents": None})
    except TemplateError as error:
        raise UserError(f"the chat template of {folder} cannot be read ({error}).") from None
