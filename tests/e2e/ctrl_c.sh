#!/usr/bin/env bash
# ctrl_c — Ctrl-C 干净退出（130），不留半个结果；再启动接着跑
. "$(dirname "$0")/lib.sh"
results=$work/results
cat >"$work/sweep.yaml" <<YAML
name: ctrl-c
models: [demo]
tracks: [A]
methods: [fp16, {name: rtn, label: W4, overrides: {weight.w_bits: 4}}]
overrides: {eval.limit: 60, eval.kl_windows: 0, eval.speed: false, data_dir: '$data'}
YAML
interrupt_after() { # 秒 命令…：到时发 SIGINT，返回程序自己的退出码
    timeout --foreground --preserve-status -k 20 -s INT "$@" >"$work/out" 2>"$work/err"
}

interrupt_after 0.7 "$ptq" run_one --model demo --method fp16 --track A --results "$results" \
    --override "data_dir='$data'"
rc=$?
if [ $rc -eq 130 ]; then ok "run_one：退出码 130"; else not_ok "run_one：退出码 130" "得到 $rc；$(cat "$work/err")"; fi
left=$(find "$results" -type f 2>/dev/null)
if [ -z "$left" ]; then ok "run_one：被中断的运行不留结果"; else not_ok "run_one：被中断的运行不留结果" "$left"; fi

interrupt_after 0.7 "$ptq" run_all "$work/sweep.yaml" --results "$results" --no_leaderboard
rc=$?
if [ $rc -eq 130 ]; then ok "run_all：退出码 130"; else not_ok "run_all：退出码 130" "得到 $rc；$(cat "$work/err")"; fi
check "run_all：说明可以接着跑" grep -q '中断' "$work/err"

if "$ptq" run_all "$work/sweep.yaml" --results "$results" --no_leaderboard >/dev/null 2>"$work/err" &&
    [ "$(find "$results" -name '*.json' | wc -l)" -eq 2 ]; then
    ok "再启动做完其余的：2 个结果"
else
    not_ok "再启动做完其余的：2 个结果" "$(ls "$results"; cat "$work/err")"
fi
done_testing
