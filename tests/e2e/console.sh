#!/usr/bin/env bash
# console — 控制台约定：每行以约定的 emoji 开头；--json 时 stdout 只有 JSON；NO_COLOR 与非终端没有颜色
. "$(dirname "$0")/lib.sh"
args=(run_one --model demo --method rtn --track A --limit 2 --results "$work/results"
    --override "data_dir='$data'")

if "$ptq" "${args[@]}" --json >"$work/out" 2>"$work/err"; then
    ok "run_one --json 成功"
else
    not_ok "run_one --json 成功" "$(cat "$work/err")"
fi
check "--json：stdout 恰为一个 JSON" "$json_get" "$work/out"
for key in config.model config.method config.track results.ppl.demo.ppl results.system_metrics \
    quant_time_seconds environment.gpu; do
    check "结果 JSON 有 $key（指南 §8 的键）" "$json_get" "$work/out" "$key"
done

bad=$(grep -vE '^(📋|📦|⚡|📊|✅|❌|⚠️|⏱️)' "$work/err")
if [ -s "$work/err" ] && [ -z "$bad" ]; then ok "stderr 每行都有 emoji 前缀"
else not_ok "stderr 每行都有 emoji 前缀" "$bad"; fi
esc=$(printf '\033')
if grep -q "$esc" "$work/err"; then not_ok "非终端没有颜色"; else ok "非终端没有颜色"; fi

"$ptq" "${args[@]}" --quiet >"$work/out" 2>"$work/err"
bad=$(grep -vE '^(❌|⚠️)' "$work/err")
if [ -z "$bad" ]; then ok "--quiet 只留警告与失败"; else not_ok "--quiet 只留警告与失败" "$bad"; fi

if command -v script >/dev/null; then
    tty_run() { script -qec "$1 '$ptq' list methods; '$ptq' run_one --model demo --method fp16 --track A --limit 1 --results '$work/results' --override data_dir='$data'" /dev/null; }
    tty_run "NO_COLOR=1; export NO_COLOR;" >"$work/plain" 2>&1
    if grep -qE "$esc\[[0-9;]*m" "$work/plain"; then not_ok "NO_COLOR：终端上也没有颜色"; else ok "NO_COLOR：终端上也没有颜色"; fi
else
    skip "NO_COLOR：终端上也没有颜色" "没有 script 命令"
fi
done_testing
