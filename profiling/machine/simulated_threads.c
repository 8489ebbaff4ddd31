/* A stand-in for GNU's OpenMP runtime that runs the threads of a parallel region one after another, on one processor, and
   keeps the time that each would have on its own. So it tells for any number of threads how a region's work is shared out:
   how long the busiest takes, how often all wait for each other, how many shares were handed out.

       LD_PRELOAD=simulated_threads.so python ...

   A thread is a context with a stack and a clock of its own. The clock runs while the thread does; whoever asks for the
   next share of a loop waits until no other thread is earlier, so shares go to the thread that is free first, as in truth.
   At a barrier all clocks become the latest. Every thread is alone with the caches and the memory here: that many cores
   share them has to be added (profiling/regions.py does).

   It knows what cllm's kernels call, as GCC compiles them: loops with static or dynamic shares, of one calling thread. */
#define _GNU_SOURCE
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

enum { MOST = 1024, LOOPS = 64, STACK_BYTES = 1 << 20, EVENTS = 1 << 20 };

/* What happened, in order: a region, or with no threads the time of the calling thread outside of any. */
struct event {
    void *function;
    int threads, barriers, mark;
    long shares;                    /* handed out one by one; 0 where each thread knows its own */
    double critical, total, longest;  /* seconds: of the region, of all threads, of the longest share */
};

struct worker {
    ucontext_t context;
    char *stack;
    double clock, since;            /* seconds: of this thread, and when its share began */
    int loop;                       /* loops that it has come to */
    enum { READY, WAITING, DONE } state;
};

struct loop { long at, end, step, chunk; };

static struct event events[EVENTS];
static long n_events;
static int mark = -1, follows;
static bool keeps;
static double outside;

static struct worker workers[MOST];
static struct loop loops[LOOPS];
static int team, running = -1, n_loops;
static ucontext_t home;
static void (*body)(void *);
static void *argument;
static struct event *region;

static double now(void)
{
    struct timespec t;
    syscall(SYS_clock_gettime, CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

static void stop(const char *what)
{
    fprintf(stderr, "simulated_threads: %s\n", what);
    abort();
}

static struct event *add(void *function, int threads)
{
    if (n_events == EVENTS) stop("too many events");
    events[n_events] = (struct event){.function = function, .threads = threads, .mark = mark};
    return &events[n_events++];
}

/* The time since the last event, of the calling thread alone. */
static void close_outside(void)
{
    const double t = now();
    if (keeps) {
        struct event *one = add(NULL, 0);
        one->critical = one->total = t - outside;
    }
    outside = t;
}

/* What is to come belongs to number n; events are kept from 0 on, and no more from -1 on. */
void simulated_mark(int n)
{
    if (keeps) close_outside();
    mark = n;
    keeps = n >= 0;
    outside = now();
}

/* What is to come are `count` operations, the first of them number n, between which the clock is read. Told by a call from
   Python between two of them, their numbers would take longer than the kernels' own way from one to the next. */
void simulated_follow(int n, int count)
{
    mark = n - 1;
    keeps = false;
    follows = count + 1;
}

int clock_gettime(clockid_t which, struct timespec *t)
{
    if (follows && which == CLOCK_MONOTONIC) simulated_mark(--follows ? mark + 1 : -1);
    return (int)syscall(SYS_clock_gettime, which, t);
}

/* Operations of `simulated_follow` that have not come. */
int simulated_missing(void) { return follows; }

long simulated_events(struct event **to)
{
    *to = events;
    return n_events;
}

void simulated_clear(void) { n_events = 0; }

static void enter(void)
{
    body(argument);
    workers[running].state = DONE;
    swapcontext(&workers[running].context, &home);
}

/* Back to the loop over all, until this thread's turn comes again. */
static void yield(int state)
{
    struct worker *own = &workers[running];
    own->state = state;
    swapcontext(&own->context, &home);
}

static void resume(int w)
{
    running = w;
    const double begin = now();
    swapcontext(&home, &workers[w].context);
    workers[w].clock += now() - begin;
    running = -1;
}

static int earliest(void)
{
    int found = -1;
    for (int w = 0; w < team; w++)
        if (workers[w].state == READY && (found < 0 || workers[w].clock < workers[found].clock)) found = w;
    return found;
}

static double latest(void)
{
    double t = 0;
    for (int w = 0; w < team; w++) if (workers[w].clock > t) t = workers[w].clock;
    return t;
}

/* All that are left wait: they go on together. Whether any was left. */
static bool pass_barrier(void)
{
    const double t = latest();
    bool any = false;
    for (int w = 0; w < team; w++)
        if (workers[w].state == WAITING) {
            region->total -= t - workers[w].clock;      /* waiting is no work */
            workers[w].clock = t;
            workers[w].state = READY;
            any = true;
        }
    region->barriers += any;
    return any;
}

void GOMP_parallel(void (*function)(void *), void *data, unsigned threads, unsigned flags)
{
    (void)flags;
    if (team) stop("a region within a region");
    if (threads == 0 || threads > MOST) stop("a region without a number of threads");
    struct event ignored;
    if (threads == 1) {     /* no other thread takes part: the calling one goes on */
        team = 1; running = 0; n_loops = 0; workers[0].loop = 0; region = &ignored;
        function(data);
        team = 0; running = -1;
        return;
    }
    close_outside();
    region = keeps ? add((void *)function, (int)threads) : &ignored;
    body = function; argument = data; team = (int)threads; n_loops = 0;
    for (int w = 0; w < team; w++) {
        struct worker *one = &workers[w];
        if (one->stack == NULL) {
            one->stack = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (one->stack == MAP_FAILED) stop("no memory for a stack");
        }
        getcontext(&one->context);
        one->context.uc_stack.ss_sp = one->stack;
        one->context.uc_stack.ss_size = STACK_BYTES;
        one->context.uc_link = NULL;
        one->clock = 0;
        one->loop = 0;
        one->state = READY;
        makecontext(&one->context, enter, 0);
    }
    do for (int w; (w = earliest()) >= 0;) resume(w); while (pass_barrier());
    region->critical = latest();
    for (int w = 0; w < team; w++) region->total += workers[w].clock;
    team = 0;
    outside = now();
}

void GOMP_barrier(void)
{
    if (team > 1) yield(WAITING);
}

static bool take(struct loop *loop, long *from, long *to)
{
    struct worker *own = &workers[running];
    if (team > 1) {
        yield(READY);       /* brings the clock up to date, too */
        if (own->since >= 0 && own->clock - own->since > region->longest) region->longest = own->clock - own->since;
        own->since = own->clock;
        region->shares += loop->at < loop->end;
    }
    if (loop->at >= loop->end) return false;
    *from = loop->at;
    *to = loop->at + loop->chunk * loop->step;
    if (*to > loop->end) *to = loop->end;
    loop->at = *to;
    return true;
}

bool GOMP_loop_nonmonotonic_dynamic_start(long start, long end, long step, long chunk, long *from, long *to)
{
    struct worker *own = &workers[running];
    if (running < 0 || own->loop == LOOPS || step <= 0) stop("a loop that it does not know");
    if (own->loop == n_loops) loops[n_loops++] = (struct loop){start, end, step, chunk};
    own->loop++;
    own->since = -1;     /* no share of this loop yet */
    return take(&loops[own->loop - 1], from, to);
}

bool GOMP_loop_nonmonotonic_dynamic_next(long *from, long *to)
{
    return take(&loops[workers[running].loop - 1], from, to);
}

void GOMP_loop_end_nowait(void) {}

int omp_get_thread_num(void) { return running < 0 ? 0 : running; }
int omp_get_num_threads(void) { return team ? team : 1; }
