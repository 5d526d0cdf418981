/* pool — 线程池
 * 一次 pool_run 是一「轮」：主线程写好任务、打开闸门，助手线程进门领取任务，任务用尽后主线程关门，
 * 等门内的助手都出来。不变式：gate 的最低位是「开着」，其余位是门内助手数；只有门内的线程读 fn/ctx，
 * 门关且无人时主线程才改它们。晚醒的助手见门已关便继续等，主线程不必等它醒来。
 * 等待先自旋约 50 微秒，再睡在条件变量上。助手屏蔽全部信号，信号总由主线程处理。 */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#include "compute/cpu/cpu.h"

enum { GATE_OPEN = 1, GATE_ONE = 2, SPIN_NS = 50000 };

/* pool_run_ranges 的一段：还没有被取走的从 next 起。 */
typedef struct Lane {
    _Alignas(64) atomic_llong next;
    int64_t end;
} Lane;

typedef struct Helper {
    struct CpuPool *pool;
    pthread_t id;
    int thread;
} Helper;

struct CpuPool {
    int n_helpers;
    void (*fn)(void *ctx, int64_t task, int thread);
    void *ctx;
    int64_t n_tasks;
    _Alignas(64) atomic_llong next;
    _Alignas(64) atomic_uint gate;
    atomic_uint round; /* 每轮加一 */
    atomic_bool stop;
    atomic_int sleepers;      /* 睡着的助手数 */
    atomic_bool main_sleeps;
    pthread_mutex_t lock;
    pthread_cond_t wake, done;
    Lane *lanes; /* 每线程一段 */
    Helper helpers[];
};

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void work(CpuPool *p, int thread) {
    int64_t task;
    while ((task = atomic_fetch_add(&p->next, 1)) < p->n_tasks) p->fn(p->ctx, task, thread);
}

/* 等到新的一轮（或停止）。 */
static void wait_round(CpuPool *p, unsigned seen) {
    int64_t end = now_ns() + SPIN_NS;
    do {
        for (int i = 0; i < 32; i++) {
            if (atomic_load(&p->round) != seen || atomic_load(&p->stop)) return;
            __builtin_ia32_pause();
        }
    } while (now_ns() < end);
    pthread_mutex_lock(&p->lock);
    atomic_fetch_add(&p->sleepers, 1);
    while (atomic_load(&p->round) == seen && !atomic_load(&p->stop))
        pthread_cond_wait(&p->wake, &p->lock);
    atomic_fetch_sub(&p->sleepers, 1);
    pthread_mutex_unlock(&p->lock);
}

static bool enter_gate(CpuPool *p) {
    unsigned g = atomic_load(&p->gate);
    while (g & GATE_OPEN)
        if (atomic_compare_exchange_weak(&p->gate, &g, g + GATE_ONE)) return true;
    return false;
}

static void leave_gate(CpuPool *p) {
    if (atomic_fetch_sub(&p->gate, GATE_ONE) != GATE_ONE) return; /* 门未关或还有别人 */
    if (!atomic_load(&p->main_sleeps)) return;
    pthread_mutex_lock(&p->lock);
    pthread_cond_signal(&p->done);
    pthread_mutex_unlock(&p->lock);
}

static void *helper_main(void *arg) {
    Helper *h = arg;
    CpuPool *p = h->pool;
    for (unsigned seen = 0;;) {
        wait_round(p, seen);
        if (atomic_load(&p->stop)) return NULL;
        seen = atomic_load(&p->round);
        if (!enter_gate(p)) continue;
        work(p, h->thread);
        leave_gate(p);
    }
}

/* 关门并等门内无人。 */
static void close_gate(CpuPool *p) {
    if (atomic_fetch_and(&p->gate, ~(unsigned)GATE_OPEN) == GATE_OPEN) return;
    int64_t end = now_ns() + SPIN_NS;
    do {
        for (int i = 0; i < 32; i++) {
            if (atomic_load(&p->gate) == 0) return;
            __builtin_ia32_pause();
        }
    } while (now_ns() < end);
    pthread_mutex_lock(&p->lock);
    atomic_store(&p->main_sleeps, true);
    while (atomic_load(&p->gate) != 0) pthread_cond_wait(&p->done, &p->lock);
    atomic_store(&p->main_sleeps, false);
    pthread_mutex_unlock(&p->lock);
}

void pool_run(CpuPool *p, int64_t n_tasks, void (*fn)(void *ctx, int64_t task, int thread),
              void *ctx) {
    if (p->n_helpers == 0 || n_tasks <= 1) {
        for (int64_t i = 0; i < n_tasks; i++) fn(ctx, i, 0);
        return;
    }
    p->fn = fn;
    p->ctx = ctx;
    p->n_tasks = n_tasks;
    atomic_store(&p->next, 0);
    atomic_store(&p->gate, GATE_OPEN);
    atomic_fetch_add(&p->round, 1);
    if (atomic_load(&p->sleepers) > 0) {
        pthread_mutex_lock(&p->lock);
        pthread_cond_broadcast(&p->wake);
        pthread_mutex_unlock(&p->lock);
    }
    work(p, 0);
    close_gate(p);
}

typedef struct RangeJob {
    CpuPool *pool;
    int64_t step;
    void (*fn)(void *ctx, int64_t first, int64_t last, int thread);
    void *ctx;
} RangeJob;

/* 从第 lane 段做起，依次帮其余各段。 */
static void range_task(void *ctx, int64_t lane, int thread) {
    const RangeJob *j = ctx;
    int n_lanes = j->pool->n_helpers + 1;
    for (int i = 0; i < n_lanes; i++) {
        Lane *l = &j->pool->lanes[(lane + i) % n_lanes];
        int64_t at;
        while (atomic_load(&l->next) < l->end && (at = atomic_fetch_add(&l->next, j->step)) < l->end)
            j->fn(j->ctx, at, at + j->step < l->end ? at + j->step : l->end, thread);
    }
}

void pool_run_ranges(CpuPool *p, int64_t n, int64_t step,
                     void (*fn)(void *ctx, int64_t first, int64_t last, int thread), void *ctx) {
    int n_lanes = p->n_helpers + 1;
    if (n_lanes == 1 || n <= step) {
        if (n > 0) fn(ctx, 0, n, 0);
        return;
    }
    for (int i = 0; i < n_lanes; i++) {
        atomic_store(&p->lanes[i].next, n * i / n_lanes);
        p->lanes[i].end = n * (i + 1) / n_lanes;
    }
    pool_run(p, n_lanes, range_task, &(RangeJob){p, step, fn, ctx});
}

CpuPool *pool_open(int n_threads) {
    int n = n_threads < 1 ? 0 : n_threads - 1;
    CpuPool *p = aligned_alloc(64, (sizeof *p + (size_t)n * sizeof(Helper) + 63) / 64 * 64);
    if (!p) return NULL;
    *p = (CpuPool){.lock = PTHREAD_MUTEX_INITIALIZER,
                   .wake = PTHREAD_COND_INITIALIZER,
                   .done = PTHREAD_COND_INITIALIZER};
    p->lanes = aligned_alloc(64, (size_t)(n + 1) * sizeof *p->lanes);
    if (!p->lanes) {
        free(p);
        return NULL;
    }
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old); /* 助手继承这个掩码 */
    for (int i = 0; i < n; i++) {
        p->helpers[i] = (Helper){.pool = p, .thread = i + 1};
        if (pthread_create(&p->helpers[i].id, NULL, helper_main, &p->helpers[i]) != 0) break;
        p->n_helpers++;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (p->n_helpers == n) return p;
    pool_close(p);
    return NULL;
}

void pool_close(CpuPool *p) {
    if (!p) return;
    pthread_mutex_lock(&p->lock);
    atomic_store(&p->stop, true);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
    for (int i = 0; i < p->n_helpers; i++) pthread_join(p->helpers[i].id, NULL);
    free(p->lanes);
    free(p);
}
