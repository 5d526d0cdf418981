#!/usr/bin/env bash
# run — 逐个运行模糊测试程序（make fuzz 调用）
# 用法: run.sh 每个秒数 [名字]；语料留在 build-fuzz/corpus/，发现的坏输入在 build-fuzz/crash/
set -u
cd "$(dirname "$0")/../.." || exit 2
seconds=$1 only=${2:-} failed=0 ran=0
export ASAN_OPTIONS=allocator_may_return_null=1
for program in build-fuzz/fuzz/fuzz_*; do
    case $program in *.d) continue ;; esac
    name=${program##*/fuzz_}
    [ -z "$only" ] || [ "$only" = "$name" ] || continue
    corpus=build-fuzz/corpus/$name
    mkdir -p "$corpus" build-fuzz/crash
    seeds=()
    for d in "tests/data/ok/$name" "tests/data/bad/$name" "tests/fuzz/seeds/$name"; do [ -d "$d" ] && seeds+=("$d"); done
    echo "⚡ $name：$seconds 秒"
    ran=$((ran + 1))
    if "$program" -max_total_time="$seconds" -max_len=65536 -timeout=20 -rss_limit_mb=2048 \
        -artifact_prefix="build-fuzz/crash/$name-" -print_final_stats=1 "$corpus" "${seeds[@]}" \
        >"build-fuzz/$name.log" 2>&1; then
        runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "build-fuzz/$name.log")
        echo "✅ $name：$runs 次输入，无崩溃、越界、泄漏"
    else
        failed=$((failed + 1))
        echo "❌ $name：见 build-fuzz/$name.log 与 build-fuzz/crash/$name-*"
        tail -n 30 "build-fuzz/$name.log" | sed 's/^/     | /'
    fi
done
if [ $ran -eq 0 ]; then
    echo "❌ 没有名为 '$only' 的模糊测试" >&2
    exit 2
fi
exit $((failed > 0))
