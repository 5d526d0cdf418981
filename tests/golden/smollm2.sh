#!/usr/bin/env bash
# smollm2 — SmolLM2-135M-Instruct 在 wikitext2 上各方法的 PPL，对照官方代码（make test-smollm2）
# 先取得模型与文本：scripts/prepare_data.sh --model smollm2-135m-instruct，以及 wikitext2。
# 环境: COMPUTE（默认 float32）、DEVICE（默认 auto）、PTQ_SHARED（对照数）、ROWS=正则（只跑名字相符的行）、THREADS、RESULTS=结果文件夹（默认 results，可上榜）、
#       EXTRA=再加的覆盖，空格分隔（如 "eval.speed=false eval.kl_windows=0"）
set -u
export LC_ALL=C.UTF-8
cd "$(dirname "$0")/../.." || exit 2
golden=${PTQ_SHARED:-../shared}/goldens/methods/smollm2.json
json_get=build/tests/tools/json_get
out=build/tmp/smollm2.$$.json
mkdir -p build/tmp
passed=0 failed=0
if [ ! -e "$golden" ]; then
    echo "❌ 没有 $golden（设 PTQ_SHARED）" >&2
    exit 1
fi

get() { $json_get "$golden" "results.$row.settings.$1"; }
set_to() { args+=(--override "$1=$2"); }

# 第 $row 行的 settings → run_one 的参数，放进数组 args；与本测试无关的行返回 1
row_args() {
    local method track=A extra
    args=()
    case $(get text) in
    std) dataset=wikitext2 ;;
    std_join) dataset=wikitext2-join ;;
    *) return 1 ;;
    esac
    case $(get base_weights) in
    bf16) set_to dtype bfloat16 ;;
    fp32) set_to dtype float32 ;;
    esac
    method=$($json_get "$golden" "results.$row.method")
    case $method in
    gptq | awq | omniquant | spqr | smoothquant | kvquant)
        set_to calibration.dataset wikitext2-valid
        set_to calibration.samples 16
        set_to calibration.length 512
        ;;
    esac
    case $method in
    rtn | gptq | omniquant) set_to weight.scale_dtype float32 ;;
    esac
    case $method in
    rtn | gptq | omniquant | spqr) set_to weight.w_bits "$(get bits)" ;;
    esac
    case $method in
    baseline) method=fp16 ;;
    rtn)
        set_to weight.group_size "$(get group)"
        case $(get grid) in
        gptq-sym) set_to weight.scheme symmetric ;;
        gptq-asym) set_to weight.scheme asymmetric ;;
        esac
        ;;
    gptq)
        set_to weight.group_size "$(get group)"
        set_to weight.scheme "$([ "$(get sym)" = true ] && echo symmetric || echo asymmetric)"
        set_to gptq.act_order "$(get desc_act)"
        set_to gptq.true_sequential "$(get true_sequential)"
        ;;
    awq)
        set_to weight.w_bits "$(get bits)"
        set_to weight.group_size "$(get q_group_size)"
        ;;
    omniquant)
        set_to weight.group_size "$(get group)"
        set_to omniquant.epochs "$(get epochs)"
        set_to omniquant.let "$([ "$(get let)" = true ] && echo on || echo off)"
        ;;
    spqr)
        set_to weight.group_size "$(get groupsize)"
        set_to spqr.outlier_threshold "$(printf %g "$(get outlier_threshold)")"
        ;;
    smoothquant)
        track=B
        set_to activation.scheme "$([ "$(get mode)" = static ] && echo static || echo per_token)"
        set_to weight.granularity "$([ "$(get mode)" = static ] && echo per_tensor || echo per_channel)"
        if [ "$(get alpha)" = null ]; then set_to smoothquant.smooth false; else set_to smoothquant.alpha "$(get alpha)"; fi
        ;;
    kivi)
        track=C
        for key in k_bits v_bits group_size residual_length; do set_to kv_cache.$key "$(get $key)"; done
        ;;
    kvquant)
        track=C
        set_to kv_cache.k_bits "$(get bits)"
        set_to kv_cache.v_bits "$(get bits)"
        set_to kvquant.outliers "$(printf %g "$(get outliers)")"
        set_to eval.kv_mode all
        ;;
    *) return 1 ;;
    esac
    args+=(--method "$method" --track $track --compute "${COMPUTE:-float32}" --threads "${THREADS:-0}"
        --device "${DEVICE:-auto}")
    set_to eval.ppl_datasets "[$dataset]"
    set_to eval.ppl_protocol gptq-2048
    for extra in ${EXTRA:-}; do args+=(--override "$extra"); done
}

row=0
while name=$($json_get "$golden" "results.$row.name"); do
    if [[ $name =~ ${ROWS:-.} ]] && row_args; then
        want=$($json_get "$golden" "results.$row.ppl_exact")
        tolerance=$($json_get "$golden" "results.$row.tolerance")
        if build/ptq-bench run_one --model smollm2-135m-instruct "${args[@]}" --json \
            --results "${RESULTS:-results}" >"$out" &&
            awk -v a="$($json_get "$out" "results.ppl.$dataset.ppl")" -v b="$want" -v t="$tolerance" \
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
    row=$((row + 1))
done
echo "$passed passed, $failed failed"
[ $failed -eq 0 ] && [ $passed -gt 0 ]
