#!/usr/bin/env python3
"""make_gguf_blocks — 生成 tests/data/gguf_blocks.gguf 与其解码结果 gguf_blocks.safetensors

用官方的 gguf 与 safetensors 两个 Python 包写出，作 dtype_decode 与两种文件读取的独立对照：
随机字节组成的块，解码结果取自 gguf.quants.dequantize。用法: python3 tests/tools/make_gguf_blocks.py
大量的随机块: python3 tests/tools/make_gguf_blocks.py --out /tmp/blocks --rows 2000 --seed 1
              PTQ_GGUF_BLOCKS=/tmp/blocks build/tests/unit/test_dtype
"""
import argparse
import pathlib

import gguf
import numpy as np
from gguf.quants import dequantize
from safetensors.numpy import save_file

p = argparse.ArgumentParser()
p.add_argument("--out")
p.add_argument("--rows", type=int, default=2)
p.add_argument("--seed", type=int, default=20260101)
a = p.parse_args()
DATA = pathlib.Path(__file__).resolve().parent.parent / "data"
OUT = a.out or str(DATA / "gguf_blocks")
T = gguf.GGMLQuantizationType
# 类型 → 块内 F16 比例因子的字节位置
HALVES = {T.Q8_0: [0], T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2],
          T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208], T.Q2_K: [80, 82], T.Q3_K: [108], T.IQ1_S: [0], T.IQ1_M: [],
          T.IQ2_XXS: [0], T.IQ2_XS: [0], T.IQ2_S: [0], T.IQ3_XXS: [0], T.IQ3_S: [0], T.IQ4_NL: [0], T.IQ4_XS: [0], T.TQ1_0: [52],
          T.TQ2_0: [64], T.MXFP4: [], T.NVFP4: []}
rng = np.random.default_rng(a.seed)
writer = gguf.GGUFWriter(OUT + ".gguf", "llama")
writer.add_uint8("test.u8", 200)
writer.add_int8("test.i8", -100)
writer.add_uint16("test.u16", 60000)
writer.add_int16("test.i16", -30000)
writer.add_uint32("test.u32", 4000000000)
writer.add_int32("test.i32", -2000000000)
writer.add_uint64("test.u64", 9000000000000000000)
writer.add_int64("test.i64", -9000000000000000000)
writer.add_float32("test.f32", 0.1)
writer.add_float64("test.f64", 0.1)
writer.add_bool("test.bool", True)
writer.add_string("test.string", "量化")
writer.add_array("test.ints", [1, -2, 3])
writer.add_array("test.floats", [0.5, -1.5])
writer.add_array("test.strings", ["甲", "", "c"])
expected = {}


def add(name, raw, kind, shape, value):
    writer.add_tensor(name, raw, raw_shape=shape, raw_dtype=kind)
    expected[name] = np.ascontiguousarray(value, dtype=np.float32)


for kind, halves in HALVES.items():
    elems, size = gguf.GGML_QUANT_SIZES[kind]
    rows, cols = (a.rows, 2) if elems == 256 else (a.rows, 4)
    blocks = rng.integers(0, 256, (rows * cols, size), dtype=np.uint8)
    for at in halves:
        half = rng.standard_normal(rows * cols).astype(np.float16)
        half[:4] = np.array([6e-8, -65504, 0, -0.0], dtype=np.float16)  # 次正规、最大、正负零
        blocks[:, at:at + 2] = half.view(np.uint8).reshape(-1, 2)
    if kind == T.IQ1_M:  # f16 拆在 4 个字的高 4 位里：不取 Inf、NaN
        blocks[:, 55] &= 0xBF
    if kind == T.NVFP4:
        blocks[:, :4] &= 0x7F
    raw = blocks.reshape(rows, cols * size)
    add(kind.name, raw, kind, raw.shape, dequantize(raw, kind))
plain = rng.standard_normal((5, 7))
add("F32", plain.astype(np.float32), T.F32, None, plain.astype(np.float32))
add("F16", plain.astype(np.float16), T.F16, None, plain.astype(np.float16))
add("F64", plain, T.F64, None, plain)
bf16 = rng.integers(0, 0x7F80, (5, 7), dtype=np.uint16)
raw = bf16.view(np.uint8).reshape(5, 14)
add("BF16", raw, T.BF16, raw.shape, dequantize(raw, T.BF16))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
save_file(expected, OUT + ".safetensors", metadata={"format": "np"})
