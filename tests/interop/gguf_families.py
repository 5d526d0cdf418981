"""每个家族的随机小模型（tests/tools/families.py）导出成 GGUF，llama.cpp（llama-cpp-python）的 logits 与本程序装回来的对照；写不成的说清缘由。

用法: gguf_families.py 程序 families.py造的文件夹 [--only 正则（名字是 gguf-变体）] [--llama-blas]
矩阵都写成 F16（8 位非对称，放不进块）。装回来与量化后、导出前的相差是 F16 舍入一次（BACK）。平常的 llama.cpp 把矩阵乘的输入也舍入到
F16（ROUNDED）；以 BLAS 相乘的不舍入，专家的矩阵乘与 gelu 的 f16 表除外（EXACT 只用于其余的）。键值缓存用 F32。
"""
import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy
from llama_cpp import Llama

SETTINGS = ["weight.w_bits=8", "weight.scheme=asymmetric", "weight.group_size=32"]
N, BACK, ROUNDED, EXACT = 48, 5e-3, 5e-3, 1e-5
COARSE = re.compile("gemma|gpt2|gpt_neox|bloom|falcon|starcoder2|mixtral|moe")
EXPERTS = re.compile("mixtral|moe")  # 舍入一次就可能换了专家：取各位置的中位数
# 写不成的：llama.cpp 没有，或它的元数据说不出
REFUSED = {"deepseek_v3", "deepseek_v3-plain", "deepseek_v3-yarn", "opt", "opt-350m", "opt-nobias", "opt-removed", "llama-dynamic",
           "llama-gelu", "llama-yarn-mscale", "qwen3-bias", "gemma2", "gemma2-nocap", "gemma3", "gpt2-inner", "gpt2-unscaled",
           "gpt_neox-serial", "gpt_neox-nobias", "bloom-6heads", "falcon-rw", "falcon-alibi6", "qwen3_moe", "qwen3_moe-mixed",
           "olmoe", "olmoe-norm", "olmo2-bias", "starcoder2-nobias", "cohere-qknorm", "cohere2"}


class Runner:
    def __init__(self, args, work):
        self.args, self.work, self.failed, self.passed = args, work, 0, 0
        subprocess.run([args.binary, "synth", "--like", "smollm2-135m", "--layers", "1", "--output", work / "bytes", "--quiet"], check=True)
        tokenizer = json.loads((work / "bytes/tokenizer.json").read_text())  # 按字节，词表正好 256
        tokenizer["added_tokens"] = []
        tokenizer["model"]["vocab"] = {k: v for k, v in tokenizer["model"]["vocab"].items() if v < 256}
        self.tokenizer = json.dumps(tokenizer)
        self.ids = numpy.random.default_rng(0).integers(0, 256, N).tolist()

    def count(self, ok, text):
        self.passed += ok
        self.failed += not ok
        print(f"{'✅' if ok else '❌'} {text}", flush=True)

    def logits(self, model, method, settings=()):
        command = [self.args.binary, "logits", "--model", model, "--method", method, "--ids", ",".join(map(str, self.ids)), "--output",
                   self.work / "logits.npy"]
        for s in ("dtype=float32", "compute=float32", *settings):
            command += ["--override", s]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr.strip())
        return numpy.load(self.work / "logits.npy").reshape(N, -1)

    def llama_cpp(self, path):
        model = Llama(str(path), n_ctx=N, n_batch=64, n_ubatch=64, logits_all=True, n_threads=2, n_threads_batch=2, type_k=0, type_v=0,
                      verbose=False)
        model.eval(self.ids)
        out = numpy.array(model.scores[:N])
        window = int(model.metadata[model.metadata["general.architecture"] + ".context_length"])
        model.close()
        return out, window

    def variant(self, folder):
        model, out = self.work / "model", self.work / "model.gguf"
        shutil.rmtree(model, ignore_errors=True)
        out.unlink(missing_ok=True)
        shutil.copytree(folder, model)
        (model / "tokenizer.json").write_text(self.tokenizer)
        command = [self.args.binary, "export", "--model", model, "--method", "rtn", "--format", "gguf", "--out", out, "--quiet"]
        for s in ["dtype=float32", *SETTINGS]:
            command += ["--override", s]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            why = done.stderr.strip().split("❌ ")[-1]
            self.count(folder.name in REFUSED and "GGUF" in why and not out.exists(), f"{folder.name} 拒绝：{why.split(': ', 1)[-1]}")
            return
        before, back = self.logits(model, "rtn", SETTINGS), self.logits(out, "fp16")
        theirs, window = self.llama_cpp(out)
        exact = self.args.llama_blas and not COARSE.search(folder.name)
        middle = numpy.median if EXPERTS.search(folder.name) else numpy.max
        apart = [middle((abs(x - y).max(-1) / abs(y).max(-1))[:n]) for x, y, n in ((back, before, window), (theirs, back, N))]
        self.count(folder.name not in REFUSED and apart[0] <= BACK and apart[1] <= (EXACT if exact else ROUNDED),
                   f"{folder.name}：装回 {apart[0]:.1e}，llama.cpp {apart[1]:.1e}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary", type=lambda p: Path(p).resolve())
    parser.add_argument("families", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--llama-blas", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ptq-gguf-") as work:
        runner = Runner(args, Path(work))
        for folder in sorted(args.families.iterdir()):
            if re.search(args.only, "gguf-" + folder.name) and (folder / "config.json").exists():
                try:
                    runner.variant(folder)
                except Exception as error:  # 一个失败不妨碍其余的
                    runner.count(False, f"{folder.name}：{error}")
    print(f"📋 GGUF 的各家族：通过 {runner.passed}，失败 {runner.failed}")
    sys.exit(runner.failed > 0)


if __name__ == "__main__":
    main()
