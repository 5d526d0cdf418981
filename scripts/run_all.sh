#!/usr/bin/env bash
# run_all — 转给 build/ptq-bench run_all，参数原样传递
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ ! -x "$root/build/ptq-bench" ]; then
    echo "❌ 还没有编译：先在 $root 运行 make" >&2
    exit 1
fi
exec "$root/build/ptq-bench" run_all "$@"
