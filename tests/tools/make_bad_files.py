#!/usr/bin/env python3
"""make_bad_files — 生成 tests/data/{ok,bad} 里各解析器的小样本与 expected.tsv

只用标准库，输出逐字节确定；改了这里就重跑一遍并提交产物：python3 tests/tools/make_bad_files.py
expected.tsv 里不是由本脚本生成的种类（第一列不在 KINDS 中）原样保留。
"""
import json
import pathlib
import struct

ROOT = pathlib.Path(__file__).resolve().parent.parent / "data"
KINDS = ("yaml", "json", "safetensors", "gguf")
bad_rows, ok_rows = [], []


def bad(kind, name, data, code, text):
    put("bad", kind, name, data)
    bad_rows.append((kind, f"{kind}/{name}", code, text))


def ok(kind, name, data, count):
    put("ok", kind, name, data)
    ok_rows.append((kind, f"{kind}/{name}", str(count)))


def put(folder, kind, name, data):
    data = data.encode() if isinstance(data, str) else data
    assert len(data) < 4096, name
    path = ROOT / folder / kind / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def yaml_files():
    def one(name, data, text, code="config"):
        bad("yaml", f"bad_{name}.yaml", data, code, text)

    one("duplicate_key", "model: demo\nweight:\n  w_bits: 4\n  w_bits: 3\n", ":4: 重复的键 \"w_bits\"")
    one("anchor", "a: &x 1\nb: 2\n", ":1: 不支持锚点")
    one("anchor_map", "a: &x\n  b: 1\n", ":1: 不支持锚点")
    one("alias", "a: 1\nb: *x\n", ":2: 不支持别名")
    one("billion_laughs", "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", ":1: 不支持锚点")
    one("tag", "a: !!python/object:os.system ls\n", ":1: 不支持类型标签")
    one("tag_directive", "%TAG !e! tag:example.com,2000:\n---\na: 1\n", ":1: 不支持 %TAG 指令")
    one("escape_sequence", '"\\e[31mred": 1\n"\\e[31mred": 2\n', ':2: 重复的键 "?[31mred"')
    one("two_documents", "a: 1\n---\nb: 2\n", ":2: 一个文件只能有一个文档")
    one("deep_flow", "[" * 70 + "]" * 70, ":1: 嵌套超过 64 层")
    one("deep_block", "".join(" " * i + "k:\n" for i in range(70)), ":65: 嵌套超过 64 层")
    one("unclosed", "a: [1, 2\nb: 3\n", "YAML 语法错误")
    one("tab_indent", "a:\n\tb: 1\n", ":2:1: YAML 语法错误")
    one("bad_indent", "a: 1\n  b: 2\n", ":2:4: YAML 语法错误")
    one("latin1", b"a: 1\nb: caf\xe9\n", ":2: 不是合法的 UTF-8")
    one("utf16", "a: 1\n".encode("utf-16"), "不是合法的 UTF-8")
    one("overlong_utf8", b"a: \xc0\xaf\n", ":1: 不是合法的 UTF-8")
    one("control", b"a: \x01\n", ":1: 不是合法的 UTF-8 文本")
    one("nul_escape", 'a: "x\\0y"\n', ":1: 字符串中不允许 NUL")
    one("list_key", "? [a, b]\n: 1\n", ":1: 键必须是标量")
    one("empty_key", '"": 1\n', ":1: 键不能为空")
    one("int_overflow", "seed: 9223372036854775808\n", ":1: \"9223372036854775808\" 整数超出 64 位")
    one("hex_overflow", "seed: 0x10000000000000000\n", "整数超出 64 位")
    one("float_overflow", "x: 1e400\n", ":1: \"1e400\" 实数超出双精度")
    one("stray_bracket", "a: ]\n", "YAML 语法错误")
    one("unterminated_quote", 'a: "abc\n', "YAML 语法错误")
    ok("yaml", "scalars.yaml", 'a: 1\nb: 1e-5\nc: "1"\nd: yes\ne: ~\nf: [true, .inf, 0x1F, 0o17]\ng: {h: 中文}\n', 7)
    ok("yaml", "empty.yaml", "", 0)
    ok("yaml", "comment_only.yaml", "# 只有注释\n", 0)
    ok("yaml", "bom.yaml", b"\xef\xbb\xbfa: 1\n", 1)
    ok("yaml", "document_marks.yaml", "---\na: 1\n...\n", 1)
    ok("yaml", "deepest.yaml", "[" * 64 + "]" * 64, 1)
    ok("yaml", "block_text.yaml", "a: |\n  第一行\n  第二行\nb: >-\n  折\n  行\n", 2)


def json_files():
    def one(name, data, text, code="format"):
        bad("json", f"bad_{name}.json", data, code, text)

    one("empty", "", "内容为空")
    one("truncated", '{"a": [1, 2', ":1:11: ")
    one("truncated_string", '{"a": "bc', "bad_truncated_string.json:1:")
    one("duplicate_key", '{\n  "a": 1,\n  "a": 2\n}', ":3:5: 重复的键")
    one("trailing_comma", '{"a": 1,}', ":1:9: 语法错误")
    one("trailing_data", '{"a": 1} {"b": 2}', "还有多余的内容")
    one("comment", '{"a": 1 // x\n}', ":1:9: 语法错误")
    one("single_quotes", "{'a': 1}", ":1:2: 语法错误")
    one("nan", '{"a": NaN}', "语法错误")
    one("deep_array", "[" * 2049 + "]" * 2040, "嵌套过深")
    one("deep_object", '{"":' * 1020, ":1:")
    one("bad_utf8", b'{"a": "\xff\xfe"}', "不是合法的 UTF-8")
    one("lone_surrogate", '{"a": "\\ud800"}', "语法错误")
    one("nul_key", '{"a\\u0000b": 1}', "键中含 NUL")
    one("raw_nul", b'{"a": "\x00"}', ":1:")
    one("real_overflow", '{"a": 1e400}', "数值超出范围")
    one("huge_integer", '{"a": ' + "9" * 400 + "}", "数值超出范围")
    one("many_huge_integers", "[" + ",".join(["9" * 30] * 40) + "]", "数值超出范围")
    one("leading_zero", '{"a": 012}', "语法错误")
    one("control_in_string", b'{"a": "x\ny"}', "语法错误")
    ok("json", "wide_integer.json", '{"model_max_length": 1000000000000000019884624838656, "n": -123456789012345678901}', 2)
    ok("json", "nul_string.json", '{"a": "x\\u0000y"}', 1)
    ok("json", "bom.json", b'\xef\xbb\xbf{"a": 1}', 1)
    ok("json", "numbers.json", "[0, -0.0, 1e-320, 0.1, 9223372036854775807, -9223372036854775808, 1e22]", 7)
    ok("json", "nested.json", "[" * 60 + "]" * 60, 1)


def st(header, data=b"", length=None):
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(head) if length is None else length) + head + data


def tensor(begin, end, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def safetensors_files():
    def one(name, data, text, code="format"):
        bad("safetensors", f"bad_{name}.safetensors", data, code, text)

    one("empty", b"", "不是 safetensors 文件")
    one("short", b"\x02\0\0", "不是 safetensors 文件")
    one("header_beyond_file", st(b"{}", length=1000), "超出文件")
    one("header_huge", st(b"{}", length=(1 << 64) - 1), "超过上限 100 MB")
    one("header_over_limit", st(b"{}", length=100_000_001), "超过上限 100 MB")
    one("header_not_json", st(b"{hello}"), ":1:6: 语法错误")
    one("header_empty", st(b""), "内容为空")
    one("header_array", st(b"[]"), "不是 JSON 对象")
    one("header_deep", st(b'{"a":' + b"[" * 2050), "嵌套过深")
    one("duplicate_name", st(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
                             b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x"), "重复的键")
    one("truncated_data", st({"w": tensor(0, 16, [4])}, b"12345678"), "超出数据区（8 字节），文件可能被截断")
    one("offset_overflow", st({"w": tensor(0, 9223372036854775807, [4])}, b"0" * 16), "超出数据区")
    one("offset_too_wide", st({"w": tensor(0, 18446744073709551616, [4])}, b"0" * 16), "data_offsets 应为两个整数")
    one("offset_negative", st({"w": tensor(-16, 0, [4])}, b"0" * 16), "超出数据区")
    one("offset_reversed", st({"w": tensor(16, 0, [4])}, b"0" * 16), "超出数据区")
    one("offset_one", st({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0]}}, b"0" * 16), "应为两个整数")
    one("offset_missing", st({"w": {"dtype": "F32", "shape": [4]}}, b"0" * 16), "应为两个整数")
    one("offset_real", st({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16.0]}}, b"0" * 16), "应为两个整数")
    one("overlap", st({"a": tensor(0, 16, [4]), "b": tensor(8, 24, [4])}, b"0" * 24), "张量 a 与 b 的数据重叠")
    one("same_place", st({"a": tensor(0, 16, [4]), "b": tensor(0, 16, [4])}, b"0" * 16), "数据重叠")
    one("hole", st({"a": tensor(0, 4, [1]), "b": tensor(8, 12, [1])}, b"0" * 12), "张量 b 之前有空隙")
    one("tail", st({"a": tensor(0, 4, [1])}, b"0" * 12), "数据区有 12 字节")
    one("shape_mismatch", st({"w": tensor(0, 16, [5])}, b"0" * 16), "形状需要 20 字节")
    one("shape_overflow", st({"w": tensor(0, 16, [1 << 40, 1 << 40])}, b"0" * 16), "元素数溢出")
    one("shape_bytes_overflow", st({"w": tensor(0, 16, [(1 << 62) - 1, 2])}, b"0" * 16), "元素数溢出")
    one("shape_negative", st({"w": tensor(0, 16, [-4])}, b"0" * 16), "shape[0] 不是非负整数")
    one("shape_negative_pair", st({"w": tensor(0, 16, [-2, -2])}, b"0" * 16), "shape[0] 不是非负整数")
    one("shape_real", st({"w": tensor(0, 16, [4.0])}, b"0" * 16), "不是非负整数")
    one("shape_missing", st({"w": {"dtype": "F32", "data_offsets": [0, 16]}}, b"0" * 16), "缺少 shape")
    one("too_many_dims", st({"w": tensor(0, 4, [1] * 9)}, b"0" * 4), "有 9 维", "unsupported")
    one("dtype_missing", st({"w": {"shape": [4], "data_offsets": [0, 16]}}, b"0" * 16), "缺少 dtype")
    one("dtype_unknown", st({"w": tensor(0, 4, [4], "F6_E3M2")}, b"0" * 4), "类型 F6_E3M2 尚不支持", "unsupported")
    one("not_object", st({"w": 5}), "说明不是 JSON 对象")
    one("metadata_not_strings", st({"__metadata__": {"a": 1}}), "__metadata__ 应为")
    one("metadata_not_object", st({"__metadata__": []}), "__metadata__ 应为")
    ok("safetensors", "two.safetensors", st({"__metadata__": {"format": "pt"}, "b": tensor(4, 12, [2, 1]),
                                             "a": tensor(0, 4, [2], "BF16")}, b"0" * 12), 2)
    ok("safetensors", "no_tensors.safetensors", st(b"{}      "), 0)
    ok("safetensors", "zero_size.safetensors", st({"a": tensor(0, 0, [0, 3]), "b": tensor(0, 4, []),
                                                   "c": tensor(4, 4, [0])}, b"0" * 4), 3)


def g_str(text):
    text = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(text)) + text


def g_kv(key, kind, value):
    return g_str(key) + struct.pack("<I", kind) + value


def g_tensor(name, dims, kind, offset):
    return g_str(name) + struct.pack("<I", len(dims)) + b"".join(struct.pack("<Q", d) for d in dims) + \
        struct.pack("<IQ", kind, offset)


def gguf(kvs=(), tensors=(), data=b"", version=3, n_kv=None, n_tensors=None, align=32):
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors) if n_tensors is None else n_tensors,
                                len(kvs) if n_kv is None else n_kv)
    out += b"".join(kvs) + b"".join(tensors)
    return out + b"\0" * (-len(out) % align) + data if data else out


U32, STRING, ARRAY = 4, 8, 9
ARCH = g_kv("general.architecture", STRING, g_str("llama"))


def gguf_files():
    def one(name, data, text, code="format"):
        bad("gguf", f"bad_{name}.gguf", data, code, text)

    u32 = lambda v: struct.pack("<I", v)
    u64 = lambda v: struct.pack("<Q", v)
    w = lambda offset=0, dims=(8,), kind=0, name="w": g_tensor(name, dims, kind, offset)
    one("empty", b"", "不是 GGUF 文件")
    one("magic", b"GGML" + bytes(40), "不是 GGUF 文件")
    one("only_magic", b"GGUF", "读版本需要 4 字节，只剩 0 字节")
    one("version_1", gguf(version=1), "版本 1 尚不支持", "unsupported")
    one("version_9", gguf(version=9), "版本 9 尚不支持", "unsupported")
    one("big_endian", b"GGUF" + struct.pack(">IQQ", 3, 1, 1) + bytes(64), "大端", "unsupported")
    one("truncated_header", gguf()[:14], "读张量数需要 8 字节")
    one("huge_kv_count", gguf(n_kv=(1 << 64) - 1), "放不下")
    one("huge_tensor_count", gguf([ARCH], n_tensors=1 << 60), "放不下")
    one("count_beyond_file", gguf([ARCH], n_kv=3), "读元数据键需要 8 字节")
    one("count_over_size", gguf([ARCH], n_kv=4), "放不下")
    one("kv_cut", gguf([ARCH])[:-3], "文件被截断")
    one("key_length_huge", gguf([u64((1 << 64) - 1) + bytes(20)]), "读元数据键需要 18446744073709551615 字节")
    one("key_nul", gguf([g_kv(b"a\0b", U32, u32(1))]), "含 NUL")
    one("string_length_huge", gguf([g_kv("a", STRING, u64(1 << 63) + b"x")]), "读字符串需要 9223372036854775808 字节")
    one("duplicate_key", gguf([g_kv("a", U32, u32(1)), g_kv("a", U32, u32(2))]), "元数据 a 出现两次")
    one("value_type", gguf([g_kv("a", 13, u32(1))]), "元数据 a 的类型 13 不存在")
    one("bool_two", gguf([g_kv("a", 7, b"\x02")]), "布尔值为 2")
    one("u64_too_big", gguf([g_kv("a", 10, u64(1 << 63))]), "值 9223372036854775808 过大")
    one("array_nested", gguf([g_kv("a", ARRAY, u32(ARRAY) + u64(1) + u32(U32) + u64(0))]), "嵌套数组", "unsupported")
    one("array_type", gguf([g_kv("a", ARRAY, u32(99) + u64(1))]), "元素类型 99 不存在")
    one("array_huge", gguf([g_kv("a", ARRAY, u32(U32) + u64(1 << 62))]), "数组长度 4611686018427387904 超出文件")
    one("array_wraps", gguf([g_kv("a", ARRAY, u32(10) + u64((1 << 61) + 1) + bytes(8))]), "超出文件")
    one("string_array_huge", gguf([g_kv("a", ARRAY, u32(STRING) + u64(1 << 40))]), "超出文件")
    one("string_array_cut", gguf([g_kv("a", ARRAY, u32(STRING) + u64(2) + g_str("x") + u64(50) + b"y")]), "读字符串数组需要 50 字节")
    one("alignment_3", gguf([g_kv("general.alignment", U32, u32(3))]), "应为 2 的幂")
    one("alignment_0", gguf([g_kv("general.alignment", U32, u32(0))]), "超出范围")
    one("alignment_text", gguf([g_kv("general.alignment", STRING, g_str("32"))]), "general.alignment 应为整数")
    one("tensor_cut", gguf([ARCH], [w()])[:-2], "读张量偏移需要 8 字节")
    one("tensor_name_cut", gguf([ARCH], [u64(500) + bytes(30)]), "读张量名需要 500 字节")
    one("tensor_dims", gguf([ARCH], [g_str("w") + u32(4000000000) + bytes(40)]), "有 4000000000 维")
    one("tensor_dim_huge", gguf([ARCH], [w(dims=(1 << 63,))], bytes(32)), "第 0 维过大")
    one("tensor_shape_overflow", gguf([ARCH], [w(dims=(1 << 40, 1 << 40))], bytes(32)), "形状过大")
    one("tensor_bytes_overflow", gguf([ARCH], [w(dims=((1 << 63) - 1,), kind=28)], bytes(32)), "形状过大")
    one("tensor_block", gguf([ARCH], [w(dims=(40,), kind=2)], bytes(64)), "行长 40 不是 Q4_0 块长 32 的倍数")
    one("tensor_row_block", gguf([ARCH], [w(dims=(16, 2), kind=2)], bytes(64)), "行长 16 不是 Q4_0")
    one("tensor_type_removed", gguf([ARCH], [w(kind=4)], bytes(32)), "类型号 4 未知")
    one("tensor_type_unknown", gguf([ARCH], [w(kind=1000)], bytes(32)), "类型号 1000 未知")
    one("tensor_unaligned", gguf([ARCH], [w(offset=4)], bytes(64)), "偏移 4 未按 32 对齐")
    one("tensor_beyond", gguf([ARCH], [w(offset=64)], bytes(64)), "超出数据区（64 字节）")
    one("tensor_offset_wraps", gguf([ARCH], [w(offset=(1 << 64) - 32)], bytes(64)), "超出数据区")
    one("tensor_truncated", gguf([ARCH], [w()], bytes(31)), "超出数据区（31 字节）")
    one("tensor_no_data", gguf([ARCH], [w()]), "超出数据区（0 字节）")
    one("tensor_overlap", gguf([ARCH], [w(dims=(16,)), w(offset=32, name="v")], bytes(64)), "张量 w 与 v 的数据重叠")
    one("tensor_duplicate", gguf([ARCH], [w(), w(offset=32)], bytes(64)), "张量 w 出现两次")
    one("tensor_name_escape", gguf([ARCH], [w(kind=10, name=b"\x1b[2J\xff\xc2\x9b")], bytes(96)), "张量 ?[2J??? 的形状过大", "format")
    one("tensor_name_nul", gguf([ARCH], [w(name=b"a\0")], bytes(32)), "含 NUL")
    ok("gguf", "no_tensors.gguf", gguf([ARCH]), 0)
    ok("gguf", "version_2.gguf", gguf([ARCH], [w()], bytes(32), version=2), 1)
    ok("gguf", "zero_size.gguf", gguf([ARCH], [w(dims=(0, 3)), w(name="v")], bytes(32)), 2)
    ok("gguf", "align_64.gguf", gguf([g_kv("general.alignment", U32, u32(64))],
                                     [w(), w(offset=64, name="v", dims=(2, 4))], bytes(96), align=64), 2)
    ok("gguf", "hole.gguf", gguf([ARCH], [w(offset=64)], bytes(96)), 1)
    ok("gguf", "empty_array.gguf", gguf([g_kv("a", ARRAY, u32(U32) + u64(0))]), 0)


def write_table(folder, header, rows):
    path = ROOT / folder / "expected.tsv"
    kept = []
    if path.exists():
        kept = [r for r in path.read_text().splitlines()
                if r and not r.startswith("#") and r.split("\t")[0] not in KINDS]
    lines = [header] + ["\t".join(r) for r in rows] + kept
    path.write_text("\n".join(lines) + "\n")


for make in (yaml_files, json_files, safetensors_files, gguf_files):
    make()
write_table("bad", "# 种类\t文件\t错误码\t消息中必有的文字", bad_rows)
write_table("ok", "# 种类\t文件\t顶层项数（张量数、键数、元素数）", ok_rows)
print(f"{len(bad_rows)} 个坏文件，{len(ok_rows)} 个好文件")
