/* cuda_ops — 逐元素、注意力、打分与反向的算子，含义见 backend.h */
#ifndef PTQ_COMPUTE_CUDA_OPS_H
#define PTQ_COMPUTE_CUDA_OPS_H
#include "compute/cuda/cuda.h"
void cuda_norm(Backend *, float *, const float *, const NormSpec *, int64_t, int64_t);
void cuda_rope(Backend *, float *, int64_t, int64_t, int64_t, int64_t, const float *, const float *, int64_t, bool);
void cuda_activate(Backend *, float *, const float *, const float *, int64_t, Activation);
void cuda_multiply(Backend *, float *, const float *, float, int64_t);
void cuda_gather_rows(Backend *, float *, const float *, const int32_t *, int64_t, int64_t);
void cuda_scatter_rows(Backend *, float *, const float *, const int32_t *, const float *, int64_t, int64_t);
void cuda_add(Backend *, float *, const float *, int64_t);
void cuda_attention(Backend *, float *, const float *, const AttnSide *, const AttnSide *, int64_t, const AttnSpec *);
void cuda_attend_step(Backend *, const StepJob *);
void cuda_attend_prefill(Backend *, const PrefillJob *);
bool cuda_prefill_accepts(Backend *, const PrefillJob *, int64_t);
void cuda_kv_write(Backend *, KvStore *, const float *, int64_t);
void cuda_kv_quantize(Backend *, KvStore *, const KvStore *, int64_t, int64_t);
void cuda_score(Backend *, const ScoreJob *);
void cuda_rmsnorm_grad(Backend *, float *, float *, const float *, const float *, const float *, int64_t, int64_t, float);
void cuda_silu_mul_grad(Backend *, float *, float *, const float *, const float *, const float *, int64_t);
void cuda_attention_grad(Backend *, float *, float *, float *, const float *, const float *, const float *, const float *,
                         int64_t, const AttnSpec *);
void cuda_round_act_grad(Backend *, float *, const float *, int64_t, int64_t, int);
void cuda_score_grad(Backend *, const ScoreGradJob *);
void cuda_group_range(Backend *, float *, float *, const float *, int64_t, int64_t, int64_t);
void cuda_group_range_grad(Backend *, float *, const float *, const float *, const float *, const float *, const float *,
                           int64_t, int64_t, int64_t);
void cuda_scale(Backend *, float *, const float *, const float *, const float *, int64_t, int64_t);
void cuda_scale_grad(Backend *, float *, float *, const float *, const float *, const float *, const float *, int64_t, int64_t);
void cuda_fake_quant(Backend *, float *, const float *, const float *, const float *, int64_t, int64_t, const QSpec *);
void cuda_fake_quant_grad(Backend *, float *, float *, const float *, const float *, const float *, const float *, int64_t,
                          int64_t, const QSpec *);
void cuda_divide_rows(Backend *, float *, const float *, int64_t, int64_t);
double cuda_quadratic(Backend *, const float *, const QTensor *, float *, int64_t, int64_t);
void cuda_clip(Backend *, const ClipJob *);
void cuda_clamp_grid(Backend *, const ClampJob *);
void cuda_clamp_grid_grad(Backend *, const ClampJob *);
void cuda_fake_pack(Backend *, QTensor *, float *, const float *, const float *, const float *, const QSpec *);
void cuda_linear_grad(Backend *, const LinearGrad *);
void cuda_sparse(Backend *, const SparseJob *);
void cuda_column_variance(Backend *, double *, const float *, int64_t, int64_t);
int64_t cuda_count_outliers(Backend *, uint32_t *, const uint8_t *, int64_t, int64_t);
bool cuda_split_outliers(Backend *, const QTensor *, float *, const uint8_t *);
#endif
