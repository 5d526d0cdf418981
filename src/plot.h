/* plot — 排行榜的图：PPL 对位宽、PPL 对权重占用（SVG 与 PNG，由 gnuplot 画）
 * 没有 gnuplot 时打印 ⚠️ 与安装办法，其余照常。 */
#ifndef PTQ_PLOT_H
#define PTQ_PLOT_H
#include "leaderboard.h"

/* 为每个有两行以上的榜在 dir 下画图：{model}_track{X}_{dataset}_ppl_vs_{bits,memory}.{svg,png}。
 * 返回: 写成的文件数记在 *n_written；只有目录写不了等错误才返回 false。 */
bool plot_boards(const Leaderboard *lb, const char *dir, size_t *n_written, Err *e);
/* 一张图的 gnuplot 脚本（不含 set terminal 与 set output），供 plot_boards 与测试。chinese 为假时用英文标注。
 * 返回: 该榜在这张图上的点不足两个时为 false。 */
bool plot_script(const Board *b, bool memory, bool chinese, Str *out);
#endif
