/* tokenizer_internal — 分词器各部分之间的契约（只供 src/model/ 里的分词器文件与其测试包含）
 * 数据流: 文本 → added（特殊 token）→ normalizer（规范化）→ pretok（预切分）→ 模型（BPE、Unigram、WordPiece、
 * WordLevel）→ post（模板）→ ids；解码: ids → 各 token 的文本 → decoder → 文本。
 * 不变式: Tokenizer 打开后只读，可被多个线程同时用；编码的可变状态全在各次调用自己的结构里。 */
#ifndef PTQ_MODEL_TOKENIZER_INTERNAL_H
#define PTQ_MODEL_TOKENIZER_INTERNAL_H
#include "io/gguf.h"
#include "io/hash.h"
#include "io/json.h"
#include "model/text_internal.h"
#include "model/tokenizer.h"

#define TOKEN_ID_MAX ((1 << 22) - 1) /* 词表 id 的上限，防止坏文件要求巨大的表 */

/* 为 TokenIds 追加一个 id。内存不足返回 false 并置 e。 */
bool token_ids_add(TokenIds *t, int32_t id, Err *e);

/* ---- bpe：词表与归并 ---- */
typedef struct VocabEntry {
    const char *text; /* NULL 表示此 id 无 token */
    uint32_t len;
    int32_t added; /* 在 AddedTokens 中的下标 + 1，0 为不是添加的 token */
    bool extra;    /* 不参与模型的匹配（添加的 token；GGUF 的控制、字节等 token） */
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
/* 同上，但文本重复时让它归后一个 id（Unigram 的词表允许重复）。 */
bool vocab_add_again(Vocab *v, const char *name, const char *text, size_t len, int64_t id, Err *e);
/* 返回: 模型词表中的 id，没有则 -1。 */
int32_t vocab_find_model(const Vocab *v, const char *text, size_t len);
/* 返回: id（含添加的 token），没有则 -1。 */
int32_t vocab_find(const Vocab *v, const char *text, size_t len);

typedef struct Merge {
    uint64_t pair; /* 左 id << 32 | 右 id；全 1 为空槽 */
    int32_t rank, product;
} Merge;

#define UNK_MISSING INT32_MAX /* 有 unk_token 而它不在词表中 */
typedef struct Bpe {
    Vocab *vocab;
    Merge *merges;
    size_t n_merges, n_slots; /* 条数；槽数（2 的幂） */
    int32_t alphabet[256];    /* 字节级字母表各字符的 id，没有则 -1 */
    int32_t fallback[256];    /* "<0xNN>" 的 id，没有则 -1 */
    int32_t ascii[128];       /* 单个 ASCII 字符的 id，没有则 -1 */
    int32_t unk_id;           /* -1 为没有：丢弃词表外的字符（与 HF 相同）；UNK_MISSING: 遇到时报错 */
    bool raw_bytes;           /* 片段是原始字节，按字节级字母表理解（末级为 ByteLevel） */
    bool byte_fallback, fuse_unk, ignore_merges;
    const char *prefix, *suffix; /* 非首字符的前缀、末字符的后缀 */
    size_t n_prefix, n_suffix;
} Bpe;
/* 词表就绪后：建各表，预留 n 条归并（不够时自动增长）。 */
bool bpe_init(Bpe *b, Vocab *v, size_t n_merges, Err *e);
/* 加入一条归并：左 id、右 id、次序、产物。 */
bool bpe_put_merge(Bpe *b, int32_t left, int32_t right, int32_t rank, int32_t product, Err *e);
/* 加入第 index 条归并（越早越优先）。错误: 左、右或产物不在词表中；一侧为空（循环）。 */
bool bpe_add_merge(Bpe *b, const char *name, size_t index, const char *left, size_t n_left,
                   const char *right, size_t n_right, Err *e);
/* 同上，text 为 "a b"。 */
bool bpe_add_merge_text(Bpe *b, const char *name, size_t index, const char *text, size_t len,
                        Err *e);

/* 返回: 左右相邻时的归并，没有则 NULL。 */
const Merge *bpe_find_merge(const Bpe *b, int32_t left, int32_t right);

typedef struct BpeWork BpeWork; /* 一次编码的缓冲 */
BpeWork *bpe_work_new(void);    /* 内存不足返回 NULL */
void bpe_work_free(BpeWork *w);
/* 把一个预切分片段变成 ids，追加到 out。 */
bool bpe_encode(const Bpe *b, BpeWork *w, const char *s, size_t n, TokenIds *out, Err *e);

/* ---- piece_trie：词表的字节字典树 ---- */
typedef struct PieceEdge {
    uint32_t from, to; /* 父结点；子结点（0 为空槽） */
    uint8_t byte;
} PieceEdge;
typedef struct PieceTrie {
    PieceEdge *edges; /* 开放寻址哈希 */
    size_t n_slots;   /* 2 的幂 */
    int32_t *ids;     /* 各结点的 token id，-1 为无；结点 0 为根 */
    size_t n_nodes;
} PieceTrie;
/* 收进词表中的模型 token（空文本的除外；文本重复的取 vocab_find 所得的 id）。 */
bool piece_trie_build(PieceTrie *t, const Vocab *v, Arena *a, Err *e);
/* 返回: 子结点，没有则 0。 */
uint32_t piece_trie_next(const PieceTrie *t, uint32_t node, uint8_t byte);

/* ---- unigram ---- */
typedef struct Unigram {
    const Vocab *vocab;
    PieceTrie trie;
    double *scores; /* 按 id */
    size_t n_scores;
    double unk_score;
    int32_t unk_id; /* -1 为没有 */
    bool byte_fallback;
    int32_t fallback[256];
} Unigram;
/* scores 就绪后建树、定 unk 的分数。 */
bool unigram_init(Unigram *u, const Vocab *v, Arena *a, Err *e);
typedef struct UnigramWork {
    void *nodes;
    size_t cap;
} UnigramWork;
bool unigram_encode(const Unigram *u, UnigramWork *w, const char *s, size_t n, TokenIds *out,
                    Err *e);

/* ---- wordpiece（含 wordlevel：整词查表） ---- */
typedef struct WordPiece {
    const Vocab *vocab;
    PieceTrie trie;
    int32_t unk_id;          /* -1 为词表中没有（遇到时报错） */
    uint32_t inner;          /* 非词首的起点：前缀所到的结点；前缀不在树中为 UINT32_MAX */
    uint32_t outer;          /* 词首的起点（GGUF 的 ▁；平常为根） */
    int64_t max_chars;
} WordPiece;
/* inner、outer: 非词首、词首的前缀。 */
bool wordpiece_init(WordPiece *w, const Vocab *v, Arena *a, const char *inner, size_t n_inner,
                    const char *outer, size_t n_outer, Err *e);
bool wordpiece_encode(const WordPiece *w, const char *s, size_t n, TokenIds *out, Err *e);
bool wordlevel_encode(const WordPiece *w, const char *s, size_t n, TokenIds *out, Err *e);

/* ---- piece_cache：片段 → ids 的缓存，属于一次编码，有上限 ---- */
typedef struct CacheSlot CacheSlot;
typedef struct PieceCache {
    CacheSlot *slots;
    size_t n_slots, n_cached;
    Str keys;
    TokenIds ids;
} PieceCache;
#define PIECE_CACHE_KEY 64 /* 只缓存不长于此的片段 */
/* 命中则把 ids 追加到 out。返回: 1 命中，0 没有，-1 内存不足。 */
int piece_cache_get(PieceCache *c, const char *s, size_t n, TokenIds *out, Err *e);
/* 存入 out 中从 from 起的 ids。 */
bool piece_cache_put(PieceCache *c, const char *s, size_t n, const TokenIds *out, size_t from,
                     Err *e);
void piece_cache_free(PieceCache *c);

/* ---- pretok：预切分 ---- */
typedef enum {
    SPLIT_ISOLATED,
    SPLIT_REMOVED,
    SPLIT_CONTIGUOUS,
    SPLIT_MERGED_PREVIOUS,
    SPLIT_MERGED_NEXT
} SplitBehavior;

typedef enum {
    PRETOK_SPLIT,     /* 按正则、字面或字符类切分 */
    PRETOK_PREFIX,    /* 每段前补空格（没有的话） */
    PRETOK_METASPACE, /* 空格换成替换字符，按规则在段首补一个 */
    PRETOK_BYTES,     /* 换成字节级字母表 */
    PRETOK_SCRIPTS,   /* 在脚本变换处切开 */
    PRETOK_FIXED      /* 每 n 个字符一段 */
} PretokKind;
typedef enum { META_FIRST, META_NEVER, META_ALWAYS } MetaScheme;
/* 字符的类别：0 为不匹配；同类的相邻字符在 runs 为真时合成一个匹配。 */
typedef int (*CharClass)(int32_t cp);

typedef struct PretokStage {
    PretokKind kind;
    Rx rx;
    CharClass class_of; /* 非 NULL: 按字符类，否则按 rx */
    bool runs, invert;
    SplitBehavior behavior;
    MetaScheme scheme;
    const char *text; /* 替换字符 */
    size_t len;       /* 替换字符的字节数；PRETOK_FIXED 的字符数 */
} PretokStage;

#define PRETOK_MAX 24
typedef struct Pretok {
    PretokStage stages[PRETOK_MAX];
    size_t n;
} Pretok;
extern const char PRETOK_GPT2[], PRETOK_LLAMA3[], PRETOK_QWEN2[];
/* 追加一级；级数过多返回 NULL 并置 e。 */
PretokStage *pretok_stage(Pretok *p, PretokKind kind, const char *where, Err *e);
/* 加一级正则切分。literal 为真时按字面匹配（pattern 须与 p 同寿命）；其余见 rx_open。 */
bool pretok_add(Pretok *p, const char *where, const char *pattern, size_t len, bool literal,
                SplitBehavior behavior, bool invert, Err *e);
/* 加一级按字符类的切分。 */
bool pretok_add_class(Pretok *p, const char *where, CharClass class_of, bool runs,
                      SplitBehavior behavior, bool invert, Err *e);
int class_digit(int32_t cp);  /* Rust 的 is_numeric */
int class_space(int32_t cp);  /* 空白 */
int class_punct(int32_t cp);  /* 标点 */
int class_word(int32_t cp);   /* 1 单词字符，0 空白，2 其余 */
void pretok_free(Pretok *p);
/* Oniguruma 正则 → PCRE2 正则（追加到 out）。 */
bool pretok_translate(const char *where, const char *pattern, size_t len, Str *out, Err *e);

typedef struct PretokWork PretokWork;
PretokWork *pretok_work_new(void);
void pretok_work_free(PretokWork *w);
/* 每得到一个片段就调用 emit；s 是合法 UTF-8。 */
typedef bool (*PretokEmit)(void *ctx, const char *s, size_t n, Err *e);
bool pretok_run(const Pretok *p, PretokWork *w, NormText text, PretokEmit emit, void *ctx, Err *e);

/* ---- added：在文本中先行匹配的 token ---- */
typedef struct AddedToken {
    const char *text; /* 原文 */
    uint32_t len;
    int32_t id;
    bool special, lstrip, rstrip, single_word, normalized;
    const char *shown; /* 解码时写出的文本：规范化后的（同 HF） */
    size_t n_shown;
    bool hidden;       /* 去掉特殊 token 时不写（shown 恰是某个特殊 token 的原文） */
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
/* 全部登记后定各 token 解码时的文本，建立匹配用的字典树。 */
bool added_build(AddedTokens *a, Arena *arena, const Vocab *v, const Normalizer *z, Err *e);

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
/* model.vocab 的对象（文本 → id）。 */
bool scan_vocab(Vocab *v, const char *name, const char *text, ScanSpan span, Err *e);
/* Unigram 的 model.vocab：[文本, 分数] 的数组，id 为序号。*scores 有 v->n_ids 项，归 v->arena。 */
bool scan_scored(Vocab *v, double **scores, const char *name, const char *text, ScanSpan span,
                 Err *e);
bool scan_merges(Bpe *b, const char *name, const char *text, ScanSpan span, Err *e);

/* ---- decoder ---- */
typedef enum {
    DECODE_BYTE_LEVEL, DECODE_WORDPIECE, DECODE_METASPACE, DECODE_BPE, DECODE_BYTE_FALLBACK,
    DECODE_FUSE, DECODE_STRIP, DECODE_REPLACE, DECODE_CTC
} DecodeKind;
typedef struct DecodeStep {
    DecodeKind kind;
    Rx rx;            /* 替换 */
    const char *text; /* 前缀、后缀、替换字符、去掉的字符、pad */
    size_t len;
    const char *extra; /* 替换成的内容、CTC 的词分隔 */
    size_t n_extra;
    int64_t start, stop; /* DECODE_STRIP 两端至多去几个 */
    bool flag;           /* cleanup；Metaspace 去掉开头的空格 */
} DecodeStep;
#define DECODE_MAX 16
typedef struct Decoder {
    DecodeStep steps[DECODE_MAX];
    size_t n;
    bool spaces; /* 没有 decoder：以空格相接 */
} Decoder;
DecodeStep *decoder_add(Decoder *d, DecodeKind kind, const char *where, Err *e);
void decoder_close(Decoder *d);
typedef struct TokenTexts { /* 一串文本，首尾相接 */
    Str text;
    size_t *ends; /* 各项的终点 */
    size_t n, cap;
} TokenTexts;
/* text 为刚写进 t->text 末尾的一项收尾。 */
bool token_texts_end(TokenTexts *t, Err *e);
void token_texts_free(TokenTexts *t);
/* 依次做各步，把结果（合法 UTF-8）追加到 out；t 的内容被用作缓冲。 */
bool decoder_run(const Decoder *d, TokenTexts *t, Str *out, Err *e);

/* ---- tokenizer ---- */
#define TEMPLATE_MAX 16
typedef struct TokenList {
    int32_t ids[TEMPLATE_MAX];
    size_t n;
} TokenList;

typedef enum { MODEL_BPE, MODEL_UNIGRAM, MODEL_WORDPIECE, MODEL_WORDLEVEL } ModelKind;

struct Tokenizer {
    Arena arena;
    Vocab vocab;
    ModelKind kind;
    Bpe bpe;
    Unigram unigram;
    WordPiece wordpiece;
    Normalizer normalizer;
    Pretok pretok;
    Decoder decoder;
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
bool tokenizer_load_decoder(Tokenizer *t, const char *name, const json_t *v, Err *e);
bool tokenizer_load_post(Tokenizer *t, const char *name, const json_t *v, Err *e);
/* model 一节：类型、词表、归并；vocab、merges 为两块数据在 text 中的位置。 */
bool tokenizer_load_model(Tokenizer *t, const char *name, const char *text, ScanSpan vocab,
                          ScanSpan merges, const json_t *model, Err *e);
/* 取字符串字段（可含 NUL），复制进 Arena。缺失时 *text 为 def（可为 NULL，此时报错）。 */
bool tokenizer_get_text(Tokenizer *t, const char *name, const json_t *v, const char *key,
                        const char *def, const char **text, size_t *len, Err *e);
/* 部件的 pattern 字段（Regex 或 String）→ rx。 */
bool tokenizer_get_pattern(Tokenizer *t, const char *name, const json_t *v, Rx *rx, Err *e);
/* Metaspace 的三个字段：替换字符、补在段首的规则。 */
bool tokenizer_get_metaspace(Tokenizer *t, const char *name, const json_t *v, const char **text,
                             size_t *len, MetaScheme *scheme, Err *e);
/* 部件对象的 type；缺失则置 e 并返回 NULL。Sequence 的元素数组；嵌套过深或不是数组则同。 */
const char *tokenizer_part_type(const char *name, const char *part, const json_t *v, Err *e);
const json_t *tokenizer_part_items(const char *name, const char *part, const char *key,
                                   const json_t *v, int depth, Err *e);
/* added_tokens 的一项（或 tokenizer_config.json 中的 AddedToken）→ token；name、where 用于错误消息。 */
bool tokenizer_read_added(AddedToken *token, const char *name, const json_t *v, Err *e);
/* 按 transformers 的规则应用 tokenizer_config.json：补特殊 token，定 bos、eos。 */
bool tokenizer_apply_config(Tokenizer *t, const char *name, const json_t *config, Err *e);
/* GGUF 的另外三种：词表与类型就绪后，由 scores 等装配模型、规范化与解码（tokenizer_spm.c）。 */
typedef enum { SPM_LLAMA, SPM_T5, SPM_BERT } SpmKind;
bool tokenizer_load_spm(Tokenizer *t, const char *name, const Gguf *g, SpmKind kind, Hash *h,
                        Err *e);
/* 新的空分词器（bos、eos 为 -1）。 */
Tokenizer *tokenizer_new(Err *e);
/* 登记添加的 token：文本已在词表则用其 id，否则取下一个 id（HF 的规则），写入 token->id。 */
bool tokenizer_add_token(Tokenizer *t, const char *name, AddedToken *token, Err *e);
/* 全部就绪后：末级的 ByteLevel 并入 BPE、建字典树、写 BOS 说明。 */
bool tokenizer_finish(Tokenizer *t, const char *name, Err *e);
#endif
