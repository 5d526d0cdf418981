"""折叠通道因子的方法 × 每个家族：要么跑得通（与不量化的 KL 同就近取整一个量级），要么拒绝并说清缘由（make test-families 的第二步）。

    family_methods.py 程序 families.py造的文件夹 [名字的正则]

每个变体配一个按字节的分词器（ptq-bench synth 造的），校准与评测都在一段文字上。随机的权重没有冗余，也没有离群的通道，这些方法占不到便宜；
再把就近取整的结果导出成各格式、装回来，logits 须逐位相同（GGUF 的设置以 float32 存，相差不到 1e-5）。尺子是同一变体、同样位宽的就近取整：KL 不得大过它的三倍（静态的激活六倍：专家的取舍可能因一处取整而翻转）。打印一张表（单元格是 KL 的比值），末列是拒绝的缘由。
"""
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy

PTQ, FAMILIES, ONLY = Path(sys.argv[1]).resolve(), Path(sys.argv[2]), re.compile(sys.argv[3] if len(sys.argv) > 3 else "")
TEXT = "".join(f"The {w} number {i} runs over the {w * 2} dog, and {i * 7919 % 997} birds sing.\n" for i, w in
               enumerate(["quick", "brown", "lazy", "small", "green", "old"] * 60))
CALIB = ["calibration.samples=32", "calibration.length=32"]
W4, W8, INT8 = ["weight.w_bits=4"], ["weight.w_bits=8"], ["activation.scheme=per_token", "weight.granularity=per_channel"]
# 列: (方法, 轨道, 设置, 尺子的设置)
COLUMNS = {"awq W8": ("awq", "A", W8, W8), "awq W4": ("awq", "A", W4, W4), "smoothquant": ("smoothquant", "B", [], W8 + INT8),
           "smoothquant 静态": ("smoothquant", "B", ["activation.scheme=static"], W8 + INT8), "omniquant W4": ("omniquant", "A", W4 + ["omniquant.epochs=1"], W4)}
FORMATS, IDS = ("gptq", "awq", "compressed-tensors", "hf-dequantized", "gguf"), "5,9,13,77,200,31,8,150,6,91"
WITHIN = 8  # GGUF 里有的架构没有窗口：只比窗口之内的位置
REFUSALS, TIMES = ("不支持", "无处可折"), {"smoothquant 静态": 6}


def kl(model, method, track, settings, text):
    """返回 (KL, 错误)。"""
    command = [PTQ, "run_one", "--model", model, "--method", method, "--track", track, "--limit", "8", "--json", "--quiet",
               "--results", text.parent / "results"]
    for s in ["dtype=float32", "compute=float32", "eval.speed=false", f"eval.ppl_datasets=['{text}']", "eval.ppl_protocol=gptq-32",
              f"data_dir='{text.parent}'", *([f"calibration.dataset='{text}'", *CALIB] if method != "rtn" else []),
              *(["weight.group_size=32"] if track == "A" else []), *settings]:
        command += ["--override", s]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "❌" in line]
        return None, lines[0].split("❌ ")[-1] if lines else done.stderr
    return next(iter(json.loads(done.stdout)["results"]["ppl"].values()))["baseline"]["kl"]["mean"], ""


def logits(model, method, settings, out):
    command = [PTQ, "logits", "--model", model, "--method", method, "--ids", IDS, "--output", out]
    for s in ["dtype=float32", "compute=float32", *settings]:
        command += ["--override", s]
    done = subprocess.run(command, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stderr.strip()


def same(form, back, want):
    if form != "gguf":
        return back.read_bytes() == want.read_bytes()
    x, y = numpy.load(back)[:WITHIN], numpy.load(want)[:WITHIN]
    return abs(x - y).max() <= 1e-5 * abs(y).max()


def exports(model):
    """就近取整的结果导出成各格式再装回来，logits 逐位相同；写不下的说清缘由。返回 (单元格, 失败的个数)。"""
    settings = ["weight.group_size=32", "weight.scale_dtype=float16"]
    want, back = model.parent / "want.npy", model.parent / "back.npy"
    why = logits(model, "rtn", settings, want)
    done, failed = [], [f"rtn {why}"] if why else []
    for form in FORMATS:
        out = model.parent / ("export.gguf" if form == "gguf" else "export")
        command = [PTQ, "export", "--model", model, "--method", "rtn", "--format", form, "--out", out, "--quiet", "--override",
                   "dtype=float32"]
        for s in settings:
            command += ["--override", s]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            if "格式" not in run.stderr and "GGUF" not in run.stderr:
                failed.append(f"{form} {run.stderr.strip()}")
            continue
        why = logits(out, "fp16" if form in ("hf-dequantized", "gguf") else "pretrained:" + form, [], back)
        if not why and same(form, back, want):
            done.append(form)
        else:
            failed.append(f"{form} {why or 'logits 不同'}")
        out.unlink() if form == "gguf" else shutil.rmtree(out)
    return "、".join(done) + "".join(f" **❌ {f}**" for f in failed), len(failed)


def variant(model, text):
    """一个变体的一行。返回: 失败的个数。"""
    cells, reasons, failed, ruler = [], {}, 0, {}
    for column, (method, track, settings, plain) in COLUMNS.items():
        key = (track, *plain)
        if key not in ruler:
            ruler[key], why = kl(model, "rtn", track, plain, text)
            if why:
                sys.exit(f"❌ {model.name}：rtn {why}")
        got, why = kl(model, method, track, settings, text)
        if why:
            ok = any(r in why for r in REFUSALS)
            reasons.setdefault(method, why if not ok else why.split("：")[-1].split("；")[0])
            cells.append("拒绝" if ok else "**❌**")
        else:
            times = got / ruler[key]
            ok = 0 <= times <= TIMES.get(column, 3)
            cells.append(f"{times:.2f}" + ("" if ok else " **❌**"))
        failed += not ok
    exported, bad = exports(model)
    failed += bad
    cells.append(exported)
    print(f"| {model.name} | " + " | ".join(cells) + " | " + "；".join(f"{m}：{w}" for m, w in reasons.items()) + " |", flush=True)
    return failed


def main():
    failed = count = 0
    with tempfile.TemporaryDirectory(prefix="ptq-families-") as work:
        work = Path(work)
        subprocess.run([PTQ, "synth", "--like", "smollm2-135m", "--layers", "1", "--output", work / "bytes", "--quiet"], check=True)
        tokenizer = json.loads((work / "bytes/tokenizer.json").read_text())
        tokenizer["added_tokens"] = []  # 词表正好 256
        tokenizer["model"]["vocab"] = {k: v for k, v in tokenizer["model"]["vocab"].items() if v < 256}
        text = work / "text.txt"
        text.write_text(TEXT)
        print("| 变体 | " + " | ".join(COLUMNS) + " | 导出再装回逐位相同 | 拒绝的缘由 |\n|---|" + "---:|" * len(COLUMNS) + "---|---|", flush=True)
        for folder in sorted(FAMILIES.iterdir()):
            if not ONLY.search(folder.name) or not (folder / "config.json").exists():
                continue
            model = work / folder.name
            shutil.copytree(folder, model)
            (model / "tokenizer.json").write_text(json.dumps(tokenizer))
            failed += variant(model, text)
            count += len(COLUMNS) + len(FORMATS)
            shutil.rmtree(model)
    print(f"{count - failed} passed, {failed} failed")
    sys.exit(failed > 0)


main()
