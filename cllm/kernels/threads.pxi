# On how many threads the kernels run. The number belongs to the thread of the system that calls them: what a kernel
# checks (a workspace, say) is what it then uses, whatever other Python threads do meanwhile. Kernels read `_threads`
# before they open a parallel region, never within one: the workers of a region have numbers of their own.
#
# The OpenMP runtime ends the process when the system refuses it a thread, so a number is tried out first, once for
# each calling thread, by starting that many.
#
# After a fork only the forking thread is left, and a runtime that still counts on its idle ones waits for them for
# ever. GNU's can be told to let go of them (gcc 9 and later); LLVM's takes care of itself.

cdef extern from *:
    """
    #include <limits.h>
    #include <stdlib.h>
    #if defined(_OPENMP)
    #include <pthread.h>
    #if defined(__linux__) && !defined(__clang__) && __GNUC__ >= 9
    #include <omp.h>
    #pragma weak omp_pause_resource_all         /* another runtime may stand in for the compiler's own */
    #define CLLM_PAUSE() (omp_pause_resource_all ? omp_pause_resource_all(omp_pause_soft) : -1)
    #elif defined(__clang__)
    #define CLLM_PAUSE() 0
    #else
    #define CLLM_PAUSE() (-1)
    #endif
    #endif

    static _Thread_local int cllm_own = 1;      /* what this thread uses outside of any scope */
    static _Thread_local int cllm_scope = 0;    /* what it uses inside of one; 0 outside */
    static _Thread_local int cllm_tried = 1;    /* as many can be started */
    static int cllm_most = INT_MAX;             /* 1 in a process whose runtime lost its threads */

    static inline int cllm_threads(void)
    {
        int n = cllm_scope ? cllm_scope : cllm_own;
        return n < cllm_most ? n : cllm_most;
    }

    #if defined(_OPENMP)
    static void *cllm_pass(void *gate)
    {
        pthread_mutex_lock((pthread_mutex_t *)gate);
        pthread_mutex_unlock((pthread_mutex_t *)gate);
        return NULL;
    }
    #endif

    /* How many of n threads there can be at once, the calling one among them. */
    static int cllm_can_start(int n)
    {
    #if defined(_OPENMP)
        if (n > cllm_tried) {
            pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
            pthread_t *made = (pthread_t *)malloc((size_t)n * sizeof(pthread_t));
            int count = 0;
            if (made == NULL)
                return 1;
            pthread_mutex_lock(&gate);
            while (count < n - 1 && pthread_create(&made[count], NULL, cllm_pass, &gate) == 0)
                count++;
            pthread_mutex_unlock(&gate);
            for (int i = 0; i < count; i++)
                pthread_join(made[i], NULL);
            free(made);
            if (count < n - 1)
                return count + 1;
            cllm_tried = n;
        }
    #endif
        return n;
    }

    /* The shares of a parallel region in one range for each of its threads. A thread takes those of its own range first, and
       so in every call the same ones, whose data may lie in its caches; then what others have left. Counters lie a line
       apart. Relaxed order will do: which thread does a share is all that hangs on it. */
    enum { CLLM_RANGES = 64, CLLM_APART = 64 / sizeof(Py_ssize_t) };
    typedef struct { Py_ssize_t shares, ranges, taken[CLLM_RANGES * CLLM_APART]; } cllm_shares;
    static inline Py_ssize_t cllm_range_start(const cllm_shares *s, Py_ssize_t range) { return s->shares * range / s->ranges; }
    static inline void cllm_share_out(cllm_shares *s, Py_ssize_t shares, int threads)
    {
        s->shares = shares;
        s->ranges = threads < CLLM_RANGES ? threads : CLLM_RANGES;
        for (Py_ssize_t i = 0; i < s->ranges; i++) s->taken[i * CLLM_APART] = cllm_range_start(s, i);
    }
    /* Asked for as often as there are shares, by any of the threads, it gives each share once: a range that was found empty
       stays so, and while others have taken fewer than all, one that is looked at later is not. */
    static inline Py_ssize_t cllm_next_share(cllm_shares *s, int thread)
    {
        for (Py_ssize_t i = 0; i < s->ranges; i++) {
            const Py_ssize_t range = (thread + i) % s->ranges, end = cllm_range_start(s, range + 1);
            Py_ssize_t *taken = &s->taken[range * CLLM_APART];
            if (__atomic_load_n(taken, __ATOMIC_RELAXED) >= end) continue;
            const Py_ssize_t share = __atomic_fetch_add(taken, 1, __ATOMIC_RELAXED);
            if (share < end) return share;
        }
        return -1;
    }

    /* Let the runtime end the idle threads that work for this one; whether a child may now be forked. */
    static int cllm_let_go(void)
    {
    #if defined(_OPENMP)
        if (cllm_tried > 1 && CLLM_PAUSE() != 0)
            return 0;
        cllm_tried = 1;
    #endif
        return 1;
    }
    """
    ctypedef struct Shares "cllm_shares":
        pass
    void share_out "cllm_share_out"(Shares *s, Py_ssize_t shares, int threads) noexcept nogil
    Py_ssize_t next_share "cllm_next_share"(Shares *s, int thread) noexcept nogil
    int _threads "cllm_threads()"
    int own_threads "cllm_own"
    int scope_threads "cllm_scope"
    int most_threads "cllm_most"
    int can_start "cllm_can_start"(int n) noexcept nogil
    bint let_go "cllm_let_go"() noexcept nogil


cdef int check_threads(int n) except -1:
    """n, when it is at least 1 and the system lets so many threads start."""
    cdef int most
    if n < 1:
        raise ConfigError("num_threads", "must be at least 1", str(n), "Pass 1 for a serial run, None for the default.")
    most = can_start(n)
    if most < n:
        raise ConfigError("num_threads", f"must be at most {most}: the system lets this process start no more threads",
                          str(n), "Pass a lower number, or raise the limit (ulimit -u, a container's of processes).")
    return n


cdef inline Py_ssize_t share_start(Py_ssize_t length, Py_ssize_t unit, Py_ssize_t piece, Py_ssize_t pieces) noexcept nogil:
    """Where piece number `piece` begins when `length` is shared out in whole units."""
    return min(length, (length + unit - 1) // unit * piece // pieces * unit)


def set_threads(int n):
    """Number of threads for the kernels that this Python thread calls from now on, outside of any `Threads`."""
    global own_threads
    own_threads = check_threads(n)


def get_threads():
    """Number of threads on which the kernels would run now, called from this Python thread."""
    return _threads


cdef class Threads:
    """Kernels called inside ``with Threads(n):`` run on n threads, those of other Python threads as before.

    Scopes may lie in each other; each is entered and left in one thread.
    """

    cdef int n, outer

    def __cinit__(self, int n):
        self.n = n

    def __enter__(self):
        global scope_threads
        self.outer = scope_threads
        scope_threads = check_threads(self.n)

    def __exit__(self, *error):
        global scope_threads
        scope_threads = self.outer


def before_fork():
    """Prepare the runtime for a fork by this thread; False when a child must not use more than one thread."""
    return let_go()


def stay_serial():
    """One thread for all kernels from now on, whatever is asked for."""
    global most_threads
    most_threads = 1
