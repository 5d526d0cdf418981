"""make test-interop：与真实的工具来回。

去：本程序导出的文件夹由别的程序装入，困惑度相差不到 0.1 %，再由本程序以 pretrained:… 装回。
来：别的工具写的检查点由本程序装入，困惑度与它自己反量化后的相差不到 0.1 %。
没有装的工具跳过。用法: run.py --binary build/ptq-bench [--source 文件夹] [--text 文件] [--only 正则]
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

import torch

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from make_checkpoints import KINDS, make  # noqa: E402
from ppl_of_export import perplexity  # noqa: E402

WINDOW, COUNT = 256, 2
METHOD = {"bnb": "bitsandbytes", "ct": "compressed-tensors", "gptq": "gptq", "awq": "awq", "hqq": "hqq"}
CALIB = ["calibration.samples=4", "calibration.length=128"]
GROUP = ["weight.group_size=32", "weight.scale_dtype=float16"]
# 名字: (方法, 轨道, 格式, 设置, 容差)
EXPORTS = {
    "rtn-gptq": ("rtn", "A", "gptq", GROUP + ["weight.scheme=asymmetric"], 1e-3),
    "rtn-gptq-w3": ("rtn", "A", "gptq", GROUP + ["weight.w_bits=3"], 1e-3),
    "gptq-act-order": ("gptq", "A", "gptq", GROUP + CALIB + ["gptq.act_order=true"], 1e-3),
    "awq-awq": ("awq", "A", "awq", GROUP + CALIB, 1e-3),
    "rtn-awq": ("rtn", "A", "awq", GROUP + ["weight.scheme=asymmetric"], 1e-3),
    "rtn-ct": ("rtn", "A", "compressed-tensors", GROUP, 1e-3),
    "smoothquant-ct": ("smoothquant", "B", "compressed-tensors", CALIB, 3e-3),  # 那边的激活缩放是 max/127.5
    "rtn-dense": ("rtn", "A", "hf-dequantized", GROUP + ["weight.scheme=asymmetric"], 1e-3),
}
# 激活也取整的：那边的激活取整与这里不全同（FP8 这里不做）
LOOSE = {"ct-w8a8": 5e-3, "ct-fp8-dynamic": 5e-3}


class Runner:
    def __init__(self, args, work):
        self.args, self.work, self.failed, self.passed, self.skipped = args, work, 0, 0, 0

    def ptq(self, *command):
        out = subprocess.run([self.args.binary, *command], capture_output=True, text=True)
        if out.returncode:
            raise RuntimeError(out.stderr.strip().splitlines()[-1])
        return out.stdout

    def ours(self, model, method, track="A", settings=()):
        command = ["run_one", "--model", model, "--method", method, "--track", track, "--limit", str(COUNT), "--results",
                   os.path.join(self.work, "results"), "--json", "--quiet"]
        for s in ("eval.speed=false", f"eval.ppl_datasets=['{self.args.text}']", f"eval.ppl_protocol=gptq-{WINDOW}",
                  "dtype=float32", "eval.baseline=off", *settings):
            command += ["--override", s]
        result = json.loads(self.ptq(*command))
        return next(iter(result["results"]["ppl"].values()))["ppl"]

    def compare(self, name, theirs, ours, tolerance):
        ok = abs(theirs - ours) <= tolerance * ours
        self.passed += ok
        self.failed += not ok
        print(f"{'✅' if ok else '❌'} {name}：它 {theirs:.6f}，本程序 {ours:.6f}（相差 {abs(theirs / ours - 1):.1e}）", flush=True)

    def export(self, name):
        method, track, form, settings, tolerance = EXPORTS[name]
        out = os.path.join(self.work, name)
        command = ["export", "--model", self.args.source, "--method", method, "--track", track, "--format", form, "--out", out,
                   "--quiet", "--override", "dtype=float32"]
        for s in settings:
            command += ["--override", s]
        self.ptq(*command)
        ours = self.ours(self.args.source, method, track, settings)
        self.compare(f"导出 {name}", perplexity(out, self.args.text, WINDOW, COUNT), ours, tolerance)
        if form != "hf-dequantized":
            self.compare(f"装回 {name}", self.ours(out, "pretrained:" + form, track), ours, tolerance)
        shutil.rmtree(out)

    def checkpoint(self, name):
        out = os.path.join(self.work, name)
        if not make(name, self.args.source, out):
            self.skipped += 1
            return
        method = "pretrained:" + METHOD[name.split("-")[0]]
        self.compare(f"检查点 {name}", perplexity(out, self.args.text, WINDOW, COUNT), self.ours(out, method),
                     LOOSE.get(name, 1e-3))
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
