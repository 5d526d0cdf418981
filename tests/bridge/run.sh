#!/usr/bin/env bash
# run — 真正的 lm_eval 经 HTTP 用我们的模型，准确率与原生路径比较（make test-bridge）
# 环境: SMOL=SmolLM2 的 HF 文件夹，PTQ_SHARED=对照数据，LM_EVAL=lm_eval 命令（缺省：pip 装到 build/bridge/venv）
set -u
cd "$(dirname "$0")/../.." || exit 2
work=$PWD/build/bridge
shared=${PTQ_SHARED:-../shared}
smol=${SMOL:-}
mkdir -p "$work"
n=0 failures=0
ok() { n=$((n + 1)); echo "ok $n - $1"; }
not_ok() { n=$((n + 1)) failures=$((failures + 1)); echo "not ok $n - $1"; [ $# -lt 2 ] || printf '%s\n' "$2" | tail -n 20 | sed 's/^/#   /'; }
skip_all() { echo "1..0 # SKIP $1"; exit 0; }
[ -d "$shared/data/tasks" ] || skip_all "没有 $shared/data/tasks（PTQ_SHARED=）"
[ -e "$smol/tokenizer.json" ] || skip_all "没有 SmolLM2 的 HF 文件夹（SMOL=）"
lm_eval=${LM_EVAL:-$work/venv/bin/lm_eval}
if [ ! -x "$lm_eval" ]; then
    python3 -m venv "$work/venv" && "$work/venv/bin/pip" install -q 'lm_eval[api]==0.4.13' transformers ||
        skip_all "装不上 lm_eval（要网络），或用 LM_EVAL= 指明"
fi
shared=$(cd "$shared" && pwd)
tasks=$("$(dirname "$lm_eval")/python" -c 'import lm_eval, os; print(os.path.join(os.path.dirname(lm_eval.__file__), "tasks"))') || exit 2
rm -rf "$work/tasks" "$work/data" "$work/results"
bash tests/bridge/make_tasks.sh "$tasks" "$shared/data/tasks" "$work/tasks"
mkdir -p "$work/data/raw" && ln -s "$shared/data/tasks" "$work/data/raw/tasks"
export HF_HUB_OFFLINE=1 HF_DATASETS_CACHE=$work/hf

run() { # 任务 份数 参数…：最新的结果路径在 $result
    build/ptq-bench run_one --model "$smol" --method fp16 --track A --results "$work/results/$1" \
        --override "data_dir='$work/data'" --override dtype=float32 --override "eval.ppl_datasets=[]" \
        --override eval.speed=false --override "eval.lm_eval_tasks=[$1]" --override "eval.task_limit=$2" \
        --override "eval.lm_eval_command='$lm_eval'" \
        --override "eval.lm_eval_args='--include_path $work/tasks'" "${@:3}" >"$work/$1.out" 2>&1
    local rc=$?
    result=$(ls -t "$work/results/$1"/*.json 2>/dev/null | head -n 1)
    [ $rc -eq 0 ] || not_ok "$1 的评测" "$(cat "$work/$1.out")"
}
value() { build/tests/tools/json_get "$result" "results.lm_eval.$1" 2>&1; }

# lm_eval 只认 YAML 里的名字，所以给同样的任务起另一个名字，使它不是原生的
for t in arc_easy piqa gsm8k; do
    sed "s/^task: .*/task: ${t}_http/" "$work/tasks/$t.yaml" >"$work/tasks/${t}_http.yaml"
done
compare() { # 任务 份数 指标…
    local native=() i=0 m
    run "$1" "$2"
    for m in "${@:3}"; do native+=("$(value "$1.$m")"); done
    run "${1}_http" "$2"
    for m in "${@:3}"; do
        local got
        got=$(value "${1}_http.$m")
        if [ "$got" = "${native[$i]}" ]; then ok "$1 $m：$got（$2 份）"; else not_ok "$1 $m" "lm_eval $got，原生 ${native[$i]}"; fi
        i=$((i + 1))
    done
}
compare arc_easy 100 acc,none acc_norm,none
compare piqa 100 acc,none acc_norm,none
compare gsm8k 8 exact_match,strict-match exact_match,flexible-extract
run arc_upper 100
if [ "$(value arc_upper.source)" = lm_eval ]; then ok "不是原生的任务（!function）：acc $(value arc_upper.acc,none)"; else
    not_ok "不是原生的任务" "$(cat "$work/arc_upper.out")"
fi
echo "1..$n"
exit $((failures > 0))
