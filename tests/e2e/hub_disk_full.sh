#!/usr/bin/env bash
# hub_disk_full — 下载模型时磁盘真的满：说明原因、退出码 1、已下的留着；腾出空间后接着下完，散列都对
# 在私有挂载空间里把缓存放到很小的 tmpfs 上：开始就放不下的；下到一半被别人占满的；文件节点用完的。放大、腾出后再运行。
. "$(dirname "$0")/lib.sh"
hub=$work/hub cache=$work/cache model=$root/data/raw/demo/model
if [ "$(id -u)" -eq 0 ]; then ns="unshare -m"; else ns="unshare -rm"; fi
mkdir -p "$cache"
if ! $ns mount -t tmpfs -o size=4k none "$cache" 2>/dev/null; then
    skip "下载时磁盘满" "本机不允许挂载 tmpfs"
    done_testing
fi
commit=0123456789abcdef0123456789abcdef01234567
mkdir -p "$hub/api/models/org/demo/revision" "$hub/org/demo/resolve/$commit"
ln -s "$model"/* "$hub/org/demo/resolve/$commit/"
sep=''
{
    printf '{"sha": "%s", "siblings": [' $commit
    for f in config.json tokenizer.json tokenizer_config.json model.safetensors; do
        [ -e "$model/$f" ] || continue
        size=$(stat -L -c %s "$model/$f") sum=$(sha256sum "$model/$f" | cut -d' ' -f1)
        printf '%s{"rfilename": "%s", "size": %d, "lfs": {"sha256": "%s", "size": %d}}' "$sep" $f "$size" "$sum" "$size"
        sep=', '
    done
    printf ']}'
} >"$hub/api/models/org/demo/revision/main"
"$root/$build/tests/tools/hub_folder" "$hub" >"$work/port" &
server=$!
trap 'kill $server; rm -rf "$work"' EXIT
for _ in $(seq 100); do [ ! -s "$work/port" ] || break; sleep 0.1; done
export HF_ENDPOINT=http://127.0.0.1:$(cat "$work/port") HF_HUB_OFFLINE=0 HF_HUB_CACHE=$cache
mkdir -p "$work/root"
cp -r configs "$work/root/"
printf 'name: hub-demo\nmodel_id: org/demo\n' >"$work/root/configs/models/hub-demo.yaml"
echo 你好 >"$work/text"
export PTQ_BENCH_ROOT=$work/root TEXT=$work/text
whole=$(sha256sum "$model/model.safetensors" | cut -d' ' -f1)

export blobs=$cache/models--org--demo/blobs snapshot=$cache/models--org--demo/snapshots/$commit ptq cache work whole
slow=$hub/org/demo/resolve/$commit/model.safetensors.slow

cat >"$work/lib" <<'END'
get() { "$ptq" tokenize --model hub-demo --file "$TEXT" >/dev/null 2>"$work/err$1"; }
kept() { stat -c %s "$blobs/$whole.incomplete" 2>/dev/null || echo 0; }
# 第一次的退出码、留下的字节；第二次的退出码、权重的散列、剩下的半个文件数
again() {
    get .again
    echo "$first $kept $? $(sha256sum <"$snapshot/model.safetensors" | cut -d' ' -f1) $(ls "$blobs" | grep -c incomplete)"
}
END
# 参数: 描述 挂载选项 第一次怎样运行 怎样腾出空间 至少该留下的字节 消息
scenario() {
    rm -f "$work"/err*
    read -r first kept second sum left < <($ns bash -c '
        . "$work/lib"
        mount -t tmpfs -o "$1" none "$cache" || exit 99
        eval "$2"
        first=$? kept=$(kept)
        eval "$3"
        again' bash "$2" "$3" "$4")
    check "$1：退出码 1，说明原因" sh -c "[ '$first' = 1 ] && grep -qE '❌.*($6)' '$work/err' || { echo '退出码 $first'; cat '$work/err'; exit 1; }"
    if [ "$5" = 0 ]; then :; elif [ "$kept" -ge "$5" ]; then ok "$1：留下 $kept 字节"; else not_ok "$1：至少留下 $5 字节" "$kept"; fi
    if [ "$second" = 0 ] && [ "$sum" = "$whole" ] && [ "$left" = 0 ]; then ok "$1：腾出空间后接着下完，散列相符"; else
        not_ok "$1：腾出空间后接着下完，散列相符" "$second $sum $left; $(cat "$work/err.again")"; fi
}
# 下到 2 MB 时别人把盘占满
fill='get "" & child=$!
    for _ in $(seq 1000); do [ "$(kept)" -le 2000000 ] || break; sleep 0.01; done
    cat /dev/zero >"$cache/filler" 2>/dev/null
    wait $child'
for size in 4k 3m; do
    scenario "开始就放不下（$size）" size=$size 'get ""' 'mount -o remount,size=64m "$cache"' 0 '只剩'
done
touch "$slow"
scenario "下到一半盘满" size=20m "$fill" 'rm "$cache/filler"' 1900000 '磁盘已满'
rm "$slow"
scenario "文件节点用完" size=64m,nr_inodes=7 'get ""' 'mount -o remount,nr_inodes=100 "$cache"' 0 '磁盘已满|空间|No space'
done_testing
