/* tmp — 测试用的临时文件夹
 * 每个测试程序一个，放在 $PTQ_TEST_TMP（或 $TMPDIR、/tmp）之下；tmp_done 连同内容删除。 */
#ifndef PTQ_TESTS_UNIT_TMP_H
#define PTQ_TESTS_UNIT_TMP_H
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char tmp_dir[512];

/* group setup/teardown 的签名由 cmocka 规定。 */
static inline int tmp_make(void **state) {
    (void)state;
    const char *base = getenv("PTQ_TEST_TMP");
    if (!base) base = getenv("TMPDIR");
    snprintf(tmp_dir, sizeof tmp_dir, "%s/ptq-test-XXXXXX", base ? base : "/tmp");
    return mkdtemp(tmp_dir) ? 0 : -1;
}

static inline int tmp_remove_one(const char *path, const struct stat *st, int type,
                                 struct FTW *at) {
    (void)st, (void)type, (void)at;
    return remove(path);
}

static inline int tmp_done(void **state) {
    (void)state;
    return nftw(tmp_dir, tmp_remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* 临时文件夹中的路径；最近 8 次的结果有效。 */
static inline const char *tmp_path(const char *name) {
    static char paths[8][1024];
    static int next;
    char *p = paths[next++ % 8];
    snprintf(p, sizeof paths[0], "%s/%s", tmp_dir, name);
    return p;
}

static inline void tmp_write(const char *path, const void *data, size_t len) {
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, len, f) != len || fclose(f) != 0) abort();
}
#endif
