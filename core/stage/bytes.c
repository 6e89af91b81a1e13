/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the bytes of a staged file are. With the attribute user.ckptfs.ref it is a reference file, whose bytes are the
 * stored content that the attribute names; without it, it has bytes of its own. The attribute alone decides
 * (ckpt_ref_of): what a reference file has on disk counts for nothing, neither its bytes nor their number. (It is given
 * the right length all the same, for whoever looks there, and for version 0.1.0.)
 *
 * So a file changes from one kind to the other by one call, which sets or removes the attribute. Bytes of its own are
 * all there before that, and what is not needed any more goes after it. A process that is killed between any two calls
 * leaves the one or the other, and a call that fails leaves what was. What is left behind on disk is emptied before the
 * next change.
 *
 * Meanwhile the file's user sees what was: its content is read by the reference, its length and times are those in the
 * inode. `seq` there is a sequence counter: it is odd while a file changes its kind, and a reader that finds it odd, or
 * changed afterwards, looks again.
 */
#include "core/stage/private.h"

#include "core/store/seal.h"

#define COPY ((size_t)1 << 20)
#define PAGE 4096u

/* --- what they are --- */

/* The attribute may or may not be there, after a call that has failed. */
static void ask_again(struct stage_inode *n)
{
    atomic_store(&n->shared, -1);
    (void)!ckpt_stage_shares(n, NULL);
}

int ckpt_stage_make_ref(int fd, const struct ckpt_ref *ref)
{
    char text[CKPT_REF_TEXT];
    ckpt_ref_print(ref, text);
    return ckpt_disk_setxattr(fd, CKPT_REF_XATTR, text, strlen(text));
}

int ckpt_stage_open_shared(struct stage_step *step, const struct ckpt_ref *ref, struct ckpt_file **ret)
{
    struct ckpt_hold hold = stage_hold(step);
    struct ckpt_err err = {0};
    int r = ckpt_hold_open(&hold, step->set->cache, ref, ret, &err);
    if (r < 0)
        ckpt_log(CKPT_LOG_WARN, "%s: content of a staged file: %s", step->set->store->path,
                 err.code ? err.text : strerror(-r));
    return r == -ENOENT ? -EIO : r;
}

/*
 * Opened with the file: when the step has ended, and what it deleted has been collected, it is found nowhere. Whoever
 * reads gets the error of the content itself.
 */
int ckpt_stage_open_payload(struct stage_inode *n, struct ckpt_ref *ret_ref, struct ckpt_file **ret)
{
    *ret = NULL;
    int r = ckpt_stage_shares(n, ret_ref) == 1 ? ckpt_stage_open_shared(n->step, ret_ref, ret) : 0;
    return r == -EMFILE || r == -ENFILE || r == -ENOMEM ? r : 0;
}

void ckpt_stage_give_payload(struct ckpt_stage_handle *h, const struct ckpt_ref *ref, struct ckpt_file *payload)
{
    CKPT_GUARD(&h->lock);
    ckpt_file_unref(h->payload);
    h->payload = payload;
    if (payload)
        memcpy(h->payload_hash, ref->object, CKPT_SHA256);
}

/* --- from the one to the other: with its content locked --- */

/* From here on its user sees the length and the times that it has now. *ret_length: what it has on disk. */
static int begin_switch(struct stage_inode *n, int fd, uint64_t *ret_length)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return -errno;
    *ret_length = (uint64_t)st.st_size;
    CKPT_GUARD(&n->step->set->lock);
    n->times[0] = st.st_atim;
    n->times[1] = st.st_mtim;
    n->length = atomic_load(&n->shared) == 1 ? n->shares.size : (uint64_t)st.st_size;
    atomic_fetch_add(&n->seq, 1);
    return 0;
}

static void end_switch(struct stage_inode *n)
{
    atomic_fetch_add(&n->seq, 1);
}

static int fill(struct stage_inode *n, int fd, const struct ckpt_ref *ref, uint64_t len)
{
    struct ckpt_file *payload;
    if (!len)
        return 0;
    CKPT_AUTOFREE uint8_t *buf = malloc(COPY);
    int r = buf ? ckpt_stage_open_shared(n->step, ref, &payload) : -ENOMEM;
    if (r < 0)
        return r;
    for (uint64_t off = 0, end; off < len && r == 0;) {
        if (!ckpt_file_data(payload, ref->offset + off, &end)) { /* zeros need not be written */
            off = end - ref->offset;
            continue;
        }
        size_t want = (size_t)CKPT_MIN((uint64_t)COPY, len - off);
        ssize_t got = ckpt_file_read(payload, buf, want, ref->offset + off);
        r = got < 0 ? (int)got : (size_t)got < want ? -EBADMSG : ckpt_disk_write(fd, buf, want, off);
        off += want;
    }
    struct stat st;
    if (r == 0 && fstat(fd, &st) == 0 && (uint64_t)st.st_size < len)
        r = ckpt_disk_truncate(fd, len);
    ckpt_file_unref(payload);
    return r;
}

/* What a reference file has on disk, `length` bytes, becomes the first `size` bytes of its content, or these and zeros.
 * Durably: they count next. */
static int prepare(struct stage_inode *n, int fd, const struct ckpt_ref *ref, uint64_t size, uint64_t length)
{
    int r = ckpt_disk_truncate(fd, 0);
    if (r == 0)
        r = fill(n, fd, ref, CKPT_MIN(size, ref->size));
    if (r == 0 && size > ref->size)
        r = ckpt_disk_truncate(fd, size);
    if (r == 0 && size == ref->size)
        r = ckpt_disk_set_times(fd, n->times); /* to its user nothing has changed */
    return r == 0 && (size || length) ? ckpt_disk_fsync(fd) : r;
}

int ckpt_stage_copy_up(struct stage_inode *n, int fd, uint64_t size)
{
    struct ckpt_ref ref = {0};
    uint64_t length = 0;
    int r = ckpt_stage_shares(n, &ref);
    if (r == 0 || (r < 0 && !(r == -EUCLEAN && size == 0))) /* a damaged reference can be emptied */
        return r;
    r = begin_switch(n, fd, &length);
    if (r < 0)
        return r;
    r = prepare(n, fd, &ref, size == STAGE_ALL ? ref.size : size, length);
    if (r < 0) {
        (void)!ckpt_disk_truncate(fd, 0); /* the room is wanted */
        (void)!ckpt_disk_truncate(fd, ref.size);
        (void)!ckpt_disk_set_times(fd, n->times);
    } else if ((r = ckpt_disk_removexattr(fd, CKPT_REF_XATTR)) < 0)
        ask_again(n);
    else {
        n->no_evict = true; /* who changes it once may do so again */
        n->was = ref;
        n->was_gen = atomic_load(&n->gen) + 1;
        ckpt_stage_dirty(n);
        atomic_store(&n->shared, 0);
    }
    end_switch(n);
    return r;
}

/*
 * With bytes of its own. While a file system cuts a file off, it zeroes what others may be reading: they look again
 * afterwards. The length is not kept for them, as when the file changes its kind, since others may write meanwhile.
 */
static int resize_own(struct stage_inode *n, int fd, uint64_t size, bool *ret_cut)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return -errno;
    *ret_cut = size <= (uint64_t)st.st_size;
    atomic_store(&n->cutting, true);
    atomic_fetch_add(&n->seq, 2);
    int r = ckpt_disk_truncate(fd, size);
    atomic_store(&n->cutting, false);
    return r;
}

int ckpt_stage_resize(struct stage_inode *n, int fd, uint64_t size)
{
    bool cut = true;
    int shared = ckpt_stage_shares(n, NULL);
    int r = shared ? ckpt_stage_copy_up(n, fd, size) : resize_own(n, fd, size, &cut);
    uint64_t gen = atomic_load(&n->gen);
    bool only_cut = r == 0 && cut && n->was_gen == gen;
    ckpt_stage_dirty(n);
    n->was_gen = only_cut ? gen + 1 : 0;
    return r;
}

void ckpt_stage_evict(struct stage_inode *n, int fd, const struct ckpt_ref *ref)
{
    uint64_t length;
    int r = begin_switch(n, fd, &length);
    if (r < 0)
        return;
    r = ckpt_head_keep(fd, ref);
    if (r == 0 && (r = ckpt_stage_make_ref(fd, ref)) < 0)
        ask_again(n);
    if (r == 0) {
        ckpt_stage_set_shares(n, ref);
        (void)!ckpt_disk_punch(fd, ref->size);
        (void)!ckpt_disk_set_times(fd, n->times);
    }
    end_switch(n);
}

/* --- changes of bytes that are its own --- */

int ckpt_stage_begin_change(struct stage_inode *n, int fd)
{
    /* Counted first: whoever makes it a reference, which needs an empty file, says so before looking at the count. */
    atomic_fetch_add(&n->changing, 1);
    if (atomic_load(&n->shared) == 0)
        return 0;
    CKPT_GUARD(&n->content);
    return ckpt_stage_copy_up(n, fd, STAGE_ALL);
}

void ckpt_stage_end_change(struct stage_inode *n)
{
    atomic_fetch_sub(&n->changing, 1);
}

/* An empty file that nobody changes meanwhile becomes a reference. With its content locked. */
static int share(struct stage_inode *n, int fd, const struct ckpt_ref *ref)
{
    uint64_t length;
    int r = ckpt_stage_shares(n, NULL);
    if (r)
        return r < 0 ? r : -EXDEV;
    r = begin_switch(n, fd, &length);
    if (r < 0)
        return r;
    atomic_store(&n->shared, -1); /* who would write to it waits for the lock from here on */
    struct stat st;
    if (atomic_load(&n->changing) || fstat(fd, &st) < 0 || st.st_size)
        r = -EXDEV;
    if (r == 0)
        r = ckpt_stage_make_ref(fd, ref);
    if (r == 0) {
        ckpt_stage_set_shares(n, ref);
        (void)!ckpt_disk_truncate(fd, ref->size); /* which also sets the time of the change */
    } else
        ask_again(n);
    end_switch(n);
    return r;
}

/* Others who have the file open could not find its new content once the step has ended. */
static bool is_only_handle(const struct ckpt_stage_handle *h)
{
    CKPT_GUARD(&h->inode->step->set->lock);
    return h->inode->opens == 1;
}

int ckpt_stage_share(struct ckpt_stage_handle *h, const struct ckpt_ref *ref, const struct ckpt_caller *who)
{
    struct stage_inode *n = h->inode;
    struct stage_step *step = n->step;
    struct ckpt_hold hold = stage_hold(step);
    if (!h->write || step->files_view || !ref->size ||
        atomic_load(&n->kernel_writes)) /* the kernel writes to it by itself */
        return -EXDEV;
    struct ckpt_file *payload = NULL;
    int r = ckpt_hold_object(&hold, ref->object);
    if (r == 0 && h->read)
        r = ckpt_stage_open_shared(step, ref, &payload);
    if (r == 0) {
        CKPT_GUARD(&n->content);
        r = is_only_handle(h) ? share(n, h->fd, ref) : -EXDEV;
        if (r == 0)
            ckpt_stage_give_payload(h, ref, CKPT_STEAL(payload));
        ckpt_stage_dirty(n);
    }
    ckpt_file_unref(payload);
    ckpt_stage_touch(step, who);
    return r < 0 ? -EXDEV : 0;
}

/* --- reading --- */

/* What it stands for, a reference. */
static int ref_payload(struct ckpt_stage_handle *h, const struct ckpt_ref *ref, struct ckpt_file **ret)
{
    int r = 0;
    CKPT_GUARD(&h->lock);
    /* It may have been emptied, and made a reference to something else. */
    if (h->payload && memcmp(h->payload_hash, ref->object, CKPT_SHA256))
        ckpt_file_unref(CKPT_STEAL(h->payload));
    if (!h->payload)
        r = ckpt_stage_open_shared(h->inode->step, ref, &h->payload);
    if (r < 0)
        return r;
    memcpy(h->payload_hash, ref->object, CKPT_SHA256);
    *ret = ckpt_file_ref(h->payload);
    return 0;
}

static ssize_t read_shared(struct ckpt_stage_handle *h, const struct ckpt_ref *ref, void *buf, size_t len, uint64_t off)
{
    struct ckpt_file *payload;
    int r = ref_payload(h, ref, &payload);
    if (r < 0)
        return r;
    len = off < ref->size ? (size_t)CKPT_MIN((uint64_t)len, ref->size - off) : 0;
    ssize_t got = len ? ckpt_file_read(payload, buf, len, ref->offset + off) : 0;
    ckpt_file_unref(payload);
    return got;
}

ssize_t ckpt_stage_read(struct ckpt_stage_handle *h, void *buf, size_t len, uint64_t off)
{
    struct stage_inode *n = h->inode;
    struct ckpt_ref ref;
    unsigned seq = atomic_load(&n->seq);
    bool at_rest = !(seq & 1) && !atomic_load(&n->cutting);
    if (at_rest && atomic_load(&n->shared) == 0) {
        ssize_t got = ckpt_pread(h->fd, buf, len, off);
        if (atomic_load(&n->seq) == seq)
            return got;
    }
    /* Once more, while nobody can make it a file of the other kind. */
    pthread_mutex_lock(&n->content);
    int shared = ckpt_stage_shares(n, &ref);
    ssize_t got = shared == 0 ? ckpt_pread(h->fd, buf, len, off) : shared;
    pthread_mutex_unlock(&n->content);
    return shared == 1 ? read_shared(h, &ref, buf, len, off) : got;
}

/* Of a file on disk; what its file system cannot tell are data. */
static int own_run(int fd, uint64_t off, uint64_t *ret_end)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return -errno;
    off_t at = lseek(fd, (off_t)off, SEEK_DATA);
    bool hole = at < 0 ? errno == ENXIO : (uint64_t)at > off;
    off_t end = hole || at < 0 ? at : lseek(fd, (off_t)off, SEEK_HOLE);
    *ret_end = end < 0 ? (uint64_t)st.st_size : (uint64_t)end;
    return !hole;
}

int ckpt_stage_run(struct ckpt_stage_handle *h, uint64_t off, uint64_t *ret_end)
{
    struct stage_inode *n = h->inode;
    struct ckpt_file *payload;
    struct ckpt_ref ref;
    pthread_mutex_lock(&n->content);
    int r = ckpt_stage_shares(n, &ref);
    int own = r == 0 ? own_run(h->fd, off, ret_end) : r;
    pthread_mutex_unlock(&n->content);
    if (r != 1)
        return own;
    r = ref_payload(h, &ref, &payload);
    if (r < 0)
        return r;
    bool data = ckpt_file_data(payload, ref.offset + off, ret_end);
    *ret_end = CKPT_MIN(*ret_end - ref.offset, ref.size);
    ckpt_file_unref(payload);
    return data;
}

/* What it was before it was cut, if it was not changed since, and these bytes are in pages behind its end. */
static bool find_cut(struct ckpt_stage_handle *h, uint64_t end, struct ckpt_ref *ret)
{
    struct stage_inode *n = h->inode;
    struct stat st;
    CKPT_GUARD(&n->content);
    *ret = n->was;
    if (!n->was.size || n->was_gen != atomic_load(&n->gen) || fstat(h->fd, &st) < 0)
        return false;
    return end > ((uint64_t)st.st_size + PAGE - 1) / PAGE * PAGE;
}

ssize_t ckpt_stage_read_cached(struct ckpt_stage_handle *h, void *buf, size_t len, uint64_t off)
{
    struct ckpt_ref ref;
    ssize_t got = ckpt_stage_read(h, buf, len, off);
    if (got < 0 || (size_t)got == len || !find_cut(h, off + len, &ref))
        return got;
    return read_shared(h, &ref, buf, len, off);
}

int ckpt_stage_handle_ref(struct ckpt_stage_handle *h, struct ckpt_ref *ret)
{
    CKPT_GUARD(&h->inode->content);
    return ckpt_stage_shares(h->inode, ret);
}
