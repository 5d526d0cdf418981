/* test_hash — SHA-256 的已知答案与文件缓存
 * 缓存是否被用到，靠往缓存里写一个假值来看；文件一变，假值就不再被采用。 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <time.h>
#include <cmocka.h>

#include "io/file.h"
#include "io/hash.h"
#include "tests/unit/tmp.h"

#define BIG ((size_t)1 << 20)
#define FAKE "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
#define EMPTY "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

/* FIPS 180-4 的示例。 */
static void test_known(void **state) {
    (void)state;
    char hex[HASH_HEX];
    hash_bytes("", 0, hex);
    assert_string_equal(hex, EMPTY);
    hash_bytes("abc", 3, hex);
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    Hash *h = hash_new();
    assert_non_null(h);
    for (int i = 0; i < 1000; i++) hash_add(h, "aaaaaaaaaa", 10);
    for (int i = 0; i < 99; i++) {
        char block[10000];
        memset(block, 'a', sizeof block);
        hash_add(h, block, sizeof block);
    }
    hash_end(h, hex); /* 一百万个 a */
    assert_string_equal(hex, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

static void write_big(const char *path, char fill, time_t mtime) {
    char *data = malloc(BIG);
    memset(data, fill, BIG);
    tmp_write(path, data, BIG);
    free(data);
    struct timespec times[2] = {{.tv_sec = mtime}, {.tv_sec = mtime}};
    assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
}

static void hash_of(char fill, char hex[HASH_HEX]) {
    char *data = malloc(BIG);
    memset(data, fill, BIG);
    hash_bytes(data, BIG, hex);
    free(data);
}

static void must_hash(const char *path, const char *cache, const char *want) {
    Err e = {0};
    char hex[HASH_HEX];
    if (!hash_file(path, cache, hex, &e)) fail_msg("%s", e.msg);
    assert_string_equal(hex, want);
}

/* 把缓存里的散列值换成假的。 */
static void poison(const char *cache_file) {
    Arena a = {0};
    Err e = {0};
    char *text = file_read(&a, cache_file, 1 << 20, NULL, &e);
    if (!text) fail_msg("%s", e.msg);
    assert_true(strlen(text) > 64);
    memcpy(text, FAKE, 64);
    assert_true(file_write_atomic(cache_file, text, strlen(text), &e));
    arena_free(&a);
}

static void test_cache(void **state) {
    (void)state;
    char real_a[HASH_HEX], real_b[HASH_HEX], big[600], cache_file[600];
    snprintf(big, sizeof big, "%s/big.bin", tmp_dir);
    snprintf(cache_file, sizeof cache_file, "%s/hashes.tsv", tmp_dir);
    hash_of('a', real_a);
    hash_of('b', real_b);
    write_big(big, 'a', 1700000000);
    must_hash(big, tmp_dir, real_a);
    poison(cache_file);
    must_hash(big, tmp_dir, FAKE);        /* 取自缓存 */
    must_hash(big, NULL, real_a);         /* 不用缓存 */
    write_big(big, 'b', 1700000001);      /* 同样大小，mtime 不同 */
    must_hash(big, tmp_dir, real_b);
    poison(cache_file);
    write_big(big, 'a', 1700000001);      /* 大小与 mtime 都一样，ctime 不同 */
    must_hash(big, tmp_dir, real_a);
    write_big(big, 'a', time(NULL));      /* 刚改过的不进缓存 */
    unlink(cache_file);
    must_hash(big, tmp_dir, real_a);
    assert_false(file_exists(cache_file));
}

static void test_cache_broken(void **state) {
    (void)state;
    char real[HASH_HEX], big[600], cache_file[600];
    snprintf(big, sizeof big, "%s/broken.bin", tmp_dir);
    snprintf(cache_file, sizeof cache_file, "%s/hashes.tsv", tmp_dir);
    hash_of('c', real);
    write_big(big, 'c', 1700000000);
    static const char *const TEXTS[] = {"", "\n", "\n\n\n", "垃圾", FAKE, FAKE "\t", FAKE "\t\n",
                                        ("x\t1\t2\n" FAKE), "\0\0\0"};
    for (size_t i = 0; i < sizeof TEXTS / sizeof *TEXTS; i++) {
        tmp_write(cache_file, TEXTS[i], strlen(TEXTS[i]) + (i == 8 ? 3 : 0));
        must_hash(big, tmp_dir, real);
        poison(cache_file);
        must_hash(big, tmp_dir, FAKE); /* 坏缓存已被换成好的 */
    }
    must_hash(big, "/nonexistent/cache", real); /* 缓存写不进去也无妨 */
}

/* 两个文件各占一行，重算其一不影响另一个。 */
static void test_cache_two(void **state) {
    (void)state;
    char one[600], two[600], cache[600], hex[HASH_HEX];
    Arena a = {0};
    Err e = {0};
    snprintf(cache, sizeof cache, "%s/two", tmp_dir);
    snprintf(one, sizeof one, "%s/one.bin", tmp_dir);
    snprintf(two, sizeof two, "%s/second one.bin", tmp_dir);
    assert_true(file_mkdirs(cache, &e));
    write_big(one, '1', 1700000000);
    write_big(two, '2', 1700000000);
    for (int i = 0; i < 3; i++) {
        write_big(one, '1', 1700000000 + i);
        assert_true(hash_file(one, cache, hex, &e));
        assert_true(hash_file(two, cache, hex, &e));
    }
    char *text = file_read(&a, file_join(&a, cache, "hashes.tsv", &e), 1 << 20, NULL, &e);
    assert_non_null(text);
    int lines = 0;
    for (const char *p = text; (p = strchr(p, '\n')); p++) lines++;
    assert_int_equal(lines, 2);
    arena_free(&a);
}

/* 几个文件同时算：与逐个算的相同，缓存一行不少；有一个打不开就报它。 */
static void test_many(void **state) {
    (void)state;
    enum { N = 12 };
    char path[N][600], cache[600], hex[N][HASH_HEX], one[HASH_HEX];
    const char *list[N];
    Arena a = {0};
    Err e = {0};
    snprintf(cache, sizeof cache, "%s/many", tmp_dir);
    for (int i = 0; i < N; i++) {
        snprintf(path[i], sizeof path[i], "%s/many-%d.bin", tmp_dir, i);
        write_big(path[i], (char)('a' + i), 1700000000);
        list[i] = path[i];
    }
    for (int threads = 1; threads <= 64; threads *= 4) {
        assert_true(hash_files(list, N, threads, threads == 16 ? NULL : cache, hex, &e));
        for (int i = 0; i < N; i++) {
            hash_of((char)('a' + i), one);
            assert_string_equal(hex[i], one);
        }
        if (threads == 1) assert_int_equal(unlink(tmp_path("many/hashes.tsv")), 0);
    }
    char *text = file_read(&a, file_join(&a, cache, "hashes.tsv", &e), 1 << 20, NULL, &e);
    assert_non_null(text);
    int lines = 0;
    for (const char *p = text; (p = strchr(p, '\n')); p++) lines++;
    assert_int_equal(lines, N);
    list[5] = tmp_path("absent");
    assert_false(hash_files(list, N, 4, cache, hex, &e));
    assert_int_equal(e.code, ERR_IO);
    assert_non_null(strstr(e.msg, "absent"));
    assert_true(hash_files(list, 0, 4, cache, hex, &e));
    arena_free(&a);
}

static void test_small_and_errors(void **state) {
    (void)state;
    Err e = {0};
    char hex[HASH_HEX], cache[600];
    snprintf(cache, sizeof cache, "%s/small", tmp_dir);
    assert_true(file_mkdirs(cache, &e));
    tmp_write(tmp_path("empty"), "", 0);
    must_hash(tmp_path("empty"), cache, EMPTY);
    assert_false(file_exists(tmp_path("small/hashes.tsv")));
    assert_false(hash_file(tmp_path("absent"), cache, hex, &e));
    assert_int_equal(e.code, ERR_IO);
    assert_false(hash_file(tmp_dir, cache, hex, &e));
    assert_int_equal(e.code, ERR_IO);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known),     cmocka_unit_test(test_cache),
        cmocka_unit_test(test_cache_broken), cmocka_unit_test(test_cache_two), cmocka_unit_test(test_many),
        cmocka_unit_test(test_small_and_errors),
    };
    return cmocka_run_group_tests(tests, tmp_make, tmp_done);
}
