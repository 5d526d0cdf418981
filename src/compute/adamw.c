/* adamw — AdamW 的实现 */
#include "compute/adamw.h"

#include <math.h>

#include "compute/ops.h"

bool adamw_new(AdamW *a, Arena *arena, int64_t n, double lr, Err *e) {
    *a = (AdamW){.n = n, .lr = lr, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8};
    a->param = ARENA_ARRAY(arena, float, n, e);
    a->grad = ARENA_ARRAY(arena, float, n, e);
    a->m = ARENA_ARRAY(arena, float, n, e);
    a->v = ARENA_ARRAY(arena, float, n, e);
    return a->param && a->grad && a->m && a->v;
}

void adamw_step(AdamW *a, Backend *b) {
    double n = (double)++a->step;
    AdamStep t = {.n = a->n, .param = a->param, .m = a->m, .v = a->v, .grad = a->grad,
                  .keep = (float)(1 - a->lr * a->weight_decay),
                  .rate1 = (float)(1 - a->beta1), .beta2 = (float)a->beta2,
                  .rate2 = (float)(1 - a->beta2), .eps = (float)a->eps,
                  .size = (float)(a->lr / (1 - pow(a->beta1, n))),
                  .root = (float)sqrt(1 - pow(a->beta2, n))};
    op_adamw(b, &t);
}
