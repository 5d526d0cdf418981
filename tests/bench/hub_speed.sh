#!/usr/bin/env bash
# hub_speed — 从回环的 Hub 下载与 curl 比：同样的文件、同样的盘，轮流各几遍
# 用法: [DIR=文件夹] hub_speed.sh [MB=1024 [遍数=5]]；要先 make tests。DIR=/dev/shm 去掉盘的快慢。我们的另算 SHA-256、落盘（fsync）、建链接。
set -eu
cd "$(dirname "$0")/../.."
mb=${1:-1024} runs=${2:-5} build=${PTQ_TEST_BUILD:-build}
work=${DIR:-$PWD/build/tmp}/hub_speed.$$
commit=0123456789abcdef0123456789abcdef01234567
mkdir -p "$work/hub/api/models/org/m/revision" "$work/hub/org/m/resolve/$commit"
"$build/tests/tools/hub_folder" "$work/hub" >"$work/port" &
server=$!
trap 'kill $server; rm -rf "$work"' EXIT
files=$work/hub/org/m/resolve/$commit
head -c "${mb}M" /dev/urandom >"$files/model.safetensors"
echo '{}' >"$files/config.json"
sep=''
{
    printf '{"sha": "%s", "siblings": [' $commit
    for f in config.json model.safetensors; do
        printf '%s{"rfilename": "%s", "size": %d, "lfs": {"sha256": "%s", "size": %d}}' "$sep" $f "$(stat -c %s "$files/$f")" \
            "$(sha256sum "$files/$f" | cut -d' ' -f1)" "$(stat -c %s "$files/$f")"
        sep=', '
    done
    printf ']}'
} >"$work/hub/api/models/org/m/revision/main"
export HF_ENDPOINT=http://127.0.0.1:$(cat "$work/port") HF_HOME=$work/home
unset HF_HUB_OFFLINE
for i in $(seq "$runs"); do
    rm -rf "$work/cache" "$work/curl" && sync
    mkdir "$work/curl"
    theirs=$(curl -s -o "$work/curl/model" -w '%{time_total}' "$HF_ENDPOINT/org/m/resolve/$commit/model.safetensors")
    rm -rf "$work/curl" && sync
    ours=$("$build/tests/bench/bench_hub" "$work/cache" org/m)
    awk -v a="$theirs" -v b="$ours" -v mb="$mb" -v i="$i" 'BEGIN {
        printf "第 %d 遍：curl %.2f 秒（%.0f MB/s），本程序 %.2f 秒（%.0f MB/s），%.0f %%\n", i, a, mb / a, b, mb / b, 100 * a / b }'
done
