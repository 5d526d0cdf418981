/* plot — 排行榜的图
 * 画布、边距、坐标范围都由这里定死，于是每个点的像素位置已知，标签就能在画之前逐个挑一处不压点、不压字的地方。
 * 一切文字用单引号送进 gnuplot（双引号会解释反斜杠与反引号）。 */
#include "plot.h"

#include <ctype.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.h"
#include "io/file.h"

/* 画布（像素）与绘图区 */
enum { WIDTH = 960, HEIGHT = 600, LEFT = 98, RIGHT = 28, TOP = 84, BOTTOM = 72, MAX_POINTS = 64 };
enum { FONT = 14, LABEL_FONT = 12, LABEL_H = 17 }; /* LABEL_FONT 是磅，约合 17 像素高 */

typedef struct Point {
    double x, y;     /* 数据坐标 */
    double px, py;   /* 像素，原点在左下 */
    char label[64];
    int color;
    bool baseline;
    double lx, ly;   /* 标签左下角的像素 */
    double w;        /* 标签宽 */
} Point;

typedef struct Axis {
    double lo, hi;
    bool log;
} Axis;

typedef struct Chart {
    Point points[MAX_POINTS];
    size_t n;
    size_t front[MAX_POINTS]; /* 前沿上的点，从左到右 */
    size_t n_front;
    Axis x, y;
    const char *methods[MAX_POINTS]; /* 出现过的方法，次序即配色 */
    size_t n_methods;
} Chart;

static const char *const COLORS[] = {"#1b1b1b", "#2f6db5", "#d1495b", "#2a9d6f", "#e08e1b",
                                     "#7b5ea7", "#00a0b0", "#8c564b", "#b8488f", "#6b8e23"};
enum { N_COLORS = sizeof COLORS / sizeof *COLORS };

/* ---------- 收集与坐标 ---------- */

static int method_color(Chart *c, const char *method) {
    for (size_t i = 0; i < c->n_methods; i++)
        if (strcmp(c->methods[i], method) == 0) return (int)i;
    c->methods[c->n_methods] = method;
    return (int)c->n_methods++;
}

static void collect(Chart *c, const Board *b, bool memory) {
    for (size_t pass = 0; pass < 2; pass++) /* 基线在先，取第一种颜色 */
        for (size_t i = 0; i < b->n_rows && c->n < MAX_POINTS; i++) {
            const BoardRow *r = &b->rows[i];
            bool baseline = strcmp(r->method, "fp16") == 0;
            double x = memory ? r->weights_mb : r->bits_linear;
            if (baseline != (pass == 0) || !(x > 0) || !(r->ppl > 0) || !isfinite(r->ppl)) continue;
            if (c->n_methods == 0 && !baseline) method_color(c, "fp16");
            Point *p = &c->points[c->n++];
            *p = (Point){.x = x, .y = r->ppl, .color = method_color(c, r->method),
                         .baseline = baseline};
            snprintf(p->label, sizeof p->label, "%s%s%s", r->method, baseline ? "" : " ",
                     baseline ? "" : r->settings);
        }
}

/* 两端各留 pad（占全长的比例）；跨度大时用对数轴。 */
static Axis fit(double lo, double hi, double log_ratio, double pad) {
    Axis a = {lo, hi, hi / lo >= log_ratio};
    if (a.log) {
        double span = log(hi / lo);
        a.lo = lo * exp(-pad * span);
        a.hi = hi * exp(pad * span);
    } else {
        double span = hi > lo ? hi - lo : fabs(lo) * 0.1;
        a.lo = lo - pad * span;
        a.hi = hi + pad * span;
        if (a.lo <= 0) a.lo = lo * 0.5;
    }
    return a;
}

static double place(const Axis *a, double v) {
    return a->log ? log(v / a->lo) / log(a->hi / a->lo) : (v - a->lo) / (a->hi - a->lo);
}

static void layout(Chart *c) {
    double x0 = c->points[0].x, x1 = x0, y0 = c->points[0].y, y1 = y0;
    for (size_t i = 1; i < c->n; i++) {
        x0 = fmin(x0, c->points[i].x), x1 = fmax(x1, c->points[i].x);
        y0 = fmin(y0, c->points[i].y), y1 = fmax(y1, c->points[i].y);
    }
    c->x = fit(x0, x1, 2, 0.10);
    c->y = fit(y0, y1, 2, 0.10);
    for (size_t i = 0; i < c->n; i++) {
        Point *p = &c->points[i];
        p->px = LEFT + place(&c->x, p->x) * (WIDTH - LEFT - RIGHT);
        p->py = BOTTOM + place(&c->y, p->y) * (HEIGHT - TOP - BOTTOM);
        p->w = (double)str_width(p->label) * LABEL_FONT * 0.70;
    }
}

/* 帕累托前沿：从左到右，PPL 每次都更低的点。 */
static void find_frontier(Chart *c) {
    size_t order[MAX_POINTS];
    for (size_t i = 0; i < c->n; i++) {
        size_t j = i;
        for (; j > 0; j--) {
            const Point *p = &c->points[order[j - 1]], *q = &c->points[i];
            if (p->x < q->x || (p->x == q->x && p->y <= q->y)) break;
            order[j] = order[j - 1];
        }
        order[j] = i;
    }
    double best = INFINITY;
    for (size_t i = 0; i < c->n; i++)
        if (c->points[order[i]].y < best) {
            best = c->points[order[i]].y;
            c->front[c->n_front++] = order[i];
        }
}

/* ---------- 标签 ---------- */

/* 前沿折线与基线横线穿过框 (x,y,w,h) 的长度（像素，近似）。 */
static double crossing(const Chart *c, double x, double y, double w, double h) {
    enum { STEPS = 200 };
    double bad = 0;
    for (size_t i = 0; i + 1 < c->n_front; i++) {
        const Point *p = &c->points[c->front[i]], *q = &c->points[c->front[i + 1]];
        double step = hypot(q->px - p->px, q->py - p->py) / STEPS;
        for (int k = 0; k <= STEPS; k++) {
            double px = p->px + (q->px - p->px) * k / STEPS, py = p->py + (q->py - p->py) * k / STEPS;
            if (px > x && px < x + w && py > y && py < y + h) bad += step;
        }
    }
    if (c->points[0].baseline && c->points[0].py > y && c->points[0].py < y + h) bad += w;
    return bad;
}

/* 放在 (lx,ly) 时与已放好的标签、与各点、与边界的冲突面积。 */
static double clash(const Chart *c, size_t placed, const Point *me, double lx, double ly) {
    const double h = LABEL_H;
    double bad = 0;
    for (size_t i = 0; i < c->n; i++) {
        const Point *p = &c->points[i];
        double dx = fmin(lx + me->w, p->px + 7) - fmax(lx, p->px - 7);
        double dy = fmin(ly + h, p->py + 7) - fmax(ly, p->py - 7);
        if (dx > 0 && dy > 0) bad += dx * dy;
        if (i >= placed) continue;
        dx = fmin(lx + me->w + 4, p->lx + p->w) - fmax(lx - 4, p->lx);
        dy = fmin(ly + h, p->ly + h) - fmax(ly, p->ly);
        if (dx > 0 && dy > 0) bad += 2 * dx * dy;
    }
    double out = fmax(0, lx + me->w - (WIDTH - RIGHT)) + fmax(0, LEFT + 4 - lx) +
                 fmax(0, BOTTOM + 4 - ly) + fmax(0, ly + h - (HEIGHT - TOP));
    return bad + 2 * crossing(c, lx, ly, me->w, h) + 50 * out;
}

/* 依次试右、左、上、下及更远处，取冲突最小者（先来的优先）。 */
static void place_labels(Chart *c) {
    const double h = LABEL_H;
    for (size_t i = 0; i < c->n; i++) {
        Point *p = &c->points[i];
        double best = INFINITY;
        for (int ring = 0; ring < 5 && best > 0; ring++) {
            double d = 11 + 13 * ring, w = p->w;
            const double at[][2] = {{p->px + d, p->py - h / 2},
                                    {p->px - d - w, p->py - h / 2},
                                    {p->px - w / 2, p->py + d},
                                    {p->px - w / 2, p->py - d - h},
                                    {p->px + d, p->py + d * 0.7},
                                    {p->px + d, p->py - d * 0.7 - h},
                                    {p->px - d - w, p->py + d * 0.7},
                                    {p->px - d - w, p->py - d * 0.7 - h}};
            for (size_t k = 0; k < sizeof at / sizeof *at; k++) {
                double bad = clash(c, i, p, at[k][0], at[k][1]) + 0.01 * ring;
                if (bad < best - 1e-9) best = bad, p->lx = at[k][0], p->ly = at[k][1];
            }
            if (best < 0.1) break;
        }
    }
}

/* ---------- 脚本 ---------- */

static void quoted(Str *out, const char *text) {
    str_add(out, "'");
    for (; *text; text++) {
        if (*text == '\'')
            str_add(out, "''");
        else
            str_addn(out, (unsigned char)*text < 0x20 ? " " : text, 1);
    }
    str_add(out, "'");
}

/* 对数轴上自己给刻度：1、1.5、2、3、5、7 乘 10 的幂；位宽轴给常见位宽。 */
static void add_ticks(Str *out, const char *axis, const Axis *a, bool bits) {
    static const double BITS[] = {1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32};
    static const double STEPS[] = {1, 1.5, 2, 3, 4, 5, 7};
    if (!a->log) return;
    const char *sep = "";
    str_addf(out, "set %stics (", axis);
    if (bits) {
        for (size_t i = 0; i < sizeof BITS / sizeof *BITS; i++)
            if (BITS[i] >= a->lo && BITS[i] <= a->hi)
                str_addf(out, "%s'%g' %g", sep, BITS[i], BITS[i]), sep = ", ";
    } else {
        bool wide = a->hi / a->lo > 50; /* 跨度太大时只留 1、2、5 */
        for (int ten = (int)floor(log10(a->lo)); ten <= (int)ceil(log10(a->hi)); ten++)
            for (size_t i = 0; i < sizeof STEPS / sizeof *STEPS; i++) {
                double v = STEPS[i] * pow(10, ten);
                if (v < a->lo || v > a->hi || (wide && STEPS[i] != 1 && STEPS[i] != 2 && STEPS[i] != 5))
                    continue;
                str_addf(out, "%s'%.10g' %.10g", sep, v, v), sep = ", ";
            }
    }
    str_add(out, ")\n");
}

static void add_axis(Str *out, const char *axis, const Axis *a, bool bits) {
    str_addf(out, "set %srange [%.10g:%.10g]\n", axis, a->lo, a->hi);
    if (a->log) str_addf(out, "set logscale %s\n", axis);
    add_ticks(out, axis, a, bits);
}

static void add_frontier(Str *out, const Chart *c) {
    str_add(out, "$front << EOD\n");
    for (size_t i = 0; i < c->n_front; i++)
        str_addf(out, "%.10g %.10g\n", c->points[c->front[i]].x, c->points[c->front[i]].y);
    str_add(out, "EOD\n");
}

static void add_titles(Str *out, const Board *b, bool memory, bool chinese) {
    Str title = {0}, sub = {0};
    const char *what = memory ? (chinese ? "困惑度与权重占用" : "Perplexity vs. weight memory")
                              : (chinese ? "困惑度与位宽" : "Perplexity vs. bit width");
    str_addf(&title, "%s · %s", b->model, what);
    str_addf(&sub, "Track %c · %s · %s · ", b->track, b->dataset, b->protocol);
    str_addf(&sub, chinese ? "%lld 窗口" : "%lld windows", (long long)b->n_windows);
    if (b->n_windows < b->n_windows_total)
        str_addf(&sub, chinese ? "（共 %lld）" : " of %lld", (long long)b->n_windows_total);
    str_addf(&sub, chinese ? " · 计算 %s" : " · compute %s", b->compute);
    str_addf(out, "set label 1001 ");
    quoted(out, title.failed ? "" : title.data);
    str_addf(out, " at screen %.5f,%.5f left font ',19' textcolor rgb '#1b1b1b'\n",
             (double)LEFT / WIDTH, 1 - 30.0 / HEIGHT);
    str_addf(out, "set label 1002 ");
    quoted(out, sub.failed ? "" : sub.data);
    str_addf(out, " at screen %.5f,%.5f left font ',12' textcolor rgb '#6b6b6b'\n",
             (double)LEFT / WIDTH, 1 - 58.0 / HEIGHT);
    str_addf(out, "set xlabel '%s' offset 0,-0.3\n",
             memory ? (chinese ? "权重占用（MB，按实际存储）" : "weights (MB, as stored)")
                    : (chinese ? "线性层有效位宽（bit/参数，按实际存储）"
                               : "effective bits per weight (linears, as stored)"));
    str_addf(out, "set ylabel '%s' offset 0.6,0\n",
             chinese ? "困惑度 PPL（越低越好）" : "perplexity (lower is better)");
    str_free(&title);
    str_free(&sub);
}

static void add_points(Str *out, const Chart *c) {
    for (size_t i = 0; i < c->n; i++) {
        const Point *p = &c->points[i];
        str_addf(out, "set label %zu ", i + 1);
        quoted(out, p->label);
        str_addf(out, " at screen %.5f,%.5f left font ',%d' textcolor rgb '%s' front\n",
                 p->lx / WIDTH, (p->ly + LABEL_H * 0.5) / HEIGHT, LABEL_FONT,
                 COLORS[p->color % N_COLORS]);
        /* 标签离点较远时连一条细线到框的最近处 */
        double nx = fmin(fmax(p->px, p->lx), p->lx + p->w);
        double ny = fmin(fmax(p->py, p->ly + 2), p->ly + LABEL_H - 2);
        if (hypot(nx - p->px, ny - p->py) > 18)
            str_addf(out, "set arrow %zu from screen %.5f,%.5f to screen %.5f,%.5f nohead "
                          "linewidth 0.8 linecolor rgb '#aab2bd' back\n",
                     i + 2, p->px / WIDTH, p->py / HEIGHT, nx / WIDTH, ny / HEIGHT);
    }
    for (size_t m = 0; m < c->n_methods; m++) {
        str_addf(out, "$m%zu << EOD\n", m);
        for (size_t i = 0; i < c->n; i++)
            if (c->points[i].color == (int)m)
                str_addf(out, "%.10g %.10g\n", c->points[i].x, c->points[i].y);
        str_add(out, "EOD\n");
    }
}

static bool method_has_points(const Chart *c, size_t m) {
    for (size_t i = 0; i < c->n; i++)
        if (c->points[i].color == (int)m) return true;
    return false;
}

static void add_plot(Str *out, const Chart *c) {
    if (c->points[0].baseline)
        str_addf(out, "set arrow 1 from graph 0,first %.10g to graph 1,first %.10g nohead "
                      "dashtype (6,6) linewidth 1.2 linecolor rgb '#9a9a9a' back\n",
                 c->points[0].y, c->points[0].y);
    str_add(out, "plot $front using 1:2 with lines linewidth 2 linecolor rgb '#d9dde3' notitle");
    for (size_t m = 0; m < c->n_methods; m++) {
        if (!method_has_points(c, m)) continue;
        const char *color = COLORS[m % N_COLORS];
        str_addf(out, ", \\\n  $m%zu using 1:2 with points pointtype 7 pointsize 1.9 linecolor rgb "
                      "'white' notitle", m);
        str_addf(out, ", \\\n  $m%zu using 1:2 with points pointtype 7 pointsize 1.4 linecolor rgb "
                      "'%s' notitle", m, color);
    }
    str_add(out, "\n");
}

bool plot_script(const Board *b, bool memory, bool chinese, Str *out) {
    Chart *c = calloc(1, sizeof *c);
    if (!c) return false;
    collect(c, b, memory);
    bool enough = c->n >= 2;
    if (enough) {
        layout(c);
        find_frontier(c);
        place_labels(c);
        str_addf(out,
                 "set lmargin at screen %.5f\nset rmargin at screen %.5f\n"
                 "set bmargin at screen %.5f\nset tmargin at screen %.5f\n"
                 "unset key\nset border 3 linecolor rgb '#8a8a8a' linewidth 1\n"
                 "set tics nomirror textcolor rgb '#3c3c3c' scale 0.6\n"
                 "set grid linetype 1 linewidth 1 linecolor rgb '#eceff3'\n",
                 (double)LEFT / WIDTH, 1 - (double)RIGHT / WIDTH, (double)BOTTOM / HEIGHT,
                 1 - (double)TOP / HEIGHT);
        add_axis(out, "x", &c->x, !memory);
        add_axis(out, "y", &c->y, false);
        add_titles(out, b, memory, chinese);
        add_frontier(out, c);
        add_points(out, c);
        add_plot(out, c);
    }
    free(c);
    return enough && !out->failed;
}

/* ---------- 运行 gnuplot ---------- */

/* 已安装的中文字体的族名；没有为 NULL。 */
static const char *cjk_font(void) {
    static const char *const FONTS[][2] = {
        {"/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc", "Noto Sans CJK SC"},
        {"/usr/share/fonts/truetype/wqy/wqy-microhei.ttc", "WenQuanYi Micro Hei"},
        {"/usr/share/fonts/truetype/wqy/wqy-zenhei.ttc", "WenQuanYi Zen Hei"},
        {"/usr/share/fonts/truetype/arphic/uming.ttc", "AR PL UMing CN"}};
    for (size_t i = 0; i < sizeof FONTS / sizeof *FONTS; i++)
        if (file_exists(FONTS[i][0])) return FONTS[i][1];
    return NULL;
}

/* 把 script 送进 gnuplot 的标准输入，它的抱怨收进 said。返回: 启动了且退出码为 0。 */
static bool run_gnuplot(const Str *script, bool *missing) {
    int fd[2];
    *missing = false;
    if (pipe2(fd, O_CLOEXEC)) return false;
    posix_spawn_file_actions_t fa;
    posix_spawn_file_actions_init(&fa);
    posix_spawn_file_actions_adddup2(&fa, fd[0], STDIN_FILENO);
    posix_spawn_file_actions_addopen(&fa, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    posix_spawn_file_actions_addopen(&fa, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
    extern char **environ;
    char *argv[] = {"gnuplot", "-", NULL};
    pid_t pid;
    int rc = posix_spawnp(&pid, argv[0], &fa, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&fa);
    close(fd[0]);
    if (rc) {
        *missing = true;
        close(fd[1]);
        return false;
    }
    void (*old)(int) = signal(SIGPIPE, SIG_IGN); /* gnuplot 先死了也不连累我们 */
    for (size_t done = 0; done < script->len;) {
        ssize_t n = write(fd[1], script->data + done, script->len - done);
        if (n <= 0) break;
        done += (size_t)n;
    }
    close(fd[1]);
    int status = 0;
    bool ok = waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0;
    signal(SIGPIPE, old);
    return ok;
}

/* 画一个文件：先画到临时文件，成功且非空才改名。 */
static bool draw(const Str *body, const char *path, bool svg, const char *font, bool *missing) {
    Str script = {0}, tmp = {0};
    str_addf(&tmp, "%s.%ld.tmp", path, (long)getpid());
    str_addf(&script, "set terminal %s noenhanced size %d,%d font '%s,%d' background rgb 'white'\n",
             svg ? "svg" : "pngcairo", WIDTH, HEIGHT, font, FONT);
    str_add(&script, "set encoding utf8\nset output ");
    quoted(&script, tmp.failed ? "" : tmp.data);
    str_add(&script, "\n");
    str_addn(&script, body->data, body->len);
    str_add(&script, "unset output\n");
    bool ok = !script.failed && !tmp.failed && run_gnuplot(&script, missing) &&
              file_exists(tmp.data) && rename(tmp.data, path) == 0;
    if (!ok && tmp.data) unlink(tmp.data);
    str_free(&script);
    str_free(&tmp);
    return ok;
}

static void add_safe(Str *s, const char *name) {
    for (; *name; name++) {
        char c = isalnum((unsigned char)*name) || strchr(".-_", *name) ? *name : '-';
        str_addn(s, &c, 1);
    }
}

/* 榜的文件名前缀；与前面的榜重名时补上协议、窗口数与类型。 */
static void board_stem(const Leaderboard *lb, size_t i, Str *out) {
    const Board *b = &lb->boards[i];
    add_safe(out, b->model);
    str_addf(out, "_track%c_", b->track);
    add_safe(out, b->dataset);
    for (size_t j = 0; j < i; j++) {
        const Board *o = &lb->boards[j];
        if (o->track != b->track || strcmp(o->model, b->model) || strcmp(o->dataset, b->dataset))
            continue;
        str_add(out, "_");
        add_safe(out, b->protocol);
        str_addf(out, "_%lldw_", (long long)b->n_windows);
        add_safe(out, b->compute);
        str_add(out, "_");
        add_safe(out, b->dtype);
        str_addf(out, "_%zu", i - j);
        return;
    }
}

static bool plot_board(const Leaderboard *lb, size_t i, const char *dir, size_t *n_written,
                       bool *missing) {
    const char *cjk = cjk_font();
    Str stem = {0};
    board_stem(lb, i, &stem);
    bool ok = !stem.failed;
    for (int memory = 0; ok && memory < 2; memory++) {
        Str body = {0};
        bool worth = plot_script(&lb->boards[i], memory, cjk != NULL, &body);
        for (int svg = 0; worth && ok && svg < 2; svg++) {
            Str path = {0};
            str_addf(&path, "%s/%s_ppl_vs_%s.%s", dir, stem.data, memory ? "memory" : "bits",
                     svg ? "svg" : "png");
            ok = !path.failed && draw(&body, path.data, svg, cjk ? cjk : "sans", missing);
            *n_written += ok;
            if (!ok && !*missing)
                log_line(LOG_WARN, "gnuplot 没有画成 %s", path.data ? path.data : "");
            str_free(&path);
        }
        str_free(&body);
    }
    str_free(&stem);
    return ok;
}

bool plot_boards(const Leaderboard *lb, const char *dir, size_t *n_written, Err *e) {
    *n_written = 0;
    if (!file_mkdirs(dir, e)) return false;
    bool missing = false;
    for (size_t i = 0; i < lb->n_boards && !missing; i++)
        if (lb->boards[i].n_rows >= 2) plot_board(lb, i, dir, n_written, &missing);
    if (missing)
        log_line(LOG_WARN, "没有 gnuplot，图没有画；安装: sudo apt-get install gnuplot-nox "
                           "fonts-wqy-microhei，然后再运行 ptq-bench leaderboard");
    return true;
}
