#!/usr/bin/env bash
# install_deps — 装上缺少的 Debian 软件包
# 用法: install_deps.sh [run] [test]；run 为编译与运行所需，test 为测试工具。只装缺的；什么都不缺就不碰 apt。
set -euo pipefail

RUN_PACKAGES="gcc libc6-dev pkg-config libyaml-dev libjansson-dev libpcre2-dev libutf8proc-dev
    libssl-dev libopenblas-dev libmicrohttpd-dev libcurl4-openssl-dev zlib1g-dev libsnappy-dev libzstd-dev
    gnuplot-nox fonts-wqy-microhei"
TEST_PACKAGES="clang libclang-rt-14-dev libcmocka-dev curl"

packages=
for set in "${@:-run}"; do
    case $set in
    run) packages+=" $RUN_PACKAGES" ;;
    test) packages+=" $TEST_PACKAGES" ;;
    *) echo "❌ 未知的依赖组 '$set'，可用: run test" >&2; exit 2 ;;
    esac
done

missing=()
for p in $packages; do
    status=$(dpkg-query -W -f '${Status}' "$p" 2>/dev/null || true)
    [ "$status" = "install ok installed" ] || missing+=("$p")
done
[ ${#missing[@]} -gt 0 ] || exit 0

if ! command -v apt-get >/dev/null; then
    echo "❌ 没有 apt-get，请用本机的软件包管理器安装与这些 Debian 包相当的软件: ${missing[*]}" >&2
    exit 1
fi
sudo=
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "❌ 缺少软件包，请以 root 运行: apt-get install ${missing[*]}" >&2
        exit 1
    fi
    sudo=sudo
fi

echo "📦 安装 ${missing[*]}" >&2
apt() { $sudo env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 "$@" >&2; }
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { apt update && apt install -y --no-install-recommends "${missing[@]}"; } 2>"$log"; then
    cat "$log" >&2
    echo "❌ 安装失败，请检查网络与 /etc/apt/sources.list" >&2
    exit 1
fi
echo "✅ 依赖已装好" >&2
