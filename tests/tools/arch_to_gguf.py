"""把随机小模型（goldens/arch 或 families.py 造的）写成 GGUF，手工核对 GGUF 路径用；不在 make test 里。

    arch_to_gguf.py 模型文件夹 输出.gguf [类型]     类型: F32 F16 BF16 Q8_0 Q4_0 …（行长须是块长的倍数；缺省 F32）

张量的名字取自 gguf 包的对照表，值的改动（llama 的 q、k 重排，gemma 的归一化加 1，融合 qkv 的堆叠，专家的三维，Conv1D 的转置）依
llama.cpp 的转换约定。需要 pip 的 gguf、safetensors、numpy、torch。随后两边的 logits 应当相同：
    build/ptq-bench logits --model 输出.gguf --ids 1,2,3 --output a.npy
"""
import json, math, re, sys
import numpy as np
import gguf
from gguf import GGUFWriter, GGMLQuantizationType, quants
from safetensors import safe_open
from pathlib import Path

src, out = Path(sys.argv[1]), sys.argv[2]
kind = GGMLQuantizationType[sys.argv[3]] if len(sys.argv) > 3 else GGMLQuantizationType.F32
cfg = json.loads((src / "config.json").read_text())
model = cfg["model_type"]
ARCH = {"mistral": "llama", "mixtral": "llama", "gemma3_text": "gemma3", "gpt_neox": "gptneox", "qwen3_moe": "qwen3moe",
        "cohere": "command-r"}.get(model, model)
rope = cfg.get("rope_parameters") or cfg.get("rope_scaling") or {}
flat = {**cfg, **{k: v for k, v in (rope.get("full_attention") or rope).items() if v is not None}}


def pick(*keys, default=None):
    return next((flat[k] for k in keys if flat.get(k) is not None), default)


heads, hidden, layers = pick("num_attention_heads", "n_head"), pick("hidden_size", "n_embd"), pick("num_hidden_layers", "n_layer")
kv = pick("num_key_value_heads", "num_kv_heads", default=heads)
if model == "falcon" and not cfg.get("new_decoder_architecture"):
    kv = 1 if cfg.get("multi_query", True) else heads
dim = pick("head_dim", default=hidden // heads)
rotary = int(dim * pick("partial_rotary_factor", "rotary_pct", default=1))
w = GGUFWriter(out, ARCH)
w.add_block_count(layers)
w.add_embedding_length(hidden)
w.add_feed_forward_length(pick("intermediate_size", "ffn_hidden_size", "n_inner", default=4 * hidden))
w.add_head_count(heads)
w.add_head_count_kv(kv)
w.add_key_length(dim)
w.add_value_length(dim)
w.add_context_length(pick("max_position_embeddings", "n_positions", default=2048))
eps = pick("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")
(w.add_layer_norm_rms_eps if "rms_norm_eps" in flat else w.add_layer_norm_eps)(eps)
w.add_rope_freq_base(pick("rope_theta", "rotary_emb_base", default=1e6 if ARCH == "gemma3" else 1e4))
w.add_rope_dimension_count(rotary)
if pick("sliding_window") and ARCH in ("gemma2", "gemma3", "starcoder2", "phi3"):
    w.add_sliding_window(cfg["sliding_window"])
    if cfg.get("layer_types"):
        w.add_array(f"{ARCH}.attention.sliding_window_pattern", [t == "sliding_attention" for t in cfg["layer_types"]])
for key, add in (("attn_logit_softcapping", w.add_attn_logit_softcapping), ("final_logit_softcapping", w.add_final_logit_softcapping)):
    if ARCH == "gemma2":
        add(cfg.get(key) or 0.0)
    elif ARCH == "gemma3" and key[0] == "f" and cfg.get(key):
        add(cfg[key])
if cfg.get("query_pre_attn_scalar"):
    w.add_float32(f"{ARCH}.attention.scale", cfg["query_pre_attn_scalar"] ** -0.5)  # llama.cpp 由形状推出
if ARCH == "granite":
    w.add_attention_scale(cfg["attention_multiplier"])
    w.add_embedding_scale(cfg["embedding_multiplier"])
    w.add_residual_scale(cfg["residual_multiplier"])
    w.add_logit_scale(cfg["logits_scaling"])
if ARCH == "command-r":
    w.add_logit_scale(cfg["logit_scale"])
if ARCH in ("gptneox", "stablelm"):
    w.add_parallel_residual(pick("use_parallel_residual", default=ARCH == "gptneox"))
experts = pick("num_local_experts", "num_experts", default=0) or 0
if experts:
    w.add_expert_count(experts)
    w.add_expert_used_count(cfg["num_experts_per_tok"])
    if "moe_intermediate_size" in cfg:
        w.add_expert_feed_forward_length(cfg["moe_intermediate_size"])
kind_of_rope = rope.get("rope_type", rope.get("type", "default"))
if kind_of_rope == "linear" or (rope.get("full_attention") or {}).get("rope_type") == "linear":
    w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    w.add_rope_scaling_factor(flat["factor"])
if kind_of_rope == "yarn":
    w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    w.add_rope_scaling_factor(flat["factor"])
    w.add_rope_scaling_orig_ctx_len(flat["original_max_position_embeddings"])
if kind_of_rope == "longrope":
    old = cfg["original_max_position_embeddings"]
    w.add_rope_scaling_orig_ctx_len(old)
    w.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(cfg["max_position_embeddings"] / old) / math.log(old)))
    for side in ("long", "short"):
        w.add_tensor(f"rope_factors_{side}.weight", np.array(flat[f"{side}_factor"], np.float32))
if kind_of_rope == "llama3":
    old, lo, hi, factor = (flat[k] for k in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor", "factor"))
    factors = []
    for i in range(0, rotary, 2):
        wavelen = 2 * math.pi * flat["rope_theta"] ** (i / rotary)
        smooth = (old / wavelen - lo) / (hi - lo)
        factors.append(1.0 if wavelen < old / hi else factor if wavelen > old / lo else 1 / ((1 - smooth) / factor + smooth))
    w.add_tensor("rope_freqs.weight", np.array(factors, np.float32))

names = gguf.get_tensor_name_map(next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == ARCH), layers)
parts = {}


def put(name, t):
    new = names.get_name(name, try_suffixes=(".weight", ".bias"))
    assert new, f"gguf 的对照表里没有 {name}"
    if t.ndim >= 2 and kind != GGMLQuantizationType.F32 and "norm" not in new and "inp" not in new:
        w.add_tensor(new, quants.quantize(t, kind), raw_dtype=kind)
    else:
        w.add_tensor(new, np.ascontiguousarray(t, np.float32))


def collect(pattern, name, t):
    """一层里的几个张量合成一个：专家、stablelm 每头的归一化。"""
    m = re.match(pattern, name)
    if m:
        parts.setdefault(m[1], {}).setdefault(m[3], {})[int(m[2])] = t
    return m


for path in sorted(src.glob("model*.safetensors")):
    with safe_open(path, "pt") as f:
        for name in f.keys():
            t = f.get_tensor(name).float().numpy()
            if name.endswith((".attn.bias", ".masked_bias")) or (cfg.get("tie_word_embeddings") and name == "lm_head.weight"):
                continue
            if ARCH == "llama" and re.search(r"\.[qk]_proj\.", name) or model == "granite" and re.search(r"\.[qk]_proj\.", name):
                n = heads if ".q_proj." in name else kv
                t = t.reshape(n, 2, t.shape[0] // n // 2, *t.shape[1:]).swapaxes(1, 2).reshape(t.shape)
            if ARCH.startswith("gemma") and "norm" in name:
                t = t + 1
            if model == "gpt2" and re.search(r"(c_attn|c_proj|c_fc)\.weight", name):
                t = t.T
            if model in ("gpt_neox", "bloom", "falcon") and "query_key_value" in name:
                g = t.reshape(kv, heads // kv + 2, dim, *t.shape[1:])
                t = np.concatenate([g[:, :-2].reshape(-1, *t.shape[1:]), g[:, -2].reshape(-1, *t.shape[1:]), g[:, -1].reshape(-1, *t.shape[1:])])
            if model == "gpt2" and not name.startswith(("transformer", "lm_head")):
                name = "transformer." + name
            if collect(r"(.*experts)\.(\d+)\.(\w+)\.weight", name, t) or collect(r"(.*layernorm)\.norms\.(\d+)(\.weight)", name, t):
                continue
            put(name, t)
for base, tensors in parts.items():
    for suffix, items in tensors.items():
        stacked = np.stack([items[i] for i in range(len(items))])
        put(base + (suffix if suffix.startswith(".") else f".{suffix}.weight"), stacked)
w.write_header_to_file()
w.write_kv_data_to_file()
w.write_tensors_to_file()
w.close()
