"""make_lm_eval_data — 为没有真数据的任务造数据：各数据集真实的列，内容随机而刁钻（首尾空白、空串、中文、引号、花括号、组合字符）

用法: make_lm_eval_data.py 文件夹。写出 {数据集}@{划分}.jsonl（数据集名里的 / 写成 @）；各学科共用的（mmlu、ceval、cmmlu）是 …@_subject。
固定的种子，重做得到同样的文件。
"""
import json
import os
import random
import sys

rng = random.Random(20260214)
WORDS = ("the cat runs  Why is 天空 蓝色的 “quoted” it's naïve café 𝛼+𝛽 {{x}} {% if %} 1,234 $5.00 e\u0301 "
         "不对 A. B. Answer: Question: \u3000全角 tab\there emoji 😀 a_b #### <|im_end|> 100% C++ (paren)").split(" ")


def text(lo=3, hi=12, edge=True):
    s = " ".join(rng.choice(WORDS) for _ in range(rng.randint(lo, hi)))
    if edge and rng.random() < 0.15:
        s = " " + s
    if edge and rng.random() < 0.15:
        s += rng.choice([" ", "  ", "\n"])
    return s


def choices(n):
    return [text(1, 4) for _ in range(n)]


def arc(i):
    n = rng.choice([3, 4, 4, 4, 5])
    labels = ["A", "B", "C", "D", "E"][:n] if rng.random() < 0.7 else ["1", "2", "3", "4", "5"][:n]
    return {"id": f"q{i}", "question": text(), "choices": {"text": choices(n), "label": labels},
            "answerKey": rng.choice(labels)}


def hellaswag(i):
    return {"ind": i, "activity_label": "Roof [title] shingle " + text(1, 3), "ctx_a": text(), "ctx_b": text(1, 4, False),
            "ctx": text(), "endings": [text(2, 6) + " [title] x [substeps] y  z" for _ in range(4)],
            "source_id": f"s{i}", "split": "val", "split_type": "indomain", "label": str(rng.randrange(4))}


def winogrande(i):
    return {"sentence": text(2, 5) + " _ " + text(2, 5), "option1": text(1, 2), "option2": text(1, 2),
            "answer": rng.choice(["1", "2"])}


def wikitext(i):
    body = " = Title = \n " + text() + " \n @-@ 1 @,@ 000 @.@ 5 ( x ) [ y ] { z } \" q \" ' r ' s ' \n = = Sec = = \n "
    return {"page": body + text(5, 30) + " N 1 's\n" + ("\n" if i % 3 == 0 else "")}


def letters(i):
    return {"id": i, "question": text(), **dict(zip("ABCD", choices(4))), "answer": rng.choice("ABCD"), "explanation": ""}


def cmmlu(i):
    return {"Question": text(), **dict(zip("ABCD", choices(4))), "Answer": rng.choice("ABCD")}


ROWS = {
    "ai2_arc/ARC-Easy": arc,
    "ai2_arc/ARC-Challenge": arc,
    "hellaswag": hellaswag,
    "piqa": lambda i: {"goal": text(), "sol1": text(), "sol2": text(), "label": rng.randrange(2)},
    "winogrande/winogrande_xl": winogrande,
    "super_glue/boolq": lambda i: {"question": text(), "passage": text(5, 30), "idx": i, "label": rng.randrange(2)},
    "super_glue/copa": lambda i: {"premise": text(2, 5, False) + ".", "choice1": "The " + text(1, 4), "choice2": "A " + text(1, 4),
                                  "question": rng.choice(["cause", "effect"]), "idx": i, "label": rng.randrange(2)},
    "openbookqa/main": lambda i: {"id": f"o{i}", "question_stem": text(), "choices": {"text": choices(4), "label": list("ABCD")},
                                  "answerKey": rng.choice("ABCD")},
    "commonsense_qa": lambda i: {"id": f"c{i}", "question": text(), "question_concept": "x",
                                 "choices": {"label": list("ABCDE"), "text": choices(5)}, "answerKey": rng.choice("ABCDE")},
    "siqa": lambda i: {"context": text(), "question": text(), "answerA": text(1, 3), "answerB": text(1, 3), "answerC": text(1, 3),
                       "label": rng.choice("123")},
    "lambada_openai/default": lambda i: {"text": text(5, 20, False) + " " + rng.choice(["end", "终点", "naïve"])},
    "wikitext_document_level/wikitext-2-raw-v1": wikitext,
    "gsm8k/main": lambda i: {"question": text(), "answer": text(4, 9) + f"\n#### {rng.randint(-50, 5000):,}"},
    "mmlu/_subject": lambda i: {"question": text(), "subject": "s", "choices": choices(4), "answer": rng.randrange(4)},
    "ceval-exam/_subject": letters,
    "cmmlu/_subject": cmmlu,
}
for name, row in ROWS.items():
    splits = {"mmlu/_subject": ["test", "dev"], "cmmlu/_subject": ["test", "dev"],
              "ceval-exam/_subject": ["val", "dev"], "lambada_openai/default": ["test"]}.get(name, ["train", "validation", "test"])
    for split in splits:
        with open(os.path.join(sys.argv[1], name.replace("/", "@") + "@" + split + ".jsonl"), "w", encoding="utf-8") as f:
            for i in range(6 if split in ("dev", "train") else 8):
                f.write(json.dumps(row(i), ensure_ascii=False) + "\n")
