# lm_eval_data — 把 $shared/data/tasks 摆成 dataset_path 的末段/dataset_name/划分.jsonl（由别的脚本 source）
# 只有一个划分的数据集：少样本的划分取末 200 行。用法: lm_eval_data 文件夹
lm_eval_data() {
    local to=$1 entry name source split
    for entry in arc_easy=ai2_arc/ARC-Easy arc_challenge=ai2_arc/ARC-Challenge piqa=piqa boolq=super_glue/boolq \
        winogrande=winogrande/winogrande_xl openbookqa=openbookqa/main copa=super_glue/copa commonsense_qa=commonsense_qa \
        social_iqa=siqa gsm8k=gsm8k/main hellaswag_subset=hellaswag lambada_openai=lambada_openai/default; do
        source=$shared/data/tasks/${entry%%=*} name=${entry#*=}
        mkdir -p "$to/$name"
        for split in train validation test; do
            if [ -e "$source/$split.jsonl" ]; then ln -s "$(realpath "$source/$split.jsonl")" "$to/$name/$split.jsonl"
            else tail -n 200 "$source"/[tv]*.jsonl | grep '^{' >"$to/$name/$split.jsonl"; fi
        done
    done
    ln -s "$(realpath "$shared/data/tasks/mmlu")" "$to/mmlu"
}

# 造的数据（tests/data/lm_eval/{数据集}@{划分}.jsonl）摆到文件夹，各学科指到共用的那份。用法: lm_eval_made 文件夹
lm_eval_made() {
    local to=$1 f name pair s
    for f in tests/data/lm_eval/*.jsonl; do
        name=$(basename "$f" .jsonl)
        mkdir -p "$to/$(tr @ / <<<"${name%@*}")"
        cp "$f" "$to/$(tr @ / <<<"$name").jsonl"
    done
    for pair in mmlu:mmlu ceval:ceval-exam cmmlu:cmmlu; do
        for s in $(sed -n 's/^dataset_name: *//p' "configs/tasks/${pair%%:*}"/*.yaml); do ln -s _subject "$to/${pair##*:}/$s"; done
    done
}
