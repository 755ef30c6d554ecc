"""A Hugging Face Qwen2 checkpoint as one GGUF file, the way llama.cpp's own converter writes it: bfloat16 matrices, float32 norms
and biases. NumPy alone reads; ``gguf`` is needed only to write.
"""

from __future__ import annotations

import json
import mmap
from pathlib import Path

import numpy as np

MAX_POSITIONS = 2048
LAYER = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def gguf_name(name: str) -> str:
    """``model.layers.3.mlp.up_proj.weight`` → ``blk.3.ffn_up.weight``; KeyError for what a Qwen2 does not have."""
    stem, kind = name.rsplit(".", 1)
    if stem in WHOLE:
        return f"{WHOLE[stem]}.{kind}"
    number, part = stem.removeprefix("model.layers.").split(".", 1)
    return f"blk.{int(number)}.{LAYER[part]}.{kind}"


def bfloat16_tensors(path: Path) -> dict[str, np.ndarray]:
    """Name → uint16 array of a safetensors file that holds only bfloat16, mapped."""
    with open(path, "rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    size = int.from_bytes(memory[:8], "little")
    found = {}
    for name, entry in json.loads(memory[8 : 8 + size]).items():
        if name != "__metadata__":
            assert entry["dtype"] == "BF16", f"{name}: expected BF16, got {entry['dtype']}"
            count = int(np.prod(entry["shape"]))
            start = 8 + size + entry["data_offsets"][0]
            found[name] = np.frombuffer(memory, np.uint16, count, start).reshape(entry["shape"])
    return found


def write_gguf(folder: Path, out: Path) -> None:
    """The Hugging Face checkpoint in ``folder`` as one GGUF file; no tokenizer."""
    import gguf

    c = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(out, "qwen2")
    writer.add_context_length(MAX_POSITIONS)
    writer.add_embedding_length(c["hidden_size"])
    writer.add_block_count(c["num_hidden_layers"])
    writer.add_feed_forward_length(c["intermediate_size"])
    writer.add_head_count(c["num_attention_heads"])
    writer.add_head_count_kv(c["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(c["rms_norm_eps"])
    writer.add_rope_freq_base(c.get("rope_theta") or c["rope_parameters"]["rope_theta"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(c["vocab_size"])
    for name, values in bfloat16_tensors(folder / "model.safetensors").items():
        if values.ndim == 1:
            writer.add_tensor(gguf_name(name), (values.astype(np.uint32) << 16).view(np.float32))
        else:
            raw = values.view(np.uint8)
            writer.add_tensor(gguf_name(name), raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
