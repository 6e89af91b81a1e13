/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the commands that work without FUSE share: opening a source, finding paths in it, walking, and how they talk:
 * text that is safe on a terminal, JSON, a progress bar. One thread.
 */
#ifndef FS_COMMANDS_CLI_H
#define FS_COMMANDS_CLI_H

#include "fs/fs.h"

#include "core/io/json.h"

/* The exit status for a negative errno. */
int fs_status(int error);
/* The text of err if it is about this error, a negative errno; otherwise the system's. */
const char *fs_reason(int error, const struct ckpt_err *err);
/* The same text, put into err, which may be NULL; the error. */
int fs_give_reason(struct ckpt_err *err, int error);
/* Say on stderr why a command ends, and with json on stdout as the one document {"error":{"code":...,"message":...}};
 * the exit status. */
int fs_fail(const char *command, bool json, int error, const struct ckpt_err *err);
/* Write out what is buffered for stdout: the status, or another if that fails. */
int fs_finish(const char *command, int status);
/* The usage error for what getopt_long did not accept. */
int fs_bad_option(const char *command, char **argv);

/* The source as it is now: it is not looked at again. */
int fs_open(const char *path, struct ckpt_source **ret, struct ckpt_err *err) CKPT_MUST_USE;
/* ckpt_walk from the top, with the whole path in the error. */
int fs_walk(struct ckpt_source *src, const char *path, struct ckpt_attr *ret, struct ckpt_err *err) CKPT_MUST_USE;
/* Each entry of a directory until visit returns nonzero, which is then the result. */
typedef int fs_visit(void *arg, const struct ckpt_dirent *e);
int fs_each_entry(struct ckpt_source *src, uint64_t id, fs_visit *visit, void *arg, struct ckpt_err *err) CKPT_MUST_USE;
/* ckpt_describe, parsed; to be deleted. */
int fs_describe(struct ckpt_source *src, uint64_t id, cJSON **ret, struct ckpt_err *err) CKPT_MUST_USE;

/* What is at and below a directory, from metadata alone. */
struct fs_sum {
    uint64_t leaves, containers; /* the directory itself is a container too */
    uint64_t bytes, stored;
    uint64_t damaged; /* leaves; err tells of the first */
    struct ckpt_err err;
};
int fs_sum(struct ckpt_source *src, uint64_t id, struct fs_sum *ret, struct ckpt_err *err) CKPT_MUST_USE;

/* A name, as it is; on a terminal with '?' for what could steer it. */
void fs_put_name(FILE *out, const char *name);
const char *fs_human(uint64_t bytes, char buf[32]); /* "1.5 GiB" */
const char *fs_number(double step, char buf[32]);   /* "7", "0.5" */
const char *fs_time(int64_t ns, char buf[32]);      /* local time */
/* "(2,3)", "(3,)", "()", of a JSON array; "-" for anything else. */
const char *fs_shape(const cJSON *shape, char buf[256]);

void fs_json_string(FILE *out, const char *text);
/* before"key":"text" */
void fs_json_pair(FILE *out, const char *before, const char *key, const char *text);
/* {"code":"EUCLEAN","message":"..."} */
void fs_json_error(FILE *out, int error, const struct ckpt_err *err);
void fs_json_time(FILE *out, int64_t ns);
/* before"key":number */
void fs_json_count(FILE *out, const char *before, const char *key, uint64_t count);

/* One line on stderr, if that is a terminal, at most ten times a second. */
struct fs_progress {
    bool on;
    bool shown;
    uint64_t done, total; /* bytes; total 0: not known */
    int64_t begin_ns, shown_ns;
};
void fs_progress_begin(struct fs_progress *p);
void fs_progress_add(struct fs_progress *p, const char *path, uint64_t bytes);
void fs_progress_clear(struct fs_progress *p); /* before anything else is printed, and at the end */

#endif
