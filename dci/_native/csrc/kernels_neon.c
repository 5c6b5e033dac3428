/* NEON (AArch64): 32 registers of 4 floats; 24 accumulators a tile. */
#include <arm_neon.h>

#define WIDTH 4
#define ROWS 6
#define PANELS 1
#define KERNELS dci_kernels_neon
#define ISA "neon"

static inline uint32_t truth_bits(uint32x4_t truth) {
    const uint32x4_t bits = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(truth, bits));
}

#define below_mask(scores, tau) truth_bits(vcltq_f32((float32x4_t)(scores), vdupq_n_f32(tau)))
#define lane_bits(truth) truth_bits((uint32x4_t)(truth))
/* Not vminq_f32 and vmaxq_f32, which are NaN if either is. */
#define minimum(a, b) first_where(vcltq_f32((float32x4_t)(a), (float32x4_t)(b)), a, b)
#define maximum(a, b) first_where(vcgtq_f32((float32x4_t)(a), (float32x4_t)(b)), a, b)
#define first_where(truth, a, b) ((vfloat)vbslq_f32(truth, (float32x4_t)(a), (float32x4_t)(b)))
#include "simd.h"
