#!/usr/bin/env bash
# load_rate — 从页缓存载入一个大模型的速率与内存复制比：在 DIR 造一个约 GB 大的模型（llama2-7b 的形状，bf16），载入几遍，删掉
# 用法: [DIR=/dev/shm] load_rate.sh [GB=14 [线程数=全部核 [遍数=3]]]；要先 make all tests。要约 3 倍的内存（DIR 在内存里时）；不要网络。
# 目标：载入的速率不低于复制的 60 %（issue 7 第 5 点）；低于它时退出码为 1。
set -eu
cd "$(dirname "$0")/../.."
gb=${1:-14} threads=${2:-$(nproc)} runs=${3:-3} build=${PTQ_TEST_BUILD:-build}
model=${DIR:-/dev/shm}/ptq-load-rate.$$
layers=$(awk -v g="$gb" 'BEGIN { n = int((g - 0.52) / 0.405); print (n < 1 ? 1 : n > 32 ? 32 : n) }') # 词嵌入与头 0.52 GB，一层 0.405 GB
trap 'rm -rf "$model"' EXIT
"$build/ptq-bench" synth --like llama2-7b --layers "$layers" --output "$model" --threads "$threads" --quiet
"$build/tests/bench/bench_load" "$model" "$threads" "$runs" | tee "$model/report"
awk -F '的速率是它们的 ' '/^中位数/ {
    split($2, part, " ")
    printf "中位数：载入是复制到新内存的 %d %%、到用过的内存的 %d %%，目标 60 %%\n", part[1], substr($2, index($2, "、") + length("、"))
    exit !(part[1] >= 60)
}' "$model/report"
