/* base_options — 几个方法共同的选项：取值的名字、矛盾的检查、换成存放的规格 */
#include "methods/base.h"

#include "methods/job.h"

const char *const WEIGHT_GRANULARITY[] = {"per_group", "per_channel", "per_tensor", NULL};
const char *const WEIGHT_SCHEME[] = {"symmetric", "asymmetric", NULL};
const char *const WEIGHT_POINT[] = {"integer", "float", NULL};
const char *const WEIGHT_SCALE[] = {"float32", "float16", NULL};
const char *const WEIGHT_REMAINDER[] = {"smaller", "error", NULL};

enum { SYMMETRIC, ASYMMETRIC };          /* WEIGHT_SCHEME */
enum { INTEGER_POINT, FLOAT_POINT };     /* WEIGHT_POINT */

bool check_weight_options(const WeightOptions *o, bool integer_zero, Err *e) {
    if (o->group_size == 0)
        return err_set(e, ERR_CONFIG, "weight.group_size 不能为 0（-1 表示整行一组）");
    if (integer_zero && o->zero_point == FLOAT_POINT)
        return err_set(e, ERR_CONFIG, "这个方法的零点是整数，weight.zero_point 须为 integer");
    if (o->zero_point == FLOAT_POINT && o->scheme != ASYMMETRIC)
        return err_set(e, ERR_CONFIG, "weight.zero_point=float 只用于 weight.scheme=asymmetric");
    if (o->granularity == PER_TENSOR && o->scheme == ASYMMETRIC)
        return err_set(e, ERR_CONFIG, "weight.granularity=per_tensor 只用于 weight.scheme=symmetric");
    return true;
}

bool job_weight_spec(QuantJob *job, const WeightOptions *o, int64_t cols, QSpec *spec, Err *e) {
    *spec = (QSpec){.bits = (int)o->w_bits};
    spec->group_size = o->granularity == PER_GROUP ? o->group_size : -1;
    spec->grid = o->granularity == PER_TENSOR ? GRID_TENSOR : GRID_GPTQ;
    spec->zero = o->scheme == SYMMETRIC            ? ZERO_SYM
                 : o->zero_point == FLOAT_POINT ? ZERO_FLOAT
                                                : ZERO_INT;
    spec->scale_dtype = o->scale_dtype == 1 ? DT_F16 : DT_F32;
    int64_t g = spec->group_size, rest = g > 0 && g < cols ? cols % g : 0;
    if (rest && o->group_remainder == 1)
        return err_set(e, ERR_CONFIG, "组宽 %lld 不整除 %lld 列（weight.group_remainder=error）",
                       (long long)g, (long long)cols);
    if (rest)
        job_fallback(job, "组宽 %lld 不整除 %lld 列，每行末组取 %lld 列", (long long)g, (long long)cols,
                     (long long)rest);
    return true;
}

const char *const ACT_SCHEME[] = {"none", "per_token", "per_tensor", "static", NULL};

bool check_act_options(const WeightOptions *w, const ActOptions *a, Err *e) {
    if (a->scheme == ACT_NONE) return true;
    bool whole_rows = w->granularity != PER_GROUP || w->group_size < 0;
    if (w->w_bits != 8 || !whole_rows || w->zero_point == FLOAT_POINT)
        return err_set(e, ERR_CONFIG,
                       "量化激活（activation.scheme=%s）要求权重是 8 位、整行一组、整数零点：weight.w_bits=8，"
                       "weight.granularity=per_channel 或 per_tensor；现在是 w_bits=%lld、%s",
                       ACT_SCHEME[a->scheme], (long long)w->w_bits,
                       WEIGHT_GRANULARITY[w->granularity]);
    return true;
}

bool job_int8_spec(QuantJob *job, const WeightOptions *w, const ActOptions *a, int64_t cols,
                   QSpec *spec, Err *e) {
    if (a->scheme != ACT_NONE && a->bmm && !arch_require(&job->model->config, FEATURE_MLA, "activation.quantize_bmm_input ", e))
        return false;
    if (!job_weight_spec(job, w, cols, spec, e)) return false;
    if (a->scheme != ACT_NONE && spec->zero == ZERO_SYM && spec->grid == GRID_GPTQ)
        spec->grid = GRID_ABSMAX;
    return true;
}

bool job_set_act(Linear *l, const ActOptions *o, float in_max, float out_max, Err *e) {
    if (o->scheme == ACT_NONE) return true;
    if (o->scheme == ACT_TENSOR && l->group >= GROUP_EXPERTS)
        return err_set(e, ERR_UNSUPPORTED,
                       "%s: 专家的输入来自各条时间线，整个张量一个 scale 会使结果取决于批；请用 activation.scheme=per_token",
                       l->name);
    if (!linear_int8_accepts(&l->q))
        return err_set(e, ERR_NUMERIC, "有的组整组同号，零点超出编码的范围，不能做整数矩阵乘；"
                                       "请用 weight.scheme=symmetric");
    float top = (float)((1 << (o->a_bits - 1)) - 1);
    l->act = (ActQuant){.kind = (ActKind)o->scheme, .bits = (int)o->a_bits,
                        .scale = fmaxf(in_max, 1e-5f) / top};
    if (o->bmm && l->role <= ROLE_V) {
        l->out = l->act;
        l->out.scale = fmaxf(out_max, 1e-5f) / top;
    }
    return true;
}

const char *const KV_POSITION[] = {"auto", "pre_rope", "post_rope", NULL};
const char *const KV_SCALE[] = {"float16", "float32", NULL};

bool job_kv_spec(QuantJob *job, const KvOptions *o, bool keys_per_channel, KvSpec *spec, Err *e) {
    const ModelConfig *c = &job->model->config;
    *spec = (KvSpec){.residual = o->residual, .split_bias = true};
    bool biased = c->q_bias && c->qk_norm == QK_NONE;
    spec->pre_rope = o->key_position == 1 || (o->key_position == 0 && biased);
    spec->v = (KvFormat){.form = KV_AFFINE, .dtype = o->scale_dtype == 1 ? DT_F32 : DT_F16,
                         .bits = (int)o->v_bits, .group = o->group_size, .sink = o->sink};
    spec->k = spec->v;
    spec->k.bits = (int)o->k_bits;
    spec->k.per_channel = keys_per_channel;
    if (o->group_size > c->head_dim)
        job_fallback(job, "kv_cache.group_size %lld 大于头的维数 %lld，按 token 的组取整个头",
                     (long long)o->group_size, (long long)c->head_dim);
    if (o->key_position == 0 && biased)
        job_fallback(job, "k_proj 有偏置：键在 RoPE 之前量化，偏置另放（kv_cache.key_position=auto）");
    return kv_spec_check(job->model, 0, spec, e);
}
