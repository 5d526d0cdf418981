#!/usr/bin/env bash
# kill9 — 在随机时刻 kill -9 run_all：没有坏的、丢的、重复的结果；再跑就接着做完
# KILLS=次数（默认 10）。每次杀后检查：每个 .json 都完整且成功、以前的都在且未变、没有两个相同的 run_key。
. "$(dirname "$0")/lib.sh"
kills=${KILLS:-10} cells=6
experiment=$work/kill.yaml results=$work/results
cat >"$experiment" <<YAML
name: kill
models: [demo]
tracks: [A]
methods:
  - fp16
$(for b in 8 6 5 4 3; do echo "  - {name: rtn, label: W$b, overrides: {weight.w_bits: $b}}"; done)
overrides: {eval.limit: 4, eval.kl_windows: 2, eval.speed: false, data_dir: '$data'}
YAML

run_all() { exec "$ptq" run_all "$experiment" --results "$results" --no_leaderboard "$@"; }

# 检查全部结果；打印第一个问题并返回 1
inspect() {
    local f
    for f in "$results"/*.json; do
        [ -e "$f" ] || continue
        "$json_get" "$f" >/dev/null || { echo "坏的结果 $f"; return 1; }
        [ "$("$json_get" "$f" status.ok)" = true ] || { echo "失败的结果 $f"; return 1; }
        "$json_get" "$f" results.ppl.demo.ppl >/dev/null || { echo "不全的结果 $f"; return 1; }
        [ -e "${f%.json}.md" ] || { echo "缺少 ${f%.json}.md"; return 1; }
    done
    if [ -e "$work/seen" ] && ! sha256sum --check --quiet "$work/seen"; then
        echo "以前的结果丢了或变了"
        return 1
    fi
    sha256sum "$results"/*.json >"$work/seen" 2>/dev/null || rm -f "$work/seen"
    local repeated
    repeated=$(for f in "$results"/*.json; do [ -e "$f" ] && "$json_get" "$f" run_key; done | sort | uniq -d)
    [ -z "$repeated" ] || { echo "重复的 run_key $repeated"; return 1; }
}
count() { find "$results" -name '*.json' 2>/dev/null | wc -l; }

interrupted=0 problem=
for _ in $(seq "$kills"); do
    if [ "$(count)" -ge $cells ]; then rm -rf "$results" "$work/seen"; fi
    (run_all) >/dev/null 2>"$work/err" &
    pid=$!
    sleep "$(printf '0.%03d' $((RANDOM % 1000)))"
    [ $((RANDOM % 3)) -gt 0 ] || sleep 1
    if kill -9 $pid 2>/dev/null; then interrupted=$((interrupted + 1)); fi
    wait $pid 2>/dev/null
    sleep 0.1 # 子进程随父进程被杀，等它消失
    if ! problem=$(inspect); then break; fi
done
if [ -z "$problem" ]; then ok "$interrupted 次 kill -9（共 $kills 次启动）：没有坏的、丢的、重复的结果"
else not_ok "kill -9 之后结果完好" "$problem"; fi

if (run_all) >/dev/null 2>"$work/err" && inspect && [ "$(count)" -eq $cells ]; then
    ok "再启动接着做完：恰有 $cells 个结果"
else
    not_ok "再启动接着做完：恰有 $cells 个结果（现有 $(count)）" "$(cat "$work/err")"
fi
if (run_all) >/dev/null 2>"$work/err" && inspect && [ "$(count)" -eq $cells ]; then
    ok "全部做完后再跑，不重复"
else
    not_ok "全部做完后再跑，不重复（现有 $(count)）" "$(cat "$work/err")"
fi
left=$(find "$results" -type f ! -name '*.json' ! -name '*.md' ! -name '.run_all.lock')
if [ -z "$left" ]; then ok "没有残留的临时文件"; else not_ok "没有残留的临时文件" "$left"; fi
done_testing
