# ptq-bench 的构建。make help 列出目标。
CC      ?= gcc
BUILD   ?= build
PKGS    := yaml-0.1 jansson libpcre2-8 libutf8proc libcrypto
WARN    := -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes
OPT     ?= -O2 -g
SAN     ?=
SANFLAG := $(if $(SAN),-fsanitize=$(SAN) -fno-sanitize-recover=all -fno-omit-frame-pointer)
CFLAGS  := -std=c11 -D_GNU_SOURCE -Isrc -I. $(OPT) $(WARN) $(SANFLAG) $(shell pkg-config --cflags $(PKGS) 2>/dev/null)
LIBS    := $(shell pkg-config --libs $(PKGS) 2>/dev/null) -lm -lpthread

# 内核源码按指令集各编译一次
ISAS    := generic avx2 avx512 avx512_bf16
ISA_generic     :=
ISA_avx2        := -mavx2 -mfma -mf16c
ISA_avx512      := -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c
ISA_avx512_bf16 := $(ISA_avx512) -mavx512bf16 -mavx512vnni -mavx512vbmi
KERNEL_SRC := $(wildcard src/compute/cpu/isa/*.c)
KERNEL_OBJ := $(foreach i,$(ISAS),$(patsubst src/%.c,$(BUILD)/obj/%.$(i).o,$(KERNEL_SRC)))

MAIN_SRC   := src/main.c $(wildcard scripts/*.c)
METHOD_SRC := $(sort $(filter-out src/methods/base.c,$(wildcard src/methods/*.c)))
METHODS    := $(basename $(notdir $(METHOD_SRC)))
LIB_SRC    := $(sort $(filter-out $(MAIN_SRC) $(KERNEL_SRC),$(shell find src -name '*.c')))
LIB_OBJ    := $(LIB_SRC:%.c=$(BUILD)/obj/%.o) $(BUILD)/obj/method_table.o
LIB_OBJ    := $(patsubst $(BUILD)/obj/src/%,$(BUILD)/obj/%,$(LIB_OBJ))
MAIN_OBJ   := $(patsubst src/%.c,$(BUILD)/obj/%.o,$(patsubst scripts/%.c,$(BUILD)/obj/scripts/%.o,$(MAIN_SRC)))

$(BUILD)/ptq-bench: $(MAIN_OBJ) $(BUILD)/libptq.a
	$(CC) $(CFLAGS) -o $@ $(MAIN_OBJ) $(BUILD)/libptq.a $(LIBS)

$(BUILD)/libptq.a: $(LIB_OBJ) $(KERNEL_OBJ)
	@rm -f $@
	ar rcs $@ $^

$(BUILD)/obj/scripts/%.o: scripts/%.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -MMD -MP -c -o $@ $<
$(BUILD)/obj/%.o: src/%.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -MMD -MP -c -o $@ $<
define KERNEL_RULE
$(BUILD)/obj/%.$(1).o: src/%.c
	@mkdir -p $$(@D)
	$$(CC) $$(CFLAGS) -O3 $$(ISA_$(1)) -DKERNEL_ISA=$(1) -DKERNEL_ISA_$(1) -MMD -MP -c -o $$@ $$<
endef
$(foreach i,$(ISAS),$(eval $(call KERNEL_RULE,$(i))))

# 方法登记表：由 src/methods/ 的文件名生成
$(BUILD)/gen/method_table.c: $(METHOD_SRC) Makefile
	@mkdir -p $(@D)
	@{ echo '/* 自动生成，勿改 */'; echo '#include "registry.h"'; \
	   for m in $(METHODS); do echo "extern const Method ptq_method_$$m;"; done; \
	   echo 'extern const Method *const METHOD_TABLE[]; const Method *const METHOD_TABLE[] = {'; \
	   for m in $(METHODS); do echo "    &ptq_method_$$m,"; done; echo '    0};'; } > $@
$(BUILD)/obj/method_table.o: $(BUILD)/gen/method_table.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -MMD -MP -c -o $@ $<

# 测试：tests/{unit,ops,golden}/test_*.c 各是一个 cmocka 程序
TEST_SRC := $(wildcard tests/unit/test_*.c tests/ops/test_*.c tests/golden/test_*.c)
TEST_BIN := $(patsubst tests/%.c,$(BUILD)/tests/%,$(TEST_SRC))
$(BUILD)/tests/%: tests/%.c $(BUILD)/libptq.a
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -MMD -MP -MF $@.d -o $@ $< $(BUILD)/libptq.a $(LIBS) -lcmocka
tests: $(TEST_BIN)

clean:
	rm -rf build build-*
.PHONY: tests clean
-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
