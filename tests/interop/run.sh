#!/usr/bin/env bash
# run — make test-interop：备好装有各工具的 Python，跑 run.py；装有 llama-cpp-python 时再跑 gguf_families.py（名字是 gguf-变体）
# 用法: run.sh 程序 [Python] [只跑的名字的正则] [1]。没有给 Python 时在 build/interop/venv 建一个（CPU 的 torch，约 2 GB；那个索引到不了就从 PyPI 取，约 6 GB）。
# 末一个参数非空：另从源码编译以 OpenBLAS 相乘的 llama-cpp-python（须有 libopenblas-dev；两个核约十分钟，只编一次）来用。
set -eu
cd "$(dirname "$0")/../.."
program=$1 python=${2:-} only=${3:-} blas=${4:-} venv=build/interop/venv folder=build/interop/llama-blas
if [ -z "$python" ]; then
    python=$venv/bin/python
    if [ ! -f "$venv/ready" ]; then
        echo "📦 在 $venv 装 torch、transformers 与各量化工具（只装一次）"
        python3 -m venv "$venv"
        "$python" -m pip install -q --retries 0 --timeout 15 --index-url https://download.pytorch.org/whl/cpu torch ||
            "$python" -m pip install -q torch
        "$python" -m pip install -q transformers accelerate sentencepiece gguf
        for tool in compressed-tensors llmcompressor bitsandbytes hqq auto-round llama-cpp-python; do # 一个装不上只少几项；末一个由源码编译，几分钟
            "$python" -m pip install -q "$tool" || echo "⚠️ $tool 没有装上，用它的项会跳过"
        done
        touch "$venv/ready"
    fi
fi
if [ -n "$blas" ]; then
    if [ ! -d "$folder/llama_cpp" ]; then
        echo "📦 编译以 OpenBLAS 相乘的 llama-cpp-python → $folder"
        version=$("$python" -m pip show llama-cpp-python 2>/dev/null | sed -n 's/^Version: /==/p')
        # 不重排权重（GGML_CPU_REPACK）：重排过的不经 BLAS。--no-cache-dir：缓存里的是平常的那一份
        CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-2} \
            CMAKE_ARGS="-DGGML_BLAS=ON -DGGML_BLAS_VENDOR=OpenBLAS -DGGML_CPU_REPACK=OFF" \
            "$python" -m pip install -q --no-deps --no-cache-dir --no-binary llama-cpp-python --target "$folder" "llama-cpp-python$version"
    fi
    export PYTHONPATH="$PWD/$folder${PYTHONPATH:+:$PYTHONPATH}"
fi
failed=0
TRANSFORMERS_VERBOSITY=error "$python" tests/interop/run.py --binary "$program" --only "$only" ${blas:+--llama-blas} || failed=1
case $only in
'' | *gguf*)
    if "$python" -c 'import llama_cpp' 2>/dev/null; then
        families=build/interop/families
        [ -d "$families" ] || "$python" tests/tools/families.py "$families" >/dev/null
        "$python" tests/interop/gguf_families.py "$program" "$families" --only "$only" ${blas:+--llama-blas} 2>/dev/null || failed=1
    fi
    ;;
esac
exit $failed
