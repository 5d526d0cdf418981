/* fuzz_parquet — Parquet 读法的模糊测试
 * 首字节的高位为 1 时把其余的字节当作文件尾之前后都补好框架的文件尾（直接轰炸元数据与页）。
 * 成功时检查每行都是对象，内存的上限很小，炸弹须在其内被拒绝。 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "io/parquet.h"

static void check(const char *data, size_t size) {
    Err e = {0};
    json_t *rows = parquet_rows("fuzz", data, size, (size_t)16 << 20, &e);
    if (!rows && e.code == ERR_NONE) abort();
    for (size_t i = 0; i < json_array_size(rows); i++)
        if (!json_is_object(json_array_get(rows, i))) abort();
    char *text = rows ? json_dumps(rows, JSON_ENCODE_ANY) : NULL;
    if (rows && !text) abort();
    free(text);
    json_decref(rows);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 3 || !(data[0] & 0x80)) {
        check((const char *)data, size);
        return 0;
    }
    /* 第 1、2 字节: 文件尾占其余的末多少字节 */
    uint32_t footer = (uint32_t)data[1] << 8 | data[2];
    size -= 3, data += 3;
    if (footer > size) footer = (uint32_t)size;
    char *file = malloc(size + 12);
    if (!file) return 0;
    memcpy(file, "PAR1", 4);
    memcpy(file + 4, data, size);
    memcpy(file + 4 + size, &footer, 4);
    memcpy(file + 8 + size, "PAR1", 4);
    check(file, size + 12);
    free(file);
    return 0;
}
