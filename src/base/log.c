/* log — 控制台日志与进度的实现
 * 一行一次 write，避免多线程交错；进度行在打印日志前先清除。 */
#include "base/log.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/str.h"

static bool quiet;
static bool progress_on_screen;

static const struct {
    const char *emoji, *color;
} KINDS[] = {{"📋", "36"}, {"📦", "34"}, {"⚡", "35"}, {"📊", "36"},
             {"✅", "32"}, {"❌", "31"}, {"⚠️", "33"},  {"⏱️", "90"}};

static bool on_terminal(void) {
    static int known = -1;
    if (known < 0) {
        const char *term = getenv("TERM");
        known = isatty(STDERR_FILENO) && term && strcmp(term, "dumb") != 0;
    }
    return known;
}

static bool use_color(void) {
    const char *no = getenv("NO_COLOR");
    return on_terminal() && !(no && *no);
}

void log_set_quiet(bool q) {
    quiet = q;
}

static void emit(const Str *s) {
    if (s->failed || !s->data) return;
    size_t done = 0;
    while (done < s->len) {
        ssize_t n = write(STDERR_FILENO, s->data + done, s->len - done);
        if (n <= 0) return;
        done += (size_t)n;
    }
}

static void begin_line(Str *s, LogKind kind) {
    if (use_color())
        str_addf(s, "%s \033[%sm", KINDS[kind].emoji, KINDS[kind].color);
    else
        str_addf(s, "%s ", KINDS[kind].emoji);
}

void log_line(LogKind kind, const char *fmt, ...) {
    if (quiet && kind != LOG_WARN && kind != LOG_FAIL) return;
    va_list ap;
    va_start(ap, fmt);
    char *text = NULL;
    int n = vasprintf(&text, fmt, ap);
    va_end(ap);
    if (n < 0) return;
    str_clean(text);
    Str out = {0};
    if (progress_on_screen) {
        str_add(&out, "\r\033[K");
        progress_on_screen = false;
    }
    for (char *line = text, *next; line; line = next) {
        next = strchr(line, '\n');
        if (next) *next++ = '\0';
        if (!*line && !next && line != text) break;
        begin_line(&out, kind);
        str_add(&out, line);
        str_add(&out, use_color() ? "\033[0m\n" : "\n");
    }
    emit(&out);
    str_free(&out);
    free(text);
}

double clock_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

Progress progress_start(LogKind kind, const char *what, const char *unit, int64_t total) {
    return (Progress){.kind = kind, .what = what, .unit = unit, .total = total,
                      .started = clock_seconds(), .last_draw = -1};
}

static void draw(Progress *p, double now, bool newline) {
    double took = now - p->started, rate = took > 0 ? (double)p->done / took : 0;
    Str out = {0};
    if (!newline) str_add(&out, "\r\033[K");
    begin_line(&out, p->kind);
    str_addf(&out, "%s %lld", p->what, (long long)p->done);
    if (p->total > 0)
        str_addf(&out, "/%lld（%.0f %%）", (long long)p->total,
                 100.0 * (double)p->done / (double)p->total);
    str_addf(&out, " · %.*f %s/秒", rate < 10 ? 2 : 0, rate, p->unit);
    if (p->total > 0 && rate > 0) {
        char left[48];
        str_addf(&out, " · 剩余 %s",
                 str_seconds(left, sizeof left, (double)(p->total - p->done) / rate));
    }
    if (use_color()) str_add(&out, "\033[0m");
    if (newline) str_add(&out, "\n");
    emit(&out);
    str_free(&out);
    progress_on_screen = !newline;
    p->drawn = true;
}

void progress_step(Progress *p, int64_t done) {
    p->done = done;
    if (quiet) return;
    double now = clock_seconds();
    if (on_terminal()) {
        if (now - p->last_draw < 0.1) return;
        p->last_draw = now;
        draw(p, now, false);
    } else if (p->total > 0 && now - p->started > 2) {
        int tenth = (int)(10 * done / p->total);
        if (tenth > p->last_tenth && done < p->total) draw(p, now, true);
        p->last_tenth = tenth;
    }
}

double progress_end(Progress *p) {
    if (progress_on_screen) {
        Str out = {0};
        str_add(&out, "\r\033[K");
        emit(&out);
        str_free(&out);
        progress_on_screen = false;
    }
    return clock_seconds() - p->started;
}

static volatile sig_atomic_t interrupted;

static void on_signal(int sig) {
    if (interrupted) {
        signal(sig, SIG_DFL);
        raise(sig);
    }
    interrupted = 1;
}

void interrupt_install(void) {
    struct sigaction sa;
    memset(&sa, 0, sizeof sa);
    sa.sa_handler = on_signal;
    sigemptyset(&sa.sa_mask);
    sigaction(SIGINT, &sa, NULL);
    sigaction(SIGTERM, &sa, NULL);
    signal(SIGXFSZ, SIG_IGN); /* 超过文件大小限制时由 write 报错，不被杀掉 */
}

bool interrupt_requested(void) {
    return interrupted != 0;
}

bool interrupt_check(Err *e) {
    return interrupted ? err_set(e, ERR_INTERRUPTED, "已按用户要求中断（Ctrl-C）") : true;
}
