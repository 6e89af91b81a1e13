/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A thread takes a request, answers it, and takes the next one. One more is made when all are busy, up to a number that
 * bounds what their buffers take. Those that wait for long, or work for long, do not count in that
 * (core/base/waiting.h): else one user who commits a few large steps, or changes them meanwhile, would have all of
 * them. How many of one user's may wait so is bounded instead.
 */
#include "fs/loop.h"

#include "core/base/log.h"
#include "core/base/util.h"
#include "core/base/waiting.h"

#define FUSE_USE_VERSION 312
#include <fuse_lowlevel.h>

#include <linux/fuse.h>
#include <semaphore.h>
#include <signal.h>
#include <time.h>

#define WAKE            SIGUSR1
#define THREADS         10   /* that do not wait */
#define WAITING_OF_USER 64u  /* calls of one user's that wait at once; more get EAGAIN */
#define WAITING         512u /* of all users' */

struct worker {
    struct worker *next;
    struct loop *loop;
    pthread_t thread;
    uid_t uid; /* of the request that it is at */
    bool receiving, ended;
    unsigned waiting; /* nested calls that have told that they wait */
    struct fuse_buf buf;
};

struct loop {
    struct fuse_session *session;
    pthread_mutex_t lock;
    struct worker *workers;
    unsigned threads, idle, waiting;
    bool ending;
    int error;
    sem_t over; /* a worker has seen that the session is */
    struct ckpt_log_limit told;
};

static _Thread_local struct worker *self;

static void *work(void *arg);

/* Signals are the first thread's, which waits for them. Under the lock. */
static int add_worker(struct loop *loop)
{
    sigset_t all, before;
    struct worker *w = calloc(1, sizeof *w);
    if (!w)
        return -ENOMEM;
    w->loop = loop;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    int r = -pthread_create(&w->thread, NULL, work, w);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (r < 0) {
        free(w);
        return r;
    }
    w->next = loop->workers;
    loop->workers = w;
    loop->threads++;
    return 0;
}

/* Somebody takes the next request. Under the lock. */
static void keep_one_idle(struct loop *loop)
{
    if (!loop->idle && !loop->ending && loop->threads - loop->waiting < THREADS)
        (void)!add_worker(loop); /* without memory it comes later */
}

/* The number of bytes; 0 or a negative errno: no more will come. Only here a thread is sent the signal. */
static int receive(struct worker *w)
{
    struct loop *loop = w->loop;
    int n = -EINTR;
    pthread_mutex_lock(&loop->lock);
    loop->idle++;
    w->receiving = true;
    pthread_mutex_unlock(&loop->lock);
    while (n == -EINTR && !fuse_session_exited(loop->session))
        n = fuse_session_receive_buf(loop->session, &w->buf);
    CKPT_GUARD(&loop->lock);
    loop->idle--;
    w->receiving = false;
    if (n > 0)
        keep_one_idle(loop);
    else if (n < 0 && n != -EINTR && !loop->error)
        loop->error = n;
    return n == -EINTR ? 0 : n;
}

/* There are more than are wanted, since those that waited have gone on. Then it is forgotten. */
static bool is_left_over(struct worker *w)
{
    struct loop *loop = w->loop;
    CKPT_GUARD(&loop->lock);
    if (loop->ending || loop->threads - loop->waiting <= THREADS)
        return false;
    struct worker **link = &loop->workers;
    while (*link != w)
        link = &(*link)->next;
    *link = w->next;
    loop->threads--;
    return true;
}

static void *work(void *arg)
{
    struct worker *w = arg;
    struct loop *loop = w->loop;
    sigset_t wake;
    sigemptyset(&wake);
    sigaddset(&wake, WAKE);
    pthread_sigmask(SIG_UNBLOCK, &wake, NULL);
    self = w;
    while (receive(w) > 0) {
        w->uid = w->buf.mem ? ((struct fuse_in_header *)w->buf.mem)->uid : 0;
        fuse_session_process_buf(loop->session, &w->buf);
        if (is_left_over(w)) {
            pthread_detach(pthread_self());
            free(w->buf.mem);
            free(w);
            return NULL;
        }
    }
    fuse_session_exit(loop->session);
    pthread_mutex_lock(&loop->lock);
    w->ended = true;
    pthread_mutex_unlock(&loop->lock);
    sem_post(&loop->over);
    return NULL;
}

/* --- those that wait --- */

static unsigned count_waiting(const struct loop *loop, uid_t uid)
{
    unsigned n = 0;
    for (const struct worker *w = loop->workers; w; w = w->next)
        n += w->waiting && w->uid == uid;
    return n;
}

static int begin_waiting(void *arg)
{
    struct loop *loop = arg;
    struct worker *w = self;
    if (!w) /* none of ours */
        return 0;
    CKPT_GUARD(&loop->lock);
    if (w->waiting) {
        w->waiting++;
        return 0;
    }
    if (loop->waiting >= WAITING || count_waiting(loop, w->uid) >= WAITING_OF_USER) {
        if (ckpt_log_again(&loop->told, w->uid))
            ckpt_log(CKPT_LOG_WARN, "user %u has %u calls that wait for commits, all users %u: more of them get EAGAIN",
                     w->uid, count_waiting(loop, w->uid), loop->waiting);
        return -EAGAIN;
    }
    w->waiting = 1;
    loop->waiting++;
    keep_one_idle(loop);
    return 0;
}

static void end_waiting(void *arg)
{
    struct loop *loop = arg;
    struct worker *w = self;
    if (!w)
        return;
    CKPT_GUARD(&loop->lock);
    if (--w->waiting == 0)
        loop->waiting--;
}

/* --- all of it --- */

static void wait_for_end(struct loop *loop)
{
    while (!fuse_session_exited(loop->session)) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec++; /* a signal that another thread took wakes nobody */
        sem_timedwait(&loop->over, &until);
    }
}

static void nothing(int signal)
{
}

/* A signal that comes before the thread has begun to wait for a request is lost, so it is sent again. Those that are at
 * a request end it first. */
static bool wake_receivers(struct loop *loop)
{
    bool all_ended = true;
    CKPT_GUARD(&loop->lock);
    loop->ending = true;
    for (struct worker *w = loop->workers; w; w = w->next) {
        if (w->receiving)
            pthread_kill(w->thread, WAKE);
        all_ended &= w->ended;
    }
    return all_ended;
}

static void end_workers(struct loop *loop)
{
    while (!wake_receivers(loop))
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    for (struct worker *w = loop->workers, *next; w; w = next) {
        next = w->next;
        pthread_join(w->thread, NULL);
        free(w->buf.mem);
        free(w);
    }
}

int fs_loop_run(struct fuse_session *session)
{
    struct loop loop = {.session = session, .lock = PTHREAD_MUTEX_INITIALIZER};
    const struct sigaction interrupting = {.sa_handler = nothing}; /* without SA_RESTART */
    sigaction(WAKE, &interrupting, NULL);
    sem_init(&loop.over, 0, 0);
    const struct ckpt_waiting hook = {begin_waiting, end_waiting, &loop};
    ckpt_waiting_setup(&hook);
    pthread_mutex_lock(&loop.lock);
    int r = add_worker(&loop);
    pthread_mutex_unlock(&loop.lock);
    if (r == 0) {
        wait_for_end(&loop);
        end_workers(&loop);
    }
    ckpt_waiting_setup(NULL);
    sem_destroy(&loop.over);
    fuse_session_reset(session);
    return r < 0 ? r : loop.error == -ENODEV ? 0 : loop.error;
}
