/* kvstore — 键值缓存的一份存放：一层、一侧（键或值）、一条时间线上的一段连续位置
 *
 * 四种形式：
 *   DENSE   逐元素原样，F32 或 F16，行 (heads·dim)
 *   TILES   逐元素舍入到 BF16，按注意力内核的操作数排好，解码时不必每步重排；只有 CPU 的 bf16 计算用（那里注意力的
 *           输入本来就舍入到 bf16，所以结果与 DENSE 的 F32 逐位相同）。[头][64 个位置一块]，块内：
 *           键（keys）[16 个位置][维度对][位置][2]，值 [位置对][维，补到 16 的倍数][2]
 *   AFFINE  x = min + scale·code；参数每「token × 通道组」一对，或（per_channel）每「token 组 × 通道」一对
 *   LUT     x = offset + range·values[code]；offset、range 逐通道固定（lower、upper 的中点与半距），或每 token 一对；
 *           sparse 时离群值按 CSR 原样另存
 * 编码按位面存：[token][头][16 通道一组][位 p] 一个 u16，第 c 位是该组第 c 个通道编码的第 p 位；所以任何位宽都没有浪费的位，
 * 逐 token 追加不必重排。头的维数不是 16 的倍数时各头补齐。
 * 参数的布局：AFFINE 逐 token [token][头][组][scale,min]；逐通道 [token 组][scale 全部通道, min 全部通道]（各头补齐）；
 *           LUT 逐 token [token][range,offset]。类型是 dtype（F32 或 F16）。
 * 量化前减去 bias，读时加回；前 sink 个位置与离群值存的是原值，读时盖过编码。 */
#ifndef PTQ_COMPUTE_KVSTORE_H
#define PTQ_COMPUTE_KVSTORE_H
#include "base/arena.h"
#include "base/dtype.h"

enum { KV_LANES = 16, KV_MAX_LUT_BITS = 4 };

typedef enum { KV_DENSE, KV_AFFINE, KV_LUT, KV_TILES } KvForm;

enum { KV_TILE_BLOCK = 64 /* TILES 一块的位置数 */ };

/* 存放的规格；其中的指针归调用者，须比 KvStore 长寿。 */
typedef struct KvFormat {
    KvForm form;
    DType dtype;         /* DENSE 的元素、其余的参数与原值（sink、离群值）：DT_F32 或 DT_F16；TILES 恒为 DT_BF16 */
    bool keys;           /* TILES：键的排法，否则是值的 */
    int bits;            /* AFFINE 1..8，LUT 1..4 */
    bool per_channel;    /* 参数沿 token 共用（每通道），否则沿通道共用（每 token） */
    int64_t group;       /* AFFINE：per_channel 时每组的 token 数，否则头内每组的通道数（>= dim 即整头） */
    bool sparse;         /* LUT：离群值另存 */
    double outliers;     /* LUT 且每 token：两端合计的离群比例，(0, 1) */
    const float *lut;    /* LUT：(2^bits)，递增；取最近的一项 */
    const float *values; /* LUT：(2^bits) 读出的值；NULL 即 lut（KVQuant 的 Q-Norm 才不同） */
    const float *lower, *upper; /* LUT 且 per_channel：(heads·dim) */
    const float *bias;   /* (heads·dim) 或 NULL */
    int64_t sink;        /* 开头原样保存的位置数 */
} KvFormat;

typedef struct KvStore {
    KvFormat f;
    int64_t heads, dim, vecs; /* vecs = ceil(dim/16) */
    int64_t n_groups;         /* AFFINE 逐 token：每头的组数 */
    int64_t capacity;         /* 行数上限 */
    int64_t first, length;    /* 有效的位置 [first, first+length)；量化形式 first 恒为 0 */
    void *data;               /* DENSE 的行，或编码（u16） */
    void *params, *sink_rows;
    uint32_t *row_end;        /* sparse：(capacity) 到此 token 为止的离群值个数 */
    uint16_t *columns;        /* (cap_outliers) 通道 */
    void *values;             /* (cap_outliers) */
    int64_t n_outliers;       /* 前 length 个 token 的离群值个数 */
    Allocator *memory;        /* columns、values 的来处 */
    int64_t cap_outliers;     /* columns、values 由 kvstore_reserve 增长，kvstore_close 归还 */
} KvStore;

/* n 个 token 所占的字节，逐项清点。 */
typedef struct KvBytes {
    size_t codes, params, outliers, dense; /* dense：原样存的部分（含 sink） */
} KvBytes;

/* 分配 capacity 行的空间（未填）。错误: 规格非法、内存不足。 */
bool kvstore_new(KvStore *s, Arena *a, const KvFormat *f, int64_t heads, int64_t dim,
                 int64_t capacity, Err *e);
/* 归还离群值的内存；其余归 Arena。可对清零的或半开的调用。 */
void kvstore_close(KvStore *s);
/* 把已有的 f32 行 (n, heads·dim) 看作位置 [first, first+n) 的 DENSE 存放，不复制。 */
KvStore kvstore_view(float *rows, int64_t heads, int64_t dim, int64_t first, int64_t n);
/* 保证能放 n 个离群值（旧的保留），供 CPU 的 op_kv_quantize。返回: 内存不足为 false。 */
bool kvstore_reserve(KvStore *s, int64_t n);
/* 前 n 个 token（DENSE 为 n 行；有离群值时 n 须是 length）的字节数。 */
KvBytes kvstore_bytes(const KvStore *s, int64_t n);
/* 一个元素的值：逐元素、慢而直白，供测试对照（内存须在主机）。pos 为绝对位置。 */
float kvstore_at(const KvStore *s, int64_t pos, int64_t head, int64_t d);

static inline size_t kvstore_item(const KvStore *s) {
    return s->f.dtype == DT_F32 ? 4 : 2;
}
/* TILES：一个头的一块的元素数；头 head、位置 pos 的第 d 维在 data（u16）中的下标。 */
static inline int64_t kvstore_tile_items(const KvStore *s) {
    return KV_TILE_BLOCK * (s->f.keys ? (s->dim + 1) / 2 * 2 : s->vecs * KV_LANES);
}
static inline int64_t kvstore_tile_block(const KvStore *s, int64_t head, int64_t pos) {
    int64_t blocks = (s->capacity + KV_TILE_BLOCK - 1) / KV_TILE_BLOCK;
    return (head * blocks + pos / KV_TILE_BLOCK) * kvstore_tile_items(s);
}
static inline int64_t kvstore_tile_index(const KvStore *s, int64_t head, int64_t pos, int64_t d) {
    int64_t at = kvstore_tile_block(s, head, pos), i = pos % KV_TILE_BLOCK;
    return s->f.keys ? at + ((i / 16 * ((s->dim + 1) / 2) + d / 2) * 16 + i % 16) * 2 + d % 2
                     : at + (i / 2 * s->vecs * KV_LANES + d) * 2 + i % 2;
}
/* 一个 token 的编码的 u16 个数。 */
static inline int64_t kvstore_code_words(const KvStore *s) {
    return s->heads * s->vecs * s->f.bits;
}
#endif
