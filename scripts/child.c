/* child — 子进程的实现 */
#include "scripts/child.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"

static _Noreturn void become(char *const *argv, pid_t parent) {
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    execv("/proc/self/exe", argv);
    _exit(127);
}

/* 等子进程结束；收到中断就转达给它再等。返回 waitpid 的状态。 */
static int wait_child(pid_t pid) {
    int status = 0;
    bool told = false;
    for (;;) {
        if (interrupt_requested() && !told) {
            kill(pid, SIGINT);
            told = true;
        }
        pid_t got = waitpid(pid, &status, told ? 0 : WNOHANG);
        if (got == pid) return status;
        if (got < 0 && errno != EINTR) return 1 << 8;
        if (got == 0) {
            struct timespec pause = {0, 5 * 1000 * 1000};
            nanosleep(&pause, NULL);
        }
    }
}

bool child_run(char *const *argv, Err *why) {
    pid_t parent = getpid(), pid = fork();
    if (pid < 0) return err_set(why, ERR_MEMORY, "开不了子进程: %s", strerror(errno));
    if (pid == 0) become(argv, parent);
    int status = wait_child(pid);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return true;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 130)
        return err_set(why, ERR_INTERRUPTED, "被中断");
    if (WIFEXITED(status))
        return err_set(why, ERR_IO, "子进程以退出码 %d 结束", WEXITSTATUS(status));
    int sig = WTERMSIG(status);
    return err_set(why, sig == SIGKILL ? ERR_MEMORY : ERR_IO, "子进程被信号 %d（%s）结束%s", sig,
                   strsignal(sig), sig == SIGKILL ? "：多半是内存不足，被系统杀死" : "，这是程序的缺陷");
}
