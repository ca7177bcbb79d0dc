"""bench/to_gguf.py: a Hugging Face directory of the llama family -> the file of llama.cpp.

    python bench/to_gguf.py DIR FILE        (in an environment with gguf)

The file is in bf16 and has no tokenizer. For compare.py only: llama.cpp's own converter is not in
its Python package. Q and K rows are regrouped, as llama.cpp rotates neighbouring numbers where
Hugging Face checkpoints rotate halves.
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
            if wide:  # to bf16: the upper half, rounded
                numbers = ((numbers + 0x8000) >> 16).astype(np.uint16)
            yield name, numbers


def regrouped(bits: np.ndarray, heads: int) -> np.ndarray:
    """Rows of Q or K: the two halves of each head -> neighbours."""
    halves = bits.reshape(heads, 2, -1, bits.shape[1])
    return halves.swapaxes(1, 2).reshape(bits.shape)


def gguf_name(part: str) -> str:
    """llama.cpp's name: "layers.3.mlp.up_proj" -> "blk.3.ffn_up.weight"."""
    if not part.startswith("layers."):
        return f"{NAMES[part]}.weight"
    _, layer, short = part.split(".", 2)
    return f"blk.{layer}.{NAMES[short]}.weight"


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
    for name, numbers in tensors(Path(folder) / "model.safetensors"):
        part = name.removeprefix("model.").removesuffix(".weight")
        target = gguf_name(part)
        if numbers.ndim == 1:  # norms are read in fp32
            writer.add_tensor(target, (numbers.astype(np.uint32) << 16).view(np.float32))
            continue
        if part.endswith("self_attn.q_proj"):
            matrix = regrouped(numbers, heads)
        elif part.endswith("self_attn.k_proj"):
            matrix = regrouped(numbers, groups)
        else:
            matrix = numbers
        raw = np.ascontiguousarray(matrix).view(np.uint8)
        writer.add_tensor(target, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
