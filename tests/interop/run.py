"""make test-interop：与真实的工具来回。

去：本程序导出的文件夹由别的程序装入，困惑度相差不到 0.1 %，再由本程序以 pretrained:… 装回。
来：别的工具写的检查点由本程序装入，困惑度与它自己反量化后的相差不到 0.1 %。
激活也取整的（ROUNDED）：取整把 1e-7 的差变成一整格的差，那边自己换一种浮点次序，两个窗口的困惑度也差 0.3 %；故取
64 个窗口，容差不变，另比较 logits：没有碰上这种位置的应当相同，取各位置相对差的中位数。
llama.cpp 在 CPU 上把量化的矩阵乘的输入取整到 8 位，容差放宽；--llama-blas 说明装的是以 BLAS 相乘的（先反量化成 float32）。
没有装的工具跳过。用法: run.py --binary build/ptq-bench [--source 文件夹] [--text 文件] [--only 正则] [--llama-blas]
"""
import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import traceback

import numpy
import torch

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from make_checkpoints import KINDS, make  # noqa: E402
from ppl_of_export import llama_cpp_perplexity, logits, perplexity, token_ids  # noqa: E402

WINDOW, COUNT, MANY = 256, 2, 64
PROMPTS, PROMPT, CLOSE = 48, 4, 1e-5  # 比较 logits 的几段、每段的长度（短，一处取整的不同就不传给许多位置）、中位数的容差
METHOD = {"bnb": "bitsandbytes", "ct": "compressed-tensors", "gptq": "gptq", "awq": "awq", "hqq": "hqq"}
CALIB = ["calibration.samples=4", "calibration.length=128"]
GROUP = ["weight.group_size=32", "weight.scale_dtype=float16"]
# 名字: (方法, 轨道, 格式, 设置)
EXPORTS = {
    "rtn-gptq": ("rtn", "A", "gptq", GROUP + ["weight.scheme=asymmetric"]),
    "rtn-gptq-w3": ("rtn", "A", "gptq", GROUP + ["weight.w_bits=3"]),
    "gptq-act-order": ("gptq", "A", "gptq", GROUP + CALIB + ["gptq.act_order=true"]),
    "awq-awq": ("awq", "A", "awq", GROUP + CALIB),
    "rtn-awq": ("rtn", "A", "awq", GROUP + ["weight.scheme=asymmetric"]),
    "rtn-ct": ("rtn", "A", "compressed-tensors", GROUP),
    "smoothquant-ct": ("smoothquant", "B", "compressed-tensors", CALIB),
    "rtn-gguf-q4_0": ("rtn", "A", "gguf", GROUP),
    "rtn-gguf-q4_1": ("rtn", "A", "gguf", GROUP + ["weight.scheme=asymmetric"]),
    "rtn-gguf-q8_0": ("rtn", "A", "gguf", GROUP + ["weight.w_bits=8"]),
    "rtn-gguf-f16": ("rtn", "A", "gguf", ["weight.group_size=48", "weight.scale_dtype=float16"]),
    "rtn-dense": ("rtn", "A", "hf-dequantized", GROUP + ["weight.scheme=asymmetric"]),
}
TOLERANCE = 1e-3
LLAMA_CPP = {"rtn-gguf-f16": 1e-3, "rtn-gguf-q8_0": 1e-2, "rtn-gguf-q4_0": 1e-2, "rtn-gguf-q4_1": 1e-2}  # 量化的块它连激活也取整到 8 位
ROUNDED = {"smoothquant-ct", "ct-w8a8", "ct-w4a8", "ct-fp8-dynamic", "ct-fp8-block", "ct-fp8-static", "bnb-int8"}


class Runner:
    def __init__(self, args, work):
        self.args, self.work, self.failed, self.passed, self.skipped = args, work, 0, 0, 0

    def ptq(self, *command):
        out = subprocess.run([self.args.binary, *command], capture_output=True, text=True)
        if out.returncode:
            raise RuntimeError(out.stderr.strip().splitlines()[-1])
        return out.stdout

    def ours(self, model, method, count, track="A", settings=()):
        command = ["run_one", "--model", model, "--method", method, "--track", track, "--limit", str(count), "--results",
                   os.path.join(self.work, "results"), "--json", "--quiet"]
        for s in ("eval.speed=false", f"eval.ppl_datasets=['{self.args.text}']", f"eval.ppl_protocol=gptq-{WINDOW}",
                  "dtype=float32", "eval.baseline=off", *settings):
            command += ["--override", s]
        result = json.loads(self.ptq(*command))
        return next(iter(result["results"]["ppl"].values()))["ppl"]

    def compare(self, name, theirs, ours, tolerance=TOLERANCE):
        self.count(abs(theirs - ours) <= tolerance * ours,
                   f"{name}：它 {theirs:.6f}，本程序 {ours:.6f}（相差 {abs(theirs / ours - 1):.1e}）")

    def count(self, ok, text):
        self.passed += ok
        self.failed += not ok
        print(f"{'✅' if ok else '❌'} {text}", flush=True)

    def compare_logits(self, name, folder, method):
        ids = token_ids(folder, self.args.text).tolist()
        prompts = [ids[i * WINDOW: i * WINDOW + PROMPT] for i in range(PROMPTS)]
        apart, out = [], os.path.join(self.work, "logits.npy")
        for prompt, theirs in zip(prompts, logits(folder, prompts)):
            self.ptq("logits", "--model", folder, "--method", method, "--ids", ",".join(map(str, prompt)), "--output", out,
                     "--override", "dtype=float32")
            ours = torch.from_numpy(numpy.load(out))
            apart.append((ours - theirs).abs().amax(-1) / theirs.abs().amax(-1))
        middle = torch.cat(apart).median().item()
        self.count(middle <= CLOSE, f"{name} 的 logits：{PROMPTS * PROMPT} 个位置，相对差的中位数 {middle:.1e}")

    def export(self, name):
        method, track, form, settings = EXPORTS[name]
        count = MANY if name in ROUNDED else COUNT
        out = os.path.join(self.work, name + (".gguf" if form == "gguf" else ""))
        command = ["export", "--model", self.args.source, "--method", method, "--track", track, "--format", form, "--out", out,
                   "--quiet", "--override", "dtype=float32"]
        for s in settings:
            command += ["--override", s]
        self.ptq(*command)
        ours = self.ours(self.args.source, method, count, track, settings)
        self.compare(f"导出 {name}", perplexity(out, self.args.text, WINDOW, count, name in ROUNDED), ours)
        if form == "gguf":
            back = self.ours(out, "fp16", count)
            self.compare(f"装回 {name}", back, ours)
            self.llama_cpp(name, out, back, count)
        elif form != "hf-dequantized":
            self.compare(f"装回 {name}", self.ours(out, "pretrained:" + form, count, track), ours)
        if name in ROUNDED:
            self.compare_logits(f"导出 {name}", out, "pretrained:" + form)
        os.remove(out) if form == "gguf" else shutil.rmtree(out)

    def llama_cpp(self, name, path, ours, count):
        try:
            theirs = llama_cpp_perplexity(path, self.args.text, WINDOW, count)
        except ImportError:
            self.skipped += 1
            return
        self.compare(f"llama.cpp {name}", theirs, ours, TOLERANCE if self.args.llama_blas else LLAMA_CPP[name])

    def checkpoint(self, name):
        out = os.path.join(self.work, name)
        if not make(name, self.args.source, out):
            self.skipped += 1
            return
        method, count = "pretrained:" + METHOD[name.split("-")[0]], MANY if name in ROUNDED else COUNT
        self.compare(f"检查点 {name}", perplexity(out, self.args.text, WINDOW, count, name in ROUNDED), self.ours(out, method, count))
        if name in ROUNDED:
            self.compare_logits(f"检查点 {name}", out, method)
        shutil.rmtree(out)

    def each(self, names, function):
        for name in names:
            if not re.search(self.args.only, name):
                continue
            try:
                function(name)
            except Exception as error:  # 一个失败不妨碍其余的
                self.failed += 1
                print(f"❌ {name}：{error}", flush=True)
                traceback.print_exc(limit=3)


def main():
    root = os.path.abspath(os.path.join(os.path.dirname(__file__), "../.."))
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", required=True)
    parser.add_argument("--source", default=os.path.join(root, "data/raw/demo/model"))
    parser.add_argument("--text", default=os.path.join(root, "data/raw/demo/text/test.txt"))
    parser.add_argument("--only", default="")
    parser.add_argument("--llama-blas", action="store_true")
    args = parser.parse_args()
    args.binary, args.source, args.text = map(os.path.abspath, (args.binary, args.source, args.text))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory(prefix="ptq-interop-") as work:
        runner = Runner(args, work)
        runner.each(EXPORTS, runner.export)
        runner.each(KINDS, runner.checkpoint)
    print(f"📋 通过 {runner.passed}，失败 {runner.failed}，跳过 {runner.skipped}")
    sys.exit(runner.failed > 0)


if __name__ == "__main__":
    main()
