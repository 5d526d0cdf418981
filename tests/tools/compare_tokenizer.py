#!/usr/bin/env python3
"""compare_tokenizer — 用随机文本对照 HF tokenizers 与 ptq-bench（make test-tokenizers，不在 make test 之内）

用法: compare_tokenizer.py [--tool build/tests/tools/tokenizer_check] [--count 1000] [--mixes 150] [--seed 0]
                            [--only 名字] [--work 目录] 文件夹...
每个文件夹含 tokenizer.json。另外用 tokenizers 库就地训练各种风格的小分词器（Qwen2、Llama 2、T5、BERT、CLIP…）
与 mixes 个部件随机搭配的分词器，一并对照 ids（加与不加特殊 token）与解码（原样的与随机的 id 串）。
需要 Python 包 tokenizers；有 sentencepiece 时连同真正的预编译替换表。有差异时打印前几处并以 1 退出。
"""
import argparse
import json
import os
import random
import subprocess
import sys
import unicodedata

import base64

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers as pre
from tokenizers import processors, trainers

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace("{1,3}", "")
GPT4O = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
CL100K = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$"
          r"|\s*[\r\n]|\s+(?!\S)|\s")

SPACES = [" ", "  ", "\t", "\n", "\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x1f", "\x85", "\xa0",
          "\u1680", "\u180e", "\u2000", "\u2003", "\u2007", "\u200a", "\u200b", "\u2028", "\u2029", "\u202f",
          "\u205f", "\u2060", "\u3000", "\ufeff"]
DIGITS = "0123456789٠١٢٣۴۵६७৮൬๓໔༥၆៧᠘０１２𝟘𝟙𝟚²³¹¼½¾ⅠⅣↈ①⑳㉑〇一二𐄇𑁦🄀🯰🯹"
WORDS = ["hello", "World", "the", "don't", "I'LL", "we've", "YOU'RE", "it'S", "it'ſ", "he'D", "'tis", "o''clock", "l'été",
         "naïve", "Straße", "ŉ", "İstanbul", "ﬁn", "ﬅ", "日本語", "中文分词", "한국어", "русский", "العربية", "हिन्दी",
         "ไทย", "Ελληνικά", "עברית", "print(", "def f(x):", "==", "!=", "->", "http://x.y/z?q=1", "3.14", "1,234,567",
         "e\u0301", "é", "A\u030a", "Å", "\u212b", "ſ", "K", "\u1e9b\u0323", "ᄒ\u1161\u11ab", "각", "\u0344", "\u0958",
         "👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇨🇳", "☺️", "\u200d", "\ufe0f", "\u0301\u0316\u0327", "_", "\x00", "\x7f", "\ufffd", "\U0010ffff",
         "\ue000", "'s", "'S", "’s", "'ſ", "'re", "'Re", "'vE", "'lL", "\u017fs", "\u2019ll"]


def random_char(rng):
    while True:
        limit = rng.choice([0x80, 0x250, 0x600, 0x3000, 0xFFFF, 0x1FFFF, 0x32000, 0x10FFFF])
        c = rng.randrange(limit + 1)
        if not 0xD800 <= c <= 0xDFFF:
            return chr(c)


def random_text(rng, special):
    kind = rng.randrange(8)
    parts = []
    for _ in range(rng.choice([1, 2, 3, 5, 8, 20, 60])):
        k = rng.randrange(9) if kind else 8
        if k < 3:
            parts.append(rng.choice(WORDS))
        elif k == 3:
            parts.append("".join(rng.choice(SPACES) for _ in range(rng.choice([1, 1, 2, 4]))))
        elif k == 4:
            parts.append("".join(rng.choice(DIGITS) for _ in range(rng.choice([1, 2, 3, 4, 7]))))
        elif k == 5 and special:
            token = rng.choice(special)
            parts.append(rng.choice([token, token[:-1], token[1:], token + token, " " + token + "  "]))
        elif k == 6:
            parts.append(rng.choice("abcxyz .,;!?-()[]{}<>|/\\@#$%^&*+=~`\"'") * rng.choice([1, 1, 2, 5, 40]))
        elif k == 7:
            parts.append(unicodedata.normalize(rng.choice(["NFC", "NFD"]), random_char(rng)))
        else:
            parts.append("".join(random_char(rng) for _ in range(rng.choice([1, 2, 6]))))
        if kind in (1, 2) and rng.random() < 0.7:
            parts.append(" ")
    return "".join(parts)


def train(folder, name, normalizer, pretok, special, added=(), post=None, ignore_merges=False, corpus=()):
    tok = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer:
        tok.normalizer = normalizer
    tok.pre_tokenizer = pretok
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=1200, special_tokens=special, show_progress=False,
                                  initial_alphabet=pre.ByteLevel.alphabet())
    tok.train_from_iterator(corpus, trainer)
    if added:
        tok.add_tokens(list(added))
    if post:
        tok.post_processor = post(tok)
    path = os.path.join(folder, name)
    os.makedirs(path, exist_ok=True)
    tok.save(os.path.join(path, "tokenizer.json"))
    return path


def bos_template(tok):
    bos = tok.token_to_id("<s>")
    return processors.TemplateProcessing(single="<s> $A </s>", pair=None,
                                         special_tokens=[("<s>", bos), ("</s>", tok.token_to_id("</s>"))])


def build_styles(folder, rng):
    corpus = [random_text(rng, []) for _ in range(400)] + WORDS * 3
    level = lambda regex, space=False: pre.ByteLevel(add_prefix_space=space, use_regex=regex)
    split = lambda rx, how="isolated", invert=False: pre.Split(Regex(rx), how, invert)
    odd = [AddedToken("<mask>", lstrip=True, special=True), AddedToken("<r>", rstrip=True), AddedToken("word", single_word=True),
           AddedToken("é", normalized=True), AddedToken("both", lstrip=True, rstrip=True, normalized=False),
           AddedToken("<mask>x", normalized=True), AddedToken(" lead"), AddedToken("bo")]
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    make = lambda *a, **k: train(folder, *a, corpus=corpus, **k)
    return [
        make("qwen2", normalizers.NFC(), pre.Sequence([split(QWEN2), level(False)]), special),
        make("llama3", None, pre.Sequence([split(LLAMA3), level(False)]), special, post=bos_template, ignore_merges=True),
        make("gpt2_space", None, level(True, True), special, added=odd),
        make("gpt4o", None, pre.Sequence([split(GPT4O), level(False)]), special),
        make("cl100k", None, pre.Sequence([split(CL100K), level(False)]), special),
        make("starcoder", None, pre.Sequence([pre.Digits(individual_digits=True), level(True)]), special, added=odd),
        make("digits", normalizers.NFKC(), pre.Sequence([pre.Digits(individual_digits=False), level(True, True)]), special, added=odd),
        make("nfd_odd", normalizers.Sequence([normalizers.NFD(), normalizers.NFC()]), level(True), special, added=odd, post=bos_template),
        make("deepseek", None, pre.Sequence([split("[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), split("[一-龥ࠀ-一가-퟿]+"),
                                             pre.Digits(individual_digits=True), level(False)]), special),
        make("removed", None, pre.Sequence([split(r"\s+", "removed"), level(False, True)]), special),
        make("invert", None, pre.Sequence([split(r"\w+|[^\w\s]+", "removed", True), level(False)]), special),
        make("previous", None, pre.Sequence([split(r"\s", "merged_with_previous"), level(False)]), special),
        make("next", None, pre.Sequence([split(r"\p{P}|\s", "merged_with_next"), level(False)]), special),
        make("contiguous", None, pre.Sequence([split(r"\d", "contiguous"), pre.Split("ab", "contiguous", False), level(True)]), special),
        make("boundary", None, pre.Sequence([split(r"\d{1,3}(?=(?:\d{3})*\b)|(?m:<.+>)|^x|y$|\h{4}"), level(False)]), special),
        make("empty", None, pre.Sequence([split(r"(?=(\d{3})+(?!\d))"), split(r"\p{Han}*"), level(True)]), special),
    ]


def charsmap(folder, rule):
    """sentencepiece 训练一个小模型，取出它的预编译替换表（ModelProto.normalizer_spec 的第 2 项）。"""
    import sentencepiece
    prefix = os.path.join(folder, "spm_" + rule)
    text = os.path.join(folder, "spm.txt")
    with open(text, "w") as f:
        f.write("\n".join(w for w in WORDS if "\x00" not in w) * 20 + "\n")
    sentencepiece.SentencePieceTrainer.train(input=text, model_prefix=prefix, vocab_size=200, hard_vocab_limit=False,
                                             normalization_rule_name=rule, minloglevel=2)
    data = open(prefix + ".model", "rb").read()

    def fields(buf):
        i = 0
        def varint():
            nonlocal i
            v = s = 0
            while True:
                b = buf[i]
                i += 1
                v |= (b & 127) << s
                s += 7
                if b < 128:
                    return v
        while i < len(buf):
            key = varint()
            if key & 7 == 2:
                n = varint()
                yield key >> 3, buf[i:i + n]
                i += n
            elif key & 7 == 0:
                yield key >> 3, varint()
            else:
                i += 4 if key & 7 == 5 else 8
    spec = next(v for k, v in fields(data) if k == 3)
    return next(v for k, v in fields(spec) if k == 2)


def save(folder, name, tok):
    path = os.path.join(folder, name)
    os.makedirs(path, exist_ok=True)
    tok.save(os.path.join(path, "tokenizer.json"))
    return path


KNOWN_CHARS = set("".join(WORDS) + " ")
BYTES = [f"<0x{i:02X}>" for i in range(256)]


def bpe(corpus, normalizer, pretok, size=900, byte_tokens=True, **model):
    """字符级的 BPE。"""
    tok = Tokenizer(models.BPE(unk_token="<unk>", **model))
    tok.normalizer, tok.pre_tokenizer = normalizer, pretok
    special = ["<unk>", "<s>", "</s>"] + (BYTES if byte_tokens else [])
    extra = {k: v for k, v in model.items() if k in ("continuing_subword_prefix", "end_of_word_suffix")}
    tok.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False, limit_alphabet=120,
                                                        **extra))
    d = json.loads(tok.to_str())
    d["added_tokens"] = [t for t in d["added_tokens"] if t["content"] in ("<unk>", "<s>", "</s>")]
    return Tokenizer.from_str(json.dumps(d))


def unigram(corpus, normalizer, pretok, byte_fallback=False, size=700):
    corpus = [t for t in corpus if set(t) <= KNOWN_CHARS]  # 词表要容得下语料的全部字符
    tok = Tokenizer(models.Unigram())
    tok.normalizer, tok.pre_tokenizer = normalizer, pretok
    special = ["<pad>", "</s>", "<unk>"]
    tok.train_from_iterator(corpus, trainers.UnigramTrainer(vocab_size=size, special_tokens=special, unk_token="<unk>", show_progress=False))
    d = json.loads(tok.to_str())
    if byte_fallback:
        d["model"]["vocab"] += [[b, 0.0] for b in BYTES]
        d["model"]["byte_fallback"] = True
    return Tokenizer.from_str(json.dumps(d))


def wordpiece(corpus, normalizer, pretok, **kw):
    tok = Tokenizer(models.WordPiece(unk_token="[UNK]", **kw))
    tok.normalizer, tok.pre_tokenizer = normalizer, pretok
    extra = {k: v for k, v in kw.items() if k == "continuing_subword_prefix"}
    tok.train_from_iterator(corpus, trainers.WordPieceTrainer(vocab_size=800, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
                                                              show_progress=False, limit_alphabet=150, **extra))
    return tok


def wordlevel(corpus, normalizer, pretok):
    tok = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tok.normalizer, tok.pre_tokenizer = normalizer, pretok
    tok.train_from_iterator(corpus, trainers.WordLevelTrainer(vocab_size=500, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False))
    return tok


def text_corpus(rng):
    base = [random_text(rng, []) for _ in range(300)] + WORDS * 2
    return base + [" ".join(rng.choices(WORDS, k=12)) for _ in range(200)]


def build_families(folder, rng):
    """大家真正在用的几类分词器。"""
    corpus = text_corpus(rng)
    meta = lambda scheme, split=True: pre.Metaspace(replacement="▁", prepend_scheme=scheme, split=split)
    spm = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    two = Regex(" {2,}")
    out = []

    def add(name, tok, decoder=None, post=None, added=()):
        if decoder:
            tok.decoder = decoder
        if post:
            tok.post_processor = post(tok)
        if added:
            tok.add_tokens(list(added))
        out.append(save(folder, name, tok))

    odd = [AddedToken("<mask>", lstrip=True, special=True), AddedToken("<r>", rstrip=True), AddedToken("word", single_word=True),
           AddedToken("Hello", normalized=True), AddedToken("  ", normalized=False), AddedToken("日本", normalized=True)]
    bert_post = lambda t: processors.BertProcessing(("[SEP]", t.token_to_id("[SEP]")), ("[CLS]", t.token_to_id("[CLS]")))
    prepend = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    add("llama2_like", bpe(corpus, prepend, None, byte_fallback=True, fuse_unk=True), spm, bos_template, odd)
    add("mistral_first", bpe(corpus, None, meta("first", False), byte_fallback=True, fuse_unk=True), spm, bos_template, odd)
    add("meta_always", bpe(corpus, None, meta("always"), byte_fallback=True, fuse_unk=False), decoders.Metaspace("▁", "always", True), bos_template, odd)
    add("meta_never", bpe(corpus, None, meta("never"), byte_fallback=False, fuse_unk=True), decoders.Metaspace("▁", "never", True), None, odd)
    add("gemma_like", bpe(corpus, normalizers.Replace(" ", "▁"), pre.Split(" ", "merged_with_previous"), byte_fallback=True, fuse_unk=True),
        decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]), bos_template, odd)
    add("no_bytes_unk", bpe(corpus, prepend, None, byte_tokens=False, byte_fallback=True, fuse_unk=True), spm)
    add("no_bytes_nofuse", bpe(corpus, prepend, None, byte_tokens=False, byte_fallback=False, fuse_unk=False), spm)
    add("clip_like", bpe(corpus, normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]),
                         pre.Sequence([pre.Split(Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), "removed", True),
                                       pre.ByteLevel(add_prefix_space=False)]), end_of_word_suffix="</w>", byte_tokens=False),
        decoders.BPEDecoder("</w>"))
    add("openai_gpt", bpe(corpus, normalizers.BertNormalizer(lowercase=True), pre.BertPreTokenizer(), end_of_word_suffix="</w>", byte_tokens=False),
        decoders.BPEDecoder("</w>"))
    add("bpe_prefix", bpe(corpus, normalizers.NFKC(), pre.WhitespaceSplit(), continuing_subword_prefix="@@", byte_tokens=False, fuse_unk=True))
    add("bert", wordpiece(corpus, normalizers.BertNormalizer(), pre.BertPreTokenizer()), decoders.WordPiece(), bert_post)
    add("bert_cased", wordpiece(corpus, normalizers.BertNormalizer(lowercase=False), pre.BertPreTokenizer()), decoders.WordPiece(cleanup=False),
        bert_post, [AddedToken("[MASK]", lstrip=True, special=True)])
    add("bert_accents", wordpiece(corpus, normalizers.BertNormalizer(clean_text=False, strip_accents=True, lowercase=False,
                                                                     handle_chinese_chars=False), pre.Whitespace()), decoders.WordPiece("##", True))
    add("wordpiece_short", wordpiece(corpus, normalizers.NFKC(), pre.WhitespaceSplit(), max_input_chars_per_word=4), decoders.WordPiece())
    add("wordpiece_raw", wordpiece(corpus, None, pre.Punctuation("isolated"), continuing_subword_prefix="_", max_input_chars_per_word=1000),
        decoders.WordPiece("_", False))
    add("wordlevel", wordlevel(corpus, normalizers.Lowercase(), pre.Whitespace()))
    try:
        maps = {r: charsmap(folder, r) for r in ("nmt_nfkc", "nfkc_cf")}
    except ImportError:
        print("跳过预编译替换表：没有 sentencepiece")
        maps = {}
    eos = lambda t: processors.TemplateProcessing(single="$A </s>", pair=None, special_tokens=[("</s>", t.token_to_id("</s>"))])
    for rule, blob in maps.items():
        z = normalizers.Precompiled(blob)
        add("t5_" + rule, unigram(corpus, normalizers.Sequence([z, normalizers.Strip(left=False), normalizers.Replace(two, "▁")]), meta("always")),
            decoders.Metaspace("▁", "always"), eos, odd)
        add("xlmr_" + rule, unigram(corpus, normalizers.Sequence([z, normalizers.Replace(two, " ")]),
                                    pre.Sequence([pre.WhitespaceSplit(), meta("first")])), decoders.Metaspace("▁", "first"), eos)
        add("albert_" + rule, unigram(corpus, normalizers.Sequence([normalizers.Replace("``", '"'), normalizers.Replace("''", '"'), normalizers.NFKD(),
                                                                    normalizers.StripAccents(), normalizers.Lowercase(), z,
                                                                    normalizers.Replace(two, " ")]), meta("always")), decoders.Metaspace("▁"), eos)
    add("unigram_bytes", unigram(corpus, normalizers.Nmt(), meta("first"), byte_fallback=True),
        decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace("▁", "first")]), eos, odd)
    add("unigram_plain", unigram(corpus, None, None))
    add("unigram_scripts", unigram(corpus, normalizers.NFKC(), pre.Sequence([pre.UnicodeScripts(), pre.Digits(True)])), decoders.Fuse())
    add("ctc", wordlevel(corpus, None, pre.Split("", "isolated")) if False else wordlevel(list("abcdefg|' <pad>") * 9, None, pre.FixedLength(1)),
        decoders.CTC("<unk>", "|", True))
    return out


def random_mix(folder, rng, k, corpus, maps):
    behavior = lambda: rng.choice(["isolated", "removed", "contiguous", "merged_with_previous", "merged_with_next"])
    norm = lambda: rng.choice([
        normalizers.NFC, normalizers.NFD, normalizers.NFKC, normalizers.NFKD, normalizers.Lowercase, normalizers.StripAccents, normalizers.Nmt,
        lambda: normalizers.Strip(rng.random() < .5, rng.random() < .5), lambda: normalizers.Prepend(rng.choice(["▁", "xy", " "])),
        lambda: normalizers.Replace(rng.choice([" ", "a", "the", "é"]), rng.choice(["", "▁", "zz ", "é"])),
        lambda: normalizers.Replace(Regex(rng.choice([r"\s+", r" {2,}", r"\d", r"[aeiou]+", r"(?i)THE", r"^|$", r"\p{P}"])), rng.choice(["", " ", "#"])),
        lambda: normalizers.BertNormalizer(*(rng.random() < .5 for _ in range(4))), normalizers.ByteLevel,
        lambda: normalizers.Precompiled(rng.choice(maps)) if maps else normalizers.NFKC()])()
    split = lambda: rng.choice([
        pre.Whitespace, pre.WhitespaceSplit, pre.BertPreTokenizer, pre.UnicodeScripts, lambda: pre.Punctuation(behavior()),
        lambda: pre.Digits(rng.random() < .5), lambda: pre.CharDelimiterSplit(rng.choice(["a", " ", "é", "▁"])), lambda: pre.FixedLength(rng.choice([1, 3, 7])),
        lambda: pre.Metaspace(rng.choice("▁_é"), rng.choice(["first", "always", "never"]), rng.random() < .6),
        lambda: pre.ByteLevel(rng.random() < .5, use_regex=rng.random() < .5),
        lambda: pre.Split(rng.choice([Regex(r"\s+"), Regex(r"\w+"), " ", "e", Regex(r"[^\p{L}]"), Regex(r"(?=[A-Z])"), Regex(r"\p{Han}|\d{2}")]), behavior(),
                          rng.random() < .4)])()
    dec = lambda: rng.choice([
        decoders.ByteLevel, lambda: decoders.WordPiece(rng.choice(["##", "▁"]), rng.random() < .5),
        lambda: decoders.Metaspace(rng.choice("▁_"), rng.choice(["first", "always", "never"])), lambda: decoders.BPEDecoder(rng.choice(["</w>", "e"])),
        decoders.ByteFallback, decoders.Fuse, lambda: decoders.Strip(rng.choice(" a▁"), rng.choice([0, 1, 3]), 0),
        lambda: decoders.Replace(rng.choice(["▁", "e", Regex(r"\s+"), Regex(r"^.")]), rng.choice([" ", "", "xx"])),
        lambda: decoders.CTC(rng.choice(["<pad>", "e"]), rng.choice(["|", "a"]), rng.random() < .5)])()
    many = lambda make, wrap: [lambda: None, make, lambda: wrap([make(), make()]), lambda: wrap([make(), make(), make()])][rng.choice([0, 1, 2, 2, 3])]()
    z = many(norm, normalizers.Sequence)
    p = many(split, pre.Sequence)
    kind = rng.randrange(4)
    flags = dict(fuse_unk=rng.random() < .5, byte_fallback=rng.random() < .5, ignore_merges=rng.random() < .3)
    if rng.random() < .2:
        flags["end_of_word_suffix"] = "</w>"
    if rng.random() < .2:
        flags["continuing_subword_prefix"] = "##"
    few = rng.sample(corpus, 150)
    try:
        if kind == 0:
            tok = bpe(few, z, p, size=600, byte_tokens=rng.random() < .7, **flags)
        elif kind == 1:
            tok = unigram(few, z, p, byte_fallback=rng.random() < .5, size=400)
        elif kind == 2:
            tok = wordpiece(few, z, p)
        else:
            tok = wordlevel(few, z, p)
    except BaseException:  # 有的搭配 tokenizers 自己就训练不了（如没有文本剩下）
        return None
    d = many(dec, decoders.Sequence)
    if d is not None:
        tok.decoder = d
    if rng.random() < .6:
        pool = ["the", "é", "<x>", "  ", "日本", "'s", "Straße", "\n\n", "<s>x", "lo w"]
        tok.add_tokens([AddedToken(t, lstrip=rng.random() < .3, rstrip=rng.random() < .3, single_word=rng.random() < .3, normalized=rng.random() < .5,
                                   special=rng.random() < .4) for t in rng.sample(pool, 4)])
    if tok.normalizer and any(t.normalized and not tok.normalizer.normalize_str(t.content) for t in tok.get_added_tokens_decoder().values()):
        return None  # 规范化成空的 token：HF 会在每个字节处切开，遇到汉字就崩溃
    first = tok.id_to_token(0)
    if rng.random() < .4:
        tok.post_processor = rng.choice([
            lambda: processors.BertProcessing((first, 0), (tok.id_to_token(1), 1)), lambda: processors.RobertaProcessing((first, 0), (tok.id_to_token(1), 1)),
            lambda: processors.Sequence([processors.ByteLevel(), processors.TemplateProcessing(single="a $A b a", pair=None, special_tokens=[("a", 0), ("b", 1)])])])()
    return save(folder, f"mix{k}", tok)


def run(tool, folder, lines):
    r = subprocess.run([tool, folder], input="".join(json.dumps(x) + "\n" for x in lines), capture_output=True, text=True)
    out = [json.loads(x) for x in r.stdout.split("\n") if x]
    if r.returncode or len(out) != len(lines):
        return None, r.stderr.strip()
    return out, ""


def compare(tool, folder, texts, rng):
    tok = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    size = max(tok.get_vocab(True).values()) + 1
    want, lines, bad, failed = [], [], 0, 0

    def ask(f, line):
        try:
            want.append([f(True), f(False)])
        except BaseException:  # HF 自己出错或崩溃（pyo3 的 PanicException）的不比
            return
        lines.append(line)
    for t in texts:
        ask(lambda special: tok.encode(t, add_special_tokens=special).ids, t)
    for _ in range(len(texts) // 4):
        ids = [rng.randrange(size) for _ in range(rng.choice([0, 1, 2, 5, 30]))]
        ask(lambda keep: tok.decode(ids, skip_special_tokens=not keep), ids)
    for w in [w for w in want[:len(texts) // 2] if w and isinstance(w[0], list)]:
        ask(lambda keep: tok.decode(w[0], skip_special_tokens=not keep), w[0])
    got, err = run(tool, folder, lines)
    if got is None:
        print(f"❌ {os.path.basename(folder)}: {err}")
        return 1
    for line, w, g in zip(lines, want, got):
        if w == g:
            continue
        bad += 1
        if bad <= 3:
            print(f"  {str(line)[:160]!r}\n    HF     {str(w)[:300]}\n    本程序 {str(g)[:300]}")
    print(f"{'❌' if bad else '✅'} {os.path.basename(folder.rstrip('/'))}: {len(lines)} 例，{bad} 处不同")
    return bad


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--tool", default="build/tests/tools/tokenizer_check")
    p.add_argument("--count", type=int, default=1000)
    p.add_argument("--mixes", type=int, default=150)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--only", default="")
    p.add_argument("--work", default="/tmp/compare_tokenizer")
    p.add_argument("folders", nargs="*")
    a = p.parse_args()
    os.makedirs(a.work, exist_ok=True)
    rng = random.Random(a.seed)
    folders = a.folders + build_styles(a.work, rng) + build_families(a.work, rng)
    corpus = text_corpus(rng)
    try:
        maps = [charsmap(a.work, r) for r in ("nmt_nfkc", "nfkc_cf")]
    except ImportError:
        maps = []
    folders += [f for f in (random_mix(a.work, rng, k, corpus, maps) for k in range(a.mixes)) if f]
    bad = 0
    for folder in folders:
        if a.only and a.only not in folder:
            continue
        tok = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
        special = [t.content for t in tok.get_added_tokens_decoder().values()]
        mix = os.path.basename(folder).startswith("mix")
        texts = [random_text(rng, special) for _ in range(a.count // 4 if mix else a.count)]
        if not mix:
            texts += [chr(c) for c in range(0x32000) if not 0xD800 <= c < 0xE000][a.seed % 31::31]
            texts += [c * 2000 for c in "a 1é中\n"] + [" ".join(rng.choices(WORDS, k=2000))]
        bad += compare(a.tool, folder, texts, rng) > 0
    print(f"{len(folders)} 个分词器，{bad} 个有差异")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
