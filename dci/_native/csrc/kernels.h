/* The kernels of dci: one table of functions an instruction set, one contract for all of them.
 *
 * Layout.  A *panel* holds DCI_LANES points transposed: panel[k * DCI_LANES + lane] is coordinate k
 * of the point in that lane.  Panels of one array follow each other, `dim * DCI_LANES` floats each.
 * *Rows* are pointers to `dim` consecutive floats; a row is broadcast against the lanes of panels.
 *
 * Numerics.  Products of rows and panels are accumulated in float32, one chain over k per output in
 * ascending order, so that a result does not depend on where in a tile it was computed; instruction
 * sets differ only by fused or separate rounding (at most dim * 2^-24 * sum |row * panel|).
 * `distance2` and `dot` subtract and accumulate in float64.  No function allocates, takes the GIL
 * or keeps state; inputs may be read-only and need no alignment beyond that of float.
 *
 * NaN.  The same on every instruction set: sums and maps pass NaN on; what selects never selects it:
 * no reservoir takes a score of NaN.
 */
#ifndef DCI_KERNELS_H
#define DCI_KERNELS_H

/* The oldest compilers that CI builds with. */
#if defined __clang__ && __clang_major__ < 13
#error "dci-attention builds with clang 13 or later: set CC to a newer compiler"
#elif !defined __clang__ && (!defined __GNUC__ || __GNUC__ < 11)
#error "dci-attention builds with gcc 11 or later, or with clang 13 or later: set CC to a newer compiler"
#endif

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "select.h"

#define DCI_LANES 16

/* The best `keep` of a stream of (score, position) pairs, by score and then by position.
 * Entries collect unsorted up to `capacity` (> 1.25 keep), then the worst are dropped; `tau` is the
 * score that a new entry has to beat.  Each entry is one integer that sorts as its pair does. */
typedef struct {
    uint64_t *entries;
    float tau;
    ptrdiff_t count, keep, capacity;
} dci_reservoir;

/* A float's bits as an unsigned integer of the same order (-inf lowest, +inf highest). */
static inline uint32_t dci_float_to_ordered(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits ^ ((uint32_t)((int32_t)bits >> 31) | 0x80000000u);
}

static inline float dci_ordered_to_float(uint32_t bits) {
    bits ^= (bits >> 31) ? 0x80000000u : 0xffffffffu;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint64_t dci_entry(float score, uint32_t position) {
    return (uint64_t)dci_float_to_ordered(score + 0.0f) << 32 | position; /* -0 ties with 0 */
}

static inline float dci_entry_score(uint64_t entry) {
    return dci_ordered_to_float((uint32_t)(entry >> 32));
}

/* Drop all but the best m, keep <= m <= most; the threshold becomes the worst of them. */
static inline void dci_reservoir_cut(dci_reservoir *reservoir, ptrdiff_t most) {
    uint64_t worst = 0;
    if (reservoir->count < reservoir->keep) return;
    if (most > reservoir->count) most = reservoir->count;
    reservoir->count = dci_select(reservoir->entries, reservoir->count, reservoir->keep, most);
    for (ptrdiff_t i = 0; i < reservoir->count; i++)
        if (reservoir->entries[i] > worst) worst = reservoir->entries[i];
    reservoir->tau = dci_entry_score(worst);
}

static inline void dci_reservoir_push(dci_reservoir *reservoir, float score, uint32_t position) {
    if (!(score < reservoir->tau)) return;
    reservoir->entries[reservoir->count++] = dci_entry(score, position);
    if (reservoir->count == reservoir->capacity)
        dci_reservoir_cut(reservoir, reservoir->keep + reservoir->keep / 4);
}

/* The value of an IEEE half, from its bits; every half is a float. */
static inline float dci_half_to_float(uint16_t half) {
    uint32_t bits = (uint32_t)(half & 0x7fff) << 13, sign = (uint32_t)(half & 0x8000) << 16;
    float value;
    if (bits >= 0x7c00u << 13) {
        bits |= 0x7f800000u; /* infinite or NaN */
    } else {
        memcpy(&value, &bits, sizeof value);
        value *= 0x1p112f; /* from the bias of floats to that of halves; subnormal ones become normal */
        memcpy(&bits, &value, sizeof bits);
    }
    bits |= sign;
    memcpy(&value, &bits, sizeof value);
    return value;
}

typedef struct {
    const char *name;

    /* out[i * out_stride + lane] = bias[lane] + rows[i] . panel lane, for all lanes of n_panels. */
    void (*affine)(const float *const *rows, ptrdiff_t n_rows, ptrdiff_t dim, const float *panels,
                   const float *bias, ptrdiff_t n_panels, float *out, ptrdiff_t out_stride);

    /* The same scores, each pushed into its row's reservoir as (score, position + lane) when it is
     * below the threshold and, if `allowed` is given, allowed[position + lane] is not 0.  That is
     * read after the score: `allowed` may end with the last point, before lanes that hold none. */
    void (*scan_sum)(const float *const *rows, dci_reservoir *const *reservoirs, ptrdiff_t n_rows,
                     ptrdiff_t dim, const float *panels, const float *bias, ptrdiff_t n_panels,
                     uint32_t position, const uint8_t *allowed);

    /* scan_sum over panels of int16 that are multiples of steps[lane]; bit for bit as after `widen`. */
    void (*scan_short)(const float *const *rows, dci_reservoir *const *reservoirs, ptrdiff_t n_rows,
                       ptrdiff_t dim, const int16_t *panels, const float *steps, const float *bias,
                       ptrdiff_t n_panels, uint32_t position, const uint8_t *allowed);

    /* The same panels as floats: out[p][k][lane] = steps[p][lane] * panels[p][k][lane]. */
    void (*widen)(const int16_t *panels, const float *steps, ptrdiff_t n_panels, ptrdiff_t dim, float *out);

    /* The papers' ranking: the score is max_k |rows[i][k] - panel lane[k]|, NaN if any of them is. */
    void (*scan_max)(const float *const *rows, dci_reservoir *const *reservoirs, ptrdiff_t n_rows,
                     ptrdiff_t dim, const float *panels, ptrdiff_t n_panels, uint32_t position,
                     const uint8_t *allowed);

    /* Index of the smallest of n values, the first among equals; n >= 1; NaN counts as infinite. */
    ptrdiff_t (*argmin)(const float *values, ptrdiff_t n);

    /* out[k] = row[k] * scale - center[k] */
    void (*prepare)(const float *row, ptrdiff_t dim, float scale, const float *center, float *out);

    /* out[k] = step * halves[k], rounded once: for a step that is a power of two exact within the normal range. */
    void (*decode_halves)(const uint16_t *halves, ptrdiff_t dim, float step, float *out);

    /* out[k] = offsets[k] + step * codes[k], rounded once, for step = factor * steps[k], rounded before. */
    void (*decode_bytes)(const int8_t *codes, ptrdiff_t dim, float factor, const float *steps, const float *offsets,
                         float *out);

    /* DCI_LANES rows, `stride` floats apart, as one panel. */
    void (*transpose)(const float *rows, ptrdiff_t stride, ptrdiff_t dim, float *panel);

    /* Sum of squares, in float32. */
    float (*norm2)(const float *row, ptrdiff_t dim);

    /* Largest |x| as the bits of a float; above 0x7f7fffff if any value is not finite. */
    uint32_t (*absmax_bits)(const float *row, ptrdiff_t dim);

    /* Squared Euclidean distance and inner product, in float64. */
    double (*distance2)(const float *a, const float *b, ptrdiff_t dim);
    double (*dot)(const float *a, const float *b, ptrdiff_t dim);

    /* out[i][j] += sum over k of weights[i * row_stride + k * depth_stride] * values[k][j], j < width,
     * a multiple of DCI_LANES; one chain over k in ascending order. */
    void (*combine)(const float *weights, ptrdiff_t row_stride, ptrdiff_t depth_stride,
                    ptrdiff_t n_rows, ptrdiff_t depth, const float *values, ptrdiff_t value_stride,
                    ptrdiff_t width, float *out, ptrdiff_t out_stride);

    /* scores[i][j] = exp(scores[i][j] - shifts[i]), j < n, a multiple of DCI_LANES; sums[i] += their sum.
     * Differences up to 88; below -88 the result is 0, and from -87 on it may be.  NaN gives NaN, in the
     * sum too.  So a score of -inf weighs nothing beside a finite shift; beside one of -inf it is NaN. */
    void (*exponentials)(float *scores, ptrdiff_t stride, ptrdiff_t n_rows, ptrdiff_t n,
                         const float *shifts, float *sums);

    /* The largest of n values that are not NaN, n a multiple of DCI_LANES; -inf if there are none. */
    float (*largest)(const float *values, ptrdiff_t n);

    /* Where values[j] * gains[j] > limit, j < n, a multiple of DCI_LANES: the positions in ascending
     * order go to taken, the values to their sum, and 0 takes their place.  Returns how many.
     * NaN is not above. */
    ptrdiff_t (*take_above)(float *values, const float *gains, ptrdiff_t n, float limit, int32_t *taken,
                            float *taken_sum);

    /* Sum of the smaller of a[j] * scale and b[j], j < n, a multiple of DCI_LANES; b[j] where one is NaN. */
    float (*overlap)(const float *a, float scale, const float *b, ptrdiff_t n);
} dci_kernels;

/* The table of an instruction set by name, or NULL if it was not compiled in or the processor
 * lacks it; NULL as name means the best there is. */
const dci_kernels *dci_find_kernels(const char *name);

/* All names known to this build, best first, ending with NULL. */
extern const char *const dci_kernel_names[];

#endif
