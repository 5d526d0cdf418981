#!/usr/bin/env python3
"""compare_parquet — 用 pyarrow 写各种形状、编码、压缩、页版本的 Parquet，逐值对照我们读出的

用法: compare_parquet.py --tool build/tests/tools/parquet_json [--folder 文件夹：另对照其中已有的文件]
要 pyarrow。随机种子固定；每种组合一个文件。"""
import argparse
import datetime
import itertools
import json
import math
import pathlib
import random
import subprocess
import sys
import tempfile

import pyarrow as pa
import pyarrow.parquet as pq

rnd = random.Random(20260101)


def maybe(make, nulls):
    return None if nulls and rnd.random() < nulls else make()


def text():
    return "".join(rnd.choice("abc é中文\n\"\\🙂 xyz") for _ in range(rnd.randrange(30)))


def dates():
    return datetime.date(1, 1, 1) + datetime.timedelta(days=rnd.randrange(3652059))


def times(zone=None):
    t = datetime.datetime(1970, 1, 1) + datetime.timedelta(microseconds=rnd.randrange(-10**15, 10**16))
    return t.replace(tzinfo=zone) if zone else t


def lists(make, nulls):
    return [maybe(make, nulls) for _ in range(rnd.choice([0, 0, 1, 2, 3, 7]))]


def columns(n, nulls):
    """列名 → (类型, 值)。"""
    utc = datetime.timezone.utc
    choice = pa.struct([("text", pa.list_(pa.string())), ("label", pa.list_(pa.string()))])
    deep = pa.struct([("a", pa.struct([("b", pa.list_(pa.struct([("c", pa.int32()), ("d", pa.string())])))])),
                      ("e", pa.bool_())])

    def one_deep():
        return {"a": maybe(lambda: {"b": maybe(lambda: lists(lambda: {"c": maybe(lambda: rnd.randrange(9), nulls),
                                                                      "d": maybe(text, nulls)}, nulls), nulls)}, nulls),
                "e": maybe(lambda: rnd.random() < .5, nulls)}

    kinds = {
        "bool": (pa.bool_(), lambda: rnd.random() < .3),
        "i8": (pa.int8(), lambda: rnd.randrange(-128, 128)),
        "u8": (pa.uint8(), lambda: rnd.randrange(256)),
        "i32": (pa.int32(), lambda: rnd.randrange(-2**31, 2**31)),
        "u32": (pa.uint32(), lambda: rnd.randrange(2**32)),
        "i64": (pa.int64(), lambda: rnd.choice([-2**63, 2**63 - 1, 0, rnd.randrange(-2**63, 2**63)])),
        "u64": (pa.uint64(), lambda: rnd.randrange(2**63)),
        "small": (pa.int64(), lambda: rnd.randrange(4)),
        "same": (pa.int64(), lambda: 7),
        "f16": (pa.float16(), lambda: __import__("numpy").float16(rnd.uniform(-9, 9))),
        "f32": (pa.float32(), lambda: rnd.uniform(-1e6, 1e6)),
        "f64": (pa.float64(), lambda: rnd.choice([0.0, -0.0, 1e300, 5e-324, rnd.uniform(-1, 1), math.inf, math.nan])),
        "text": (pa.string(), text),
        "large_text": (pa.large_string(), text),
        "few": (pa.string(), lambda: rnd.choice(["A", "B", "C", "", "D" * 40])),
        "sorted": (pa.string(), text),
        "bytes": (pa.binary(), lambda: text().encode()),
        "fixed": (pa.binary(5), lambda: bytes(rnd.choice(b"abcdef") for _ in range(5))),
        "dict": (pa.dictionary(pa.int32(), pa.string()), lambda: rnd.choice(["x", "yy", "zzz"])),
        "date": (pa.date32(), dates),
        "t_ms": (pa.timestamp("ms"), lambda: times().replace(microsecond=rnd.randrange(1000) * 1000)),
        "t_us": (pa.timestamp("us"), times),
        "t_utc": (pa.timestamp("us", "UTC"), lambda: times(utc)),
        "list_text": (pa.list_(pa.string()), lambda: lists(text, nulls)),
        "list_int": (pa.list_(pa.int64()), lambda: lists(lambda: rnd.randrange(9), nulls)),
        "list_list": (pa.list_(pa.list_(pa.int32())), lambda: lists(lambda: lists(lambda: rnd.randrange(9), nulls), nulls)),
        "list_struct": (pa.list_(pa.struct([("text", pa.string()), ("label", pa.int64())])),
                        lambda: lists(lambda: {"text": maybe(text, nulls), "label": maybe(lambda: 3, nulls)}, nulls)),
        "choices": (choice, lambda: {"text": maybe(lambda: lists(text, nulls), nulls),
                                     "label": maybe(lambda: lists(text, 0), nulls)}),
        "deep": (deep, one_deep),
        "map": (pa.map_(pa.string(), pa.int64()), lambda: [(str(i), maybe(lambda: 5, nulls)) for i in range(rnd.randrange(4))]),
        "none": (pa.null(), lambda: None),
    }
    out = {}
    for name, (kind, make) in kinds.items():
        values = [maybe(make, nulls) for _ in range(n)]
        if name == "sorted":
            values = sorted(v or "" for v in values)
        out[name] = (kind, values)
    return out


def plain(v, kind):
    """pyarrow 的值 → 我们的 JSON 应有的值。"""
    if v is None:
        return None
    if pa.types.is_map(kind):
        return [{"key": k, "value": x} for k, x in v]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return [plain(x, kind.value_type) for x in v]
    if pa.types.is_struct(kind):
        return {f.name: plain(v[f.name], f.type) for f in kind}
    if isinstance(v, float):
        return v if math.isfinite(v) else None
    if isinstance(v, (datetime.date, datetime.datetime)):
        return str(v)
    if isinstance(v, bytes):
        return v.decode()
    return v.item() if hasattr(v, "item") else v


def compare(tool, path):
    table = pq.read_table(path, partitioning=None)
    want = [[plain(v, f.type) for v in table.column(i).to_pylist()] for i, f in enumerate(table.schema)]
    run = subprocess.run([tool, str(path)], capture_output=True, text=True)
    if run.returncode:
        return f"退出码 {run.returncode}: {run.stderr.strip()}"
    rows = run.stdout.split("\n")[:-1]
    if len(rows) != table.num_rows:
        return f"{len(rows)} 行，应为 {table.num_rows}"
    for r, line in enumerate(rows):
        row = json.loads(line)
        if list(row) != table.schema.names:
            return f"列名不同：{list(row)}"
        for i, name in enumerate(table.schema.names):
            if row[name] != want[i][r] or type(row[name]) is not type(want[i][r]):
                return f"第 {r} 行 {name}: 得到 {row[name]!r}，应为 {want[i][r]!r}"
    return None


def write_all(folder):
    base = {"store_schema": False}
    shapes = [(0, 0), (1, 0), (1, 1), (7, .3), (1000, 0), (1000, .2), (3000, .9), (20000, .05)]
    n = 0
    for rows, nulls in shapes:
        cols = columns(rows, nulls)
        table = pa.table({k: pa.array(v, t) for k, (t, v) in cols.items()})
        for codec, version, dictionary in itertools.product(["none", "snappy", "gzip", "zstd"], ["1.0", "2.0"], [True, False]):
            options = dict(compression=codec, data_page_version=version, use_dictionary=dictionary)
            extra = rnd.choice([{}, {"row_group_size": max(1, rows // 3)}, {"data_page_size": 512},
                                {"dictionary_pagesize_limit": 600}, base, {"write_batch_size": 64, "data_page_size": 64},
                                {"use_compliant_nested_type": False}, {"write_page_checksum": True}])
            pq.write_table(table, folder / f"t{n}.parquet", **options, **extra)
            n += 1
        if rows == 0:
            continue
        encodings = {"DELTA_BINARY_PACKED": ["i32", "u32", "i64", "u64", "small", "same", "t_us", "date"],
                     "DELTA_LENGTH_BYTE_ARRAY": ["text", "few", "bytes"],
                     "DELTA_BYTE_ARRAY": ["text", "few", "sorted", "fixed"],
                     "BYTE_STREAM_SPLIT": ["f32", "f64", "i32", "i64", "fixed"],
                     "RLE": ["bool"], "PLAIN": ["bool", "f32", "text", "i8"]}
        for (encoding, names), version in itertools.product(encodings.items(), ["1.0", "2.0"]):
            pq.write_table(table.select(names), folder / f"e{n}_{encoding}.parquet", use_dictionary=False,
                           column_encoding={k: encoding for k in names}, data_page_version=version,
                           compression=rnd.choice(["none", "zstd", "gzip", "snappy"]),
                           data_page_size=rnd.choice([300, 1 << 20]))
            n += 1
    # 非空的列（REQUIRED）与空列表之外的边角
    schema = pa.schema([pa.field("a", pa.int64(), nullable=False),
                        pa.field("l", pa.list_(pa.field("element", pa.string(), nullable=False)), nullable=False)])
    pq.write_table(pa.table([[1, 2, 3], [["x"], [], ["y", "z"]]], schema=schema), folder / "required.parquet")
    pq.write_table(pa.concat_tables([pa.table({"s": [str(i)] * 500}) for i in range(40)]), folder / "groups.parquet",
                   row_group_size=500)


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--tool", required=True)
    p.add_argument("--folder", type=pathlib.Path)
    a = p.parse_args()
    bad = total = values = 0
    with tempfile.TemporaryDirectory() as tmp:
        write_all(pathlib.Path(tmp))
        files = sorted(pathlib.Path(tmp).glob("*.parquet"))
        files += sorted(a.folder.rglob("*.parquet")) if a.folder else []
        for path in files:
            why = compare(a.tool, path)
            total += 1
            m = pq.read_metadata(path)
            values += m.num_rows * m.num_columns
            if why:
                bad += 1
                print(f"❌ {path.name}: {why}", file=sys.stderr)
    print(f"{'❌' if bad else '✅'} {total} 个文件（{values} 个值）与 pyarrow {pa.__version__} 比较，{bad} 个不同")
    return bad > 0


if __name__ == "__main__":
    sys.exit(main())
