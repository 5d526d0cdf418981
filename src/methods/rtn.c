/* rtn — 就近取整（Round-To-Nearest），只量化权重
 * 每组由最大最小值定 scale 与 zero，逐元素就近取整后装包，无需校准。
 * 格点与 GPTQ 官方代码 quant.py 的 Quantizer.find_params 相同（op_qparams）；
 * zero_point: float 时零点为实数 −lo/scale，不取整。 */
#include "methods/base.h"

enum { SCHEME_SYMMETRIC, SCHEME_ASYMMETRIC };
enum { PER_GROUP, PER_CHANNEL };
enum { POINT_INTEGER, POINT_FLOAT };
enum { SCALE_F32, SCALE_F16 };
enum { REMAINDER_SMALLER, REMAINDER_ERROR };

typedef struct RtnOptions {
    int64_t w_bits, group_size;
    int granularity, scheme, zero_point, scale_dtype, group_remainder;
} RtnOptions;

static const char *const GRANULARITY[] = {"per_group", "per_channel", NULL};
static const char *const SCHEME[] = {"symmetric", "asymmetric", NULL};
static const char *const POINT[] = {"integer", "float", NULL};
static const char *const SCALE[] = {"float32", "float16", NULL};
static const char *const REMAINDER[] = {"smaller", "error", NULL};

static const Option OPTIONS[] = {
    OPT_INT(RtnOptions, w_bits, "weight.w_bits", 4, 2, 8, "权重位宽"),
    OPT_INT(RtnOptions, group_size, "weight.group_size", 128, -1, 65536,
            "每组的列数，-1 为整行一组；granularity 为 per_channel 时不用"),
    OPT_ENUM(RtnOptions, granularity, "weight.granularity", GRANULARITY, PER_GROUP,
             "scale 的粒度：每组或每输出通道"),
    OPT_ENUM(RtnOptions, scheme, "weight.scheme", SCHEME, SCHEME_SYMMETRIC, "对称或非对称"),
    OPT_ENUM(RtnOptions, zero_point, "weight.zero_point", POINT, POINT_INTEGER,
             "非对称时零点取整或为实数"),
    OPT_ENUM(RtnOptions, scale_dtype, "weight.scale_dtype", SCALE, SCALE_F32, "scale 的存放类型"),
    OPT_ENUM(RtnOptions, group_remainder, "weight.group_remainder", REMAINDER, REMAINDER_SMALLER,
             "组宽不整除行长时：末组较短，或报错"),
    OPT_END};

static bool rtn_spec(const RtnOptions *o, QSpec *spec, Err *e) {
    if (o->group_size == 0)
        return err_set(e, ERR_CONFIG, "weight.group_size 不能为 0（-1 表示整行一组）");
    if (o->zero_point == POINT_FLOAT && o->scheme == SCHEME_SYMMETRIC)
        return err_set(e, ERR_CONFIG, "weight.zero_point=float 只用于 weight.scheme=asymmetric");
    spec->bits = (int)o->w_bits;
    spec->group_size = o->granularity == PER_CHANNEL ? -1 : o->group_size;
    spec->zero = o->scheme == SCHEME_SYMMETRIC    ? ZERO_SYM
                 : o->zero_point == POINT_INTEGER ? ZERO_INT
                                                  : ZERO_FLOAT;
    spec->scale_dtype = o->scale_dtype == SCALE_F16 ? DT_F16 : DT_F32;
    return true;
}

/* 定 scale/zero → 就近取整装包 → 换上。 */
static bool rtn_linear(QuantJob *job, Linear *l, Tensor w, const InputStats *st, Err *e) {
    (void)st;
    const RtnOptions *o = job_options(job);
    QSpec spec;
    if (!rtn_spec(o, &spec, e)) return false;
    int64_t rest = spec.group_size > 0 && spec.group_size < l->cols ? l->cols % spec.group_size : 0;
    if (rest && o->group_remainder == REMAINDER_ERROR)
        return err_set(e, ERR_CONFIG, "组宽 %lld 不整除 %lld 列（weight.group_remainder=error）",
                       (long long)spec.group_size, (long long)l->cols);
    job_note_remainder(job, &spec, l->cols);

    QTensor q;
    if (!qtensor_new(&q, job_model_arena(job), spec, l->rows, l->cols, e)) return false;
    Tensor scale = tensor_f32(NULL, l->rows, q.n_groups), zero = scale;
    scale.data = ARENA_ARRAY(job_scratch(job), float, l->rows * q.n_groups, e);
    zero.data = ARENA_ARRAY(job_scratch(job), float, l->rows * q.n_groups, e);
    if (!scale.data || !zero.data) return false;
    op_qparams(job_backend(job), scale, zero, w, &q.spec);
    op_quantize(job_backend(job), &q, w, scale, zero);
    return backend_check(job_backend(job), e) && linear_set_quantized(l, &q);
}

static bool rtn_quantize(QuantJob *job, Err *e) {
    return quantize_each_linear(job, STAT_NONE, rtn_linear, e);
}

PTQ_METHOD(rtn) = {.name = "rtn", .tracks = "A", .options = OPTIONS,
                   .options_size = sizeof(RtnOptions), .quantize = rtn_quantize};
