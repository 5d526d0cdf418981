#!/usr/bin/env bash
# bench_lm_eval — arc_easy、piqa、winogrande 各 DOCS 份文档：本程序与 lm-eval 的 HF 后端，同样的核，同样的 token，比 token/秒
# 用法: LM_EVAL_PYTHON=… SMOL=HF文件夹 PTQ_SHARED=… bench_lm_eval.sh [ours|harness|both [重复次数]]
# 环境: DOCS（100）、THREADS（全部核）。框架只算 simple_evaluate 的用时（不含 import 与载入），本程序算整个进程（含载入、分词）；取中位数。
set -u
cd "$(dirname "$0")/../.." || exit 2
what=${1:-both} repeats=${2:-3} docs=${DOCS:-100} threads=${THREADS:-$(nproc)}
shared=${PTQ_SHARED:-../shared} smol=${SMOL:?要 SMOL=SmolLM2 的 HF 文件夹}
tasks=arc_easy,piqa,winogrande
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/data/raw/tasks"
. tests/golden/lm_eval_data.sh
lm_eval_data "$work/data/raw/tasks"
median() { sort -g | awk '{ x[NR] = $1 } END { print NR % 2 ? x[(NR + 1) / 2] : (x[NR / 2] + x[NR / 2 + 1]) / 2 }'; }
report() { # 名字 用时…（每行一个，标准输入）token 数
    local m
    m=$(median)
    awk -v name="$1" -v t="$2" -v s="$m" -v n="$3" 'BEGIN { printf "📊 %s：%d 个输入 token，%.2f 秒（%d 次的中位数），%.0f token/秒\n", name, t, s, n, t / s }'
}
if [ "$what" != harness ]; then
    tokens=
    for _ in $(seq "$repeats"); do
        began=$EPOCHREALTIME
        build/ptq-bench run_one --model "$smol" --method fp16 --track A --json --quiet --threads "$threads" \
            --override dtype=float32 --override "data_dir='$work/data'" --results "$work/results" --override eval.speed=false \
            --override 'eval.ppl_datasets=[]' --override "eval.task_limit=$docs" --override "eval.lm_eval_tasks=[$tasks]" \
            >"$work/result.json" || exit 1
        awk "BEGIN { print $EPOCHREALTIME - $began }"
    done >"$work/ours"
    tokens=$(build/tests/tools/json_get "$work/result.json" results.system_metrics.lm_eval.n_tokens)
    report "本程序（整个进程，$threads 线程）" "$tokens" "$repeats" <"$work/ours"
    for t in ${tasks//,/ }; do
        echo "   $t acc $(build/tests/tools/json_get "$work/result.json" "results.lm_eval.$t.acc,none")"
    done
fi
if [ "$what" != ours ]; then
    for _ in $(seq "$repeats"); do
        "${LM_EVAL_PYTHON:?要 LM_EVAL_PYTHON}" tests/tools/lm_eval_harness.py run --data "$work/data/raw/tasks" --tokenizer "$smol" \
            --tasks $tasks --limit "$docs" --threads "$threads" --out "$work/h" 2>"$work/err" | tail -n 1 || { tail "$work/err"; exit 1; }
    done >"$work/theirs"
    tokens=$(awk '{ print $4 }' "$work/theirs" | tail -n 1)
    awk '{ print $2 }' "$work/theirs" | report "lm-eval 0.4.13 的 HF 后端（只算评测，$threads 线程）" "$tokens" "$repeats"
    for t in ${tasks//,/ }; do
        echo "   $t acc $(build/tests/tools/json_get "$work/h/results.json" "$t.acc,none")"
    done
fi
