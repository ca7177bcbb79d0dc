"""bench/engines.py: one engine does one job, in a process of its own, and writes what it took to a file.

    PYTHON bench/engines.py ENGINE JOB.json RESULT.json          (compare.py calls this)

A job holds the model directory and either "texts" (name -> {"prompts": token ids, "n", "limit"}) or "pairs" (texts). Every
engine gets the same token ids, the same temperature and nucleus, bf16, and as many threads as the machine has cores;
nothing but the calls themselves is timed, after one small call to warm up. Each function is how a user of that engine
would ask for speed; imports are inside, because no two engines share an environment.
"""

import json
import os
import resource
import sys
import time
from itertools import islice
from pathlib import Path

TEMPERATURE, TOP_P = 0.7, 0.9
WARM = {"prompts": [[5, 6, 7, 8, 9, 10, 11, 12]] * 2, "n": 2, "limit": 8}


def timed(job: dict, generate) -> dict:
    """Runs `generate(prompts, n, limit)` -> number of tokens written, on each of the job's workloads."""
    generate(**WARM)
    found = {}
    for name, work in job["texts"].items():
        started = time.perf_counter()
        tokens = generate(**work)
        found[name] = {"tokens": tokens, "seconds": time.perf_counter() - started}
    return found


def up_to_end(tokens: list[int], ends: set[int]) -> int:
    return next((i for i, token in enumerate(tokens, 1) if token in ends), len(tokens))


# ---- this project ----
def load_ours(job: dict):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    import torch

    from config import keep_memory
    from data import Chat
    from model import load

    torch.set_flush_denormal(True)
    keep_memory()
    return load(job["model"]), Chat(job["model"])


def ours(job: dict) -> dict:
    import torch

    model, chat = load_ours(job)
    if "pairs" in job:
        from dpo import Recipe, dpo

        rows = [
            (chat.example(p["prompt"], p["chosen"]), chat.example(p["prompt"], p["rejected"]))
            for p in job["pairs"]
        ]
        recipe = Recipe(batch_size=8, lr=1e-6, tokens=1024, dtype=torch.bfloat16)
        dpo(model, rows[:1], Recipe(lr=1e-9, lr_end=1e-10, dtype=torch.bfloat16), beta=0.1)
        started = time.perf_counter()
        dpo(model, rows, recipe, beta=0.1)
        return {"dpo": {"pairs": len(rows), "seconds": time.perf_counter() - started}}
    from sample import Sampling, generate, sampling_copy

    model = sampling_copy(model, torch.bfloat16)

    def run(prompts, n, limit):
        groups = generate(
            model, chat, prompts, Sampling(limit, TEMPERATURE, TOP_P, slots=256), key="bench", n=n
        )
        return sum(len(c.tokens) for group in groups for c in group)

    return timed(job, run)


def seconds(call, wait=lambda: None, times: int = 8) -> float:
    """The shortest of `times` calls, after one to warm up; `wait` is for a device that works on by itself."""
    found = []
    for _ in range(times + 1):
        wait()
        started = time.perf_counter()
        call()
        wait()
        found.append(time.perf_counter() - started)
    return min(found[1:])


def probe(device) -> dict:
    """What the machine can do: bf16 products of square matrices, the best size, in FLOP/s, and a copy of 256 MB, in bytes/s."""
    import torch

    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    peak, took = 0.0, 0.0
    for size in (512, 1024, 2048, 4096, 8192):
        if took > 0.4:  # where bf16 is emulated the first is slow enough
            break
        a, b = (torch.randn(size, size, dtype=torch.bfloat16, device=device) for _ in range(2))
        took = seconds(lambda: a @ b, wait)
        peak = max(peak, 2 * size**3 / took)
    big = torch.empty(1 << 28, dtype=torch.uint8, device=device)
    other = torch.empty_like(big)
    return {
        "bf16_peak": peak,
        "bandwidth": 2 * big.numel() / seconds(lambda: other.copy_(big), wait),
    }


def decode(model, texts: list[list[int]], steps: int, wait=lambda: None) -> float:
    """Seconds of a decode step that draws a token for each of the texts, the mean of `steps`; the context grows meanwhile."""
    from collections import Counter

    from sample import Sampling, Slots, read, uniforms

    cache, _ = read(model, texts, None, Counter())
    slots, sampling = (
        Slots(model, len(texts), steps + 1, None),
        Sampling(steps + 1, TEMPERATURE, TOP_P),
    )
    numbers = uniforms([str(i) for i in range(len(texts))], steps + 1)
    slots.admit(
        [(i, 0) for i in range(len(texts))],
        [t[-1] for t in texts],
        numbers,
        cache,
        list(range(len(texts))),
    )
    slots.step(model, sampling)
    wait()
    started = time.perf_counter()
    for _ in range(steps):
        slots.step(model, sampling)
    wait()
    return (time.perf_counter() - started) / steps


def sizes(model) -> tuple[int, int]:
    """Weights that every token is multiplied with: in the blocks, and in the head."""
    return sum(p.numel() for p in model.layers.parameters() if p.ndim == 2), model.head.numel()


def limits(job: dict) -> dict:
    """The machine's own limits, and how much of them this project reaches: reading, and a decode step of 64 rows."""
    import torch

    model, _ = load_ours(job)
    from collections import Counter

    from sample import read, sampling_copy

    (body, head), c = sizes(model), model.config
    model, text, found = (
        sampling_copy(model, torch.bfloat16),
        job["text"],
        probe(torch.device("cpu")),
    )
    with torch.inference_mode():
        prompts = [text[i * 256 : (i + 1) * 256] for i in range(16)]
        attention = (
            4 * c.num_hidden_layers * c.num_attention_heads * c.head_dim * 128
        )  # 128: the mean of what they see
        took = seconds(lambda: read(model, prompts, None, Counter()), times=4)
        found |= {
            "read_tokens_per_s": 4096 / took,
            "read_share": 4096 * (2 * body + attention) / took / found["bf16_peak"],
        }
        for context in (135, 500):
            took = decode(model, [text[7 * i : 7 * i + context - 16] for i in range(64)], 32)
            found |= {
                f"decode_{context}_tokens_per_s": 64 / took,
                f"decode_{context}_share": 128 * (body + head) / took / found["bf16_peak"],
            }
    return found


# ---- peers ----
def transformers(job: dict) -> dict:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.bfloat16).eval()
    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])

    @torch.inference_mode()
    def run(prompts, n, limit):
        total, todo = 0, iter(sorted(prompts, key=len))
        while batch := list(islice(todo, max(1, 96 // n))):
            width = max(map(len, batch))
            ids = torch.tensor([[0] * (width - len(p)) + p for p in batch])
            mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in batch])
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=True,
                temperature=TEMPERATURE,
                top_p=TOP_P,
                top_k=0,
                max_new_tokens=limit,
                num_return_sequences=n,
                pad_token_id=min(ends),
            )
            total += sum(up_to_end(row, ends) for row in out[:, width:].tolist())
        return total

    return timed(job, run)


def vllm(job: dict) -> dict:
    os.environ |= {
        "VLLM_CPU_KVCACHE_SPACE": "4",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "HF_HUB_OFFLINE": "1",
    }
    from vllm import LLM, SamplingParams

    engine = LLM(
        job["model"],
        dtype="bfloat16",
        enable_prefix_caching=True,
        max_model_len=2048,
        max_num_seqs=256,
    )

    def run(prompts, n, limit):
        how = SamplingParams(n=n, temperature=TEMPERATURE, top_p=TOP_P, max_tokens=limit)
        done = engine.generate([{"prompt_token_ids": p} for p in prompts], how, use_tqdm=False)
        return sum(len(c.token_ids) for request in done for c in request.outputs)

    return timed(job, run)


def llamacpp(job: dict) -> dict:
    """Batched decoding as in llama.cpp's own `batched` example: a prompt is decoded once and its memory copied to n sequences."""
    import llama_cpp as llama

    silent = llama.llama_log_callback(lambda *_: None)  # C keeps no reference of its own
    llama.llama_log_set(silent, None)
    weights = llama.llama_model_load_from_file(
        job["gguf"].encode(), llama.llama_model_default_params()
    )
    ends, most = set(job["ends"]), 96

    def run(prompts, n, limit):
        total, todo = 0, iter(sorted(prompts, key=len))
        while batch := list(islice(todo, most // n)):
            total += wave(batch, n, limit)
        return total

    def wave(prompts, n, limit):
        rows, how = len(prompts) * n, llama.llama_context_default_params()
        how.n_ctx, how.n_batch, how.n_ubatch, how.n_seq_max = (
            rows * (len(prompts[-1]) + limit + 1),
            2048,
            512,
            rows,
        )
        how.n_threads = how.n_threads_batch = os.cpu_count()
        context = llama.llama_init_from_model(weights, how)
        memory, batch = llama.llama_get_memory(context), llama.llama_batch_init(2048, 0, 1)
        draw = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        for sampler in (
            llama.llama_sampler_init_temp(TEMPERATURE),
            llama.llama_sampler_init_top_p(TOP_P, 1),
            llama.llama_sampler_init_dist(1),
        ):
            llama.llama_sampler_chain_add(draw, sampler)

        def feed(entries):
            """Decodes (token, position, sequence, whether its logits are wanted)."""
            batch.n_tokens = len(entries)
            for i, (token, position, sequence, wanted) in enumerate(entries):
                (
                    batch.token[i],
                    batch.pos[i],
                    batch.n_seq_id[i],
                    batch.seq_id[i][0],
                    batch.logits[i],
                ) = token, position, 1, sequence, wanted
            if llama.llama_decode(context, batch):
                raise RuntimeError("llama_decode failed")

        last, length, live, written = [0] * rows, [0] * rows, set(range(rows)), 0
        for p, prompt in enumerate(prompts):
            feed([(token, i, p * n, i == len(prompt) - 1) for i, token in enumerate(prompt)])
            for row in range(p * n, p * n + n):
                last[row], length[row] = llama.llama_sampler_sample(draw, context, -1), len(prompt)
                if row > p * n:
                    llama.llama_memory_seq_cp(memory, p * n, row, -1, -1)
        for _ in range(limit):
            written += len(live)
            live = {row for row in live if last[row] not in ends}
            if not live or _ == limit - 1:
                break
            order = sorted(live)
            feed([(last[row], length[row], row, True) for row in order])
            for i, row in enumerate(order):
                last[row], length[row] = (
                    llama.llama_sampler_sample(draw, context, i),
                    length[row] + 1,
                )
        llama.llama_batch_free(batch)
        llama.llama_sampler_free(draw)
        llama.llama_free(context)
        return written

    return timed(job, run)


def trl(job: dict) -> dict:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    said = lambda role, text: [{"role": role, "content": text}]
    rows = [
        {
            "prompt": said("user", p["prompt"]),
            "chosen": said("assistant", p["chosen"]),
            "rejected": said("assistant", p["rejected"]),
        }
        for p in job["pairs"]
    ]
    how = DPOConfig(
        output_dir=job["scratch"],
        per_device_train_batch_size=8,
        num_train_epochs=1,
        bf16=True,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        max_length=2048,
        learning_rate=1e-6,
        beta=0.1,
        gradient_checkpointing=False,
        disable_tqdm=True,
    )
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32),
        args=how,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
    )
    started = time.perf_counter()
    trainer.train()
    return {"dpo": {"pairs": len(rows), "seconds": time.perf_counter() - started}}


ENGINES = {
    "ours": ours,
    "limits": limits,
    "transformers": transformers,
    "vllm": vllm,
    "llama.cpp": llamacpp,
    "trl": trl,
}

if __name__ == "__main__":
    name, job, result = sys.argv[1:]
    found = ENGINES[name](json.loads(Path(job).read_text()))
    found["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    Path(result).write_text(json.dumps(found))
