/* matrix — 实验 YAML（模型 × 方法 × 轨道 × 设置）展开成一个个单元
 *
 *     name: demo
 *     models: [demo]
 *     tracks: [A]
 *     methods:
 *       - fp16
 *       - {name: rtn, label: W4, overrides: {weight.w_bits: 4}}
 *     overrides: {eval.limit: 16}        # 公共设置；别的方法才有的键对本方法不起作用
 *
 * 每个模型与轨道里 fp16 排在最前：它的存档是其余各单元的对照。 */
#ifndef PTQ_MATRIX_H
#define PTQ_MATRIX_H
#include "base/arena.h"

typedef struct Cell {
    const char *model, *method, *track, *label; /* label 可为 NULL */
    const char **overrides; /* "键=值"：公共的、方法的、命令行的，后者优先 */
    size_t n_overrides;
} Cell;

typedef struct Matrix {
    Arena arena;
    const char *name;
    Cell *cells;
    size_t n;
} Matrix;

/* 读实验。参数: name_or_path 文件路径，或 configs/experiments/ 里的名字；extra 追加在最后的 overrides。
 * 错误: 未知的键、类型不对（文件:行）、空的列表。模型与方法的名字不在这里检查：错的单元各自失败，其余照跑。 */
bool matrix_load(Matrix *m, const char *root, const char *name_or_path, const char *const *extra,
                 size_t n_extra, Err *e);
void matrix_free(Matrix *m);
#endif
