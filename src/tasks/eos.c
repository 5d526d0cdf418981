/* eos — 生成的终点的读取 */
#include "tasks/eos.h"

#include "io/file.h"
#include "io/json.h"

bool eos_has(const EosSet *s, int32_t id) {
    for (int i = 0; s && i < s->n; i++)
        if (s->ids[i] == id) return true;
    return false;
}

static bool add(EosSet *s, const json_t *v, int64_t vocab, const char *where, Err *e) {
    if (!json_is_integer(v))
        return err_set(e, ERR_FORMAT, "%s: eos_token_id 应为整数或整数的列表", where);
    int64_t id = json_integer_value(v);
    if (id < 0 || id >= vocab || eos_has(s, (int32_t)id)) return true;
    if (s->n == EOS_MAX) return err_set(e, ERR_FORMAT, "%s: eos_token_id 多于 %d 个", where, EOS_MAX);
    s->ids[s->n++] = (int32_t)id;
    return true;
}

static bool read_config(EosSet *s, const char *path, int64_t vocab, Err *e) {
    json_t *all = json_load(path, e);
    if (!all) return false;
    const json_t *v = json_object_get(all, "eos_token_id");
    bool ok = true;
    if (json_is_array(v)) {
        for (size_t i = 0; ok && i < json_array_size(v); i++)
            ok = add(s, json_array_get(v, i), vocab, path, e);
    } else if (v && !json_is_null(v)) {
        ok = add(s, v, vocab, path, e);
    }
    json_decref(all);
    return ok;
}

bool eos_open(EosSet *s, const char *model_path, const Tokenizer *t, int64_t vocab, Err *e) {
    Arena a = {0};
    *s = (EosSet){0};
    if (tokenizer_eos(t) >= 0) s->ids[s->n++] = tokenizer_eos(t);
    if (!file_is_dir(model_path)) return true;
    char *path = file_join(&a, model_path, "generation_config.json", e);
    bool ok = path && (!file_exists(path) || read_config(s, path, vocab, e));
    arena_free(&a);
    return ok;
}
