#!/usr/bin/env bash
# synth — 造的文件夹装得起来、量化得了、1 与 2 线程相同；中断、重名、坏的选项说清楚并收拾干净
. "$(dirname "$0")/lib.sh"

check "造 2 层" "$ptq" synth --like smollm2-135m --layers 2 --output "$work/one" --threads 1 --quiet
check "2 线程" "$ptq" synth --like smollm2-135m --layers 2 --output "$work/two" --threads 2 --quiet
check "1 与 2 线程逐字节相同" diff -r "$work/one" "$work/two"

printf '一个\tword, 1234' >"$work/t.txt"
ids=$("$ptq" tokenize --model "$work/one" --file "$work/t.txt" 2>/dev/null | tr -d '[] \n')
want=$(od -An -v -tu1 "$work/t.txt" | tr -s ' \n' ',' | sed 's/^,//; s/,$//')
if [ "$ids" = "$want" ]; then ok "分词就是字节"; else not_ok "分词就是字节" "$ids，应为 $want"; fi

if "$ptq" run_one --model "$work/one" --method rtn --track A --results "$work/results" --json --quiet \
    --override "data_dir='$data'" --override eval.ppl_datasets=[demo] --override eval.ppl_protocol=gptq-128 --limit 2 \
    --override eval.decode_tokens=2 --override eval.kl_windows=0 --override eval.baseline=off \
    2>"$work/err" >"$work/run.json"; then
    ppl=$("$json_get" "$work/run.json" results.ppl.demo.ppl)
    # 随机的权重：PPL 与词表（49152）同一个量级
    if awk -v p="$ppl" 'BEGIN { exit !(p > 4915 && p < 491520) }'; then ok "量化、评测、测速（PPL $ppl）"; else
        not_ok "PPL" "$ppl"; fi
else
    not_ok "量化、评测、测速" "$(cat "$work/err")"
fi

refused() { # 描述 退出码 片段 参数…
    local what=$1 code=$2 want=$3 rc
    shift 3
    output=$("$ptq" synth "$@" 2>&1)
    rc=$?
    case $rc:$output in "$code":*"$want"*) ok "$what" ;; *) not_ok "$what" "$rc: $output" ;; esac
}
refused "文件夹不空" 2 "不是空的" --like smollm2-135m --output "$work/one"
refused "近似的名字" 2 "'llama3.1-8b'？" --like llama3.1_8b --output "$work/x"
refused "层数" 2 "--layers 应为 1 到" --like smollm2-135m --layers 0 --output "$work/x"
refused "类型" 2 "--dtype 应为 bf16 或 f16" --like smollm2-135m --dtype f32 --output "$work/x"
(
    ulimit -f 20000
    trap '' XFSZ
    "$ptq" synth --like smollm2-135m --layers 2 --output "$work/x" >/dev/null 2>"$work/err"
)
rc=$?
if [ $rc -eq 1 ] && grep -q "写入 .*失败" "$work/err" && [ ! -e "$work/x" ]; then ok "写不下：报错，不留文件夹"; else
    not_ok "写不下" "$rc: $(cat "$work/err"; ls -A "$work/x" 2>&1)"; fi
"$ptq" synth --like smollm2-135m --output "$work/y" --quiet 2>/dev/null &
pid=$!
while kill -0 $pid 2>/dev/null && [ ! -e "$work/y/model.safetensors" ]; do sleep 0.01; done
kill -INT $pid 2>/dev/null
wait $pid
rc=$?
if [ $rc -eq 130 ] && [ ! -e "$work/y" ]; then ok "Ctrl-C：130，不留文件夹"; else not_ok "Ctrl-C" "$rc: $(ls -A "$work/y" 2>&1)"; fi
done_testing
