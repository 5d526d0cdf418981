#!/usr/bin/env python3
"""gguf_to_hf — 把 llama 架构的 GGUF 反量化成 Hugging Face 文件夹（F32 safetensors）

只为与 transformers 并排比较而写（make bench），产品与 make test 都不用它。
要点：llama.cpp 转换时把 q、k 的行按 (头, 半, 2) 重排过，这里排回去，否则旋转位置编码对不上。

用法: gguf_to_hf.py 模型.gguf 输出文件夹 [--tokenizer tokenizer.json]
需要: pip 包 gguf、numpy、safetensors
"""
import argparse
import json
import os
import shutil

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.numpy import save_file

LAYER_NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def hf_name(name):
    stem, kind = name.rsplit(".", 1)
    if stem.startswith("blk."):
        _, layer, part = stem.split(".", 2)
        return f"model.layers.{layer}.{LAYER_NAMES[part]}.{kind}"
    return f"{TOP_NAMES[stem]}.{kind}"


def unpermute(w, n_heads):
    """(头, 半, 2) 的行序 → HF 的 (头, 2, 半)"""
    half = w.shape[0] // n_heads // 2
    return w.reshape(n_heads, half, 2, -1).swapaxes(1, 2).reshape(w.shape)


def metadata(reader):
    def value(key, default=None):
        field = reader.fields.get(key)
        return default if field is None else field.contents()
    if value("general.architecture") != "llama":
        raise SystemExit(f"只支持 llama 架构，文件是 {value('general.architecture')}")
    heads = value("llama.attention.head_count")
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "hidden_size": value("llama.embedding_length"),
        "num_hidden_layers": value("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": value("llama.attention.head_count_kv", heads),
        "intermediate_size": value("llama.feed_forward_length"),
        "vocab_size": len(value("tokenizer.ggml.tokens")),
        "max_position_embeddings": value("llama.context_length"),
        "rope_theta": value("llama.rope.freq_base", 10000.0),
        "rms_norm_eps": value("llama.attention.layer_norm_rms_epsilon"),
        "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
        "bos_token_id": value("tokenizer.ggml.bos_token_id"),
        "eos_token_id": value("tokenizer.ggml.eos_token_id"),
        "torch_dtype": "float32",
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf")
    parser.add_argument("output")
    parser.add_argument("--tokenizer", help="一并复制的 tokenizer.json")
    args = parser.parse_args()

    reader = GGUFReader(args.gguf)
    config = metadata(reader)
    tensors = {}
    for t in reader.tensors:
        if t.name == "rope_freqs.weight":
            continue
        w = dequantize(t.data, t.tensor_type).astype(np.float32)
        heads = {"attn_q": config["num_attention_heads"],
                 "attn_k": config["num_key_value_heads"]}.get(t.name.split(".")[-2])
        tensors[hf_name(t.name)] = np.ascontiguousarray(unpermute(w, heads) if heads else w)
    config["tie_word_embeddings"] = "lm_head.weight" not in tensors

    os.makedirs(args.output, exist_ok=True)
    save_file(tensors, os.path.join(args.output, "model.safetensors"), metadata={"format": "pt"})
    with open(os.path.join(args.output, "config.json"), "w", encoding="utf-8") as f:
        json.dump(config, f, indent=2)
    if args.tokenizer:
        shutil.copyfile(args.tokenizer, os.path.join(args.output, "tokenizer.json"))
    print(json.dumps(config, indent=2))


if __name__ == "__main__":
    main()
