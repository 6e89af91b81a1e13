/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What became of steps that this mount has changed: which manifest took the place of which. A directory that a process
 * has open, or has for its current one, names the step as it was when it was looked up. By its manifest's id the step
 * is found again after a commit, and no other step that has its name by now is taken for it.
 */
#include "core/stage/private.h"

#include <stdio.h>

/* Under the set's lock. */
static struct stage_lineage_entry *get_entry(struct stage_lineage *l, const char *id)
{
    for (unsigned i = 0; i < STAGE_LINEAGE; i++)
        if (*l->entries[i].id && !strcmp(l->entries[i].id, id))
            return &l->entries[i];
    return NULL;
}

/* The one of an id; the oldest gives its place to a new one. */
static struct stage_lineage_entry *get_or_add_entry(struct stage_lineage *l, const char *id)
{
    struct stage_lineage_entry *e = get_entry(l, id);
    if (e)
        return e;
    e = &l->entries[l->next++ % STAGE_LINEAGE];
    *e = (struct stage_lineage_entry){0};
    snprintf(e->id, sizeof e->id, "%s", id);
    return e;
}

void ckpt_stage_lineage_begin(struct ckpt_stages *set, const char *id, const char *name)
{
    CKPT_GUARD(&set->lock);
    struct stage_lineage_entry *e = get_or_add_entry(&set->lineage, id);
    snprintf(e->name, sizeof e->name, "%s", name);
}

void ckpt_stage_lineage_add(struct stage_step *step, const char *id, const char *name)
{
    struct ckpt_stages *set = step->set;
    CKPT_GUARD(&set->lock);
    snprintf(step->became, sizeof step->became, "%s", id);
    if (!*id)
        return;
    if (*step->base_id) {
        struct stage_lineage_entry *base = get_or_add_entry(&set->lineage, step->base_id);
        snprintf(base->successor, sizeof base->successor, "%s", id);
    }
    struct stage_lineage_entry *e = get_or_add_entry(&set->lineage, id);
    snprintf(e->name, sizeof e->name, "%s", name);
}

void ckpt_stage_renamed(struct ckpt_stages *set, const char *from, const char *to)
{
    CKPT_GUARD(&set->lock);
    for (unsigned i = 0; i < STAGE_LINEAGE; i++) {
        struct stage_lineage_entry *e = &set->lineage.entries[i];
        if (*e->id && !*e->successor && !strcmp(e->name, from))
            snprintf(e->name, sizeof e->name, "%s", to);
    }
}

int ckpt_stage_successor(struct ckpt_stages *set, const char *id, char name[CKPT_STEP_NAME + 1],
                         char now[CKPT_MANIFEST_ID])
{
    CKPT_GUARD(&set->lock);
    const struct stage_lineage_entry *e = get_entry(&set->lineage, id);
    for (unsigned i = 0; e && *e->successor && i < STAGE_LINEAGE; i++)
        e = get_entry(&set->lineage, e->successor);
    if (!e || *e->successor)
        return -ESTALE;
    snprintf(name, CKPT_STEP_NAME + 1, "%s", e->name);
    snprintf(now, CKPT_MANIFEST_ID, "%s", e->id);
    return 0;
}

/* The names that lead to it from the step's top, joined by '/'. -ESTALE: it had no name any more when the step ended.
 * Under the set's lock. */
static int path_of(const struct stage_inode *n, struct ckpt_buf *ret)
{
    const struct stage_inode *chain[CKPT_MAX_DEPTH + 1];
    unsigned depth = 0;
    for (; !n->is_top; n = n->parent) {
        if (!n->name || !n->parent || depth > CKPT_MAX_DEPTH)
            return -ESTALE;
        chain[depth++] = n;
    }
    while (depth) {
        ckpt_buf_adds(ret, chain[--depth]->name);
        if (depth)
            ckpt_buf_addc(ret, '/');
    }
    ckpt_buf_addc(ret, 0);
    return ckpt_buf_error(ret);
}

int ckpt_stage_became(struct ckpt_stages *set, uint64_t id, char manifest[CKPT_MANIFEST_ID], struct ckpt_buf *path)
{
    CKPT_GUARD(&set->lock);
    const struct stage_inode *n = ckpt_stage_inode_by_id(set, id);
    if (!n || (!n->alias && atomic_load(&n->step->state) != STAGE_GONE))
        return -ESTALE;
    const char *became = atomic_load(&n->step->state) == STAGE_GONE ? n->step->became : n->step->base_id;
    if (!*became)
        return -ESTALE;
    snprintf(manifest, CKPT_MANIFEST_ID, "%s", became);
    return path_of(n, path);
}
