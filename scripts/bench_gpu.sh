#!/usr/bin/env bash
# bench_gpu — 在一块 GPU 上量困惑度、解码、显存与量化用时（docs/gpu.md 的表），不用网络
#
# 先用 synth 造一个随机权重的模型，再逐行跑 run_one（每行的命令都在表里，可以照抄），各取 REPEATS 次的中位数。
# 有装了 torch 与 transformers 的 python、又有 PEER 时，在同一次里先跑它，列出比值。结果: $OUT/gpu.tsv、gpu.md、各次的 JSON。
#
# 环境（默认值）:
#   DEVICE=cuda  LIKE=llama3.1-8b  MODEL=（已有的文件夹，代替 synth）  WORK=/dev/shm 或 $TMPDIR（模型放这里，用完删去；KEEP=1 留着，下次不再造）
#   PARTS="ppl decode quant"  METHODS="rtn smoothquant awq gptq spqr omniquant"  REPEATS=3  QUANT_REPEATS=1
#   BLOCKS=N：量化用时只用 N 层的模型量，按层数折算   WINDOW=2048 WINDOWS=64   CONTEXT=512 TOKENS=64 BATCH=32
#   SAMPLES=128 LENGTH=2048（校准）  EPOCHS=20（OmniQuant）  COMPUTE=bfloat16  KV_DTYPE=float16  LIMIT_S=1800（一次的时限，秒）
#   PEER=../shared/peers/bench_gpu_transformers.py（none 不跑；.jsonl 是它以前的输出）  PYTHON=python3  OUT=build/bench/gpu
set -u
export LC_ALL=C.UTF-8
cd "$(dirname "$0")/.." || exit 2
ptq=${PTQ:-build/ptq-bench}
device=${DEVICE:-cuda} like=${LIKE:-llama3.1-8b} parts=" ${PARTS:-ppl decode quant} "
methods=${METHODS:-rtn smoothquant awq gptq spqr omniquant}
repeats=${REPEATS:-3} quant_repeats=${QUANT_REPEATS:-1} blocks=${BLOCKS:-}
window=${WINDOW:-2048} windows=${WINDOWS:-64} context=${CONTEXT:-512} tokens=${TOKENS:-64} batch=${BATCH:-32}
samples=${SAMPLES:-128} length=${LENGTH:-2048} epochs=${EPOCHS:-20}
peer=${PEER:-../shared/peers/bench_gpu_transformers.py} python=${PYTHON:-python3}
out=${OUT:-build/bench/gpu}
if [ -z "${WORK:-}" ]; then WORK=${TMPDIR:-/tmp}; [ -w /dev/shm ] && WORK=/dev/shm; fi
[ -x "$ptq" ] || { echo "❌ 没有 $ptq，先运行 make" >&2; exit 1; }
mkdir -p "$out" && out=$(realpath "$out") || exit 1
if [ "${KEEP:-0}" = 1 ]; then
    work=$WORK/ptq-bench-gpu
    mkdir -p "$work" || exit 1
else
    work=$(mktemp -d "$WORK/ptq-bench-gpu.XXXXXX") || exit 1
    trap 'rm -rf "$work"' EXIT
fi
trap 'exit 130' INT TERM
failed=0
say() { echo "$*" >&2; }

# ---- 输入：模型与文本 ----

make_model() { # 文件夹 [层数]
    [ ! -e "$1/config.json" ] || return 0
    rm -rf "$1" # 上次没有造完的
    "$ptq" synth --like "$like" --output "$1" ${2:+--layers "$2"} || exit 1
}
model=${MODEL:-$work/$like}
[ -n "${MODEL:-}" ] || make_model "$model"
layers=$(sed -n 's/.*"num_hidden_layers": *\([0-9]*\).*/\1/p' "$model/config.json")
quant_model=$model scale=1
if [ -n "$blocks" ] && [ "$blocks" -lt "$layers" ] && [ -z "${MODEL:-}" ]; then
    quant_model=$work/$like-$blocks
    [[ $parts != *" quant "* ]] || make_model "$quant_model" "$blocks"
    scale=$(awk -v a="$layers" -v b="$blocks" 'BEGIN { printf "%.6f", a / b }')
fi
# 文本：自带的演示文本，重复到够长；随机的权重只看长短。真的分词器一个 token 约四五个字节，多备一些
repeat_text() { # 源 目标 字节数
    while :; do cat "$1" || exit 1; done 2>/dev/null | head -c "$3" | iconv -c -f UTF-8 -t UTF-8 >"$2"
}
per=1
[ -z "${MODEL:-}" ] || per=8
repeat_text data/raw/demo/text/test.txt "$work/eval.txt" $((window * (windows + 1) * per))
repeat_text data/raw/demo/text/calib.txt "$work/calib.txt" $((length * 64 * per))

# ---- 跑一次与取数 ----

# 结果 JSON 里的一个数；路径的一节可以是 *
field() { # 文件 路径
    awk -v want="$2" '
        BEGIN { n = split(want, w, ".") }
        match($0, /^ +"/) {
            d = RLENGTH - 1
            if (!unit) unit = d
            d /= unit
            rest = substr($0, RLENGTH + 1)
            end = index(rest, "\":")
            key[d] = substr(rest, 1, end - 1)
            if (d != n) next
            for (i = 1; i <= n; i++) if (w[i] != "*" && w[i] != key[i]) next
            value = substr(rest, end + 3)
            sub(/,$/, "", value)
            gsub(/^"|"$/, "", value)
            print value
            exit
        }' "$1"
}
median() { # 文件… 的一个字段的中位数
    local path=$1 f
    shift
    for f in "$@"; do field "$f" "$path"; done | grep -v null | sort -g |
        awk '{ v[NR] = $1 } END { if (NR) printf "%.6g", NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'
}
stats=()
if "$ptq" list options | grep -q '^ *stats_cache'; then stats=(--override stats_cache=0B); fi # 每次都从头量化
# 跑 n 次 run_one，结果在 $out/名字.次.json；命令在 $command
measure() { # 名字 次数 模型 方法 轨道 设置…
    local name=$1 n=$2 path=$3 method=$4 track=$5 o i line args
    shift 5
    args=(--model "$path" --method "$method" --track "$track" --device "$device" --compute "${COMPUTE:-bfloat16}"
        --results "$work/results" --override "data_dir=$work/data" --override "eval.ppl_datasets=[$work/eval.txt]"
        --override eval.kl_windows=0 --override eval.baseline=off --override "eval.kv_dtype=${KV_DTYPE:-float16}"
        "${stats[@]}")
    for o in "$@"; do args+=(--override "$o"); done
    command="ptq-bench run_one ${args[*]}"
    json=()
    for i in $(seq "$n"); do
        timeout -k 10 "${LIMIT_S:-1800}" "$ptq" run_one "${args[@]}" --json --quiet \
            >"$out/$name.$i.json" 2>"$out/$name.$i.log" && {
            json+=("$out/$name.$i.json")
            continue
        }
        line=$(tail -n 1 "$out/$name.$i.log")
        say "❌ $name：${line:-超时}"
        rm -f "$out/$name.$i.json"
        failed=1
        break
    done
    [ ${#json[@]} -gt 0 ]
}
mkdir -p "$work/data"
: >"$out/gpu.tsv"
# 一行：项目、数、单位、对手的数、目标；比值都是「越大越快」
row() { # 项目 数 单位 对手 目标 时间类（1：越小越好）
    local ratio=""
    [ -z "$4" ] || [ -z "$2" ] || ratio=$(awk -v a="$2" -v b="$4" -v t="${6:-0}" \
        'BEGIN { r = t ? b / a : a / b; printf "%.2f", r }')
    printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$4" "$ratio" "$5" \
        "$(median results.system_metrics.vram_peak_mb "${json[@]}")" "$(median time.seconds "${json[@]}")" "$command" >>"$out/gpu.tsv"
    say "⏱️ $1：${2:-没有数} $3${ratio:+，是 transformers 的 $ratio 倍}"
}

# ---- 对手 ----

peer_line() { # 匹配的 what → 各行的字段
    [ -s "$out/peer.jsonl" ] && sed -n "/\"what\": \"$1/s/.*\"$2\": \([0-9.e+-]*\).*/\1/p" "$out/peer.jsonl"
}
rm -f "$out/peer.jsonl"
if [ "$device" = cuda ] && [ "$like" = llama3.1-8b ] && [ -z "${MODEL:-}" ] && [ -e "$peer" ]; then
    if [[ $peer == *.jsonl ]]; then
        cp "$peer" "$out/peer.jsonl"
    elif "$python" -c 'import torch, transformers, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
        say "📋 对手: $python $peer"
        HF_HUB_OFFLINE=1 "$python" "$peer" >"$out/peer.jsonl" 2>"$out/peer.log" || say "⚠️ 对手没有跑完：$(tail -n 1 "$out/peer.log")"
    else
        say "⚠️ $python 没有装 torch、transformers 或看不到 GPU，不跑对手"
    fi
fi
goal() { [ "$like" = llama3.1-8b ] && [ "$device" = cuda ] && echo "$1"; } # 目标只对这个形状、一块 H100
peer_ppl=$(peer_line "transformers PPL S=2048" tok_s | sort -g | tail -n 1)
peer_gb=$(peer_line "transformers PPL S=2048" peak_gb | sort -g | head -n 1)
peer_one=$(peer_line "transformers decode B=1 " tok_s) peer_many=$(peer_line "transformers decode B=$batch " tok_s)
peer_gptq=$(awk -v a="$(peer_line "gptq per layer" s_32_layers)" \
    -v b="$(peer_line "layer forward 2048" s_for_128_samples_2_passes_32_layers)" 'BEGIN { if (a && b) print a + b }')

# ---- 各行 ----

w4=(weight.w_bits=4 weight.group_size=128)
ppl() { # 名字 项目 目标 方法 轨道 设置…
    local name=$1 title=$2 want=$3 method=$4 track=$5
    shift 5
    measure "$name" "$repeats" "$model" "$method" "$track" "eval.ppl_protocol=gptq-$window" "eval.limit=$windows" \
        eval.speed=false "$@" || return
    row "困惑度 $title，$window 的窗口" "$(median 'results.ppl.*.tok_per_s' "${json[@]}")" "token/秒" "$peer_ppl" "$want"
    [ "$method" = fp16 ] || return 0
    row "载入 $title" "$(median quant_time.load "${json[@]}")" "秒" "" "" 1
    local mb
    mb=$(median results.system_metrics.vram_peak_mb "${json[@]}")
    [ -z "$mb" ] || row "峰值显存 困惑度 $title" "$(awk -v m="$mb" 'BEGIN { printf "%.2f", m * 1e6 / 2^30 }')" "GiB" "$peer_gb" "$(goal '≤ 16.5')" 1
}
decode() { # 名字 项目 目标 对手 批 方法 轨道 设置…
    local name=$1 title=$2 want=$3 theirs=$4 size=$5 method=$6 track=$7
    shift 7
    measure "$name" "$repeats" "$model" "$method" "$track" eval.ppl_protocol=gptq-128 eval.limit=1 eval.speed=true \
        "eval.speed_batch=$size" "eval.speed_context=$context" "eval.decode_tokens=$tokens" "$@" || return
    row "解码 $title，批 $size，上下文 $context" "$(median results.system_metrics.decode_tok_s "${json[@]}")" "token/秒" "$theirs" "$want"
}
quantize() { # 方法 轨道 项目 目标 对手 设置…
    local method=$1 track=$2 title=$3 want=$4 theirs=$5
    shift 5
    measure "quant-$method" "$quant_repeats" "$quant_model" "$method" "$track" eval.ppl_protocol=gptq-128 eval.limit=1 \
        eval.speed=false "$@" || return
    [ "$scale" = 1 ] || title="$title（由 $blocks 层折算）"
    row "量化 $title" "$(median quant_time.quantize "${json[@]}" | awk -v s="$scale" '{ printf "%.4g", $1 * s }')" "秒" "$theirs" "$want" 1
}
if [[ $parts == *" ppl "* ]]; then
    ppl ppl-bf16 bf16 "$(goal '≥ 43000')" fp16 A
    ppl ppl-w4 "W4 g128" "$(goal '≥ 0.9× bf16')" rtn A "${w4[@]}"
    ppl ppl-w8a8 W8A8 "$(goal '≥ 1.3× bf16')" rtn B
fi
if [[ $parts == *" decode "* ]]; then
    decode decode-bf16 bf16 "$(goal '≥ 160')" "$peer_one" 1 fp16 A
    decode decode-w4 "W4 g128" "$(goal '≥ 480')" "$peer_one" 1 rtn A "${w4[@]}"
    decode "decode-bf16-$batch" bf16 "$(goal '≥ 4000')" "$peer_many" "$batch" fp16 A
fi
calib=("calibration.dataset=$work/calib.txt" "calibration.samples=$samples" "calibration.length=$length")
if [[ $parts == *" quant "* ]]; then
    for method in $methods; do
        case $method in
        rtn) quantize rtn A "RTN W4 g128" "$(goal '≤ 5')" "" "${w4[@]}" ;;
        smoothquant) quantize smoothquant B "SmoothQuant W8A8" "$(goal '≤ 30')" "" "${calib[@]}" ;;
        awq) quantize awq A "AWQ W4 g128" "$(goal '≤ 60')" "" "${w4[@]}" "${calib[@]}" ;;
        gptq) quantize gptq A "GPTQ W4 g128" "$(goal '≤ 60')" "$peer_gptq" "${w4[@]}" "${calib[@]}" ;;
        spqr) quantize spqr A "SpQR W3 g16" "$(goal '≤ 180')" "" "${calib[@]}" ;;
        omniquant) quantize omniquant A "OmniQuant W4 g128（$epochs 轮）" "$(goal '≤ 900')" "" "${w4[@]}" "${calib[@]}" "omniquant.epochs=$epochs" ;;
        *) say "❌ METHODS 里没有 $method"; failed=1 ;;
        esac
    done
fi

# ---- 表 ----

first=$(find "$out" -name '*.1.json' -newer "$work/calib.txt" | sort | head -n 1)
{
    echo "# $like，$layers 层，$device"
    echo
    if [ -n "$first" ]; then
        gpu=$(field "$first" environment.gpu)
        [ -z "$gpu" ] || [ "$gpu" = null ] ||
            echo "$gpu · 驱动 $(field "$first" environment.driver) · CUDA $(field "$first" environment.cuda)"
        echo "提交 $(field "$first" environment.git_commit | cut -c1-8) · $(date -u +%F) · 困惑度与解码 $repeats 次、量化 $quant_repeats 次的中位数"
    fi
    [ ! -s "$out/peer.jsonl" ] || sed -n 's/.*"transformers": "\([^"]*\)".*/对手：transformers \1/p' "$out/peer.jsonl"
    echo
    echo "| 项目 | 数 | 单位 | transformers | 倍数 | 目标 | 峰值显存（MB） | 整个命令（秒） |"
    echo "|---|---:|---|---:|---:|---|---:|---:|"
    awk -F'\t' '{ printf "| %s | %s | %s | %s | %s | %s | %s | %s |\n", $1, $2, $3, $4, $5, $6, $7, $8 }' "$out/gpu.tsv"
    echo
    echo "命令（模型：\`ptq-bench synth --like $like --output $model\`）："
    echo
    awk -F'\t' '!seen[$9]++ { printf "- %s：`%s`\n", $1, $9 }' "$out/gpu.tsv"
} >"$out/gpu.md"
sed -i '1i 项目\t数\t单位\ttransformers\t倍数\t目标\t峰值显存MB\t整个命令秒\t命令' "$out/gpu.tsv"
cat "$out/gpu.md"
exit $failed
