"""把 goldens/arch 里的小模型（llama3-rope、qwen2）写成 GGUF，手工核对 GGUF 路径用；不在 make test 里。

    arch_to_gguf.py 模型文件夹 输出.gguf [类型]     类型: F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 …（行长须是块长的倍数）

需要 pip 的 gguf、safetensors、numpy。随后：
    build/ptq-bench logits --model 输出.gguf --ids 1,2,3 --output a.npy
与原文件夹的 logits 相比（F32 时应当相同）。
"""
import json, math, sys
import numpy as np
from gguf import GGUFWriter, GGMLQuantizationType, quants
from safetensors import safe_open
from pathlib import Path

src, out = Path(sys.argv[1]), sys.argv[2]
kind = GGMLQuantizationType[sys.argv[3]] if len(sys.argv) > 3 else GGMLQuantizationType.F32
cfg = json.loads((src / "config.json").read_text())
arch = cfg["model_type"]
heads, kv = cfg["num_attention_heads"], cfg["num_key_value_heads"]
dim = cfg.get("head_dim") or cfg["hidden_size"] // heads
w = GGUFWriter(out, arch)
w.add_block_count(cfg["num_hidden_layers"])
w.add_embedding_length(cfg["hidden_size"])
w.add_feed_forward_length(cfg["intermediate_size"])
w.add_head_count(heads)
w.add_head_count_kv(kv)
w.add_key_length(dim)
w.add_context_length(cfg["max_position_embeddings"])
w.add_layer_norm_rms_eps(cfg["rms_norm_eps"])
w.add_rope_freq_base(cfg["rope_theta"])
w.add_rope_dimension_count(dim)

scaling = cfg.get("rope_scaling")
if scaling and scaling["rope_type"] == "llama3":
    old, lo, hi, factor = (scaling[k] for k in ("original_max_position_embeddings", "low_freq_factor",
                                                "high_freq_factor", "factor"))
    factors = []
    for i in range(0, dim, 2):
        wavelen = 2 * math.pi * cfg["rope_theta"] ** (i / dim)
        if wavelen < old / hi:
            factors.append(1.0)
        elif wavelen > old / lo:
            factors.append(factor)
        else:
            smooth = (old / wavelen - lo) / (hi - lo)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    w.add_tensor("rope_freqs.weight", np.array(factors, np.float32))

NAMES = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
         "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}

def rename(name):
    base, suffix = name.rsplit(".", 1)
    if base in TOP:
        return f"{TOP[base]}.{suffix}"
    _, _, layer, rest = base.split(".", 3)
    return f"blk.{layer}.{NAMES[rest]}.{suffix}"

for path in sorted(src.glob("model*.safetensors")):
    with safe_open(path, "pt") as f:
        for name in f.keys():
            t = f.get_tensor(name).float().numpy()
            if arch == "llama" and (".q_proj." in name or ".k_proj." in name):
                n = heads if ".q_proj." in name else kv
                t = t.reshape(n, 2, t.shape[0] // n // 2, *t.shape[1:]).swapaxes(1, 2).reshape(t.shape)
            if t.ndim == 2 and kind != GGMLQuantizationType.F32:
                w.add_tensor(rename(name), quants.quantize(t, kind), raw_dtype=kind)
            else:
                w.add_tensor(rename(name), t)
w.write_header_to_file()
w.write_kv_data_to_file()
w.write_tensors_to_file()
w.close()
