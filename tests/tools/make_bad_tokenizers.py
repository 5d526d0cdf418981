#!/usr/bin/env python3
"""make_bad_tokenizers — 生成 tests/data/{ok,bad}/tokenizer、tokenizer_gguf 的小样本，并更新 expected.tsv 中这两种的行

只用标准库，输出逐字节确定；改了这里就重跑一遍并提交产物：python3 tests/tools/make_bad_tokenizers.py
"""
import copy
import json
import pathlib
import struct

ROOT = pathlib.Path(__file__).resolve().parent.parent / "data"
KINDS = ("tokenizer", "tokenizer_gguf")
rows = {"bad": [], "ok": []}

GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
SPLIT = {"type": "Split", "pattern": {"Regex": r"\s+|\S+"}, "behavior": "Isolated", "invert": False}


def put(folder, kind, name, data, *columns):
    data = data.encode() if isinstance(data, str) else data
    path = ROOT / folder / kind / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    rows[folder].append((kind, f"{kind}/{name}") + columns)


def alphabet():
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(c) for c in plain] + [chr(0x100 + i) for i in range(68)]


def base(vocab=None, merges=None, **top):
    vocab = {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4} if vocab is None else vocab
    merges = [["a", "b"], ["ab", "c"]] if merges is None else merges
    d = {"version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": GPT2, "post_processor": None,
         "decoder": GPT2, "model": {"type": "BPE", "vocab": vocab, "merges": merges}}
    d.update(top)
    return d


def token(id_, text, **flags):
    return {"id": id_, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": True, **flags}


def model(**keys):
    d = base()
    d["model"].update(keys)
    return d


def bad(name, data, text, code="format"):
    data = data if isinstance(data, (str, bytes)) else json.dumps(data, ensure_ascii=False)
    put("bad", "tokenizer", f"bad_tokenizer_{name}.json", data, code, text)


def raw(**replace):
    """词表与归并直接写成文本，以便写出 json 模块写不出的东西"""
    parts = {"vocab": '{"a": 0, "b": 1, "ab": 2}', "merges": '["a b"]', **replace}
    head = json.dumps({k: v for k, v in base().items() if k != "model"})[:-1]
    return head + ',\n "model": {"type": "BPE",\n  "vocab": %s,\n  "merges": %s}}\n' % (parts["vocab"], parts["merges"])


def bad_json():
    bad("empty", "", "内容为空")
    bad("truncated", json.dumps(base())[:-40], "内容不完整")
    bad("array", "[1, 2]", "顶层应为对象")
    bad("no_model", {"version": "1.0"}, "缺少 model")
    bad("no_vocab", {**base(), "model": {"type": "BPE", "merges": []}}, "应有对象 vocab")
    bad("no_merges", {**base(), "model": {"type": "BPE", "vocab": {"a": 0}}}, "应有数组 merges")
    bad("vocab_array", {**base(), "model": {"type": "BPE", "vocab": [], "merges": []}}, "应有对象 vocab")
    bad("vocab_empty", base({}, []), "model.vocab 是空的")
    bad("deep", '{"model": ' + "[" * 3000 + "]" * 3000 + "}", "嵌套过深")
    bad("deep_pretok", base(pre_tokenizer=deep("pretokenizers", GPT2)), "pre_tokenizer 嵌套超过 16 层", "unsupported")
    bad("duplicate_model", raw()[:-2] + ', "model": {}}', "重复的键")
    bad("duplicate_id", base({"a": 0, "b": 0}, []), 'id 0 重复："a" 与 "b"')
    bad("duplicate_token", raw(vocab='{"a": 0, "a": 1}', merges="[]"), 'token "a" 重复：id 0 与 1')
    bad("negative_id", base({"a": -1}, []), 'token "a" 的 id -1 超出')
    bad("huge_id", base({"a": 4294967295}, []), "的 id 4294967295 超出")
    bad("big_id", base({"a": 10000000}, []), "超出 0 到 4194303")
    bad("overflow_id", raw(vocab='{"a": 99999999999999999999999}', merges="[]"), ":3: id 过大")
    bad("real_id", raw(vocab='{"a": 1.5}', merges="[]"), ":3: token 的 id 不是整数")
    bad("string_id", base({"a": "0"}, []), "token 的 id 不是整数")
    bad("leading_zero_id", raw(vocab='{"a": 01}', merges="[]"), "token 的 id 不是整数")
    bad("trailing_comma", raw(vocab='{"a": 0,}', merges="[]"), ":3: 应是字符串")
    bad("missing_comma", raw(vocab='{"a": 0 "b": 1}', merges="[]"), ":3: 应是逗号或结束的括号")
    bad("missing_colon", raw(vocab='{"a" 0}', merges="[]"), ":3: 应是冒号")
    bad("bad_escape", raw(vocab='{"\\q": 0}', merges="[]"), ":3: 字符串中的转义不合法")
    bad("lone_surrogate", raw(vocab='{"\\ud83d": 0}', merges="[]"), "不成对的代理")
    bad("lone_low_surrogate", raw(vocab='{"\\ude00": 0}', merges="[]"), "不成对的代理")
    bad("control_char", raw(vocab='{"a\x01": 0}', merges="[]"), "控制字符")
    bad("control_char_escaped", raw(vocab='{"\\n\x01": 0}', merges="[]"), "控制字符")
    bad("invalid_utf8", raw().encode().replace(b'"ab": 2', b'"a\xff": 2'), "不是合法的 UTF-8")
    bad("merge_unknown_left", base(merges=[["x", "b"]]), '第 0 条归并 "x" + "b"：左边不在词表中')
    bad("merge_unknown_right", base(merges=["a b", "a x"]), '第 1 条归并 "a" + "x"：右边不在词表中')
    bad("merge_unknown_product", base(merges=["b a"]), "两者相接的 token 不在词表中")
    bad("merge_cycle", base({"": 0, "a": 1}, [["", "a"]]), "归并会循环")
    bad("merge_cycle_right", base({"": 0, "a": 1}, [["a", ""]]), "归并会循环")
    bad("merge_one_part", base(merges=["ab"]), '第 0 条归并 "ab" 应是空格隔开的两个 token')
    bad("merge_three_parts", base(merges=["a b c"]), "应是空格隔开的两个 token")
    bad("merge_triple", base(merges=[["a", "b", "c"]]), "归并应有两项")
    bad("merge_number", base(merges=[1]), "归并应是")
    bad("merges_unclosed", raw(merges='["a b"'), "内容不完整")
    bad("type", model(type="Markov"), "不支持的模型类型 Markov", "unsupported")
    bad("dropout", model(dropout=0.1), "dropout", "unsupported")
    bad("prefix", model(continuing_subword_prefix="#" * 65), "continuing_subword_prefix 长于 64 字节", "unsupported")
    bad("suffix_type", model(end_of_word_suffix=1), "end_of_word_suffix 应为字符串")
    bad("ignore_merges", model(ignore_merges="yes"), '"ignore_merges" 应为')
    bad("added_no_content", base(added_tokens=[{"id": 5}]), "added_tokens 第 0 项: 添加的 token 缺少 content")
    bad("added_no_id", base(added_tokens=[{"content": "<s>"}]), 'added_tokens 第 0 项')
    bad("added_negative", base(added_tokens=[token(-1, "<s>")]), "added_tokens 第 0 项")
    bad("added_taken", base(added_tokens=[token(0, "<s>")]), '"<s>" 的 id 0 已属于 "a"')
    bad("added_twice", base(added_tokens=[token(5, "<s>"), token(5, "</s>")]), '"</s>" 的 id 5 已属于 "<s>"')
    bad("added_flag", base(added_tokens=[token(5, "<s>", lstrip=1)]), '"lstrip" 应为')
    bad("added_same_normal", base(normalizer={"type": "NFC"}, added_tokens=[
        token(5, "\u00e9", normalized=True), token(6, "e\u0301", normalized=True)]), "规范化后同为")
    bad("normalizer", base(normalizer={"type": "Uppercase"}), "不支持的 normalizer 组件 Uppercase", "unsupported")
    bad("normalizer_many", base(normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}] * 33}), "超过 32 步",
        "unsupported")
    bad("replace_content", base(normalizer={"type": "Replace", "pattern": {"String": "a"}}), "content 应为字符串")
    bad("replace_empty", base(normalizer={"type": "Replace", "pattern": {"String": ""}, "content": "b"}), "模式为空")
    for name, blob, text in [("base64", "AAA", "不是 base64"), ("short", "AAA=", "不足 4 字节"), ("tree", "EAAAAAAA", "树长 16 不对"),
                             ("utf8", "AAAAAP8=", "不是合法的 UTF-8")]:
        bad("charsmap_" + name, base(normalizer={"type": "Precompiled", "precompiled_charsmap": blob}), text)
    bad("pretok_unknown", base(pre_tokenizer={"type": "Whispace"}), "不支持的 pre_tokenizer 组件 Whispace", "unsupported")
    bad("metaspace_char", base(pre_tokenizer={"type": "Metaspace", "replacement": "ab"}), "replacement 应是一个字符")
    bad("metaspace_scheme", base(pre_tokenizer={"type": "Metaspace", "replacement": "_", "prepend_scheme": "x"}), 'prepend_scheme "x" 未知')
    bad("fixed_zero", base(pre_tokenizer={"type": "FixedLength", "length": 0}), '"length"')
    bad("pretok_no_type", base(pre_tokenizer={}), "pre_tokenizer 缺少 type")
    bad("pretok_many", base(pre_tokenizer=seq(*[SPLIT] * 25, GPT2)), "预切分超过 24 级", "unsupported")
    for name, pattern, text, code in [
            ("regex_open", "(a", "正则无法编译", "format"), ("regex_class", "[a", "正则无法编译", "format"),
            ("regex_repeat", "a{2,1}", "正则无法编译", "format"), ("regex_empty", "", "模式为空", "format"),
            ("regex_property", r"\p{Klingon}", "正则无法编译", "format"),
            ("regex_property_open", r"\p{L", "没有结束", "unsupported"), ("regex_end", "a\\", "末尾的 \\", "unsupported"),
            ("regex_and", r"[\w&&[^a]]", "&&", "unsupported"), ("regex_nested", "[a[bc]]", "嵌套的方括号", "unsupported"),
            ("regex_option", "a(?i)b", "(?选项)", "unsupported"), ("regex_verb", "(*NO_JIT)a", "(*", "unsupported"),
            ("regex_deep", "(" * 65 + ")" * 65, "过深的括号", "unsupported"),
            ("regex_posix", "[[:graph:]]", "[:…:]", "unsupported")]:
        bad(name, base(pre_tokenizer=seq({**SPLIT, "pattern": {"Regex": pattern}}, GPT2)), text, code)
    bad("split_behavior", base(pre_tokenizer=seq({**SPLIT, "behavior": "Sideways"}, GPT2)), 'behavior "Sideways" 未知')
    bad("split_pattern", base(pre_tokenizer=seq({**SPLIT, "pattern": 3}, GPT2)), "String 应为字符串")
    bad("decoder", base(decoder={"type": "WordPieces"}), "不支持的 decoder 组件 WordPieces", "unsupported")
    bad("decoder_many", base(decoder={"type": "Sequence", "decoders": [{"type": "Fuse"}] * 17}), "decoder 超过 16 步", "unsupported")
    bad("decoder_strip", base(decoder={"type": "Strip", "content": "ab", "start": 0, "stop": 0}), "Strip 的 content 应是一个字符")
    bad("post", base(post_processor={"type": "Bert"}), "不支持的 post_processor 组件", "unsupported")
    bad("post_cls", base(post_processor={"type": "BertProcessing", "cls": ["a", 9], "sep": ["b", 1]}), "id 9 不在词表中")
    for name, vocab, text in [("pair", '[["a"]]', ":3: 应是 [文本, 分数]"), ("score", '[["a", "b"]]', ":3: token 的分数不是数"),
                              ("huge", '[["a", 1e999]]', "分数过大"), ("open", '[["a", 1]', "内容不完整"), ("empty", "[]", "model.vocab 是空的"),
                              ("object", "{}", "应有数组 vocab")]:
        bad("unigram_" + name, raw(vocab=vocab).replace('"BPE"', '"Unigram"'), text)
    bad("unigram_unk", base() | {"model": {"type": "Unigram", "unk_id": 3, "vocab": [["a", 0]]}}, "unk_id 3 不在词表中")
    bad("wordpiece_max", base() | {"model": {"type": "WordPiece", "vocab": {"a": 0}, "max_input_chars_per_word": -1}}, '"max_input_chars_per_word"')
    bad("post_undefined", base(post_processor=template(["<s>", None], {})), '"<s>" 没有在 special_tokens 中定义')
    bad("post_id", base(post_processor=template(["<s>", None], {"<s>": [99]})), "id 99 不在词表中")
    bad("post_many", base(post_processor=template(["<s>", None], {"<s>": [0] * 17})), "超过 16 个", "unsupported")
    bad("post_no_text", base(post_processor=template(["<s>"], {"<s>": [0]})), "模板没有文本", "unsupported")


def seq(*items):
    return {"type": "Sequence", "pretokenizers": list(items)}


def deep(key, inner):
    for _ in range(20):
        inner = {"type": "Sequence", key: [inner]}
    return inner


def template(pieces, ids):
    single = [{"SpecialToken": {"id": p, "type_id": 0}} if p else {"Sequence": {"id": "A", "type_id": 0}} for p in pieces]
    pair = single + [{"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": single, "pair": pair,
            "special_tokens": {k: {"id": k, "ids": v, "tokens": [k] * len(v)} for k, v in ids.items()}}


MERGES = ["Ġ t", "h e", "Ġt he", "i n", "1 2", "Ã ©"]


def words():
    tokens = alphabet()
    return tokens + [m.replace(" ", "") for m in MERGES]


def ok_json():
    n = len(words())
    vocab = {t: i for i, t in enumerate(words())}
    full = base(vocab, MERGES, added_tokens=[token(n, "<s>"), token(n + 1, "</s>")])
    put("ok", "tokenizer", "gpt2.json", json.dumps(full), str(n + 2))
    pairs = copy.deepcopy(full)
    pairs["model"]["merges"] = [m.split(" ") for m in MERGES]
    pairs["post_processor"] = template(["<s>", None, "</s>"], {"<s>": [n], "</s>": [n + 1]})
    pairs["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFC"}]}
    put("ok", "tokenizer", "template.json", json.dumps(pairs, indent=1, ensure_ascii=False), str(n + 2))
    smol = copy.deepcopy(full)
    smol["pre_tokenizer"] = seq({"type": "Digits", "individual_digits": True}, GPT2)
    put("ok", "tokenizer", "smollm.json", json.dumps(smol, ensure_ascii=False), str(n + 2))
    put("ok", "tokenizer", "version_line.json", json.dumps(base(merges=["#version: 0.2", "a b"])), "5")
    put("ok", "tokenizer", "merges_first.json", '{"model": {"merges": ["a b"], "vocab": {"b": 1, "ab": 2, "\\u0061": 0}, '
        '"type": "BPE"}, "decoder": %s, "pre_tokenizer": %s}' % (json.dumps(GPT2), json.dumps(GPT2)), "3")
    put("ok", "tokenizer", "spm.json", json.dumps(spm_json(), ensure_ascii=False), str(len(SPM)))
    put("ok", "tokenizer", "unigram.json", json.dumps(unigram_json(), ensure_ascii=False), str(len(SPM)))
    put("ok", "tokenizer", "wordpiece.json", json.dumps(wordpiece_json(), ensure_ascii=False), str(len(WORDS)))
    put("ok", "tokenizer", "wordlevel.json", json.dumps(base() | {
        "pre_tokenizer": {"type": "Whitespace"}, "decoder": None,
        "model": {"type": "WordLevel", "unk_token": "<unk>", "vocab": {"<unk>": 0, "the": 1, ",": 2, "the\x00": 3}}}), "4")


# SentencePiece 式的词表：控制、字节、字与词（文本、分数、GGUF 的类型）
SPM = ([("<unk>", 0, 2), ("<s>", 0, 3), ("</s>", 0, 3)] + [(f"<0x{i:02X}>", 0, 6) for i in range(256)]
       + [(t, -i - 1.5, 1) for i, t in enumerate(["▁t", "he", "▁the", "in", "▁a", "aa", "▁aa", "▁", "t", "h", "e", "i", "n", "a", "é"])])
SPM_DECODER = {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
                                                {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}


def spm_json():
    special = [token(i, SPM[i][0]) for i in range(3)]
    norm = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}
    return base() | {"added_tokens": special, "normalizer": norm, "pre_tokenizer": None, "decoder": SPM_DECODER,
                     "post_processor": template(["<s>", None], {"<s>": [1]}),
                     "model": {"type": "BPE", "unk_token": "<unk>", "byte_fallback": True, "fuse_unk": True,
                               "vocab": {t: i for i, (t, _, _) in enumerate(SPM)},
                               "merges": ["▁ t", "h e", "▁t he", "i n", "▁ a", "a a", "▁a a", "▁ aa"]}}


def unigram_json():
    z = [{"type": "Nmt"}, {"type": "NFKC"}, {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}]
    return base() | {"added_tokens": [token(i, SPM[i][0]) for i in range(3)], "normalizer": {"type": "Sequence", "normalizers": z},
                     "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
                     "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"},
                     "model": {"type": "Unigram", "unk_id": 0, "vocab": [[t, s] for t, s, _ in SPM]}}


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "in", "##in", "##g", "t", "##h", "##e", "cafe", ",", "中"]


def wordpiece_json():
    return base() | {"added_tokens": [token(i, WORDS[i]) for i in range(4)], "normalizer": {"type": "BertNormalizer"},
                     "pre_tokenizer": {"type": "BertPreTokenizer"}, "decoder": {"type": "WordPiece"},
                     "post_processor": {"type": "BertProcessing", "cls": ["[CLS]", 2], "sep": ["[SEP]", 3]},
                     "model": {"type": "WordPiece", "vocab": {t: i for i, t in enumerate(WORDS)}}}


# ---- GGUF ----

def g_str(s):
    b = s if isinstance(s, bytes) else s.encode()
    return struct.pack("<Q", len(b)) + b


def kv_str(key, value):
    return g_str(key) + struct.pack("<I", 8) + g_str(value)


def kv_u32(key, value):
    return g_str(key) + struct.pack("<II", 4, value)


def kv_bool(key, value):
    return g_str(key) + struct.pack("<IB", 7, value)


def kv_strs(key, values):
    return g_str(key) + struct.pack("<IIQ", 9, 8, len(values)) + b"".join(map(g_str, values))


def kv_ints(key, values):
    return g_str(key) + struct.pack("<IIQ", 9, 5, len(values)) + struct.pack(f"<{len(values)}i", *values)


def kv_floats(key, values):
    return g_str(key) + struct.pack("<IIQ", 9, 6, len(values)) + struct.pack(f"<{len(values)}f", *values)


def gguf(*kvs):
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(kvs)) + b"".join(kvs)


def gguf_files():
    def bad_g(name, kvs, text, code="format"):
        put("bad", "tokenizer_gguf", f"bad_tokenizer_{name}.gguf", gguf(*kvs), code, text)

    T = "tokenizer.ggml."
    gpt2, pre = kv_str(T + "model", "gpt2"), kv_str(T + "pre", "gpt-2")
    tokens, merges = kv_strs(T + "tokens", ["a", "b", "ab"]), kv_strs(T + "merges", ["a b"])
    bad_g("none", [], "没有 tokenizer.ggml.model", "missing")
    bad_g("model", [kv_str(T + "model", "rwkv")], '分词器类型 "rwkv" 不支持', "unsupported")
    bad_g("no_scores", [kv_str(T + "model", "llama"), tokens], "tokenizer.ggml.scores 应是 3 个 f32")
    bad_g("nan_score", [kv_str(T + "model", "t5"), tokens, kv_floats(T + "scores", [0, float("nan"), 0])], "scores 第 1 项不是数")
    bad_g("charsmap", [kv_str(T + "model", "t5"), tokens, kv_ints(T + "precompiled_charsmap", [1])], "应是字节数组")
    bad_g("model_type", [kv_u32(T + "model", 1)], "没有 tokenizer.ggml.model", "missing")
    bad_g("pre", [gpt2, kv_str(T + "pre", "klingon"), tokens, merges], 'tokenizer.ggml.pre = "klingon"', "unsupported")
    bad_g("pre_type", [gpt2, kv_u32(T + "pre", 1), tokens, merges], "tokenizer.ggml.pre 应为字符串")
    bad_g("no_tokens", [gpt2, pre, merges], "tokenizer.ggml.tokens 缺失")
    bad_g("tokens_type", [gpt2, pre, kv_ints(T + "tokens", [1]), merges], "tokenizer.ggml.tokens 应为字符串数组")
    bad_g("duplicate", [gpt2, pre, kv_strs(T + "tokens", ["a", "a"]), merges], 'token "a" 重复：id 0 与 1')
    bad_g("no_merges", [gpt2, pre, tokens], "tokenizer.ggml.merges 缺失")
    bad_g("merge_unknown", [gpt2, pre, tokens, kv_strs(T + "merges", ["a b", "b a"])], '第 1 条归并 "b" + "a"')
    bad_g("merge_parts", [gpt2, pre, tokens, kv_strs(T + "merges", ["ab"])], "应是空格隔开的两个 token")
    bad_g("merge_cycle", [gpt2, pre, kv_strs(T + "tokens", ["", "a"]), kv_strs(T + "merges", [" a"])], "归并会循环")
    bad_g("types_length", [gpt2, pre, tokens, merges, kv_ints(T + "token_type", [1])], "token_type 应是 3 个整数")
    bad_g("types_kind", [gpt2, pre, tokens, merges, kv_strs(T + "token_type", ["1"] * 3)], "token_type 应是 3 个整数")
    bad_g("bos", [gpt2, pre, tokens, merges, kv_u32(T + "bos_token_id", 3)], "bos_token_id")
    bad_g("eos", [gpt2, pre, tokens, merges, kv_u32(T + "eos_token_id", 4000000000)], "eos_token_id")
    bad_g("add_bos", [gpt2, pre, tokens, merges, kv_u32(T + "add_bos_token", 1)], "add_bos_token")
    n = len(words())
    full = [gpt2, kv_strs(T + "tokens", words() + ["<s>", "</s>"]), kv_strs(T + "merges", MERGES),
            kv_ints(T + "token_type", [1] * n + [3, 3]), kv_u32(T + "bos_token_id", n), kv_u32(T + "eos_token_id", n + 1)]
    put("ok", "tokenizer_gguf", "gpt2.gguf", gguf(*full, pre), str(n + 2))
    put("ok", "tokenizer_gguf", "smollm.gguf", gguf(*full, kv_str(T + "pre", "smollm")), str(n + 2))
    put("ok", "tokenizer_gguf", "qwen2.gguf", gguf(*full, kv_str(T + "pre", "qwen2"), kv_bool(T + "add_eos_token", 1)), str(n + 2))
    put("ok", "tokenizer_gguf", "llama3.gguf", gguf(*full, kv_str(T + "pre", "llama-bpe")), str(n + 2))
    put("ok", "tokenizer_gguf", "no_pre.gguf", gguf(*full), str(n + 2))
    spm = [kv_strs(T + "tokens", [t for t, _, _ in SPM]), kv_floats(T + "scores", [s for _, s, _ in SPM]),
           kv_ints(T + "token_type", [k for _, _, k in SPM]), kv_u32(T + "bos_token_id", 1), kv_u32(T + "eos_token_id", 2),
           kv_u32(T + "unknown_token_id", 0)]
    put("ok", "tokenizer_gguf", "llama.gguf", gguf(kv_str(T + "model", "llama"), *spm), str(len(SPM)))
    put("ok", "tokenizer_gguf", "t5.gguf", gguf(kv_str(T + "model", "t5"), *spm, kv_bool(T + "remove_extra_whitespaces", 1)), str(len(SPM)))
    bert = [w[2:] if w.startswith("##") else w if w.startswith("[") else "▁" + w for w in WORDS]
    put("ok", "tokenizer_gguf", "bert.gguf", gguf(
        kv_str(T + "model", "bert"), kv_strs(T + "tokens", bert), kv_ints(T + "token_type", [3] * 4 + [1] * (len(bert) - 4)),
        kv_u32(T + "cls_token_id", 2), kv_u32(T + "seperator_token_id", 3), kv_u32(T + "unknown_token_id", 1)), str(len(WORDS)))


def write_table(folder):
    path = ROOT / folder / "expected.tsv"
    kept = [r for r in path.read_text().splitlines() if r and r.split("\t")[0] not in KINDS]
    path.write_text("\n".join(kept + ["\t".join(r) for r in rows[folder]]) + "\n")


for make in (bad_json, ok_json, gguf_files):
    make()
for folder in rows:
    write_table(folder)
print(f"{len(rows['bad'])} 个坏文件，{len(rows['ok'])} 个好文件")
