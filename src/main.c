/* main — 程序入口：按第一个参数派发到 scripts/ 里的子命令
 * 这里只有一张命令表；每个子命令自己解析参数、打印错误、给出退出码。 */
#include <stdio.h>
#include <string.h>

#include "scripts/commands.h"
#include "base/log.h"
#include "base/str.h"
#include "env_info.h"

typedef struct Command {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *about;
} Command;

static const Command COMMANDS[] = {
    {"run_one", cmd_run_one, "跑一个实验：模型 × 方法 × 轨道"},
    {"run_all", cmd_run_all, "跑一个实验矩阵（YAML），可中断、可续跑"},
    {"leaderboard", cmd_leaderboard, "汇总全部结果为排行榜与图"},
    {"prepare_data", cmd_prepare_data, "取得模型与评测文本"},
    {"list", cmd_list, "列出模型、方法、轨道、任务或全部设置"},
    {"serve", cmd_serve, "把量化后的模型开成 OpenAI 兼容的 HTTP 服务"},
    {"export", cmd_export, "量化并写成 GPTQ、AWQ、compressed-tensors 等格式的文件夹"},
    {"synth", cmd_synth, "造一个随机权重的模型文件夹（形状同真实的模型），测速用"},
    {"tokenize", cmd_tokenize, "把文件分词成 ids，供与其他程序对照"},
    {"logits", cmd_logits, "算出一串 ids 的 logits，供与其他程序对照"},
};
enum { N_COMMANDS = sizeof COMMANDS / sizeof *COMMANDS };

const char *program_name = "ptq-bench";

static void print_help(FILE *f) {
    Str out = {0};
    str_add(&out, "ptq-bench " PTQ_VERSION " — 大模型训练后量化（PTQ）的可复现评测\n\n"
                  "用法: ptq-bench 命令 [选项]      ptq-bench 命令 --help\n\n命令:\n");
    for (int i = 0; i < N_COMMANDS; i++) {
        str_add(&out, "  ");
        str_add_padded(&out, COMMANDS[i].name, 14, false);
        str_addf(&out, "%s\n", COMMANDS[i].about);
    }
    str_add(&out, "\n例: ptq-bench run_one --model demo --method rtn --track A "
                  "--override weight.w_bits=3\n");
    if (!out.failed) fputs(out.data, f);
    str_free(&out);
}

static int unknown_command(const char *name) {
    const char *names[N_COMMANDS];
    for (int i = 0; i < N_COMMANDS; i++) names[i] = COMMANDS[i].name;
    const char *near = str_nearest(name, names, N_COMMANDS);
    log_line(LOG_FAIL, "没有命令 '%s'%s%s%s全部命令: ptq-bench --help", name,
             near ? "，是否想写 '" : "", near ? near : "", near ? "'？" : "。");
    return err_exit_code(ERR_USAGE);
}

int main(int argc, char **argv) {
    if (argc > 0) program_name = argv[0];
    if (argc < 2) {
        print_help(stderr);
        return err_exit_code(ERR_USAGE);
    }
    const char *name = argv[1];
    if (strcmp(name, "-h") == 0 || strcmp(name, "--help") == 0 || strcmp(name, "help") == 0) {
        print_help(stdout);
        return 0;
    }
    if (strcmp(name, "--version") == 0) {
        puts("ptq-bench " PTQ_VERSION);
        return 0;
    }
    for (int i = 0; i < N_COMMANDS; i++)
        if (strcmp(COMMANDS[i].name, name) == 0) return COMMANDS[i].run(argc - 1, argv + 1);
    return unknown_command(name);
}
