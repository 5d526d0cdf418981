/* cli — 命令行标志解析的实现
 * 一遍扫过 argv；错误一律报出是哪个标志、应怎么写，并指向 --help。 */
#include "scripts/cli.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/str.h"

static const CliFlag *find_flag(const CliSpec *s, const char *name, size_t len) {
    for (const CliFlag *f = s->flags; f->name; f++)
        if (strlen(f->name) == len && memcmp(f->name, name, len) == 0) return f;
    return NULL;
}

static void print_help(const CliSpec *s) {
    Str out = {0};
    str_addf(&out, "%s — %s\n\n用法: ptq-bench %s", s->command, s->about, s->command);
    size_t width = str_width("-h, --help");
    for (const CliFlag *f = s->flags; f->name; f++) {
        size_t w = str_width(f->name) + (f->value ? 1 + str_width(f->value) : 0);
        if (w > width) width = w;
        if (f->required) str_addf(&out, " %s %s", f->name, f->value);
    }
    str_addf(&out, " [选项]%s%s\n\n选项:\n", s->positional ? " " : "",
             s->positional ? s->positional : "");
    for (const CliFlag *f = s->flags; f->name; f++) {
        char left[128];
        snprintf(left, sizeof left, "%s%s%s", f->name, f->value ? " " : "", f->value ? f->value : "");
        str_add(&out, "  ");
        str_add_padded(&out, left, width + 2, false);
        str_addf(&out, "%s%s\n", f->help, f->type == CLI_LIST ? "（可重复）" : "");
    }
    str_add(&out, "  ");
    str_add_padded(&out, "-h, --help", width + 2, false);
    str_add(&out, "打印这段说明\n");
    if (s->epilog) str_addf(&out, "\n%s\n", s->epilog);
    if (!out.failed) fputs(out.data, stdout);
    str_free(&out);
}

static CliResult unknown_flag(const CliSpec *s, const char *arg, size_t len) {
    const char *names[64];
    size_t n = 0;
    for (const CliFlag *f = s->flags; f->name && n < 64; f++) names[n++] = f->name;
    char want[128];
    snprintf(want, sizeof want, "%.*s", (int)len, arg);
    const char *near = str_nearest(want, names, n);
    log_line(LOG_FAIL, "%s: 未知的选项 '%s'%s%s%s全部选项: ptq-bench %s --help", s->command, want,
             near ? "，是否想写 '" : "", near ? near : "", near ? "'？" : "。", s->command);
    return CLI_BAD;
}

static void store(const CliFlag *f, const char *value) {
    if (f->type == CLI_STR) {
        *(const char **)f->target = value;
    } else if (f->type == CLI_LIST) {
        CliList *l = f->target;
        l->items[l->n++] = value;
    } else {
        *(bool *)f->target = true;
    }
}

static CliResult missing_required(const CliSpec *s) {
    for (const CliFlag *f = s->flags; f->name; f++)
        if (f->required && !*(const char *const *)f->target) {
            log_line(LOG_FAIL, "%s: 缺少 %s %s（%s）。用法: ptq-bench %s --help", s->command, f->name,
                     f->value, f->help, s->command);
            return CLI_BAD;
        }
    return CLI_GO;
}

CliResult cli_parse(const CliSpec *s, int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        const char *arg = argv[i];
        if (strcmp(arg, "-h") == 0 || strcmp(arg, "--help") == 0) {
            print_help(s);
            return CLI_DONE;
        }
        if (arg[0] != '-' || !arg[1]) {
            if (!s->positional) {
                log_line(LOG_FAIL, "%s: 多余的参数 '%s'。用法: ptq-bench %s --help", s->command, arg,
                         s->command);
                return CLI_BAD;
            }
            s->rest->items[s->rest->n++] = arg;
            continue;
        }
        const char *eq = strchr(arg, '=');
        size_t len = eq ? (size_t)(eq - arg) : strlen(arg);
        const CliFlag *f = find_flag(s, arg, len);
        if (!f) return unknown_flag(s, arg, len);
        if (f->type == CLI_BOOL && eq) {
            log_line(LOG_FAIL, "%s: %s 不带值", s->command, f->name);
            return CLI_BAD;
        }
        if (f->type != CLI_BOOL && !eq && i + 1 >= argc) {
            log_line(LOG_FAIL, "%s: %s 后面要有值: %s %s", s->command, f->name, f->name, f->value);
            return CLI_BAD;
        }
        store(f, f->type == CLI_BOOL ? NULL : eq ? eq + 1 : argv[++i]);
    }
    return missing_required(s);
}

int cli_fail(const Err *e) {
    log_line(LOG_FAIL, "%s", e->msg);
    return err_exit_code(e->code);
}

static void add_quoted(Str *out, const char *arg) {
    static const char SAFE[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                               "_-./=:,+@%";
    if (*arg && arg[strspn(arg, SAFE)] == '\0') {
        str_add(out, arg);
        return;
    }
    str_add(out, "'");
    for (; *arg; arg++) {
        if (*arg == '\'')
            str_add(out, "'\\''");
        else
            str_addn(out, arg, 1);
    }
    str_add(out, "'");
}

char *cli_command_line(const char *program, int argc, char **argv) {
    Str out = {0};
    add_quoted(&out, program);
    for (int i = 0; i < argc; i++) {
        str_add(&out, " ");
        add_quoted(&out, argv[i]);
    }
    if (!out.failed) return out.data;
    str_free(&out);
    return NULL;
}

char *cli_quoted_override(const char *key, const char *value) {
    Str out = {0};
    str_addf(&out, "%s='", key);
    for (; *value; value++) {
        str_addn(&out, value, 1);
        if (*value == '\'') str_add(&out, "'");
    }
    str_add(&out, "'");
    if (!out.failed) return out.data;
    str_free(&out);
    return NULL;
}
