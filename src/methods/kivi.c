/* kivi — KIVI（Liu 等，arXiv 2402.02750）：键值缓存的非对称量化，无需校准
 * 键的离群值集中在少数通道，所以沿 token 成组、每通道一组参数；值没有这样的通道，每 token 沿通道成组（§3.2）。
 * 最近的 R 个 token 原样保留（§3.3、算法 1）：键攒满 R 个一起量化，所以位置 t 看到的键 j < R·⌊t/R⌋ 是量化的；
 * 值每来一个挤出最老的一个，所以 j < t−R 是量化的。scale = (max−min)/(2^b−1)，code = round((x−min)/scale)。
 * 官方代码 jy-yuan/KIVI 的键在 RoPE 之后量化；k_proj 有偏置的模型默认改在之前（见 kv_cache.key_position）。 */
#include "methods/base.h"

typedef struct KiviOptions {
    KvOptions kv;
} KiviOptions;
static const Option OPTIONS[] = {KV_OPTIONS(KiviOptions, kv, 2), OPT_END};

static bool kivi_quantize(QuantJob *job, Err *e) {
    const KiviOptions *o = job_options(job);
    KvSpec spec;
    return job_kv_spec(job, &o->kv, true, &spec, e) && job_set_kv(job, -1, &spec, e);
}

PTQ_METHOD(kivi) = {.name = "kivi", .tracks = "C", .options = OPTIONS,
                    .options_size = sizeof(KiviOptions), .quantize = kivi_quantize};
