/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ckptfs export: a checkpoint, or a part of one, as plain files, as one safetensors file, or as an Orbax checkpoint.
 * They have their name when all of them are whole and durable.
 */
#include "fs/commands/cli.h"
#include "fs/commands/commands.h"
#include "fs/commands/interrupt.h"
#include "fs/commands/resolve.h"
#include "fs/commands/transfer.h"

#include "core/base/path.h"
#include "core/base/util.h"
#include "core/io/json.h"
#include "core/io/disk.h"

#include <dirent.h>
#include <fcntl.h>
#include <getopt.h>
#include <strings.h>
#include <stdio.h>
#include <sys/stat.h>

struct export;

struct format {
    const char *name;
    int (*write)(struct export *x, const char *path, struct ckpt_err *err); /* all of it, under the temporary name */
    bool file;
};

struct export
{
    const struct format *format;
    struct fs_place from;
    struct fs_transfer transfer;
    char *folder; /* that DST lies in */
    int parent;   /* the same, open */
    char *name;   /* DST's last name */
    char temporary[64];
    bool taken; /* there is something under the name already */
    bool json;
    uint64_t left_out; /* leaves */
};

static int open_from(struct export *x, const char *path, struct ckpt_err *err)
{
    CKPT_AUTOFREE char *meta = NULL;
    size_t len;
    int r = fs_resolve(path, &x->from, err);
    if (r < 0)
        return r;
    x->transfer.src = x->from.src;
    if (x->from.at.type != CKPT_DIR)
        return ckpt_fail(err, EINVAL, "%s: a file; 'ckptfs cp' copies single files", path);
    r = ckpt_describe(x->from.src, x->from.at.id, &meta, &len, err);
    if (r == -ENODATA)
        return ckpt_fail(err, EINVAL, "%s is no checkpoint, nor a part of one; 'ckptfs cp' copies other directories",
                         path);
    return r;
}

/* The rename at the end takes the place of an empty directory, and of nothing else. */
static bool is_taken(int parent, const char *name)
{
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir) {
        bool absent = errno == ENOENT;
        if (fd >= 0)
            close(fd);
        return !absent;
    }
    unsigned entries = 0;
    while (readdir(dir) && entries < 3) /* two are "." and ".." */
        entries++;
    closedir(dir);
    return entries > 2;
}

static bool is_new_name(const char *name)
{
    bool is_fixed = !strcmp(name, ".") || !strcmp(name, "..");
    return *name && !is_fixed && strlen(name) <= 255;
}

/* DST by its folder and its name there: of one file also a directory, which then gets a model.safetensors. */
static int split_destination(struct export *x, const char *path, struct ckpt_err *err)
{
    CKPT_AUTOFREE char *folder = strdup(path);
    struct stat st;
    if (!folder)
        return ckpt_no_memory(err);
    bool is_file = x->format->file;
    if (is_file && stat(folder, &st) == 0 && S_ISDIR(st.st_mode)) {
        x->name = strdup("model.safetensors");
        x->folder = CKPT_STEAL(folder);
        return x->name ? 0 : ckpt_no_memory(err);
    }
    size_t n = strlen(folder);
    bool has_slash = n && folder[n - 1] == '/';
    if (is_file && has_slash)
        return ckpt_fail(err, EINVAL, "%s: there is no such directory", path);
    while (n > 1 && folder[n - 1] == '/')
        folder[--n] = 0;
    char *slash = strrchr(folder, '/');
    const char *name = ckpt_path_name(folder);
    if (!is_new_name(name))
        return ckpt_fail(err, EINVAL, "%s: the name of a new %s is wanted", path, is_file ? "file" : "directory");
    x->name = strdup(name);
    if (slash)
        slash[slash == folder] = 0; /* "/" is the folder of "/name" */
    x->folder = slash ? CKPT_STEAL(folder) : strdup(".");
    return x->name && x->folder ? 0 : ckpt_no_memory(err);
}

static int open_to(struct export *x, const char *path, struct ckpt_err *err)
{
    int r = split_destination(x, path, err);
    if (r < 0)
        return r;
    x->parent = open(x->folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    x->transfer.unwritable = x->parent < 0;
    if (x->parent < 0)
        return ckpt_fail(err, errno, "%s: %s", path, strerror(errno));
    x->taken = is_taken(x->parent, x->name);
    return x->taken ? ckpt_fail(err, EEXIST, "%s/%s is there already", x->folder, x->name) : 0;
}

/* --- npy: a directory of files --- */

/* Under the temporary name: a descriptor. */
static int make_directory(struct export *x, const char *path, struct ckpt_err *err)
{
    int dir = -1, r = ckpt_disk_mkdir(x->parent, x->temporary, (x->from.at.mode | 0700) & 0777);
    if (r == 0) {
        dir = openat(x->parent, x->temporary, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        r = dir < 0 ? -errno : 0;
    }
    if (r == 0)
        return dir;
    x->transfer.unwritable = true;
    return ckpt_fail(err, -r, "%s cannot be made: %s", path, strerror(-r));
}

static int write_directory(struct export *x, const char *path, struct ckpt_err *err)
{
    CKPT_AUTOFD int dir = make_directory(x, path, err);
    return dir < 0 ? dir : fs_transfer_contents(&x->transfer, &x->from.at, dir, err);
}

/* --- safetensors: one file --- */

static void tell(struct export *x, const char *name, const char *why)
{
    if (x->json) {
        printf("%s{", x->left_out ? "," : "{\"left_out\":[");
        fs_json_pair(stdout, "", "path", name);
        fs_json_pair(stdout, ",", "reason", why);
        putchar('}');
    }
    fputs("ckptfs export: ", stderr);
    fs_put_name(stderr, name);
    fputs(": left out: ", stderr);
    fs_put_name(stderr, why);
    fputc('\n', stderr);
    x->left_out++;
}

/* One member of the metadata, its value as JSON. */
static void tell_if_left_out(struct export *x, const char *name, const struct ckpt_buf *text)
{
    static const char left_out[] = "left out: ";
    size_t n = strlen(left_out);
    bool begins_so = text->len > n && !memcmp(text->data + 1, left_out, n); /* behind the quote */
    if (!begins_so)
        return;
    cJSON *why = ckpt_json_parse((char *)text->data, text->len);
    if (cJSON_IsString(why))
        tell(x, name, why->valuestring + n);
    cJSON_Delete(why);
}

/* What the file does not hold it says itself, in its metadata. */
static int tell_left_out(struct export *x, struct ckpt_json_reader *json, struct ckpt_err *err)
{
    struct ckpt_buf key = CKPT_BUF_INIT, text = CKPT_BUF_INIT;
    ckpt_json_seek(json, 8); /* behind the length */
    int r = ckpt_json_enter_object(json, err);
    if (r == 0)
        r = ckpt_json_member(json, &key, err); /* __metadata__, which comes first */
    if (r == 1)
        r = ckpt_json_enter_object(json, err);
    while (r == 0) {
        r = ckpt_json_member(json, &key, err);
        if (r != 1) /* the last one was there, or an error */
            break;
        r = ckpt_json_value(json, &text, err);
        if (r == 0)
            tell_if_left_out(x, (char *)key.data, &text);
    }
    ckpt_buf_clear(&key);
    ckpt_buf_clear(&text);
    return r;
}

static int write_file(struct export *x, const char *path, struct ckpt_err *err)
{
    struct ckpt_attr at;
    struct ckpt_backend *folder = NULL;
    struct ckpt_file *file = NULL;
    struct ckpt_json_reader *json = NULL;
    int r = ckpt_lookup(x->from.src, x->from.at.id, ".safetensors", &at, err);
    if (r < 0)
        return r;
    r = fs_transfer_entry(&x->transfer, &at, x->parent, x->temporary, err);
    ckpt_forget(x->from.src, at.id, 1);
    if (r < 0)
        return r;
    r = ckpt_backend_open_posix(x->folder, &folder, err);
    if (r == 0)
        r = ckpt_backend_open(folder, x->temporary, &file);
    if (r == 0)
        r = ckpt_json_open(file, &json);
    r = r < 0 ? ckpt_fail(err, -r, "%s: %s", path, strerror(-r)) : tell_left_out(x, json, err);
    ckpt_json_close(json);
    ckpt_file_unref(file);
    ckpt_backend_unref(folder);
    return r;
}

/* --- orbax: a directory of the files that Orbax writes --- */

/* Kept until all is written: nothing is told of an export that fails. Name and reason, each with its NUL. */
static void keep_left_out(void *arg, const char *name, const char *why)
{
    ckpt_buf_add(arg, name, strlen(name) + 1);
    ckpt_buf_add(arg, why, strlen(why) + 1);
}

static void tell_kept(struct export *x, const struct ckpt_buf *kept)
{
    const char *name = (char *)kept->data, *end = name + kept->len;
    while (name < end) {
        const char *why = name + strlen(name) + 1;
        tell(x, name, why);
        name = why + strlen(why) + 1;
    }
}

static int write_orbax(struct export *x, const char *path, struct ckpt_err *err)
{
    struct ckpt_files *files = NULL;
    struct ckpt_buf kept = CKPT_BUF_INIT;
    CKPT_AUTOFD int dir = make_directory(x, path, err);
    int r = dir < 0 ? dir : ckpt_files_open(x->from.src, x->from.at.id, keep_left_out, &kept, &files, err);
    if (r == 0)
        r = fs_transfer_files(&x->transfer, files, dir, err);
    if (r == 0 && ckpt_buf_error(&kept))
        r = ckpt_no_memory(err);
    if (r == 0)
        tell_kept(x, &kept);
    ckpt_files_close(files);
    ckpt_buf_clear(&kept);
    return r;
}

/* --- any of them --- */

static const struct format formats[] = {
    {"npy", write_directory, false}, {"safetensors", write_file, true}, {"orbax", write_orbax, false}};

static int write_all(struct export *x, const char *path, struct ckpt_err *err)
{
    int r = x->format->write(x, path, err);
    if (r < 0)
        return r;
    r = ckpt_disk_rename(x->parent, x->temporary, x->parent, x->name, x->format->file ? RENAME_NOREPLACE : 0);
    if (r == -EINVAL) /* a file system that cannot tell: it was not there when this began */
        r = ckpt_disk_rename(x->parent, x->temporary, x->parent, x->name, 0);
    x->taken = r == -ENOTEMPTY || r == -EEXIST || r == -ENOTDIR;
    if (r == 0)
        r = ckpt_disk_fsync(x->parent);
    x->transfer.unwritable = r < 0;
    return r < 0 ? ckpt_fail(err, -r, "%s: %s", path, strerror(-r)) : 0;
}

static int run(struct export *x, const char *from, const char *to, struct ckpt_err *err)
{
    int r = open_from(x, from, err);
    if (r == 0)
        r = open_to(x, to, err);
    if (r < 0)
        return r;
    snprintf(x->temporary, sizeof x->temporary, ".ckptfs-export-%ld.tmp", (long)getpid());
    r = write_all(x, to, err);
    if (r < 0 && x->format->file)
        (void)!ckpt_disk_unlink(x->parent, x->temporary, 0);
    else if (r < 0)
        (void)!ckpt_disk_remove_tree(x->parent, x->temporary);
    return r;
}

static int finish(const struct export *x, int r, const struct ckpt_err *err)
{
    if (r < 0) {
        int status = fs_fail("export", x->json, r, err);
        if (x->taken)
            return FS_USAGE;
        return x->transfer.unwritable ? FS_PARTLY : status;
    }
    if (x->json)
        printf("%s\"files\":%llu,\"bytes\":%llu}\n", x->left_out ? "]," : "{", (unsigned long long)x->transfer.files,
               (unsigned long long)x->transfer.bytes);
    return fs_finish("export", x->left_out ? FS_PARTLY : FS_OK);
}

/* The format that a file of the destination's name has; NULL: it can be any. */
static const char *format_of(const char *to)
{
    static const char *const suffixes[] = {".safetensors", ".sft"};
    size_t n = strlen(to);
    for (size_t i = 0; i < sizeof suffixes / sizeof *suffixes; i++)
        if (n > strlen(suffixes[i]) && !strcasecmp(to + n - strlen(suffixes[i]), suffixes[i]))
            return "safetensors";
    return NULL;
}

/* 0, or the exit status. */
static int choose_format(struct export *x, const char *name, const char *to)
{
    if (!name)
        name = format_of(to);
    if (!name)
        return fs_usage("export",
                        "--format is wanted: npy, safetensors or orbax; or a destination that ends in .safetensors");
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        if (!strcmp(name, formats[i].name)) {
            x->format = &formats[i];
            return 0;
        }
    return fs_usage("export", "there is no format %s; there are npy, safetensors and orbax", name);
}

int fs_export_main(int argc, char **argv)
{
    static const struct option options[] = {
        {"json", no_argument, NULL, 'j'}, {"format", required_argument, NULL, 'f'}, {0}};
    struct export x = {.parent = -1, .transfer = {.max_depth = FS_REMOVABLE_DEPTH, .file_mode = 0600, .durable = true}};
    struct ckpt_err err = {0};
    const char *format = NULL;
    opterr = 0;
    for (int o; (o = getopt_long(argc, argv, "", options, NULL)) != -1;)
        switch (o) {
        case 'j':
            x.json = true;
            break;
        case 'f':
            format = optarg;
            break;
        default:
            return fs_bad_option("export", argv);
        }
    if (argc - optind != 2)
        return fs_usage("export", "a checkpoint and a destination are wanted");
    int status = choose_format(&x, format, argv[optind + 1]);
    if (status)
        return status;
    ckpt_log_setup(CKPT_LOG_ERROR, 0);
    fs_interrupt_begin();
    int r = run(&x, argv[optind], argv[optind + 1], &err);
    status = finish(&x, r, &err);
    fs_place_clear(&x.from);
    if (x.parent >= 0)
        close(x.parent);
    free(x.folder);
    free(x.name);
    if (r < 0)
        fs_interrupt_end();
    return status;
}
