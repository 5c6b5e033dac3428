/* NEON (AArch64): 32 registers of 4 floats; 24 accumulators a tile. */
#include <arm_neon.h>
#include <string.h>

#define WIDTH 4
#define ROWS 6
#define PANELS 1
#define KERNELS dci_kernels_neon
#define ISA "neon"

static inline uint32_t truth_bits(uint32x4_t truth) {
    const uint32x4_t bits = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(truth, bits));
}

/* Four bytes, and none behind them. */
static inline float32x4_t four_bytes(const int8_t *p) {
    uint32_t bits;
    memcpy(&bits, p, sizeof bits);
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8(bits)))));
}

#define below_mask(scores, tau) truth_bits(vcltq_f32((float32x4_t)(scores), vdupq_n_f32(tau)))
#define lane_bits(truth) truth_bits((uint32x4_t)(truth))
/* Not vminq_f32 and vmaxq_f32, which are NaN if either is. */
#define minimum(a, b) first_where(vcltq_f32((float32x4_t)(a), (float32x4_t)(b)), a, b)
#define maximum(a, b) first_where(vcgtq_f32((float32x4_t)(a), (float32x4_t)(b)), a, b)
#define first_where(truth, a, b) ((vfloat)vbslq_f32(truth, (float32x4_t)(a), (float32x4_t)(b)))
#define load_halves(p) ((vfloat)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))))
#define load_bytes(p) ((vfloat)four_bytes(p))
#define fused(a, b, c) ((vfloat)vfmaq_f32((float32x4_t)(c), (float32x4_t)(a), (float32x4_t)(b)))
#include "simd.h"
