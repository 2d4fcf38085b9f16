/* Preloaded into redis-server: writes down how much of each append-only file is on the disk for certain.
 *
 * FSYNCS names the log. After each fsync or fdatasync that succeeded it gets a line "PATH SIZE", with the size that the
 * file had before the call: what was written while it ran may or may not be there.
 * FSYNC_DELAY_MS, if set, makes each of them take so much longer, as a busy disk would.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static int synced(const char *name, int fd) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    struct stat before;
    char link[64], path[PATH_MAX], line[PATH_MAX + 32];
    const char *log = getenv("FSYNCS"), *delay = getenv("FSYNC_DELAY_MS");
    int known = log != NULL && fstat(fd, &before) == 0 && S_ISREG(before.st_mode);
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = known ? readlink(link, path, sizeof path - 1) : -1;
    if (delay != NULL && length > 4 && strncmp(path + length - 4, ".aof", 4) == 0) {
        struct timespec pause = {atoi(delay) / 1000, atoi(delay) % 1000 * 1000000L};
        nanosleep(&pause, NULL);
    }
    int result = real(fd);
    if (result == 0 && length > 0) {
        path[length] = 0;
        int size = snprintf(line, sizeof line, "%s %lld\n", path, (long long)before.st_size);
        int to = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        if (to >= 0) {
            /* One write, so that lines of two threads do not mix. */
            if (write(to, line, (size_t)size) != size) _exit(86);
            close(to);
        }
    }
    return result;
}

int fsync(int fd) { return synced("fsync", fd); }
int fdatasync(int fd) { return synced("fdatasync", fd); }
