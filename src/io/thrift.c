/* thrift — Thrift 紧凑协议的读取
 * 变长整数每字节 7 位、低位在前，有符号的再作 zigzag；字段头是（编号之差 << 4 | 类型）。 */
#include "io/thrift.h"

enum { MAX_DEPTH = 32 };

static uint8_t read_byte(Thrift *t) {
    if (t->p < t->end) return *t->p++;
    t->failed = true;
    return 0;
}

static uint64_t read_varint(Thrift *t) {
    uint64_t v = 0;
    for (int shift = 0; shift < 64; shift += 7) {
        uint8_t b = read_byte(t);
        v |= (uint64_t)(b & 0x7F) << shift;
        if (!(b & 0x80)) return v;
    }
    t->failed = true; /* 超过 64 位 */
    return 0;
}

static int64_t read_zigzag(Thrift *t) {
    uint64_t v = read_varint(t);
    return (int64_t)(v >> 1) ^ -(int64_t)(v & 1);
}

static size_t left(const Thrift *t) {
    return (size_t)(t->end - t->p);
}

static void advance(Thrift *t, uint64_t n) {
    if (n > left(t))
        t->failed = true;
    else
        t->p += n;
}

bool thrift_next(Thrift *t, ThriftField *f) {
    uint8_t head = t->failed ? 0 : read_byte(t);
    f->type = head & 15;
    if (f->type == THRIFT_STOP) return false;
    int64_t id = head >> 4 ? f->id + (head >> 4) : read_zigzag(t);
    if (id < 0 || id > INT16_MAX || f->type > THRIFT_STRUCT) t->failed = true;
    f->id = (int)id;
    return !t->failed;
}

int64_t thrift_int(Thrift *t, ThriftField f) {
    int64_t v = 0;
    switch (f.type) {
    case THRIFT_TRUE: v = 1; break;
    case THRIFT_FALSE: break;
    case THRIFT_I8: v = (int8_t)read_byte(t); break;
    case THRIFT_I16: case THRIFT_I32: case THRIFT_I64: v = read_zigzag(t); break;
    default: t->failed = true;
    }
    return t->failed ? 0 : v;
}

const uint8_t *thrift_bytes(Thrift *t, ThriftField f, size_t *len) {
    *len = 0;
    if (f.type != THRIFT_BINARY) t->failed = true;
    uint64_t n = t->failed ? 0 : read_varint(t);
    const uint8_t *p = t->p;
    advance(t, n);
    if (t->failed) return NULL;
    *len = (size_t)n;
    return p;
}

/* 列表的头：个数与元素的类型。 */
static size_t list_head(Thrift *t, int *element) {
    uint8_t head = read_byte(t);
    uint64_t n = head >> 4;
    *element = head & 15;
    if (n == 15) n = read_varint(t);
    if (n > left(t)) t->failed = true; /* 一个元素至少一个字节 */
    return t->failed ? 0 : (size_t)n;
}

size_t thrift_list(Thrift *t, ThriftField f, int element) {
    int got = element;
    if (f.type != THRIFT_LIST) t->failed = true;
    size_t n = t->failed ? 0 : list_head(t, &got);
    if (n > 0 && got != element) t->failed = true;
    return t->failed ? 0 : n;
}

bool thrift_struct(Thrift *t, ThriftField f) {
    if (f.type != THRIFT_STRUCT) t->failed = true;
    return !t->failed;
}

/* inside: 在列表或映射里（那里的布尔占一个字节）。 */
static void skip_value(Thrift *t, int type, bool inside, int depth) {
    if (depth > MAX_DEPTH) t->failed = true;
    if (t->failed) return;
    switch (type) {
    case THRIFT_TRUE: case THRIFT_FALSE: advance(t, inside ? 1 : 0); break;
    case THRIFT_I8: advance(t, 1); break;
    case THRIFT_I16: case THRIFT_I32: case THRIFT_I64: read_varint(t); break;
    case THRIFT_DOUBLE: advance(t, 8); break;
    case THRIFT_BINARY: advance(t, read_varint(t)); break;
    case THRIFT_LIST: case THRIFT_SET: {
        int element;
        size_t n = list_head(t, &element);
        for (size_t i = 0; i < n && !t->failed; i++) skip_value(t, element, true, depth + 1);
        break;
    }
    case THRIFT_MAP: {
        uint64_t n = read_varint(t);
        uint8_t types = n ? read_byte(t) : 0;
        if (n > left(t)) t->failed = true;
        for (uint64_t i = 0; i < n && !t->failed; i++) {
            skip_value(t, types >> 4, true, depth + 1);
            skip_value(t, types & 15, true, depth + 1);
        }
        break;
    }
    case THRIFT_STRUCT: {
        ThriftField f = {0};
        while (thrift_next(t, &f)) skip_value(t, f.type, false, depth + 1);
        break;
    }
    default: t->failed = true;
    }
}

void thrift_skip(Thrift *t, ThriftField f) {
    skip_value(t, f.type, false, 0);
}
