#!/usr/bin/env bash
# lm_eval — SmolLM2-135M-Instruct 的 lm-eval 任务，逐文档对照 lm-evaluation-harness 0.4.13（make test-lm-eval）
# 先取得模型：scripts/prepare_data.sh --model smollm2-135m-instruct。数据取自 $PTQ_SHARED/data/tasks。
# 环境: PTQ_SHARED（对照数与数据，默认 ../shared）、MODEL（默认 smollm2-135m-instruct）、THREADS
# 逐请求: context 与 continuation 的文字、token 相同，|Δll| 不超过 2e-3，is_greedy 相同；逐文档: acc、acc_norm 相同；
# 聚合与标准误: 与 summary.json 相差不到 1e-9（perplexity 的随对数似然 1e-3）。另核对整个任务的请求摘要（requests.json）。
set -u
export LC_ALL=C.UTF-8
cd "$(dirname "$0")/../.." || exit 2
shared=${PTQ_SHARED:-../shared}
golden=$shared/goldens/lm_eval
tools=build/tests/tools
work=build/tmp/lm_eval.$$
passed=0 failed=0
if [ ! -e "$golden/summary.json" ]; then
    echo "❌ 没有 $golden（设 PTQ_SHARED）" >&2
    exit 1
fi
mkdir -p "$work/data/raw/tasks"
trap 'rm -rf "$work"' EXIT
for dir in "$shared"/data/tasks/*/; do
    name=$(basename "$dir")
    ln -s "$(realpath "$dir")" "$work/data/raw/tasks/$name"
done
ln -sfn hellaswag_subset "$work/data/raw/tasks/hellaswag"
for dir in data/raw/*/; do ln -s "$(realpath "$dir")" "$work/data/raw/$(basename "$dir")" 2>/dev/null; done

verdict() { # 通过与否 说明
    if [ "$1" = 0 ]; then
        echo "✅ $2"
        passed=$((passed + 1))
    else
        echo "❌ $2"
        failed=$((failed + 1))
    fi
}

tasks=(arc_easy piqa winogrande lambada_openai copa mmlu_college_computer_science)
build/ptq-bench run_one --model "${MODEL:-smollm2-135m-instruct}" --method fp16 --track A --json \
    --threads "${THREADS:-0}" --override dtype=bfloat16 --override data_dir="$(realpath "$work")/data" \
    --override results_dir="$(realpath "$work")/results" --override eval.speed=false \
    --override 'eval.ppl_datasets=[]' --override eval.task_limit=100 --override eval.log_samples=true \
    --override "eval.lm_eval_tasks=[$(IFS=,; echo "${tasks[*]}")]" >"$work/result.json" || exit 1

for task in "${tasks[@]}"; do
    samples=$($tools/json_get "$work/result.json" "results.lm_eval.$task.samples_file")
    line=$($tools/compare_samples "$work/results/$samples" "$golden/$task.jsonl")
    verdict $? "$task：$(tail -n 1 <<<"$line")"
    for metric in acc acc_norm perplexity; do
        for key in "$metric,none" "${metric}_stderr,none"; do
            want=$($tools/json_get "$golden/summary.json" "tasks.$task.metrics.$key" 2>/dev/null) || continue
            got=$($tools/json_get "$work/result.json" "results.lm_eval.$task.$key")
            awk -v a="$got" -v b="$want" -v t="$([ $metric = perplexity ] && echo 2e-3 || echo 1e-9)" \
                'BEGIN { d = a - b; if (d < 0) d = -d; exit !(d <= t * (b > 1 ? b : 1)) }'
            verdict $? "$task $key：$got（框架 $want）"
        done
    done
done

# 整个任务的请求（不算模型）：--dry_run 的摘要
digests() { # 少样本数 任务…
    local shots=$1
    shift
    build/ptq-bench run_one --model "${MODEL:-smollm2-135m-instruct}" --method fp16 --track A --dry_run \
        --override data_dir="$(realpath "$work")/data" --override 'eval.ppl_datasets=[]' \
        --override eval.num_fewshot="$shots" --override "eval.lm_eval_tasks=[$(IFS=,; echo "$*")]" 2>&1
}
digests -1 arc_easy piqa winogrande lambada_openai copa mmlu_college_computer_science commonsense_qa \
    social_iqa hellaswag >"$work/plan.txt"
digests 5 mmlu_college_computer_science >"$work/plan5.txt"
check_digest() { # 任务 在 requests.json 里的键 文件
    local want_ids want got
    want=$($tools/json_get "$golden/requests.json" "$2.requests_sha256")
    want_ids=$($tools/json_get "$golden/requests.json" "$2.ids_sha256.smol")
    got=$(grep -A1 "任务 $1：" "$3")
    grep -q "$want" <<<"$got" && grep -q "$want_ids" <<<"$got"
    verdict $? "$2：全部请求的文字与 token 的摘要"
}
for task in arc_easy piqa winogrande lambada_openai copa mmlu_college_computer_science commonsense_qa \
    social_iqa; do
    check_digest $task $task "$work/plan.txt"
done
check_digest hellaswag hellaswag_subset "$work/plan.txt"
check_digest mmlu_college_computer_science mmlu_college_computer_science:5shot "$work/plan5.txt"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
