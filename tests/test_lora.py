"""core/lora.py: adapters against plain layers, and a whole run that learns through them."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, Killed, assert_refused, command, tiny_gpt
from safetensors.torch import load_file, save_file
from test_dpo import STEADY, pairs, same, weights
from test_progress import EXAMPLES, RECIPE
from test_progress import dies as dies_fixture
from test_progress import eager as eager_fixture

from core.config import LORA_RATE, parse
from core.kernels import Linear
from core.lora import ALPHA, LoraLinear, add_adapters, merged_weights, save_adapters, start_adapters
from core.progress import Progress
from dpo import Objective, dpo, sft, sft_loss
from model import GPT, load, save
from sample import writing_copy

dies, eager = dies_fixture, eager_fixture  # used by name
IDS = torch.arange(2, 42).view(2, 20)


def logits(model: GPT) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model(IDS))


def adapt(model: GPT, rank: int = 4, seed: int = 1) -> GPT:
    return start_adapters(add_adapters(model, rank), seed=seed)


def taught(rank: int = 4, **sizes) -> GPT:
    """A model whose adapters have learnt something."""
    model = adapt(tiny_gpt(**sizes), rank)
    dpo(model, pairs(12), STEADY, Objective())
    return model


def test_new_adapters_change_nothing(model):
    before = logits(model)
    adapted = adapt(model)
    assert torch.equal(logits(adapted), before)
    adapters = [layer for layer in adapted.modules() if isinstance(layer, LoraLinear)]
    assert len(adapters) == 14, "seven linear layers in each of two blocks"


def test_the_formula():
    layer = Linear(6, 5, bias=True)
    adapted = LoraLinear(layer, 3)
    with torch.no_grad():
        adapted.lora_A.normal_()
        adapted.lora_B.normal_()
    x = torch.randn(2, 4, 6)
    weight = layer.weight + ALPHA / 3 * adapted.lora_B @ adapted.lora_A
    expected = x @ weight.T + layer.bias
    assert torch.allclose(adapted(x), expected, atol=1e-4)
    assert torch.allclose(adapted.merged(), weight, atol=1e-5)


@pytest.mark.parametrize("sizes", [{}, {"model_type": "qwen2"}, {"tie_word_embeddings": False}])
def test_only_adapters_learn(sizes):
    """Guards against: a base that moves, and adapters that do not."""
    model = adapt(tiny_gpt(**sizes))
    before = weights(model)
    dpo(model, pairs(12), STEADY, Objective())
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name]) == ("lora_" not in name), name
        assert weight.grad is None or "lora_" in name


@pytest.mark.parametrize("sizes", [{}, {"model_type": "qwen2"}, {"tie_word_embeddings": False}])
def test_merged_weights_are_the_model(sizes):
    model = taught(**sizes)
    with_adapters = logits(model)
    plain = tiny_gpt(**sizes)
    assert not torch.allclose(with_adapters, logits(plain), atol=1e-2), "it learnt something"
    merged = dict(merged_weights(model))
    assert merged.keys() == weights(plain).keys()
    plain.load_state_dict(merged)
    assert torch.allclose(logits(plain), with_adapters, atol=1e-4)


def test_a_copy_that_writes_is_merged(chat):
    model = taught()
    writer = writing_copy(model, chat, torch.float32)
    assert torch.allclose(logits(writer.model), logits(model), atol=1e-4)
    assert any("lora_" in name for name in weights(model)), "the model itself learns on"


def test_the_frozen_base_may_be_bf16():
    """Guards against: steps that are lost in the rounding of bf16."""
    model = adapt(tiny_gpt().to(torch.bfloat16))
    before = weights(model)
    dpo(model, pairs(12), replace(STEADY, dtype=torch.bfloat16), Objective())
    for name, weight in model.named_parameters():
        assert weight.dtype == (torch.float32 if "lora_" in name else torch.bfloat16)
        assert torch.equal(weight, before[name]) == ("lora_" not in name), name
    assert {weight.dtype for _, weight in merged_weights(model)} == {torch.bfloat16}


@pytest.mark.parametrize("frozen", ["norm", "lm_head"])
def test_a_frozen_weight_gets_no_gradient(frozen):
    """The hand-written backward passes skip what nobody asks for, and change nothing else."""
    grads = []
    for freeze in (False, True):
        model = tiny_gpt(tie_word_embeddings=False)
        for name, weight in model.named_parameters():
            weight.requires_grad_(not (freeze and frozen in name))
        sft_loss(model, [[example] for example in EXAMPLES[:4]]).backward()
        grads.append({name: weight.grad for name, weight in model.named_parameters()})
    all_learn, some_frozen = grads
    for name, grad in some_frozen.items():
        if frozen in name:
            assert grad is None
        else:
            assert torch.equal(grad, all_learn[name]), name


def test_peft_reads_an_adapter(tmp_path):
    """Guards against: adapters that are ours alone."""
    peft = pytest.importorskip("peft", reason="peft is not installed (tests/requirements.txt)")
    from transformers import AutoModelForCausalLM

    base = tiny_gpt(model_type="llama")
    save(base, tmp_path / "base")
    model = taught(model_type="llama")
    save_adapters(model, tmp_path / "adapter", base=str(tmp_path / "base"))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    with torch.no_grad():
        found = theirs(IDS).logits
    assert torch.allclose(found, logits(model), atol=1e-4)
    assert not torch.allclose(found, logits(base), atol=1e-2)


def test_a_killed_training_of_adapters_goes_on(tmp_path, eager, dies):
    """Guards against: the frozen base in every file of a training; and other adapters after it."""

    def train(path: Path) -> tuple[list[dict], dict]:
        model = adapt(tiny_gpt())
        log = sft(model, EXAMPLES, RECIPE, progress=Progress(path))
        return log, weights(model)

    log, complete = train(tmp_path / "a")
    dies(3)
    with pytest.raises(Killed):
        train(tmp_path / "b")
    stored = load_file(tmp_path / "b")
    assert all("lora_" in name for name in stored if name.startswith("weight "))
    again, resumed = train(tmp_path / "b")
    assert same(complete, resumed) and log == again


# ---- a run ----

ADAPTED = [*TINY, "--lora", "4"]


@pytest.fixture(scope="module")
def adapted_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = command("train.py", *ADAPTED)
    assert done.code == 0, done.err
    return folder / "runs" / "toy"


def test_a_run_with_adapters_looks_like_any_other(adapted_run, finished):
    """The same files but for the adapters, and M_2 loads everywhere."""
    files = {p.relative_to(adapted_run) for p in adapted_run.rglob("*") if p.is_file()}
    plain = finished / "runs/toy"
    usual = {p.relative_to(plain) for p in plain.rglob("*") if p.is_file()}
    extra = {str(path.parent) for path in files - usual}
    assert extra == {"M1/adapter", "M2/adapter"} and not usual - files
    first, second = load(adapted_run / "M1"), load(adapted_run / "M2")
    assert not same(weights(first), weights(second))
    assert torch.equal(first.embed_tokens.weight, second.embed_tokens.weight), "frozen"


def test_the_saved_adapter_is_the_difference(adapted_run):
    """Guards against: an adapter that does not belong to its base."""
    first, second = load(adapted_run / "M1"), load(adapted_run / "M2")
    config = json.loads((adapted_run / "M2/adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"].endswith("M1") and config["r"] == 4
    adapter = load_file(adapted_run / "M2/adapter/adapter_model.safetensors")
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_{}.weight"
    change = ALPHA / 4 * adapter[name.format("B")] @ adapter[name.format("A")]
    before = first.layers[0].mlp.up_proj.weight
    assert torch.allclose(before + change, second.layers[0].mlp.up_proj.weight, atol=1e-5)


def test_a_run_cannot_change_its_rank(adapted_run, monkeypatch):
    monkeypatch.chdir(adapted_run.parent.parent)
    assert_refused(command("train.py", *TINY, "--lora", "8", "--iters", "2"), "lora was 4, now 8")


def test_rates_of_adapters(checkpoint):
    """Guards against: adapters at the rate of whole weights, which hardly moves them."""
    plain = parse([], "").config
    adapted = parse(["--lora", "4"], "").config
    assert adapted.dpo_lr == LORA_RATE * plain.dpo_lr and adapted.sft_lr == LORA_RATE * plain.sft_lr
    assert parse(["--lora", "4", "--dpo-lr", "1e-4"], "").config.dpo_lr == 1e-4
    assert parse(["--lora", "4", "--model", str(checkpoint)], "").config.dpo_lr is None


# ---- memory ----

PEAK = """
import sys
from core.device import take_peak
from model import load
import torch
dtype = getattr(torch, sys.argv[3])
load(sys.argv[1], dtype=dtype)  # what torch itself needs the first time
take_peak()
before = take_peak()
load(sys.argv[2], dtype=dtype)
print(take_peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
@pytest.mark.parametrize("dtype, share", [("float32", 1.0), ("bfloat16", 0.5)])
def test_loading_holds_one_copy(tmp_path, dtype, share):
    """Guards against: a checkpoint that is read whole, which would be one size more.

    What torch loads of itself meanwhile differs from run to run.
    """
    model = tiny_gpt(hidden_size=512, intermediate_size=2048, num_hidden_layers=12, vocab=2000)
    save(model, tmp_path / "big")
    size = (tmp_path / "big/model.safetensors").stat().st_size
    save(tiny_gpt(), tmp_path / "small")
    words = [sys.executable, "-c", PEAK, str(tmp_path / "small"), str(tmp_path / "big"), dtype]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert share * size < int(done.stdout) < share * size + 0.6 * size


def test_leftover_files_of_other_tools_do_not_matter(tmp_path):
    """A folder "adapter" inside a model is no weight of it."""
    save(tiny_gpt(), tmp_path / "m")
    (tmp_path / "m/adapter").mkdir()
    save_file({"x": torch.zeros(2)}, tmp_path / "m/adapter/adapter_model.safetensors")
    assert same(weights(load(tmp_path / "m")), weights(tiny_gpt()))
