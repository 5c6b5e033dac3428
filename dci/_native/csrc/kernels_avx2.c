/* AVX2, FMA and F16C: 16 registers of 8 floats; 12 accumulators a tile. */
#include <immintrin.h>

#define WIDTH 8
#define ROWS 6
#define PANELS 1
#define KERNELS dci_kernels_avx2
#define ISA "avx2"
#define below_mask(scores, tau) \
    ((uint32_t)_mm256_movemask_ps(_mm256_cmp_ps((__m256)(scores), _mm256_set1_ps(tau), _CMP_LT_OQ)))
#define lane_bits(truth) ((uint32_t)_mm256_movemask_ps((__m256)(truth)))
#define minimum(a, b) ((vfloat)_mm256_min_ps((__m256)(a), (__m256)(b)))
#define maximum(a, b) ((vfloat)_mm256_max_ps((__m256)(a), (__m256)(b)))
#define load_halves(p) ((vfloat)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p))))
#define load_bytes(p) ((vfloat)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(p)))))
#define fused(a, b, c) ((vfloat)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#include "simd.h"
