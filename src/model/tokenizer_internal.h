/* tokenizer_internal — 分词器各部分之间的契约（只供 src/model/ 里的分词器文件与其测试包含）
 * 数据流: 文本 → textnorm（坏 UTF-8、NFC）→ added（特殊 token）→ pretok（预切分）→ bpe（归并）→ ids。
 * 不变式: Tokenizer 打开后只读，可被多个线程同时用；编码的可变状态全在各次调用自己的结构里。 */
#ifndef PTQ_MODEL_TOKENIZER_INTERNAL_H
#define PTQ_MODEL_TOKENIZER_INTERNAL_H
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "io/hash.h"
#include "io/json.h"
#include "model/tokenizer.h"

#define TOKEN_ID_MAX ((1 << 22) - 1) /* 词表 id 的上限，防止坏文件要求巨大的表 */

/* 为 TokenIds 追加一个 id。内存不足返回 false 并置 e。 */
bool token_ids_add(TokenIds *t, int32_t id, Err *e);

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

/* ---- bpe：词表与归并 ---- */
typedef struct VocabEntry {
    const char *text; /* NULL 表示此 id 无 token */
    uint32_t len;
    int32_t added; /* 在 AddedTokens 中的下标 + 1，0 为不是添加的 token */
} VocabEntry;

typedef struct VocabSlot {
    uint32_t hash;
    int32_t id1; /* id + 1，0 为空 */
} VocabSlot;

typedef struct Vocab {
    Arena *arena;
    VocabEntry *by_id;
    int32_t n_ids, cap_ids; /* 最大 id + 1；by_id 的容量 */
    VocabSlot *slots;       /* 按文本的开放寻址哈希 */
    size_t n, n_slots;      /* token 数；槽数（2 的幂） */
    char *pool;
    size_t pool_left;
} Vocab;
/* 预留 n 个 token。 */
bool vocab_init(Vocab *v, Arena *a, size_t n, Err *e);
/* 加入 token。错误: id 越界、id 或文本重复（name 为出错时的文件名）。 */
bool vocab_add(Vocab *v, const char *name, const char *text, size_t len, int64_t id, Err *e);
/* 返回: id，没有则 -1。 */
int32_t vocab_find(const Vocab *v, const char *text, size_t len);

typedef struct Merge {
    uint64_t pair; /* 左 id << 32 | 右 id；全 1 为空槽 */
    int32_t rank, product;
} Merge;

typedef struct Bpe {
    Vocab vocab;
    Merge *merges;
    size_t n_merges, n_slots; /* 条数；槽数（2 的幂） */
    int32_t byte_ids[256]; /* 单字节的 id，没有则 -1 */
    int32_t unk_id;        /* -1 表示没有 unk_token：词表外的字节被丢弃（与 HF 相同） */
    bool fuse_unk, ignore_merges;
} Bpe;
/* 词表就绪后：建字节表，预留 n 条归并（不够时自动增长）。 */
bool bpe_init(Bpe *b, size_t n_merges, Err *e);
/* 加入第 index 条归并（越早越优先）。错误: 左、右或产物不在词表中；一侧为空（循环）。 */
bool bpe_add_merge(Bpe *b, const char *name, size_t index, const char *left, size_t n_left,
                   const char *right, size_t n_right, Err *e);
/* 同上，text 为 "a b"。 */
bool bpe_add_merge_text(Bpe *b, const char *name, size_t index, const char *text, size_t len,
                        Err *e);

/* 返回: 左右相邻时的归并，没有则 NULL。 */
const Merge *bpe_find_merge(const Bpe *b, int32_t left, int32_t right);

typedef struct BpeWork BpeWork; /* 一次编码的缓冲与缓存 */
BpeWork *bpe_work_new(void);    /* 内存不足返回 NULL */
void bpe_work_free(BpeWork *w);
/* 把一个预切分片段（原始字节）变成 ids，追加到 out。 */
bool bpe_encode(const Bpe *b, BpeWork *w, const char *s, size_t n, TokenIds *out, Err *e);

/* ---- pretok：预切分 ---- */
typedef enum {
    SPLIT_ISOLATED,
    SPLIT_REMOVED,
    SPLIT_CONTIGUOUS,
    SPLIT_MERGED_PREVIOUS,
    SPLIT_MERGED_NEXT
} SplitBehavior;

typedef struct PretokStage {
    pcre2_code *re; /* NULL: 不切分（只可能加前导空格） */
    SplitBehavior behavior;
    bool invert, prefix_space;
} PretokStage;

#define PRETOK_MAX 16
typedef struct Pretok {
    PretokStage stages[PRETOK_MAX];
    size_t n;
} Pretok;
extern const char PRETOK_GPT2[], PRETOK_LLAMA3[], PRETOK_QWEN2[], PRETOK_DIGIT[];
/* 加一级正则切分。pattern 是 Oniguruma（Ruby）语法，译成等价的 PCRE2；literal 为真时按字面匹配。
 * where 用于错误消息。错误: 正则坏（带位置）、不支持的写法、级数过多。 */
bool pretok_add(Pretok *p, const char *where, const char *pattern, size_t len, bool literal,
                SplitBehavior behavior, bool invert, Err *e);
/* 加一级「每段前补空格」。 */
bool pretok_add_prefix_space(Pretok *p, const char *where, Err *e);
void pretok_free(Pretok *p);
/* Oniguruma 正则 → PCRE2 正则（追加到 out）。 */
bool pretok_translate(const char *where, const char *pattern, size_t len, Str *out, Err *e);

typedef struct PretokWork PretokWork;
PretokWork *pretok_work_new(const Pretok *p);
void pretok_work_free(PretokWork *w);
/* 每得到一个片段就调用 emit；s 是合法 UTF-8。 */
typedef bool (*PretokEmit)(void *ctx, const char *s, size_t n, Err *e);
bool pretok_run(const Pretok *p, PretokWork *w, const char *s, size_t n, PretokEmit emit, void *ctx,
                Err *e);

/* ---- added：在文本中先行匹配的 token ---- */
typedef struct AddedToken {
    const char *text; /* 原文 */
    uint32_t len;
    int32_t id;
    bool special, lstrip, rstrip, single_word, normalized;
} AddedToken;

typedef struct TrieNode {
    int32_t child, sibling; /* 下标，0 为无 */
    int32_t token;          /* AddedToken 下标，-1 为无 */
    uint8_t byte;
} TrieNode;

typedef struct Trie {
    TrieNode *nodes; /* nodes[0] 为根；NULL 表示空 */
    size_t n, cap;
    int32_t first[256]; /* 根的子结点，0 为无 */
} Trie;

typedef struct AddedTokens {
    AddedToken *items;
    size_t n, cap;
    int32_t max_id;       /* 最大的 id，-1 为空 */
    Trie raw, normalized; /* 在规范化之前、之后匹配 */
} AddedTokens;
/* 登记一个 token（id 已登记则覆盖其属性，与 HF 相同）。t->text 须与词表同寿命。 */
bool added_put(AddedTokens *a, Arena *arena, const AddedToken *t, VocabEntry *entry, Err *e);
/* 全部登记后建立匹配用的字典树。 */
bool added_build(AddedTokens *a, Arena *arena, const NormForm *norms, size_t n_norms, Err *e);

typedef struct AddedHit {
    size_t start, end; /* 文本 [from, start) 是普通文本，[start, end) 是 token */
    int32_t id;
} AddedHit;
typedef struct AddedScan {
    size_t from, next; /* 未输出文本的起点；下一次匹配的起点 */
} AddedScan;
/* 找下一个 token。返回: 没有了则 false。 */
bool added_next(const AddedTokens *a, const Trie *trie, const char *s, size_t n, AddedScan *scan,
                AddedHit *hit);

/* ---- scan：tokenizer.json 的两块大数据 ---- */
typedef struct ScanSpan {
    size_t start, end; /* 在文件中的字节范围；end 为 0 表示没有 */
} ScanSpan;
/* 解析除 model.vocab、model.merges 之外的部分（两者在返回值中是空的），并给出两者的位置。 */
json_t *scan_skeleton(const char *name, const char *text, size_t len, ScanSpan *vocab,
                      ScanSpan *merges, Err *e);
bool scan_vocab(Vocab *v, const char *name, const char *text, ScanSpan span, Err *e);
bool scan_merges(Bpe *b, const char *name, const char *text, ScanSpan span, Err *e);

/* ---- tokenizer ---- */
#define NORM_MAX 4
#define TEMPLATE_MAX 16
typedef struct TokenList {
    int32_t ids[TEMPLATE_MAX];
    size_t n;
} TokenList;

struct Tokenizer {
    Arena arena;
    Bpe bpe;
    Pretok pretok;
    NormForm norms[NORM_MAX];
    size_t n_norms;
    AddedTokens added;
    int32_t n_model; /* 模型自身词表（不含添加的 token）的大小 */
    TokenList prefix, suffix; /* add_special 时加在前后的 id */
    int32_t bos, eos;         /* -1 为没有 */
    const char *bos_policy;
    char sha256[HASH_HEX];
};
/* 由内存中的 tokenizer.json 打开（测试与模糊测试也用）；config 为 tokenizer_config.json 的内容，可为 NULL。 */
bool tokenizer_open_json(Tokenizer **t, const char *name, const void *text, size_t len,
                         const json_t *config, Err *e);
/* normalizer、pre_tokenizer、decoder、post_processor 四个部件（值可为 NULL 或 JSON null）。 */
bool tokenizer_load_normalizer(Tokenizer *t, const char *name, const json_t *v, Err *e);
bool tokenizer_load_pretok(Tokenizer *t, const char *name, const json_t *v, Err *e);
bool tokenizer_load_decoder(const char *name, const json_t *v, Err *e);
bool tokenizer_load_post(Tokenizer *t, const char *name, const json_t *v, Err *e);
/* added_tokens 的一项（或 tokenizer_config.json 中的 AddedToken）→ token；name、where 用于错误消息。 */
bool tokenizer_read_added(AddedToken *token, const char *name, const json_t *v, Err *e);
/* 按 transformers 的规则应用 tokenizer_config.json：补特殊 token，定 bos、eos。 */
bool tokenizer_apply_config(Tokenizer *t, const char *name, const json_t *config, Err *e);
/* 新的空分词器（bos、eos 为 -1）。 */
Tokenizer *tokenizer_new(Err *e);
/* 登记添加的 token：文本已在词表则用其 id，否则取下一个 id（HF 的规则），写入 token->id。 */
bool tokenizer_add_token(Tokenizer *t, const char *name, AddedToken *token, Err *e);
/* 全部就绪后：建字典树、写 BOS 说明。 */
bool tokenizer_finish(Tokenizer *t, const char *name, Err *e);
#endif
