#!/usr/bin/env bash
# add_method — 加一个方法 = 一个 .c + 一个 .yaml；加一个模型 = 一个 .yaml；动了 base.h 测试就失败
# 在树的副本里照 rtn 抄一份改名，编译、运行，结果须与 rtn 逐位相同，且没有别的文件被改。
. "$(dirname "$0")/lib.sh"

tree=$work/tree
mkdir -p "$tree/data" "$tree/tests"
cp -a Makefile src scripts configs .ci "$tree/" # 保留时间，只重编新加的
cp -r tests/data "$tree/tests/"
ln -s "$root/data/raw" "$tree/data/raw"
mkdir "$tree/build"
cp -a "$build/obj" "$build/gen" "$build/libptq.a" "$build/ptq-bench" "$tree/build/"
rm -rf "$tree/build/obj/compute/cuda"
find "$tree/src" "$tree/scripts" "$tree/configs" -type f | sort | xargs sha256sum >"$work/before"

# 名字之外一字不改
sed 's/rtn/nearest/g; s/Rtn/Nearest/g' "$tree/src/methods/rtn.c" >"$tree/src/methods/nearest.c"
sed 's/\brtn\b/nearest/g' "$tree/configs/methods/rtn.yaml" >"$tree/configs/methods/nearest.yaml"
check "加了 nearest.c 与 nearest.yaml 之后能编译" make -C "$tree" --no-print-directory all \
    BUILD=build "CC=$(sed 's/ -std=.*//' "$build/gen/flags.txt")" SAN= CUDA=

run() { # 模型 方法 输出
    "$tree/build/ptq-bench" run_one --model "$1" --method "$2" --track A --limit 2 --json \
        --results "$work/results" >"$3" 2>"$3.err"
}
ppl() { "$json_get" "$1" results.ppl.demo.ppl; }

if run demo nearest "$work/nearest.json" && run demo rtn "$work/rtn.json"; then
    a=$(ppl "$work/nearest.json") b=$(ppl "$work/rtn.json")
    if [ -n "$a" ] && [ "$a" = "$b" ]; then ok "新方法的结果与 rtn 逐位相同（PPL $a）"
    else not_ok "新方法的结果与 rtn 逐位相同" "$a / $b"; fi
else
    not_ok "新方法能运行" "$(cat "$work"/*.json.err)"
fi
"$tree/build/ptq-bench" list methods >"$work/list" 2>&1
check "list methods 列出新方法" grep -q nearest "$work/list"

sed 's/^name: demo$/name: demo-again/' "$tree/configs/models/demo.yaml" >"$tree/configs/models/demo-again.yaml"
if run demo-again fp16 "$work/again.json" && run demo fp16 "$work/demo.json" &&
    [ "$(ppl "$work/again.json")" = "$(ppl "$work/demo.json")" ]; then
    ok "新模型只要一个 YAML"
else
    not_ok "新模型只要一个 YAML" "$(cat "$work"/{again,demo}.json.err)"
fi

check "别的文件都没有动" sha256sum --check --quiet "$work/before"

# 方法契约：改一个字节，冻结检查就失败
echo >>"$tree/src/methods/base.h"
if (cd "$tree" && sha256sum --check --status tests/data/base.h.sha256); then
    not_ok "改动 base.h 会被发现"
else
    ok "改动 base.h 会被发现"
fi
done_testing
