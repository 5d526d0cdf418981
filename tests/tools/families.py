"""每个家族造一批随机小模型，算出 transformers 的 logits 与隐藏状态，供 tests/golden/test_logits 对照（make test-families）。

    families.py 输出文件夹 [名字的正则]

每个变体一个文件夹：config.json（旧或新的写法）、model.safetensors、golden.safetensors（同 goldens/arch：input_ids、logits、
hidden.0 …；longrope 另有 short.）。需要 pip 的 torch、transformers、safetensors。结果在 float32、eager 注意力下由存下的权重算出。
"""
import json, re, sys
from pathlib import Path

import torch
import transformers as T
from transformers.utils import logging
from safetensors.torch import load_file, save_file

logging.set_verbosity_error()
logging.disable_progress_bar()
OUT, ONLY = Path(sys.argv[1]), re.compile(sys.argv[2] if len(sys.argv) > 2 else "")
N, VOCAB = 48, 256
BASE = dict(vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=0,
            tie_word_embeddings=False)
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}
LONG = {"rope_type": "longrope", "short_factor": [1.0 + 0.1 * i for i in range(8)],
        "long_factor": [1.0 + i for i in range(8)], "factor": 4.0}
S, F = "sliding_attention", "full_attention"
MOE = dict(num_experts=8, num_experts_per_tok=3, moe_intermediate_size=32)
MLA = dict(kv_lora_rank=32, q_lora_rank=48, qk_rope_head_dim=8, qk_nope_head_dim=16, v_head_dim=16, n_routed_experts=8,
           n_group=4, topk_group=2, num_experts_per_tok=3, moe_intermediate_size=32, first_k_dense_replace=1,
           n_shared_experts=2, num_key_value_heads=4)
GPT2 = dict(vocab_size=VOCAB, n_embd=64, n_layer=3, n_head=4, n_positions=64, n_ctx=64)
BLOOM = dict(vocab_size=VOCAB, hidden_size=64, n_layer=3, n_head=4)
OPT = dict(vocab_size=VOCAB, hidden_size=64, num_hidden_layers=3, ffn_dim=96, num_attention_heads=4,
           max_position_embeddings=64, word_embed_proj_dim=64)
HEADLESS = {k: v for k, v in BASE.items() if k != "num_key_value_heads"}
FALCON = dict(HEADLESS, ffn_hidden_size=128)
FALCON.pop("intermediate_size")


def rope(kind, **more):
    return {"rope_parameters": dict(kind, rope_theta=10000.0, **more)}


# 名字: (类, 设置, 旧写法)。旧写法：rope_theta + rope_scaling、torch_dtype，删去 transformers 5 才有的键。
CASES = {
    "llama-tied": ("Llama", dict(BASE, tie_word_embeddings=True), True),
    "llama-bias": ("Llama", dict(BASE, attention_bias=True, mlp_bias=True, head_dim=24), False),
    "llama-linear": ("Llama", dict(BASE, **rope({"rope_type": "linear", "factor": 2.5})), True),
    "llama-dynamic": ("Llama", dict(BASE, **rope({"rope_type": "dynamic", "factor": 3.0}) | {"max_position_embeddings": 32}), True),
    "llama-yarn": ("Llama", dict(BASE, **rope(YARN)), True),
    "llama-yarn-mscale": ("Llama", dict(BASE, **rope(YARN, mscale=0.7, mscale_all_dim=1.2, beta_fast=16, truncate=False)), False),
    "llama-llama3": ("Llama", dict(BASE, **rope(LLAMA3)), False),
    "llama-longrope": ("Llama", dict(BASE, **rope(LONG, original_max_position_embeddings=32)), False),
    "llama-gelu": ("Llama", dict(BASE, hidden_act="gelu_new"), True),
    "llama-mha": ("Llama", dict(BASE, num_key_value_heads=4), True),
    "mistral": ("Mistral", dict(BASE, sliding_window=16), True),
    "mistral-full": ("Mistral", dict(BASE, sliding_window=None, head_dim=32), False),
    "qwen2": ("Qwen2", dict(BASE, sliding_window=16, use_sliding_window=False, max_window_layers=1), True),
    "qwen2-window": ("Qwen2", dict(BASE, sliding_window=16, use_sliding_window=True, max_window_layers=1), True),
    "qwen2-layer-types": ("Qwen2", dict(BASE, sliding_window=8, use_sliding_window=True, layer_types=[S, F, S]), False),
    "qwen2-yarn": ("Qwen2", dict(BASE, tie_word_embeddings=True, **rope(YARN)), True),
    "qwen3": ("Qwen3", dict(BASE, head_dim=32, tie_word_embeddings=True), False),
    "qwen3-bias": ("Qwen3", dict(BASE, head_dim=24, attention_bias=True, use_sliding_window=True, sliding_window=12, max_window_layers=2), True),
    "gemma": ("Gemma", dict(BASE, head_dim=24, tie_word_embeddings=True, hidden_activation="gelu_pytorch_tanh"), True),
    "gemma2": ("Gemma2", dict(BASE, head_dim=24, sliding_window=8, query_pre_attn_scalar=48, attn_logit_softcapping=5.0,
                              final_logit_softcapping=3.0, tie_word_embeddings=True), True),
    "gemma2-nocap": ("Gemma2", dict(BASE, head_dim=16, sliding_window=16, query_pre_attn_scalar=16, attn_logit_softcapping=None,
                                    final_logit_softcapping=None, tie_word_embeddings=False, layer_types=[F, S, F]), False),
    "gemma3": ("Gemma3Text", dict(BASE, head_dim=32, sliding_window=8, query_pre_attn_scalar=24, layer_types=[S, F, S],
                                  tie_word_embeddings=True), False),
    "gemma3-old": ("Gemma3Text", dict(BASE, num_hidden_layers=7, head_dim=16, sliding_window=8, query_pre_attn_scalar=16,
                                      tie_word_embeddings=True), True),
    "gemma3-linear": ("Gemma3Text", dict(BASE, head_dim=16, sliding_window=16, query_pre_attn_scalar=16, layer_types=[S, F, S],
                                         tie_word_embeddings=True, final_logit_softcapping=4.0, attn_logit_softcapping=6.0,
                                         rope_parameters={S: {"rope_type": "default", "rope_theta": 10000.0},
                                                          F: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0}}), False),
    "phi3": ("Phi3", dict(BASE, sliding_window=16), True),
    "phi3-partial": ("Phi3", dict(BASE, rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
                                  tie_word_embeddings=True), False),
    "phi3-long": ("Phi3", dict(BASE, original_max_position_embeddings=32, **rope({k: v for k, v in LONG.items() if k != "factor"})), True),
    "gpt2": ("GPT2", dict(GPT2), True),
    "gpt2-inner": ("GPT2", dict(GPT2, n_inner=80, scale_attn_by_inverse_layer_idx=True, activation_function="relu",
                                tie_word_embeddings=False), True),
    "gpt2-unscaled": ("GPT2", dict(GPT2, scale_attn_weights=False, reorder_and_upcast_attn=True, activation_function="gelu"), False),
    "opt": ("OPT", dict(OPT), True),
    "opt-350m": ("OPT", dict(OPT, do_layer_norm_before=False, word_embed_proj_dim=40), True),
    "opt-nobias": ("OPT", dict(OPT, enable_bias=False, layer_norm_elementwise_affine=False, activation_function="gelu",
                               tie_word_embeddings=False), True),
    "opt-removed": ("OPT", dict(OPT, _remove_final_layer_norm=True), True),
    "gpt_neox": ("GPTNeoX", dict(HEADLESS, rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}), True),
    "gpt_neox-serial": ("GPTNeoX", dict(HEADLESS, use_parallel_residual=False, hidden_act="gelu_fast", tie_word_embeddings=True,
                                        rope_parameters={"rope_type": "default", "rope_theta": 50000.0, "partial_rotary_factor": 1.0}), False),
    "gpt_neox-nobias": ("GPTNeoX", dict(HEADLESS, attention_bias=False), False),
    "bloom": ("Bloom", dict(BLOOM), True),
    "bloom-6heads": ("Bloom", dict(BLOOM, hidden_size=96, n_head=6, apply_residual_connection_post_layernorm=True), True),
    "falcon-7b": ("Falcon", dict(FALCON, multi_query=True, tie_word_embeddings=True), True),
    "falcon-40b": ("Falcon", dict(FALCON, new_decoder_architecture=True, num_kv_heads=2, tie_word_embeddings=True), True),
    "falcon-11b": ("Falcon", dict(FALCON, new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1), False),
    "falcon-rw": ("Falcon", dict(FALCON, multi_query=False, alibi=True, parallel_attn=False, bias=True, num_attention_heads=8), True),
    "falcon-alibi6": ("Falcon", dict(FALCON, hidden_size=96, multi_query=True, alibi=True, num_attention_heads=6, activation="gelu_new"), True),
    "mixtral": ("Mixtral", dict(BASE, num_local_experts=6, num_experts_per_tok=2, sliding_window=16), True),
    "mixtral-full": ("Mixtral", dict(BASE, num_local_experts=4, num_experts_per_tok=3, tie_word_embeddings=True), False),
    "qwen3_moe": ("Qwen3Moe", dict(BASE, head_dim=24, **MOE), False),
    "qwen3_moe-mixed": ("Qwen3Moe", dict(BASE, num_hidden_layers=5, norm_topk_prob=True, decoder_sparse_step=2, mlp_only_layers=[3],
                                         head_dim=16, attention_bias=True, **MOE), True),
    "olmoe": ("Olmoe", dict(BASE, num_experts=8, num_experts_per_tok=2), False),
    "olmoe-norm": ("Olmoe", dict(BASE, num_experts=8, num_experts_per_tok=2, norm_topk_prob=True, num_key_value_heads=4), True),
    "olmo2": ("Olmo2", dict(BASE), True),
    "olmo2-bias": ("Olmo2", dict(BASE, attention_bias=True, tie_word_embeddings=True, num_key_value_heads=4, **rope(LLAMA3)), False),
    "starcoder2": ("Starcoder2", dict(BASE, sliding_window=16, tie_word_embeddings=True), True),
    "starcoder2-nobias": ("Starcoder2", dict(BASE, use_bias=False, sliding_window=None, hidden_act="gelu"), False),
    "stablelm": ("StableLm", dict(BASE), True),
    "stablelm-12b": ("StableLm", dict(BASE, use_parallel_residual=True, qk_layernorm=True, use_qkv_bias=False), False),
    "stablelm-bias": ("StableLm", dict(BASE, use_qkv_bias=True, num_key_value_heads=4, tie_word_embeddings=True,
                                       rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}), True),
    "granite": ("Granite", dict(BASE, embedding_multiplier=12.0, logits_scaling=8.0, residual_multiplier=0.22,
                                attention_multiplier=0.0625, tie_word_embeddings=True), True),
    "granite-bias": ("Granite", dict(BASE, attention_bias=True, mlp_bias=True, attention_multiplier=0.2), False),
    "cohere": ("Cohere", dict(BASE, logit_scale=0.25, tie_word_embeddings=True), True),
    "cohere-qknorm": ("Cohere", dict(BASE, use_qk_norm=True, attention_bias=True, tie_word_embeddings=True), False),
    "cohere2": ("Cohere2", dict(BASE, num_hidden_layers=5, sliding_window=8, tie_word_embeddings=True, head_dim=24), True),
    "deepseek_v3": ("DeepseekV3", dict(BASE, **MLA), False),
    "deepseek_v3-plain": ("DeepseekV3", dict(BASE, **dict(MLA, q_lora_rank=None, v_head_dim=32, n_group=1, topk_group=1), norm_topk_prob=False,
                                             attention_bias=True, rope_interleave=False, routed_scaling_factor=1.5), True),
    "deepseek_v3-yarn": ("DeepseekV3", dict(BASE, **MLA, **rope(YARN, mscale=1.0, mscale_all_dim=1.0)), True),
    "glm4": ("Glm4", dict(BASE, head_dim=32, attention_bias=True), False),
    "glm4-plain": ("Glm4", dict(BASE, head_dim=16, attention_bias=False, tie_word_embeddings=True,
                                rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}), False),
    # 以下是 llama.cpp 放得下的样子（GGUF 导出的对照，tests/interop/gguf_families.py）
    "gemma2-standard": ("Gemma2", dict(BASE, head_dim=24, sliding_window=8, query_pre_attn_scalar=24, tie_word_embeddings=True), True),
    "gemma3-standard": ("Gemma3Text", dict(BASE, head_dim=32, sliding_window=8, query_pre_attn_scalar=32, layer_types=[S, F, S],
                                           tie_word_embeddings=True), False),
    "qwen3_moe-norm": ("Qwen3Moe", dict(BASE, head_dim=24, norm_topk_prob=True, **MOE), True),
    "olmoe-mha": ("Olmoe", dict(BASE, num_experts=8, num_experts_per_tok=2, num_key_value_heads=4), False),
    "cohere2-standard": ("Cohere2", dict(BASE, num_hidden_layers=5, sliding_window=8, tie_word_embeddings=True, head_dim=16), True),
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NEW_ONLY = ["layer_types", "rope_parameters", "dtype", "id2label", "label2id", "problem_type", "output_hidden_states", "return_dict",
            "output_attentions", "chunk_size_feed_forward", "is_encoder_decoder", "use_bidirectional_attention"]


def old_style(c, settings):
    """transformers 4 的 config.json 的样子。"""
    r = c.get("rope_parameters") or {}
    if S in r:
        c["rope_theta"], c["rope_local_base_freq"] = r[F]["rope_theta"], r[S]["rope_theta"]
        r = {k: v for k, v in r[F].items()}
    if "rope_theta" in r:
        c["rope_theta"] = r["rope_theta"]
    if "partial_rotary_factor" in r:
        c["rotary_pct" if c["model_type"] == "gpt_neox" else "partial_rotary_factor"] = r["partial_rotary_factor"]
    if c["model_type"] == "gpt_neox":
        c["rotary_emb_base"] = c.pop("rope_theta")
    scaling = {k: v for k, v in r.items() if k not in ("rope_theta", "partial_rotary_factor")}
    if c["model_type"] == "phi3":
        scaling.pop("original_max_position_embeddings", None)
        if "rope_type" in scaling:
            scaling["type"] = scaling.pop("rope_type")
    if scaling.get("rope_type", scaling.get("type", "default")) != "default":
        c["rope_scaling"] = scaling
    keep = settings.get("layer_types")
    c["torch_dtype"] = c.get("dtype")
    for k in NEW_ONLY:
        if not (k == "layer_types" and keep):
            c.pop(k, None)
    if c["model_type"] == "qwen3_moe":
        c["num_experts"] = c.pop("num_local_experts", c.get("num_experts"))
    if c["model_type"] == "deepseek_v3":
        c["n_routed_experts"] = c.pop("num_local_experts", c.get("n_routed_experts"))
    c["transformers_version"] = "4.46.0"
    return c


def make(name, i, kind, settings, old):
    torch.manual_seed(1000 + i)
    config = getattr(T, kind + "Config")(**settings)
    config._attn_implementation = "eager"
    cls = getattr(T, (kind if kind != "Gemma3Text" else "Gemma3") + ("LMHeadModel" if kind == "GPT2" else "ForCausalLM"))
    model = cls(config).eval()
    with torch.no_grad():  # 初始的偏置为 0、归一化为 1，看不出错；全部换成不寻常的数
        for key, p in list(model.named_parameters()) + [b for b in model.named_buffers() if "correction" in b[0]]:
            one = ("norm" in key or "ln_" in key) and key.endswith("weight")
            base = 1.0 if one and float(p.float().mean()) == 1 else 0.0
            spread = 0.3 if one or p.ndim == 1 else 1.2 / p.shape[-1] ** 0.5
            p.copy_(base + torch.randn_like(p) * spread)
    dtype = DTYPES[i % 3]
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    model.to(dtype).save_pretrained(folder, safe_serialization=True)
    (folder / "generation_config.json").unlink(missing_ok=True)
    path = folder / "config.json"
    c = json.loads(path.read_text())
    path.write_text(json.dumps(old_style(c, settings) if old else c, indent=1))
    # 由存下的权重与写好的 config.json 重新打开（旧写法也由 transformers 自己读懂），以 float32 算
    # transformers 的 falcon 在 eager 下把 ALiBi 加了两遍（掩码里一遍、分数上一遍），sdpa 才是原意
    way = "sdpa" if settings.get("alibi") else "eager"
    model = cls.from_pretrained(folder, dtype=torch.float32, attn_implementation=way).eval()
    config = model.config
    golden = {}
    for prefix, n in (("", N), ("short.", 24)):
        if prefix and "long" not in name:
            continue
        ids = torch.randint(0, VOCAB, (1, n), generator=torch.Generator().manual_seed(i))
        seen = []
        layers = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == (
            getattr(config, "num_hidden_layers", None) or config.n_layer))
        hooks = [layers[0].register_forward_pre_hook(lambda m, a, k: seen.append((a[0] if a else k["hidden_states"]).detach().clone()), with_kwargs=True)]
        hooks += [l.register_forward_hook(lambda m, a, o: seen.append((o[0] if isinstance(o, tuple) else o).detach().clone())) for l in layers]
        with torch.no_grad():
            out = model(ids, use_cache=False)
            last = model.base_model(ids, use_cache=False).last_hidden_state
        for h in hooks:
            h.remove()
        golden[prefix + "input_ids"] = ids
        golden[prefix + "logits"] = out.logits.float().contiguous()
        if not prefix:
            seen = seen[:len(layers) + 1]
            for k, h in enumerate(seen[:-1]):
                golden[f"hidden.{k}"] = h.reshape(1, N, -1).float().contiguous()
            if last.shape[-1] == seen[-1].shape[-1]:
                golden[f"hidden.{len(layers)}"] = last.float().contiguous()
    save_file(golden, folder / "golden.safetensors")
    print(f"{name}: {dtype}".replace("torch.", ""), "旧写法" if old else "新写法", flush=True)


OUT.mkdir(parents=True, exist_ok=True)
for number, (case, (kind, settings, old)) in enumerate(CASES.items()):
    if ONLY.search(case):
        make(case, number, kind, settings, old)
