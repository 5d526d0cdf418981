"""量化的文件夹（我们导出的，或别的工具写的）在别的程序里的困惑度。

用法: ppl_of_export.py 文件夹 文本 窗口长 窗口数
hf-dequantized、compressed-tensors、GGUF 由 transformers 装入（后两者要 compressed-tensors、gguf 包），bitsandbytes 由
transformers 装入后以它自己的函数反量化（LLM.int8 用它自己的前向），hqq 由 hqq 的 HQQLinear 反量化；gptq 与 awq 的编码在这里按 AutoGPTQ、
AutoAWQ 的公式独立解开，再交给 transformers 的普通模型（这里没有 GPU，那两个项目的内核装不了）。计算都是 float32。
标准输出只有一个数。
"""
import contextlib
import json
import logging
import math
import os
import sys

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer


def unpack_rows(words, bits, n):
    """(字, 列) 的 int32 沿第 0 维从低位起连着排 → (n, 列)。"""
    words = words.to(torch.int64) & 0xFFFFFFFF
    out = torch.zeros(n, words.shape[1], dtype=torch.int64)
    for i in range(n):
        bit = i * bits
        low = words[bit // 32] >> (bit % 32)
        if bit % 32 + bits > 32:
            low = low | (words[bit // 32 + 1] << (32 - bit % 32))
        out[i] = low & ((1 << bits) - 1)
    return out


def dequantize_gptq(t, name, config):
    qweight, scales = t[name + ".qweight"], t[name + ".scales"].float()
    cols, bits = t[name + ".g_idx"].shape[0], config["bits"]
    code = unpack_rows(qweight, bits, cols)
    words, one = t[name + ".qzeros"].T.contiguous().to(torch.int64), config.get("checkpoint_format", "gptq") == "gptq"
    if one and bits != 3:  # v1 写的时候整字减去各格的一（零点为 0 的向高位借），GPTQModel 读的时候整字加回
        words = words + sum(1 << i for i in range(0, 32, bits))
    zero = unpack_rows(words, bits, scales.shape[1]).T
    if one and bits == 3:
        zero = zero + 1 & 7
    group = t[name + ".g_idx"].long()
    return ((code - zero[group]).float() * scales[group]).T.contiguous()


def dequantize_awq(t, name, config):
    order = [0, 2, 4, 6, 1, 3, 5, 7]

    def split(words):
        words = words.to(torch.int64) & 0xFFFFFFFF
        parts = torch.zeros(*words.shape, 8, dtype=torch.int64)
        for i, at in enumerate(order):
            parts[..., at] = words >> (4 * i) & 15
        return parts.reshape(words.shape[0], -1)

    group = torch.arange(t[name + ".qweight"].shape[0]) // config["group_size"]
    zero, scales = split(t[name + ".qzeros"])[group], t[name + ".scales"].float()[group]
    return ((split(t[name + ".qweight"]) - zero).float() * scales).T.contiguous()


def plain_model(folder, state):
    """没有量化的同形状的模型，装入 state。"""
    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    missing, extra = model.load_state_dict(state, strict=False)
    assert not extra and all("lm_head" in k for k in missing), (missing, extra)
    model.tie_weights()
    return model


def dequantize_words(folder, quant):
    t = load_file(os.path.join(folder, "model.safetensors"))
    unpack = {"gptq": dequantize_gptq, "awq": dequantize_awq}[quant["quant_method"]]
    names = sorted(k[: -len(".qweight")] for k in t if k.endswith(".qweight"))
    state = {k: v.float() for k, v in t.items()
             if not k.endswith((".qweight", ".qzeros", ".scales", ".g_idx"))}
    state.update({n + ".weight": unpack(t, n, quant) for n in names})
    return plain_model(folder, state)


def dequantize_bitsandbytes(folder):
    import bitsandbytes as bnb
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map="cpu")
    if any(isinstance(module, bnb.nn.Linear8bitLt) for module in model.modules()):
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        return model  # LLM.int8：激活也取整，用它自己的前向
    state = {}
    for name, module in model.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.weight.quant_state.dtype = torch.float32
            state[name + ".weight"] = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
    for k, v in model.state_dict().items():
        name, leaf = k.rsplit(".", 1)
        if leaf == "bias" or (leaf == "weight" and name + ".weight" not in state):
            state[k] = v.float()
    return plain_model(folder, state)


def dequantize_hqq(folder):
    from hqq.core.quantize import HQQLinear
    t = load_file(os.path.join(folder, "model.safetensors"))
    names = sorted(k[: -len(".W_q")] for k in t if k.endswith(".W_q"))
    state = {k: v.float() for k, v in t.items() if k.rsplit(".", 1)[0] not in names or k.endswith(".bias")}
    for n in names:
        layer = HQQLinear(None, None, compute_dtype=torch.float32, device="cpu")
        layer.load_state_dict({k[len(n) + 1:]: v for k, v in t.items() if k.startswith(n + ".")})
        state[n + ".weight"] = layer.dequantize().float()
    return plain_model(folder, state)


def is_asymmetric_pack(quant):
    """transformers 5 装不了非对称的 pack-quantized（建空模型时零点没有按装包后的形状）。"""
    groups = quant.get("config_groups", {}).values()
    return quant.get("format") == "pack-quantized" and not all(g["weights"]["symmetric"] for g in groups)


def dequantize_packed(folder):
    """以 compressed_tensors 自己的 unpack_from_int32 解开。"""
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
    t = load_file(os.path.join(folder, "model.safetensors"))
    names = sorted(k[: -len(".weight_packed")] for k in t if k.endswith(".weight_packed"))
    state = {k: v.float() for k, v in t.items() if k.rsplit(".", 1)[0] not in names or k.endswith(".bias")}
    for n in names:
        shape, scale = torch.Size(t[n + ".weight_shape"].tolist()), t[n + ".weight_scale"].float()
        bits = t[n + ".weight_packed"].shape[1] * 32 // shape[1]
        code = unpack_from_int32(t[n + ".weight_packed"], bits, shape)
        zero = unpack_from_int32(t[n + ".weight_zero_point"], bits, torch.Size([shape[0], scale.shape[1]]), packed_dim=0)
        group = torch.arange(shape[1]) // (shape[1] // scale.shape[1])
        state[n + ".weight"] = (code - zero[:, group]).float() * scale[:, group]
    return plain_model(folder, state)


def quantization_of(folder):
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as f:
        return json.load(f).get("quantization_config")


def is_bitsandbytes(folder):
    return quantization_of(folder)["quant_method"] == "bitsandbytes"


def open_model(folder):
    if folder.endswith(".gguf"):
        return AutoModelForCausalLM.from_pretrained(os.path.dirname(folder), gguf_file=os.path.basename(folder),
                                                    dtype=torch.float32)
    quant = quantization_of(folder)
    if quant and is_asymmetric_pack(quant):
        return dequantize_packed(folder)
    if not quant or quant["quant_method"] == "compressed-tensors":
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if is_bitsandbytes(folder):
        return dequantize_bitsandbytes(folder)
    if quant["quant_method"] == "hqq":
        return dequantize_hqq(folder)
    return dequantize_words(folder, quant)


def llama_cpp_perplexity(path, text, window, count):
    """llama.cpp（llama-cpp-python）的前向与它自己的分词。"""
    from llama_cpp import Llama
    model = Llama(path, n_ctx=window, n_batch=window, logits_all=True, n_threads=2, verbose=False)
    ids, total = model.tokenize(open(text, "rb").read(), add_bos=False, special=False), 0.0
    for i in range(count):
        part = ids[i * window: (i + 1) * window]
        model.reset()
        model.eval(part)
        rows = torch.tensor(model.scores[: window - 1], dtype=torch.float64)
        total += torch.nn.functional.cross_entropy(rows, torch.tensor(part[1:])).item()
    model.close()
    return math.exp(total / count)


def token_ids(folder, text):
    options = {"gguf_file": os.path.basename(folder)} if folder.endswith(".gguf") else {}
    tokenizer = AutoTokenizer.from_pretrained(os.path.dirname(folder) if options else folder, **options)
    return tokenizer(open(text, encoding="utf-8").read(), return_tensors="pt").input_ids[0]


@contextlib.contextmanager
def int8_grid_of_vllm():
    """逐 token 的 8 位激活，compressed-tensors 在 transformers 里的模拟取 s = max|x|/127.5（±max 取整到 ±128 再截到
    127），vLLM 的内核与 SmoothQuant 取 s = max|x|/127。本程序同后者；要逐个位置相同的对照，先把它换成后者。
    FP8 两边同为 max|x|/448，不换。"""
    from compressed_tensors.quantization.lifecycle import forward
    theirs = forward.compute_dynamic_scales_and_zp

    def scales(value, args, module, global_scale=None):
        if args.type != "int" or args.strategy != "token" or args.num_bits != 8:
            return theirs(value=value, args=args, module=module, global_scale=global_scale)
        s = value.abs().amax(-1, keepdim=True).clamp(min=1e-5) * torch.tensor(1 / 127)
        return s, torch.zeros_like(s)

    forward.compute_dynamic_scales_and_zp = scales
    try:
        yield
    finally:
        forward.compute_dynamic_scales_and_zp = theirs


@contextlib.contextmanager
def int8_constant_of_cuda():
    """bitsandbytes 0.50 在 CPU 上把整数的和乘以 6.200124e-05，CUDA 的内核乘以 1/127² = 6.200012e-05：换成后者。"""
    library = torch.library.Library("bitsandbytes", "IMPL")

    def dequantize(A, row_stats, col_stats, dtype=None, bias=None):
        out = A.view(-1, A.shape[-1]) * (row_stats.reshape(-1, 1) * col_stats.reshape(1, -1)) * (1 / 127 / 127)
        return (out if bias is None else out + bias).to(dtype or torch.float16)

    library.impl("int8_mm_dequant", dequantize, "CPU", allow_override=True)
    try:
        yield
    finally:
        library._destroy()


def as_on_gpu(folder):
    """激活的取整同 GPU 上的内核。"""
    return int8_constant_of_cuda() if is_bitsandbytes(folder) else int8_grid_of_vllm()


def logits(folder, prompts):
    model = open_model(folder).eval()
    with torch.no_grad(), as_on_gpu(folder):
        return [model(torch.tensor([p])).logits[0] for p in prompts]


def perplexity(folder, text, window, count, rounded=False):
    """rounded：激活也取整的，取整同 GPU 上的内核。"""
    model, ids = open_model(folder).eval(), token_ids(folder, text)
    total = 0.0
    with torch.no_grad(), (as_on_gpu(folder) if rounded else contextlib.nullcontext()):
        for i in range(count):
            x = ids[i * window: (i + 1) * window][None]
            logits = model(x).logits[0, :-1].double()
            total += torch.nn.functional.cross_entropy(logits, x[0, 1:], reduction="mean").item()
    return torch.tensor(total / count).exp().item()


if __name__ == "__main__":
    torch.set_num_threads(2)
    print(perplexity(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
