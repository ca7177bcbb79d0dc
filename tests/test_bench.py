"""bench/: the comparison counts what it says, and a peer that is not there is named."""

import json
import shlex
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from core.files import write_jsonl

sys.path.insert(0, str(ROOT / "bench"))
import compare  # noqa: E402
from engines import up_to_end  # noqa: E402


def test_tokens_are_counted_up_to_the_end():
    """Guards against: pads behind a short answer counted as speed; an EOS that is not."""
    texts = ([5, 1, 1, 1], [5, 6, 7], [2, 5], [5, 2])
    assert [up_to_end(tokens, {1, 2}) for tokens in texts] == [2, 3, 1, 2]


def runs(*rates: float) -> list[dict]:
    return [{"tokens": 100, "seconds": 100 / rate, "peak_gb": 1.0} for rate in rates]


def test_medians_spread_and_ratios():
    """Guards against: the best run of ours against the worst of theirs.

    Also against: ratios the wrong way up.
    """
    ours, vllm = compare.summary(runs(300, 90, 200)), compare.summary(runs(50))
    rates = {"rate": 200, "least": 90, "most": 300}
    assert ours | {"seconds": 0} == {**rates, "seconds": 0, "peak_gb": 1.0, "runs": 3}
    limits = {k: 1.0 for k in ("bf16_peak", "bandwidth", "read_tokens_per_s", "read_share")}
    limits |= {f"decode_{c}_{k}": 1.0 for c in (135, 500) for k in ("tokens_per_s", "share")}
    work = {"answers": {"ours": ours, "vllm": vllm}}
    table = compare.table({"work": work, "limits": limits})
    (row,) = [line for line in table.splitlines() if "8 prompts" in line]
    assert "200 (90 to 300); 1.0 GB" in row and "50, **4.0 x**" in row and row.count("| -") == 3


def test_an_iteration_is_the_sum_of_its_stages():
    """Guards against: a stage that was not run counted as free."""
    work = {
        "answers of an iteration": {"ours": {"seconds": 1}, "vllm": {"seconds": 5}},
        "verdicts of an iteration": {"ours": {"seconds": 2}, "vllm": {"seconds": 7}},
        "dpo": {"ours": {"rate": 16.0}},
    }
    assert compare.iteration(work, "ours", "ours") == 7
    assert compare.iteration(work, "vllm", "trl") is None


def test_compare_without_peers(checkpoint, monkeypatch):
    """Guards against: a benchmark that only runs where everything is installed.

    Also against: a figure without its peer's name.
    """
    ranked = {"responses": ["a", "b", "c", "d", "e"], "ranks": [1, 0, 2, 3, 4]}
    groups = [{"prompt": f"Why {i}?", **ranked} for i in range(40)]
    write_jsonl(checkpoint / "ranked.jsonl", groups)
    rows = [{"prompt": f"Tell me {i}.", "response": "No."} for i in range(12)]
    write_jsonl(checkpoint / "ift.jsonl", rows)

    def only_ours(engine: str) -> str | None:
        return sys.executable if engine in ("ours", "limits") else None

    monkeypatch.setattr(compare, "python_of", only_ours)
    monkeypatch.setattr(compare, "RUBRIC", "{prompt} {response}")
    files = ["--ift", checkpoint / "ift.jsonl", "--ranked", checkpoint / "ranked.jsonl"]
    sizes = ["--runs", 1, "--iteration", "ours", "--json", checkpoint / "b.json"]
    args = ["compare.py", "--model", checkpoint, *files, *sizes]
    monkeypatch.setattr(sys, "argv", list(map(str, args)))
    compare.main()
    report = json.loads((checkpoint / "b.json").read_text())
    assert report["skipped"] == ["llama.cpp", "transformers", "trl", "vllm"]
    assert set(report["work"]) == set(compare.TITLES)
    assert report["work"]["dpo"]["ours"]["rate"] > 0
    assert report["limits"]["read_share"] > 0
    assert report["cpu"]
    assert report["limits"]["decode_500_tokens_per_s"] > 0


def test_an_engine_that_fails_says_why(checkpoint, tmp_path):
    """Guards against: a crash of a peer published as its speed."""
    with pytest.raises(RuntimeError, match="ours failed(.|\n)*config.json"):
        compare.measure("ours", {"model": str(tmp_path / "nowhere"), "texts": {}}, tmp_path)


def test_the_gpu_script_on_a_cpu(tmp_path):
    """Guards against: a script that nobody could run where it was written."""
    args = shlex.split("--size toy --device cpu --runs 1 --rows 8 --json")
    command = [sys.executable, ROOT / "bench/gpu.py", *args, tmp_path / "gpu.json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["one"] > 0
    assert found["many"] > found["one"]
    share = found["train_share"]  # None where the processor emulates bf16
    assert share is None or 0 < share < 1
    assert ("no bf16 units" in done.stdout) == (share is None)
    assert "toy" in done.stdout


def test_gguf_regroups_what_is_rotated(checkpoint, tmp_path):
    """Guards against: a peer that is fast because it computes something else."""
    reason = "gguf is not installed; it is a requirement of bench/ alone"
    gguf = pytest.importorskip("gguf", reason=reason)
    from safetensors.numpy import load_file
    from to_gguf import main

    main(str(checkpoint), str(tmp_path / "m.gguf"))
    found = {t.name: t for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    plain = load_file(checkpoint / "model.safetensors")

    def read(name: str) -> np.ndarray:
        return gguf.quants.dequantize(found[name].data, found[name].tensor_type)

    q = plain["model.layers.1.self_attn.q_proj.weight"]  # (4 heads x 8, 32): halves -> neighbours
    rotated = read("blk.1.attn_q.weight")[[0, 1, 2, 8, 9]]
    np.testing.assert_allclose(rotated, q[[0, 4, 1, 8, 12]], rtol=1e-2)
    up = plain["model.layers.0.mlp.up_proj.weight"]
    np.testing.assert_allclose(read("blk.0.ffn_up.weight"), up, rtol=1e-2)
    np.testing.assert_allclose(read("output_norm.weight"), plain["model.norm.weight"], rtol=1e-2)
    assert len(found) == len(plain)
