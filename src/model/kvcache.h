/* kvcache — 键值缓存：近的原样、远的真量化，注意力直接读它
 * 每层两侧各有近（DENSE）、远（编码）两份，恰好分掉全部位置：一段 token 进来时先写进近的，再把最后一个查询要读的
 * 远的部分量化，会话里量化过的随后从近的丢掉。查询 t 的界由 AttnSide 定，与怎样分段喂入无关，所以一次算完整个窗口
 * 与逐 token 解码逐位相同。
 * pre_rope：近、远存的都是 RoPE 之前的键，读出时才旋转；split_bias：量化前减去 k_proj 的偏置，读时加回。 */
#ifndef PTQ_MODEL_KVCACHE_H
#define PTQ_MODEL_KVCACHE_H
#include "compute/backend.h"

typedef struct Model Model;

/* 评测时哪些位置算量化的：DECODE 同逐 token 解码；ALL 每个位置都量化，连同当前的（KVQuant 的模拟；参数逐通道的键
 * 按整组量化，因此看得见同组里后面的 token，只有 DECODE 才与解码严格相同）；
 * PREFILL_FP 从位置 0 起的一段看到的都是原样的键值（KIVI 官方的一次性预填）。 */
typedef enum { KV_MODE_DECODE, KV_MODE_ALL, KV_MODE_PREFILL_FP } KvMode;

/* 一层的量化设置。k、v 的 form 为 KV_DENSE 则该侧不量化。 */
typedef struct KvSpec {
    KvFormat k, v;    /* bias 不填（由 split_bias 定） */
    int64_t residual; /* 近的位置数；AFFINE 逐通道时须是组宽的倍数且不为 0 */
    bool pre_rope, split_bias;
} KvSpec;

typedef struct KvLayer {
    KvStore k_near, v_near, k_far, v_far;
} KvLayer;

/* 检查一层的设置；第 0 层之后的须与第 0 层同样的布局。 */
bool kv_spec_check(const Model *m, int64_t layer, const KvSpec *spec, Err *e);
/* 打开一层：至多 capacity 个位置，一次至多添 max_rows 个。 */
bool kv_layer_open(KvLayer *kv, Arena *a, const Model *m, int64_t layer, int64_t capacity,
                   int64_t max_rows, Err *e);
void kv_layer_close(KvLayer *kv);
/* 清空，并改用于第 layer 层（各层布局相同）。 */
void kv_layer_reset(KvLayer *kv, const Model *m, int64_t layer);
/* 添上位置 [first, first+n) 的 k、v (n, kv_heads·dim)，k 在 pre_rope 时须是旋转之前的。错误在 Backend.err。 */
void kv_layer_append(Model *m, int64_t layer, KvLayer *kv, const float *k, const float *v,
                     int64_t first, int64_t n);
/* 给位置从 first 起的一段查询的注意力用的两侧。 */
void kv_layer_sides(const Model *m, int64_t layer, const KvLayer *kv, int64_t first, AttnSide *k,
                    AttnSide *v);
/* 这一层存了 n 个位置时的字节数（会话里真正要留的：远的编码，与不在其中的近的行）。 */
KvBytes kv_layer_bytes(const Model *m, const KvLayer *kv, int64_t n);
/* 未量化的键值实际的存放类型（CPU 的 bf16 计算里 F32 存成注意力反正要舍入到的 BF16）。 */
DType kv_near_dtype(const Model *m);
/* 该层的键是否存 RoPE 之前的。 */
bool kv_pre_rope(const Model *m, int64_t layer);
#endif
