/* hub_folder — 把一个文件夹开成静态的 HTTP 服务，供端到端测试当作 Hub
 * 用法: hub_folder 文件夹；端口写到标准输出。路径（去掉查询）就是文件；/rows 按 offset 取 rows/偏移。
 * 支持 Range；文件夹里有 名字.header 时，其中的一行「键: 值」作为头；有 名字.slow 时慢慢地给（每 64 KiB 停 10 毫秒）。 */
#include <fcntl.h>
#include <microhttpd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *root;

static enum MHD_Result reply(struct MHD_Connection *c, unsigned status, struct MHD_Response *r) {
    enum MHD_Result ok = MHD_queue_response(c, status, r);
    MHD_destroy_response(r);
    return ok;
}

static void add_header(struct MHD_Response *r, const char *path) {
    char name[2100], line[300], *value;
    snprintf(name, sizeof name, "%s.header", path);
    FILE *f = fopen(name, "r");
    if (f && fgets(line, sizeof line, f) && (value = strstr(line, ": "))) {
        *value = '\0';
        value[2 + strcspn(value + 2, "\r\n")] = '\0';
        MHD_add_response_header(r, line, value + 2);
    }
    if (f) fclose(f);
}

/* ---- 慢慢地给 ---- */

typedef struct Slow {
    int fd;
    uint64_t from;
} Slow;

static ssize_t read_slowly(void *ctx, uint64_t at, char *buf, size_t max) {
    const Slow *s = ctx;
    usleep(10000);
    ssize_t n = pread(s->fd, buf, max, (off_t)(s->from + at));
    return n > 0 ? n : MHD_CONTENT_READER_END_OF_STREAM;
}

static void close_slow(void *ctx) {
    close(((Slow *)ctx)->fd);
    free(ctx);
}

/* path 的内容，从 from 起。fd 归答复。 */
static struct MHD_Response *body(const char *path, int fd, uint64_t size, uint64_t from) {
    char name[2100];
    snprintf(name, sizeof name, "%s.slow", path);
    Slow *s = access(name, F_OK) == 0 ? malloc(sizeof *s) : NULL;
    if (!s) return MHD_create_response_from_fd_at_offset64(size - from, fd, from);
    *s = (Slow){fd, from};
    return MHD_create_response_from_callback(size - from, 65536, read_slowly, s, close_slow);
}

static enum MHD_Result answer(void *ctx, struct MHD_Connection *c, const char *url, const char *method,
                              const char *version, const char *data, size_t *n, void **state) {
    (void)ctx, (void)method, (void)version, (void)data, (void)n, (void)state;
    char path[2000], text[100];
    const char *offset = MHD_lookup_connection_value(c, MHD_GET_ARGUMENT_KIND, "offset");
    const char *range = MHD_lookup_connection_value(c, MHD_HEADER_KIND, "Range");
    struct stat st;
    snprintf(path, sizeof path, "%s%s%s%s", root, url, offset ? "/" : "", offset ? offset : "");
    int fd = strstr(path, "..") ? -1 : open(path, O_RDONLY);
    if (fd < 0 || fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        if (fd >= 0) close(fd);
        return reply(c, 404, MHD_create_response_from_buffer(0, NULL, MHD_RESPMEM_PERSISTENT));
    }
    uint64_t size = (uint64_t)st.st_size, from = range ? strtoull(range + 6, NULL, 10) : 0;
    if (from > size) from = size;
    struct MHD_Response *r = body(path, fd, size, from);
    snprintf(text, sizeof text, "bytes %llu-%llu/%llu", (unsigned long long)from,
             (unsigned long long)size - 1, (unsigned long long)size);
    if (from) MHD_add_response_header(r, "Content-Range", text);
    add_header(r, path);
    return reply(c, from ? 206 : 200, r);
}

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    root = argv[1];
    struct MHD_Daemon *d = MHD_start_daemon(MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_THREAD_PER_CONNECTION, 0,
                                            NULL, NULL, answer, NULL, MHD_OPTION_END);
    if (!d) return 1;
    printf("%d\n", MHD_get_daemon_info(d, MHD_DAEMON_INFO_BIND_PORT)->port);
    fflush(stdout);
    for (;;) pause();
}
