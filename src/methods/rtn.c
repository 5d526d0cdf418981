/* rtn — 就近取整（Round-To-Nearest），只量化权重
 * 每组由最大最小值定 scale 与 zero，逐元素就近取整后装包，无需校准。
 * 格点与 GPTQ 官方代码 quant.py 的 Quantizer.find_params 相同（op_qparams）；
 * zero_point: float 时零点为实数 −lo/scale，不取整。 */
#include "methods/base.h"

typedef struct RtnOptions {
    WeightOptions weight;
} RtnOptions;
static const Option OPTIONS[] = {WEIGHT_OPTIONS(RtnOptions, weight), OPT_END};

static bool rtn_linear(QuantJob *job, Linear *l, Tensor w, const InputStats *st, Err *e) {
    (void)st;
    const RtnOptions *o = job_options(job);
    QSpec spec;
    return job_weight_spec(job, &o->weight, l->cols, &spec, e) &&
           job_quantize_nearest(job, l, w, &spec, e);
}

static bool rtn_quantize(QuantJob *job, Err *e) {
    return quantize_each_linear(job, STAT_NONE, FLOW_QUANTIZED, rtn_linear, e);
}

PTQ_METHOD(rtn) = {.name = "rtn", .tracks = "A", .options = OPTIONS,
                   .options_size = sizeof(RtnOptions), .quantize = rtn_quantize};
