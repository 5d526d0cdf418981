"""用各项目自己的工具把一个 HF 文件夹量化成它们的检查点。

make(kind, source, out)：kind 见 KINDS；返回假表示没有那个工具（说明打印到标准错误）。
只用 CPU，就近取整：要看的是排法与公式，不是量化的好坏。
"""
import json
import os
import shutil
import sys

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

SIDE = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
        "generation_config.json", "chat_template.jinja")


def copy_side_files(source, out):
    for name in SIDE:
        path = os.path.join(source, name)
        if os.path.exists(path) and not os.path.exists(os.path.join(out, name)):
            shutil.copy(path, out)


def dense(source, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(source, dtype=dtype)


def bitsandbytes(source, out, **options):
    from transformers import BitsAndBytesConfig
    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.float32, quantization_config=BitsAndBytesConfig(**options), device_map="cpu")
    model.save_pretrained(out)


def compressed(source, out, scheme, **options):
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    model = dense(source, torch.bfloat16)
    if isinstance(scheme, str):
        recipe = QuantizationModifier(targets="Linear", scheme=scheme, ignore=["lm_head"])
    else:
        recipe = QuantizationModifier(config_groups={"group_0": scheme}, ignore=["lm_head"])
    oneshot(model=model, recipe=recipe, **options)
    model.save_pretrained(out, save_compressed=True)


def calibration(source):
    """静态的激活缩放要校准：几段随意的 ids 就够。"""
    from datasets import Dataset
    ids = [[(7 * i + 13 * j) % 4096 for j in range(64)] for i in range(4)]
    return {"dataset": Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * 64] * 4}), "num_calibration_samples": 4,
            "max_seq_length": 64, "tokenizer": AutoTokenizer.from_pretrained(source)}


def weights_only(bits, group, symmetric, strategy="group", kind="int"):
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    return QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(
        num_bits=bits, type=kind, strategy=strategy, group_size=group, symmetric=symmetric))


def auto_round(source, out, form, bits, group, symmetric):
    from auto_round import AutoRound
    model, tokenizer = dense(source, torch.bfloat16), AutoTokenizer.from_pretrained(source)
    made = AutoRound(model, tokenizer, scheme=f"W{bits}A16", bits=bits, group_size=group, sym=symmetric, iters=0,
                     disable_opt_rtn=True, device_map="cpu")
    made.quantize_and_save(out, format=form)


def hqq(source, out, bits, group):
    """transformers 的 HqqHfQuantizer 不许 CPU，这里直接用 hqq 的 HQQLinear，存成同样的名字。"""
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
    model = dense(source)
    state = {}
    options = BaseQuantizeConfig(nbits=bits, group_size=group, axis=1)
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            layer = HQQLinear(module, options, compute_dtype=torch.float32, device="cpu", del_orig=False)
            state.update({f"{name}.{k}": v.contiguous() for k, v in layer.state_dict().items()
                          if isinstance(v, torch.Tensor)})
    packed = {k.rsplit(".", 1)[0] for k in state}
    for k, v in model.state_dict().items():
        if k.rsplit(".", 1)[0] not in packed and not (k == "lm_head.weight" and model.config.tie_word_embeddings):
            state[k] = v.contiguous().clone()
    os.makedirs(out, exist_ok=True)
    save_file(state, os.path.join(out, "model.safetensors"), metadata={"format": "pt"})
    config = AutoConfig.from_pretrained(source).to_dict()
    config["quantization_config"] = {"quant_method": "hqq", "quant_config": options, "skip_modules": ["lm_head"]}
    with open(os.path.join(out, "config.json"), "w") as f:
        json.dump(config, f, default=str)


BF = torch.float32
KINDS = {
    "bnb-nf4": lambda s, o: bitsandbytes(s, o, load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=BF),
    "bnb-nf4-double": lambda s, o: bitsandbytes(s, o, load_in_4bit=True, bnb_4bit_quant_type="nf4",
                                                bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=BF),
    "bnb-fp4": lambda s, o: bitsandbytes(s, o, load_in_4bit=True, bnb_4bit_quant_type="fp4", bnb_4bit_compute_dtype=BF),
    "bnb-int8": lambda s, o: bitsandbytes(s, o, load_in_8bit=True),
    "ct-w4a16": lambda s, o: compressed(s, o, weights_only(4, 32, True)),
    "ct-w4a16-asym": lambda s, o: compressed(s, o, weights_only(4, 32, False)),
    "ct-w3a16": lambda s, o: compressed(s, o, weights_only(3, 32, True)),
    "ct-w8a16": lambda s, o: compressed(s, o, weights_only(8, None, True, "channel")),
    "ct-w8a8": lambda s, o: compressed(s, o, "W8A8"),
    "ct-w4a8": lambda s, o: compressed(s, o, "W4A8"),
    "ct-fp8": lambda s, o: compressed(s, o, weights_only(8, None, True, "channel", "float")),
    "ct-fp8-tensor": lambda s, o: compressed(s, o, weights_only(8, None, True, "tensor", "float")),
    "ct-fp8-dynamic": lambda s, o: compressed(s, o, "FP8_DYNAMIC"),
    "ct-fp8-block": lambda s, o: compressed(s, o, "FP8_BLOCK"),
    "ct-fp8-static": lambda s, o: compressed(s, o, "FP8", **calibration(s)),
    "gptq-sym": lambda s, o: auto_round(s, o, "auto_gptq", 4, 32, True),
    "gptq-asym": lambda s, o: auto_round(s, o, "auto_gptq", 4, 32, False),
    "gptq-w2": lambda s, o: auto_round(s, o, "auto_gptq", 2, 32, False),
    "gptq-w8": lambda s, o: auto_round(s, o, "auto_gptq", 8, 32, True),
    "awq": lambda s, o: auto_round(s, o, "auto_awq", 4, 32, False),
    "hqq-w4": lambda s, o: hqq(s, o, 4, 64),
    "hqq-w3": lambda s, o: hqq(s, o, 3, 64),
    "hqq-w2": lambda s, o: hqq(s, o, 2, 64),
    "hqq-w8": lambda s, o: hqq(s, o, 8, 64),
}


def make(kind, source, out):
    try:
        KINDS[kind](source, out)
    except ImportError as error:
        print(f"跳过 {kind}：{error}", file=sys.stderr)
        return False
    if not os.path.exists(os.path.join(out, "config.json")):  # auto-round 另建一层文件夹
        inner = next(d.path for d in os.scandir(out) if d.is_dir())
        for name in os.listdir(inner):
            shutil.move(os.path.join(inner, name), os.path.join(out, name))
        os.rmdir(inner)
    copy_side_files(source, out)
    return True


if __name__ == "__main__":
    torch.set_num_threads(2)
    for name in sys.argv[3:] or KINDS:
        print(name, make(name, sys.argv[1], os.path.join(sys.argv[2], name)))
