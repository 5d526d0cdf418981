#!/usr/bin/env bash
# serve_load — HTTP 服务的负载：CLIENTS 个并发的客户共 REQUESTS 个请求，报 请求/秒 与 p50、p99（只连本机，至多 120 秒）
# 用法: serve_load.sh [请求数 [并发]]；MODEL=（缺省 demo）。打分与生成各量一次。
set -u
cd "$(dirname "$0")/../.." || exit 2
requests=${1:-512} clients=${2:-64}
[ "$requests" -le 10000 ] && [ "$clients" -le 256 ] || { echo "❌ 请求数至多 10000，并发至多 256" >&2; exit 2; }
work=$(mktemp -d)
trap 'kill -INT "$pid" 2>/dev/null; wait "$pid" 2>/dev/null; rm -rf "$work"' EXIT
build/ptq-bench serve --model "${MODEL:-demo}" --method rtn --port 0 --quiet --max_queue 512 >"$work/url" &
pid=$!
for _ in $(seq 1200); do [ -s "$work/url" ] && break; kill -0 "$pid" 2>/dev/null || exit 1; sleep 0.1; done
url=$(cat "$work/url")
measure() { # 名字 请求体
    for _ in $(seq "$requests"); do
        printf 'url = "%s/completions"\ndata = "%s"\noutput = "/dev/null"\nwrite-out = "%%{http_code} %%{time_total}\\n"\nnext\n' \
            "$url" "${2//\"/\\\"}"
    done | sed '$d' >"$work/config"
    local began ended
    began=$(date +%s.%N)
    timeout 120 curl -s -Z --parallel-immediate --parallel-max "$clients" -K "$work/config" \
        2>/dev/null >"$work/times"
    ended=$(date +%s.%N)
    sort -k2 -g "$work/times" | awk -v name="$1" -v want="$requests" -v c="$clients" -v s="$(awk "BEGIN { print $ended - $began }")" '
        $1 == 200 { t[++n] = $2 }
        END {
            printf "📊 %s：%d/%d 个成功，并发 %d，%.1f 请求/秒，p50 %.0f 毫秒，p99 %.0f 毫秒\n", name, n, want, c,
                n / s, 1000 * t[int(n * 0.5) + 1], 1000 * t[int(n * 0.99) < n ? int(n * 0.99) + 1 : n]
            exit n != want
        }'
}
rc=0
measure "打分（32 个 token，echo+logprobs）" "{\"prompt\": [$(seq -s, 1 32)], \"max_tokens\": 1, \"temperature\": 0, \"echo\": true, \"logprobs\": 1}" || rc=1
measure "生成（16 个 token，贪心）" '{"prompt": "Once upon a time", "max_tokens": 16, "temperature": 0}' || rc=1
exit $rc
