#!/usr/bin/env bash
# hub_speed — 从回环的 Hub 下载与 curl 比：同样的文件、同样的盘，轮流各几遍
# 用法: [DIR=文件夹] hub_speed.sh [MB=1024 [遍数=5]]；要先 make tests。DIR=/dev/shm 去掉盘的快慢。我们的另算 SHA-256、落盘（fsync）、建链接；
# curl 两样都不做，所以也列出它落盘后的时间。
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
    before=$(date +%s.%N)
    sync "$work/curl/model"
    synced=$(date +%s.%N)
    rm -rf "$work/curl" && sync
    ours=$("$build/tests/bench/bench_hub" "$work/cache" org/m)
    echo "$theirs $before $synced $ours"
done | awk -v mb="$mb" '
    function median(v, n, i, j, t) {
        for (i = 2; i <= n; i++) for (j = i; j > 1 && v[j - 1] > v[j]; j--) { t = v[j]; v[j] = v[j - 1]; v[j - 1] = t }
        return n % 2 ? v[(n + 1) / 2] : (v[n / 2] + v[n / 2 + 1]) / 2
    }
    { sync = $3 - $2; plain[NR] = 100 * $1 / $4; full[NR] = 100 * ($1 + sync) / $4
      printf "第 %d 遍：curl %.2f 秒（%.0f MB/s；落盘另 %.2f 秒），本程序 %.2f 秒（%.0f MB/s），%.0f %%，同样落盘 %.0f %%\n",
             NR, $1, mb / $1, sync, $4, mb / $4, plain[NR], full[NR]; fflush() }
    END { printf "中位数：curl 的 %.0f %%；curl 也落盘时 %.0f %%\n", median(plain, NR), median(full, NR) }'
