/* fuzz_json — JSON 读写的模糊测试
 * 性质：读得进的值，写出再读，与原值相等。 */
#include <stdint.h>
#include <stdlib.h>

#include "io/json.h"

#define ROUND_TRIP_MAX 4096 /* 更长的输入只查读入：深嵌套的缩进会使输出很大 */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Err e = {0};
    json_t *v = json_parse("fuzz", data, size, &e);
    if (!v && e.code == ERR_NONE) abort();
    if (v && size <= ROUND_TRIP_MAX) {
        Str s = {0};
        json_text(&s, v);
        json_t *again = json_parse("again", s.data, s.len, &e);
        if (!again || !json_equal(v, again)) abort();
        json_decref(again);
        str_free(&s);
    }
    json_decref(v);
    return 0;
}
