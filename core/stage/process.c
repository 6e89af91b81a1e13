/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The processes that write to a step: it does not commit by itself before all of them have ended. The numbers of
 * processes are used again, so each is known with the time when it began.
 */
#include "core/stage/private.h"

#include <stdio.h>

#define MAX_PROCESSES 4096
#define UNKNOWN_START 0 /* of a process that could not be looked at */

/* Opens a file of a process. *ret_ended: there is no such process. */
static FILE *open_proc(pid_t pid, const char *name, bool *ret_ended)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", pid, name);
    FILE *f = fopen(path, "re");
    *ret_ended = !f && (errno == ENOENT || errno == ESRCH);
    return f;
}

/* The number of the process that a thread belongs to. */
static pid_t read_group(FILE *status, pid_t thread)
{
    char line[1024];
    int group = thread, found;
    while (fgets(line, sizeof line, status))
        if (sscanf(line, "Tgid: %d", &found) == 1)
            group = found;
    return group;
}

/* From the text of /proc/PID/stat. */
static bool parse_start(const char *stat, unsigned long long *ret)
{
    const char *rest = strrchr(stat, ')'); /* the name before it may hold anything */
    if (!rest)
        return false;
    return sscanf(rest + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu", ret) ==
           1;
}

/* When a process began, and in *pid its own number if a thread's was given. false: it has ended. */
static bool process_start(pid_t *pid, unsigned long long *ret)
{
    char text[1024];
    bool ended;
    *ret = UNKNOWN_START;
    FILE *f = open_proc(*pid, "status", &ended);
    if (!f)
        return !ended;
    *pid = read_group(f, *pid);
    fclose(f);
    f = open_proc(*pid, "stat", &ended);
    if (!f)
        return !ended;
    size_t n = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    text[n] = 0;
    return parse_start(text, ret);
}

static bool is_known(const struct stage_step *step, const struct stage_process *p)
{
    for (unsigned i = 0; i < step->process_count; i++)
        if (step->processes[i].pid == p->pid && step->processes[i].start == p->start)
            return true;
    return false;
}

static bool make_room(struct stage_step *step)
{
    if (step->process_count < step->process_room)
        return true;
    unsigned room = step->process_room ? step->process_room * 2 : 8;
    if (room > MAX_PROCESSES)
        return false;
    struct stage_process *p = realloc(step->processes, room * sizeof *p);
    if (!p)
        return false;
    step->processes = p;
    step->process_room = room;
    return true;
}

void ckpt_stage_add_process_locked(struct stage_step *step, pid_t thread)
{
    struct stage_process p = {.pid = thread};
    if (!thread || thread == step->last_pid)
        return;
    if (!process_start(&p.pid, &p.start))
        return;
    step->last_pid = thread;
    if (!is_known(step, &p) && make_room(step))
        step->processes[step->process_count++] = p;
}

/* One that could not be looked at may be any. */
static bool is_same_process(const struct stage_process *a, const struct stage_process *b)
{
    bool unknown = a->start == UNKNOWN_START || b->start == UNKNOWN_START;
    return unknown || (a->pid == b->pid && a->start == b->start);
}

bool ckpt_stage_processes_ended(struct stage_step *step)
{
    unsigned kept = 0;
    for (unsigned i = 0; i < step->process_count; i++) {
        struct stage_process p = step->processes[i];
        if (process_start(&p.pid, &p.start) && is_same_process(&p, &step->processes[i]))
            step->processes[kept++] = step->processes[i];
    }
    step->process_count = kept;
    step->last_pid = 0;
    return !kept;
}
