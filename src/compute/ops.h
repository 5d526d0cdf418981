/* ops — 算子的唯一入口
 * 检查形状、类型、粘滞错误一次，然后派发到 Backend 的表。已有错误时一律不做事。
 * 形状不符是程序缺陷（CHECK），数值与设备错误进 Backend.err。 */
#ifndef PTQ_COMPUTE_OPS_H
#define PTQ_COMPUTE_OPS_H
#include "compute/backend.h"

/* 主机与后端内存之间的复制；op_copy 在后端内存之内，两段可以重叠。 */
void op_read(Backend *b, void *host, const void *src, size_t bytes);
void op_write(Backend *b, void *dst, const void *host, size_t bytes);
void op_copy(Backend *b, void *dst, const void *src, size_t bytes);
/* 矩形的复制：n 段、每段 bytes 字节，相邻两段在 dst 中相距 dst_step、在 src 中相距 src_step 字节。 */
/* dst(n) f32 = 主机内存里 n 个 t（F32、F16、BF16）类型的数，再舍入到 rounded（超出 f16 的成 Inf）。装载权重用。 */
void op_decode(Backend *b, float *dst, const void *host, DType t, DType rounded, int64_t n);
void op_copy_2d(Backend *b, void *dst, size_t dst_step, const void *src, size_t src_step, int64_t n,
                size_t bytes);
/* y(n,out) = x(n,in)·Wᵀ + bias。参数: bias 可为空张量（data==NULL）。 */
void op_linear(Backend *b, Tensor y, Tensor x, const QTensor *w, Tensor bias);
/* 共用输入 x(n,in) 的 n_out（<= LINEAR_OUT_MAX）个线性层（如 q、k、v）一次算完：逐 token 解码时省去各层之间的线程会合。
 * 各个的结果与单独调用 op_linear 逐位相同。 */
void op_linear_many(Backend *b, const LinearOut *out, int n_out, Tensor x);
/* 同上，输入由 in 定（见 LinearIn），n 行。 */
void op_linear_from(Backend *b, const LinearOut *out, int n_out, const LinearIn *in, int64_t n);
/* 激活也量化的线性层：x 先按 act 取整为 bits 位整数，再与整数权重相乘，累加是精确的 int32：
 *   s = max(max|x|, 1e-5)·(1/(2^(bits-1)−1))（同 SmoothQuant 的 fake_quant.py 在 GPU 上；TOKEN 每行一个，TENSOR 整个 x 一个，STATIC 用 act->scale）
 *   x_q = clamp(rint(x/s), −2^(bits-1), 2^(bits-1)−1)；y = (Σ (code−zero)·x_q)·(s_w·s) + bias
 * 结果与指令集、批大小（TENSOR 除外）、线程数无关，逐位相同；x 里有非有限值的行得 NaN。
 * 参数: w 须是 8 位、整行一组、零点为 SYM 或 INT 的量化矩阵，cols < 131072；bias 可为空张量；act->kind 不是 ACT_NONE。 */
void op_linear_int8(Backend *b, Tensor y, Tensor x, const QTensor *w, Tensor bias,
                    const ActQuant *act);
/* 同 op_linear_many；x 只取整一次，故各层的 act 须相同。 */
void op_linear_int8_many(Backend *b, const LinearOut *out, int n_out, Tensor x, const ActQuant *act);
void op_linear_int8_from(Backend *b, const LinearOut *out, int n_out, const LinearIn *in, int64_t n,
                         const ActQuant *act);
/* 激活取整后的值（见 op_round_act）照常与权重相乘，任何权重；形状同 op_linear_from。 */
void op_linear_rounded_from(Backend *b, const LinearOut *out, int n_out, const LinearIn *in, int64_t n,
                            const ActQuant *act);
/* 就地取整 x(n,d)（注意力两个 BMM 的输入、op_linear_rounded_from）：
 *   INT、VALUES: x = s·x_q，s 与 x_q 同 op_linear_int8
 *   F8: s = max|x|/448（为 0 时取 1；STATIC 用 act->scale），x = s·e4m3(clamp(x/s, ±448))，就近取偶（compressed-tensors、vLLM）
 *   MIXED: h = f16(x)；某行 |h| >= threshold 的列整列不动，其余 x = rint(h·(127/m))·(m/127)，m 是那一行小于 threshold 的
 *          |h| 的最大值（bitsandbytes 的 int8_vectorwise_quant）
 * act->group 非 0 时 d 须是它的倍数，每 group 列当作一行。有非有限值的行得 NaN（MIXED 的 Inf 是离群值）。 */
void op_round_act(Backend *b, Tensor x, const ActQuant *act);
/* op_linear_int8 能否用这个权重。 */
bool linear_int8_accepts(const QTensor *w);
void op_embed(Backend *b, Tensor y, const QTensor *table, const int32_t *ids);
void op_rmsnorm(Backend *b, Tensor y, Tensor x, Tensor weight, float eps);
/* 一般的归一化，见 NormSpec；x (n, d)。 */
void op_norm(Backend *b, Tensor y, Tensor x, const NormSpec *s);
void op_rope(Backend *b, Tensor x, Tensor cos_table, Tensor sin_table, int64_t first);
/* 同上，成对的是 2i 与 2i+1（GPT-J、GLM、Cohere、DeepSeek）。 */
void op_rope_pairs(Backend *b, Tensor x, Tensor cos_table, Tensor sin_table, int64_t first);
/* q(n,heads,dim) k,v(n_keys,kv_heads,dim) → out(n,heads,dim)。 */
void op_attention(Backend *b, Tensor out, Tensor q, Tensor k, Tensor v, const AttnSpec *s);
/* 同上，键值来自缓存的存放（见 AttnSide）：近的原样、远的量化，逐块展开。 */
void op_attention_kv(Backend *b, Tensor out, Tensor q, const AttnSide *k, const AttnSide *v,
                     const AttnSpec *s);
/* 逐 token 解码的注意力，见 StepJob。 */
void op_attend_step(Backend *b, const StepJob *job);
/* 预填的注意力，见 PrefillJob。 */
void op_attend_prefill(Backend *b, const PrefillJob *job);
/* job（只看 spec 与旋转）能否用 bf16 的 q、k、v、out 与 f16；rows 是这一批的总行数。 */
bool op_prefill_accepts(Backend *b, const PrefillJob *job, int64_t rows);
/* DENSE 的末尾添上 x(n, heads·dim)；容量须够。 */
void op_kv_write(Backend *b, KvStore *s, Tensor x);
/* DENSE：丢掉位置 before 之前的行，余下的挪到开头。 */
void op_kv_drop(Backend *b, KvStore *s, int64_t before);
/* 把 near 的位置 [pos, pos+n) 量化进 s：逐 token 的参数须从 s->length 接着来；逐通道的从组首来，末组可以不满，
 * 之后补齐了再量化一次。 */
void op_kv_quantize(Backend *b, KvStore *s, const KvStore *near, int64_t pos, int64_t n);
/* y = f(gate)·up；up 为空张量（data==NULL）时 y = f(gate)。 */
void op_activate(Backend *b, Tensor y, Tensor gate, Tensor up, Activation f);
void op_silu_mul(Backend *b, Tensor y, Tensor gate, Tensor up);
void op_add(Backend *b, Tensor y, Tensor x);
/* y = a·x；a 为 0 时恒得 0（不论 x 里有什么）。 */
void op_multiply(Backend *b, Tensor y, Tensor x, float a);
/* 混合专家：取出 dst 的第 i 行 = src 的第 index[i] 行；加回 dst 的第 index[i] 行 += weight[i]·src 的第 i 行（index 各不相同）。
 * index、weight 在主机。 */
void op_gather_rows(Backend *b, Tensor dst, Tensor src, const int32_t *index);
void op_scatter_rows(Backend *b, Tensor dst, Tensor src, const int32_t *index, const float *weight);
void op_score(Backend *b, const ScoreJob *job);
void op_pack_dense(Backend *b, QTensor *q, Tensor w);
/* 主机内存里行主序的 (rows,cols) 个 stored（F32、F16、BF16）类型的数直接装成面板（按 q->dense 舍入），与 op_decode 再
 * op_pack_dense 逐位相同而少走几趟内存。checked：已知都有限，不用再查。返回: 真为装好了；假为装好的有 NaN、Inf（q 里的不能用），
 * 或后端有错误。 */
bool op_pack_stored(Backend *b, QTensor *q, const void *host, DType stored, bool checked);
/* 每组的 scale 与 zero（RTN，亦 GPTQ 官方代码 quant.py 的 find_params）：
 *   asym: lo=min(0,min w), hi=max(0,max w)；lo==hi==0 时取 lo=-1, hi=1；scale=(hi-lo)/(2^b-1)，zero=round(-lo/scale)
 *   sym : m=max|w|（m==0 时取 1）；scale=2m/(2^b-1)，zero=2^(b-1)
 *   absmax: m=max|w|；scale=max(m,1e-5)·(1/(2^(b-1)−1))，zero=2^(b-1)；m 取一组的，或（GRID_TENSOR）整个矩阵的
 *   range: 同 asym 但 lo=min w, hi=max w；scale=max(hi-lo,1e-5)/(2^b-1)，zero 截到 [0,2^b-1]（AWQ）
 *   float: lo=min w, hi=max w；scale=(hi-lo)/(2^b-1)（为 0 时取 1；F16 时不小于 |lo|/65504），zero=-lo/scale（实数）
 * scale、zero 均为 (rows, n_groups) f32。spec->scale_dtype 为 F16 时 scale（与 float 零点）先舍入到 f16。 */
void op_qparams(Backend *b, Tensor scale, Tensor zero, Tensor w, const QSpec *spec);
/* code = clamp(rint(w/scale)+zero, 0, 2^b-1)；float 零点: clamp(rint(w/scale+zero), 0, 2^b-1)。
 * scale、zero 存进 q，取整用存下的值；两级统计须已存好（qtensor_set_stat_*），不取参数里的。 */
void op_quantize(Backend *b, QTensor *q, Tensor w, Tensor scale, Tensor zero);
void op_dequantize(Backend *b, Tensor w, const QTensor *q);
/* 同 op_linear，但恒为 f32、无偏置（方法的求解器用，不受 compute=bfloat16 影响）。 */
void op_linear_exact(Backend *b, Tensor y, Tensor x, const QTensor *w);
/* g(d,d) 的上三角 += x(n,d)ᵀ·x（GPTQ、SpQR 的 Hessian 累积；compute=bfloat16 时 x 先舍入到 bf16，即线性层实际看到的输入）；下三角的值不定，用前请对称化。 */
void op_gram(Backend *b, Tensor g, Tensor x);
/* g(d,d) 的下三角 = 上三角。 */
void op_symmetrize(Backend *b, Tensor g);
/* 逐列累积 |x| 的最大值（max，f32）与和（sum，双精度）；max、sum 在后端内存，可为 NULL。 */
void op_column_stats(Backend *b, float *max, double *sum, Tensor x);
/* y(cols) = Σ行 x。 */
void op_column_sum(Backend *b, Tensor y, Tensor x);
/* out[r] = Σ_c (x[r][c] − y[r·ldy+c])²；out 在主机。要整个矩阵的和时看作一行。 */
void op_row_errors(Backend *b, double *out, Tensor x, const float *y, int64_t ldy);
/* y[r][c] = x[r·ldx+c] / s[c mod s 的长度]；y 的行宽是 s 的长度的倍数。y 与 x 可以同址（ldx 为行宽）。 */
void op_divide(Backend *b, Tensor y, const float *x, int64_t ldx, Tensor s);
/* dst 的第 i 列 = src 的第 index[i] 列，为负则置 0；index 在主机。 */
void op_gather_columns(Backend *b, Tensor dst, Tensor src, const int32_t *index);
/* w[:, i2:] −= err·u[i1:i2, i2:]（GPTQ 算法 1 的外层更新），恒为 f32。w (rows,n)，err (rows, i2−i1)，u (n,n)。 */
void op_update_rest(Backend *b, Tensor w, Tensor err, Tensor u, int64_t i1, int64_t i2);
/* x 全部有限。已有错误时为真（由 backend_check 报出）。 */
bool op_all_finite(Backend *b, Tensor x);
/* 记下 x 是否全部有限，不等结果：见 BackendOps.watch。 */
void op_watch(Backend *b, Tensor x, int tag);
/* 取出并清除：不全有限的各次 op_watch 里最小的 tag，没有（或已有别的错误）为 -1。 */
int op_watched(Backend *b);
/* Hessian 的分解，见 FactorJob。返回: 正定且没有错误。 */
bool op_factor(Backend *b, const FactorJob *job);
/* 逐列取整与误差反馈，见 FeedbackJob。 */
void op_feedback(Backend *b, const FeedbackJob *job);
/* 一步 AdamW，见 AdamStep。 */
void op_adamw(Backend *b, const AdamStep *step);
/* d = scale·(x − y)。返回: Σ (x − y)²；出错为 NaN。 */
double op_mse_grad(Backend *b, Tensor d, Tensor x, Tensor y, float scale);
/* 反向与学习用的算子。d 开头的是损失对它的导数。
 * y(m,n) = a(m,k)·c(k,n)；transpose_a 时 y = aᵀ·c，a 为 (k,m)。线性层 y=x·Wᵀ 的 dx = dy·W，dW = dyᵀ·x。 */
void op_matmul(Backend *b, Tensor y, Tensor a, Tensor c, bool transpose_a);
/* y = x·r·weight，r = 1/sqrt(mean(x²)+eps)：dx = r·weight·dy − x·r³/d·Σ(weight·dy·x)；
 * dweight(d) = Σ行 dy·x·r（data 为 NULL 则不算）。 */
void op_rmsnorm_grad(Backend *b, Tensor dx, Tensor dweight, Tensor dy, Tensor x, Tensor weight,
                     float eps);
/* y = silu(gate)·up。dgate 可与 dy 或 gate 同址，dup 可与 up 同址。 */
void op_silu_mul_grad(Backend *b, Tensor dgate, Tensor dup, Tensor dy, Tensor gate, Tensor up);
/* op_attention（first 为 0）的反向；形状同 op_attention，n_keys == n。 */
void op_attention_grad(Backend *b, Tensor dq, Tensor dk, Tensor dv, Tensor d_out, Tensor q,
                       Tensor k, Tensor v, const AttnSpec *s);
/* op_round_act（每 token 一个 s）的直通估计：x̂ = s·rint(x/s)，rint 的导数取 1，s = max|x|/top 求导，故
 * dx = dx̂，另在 |x| 最大的一列加 ±Σ dx̂·(rint(x/s) − x/s)/top。d 就地由 dx̂ 变为 dx；x 是取整之前的。 */
void op_round_act_grad(Backend *b, Tensor d, Tensor x, const ActQuant *act);
void op_score_grad(Backend *b, const ScoreGradJob *job);
/* 每组（spec->group_size 列）的最小、最大值，均为 (rows, n_groups)。 */
void op_group_range(Backend *b, Tensor lo, Tensor hi, Tensor x, const QSpec *spec);
/* 它的反向：取到最小（大）值的元素 dx += d_lo（d_hi），并列时平分（torch 的 amin、amax）。 */
void op_group_range_grad(Backend *b, Tensor dx, Tensor x, Tensor lo, Tensor hi, Tensor d_lo,
                         Tensor d_hi, const QSpec *spec);
/* y[r][c] = x[r][c]·row[r]·col[c]；row 的 data 为 NULL 即全 1。 */
void op_scale(Backend *b, Tensor y, Tensor x, Tensor row, Tensor col);
/* d_row[r] = Σ_c dy·x·col[c]，d_col[c] = Σ_r dy·x·row[r] */
void op_scale_grad(Backend *b, Tensor d_row, Tensor d_col, Tensor dy, Tensor x, Tensor row,
                   Tensor col);
/* 量化再反量化：y = scale·(clamp(rint(x/scale)+zero, 0, 2^b−1) − zero)，zero 已是整数。 */
void op_fake_quant(Backend *b, Tensor y, Tensor x, Tensor scale, Tensor zero, const QSpec *spec);
/* 它的直通估计（OmniQuant quantizer.py 的 round_ste）：rint 的导数取 1，zero 不求导，钳位之外为 0：
 *   dx = 未钳位·dy（data 为 NULL 则不算），dscale = Σ组 dy·((code − zero) − 未钳位·x/scale)。 */
void op_fake_quant_grad(Backend *b, Tensor dx, Tensor dscale, Tensor dy, Tensor x, Tensor scale,
                        Tensor zero, const QSpec *spec);
/* 方法的内层循环（参数见 search.h）。
 * w[r][c] /= s[r]，s (行数)。 */
void op_divide_rows(Backend *b, Tensor w, Tensor s);
/* 返回: tr(d·G·dᵀ) = Σ (d·G)∘d，d (rows,cols)，G 是稠密 f32 的 (cols,cols)、对称；tmp 同 d 的形状，是暂存。恒为 f32，双精度相加；
 * CUDA 的 bf16 计算时乘数取 TF32（候选之间比较大小用）。出错为 NaN。 */
double op_quadratic(Backend *b, Tensor d, const QTensor *g, Tensor tmp);
void op_clip(Backend *b, const ClipJob *job);
void op_clamp_grid(Backend *b, const ClampJob *job);
/* 它的反向：scale 被截住的组为 0，zero 不求导；max|·| 的导数归绝对值大的一头。 */
void op_clamp_grid_grad(Backend *b, const ClampJob *job);
/* q（稠密）= pack(fake_quant(x))。y 同 x 的形状：CPU 上得到未舍入的 fake_quant(x)，CUDA 不写；只能作同一个 q 的 LinearGrad.dense。 */
void op_fake_pack(Backend *b, QTensor *q, Tensor y, Tensor x, Tensor scale, Tensor zero,
                  const QSpec *spec);
void op_sparse(Backend *b, const SparseJob *job);
void op_column_variance(Backend *b, double *var, Tensor x);
/* 同 qtensor_set_outliers，q、w、mask 与 a 都在后端内存；w 的那些位置另置 0。错误在 b->err：内存不足；缩放为 F16 而值超出 f16 的范围。 */
void op_split_outliers(Backend *b, QTensor *q, Arena *a, Tensor w, const uint8_t *mask);
/* 精度随 compute。 */
void op_linear_grad(Backend *b, const LinearGrad *job);
#endif
