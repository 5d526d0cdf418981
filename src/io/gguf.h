/* gguf — GGUF 文件（v2、v3，小端）
 * 元数据是 键→值 的表；张量见 tensorfile.h。规范：ggml 的 docs/gguf.md。
 * 不变式：字符串长度、数组长度、偏移、对齐都已对照文件大小检查。 */
#ifndef PTQ_IO_GGUF_H
#define PTQ_IO_GGUF_H
#include "io/tensorfile.h"

typedef enum {
    GGUF_U8 = 0, GGUF_I8, GGUF_U16, GGUF_I16, GGUF_U32, GGUF_I32, GGUF_F32, GGUF_BOOL,
    GGUF_STRING, GGUF_ARRAY, GGUF_U64, GGUF_I64, GGUF_F64
} GgufType;

typedef struct GgufString {
    const char *data; /* 指向映射，不以 '\0' 结尾 */
    size_t len;
} GgufString;

typedef struct GgufValue {
    const char *key;
    GgufType type;      /* 标量的类型，或 GGUF_ARRAY */
    GgufType item_type; /* 数组元素的类型 */
    size_t n;           /* 数组元素数；标量为 1 */
    int64_t i;          /* 整数、布尔标量（U64 超过 INT64_MAX 时打开即报错） */
    double f;           /* 数值标量 */
    GgufString s;       /* 字符串标量 */
    const GgufString *strings; /* 字符串数组 */
    const void *items;  /* 数值数组：映射内的原始小端数据，可能不对齐 */
} GgufValue;

typedef struct Gguf {
    TensorFile file;
    GgufValue *values; /* 按键的字节序排列 */
    size_t n_values;
} Gguf;

/* 打开文件。错误: 截断、计数或偏移越界、重名、重叠；大端文件、v1、嵌套数组、不支持的张量类型
 * 为 ERR_UNSUPPORTED。失败时已清理干净，不必再 close。 */
bool gguf_open(Gguf *g, const char *path, Err *e);
/* 解析内存中的内容；data 归调用者，须比 g 活得久。失败时仍须 gguf_close。 */
bool gguf_parse(Gguf *g, const char *name, const uint8_t *data, size_t size, Err *e);
void gguf_close(Gguf *g);
/* 按键找；没有返回 NULL。 */
const GgufValue *gguf_find(const Gguf *g, const char *key);
/* 取标量；缺失（且 required）、类型不符、越界时置 e。不要求且缺失时 *out 不变、返回 true。 */
bool gguf_get_int(const Gguf *g, const char *key, bool required, int64_t lo, int64_t hi,
                  int64_t *out, Err *e);
bool gguf_get_num(const Gguf *g, const char *key, bool required, double *out, Err *e);
bool gguf_get_bool(const Gguf *g, const char *key, bool *out, Err *e);
/* 数值或布尔数组的第 i 个元素（i < v->n）；取整数时实数舍去小数，超出范围取最近的端点，NaN 为 0。 */
double gguf_item_num(const GgufValue *v, size_t i);
int64_t gguf_item_int(const GgufValue *v, size_t i);
#endif
