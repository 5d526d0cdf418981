/* thrift — Thrift 紧凑协议的读取（Parquet 的文件尾与页头用它）
 * 不变式：只读 [p, end) 之内；一处不对 failed 就置真并保持，其后的读取都给 0；嵌套与长度都有上限。 */
#ifndef PTQ_IO_THRIFT_H
#define PTQ_IO_THRIFT_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    THRIFT_STOP, THRIFT_TRUE, THRIFT_FALSE, THRIFT_I8, THRIFT_I16, THRIFT_I32, THRIFT_I64,
    THRIFT_DOUBLE, THRIFT_BINARY, THRIFT_LIST, THRIFT_SET, THRIFT_MAP, THRIFT_STRUCT
};

typedef struct Thrift {
    const uint8_t *p, *end;
    bool failed;
} Thrift;

/* 结构中的一个字段；从 {0} 开始，依次交给 thrift_next。 */
typedef struct ThriftField {
    int id, type;
} ThriftField;
/* 读下一个字段的头。返回: 结构结束（或坏了）为假。字段的值须由调用者读走，不要的用 thrift_skip。 */
bool thrift_next(Thrift *t, ThriftField *f);

/* 整数字段（I8、I16、I32、I64、布尔）的值；别的类型算坏。 */
int64_t thrift_int(Thrift *t, ThriftField f);
/* 字节串。返回: 指向输入，*len 为长度；坏了为 NULL、0。 */
const uint8_t *thrift_bytes(Thrift *t, ThriftField f, size_t *len);
/* 列表的头，元素须是 element 类型。返回: 个数，不大于剩下的字节数。 */
size_t thrift_list(Thrift *t, ThriftField f, int element);
/* 进入结构字段：类型不对时算坏并返回假。 */
bool thrift_struct(Thrift *t, ThriftField f);
/* 略过一个字段的值。 */
void thrift_skip(Thrift *t, ThriftField f);
#endif
