#!/usr/bin/env python3
"""lm_eval_coverage — lm_eval 自带的任务 YAML 有多少能原生载入并渲染，写成 docs/lm_eval_coverage.md

用法: python tests/tools/lm_eval_coverage.py [build/tests/tools/jinja_render]（要 pip 装上 lm_eval==0.4.13，先 make tests）
每个 YAML 用我们的读法（task_config.h）载入；没有 Python 函数的任务，它的每个模板在合成的文档上渲染，
与真正的 jinja2（lm_eval 的环境）逐字比较。文档由模板的语法树推出字段的类型，每个模板六份：普通的、带引号与汉字的、边角的、答案恰在选项里的。
"""
import collections
import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from jinja2 import Environment, StrictUndefined, nodes

KEYS = ["doc_to_text", "doc_to_choice", "doc_to_target", "gen_prefix", "description"]
STRINGS = [["alpha", "beta two", "Gamma", "delta", "9"],
           ["it's", 'say "hi" [SEP] x', "中文 é\n", "  pad ", "#### 7"],
           ["", "A", "-3", "a.b,c", "\\ {x} %s"],
           ["A"] * 5, ["1"] * 5]  # 后两种给 ['A', 'B'].index(answer) 一类
METHOD_LIST = {"index", "count", "append", "pop"}

env = Environment(keep_trailing_newline=True, undefined=StrictUndefined)
env.filters["regex_replace"] = lambda s, p, r, count=0: re.sub(p, r, s, count=count)


class Shape:
    """一个字段该是什么：dict（fields）、list（item）、int 或 str。"""

    def __init__(self):
        self.fields, self.item, self.kind = {}, None, None

    def field(self, name):
        self.kind = "dict"
        return self.fields.setdefault(name, Shape())

    def element(self):
        if self.kind != "dict":
            self.kind = "list"
        self.item = self.item or Shape()
        return self.item

    def make(self, variant, salt):
        if self.kind == "dict":
            return {k: s.make(variant, salt + i) for i, (k, s) in enumerate(self.fields.items())}
        if self.kind == "list":
            return [(self.item or Shape()).make(variant, salt + i) for i in range(5)]
        if self.kind == "int":
            return (salt + variant) % 4 if variant < 3 else variant - 3
        return STRINGS[variant][salt % 5]


def shape_of(node, root, local):
    """表达式 → 它指的 Shape；不是文档里的东西为 None。"""
    if isinstance(node, nodes.Name):
        return local.get(node.name) or root.field(node.name)
    if isinstance(node, nodes.Getattr):
        base = shape_of(node.node, root, local)
        return base.field(node.attr) if base else None
    if isinstance(node, nodes.Getitem):
        base = shape_of(node.node, root, local)
        if not base:
            return None
        if isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
            return base.field(node.arg.value)
        if isinstance(node.arg, nodes.Slice):
            return base
        return base.element() if base.kind != "dict" else None
    return None


def infer(template):
    tree, root, local = env.parse(template), Shape(), {}
    root.kind = "dict"
    for n in tree.find_all((nodes.For, nodes.Assign)):
        target = getattr(n, "target", None)
        if isinstance(n, nodes.For) and isinstance(target, nodes.Name):
            local.setdefault("loop", Shape())
            iterated = shape_of(n.iter, root, local)
            local[target.name] = iterated.element() if iterated else Shape()
        elif isinstance(target, nodes.Name):
            local[target.name] = Shape()
    calls = {}
    for n in tree.find_all(nodes.Call):
        if isinstance(n.node, nodes.Getattr):
            calls[id(n.node)] = True
            base = shape_of(n.node.node, root, local)
            if base and n.node.attr in METHOD_LIST:
                base.element()
        elif isinstance(n.node, nodes.Name):
            calls[id(n.node)] = True
    for n in tree.find_all((nodes.Getattr, nodes.Getitem, nodes.Name)):
        if id(n) not in calls:
            shape_of(n, root, local)
    for n in tree.find_all(nodes.Getitem):
        if not isinstance(n.arg, (nodes.Const, nodes.Slice)):
            key = shape_of(n.arg, root, local)
            if key and key.kind is None and not isinstance(n.node, nodes.Dict):
                key.kind = "int"
    for n in tree.find_all((nodes.Add, nodes.Sub, nodes.Mul)):
        sides = [n.left, n.right]
        if any(isinstance(s, nodes.Const) and isinstance(s.value, int) for s in sides) or \
                isinstance(n, nodes.Sub):
            for s in sides:
                shape = shape_of(s, root, local)
                if shape and shape.kind is None:
                    shape.kind = "int"
    for name in ("range", "loop"):
        root.fields.pop(name, None)
    return root


def documents(template):
    root = infer(template)
    for variant in range(len(STRINGS)):
        yield root.make(variant, variant)
    fields = root.make(0, 0)
    yield {k: None if isinstance(v, str) else v for k, v in fields.items()}


def run_tool(tool, jobs):
    text = "".join(json.dumps(j) + "\n" for j in jobs)
    out = subprocess.run([tool], input=text, capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in out.splitlines()]


def has_function(value):
    if isinstance(value, dict):
        return "!function" in value or any(has_function(v) for v in value.values())
    return isinstance(value, list) and any(has_function(v) for v in value)


def templates(config):
    found = [config.get(k) for k in KEYS]
    fewshot = config.get("fewshot_config")
    if isinstance(fewshot, dict):
        found += [fewshot.get(k) for k in KEYS]
    return [t for t in found if isinstance(t, str) and ("{{" in t or "{%" in t)]


def compare(tool, all_templates):
    """模板 → "相同"、"不同"、"没有渲染成"（jinja2 在每份文档上都报错）。"""
    jobs, expected, verdict = [], [], {}
    for t in all_templates:
        for doc in documents(t):
            try:
                want = {"out": env.from_string(t).render(**doc)}
            except Exception:
                want = {"error": True}
            jobs.append({"template": t, "context": doc})
            expected.append(want)
    rendered = collections.Counter()
    for job, want, got in zip(jobs, expected, run_tool(tool, jobs)):
        t = job["template"]
        if "error" in want or "error" in got:
            same = ("error" in want) == ("error" in got)
        else:
            same = want == got
            rendered[t] += 1
        if not same:
            verdict[t] = "不同"
            print("不同:", t, job["context"], want, got, file=sys.stderr)
    for t in all_templates:
        verdict.setdefault(t, "相同" if rendered[t] else "没有渲染成")
    return verdict


def main():
    tool = sys.argv[1] if len(sys.argv) > 1 else "build/tests/tools/jinja_render"
    root = Path(find_spec("lm_eval").submodule_search_locations[0]) / "tasks"
    paths = sorted(p for p in root.glob("**/*.yaml") if "__pycache__" not in p.parts)
    kinds, verdicts, plain = collections.Counter(), collections.Counter(), []
    reasons, failed = collections.Counter(), []
    for path, got in zip(paths, run_tool(tool, [{"yaml": str(p)} for p in paths])):
        config = got.get("value")
        if config is None:
            text = path.read_text()
            kinds["载入失败，有 !function" if "!function" in text else "载入失败"] += 1
            failed.append(f"{path.relative_to(root)}: {got['error'].replace(str(root) + '/', '')}")
        elif "group" in config or isinstance(config.get("task"), list):
            kinds["组"] += 1
        elif not isinstance(config.get("task"), str):
            kinds["只供 include"] += 1
        elif has_function(config) or "class" in config:
            kinds["要 Python"] += 1
        else:
            kinds["纯 YAML"] += 1
            plain.append(config)
    verdict = compare(tool, sorted({t for c in plain for t in templates(c)}))
    for c in plain:
        states = [verdict[t] for t in templates(c)]
        state = "不同" if "不同" in states else "没有渲染成" if "没有渲染成" in states else "相同"
        verdicts[state] += 1
        if state != "相同":
            reasons[state + ": " + str(c.get("task"))] += 1
    n, good = len(plain) + kinds["载入失败"], verdicts["相同"]
    lines = ["# lm-eval 任务 YAML 的覆盖", "",
             f"lm_eval {version('lm_eval')} 自带的 {len(paths)} 个 YAML，用本程序的读法载入；没有 Python 函数的任务，每个模板在六份合成的文档上"
             f"渲染，与真正的 jinja2 {version('jinja2')} 逐字比较（{len(verdict)} 个不同的模板）。"
             "本表由 `python tests/tools/lm_eval_coverage.py` 生成。", "",
             "| YAML | 个数 |", "|---|---:|"]
    lines += [f"| {k} | {v} |" for k, v in sorted(kinds.items(), key=lambda x: -x[1])]
    lines += ["", "| 没有 Python 函数的任务 | 个数 |", "|---|---:|",
              f"| 载入，全部模板渲染得与 jinja2 相同 | {good} |",
              f"| 载入，模板在合成的文档上都报错（jinja2 也报错，无从比较） | {verdicts['没有渲染成']} |",
              f"| 载入，渲染不同 | {verdicts['不同']} |", f"| 不能载入 | {kinds['载入失败']} |",
              f"| **原生载入并渲染** | **{good} / {n} = {100 * good / max(n, 1):.1f} %** |", "",
              "「要 Python」是配置里有 `!function` 或 `class` 的任务：其中登记了 C 函数的（docs/lm_eval.md）走原生路径，其余过桥（docs/serve.md）。"]
    if reasons or failed:
        lines += ["", "## 没有覆盖的", ""] + [f"- `{r}`" for r in sorted(reasons)] + \
                 [f"- `{f}`" for f in failed[:40]]
    Path("docs/lm_eval_coverage.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines[4:]))


if __name__ == "__main__":
    main()
