#!/usr/bin/env bash
# hub_dataset — prepare_data --task 从（回环的）Hub 取得任务的数据：README 的 configs、文件名的惯例、自动转换的 Parquet、
# rows API；坏的服务器被拒绝，什么也不留下；取得的数据能评测
. "$(dirname "$0")/lib.sh"
hub=$work/hub
mkdir -p "$hub" "$work/root"
"$root/$build/tests/tools/hub_folder" "$hub" >"$work/port" &
server=$!
trap 'kill $server; rm -rf "$work"' EXIT
for _ in $(seq 100); do [ ! -s "$work/port" ] || break; sleep 0.1; done
export HF_ENDPOINT=http://127.0.0.1:$(cat "$work/port") HF_HUB_OFFLINE=0
commit=0123456789abcdef0123456789abcdef01234567

# 一个「程序的家」，数据文件夹是空的
cp -r configs "$work/root/"
export PTQ_BENCH_ROOT=$work/root

publish() { # 数据集 版本 提交 文件…（在 $work/up/ 下）：API 与 resolve
    local id=$1 revision=$2 sha=$3 sep='' f
    shift 3
    mkdir -p "$hub/api/datasets/$id/revision/$(dirname "$revision")" "$hub/datasets/$id/resolve/$sha"
    {
        printf '{"sha": "%s", "siblings": [' "$sha"
        for f in "$@"; do
            mkdir -p "$hub/datasets/$id/resolve/$sha/$(dirname "$f")"
            cp "$work/up/$f" "$hub/datasets/$id/resolve/$sha/$f"
            printf '%s{"rfilename": "%s", "size": %d, "lfs": {"sha256": "%s", "size": %d}}' "$sep" "$f" \
                "$(stat -c %s "$work/up/$f")" "$(sha256sum "$work/up/$f" | cut -d' ' -f1)" "$(stat -c %s "$work/up/$f")"
            sep=', '
        done
        printf ']}'
    } >"$hub/api/datasets/$id/revision/$revision"
}
rows() { # 起 止：ARC 样子的 JSONL
    for i in $(seq "$1" "$2"); do
        printf '{"id": "q%d", "question": "问题 %d?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"}\n' "$i" "$i"
    done
}
fresh() { rm -rf "$work/root/data" "$hub/api" "$hub/datasets" "$hub/rows" "$work/hf" "$work/up"; mkdir -p "$work/root/data/raw" "$work/up"; ln -s "$root/data/raw/demo" "$work/root/data/raw/demo"; }
get() { "$ptq" prepare_data --task arc_easy "$@" >/dev/null 2>"$work/err"; }
home=$work/root/data/raw/tasks/arc_easy
refused() { # 描述 消息中的文字 参数…
    local what=$1 text=$2
    shift 2
    get "$@"
    if [ $? -eq 1 ] && grep -q "$text" "$work/err" && [ ! -e "$home" ] && [ "$(ls -A "$work/root/data/raw")" = demo ]; then
        ok "$what"
    else
        not_ok "$what" "$(cat "$work/err"; find "$work/root/data")"
    fi
}

# ---- README 的 configs：两个分片的 JSONL，少样本的划分另是一个文件
fresh
mkdir -p "$work/up/data"
rows 0 2 >"$work/up/data/part-0.jsonl"
rows 3 4 >"$work/up/data/part-1.jsonl"
rows 5 9 >"$work/up/data/other.jsonl"
printf -- '---\nlicense: mit\nconfigs:\n- config_name: ARC-Challenge\n  data_files: none.jsonl\n- config_name: ARC-Easy\n  data_files:\n  - split: test\n    path: data/part-*\n  - {split: train, path: [data/other.jsonl]}\n---\n# ARC\n' >"$work/up/README.md"
publish allenai/ai2_arc main $commit README.md data/other.jsonl data/part-1.jsonl data/part-0.jsonl
if get && [ "$(cat "$home"/test-0000?-of-00002.jsonl | wc -l)" = 5 ] && cmp -s "$home/test-00000-of-00002.jsonl" "$work/up/data/part-0.jsonl" &&
    cmp -s "$home/train.jsonl" "$work/up/data/other.jsonl"; then
    ok "README 的 configs：分片按次序，少样本的划分也取得"
else
    not_ok "README 的 configs：分片按次序，少样本的划分也取得" "$(cat "$work/err"; ls "$home")"
fi
meta=$work/root/data/meta/task-arc_easy-test-00000-of-00002.jsonl.json
check "来历里有提交" grep -q "datasets/allenai/ai2_arc@$commit（main）/data/part-0.jsonl" "$meta"
link=$(readlink "$work/hf/hub/datasets--allenai--ai2_arc/snapshots/$commit/data/part-0.jsonl")
if [ "$link" = "../../../blobs/$(sha256sum "$work/up/data/part-0.jsonl" | cut -d' ' -f1)" ]; then ok "缓存的布局与 huggingface_hub 相同"; else
    not_ok "缓存的布局与 huggingface_hub 相同" "$link"; fi
"$ptq" list tasks 2>/dev/null | grep -q 'arc_easy.*已在本机' && ok "list tasks：已在本机" || not_ok "list tasks：已在本机"
rm "$home/test-00001-of-00002.jsonl"
check "缺一个分片：说哪一个" sh -c "'$ptq' run_one --model demo --method fp16 --track A --dry_run --override 'eval.lm_eval_tasks=[arc_easy]' 2>&1 | grep -q '缺第 1 个分片'"

# ---- 文件名的惯例：ARC-Easy/test-… 的 Parquet
fresh
mkdir -p "$work/up/ARC-Easy" "$work/up/ARC-Challenge"
cp tests/data/ok/parquet/nested_snappy_v1.parquet "$work/up/ARC-Easy/test-00000-of-00001.parquet"
cp tests/data/ok/parquet/many_gzip_plain.parquet "$work/up/ARC-Challenge/test-00000-of-00001.parquet"
rows 0 3 >"$work/up/ARC-Easy/train.jsonl"
publish allenai/ai2_arc main $commit ARC-Challenge/test-00000-of-00001.parquet ARC-Easy/test-00000-of-00001.parquet ARC-Easy/train.jsonl
if get && cmp -s "$home/test.parquet" tests/data/ok/parquet/nested_snappy_v1.parquet; then ok "文件名的惯例：挑对配置与划分"; else
    not_ok "文件名的惯例：挑对配置与划分" "$(cat "$work/err")"; fi

# ---- 自动转换的 Parquet（数据集本身是脚本）
fresh
mkdir -p "$work/up/ARC-Easy/test" "$work/up/ARC-Easy/train"
echo 'import datasets' >"$work/up/arc.py"
cp tests/data/ok/parquet/nested_zstd_v2.parquet "$work/up/ARC-Easy/test/0000.parquet"
cp tests/data/ok/parquet/nested_snappy_v1.parquet "$work/up/ARC-Easy/train/0000.parquet"
publish allenai/ai2_arc main $commit arc.py
publish allenai/ai2_arc refs/convert/parquet ${commit/0/f} ARC-Easy/test/0000.parquet ARC-Easy/train/0000.parquet
if get && cmp -s "$home/test.parquet" tests/data/ok/parquet/nested_zstd_v2.parquet &&
    grep -q "@${commit/0/f}（refs/convert/parquet）" "$work/root/data/meta/task-arc_easy-test.parquet.json"; then
    ok "自动转换的 Parquet"
else
    not_ok "自动转换的 Parquet" "$(cat "$work/err")"
fi

# ---- rows API：两页，版本记下
fresh
mkdir -p "$hub/rows"
page() { # 起 个数 总数
    printf '{"num_rows_total": %d, "partial": false, "rows": [' "$3"
    rows "$1" $(($1 + $2 - 1)) | awk -v i="$1" '{printf("%s{\"row_idx\": %d, \"row\": %s, \"truncated_cells\": []}", NR > 1 ? ", " : "", i + NR - 1, $0)}'
    printf ']}'
}
page 0 100 130 >"$hub/rows/0"
page 100 30 130 >"$hub/rows/100"
for f in 0 100; do echo "X-Revision: $commit" >"$hub/rows/$f.header"; done
if get --rows && [ "$(wc -l <"$home/test.jsonl")" = 130 ] && grep -q '"问题 129?"' "$home/test.jsonl" &&
    grep -q "datasets-server rows: allenai/ai2_arc ARC-Easy test @$commit" "$work/root/data/meta/task-arc_easy-test.jsonl.json"; then
    ok "rows API：逐页取全，记下版本"
else
    not_ok "rows API：逐页取全，记下版本" "$(cat "$work/err")"
fi
rm -r "$work/root/data/raw/tasks"
echo "X-Revision: ${commit/0/f}" >"$hub/rows/100.header"
refused "rows API：途中换了版本" '换了版本' --rows
echo "X-Revision: $commit" >"$hub/rows/100.header"
sed -i 's/"truncated_cells": \[\]/"truncated_cells": ["question"]/' "$hub/rows/100"
refused "rows API：一格被截短" '截短' --rows
page 100 29 130 >"$hub/rows/100"
refused "rows API：行数不够" '404\|行数' --rows

# ---- 不像样的服务器
fresh
refused "没有这个数据集" '没有 allenai/ai2_arc'
publish allenai/ai2_arc main $commit
refused "没有这个划分的文件" '找不到划分 test 的文件'
rows 0 3 >"$work/up/test.jsonl"
mkdir -p "$work/up/ARC-Easy"
cp tests/data/bad/parquet/bad_bomb_prefix.parquet "$work/up/ARC-Easy/x"
cp tests/data/bad/parquet/bad_truncated.parquet "$work/up/ARC-Easy/test.parquet"
publish allenai/ai2_arc main $commit ARC-Easy/test.parquet
refused "截断的 Parquet" '被截断'
cp tests/data/bad/parquet/bad_binary.parquet "$work/up/ARC-Easy/test.parquet"
publish allenai/ai2_arc main $commit ARC-Easy/test.parquet
tr '\000' '\001' <"$work/up/ARC-Easy/test.parquet" >"$hub/datasets/allenai/ai2_arc/resolve/$commit/ARC-Easy/test.parquet"
refused "内容与散列不符" '散列不符'
printf '{"sha": "%s", "siblings": [{"rfilename": "../ARC-Easy/test.jsonl", "size": 3, "blobId": "%s"}, {"rfilename": "/ARC-Easy/test.jsonl", "size": 3, "blobId": "%s"}, {"rfilename": "ARC-Easy/../../test.jsonl", "size": 3, "blobId": "%s"}]}' \
    $commit $commit $commit $commit >"$hub/api/datasets/allenai/ai2_arc/revision/main"
refused "路径带 ../" '找不到划分 test 的文件'
if [ -z "$(find "$work" -name 'test.jsonl' -not -path "$work/up/*")" ]; then ok "缓存之外什么也没写"; else not_ok "缓存之外什么也没写" "$(find "$work" -name test.jsonl)"; fi
export HF_HUB_OFFLINE=1
refused "不联网时说清楚" 'HF_HUB_OFFLINE=1'
done_testing
