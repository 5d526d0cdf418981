/* fuzz_result — 结果 JSON 的模糊测试
 * 性质：任何 JSON 值都排得成 Markdown（不崩溃）；通过检查的结果能与另一个结果一起建榜、写出三种写法与图的脚本。 */
#include <stdint.h>
#include <stdlib.h>

#include "io/json.h"
#include "leaderboard.h"
#include "plot.h"
#include "result_writer.h"

static void render(const Leaderboard *lb) {
    Str md = {0}, csv = {0}, screen = {0};
    Err e = {0};
    if (!leaderboard_markdown(lb, &md, &e) || !leaderboard_csv(lb, &csv, &e)) abort();
    leaderboard_screen(lb, &screen);
    for (size_t i = 0; i < lb->n_boards; i++)
        for (int memory = 0; memory < 2; memory++) {
            Str script = {0};
            plot_script(&lb->boards[i], memory, true, &script);
            str_free(&script);
        }
    str_free(&md);
    str_free(&csv);
    str_free(&screen);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Err e = {0};
    json_t *v = json_parse("fuzz", data, size, &e);
    if (!v) return 0;
    Str md = {0};
    if (!result_markdown(v, &md, &e)) abort();
    str_free(&md);
    if (result_check(v, "fuzz", &e)) {
        json_t *other = json_deep_copy(v); /* 同榜的第二行：方法不同 */
        json_object_set_new(json_object_get(other, "config"), "method", json_string("other"));
        const ResultFile files[] = {{"a.json", v}, {"b.json", other}};
        Leaderboard lb;
        if (!leaderboard_build(&lb, files, 2, &e)) abort();
        render(&lb);
        leaderboard_free(&lb);
        json_decref(other);
    } else if (e.code == ERR_NONE) {
        abort();
    }
    json_decref(v);
    return 0;
}
