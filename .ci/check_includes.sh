#!/usr/bin/env bash
# check_includes — 各室之间谁可以包含谁（docs/architecture.md）
# 自家头文件从 src 写起（如 "io/json.h"）；外部库各只在一个文件里出现。违例逐条打印，退出码 1。
cd "$(dirname "$0")/.." || exit 2

violations=$(find src scripts -name '*.[ch]' | sort | xargs -r awk '
function bad(why) { printf "%s:%d: %s：%s\n", FILENAME, FNR, $0, why }
function room(path) { return path ~ /\// ? substr(path, 1, index(path, "/") - 1) : "src" }
function starts_with_any(path, prefixes,    p, n, i) {
    n = split(prefixes, p, " ")
    for (i = 1; i <= n; i++) if (index(path, p[i]) == 1) return 1
    return 0
}
BEGIN {
    allow["base"] = "base"
    allow["io"] = "io base"
    allow["compute"] = "compute base"
    allow["model"] = "model io compute base"
    allow["methods"] = "methods model compute base"
    allow["tasks"] = "tasks model compute io base"
    allow["serve"] = "serve tasks model compute io base"
    allow["src"] = "src serve methods tasks model compute io base"
    allow["scripts"] = "scripts src serve methods tasks model compute io base"
    # 外部库 → 可以包含它的文件（前缀）
    owner["jansson.h"] = "src/io/json.h"
    owner["yaml.h"] = "src/io/yaml.c"
    owner["openssl/"] = "src/io/hash.c"
    owner["pcre2.h"] = "src/model/ src/tasks/pyregex.c"
    owner["utf8proc.h"] = "src/base/str.c src/model/ src/tasks/pystr.c"
    owner["microhttpd.h"] = "src/serve/http_internal.h"
    owner["curl/curl.h"] = "src/io/hub_request.h"
    owner["zlib.h"] = "src/io/inflate.c"
    owner["snappy-c.h"] = "src/io/inflate.c"
    owner["zstd.h"] = "src/io/inflate.c"
    owner["immintrin.h"] = "src/compute/cpu/"
}
FNR == 1 {
    # 程序入口 main.c 派发到 scripts/ 的子命令，算作 scripts
    here = FILENAME ~ /^(scripts\/|src\/main\.c$)/ ? "scripts" : room(substr(FILENAME, 5))
    plugin = FILENAME ~ /^src\/methods\/.*\.c$/ && FILENAME !~ /\/base(_[a-z]+)?\.c$/
}
/^[ \t]*#[ \t]*include[ \t]*"/ {
    split($0, part, "\"")
    target = part[2]
    if (target ~ /\.c$/) bad("不可包含 .c 文件")
    if (target ~ /^\.\.?\//) bad("从 src 写起，不用相对路径")
    if (plugin && target != "methods/base.h") bad("方法文件只可包含 methods/base.h")
    there = room(target)
    if (index(" " allow[here] " ", " " there " ") == 0)
        bad(here " 室不可包含 " there " 室")
}
/^[ \t]*#[ \t]*include[ \t]*</ {
    split($0, part, /[<>]/)
    for (lib in owner)
        if (index(part[2], lib) == 1 && !starts_with_any(FILENAME, owner[lib]))
            bad("<" part[2] "> 只可由 " owner[lib] " 包含")
}')
if [ -n "$violations" ]; then
    printf '%s\n' "$violations"
    exit 1
fi
