/* prepare — prepare_data 各部分共用的小工具（prepare_data.c）与任务数据的取得（prepare_task.c） */
#ifndef PTQ_SCRIPTS_PREPARE_H
#define PTQ_SCRIPTS_PREPARE_H
#include "base/arena.h"

typedef struct Job {
    Arena arena;
    const char *data; /* 数据文件夹 */
    const char *from; /* --from；没有为 NULL */
    bool rows;        /* --rows */
} Job;

/* 运行 argv（不经 shell）；它的标准输出并入标准错误。返回: 退出码；启动不了为 127。 */
int prepare_run(const char *const *argv);
/* 把 from 放到 to：--from 给的文件复制，下载来的改名（须在同一文件系统）。 */
bool prepare_install(Job *j, const char *from, const char *to, Err *e);
/* 复制（原子）。 */
bool prepare_copy(const char *from, const char *to, Err *e);
/* data/meta/{name}.json：来历、大小、哈希、取得的时刻。license 可为 NULL。 */
bool prepare_meta(Job *j, const char *name, const char *kind, const char *path, const char *sha256,
                  const char *source, const char *license, Err *e);
/* 删掉整个文件夹。 */
void prepare_remove_tree(const char *dir);

/* --task：有 --from 时核对并复制那个文件（name 可带子文件夹，文件名就是划分）；没有时 name 是任务、组或 tag，
 * 从 Hub 取得还缺的划分（评测的，以及少样本的），--rows 时用 rows API。错误: 名字不对、文件不合格、取不到。 */
bool prepare_task(Job *j, const char *name, Err *e);
#endif
