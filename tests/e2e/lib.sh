# lib — 端到端测试的公共部分（由各脚本 source）
# 提供: $ptq（被测程序）、$json_get、$work（本测试专用的空目录，退出时删除）、$data（替代 data/ 的文件夹，
# 使测试不往树里写缓存）、ok / not_ok / skip / check。
# 每个脚本末行调用 done_testing；任何一项失败则退出码 1。
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 2
root=$PWD
build=${PTQ_TEST_BUILD:-build}
ptq=$root/$build/ptq-bench
work=${PTQ_TEST_TMP:-$root/build/tmp}/$(basename "$0" .sh).$$
json_get=$root/$build/tests/tools/json_get
data=$work/data
export HF_HUB_OFFLINE=1 HF_HOME=$work/hf # 测试不联网，也不用你的缓存
mkdir -p "$data"
ln -s "$root/data/raw" "$data/raw"
trap 'rm -rf "$work"' EXIT
n=0 failures=0

ok() { n=$((n + 1)); echo "ok $n - $1"; }
not_ok() { # 描述 [详情]
    n=$((n + 1)) failures=$((failures + 1))
    echo "not ok $n - $1"
    [ $# -lt 2 ] || printf '%s\n' "$2" | tail -n 20 | sed 's/^/#   /'
}
skip() { n=$((n + 1)); echo "ok $n - $1 # SKIP $2"; }
check() { # 描述 命令…：命令成功即通过，失败时附上它的输出
    local what=$1 output
    shift
    if output=$("$@" 2>&1); then ok "$what"; else not_ok "$what" "$output"; fi
}
done_testing() { echo "1..$n"; exit $((failures > 0)); }
