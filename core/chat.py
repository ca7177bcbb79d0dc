"""core/chat.py: the one owner of the prompt format.

In: the tokenizer and chat template of a checkpoint.  Out: token ids for prompts and answers, and
texts again. What sampling asks with is what training trains with, because both ask this class.
Left out on purpose: other tokenizer libraries; tokenizer.json is the only format.
Shapes: V vocabulary.
"""

import contextlib
import json
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path

import torch
from jinja2 import Template, TemplateError
from jinja2.ext import loopcontrols
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer
from torch import Tensor

from core.errors import UserError
from core.files import read_json, read_whole
from core.ranks import first_only
from core.records import Example

# For base models, which have no template of their own.
PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
# Characters for private use. While a template is rendered, a number between them stands for a
# marker that a message spells out.
STAND_IN_START = "\ue000"
STAND_IN_END = "\ue001"
STAND_IN = re.compile(f"{STAND_IN_START}([0-9]+){STAND_IN_END}")
LARGEST_TEXT = 1_000_000  # characters that a template may write beyond the messages
SECONDS = 5  # that it may take
# {% generation %} and {% endgeneration %} mark what the assistant says. They change nothing here.
GENERATION_START = re.compile(r"(\{%[-+]?\s*)generation(?=\s*[-+]?%\})")
GENERATION_END = re.compile(r"(\{%[-+]?\s*)endgeneration(?=\s*[-+]?%\})")


class Chat:
    """tokenizer.json and the chat template of one checkpoint.

    `template_arg` gives values to variables of the template, as in "enable_thinking=false".
    """

    def __init__(self, folder: str | Path, template_arg: str | None = None):
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError(
                f"model directory {folder} does not exist; --model takes a Hugging Face directory."
            )
        self.folder = folder
        self.tokenizer = read_tokenizer(folder)
        settings = read_json(folder / "tokenizer_config.json")
        special = named_tokens(settings)
        if "added_tokens_decoder" not in settings:  # so the transformers library tells old files
            special |= named_tokens(read_json(folder / "special_tokens_map.json"))
        template = read_template(folder, settings)
        self.has_template = bool(template)
        self.template_text = assignments(template_arg) + (template or PLAIN_TEMPLATE)
        self.beginning = ids_in_front(self.tokenizer)  # BOS, where the tokenizer adds one
        self.markers = marker_pattern(self.tokenizer)
        self.template = compile_template(self.template_text, special, folder)
        # the tokenizer's own EOS comes first, where it has one
        eos = self.tokenizer.token_to_id(special.get("eos_token", ""))
        ends = read_ends(folder) if eos is None else [eos, *read_ends(folder)]
        if not ends:
            raise UserError(
                f"{folder} names no EOS token (tokenizer_config.json or generation_config.json)."
            )
        self.eos = ends[0]  # training writes this one
        self.eos_ids = sorted(set(ends))  # each of these ends an answer
        check_vocabulary(self.tokenizer, self.eos_ids, folder)

    def check_template(self) -> "Chat":
        """Itself. Raises UserError where the template fails, or drops what a user says."""
        if self.prompt("a") == self.prompt("b"):
            raise UserError(f"{self.folder}: the chat template leaves the user's message out.")
        return self

    def render(self, messages: Sequence[dict]) -> list[int]:
        """Messages -> ids, up to where the assistant speaks. BOS is there, if the model has one.

        The template alone writes special tokens. A marker that a message spells out, such as
        "<|im_end|>", is plain text: a stand-in takes its place while the template is rendered.
        """
        hidden: list[str] = []

        def hide(marker: re.Match) -> str:
            hidden.append(marker[0])
            return f"{STAND_IN_START}{len(hidden) - 1}{STAND_IN_END}"

        shown = [m | {"content": self.markers.sub(hide, m["content"])} for m in messages]
        text = write_template(self.template, messages=shown, add_generation_prompt=True)
        ids = [] if self.has_template else list(self.beginning)
        for number, part in enumerate(STAND_IN.split(text)):
            if number % 2:  # the split gives text, number, text, number, ..., text
                ids += self.plain(hidden[int(part)])
            elif part:
                ids += self.tokenizer.encode(part, add_special_tokens=False).ids
        return ids

    def plain(self, text: str) -> list[int]:
        """The ids of a text in which no marker means anything."""
        self.tokenizer.encode_special_tokens = True  # as text, character by character
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        self.tokenizer.encode_special_tokens = False
        return ids

    @first_only
    def save_template(self, folder: Path) -> None:
        """Writes the template, with the variables that it was given, into a checkpoint."""
        (folder / "chat_template.jinja").write_text(self.template_text, encoding="utf-8")

    def prompt(self, text: str) -> list[int]:
        """One question of a user."""
        return self.render([{"role": "user", "content": text}])

    def raw(self, text: str) -> list[int]:
        """Plain text for the model to go on with, after what the tokenizer puts in front (BOS)."""
        return self.beginning + self.plain(text)

    def response(self, text: str) -> list[int]:
        """The ids of an answer that somebody else wrote, without EOS."""
        return self.plain(text if self.has_template else " " + text)

    def example(self, prompt: str, response: str) -> Example:
        """One training example. EOS follows the response, so that the model learns to stop."""
        return Example(self.prompt(prompt), self.response(response) + [self.eos])

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    @cached_property
    def newline(self) -> Tensor:
        """(V,) bool: the ids with a line break. Sampling asks its stop rule after these only.

        V is the tokenizer's vocabulary; that of the model may be another.
        """
        ids = range(self.tokenizer.get_vocab_size())
        texts = self.tokenizer.decode_batch([[i] for i in ids])
        return torch.tensor(["\n" in text for text in texts])


def read_tokenizer(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.exists():
        raise UserError(f"{folder} has no tokenizer.json; only that tokenizer format is supported.")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise UserError(f"{path} is not a readable tokenizer ({error}).") from None
    # The file may hold what somebody's last batch was cut and filled to.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def check_vocabulary(tokenizer: Tokenizer, eos_ids: Sequence[int], folder: Path) -> None:
    """Raises UserError where the tokenizer writes ids that the model lacks.

    Special tokens may lie beyond, such as a pad that somebody added: nothing here writes them,
    unless they end an answer.
    """
    size = read_json(folder / "config.json").get("vocab_size")
    if not isinstance(size, int) or size < 2:
        return  # a tokenizer without a model, or a size that core/model_config.py refuses
    added = tokenizer.get_added_tokens_decoder()
    special = {number for number, token in added.items() if token.special}
    ids = {*tokenizer.get_vocab().values()} - special | {*eos_ids}
    if max(ids) >= size:
        raise UserError(
            f"{folder}: the tokenizer writes ids up to {max(ids)}, but the model has {size} "
            f"embeddings; its files belong to two models."
        )


def named_tokens(settings: dict) -> dict[str, str]:
    """bos_token, eos_token and the like. Some checkpoints write them as objects."""
    special = {}
    for name, token in settings.items():
        text = token.get("content") if isinstance(token, dict) else token
        if name.endswith("_token") and isinstance(text, str) and text:
            special[name] = text
    return special


def ids_in_front(tokenizer: Tokenizer) -> list[int]:
    """What the tokenizer puts in front of every text: BOS, or nothing."""
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    ids = tokenizer.encode("a").ids
    in_front = 0
    while ids[in_front : in_front + len(bare)] != bare:
        in_front += 1
    return ids[:in_front]


def marker_pattern(tokenizer: Tokenizer) -> re.Pattern:
    """What a message may not write: the texts of special tokens, and stand-ins."""
    tokens = tokenizer.get_added_tokens_decoder().values()
    texts = [token.content for token in tokens if token.special]
    texts.sort(key=len, reverse=True)  # the longest that fits counts
    return re.compile("|".join([*map(re.escape, texts), STAND_IN.pattern]))


def read_template(folder: Path, settings: dict) -> str | None:
    """chat_template.jinja where there is one, else the template in tokenizer_config.json."""
    path = folder / "chat_template.jinja"
    if path.exists():
        return read_whole(path)
    fault = f"{folder}: chat_template must be a text, or a list of named texts with a 'default'."
    template = settings.get("chat_template")
    if isinstance(template, list):  # some checkpoints name several templates
        named = [entry for entry in template if isinstance(entry, dict)]
        defaults = [entry.get("template") for entry in named if entry.get("name") == "default"]
        if not defaults or defaults[0] is None:
            raise UserError(fault)
        template = defaults[0]
    if not isinstance(template, str | None):
        raise UserError(fault)
    return template


def read_ends(folder: Path) -> list[int]:
    """The ids that end an answer, as the two config files list them."""
    config = read_json(folder / "config.json") | read_json(folder / "generation_config.json")
    ends = config.get("eos_token_id")
    if ends is None:
        return []
    ends = ends if isinstance(ends, list) else [ends]
    if not all(isinstance(end, int) and not isinstance(end, bool) and end >= 0 for end in ends):
        raise UserError(f"{folder}: eos_token_id must be ids of tokens, not {ends!r}.")
    return ends


def assignments(template_arg: str | None) -> str:
    """ "a=false,b=x" -> the jinja that gives these values. Raises UserError."""
    text = ""
    for part in template_arg.split(",") if template_arg else ():
        name, equals, value = part.partition("=")
        if not (equals and name.strip().isidentifier()):
            raise UserError(f"--template-arg takes NAME=VALUE, not {part!r}.")
        with contextlib.suppress(ValueError):  # a text without its quotation marks stays as it is
            value = json.loads(value)
        text += f"{{%- set {name.strip()} = {json.dumps(value)} -%}}\n"
    return text


# ---- templates, which strangers write ----


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja without a way to Python's objects, and without products that fill the memory."""

    intercepted_binops = frozenset(["*", "**"])

    def call_binop(self, context: Context, operator: str, left: object, right: object) -> object:
        sizes = []
        for side in (left, right):
            sizes.append(abs(side) if isinstance(side, int | float) else len(side))
        size = sizes[0] ** min(sizes[1], 20) if operator == "**" else sizes[0] * sizes[1]
        if size > LARGEST_TEXT:
            raise TemplateError(f"a product of more than {LARGEST_TEXT}")
        return super().call_binop(context, operator, left, right)


def compile_template(text: str, special: dict[str, str], folder: Path) -> Template:
    """A jinja template in a sandbox, with the helpers that the transformers library gives to it."""

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: object, ensure_ascii: bool = False, **options) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    sandbox = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    sandbox.globals["raise_exception"] = refuse
    sandbox.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    sandbox.filters["tojson"] = tojson
    text = GENERATION_START.sub(r"\1if true", text)
    text = GENERATION_END.sub(r"\1endif", text)
    try:
        with time_limit(SECONDS):
            return sandbox.from_string(text, globals=special | {"tools": None, "documents": None})
    except Exception as error:  # the text is a stranger's: whatever it provokes is its fault
        raise UserError(f"the chat template of {folder} cannot be read ({error}).") from None


def write_template(template: Template, **variables) -> str:
    """What a template writes. Raises UserError where it refuses, fails or does not end."""
    parts = []
    size = 0
    try:
        with time_limit(SECONDS):
            for part in template.generate(**variables):
                parts.append(part)
                size += len(part)
                if size > LARGEST_TEXT + sum(len(m["content"]) for m in variables["messages"]):
                    raise TemplateError(f"it writes more than {LARGEST_TEXT} characters")
    except Exception as error:  # the template is a stranger's: whatever it does is its fault
        raise UserError(f"the chat template refuses these messages ({error}).") from None
    return "".join(parts)


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TemplateError inside the block after so many seconds; in the main thread only."""

    def too_long(*_) -> None:
        raise TemplateError(f"it takes more than {seconds} seconds")

    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
