/* registry — 方法登记表的查询
 * 表由构建系统从 src/methods/ 的文件名生成（已按名字排序）；这里只读它。 */
#include "registry.h"

#include <string.h>

#include "base/str.h"
#include "pretrained.h"

extern const Method *const METHOD_TABLE[];

const Method *const *registry_methods(size_t *n) {
    *n = 0;
    while (METHOD_TABLE[*n]) ++*n;
    return METHOD_TABLE;
}

const Method *registry_find(const char *name, Err *e) {
    enum { CAP = 256 };
    size_t n;
    const Method *const *all = registry_methods(&n);
    const char *names[CAP];
    Str list = {0};
    const Method *pretrained = pretrained_find(name);
    if (pretrained) return pretrained;
    for (size_t i = 0; i < n; i++) {
        if (strcmp(all[i]->name, name) == 0) {
            str_free(&list);
            return all[i];
        }
        if (i < CAP) names[i] = all[i]->name;
        str_addf(&list, "%s%s", i ? "、" : "", all[i]->name);
    }
    for (int i = 0; i < CKPT_KINDS && n + (size_t)i < CAP; i++) names[n + (size_t)i] = pretrained_at(i)->name;
    for (int i = 0; i < CKPT_KINDS; i++) str_addf(&list, "、%s", pretrained_at(i)->name);
    n += CKPT_KINDS;
    const char *near = str_nearest(name, names, n < CAP ? n : CAP);
    err_set(e, ERR_CONFIG,
            "方法 '%.80s' 未注册%s%s%s已注册: %s"
            "（登记名、src/methods/ 的文件名与 configs/methods/ 的 name 须相同）",
            name, near ? "，是否想写 '" : "", near ? near : "", near ? "'？" : "。",
            list.data ? list.data : "（无）");
    str_free(&list);
    return NULL;
}

bool registry_check_track(const Method *m, char track, Err *e) {
    if (track && strchr(m->tracks, track)) return true;
    Str list = {0};
    for (const char *t = m->tracks; *t; t++) str_addf(&list, "%sTrack %c", list.len ? "、" : "", *t);
    err_set(e, ERR_UNSUPPORTED, "方法 %s 不支持 Track %c；它支持: %s", m->name, track,
            list.data ? list.data : "（无）");
    str_free(&list);
    return false;
}

const char *registry_first_track(const char *method) {
    static const char *const TRACKS[] = {"A", "B", "C"};
    const Method *m = registry_find(method, NULL);
    for (int i = 0; m && i < 3; i++)
        if (strchr(m->tracks, TRACKS[i][0])) return TRACKS[i];
    return "A";
}
