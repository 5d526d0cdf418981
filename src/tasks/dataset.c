/* dataset — 困惑度文本的实现
 * 登记表只有三行，新增文本在此加一行；本地文件不必登记。 */
#include "tasks/dataset.h"

#include <string.h>

#include "base/str.h"

static const struct {
    const char *name, *file, *sha256, *about, *how; /* sha256 是文件的 */
    bool join; /* 把各行当作 Hub 的行，以 "\n\n" 拼接 */
} TEXTS[] = {
    {"demo", "raw/demo/text/test.txt",
     "85b7b1bf7ccc5c031782b2469551a9ecd25525f47d6cf9de009502bdbd5dc8f6",
     "内嵌的演示文本（公有领域与宽松许可的摘录）", "它随项目发布；请重新检出 data/raw/demo", false},
    {"demo-calib", "raw/demo/text/calib.txt",
     "bf81940323e4de3c667e3dfd0415b4f1654dba99e51f3691431ea14334b9f375",
     "内嵌的校准文本，与 demo 不重叠", "它随项目发布；请重新检出 data/raw/demo", false},
    {"wikitext2-valid", "raw/text/wikitext2.valid.tokens.txt",
     "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
     "WikiText-2 的验证集（校准用）", "scripts/prepare_data.sh --text wikitext2-valid --from 你的文件", false},
    {"wikitext2", "raw/text/wikitext2.test.raw.txt",
     "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08",
     "WikiText-2 的测试集 wiki.test.raw，原样",
     "scripts/prepare_data.sh --text wikitext2 --from 你的文件", false},
    {"wikitext2-join", "raw/text/wikitext2.test.raw.txt",
     "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08",
     "同一文件的各行以空行拼接：GPTQ、AWQ 等官方代码由 Hub 取得的文本",
     "scripts/prepare_data.sh --text wikitext2 --from 你的文件", true},
    {"ptb", "raw/text/ptb.test.txt",
     "91a2fa938d84baddaa05a3d67a5698924847eca8a4e7faa1518f3fd11c3d6d73", "Penn Treebank 的测试集 ptb.test.txt",
     "scripts/prepare_data.sh --text ptb --from 你的文件", false},
};
enum { N_TEXTS = sizeof TEXTS / sizeof *TEXTS };

const char *const *text_names(void) {
    static const char *names[N_TEXTS + 1];
    for (int i = 0; i < N_TEXTS; i++) names[i] = TEXTS[i].name;
    return names;
}

const char *text_describe(const char *name) {
    for (int i = 0; i < N_TEXTS; i++)
        if (strcmp(TEXTS[i].name, name) == 0) return TEXTS[i].about;
    return "";
}

int64_t text_expected_tokens(const char *text_sha256, const char *tokenizer_sha256) {
    static const struct {
        const char *text, *tokenizer;
        int64_t n;
    } KNOWN[] = {
        {"85b7b1bf7ccc5c031782b2469551a9ecd25525f47d6cf9de009502bdbd5dc8f6",
         "bae787a01630f72bbffa222824c4a3b67a88f18ea82d000f41e41996e8631ccf", 102794},
        {"173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08",
         "2225e8fb36485529d3c826106f8bec359b719a6bcc3f5d6314a834c7be153905", 303415},
        {"173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08",
         "66c9be6d1c363b9f39ad2419e55579b93060e88ecd14d33c2f565fae4d976df7", 303415},
    };
    for (size_t i = 0; i < sizeof KNOWN / sizeof *KNOWN; i++)
        if (strcmp(KNOWN[i].text, text_sha256) == 0 &&
            strcmp(KNOWN[i].tokenizer, tokenizer_sha256) == 0)
            return KNOWN[i].n;
    return -1;
}

static int find_text(const char *name) {
    for (int i = 0; i < N_TEXTS; i++)
        if (strcmp(TEXTS[i].name, name) == 0) return i;
    return -1;
}

bool text_registered(const char *name, const char **file, const char **sha256) {
    int i = find_text(name);
    if (i < 0) return false;
    *file = TEXTS[i].file;
    *sha256 = TEXTS[i].sha256;
    return true;
}

static bool not_found(const char *name, const char *path, int known, Err *e) {
    if (known >= 0)
        return err_set(e, ERR_MISSING, "数据集 '%s' 不在 %s。取得方法：%s", name, path,
                       TEXTS[known].how);
    const char *near = str_nearest(name, text_names(), N_TEXTS);
    return err_set(e, ERR_MISSING,
                   "没有名为 '%s' 的数据集，也没有这个文本文件%s%s%s。登记的名字见 ptq-bench list datasets", name,
                   near ? "；是否想写 '" : "", near ? near : "", near ? "'" : "");
}

/* 只含空白的一行。 */
static bool is_blank(const char *p, const char *end) {
    while (p < end && (*p == ' ' || (*p >= '\t' && *p <= '\r'))) p++;
    return p == end;
}

/* Hub 的 wikitext-2-raw-v1：每行一条（含行末换行），只有空白的行是空串；GPTQ 的 datautils.py 以 "\n\n" 拼接。 */
static bool join_rows(TextData *t, Arena *a, Err *e) {
    const char *p = (const char *)t->map.data, *end = p + t->map.size;
    size_t rows = 1;
    for (const char *q = p; q < end; q++) rows += *q == '\n';
    char *out = arena_array(a, t->map.size + 2 * rows, 1, e), *w = out;
    if (!out) return false;
    for (const char *row = p; row < end;) {
        const char *next = memchr(row, '\n', (size_t)(end - row));
        next = next ? next + 1 : end;
        if (row != p) *w++ = '\n', *w++ = '\n';
        if (!is_blank(row, next)) {
            memcpy(w, row, (size_t)(next - row));
            w += next - row;
        }
        row = next;
    }
    t->data = out;
    t->len = (size_t)(w - out);
    return true;
}

bool text_open(TextData *t, Arena *a, const char *root, const char *data_dir, const char *name,
               Err *e) {
    *t = (TextData){0};
    int known = find_text(name);
    const char *path = name;
    if (known >= 0) {
        const char *dir = file_join(a, root, data_dir, e);
        path = dir ? file_join(a, dir, TEXTS[known].file, e) : NULL;
    }
    if (!path) return false;
    if (!file_exists(path) || file_is_dir(path)) return not_found(name, path, known, e);
    const char *slash = strrchr(path, '/');
    t->name = arena_strdup(a, known >= 0 ? name : slash ? slash + 1 : path, e);
    t->path = arena_strdup(a, path, e);
    if (!t->name || !t->path || !file_map(&t->map, path, e)) return false;
    t->data = (const char *)t->map.data;
    t->len = t->map.size;
    hash_bytes(t->data, t->len, t->sha256);
    if (t->len == 0) {
        text_close(t);
        return err_set(e, ERR_FORMAT, "%s: 文本是空的", path);
    }
    if (known >= 0 && TEXTS[known].sha256 && strcmp(TEXTS[known].sha256, t->sha256) != 0) {
        err_set(e, ERR_FORMAT,
                "%s: SHA-256 是 %.16s…，登记的 '%s' 是 %.16s…；这不是同一份文本。要用它请直接写文件路径",
                path, t->sha256, name, TEXTS[known].sha256);
        text_close(t);
        return false;
    }
    if (known < 0 || !TEXTS[known].join) return true;
    if (!join_rows(t, a, e)) {
        text_close(t);
        return false;
    }
    hash_bytes(t->data, t->len, t->sha256);
    return true;
}

void text_close(TextData *t) {
    file_unmap(&t->map);
    *t = (TextData){0};
}
