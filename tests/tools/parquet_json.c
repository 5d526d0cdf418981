/* parquet_json — Parquet → 一行一个 JSON（供 compare_parquet.py 与 pyarrow 逐值比较） */
#include <stdio.h>

#include "io/file.h"
#include "io/parquet.h"

int main(int argc, char **argv) {
    Err e = {0};
    FileMap m;
    if (argc != 2) return 2;
    json_t *rows = file_map(&m, argv[1], &e)
                       ? parquet_rows(argv[1], m.data, m.size, PARQUET_MEMORY, &e) : NULL;
    if (!rows) {
        fprintf(stderr, "%s\n", e.msg);
        return 1;
    }
    for (size_t i = 0; i < json_array_size(rows); i++) {
        json_dumpf(json_array_get(rows, i), stdout, JSON_COMPACT | JSON_REAL_PRECISION(17));
        putchar('\n');
    }
    json_decref(rows);
    file_unmap(&m);
    return 0;
}
