#!/usr/bin/env bash
# disk_full — 写结果时磁盘满：说明原因、退出码非 0、不留半个文件
# 在私有挂载空间里把结果目录放到只有几页大的 tmpfs 上，逐页放大，直到写得下为止。
. "$(dirname "$0")/lib.sh"

if [ "$(id -u)" -eq 0 ]; then ns="unshare -m"; else ns="unshare -rm"; fi
if ! $ns mount -t tmpfs -o size=4k none "$work" 2>/dev/null; then
    skip "磁盘满" "本机不允许挂载 tmpfs"
    done_testing
fi

# 在命名空间内运行一次，打印「退出码 剩余文件…」，stderr 进 $2
run_with_pages() { # 页数 stderr文件
    $ns bash -c '
        mkdir -p "$1" && mount -t tmpfs -o size=$(($2 * 4096)) none "$1" || exit 99
        "$3" run_one --model demo --method fp16 --track A --limit 1 --results "$1" \
            --override "data_dir=$5" 2>"$4" >/dev/null
        echo "$? $(ls -A "$1" | tr "\n" " ")"' bash "$work/results" "$1" "$ptq" "$2" "$data"
}

failed=0 succeeded=0
for pages in 1 2 3 4 6 8 12 16 24 32 64; do
    read -r rc files < <(run_with_pages $pages "$work/err")
    if [ "$rc" -eq 0 ]; then
        succeeded=1
        break
    fi
    failed=$((failed + 1))
    case $files in
    *.json* | *tmp*) not_ok "$pages 页：不留半个文件" "$files" ;;
    *) ok "$pages 页：不留半个文件（${files:-空}）" ;;
    esac
    check "$pages 页：退出码 $rc 非 0，且说明磁盘已满" grep -qE '❌.*(空间|No space)' "$work/err"
done
if [ $failed -gt 0 ]; then ok "写不下时失败（$failed 种大小）"; else not_ok "写不下时失败"; fi
if [ $succeeded -eq 1 ]; then ok "写得下时成功（$pages 页）"; else not_ok "写得下时成功" "$(cat "$work/err")"; fi
done_testing
