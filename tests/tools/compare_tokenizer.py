#!/usr/bin/env python3
"""compare_tokenizer — 用随机文本对照 HF tokenizers 与 ptq-bench 的 ids（手工运行，不在 make test 之内）

用法: compare_tokenizer.py [--binary build/ptq-bench] [--count 5000] [--seed 0] [--work 目录] 文件夹...
每个文件夹含 tokenizer.json。另外用 tokenizers 库就地训练几种风格的小分词器（Qwen2、StarCoder、GPT-4o…）一并对照。
需要 Python 包 tokenizers。有差异时打印前几处并以 1 退出。
"""
import argparse
import json
import os
import random
import subprocess
import sys
import unicodedata

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


def run(binary, folder, texts, work, extra):
    path = os.path.join(work, "texts.jsonl")
    with open(path, "w") as f:
        for t in texts:
            f.write(json.dumps(t) + "\n")
    r = subprocess.run([binary, "tokenize", "--model", folder, "--jsonl", path] + extra, capture_output=True, text=True)
    if r.returncode:
        sys.exit(f"{folder}: {r.stderr}")
    return [json.loads(line) for line in r.stdout.splitlines()]


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--binary", default="build/ptq-bench")
    p.add_argument("--count", type=int, default=5000)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--work", default="/tmp/compare_tokenizer")
    p.add_argument("folders", nargs="*")
    a = p.parse_args()
    os.makedirs(a.work, exist_ok=True)
    rng = random.Random(a.seed)
    bad = 0
    for folder in a.folders + build_styles(a.work, rng):
        tok = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
        special = [t.content for t in tok.get_added_tokens_decoder().values()]
        texts = [random_text(rng, special) for _ in range(a.count)]
        texts += [chr(c) for c in range(0x32000) if not 0xD800 <= c < 0xE000][a.seed % 7::7]
        texts += [c * 3000 for c in "a 1é中\n"] + [" ".join(rng.choices(WORDS, k=3000))]
        diff = 0
        for add in (True, False):
            got = run(a.binary, folder, texts, a.work, [] if add else ["--no_special"])
            want = [tok.encode(t, add_special_tokens=add).ids for t in texts]
            wrong = [i for i in range(len(texts)) if i >= len(got) or got[i] != want[i]]
            for i in wrong[:3]:
                k = next((j for j, (x, y) in enumerate(zip(got[i], want[i])) if x != y), 0) if i < len(got) else 0
                print(f"  {texts[i][:80]!r}\n    HF   {k}: {want[i][k:k + 24]}\n    本程序 {k}: {(got[i] if i < len(got) else [])[k:k + 24]}")
            diff += len(wrong)
        print(f"{os.path.basename(folder.rstrip('/'))}: {len(texts)} 段文本，{diff} 处不同")
        bad += diff
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
