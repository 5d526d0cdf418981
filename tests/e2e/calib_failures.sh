#!/usr/bin/env bash
# calib_failures — 校准出的错：文本太短、激活里的 NaN、奇异的 Hessian。说明清楚、退出码、不崩溃，不留下写到一半的文件
. "$(dirname "$0")/lib.sh"
run() { # 模型 方法 轨道 [设置…]
    local model=$1 method=$2 track=$3 args=()
    shift 3
    for x in "$@"; do args+=(--override "$x"); done
    "$ptq" run_one --model "$model" --method "$method" --track "$track" --limit 1 --results "$work/results" --json \
        --override "data_dir='$data'" --override eval.speed=false --override eval.kl_windows=0 \
        --override eval.baseline=off --override calibration.samples=2 --override calibration.length=64 \
        "${args[@]}" >"$work/out.json" 2>"$work/err"
}
fails() { # 描述 应有的说明 run 的参数…：退出码 1，说明相符
    local what=$1 want=$2 rc
    shift 2
    run "$@"
    rc=$?
    if [ $rc -eq 1 ] && grep -qE "$want" "$work/err"; then ok "$what"; else not_ok "$what" "退出码 $rc：$(cat "$work/err")"; fi
}
no_leftovers() { # 描述：没有成功的结果，没有临时文件
    check "$1：没有写到一半的文件" test -z "$(find "$work" -name '.ptq-tmp-*' -o -name '*.tmp')"
    check "$1：没有算作成功的结果" test -z "$(grep -ls '"ok": true' "$work"/results/*.json)"
}

methods='gptq A|spqr A|awq A|omniquant A|smoothquant B|kvquant C'

# 文本太短
printf 'too short' >"$work/short.txt"
while read -r method track; do
    fails "$method：校准文本太短" '校准文本 short.txt 只有 [0-9]+ 个 token，不够一个长 64 的样本' \
        demo "$method" "$track" "calibration.dataset='$work/short.txt'"
done <<<"${methods//|/$'\n'}"
no_leftovers 太短

# 激活里的 NaN：第 3 层 up_proj 的一行换成 bf16 最大的有限数，权重都有限而前向溢出
mkdir "$work/model"
cp "$root"/data/raw/demo/model/*.json "$work/model/"
cp "$root/data/raw/demo/model/model.safetensors" "$work/model/" && chmod u+w "$work/model/model.safetensors"
head -c 512 /dev/zero | tr '\0' '\177' | dd of="$work/model/model.safetensors" bs=1 seek=7613784 conv=notrunc 2>/dev/null
while read -r method track; do
    fails "$method：激活溢出" 'layers.3.mlp.*NaN 或 Inf|第 3 层.*NaN 或 Inf|窗口的损失不是有限值' "$work/model" "$method" "$track"
done <<<"${methods//|/$'\n'}"
check "溢出：失败的原因记在结果里" grep -qs '"code": "numeric"' "$work"/results/*.json
no_leftovers 溢出

# 奇异的 Hessian：32 个 token 撑不满 256 维；不加阻尼就不正定，升到能分解为止，记在 fallbacks
check "gptq：奇异的 Hessian 照样做完" run demo gptq A calibration.samples=1 calibration.length=32 gptq.damp=0
check "gptq：升了的阻尼记在 fallbacks" grep -q 'q_proj: Hessian 不正定，阻尼由 0 升到' "$work/out.json"
check "gptq：PPL 是有限数" sh -c "'$json_get' '$work/out.json' results.ppl.demo.ppl | grep -qE '^[0-9]+\.[0-9]+$'"
done_testing
