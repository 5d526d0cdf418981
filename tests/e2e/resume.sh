#!/usr/bin/env bash
# resume — 量化中途 kill -9，再启动从最后做完的块接着做，数字逐位相同；存下的块坏了就重做；做完后不留文件
. "$(dirname "$0")/lib.sh"
blocks=$data/processed/blocks
quantize() { # 方法 结果文件 [参数…]
    local method=$1 out=$2
    shift 2
    "$ptq" run_one --model demo --method "$method" --track A --limit 2 --results "$work/results" --json \
        --override "data_dir='$data'" --override eval.speed=false --override eval.kl_windows=0 \
        --override calibration.samples=8 --override calibration.length=256 \
        --override weight.group_size=48 "$@" >"$out" 2>"$work/err"
}
value() { "$json_get" "$1" "$2"; }

for method in gptq awq spqr; do
    if ! quantize $method "$work/whole.json"; then
        not_ok "$method：不中断的运行" "$(cat "$work/err")"
        continue
    fi
    quantize $method "$work/killed.json" 2>/dev/null &
    pid=$!
    for _ in $(seq 3000); do
        [ -z "$(find "$blocks" -name 'block-0002.bin' 2>/dev/null)" ] || break
        kill -0 $pid 2>/dev/null || break
        sleep 0.01
    done
    pkill -9 -P $pid 2>/dev/null
    kill -9 $pid 2>/dev/null
    wait $pid 2>/dev/null
    check "$method：中断后块还在" test -n "$(find "$blocks" -name 'block-0001.bin')"
    # 最后一块写坏一个字节：须被认出而重做
    last=$(find "$blocks" -name 'block-*.bin' | sort | tail -1)
    printf '\377' | dd of="$last" bs=1 seek=5000 conv=notrunc status=none
    quantize $method "$work/resumed.json"
    check "$method：接着上次" grep -q '接着上次' "$work/err"
    for key in results.ppl.demo.ppl quantization.weight_mse quantization.bytes.total fallbacks; do
        a=$(value "$work/whole.json" $key) b=$(value "$work/resumed.json" $key)
        if [ -n "$a" ] && [ "$a" = "$b" ]; then ok "$method：$key 相同（$a）"; else not_ok "$method：$key" "$a ≠ $b"; fi
    done
    check "$method：做完后不留存下的块" test -z "$(find "$blocks" -name 'block-*.bin')"
done
done_testing
