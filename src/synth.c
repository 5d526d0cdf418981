/* synth — 权重的内容与写法
 * 正态数取自 65536 档的分位数表：一个 64 位随机数给四个元素，每种标准差先做成一张 16 位的表，查表就是结果。
 * 各线程各写各的一段（pwrite），各分片轮流，写得因而不挤在一个文件上；内存里只有每线程一小段。 */
#include "synth.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/log.h"
#include "base/rng.h"

enum {
    STEPS = 65536,  /* 分位数的档数 */
    CHUNK = 65536,  /* 一段的元素数 */
    ROUND = 512,    /* 这么多段看一次中断 */
    LANES = 4       /* 一个 64 位随机数给几个元素 */
};
static const uint64_t CHANNELS = UINT64_MAX, FACTORS = UINT64_MAX - 1, ROWS = (uint64_t)1 << 63; /* 流号 */
static const double ROW_GAIN = 8;

typedef struct Table {
    double std;
    uint16_t *bits; /* (STEPS) */
} Table;

typedef struct Chunk {
    uint32_t tensor, length;
    size_t first;
} Chunk;

typedef struct Synth {
    const SynthPlan *p;
    uint64_t seed;
    const char *out;
    Backend *b;
    Arena arena;
    float *normal;       /* (STEPS) N(0,1) 的分位数 */
    Table tables[16];
    size_t n_tables;
    const Table **table, **loud; /* (n) 各张量的表、放大的行的表 */
    int *fd;             /* (n_shards) */
    char **path;         /* (n_shards) */
    size_t *shard, *place; /* (n) 在哪一片、从文件的哪里起 */
    Chunk *chunks;
    size_t n_chunks, round; /* round：这一轮从第几段起 */
    atomic_int failed;   /* 第一个失败的 errno */
} Synth;

static uint16_t encode(DType t, float v) {
    return t == DT_BF16 ? f32_to_bf16(v) : f32_to_f16(v);
}

/* N(0,1) 在 (i+½)/STEPS 处的分位数：从中间往外，各以前一个为初值作牛顿迭代（凹的一侧，单调收敛）。 */
static void make_normal(float *out) {
    double x = 0;
    for (int i = STEPS / 2; i < STEPS; i++) {
        double p = (STEPS - i - 0.5) / STEPS, step = 1;
        for (int k = 0; k < 50 && step > 1e-12; k++) {
            step = (0.5 * erfc(x * M_SQRT1_2) - p) * sqrt(2 * M_PI) * exp(x * x / 2);
            x += step;
        }
        out[i] = (float)x;
        out[STEPS - 1 - i] = -(float)x;
    }
}

static const Table *get_table(Synth *s, double std, Err *e) {
    for (size_t i = 0; i < s->n_tables; i++)
        if (s->tables[i].std == std) return &s->tables[i];
    CHECK(s->n_tables < sizeof s->tables / sizeof *s->tables);
    Table *t = &s->tables[s->n_tables];
    *t = (Table){std, ARENA_ARRAY(&s->arena, uint16_t, STEPS, e)};
    if (!t->bits) return NULL;
    for (int i = 0; i < STEPS; i++) t->bits[i] = encode(s->p->dtype, (float)(std * (double)s->normal[i]));
    s->n_tables++;
    return t;
}

/* ---- 内容 ---- */

/* 张量 stream 的元素 [first, first+n)。 */
static void fill(uint16_t *out, const Table *t, uint64_t seed, uint64_t stream, size_t first, size_t n) {
    const uint16_t *bits = t->bits;
    size_t i = 0;
    while (i < n && (first + i) % LANES) {
        out[i] = bits[(uint16_t)(rng_u64(seed, stream, (first + i) / LANES) >> 16 * ((first + i) % LANES))];
        i++;
    }
    for (; i + LANES <= n; i += LANES) {
        uint64_t r = rng_u64(seed, stream, (first + i) / LANES);
        for (int k = 0; k < LANES; k++) out[i + (size_t)k] = bits[(uint16_t)(r >> 16 * k)];
    }
    for (; i < n; i++)
        out[i] = bits[(uint16_t)(rng_u64(seed, stream, (first + i) / LANES) >> 16 * ((first + i) % LANES))];
}

/* 第 i 个离群通道（全模型相同）所在的位置与倍数。 */
static size_t outlier_channel(const Synth *s, uint64_t i, double *factor) {
    *factor = 10 + 20 * rng_unit(s->seed, FACTORS, i);
    return (size_t)rng_below(s->seed, CHANNELS, i, (uint64_t)s->p->shape.hidden);
}

static void fill_vector(const Synth *s, size_t tensor, uint16_t *out, size_t first, size_t n) {
    const SynthFill *f = &s->p->fills[tensor];
    uint64_t outliers = f->outliers ? 2 + (uint64_t)s->p->shape.hidden / 1024 : 0;
    for (size_t i = 0; i < n; i++) {
        uint64_t r = rng_u64(s->seed, tensor, (first + i) / LANES) >> 16 * ((first + i) % LANES);
        double z = f->std * (double)s->normal[(uint16_t)r], v = f->mean != 0 ? f->mean * (1 + z) : z, factor;
        for (uint64_t k = 0; k < outliers; k++)
            if (outlier_channel(s, k, &factor) == first + i) v = f->mean * factor * (1 + z);
        out[i] = encode(s->p->dtype, (float)(v - f->minus));
    }
}

static void fill_matrix(const Synth *s, size_t tensor, uint16_t *out, size_t first, size_t n) {
    const FileTensor *t = &s->p->files[tensor];
    fill(out, s->table[tensor], s->seed, tensor, first, n);
    if (!s->loud[tensor]) return;
    size_t cols = (size_t)t->shape[1];
    for (uint64_t k = 0; k < 1 + (uint64_t)t->shape[0] / 2048; k++) {
        size_t from = (size_t)rng_below(s->seed, ROWS | tensor, k, (uint64_t)t->shape[0]) * cols, to = from + cols;
        if (from < first) from = first;
        if (to > first + n) to = first + n;
        if (from < to) fill(out + (from - first), s->loud[tensor], s->seed, tensor, from, to - from);
    }
}

/* 写满一段。返回: 0 或 errno。 */
static int write_at(int fd, const void *data, size_t len, size_t at) {
    const char *p = data;
    while (len) {
        ssize_t n = pwrite(fd, p, len, (off_t)at);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return n < 0 ? errno : EIO;
        p += n;
        at += (size_t)n;
        len -= (size_t)n;
    }
    return 0;
}

static void chunk_task(void *ctx, int64_t task) {
    Synth *s = ctx;
    uint16_t buf[CHUNK];
    if (atomic_load(&s->failed)) return;
    const Chunk *c = &s->chunks[s->round + (size_t)task];
    if (s->p->files[c->tensor].n_dims == 2)
        fill_matrix(s, c->tensor, buf, c->first, c->length);
    else
        fill_vector(s, c->tensor, buf, c->first, c->length);
    int err = write_at(s->fd[s->shard[c->tensor]], buf, c->length * sizeof *buf,
                       s->place[c->tensor] + c->first * sizeof *buf);
    if (err) atomic_store(&s->failed, err);
}

/* ---- 准备 ---- */

/* 每个张量的表、所在的分片与位置；打开各分片并写头。 */
static bool open_shards(Synth *s, Err *e) {
    const SynthPlan *p = s->p;
    size_t at = 0, shard = 0;
    for (size_t i = 0; i < p->n; i++) {
        bool first = i == 0 || p->files[i].path != p->files[i - 1].path;
        if (first) {
            FilePart head;
            shard += i != 0;
            if (!safetensors_header(p->files, p->n, p->files[i].path, &s->arena, &head, e)) return false;
            char *path = file_join(&s->arena, s->out, p->files[i].path, e);
            if (!path) return false;
            s->fd[shard] = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
            if (s->fd[shard] < 0) return err_set(e, ERR_IO, "无法建立 %s: %s", path, strerror(errno));
            s->path[shard] = path;
            int err = write_at(s->fd[shard], head.data, head.len, 0);
            if (err) return err_set(e, ERR_IO, "写入 %s 失败: %s", path, strerror(err));
            at = head.len;
        }
        s->shard[i] = shard;
        s->place[i] = at;
        at += p->files[i].bytes;
        if (p->files[i].n_dims != 2) continue;
        s->table[i] = get_table(s, p->fills[i].std, e);
        if (p->fills[i].outliers) s->loud[i] = get_table(s, p->fills[i].std * ROW_GAIN, e);
        if (!s->table[i] || (p->fills[i].outliers && !s->loud[i])) return false;
    }
    return true;
}

/* 全部张量切成段，各分片轮流。 */
static bool cut(Synth *s, Err *e) {
    const SynthPlan *p = s->p;
    size_t total = 0;
    for (size_t i = 0; i < p->n; i++) total += (p->files[i].bytes / 2 + CHUNK - 1) / CHUNK;
    s->chunks = ARENA_ARRAY(&s->arena, Chunk, total, e);
    size_t *next = ARENA_ARRAY(&s->arena, size_t, p->n_shards, e); /* 各分片写到哪个张量 */
    size_t *done = ARENA_ARRAY(&s->arena, size_t, p->n_shards, e); /* 与它的第几个元素 */
    if (!s->chunks || !next || !done) return false;
    for (size_t k = p->n; k-- > 0;) next[s->shard[k]] = k;
    while (s->n_chunks < total)
        for (size_t k = 0; k < p->n_shards; k++) {
            size_t t = next[k];
            if (t == p->n || s->shard[t] != k) continue;
            size_t left = p->files[t].bytes / 2 - done[k], n = left < CHUNK ? left : CHUNK;
            s->chunks[s->n_chunks++] = (Chunk){(uint32_t)t, (uint32_t)n, done[k]};
            done[k] += n;
            if (n == left) next[k]++, done[k] = 0;
        }
    return true;
}

static bool prepare(Synth *s, Err *e) {
    const SynthPlan *p = s->p;
    s->normal = ARENA_ARRAY(&s->arena, float, STEPS, e);
    s->table = ARENA_ARRAY(&s->arena, const Table *, p->n, e);
    s->loud = ARENA_ARRAY(&s->arena, const Table *, p->n, e);
    s->shard = ARENA_ARRAY(&s->arena, size_t, p->n, e);
    s->place = ARENA_ARRAY(&s->arena, size_t, p->n, e);
    s->fd = ARENA_ARRAY(&s->arena, int, p->n_shards, e);
    s->path = ARENA_ARRAY(&s->arena, char *, p->n_shards, e);
    if (!s->normal || !s->table || !s->loud || !s->shard || !s->place || !s->fd || !s->path) return false;
    make_normal(s->normal);
    return open_shards(s, e) && cut(s, e);
}

/* 文件夹不存在或为空，磁盘放得下。 */
static bool check_target(const SynthPlan *p, const char *out, bool *made, Err *e) {
    enum { SLACK = 1 << 20 };
    Arena a = {0};
    char **names, need[32], have[32];
    size_t n = 0;
    *made = !file_exists(out);
    if (!file_mkdirs(out, e)) return *made = false;
    bool ok = file_list(&a, out, "", &names, &n, e);
    arena_free(&a);
    if (ok && n) return err_set(e, ERR_USAGE, "%s: 文件夹不是空的，请换一个", out);
    struct statvfs fs;
    if (!ok || statvfs(out, &fs) != 0) return ok && err_set(e, ERR_IO, "%s: 查不到剩余空间: %s", out, strerror(errno));
    double room = (double)fs.f_bavail * (double)fs.f_frsize;
    if (room >= (double)p->bytes + SLACK) return true;
    return err_set(e, ERR_IO, "%s: 要 %s，磁盘只剩 %s；请换一个地方，或用 --layers 少写几层", out,
                   str_bytes(need, sizeof need, (double)p->bytes), str_bytes(have, sizeof have, room));
}

/* ---- 写 ---- */

static bool write_chunks(Synth *s, Err *e) {
    Progress bar = progress_start(LOG_LOAD, "造权重", "MB", (int64_t)(s->p->bytes / 1000000));
    size_t done = 0;
    bool ok = true;
    for (; ok && s->round < s->n_chunks; s->round += ROUND) {
        size_t n = s->n_chunks - s->round < ROUND ? s->n_chunks - s->round : ROUND;
        s->b->ops->parallel(s->b, (int64_t)n, chunk_task, s);
        for (size_t i = 0; i < n; i++) done += s->chunks[s->round + i].length;
        int err = atomic_load(&s->failed);
        if (err) ok = err_set(e, ERR_IO, "写入 %s 失败: %s", s->out, strerror(err));
        ok = ok && interrupt_check(e);
        progress_step(&bar, (int64_t)(done * 2 / 1000000));
    }
    progress_end(&bar);
    return ok;
}

/* 各分片落盘、关闭；不成则连同文件夹（是我们建的话）删去。 */
static bool close_shards(Synth *s, bool ok, Err *e) {
    for (size_t i = 0; s->path && i < s->p->n_shards && s->path[i]; i++) {
        if (ok && fsync(s->fd[i]) != 0 && errno != EINVAL)
            ok = err_set(e, ERR_IO, "写入 %s 失败: %s", s->path[i], strerror(errno));
        close(s->fd[i]);
    }
    return ok;
}

static void remove_all(const Synth *s, bool made) {
    static const char *const SIDE[] = {"tokenizer.json", "tokenizer_config.json", "generation_config.json",
                                       "model.safetensors.index.json", "config.json"};
    char path[4096];
    for (size_t i = 0; s->path && i < s->p->n_shards && s->path[i]; i++) unlink(s->path[i]);
    for (size_t i = 0; i < sizeof SIDE / sizeof *SIDE; i++) {
        snprintf(path, sizeof path, "%s/%s", s->out, SIDE[i]);
        unlink(path);
    }
    if (made) rmdir(s->out);
}

bool synth_write(const SynthPlan *p, uint64_t seed, const char *out, Backend *b, Err *e) {
    Synth s = {.p = p, .seed = seed, .out = out, .b = b};
    bool made;
    if (!check_target(p, out, &made, e)) {
        if (made) rmdir(out);
        return false;
    }
    bool ok = prepare(&s, e) && write_chunks(&s, e);
    ok = close_shards(&s, ok, e) && synth_write_json(p, out, e);
    if (!ok) remove_all(&s, made);
    arena_free(&s.arena);
    return ok;
}
