/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Private to core/stage: what staged steps are made of. See stage.h for the locks.
 *
 * Verbs: `ref` takes a reference, which `unref` or `forget` gives back; `use` keeps an inode, with its descriptor, for
 * one call, until `unuse`. What is named by what it is found by (_by_id, _by_stat) is borrowed. _locked: under the
 * set's lock.
 */
#ifndef CKPT_STAGE_PRIVATE_H
#define CKPT_STAGE_PRIVATE_H

#include "core/base/log.h"
#include "core/base/pool.h"
#include "core/base/rights.h"
#include "core/base/util.h"
#include "core/base/waiting.h"
#include "core/io/disk.h"
#include "core/stage/stage.h"

#include <fcntl.h>

enum stage_state { STAGE_OPEN, STAGE_GONE };

/* A thread that has looked something up for the second time, and is about to open or change it. */
struct stage_awaited {
    pid_t thread;
    int64_t until_ns; /* CLOCK_MONOTONIC; 0: nobody */
};
#define STAGE_AWAITED 16

/* A process that has written to a step. */
struct stage_process {
    pid_t pid;
    unsigned long long start; /* clock ticks, to know a reused number */
};

struct stage_step {
    struct ckpt_stages *set;
    struct stage_step *next;
    char *name;                     /* at the root; under the set's lock */
    char id[33];                    /* of its directory in staging/ */
    int work, tree, hold, lock;     /* descriptors: staging/ID, its tree/, hold/ and lock */
    bool files_view;                /* the root's own directory: no step at all, and in no list */
    bool adopted;                   /* of an earlier process */
    atomic_bool unsynced;           /* it has files whose attributes are not durable with their names */
    char base_id[CKPT_MANIFEST_ID]; /* of the manifest that it changes; empty: it is new */
    struct stage_inode *top;
    pthread_rwlock_t freeze;
    pthread_mutex_t names; /* held while names change, on disk and in the inodes, and while a file is opened by its
                              name; before the set's lock */
    atomic_int state;      /* enum stage_state; GONE under freeze's writer */
    atomic_bool sealed; /* a commit has begun: a file may have an object's mode and owner, and a mark that tells its own
                           (seal.c) */
    unsigned uses;      /* the list's one, its inodes', callers': under the set's lock */
    unsigned inodes, busy;   /* of uses, those by its inodes; calls to these and handles of them */
    struct stage_user *user; /* whose share of the descriptors it takes from; NULL: of nobody's */

    /* under the set's lock */
    char became[CKPT_MANIFEST_ID]; /* of the manifest that its commit has made; empty: none, or it is not known */
    struct stage_awaited awaited[STAGE_AWAITED];
    bool write_failed;  /* a file is not what its writer wanted: it does not commit by itself any more */
    bool touched;       /* in the life of this process, or it was ready when the last one unmounted */
    bool tried;         /* committing by itself failed; not again before a change */
    int64_t changed_ns; /* CLOCK_MONOTONIC */
    unsigned open_writes;
    unsigned jobs;      /* background work, waiting or under way */
    uint64_t job_bytes; /* of the files whose objects are being made, or wait for it */
    struct stage_process *processes;
    unsigned process_count, process_room;
    pid_t last_pid; /* of these, to be quick */
    char *error;    /* why the last commit failed */
    bool told_name; /* `error` says that it cannot be committed under its name. Under the set's lock */
};

/*
 * A file or directory of a step. It stays known while the caller refers to it, it is open, or its content is known. The
 * kernel may know a hundred thousand of them, so their descriptors are closed when there are many, those used longest
 * ago first, and opened again by name.
 */
struct stage_inode {
    struct stage_inode *next_id, *next_key;
    struct stage_inode *older, *newer; /* among those whose descriptors are open */
    struct stage_inode
        *parent; /* the directory where it is found under `name`; NULL with it: its descriptor stays open */
    char *name;
    unsigned children; /* inodes that have it for their parent */
    uint64_t id;
    dev_t dev;
    ino_t ino;
    bool dir;
    bool is_top;   /* its step's own directory */
    bool alias;    /* no more than a name in `parent`: see ckpt_stage_alias() */
    bool unlinked; /* no name leads here any more: out of the table by (dev, ino) */
    struct stage_step *step;
    int fd;        /* O_PATH; -1: closed. Open between ckpt_stage_use and ckpt_stage_unuse */
    unsigned uses; /* calls under way */
    uint64_t refs; /* look-ups */
    unsigned opens, open_writes;
    pthread_mutex_t content;
    atomic_int shared;      /* is it a reference file? -1: that could not be read. Changed under content */
    struct ckpt_ref shares; /* of a reference file, once `shared` is 1: changed under content and the set's lock */
    atomic_uint changing;   /* calls that change its own bytes */
    struct ckpt_ref was;    /* what it shared; it was only cut since, as of gen was_gen. size 0: none. Under content */
    uint64_t was_gen;
    atomic_bool no_evict;     /* its bytes stay on disk, also when there is an object of them */
    atomic_uint_fast64_t gen; /* changes of its bytes */
    bool known;               /* `made` is the content as of known_gen: under the set's lock */
    bool queued;
    atomic_bool cancel;        /* its object is not wanted any more */
    atomic_bool kernel_writes; /* the kernel has had it for passthrough: it may have changed it, or mapped it still */
    atomic_uint seq; /* sequence counter. Odd: its bytes change their kind, and its user sees `times` and `length` */
    atomic_bool cutting;      /* bytes of its own are cut off; after it is set, `seq` goes up by two */
    struct timespec times[2]; /* of access and of change: under the set's lock */
    uint64_t length;          /* with them */
    uint64_t known_gen;
    struct ckpt_ref made;
};

struct ckpt_stage_handle {
    struct stage_inode *inode;
    int fd;             /* of the staged file */
    bool read, write;   /* what it was opened for */
    bool kernel_writes; /* by passthrough, without calls of ours */
    pthread_mutex_t lock;
    struct ckpt_file *payload;         /* of a reference file that can be read */
    uint8_t payload_hash[CKPT_SHA256]; /* of its object */
};

/* Something to be done in the background. */
struct stage_task {
    struct stage_task *next;
    struct stage_step *step;
    uid_t uid; /* for whom */
    bool slow; /* it may last */
    void (*run)(struct stage_task *task);
};

#define STAGE_BUCKETS 65536 /* of both tables of inodes */
#define STAGE_LINEAGE 256u  /* manifests whose successors are known */

struct stage_lineage {
    struct stage_lineage_entry {
        char id[CKPT_MANIFEST_ID];        /* empty: none */
        char successor[CKPT_MANIFEST_ID]; /* empty: it has none */
        char name[CKPT_STEP_NAME + 1];    /* of its step, while it has no successor */
    } entries[STAGE_LINEAGE];
    unsigned next;
};

struct ckpt_stages {
    struct ckpt_store *store;
    struct ckpt_cache *cache;
    struct ckpt_backend *dir; /* .ckptstore, for reading */
    struct ckpt_stage_options opt;
    struct ckpt_pool *pool;
    struct stage_line *lines;                    /* tasks that wait, by their users: in the order of whose turn it is */
    struct stage_user *users;                    /* those who have steps */
    unsigned user_steps, step_limit, user_limit; /* steps of all of them; how many there may be in all, and of one */
    struct ckpt_log_limit user_told;
    unsigned slow_tasks, slow_limit; /* those under way that last */
    unsigned flushing;               /* closes that wait for background work */
    pthread_mutex_t lock;
    pthread_cond_t idle; /* a job has ended, or the set is closing */
    struct stage_step *steps, *files_view;
    struct stage_lineage lineage;
    struct stage_inode *by_id[STAGE_BUCKETS], *by_key[STAGE_BUCKETS];
    uint64_t next_id;
    struct stage_inode *oldest, *newest; /* open descriptors, by their last use */
    unsigned fds, fd_limit;
    bool leases; /* files may be given to the kernel, since it can be asked whether it still uses them */
    bool closing;
    struct settling *settlings; /* steps that are being committed by themselves */
    pthread_t settler, collector;
    bool settling, collecting;
    bool gc_wanted; /* a commit, or a deletion, has left something to tidy up */
    int64_t gc_ns;  /* when the trash may be emptied; 0: nothing in it */
};

/* Its folder of links to objects, and what is made for it. */
static inline struct ckpt_hold stage_hold(const struct stage_step *step)
{
    return (struct ckpt_hold){.store = step->set->store, .dir = step->hold};
}

/* --- inode.c --- */
/* The inode of an id. -ESTALE: its step has ended. */
int ckpt_stage_use(struct ckpt_stages *set, uint64_t id, struct stage_inode **ret) CKPT_MUST_USE;
void ckpt_stage_unuse(struct stage_inode *n);
/* The inode that an O_PATH descriptor is of (taken over), with a reference for the caller. dir, name: where it was
 * found; NULL: it is a step's own. */
int ckpt_stage_ref_fd(struct stage_step *step, int fd, struct stage_inode *dir, const char *name,
                      struct ckpt_stage_attr *ret) CKPT_MUST_USE;
int ckpt_stage_stat(struct stage_inode *n, struct ckpt_stage_attr *ret) CKPT_MUST_USE;
/* Before a name goes, or comes to mean something else: what is found by it keeps its descriptor instead. Caller holds
 * the step's `names`. */
int ckpt_stage_detach_name(struct stage_inode *dir, const char *name) CKPT_MUST_USE;
/* A file is found under this name from now on. Caller holds `names`. */
void ckpt_stage_attach_name(struct stage_inode *dir, const char *name);
/* Nothing of a step that has ended is held open but by calls and handles. Under the set's lock. */
void ckpt_stage_close_inodes(struct stage_step *step);
/* When nothing is under way any more. Under the set's lock. */
void ckpt_stage_free_all(struct ckpt_stages *set);
/* The last name of a file went. */
void ckpt_stage_unlinked(struct ckpt_stages *set, dev_t dev, ino_t ino);
/* Its content is not what is known of it any more. */
void ckpt_stage_dirty(struct stage_inode *n);
/* The same of an inode that is known. After _unuse_locked the caller reaps it. */
void ckpt_stage_use_locked(struct stage_inode *n);
void ckpt_stage_unuse_locked(struct stage_inode *n);
/* Free what nobody refers to; under the set's lock. */
void ckpt_stage_reap(struct stage_inode *n);
/* "/proc/self/fd/N", by which an O_PATH descriptor is opened. */
int ckpt_stage_reopen(int fd, int flags);
/* The inode of an id, or NULL. Under the set's lock. */
struct stage_inode *ckpt_stage_inode_by_id(struct ckpt_stages *set, uint64_t id);
/* The inode of a file on disk, or NULL. Under the set's lock. */
struct stage_inode *ckpt_stage_inode_by_stat(struct ckpt_stages *set, const struct stat *st);

/* --- step.c --- */
/* Keep commits out while its tree is changed. -ESTALE: it is gone. */
int ckpt_stage_enter(struct stage_step *step) CKPT_MUST_USE;
void ckpt_stage_leave(struct stage_step *step);
/* ckpt_stage_use and ckpt_stage_enter at once; and the end of both, of a call that may have changed something. */
int ckpt_stage_enter_inode(struct ckpt_stages *set, uint64_t id, struct stage_inode **ret) CKPT_MUST_USE;
void ckpt_stage_leave_inode(struct stage_inode *n, const struct ckpt_caller *who);
/* A change was made by somebody. */
void ckpt_stage_touch(struct stage_step *step, const struct ckpt_caller *who);
/* A write to it has failed, with a negative errno: what it has is not what its writer wanted. */
void ckpt_stage_write_failed(struct stage_step *step, int r);
/* It has a name that it can be committed under, and the number in it. Under the set's lock, or freeze. */
bool ckpt_stage_number(const struct stage_step *step, double *ret);
/* Why it was not committed; NULL or no code: nothing is wrong. */
void ckpt_stage_set_error(struct stage_step *step, const struct ckpt_err *err);

/* The step of a name, or NULL. */
struct stage_step *ckpt_stage_step_ref(struct ckpt_stages *set, const char *name);
void ckpt_stage_step_unref(struct stage_step *step);
void ckpt_stage_step_unref_locked(struct stage_step *step); /* under the set's lock */
/* One that has ended, and that only the kernel's memory of its names keeps, has no descriptors any more. Under the
 * set's lock. */
void ckpt_stage_step_close_idle(struct stage_step *step);

/* One that has no name yet; NULL: no memory. With its directories in staging/, made or, of an id, opened: then its lock
 * is held, or it has an owner and -EWOULDBLOCK is returned. */
struct stage_step *ckpt_stage_begin(struct ckpt_stages *set);
int ckpt_stage_make_dirs(struct stage_step *step, mode_t mode) CKPT_MUST_USE;
int ckpt_stage_open_dirs(struct stage_step *step, const char *id) CKPT_MUST_USE;
/* Its name, and its directory in the table. */
int ckpt_stage_add_top(struct stage_step *step, const char *name) CKPT_MUST_USE;
/* The name, and base_id if there is one (""), go to the disk: from now on it is taken over if this process dies, so it
 * is whole by now. */
int ckpt_stage_name_dir(struct stage_step *step, const char *name, const char *base_id) CKPT_MUST_USE;
/* Borrowed; NULL: there is none. Under the set's lock. */
struct stage_step *ckpt_stage_step_by_name(struct ckpt_stages *set, const char *name);
/* It is found by its name from now on. */
int ckpt_stage_publish(struct stage_step *step, const char *name) CKPT_MUST_USE;
/* One that did not come to be, and its directory. */
void ckpt_stage_drop(struct stage_step *step);
/* The root's own directory, once, when the set is opened. */
int ckpt_stage_open_files_view(struct ckpt_stages *set) CKPT_MUST_USE;
/* Nobody finds it any more, and its directory goes. Under freeze's writer. */
void ckpt_stage_end(struct stage_step *step);
bool ckpt_stage_is_empty(int dir);
/* A small file; NUL-terminated. */
int ckpt_stage_read_text(int dir, const char *name, char *buf, size_t len) CKPT_MUST_USE;
/* user.ckpt.metadata of the step, which may be longer than an attribute: NULL if there is none, to be freed. It is a
 * JSON object. */
#define STAGE_METADATA     "metadata"
#define STAGE_METADATA_MAX CKPT_MANIFEST_HEAD_MAX
#define STAGE_PART_IDS                                                                                                 \
    (16 * CKPT_MANIFEST_ID + 1) /* of the file `commit`: ids, a line each; older ones are cut off                      \
                                 */
int ckpt_stage_metadata(struct stage_step *step, char **ret, size_t *ret_len) CKPT_MUST_USE;

/* --- finish.c --- */
/* overwrite, put: as in struct ckpt_commit. id: the manifest's; one that is empty is made here. */
int ckpt_stage_run_commit(struct stage_step *step, const char *name, bool overwrite,
                          int (*put)(void *arg, int work, const char *manifest, struct ckpt_err *err), void *put_arg,
                          atomic_bool *interrupted, char id[33], struct ckpt_err *err) CKPT_MUST_USE;
/* as: the name of the step that it is renamed to; NULL: it keeps its own. if_settled: only if it still is; else
 * -EAGAIN. */
int ckpt_stage_commit_as(struct stage_step *step, const char *as, bool if_settled, atomic_bool *interrupted,
                         struct ckpt_err *err) CKPT_MUST_USE;
/* -EACCES: it is neither the caller's, nor may that one write to it. */
int ckpt_stage_may_commit(struct stage_step *step, const struct ckpt_caller *who, struct ckpt_err *err) CKPT_MUST_USE;
/* Nobody writes, and nothing has changed for a while. Under the set's lock. */
bool ckpt_stage_is_settled(struct stage_step *step);
/* So many ns from now, for pthread_cond_timedwait. */
struct timespec ckpt_stage_deadline(int64_t ns);

/* --- part.c: the commit where there are several writers. Under freeze's writer --- */
int ckpt_stage_commit_part(struct stage_step *step, const char *name, atomic_bool *interrupted,
                           struct ckpt_err *err) CKPT_MUST_USE;

/* --- process.c. Under the set's lock --- */
/* A process has written to the step; a thread's number will do. */
void ckpt_stage_add_process_locked(struct stage_step *step, pid_t thread);
/* Have all processes ended that have written to it? */
bool ckpt_stage_processes_ended(struct stage_step *step);

/* --- awaited.c --- */
/* Wait for those who have looked something up again, until a time of CLOCK_MONOTONIC at most. */
void ckpt_stage_wait_awaited(struct stage_step *step, int64_t end_ns);
bool ckpt_stage_is_awaited(struct stage_step *step);
/* One that reads has come. Who changes something comes with ckpt_stage_touch(). */
void ckpt_stage_came(struct stage_step *step, const struct ckpt_caller *who);
void ckpt_stage_end_awaited_locked(struct stage_step *step, pid_t thread);

/* --- lineage.c --- */
/* A copy of the step of this name is staged. */
void ckpt_stage_lineage_begin(struct ckpt_stages *set, const char *id, const char *name);
/* The step's commit has made the manifest of this id under this name. id may be empty: others have made it. */
void ckpt_stage_lineage_add(struct stage_step *step, const char *id, const char *name);

/* --- copy.c --- */
/* All that a manifest describes, into the step's tree; removed may be NULL. Directories that are there already are
 * filled, and so are taken leaves of another manifest as they are: several manifests that agree make one tree. */
int ckpt_stage_copy_tree(struct stage_step *step, struct ckpt_file *manifest, const struct ckpt_stage_removed *removed,
                         struct ckpt_err *err) CKPT_MUST_USE;
/* A file that is a leaf of a committed step once more, below a directory of the step. */
int ckpt_stage_copy_leaf(struct stage_step *step, int dir, const char *path, const struct ckpt_manifest_node *n,
                         struct ckpt_err *err) CKPT_MUST_USE;
/* The same where it may be seen already: it has its name when it is all there. */
int ckpt_stage_link_leaf(struct stage_step *step, int dir, const char *name,
                         const struct ckpt_manifest_node *n) CKPT_MUST_USE;

/* --- bytes.c: the first ones with content locked. What fails leaves the file as it was --- */
/* Is it a reference file? 1 and *ret (may be NULL), or 0; -EUCLEAN: it should be. */
int ckpt_stage_shares(struct stage_inode *n, struct ckpt_ref *ret) CKPT_MUST_USE;
/* A reference file gets bytes of its own: the first `size` of its content, or these and zeros. Nothing to do for other
 * files. */
#define STAGE_ALL UINT64_MAX
int ckpt_stage_copy_up(struct stage_inode *n, int fd, uint64_t size) CKPT_MUST_USE;
/* Any file is so long, and has bytes of its own. */
int ckpt_stage_resize(struct stage_inode *n, int fd, uint64_t size) CKPT_MUST_USE;
/* A file that nobody uses becomes a reference to what it holds, if it can. */
void ckpt_stage_evict(struct stage_inode *n, int fd, const struct ckpt_ref *ref);
/* It is one, to that. With its content locked. */
void ckpt_stage_set_shares(struct stage_inode *n, const struct ckpt_ref *ref);
/* A new, empty file that nobody knows yet becomes a reference. */
int ckpt_stage_make_ref(int fd, const struct ckpt_ref *ref) CKPT_MUST_USE;
/* Around a change of bytes, by a handle that is open for writing; without content. end: also where begin fails. */
int ckpt_stage_begin_change(struct stage_inode *n, int fd) CKPT_MUST_USE;
void ckpt_stage_end_change(struct stage_inode *n);
/* What a reference file stands for, if it is one, and *ret_ref; NULL where that cannot be opened: whoever reads gets
 * the error. */
int ckpt_stage_open_payload(struct stage_inode *n, struct ckpt_ref *ret_ref, struct ckpt_file **ret) CKPT_MUST_USE;
/* Its handle has that open from now on; NULL: nothing. The payload is taken over. */
void ckpt_stage_give_payload(struct ckpt_stage_handle *h, const struct ckpt_ref *ref, struct ckpt_file *payload);
int ckpt_stage_open_shared(struct stage_step *step, const struct ckpt_ref *ref, struct ckpt_file **ret) CKPT_MUST_USE;

/* --- attributes.c --- */
/* The user's own: those which a manifest has. */
bool ckpt_stage_is_own_xattr(const char *name);

/* --- queue.c: whose turn it is. Under the set's lock --- */
/* It runs when its user's turn has come. -ENOMEM: it will not. */
int ckpt_stage_queue_add(struct ckpt_stages *set, struct stage_task *task) CKPT_MUST_USE;
/* All of a step that have not begun: a list. */
struct stage_task *ckpt_stage_queue_take(struct stage_step *step);
void ckpt_stage_queue_free(struct ckpt_stages *set);

/* --- users.c: how many steps each user may have. Under the set's lock --- */
void ckpt_stage_users_begin(struct ckpt_stages *set, unsigned descriptors);
/* A step is a user's from now on, until it is freed. -EDQUOT, unless it is there already and has to be taken. */
int ckpt_stage_charge(struct stage_step *step, uid_t uid, bool forced) CKPT_MUST_USE;
void ckpt_stage_uncharge(struct stage_step *step);

/* --- lease.c --- */
/*
 * A lease of F_RDLCK or F_WRLCK, given back at once. -EAGAIN: for reading, somebody may write to the file, by a
 * descriptor or a mapping; for writing, somebody has it open. Under the content's lock, or with the step frozen:
 * meanwhile the file cannot be opened.
 */
int ckpt_stage_try_lease(int fd, int type) CKPT_MUST_USE;
/* Has the file system leases, by which it is known who else has a file open? dir: of the store. */
bool ckpt_stage_has_leases(int dir);

/* --- background.c --- */
/* For struct ckpt_commit; arg is the step. */
int ckpt_stage_known(void *arg, int fd, const struct stat *st, struct ckpt_ref *ret);
/* Is there something to make, and nobody who will change it? Under the set's lock. */
bool ckpt_stage_wants_object(const struct stage_inode *n, const struct stat *st);
/* Makes its object in the background. The descriptor is taken over. Under the set's lock. */
void ckpt_stage_queue_object(struct stage_inode *n, int fd, const struct stat *st);
/* Forgets objects that are not being made yet: the commit makes them. Under the set's lock, and freeze's writer. */
void ckpt_stage_drop_jobs(struct stage_step *step);

/* --- open_file.c --- */
/* Before the bytes of a file change: nobody but root writes to a program that runs with its owner's rights, and leaves
 * it one. */
int ckpt_stage_drop_setid(int fd, const struct ckpt_caller *who) CKPT_MUST_USE;

#endif
