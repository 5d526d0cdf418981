#!/usr/bin/env bash
# rooms — 架构约束：包含规则、方法契约冻结、每个文件夹有 README、源文件不超长
. "$(dirname "$0")/lib.sh"

check "各室的包含关系" bash .ci/check_includes.sh

# 检查器自身：放进一条违例必须报出
cp -r src scripts .ci "$work/" && echo '#include "model/linear.h"' >>"$work/src/base/err.c"
if output=$(bash "$work/.ci/check_includes.sh"); then
    not_ok "违例的包含会被报出"
else
    case $output in
    *src/base/err.c*base*model*) ok "违例的包含会被报出" ;;
    *) not_ok "违例的包含会被报出" "$output" ;;
    esac
fi

check "src/methods/base.h 未改（冻结的契约）" sha256sum --check --status tests/data/base.h.sha256

missing=$(git ls-files | grep / | xargs -rn1 dirname | sort -u |
    while read -r d; do [ -e "$d/README.md" ] || echo "$d"; done)
if [ -z "$missing" ]; then ok "每个文件夹有 README.md"; else not_ok "每个文件夹有 README.md" "$missing"; fi

long=$(find src scripts tests -name '*.[ch]' -print0 | xargs -0 wc -l | awk '$2 != "total" && $1 > 600')
if [ -z "$long" ]; then ok "源文件不超过 600 行"; else not_ok "源文件不超过 600 行" "$long"; fi
done_testing
