/* AVX-512 (F, DQ, BW, VL): 32 registers of 16 floats; 16 accumulators a tile. */
#include <immintrin.h>

#define WIDTH 16
#define ROWS 8
#define PANELS 2
#define KERNELS dci_kernels_avx512
#define ISA "avx512"
#define below_mask(scores, tau) \
    ((uint32_t)_mm512_cmp_ps_mask((__m512)(scores), _mm512_set1_ps(tau), _CMP_LT_OQ))
#define lane_bits(truth) ((uint32_t)_mm512_movepi32_mask((__m512i)(truth)))
#define minimum(a, b) ((vfloat)_mm512_min_ps((__m512)(a), (__m512)(b)))
#define maximum(a, b) ((vfloat)_mm512_max_ps((__m512)(a), (__m512)(b)))
#define load_halves(p) ((vfloat)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(p))))
#define load_bytes(p) ((vfloat)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(p)))))
#define fused(a, b, c) ((vfloat)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#include "simd.h"
