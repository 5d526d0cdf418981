/* adamw — AdamW 的实现 */
#include "compute/adamw.h"

#include <math.h>

bool adamw_new(AdamW *a, Arena *arena, int64_t n, double lr, Err *e) {
    *a = (AdamW){.n = n, .lr = lr, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8};
    a->param = ARENA_ARRAY(arena, float, n, e);
    a->grad = ARENA_ARRAY(arena, float, n, e);
    a->m = ARENA_ARRAY(arena, float, n, e);
    a->v = ARENA_ARRAY(arena, float, n, e);
    return a->param && a->grad && a->m && a->v;
}

void adamw_step(AdamW *a) {
    double t = (double)++a->step;
    float keep = (float)(1 - a->lr * a->weight_decay), rate1 = (float)(1 - a->beta1);
    float beta2 = (float)a->beta2, rate2 = (float)(1 - a->beta2), eps = (float)a->eps;
    float size = (float)(a->lr / (1 - pow(a->beta1, t)));
    float root = (float)sqrt(1 - pow(a->beta2, t));
    for (int64_t i = 0; i < a->n; i++) {
        float g = a->grad[i];
        a->m[i] += rate1 * (g - a->m[i]);
        a->v[i] = a->v[i] * beta2 + rate2 * (g * g);
        float denom = sqrtf(a->v[i]) / root + eps;
        a->param[i] = a->param[i] * keep - size * (a->m[i] / denom);
    }
}
