/* hub_internal — hub 各部分之间的契约（只供 src/io/hub*.c 与其测试包含） */
#ifndef PTQ_IO_HUB_INTERNAL_H
#define PTQ_IO_HUB_INTERNAL_H
#include <stdint.h>

#include "base/str.h"
#include "io/hub.h"
#include "io/json.h"

typedef struct HubFile {
    const char *name; /* 仓库中的文件名（模型的只在顶层，不含 /） */
    const char *etag; /* 40 位（git 的 blob）或 64 位（SHA-256）十六进制 */
    int64_t size;     /* 字节数 */
} HubFile;

typedef struct HubRepo {
    const HubOptions *o;
    bool dataset;              /* 数据集的仓库，否则是模型的 */
    const char *id, *revision; /* 版本 */
    const char *commit;        /* 40 位十六进制 */
    const char *root;          /* 缓存/models--组织--名字（datasets--…） */
    HubFile *files;
    size_t n_files;
    bool impatient; /* 缓存里有可用的：问不到就不再试 */
} HubRepo;

/* ---- hub_cache：缓存的布局 ---- */
bool hub_is_commit(const char *s);
bool hub_is_etag(const char *s);
/* 文件名是否可以放心地用：顶层、没有 .. 与控制字符。 */
bool hub_safe_name(const char *name);
/* 同上，但可以在子文件夹里。 */
bool hub_safe_path(const char *name);
bool hub_safe_revision(const char *revision);
const char *hub_blob_path(const HubRepo *r, Arena *a, const char *etag, const char *suffix, Err *e);
const char *hub_snapshot_dir(const HubRepo *r, Arena *a, Err *e);
/* 建立 r->root 之下的文件夹；其中有符号链接指到 root 之外时报错（不往外面写）。 */
bool hub_make_dir(const HubRepo *r, const char *dir, Err *e);
/* 读 refs/版本。返回: 提交，没有则 NULL。 */
const char *hub_read_ref(const HubRepo *r, Arena *a);
bool hub_write_ref(const HubRepo *r, Arena *a, Err *e);
/* blobs/etag 是否已齐（大小相符的普通文件）。 */
bool hub_has_blob(const HubRepo *r, Arena *a, const HubFile *f);
/* 在快照里放上 f 的相对符号链接。 */
bool hub_link(const HubRepo *r, Arena *a, const HubFile *f, Err *e);
/* 取得 etag 的锁（等别的进程放开）。返回: 描述符，失败 -1。 */
int hub_lock(const HubRepo *r, Arena *a, const char *etag, Err *e);

/* ---- hub_http：一次请求 ---- */
/* 取 url 的文本（至多 32 MB），失败按规矩重试。revision 非 NULL 时是答复里的 X-Revision（没有为空串）。 */
bool hub_get_text(const HubRepo *r, const char *url, Str *out, char revision[41], Err *e);

/* ---- hub：共用的几步 ---- */
/* 问清 r->revision 的提交与文件。返回: API 的答复（新引用），r->commit 已置。 */
json_t *hub_ask(HubRepo *r, Arena *a, Err *e);
/* API 所列的一个文件 v → f；散列与大小都须有。 */
bool hub_read_file(const HubRepo *r, Arena *a, const char *name, const json_t *v, HubFile *f, Err *e);
/* 下载 r->files 中缺的，在快照里放上链接，记下引用。 */
bool hub_fetch_all(HubRepo *r, Arena *a, Err *e);
/* 数据集的名字、配置、划分、版本是否都合规矩。 */
bool hub_check_split(const HubSplit *s, Err *e);
/* r->root：{models,datasets}--组织--名字。 */
bool hub_set_root(HubRepo *r, Arena *a, Err *e);

/* ---- hub_fetch：同时下载几个文件 ---- */
bool hub_fetch(const HubRepo *r, const HubFile *const *files, size_t n, Err *e);
/* 转义路径中的一段，追加到 out。 */
void hub_escape(Str *out, const char *text, const char *keep);

/* ---- hub_hash：跟在写入后面算散列的线程 ---- */
typedef struct HubHasher HubHasher;
/* fd 归调用者；git 为真时算 git blob 的 SHA-1（size 须已知），否则 SHA-256。 */
HubHasher *hub_hasher_start(int fd, bool git, int64_t size, Err *e);
void hub_hasher_written(HubHasher *h, int64_t bytes); /* 文件已有 bytes 字节 */
/* 算完并释放。hex 为结果（读不出则为空串）；cancel 为真时不等它算完。 */
void hub_hasher_end(HubHasher *h, bool cancel, char hex[65]);
#endif
