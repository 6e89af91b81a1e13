/* SPDX-License-Identifier: Apache-2.0 */
#include "fs/opens.h"

#include "core/base/log.h"
#include "core/base/util.h"

#include <sys/resource.h>
#include <unistd.h>

/* Of the descriptors that the daemon may have: an open file takes up to three. */
#define SHARE_OF_ALL  10
#define SHARE_OF_USER 32

struct fs_opener {
    struct fs_opener *next;
    uid_t uid;
    unsigned count;
};

struct fs_opens {
    pthread_mutex_t lock;
    struct fs_opener *users; /* those that have anything open */
    unsigned count, limit, user_limit;
    struct ckpt_log_limit told;
};

int fs_opens_new(struct fs_opens **ret)
{
    struct fs_opens *o = calloc(1, sizeof *o);
    struct rlimit files = {.rlim_cur = 1024};
    if (!o)
        return -ENOMEM;
    getrlimit(RLIMIT_NOFILE, &files);
    unsigned all = (unsigned)CKPT_MIN(files.rlim_cur, (rlim_t)1 << 20);
    o->limit = CKPT_MAX(all / SHARE_OF_ALL, 8u);
    o->user_limit = CKPT_MAX(all / SHARE_OF_USER, 4u);
    pthread_mutex_init(&o->lock, NULL);
    *ret = o;
    return 0;
}

void fs_opens_free(struct fs_opens *o)
{
    if (!o)
        return;
    for (struct fs_opener *u = o->users, *next; u; u = next) {
        next = u->next;
        free(u);
    }
    pthread_mutex_destroy(&o->lock);
    free(o);
}

static struct fs_opener *find(struct fs_opens *o, uid_t uid)
{
    struct fs_opener *u = o->users;
    while (u && u->uid != uid)
        u = u->next;
    return u;
}

/* Who the daemon belongs to shares with nobody. */
static bool is_over(const struct fs_opens *o, const struct fs_opener *u)
{
    return o->count >= o->limit || (u->uid != geteuid() && u->count >= o->user_limit);
}

static void refuse(struct fs_opens *o, struct fs_opener *u)
{
    if (ckpt_log_again(&o->told, u->uid))
        ckpt_log(CKPT_LOG_WARN,
                 "user %u has %u files and directories open, all users %u: no more than %u of one user, and %u in all, "
                 "can be; more get EMFILE. The limit of "
                 "descriptors (ulimit -n) decides",
                 u->uid, u->count, o->count, o->user_limit, o->limit);
}

static void reap(struct fs_opens *o, struct fs_opener *u)
{
    if (u->count)
        return;
    struct fs_opener **link = &o->users;
    while (*link != u)
        link = &(*link)->next;
    *link = u->next;
    free(u);
}

int fs_open_begin(struct fs_opens *o, uid_t uid, struct fs_open **ret)
{
    CKPT_GUARD(&o->lock);
    struct fs_opener *u = find(o, uid);
    if (!u) {
        if (!(u = calloc(1, sizeof *u)))
            return -ENOMEM;
        u->uid = uid;
        u->next = o->users;
        o->users = u;
    }
    struct fs_open *open = NULL;
    int r = is_over(o, u) ? -EMFILE : (open = calloc(1, sizeof *open)) ? 0 : -ENOMEM;
    if (r == -EMFILE)
        refuse(o, u);
    if (r < 0) {
        reap(o, u);
        return r;
    }
    u->count++;
    o->count++;
    open->user = u;
    *ret = open;
    return 0;
}

void fs_open_end(struct fs_opens *o, struct fs_open *open)
{
    if (!open)
        return;
    CKPT_GUARD(&o->lock);
    struct fs_opener *u = open->user;
    o->count--;
    u->count--;
    reap(o, u);
    free(open);
}
