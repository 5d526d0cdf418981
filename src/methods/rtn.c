/* rtn — 就近取整（Round-To-Nearest）：权重（A）、权重与激活（B，W8A8）或键值缓存（C）
 * 每组由最大最小值定 scale 与 zero，逐元素就近取整后装包，无需校准。
 * 格点与 GPTQ 官方代码 quant.py 的 Quantizer.find_params 相同（op_qparams）；
 * zero_point: float 时零点为实数 −lo/scale，不取整。激活也量化时对称的格点是 max|w|/127，
 * 与 SmoothQuant 官方代码 fake_quant.py（不平滑）相同。
 * 轨道 C：键与值都按 token、沿通道成组取整（KIVI 论文表 1 的 per-token 对照），权重不动。 */
#include "methods/base.h"

typedef struct RtnOptions {
    WeightOptions weight;
    ActOptions act;
    KvOptions kv;
} RtnOptions;
static const Option OPTIONS[] = {WEIGHT_OPTIONS(RtnOptions, weight), ACT_OPTIONS(RtnOptions, act),
                                 KV_OPTIONS(RtnOptions, kv, 4), OPT_END};

static bool rtn_linear(QuantJob *job, Linear *l, Tensor w, const InputStats *st, Err *e) {
    (void)st;
    const RtnOptions *o = job_options(job);
    QSpec spec;
    return job_int8_spec(job, &o->weight, &o->act, l->cols, &spec, e) &&
           job_quantize_nearest(job, l, w, &spec, e) && job_set_act(l, &o->act, 0, 0, e);
}

static bool rtn_cache(QuantJob *job, Err *e) {
    const RtnOptions *o = job_options(job);
    KvSpec spec;
    return job_kv_spec(job, &o->kv, false, &spec, e) && job_set_kv(job, -1, &spec, e);
}

static bool rtn_check(const void *options, char track, Err *e) {
    const RtnOptions *o = options;
    if (track == 'C') return true;
    if (o->act.scheme == ACT_STATIC)
        return err_set(e, ERR_CONFIG,
                       "rtn 不用校准，没有静态的激活 scale；请用 smoothquant 并设 smoothquant.smooth=false");
    return check_weight_options(&o->weight, false, e) &&
           check_act_options(&o->weight, &o->act, e);
}

static bool rtn_quantize(QuantJob *job, Err *e) {
    if (job_track(job) == 'C') return rtn_cache(job, e);
    return quantize_each_linear(job, STAT_NONE, FLOW_QUANTIZED, rtn_linear, e);
}

PTQ_METHOD(rtn) = {.name = "rtn", .tracks = "ABC", .options = OPTIONS,
                   .options_size = sizeof(RtnOptions), .check = rtn_check,
                   .quantize = rtn_quantize};
