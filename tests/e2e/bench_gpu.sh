#!/usr/bin/env bash
# bench_gpu — 测速脚本在 CPU 上走一遍（演示模型，很小的设置）：每行有数、命令照抄能跑、坏的方法名使退出码为 1
. "$(dirname "$0")/lib.sh"
run() { # 变量=值…
    env DEVICE=cpu COMPUTE=float32 PTQ="$ptq" MODEL="$root/data/raw/demo/model" WORK="$work" OUT="$work/out" REPEATS=1 KEEP=1 \
        WINDOW=64 WINDOWS=1 CONTEXT=16 TOKENS=2 BATCH=3 SAMPLES=2 LENGTH=32 EPOCHS=1 "$@" bash scripts/bench_gpu.sh 2>&1
}
if output=$(run METHODS="rtn gptq"); then ok "跑完"; else not_ok "跑完" "$output"; fi
bad=$(awk -F'\t' 'NR > 1 && !($2 > 0 && $8 > 0 && $9 ~ /^ptq-bench run_one /) { print }' "$work/out/gpu.tsv")
rows=$(($(wc -l <"$work/out/gpu.tsv") - 1))
if [ -z "$bad" ] && [ "$rows" -eq 9 ]; then ok "九行都有数与命令"; else not_ok "九行都有数与命令" "$rows 行；$bad"; fi
command=$(awk -F'\t' '/^解码.*批 3/ { print $9 }' "$work/out/gpu.tsv")
read -ra words <<<"$command"
if "$ptq" "${words[@]:1}" --json --quiet >"$work/again.json" 2>"$work/err" &&
    [ "$("$json_get" "$work/again.json" results.system_metrics.decode_batch)" = 3 ]; then ok "表里的命令照抄能跑"; else
    not_ok "表里的命令照抄能跑" "$command；$(cat "$work/err")"; fi
output=$(run PARTS=quant METHODS=gptqq)
rc=$?
case $rc:$output in 1:*"没有 gptqq"*) ok "坏的方法名" ;; *) not_ok "坏的方法名" "$rc: $output" ;; esac
done_testing
