/* retreat — 装不下时的退让
 * 事先按权重、一批的工作区、校准的隐藏状态估计；估不到的（驱动、别的进程、碎片）在分配失败时一步步退，阶段重做。
 * 批的大小只影响 cuBLAS 选哪个算法（末位的差，见 docs/gpu.md）；流式不改任何一位。 */
#include "retreat.h"

#include <string.h>

#include "base/log.h"
#include "io/file.h"
#include "pretrained.h"

enum { LEAST_ROWS = 512, DENSE_ROWS = 4096 /* 不量化的权重占得多；更大的一批不更快，量化的展开一次则摊给更多行 */ };

/* 装好的权重；方法量化权重时按量化后的。*dense 为权重不量化。 */
static bool measure(const Experiment *x, size_t *bytes, bool *dense, Err *e) {
    const Model *m = &x->model;
    QSpec spec;
    *dense = false;
    if (m->weights.checkpoint) { /* 已量化的：文件有多大 */
        *bytes = 0;
        for (size_t i = 0; i < m->weights.n_tensors; i++) *bytes += m->weights.sorted[i]->bytes;
        return true;
    }
    json_t *merged = config_merged_json(&x->config);
    bool quantized = x->config.track != 'C' && config_weight_spec(merged, &spec);
    json_decref(merged);
    *dense = !quantized;
    return model_measure_weights(m, quantized ? &spec : NULL, bytes, e);
}

/* 内存分开的后端：上限与余量。 */
static bool plan_separate(Experiment *x, Err *e) {
    Model *m = &x->model;
    Backend *b = &x->backend;
    const ModelConfig *c = &m->config;
    size_t wanted = x->config.run.max_memory_bytes, need;
    if (wanted && (!b->memory->limit || wanted < b->memory->limit)) b->memory->limit = wanted;
    size_t room = backend_room(b);
    bool dense;
    if (!backend_check(b, e) || !measure(x, &need, &dense, e)) return false;
    if (dense && b->batch_rows > DENSE_ROWS) b->batch_rows = DENSE_ROWS;
    x->full_rows = b->batch_rows;
    need += workspace_bytes(c, b->batch_rows);
    if (x->config.method->calibrated)
        need += (size_t)(x->config.calib.samples * x->config.calib.length * c->hidden) * sizeof(float);
    if (need <= room) return true;
    char a[32], d[32];
    m->stream = true;
    experiment_fall_back(x, "%s估计要 %s，能用的是 %s%s：线性层逐块传到 GPU，量化好的放在主机，校准的大数组放在锁页的主机内存",
                         b->memory->name ? b->memory->name : "内存", str_bytes(a, sizeof a, (double)need),
                         str_bytes(d, sizeof d, (double)room), wanted ? "（max_memory）" : "");
    return true;
}

/* CPU：全部权重都以稠密形式留在内存里、加上评测的工作区，超过 max_memory 就逐块载入未量化的线性层。 */
static bool plan_host(Experiment *x, Err *e) {
    enum { MARGIN = 100 << 20, ROWS = 2048 }; /* 程序、缓冲、文件映射 */
    Model *m = &x->model;
    size_t limit = x->config.run.max_memory_bytes, total;
    if (!limit) return true;
    if (!model_measure_weights(m, NULL, &total, e)) return false;
    total += MARGIN + workspace_bytes(&m->config, ROWS);
    if (total <= limit) return true;
    m->stream = true;
    const char *dir = arena_printf(&x->arena, e, "%s/processed", x->data_dir);
    if (!dir || !file_mkdirs(dir, e)) return false;
    m->spill = spill_allocator(dir);
    char need[32], have[32];
    experiment_fall_back(x, "估计要 %s，超过 max_memory 的 %s：未量化的线性层逐块载入，校准的大数组放在磁盘上",
                         str_bytes(need, sizeof need, (double)total), str_bytes(have, sizeof have, (double)limit));
    return true;
}

bool retreat_plan(Experiment *x, Err *e) {
    return x->backend.separate ? plan_separate(x, e) : plan_host(x, e);
}

/* 退一步：批减半；减到底再流式（批回到原来的大小），再减；最后不预取，只留一块的位置。 */
typedef enum { STEP_NONE, STEP_SMALLER, STEP_STREAM, STEP_SINGLE } Step;
static Step step_back(Experiment *x, Err *e) {
    Backend *b = &x->backend;
    long long rows = b->batch_rows, full = x->full_rows;
    Step step = rows / 2 >= LEAST_ROWS ? STEP_SMALLER : !x->model.stream ? STEP_STREAM
                : b->side && !x->model.no_prefetch ? STEP_SINGLE : STEP_NONE;
    if (step == STEP_NONE) {
        err_wrap(e, "批已减到 %lld 行、线性层已逐块传，仍然装不下", rows);
        return step;
    }
    if (step == STEP_SMALLER)
        experiment_fall_back(x, "%s：一批由 %lld 行减到 %lld 行，重做这一步", e->msg, rows, rows / 2);
    else if (step == STEP_STREAM)
        experiment_fall_back(x, "%s：线性层改为逐块传到 GPU（一批 %lld 行），重做这一步", e->msg, full);
    else
        experiment_fall_back(x, "%s：不再预取下一块，重做这一步", e->msg);
    if (step != STEP_SINGLE) b->batch_rows = step == STEP_SMALLER ? rows / 2 : full;
    *e = (Err){0};
    return step;
}

/* 分配失败之后的设备还好不好；坏了 *e 换成它的错误。 */
static bool recovered(Experiment *x, Err *e) {
    Backend *b = &x->backend;
    Err why = {0};
    if (e->code != ERR_MEMORY || !b->separate) return false;
    if (b->recover) b->recover(b);
    if (backend_check(b, &why)) return true;
    *e = why;
    return false;
}

bool retreat(Experiment *x, Err *e) {
    Step step = recovered(x, e) ? step_back(x, e) : STEP_NONE;
    if (step == STEP_SINGLE) model_stop_prefetch(&x->model);
    return step == STEP_STREAM ? model_start_stream(&x->model, e) : step != STEP_NONE;
}

bool retreat_reload(Experiment *x, Err *e) {
    Step step = recovered(x, e) ? step_back(x, e) : STEP_NONE;
    if (step == STEP_STREAM) x->model.stream = true;
    if (step == STEP_SINGLE) model_stop_prefetch(&x->model);
    return step != STEP_NONE && model_reset(&x->model, e);
}
