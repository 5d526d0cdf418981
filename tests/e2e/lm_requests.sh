#!/usr/bin/env bash
# lm_requests — 自带的每个任务（189 个叶子）在造的数据上的全部请求：文字与 token 的摘要同真正的框架，少样本 自己的、0、3
. "$(dirname "$0")/lib.sh"
tasks=arc_easy,arc_challenge,hellaswag,piqa,winogrande,boolq,openbookqa,copa,commonsense_qa,social_iqa
tasks+=,lambada_openai,wikitext,gsm8k,mmlu,ceval-valid,cmmlu
rm "$data/raw" && mkdir -p "$data/raw/tasks"
ln -s "$root/data/raw/demo" "$data/raw/demo"
. tests/golden/lm_eval_data.sh
lm_eval_made "$data/raw/tasks"
for shots in own 0 3; do
    own=()
    [ $shots = own ] || own=(--override "eval.num_fewshot=$shots")
    "$ptq" run_one --model demo --method fp16 --track A --dry_run --override "data_dir='$data'" \
        --override 'eval.ppl_datasets=[]' --override "eval.lm_eval_tasks=[$tasks]" "${own[@]}" >/dev/null 2>"$work/plan"
    awk -v s=$shots '
        match($0, /任务 [^：]*：/) { name = substr($0, RSTART, RLENGTH); sub(/^任务 /, "", name); sub(/：$/, "", name) }
        /请求的 SHA-256/ { split($0, w, /文字 |，token /); print s "\t" name "\t" w[2] "\t" w[3] }' "$work/plan" | sort >"$work/ours"
    grep "^$shots	" tests/data/lm_eval/digests.tsv | sort >"$work/theirs"
    same=$(comm -12 "$work/ours" "$work/theirs" | wc -l) want=$(wc -l <"$work/theirs")
    if [ "$want" -gt 180 ] && [ "$same" = "$want" ]; then ok "少样本 $shots：$same 个任务的请求全同"; else
        not_ok "少样本 $shots：$same / $want 个任务的请求相同" "$(comm -13 "$work/ours" "$work/theirs" | cut -f1,2; tail -n 3 "$work/plan")"
    fi
done
done_testing
