"""lm_eval_harness — 真正的 lm-evaluation-harness（pip 的 lm_eval 0.4.13）在本地数据上的请求、打分与用时，供逐文档对照

用法: lm_eval_harness.py render|run --data 文件夹 --tokenizer HF文件夹 --tasks a,b [--shots N] [--limit N] [--out 文件夹] [--threads N]
数据的放法同本程序：文件夹下 dataset_path 的末段/dataset_name/{划分}.jsonl；datasets.load_dataset 换成读它，不联网。
render：不算模型，每个任务打印「任务 少样本 请求数 文字的SHA-256 token的SHA-256」，定义同 shared/goldens/lm_eval。
run：HF 后端（float32、CPU、一次一个请求），逐文档写 {out}/{任务}.jsonl（格式同 shared/goldens/lm_eval），
另写 {out}/results.json；末行「wall 秒 tokens 个」是只算评测的用时与输入 token 数。
"""
import argparse
import hashlib
import json
import os
import time

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
import datasets  # noqa: E402

p = argparse.ArgumentParser()
p.add_argument("mode", choices=["render", "run"])
for flag in ("data", "tokenizer", "tasks"):
    p.add_argument("--" + flag, required=True)
p.add_argument("--shots", type=int)
p.add_argument("--limit", type=int)
p.add_argument("--threads", type=int, default=1)
p.add_argument("--out")
a = p.parse_args()


def local_dataset(path=None, name=None, **_):
    """load_dataset 的替身：只读本地的 JSONL。"""
    folder = os.path.join(a.data, path.split("/")[-1], name or "")
    files = {f[:-6]: os.path.join(folder, f) for f in sorted(os.listdir(folder)) if f.endswith(".jsonl")}
    rows = {k: [json.loads(line) for line in open(v, encoding="utf-8")] for k, v in files.items()}
    return datasets.DatasetDict({k: datasets.Dataset.from_list(v) for k, v in rows.items()})


datasets.load_dataset = local_dataset
import torch  # noqa: E402
import lm_eval  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager, get_task_dict  # noqa: E402

torch.set_num_threads(a.threads)
names = a.tasks.split(",")


def flat(tasks):
    for name, task in tasks.items():
        if isinstance(task, dict):
            yield from flat(task)
        else:
            yield name, task


def encoder():
    """只有分词器的 HFLM：编码的规则都是它自己的。"""
    import transformers

    m = object.__new__(HFLM)
    m.tokenizer = transformers.AutoTokenizer.from_pretrained(a.tokenizer)
    m.add_bos_token = None
    m.backend = "causal"
    m.custom_prefix_token_id = None
    m._max_length = json.load(open(os.path.join(a.tokenizer, "config.json")))["max_position_embeddings"]
    return m


def pairs(m, instance):
    """一个请求的（context ids, continuation ids）；滚动的有几个窗口。"""
    args = instance.args
    if instance.request_type == "loglikelihood_rolling":
        from lm_eval import utils

        return [utils.make_disjoint_window(w) for w in utils.get_rolling_token_windows(
            token_list=m.tok_encode(args[0]), prefix_token=m.prefix_token_id, max_seq_len=m._max_length,
            context_len=1)]
    if instance.request_type == "generate_until":
        return [(m.tok_encode(args[0]), [])]
    if args[0] == "":
        whole = m.tok_encode(args[1], add_special_tokens=False)
        return [([m.prefix_token_id], whole)]
    return [m._encode_pair(args[0], args[1])]


def render():
    m = encoder()
    for name, task in flat(get_task_dict(names, TaskManager())):
        if a.shots is not None and task.get_config("num_fewshot") != 0:
            task.set_config("num_fewshot", a.shots)
        elif task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", 0)
        task.set_fewshot_seed(1234)
        task.build_all_requests(limit=a.limit)
        text, ids = hashlib.sha256(), hashlib.sha256()
        for i in task.instances:
            tail = i.args[1] if len(i.args) > 1 and isinstance(i.args[1], str) else ""
            head = i.args[0]
            if i.request_type == "loglikelihood_rolling":
                head, tail = "", head
            text.update(head.encode() + b"\x1f" + tail.encode() + b"\x1e")
            for context, continuation in pairs(m, i):
                left = ",".join(map(str, context))
                right = ";" + ",".join(map(str, continuation)) if i.request_type != "generate_until" else ""
                ids.update((left + right + "\n").encode())
        print(name, task.get_config("num_fewshot"), len(task.instances), text.hexdigest(), ids.hexdigest(),
              sep="\t", flush=True)


def document(m, task, samples):
    """同一份文档的各过滤器的样本 → 一行。"""
    s = samples[0]
    row = {"doc_id": s["doc_id"], "target": s["target"], "requests": []}
    for args, resp in zip(s["arguments"], s["resps"]):
        one = {"context": args[0], "continuation": args[1] if isinstance(args[1], str) else ""}
        if task == "generate_until":
            one["generated"] = resp[0]
        else:
            context, continuation = m._encode_pair(args[0], args[1])
            one.update(context_ids=context, continuation_ids=continuation, loglikelihood=resp[0][0],
                       is_greedy=bool(resp[0][1]))
        row["requests"].append(one)
    for x in samples:
        for metric in x["metrics"]:
            row[metric if len(samples) == 1 else f"{metric},{x['filter']}"] = float(x[metric])
    return row


def run():
    os.makedirs(a.out, exist_ok=True)
    m = HFLM(pretrained=a.tokenizer, dtype="float32", device="cpu", batch_size=1)
    started = time.time()
    r = lm_eval.simple_evaluate(model=m, tasks=names, num_fewshot=a.shots, limit=a.limit, log_samples=True,
                                bootstrap_iters=0)
    wall, tokens = time.time() - started, 0
    for name, samples in r["samples"].items():
        kind = r["configs"][name]["output_type"]
        docs = {}
        for s in samples:
            docs.setdefault(s["doc_id"], []).append(s)
        with open(os.path.join(a.out, name + ".jsonl"), "w", encoding="utf-8") as f:
            for key in sorted(docs):
                row = document(m, kind, docs[key])
                tokens += sum(len(q.get("context_ids", [])) + len(q.get("continuation_ids", [])) - 1
                              for q in row["requests"])
                f.write(json.dumps(row, ensure_ascii=False) + "\n")
    json.dump(r["results"], open(os.path.join(a.out, "results.json"), "w"), default=str, indent=1)
    print("wall %.3f tokens %d" % (wall, tokens))


render() if a.mode == "render" else run()
