"""core/config.py and core/draw.py: numbers that nobody can mean are refused, by name."""

import math
from dataclasses import fields

import pytest
from conftest import assert_refused, command

from core.config import Config, flag, settings_of
from core.draw import Sampling
from core.errors import UserError

NOWHERE = [math.nan, math.inf, -math.inf, 10**30, -1]
BOUNDED = [f.name for f in fields(Config) if f.metadata["within"]]


def test_which_settings_have_bounds():
    """Guards against: a new number that nobody thought about. A seed may be any."""
    numbers = [f.name for f in fields(Config) if f.type in ("int", "float", int, float)]
    numbers += [f.name for f in fields(Config) if f.type in (int | None, float | None)]
    assert {*numbers} - {*BOUNDED} == {"seed"} and len(BOUNDED) > 25


@pytest.mark.parametrize("value", NOWHERE, ids=str)
@pytest.mark.parametrize("name", BOUNDED)
def test_numbers_that_nobody_can_mean(name, value):
    """Guards against: a run that hangs, trains backwards or crashes after an hour."""
    with pytest.raises(UserError, match=f"^{flag(name)} must be at (least|most) "):
        Config(**{name: value})


EDGES = {
    "iters": ([0, 1000], [1001]),
    "n": ([2, 1000], [1, 1001]),
    "k": ([1], [0]),
    "top_p": ([0.01, 1.0], [0.0, 1.01, 5]),
    "rouge": ([0.01, 1.0], [0.0, 1.1]),
    "temperature": ([0, 100], [100.5]),
    "dropout": ([0, 0.9], [1.0, 1.5]),
    "sft_lr": ([1e-12, 1.0, None], [0.0, 1.5]),
    "dpo_lr": ([1e-12, 1.0, None], [0.0, 1.5]),
    "near": ([0, 1, None], [1.5]),
    "confident": ([0.01, 1], [0, 1.5]),
    "beta": ([0, 50.0], []),
    "max_new_tokens": ([1], [0]),
    "batch_size": ([1], [0]),
    "exam": ([1], [0, 10**9]),
    "n_prompts": ([1], [0, 10**9]),
    "seed_limit": ([0], [10**9]),
    "dpo_epochs": ([1], [0, 10**9]),
}


@pytest.mark.parametrize("name", EDGES)
def test_edges(name):
    """Guards against: bounds that are off by one, or that nobody checks."""
    good, bad = EDGES[name]
    for value in good:
        assert getattr(Config(**{name: value}), name) == value
    for value in bad:
        with pytest.raises(UserError, match=flag(name)):
            Config(**{name: value})


def test_every_default_is_allowed():
    """Guards against: a default outside its own bounds."""
    for world in ("toy", "checked"):
        Config(**settings_of(world))


BAD_SAMPLING = [
    {"temperature": -0.1},
    {"temperature": math.nan},
    {"temperature": math.inf},
    {"top_p": 0},
    {"top_p": -1},
    {"top_p": 5},
    {"top_p": math.nan},
    {"max_new_tokens": 0},
    {"n": 0},
    {"slots": 0},
]


@pytest.mark.parametrize("change", BAD_SAMPLING, ids=str)
def test_sampling_that_draws_nothing(change):
    """Guards against: the same numbers on the command lines of sample.py and judge.py."""
    Sampling(8)
    with pytest.raises(UserError, match="must be"):
        Sampling(**({"max_new_tokens": 8} | change))


VARIANTS = [
    ("label-smoothing=0.6", [], "label-smoothing must be from 0 to 0.5"),
    ("label-smoothing=nan", [], "label-smoothing must be from 0 to 0.5"),
    ("label-smoothing=-0.1", [], "label-smoothing must be from 0 to 0.5"),
    ("length-control=5", [], "length-control must be from 0 to 1"),
    ("ipo", ["--beta", 0], "--beta"),
    ("no-judge-data", ["--eft", "eft.jsonl"], "--eft exclude each other"),
    ("fixed-prompt-writer=M1", ["--prompts", "prompts.txt"], "--prompts exclude each other"),
]


@pytest.mark.parametrize("variant, more, says", VARIANTS, ids=lambda value: str(value))
def test_variants_with_what_excludes_them(cwd, variant, more, says):
    """Guards against: a setting that is recorded and ignored, or that turns the labels round."""
    verdict = '{"prompt": "a", "response": "b", "verdict": "Score: 4"}\n'
    (cwd / "eft.jsonl").write_text(verdict)
    (cwd / "prompts.txt").write_text("".join(f"Why {i}?\n" for i in range(12)))
    sizes = ("--n-prompts", 4, "--iters", 1)
    assert_refused(command("experiments/variants.py", variant, *more, *sizes), says)
    assert not (cwd / "runs").exists()
