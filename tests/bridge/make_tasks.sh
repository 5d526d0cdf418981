#!/usr/bin/env bash
# make_tasks — 用真正的 lm_eval 自带的任务 YAML，只把数据换成本机的 JSONL
# 用法: make_tasks.sh lm_eval的tasks文件夹 数据文件夹 写到哪里
set -eu
tasks=$1 data=$2 out=$3
mkdir -p "$out"
one() { # 名字 原YAML 划分=文件…
    {
        echo "include: $tasks/$2"
        echo "task: $1"
        echo "dataset_path: json"
        echo "dataset_name: null"
        echo "dataset_kwargs:"
        echo "  data_files:"
        for split in "${@:3}"; do echo "    ${split%%=*}: $data/${split#*=}"; done
    } >"$out/$1.yaml"
}
one arc_easy arc/arc_easy.yaml test=arc_easy/test.jsonl
echo "training_split: null
validation_split: null" >>"$out/arc_easy.yaml"
one piqa piqa/piqa.yaml validation=piqa/validation.jsonl
echo "training_split: null" >>"$out/piqa.yaml"
one gsm8k gsm8k/gsm8k.yaml train=gsm8k/train.jsonl test=gsm8k/test.jsonl
# 不是原生的任务：文字处理要 Python 函数
cat >"$out/arc_upper.py" <<'PY'
def doc_to_text(doc):
    return "QUESTION: " + doc["question"].upper() + "\nANSWER:"
PY
sed "s/^task: .*/task: arc_upper/; /^doc_to_text/d" "$out/arc_easy.yaml" >"$out/arc_upper.yaml"
echo "doc_to_text: !function arc_upper.doc_to_text" >>"$out/arc_upper.yaml"
