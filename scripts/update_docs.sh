#!/usr/bin/env bash
# update_docs — 把真实结果搬进 README.md、summary.md 与 docs/images/（make readme）
# 表与图都由结果文件生成：leaderboard 重算 results/leaderboard.md 与 plots/，这里只替换两个标记之间的行。
# 结果文件不入库，所以去掉表的最后一列（指向它们的链接）。
set -euo pipefail
cd "$(dirname "$0")/.."
build/ptq-bench leaderboard --quiet >/dev/null
board=results/leaderboard.md
picture=plots/demo_trackA_demo_ppl_vs_bits.png

# 榜中以 ### 开头、标题符合 $1 的各节，去掉末列
sections() {
    awk -v want="$1" '
        /^## / { track = substr($0, 4); next }
        /^### / { show = $0 ~ want; sub(/^### /, "### " track " · ") }
        show && /^\|/ { sub(/ \|[^|]*\|$/, " |"); sub(/\|---:\|---\|$/, "|---:|") }
        show' "$board"
}
# 替换文件 $1 中「<!-- 结果开始 -->」与「<!-- 结果结束 -->」之间的行为标准输入
splice() {
    local body
    body=$(mktemp)
    cat >"$body"
    awk -v body="$body" '
        /<!-- 结果结束 -->/ { skip = 0 }
        !skip
        /<!-- 结果开始 -->/ { print ""; while ((getline line < body) > 0) print line; print ""; skip = 1 }' \
        "$1" >"$1.new"
    mv "$1.new" "$1"
    rm -f "$body"
}

sections '^### demo · demo · gptq-512 · 前' | splice README.md
sections '.' | splice summary.md
mkdir -p docs/images
[ ! -e "$picture" ] || cp "$picture" docs/images/leaderboard.png
echo "✅ README.md、summary.md 与 docs/images/ 已由 $board 更新" >&2
