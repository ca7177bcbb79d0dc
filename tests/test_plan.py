"""bench/plan.py: its formulas against peaks that a process of this machine really has."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from conftest import MORE, ROOT, assert_refused, command, tiny_gpt

import bench.plan
from bench.plan import (
    GB,
    Amounts,
    Rates,
    Sizes,
    adapter_parameters,
    iteration,
    parameters,
    peaks,
    that_fit,
)
from core.lora import add_adapters, is_adapter
from core.model_config import GPTConfig
from model import GPT, save

SMALL = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8, "vocab": 8000}
LARGE = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 12, "vocab": 12000}
HEADS = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 64}
PAIR = """
import json, random, sys
import torch
from core.device import entry_of, prepare_machine, take_peak
from core.lora import add_adapters, start_adapters
from core.records import Example
from dpo import Objective, Recipe, dpo
from model import load
job = json.loads(sys.argv[1])
prepare_machine()
start = entry_of("/proc/self/status", "VmRSS")
model = load(job["model"])
if job["lora"]:
    start_adapters(add_adapters(model, job["lora"]), seed=0)
draw = random.Random(0).choices
def text(size):
    return draw(range(4, 260), k=size)
pairs = []
for _ in range(5):
    prompt = text(job["prompt"])
    pairs.append((Example(prompt, text(job["answer"])), Example(prompt, text(job["answer"]))))
recipe = Recipe(batch_size=5, epochs=2, tokens=job["tokens"], recompute=job["recompute"])
dpo(model, pairs, recipe, Objective())
print(take_peak(), start)
"""
EIGHT_B = bench.plan.shape_of("8B")


def config_of(sizes: dict, **changes) -> GPTConfig:
    return tiny_gpt(**(sizes | HEADS), **changes).config


@pytest.mark.parametrize("tied", [True, False])
def test_parameters(tied):
    model = tiny_gpt(**(SMALL | HEADS), tie_word_embeddings=tied)
    counted = sum(p.numel() for name, p in model.named_parameters() if "norm" not in name)
    assert parameters(model.config) == counted
    add_adapters(model, 8)
    adapters = sum(p.numel() for name, p in model.named_parameters() if is_adapter(name))
    assert adapter_parameters(model.config, 8) == adapters


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
@pytest.mark.parametrize(
    "lora, recompute", [(None, False), (16, True), *([(None, True), (16, False)] if MORE else [])]
)
@pytest.mark.parametrize("sizes", [SMALL, LARGE] if MORE else [SMALL])
def test_the_peak_of_training(tmp_path, monkeypatch, sizes, lora, recompute):
    """Guards against: plans that no machine keeps. A process that keeps memory takes more."""
    save(GPT(config_of(sizes, model_type="llama")), tmp_path / "model")
    job = {"model": str(tmp_path / "model"), "lora": lora, "recompute": recompute}
    job |= {"prompt": 100, "answer": 100, "tokens": 1210}
    done = subprocess.run(
        [sys.executable, "-c", PAIR, json.dumps(job)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "200000"},  # what is freed is given back
    )
    assert done.returncode == 0, done.stderr
    sizes_of_run = Sizes(
        prompt=100, answer=100, tokens=1210, recompute=recompute, lora=lora, bytes=4, cpu=True
    )
    peak, start = map(int, done.stdout.split())
    # of that process, not of pytest
    monkeypatch.setattr(bench.plan, "process", lambda _: start + bench.plan.CPU_WARM)
    planned = peaks(config_of(sizes), sizes_of_run)["train"]
    assert peak == pytest.approx(planned, rel=0.1)


def test_what_fits():
    """Lowered by halves, and never below what was asked for where it fits."""
    s = Sizes(devices=1)
    assert that_fit(EIGHT_B, s, 80 * GB) is None, "16 bytes a weight are 128 GB"
    adapted = that_fit(EIGHT_B, replace(s, lora=16), 80 * GB)
    assert adapted is not None and max(peaks(EIGHT_B, adapted).values()) <= 80 * GB
    eight = that_fit(EIGHT_B, replace(s, devices=8), 80 * GB)
    assert eight is not None
    roomy = that_fit(EIGHT_B, replace(s, lora=16), 1000 * GB)
    assert (roomy.slots, roomy.tokens, roomy.recompute) == (s.slots, s.tokens, False)


def test_more_devices_take_less_time_and_memory():
    one, eight = Sizes(), Sizes(devices=8)
    assert peaks(EIGHT_B, eight)["train"] < peaks(EIGHT_B, one)["train"] / 3
    amounts, rates = Amounts(), Rates()
    before = iteration(EIGHT_B, one, amounts, rates)
    after = iteration(EIGHT_B, eight, amounts, rates)
    assert all(after[stage] < before[stage] for stage in before)
    adapted = iteration(EIGHT_B, Sizes(lora=16), amounts, rates)
    assert adapted["DPO"] == pytest.approx(0.75 * before["DPO"])


def test_the_command(tmp_path, checkpoint):
    done = command("bench/plan.py", "--model", checkpoint, "--json", tmp_path / "plan.json")
    assert done.code == 0 and "python train.py" in done.out
    assert json.loads((tmp_path / "plan.json").read_text())["fits"]
    assert (
        "torchrun --nproc-per-node 8"
        in command("bench/plan.py", "--model", checkpoint / "config.json", "--devices", "64").out
    )
    assert_refused(command("bench/plan.py", "--model", checkpoint, "--devices", "0"), "above 0")
    small = command("bench/plan.py", "--model", checkpoint, "--memory", "0.01")
    assert "does not fit" in small.out
