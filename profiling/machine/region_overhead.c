/* What a parallel region and a barrier cost where there is nothing to do.

   region_overhead THREADS  ->  "REGION BARRIER" on one line, in seconds: the least of several tries. Between two regions
   the calling thread works for some microseconds, as it does within a step. */
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

enum { TRIES = 30, REGIONS = 400, BARRIERS = 16, BETWEEN = 2000 };

static volatile double sink;

static void between(void)
{
    double x = sink;
    for (int i = 0; i < BETWEEN; i++) x = x * 0.999 + 1.0;
    sink = x;
}

static double alone(void)
{
    const double begin = omp_get_wtime();
    for (int i = 0; i < REGIONS; i++) between();
    return (omp_get_wtime() - begin) / REGIONS;
}

static double with_barriers(int threads, int barriers)
{
    const double begin = omp_get_wtime();
    for (int i = 0; i < REGIONS; i++) {
        between();
        #pragma omp parallel num_threads(threads)
        for (int j = 0; j < barriers; j++) {
            #pragma omp barrier
        }
    }
    return (omp_get_wtime() - begin) / REGIONS;
}

static double smaller(double a, double b) { return a < b ? a : b; }

int main(int argc, char **argv)
{
    const int threads = argc > 1 ? atoi(argv[1]) : 1;
    double none = 1, one = 1, many = 1;
    with_barriers(threads, 1);
    for (int i = 0; i < TRIES; i++) {
        none = smaller(none, alone());
        one = smaller(one, with_barriers(threads, 1));
        many = smaller(many, with_barriers(threads, 1 + BARRIERS));
    }
    printf("%.3e %.3e\n", one > none ? one - none : 0, many > one ? (many - one) / BARRIERS : 0);
    return 0;
}
