/* A disk whose syncs take long: loaded before a program's C library (LD_PRELOAD), it waits before each fdatasync and fsync
   for as long as the file that SLOW_DISK names is there, by the milliseconds written in it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void wait_for_disk(void) {
    const char *path = getenv("SLOW_DISK");
    FILE *file = path ? fopen(path, "r") : NULL;
    int milliseconds = 0;
    if (!file) return;
    if (fscanf(file, "%d", &milliseconds) == 1) usleep((useconds_t)milliseconds * 1000);
    fclose(file);
}

int fdatasync(int file) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    wait_for_disk();
    return real(file);
}

int fsync(int file) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    wait_for_disk();
    return real(file);
}
