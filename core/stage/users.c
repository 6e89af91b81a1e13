/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whose the staged steps are. Each costs descriptors for as long as it is staged, so that one user could have all that
 * this process may have: so there is a share for each, and one for all.
 */
#include "core/stage/private.h"

/* Of the descriptors that this process may have: a step takes five. */
#define SHARE_OF_ALL  16
#define SHARE_OF_USER 64

struct stage_user {
    struct stage_user *next;
    uid_t uid;
    unsigned steps;
};

void ckpt_stage_users_begin(struct ckpt_stages *set, unsigned descriptors)
{
    set->step_limit = CKPT_MAX(descriptors / SHARE_OF_ALL, 4u);
    set->user_limit = CKPT_MAX(descriptors / SHARE_OF_USER, 2u);
}

static struct stage_user *get_user(struct ckpt_stages *set, uid_t uid)
{
    struct stage_user *u = set->users;
    while (u && u->uid != uid)
        u = u->next;
    if (u || !(u = calloc(1, sizeof *u)))
        return u;
    u->uid = uid;
    u->next = set->users;
    set->users = u;
    return u;
}

static void reap(struct ckpt_stages *set, struct stage_user *u)
{
    if (u->steps)
        return;
    struct stage_user **link = &set->users;
    while (*link != u)
        link = &(*link)->next;
    *link = u->next;
    free(u);
}

/* Who this process belongs to shares with nobody. */
static bool is_over(const struct ckpt_stages *set, const struct stage_user *u)
{
    return set->user_steps >= set->step_limit || (u->uid != geteuid() && u->steps >= set->user_limit);
}

int ckpt_stage_charge(struct stage_step *step, uid_t uid, bool forced)
{
    struct ckpt_stages *set = step->set;
    struct stage_user *u = get_user(set, uid);
    if (!u)
        return -ENOMEM;
    if (!forced && is_over(set, u)) {
        if (ckpt_log_again(&set->user_told, uid))
            ckpt_log(CKPT_LOG_WARN,
                     "%s: user %u has %u staged steps, all users %u: no more than %u of one user, and %u in all, can "
                     "be; more get EDQUOT. The limit of "
                     "descriptors (ulimit -n) decides",
                     set->store->path, uid, u->steps, set->user_steps, set->user_limit, set->step_limit);
        reap(set, u);
        return -EDQUOT;
    }
    u->steps++;
    set->user_steps++;
    step->user = u;
    return 0;
}

void ckpt_stage_uncharge(struct stage_step *step)
{
    struct stage_user *u = step->user;
    if (!u)
        return;
    u->steps--;
    step->set->user_steps--;
    step->user = NULL;
    reap(step->set, u);
}
