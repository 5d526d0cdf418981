/* dataset — 困惑度文本的实现
 * 登记表只有三行，新增文本在此加一行；本地文件不必登记。 */
#include "tasks/dataset.h"

#include <string.h>

#include "base/str.h"

static const struct {
    const char *name, *file, *sha256, *about, *how;
} TEXTS[] = {
    {"demo", "raw/demo/text/test.txt",
     "85b7b1bf7ccc5c031782b2469551a9ecd25525f47d6cf9de009502bdbd5dc8f6",
     "内嵌的演示文本（公有领域与宽松许可的摘录）", "它随项目发布；请重新检出 data/raw/demo"},
    {"wikitext2", "raw/text/wikitext2.test.raw.txt",
     "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08",
     "WikiText-2 的测试集 wiki.test.raw，原样",
     "scripts/prepare_data.sh --text wikitext2 --from 你的文件"},
    {"ptb", "raw/text/ptb.test.txt",
     "91a2fa938d84baddaa05a3d67a5698924847eca8a4e7faa1518f3fd11c3d6d73", "Penn Treebank 的测试集 ptb.test.txt",
     "scripts/prepare_data.sh --text ptb --from 你的文件"},
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

static bool not_found(const char *name, const char *path, int known, Err *e) {
    if (known >= 0)
        return err_set(e, ERR_MISSING, "数据集 '%s' 不在 %s。取得方法：%s", name, path,
                       TEXTS[known].how);
    const char *near = str_nearest(name, text_names(), N_TEXTS);
    return err_set(e, ERR_MISSING,
                   "没有名为 '%s' 的数据集，也没有这个文本文件%s%s%s。登记的名字：demo、wikitext2、ptb", name,
                   near ? "；是否想写 '" : "", near ? near : "", near ? "'" : "");
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
    hash_bytes(t->map.data, t->map.size, t->sha256);
    if (t->map.size == 0) {
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
    return true;
}

void text_close(TextData *t) {
    file_unmap(&t->map);
    *t = (TextData){0};
}
