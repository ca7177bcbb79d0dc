"""bench/random_checkpoint.py: a checkpoint of a size that people use, with random weights.

    python bench/random_checkpoint.py DIR --layers 8

The shape is that of Llama 3.1 8B, of as many layers as are asked for. For memory and speed the
weights do not matter. The tokenizer is the toy's, and its tokens are likelier than ids without a
text. Half of all ids end an answer, so that texts end.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import torch  # noqa: E402
from plan import shape_of  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

from core.checkpoint import write_checkpoint  # noqa: E402
from core.cli import run_command  # noqa: E402
from core.config import SEED  # noqa: E402
from core.model_config import config_to_hf  # noqa: E402
from model import GPT  # noqa: E402


def random_weights(model: GPT, dtype: torch.dtype):
    """(name, tensor) of every weight, made one by one."""
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            yield name, torch.ones(weight.shape, dtype=dtype)
        else:
            drawn = torch.empty(weight.shape).normal_(0, 0.02, generator=generator)
            if name == "lm_head.weight":
                drawn[: vocabulary_of(SEED)] *= 4
            yield name, drawn.to(dtype)


def vocabulary_of(folder: Path) -> int:
    return Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="it is made")
    parser.add_argument("--layers", type=int, default=32, help="[%(default)s]")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    args = parser.parse_args()
    config = replace(
        shape_of("8B"),
        num_hidden_layers=args.layers,
        rope_theta=500000.0,
        max_position_embeddings=8192,
        model_type="llama",
    )
    dtype = getattr(torch, args.dtype)
    with torch.device("meta"):
        model = GPT(config)
    write_checkpoint(args.folder, config_to_hf(config, dtype), random_weights(model, dtype), SEED)
    ends = {"eos_token_id": list(range(0, config.vocab_size, 2))}
    (args.folder / "generation_config.json").write_text(json.dumps(ends))


if __name__ == "__main__":
    run_command(main)
