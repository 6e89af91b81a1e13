/* SPDX-License-Identifier: Apache-2.0 */
/* What is joined is read by nobody who may not read each part: tried with all users, groups and modes there can be. */
#include "core/base/rights.h"

#include "tests/unit/check.h"

#include <unistd.h>

#define USERS 3 /* besides the process's own */

/* Each is in groups 1 to 3 as the bits of `groups` say; its own group is the first of them, or 9. */
struct user {
    uint32_t uid;
    unsigned groups;
};

static bool may(const struct user *u, uint32_t mode, uint32_t uid, uint32_t gid)
{
    bool member = gid >= 1 && gid <= 3 && u->groups >> (gid - 1) & 1;
    return (mode >> (u->uid == uid ? 6 : member ? 3 : 0) & 4) != 0;
}

static void check_pair(uint32_t a_mode, uint32_t b_mode, uint32_t a_uid, uint32_t b_uid, uint32_t a_gid, uint32_t b_gid)
{
    struct ckpt_rights a = ckpt_rights_of(a_mode, a_uid, a_gid, false), b = ckpt_rights_of(b_mode, b_uid, b_gid, false);
    struct ckpt_rights both = ckpt_rights_join(&a, &b);
    for (uint32_t uid = 1001; uid <= 1000 + USERS; uid++)
        for (unsigned groups = 0; groups < 8; groups++) {
            struct user u = {uid, groups};
            bool allowed = may(&u, a_mode, a_uid, a_gid) && may(&u, b_mode, b_uid, b_gid);
            CHECK(allowed || !may(&u, both.mode, both.uid, both.gid));
            for (uint32_t gid = 1; gid <= 3; gid++) /* as a file of another owner, who may always */
                CHECK(allowed || !may(&u, ckpt_rights_mode(&both, gid), 1, gid));
        }
}

static void check_all_pairs(void)
{
    static const uint32_t ids[][4] = {
        {1001, 1001, 1, 1}, {1001, 1002, 1, 1}, {1001, 1001, 1, 2}, {1001, 1002, 1, 2}, {1002, 1001, 2, 1}};
    for (uint32_t a = 0; a < 8; a++)
        for (uint32_t b = 0; b < 8; b++)
            for (size_t i = 0; i < sizeof ids / sizeof *ids; i++) {
                uint32_t modes[2] = {(a & 4) << 6 | (a & 2) << 4 | (a & 1) << 2,
                                     (b & 4) << 6 | (b & 2) << 4 | (b & 1) << 2};
                check_pair(modes[0], modes[1], ids[i][0], ids[i][1], ids[i][2], ids[i][3]);
            }
}

static void check_join(uint32_t want, uint32_t uid, uint32_t gid, struct ckpt_rights a, struct ckpt_rights b)
{
    struct ckpt_rights got = ckpt_rights_join(&a, &b), other = ckpt_rights_join(&b, &a);
    CHECK(got.mode == want && got.uid == uid && got.gid == gid);
    CHECK(ckpt_rights_same(&got, &other));
}

static void check_what_is_granted(void)
{
    struct ckpt_rights all = {0444, 1, 1}, mine = {0400, 2, 2}, ours = {0440, 2, 2}, theirs = {0440, 3, 2},
                       yours = {0400, 3, 3};
    check_join(0400, 2, 2, mine, (struct ckpt_rights){0400, 2, 2});
    check_join(0440, 2, 2, all, ours);
    check_join(0440, geteuid(), 2, ours, theirs);
    CHECK(ckpt_rights_join(&mine, &yours).mode == 0400 && ckpt_rights_join(&mine, &yours).uid == geteuid());
    CHECK(ckpt_rights_join(&all, &(struct ckpt_rights){0444, 7, 7}).mode == 0444);
    CHECK(ckpt_rights_of(0744, 1, 1, true).mode == 0400 && ckpt_rights_of(0711, 1, 1, true).mode == 0400);
    CHECK(ckpt_rights_to_enter(0711, 1, 1).mode == 0444 && ckpt_rights_of(0604, 1, 1, false).mode == 0400);
    CHECK(ckpt_rights_mode(&ours, 2) == 0440 && ckpt_rights_mode(&ours, 3) == 0400 &&
          ckpt_rights_mode(&all, 3) == 0444);
}

static void check_callers(void)
{
    struct ckpt_caller who = {.uid = 1001, .gid = 1};
    struct ckpt_shown shown = {.set_uid = true, .uid = 1001, .umask = 0077};
    CHECK(ckpt_caller_may(NULL, 0, 0, 0, 7) && ckpt_caller_may(&(struct ckpt_caller){0}, 0, 5, 5, 7));
    CHECK(ckpt_caller_may(&who, 0500, 1001, 9, 5) && !ckpt_caller_may(&who, 0577, 1001, 1, 2));
    CHECK(ckpt_caller_may(&who, 0050, 5, 1, 5) && !ckpt_caller_may(&who, 0705, 5, 1, 5) &&
          ckpt_caller_may(&who, 0705, 5, 2, 5));
    who.shown = &shown;
    CHECK(ckpt_caller_may(&who, 0700, 5, 5, 7));
    shown.set_uid = false;
    CHECK(!ckpt_caller_may(&who, 0777, 5, 5, 4));
}

int main(void)
{
    check_all_pairs();
    check_what_is_granted();
    check_callers();
    return 0;
}
