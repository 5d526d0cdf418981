#!/usr/bin/env python3
"""make_parquet — 生成 tests/data/{ok,bad}/parquet/ 的小样本，与好样本应读出的 tests/data/parquet/*.jsonl

要 pyarrow。产物已提交；改了这里才要重跑：python3 tests/tools/make_parquet.py
expected.tsv 里的行手工登记。"""
import datetime
import io
import json
import pathlib
import struct

import pyarrow as pa
import pyarrow.parquet as pq

DATA = pathlib.Path(__file__).resolve().parent.parent / "data"
CHOICES = pa.struct([("text", pa.list_(pa.string())), ("label", pa.list_(pa.string()))])
PAIRS = pa.list_(pa.struct([("text", pa.string()), ("label", pa.int64())]))
ROWS = [
    {"question": "天空是什么颜色？", "choices": {"text": ["蓝", "绿", None], "label": ["A", "B", "C"]}, "answer": 0,
     "pairs": [{"text": "x", "label": 1}, {"text": None, "label": None}], "score": 0.5, "good": True},
    {"question": None, "choices": None, "answer": -5, "pairs": [], "score": None, "good": None},
    {"question": "", "choices": {"text": [], "label": None}, "answer": 2**62, "pairs": None, "score": -1e300,
     "good": False},
    {"question": "q" * 50, "choices": {"text": ["甲"], "label": ["A"]}, "answer": None,
     "pairs": [{"text": "y", "label": -1}], "score": 3.25, "good": True},
]
SCHEMA = pa.schema([("question", pa.string()), ("choices", CHOICES), ("answer", pa.int64()), ("pairs", PAIRS),
                    ("score", pa.float64()), ("good", pa.bool_())])
MANY = pa.table({"id": pa.array(range(300), pa.int32()), "name": [f"名字{i // 7:04d}" for i in range(300)],
                 "kind": [["a", "bb", None][i % 3] for i in range(300)],
                 "half": pa.array([i / 4 for i in range(300)], pa.float32()), "odd": [i % 2 == 1 for i in range(300)],
                 "day": pa.array([datetime.date(1969, 12, 30) + datetime.timedelta(i) for i in range(300)]),
                 "when": pa.array([-1 + i * 1234567 for i in range(300)], pa.timestamp("us", "UTC"))})


def put(name, table, **options):
    path = DATA / "ok" / "parquet" / f"{name}.parquet"
    path.parent.mkdir(exist_ok=True)
    (DATA / "parquet").mkdir(exist_ok=True)
    pq.write_table(table, path, store_schema=False, **options)
    rows = pq.read_table(path).to_pylist()
    lines = [json.dumps(r, ensure_ascii=False, separators=(",", ":"), default=str) for r in rows]
    (DATA / "parquet" / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def good():
    nested = pa.Table.from_pylist(ROWS, SCHEMA)
    put("nested_snappy_v1", nested, compression="snappy")
    put("nested_zstd_v2", nested, compression="zstd", data_page_version="2.0", row_group_size=3)
    put("many_gzip_plain", MANY, compression="gzip", use_dictionary=False, data_page_size=256, row_group_size=200)
    put("many_delta_v2", MANY, compression="none", use_dictionary=False, data_page_version="2.0",
        column_encoding={"id": "DELTA_BINARY_PACKED", "name": "DELTA_BYTE_ARRAY", "kind": "DELTA_LENGTH_BYTE_ARRAY",
                         "half": "BYTE_STREAM_SPLIT", "odd": "RLE", "when": "DELTA_BINARY_PACKED"})


def whole(table, **options):
    f = io.BytesIO()
    pq.write_table(table, f, store_schema=False, write_statistics=False, **options)
    return bytearray(f.getvalue())


def bad(name, data):
    assert len(data) < 4096, (name, len(data))
    path = DATA / "bad" / "parquet" / f"bad_{name}.parquet"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)


def all_bad():
    one = pa.table({"a": ["hello world, hello world"] * 9})
    file = whole(one, compression="snappy", use_dictionary=False)
    bad("truncated", file[:len(file) // 2])
    bad("magic", b"PAR2" + file[4:])
    bad("tiny", b"PAR1PAR1")
    bad("encrypted", file[:-4] + b"PARE")
    bad("footer_length", file[:-8] + struct.pack("<I", 0x7FFFFFFF) + b"PAR1")
    meta = struct.unpack("<I", file[-8:-4])[0]
    bad("footer", file[:-8 - meta] + b"\xff" * meta + file[-8:])
    page = bytearray(file)
    page[30:40] = b"\xff" * 10
    bad("page", page)
    bad("lz4", whole(one, compression="lz4"))
    bad("decimal", whole(pa.table({"d": pa.array([1], pa.decimal128(9, 2))})))
    bad("binary", whole(pa.table({"image": [b"\xff\xd8\xff"]})))
    bad("same_names", whole(pa.table([[1], [2]], names=["a", "a"])))
    # 前缀编码的炸弹：2000 个 64 kB 的相同文字
    put_bomb = whole(pa.table({"a": ["b" * 65536] * 2000}), compression="zstd", use_dictionary=False,
                     column_encoding={"a": "DELTA_BYTE_ARRAY"})
    bad("bomb_prefix", put_bomb)
    # 压缩的炸弹：一页 100 MB 的零
    bad("bomb_zstd", whole(pa.table({"a": ["\0" * 25_000_000]}), compression="zstd", use_dictionary=False))
    # 游程的炸弹：三十万行，每列都只有一个值
    bad("bomb_rle", whole(pa.table({k: pa.array([7] * 300_000, pa.int64()) for k in "abc"}), compression="zstd"))


good()
all_bad()
