#!/usr/bin/env bash
# run_one_test — 跑一个测试程序，数它的 TAP 行
# 用法: run_one_test.sh 日志目录 名字 秒数 命令…
# 写出 名字.log、名字.count（通过 失败 跳过），打印一行摘要；失败时附上日志末尾。
# 崩溃、超时、报告的项数少于计划（1..N）都算一项失败。
set -u
name=$2 limit=$3 log=$1/${2//\//_}.log started=$EPOCHREALTIME
shift 3
timeout -k 10 "$limit" "$@" >"$log" 2>&1 </dev/null
rc=$?
count() { grep -acE "$1" "$log"; }
# cmocka 把跳过写成 not ok N # SKIP 名字
skipped=$(count '^(not )?ok .*# SKIP')
passed=$(grep -aE '^ok ' "$log" | grep -acv '# SKIP')
failed=$(grep -aE '^not ok ' "$log" | grep -acv '# SKIP')
planned=$(sed -nE 's/^1\.\.([0-9]+).*/\1/p' "$log" | head -n 1)
if [ "$failed" -eq 0 ] && { [ $rc -ne 0 ] || [ $((passed + skipped)) -lt "${planned:-1}" ]; }; then
    failed=1
    echo "not ok - 退出码 $rc（124 为超过 $limit 秒），计划 ${planned:-?} 项，报告 $((passed + skipped)) 项" >>"$log"
fi
echo "$passed $failed $skipped" >"${log%.log}.count"

mark=✅
[ "$failed" -eq 0 ] || mark=❌
summary="$mark $name 通过 $passed"
[ "$failed" -eq 0 ] || summary+="，失败 $failed"
[ "$skipped" -eq 0 ] || summary+="，跳过 $skipped"
summary+=$(awk -v a="$started" -v b="$EPOCHREALTIME" 'BEGIN { printf "（%.1f 秒）", b - a }')
[ "$skipped" -eq 0 ] || summary+=$'\n'$(grep -aE '^(not )?ok .*# SKIP' "$log" | sed -E 's/^(not )?ok [0-9]* ?-? ?/     跳过: /')
[ "$failed" -eq 0 ] || summary+=$'\n'$(grep -avE '^ok ' "$log" | tail -n 40 | sed 's/^/     | /')
printf '%s\n' "$summary"
