# completion — ptq-bench 的 bash 补全：source scripts/completion.bash
# 名字与选项都问程序自己（--help、list），所以不会过时。

_ptq_bench_words() { # 命令…：取输出每行的第一个词，去掉表头
    "$@" 2>/dev/null | awk 'NR > 1 { print $1 }'
}

_ptq_bench() {
    local program=$1 cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} command i
    COMPREPLY=()
    case ${program##*/} in
    *.sh) command=${program##*/} command=${command%.sh} program=$(dirname "$program")/../build/ptq-bench ;;
    *) command=${COMP_WORDS[1]} ;;
    esac
    command -v "$program" >/dev/null || return 0
    if [ "$COMP_CWORD" -eq 1 ] && [ "${1##*/}" = ptq-bench ]; then
        COMPREPLY=($(compgen -W "run_one run_all leaderboard prepare_data list serve export synth tokenize logits --help --version" -- "$cur"))
        return 0
    fi
    case $prev in
    --model)
        COMPREPLY=($(compgen -W "$(_ptq_bench_words "$program" list models)" -- "$cur") $(compgen -f -- "$cur"))
        return 0 ;;
    --method) COMPREPLY=($(compgen -W "$(_ptq_bench_words "$program" list methods)" -- "$cur")); return 0 ;;
    --track) COMPREPLY=($(compgen -W "A B C" -- "$cur")); return 0 ;;
    --device) COMPREPLY=($(compgen -W "auto cpu cuda" -- "$cur")); return 0 ;;
    --compute) COMPREPLY=($(compgen -W "auto float32 bfloat16" -- "$cur")); return 0 ;;
    --text) COMPREPLY=($(compgen -W "$(_ptq_bench_words "$program" list datasets)" -- "$cur")); return 0 ;;
    --override)
        COMPREPLY=($(compgen -S = -W "$(_ptq_bench_words "$program" list options | sort -u)" -- "$cur"))
        compopt -o nospace
        return 0 ;;
    --results | --plots | --dump_dir | --data_dir) COMPREPLY=($(compgen -d -- "$cur")); return 0 ;;
    --from | --file | --jsonl | --output) COMPREPLY=($(compgen -f -- "$cur")); return 0 ;;
    esac
    if [[ $cur == -* ]]; then
        COMPREPLY=($(compgen -W "$("$program" "$command" --help 2>/dev/null |
            grep -oE '^  (-h, )?--[a-z_]+' | grep -oE -- '--[a-z_]+')" -- "$cur"))
    elif [ "$command" = list ]; then
        COMPREPLY=($(compgen -W "models methods tracks tasks datasets options" -- "$cur"))
    elif [ "$command" = run_all ]; then
        COMPREPLY=($(compgen -f -X '!*.yaml' -- "$cur") $(compgen -d -- "$cur"))
    fi
    return 0
}
complete -o filenames -F _ptq_bench ptq-bench run_one.sh run_all.sh leaderboard.sh prepare_data.sh
