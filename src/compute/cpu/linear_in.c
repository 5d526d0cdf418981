/* linear_in — 线性层的入口：先由 LinearIn 算出输入，结果要加上去的先算到暂存
 * CPU 上这与分开调用各算子逐位相同。 */
#include <string.h>

#include "compute/cpu/cpu.h"

const float *cpu_input(Backend *b, const LinearIn *in, int64_t n, int64_t cols) {
    if (in->kind == IN_PLAIN) return in->x;
    if (in->kind == IN_NORM)
        cpu_norm(b, in->tmp, in->x, &in->norm, n, cols);
    else
        cpu_activate(b, in->tmp, in->x, in->up, n * cols, in->f);
    return in->tmp;
}

/* 各输出真正写到哪里。 */
static void targets(LinearOut *to, const LinearOut *out, int n_out) {
    for (int i = 0; i < n_out; i++) {
        CHECK(!out[i].half); /* 见 cpu_prefill_accepts */
        to[i] = out[i];
        if (out[i].sum) to[i].y = out[i].sum;
    }
}

static void add_sums(Backend *b, const LinearOut *out, int n_out, int64_t n) {
    for (int i = 0; i < n_out; i++)
        if (out[i].sum) cpu_add(b, out[i].y, out[i].sum, n * out[i].w->rows);
}

void cpu_linear_from(Backend *b, const LinearOut *out, int n_out, const LinearIn *in, int64_t n) {
    LinearOut to[LINEAR_OUT_MAX];
    const float *x = cpu_input(b, in, n, out[0].w->cols);
    targets(to, out, n_out);
    cpu_linear(b, to, n_out, x, n);
    add_sums(b, out, n_out, n);
}

void cpu_linear_int8_from(Backend *b, const LinearOut *out, int n_out, const LinearIn *in, int64_t n,
                          const ActQuant *act) {
    LinearOut to[LINEAR_OUT_MAX];
    const float *x = cpu_input(b, in, n, out[0].w->cols);
    targets(to, out, n_out);
    cpu_linear_int8(b, to, n_out, x, n, act);
    add_sums(b, out, n_out, n);
}

/* 输入先复制一份再取整：in->x 可能还有别人要读。 */
void cpu_linear_rounded(Backend *b, const LinearOut *out, int n_out, const LinearIn *in, int64_t n,
                        const ActQuant *act) {
    LinearOut to[LINEAR_OUT_MAX];
    int64_t cols = out[0].w->cols, width = act->group ? act->group : cols;
    float *x = cpu_slot(b, 2 * b->n_threads + 2, (size_t)(n * cols) * sizeof *x);
    if (!x) return;
    memcpy(x, cpu_input(b, in, n, cols), (size_t)(n * cols) * sizeof *x);
    cpu_round_act(b, x, n * (cols / width), width, act);
    targets(to, out, n_out);
    cpu_linear(b, to, n_out, x, n);
    add_sums(b, out, n_out, n);
}
