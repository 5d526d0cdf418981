#!/usr/bin/env python3
"""hub_interop — 与 Python 的 huggingface_hub 互用一个缓存（make test-hub，不在 make test 之内）

用法: hub_interop.py [--binary build/ptq-bench] [--model data/raw/demo/model] [--work 目录]
起一个像 Hub 那样的回环服务器，把演示模型当作 org/demo：
1. ptq-bench 下载，huggingface_hub 以 local_files_only 读；2. huggingface_hub 下载到另一个缓存，ptq-bench 离线读；
3. 两者分出的 ids 相同。需要 Python 包 huggingface_hub。
"""
import argparse
import hashlib
import http.server
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading

p = argparse.ArgumentParser()
p.add_argument("--binary", default="build/ptq-bench")
p.add_argument("--model", default="data/raw/demo/model")
p.add_argument("--work", default="/tmp/hub_interop")
a = p.parse_args()
COMMIT = "89abcdef0123456789abcdef0123456789abcdef"
NAMES = ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
work = pathlib.Path(a.work)
shutil.rmtree(work, ignore_errors=True)
work.mkdir(parents=True)


def describe(path):
    data = path.read_bytes()
    lfs = path.suffix == ".safetensors"
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    return {"data": data, "lfs": lfs, "blob": blob, "etag": hashlib.sha256(data).hexdigest() if lfs else blob}


def load(folder):
    return {n: describe(pathlib.Path(folder) / n) for n in NAMES if (pathlib.Path(folder) / n).exists()}


class Hub(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    files = {}

    def log_message(self, *args):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for k, v in headers.items():
            self.send_header(k.replace("_", "-"), str(v))
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        path = self.path.split("?")[0]
        if path.startswith("/api/models/org/demo/tree/"):
            tree = [{"type": "file", "path": n, "size": len(f["data"]), "oid": f["blob"],
                     **({"lfs": {"oid": f["etag"], "size": len(f["data"]), "pointerSize": 130}} if f["lfs"] else {})} for n, f in self.files.items()]
            return self.answer(200, json.dumps(tree).encode(), Content_Type="application/json")
        if path.startswith("/api/models/org/demo/"):
            siblings = [{"rfilename": n, "size": len(f["data"]), "blobId": f["blob"],
                         **({"lfs": {"sha256": f["etag"], "size": len(f["data"]), "pointerSize": 130}} if f["lfs"] else {})}
                        for n, f in self.files.items()]
            body = json.dumps({"id": "org/demo", "modelId": "org/demo", "sha": COMMIT, "private": False, "gated": False,
                               "disabled": False, "tags": [], "downloads": 0, "likes": 0, "siblings": siblings}).encode()
            return self.answer(200, body, Content_Type="application/json")
        name = path.rsplit("/", 1)[-1]
        f = self.files.get(name)
        if not f or not path.startswith("/org/demo/"):
            return self.answer(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        common = dict(X_Repo_Commit=COMMIT, ETag='"%s"' % f["etag"], X_Linked_Etag='"%s"' % f["etag"], X_Linked_Size=len(f["data"]),
                      Accept_Ranges="bytes")
        if f["lfs"] and "/resolve/" in path:
            return self.answer(302, b"", Location=f"/org/demo/cdn/{name}", **common)
        data, status = f["data"], 200
        if self.headers.get("Range"):
            start = int(self.headers["Range"].split("=")[1].split("-")[0])
            common["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            data, status = memoryview(data)[start:], 206
        self.answer(status, data, Content_Length=len(data), **common)

    do_HEAD = do_GET


def serve():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def tokenize(cache, endpoint, offline):
    env = dict(os.environ, PTQ_BENCH_ROOT=str(work / "root"), HF_HUB_CACHE=str(cache), HF_ENDPOINT=endpoint, HF_HUB_OFFLINE="1" if offline else "0", HF_TOKEN="hf_x")
    root = work / "root"
    if not root.exists():
        shutil.copytree("configs", root / "configs")
        (root / "configs/models/hub-demo.yaml").write_text("name: hub-demo\nmodel_id: org/demo\n")
        (root / "data").symlink_to(pathlib.Path("data").resolve())
        (work / "text.txt").write_text("Hello, the world! 12 34")
    r = subprocess.run([str(pathlib.Path(a.binary).resolve()), "tokenize", "--model", "hub-demo", "--file", str(work / "text.txt")], env=env,
                       cwd=root, capture_output=True, text=True)
    if r.returncode:
        sys.exit(f"❌ {r.stderr}")
    return json.loads(r.stdout)


Hub.files = load(a.model)
url = serve()
os.environ.update(HF_ENDPOINT=url, HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_PROGRESS_BARS="1",
                  HF_HOME=str(work / "home"), NO_PROXY="127.0.0.1", no_proxy="127.0.0.1")
from huggingface_hub import hf_hub_download, snapshot_download  # noqa: E402  （读上面的环境变量）

ours, theirs = work / "ours", work / "theirs"
first = tokenize(ours, url, offline=False)
folder = snapshot_download("org/demo", cache_dir=ours, local_files_only=True)
for name, f in Hub.files.items():
    path = hf_hub_download("org/demo", name, cache_dir=ours, local_files_only=True)
    assert pathlib.Path(path).read_bytes() == f["data"], name
print(f"✅ huggingface_hub 读得我们写的缓存：{folder}")
snapshot_download("org/demo", cache_dir=theirs)
assert tokenize(theirs, url, offline=True) == first
print("✅ 我们读得 huggingface_hub 写的缓存")


def tree(cache):
    return sorted((str(p.relative_to(cache)), os.readlink(p) if p.is_symlink() else p.stat().st_size) for p in (cache / "models--org--demo").rglob("*")
                  if not p.is_dir() or p.is_symlink())


assert [x for x in tree(ours)] == [x for x in tree(theirs) if x[0] in dict(tree(ours))], (tree(ours), tree(theirs))
print("✅ 两个缓存的 blobs、refs、snapshots 相同")
