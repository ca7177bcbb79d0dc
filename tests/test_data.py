"""core/chat.py, core/batches.py, core/likeness.py: one prompt format, exact masks and ROUGE-L."""

import json
import random
import signal
import time
from collections import Counter
from fractions import Fraction

import pytest
import torch
from conftest import ROOT, SPECIALS, write_tokenizer
from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer

from core.batches import collate
from core.chat import Chat
from core.errors import UserError
from core.likeness import KnownPrompts, PromptText
from core.records import Candidate, Example

LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|im_start|>' + message['role'] + '\n\n'+ message['content'] | trim"
    " + '<|im_end|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}\n"
    "{%- for m in messages %}\n    {%- if m.role == 'tool' %}{% continue %}{% endif %}\n"
    "    {{- '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' }}\n{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}\n"
)
TALKS = [
    [{"role": "user", "content": "Count up from two to four for Mia."}],
    [{"role": "user", "content": "  spaces, ünïcödé, {{ braces }} and\nlines  "}],
    [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "Three?"},
    ],
]


@pytest.fixture(params=["seed", "chatml", "llama3", "default system"])
def folder(request, tmp_path):
    if request.param == "seed":
        return ROOT / "seed"
    own = {
        "chatml": {},
        "llama3": {"chat_template": LLAMA3, "bos_token": "<|begin|>"},
        "default system": {"chat_template": DEFAULT_SYSTEM},
    }[request.param]
    return write_tokenizer(tmp_path, **own)


@pytest.mark.parametrize("talk", TALKS, ids=lambda t: f"{len(t)} {t[0]['content'][:8]}")
def test_template_equals_transformers(folder, talk):
    """Guards against: two owners of the prompt format (Oxen trains with another template than it
    samples with)."""
    theirs = AutoTokenizer.from_pretrained(folder)
    assert Chat(folder).render(talk) == theirs.apply_chat_template(
        talk, add_generation_prompt=True, return_dict=False
    )


def add_bos(folder) -> None:
    """A post-processor that puts BOS in front of every text, as Llama's tokenizers do."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def test_one_bos(tmp_path):
    """Guards against: a second BOS (axolotl #1616), once from the template and once from the
    tokenizer."""
    folder = write_tokenizer(
        tmp_path, chat_template=LLAMA3, bos_token={"content": "<|begin|>", "lstrip": False}
    )
    add_bos(folder)
    chat = Chat(folder)
    example = chat.example("question", "answer")
    assert (example.prompt + example.response).count(2) == 1 and example.prompt[0] == 2
    assert chat.raw("text")[0] == 2


def test_bos_of_a_base_model(tmp_path):
    """Guards against: a base model without a template that never sees its BOS.

    The transformers library puts it in front of a plain text too.
    """
    folder = write_tokenizer(tmp_path, chat_template=None, bos_token="<|begin|>")
    without = Chat(folder)
    add_bos(folder)
    chat = Chat(folder)
    text = "user: Why?\nassistant:"
    assert chat.prompt("Why?") == AutoTokenizer.from_pretrained(folder)(text).input_ids
    assert chat.prompt("Why?") == [2, *without.prompt("Why?")] and chat.raw("Task:")[0] == 2
    assert 2 not in chat.response("So.")


@pytest.mark.parametrize("as_object", [False, True])
def test_tokens_named_in_the_older_file(tmp_path, as_object):
    """Guards against: a template that writes no BOS, as only special_tokens_map.json names it."""
    folder = write_tokenizer(tmp_path, chat_template=LLAMA3, eos_token=None)
    names = {"bos_token": "<|begin|>", "eos_token": "<|im_end|>"}
    if as_object:
        names = {name: {"content": text, "lstrip": False} for name, text in names.items()}
    (folder / "special_tokens_map.json").write_text(json.dumps(names))
    chat = Chat(folder)
    theirs = AutoTokenizer.from_pretrained(folder)
    assert chat.eos == theirs.eos_token_id == 1
    assert chat.render(TALKS[0]) == theirs.apply_chat_template(
        TALKS[0], add_generation_prompt=True, return_dict=False
    )
    assert chat.render(TALKS[0])[0] == 2
    # where both files name a token, the older file decides, unless the newer one lists all tokens
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["eos_token"] = "<|unused|>"
    for more, eos in ({}, 1), ({"added_tokens_decoder": {}}, 3):
        (folder / "tokenizer_config.json").write_text(json.dumps(settings | more))
        assert Chat(folder).eos == AutoTokenizer.from_pretrained(folder).eos_token_id == eos


def test_a_saved_truncation_is_not_obeyed(tmp_path):
    """Guards against: prompts cut, or filled with pads, as somebody's last batch was."""
    folder = write_tokenizer(tmp_path)
    long = "Why is the sky blue? " * 20
    ids = Chat(folder).prompt(long)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=1000)
    tokenizer.save(str(folder / "tokenizer.json"))
    chat = Chat(folder)
    assert chat.prompt(long) == ids
    assert chat.decode(chat.response(long)) == chat.decode(chat.raw(long)) == long


def test_template_file_wins_and_lists_are_read(tmp_path):
    """Guards against: the newer chat_template.jinja, or the older list of named templates, left
    unread."""
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    folder = write_tokenizer(tmp_path, chat_template=named)
    assert Chat(folder).prompt("x") == Chat(folder).tokenizer.encode("yes").ids
    (folder / "chat_template.jinja").write_text("file")
    assert Chat(folder).prompt("x") == Chat(folder).tokenizer.encode("file").ids


def test_without_a_template(tmp_path):
    """Guards against: a base model without a template that cannot be asked anything."""
    chat = Chat(write_tokenizer(tmp_path, chat_template=None))
    assert not chat.has_template
    assert chat.decode(chat.prompt("Why?")) == "user: Why?\nassistant:"
    assert chat.decode(chat.example("Why?", "So.").response) == " So."


def test_template_cannot_reach_out(tmp_path):
    """Guards against: a checkpoint whose template runs code."""
    hostile = "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ messages.append(1) }}"
    with pytest.raises(UserError, match="template"):
        Chat(write_tokenizer(tmp_path / "a", chat_template=hostile)).prompt("x")
    with pytest.raises(UserError, match="template"):
        Chat(write_tokenizer(tmp_path / "b", chat_template="{% if %}"))
    with pytest.raises(UserError, match="only users"):
        Chat(
            write_tokenizer(tmp_path / "c", chat_template="{{ raise_exception('only users') }}")
        ).prompt("x")


HOSTILE = {
    "no end": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "too much": "{% for a in range(9999) %}{% for b in range(9999) %}xxxx{% endfor %}{% endfor %}",
    "a large product": "{{ 'x' * 10**12 }}",
    "a large list": "{% set a = [1] * 10**12 %}",
    "a large power": "{{ 10 ** 10 ** 10 }}",
    "a wrong type": "{{ messages + 1 }}",
    "a wrong product": "{{ messages * messages }}",
    "no such key": "{{ messages[9].content.upper() }}",
    "division": "{{ 1 / 0 }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a frame": "{{ ().__class__.__bases__[0].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__['__builtins__'] }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_templates_of_strangers(tmp_path, monkeypatch, name):
    """Guards against: a checkpoint that hangs, fills the memory, or shows Python's own errors."""
    monkeypatch.setattr("core.chat.SECONDS", 1)
    started = time.time()
    with pytest.raises(UserError, match="the chat template"):
        Chat(write_tokenizer(tmp_path, chat_template=HOSTILE[name])).prompt("x")
    assert time.time() - started < 10
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL


def test_small_products_are_allowed(tmp_path):
    """Guards against: templates that multiply, as some do, refused with the large ones."""
    chat = Chat(write_tokenizer(tmp_path, chat_template="{{ 'ab' * 3 }}{{ 2 ** 10 }}{{ 3 * 1.5 }}"))
    assert chat.decode(chat.prompt("x")) == "ababab10244.5"
    long = "word " * 300_000  # a message may be longer than what a template adds
    assert len(Chat(write_tokenizer(tmp_path / "b")).prompt(long)) > len(long)


ODD_SETTINGS = [
    ({"chat_template": 3}, "chat_template must be"),
    ({"chat_template": [{"template": "x"}, 3, "x"]}, "a list of named texts with a 'default'"),
    ({"eos_token": {"text": "x"}}, "names no EOS"),
    ({"eos_token": 5}, "names no EOS"),
    ({"bos_token": [1]}, None),
]


@pytest.mark.parametrize("change, says", ODD_SETTINGS, ids=str)
def test_odd_settings_of_a_tokenizer(tmp_path, change, says):
    """Guards against: tracebacks for files that are JSON and nothing else."""
    folder = write_tokenizer(tmp_path)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | change))
    if says is None:
        assert Chat(folder).prompt("x")
        return
    with pytest.raises(UserError, match=says):
        Chat(folder)


@pytest.mark.parametrize("ends", ["x", [1, "x"], True, [-1], 1.5, {}], ids=str)
def test_odd_ends(tmp_path, ends):
    """Guards against: the same in generation_config.json."""
    folder = write_tokenizer(tmp_path)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    with pytest.raises(UserError, match="eos_token_id"):
        Chat(folder)


@pytest.mark.parametrize(
    "size, good", [(260, True), (259, False), (3, False), (300, True), (None, True)]
)
def test_the_tokenizer_of_another_model(tmp_path, size, good):
    """Guards against: ids beyond the embeddings, in the middle of a run."""
    folder = write_tokenizer(tmp_path)
    (folder / "config.json").write_text(json.dumps({"vocab_size": size}))
    if good:
        Chat(folder)
        return
    with pytest.raises(UserError, match=f"ids up to 259, but the model has {size}"):
        Chat(folder)


def test_a_pad_beyond_the_embeddings(tmp_path):
    """Guards against: a checkpoint refused for a special token that nobody writes."""
    folder = write_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["<pad>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text('{"vocab_size": 260}')
    assert max(Chat(folder).prompt("a <pad> b")) < 260
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 260]}')
    with pytest.raises(UserError, match="ids up to 260"):
        Chat(folder)


def test_every_eos_ends_and_one_is_written(tmp_path):
    """Guards against: a chat model that runs on because its second EOS (generation_config.json) is
    not known."""
    folder = write_tokenizer(tmp_path)
    (folder / "generation_config.json").write_text('{"eos_token_id": [3, 2]}')
    chat = Chat(folder)
    assert (chat.eos_ids, chat.eos) == ([1, 2, 3], 1)
    nameless = write_tokenizer(tmp_path / "nameless", eos_token=None)
    (nameless / "config.json").write_text('{"eos_token_id": 3}')
    assert (Chat(nameless).eos_ids, Chat(nameless).eos) == ([3], 3)
    (nameless / "config.json").unlink()
    with pytest.raises(UserError, match="EOS"):
        Chat(nameless)


@pytest.mark.parametrize(
    "name, text",
    [("tokenizer.json", "{}"), ("tokenizer.json", None), ("tokenizer_config.json", "{")],
)
def test_broken_tokenizer(tmp_path, name, text):
    """Guards against: a traceback from inside the tokenizers library."""
    folder = write_tokenizer(tmp_path)
    (folder / name).unlink() if text is None else (folder / name).write_text(text)
    with pytest.raises(UserError, match=name):
        Chat(folder)


# ---- examples and masks ----


def test_example_is_prompt_response_and_one_eos(chat):
    """Guards against: a missing EOS (stopping is never learnt), a double one (TRL #4481), tokens
    merged at the seam."""
    example = chat.example("Why?", "So.")
    assert example.prompt == chat.prompt("Why?")
    assert example.response == chat.tokenizer.encode("So.").ids + [chat.eos]
    assert chat.decode(example.response) == "So."


def test_mask_covers_response_and_eos_only(chat):
    """Guards against: the flipped SFT mask (lucidrains PR #29) and a lost first token (verl #3287,
    OpenRLHF #973)."""
    examples = [
        chat.example("a", "long answer"),
        chat.example("a longer question", "yes"),
        Example([], [5, 6, 1]),
    ]
    ids, mask, branch, position = collate([[e] for e in examples])
    assert (branch[mask] == 1).all() and (position == torch.arange(ids.shape[1]))[ids > 0].all()
    assert (
        ids.shape == mask.shape == (3, max(len(p) + len(r) for p, r in examples))
        and mask.dtype == torch.bool
    )
    for row, (prompt, response) in enumerate(examples):
        assert ids[row, : len(prompt) + len(response)].tolist() == prompt + response
        assert ids[row][mask[row]].tolist() == response
        assert mask[row].nonzero()[:, 0].tolist() == list(
            range(len(prompt), len(prompt) + len(response))
        )


def test_a_group_in_one_row():
    """Guards against: a beginning that is repeated, positions that run on from one example into the
    next."""
    ids, mask, branch, position = collate(
        [[Example([5, 6, 7], [8, 1]), Example([5, 6], [9, 1]), Example([5, 6, 7, 4], [3])]]
    )
    assert ids.tolist() == [[5, 6, 7, 8, 1, 6, 9, 1, 6, 7, 4, 3]]
    assert mask[0].nonzero()[:, 0].tolist() == [3, 4, 6, 7, 11]
    assert branch.tolist() == [[0, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3]]
    assert position.tolist() == [[0, 1, 2, 3, 4, 1, 2, 3, 1, 2, 3, 4]]


def test_records_cannot_be_changed():
    """Guards against: one stage writing into another's records."""
    with pytest.raises(AttributeError):
        Candidate(0, 0, "x", "y", [1], True).reward = 5.0


def test_newline_ids(chat):
    """Guards against: a stop rule that is never asked."""
    assert [chat.decode([i]) for i in chat.newline.nonzero()[:, 0].tolist()] == ["\n"]
    assert len(chat.newline) == 256 + len(SPECIALS)


# ---- likeness ----


def brute_f1(a: list[str], b: list[str]) -> Fraction:
    """ROUGE-L F1 by the textbook table."""
    row = [0] * (len(b) + 1)
    for x in a:
        row, before = [0], row
        for j, y in enumerate(b):
            row.append(before[j] + 1 if x == y else max(before[j + 1], row[j]))
    return Fraction(2 * row[-1], len(a) + len(b))


def test_likeness_is_rouge_l():
    """Guards against: a bit trick that nobody checked, a bound that drops likely texts, words
    counted once that stand twice."""
    rng, seen = random.Random(0), Counter()
    for _ in range(300):
        one, other = (
            [rng.choice("abcdefg") for _ in range(rng.randrange(1, rng.choice((6, 20, 90))))]
            for _ in range(2)
        )
        if rng.random() < 0.3:  # a near copy: few random texts reach a high limit
            other = [w for w in one if rng.random() < 0.8] or ["a"]
        for limit in ("0.1", "0.3", "0.5", "0.6", "0.7", "0.8", "0.9", "1"):
            expected = brute_f1(one, other) >= Fraction(limit)
            for a, b in ((one, other), (other, one)):
                known = KnownPrompts([" ".join(a)], float(limit))
                assert known.like(PromptText(" ".join(b))) == expected, (a, b, limit)
            seen[limit, expected] += 1
    assert len(seen) == 16 and min(seen.values()) > 15


def test_likeness_among_many():
    """Guards against: an index that forgets a text, a word, or what was added later. Exact, on
    texts that share words often."""
    rng, known = random.Random(1), KnownPrompts(["a b c"], 0.7)
    texts, found = [["a", "b", "c"]], []
    for _ in range(300):
        words = [rng.choice("abcdefgh") for _ in range(rng.randrange(1, 12))]
        found.append(known.like(PromptText(" ".join(words))))
        assert found[-1] == any(brute_f1(words, other) >= Fraction("0.7") for other in texts)
        if rng.random() < 0.3:
            known.add(PromptText(" ".join(words)))
            texts.append(words)
    assert 20 < sum(found) < 280
    assert not KnownPrompts(limit=0.1).like(PromptText("a b"))


def test_likeness_ignores_case_and_spaces():
    """Guards against: a copy with a capital letter or a line break taken for a new prompt."""
    known = KnownPrompts(["count up to four"], 1.0)
    assert known.like(PromptText("Count  UP to\nfour"))
    assert not known.like(PromptText("count up to five"))
