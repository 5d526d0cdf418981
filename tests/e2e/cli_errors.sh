#!/usr/bin/env bash
# cli_errors — 错误的命令：退出码、说明里应有的文字、不留结果、stdout 为空
# 用例在 cli_errors.tsv，一行一个。
. "$(dirname "$0")/lib.sh"

while IFS=$'\t' read -r code pattern arguments; do
    case $code in '' | '#'*) continue ;; esac
    eval "set -- $arguments"
    case $1 in run_one) shift; set -- run_one --results "$work/results" --override "data_dir=$data" "$@" ;; esac
    "$ptq" "$@" >"$work/out" 2>"$work/err"
    rc=$?
    what="ptq-bench $arguments → $code"
    if [ $rc -ne "$code" ]; then
        not_ok "$what" "退出码 $rc；$(cat "$work/err")"
    elif ! grep -qE -e "$pattern" "$work/err"; then
        not_ok "$what" "没有说「$pattern」；$(cat "$work/err")"
    elif [ -s "$work/out" ]; then
        not_ok "$what" "stdout 应为空：$(head -c 300 "$work/out")"
    elif ! grep -q '^❌' "$work/err"; then
        not_ok "$what" "没有以 ❌ 开头的行：$(cat "$work/err")"
    else
        ok "$what"
    fi
done <tests/e2e/cli_errors.tsv

# 出错不写「成功」的结果；--help 与 --version 成功
if ls "$work/results"/*.json >/dev/null 2>&1 && grep -l '"ok": true' "$work/results"/*.json; then
    not_ok "错误的命令没有留下成功的结果" "$(ls "$work/results")"
else
    ok "错误的命令没有留下成功的结果"
fi
check "--version" "$ptq" --version
for c in run_one run_all leaderboard prepare_data list tokenize logits; do
    check "$c --help" "$ptq" $c --help
done
done_testing
