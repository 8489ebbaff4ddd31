/* What the bfloat16 dot instruction could reach: sums of two products in float32, from registers, beside float32's fused
   multiply-add from registers.

   bf16_dot THREADS  ->  "FMA_FLOPS DOT_FLOPS" on one line; the second is 0 where the processor has no such instruction.
   A multiply-add counts two, a dot of pairs four. Each figure is the best of several short tries, tried in turn. */
#include <immintrin.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Twelve independent chains, as in limits.c. */
enum { CHAINS = 12, STEPS = 200000, TRIES = 40 };

static float sum_of(__m512 v)
{
    return _mm512_reduce_add_ps(v);
}

static float multiply_add(__m512 a, __m512 b)
{
    __m512 c[CHAINS];
    for (int j = 0; j < CHAINS; j++) c[j] = _mm512_set1_ps((float)j);
    for (long i = 0; i < STEPS; i++)
        for (int j = 0; j < CHAINS; j++) c[j] = _mm512_fmadd_ps(a, b, c[j]);
    float sum = 0;
    for (int j = 0; j < CHAINS; j++) sum += sum_of(c[j]);
    return sum;
}

#ifdef __AVX512BF16__
static float dot(__m512 a, __m512 b)
{
    __m512bh p = (__m512bh)a, q = (__m512bh)b;
    __m512 c[CHAINS];
    for (int j = 0; j < CHAINS; j++) c[j] = _mm512_set1_ps((float)j);
    for (long i = 0; i < STEPS; i++)
        for (int j = 0; j < CHAINS; j++) c[j] = _mm512_dpbf16_ps(c[j], p, q);
    float sum = 0;
    for (int j = 0; j < CHAINS; j++) sum += sum_of(c[j]);
    return sum;
}
#endif

static double rate(int threads, float (*chains)(__m512, __m512), double flops_a_step)
{
    volatile float sink = 0;
    double begin = omp_get_wtime();
    #pragma omp parallel num_threads(threads)
    {
        float out = chains(_mm512_set1_ps(1.0f), _mm512_set1_ps(0.5f));
        #pragma omp critical
        sink += out;
    }
    return threads * (double)STEPS * CHAINS * flops_a_step / (omp_get_wtime() - begin);
}

int main(int argc, char **argv)
{
    int threads = argc > 1 ? atoi(argv[1]) : 1;
    double fused = 0, dotted = 0;
    for (int attempt = 0; attempt < TRIES; attempt++) {
        double one = rate(threads, multiply_add, 2.0 * 16);
        if (one > fused) fused = one;
#ifdef __AVX512BF16__
        one = rate(threads, dot, 4.0 * 16);
        if (one > dotted) dotted = one;
#endif
    }
    printf("%.6g %.6g\n", fused, dotted);
    return 0;
}
