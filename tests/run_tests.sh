#!/usr/bin/env bash
# run_tests — make test 的主体：三种构建、静态检查、全部 cmocka 程序与端到端脚本，最后一行给出总数
#
# 每个测试程序都输出 TAP（ok / not ok / ok … # SKIP），由 run_one_test.sh 数。一个测试也没跑成也算失败。
# 环境: SAN 非空时只用该构建；JOBS 并行数（默认核数）；ONLY=正则 只跑名字相符的测试。
set -u
cd "$(dirname "$0")/.." || exit 2
tmp=$PWD/build/tmp
logs=$tmp/logs
rm -rf "$tmp"
mkdir -p "$logs"
export PTQ_TEST_TMP=$tmp TMPDIR=$tmp LC_ALL=C.UTF-8 CMOCKA_MESSAGE_OUTPUT=TAP
export HF_HUB_OFFLINE=1 HF_HOME=$tmp/hf # 测试不联网，也不用你的缓存
export ASAN_OPTIONS=${ASAN_OPTIONS:-allocator_may_return_null=1}
export UBSAN_OPTIONS=${UBSAN_OPTIONS:-print_stacktrace=1}
if [ -z "${PTQ_SHARED:-}" ] && [ -d ../shared ]; then
    PTQ_SHARED=$(cd ../shared && pwd)
    export PTQ_SHARED
fi
[ -n "${PTQ_SHARED:-}" ] || echo "⚠️ 没有 PTQ_SHARED 或 ../shared，与外部对照数的比较将跳过"
SAN=${SAN:-}

# 树里的文件（不含构建目录），用来看测试有没有留下东西
tree() { find . \( -path ./.git -o -path './build*' \) -prune -o -type f -print | sort; }

finish() {
    cat "$logs"/*.count 2>/dev/null | awk -v began="$SECONDS" '
        { passed += $1; failed += $2; skipped += $3 }
        END {
            printf "⏱️ 共 %d 秒\n", began
            printf "%d passed, %d failed%s\n", passed, failed, skipped ? ", " skipped " skipped" : ""
            exit failed > 0 || passed == 0
        }'
    exit
}

# ---- 构建（每种是一项测试）。编成的 gcc 与插桩产物拿来跑，clang 管编译告警
runs=()
build() { # 名字 构建目录 make参数…
    local name=$1 dir=$2 log=$logs/build_$1.log started=$SECONDS
    shift 2
    if "${MAKE:-make}" --no-print-directory -k BUILD="$dir" "$@" all tests >"$log" 2>&1; then
        echo "✅ 构建 $name（$((SECONDS - started)) 秒）"
        echo "1 0 0" >"${log%.log}.count"
        [ "$name" = clang ] || runs+=("$dir")
    else
        echo "❌ 构建 $name 失败"
        grep -vE '^  (CC|LD|AR) ' "$log" | tail -n 60 | sed 's/^/     | /'
        echo "0 1 0" >"${log%.log}.count"
    fi
}
if [ -n "$SAN" ]; then
    build san build-san SAN="$SAN"
else
    build gcc build CC=gcc SAN=
    build clang build-clang CC=clang SAN= OPT="-O0 -g" KERNEL_OPT=-O0
    build san build-san CC=gcc SAN=address,undefined OPT="-O1 -g1"
fi
[ ${#runs[@]} -gt 0 ] || finish

# ---- 收集: 每行「名字 秒数 命令…」
jobs_file=$tmp/jobs
{
    for b in "${runs[@]}"; do
        for src in tests/{golden,ops,unit}/test_*.c; do # 慢的先跑
            [ -e "$src" ] || continue
            t=${src#tests/}
            echo "$b/${t%.c} 1200 env PTQ_TEST_BUILD=$b $b/tests/${t%.c}"
        done
    done
    for script in tests/e2e/[a-z]*.sh; do
        name=e2e/$(basename "$script" .sh)
        [ "$name" != e2e/lib ] || continue
        echo "$name 900 env PTQ_TEST_BUILD=${runs[0]} bash $script"
    done
} | grep -E -- "${ONLY:-.}" >"$jobs_file"

before=$(tree)
xargs -r -a "$jobs_file" -P "${JOBS:-$(nproc)}" -L 1 bash tests/run_one_test.sh "$logs"
if [ "$before" = "$(tree)" ]; then
    echo "✅ 测试没有在树里留下文件"
    echo "1 0 0" >"$logs/tree.count"
else
    echo "❌ 测试在树里留下了文件"
    diff <(echo "$before") <(tree) | sed 's/^/     | /'
    echo "0 1 0" >"$logs/tree.count"
fi
finish
