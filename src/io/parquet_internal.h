/* parquet_internal — parquet 各部分之间的契约（只供 src/io/parquet*.c 包含）
 * 文件尾（parquet_meta）→ 模式树（parquet_schema）→ 每列的页（parquet_page）→ 值（parquet_values、parquet_delta、
 * parquet_convert）→ 拼成行（parquet.c）。列里的值一开始就做成 json_t，字典里的共用一份。 */
#ifndef PTQ_IO_PARQUET_INTERNAL_H
#define PTQ_IO_PARQUET_INTERNAL_H
#include <stdint.h>

#include "io/parquet.h"

enum { PQ_MAX_LEVEL = 30 }; /* 嵌套的上限 */

typedef enum {
    PQ_BOOLEAN, PQ_INT32, PQ_INT64, PQ_INT96, PQ_FLOAT, PQ_DOUBLE, PQ_BYTE_ARRAY, PQ_FIXED
} PqType;
typedef enum { PQ_REQUIRED, PQ_OPTIONAL, PQ_REPEATED } PqRepetition;
/* 值怎样读成 JSON。 */
typedef enum { PQ_AS_IS, PQ_UNSIGNED, PQ_DATE, PQ_TIMESTAMP, PQ_HALF, PQ_OTHER } PqMeaning;
typedef enum { PQ_LEAF, PQ_STRUCT, PQ_LIST } PqKind;

/* 模式中的一个元素，按文件里的次序（先序）。 */
typedef struct PqElement {
    const char *name;
    int type, type_length, repetition, converted; /* 没有为 -1 */
    int64_t n_children;
    PqMeaning meaning;
    int64_t per_second; /* 时刻的单位 */
    bool list, map, utc;
} PqElement;

/* 模式树的一个结点。LIST 的 child[0] 是元素；列表与它的「repeated」层合成一个结点。 */
typedef struct PqNode PqNode;
struct PqNode {
    const char *name;
    PqKind kind;
    int def;      /* 定义级不小于它才不是 null */
    int full;     /* LIST：定义级不小于它才有元素 */
    int rep;      /* LIST：重复级等于它是同一个列表的下一个元素 */
    int leaf;     /* 其下第一个叶的序号 */
    int n_leaves; /* 其下叶的个数 */
    PqNode **child;
    size_t n_children;
};

typedef struct PqLeaf {
    const char *path; /* 点分的名字，供消息 */
    PqType type;
    size_t width; /* 定长类型的字节数 */
    PqMeaning meaning;
    int64_t per_second;
    bool utc;
    int max_def, max_rep;
} PqLeaf;

/* 一个行组中的一列。 */
typedef struct PqChunk {
    int type, codec; /* codec 是文件里的编号 */
    int64_t n_values, bytes, data_at, dict_at; /* dict_at 没有为 -1 */
    bool elsewhere; /* 数据在别的文件里 */
} PqChunk;
typedef struct PqGroup {
    int64_t n_rows;
    PqChunk *chunks;
    size_t n_chunks;
} PqGroup;

typedef struct Pq {
    const char *where;
    const uint8_t *data;
    size_t size; /* 文件尾之前 */
    size_t left; /* 还可用多少内存 */
    Arena arena; /* 元数据 */
    PqElement *elements;
    size_t n_elements;
    PqGroup *groups;
    size_t n_groups;
    int64_t n_rows;
    PqNode *root;
    PqLeaf *leaves;
    size_t n_leaves;
} Pq;

/* 记下要用 n 个 each 字节。错误: 超过上限。 */
bool pq_take(Pq *q, uint64_t n, size_t each, Err *e);

/* 读文件尾：模式与行组。 */
bool pq_read_meta(Pq *q, const uint8_t *footer, size_t n, Err *e);
/* 由 elements 建模式树与叶。 */
bool pq_build_schema(Pq *q, Err *e);

/* 一列解出的内容：每项一个重复级与定义级；values 只有非空的。 */
typedef struct PqColumn {
    uint8_t *reps, *defs;
    json_t **values;
    size_t n, n_values;       /* 项数、非空值数 */
    size_t cap, cap_values;
    size_t at, at_value;      /* 拼行时的位置 */
    json_t **dict;
    size_t n_dict;
} PqColumn;
/* 解出 chunk 的全部页。 */
bool pq_read_column(Pq *q, const PqLeaf *leaf, const PqChunk *chunk, PqColumn *c, Err *e);
void pq_column_free(PqColumn *c);

/* ---- 值 ---- */
typedef struct PqSlice {
    const uint8_t *p, *end;
} PqSlice;
/* 一个定长值或一段字节 → JSON。 */
json_t *pq_convert(Pq *q, const PqLeaf *leaf, const uint8_t *p, size_t n, Err *e);
/* 按 encoding 从 in 解 n 个值，放进 out[0..n)；失败时已放的 *done 个由调用者归还。 */
bool pq_values(Pq *q, const PqLeaf *leaf, int encoding, PqSlice in, const PqColumn *c, json_t **out,
               size_t n, size_t *done, Err *e);
/* RLE 与位打包混合的 n 个无符号整数，宽 width 位（≤ 32）。坏了为假。 */
bool pq_hybrid(PqSlice *in, int width, uint32_t *out, size_t n);
/* DELTA_BINARY_PACKED：恰好 n 个整数。坏了为假。 */
bool pq_delta(PqSlice *in, int64_t *out, size_t n);
#endif
