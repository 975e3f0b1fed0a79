/* A disk on which a power cut leaves what was synced and nothing else: loaded before a program's C library (LD_PRELOAD).

   Of all that lies below the folder POWER_CUT_FOLDER it keeps in the folder POWER_CUT_SHADOW, outside of it, what is durable:

       root         the KEY of POWER_CUT_FOLDER
       files/KEY    a file's bytes as of its last fsync or fdatasync; none is there of a file that was never synced
       dirs/KEY     a folder's entries as of its last fsync, one a line: f or d, KEY, name; likewise

   A KEY is an inode and the time at which it was made: a name that is made anew, or an inode that is used again, is another
   file. So nothing needs to be known of writes, truncations, renames, links and removals: until their file or their folder is
   synced they have not happened. A folder is reached by those above it: one that was synced, in one that was not, is lost.

   What is there when the program starts is durable. To cut the power, kill the program and put in the folder's place what the
   shadow says, from the root on: a file without bytes there is empty. The shadow may be read while the program runs, too:
   a sync that is under way is then half done, as on a disk.

   Syncs do not wait for a disk. sync_file_range and msync promise nothing and are left alone (RocksDB's writes through mmap
   are off unless they are asked for; its allocations keep a file's size); nobody here calls sync, syncfs or opens with O_SYNC. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PLACE (2 * PATH_MAX)

struct key {
    char kind; /* f, d, or 0 for what is neither */
    char text[64];
};

static pthread_mutex_t keeping = PTHREAD_MUTEX_INITIALIZER;
static char folder[PATH_MAX];
static const char *shadow; /* NULL: nothing is kept */

static void fail(const char *what, const char *path) {
    dprintf(STDERR_FILENO, "power_cut: cannot %s %s: %s\n", what, path, strerror(errno));
    abort();
}

static int key_of(int at, const char *name, int flags, struct key *key) {
    struct statx found;
    memset(&found, 0, sizeof found);
    if (statx(at, name, flags | AT_SYMLINK_NOFOLLOW, STATX_TYPE | STATX_INO | STATX_BTIME, &found) != 0) return -1;
    key->kind = S_ISREG(found.stx_mode) ? 'f' : S_ISDIR(found.stx_mode) ? 'd' : 0;
    snprintf(key->text, sizeof key->text, "%llu.%lld.%u", (unsigned long long)found.stx_ino,
             (long long)found.stx_btime.tv_sec, (unsigned)found.stx_btime.tv_nsec);
    return 0;
}

/* Brings the bytes that are kept of a file up to those that it has. Only what differs is written: a log that grows is read
   again, and its end is written. */
static void keep_file(const char *path, const struct key *key) {
    static char now[1 << 16], kept[1 << 16];
    char place[PLACE];
    snprintf(place, sizeof place, "%s/files/%s", shadow, key->text);
    int in = open(path, O_RDONLY | O_CLOEXEC);
    if (in < 0) fail("read", path);
    int out = open(place, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (out < 0) fail("write", place);
    off_t at = 0;
    ssize_t got;
    while ((got = pread(in, now, sizeof now, at)) > 0) {
        if (pread(out, kept, (size_t)got, at) != got || memcmp(now, kept, (size_t)got) != 0) {
            if (pwrite(out, now, (size_t)got, at) != got) fail("write", place);
        }
        at += got;
    }
    if (got < 0) fail("read", path);
    if (ftruncate(out, at) != 0) fail("cut", place);
    close(in);
    close(out);
}

/* Writes the entries of a folder. One that is renamed meanwhile may be passed over by those who list: then once more. */
static void list(const char *path, const char *place) {
    struct stat before, after;
    for (int attempt = 0; attempt < 100; attempt++) {
        DIR *entries = opendir(path);
        if (!entries) fail("list", path);
        FILE *out = fopen(place, "w");
        if (!out) fail("write", place);
        if (fstat(dirfd(entries), &before) != 0) fail("list", path);
        struct dirent *entry;
        while ((entry = readdir(entries))) {
            struct key key;
            if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
            if (key_of(dirfd(entries), entry->d_name, 0, &key) != 0 || key.kind == 0) continue;
            fprintf(out, "%c %s %s\n", key.kind, key.text, entry->d_name);
        }
        if (fstat(dirfd(entries), &after) != 0) fail("list", path);
        closedir(entries);
        if (fclose(out) != 0) fail("write", place);
        if (before.st_mtim.tv_sec == after.st_mtim.tv_sec && before.st_mtim.tv_nsec == after.st_mtim.tv_nsec) return;
    }
}

static void keep_folder(const char *path, const struct key *key) {
    char place[PLACE], next[PLACE + 8];
    snprintf(place, sizeof place, "%s/dirs/%s", shadow, key->text);
    snprintf(next, sizeof next, "%s.next", place);
    list(path, next);
    if (rename(next, place) != 0) fail("replace", place);
}

/* Keeps a folder with all that is below it. */
static void keep_all(const char *path) {
    struct key key;
    if (key_of(AT_FDCWD, path, 0, &key) != 0) return;
    if (key.kind == 'f') keep_file(path, &key);
    if (key.kind != 'd') return;
    keep_folder(path, &key);
    DIR *entries = opendir(path);
    if (!entries) fail("list", path);
    struct dirent *entry;
    while ((entry = readdir(entries))) {
        char below[PLACE];
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        snprintf(below, sizeof below, "%s/%s", path, entry->d_name);
        keep_all(below);
    }
    closedir(entries);
}

__attribute__((constructor)) static void begin(void) {
    const char *wanted = getenv("POWER_CUT_FOLDER"), *kept = getenv("POWER_CUT_SHADOW");
    char place[PLACE];
    struct key key;
    if (!wanted || !kept) return;
    if (!realpath(wanted, folder)) fail("find", wanted);
    for (int index = 0; index < 2; index++) {
        snprintf(place, sizeof place, "%s/%s", kept, index ? "dirs" : "files");
        if (mkdir(place, 0700) != 0 && errno != EEXIST) fail("make", place);
    }
    if (key_of(AT_FDCWD, folder, 0, &key) != 0) fail("find", folder);
    shadow = kept;
    keep_all(folder);
    snprintf(place, sizeof place, "%s/root", kept);
    FILE *root = fopen(place, "w");
    if (!root || fprintf(root, "%s\n", key.text) < 0 || fclose(root) != 0) fail("write", place);
}

/* Keeps what is synced. Says whether it lies below the folder. */
static int kept(int file) {
    char link[64], path[PATH_MAX];
    struct key key;
    if (!shadow) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    size_t above = strlen(folder);
    if (length < 0) return 0;
    path[length] = 0;
    if (strncmp(path, folder, above) != 0 || (path[above] != '/' && path[above] != 0)) return 0;
    if (key_of(file, "", AT_EMPTY_PATH, &key) != 0) return 0;
    pthread_mutex_lock(&keeping);
    if (key.kind == 'f') keep_file(link, &key);
    if (key.kind == 'd') keep_folder(link, &key);
    pthread_mutex_unlock(&keeping);
    return 1;
}

int fdatasync(int file) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    return kept(file) ? 0 : real(file);
}

int fsync(int file) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    return kept(file) ? 0 : real(file);
}
