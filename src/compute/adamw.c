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

enum { CHUNK = 2048 };

/* 一步中各参数共用的系数。 */
typedef struct StepTask {
    const AdamW *a;
    float keep, rate1, beta2, rate2, eps, size, root;
} StepTask;

static void step_chunk(void *ctx, int64_t task) {
    const StepTask *t = ctx;
    const AdamW *a = t->a;
    int64_t end = (task + 1) * CHUNK < a->n ? (task + 1) * CHUNK : a->n;
    for (int64_t i = task * CHUNK; i < end; i++) {
        float g = a->grad[i];
        a->m[i] += t->rate1 * (g - a->m[i]);
        a->v[i] = a->v[i] * t->beta2 + t->rate2 * (g * g);
        float denom = sqrtf(a->v[i]) / t->root + t->eps;
        a->param[i] = a->param[i] * t->keep - t->size * (a->m[i] / denom);
    }
}

void adamw_step(AdamW *a, Backend *b) {
    double n = (double)++a->step;
    StepTask t = {.a = a, .keep = (float)(1 - a->lr * a->weight_decay),
                  .rate1 = (float)(1 - a->beta1), .beta2 = (float)a->beta2,
                  .rate2 = (float)(1 - a->beta2), .eps = (float)a->eps,
                  .size = (float)(a->lr / (1 - pow(a->beta1, n))),
                  .root = (float)sqrt(1 - pow(a->beta2, n))};
    b->ops->parallel(b, (a->n + CHUNK - 1) / CHUNK, step_chunk, &t);
}
