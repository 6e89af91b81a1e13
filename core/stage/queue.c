/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whose turn it is in the background. Each user with tasks that wait has a line of them, and the lines are served in
 * turn, so that one with ten thousand files does not keep another from having one hashed. Tasks that last have fewer
 * threads than there are: the rest of them is left for what is done soon. All under the set's lock, but for the tasks
 * themselves.
 */
#include "core/stage/private.h"

struct stage_line {
    struct stage_line *next;
    uid_t uid;
    struct stage_task *quick, **quick_end, *slow, **slow_end;
};

static struct stage_line *get_line(struct ckpt_stages *set, uid_t uid)
{
    struct stage_line *line = set->lines;
    while (line && line->uid != uid)
        line = line->next;
    return line;
}

/* Behind all others. */
static void append_line(struct ckpt_stages *set, struct stage_line *line)
{
    struct stage_line **link = &set->lines;
    while (*link)
        link = &(*link)->next;
    line->next = NULL;
    *link = line;
}

static struct stage_line *new_line(struct ckpt_stages *set, uid_t uid)
{
    struct stage_line *line = calloc(1, sizeof *line);
    if (!line)
        return NULL;
    line->uid = uid;
    line->quick_end = &line->quick;
    line->slow_end = &line->slow;
    append_line(set, line);
    return line;
}

/* The first of a list, which becomes shorter by it. */
static struct stage_task *take_first(struct stage_task **list, struct stage_task ***end)
{
    struct stage_task *task = *list;
    if (task && !(*list = task->next))
        *end = list;
    return task;
}

/* The next one, its line sent to the end. NULL: none may begin now. */
static struct stage_task *take_next(struct ckpt_stages *set)
{
    for (struct stage_line **link = &set->lines, *line; (line = *link); link = &line->next) {
        bool may_last = set->slow_tasks < set->slow_limit;
        struct stage_task *task = take_first(&line->quick, &line->quick_end);
        if (!task && may_last && (task = take_first(&line->slow, &line->slow_end)))
            set->slow_tasks++;
        if (!task)
            continue;
        *link = line->next;
        if (line->quick || line->slow)
            append_line(set, line);
        else
            free(line);
        return task;
    }
    return NULL;
}

/* There is one call for each task. One that finds only tasks that must wait leaves them to a thread that is at such a
 * one, and goes on when it ends. */
static void serve(void *arg)
{
    struct ckpt_stages *set = arg;
    for (bool again = true; again;) {
        pthread_mutex_lock(&set->lock);
        struct stage_task *task = take_next(set);
        pthread_mutex_unlock(&set->lock);
        again = task && task->slow;
        if (task)
            task->run(task);
        if (!again)
            continue;
        CKPT_GUARD(&set->lock);
        set->slow_tasks--;
    }
}

int ckpt_stage_queue_add(struct ckpt_stages *set, struct stage_task *task)
{
    struct stage_line *line = get_line(set, task->uid);
    if (!line && !(line = new_line(set, task->uid)))
        return -ENOMEM;
    if (ckpt_pool_submit(set->pool, serve, set) < 0)
        return -ENOMEM; /* an empty line is harmless */
    struct stage_task ***end = task->slow ? &line->slow_end : &line->quick_end;
    task->next = NULL;
    **end = task;
    *end = &task->next;
    return 0;
}

static struct stage_task *take_tasks_of(struct stage_task **list, struct stage_task ***end,
                                        const struct stage_step *step, struct stage_task *taken)
{
    for (struct stage_task **link = list, *task; (task = *link);) {
        if (task->step != step) {
            link = &task->next;
            continue;
        }
        if (!(*link = task->next))
            *end = link;
        task->next = taken;
        taken = task;
    }
    return taken;
}

struct stage_task *ckpt_stage_queue_take(struct stage_step *step)
{
    struct stage_task *taken = NULL;
    for (struct stage_line *line = step->set->lines; line; line = line->next) {
        taken = take_tasks_of(&line->quick, &line->quick_end, step, taken);
        taken = take_tasks_of(&line->slow, &line->slow_end, step, taken);
    }
    return taken;
}

void ckpt_stage_queue_free(struct ckpt_stages *set)
{
    for (struct stage_line *line = set->lines, *next; line; line = next) {
        next = line->next;
        free(line);
    }
    set->lines = NULL;
}
