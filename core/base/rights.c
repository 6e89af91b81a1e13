/* SPDX-License-Identifier: Apache-2.0 */
#include "core/base/rights.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define OWNER 0400u
#define GROUP 0040u
#define OTHER 0004u

/* A wider class has no bit that a narrower one has not. */
static struct ckpt_rights make(uint32_t read, uint32_t uid, uint32_t gid)
{
    uint32_t mode = read & OWNER;
    mode |= mode ? read & GROUP : 0;
    mode |= mode & GROUP ? read & OTHER : 0;
    return (struct ckpt_rights){mode, uid, gid};
}

struct ckpt_rights ckpt_rights_of(uint32_t mode, uint32_t uid, uint32_t gid, bool dir)
{
    return make(dir ? mode & mode << 2 & 0444 : mode & 0444, uid, gid);
}

struct ckpt_rights ckpt_rights_to_enter(uint32_t mode, uint32_t uid, uint32_t gid)
{
    return make(mode << 2 & 0444, uid, gid);
}

bool ckpt_rights_same(const struct ckpt_rights *a, const struct ckpt_rights *b)
{
    return a->mode == b->mode && a->uid == b->uid && a->gid == b->gid;
}

struct ckpt_rights ckpt_rights_join(const struct ckpt_rights *a, const struct ckpt_rights *b)
{
    struct ckpt_rights r = {.mode = a->mode & b->mode & (OWNER | OTHER), .uid = a->uid, .gid = a->gid};
    /* The owner, or group, of one is anybody to the other. */
    if (a->uid != b->uid)
        r.uid = b->mode & OTHER ? a->uid : a->mode & OTHER ? b->uid : geteuid();
    if (a->gid == b->gid || b->mode & OTHER)
        r.mode |= a->mode & b->mode & GROUP;
    else if (a->mode & OTHER) {
        r.gid = b->gid;
        r.mode |= b->mode & GROUP;
    }
    return make(r.mode, r.uid, r.gid);
}

uint32_t ckpt_rights_mode(const struct ckpt_rights *r, uint32_t gid)
{
    if (r->mode & OTHER)
        return 0444;
    return r->mode & GROUP && r->gid == gid ? OWNER | GROUP : OWNER;
}

/* --- a caller --- */

/* Of the groups that a process has besides its own one; its number may mean nothing here. */
static bool is_in_group(pid_t pid, uint32_t gid)
{
    char path[64], *line = NULL;
    size_t room = 0;
    bool found = false;
    snprintf(path, sizeof path, "/proc/%d/status", pid);
    FILE *f = pid ? fopen(path, "re") : NULL;
    while (f && !found && getline(&line, &room, f) > 0) {
        int at = 0, n;
        unsigned long group;
        if (sscanf(line, "Groups:%n", &at) == 0 && at)
            for (; !found && sscanf(line + at, "%lu%n", &group, &n) == 1; at += n)
                found = group == gid;
    }
    free(line);
    if (f)
        fclose(f);
    return found;
}

bool ckpt_caller_owns(const struct ckpt_caller *who, uint32_t uid)
{
    return !who || who->uid == 0 || who->uid == (who->shown && who->shown->set_uid ? who->shown->uid : uid);
}

bool ckpt_caller_may(const struct ckpt_caller *who, uint32_t mode, uint32_t uid, uint32_t gid, unsigned want)
{
    if (!who || who->uid == 0)
        return true;
    const struct ckpt_shown *s = who->shown;
    if (s) {
        uid = s->set_uid ? s->uid : uid;
        gid = s->set_gid ? s->gid : gid;
        mode &= ~s->umask;
    }
    unsigned bits = mode;
    if (who->uid == uid)
        bits = mode >> 6;
    else if (who->gid == gid || ((mode >> 3 & want) != (mode & want) && is_in_group(who->pid, gid)))
        bits = mode >> 3;
    return (bits & want) == want;
}
