/* What the machine can do: the rate of fused multiply-adds from registers, and of moving memory.

   limits THREADS BYTES  ->  "FLOPS COPIED CHANGED" on one line, per second. Multiply-adds count two. COPIED copies one
   half of BYTES into the other, CHANGED multiplies BYTES in place; a byte read and written counts two. Each figure is
   the best of several short tries, since a limit is what nothing exceeds. As a library it offers copy_bytes alone. */
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif
typedef float vf __attribute__((vector_size(VECTOR_BYTES)));

/* Twelve independent chains: enough for two units of latency four, with registers to spare on every target. */
enum { CHAINS = 12, STEPS = 200000, TRIES = 40, PASS_BYTES = 16 << 20 };

static vf chains(vf a, vf b)
{
    vf c[CHAINS];
    for (int j = 0; j < CHAINS; j++) c[j] = a + (float)j;
    for (long i = 0; i < STEPS; i++)
        for (int j = 0; j < CHAINS; j++) c[j] = a * c[j] + b;
    vf sum = c[0];
    for (int j = 1; j < CHAINS; j++) sum += c[j];
    return sum;
}

static void scale(float *x, size_t n, float factor)
{
    for (size_t i = 0; i < n; i++) x[i] *= factor;
}

/* Each thread copies its share, the last one what is left over. */
void copy_bytes(void *to, const void *from, size_t bytes, int threads)
{
    #pragma omp parallel num_threads(threads)
    {
        size_t share = bytes / threads / 64 * 64, start = share * omp_get_thread_num();
        memcpy((char *)to + start, (const char *)from + start,
               omp_get_thread_num() == threads - 1 ? bytes - start : share);
    }
}

int main(int argc, char **argv)
{
    int threads = argc > 1 ? atoi(argv[1]) : 1;
    size_t bytes = argc > 2 ? strtoull(argv[2], 0, 10) : (size_t)64 << 20;
    size_t share = bytes / 2 / threads / 64 * 64;
    size_t passes = bytes < PASS_BYTES ? PASS_BYTES / bytes : 1; /* the start of the threads must not count */
    char *from = malloc(share * threads), *to = malloc(share * threads);
    double flops = 0, copied = 0, changed = 0;
    volatile float sink = 0;
    if (!from || !to || !share) return 1;
    #pragma omp parallel num_threads(threads)
    {
        size_t start = share * omp_get_thread_num();
        memset(from + start, 0, share);
        memset(to + start, 0, share);
    }
    for (int attempt = 0; attempt < TRIES; attempt++) {
        double begin = omp_get_wtime(), seconds;
        #pragma omp parallel num_threads(threads)
        {
            vf one = {0};
            vf out = chains(one + 0.999f, one + 0.001f);
            #pragma omp critical
            sink += out[0];
        }
        seconds = omp_get_wtime() - begin;
        double rate = 2.0 * threads * STEPS * CHAINS * (VECTOR_BYTES / 4) / seconds;
        if (rate > flops) flops = rate;
        begin = omp_get_wtime();
        #pragma omp parallel num_threads(threads)
        {
            size_t start = share * omp_get_thread_num();
            for (size_t pass = 0; pass < passes; pass++) {
                memcpy(to + start, from + start, share);
                __asm__ volatile("" ::: "memory"); /* or the next pass would be found idle */
            }
        }
        seconds = omp_get_wtime() - begin;
        rate = 2.0 * passes * share * threads / seconds;
        if (rate > copied) copied = rate;
        begin = omp_get_wtime();
        #pragma omp parallel num_threads(threads)
        {
            size_t start = share * omp_get_thread_num();
            for (size_t pass = 0; pass < passes; pass++) {
                scale((float *)(from + start), share / 4, 0.999f);
                scale((float *)(to + start), share / 4, 0.999f);
            }
        }
        seconds = omp_get_wtime() - begin;
        rate = 4.0 * passes * share * threads / seconds;
        if (rate > changed) changed = rate;
    }
    printf("%.6g %.6g %.6g\n", flops, copied, changed);
    return 0;
}
