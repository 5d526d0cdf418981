#!/usr/bin/env bash
# max_memory — 内存上限之下逐块载入：PPL 逐位相同，峰值更低，结果里记着；写法不对报错
. "$(dirname "$0")/lib.sh"
run() { # 方法 结果文件 [参数…]
    local method=$1 out=$2
    shift 2
    local calib=()
    [ "$method" = fp16 ] || calib=(--override calibration.samples=4 --override calibration.length=128)
    "$ptq" run_one --model demo --method "$method" --track A --limit 2 --results "$work/results" --json \
        --override "data_dir='$data'" --override eval.speed=false --override dtype=float32 \
        "${calib[@]}" "$@" >"$out" 2>"$work/err"
}
value() { "$json_get" "$1" "$2"; }

for method in fp16 gptq; do
    check "$method：不限" run $method "$work/free.json"
    check "$method：--max_memory 50MB" run $method "$work/tight.json" --max_memory 50MB
    a=$(value "$work/free.json" results.ppl.demo.ppl) b=$(value "$work/tight.json" results.ppl.demo.ppl)
    if [ -n "$a" ] && [ "$a" = "$b" ]; then ok "$method：PPL 逐位相同（$a）"; else not_ok "$method：PPL" "$a ≠ $b"; fi
    check "$method：记在 fallbacks" grep -q 'max_memory' "$work/tight.json"
done
run fp16 "$work/free.json"
run fp16 "$work/tight.json" --max_memory 50MB
a=$(value "$work/free.json" results.system_metrics.alloc_peak_mb)
b=$(value "$work/tight.json" results.system_metrics.alloc_peak_mb)
if awk -v a="$a" -v b="$b" 'BEGIN { exit !(b > 0 && b < a - 10) }'; then
    ok "峰值更低（$a → $b MB）"
else
    not_ok "峰值更低" "$a → $b MB"
fi
run fp16 "$work/bad.json" --max_memory 4zb
rc=$?
if [ $rc -ne 0 ] && grep -q 'max_memory' "$work/err"; then ok "写法不对：报错"; else not_ok "写法不对：报错" "$(cat "$work/err")"; fi
done_testing
