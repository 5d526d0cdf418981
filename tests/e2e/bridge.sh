#!/usr/bin/env bash
# bridge — 不是原生的任务经桥交给 lm_eval：这里用一个假的 lm_eval（真的在 make test-bridge），查命令行、服务、结果的合并、失败
. "$(dirname "$0")/lib.sh"
if ! command -v curl >/dev/null; then skip "桥" "没有 curl（make deps-test）"; done_testing; fi
cat >"$work/lm_eval" <<'SH'
#!/usr/bin/env bash
# 假的 lm_eval：记下参数，经服务打一次分，写出真的那样的结果
if [ "$1" = validate ]; then
    echo "$*" >>"$(dirname "$0")/asked"
    missing=$(tr ',' '\n' <<<"$3" | grep -vx 'fake_task' | paste -sd, | sed 's/,/, /g')
    [ -z "$missing" ] && exit 0
    echo "Tasks not found: $missing"
    exit 1
fi
printf '%s\n' "$@" >"$(dirname "$0")/args"
while [ $# -gt 0 ]; do
    case $1 in --model_args) model=$2 ;; --output_path) out=$2 ;; --fail) echo 坏了; exit 3 ;; esac
    shift
done
url=${model#*base_url=} url=${url%%,*}
curl -sf "$url" -d '{"prompt": [1, 2, 3], "max_tokens": 1, "logprobs": 1, "echo": true, "temperature": 0}' \
    >"$(dirname "$0")/reply" || exit 4
mkdir -p "$out/demo"
echo '{"results": {"fake_task": {"alias": "fake_task", "acc,none": 0.25, "acc_stderr,none": "N/A"}},
       "versions": {"fake_task": 2.0}, "n-samples": {"fake_task": {"original": 9, "effective": 4}},
       "lm_eval_version": "0.4.13"}' >"$out/demo/results_2026.json"
SH
chmod +x "$work/lm_eval"
run() {
    "$ptq" run_one --model demo --method rtn --track A --results "$work/results" \
        --override "data_dir='$data'" --override "eval.lm_eval_tasks=[cloze_word, fake_task]" \
        --override eval.task_limit=4 --override "eval.ppl_datasets=[]" \
        --override eval.speed=false "$@" >"$work/out" 2>"$work/err"
}
run --override "eval.lm_eval_command='$work/lm_eval'"
rc=$?
result=$(ls "$work"/results/*__rtn__*.json 2>/dev/null | head -n 1)
value() { "$json_get" "$result" "results.lm_eval.$1" 2>&1; }
if [ $rc -eq 0 ]; then ok "原生的与过桥的一起评测"; else not_ok "原生的与过桥的一起评测" "$(cat "$work/err")"; fi
check "lm_eval 的参数" grep -qx -- 'fake_task' "$work/args"
check "份数照传" grep -qx -- '--limit' "$work/args"
check "服务答了它的请求" "$json_get" "$work/reply" choices.0.logprobs.token_logprobs.2
if [ "$(value 'fake_task.source')" = lm_eval ]; then ok "过桥的结果标明来源"; else not_ok "过桥的结果标明来源" "$(value fake_task)"; fi
if [ "$(value 'fake_task.acc,none')" = 0.25 ]; then ok "指标并进结果"; else not_ok "指标并进结果" "$(value fake_task)"; fi
native=$(value 'cloze_word.acc,none') average=$(value _avg_accuracy)
if awk -v a="$average" -v b="$native" 'BEGIN { d = a - (b + 0.25) / 2; exit !(d < 1e-12 && d > -1e-12) }'; then
    ok "平均准确率算上两边"
else
    not_ok "平均准确率算上两边" "$average、$native"
fi
run --override "eval.lm_eval_command='$work/lm_eval'" --override "eval.lm_eval_args='--fail'"
rc=$?
if [ $rc -ne 0 ] && grep -q '坏了' "$work/err"; then ok "lm_eval 失败：报出日志的末尾"; else not_ok "lm_eval 失败：报出日志的末尾" "$rc $(cat "$work/err")"; fi
# 写错的原生名字：lm_eval 也没有，报出最近的原生名字；只问一次，--include_path 照传
: >"$work/asked"
run --override "eval.lm_eval_command='$work/lm_eval'" --override "eval.lm_eval_args='--include_path $work/more'" \
    --override "eval.lm_eval_tasks=[cloze_word, fake_task, cloze_wrod, arc_esy]"
rc=$?
if [ $rc -ne 0 ] && grep -q "没有任务 'cloze_wrod'，是否想写 'cloze_word'" "$work/err" && grep -q "它也没有 'cloze_wrod'" "$work/err" &&
    [ "$(cat "$work/asked")" = "validate --tasks fake_task,cloze_wrod,arc_esy --include_path $work/more" ]; then
    ok "写错的名字：最近的原生名字，问过 lm_eval 一次"
else
    not_ok "写错的名字：最近的原生名字，问过 lm_eval 一次" "$rc $(cat "$work/err" "$work/asked")"
fi
run --override "eval.lm_eval_command=''"
rc=$?
if [ $rc -ne 0 ] && grep -q "没有任务 'fake_task'" "$work/err"; then ok "没有 lm_eval：报出不认得的任务"; else
    not_ok "没有 lm_eval：报出不认得的任务" "$rc $(cat "$work/err")"
fi
done_testing
