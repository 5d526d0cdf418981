#!/usr/bin/env bash
# run_all — 矩阵里有坏单元、缺模型、崩溃的子进程时其余照跑；同一结果文件夹只许一个 run_all；排行榜、CSV、图都写出
. "$(dirname "$0")/lib.sh"
results=$work/results plots=$work/plots
data=$work/only # 只有演示模型的数据文件夹：llama3.1-8b 必定缺失
mkdir -p "$data/raw"
ln -s "$root/data/raw/demo" "$data/raw/demo"
experiment() { # 文件 eval.limit 方法…
    local file=$1 limit=$2
    shift 2
    printf 'name: e2e\nmodels: [%s]\ntracks: [A, B]\nmethods:\n' "${models:-demo}" >"$file"
    printf '  - %s\n' "$@" >>"$file"
    printf "overrides: {eval.limit: %s, eval.kl_windows: 1, data_dir: '%s'}\n" "$limit" "$data" >>"$file"
}
status_of() { # 说明里的文字：打印该失败结果的 status.code
    local f
    f=$(grep -l "$1" "$results"/*.json | tail -n 1) && "$json_get" "$f" status.code
}

models="demo, llama3.1-8b" experiment "$work/mix.yaml" 2 fp16 '{name: rtn, overrides: {weight.w_bits: 40}}' \
    '{name: rtn, label: W4, overrides: {weight.w_bits: 4}}' kivi # W4 在轨道 B、kivi 在 A 与 B 都不行
"$ptq" run_all "$work/mix.yaml" --dry_run >"$work/out" 2>"$work/err"
if [ ! -e "$results" ] && [ ! -s "$work/out" ] && [ "$(grep -c '将运行' "$work/err")" -eq 3 ]; then
    ok "--dry_run 只列出单元"
else
    not_ok "--dry_run 只列出单元" "$(cat "$work/out" "$work/err")"
fi

"$ptq" run_all "$work/mix.yaml" --results "$results" --plots "$plots" >"$work/out" 2>"$work/err"
rc=$?
if [ $rc -eq 1 ] && grep -q '完成 3，已有 0，失败 9，不适用 4，没有跑 0' "$work/err"; then
    ok "坏单元与缺模型只失那几格，退出码 1"
else
    not_ok "坏单元与缺模型只失那几格，退出码 1" "退出码 $rc；$(cat "$work/err")"
fi
if [ "$(status_of HF_TOKEN)" = missing ]; then ok "缺模型的失败记在结果里"; else not_ok "缺模型的失败记在结果里"; fi
if [ "$(status_of "得到 '40'")" = config ]; then ok "配置的失败记在结果里"; else not_ok "配置的失败记在结果里"; fi
check "屏幕上有榜" grep -q '排名组' "$work/out"
check "排行榜有失败的运行" grep -q '## 失败的运行' "$results/leaderboard.md"
check "CSV 有三行结果" test "$(wc -l <"$results/leaderboard.csv")" -eq 4
if command -v gnuplot >/dev/null; then
    check "图：PNG 与 SVG" sh -c "head -c 8 '$plots/demo_trackA_demo_ppl_vs_bits.png' | grep -q PNG &&
        grep -q '</svg>' '$plots/demo_trackA_demo_ppl_vs_memory.svg'"
else
    skip "图：PNG 与 SVG" "没有 gnuplot"
fi
"$ptq" leaderboard --results "$results" --plots "$plots" >"$work/again" 2>/dev/null
check "leaderboard 重做得到同样的榜" cmp "$work/out" "$work/again"
if PATH=/nonexistent "$ptq" leaderboard --results "$results" --plots "$work/none" >/dev/null 2>"$work/err" &&
    grep -q '⚠️ 没有 gnuplot.*apt-get' "$work/err"; then
    ok "没有 gnuplot：警告，其余照常"
else
    not_ok "没有 gnuplot：警告，其余照常" "$(cat "$work/err")"
fi

# 子进程崩溃、被杀；其间第二个 run_all 被拒绝
rm -rf "$results"
experiment "$work/crash.yaml" 0 fp16 rtn
"$ptq" run_all "$work/crash.yaml" --results "$results" --no_leaderboard >/dev/null 2>"$work/err" &
sweep=$!
child() { # 方法：等到子进程出现，打印进程号
    local i pid
    for i in $(seq 200); do
        for pid in $(cat /proc/$sweep/task/$sweep/children 2>/dev/null); do
            if tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -q -- "run_one .*--method $1 "; then
                echo "$pid"
                return
            fi
        done
        sleep 0.05
    done
}
pid=$(child fp16)
"$ptq" run_all "$work/crash.yaml" --results "$results" --no_leaderboard >/dev/null 2>"$work/second"
rc=$?
if [ $rc -eq 1 ] && grep -q "正被另一个 run_all（进程 $sweep）" "$work/second"; then
    ok "同一文件夹的第二个 run_all 被拒绝"
else
    not_ok "同一文件夹的第二个 run_all 被拒绝" "退出码 $rc；$(cat "$work/second")"
fi
kill -SEGV "$pid" && kill -KILL "$(child rtn)"
wait $sweep
rc=$?
pid=$(status_of '信号 11') killed=$(status_of '信号 9')
if [ $rc -eq 1 ] && [ "$pid" = io ] && [ "$killed" = memory ]; then
    ok "崩溃与被杀的单元各留下失败的结果"
else
    not_ok "崩溃与被杀的单元各留下失败的结果" "退出码 $rc；$pid $killed；$(cat "$work/err")"
fi
done_testing
