#!/usr/bin/env bash
# export — 写出的文件夹装回来就是评测的那个模型；放不下、写不成时说清楚
. "$(dirname "$0")/lib.sh"
settings=(--override "data_dir='$data'" --override dtype=float32)
calib() { # 方法：要校准的少取一些
    case $1 in gptq | awq) echo --override calibration.samples=4 --override calibration.length=128 ;; esac
}
export_to() { # 文件夹 方法 格式 [参数…]
    local out=$1 method=$2 format=$3
    shift 3
    "$ptq" export --model "$root/data/raw/demo/model" --method "$method" --format "$format" --out "$out" --quiet "${settings[@]}" \
        $(calib "$method") "$@"
}
ppl() { # 模型 方法 [参数…]
    local model=$1 method=$2
    shift 2
    "$ptq" run_one --model "$model" --method "$method" --track A --limit 2 --results "$work/results" --json --quiet \
        --override eval.speed=false --override eval.ppl_datasets=[demo] --override eval.ppl_protocol=gptq-256 \
        "${settings[@]}" $(calib "$method") "$@" 2>"$work/err" >"$work/run.json" && "$json_get" "$work/run.json" results.ppl.demo.ppl
}

for method in gptq awq; do # awq 折叠归一化：写的须是折叠后的
    check "$method：hf-dequantized" export_to "$work/$method" "$method" hf-dequantized
    a=$(ppl "$root/data/raw/demo/model" "$method") b=$(ppl "$work/$method" fp16)
    if [ -n "$a" ] && awk -v a="$a" -v b="$b" 'BEGIN { exit !(b > 0 && (a - b) * (a - b) < 1e-6 * a * a) }'; then
        ok "$method：装回来的 PPL 相同（$a，$b）"
    else
        not_ok "$method：装回来的 PPL" "$a，$b"
    fi
done
for format in gptq awq compressed-tensors; do
    check "rtn：$format" export_to "$work/rtn-$format" rtn "$format" --override weight.group_size=32
    check "$format：config.json 有 quantization_config" grep -q quantization_config "$work/rtn-$format/config.json"
    check "$format：分词器原样" cmp data/raw/demo/model/tokenizer.json "$work/rtn-$format/tokenizer.json"
done

same() { # 描述 甲 乙：相对差 1e-6 之内
    if [ -n "$2" ] && awk -v a="$2" -v b="$3" 'BEGIN { exit !(b > 0 && (a - b) * (a - b) < 1e-12 * a * a) }'; then
        ok "$1（$2，$3）"
    else
        not_ok "$1" "$2，$3"
    fi
}
group=(--override weight.group_size=32 --override weight.scale_dtype=float16)
want=$(ppl "$root/data/raw/demo/model" rtn "${group[@]}")
bits=$("$json_get" "$work/run.json" quantization.effective_bits.linear)
for format in gptq awq compressed-tensors; do # 我们的导出作为别人量化好的检查点装回来
    rm -rf "${work:?}/rtn-$format"
    export_to "$work/rtn-$format" rtn "$format" "${group[@]}"
    same "$format：pretrained:$format 的 PPL" "$want" "$(ppl "$work/rtn-$format" "pretrained:$format")"
    same "$format：有效位宽" "$bits" "$("$json_get" "$work/run.json" quantization.effective_bits.linear)"
    check "$format：结果里的组宽" grep -q '"weight.group_size": *32' "$work/run.json"
done

for bits in 4 8; do # 编码与缩放逐个写进块里：装回来一位不差
    check "gguf：$bits 位" export_to "$work/w$bits.gguf" rtn gguf "${group[@]}" --override weight.w_bits=$bits
    same "gguf：$bits 位装回来的 PPL" "$(ppl "$root/data/raw/demo/model" rtn "${group[@]}" --override weight.w_bits=$bits)" \
        "$(ppl "$work/w$bits.gguf" fp16)"
done

refused() { # 描述 片段 命令…
    local what=$1 want=$2
    shift 2
    if output=$("$@" 2>&1); then not_ok "$what" "没有报错"; else
        case $output in *"$want"*) ok "$what" ;; *) not_ok "$what" "$output" ;; esac
    fi
}
refused "文件夹不空" "不是空的" export_to "$work/gptq" rtn gptq --override weight.group_size=32
refused "没有量化的层" "没有一个线性层" export_to "$work/none" fp16 gptq
refused "格式的近似名" "compressed-tensors" export_to "$work/x" rtn compressed_tensors
refused "gguf 的文件名" ".gguf 结尾" export_to "$work/w4" rtn gguf
refused "gguf 已经存在" "已经存在" export_to "$work/w4.gguf" rtn gguf
refused "放不下的位宽" "没有 5 位" export_to "$work/y" rtn awq --override weight.w_bits=5
run_one() {
    "$ptq" run_one --model "$1" --method "$2" --track A --dry_run "${settings[@]}"
}
refused "已量化的用 fp16" "--method pretrained:gptq" run_one "$work/rtn-gptq" fp16
refused "已量化的用错格式" "--method pretrained:awq" run_one "$work/rtn-awq" pretrained:gptq
refused "没有量化的用 pretrained" "没有量化" run_one "$root/data/raw/demo/model" pretrained:gptq
refused "方法名写错" "pretrained:gptq" run_one "$work/rtn-gptq" pretrained:gtpq
check "已量化的 --dry_run" run_one "$work/rtn-gptq" pretrained:gptq
sed 's/"quant_method": *"gptq"/"quant_method": "quip"/' "$work/rtn-gptq/config.json" >"$work/config" && mv "$work/config" "$work/rtn-gptq/config.json"
refused "不认识的 quant_method" "gptq、awq、compressed-tensors、bitsandbytes、hqq" run_one "$work/rtn-gptq" pretrained:gptq
done_testing
