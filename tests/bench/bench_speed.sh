#!/usr/bin/env bash
# bench_speed — SmolLM2 的解码（批 1，128 个 token）、预填（512）与量化用时，与 llama.cpp、llm-compressor 并排（make bench 调用）
#
# 每遍依次跑各家，取中位数。「量化」是 16 × 512 个校准 token、组宽 64，含载入；llm-compressor 的数要 QUANT_PYTHON。
# 环境: 同 bench.sh；QUANT_PYTHON=装有 llmcompressor 的解释器（缺则只列本程序）  PARTS="speed quantize"
set -u
export LC_ALL=C.UTF-8
cd "$(dirname "$0")/../.." || exit 2
out=$PWD/build/bench
mkdir -p "$out/llama"
shared=${PTQ_SHARED:-../shared}
threads=${THREADS:-2} reps=${REPS:-3}
model=${MODEL:-$(find data/raw/smollm2-135m-instruct -name '*.gguf' 2>/dev/null | head -n 1)}
text=${TEXT:-$shared/data/text/wikitext2.test.raw.txt}
json_get=build/tests/tools/json_get
rows=$out/speed.tsv
: >"$rows"
for need in "$model" "$text"; do
    [ -n "$need" ] && [ -e "$need" ] || {
        echo "❌ 缺 ${need:-SmolLM2}：scripts/prepare_data.sh --model smollm2-135m-instruct，并给出 TEXT=文件" >&2
        exit 1
    }
done

# 测一次，结果在 $out/speed.json。参数: 方法 轨道 设置…
ours() {
    local method=$1 track=$2 set=() o
    shift 2
    for o in "$@"; do set+=(--override "$o"); done
    build/ptq-bench run_one --model "$model" --method "$method" --track "$track" --threads "$threads" \
        --quiet --json --results "$out/results" --limit 1 --override "eval.ppl_datasets=['$(realpath "$text")']" \
        --override eval.ppl_protocol=gptq-32 --override eval.kl_windows=0 \
        "${set[@]}" >"$out/speed.json" 2>"$out/speed.log" || {
        echo "⚠️ $method $track：$(tail -n 1 "$out/speed.log")" >&2
        return 1
    }
}
row() { # 类 程序 数… ；屏幕上也写一行
    local IFS=$'\t'
    echo "$*" >>"$rows"
    echo "⏱️ $*" >&2
}
speed_row() { # 类 名字 方法 轨道 设置…
    local kind=$1 name=$2
    shift 2
    ours "$@" eval.decode_tokens=128 || return
    row "$kind" "ptq-bench $name" "$($json_get "$out/speed.json" results.system_metrics.prefill_tok_s)" \
        "$($json_get "$out/speed.json" results.system_metrics.decode_tok_s)"
}
llama_row() { # 类 类型
    local pp tg
    [ -n "${LLAMA:-}" ] && [ -x "$LLAMA/bin/llama-bench" ] || return
    rm -f "$out/llama/results.tsv"
    STEPS=bench TYPES=$2 THREADS=$threads REPS=1 TESTS="pp512 tg128" bash "$shared/peers/bench_llama_cpp.sh" \
        "$LLAMA" "$model" "$text" "$out/llama" >"$out/llama.log" 2>&1
    pp=$(awk -F'\t' '$1 == "bench" && $4 == "pp512" { print $5 }' "$out/llama/results.tsv")
    tg=$(awk -F'\t' '$1 == "bench" && $4 == "tg128" { print $5 }' "$out/llama/results.tsv")
    [ -n "$pp" ] && [ -n "$tg" ] && row "$1" "llama.cpp $2" "$pp" "$tg"
}
quantize_row() { # 方法 轨道 设置…
    local start=$EPOCHREALTIME
    ours "$@" eval.speed=false stats_cache=0B calibration.samples=16 calibration.length=512 \
        "calibration.dataset='$(realpath "$shared/data/text/wikitext2.valid.tokens.txt")'" || return
    row quantize "ptq-bench $1 ${3##*=}" "$($json_get "$out/speed.json" quant_time_seconds)" \
        "$(awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN { print b - a }')"
}
peer_quantize() {
    [ -n "${QUANT_PYTHON:-}" ] || return
    "$QUANT_PYTHON" "$shared/peers/bench_quantizers.py" --lib llmcompressor --model "$HF" --text "$text" \
        --methods gptq awq smoothquant --threads "$threads" --ppl-windows 0 2>"$out/quantizers.log" |
        awk -F'\t' '$1 == "llmcompressor" && $7 > 0 { print $2, $7, $11 }' |
        while read -r method quantize total; do row quantize "llmcompressor $method" "$quantize" "$total"; done
}

bf16=(dtype=bfloat16 compute=bfloat16)
w4=(weight.w_bits=4 weight.group_size=64 weight.scheme=asymmetric head_quant=int8)
for rep in $(seq "$reps"); do
    case " ${PARTS:-speed quantize} " in
    *" speed "*)
        speed_row 16 "BF16" fp16 A "${bf16[@]}"
        llama_row 16 F16
        speed_row 8 "W8A16" rtn A "${bf16[@]}" weight.w_bits=8 weight.granularity=per_channel head_quant=int8
        speed_row 8 "W8A8" rtn B "${bf16[@]}" head_quant=int8
        llama_row 8 Q8_0
        speed_row 4 "W4A16 g64" rtn A "${bf16[@]}" "${w4[@]}"
        llama_row 4 Q4_0
        ;;
    esac
    case " ${PARTS:-speed quantize} " in
    *" quantize "*)
        for compute in float32 bfloat16; do
            quantize_row gptq A "compute=$compute" weight.group_size=64
            quantize_row awq A "compute=$compute" weight.group_size=64
            quantize_row smoothquant B "compute=$compute"
        done
        peer_quantize
        ;;
    esac
done

table() { # 类 表头 说明…：每个程序两个数的中位数
    awk -F'\t' -v kind="$1" -v head="$2" '
        function median(list,    v, n, i, j, x) { n = split(list, v, " ")
            for (i = 2; i <= n; i++) { x = v[i] + 0
                for (j = i - 1; j > 0 && v[j] + 0 > x; j--) v[j + 1] = v[j]
                v[j + 1] = x }
            return n % 2 ? v[(n + 1) / 2] : (v[n / 2] + v[n / 2 + 1]) / 2 }
        $1 == kind { if (!($2 in a)) name[++m] = $2; a[$2] = a[$2] " " $3; b[$2] = b[$2] " " $4 }
        END { if (!m) exit
            printf "| 程序 | %s |\n|---|---|---|\n", head
            for (i = 1; i <= m; i++) printf "| %s | %.4g | %.4g |\n", name[i], median(a[name[i]]), median(b[name[i]])
            print "" }' "$rows"
}
echo "$threads 线程，$reps 遍的中位数："
for kind in 16 8 4; do table $kind "$kind 位：预填 512（tok/s） | 解码 128（tok/s）"; done
table quantize "量化（秒） | 全程，含载入与一个评测窗口（秒）"
