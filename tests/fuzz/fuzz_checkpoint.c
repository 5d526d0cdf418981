/* fuzz_checkpoint — 已量化的检查点的模糊测试
 * 输入是 quantization_config 的 JSON，接一个 NUL 与一个 safetensors 的内容；设置读得出来就按它解开模块 "m"（32×64）。
 * 解开成功的：编码在位宽之内、缩放都是有限的数、组数与组宽一致。 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "model/checkpoint.h"

enum { ROWS = 32, COLS = 64 };

static void check(const PackedModule *p) {
    int64_t n = ROWS * p->n_groups, size = p->spec.group_size;
    if (size < 1 || size > COLS || p->n_groups != (COLS - 1) / size + 1 || !p->code) abort();
    for (int64_t i = 0; i < ROWS * COLS; i++)
        if (p->code[i] >> p->spec.bits) abort();
    if (!p->scale == !p->scale_code) abort();
    for (int64_t i = 0; p->scale && i < n; i++)
        if (!isfinite(p->scale[i])) abort();
    for (int64_t i = 0; p->zero && i < n; i++)
        if (!isfinite(p->zero[i])) abort();
    if (p->scale_code && (!p->nested_table || !p->outer || p->nested.per < 1)) abort();
    for (int64_t i = 0; p->scale_code && i < n; i++) { /* 外层缩放够用 */
        volatile float v = p->outer[i / p->nested.per] * p->nested_table[p->scale_code[i]];
        (void)v;
    }
}

static void unpack(WeightStore *w, const CheckpointConfig *c) {
    static UnpackFn *const UNPACK[CKPT_KINDS] = {unpack_gptq, unpack_awq, unpack_compressed, unpack_bitsandbytes,
                                                 unpack_hqq};
    PackedSource s = {.w = w, .c = c, .module = "m", .rows = ROWS, .cols = COLS};
    PackedModule p = {0};
    Arena a = {0};
    Err e = {0};
    bool looked = UNPACK[c->kind](&s, &p, NULL, &e);
    if (!looked && e.code == ERR_NONE) abort();
    p = (PackedModule){0};
    e = (Err){0};
    bool ok = UNPACK[c->kind](&s, &p, &a, &e);
    if (ok && !looked) abort(); /* 只查张量的不会比真解的还严 */
    if (!ok && e.code == ERR_NONE) abort();
    if (ok) check(&p);
    arena_free(&a);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const uint8_t *nul = size ? memchr(data, 0, size) : NULL;
    Err e = {0};
    log_set_quiet(true);
    json_t *root = json_parse("fuzz", data, nul ? (size_t)(nul - data) : size, &e);
    CheckpointConfig c;
    TensorFile f = {0};
    if (root && checkpoint_parse(&c, root, "fuzz", &e) && nul &&
        safetensors_parse(&f, "fuzz", nul + 1, size - (size_t)(nul - data) - 1, &e)) {
        WeightStore w = {.path = "fuzz", .checkpoint = &c, .n_tensors = f.n_tensors};
        w.sorted = calloc(f.n_tensors + 1, sizeof *w.sorted);
        w.used = calloc(f.n_tensors + 1, sizeof *w.used);
        for (size_t i = 0; w.sorted && i < f.n_tensors; i++) w.sorted[i] = &f.tensors[i];
        if (w.sorted && w.used) unpack(&w, &c);
        free(w.sorted);
        free(w.used);
    } else if (e.code == ERR_NONE && nul) {
        abort();
    }
    tensorfile_close(&f);
    json_decref(root);
    return 0;
}
