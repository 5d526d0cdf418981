#!/usr/bin/env bash
# max_memory — 内存上限之下逐块载入、样本的大数组放在磁盘上：九个方法的 PPL 都逐位相同，峰值在上限之下；写法不对报错
. "$(dirname "$0")/lib.sh"
run() { # 方法 结果文件 [参数…]
    local method=$1 out=$2
    shift 2
    local calib=()
    case $method in
    fp16 | rtn | kivi) ;;
    *) calib=(--override calibration.samples=8 --override calibration.length=256 --override stats_cache=0B) ;;
    esac
    "$ptq" run_one --model demo --method "$method" --track "$track" --limit 1 --results "$work/results" --json \
        --override "data_dir='$data'" --override eval.speed=false --override eval.kl_windows=0 --override eval.baseline=off \
        "${calib[@]}" "$@" >"$out" 2>"$work/err"
}
track=A
value() { "$json_get" "$1" "$2"; }

# 九个方法：上限之下（样本的大数组放在磁盘上）PPL 逐位相同，峰值不过上限
limit=70
for row in 'fp16 A' 'rtn A' 'gptq A' 'spqr A' 'awq A awq.n_grid=2 awq.clip=false' 'omniquant B omniquant.epochs=1' \
    'smoothquant B smoothquant.search=true' 'kivi C' 'kvquant C'; do
    read -r method track settings <<<"$row"
    args=()
    for x in $settings; do args+=(--override "$x"); done
    check "$method：不限" run "$method" "$work/free.json" "${args[@]}"
    check "$method：--max_memory ${limit}MB" run "$method" "$work/tight.json" "${args[@]}" --max_memory ${limit}MB
    a=$(value "$work/free.json" results.ppl.demo.ppl) b=$(value "$work/tight.json" results.ppl.demo.ppl)
    if [ -n "$a" ] && [ "$a" = "$b" ]; then ok "$method：PPL 逐位相同（$a）"; else not_ok "$method：PPL" "$a ≠ $b"; fi
    check "$method：记在 fallbacks" grep -q 'max_memory' "$work/tight.json"
    a=$(value "$work/free.json" results.system_metrics.alloc_peak_mb)
    b=$(value "$work/tight.json" results.system_metrics.alloc_peak_mb)
    if awk -v b="$b" -v l=$limit 'BEGIN { exit !(b > 0 && b < l) }'; then
        ok "$method：峰值在上限之下（$a → $b MB）"
    else
        not_ok "$method：峰值" "$a → $b MB，上限 $limit MB"
    fi
done
track=A
check "磁盘上的临时文件都没有留下" test -z "$(find "$data/processed" -name '.ptq-tmp-*')"
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
