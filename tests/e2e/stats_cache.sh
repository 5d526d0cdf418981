#!/usr/bin/env bash
# stats_cache — 校准统计由几次运行共用：取自存档与重算逐位相同，位宽不同也共用，坏了就重算，有上限，可以不存
. "$(dirname "$0")/lib.sh"
stats=$data/processed/stats
quantize() { # 方法 轨道 结果文件 [设置…]
    local method=$1 track=$2 out=$3 args=()
    shift 3
    for x in "$@"; do args+=(--override "$x"); done
    "$ptq" run_one --model demo --method "$method" --track "$track" --limit 1 --results "$work/results" --json \
        --override "data_dir='$data'" --override eval.speed=false --override eval.kl_windows=0 \
        --override eval.baseline=off --override calibration.samples=3 --override calibration.length=64 \
        "${args[@]}" >"$out" 2>"$work/err" || cat "$work/err"
}
value() { "$json_get" "$1" "$2"; }
shared() { # 描述 结果文件 true|false
    local got
    got=$(value "$2" quant_time.shared_statistics)
    if [ "$got" = "$3" ]; then ok "$1"; else not_ok "$1" "shared_statistics 是 $got"; fi
}
same() { # 描述 甲 乙
    local a b
    a=$(value "$2" results.ppl.demo.ppl)$(value "$2" quantization.weight_mse)
    b=$(value "$3" results.ppl.demo.ppl)$(value "$3" quantization.weight_mse)
    if [ -n "$a" ] && [ "$a" = "$b" ]; then ok "$1（$a）"; else not_ok "$1" "$a ≠ $b"; fi
}

cold=$work/cold.json warm=$work/warm.json free=$work/free.json
case_of() { # 方法 轨道 第二次的设置（另一个位宽等） [两次都有的设置…]
    local method=$1 track=$2 other=$3
    shift 3
    quantize "$method" "$track" "$cold" "$@"
    shared "$method：第一次是算的" "$cold" false
    quantize "$method" "$track" "$warm" "$@"
    shared "$method：第二次取自存档" "$warm" true
    same "$method：逐位相同" "$cold" "$warm"
    quantize "$method" "$track" "$warm" "$@" "$other"
    shared "$method：$other 也取自存档" "$warm" true
    quantize "$method" "$track" "$free" "$@" "$other" stats_cache=0B
    shared "$method：stats_cache=0B 不用" "$free" false
    same "$method：$other 与不用存档逐位相同" "$warm" "$free"
}
case_of gptq A weight.w_bits=3 gptq.sequential=false
case_of smoothquant B smoothquant.alpha=0.8
case_of kvquant C kv_cache.k_bits=2

# spqr 与 gptq 的 Hessian 是同一套；官方的次序只有第 0 块可以共用
quantize spqr A "$warm" spqr.sequential=false
shared "spqr 用 gptq 存下的" "$warm" true
quantize gptq A "$warm" && quantize gptq A "$free" stats_cache=0B
shared "gptq 依次量化：第 0 块的取自存档" "$warm" true
same "gptq 依次量化：逐位相同" "$warm" "$free"

# 任一文件坏了一个字节：整套重算，结果不变
for f in "$stats"/*/0001.stat; do printf '\377' | dd of="$f" bs=1 seek=700 conv=notrunc status=none; done
quantize gptq A "$warm" gptq.sequential=false
shared "坏了就重算" "$warm" false
quantize gptq A "$free" gptq.sequential=false
shared "重算之后又存好了" "$free" true
same "坏了重算与再取逐位相同" "$warm" "$free"

# 换了校准集就不是一套；上限之下旧的被清走，一套就超过则不存
sets=$(ls "$stats" | wc -l)
quantize smoothquant B "$warm" calibration.seed=5
if [ "$(ls "$stats" | wc -l)" = $((sets + 1)) ]; then ok "换了校准集：另存一套"; else not_ok "换了校准集：另存一套" "$(ls "$stats")"; fi
quantize smoothquant B "$warm" calibration.seed=6 stats_cache=100KB
size=$(find "$stats" -name '*.stat' -printf '%s\n' | awk '{ s += $1 } END { print s + 0 }')
if [ "$size" -gt 0 ] && [ "$size" -le 100000 ]; then ok "上限之下（$size 字节）"; else not_ok "上限" "$size 字节"; fi
quantize gptq A "$warm" gptq.sequential=false stats_cache=100KB
check "一套就超过上限：说明不存" grep -q 'stats_cache' "$work/err"
rm -rf "$stats"
quantize gptq A "$warm" stats_cache=0B
check "stats_cache=0B：什么也不写" test ! -e "$stats"
quantize gptq A "$warm" stats_cache=many >/dev/null
check "写法不对：报错" grep -q 'stats_cache' "$work/err"
done_testing
