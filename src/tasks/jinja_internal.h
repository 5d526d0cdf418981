/* jinja_internal — 模板解释器各部分共用的类型
 * 源码 →（jinja_lex）记号 →（jinja_parse、jinja_block）语法树 →（jinja_exec、jinja_eval）输出；
 * 值的运算在 jinja_value，文字的在 pystr，过滤器与方法各一张表。全部内存来自 Interp 的区域，用完整体释放。 */
#ifndef PTQ_TASKS_JINJA_INTERNAL_H
#define PTQ_TASKS_JINJA_INTERNAL_H
#include <stdint.h>

#include "tasks/jinja.h"
#include "tasks/pystr.h"

enum {
    JINJA_PARSE_DEPTH = 100, /* 语法嵌套 */
    JINJA_EVAL_DEPTH = 400,  /* 求值嵌套 */
    JINJA_VALUE_DEPTH = 100  /* 值的嵌套 */
};
#define JINJA_STEPS 5000000
#define JINJA_MEMORY ((size_t)64 << 20)
#define JINJA_OUTPUT ((size_t)16 << 20)
#define JINJA_SOURCE ((size_t)1 << 20)

typedef enum {
    V_ABSENT, /* 没有给出的参数 */
    V_UNDEF, V_NONE, V_BOOL, V_INT, V_FLOAT, V_STR, V_LIST, V_TUPLE,
    V_SEQ, /* 其他可遍历者：range、字典视图、生成器 */
    V_DICT, V_NAMESPACE, V_CALL
} ValueKind;

typedef struct Value Value;
typedef struct Node Node;
typedef struct List {
    Value *items;
    size_t n, cap;
    const char *shown; /* V_SEQ 打印的名字："range(0, 5)"、"dict_items"；NULL 为生成器 */
    bool view;         /* 打印为 名字([…]) */
} List;
typedef struct Dict {
    Value *keys, *values;
    size_t n, cap;
} Dict;
typedef struct Callable Callable;

struct Value {
    ValueKind kind;
    bool soft; /* V_UNDEF：没有 else 的条件式，可以打印成空 */
    union {
        bool boolean;
        int64_t integer;
        double real;
        PyText str;
        List *list;
        Dict *dict;
        Callable *call;
        const char *what; /* V_UNDEF：说明 */
    } u;
};

typedef struct Args {
    const Value *items;
    size_t n;
    const char **names; /* 后 n_named 个有名字 */
    const Value *named;
    size_t n_named;
} Args;

typedef struct Interp Interp;
/* 过滤器、方法、测试的一项。params 是空格分开的参数名，带 ? 者可省；raw 非 NULL 时自己处理参数。 */
typedef struct JinjaDef {
    const char *name, *params;
    bool (*fn)(Interp *in, Value self, const Value *args, Value *out);
    bool (*raw)(Interp *in, Value self, const Args *args, Value *out);
    bool lenient; /* 过滤器：接受未定义的值 */
} JinjaDef;

struct Callable {
    const char *name;
    const JinjaDef *def; /* 方法或全局函数 */
    Value self;
    const Node *macro;
};

typedef enum { /* 记号 */
    T_EOF, T_DATA, T_VAR_BEGIN, T_VAR_END, T_BLOCK_BEGIN, T_BLOCK_END,
    T_NAME, T_STR, T_INT, T_FLOAT, T_OP
} TokenKind;
typedef struct Token {
    TokenKind kind;
    int line;
    PyText text; /* 名字、文字、解码后的字符串 */
    int64_t integer;
    double real;
    char op[3];
} Token;

typedef enum {
    N_CONST, N_NAME, N_ATTR, N_ITEM, N_SLICE, N_CALL, N_FILTER, N_TEST, N_NEG, N_POS, N_BINARY,
    N_COMPARE, N_AND, N_OR, N_NOT, N_COND, N_LIST, N_TUPLE, N_DICT, N_CONCAT,
    N_DATA, N_OUTPUT, N_FOR, N_IF, N_SET, N_SET_BLOCK, N_MACRO, N_BREAK, N_CONTINUE
} NodeKind;
struct Node {
    NodeKind kind;
    int line;
    char op[4];         /* 运算符；in、not in 为 "in"、"ni" */
    const char *name;   /* 名字、属性、过滤器；参数的名字 */
    const JinjaDef *def;
    Value value;
    Node *a, *b, *c;    /* 子表达式 */
    Node *items;        /* 子节点的链表：参数、元素、语句 */
    Node *more;         /* else 的语句；字典的值与 items 对应 */
    Node *next;
};

typedef struct Binding {
    const char *name;
    Value value;
    struct Binding *next;
} Binding;
typedef struct Scope {
    Binding *first;
    struct Scope *outer;
} Scope;

struct Interp {
    Arena arena;
    Err *e;
    const char *where;
    const json_t *context;
    const Token *tokens; /* 解析的位置 */
    size_t at;
    int depth, line, loops;
    int64_t steps;
    Scope *scope;
    Scope globals;
    Str out;
    NodeKind jump; /* N_BREAK、N_CONTINUE 正在进行；否则 N_DATA */
};

/* jinja_lex.c / jinja_parse.c / jinja_block.c */
bool jinja_lex(Interp *in, const char *source, Token **tokens);
Node *jinja_parse_template(Interp *in);
Node *jinja_parse_expr(Interp *in);          /* 单个表达式 */
Node *jinja_parse_tuple(Interp *in, const char *end_name, bool explicit_parens, bool with_cond);
Node *jinja_parse_primary(Interp *in);
Node *jinja_parse_args(Interp *in);          /* "(" 之后到 ")"，失败置 in->e */
Node *jinja_node(Interp *in, NodeKind kind);
bool jinja_is_op(const Interp *in, const char *op);
bool jinja_is_name(const Interp *in, const char *name);
bool jinja_skip_op(Interp *in, const char *op);
bool jinja_skip_name(Interp *in, const char *name);
bool jinja_expect_op(Interp *in, const char *op);

/* jinja_exec.c / jinja_eval.c */
bool jinja_exec(Interp *in, const Node *body);
bool jinja_value(Interp *in, const Node *node, Value *out);
bool jinja_call(Interp *in, const char *what, const JinjaDef *def, Value self, const Args *args,
                Value *out);
bool jinja_call_macro(Interp *in, const Node *macro, const Args *args, Value *out);
bool jinja_binary(Interp *in, const char *op, Value l, Value r, Value *out);
bool jinja_attribute(Interp *in, Value v, const char *name, Value *out);
bool jinja_item(Interp *in, Value v, Value key, Value *out);
bool jinja_bind(Interp *in, Scope *scope, const char *name, Value v);

/* 表 */
const JinjaDef *jinja_filter(const char *name);
const JinjaDef *jinja_test(const char *name);
const JinjaDef *jinja_method(ValueKind kind, const char *name);
const JinjaDef *jinja_global(const char *name);
extern const JinjaDef JINJA_LIST_FILTERS[]; /* 以 name 为 NULL 结束 */
bool jinja_tojson(Interp *in, Value self, const Value *a, Value *out);

/* jinja_value.c：失败都置 in->e 并返回 false */
bool jinja_fail(Interp *in, const char *fmt, ...) PTQ_PRINTF(2, 3);
bool jinja_spend(Interp *in, size_t work);
void *jinja_alloc(Interp *in, size_t bytes);
bool jinja_defined(Interp *in, Value v); /* 未定义则报错 */
const char *jinja_type_name(Value v);    /* Python 的类型名 */
Value v_none(void);
Value v_bool(bool b);
Value v_int(int64_t i);
Value v_float(double d);
Value v_text(PyText t);
Value v_str(const char *s);
Value v_undef(const char *what);
bool v_list(Interp *in, ValueKind kind, size_t cap, Value *out);
bool v_push(Interp *in, Value list, Value item);
bool v_dict(Interp *in, size_t cap, Value *out);
bool v_put(Interp *in, Dict *d, Value key, Value value);
bool v_find(Interp *in, const Dict *d, Value key, Value **value);
bool v_take_str(Interp *in, Str *s, Value *out); /* 移进区域并清空 s */
bool v_from_json(Interp *in, const json_t *j, Value *out);
bool v_truth(Interp *in, Value v, bool *yes);
bool v_equal(Interp *in, Value l, Value r, bool *yes);
bool v_compare(Interp *in, const char *op, Value l, Value r, int *order); /* -1、0、1；2 为 NaN */
bool v_contains(Interp *in, Value container, Value item, bool *yes);
bool v_iterate(Interp *in, Value v, List *out); /* 元素（字典为键，文字为字符） */
bool v_show(Interp *in, Str *out, Value v);     /* str() */
bool v_repr(Interp *in, Str *out, Value v);
bool v_to_text(Interp *in, Value v, PyText *out);
bool v_number(Value v, double *d);  /* 数或布尔 */
bool v_integer(Value v, int64_t *i); /* 整数或布尔 */

/* jinja_format.c */
bool jinja_percent(Interp *in, PyText format, Value args, Value *out);
bool jinja_format_method(Interp *in, Value self, const Args *args, Value *out);
#endif
