/* What the instructions for bfloat16 compute, against their definitions in plain C, and how fast they are from registers.

   Prints one object of JSON. Of each instruction that the processor lacks it says null; nothing else is needed than a C
   compiler. Definitions (cllm/kernels/matmul.pxi has the first):

       step(acc, a, b)   flush(fma(flush(a), flush(b), flush(acc))), rounded once to nearest even; flush: subnormals are zero
       float32 multiply-add, with FTZ and DAZ set    acc = step(acc, a, b)
       VDPBF16PS   acc = step(acc, high a, high b), then acc = step(acc, low a, low b)
       TDPBF16PS   even and odd k apart, each a chain of steps from 0 over up to 16 pairs; their sum; that added to C

   Compile: cc -O3 -ffp-contract=off -o probe bfloat16_instructions.c -lm */

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define ROUNDS 4000
#define SECONDS 0.3
/* Chains that do not wait for each other, each in a variable of its own. */
#define TWELVE(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)

static float flushed(float x) { return fabsf(x) < 0x1p-126f ? copysignf(0, x) : x; }

/* The sum of two float64 that is a product of bfloat16 and a float32, or two float32: to float32 as if rounded once, and
   zero where it is below 2^-126 once it has 24 bits. */
static float once(double sum)
{
    const double scale = fabs(sum) < 0x1p-60 ? 0x1p64 : 1;
    const float rounded = (float)(sum * scale);
    return fabs((double)rounded) < scale * 0x1p-126 ? copysignf(0, rounded) : (float)sum;
}
static float step(float acc, float a, float b) { return once((double)flushed(a) * flushed(b) + flushed(acc)); }
static float added(float a, float b) { return once((double)flushed(a) + flushed(b)); }
static float wide(uint16_t h)
{
    const uint32_t u = (uint32_t)h << 16;
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

static uint64_t state = 88172645463325252u;
static uint32_t drawn(void)
{
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return (uint32_t)(state >> 24);
}
/* Numbers of every size, zeros, subnormals; now and then infinity and NaN where `special`. */
static uint16_t operand(int special)
{
    const uint32_t r = drawn();
    if (r % 31 == 0) return (uint16_t)((r >> 8 & 0x8000) | (r >> 12 & 0x7f));
    if (special && r % 37 == 1) return (uint16_t)(r & 1 << 20 ? 0x7f80 : r & 1 << 21 ? 0x7fc0 : 0xff80);
    return (uint16_t)((r >> 8 & 0x8000) | (127 - r % 70) << 7 | (r >> 16 & 0x7f));
}
static float summand(int special)
{
    const uint32_t r = drawn() % 41, u = (r ? (drawn() & 0x807fffff) | (127 - r % 67 - (r == 7 ? 59 : 0)) << 23 : drawn() & 0x80ffffff);
    float x;
    memcpy(&x, &u, sizeof x);
    return special && r == 9 ? INFINITY : x;
}
static int differs(float got, float must)
{
    return (got != got) != (must != must) || (must == must && memcmp(&got, &must, sizeof got));
}
static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
static void told(const char *name, long wrong, long wrong_special, long tried, double rate, const char *end)
{
    printf("\"%s\": {\"tried\": %ld, \"differ\": %ld, \"differ_with_infinity_or_nan\": %ld, \"operations_per_second\": %.4g}%s",
           name, tried, wrong, wrong_special, rate, end);
}

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>

static unsigned leaf7(unsigned sub, int edx)
{
    unsigned a = 0, b = 0, c = 0, d = 0;
    __get_cpuid_count(7, sub, &a, &b, &c, &d);
    return edx ? d : a;
}
static uint64_t enabled(void)
{
    unsigned a = 0, d = 0, b, c, e;
    if (!__get_cpuid(1, &a, &b, &c, &e) || !(c >> 27 & 1)) return 0;
    __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    return (uint64_t)d << 32 | a;
}

__attribute__((target("avx2,fma"))) static void probe_float32(const char *end)
{
    long wrong[2] = {0, 0};
    for (int special = 0; special < 2; special++)
        for (int n = 0; n < ROUNDS; n++) {
            float a[8], b[8], c[8], got[8];
            for (int i = 0; i < 8; i++) a[i] = wide(operand(special)), b[i] = wide(operand(special)), c[i] = summand(special);
            const unsigned before = _mm_getcsr();
            _mm_setcsr(before | 0x8040);
            _mm256_storeu_ps(got, _mm256_fmadd_ps(_mm256_loadu_ps(a), _mm256_loadu_ps(b), _mm256_loadu_ps(c)));
            _mm_setcsr(before);
            for (int i = 0; i < 8; i++) wrong[special] += differs(got[i], step(c[i], a[i], b[i]));
        }
    const __m256 x = _mm256_set1_ps(0.5f), y = _mm256_set1_ps(1e-9f);
#define BEGIN(i) __m256 acc##i = _mm256_set1_ps(i);
#define GO_ON(i) acc##i = _mm256_fmadd_ps(acc##i, x, y); __asm__ volatile("" : "+x"(acc##i));
#define END(i) sink += _mm256_cvtss_f32(acc##i);
    TWELVE(BEGIN)
    double begin = now(), count = 0;
    while (now() - begin < SECONDS)
        for (int n = 0; n < 10000; n++, count += 12 * 16) { TWELVE(GO_ON) }
    const double seconds = now() - begin;
    volatile float sink = 0;
    TWELVE(END)
#undef BEGIN
#undef GO_ON
#undef END
    told("float32_fma_256", wrong[0], wrong[1], 8L * ROUNDS, count / seconds, end);
}

__attribute__((target("avx512f,avx512bf16"))) static void probe_vdpbf16ps(const char *end)
{
    long wrong[2] = {0, 0};
    for (int special = 0; special < 2; special++)
        for (int n = 0; n < ROUNDS; n++) {
            uint16_t a[32], b[32];
            float c[16], got[16];
            __m512i left, right;
            for (int i = 0; i < 32; i++) a[i] = operand(special), b[i] = operand(special);
            for (int i = 0; i < 16; i++) c[i] = summand(special);
            memcpy(&left, a, 64), memcpy(&right, b, 64);
            _mm512_storeu_ps(got, _mm512_dpbf16_ps(_mm512_loadu_ps(c), (__m512bh)left, (__m512bh)right));
            for (int i = 0; i < 16; i++) {
                const float high = step(c[i], wide(a[2 * i + 1]), wide(b[2 * i + 1]));
                wrong[special] += differs(got[i], step(high, wide(a[2 * i]), wide(b[2 * i])));
            }
        }
    const __m512bh x = (__m512bh)_mm512_set1_epi32(0x3f003f00), y = (__m512bh)_mm512_set1_epi32(0x30003000);
#define BEGIN(i) __m512 acc##i = _mm512_set1_ps(i);
#define GO_ON(i) acc##i = _mm512_dpbf16_ps(acc##i, x, y); __asm__ volatile("" : "+v"(acc##i));
#define END(i) sink += _mm512_cvtss_f32(acc##i);
    TWELVE(BEGIN)
    double begin = now(), count = 0;
    while (now() - begin < SECONDS)
        for (int n = 0; n < 10000; n++, count += 12 * 64) { TWELVE(GO_ON) }
    const double seconds = now() - begin;
    volatile float sink = 0;
    TWELVE(END)
    told("vdpbf16ps_512", wrong[0], wrong[1], 16L * ROUNDS, count / seconds, end);
}

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
static int tiles_allowed(void) { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; } /* ARCH_REQ_XCOMP_PERM, XTILEDATA */
#else
static int tiles_allowed(void) { return 0; }
#endif

__attribute__((target("amx-tile,amx-bf16"))) static void probe_tdpbf16ps(const char *end)
{
    struct { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } config;
    static uint16_t a[16][32], b[16][32];
    static float c[16][16], got[16][16];
    long wrong[2] = {0, 0};
    memset(&config, 0, sizeof config);
    config.palette = 1;
    for (int i = 0; i < 8; i++) config.bytes[i] = 64, config.rows[i] = 16;
    _tile_loadconfig(&config);
    for (int special = 0; special < 2; special++)
        for (int n = 0; n < ROUNDS / 16; n++) {
            for (int i = 0; i < 16; i++)
                for (int j = 0; j < 32; j++) a[i][j] = operand(special), b[i][j] = operand(special);
            for (int i = 0; i < 16; i++)
                for (int j = 0; j < 16; j++) c[i][j] = summand(special);
            _tile_loadd(0, c, 64);
            _tile_loadd(1, a, 64);
            _tile_loadd(2, b, 64);
            _tile_dpbf16ps(0, 1, 2);
            _tile_stored(0, got, 64);
            for (int m = 0; m < 16; m++)
                for (int j = 0; j < 16; j++) {
                    float even = 0, odd = 0;
                    for (int k = 0; k < 16; k++) {
                        even = step(even, wide(a[m][2 * k]), wide(b[k][2 * j]));
                        odd = step(odd, wide(a[m][2 * k + 1]), wide(b[k][2 * j + 1]));
                    }
                    wrong[special] += differs(got[m][j], added(c[m][j], added(even, odd)));
                }
        }
    double begin = now(), count = 0;
    while (now() - begin < SECONDS)
        for (int n = 0; n < 10000; n++, count += 4 * 16384) {
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    const double seconds = now() - begin;
    _tile_release();
    told("tdpbf16ps", wrong[0], wrong[1], 256L * (ROUNDS / 16), count / seconds, end);
}

int main(void)
{
    const uint64_t on = enabled();
    printf("{");
    if (__builtin_cpu_supports("fma") && __builtin_cpu_supports("avx2")) probe_float32(", ");
    else printf("\"float32_fma_256\": null, ");
    if (leaf7(1, 0) >> 5 & 1 && (on & 0xe6) == 0xe6) probe_vdpbf16ps(", ");
    else printf("\"vdpbf16ps_512\": null, ");
    if (leaf7(0, 1) >> 22 & leaf7(0, 1) >> 24 & 1 && (on & 0x60000) == 0x60000 && tiles_allowed()) probe_tdpbf16ps("");
    else printf("\"tdpbf16ps\": null");
    printf("}\n");
    return 0;
}
#else
int main(void)
{
    printf("{\"float32_fma_256\": null, \"vdpbf16ps_512\": null, \"tdpbf16ps\": null}\n");
    return 0;
}
#endif
