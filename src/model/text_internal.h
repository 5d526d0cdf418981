/* text_internal — 分词器的文字部分：UTF-8、Unicode、正则、规范化（只供 src/model/ 里的分词器文件与其测试包含）
 * 不变式: 除 *_lossy 之外，进来的文本都是合法 UTF-8，出去的也是。 */
#ifndef PTQ_MODEL_TEXT_INTERNAL_H
#define PTQ_MODEL_TEXT_INTERNAL_H
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdint.h>

#include "base/str.h"

/* ---- textnorm：UTF-8 与 Unicode 规范化 ---- */
/* 取 s[0..n) 开头的一个字符，n > 0。返回: 码点，*len 为字节数；
 * 坏序列返回 -1，*len 为应合并成一个 U+FFFD 的字节数（Unicode 的「最大子部分」，与 Rust、Python 相同）。 */
int32_t utf8_next(const char *s, size_t n, size_t *len);
/* s 是否全是合法 UTF-8。 */
bool utf8_valid(const char *s, size_t n);
/* 追加到 out，坏片段换成 U+FFFD。 */
void utf8_add_lossy(Str *out, const char *s, size_t n);
/* 追加码点的 UTF-8。 */
void utf8_add(Str *out, int32_t cp);
/* Unicode 的 White_Space；Rust regex 的 \w。 */
bool unicode_space(int32_t cp);
bool unicode_word(int32_t cp);
/* Rust 的 is_numeric（Unicode 17 的 N）。 */
bool unicode_numeric(int32_t cp);

typedef enum { NORM_NFC, NORM_NFD, NORM_NFKC, NORM_NFKD } NormForm;
/* 把合法 UTF-8 规范化后追加到 out。长串组合符也不会变成平方时间。 */
bool unicode_normalize(NormForm form, const char *s, size_t n, Str *out, Err *e);

/* ---- unicode_age：补齐各库 Unicode 版本的差异 ---- */
/* 把比 PCRE2 的 Unicode 更新、属于 category（"L"、"Nd"、"L&"、"Han"…）的字符按方括号内的写法追加到 out。 */
void unicode_new_ranges(Str *out, const char *category);
/* 新字符的类别，如 "Lo"；不是新字符则 NULL。 */
const char *unicode_new_category(int32_t cp);
/* HF 的规范化库不认识、因而不动的字符。 */
bool unicode_norm_inert(int32_t cp);

/* 字节级字母表（GPT-2）：字节 → 码点，码点 → 字节（不在表中为 -1）。 */
int32_t byte_to_char(uint8_t b);
int byte_from_char(int32_t cp);
/* "<0x0A>" 之类的字节 token → 字节；不是则 -1。 */
int byte_token_value(const char *text, size_t len);

/* ---- unicode_old：HF 用的几个 Unicode 版本不同的库所认的类别 ---- */
bool unicode_punct(int32_t cp);     /* 标点（含 ASCII 的符号） */
bool unicode_control(int32_t cp);   /* BERT 的控制字符 */
bool unicode_nonspacing(int32_t cp); /* BERT 去重音所去的 Mn */
bool unicode_combining(int32_t cp); /* StripAccents 所去的 M */
/* 追加 cp 的小写（可能是两个字符）。 */
void unicode_add_lower(Str *out, int32_t cp);
/* UnicodeScripts 的脚本号（汉字、假名同号）；空格与未分配的字符为 0。 */
int unicode_script(int32_t cp);

/* ---- rx：一条正则或字面模式 ---- */
typedef struct Rx {
    pcre2_code *re;      /* NULL: 按字面 */
    const char *literal; /* 归 Arena 或常量所有 */
    size_t n_literal;
} Rx;
/* pattern 是 Oniguruma（Ruby）语法，译成等价的 PCRE2；literal 为真时按字面匹配（pattern 须与 r 同寿命）。
 * where 用于错误消息。错误: 模式为空、正则坏（带位置）、不支持的写法。 */
bool rx_open(Rx *r, const char *where, const char *pattern, size_t len, bool literal, Err *e);
void rx_close(Rx *r);
typedef struct RxWork { /* 匹配所用的缓冲，一次编码或解码一份；全零为未建 */
    pcre2_match_data *data;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
} RxWork;
void rx_work_free(RxWork *w);
/* 依次取匹配，与 onig 的 find_iter 相同：紧接上次匹配之后的空匹配不算。 */
typedef struct RxIter {
    size_t from, last_end;
    bool any;
} RxIter;
/* 返回: 1 找到，0 没有了，-1 出错（已置 e：回溯过多、内存不足）。 */
int rx_next(const Rx *r, RxWork *w, const char *s, size_t n, RxIter *it, size_t *start,
            size_t *end, Err *e);

/* ---- charsmap：SentencePiece 的预编译替换表 ---- */
typedef struct Charsmap {
    const uint8_t *units; /* 双数组字典树，小端 u32 */
    size_t n_units;
    const char *text; /* 以 NUL 分隔的替换文本 */
    size_t n_text;
} Charsmap;
/* blob: 4 字节的树长、树、替换文本；与 m 同寿命。错误: 长度不符、文本不是 UTF-8。 */
bool charsmap_open(Charsmap *m, const char *where, const void *blob, size_t len, Err *e);
/* 逐字素替换（spm_precompiled 的做法），追加到 out；*zero 见 NormText。 */
void charsmap_run(const Charsmap *m, const char *s, size_t n, Str *out, size_t *zero);

/* ---- normalizer ---- */
typedef enum { NORM_FORM, NORM_MAP, NORM_STRIP, NORM_PREPEND, NORM_REPLACE, NORM_CHARSMAP } NormKind;
typedef void (*NormMap)(Str *out, int32_t cp); /* 一个字符 → 零个或多个字符 */
typedef struct NormStep {
    NormKind kind;
    NormForm form;
    NormMap map;
    bool left, right;      /* NORM_STRIP 去哪一端的空白 */
    Rx rx;                 /* NORM_REPLACE */
    const char *text;      /* NORM_PREPEND、NORM_REPLACE 的内容 */
    size_t len;
    Charsmap charsmap;
} NormStep;
#define NORM_STEPS 32
typedef struct Normalizer {
    NormStep steps[NORM_STEPS];
    size_t n;
} Normalizer;
void norm_map_lower(Str *out, int32_t cp);
void norm_map_strip_accents(Str *out, int32_t cp);
void norm_map_nmt(Str *out, int32_t cp);
void norm_map_bytes(Str *out, int32_t cp);
void norm_map_bert_clean(Str *out, int32_t cp);
void norm_map_bert_chinese(Str *out, int32_t cp);
void norm_map_bert_accents(Str *out, int32_t cp);
/* 追加一步；返回 NULL 表示步数过多（已置 e）。 */
NormStep *normalizer_add(Normalizer *z, NormKind kind, const char *where, Err *e);
/* 追加一步逐字符的变换。 */
bool normalizer_add_map(Normalizer *z, NormMap map, const char *where, Err *e);
bool normalizer_add_form(Normalizer *z, NormForm form, const char *where, Err *e);
/* 追加替换：pattern 之处换成 text；两者须与 z 同寿命。 */
bool normalizer_add_replace(Normalizer *z, const char *where, const char *pattern, size_t n_pattern,
                            bool literal, const char *text, size_t len, Err *e);
void normalizer_close(Normalizer *z);

typedef struct NormText { /* 一段文本 */
    const char *s;
    size_t n;
    size_t zero; /* 开头有多少字节出自原文的第一个字符（Metaspace 的 first 要知道） */
} NormText;
typedef struct NormWork { /* 全零为未用 */
    Str buf[2];
    RxWork rx;
    size_t limit; /* 结果的字节数上限 */
} NormWork;
void norm_work_free(NormWork *w);
/* 依次做各步，*t 换成结果（在 w 中，下次调用前有效）。 */
bool normalizer_run(const Normalizer *z, NormWork *w, NormText *t, Err *e);
#endif
