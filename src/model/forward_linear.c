/* forward_linear — 块里的线性层：共用输入的几层一起算，输入与输出按各层的设置量化 */
#include "model/forward_parts.h"

static bool same_act(const ActQuant *a, const ActQuant *b) {
    return a->kind == b->kind && a->bits == b->bits && a->scale == b->scale && a->form == b->form &&
           a->group == b->group && a->threshold == b->threshold;
}

/* 一段行的几个线性层，输入与输出按 l->act、l->out 量化。各层的 act 相同。out 的 w、bias 在这里填。 */
static void linear_rows(Model *m, const Linear *const *l, LinearOut *out, int n_out,
                        const LinearIn *in, int64_t n) {
    for (int i = 0; i < n_out; i++) out[i].w = &l[i]->q, out[i].bias = l[i]->bias;
    if (l[0]->act.kind == ACT_NONE)
        op_linear_from(m->backend, out, n_out, in, n);
    else if (l[0]->act.form == ACT_INT)
        op_linear_int8_from(m->backend, out, n_out, in, n, &l[0]->act);
    else
        op_linear_rounded_from(m->backend, out, n_out, in, n, &l[0]->act);
    for (int i = 0; i < n_out; i++)
        if (l[i]->out.kind != ACT_NONE)
            op_round_act(m->backend, tensor_f32(out[i].y, n, l[i]->rows), &l[i]->out);
}

/* 先把输入算出来。 */
static LinearIn plain_input(Model *m, const LinearIn *in, int64_t n, int64_t cols) {
    Tensor tmp = tensor_f32(in->tmp, n, cols), x = tensor_f32((float *)in->x, n, cols);
    Tensor up = tensor_f32((float *)in->up, n, cols);
    if (in->kind == IN_PLAIN) return *in;
    if (in->kind == IN_NORM)
        op_norm(m->backend, tmp, x, &in->norm);
    else
        op_activate(m->backend, tmp, x, in->up ? up : (Tensor){0}, in->f);
    return (LinearIn){.x = in->tmp};
}

/* 共用输入的几个线性层。整批一起算；「整个张量一个 s」的张量是一条时间线这次喂入的行，故逐段算。 */
void forward_linears(Model *m, const Linear *const *l, LinearOut *out, int n_out, const LinearIn *in,
                    int64_t n, const Workspace *w) {
    LinearIn plain;
    for (int first = 0, last; first < n_out; first = last) {
        for (last = first + 1; last < n_out && same_act(&l[first]->act, &l[last]->act);) last++;
        bool split = l[first]->act.kind == ACT_TENSOR && w->n_segments > 1;
        if (split || last - first < n_out) {
            plain = plain_input(m, in, n, l[0]->cols);
            in = &plain;
        }
        for (size_t i = 0; i < (split ? w->n_segments : 1); i++) {
            int64_t row0 = split ? w->segments[i].row0 : 0, rows = split ? w->segments[i].n : n;
            LinearOut part[LINEAR_OUT_MAX];
            LinearIn from = *in;
            from.x += row0 * l[0]->cols;
            for (int k = first; k < last; k++) {
                part[k] = out[k];
                part[k].y += row0 * l[k]->rows;
                if (out[k].sum) part[k].sum += row0 * l[k]->rows;
            }
            linear_rows(m, l + first, part + first, last - first, split ? &from : in, rows);
        }
    }
}

void forward_linear(Model *m, const Linear *l, float *y, const float *x, int64_t n,
                    const Workspace *w) {
    forward_linears(m, &l, &(LinearOut){.y = y}, 1, &(LinearIn){.x = x}, n, w);
}
