"""bench/to_gguf.py: a Hugging Face directory of the llama family -> the file that llama.cpp reads, in bf16, without a tokenizer.

    python bench/to_gguf.py DIR FILE        (in an environment with gguf)

For compare.py only: llama.cpp's own converter is not in its Python package. Q and K rows are regrouped, as llama.cpp rotates
neighbouring numbers where Hugging Face checkpoints rotate halves.
"""

import json
import sys
from pathlib import Path

import gguf
import numpy as np

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
}


def tensors(path: Path):
    """(name, bf16 numbers as uint16) of a safetensors file of bf16 or fp32."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        start = file.tell()
        for name, about in header.items():
            if name == "__metadata__":
                continue
            file.seek(start + about["data_offsets"][0])
            raw = file.read(about["data_offsets"][1] - about["data_offsets"][0])
            wide = about["dtype"] == "F32"
            numbers = np.frombuffer(raw, np.uint32 if wide else np.uint16).reshape(about["shape"])
            yield name, ((numbers + 0x8000) >> 16).astype(np.uint16) if wide else numbers


def main(folder: str, path: str) -> None:
    config = json.loads((Path(folder) / "config.json").read_text())
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base(config.get("rope_theta") or config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    for name, bits in tensors(Path(folder) / "model.safetensors"):
        part = name.removeprefix("model.").removesuffix(".weight")
        layer = part.split(".")[1] + "." if part.startswith("layers.") else ""
        short = part.removeprefix(f"layers.{layer}")
        if short in ("self_attn.q_proj", "self_attn.k_proj"):
            n = heads if "q_proj" in short else groups
            bits = bits.reshape(n, 2, -1, bits.shape[1]).swapaxes(1, 2).reshape(bits.shape)
        target = f"blk.{layer}{NAMES[short]}.weight" if layer else f"{NAMES[short]}.weight"
        if bits.ndim == 1:  # norms are read in fp32
            writer.add_tensor(target, (bits.astype(np.uint32) << 16).view(np.float32))
        else:
            writer.add_tensor(
                target,
                np.ascontiguousarray(bits).view(np.uint8),
                raw_dtype=gguf.GGMLQuantizationType.BF16,
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
