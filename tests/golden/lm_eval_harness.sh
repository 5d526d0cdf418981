#!/usr/bin/env bash
# lm_eval_harness — 与真正的 lm-evaluation-harness 逐文档对照：少样本、生成与 goldens 之外的任务（make test-lm-eval 的后半）
# 环境: LM_EVAL_PYTHON=装了 lm_eval 0.4.13、torch、transformers 的 python；SMOL=SmolLM2 的 HF 文件夹；PTQ_SHARED；THREADS
# 每个任务几份到几十份文档：请求的文字与 token、贪心、生成的文字、acc、acc_norm、exact_match 相同，|Δll| 不超过 2e-3；
# 另把造的数据（tests/data/lm_eval）上 189 个任务的请求重算一遍，与 digests.tsv 相同。
set -u
export LC_ALL=C.UTF-8
cd "$(dirname "$0")/../.." || exit 2
shared=${PTQ_SHARED:-../shared} python=${LM_EVAL_PYTHON:-} smol=${SMOL:-}
if [ ! -x "$python" ] || [ ! -e "$smol/tokenizer.json" ] || [ ! -d "$shared/data/tasks" ]; then
    echo "⏭️ 跳过与真正的框架的对照：要 LM_EVAL_PYTHON、SMOL、PTQ_SHARED"
    exit 0
fi
work=$PWD/build/tmp/lm_eval_harness.$$
mkdir -p "$work/data/raw/tasks"
trap 'rm -rf "$work"' EXIT
. tests/golden/lm_eval_data.sh
lm_eval_data "$work/data/raw/tasks"
passed=0 failed=0
verdict() {
    if [ "$1" = 0 ]; then echo "✅ $2"; passed=$((passed + 1)); else echo "❌ $2"; failed=$((failed + 1)); fi
}
compare() { # 少样本（own 为任务自己的） 份数 任务…
    local shots=$1 limit=$2 out=$work/$1-$3 list name line samples own=() theirs=()
    list=$(IFS=,; echo "${*:3}")
    [ "$shots" = own ] || own=(--override "eval.num_fewshot=$shots") theirs=(--shots "$shots")
    "$python" tests/tools/lm_eval_harness.py run --data "$work/data/raw/tasks" --tokenizer "$smol" --tasks "$list" \
        --limit "$limit" --threads "${THREADS:-1}" --out "$out" "${theirs[@]}" >"$out.txt" 2>&1 ||
        { verdict 1 "框架没有跑成：$(tail -n 3 "$out.txt")"; return; }
    build/ptq-bench run_one --model "$smol" --method fp16 --track A --json --threads "${THREADS:-0}" \
        --override dtype=float32 --override "data_dir='$work/data'" --results "$work/results" \
        --override eval.speed=false --override 'eval.ppl_datasets=[]' --override "eval.task_limit=$limit" \
        --override eval.log_samples=true --override "eval.lm_eval_tasks=[$list]" "${own[@]}" >"$out.json" 2>"$out.err" ||
        { verdict 1 "没有跑成：$(tail -n 3 "$out.err")"; return; }
    for name in "${@:3}"; do
        samples=$(build/tests/tools/json_get "$out.json" "results.lm_eval.$name.samples_file")
        line=$(build/tests/tools/compare_samples "$work/results/$samples" "$out/$name.jsonl")
        verdict $? "$name（$shots 样本）：$(tail -n 1 <<<"$line")"
        [ "$(wc -l <<<"$line")" -eq 1 ] || head -n 5 <<<"$line"
    done
}
D=${DOCS:-20}
compare 0 "$D" boolq openbookqa hellaswag commonsense_qa social_iqa arc_challenge
compare 3 "$D" piqa winogrande
compare 5 "$D" arc_easy mmlu_college_computer_science
compare 5 4 gsm8k

# 造的数据：真正的框架重算 digests.tsv
lm_eval_made "$work/made"
tasks=arc_easy,arc_challenge,hellaswag,piqa,winogrande,boolq,openbookqa,copa,commonsense_qa,social_iqa
tasks+=,lambada_openai,wikitext,gsm8k,mmlu,ceval-valid,cmmlu
"$python" tests/tools/lm_eval_harness.py render --data "$work/made" --tokenizer data/raw/demo/model --tasks $tasks --shots 3 \
    2>"$work/render.err" | awk -F'\t' 'BEGIN { OFS = "\t" } { print 3, $1, $4, $5 }' | sort >"$work/theirs"
grep '^3	' tests/data/lm_eval/digests.tsv | sort >"$work/kept"
cmp -s "$work/theirs" "$work/kept"
verdict $? "造的数据上 $(wc -l <"$work/kept") 个任务的请求（3 样本）"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
