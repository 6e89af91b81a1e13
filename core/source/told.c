/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Callers that are told -ESTALE, since a file that they want to change is in no staged step, or not any more. The
 * kernel makes them look the path up once more, and no third time; what they find then is the staged file, and its step
 * does not commit before they have opened it.
 */
#include "core/base/util.h"
#include "core/source/change.h"

/* The kernel makes them look the path up once more, and no third time: within that time the file is theirs to open. */
#define AGAIN_NS 1000000000ll

void ckpt_source_tell_again(struct ckpt_source *src, const struct ckpt_caller *who, bool change)
{
    CKPT_GUARD(&src->lock);
    struct source_told *slot = src->told;
    for (unsigned i = 1; i < SOURCE_TOLD; i++)
        if (src->told[i].until_ns < slot->until_ns)
            slot = &src->told[i];
    *slot = (struct source_told){who->pid, change, ckpt_monotonic_ns() + AGAIN_NS};
    atomic_store(&src->told_until_ns, slot->until_ns);
}

/* Was this one told? Once only: the file that it looks up next is the one that it was told of. */
static bool was_told(struct ckpt_source *src, const struct ckpt_caller *who, bool *ret_change)
{
    int64_t now = ckpt_monotonic_ns();
    if (atomic_load(&src->told_until_ns) <= now)
        return false;
    bool told = false;
    CKPT_GUARD(&src->lock);
    for (unsigned i = 0; i < SOURCE_TOLD; i++)
        if (src->told[i].thread == who->pid && src->told[i].until_ns > now) {
            *ret_change = src->told[i].change;
            src->told[i].until_ns = 0;
            told = true;
        }
    return told;
}

static int open_at(struct ckpt_source *src, uint64_t id, uint64_t none, void *arg, struct ckpt_err *err)
{
    return ckpt_source_open_step(src, id, err);
}

int ckpt_source_must_look_again(struct ckpt_source *src, uint64_t id, const struct ckpt_caller *who,
                                struct ckpt_err *err)
{
    int r = ckpt_source_retry(src, id, 0, open_at, NULL, err);
    if (r < 0)
        return r;
    ckpt_source_tell_again(src, who, true);
    return ckpt_fail(err, ESTALE, "the step is open for changes now");
}

struct looking_again {
    const char *name;
    const struct ckpt_caller *who;
    struct ckpt_attr *ret;
};

/* The staged file of a name, whose step does not commit before it is opened. */
static int lookup_staged_at(struct ckpt_source *src, uint64_t parent, uint64_t none, void *arg, struct ckpt_err *err)
{
    const struct looking_again *l = arg;
    struct ckpt_stage_attr attr;
    struct place p;
    int r = ckpt_source_find_place(src, parent, &p, err);
    if (r < 0)
        return r;
    r = r == 1 ? -ENOENT : ckpt_stage_lookup(p.stages, p.id, l->name, &attr);
    if (r == 0) {
        r = ckpt_stage_await(p.stages, attr.id, l->who);
        if (r < 0)
            ckpt_stage_forget(p.stages, attr.id, 1);
        else
            ckpt_source_attr_of_stage(&attr, l->ret);
    }
    ckpt_source_place_clear(src, &p);
    return r;
}

/* Is this a directory of a step of a store? */
static bool is_in_step(struct ckpt_source *src, uint64_t id)
{
    struct target t;
    if (id & CKPT_STAGED)
        return true;
    if (ckpt_source_target(src, id, &t, NULL) < 0)
        return false;
    bool is = ckpt_source_root_of(src, t.node) != NULL;
    ckpt_source_done(src, &t);
    return is;
}

int ckpt_lookup_for(struct ckpt_source *src, uint64_t parent, const char *name, const struct ckpt_caller *who,
                    struct ckpt_attr *ret, struct ckpt_err *err)
{
    bool change;
    if (parent == CKPT_CONTROL)
        return ckpt_source_lookup_control(src, name, who, ret, err);
    int r = ckpt_lookup(src, parent, name, ret, err);
    if (r < 0 || ret->type != CKPT_FILE || !was_told(src, who, &change))
        return r;
    bool is_staged = ret->id & CKPT_STAGED;
    if ((!change && !is_staged) || !is_in_step(src, parent))
        return r;
    struct looking_again l = {name, who, ret};
    ckpt_forget(src, ret->id, 1);
    *ret = (struct ckpt_attr){0};
    r = ckpt_source_retry(src, parent, 0, lookup_staged_at, &l, err);
    ret->uncached = true; /* below what is no staged directory, or not any more */
    return r;
}
