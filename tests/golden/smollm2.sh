#!/usr/bin/env bash
# smollm2 — SmolLM2-135M-Instruct 在 wikitext2 上的 PPL 与 RTN，对照 GPTQ 官方代码（make test-smollm2）
# 先取得模型与文本：scripts/prepare_data.sh --model smollm2-135m-instruct，以及 wikitext2。
# 环境: PTQ_SHARED（对照数）、ROWS=正则（只跑名字相符的行）、RESULTS=结果文件夹（默认 results，可上榜）
set -u
export LC_ALL=C.UTF-8
cd "$(dirname "$0")/../.." || exit 2
golden=${PTQ_SHARED:-../shared}/goldens/methods/smollm2.json
json_get=build/tests/tools/json_get
out=build/tmp/smollm2.json
mkdir -p build/tmp
passed=0 failed=0
if [ ! -e "$golden" ]; then
    echo "❌ 没有 $golden（设 PTQ_SHARED）" >&2
    exit 1
fi

# 第 $1 行的 settings → run_one 的参数，放进数组 args；与本测试无关的行返回 1
row_args() {
    local at=results.$1
    args=()
    [ "$($json_get "$golden" "$at.settings.text")" = std ] || return 1
    case $($json_get "$golden" "$at.settings.base_weights") in
    bf16) args+=(--override dtype=bfloat16) ;;
    fp32) args+=(--override dtype=float32) ;;
    esac
    case $($json_get "$golden" "$at.method") in
    baseline) args+=(--method fp16) ;;
    rtn)
        args+=(--method rtn --override weight.scale_dtype=float32
            --override "weight.w_bits=$($json_get "$golden" "$at.settings.bits")"
            --override "weight.group_size=$($json_get "$golden" "$at.settings.group")")
        case $($json_get "$golden" "$at.settings.grid") in
        gptq-sym) args+=(--override weight.scheme=symmetric) ;;
        gptq-asym) args+=(--override weight.scheme=asymmetric) ;;
        esac
        ;;
    *) return 1 ;;
    esac
}

i=0
while name=$($json_get "$golden" "results.$i.name"); do
    if row_args $i && [[ $name =~ ${ROWS:-.} ]]; then
        want=$($json_get "$golden" "results.$i.ppl_exact")
        tolerance=$($json_get "$golden" "results.$i.tolerance")
        if build/ptq-bench run_one --model smollm2-135m-instruct --track A "${args[@]}" --json \
            --override 'eval.ppl_datasets=[wikitext2]' --override eval.ppl_protocol=gptq-2048 \
            --results "${RESULTS:-results}" >"$out" &&
            awk -v a="$($json_get "$out" results.ppl.wikitext2.ppl)" -v b="$want" -v t="$tolerance" \
                -v name="$name" 'BEGIN {
                    d = a / b - 1
                    printf "📊 %s：PPL %.6f，对照 %.6f，相对差 %.1e（容差 %.1e）\n", name, a, b, d, t
                    exit !(d <= t && d >= -t) }'; then
            passed=$((passed + 1))
        else
            failed=$((failed + 1))
            echo "❌ $name"
        fi
    fi
    i=$((i + 1))
done
echo "$passed passed, $failed failed"
[ $failed -eq 0 ] && [ $passed -gt 0 ]
