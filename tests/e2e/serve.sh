#!/usr/bin/env bash
# serve — HTTP 服务：正常请求、坏请求、并发、慢的客户、中途离开、过大的请求体、密钥、Ctrl-C
. "$(dirname "$0")/lib.sh"
if ! command -v curl >/dev/null; then skip "HTTP 服务" "没有 curl（make deps-test）"; done_testing; fi
pid=
stop() { [ -z "$pid" ] || kill -9 "$pid" 2>/dev/null; }
trap 'stop; rm -rf "$work"' EXIT

start() { # 参数…：启动服务，置 $pid 与 $url
    : >"$work/url" # 不要读到上一次的地址
    "$ptq" serve --model "${model:-demo}" --method rtn --port 0 --override "data_dir='$data'" "$@" \
        >"$work/url" 2>"$work/err" &
    pid=$!
    for _ in $(seq 600); do
        [ ! -s "$work/url" ] || break
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    url=$(cat "$work/url")
}
endpoint=/v1/completions fds=
post() { curl -s -m 120 -o "$work/reply" -w '%{http_code}' "${url%/v1}$endpoint" "$@" || true; }
value() { "$json_get" "$work/reply" "$1"; }
expect() { # 描述 状态码 JSON路径 应有的值 curl参数…
    local what=$1 want=$2 path=$3 text=$4 code got
    shift 4
    code=$(post "$@")
    got=$(value "$path" 2>&1)
    if [ "$code" = "$want" ] && { [ "$text" = '*' ] || [ "$got" = "$text" ]; }; then ok "$what"; else
        not_ok "$what" "得 $code，$path = $got：$(head -c 400 "$work/reply")"
    fi
}

start
if [ -z "$url" ]; then not_ok "启动" "$(cat "$work/err")"; done_testing; fi
ok "启动，地址写在标准输出"

# ---- 正常的请求：文字与 id、成批、echo、停止串、种子、流式
greedy='"temperature": 0'
expect "贪心生成" 200 usage.completion_tokens 8 -d "{\"prompt\": \"Once upon\", \"max_tokens\": 8, $greedy}"
text=$(value choices.0.text)
expect "成批的结果与单独的相同" 200 choices.1.text "$text" \
    -d "{\"prompt\": [\"A\", \"Once upon\", \"The\"], \"max_tokens\": 8, $greedy}"
expect "停止串" 200 choices.0.finish_reason stop \
    -d "{\"prompt\": \"Once upon\", \"max_tokens\": 8, $greedy, \"stop\": [\"${text:2:3}\"]}"
if [ "$(value choices.0.text)" = "${text:0:2}" ]; then ok "停止串及其后不在文字里"; else not_ok "停止串及其后不在文字里" "$(cat "$work/reply")"; fi
expect "同一种子结果相同（先算一次）" 200 usage.completion_tokens 12 -d '{"prompt": "The", "max_tokens": 12, "seed": 7}'
seeded=$(value choices.0.text)
expect "同一种子结果相同" 200 choices.0.text "$seeded" -d '{"prompt": "The", "max_tokens": 12, "seed": 7}'

# 打分：lm_eval 用的样子；与 logits 命令独立算出的逐位比较在 test_serve
score='"max_tokens": 1, "logprobs": 1, "echo": true'
expect "打分：token id 提示" 200 choices.0.logprobs.text_offset.2 2 -d "{\"prompt\": [1, 2, 3, 4], $score, $greedy}"
one=$(value choices.0.logprobs.token_logprobs.3)
expect "打分：成批的与单独的逐位相同" 200 choices.1.logprobs.token_logprobs.3 "$one" \
    -d "{\"prompt\": [[9, 8, 7], [1, 2, 3, 4], [1, 2, 3, 5]], $score, $greedy}"
expect "打分：max_tokens 为 0" 200 choices.0.logprobs.token_logprobs.3 "$one" \
    -d '{"prompt": [1, 2, 3, 4], "max_tokens": 0, "logprobs": 1, "echo": true}'
curl -s -m 60 "$url/completions" -d "{\"prompt\": \"Once upon\", \"max_tokens\": 8, $greedy, \"stream\": true}" \
    >"$work/events"
sed -n 's/^data: \({.*\)/\1/p' "$work/events" >"$work/chunks"
joined=$(while read -r line; do
    printf '%s' "$line" >"$work/reply"
    printf '%sX' "$(value choices.0.text; printf X)" | sed -z 's/\n\?XX$//'
done <"$work/chunks")
if [ "$joined" = "$text" ] && grep -q '^data: \[DONE\]' "$work/events"; then ok "流式：拼起来与一次给的相同"; else
    not_ok "流式：拼起来与一次给的相同" "'$joined' ≠ '$text'：$(cat "$work/events")"
fi

# ---- 坏请求：OpenAI 的错误格式，服务照常
bad() { expect "$1" "$2" error.type invalid_request_error "${@:3}"; }
bad "坏 JSON" 400 -d '{"prompt":'
printf '{"prompt": "\xff\xfe"}' >"$work/utf8"
bad "坏 UTF-8" 400 --data-binary @"$work/utf8"
bad "不是对象" 400 -d '[1]'
bad "空的请求体" 400 -d ''
bad "缺 prompt" 400 -d '{}'
bad "id 越界" 400 -d '{"prompt": [4096]}'
bad "id 为负" 400 -d '{"prompt": [-1]}'
bad "id 不是整数" 400 -d '{"prompt": [1, "a"]}'
bad "超过上下文" 400 -d '{"prompt": "a", "max_tokens": 5000}'
bad "参数越界" 400 -d '{"prompt": "a", "temperature": -1}'
bad "不支持的参数" 400 -d '{"prompt": "a", "presence_penalty": 1}'
endpoint=/nope
bad "没有的路径" 404 -d '{}'
endpoint=/v1/completions
bad "方法不对" 405 -X PUT -d '{}'
bad "深嵌套" 400 -d "$(head -c 20000 /dev/zero | tr '\0' '[')"
expect "1 GB 的请求体" 413 error.code request_too_large -X POST -H 'Content-Length: 1000000000' -T - \
    < <(head -c 1000000000 /dev/zero)

# ---- 并发、慢的客户、中途离开
curl -s -m 60 --limit-rate 200 -o /dev/null "$url/completions" \
    -d "{\"prompt\": \"$(head -c 3000 /dev/zero | tr '\0' a)\", \"max_tokens\": 4}" &
slow=$!
curl -s -m 0.3 -o /dev/null "$url/completions" -d '{"prompt": "The", "max_tokens": 900, "n": 64, "seed": 1}'
for i in $(seq 64); do
    printf 'url="%s/completions"\ndata="{\\"prompt\\": \\"Once upon\\", \\"max_tokens\\": 8, %s}"\noutput="%s/p%d"\nnext\n' \
        "$url" "${greedy//\"/\\\"}" "$work" "$i"
done | sed '$d' >"$work/parallel"
curl -s -m 120 -Z --parallel-immediate --parallel-max 64 -K "$work/parallel" >/dev/null 2>&1
same=0
for i in $(seq 64); do
    [ "$("$json_get" "$work/p$i" choices.0.text 2>/dev/null)" = "$text" ] && same=$((same + 1))
done
if [ $same -eq 64 ]; then ok "64 个并发的客户：结果都相同"; else not_ok "64 个并发的客户：结果都相同" "$same 个相同"; fi
kill "$slow" 2>/dev/null
# 慢的客户：100 条只发了半个请求头的连接占着，别人照常
for i in $(seq 100); do
    exec {fd}<>"/dev/tcp/127.0.0.1/$(sed 's/.*:\([0-9]*\)\/v1/\1/' <<<"$url")" && printf 'POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Le' >&"$fd"
    fds+=" $fd"
done
expect "100 条半开的连接占着时，别人照常" 200 choices.0.text "$text" -d "{\"prompt\": \"Once upon\", \"max_tokens\": 8, $greedy}"
for fd in $fds; do exec {fd}>&-; done
check "健康检查" curl -sf -m 10 -o /dev/null "${url%/v1}/health"

endpoint=/v1/chat/completions
expect "没有聊天模板的模型" 400 error.code no_chat_template -d '{"messages": [{"role": "user", "content": "a"}]}'
endpoint=/v1/completions

# ---- Ctrl-C：手头的请求得到 503，退出码 0
curl -s -m 60 -o "$work/last" -w '%{http_code}' "$url/completions" \
    -d '{"prompt": "The", "max_tokens": 1000, "n": 64, "seed": 1}' >"$work/code" &
client=$!
sleep 0.5
kill -INT "$pid"
wait "$pid"
rc=$?
pid=
wait "$client"
check "中途离开的请求被丢掉" grep -q '有客户中途离开' "$work/err"
if [ $rc -eq 0 ]; then ok "Ctrl-C：退出码 0"; else not_ok "Ctrl-C：退出码 0" "得 $rc：$(cat "$work/err")"; fi
if [ "$(cat "$work/code")" = 503 ]; then ok "Ctrl-C：手头的请求得 503"; else not_ok "Ctrl-C：手头的请求得 503" "$(cat "$work/code" "$work/last")"; fi

# ---- 没有聊天模板的模型在上面；这一个有模板（带 trim_blocks 才去得掉的空白）。密钥也在这里看
mkdir "$work/chat"
ln -s "$root"/data/raw/demo/model/* "$work/chat/"
rm -f "$work/chat/chat_template.jinja"
cat >"$work/chat/chat_template.jinja" <<'JINJA'
{% for m in messages %}
    {% if m['role'] == 'user' %}
Once upon {{ m['content'] }}
    {% elif m['role'] == 'system' %}
{{ raise_exception('no system') }}
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}
The{% endif %}
JINJA
echo secret >"$work/key"
model=$work/chat
start --api_key_file "$work/key"
expect "没有密钥" 401 error.code invalid_api_key -d '{"prompt": "a"}'
expect "密钥不对" 401 error.code invalid_api_key -H 'Authorization: Bearer secreT' -d '{"prompt": "a"}'
expect "密钥对" 200 usage.prompt_tokens 1 -H 'Authorization: Bearer secret' -d '{"prompt": "a", "max_tokens": 1}'
key='Authorization: Bearer secret'
expect "续写模板应渲染出的提示" 200 choices.0.finish_reason '*' -H "$key" -d "{\"prompt\": \"Once upon a time\\nThe\", \"max_tokens\": 8, $greedy}"
text=$(value choices.0.text) tokens=$(value usage.prompt_tokens)
endpoint=/v1/chat/completions
user='"messages": [{"role": "user", "content": "a time"}]'
expect "聊天：模板渲染成同样的提示" 200 choices.0.message.content "$text" -H "$key" -d "{$user, \"max_tokens\": 8, $greedy}"
if [ "$(value usage.prompt_tokens)" = "$tokens" ] && [ "$(value object)" = chat.completion ]; then ok "聊天：token 数与回应的样子"; else
    not_ok "聊天：token 数与回应的样子" "$(cat "$work/reply")"; fi
expect "聊天：内容分段、max_completion_tokens" 200 choices.0.message.content "$text" -H "$key" \
    -d "{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"a \"}, {\"type\": \"text\", \"text\": \"time\"}]}], \"max_completion_tokens\": 8, $greedy}"
post -H "$key" -d "{$user, \"max_tokens\": 8, $greedy, \"stream\": true}" >/dev/null
if grep -q '"object":"chat.completion.chunk".*"delta":{"role":"assistant","content":' "$work/reply" && tail -n 2 "$work/reply" | grep -q '\[DONE\]'; then ok "聊天：流式"; else
    not_ok "聊天：流式" "$(head -c 400 "$work/reply")"; fi
expect "聊天：没有 messages" 400 error.param messages -H "$key" -d '{"model": "a"}'
expect "聊天：prompt 不属于它" 400 error.param prompt -H "$key" -d "{$user, \"prompt\": \"a\"}"
expect "聊天：没有 role" 400 error.param messages -H "$key" -d '{"messages": [{"content": "a"}]}'
expect "聊天：图片" 400 error.param messages -H "$key" -d '{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}'
expect "聊天：模板拒绝的消息" 400 error.param messages -H "$key" -d '{"messages": [{"role": "system", "content": "a"}]}'
expect "聊天：工具" 400 error.param tools -H "$key" -d "{$user, \"tools\": [{\"type\": \"function\"}]}"
expect "聊天：坏 JSON" 400 error.type invalid_request_error -H "$key" -d '{"messages": ['
kill -INT "$pid" && wait "$pid"
pid=
done_testing
