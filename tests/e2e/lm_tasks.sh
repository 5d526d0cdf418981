#!/usr/bin/env bash
# lm_tasks — 轨道 YAML 里写 lm_eval_tasks: [arc_easy, mmlu]：指南的键、标准误、平均准确率、没有 fp16 时先算它、配对比较、榜与 CSV；
# 不认得的任务、缺数据、取得数据
. "$(dirname "$0")/lib.sh"
# 自己的一套 configs，轨道 A 点名任务；数据是造的：arc_easy 6 题，mmlu 57 科各 2 题
mkdir -p "$work/root/data/raw/tasks/arc_easy"
cp -r configs "$work/root/"
sed -i 's/lm_eval_tasks: \[\].*/lm_eval_tasks: [arc_easy, mmlu]/' "$work/root/configs/tracks/track_a.yaml"
ln -s "$root/data/raw/demo" "$work/root/data/raw/demo"
export PTQ_BENCH_ROOT=$work/root
for i in 1 2 3 4 5 6; do
    printf '{"id": "q%d", "question": "What did she see at number %d?", "choices": {"text": ["a dog", "the sun", "an apple", "her %d friends"], "label": ["A", "B", "C", "D"]}, "answerKey": "%s"}\n' \
        $i $i $i "$(cut -c$i <<<ABCDAB)"
done >"$work/root/data/raw/tasks/arc_easy/test.jsonl"
subjects() { sed -n 's/^dataset_name: *//p' configs/tasks/mmlu/mmlu_*.yaml; }
for s in $(subjects); do
    mkdir -p "$work/root/data/raw/tasks/mmlu/$s"
    for i in 0 1; do
        printf '{"question": "Which one is %s?", "subject": "%s", "choices": ["red", "blue", "a cat", "two"], "answer": %d}\n' "$i" "$s" $i
    done >"$work/root/data/raw/tasks/mmlu/$s/test.jsonl"
done
run() { # 方法 参数…
    local m=$1
    shift
    "$ptq" run_one --model demo --method "$m" --track A --limit 1 --override eval.speed=false "$@" 2>"$work/err"
}
latest() { ls -t "$work/root/results"/*__"$1"__*.json | head -n 1; }
value() { "$json_get" "$result" "$1" 2>&1; }

if run rtn --override weight.w_bits=2 --json >"$work/out"; then ok "轨道点名的任务"; else not_ok "轨道点名的任务" "$(cat "$work/err")"; fi
result=$work/out
for key in config.model config.method config.track results.ppl.demo.ppl 'results.lm_eval.mmlu.acc,none' \
    'results.lm_eval.mmlu.acc_stderr,none' 'results.lm_eval.arc_easy.acc,none' \
    'results.lm_eval.arc_easy.acc_norm_stderr,none' results.lm_eval._avg_accuracy \
    results.system_metrics.vram_peak_mb quant_time_seconds environment.gpu environment.torch \
    environment.transformers; do
    check "指南 §8 的键 $key" "$json_get" "$result" "$key"
done
average=$(awk "BEGIN { printf \"%.9f\", ($(value 'results.lm_eval.arc_easy.acc_norm,none') + $(value 'results.lm_eval.mmlu.acc,none')) / 2 }")
if [ "$(awk "BEGIN { printf \"%.9f\", $(value results.lm_eval._avg_accuracy) }")" = "$average" ]; then
    ok "_avg_accuracy：acc_norm，没有则 acc；mmlu 算一个"
else
    not_ok "_avg_accuracy：acc_norm，没有则 acc；mmlu 算一个" "$(value results.lm_eval._avg_accuracy) / $average"
fi
# 没有 fp16：先另算一次，它也是正式的结果；之后不再算
if grep -q '没有同样数据与设置的 fp16 基线' "$work/err" && [ -e "$(latest fp16)" ]; then ok "没有 fp16 时先算"; else
    not_ok "没有 fp16 时先算" "$(cat "$work/err")"
fi
for key in results.ppl.demo.baseline.delta_nll.mean results.lm_eval.arc_easy.baseline.result_file \
    results.lm_eval.arc_easy.baseline.acc_norm,none.{right_to_wrong,wrong_to_right,mcnemar_p,noninferior_p,tost_p} \
    results.lm_eval.mmlu.baseline.acc,none.{delta,mcnemar_p}; do
    check "与 fp16 的比较 $key" "$json_get" "$result" "$key"
done
base=$(latest fp16)
old=$("$json_get" "$base" 'results.lm_eval.mmlu.acc,none') new=$(value 'results.lm_eval.mmlu.acc,none')
delta=$(value 'results.lm_eval.mmlu.baseline.acc,none.delta')
if awk "BEGIN { d = $new - $old - ($delta); exit !(d < 1e-9 && d > -1e-9) }"; then ok "差 = 错→对 − 对→错"; else
    not_ok "差 = 错→对 − 对→错" "$new $old $delta"
fi
count=$(ls "$work/root/results"/*__fp16__*.json | wc -l)
run rtn --override weight.w_bits=4 >/dev/null
if [ "$(ls "$work/root/results"/*__fp16__*.json | wc -l)" = "$count" ]; then ok "fp16 只算一次"; else not_ok "fp16 只算一次"; fi
# 份数不同就是不同的题：不比时为 null
if run rtn --override eval.task_limit=1 --override eval.baseline=off --json >"$work/out" &&
    [ "$(value results.lm_eval.arc_easy.baseline)" = null ] && [ "$(value results.lm_eval.arc_easy.n_docs)" = 1 ]; then
    ok "eval.baseline=off：不算，比较为 null"
else
    not_ok "eval.baseline=off：不算，比较为 null" "$(cat "$work/err")"
fi

"$ptq" leaderboard --no_plots >"$work/screen" 2>"$work/err"
check "屏幕上有任务的榜" grep -q 'lm-eval 任务' "$work/screen"
check "屏幕上有任务的列" grep -qE '平均 .*(mmlu|arc_easy) .*(mmlu|arc_easy)' "$work/screen"
check "Markdown 有任务的榜" grep -q 'arc_easy（acc_norm,none，6 份）' "$work/root/results/leaderboard.md"
check "CSV 有任务的行" grep -qE '^A,demo,mmlu,lm-eval,.*"acc,none",' "$work/root/results/leaderboard.csv"
check "结果的 Markdown 有任务的一节" grep -q '^## lm-eval 任务' "$(latest rtn | sed 's/json$/md/')"
for f in "$work"/root/results/*.md; do check "Markdown 里没有 nan：$(basename "$f" .md | cut -d_ -f3-)" sh -c "! grep -qi '\bnan\b' '$f'"; done

# 缺数据：说全缺哪些、找过哪里、怎样取得
rm -r "$work/root/data/raw/tasks/mmlu/anatomy" "$work/root/data/raw/tasks/mmlu/virology" "$work/root/data/raw/tasks/arc_easy"
run rtn >/dev/null
if grep -q '任务 arc_easy 缺少数据（划分 test）' "$work/err" && grep -q '58 个任务里有 3 个缺数据.*mmlu_anatomy、mmlu_virology' "$work/err" &&
    grep -q 'raw/tasks/ 下找过：arc_easy/test、allenai/ai2_arc/ARC-Easy/test' "$work/err" &&
    grep -q 'prepare_data.sh --task arc_easy ' "$work/err"; then
    ok "缺数据：缺哪些、找过哪里、怎样取得"
else
    not_ok "缺数据：缺哪些、找过哪里、怎样取得" "$(cat "$work/err")"
fi
done_testing
