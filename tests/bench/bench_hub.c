/* bench_hub — 下载一个模型要多久（供 hub_speed.sh 与 curl 比）
 * 用法: HF_ENDPOINT=地址 bench_hub 缓存文件夹 组织/名字；打印秒数。 */
#include <stdio.h>

#include "base/log.h"
#include "io/hub.h"

int main(int argc, char **argv) {
    Arena a = {0};
    Err e = {0};
    HubOptions o;
    const char *dir, *commit;
    if (argc != 3) return 2;
    log_set_quiet(true);
    if (!hub_options(&o, &a, &e)) return 1;
    o.cache = argv[1];
    double began = clock_seconds();
    bool ok = hub_model(&o, &a, argv[2], NULL, &dir, &commit, &e);
    if (ok) printf("%.3f\n", clock_seconds() - began);
    else fprintf(stderr, "%s\n", e.msg);
    arena_free(&a);
    return !ok;
}
