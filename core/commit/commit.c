/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a directory of files becomes a step. Nobody writes to it meanwhile. A step is there from the moment when its
 * manifest has its name in steps/; all that happens before leaves no more than files that nothing names, and gc takes
 * those away.
 *
 *   1. The name must be free, or its step one that may be replaced. (Said early; what counts is 5.)
 *   2. The first walk through the tree makes the content durable, without the lock: what has an object of its own is
 * held in staging/ID/hold, found in the store or made there and fsynced; most of it was, when its file was closed.
 * Small leaves that no other step has are appended to a pack, which becomes an object at the end. Pieces are joined,
 * and the array goes the way of a file.
 *   3. The second walk writes the manifest to staging/ID, and fsyncs it. A file is looked at again, rather than
 * remembered: what is kept of a leaf between the walks is where its content is (struct commit_leaf).
 *   4. The lock is taken, shared: from here on nothing is taken out of objects/. What is held and not there is linked
 * into objects/, sums before what they belong to; then the folders of all objects that the manifest names are fsynced,
 * and objects/ itself. What another commit has put there counts as durable only when its folder has not changed for
 * long.
 *   5. The manifest is linked to its name: of two commits of one name the second gets EEXIST. One that replaces a step
 * is renamed over it, after the step was seen to be the one that was changed here, with the lock held exclusively so
 * that this stays true.
 *   6. steps/ is fsynced, and the lock is given back. If that fsync fails, the name is taken away again, or given back
 * to what had it.
 *
 * A reader needs the manifest, and what it names was durable before it. Whatever fails, the step can be committed
 * again: nothing in the tree has changed, and what is in hold/ is found there.
 */
#include "core/commit/private.h"

#include "core/io/disk.h"
#include "core/store/internal.h"

#include <fcntl.h>

#define MANIFEST_NAME "manifest.tmp"
#define THREADS_MAX   64u

/* --- all of it --- */

static void commit_end(struct commit *c)
{
    ckpt_pool_free(c->pool);
    ckpt_shared_close(c);
    ckpt_pack_free(c);
    free(c->leaves);
    free(c->objects);
    pthread_mutex_destroy(&c->lock);
    pthread_cond_destroy(&c->done);
}

static int commit_begin(struct commit *c, const struct ckpt_commit *in, struct ckpt_err *err)
{
    unsigned threads = CKPT_MIN(CKPT_MAX(in->threads, 1u), THREADS_MAX);
    *c = (struct commit){.in = in, .store = in->store, .hold = in->hold, .limit = 2 * threads};
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->done, NULL);
    c->cancel = in->interrupted ? in->interrupted : &c->failed;
    if (!ckpt_step_is_stored(in->name, NULL))
        return ckpt_fail(err, EINVAL, "%s is not a step's name: " CKPT_STEP_RULE, in->name);
    int r = ckpt_commit_allowed(c, err);
    if (r < 0)
        return r;
    r = ckpt_hold_sweep(&c->hold);
    if (r == 0)
        r = ckpt_pack_new(c);
    if (r == 0)
        r = ckpt_pool_new(threads, &c->pool);
    return r < 0 ? ckpt_fail(err, -r, "%s cannot be committed: %s", in->name, strerror(-r)) : 0;
}

int ckpt_commit_run(const struct ckpt_commit *in, struct ckpt_err *err)
{
    struct commit c;
    struct ckpt_err own = {0};
    mode_t mode = 0;
    int r = commit_begin(&c, in, &own);
    if (r == 0)
        r = ckpt_content_make(&c, &own);
    if (r == 0)
        r = ckpt_describe_tree(&c, MANIFEST_NAME, &mode, &own);
    if (r == 0)
        r = ckpt_commit_publish(&c, MANIFEST_NAME, mode, &own);
    if (r < 0)
        ckpt_commit_give_back(&c);
    commit_end(&c);
    if (r == -ECANCELED)
        r = ckpt_fail(&own, EINTR, "%s: the commit was interrupted", in->name);
    if (r < 0 && err)
        *err = own;
    return r;
}

/* --- is it complete? --- */

/* Other errors are left for the commit to tell. */
static int only_incomplete(int r)
{
    return r == -EBADMSG || r == -ENODATA ? r : 0;
}

static int check_dir(void *arg, const struct walk_at *at, int fd, uint32_t *ret_number, struct ckpt_err *err)
{
    *ret_number = 0;
    return 0;
}

static int check_file(void *arg, const struct walk_at *at, struct ckpt_err *err)
{
    struct leaf_file f;
    struct ckpt_npy npy;
    if (!ckpt_has_suffix(at->name, ".npy"))
        return 0;
    int r = ckpt_leaf_open(at->dir, at->name, &f, err);
    if (r == 0) {
        r = ckpt_leaf_array(arg, &f, &npy, err);
        ckpt_leaf_close(&f);
    }
    r = only_incomplete(r);
    return r < 0 ? ckpt_fail_in(err, -r, "%s", at->path) : 0;
}

static int check_pieces(void *arg, const struct walk_at *at, struct ckpt_err *err)
{
    struct pieces *ps;
    int r = ckpt_pieces_open(arg, at, &ps, err);
    if (r == 0) {
        r = ckpt_pieces_check(ps, err);
        ckpt_pieces_close(ps);
    }
    return only_incomplete(r);
}

int ckpt_commit_check(const struct ckpt_commit *in, struct ckpt_err *err)
{
    struct commit c = {.in = in, .store = in->store, .hold = in->hold};
    const struct walk_visitor v = {check_dir, check_file, check_pieces, &c};
    struct ckpt_err own = {0};
    int r = only_incomplete(ckpt_walk_tree(in, &v, &own));
    ckpt_shared_close(&c);
    if (r < 0 && err)
        *err = own;
    return r;
}
