/* qtensor — 存放形式的权重矩阵（稠密或量化），评测时直接用它计算
 *
 * 「评测的就是存储的」：没有另外的模拟路径，因此结果里的内存、位宽与速度都是真的。
 *
 * 面板布局（全部类型共用）：每 16 行为一个面板，面板内沿 k 交错，尾部面板补零行。
 *   F32       [面板][k][16]
 *   F16       [面板][k][16]
 *   BF16      [面板][k/2][16][2]              k 补到偶数（vdpbf16ps 的成对布局）
 *   INT b 位  [面板][k/32][位面 p][p 个向量][16 个 u32]   k 补到 32 的倍数
 *             b 拆成位面：2=2 3=2+1 4=4 5=4+1 6=4+2 7=4+2+1 8=8，先低位面后高位面；
 *             位面 p 的向量 v、通道 r 的一个字里是 行 r、列 32·块+v·(32/p) 起的 32/p 个 p 位：p=8 时依次从低位起；
 *             p<8 时偶数列在低 16 位、奇数列在高 16 位，各自从低位起（相邻两列因而在两半的同一处）。
 *   缩放      [面板][组][16]，F32、F16 或 BF16
 *   零点      INT: [面板][组][16]，b≤4 时为半字节（8 字节一组：字节 i 的低半是行 2i，高半是行 2i+1），
 *             b>4 时为 u8；FLOAT: 与缩放同型；SYM: 不存（恒为 2^(b-1)）。
 *   两级统计  （SpQR）缩放、零点各可再量化成 c 位：[面板][组][2c 字节]，16 个 c 位的码从低位起相接；
 *             其后是二级格点 [行组][组][2]：值 = scale·(码 − zero)，行组是 TwoLevel.rows 行。
 *   嵌套缩放  （bitsandbytes 的 double quant）缩放是 u8 的码 [面板][组][16]，其后（对齐到 4 字节）是 256 个 f32 的表与
 *             各外层缩放：值 = 表[码]·外层[(first + 行·n_groups + 组)/per − first/per] + offset。
 *   离群值    （SpQR）按面板 × 32 列分块的 CSR：start[面板·块+1]；at = 块内列·16 + 面板内行，升序；
 *             value 与缩放同型。那些位置的值就是 value，不看编码。
 * 同一行各元素沿 k 依次累加（单累加器），所以 GEMM 与 GEMV、任何批大小的结果逐位相同。
 * 反量化：w = scale·(code − zero)，以 f32 依此次序计算；FLOAT 的 zero 是实数 −lo/scale。
 * 编码不是整数（CodeKind）时没有零点：w = scale·值(code)，值由表（NF4、FP4）或 FP8 的格式定。 */
#ifndef PTQ_COMPUTE_QTENSOR_H
#define PTQ_COMPUTE_QTENSOR_H
#include "base/arena.h"
#include "base/dtype.h"

#define QT_PANEL 16
#define QT_KBLOCK 32

typedef enum { ZERO_SYM, ZERO_INT, ZERO_FLOAT } ZeroKind;

/* 编码代表什么：整数；16（2^位宽）项的表里的一项；FP8 的一个数（8 位）。后三种的 zero 须为 ZERO_SYM（不存）。 */
typedef enum { CODE_INT, CODE_TABLE, CODE_F8_E4M3, CODE_F8_E5M2 } CodeKind;

/* 定 scale 的格点，见 ops.h 的 op_qparams；ABSMAX、TENSOR 只用于 ZERO_SYM，RANGE 只用于 ZERO_INT。 */
typedef enum { GRID_GPTQ, GRID_ABSMAX, GRID_TENSOR, GRID_RANGE } Grid;

/* 量化的规格。group_size 为 -1 或不小于 cols 时整行一组；不必整除 cols（最后一组较短）。 */
typedef struct QSpec {
    int bits;           /* 2..8 */
    int64_t group_size; /* -1 或 >=1 */
    ZeroKind zero;
    DType scale_dtype;  /* DT_F32、DT_F16 或 DT_BF16 */
    Grid grid;          /* 只影响定 scale，不影响存放 */
    CodeKind codes;     /* CODE_INT 之外的不由 op_quantize 产生，只来自已量化的检查点 */
} QSpec;

/* 激活（线性层的输入）怎样取整，对称；到 bits 位的整数时 x ≈ s·round(x/s)，s = max|x|/(2^(bits-1)−1)。 */
typedef enum {
    ACT_NONE,   /* 不量化 */
    ACT_TOKEN,  /* 每个 token 一个 s，当场求 */
    ACT_TENSOR, /* 整个张量一个 s，当场求 */
    ACT_STATIC  /* 整个张量一个 s，事先由校准定好 */
} ActKind;
/* 取整成什么，以及怎样与权重相乘（公式见 ops.h 的 op_round_act）。除 ACT_INT 外只来自已量化的检查点，
 * 都是取整后的值照常与权重相乘。 */
typedef enum {
    ACT_INT,    /* 整数，与 8 位整数的权重作整数矩阵乘 */
    ACT_VALUES, /* 同样的整数，权重不是 8 位整数（如 W4A8） */
    ACT_F8,     /* FP8（e4m3），s = max|x|/448 */
    ACT_MIXED   /* LLM.int8：有离群值的列不取整，其余逐 token 8 位；kind 须为 ACT_TENSOR（列由整个张量定） */
} ActForm;
typedef struct ActQuant {
    ActKind kind;
    int bits;
    float scale; /* ACT_STATIC 用 */
    ActForm form;
    int64_t group;   /* ACT_TOKEN：每 group 列一个 s；0 为整行 */
    float threshold; /* ACT_MIXED：不小于它的是离群值；0 为没有离群值 */
} ActQuant;
/* 输入须先整个以 f32 算好，才能取整。 */
static inline bool act_needs_input(const ActQuant *a) {
    return a->kind == ACT_TENSOR || a->form != ACT_INT;
}

/* 两级统计的规格；全为 0 即一级。零点两级的须为 ZERO_FLOAT。 */
typedef struct TwoLevel {
    int scale_bits, zero_bits; /* 一级缩放、零点的码宽，2..8；0 为直接存放 */
    int64_t rows;              /* 共用一个二级格点的行数，QT_PANEL 的倍数 */
} TwoLevel;
/* 嵌套缩放：每 per 个码共用一个外层缩放（0 即不是嵌套的），本矩阵的首个码是全部码中的第 first 个。 */
typedef struct NestedScale {
    int64_t per, first;
    float offset;
} NestedScale;
/* 二级格点：值 = scale·(码 − zero)。 */
typedef struct StatGrid {
    float scale, zero;
} StatGrid;
typedef enum { STAT_SCALE, STAT_ZERO } StatKind;

/* 分块的 CSR，见开头的布局。 */
typedef struct Outliers {
    uint32_t *start;
    uint16_t *at;
    void *value;
    int64_t n;
    size_t bytes;
} Outliers;

typedef struct QTensor {
    int64_t rows, cols; /* (out_features, in_features) */
    DType dense;        /* DT_F32 / DT_F16 / DT_BF16；量化时为 DT_NONE */
    QSpec spec;         /* 量化时有效，group_size 已化为正数（<=cols） */
    int64_t n_groups;   /* 每行的组数 */
    void *data, *scales, *zeros;
    float *table;  /* CODE_TABLE：(2^bits) 各编码的值 */
    int32_t *perm; /* (cols) 存放的第 k 列是原来的第 perm[k] 列；NULL 为原序（act-order 用） */
    size_t data_bytes, scale_bytes, zero_bytes, perm_bytes, table_bytes; /* 缩放与零点含各自的二级格点 */
    TwoLevel two;      /* 二级格点在 scales、zeros 的末尾 */
    NestedScale nested;
    Outliers outliers; /* start 为 NULL 即没有 */
} QTensor;

/* 组宽化为正数且不大于 cols：-1 或过大的一律是整行。参数: group_size 为 -1 或 >=1，cols>=1。 */
int64_t qspec_group_size(const QSpec *spec, int64_t cols);
/* 分配稠密矩阵的空间（未填）。错误: 内存不足、形状非法。 */
bool qtensor_new_dense(QTensor *q, Arena *a, DType dtype, int64_t rows, int64_t cols, Err *e);
/* 分配量化矩阵的空间（未填）。错误: 位宽或组宽越界、内存不足。 */
bool qtensor_new(QTensor *q, Arena *a, QSpec spec, int64_t rows, int64_t cols, Err *e);
/* 同上，统计为两级。空间未填：格点与码由 qtensor_set_stat_*、编码由 op_quantize 填。错误: 同上，或 two 非法。 */
bool qtensor_new_two_level(QTensor *q, Arena *a, QSpec spec, TwoLevel two, int64_t rows,
                           int64_t cols, Err *e);
/* 不分配，只算三部分的字节数（填进 q 的 *_bytes），供 --dry_run。 */
bool qtensor_measure(QTensor *q, DType dense_or_none, QSpec spec, int64_t rows, int64_t cols,
                     Err *e);
/* 同 qtensor_new，缩放是嵌套的（码以 qtensor_set_stat_code 写，其余以 qtensor_set_nested）。错误: 同上，或 per、first 非法。 */
bool qtensor_new_nested(QTensor *q, Arena *a, QSpec spec, NestedScale nested, int64_t rows,
                        int64_t cols, Err *e);
size_t qtensor_bytes(const QTensor *q);
/* 全部数据段（指针的位置与字节数）写进 part[QT_PARTS]，存盘用；没有的段字节数为 0。
 * 装回时两级统计的段之后须还有 8 个可读的字节。 */
enum { QT_PARTS = 8 };
typedef struct QtPart {
    void **data;
    size_t bytes;
} QtPart;
void qtensor_parts(QTensor *q, QtPart *part);
/* 记下列的排列（复制到 a）。perm 须是 0..cols-1 的一个排列（否则 CHECK）。 */
bool qtensor_set_perm(QTensor *q, Arena *a, const int32_t *perm, Err *e);
/* 记下离群值。参数: w 与 mask 都是 (rows, cols)、列按存放的次序，mask 非 0 处即离群值，存 w 的值。
 * 错误: 内存不足；缩放为 F16 而值超出 f16 的范围。 */
bool qtensor_set_outliers(QTensor *q, Arena *a, const float *w, const uint8_t *mask, Err *e);
/* (row, col) 若是离群值，把值写入 *value 并返回真。 */
bool qtensor_outlier(const QTensor *q, int64_t row, int64_t col, float *value);
/* 写入一个数所需的面板寻址，供装包与测试：逐元素、慢而直白。 */
int qtensor_code(const QTensor *q, int64_t row, int64_t col);
void qtensor_set_code(QTensor *q, int64_t row, int64_t col, int code);
float qtensor_scale(const QTensor *q, int64_t row, int64_t group);
float qtensor_zero(const QTensor *q, int64_t row, int64_t group); /* SYM 返回 2^(b-1) */
/* 一级存放的才能直接写。 */
void qtensor_set_scale(QTensor *q, int64_t row, int64_t group, float scale);
void qtensor_set_zero(QTensor *q, int64_t row, int64_t group, float zero);
/* 两级的：row_group = 行 / two.rows。格点按缩放的类型舍入后存放，取出的是舍入后的。 */
StatGrid qtensor_stat_grid(const QTensor *q, StatKind kind, int64_t row_group, int64_t group);
void qtensor_set_stat_grid(QTensor *q, StatKind kind, int64_t row_group, int64_t group, StatGrid g);
int qtensor_stat_code(const QTensor *q, StatKind kind, int64_t row, int64_t group);
void qtensor_set_stat_code(QTensor *q, StatKind kind, int64_t row, int64_t group, int code);
/* 嵌套缩放的表与外层缩放：写入（复制）与项数。 */
void qtensor_set_nested(QTensor *q, const float table[256], const float *outer);
int64_t qtensor_n_outer(const QTensor *q);
float qtensor_nested_scale(const QTensor *q, int64_t row, int64_t group);
/* CODE_TABLE 的表复制到 a（2^bits 项）。错误: 内存不足。 */
bool qtensor_set_table(QTensor *q, Arena *a, const float *table, Err *e);
/* 各编码的值，(2^bits)；CODE_INT 没有（CHECK）。q 须在主机。 */
const float *qtensor_code_values(const QTensor *q);
/* 一个 FP8 的值；e5m2 为假即 e4m3fn。NaN、Inf 照其格式。 */
float f8_to_f32(uint8_t code, bool e5m2);
/* 整个面板的编码：code 是面板首行起的 (行数, cols)（行距 cols，列按存放的次序）；不满 16 行时只读有的。 */
void qtensor_pack_panel(QTensor *q, int64_t panel, const uint8_t *code);
/* 以上的 col 与 group 都按存放的次序；qtensor_at 亦然。
 * 单个元素的（反量化后的）值，任何类型。 */
float qtensor_at(const QTensor *q, int64_t row, int64_t col);
#endif
