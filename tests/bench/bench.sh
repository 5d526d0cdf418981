#!/usr/bin/env bash
# bench — 与 transformers、llama.cpp、机器峰值并排测 SmolLM2 的困惑度评测速度（make bench 调用）
#
# 各家轮流跑 REPS 遍（同一段时间、同样的忙闲），取中位数；同行缺了哪个就跳过那一行。
# 环境: MODEL=模型.gguf（默认 data/raw/ 下由 prepare_data 取得的）  TEXT=wikitext2 测试文本
#       PYTHON=带 torch、transformers 的解释器  HF=SmolLM2 的 HF 文件夹（缺则用 PYTHON 转换出来）
#       LLAMA=llama.cpp 的前缀（其下 bin/llama-perplexity）  PTQ_SHARED=带 peers/ 的文件夹
#       THREADS=2  WINDOWS=8  REPS=3
set -u
export LC_ALL=C.UTF-8
cd "$(dirname "$0")/../.." || exit 2
out=$PWD/build/bench
mkdir -p "$out"
shared=${PTQ_SHARED:-../shared}
threads=${THREADS:-2} windows=${WINDOWS:-8} reps=${REPS:-3} ctx=2048
peers=$shared/peers
model=${MODEL:-$(find data/raw/smollm2-135m-instruct -name '*.gguf' 2>/dev/null | head -n 1)}
text=${TEXT:-$shared/data/text/wikitext2.test.raw.txt}
hf=${HF:-$out/smol-hf}
json_get=build/tests/tools/json_get
rows=$out/rows.tsv
: >"$rows"

note() { echo "⚠️ 跳过 $1：$2" >&2; }
if [ -z "$model" ] || [ ! -e "$model" ]; then
    echo "❌ 没有 SmolLM2：先运行 scripts/prepare_data.sh --model smollm2-135m-instruct，或给出 MODEL=文件.gguf" >&2
    exit 1
fi
if [ ! -e "$text" ]; then
    echo "❌ 没有 wikitext2 的测试文本：给出 TEXT=文件" >&2
    exit 1
fi

# 记一次测量: 谁 类型 tok/s 每CPU秒tok 峰值MiB PPL
row() {
    printf '%s\t%s\t%s\t%s\t%s\t%s\n' "$@" >>"$rows"
    printf '⏱️ %s %s：%.0f tok/s，%.0f tok/CPU·s，峰值 %s MiB，PPL %s\n' "$@" >&2
}

ours() { # dtype
    local name=$1 t wall user sys
    TIMEFORMAT='%R %U %S'
    { time build/ptq-bench run_one --model "$model" --method fp16 --track A --threads "$threads" \
        --limit "$windows" --quiet --json --results "$out/results" \
        --override "dtype=$name" --override "compute=$name" \
        --override "eval.ppl_datasets=['$(realpath "$text")']" \
        --override "eval.ppl_protocol=gptq-$ctx" --override eval.kl_windows=0 \
        --override eval.speed=false >"$out/ours.json" 2>"$out/ours.log"; } 2>"$out/ours.time"
    if ! t=$($json_get "$out/ours.json" 'results.ppl.*.tok_per_s'); then
        note "ptq-bench $name" "$(tail -n 1 "$out/ours.log")"
        return
    fi
    read -r wall user sys <"$out/ours.time"
    row ptq-bench "$name" "$t" \
        "$(awk -v n=$((windows * ctx)) -v c="$user" -v s="$sys" 'BEGIN{print n/(c+s)}')" \
        "$(awk -v b="$($json_get "$out/ours.json" results.system_metrics.rss_peak_mb)" 'BEGIN{printf "%.0f", b*1e6/1048576}')" \
        "$($json_get "$out/ours.json" 'results.ppl.*.ppl')"
}

transformers() { # dtype
    local line
    if ! "${PYTHON:-python3}" -c 'import torch, transformers' 2>/dev/null; then
        note "transformers $1" "PYTHON=${PYTHON:-python3} 里没有 torch 与 transformers"
        return
    fi
    if [ ! -e "$peers/bench_transformers.py" ]; then
        note "transformers $1" "没有 $peers/bench_transformers.py（设 PTQ_SHARED）"
        return
    fi
    [ -e "$hf/config.json" ] || "$PYTHON" tests/tools/gguf_to_hf.py "$model" "$hf" \
        --tokenizer "$shared/goldens/tokenizers/smol/tokenizer.json" >"$out/hf.log" 2>&1 || {
        note "transformers $1" "转换失败，见 $out/hf.log"
        return
    }
    line=$("$PYTHON" "$peers/bench_transformers.py" --model "$hf" --text "$text" --dtypes "$1" \
        --threads "$threads" --windows "$windows" --ctx $ctx --decode 0 --reps 1 2>"$out/tf.log" | tail -n 1)
    # 列: lib dtype threads rep import load ppl_tok_s ppl_tok_cpu_s ppl … rss_peak 在倒数第 3
    row transformers "$1" "$(cut -f7 <<<"$line")" "$(cut -f8 <<<"$line")" \
        "$(cut -f15 <<<"$line" | cut -d. -f1)" "$(cut -f9 <<<"$line")"
}

llama_cpp() { # 类型 dtype
    local line
    if [ -z "${LLAMA:-}" ] || [ ! -x "$LLAMA/bin/llama-perplexity" ]; then
        note "llama.cpp $2" "LLAMA= 下没有 bin/llama-perplexity（可用 peers/build_llama_cpp.sh 构建）"
        return
    fi
    rm -f "$out/llama/results.tsv"
    line=$(STEPS=ppl TYPES=$1 PPL_CTX=$ctx PPL_TOKENS=$((windows * ctx)) PPL_REPS=1 REPS=1 \
        PPL_THREADS=$threads bash "$peers/bench_llama_cpp.sh" "$LLAMA" "$model" "$text" \
        "$out/llama" 2>"$out/llama.log" | grep '^ppl' | head -n 1)
    # 列: step type threads test rate unit ppl peak_rss_mib wall_s cpu_s …
    row "llama.cpp（半数 logits）" "$2" "$(cut -f5 <<<"$line")" \
        "$(awk -F'\t' -v n=$((windows * ctx)) '{print n/$10}' <<<"$line")" \
        "$(cut -f8 <<<"$line")" "$(cut -f7 <<<"$line")"
}

limits() {
    if ! [ -e "$peers/raw_limits.c" ] || ! { cc -O3 -march=native -fopenmp -DWITH_DNNL \
        "$peers/raw_limits.c" -o "$out/raw_limits" -lopenblas -ldnnl ||
        cc -O3 -march=native -fopenmp "$peers/raw_limits.c" -o "$out/raw_limits" -lopenblas; } \
        2>"$out/limits.log"; then
        note "机器峰值" "要 $peers/raw_limits.c 与 libopenblas-dev（libdnnl-dev 可选）"
        return
    fi
    "$out/raw_limits" 3 "$threads" >"$out/limits.tsv"
    echo "机器峰值（$threads 线程，GFLOP/s；÷ 0.340 GFLOP 即 token/s 的上限）："
    awk -F'\t' -v t="$threads" '$3 == t && ($1 == "units" || $4 == "2048x1536x576" || $4 == "2048x49152x576") {
        printf "  %-9s %-8s %-16s 最好 %8.1f  中位 %8.1f  按 CPU 时间 %8.1f\n", $1, $2, $4, $5, $6, $7 }' \
        "$out/limits.tsv"
}

for rep in $(seq "$reps"); do
    echo "📊 第 $rep / $reps 遍（负载 $(cut -d' ' -f1 /proc/loadavg)）" >&2
    for dtype in float32 bfloat16; do
        ours "$dtype"
        transformers "$dtype"
        llama_cpp "$([ "$dtype" = float32 ] && echo F32 || echo BF16)" "$dtype"
    done
done

echo "困惑度评测 SmolLM2-135M，$windows 个 $ctx 的窗口，$threads 线程，$reps 遍的中位数（括号内为最小–最大）："
echo
sort -t$'\t' -k2,2r -k1,1 -k3,3n "$rows" | awk -F'\t' '
    function median(list,    v, n) { n = split(list, v, " "); lo = v[1]; hi = v[n]
        return n % 2 ? v[(n + 1) / 2] : (v[n / 2] + v[n / 2 + 1]) / 2 }
    { k = $1 FS $2; if (!(k in speed)) key[++m] = k
      speed[k] = speed[k] " " $3; cpu[k] = $4 > cpu[k] + 0 ? $4 : cpu[k]
      if ($5 > rss[k] + 0) rss[k] = $5; ppl[k] = $6 }
    END {
        print "| 程序 | 类型 | tok/s | 最好 tok/CPU·s | 峰值 MiB | PPL | 对 transformers |"
        print "|---|---|---|---|---|---|---|"
        for (i = 1; i <= m; i++) { med[key[i]] = median(speed[key[i]]); low[i] = lo; high[i] = hi }
        for (i = 1; i <= m; i++) {
            split(key[i], p, FS); base = med["transformers" FS p[2]]
            printf "| %s | %s | %.0f（%.0f–%.0f） | %.0f | %d | %.4f | %s |\n", p[1], p[2], med[key[i]],
                low[i], high[i], cpu[key[i]], rss[key[i]], ppl[key[i]],
                base ? sprintf("%.2f×", med[key[i]] / base) : "—"
        }
    }'
echo
limits
