/* The kernels in GCC/Clang vector extensions: one source for every instruction set.
 *
 * A file that includes this defines, for its instruction set:
 *   WIDTH       floats in a register
 *   ROWS        rows of a full tile, PANELS panels of a full tile
 *   below_mask(scores, tau)   bit i set where scores[i] < tau
 *   lane_bits(truth)          bit i set where lane i of a comparison is true
 *   load_halves(p)            WIDTH halves as floats
 *   load_bytes(p)             WIDTH int8 as floats
 *   fused(a, b, c)            a * b + c, rounded once
 *   minimum(a, b)             a < b ? a : b, lane by lane: b where one is NaN
 *   maximum(a, b)             a > b ? a : b, as above
 *   KERNELS     name of the table, ISA its public name
 * A tile keeps ROWS x PANELS x (DCI_LANES / WIDTH) accumulators in registers over the whole of dim;
 * that, two loads and a broadcast have to fit the register file.
 */
#include <math.h>

#include "kernels.h"

typedef float vfloat __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));
typedef int32_t vint __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));
typedef int16_t vshort __attribute__((vector_size(WIDTH * 2), aligned(2), may_alias));
typedef double vdouble __attribute__((vector_size(WIDTH * 4), aligned(8), may_alias));
typedef float vhalf __attribute__((vector_size(WIDTH * 2), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")
#define VECTORS (DCI_LANES / WIDTH)
#define AT(r, v) acc[(r) * n_panels * VECTORS + (v)]
#define ROW_BLOCK_BYTES (24 * 1024)
#define MOST_PANELS (ALONE > PANELS ? ALONE : PANELS)
#define ALONE 4 /* panels that a single row meets at once, for as many chains of sums as hide their latency */

INLINE vfloat load(const float *p) { return *(const vfloat *)p; }
INLINE void store(float *p, vfloat v) { *(vfloat *)p = v; }
INLINE vfloat load_short(const int16_t *p) {
    return __builtin_convertvector(__builtin_convertvector(*(const vshort *)p, vint), vfloat);
}

/* As integers, for the place may be beyond the array: that is where the next cell's panels are, if there are any. */
INLINE void prefetch(const void *start, ptrdiff_t bytes) {
    __builtin_prefetch((const void *)((uintptr_t)start + (uintptr_t)bytes));
}

INLINE float sum_of_lanes(vfloat v) {
    float lanes[WIDTH];
    store(lanes, v);
    UNROLL for (int half = WIDTH / 2; half; half /= 2)
        UNROLL for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
    return lanes[0];
}
INLINE float least_of_lanes(vfloat v) {
    float lanes[WIDTH];
    store(lanes, v);
    UNROLL for (int half = WIDTH / 2; half; half /= 2)
        UNROLL for (int i = 0; i < half; i++) lanes[i] = lanes[i] < lanes[i + half] ? lanes[i] : lanes[i + half];
    return lanes[0];
}

/* Panels of floats or of int16, and for each of their lanes a bias and a step; NULL where a tile reads none. */
typedef struct {
    const float *floats;
    const int16_t *shorts;
    const float *steps, *bias;
} points_at;

INLINE points_at skip(points_at at, ptrdiff_t n_panels, ptrdiff_t dim) {
    ptrdiff_t lanes = n_panels * DCI_LANES;
    return (points_at){at.floats ? at.floats + lanes * dim : NULL, at.shorts ? at.shorts + lanes * dim : NULL,
                       at.steps ? at.steps + lanes : NULL, at.bias ? at.bias + lanes : NULL};
}

/* AT(r, p * VECTORS + v): the scores of n_rows rows against n_panels panels, both constants. */
INLINE void tile_sum(const float *const *rows, int n_rows, ptrdiff_t dim, points_at at, int n_panels,
                     vfloat *acc) {
    UNROLL for (int v = 0; v < n_panels * VECTORS; v++) {
        vfloat start = load(at.bias + v * WIDTH);
        UNROLL for (int r = 0; r < n_rows; r++) AT(r, v) = start;
    }
    for (ptrdiff_t k = 0; k < dim; k++) {
        vfloat points[MOST_PANELS * VECTORS];
        UNROLL for (int v = 0; v < n_panels * VECTORS; v++) {
            ptrdiff_t place = v / VECTORS * dim * DCI_LANES + k * DCI_LANES + v % VECTORS * WIDTH;
            if (at.shorts) points[v] = load_short(at.shorts + place) * load(at.steps + v * WIDTH);
            else points[v] = load(at.floats + place);
        }
        if (n_rows == 1) /* nothing else hides the way to memory */
            UNROLL for (int p = 0; p < n_panels; p++) {
                ptrdiff_t place = (p + n_panels) * dim * DCI_LANES + k * DCI_LANES;
                if (!at.shorts) prefetch(at.floats, place * 4);
                else if (k % 2 == 0) prefetch(at.shorts, place * 2);
            }
        UNROLL for (int r = 0; r < n_rows; r++) {
            float q = rows[r][k];
            UNROLL for (int v = 0; v < n_panels * VECTORS; v++) AT(r, v) += points[v] * q;
        }
    }
}

INLINE void tile_max(const float *const *rows, int n_rows, ptrdiff_t dim, points_at at, int n_panels,
                     vfloat *acc) {
    UNROLL for (int r = 0; r < n_rows; r++)
        UNROLL for (int v = 0; v < n_panels * VECTORS; v++) AT(r, v) = (vfloat){0};
    for (ptrdiff_t k = 0; k < dim; k++) {
        vfloat points[MOST_PANELS * VECTORS];
        UNROLL for (int v = 0; v < n_panels * VECTORS; v++)
            points[v] = load(at.floats + v / VECTORS * dim * DCI_LANES + k * DCI_LANES + v % VECTORS * WIDTH);
        UNROLL for (int r = 0; r < n_rows; r++) {
            vfloat q = rows[r][k] - (vfloat){0};
            UNROLL for (int v = 0; v < n_panels * VECTORS; v++) {
                vfloat gap = (vfloat)((vint)(q - points[v]) & 0x7fffffff);
                /* Neither is negative, so their bits order as they do. */
                vint larger = (vint)gap > (vint)AT(r, v);
                AT(r, v) = (vfloat)(((vint)gap & larger) | ((vint)AT(r, v) & ~larger));
            }
        }
    }
}

typedef void tile_function(const float *const *, int, ptrdiff_t, points_at, int, vfloat *);

/* Push the scores of the first n_pushed of the tile's rows. */
INLINE void push_tile(vfloat *acc, dci_reservoir *const *reservoirs,
                      int n_rows, int n_pushed, int n_panels, uint32_t position,
                      const uint8_t *allowed) {
    UNROLL for (int r = 0; r < n_rows; r++) {
        if (r >= n_pushed) return;
        UNROLL for (int v = 0; v < n_panels * VECTORS; v++) {
            uint32_t mask = below_mask(AT(r, v), reservoirs[r]->tau);
            if (__builtin_expect(mask == 0, 1)) continue;
            float scores[WIDTH];
            store(scores, AT(r, v));
            do {
                int lane = __builtin_ctz(mask);
                uint32_t where = position + (uint32_t)(v * WIDTH + lane);
                if (!allowed || allowed[where]) dci_reservoir_push(reservoirs[r], scores[lane], where);
                mask &= mask - 1;
            } while (mask);
        }
    }
}

/* Any number of rows against one or PANELS panels. */
INLINE void scan_panels(tile_function *tile, const float *const *rows,
                        dci_reservoir *const *reservoirs, ptrdiff_t n_rows, ptrdiff_t dim,
                        points_at at, int n_panels, uint32_t position, const uint8_t *allowed) {
    vfloat acc[ROWS * PANELS * VECTORS];
    ptrdiff_t i = 0;
    for (; i + 1 < n_rows; i += ROWS) {
        const float *group[ROWS]; /* a short group is filled with its last row */
        int count = n_rows - i < ROWS ? (int)(n_rows - i) : ROWS;
        for (int r = 0; r < ROWS; r++) group[r] = rows[i + (r < count ? r : count - 1)];
        tile(group, ROWS, dim, at, n_panels, acc);
        push_tile(acc, reservoirs + i, ROWS, count, n_panels, position, allowed);
    }
    if (i < n_rows) {
        tile(rows + i, 1, dim, at, n_panels, acc);
        push_tile(acc, reservoirs + i, 1, 1, n_panels, position, allowed);
    }
}

/* A block of rows stays in the first-level cache while the panels pass by. */
INLINE void scan(tile_function *tile, const float *const *rows, dci_reservoir *const *reservoirs,
                 ptrdiff_t n_rows, ptrdiff_t dim, points_at at, ptrdiff_t n_panels,
                 uint32_t position, const uint8_t *allowed) {
    ptrdiff_t block = ROW_BLOCK_BYTES / 4 / dim / ROWS * ROWS;
    if (block < ROWS) block = ROWS;
    for (ptrdiff_t i = 0; i < n_rows; i += block) {
        ptrdiff_t count = n_rows - i < block ? n_rows - i : block, p = 0;
        for (; count == 1 && p + ALONE <= n_panels; p += ALONE)
            scan_panels(tile, rows + i, reservoirs + i, 1, dim, skip(at, p, dim), ALONE,
                        position + (uint32_t)p * DCI_LANES, allowed);
        for (; p + PANELS <= n_panels; p += PANELS)
            scan_panels(tile, rows + i, reservoirs + i, count, dim, skip(at, p, dim), PANELS,
                        position + (uint32_t)p * DCI_LANES, allowed);
        for (; p < n_panels; p++)
            scan_panels(tile, rows + i, reservoirs + i, count, dim, skip(at, p, dim), 1,
                        position + (uint32_t)p * DCI_LANES, allowed);
    }
}

static void scan_sum(const float *const *rows, dci_reservoir *const *reservoirs, ptrdiff_t n_rows,
                     ptrdiff_t dim, const float *panels, const float *bias, ptrdiff_t n_panels,
                     uint32_t position, const uint8_t *allowed) {
    points_at at = {panels, NULL, NULL, bias};
    scan(tile_sum, rows, reservoirs, n_rows, dim, at, n_panels, position, allowed);
}

static void scan_short(const float *const *rows, dci_reservoir *const *reservoirs, ptrdiff_t n_rows,
                       ptrdiff_t dim, const int16_t *panels, const float *steps, const float *bias,
                       ptrdiff_t n_panels, uint32_t position, const uint8_t *allowed) {
    points_at at = {NULL, panels, steps, bias};
    scan(tile_sum, rows, reservoirs, n_rows, dim, at, n_panels, position, allowed);
}

static void widen(const int16_t *panels, const float *steps, ptrdiff_t n_panels, ptrdiff_t dim, float *out) {
    for (ptrdiff_t i = 0; i < n_panels * dim; i++)
        UNROLL for (int v = 0; v < VECTORS; v++) {
            ptrdiff_t place = i * DCI_LANES + v * WIDTH;
            store(out + place, load_short(panels + place) * load(steps + i / dim * DCI_LANES + v * WIDTH));
        }
}

static void scan_max(const float *const *rows, dci_reservoir *const *reservoirs, ptrdiff_t n_rows,
                     ptrdiff_t dim, const float *panels, ptrdiff_t n_panels, uint32_t position,
                     const uint8_t *allowed) {
    points_at at = {panels, NULL, NULL, NULL};
    scan(tile_max, rows, reservoirs, n_rows, dim, at, n_panels, position, allowed);
}

INLINE void affine_tile(const float *const *rows, int n_rows, int n_stored, ptrdiff_t dim, const float *panels,
                        const float *bias, int n_panels, float *out, ptrdiff_t out_stride) {
    vfloat acc[ROWS * PANELS * VECTORS];
    points_at at = {panels, NULL, NULL, bias};
    tile_sum(rows, n_rows, dim, at, n_panels, acc);
    UNROLL for (int r = 0; r < n_rows; r++) {
        if (r >= n_stored) return;
        UNROLL for (int v = 0; v < n_panels * VECTORS; v++) store(out + r * out_stride + v * WIDTH, AT(r, v));
    }
}

INLINE void affine_rows(const float *const *rows, int n_rows, int n_stored, ptrdiff_t dim, const float *panels,
                        const float *bias, ptrdiff_t n_panels, float *out, ptrdiff_t out_stride) {
    ptrdiff_t p = 0;
    for (; p + PANELS <= n_panels; p += PANELS)
        affine_tile(rows, n_rows, n_stored, dim, panels + p * dim * DCI_LANES, bias + p * DCI_LANES, PANELS,
                    out + p * DCI_LANES, out_stride);
    for (; p < n_panels; p++)
        affine_tile(rows, n_rows, n_stored, dim, panels + p * dim * DCI_LANES, bias + p * DCI_LANES, 1,
                    out + p * DCI_LANES, out_stride);
}

static void affine(const float *const *rows, ptrdiff_t n_rows, ptrdiff_t dim, const float *panels,
                   const float *bias, ptrdiff_t n_panels, float *out, ptrdiff_t out_stride) {
    ptrdiff_t i = 0;
    for (; i + ROWS <= n_rows; i += ROWS)
        affine_rows(rows + i, ROWS, ROWS, dim, panels, bias, n_panels, out + i * out_stride, out_stride);
    if (n_rows - i == 1)
        affine_rows(rows + i, 1, 1, dim, panels, bias, n_panels, out + i * out_stride, out_stride);
    else if (i < n_rows) { /* a short group is filled with its last row */
        const float *group[ROWS];
        for (int r = 0; r < ROWS; r++) group[r] = rows[i + r < n_rows ? i + r : n_rows - 1];
        affine_rows(group, ROWS, (int)(n_rows - i), dim, panels, bias, n_panels, out + i * out_stride, out_stride);
    }
}

static ptrdiff_t argmin(const float *values, ptrdiff_t n) {
    vfloat least[2] = {(vfloat){0} + INFINITY, (vfloat){0} + INFINITY};
    ptrdiff_t best = 0, i = 0;
    for (; i + 2 * WIDTH <= n; i += 2 * WIDTH)
        UNROLL for (int h = 0; h < 2; h++) least[h] = minimum(load(values + i + h * WIDTH), least[h]);
    float smallest = least_of_lanes(minimum(least[0], least[1]));
    if (smallest < INFINITY) {
        uint32_t equal = lane_bits(load(values) == smallest);
        while (!equal) equal = lane_bits(load(values + (best += WIDTH)) == smallest);
        best += __builtin_ctz(equal);
    }
    for (; i < n; i++)
        if (values[i] < smallest) smallest = values[best = i];
    return best;
}

static void prepare(const float *row, ptrdiff_t dim, float scale, const float *center, float *out) {
    ptrdiff_t k = 0;
    if (dim >= WIDTH) {
        for (; k + WIDTH <= dim; k += WIDTH) store(out + k, load(row + k) * scale - load(center + k));
        if (k < dim) { /* the last register overlaps the one before */
            k = dim - WIDTH;
            store(out + k, load(row + k) * scale - load(center + k));
        }
        return;
    }
    for (; k < dim; k++) out[k] = row[k] * scale - center[k];
}

INLINE vfloat decoded_halves(const uint16_t *halves, float step) { return load_halves(halves) * step; }
INLINE vfloat decoded_bytes(const int8_t *codes, float factor, const float *steps, const float *offsets) {
    return fused(load_bytes(codes), load(steps) * factor, load(offsets));
}

static void decode_halves(const uint16_t *halves, ptrdiff_t dim, float step, float *out) {
    ptrdiff_t k = 0;
    if (dim >= WIDTH) {
        for (; k + WIDTH <= dim; k += WIDTH) store(out + k, decoded_halves(halves + k, step));
        k = dim - WIDTH; /* the last register overlaps the one before */
        store(out + k, decoded_halves(halves + k, step));
        return;
    }
    for (; k < dim; k++) out[k] = step * dci_half_to_float(halves[k]);
}

static void decode_bytes(const int8_t *codes, ptrdiff_t dim, float factor, const float *steps, const float *offsets,
                         float *out) {
    ptrdiff_t k = 0;
    if (dim >= WIDTH) {
        for (; k + WIDTH <= dim; k += WIDTH)
            store(out + k, decoded_bytes(codes + k, factor, steps + k, offsets + k));
        k = dim - WIDTH;
        store(out + k, decoded_bytes(codes + k, factor, steps + k, offsets + k));
        return;
    }
    for (; k < dim; k++) out[k] = fmaf(factor * steps[k], codes[k], offsets[k]);
}

typedef float quad __attribute__((vector_size(16), aligned(4), may_alias));

#ifdef __clang__
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else /* which gcc has from version 12 on */
typedef int32_t places __attribute__((vector_size(16)));
#define PICK(a, b, ...) __builtin_shuffle(a, b, (places){__VA_ARGS__})
#endif

/* 4 rows x 4 coordinates at a time. */
static void transpose(const float *rows, ptrdiff_t stride, ptrdiff_t dim, float *panel) {
    for (int lane = 0; lane < DCI_LANES; lane += 4) {
        const float *row = rows + lane * stride;
        float *out = panel + lane;
        ptrdiff_t k = 0;
        for (; k + 4 <= dim; k += 4) {
            quad a = *(const quad *)(row + k), b = *(const quad *)(row + stride + k);
            quad c = *(const quad *)(row + 2 * stride + k), d = *(const quad *)(row + 3 * stride + k);
            quad ab_low = PICK(a, b, 0, 4, 1, 5), ab_high = PICK(a, b, 2, 6, 3, 7);
            quad cd_low = PICK(c, d, 0, 4, 1, 5), cd_high = PICK(c, d, 2, 6, 3, 7);
            *(quad *)(out + (k + 0) * DCI_LANES) = PICK(ab_low, cd_low, 0, 1, 4, 5);
            *(quad *)(out + (k + 1) * DCI_LANES) = PICK(ab_low, cd_low, 2, 3, 6, 7);
            *(quad *)(out + (k + 2) * DCI_LANES) = PICK(ab_high, cd_high, 0, 1, 4, 5);
            *(quad *)(out + (k + 3) * DCI_LANES) = PICK(ab_high, cd_high, 2, 3, 6, 7);
        }
        for (; k < dim; k++)
            for (int r = 0; r < 4; r++) out[k * DCI_LANES + r] = row[r * stride + k];
    }
}

static float norm2(const float *row, ptrdiff_t dim) {
    vfloat sums = {0};
    ptrdiff_t k = 0;
    for (; k + WIDTH <= dim; k += WIDTH) sums += load(row + k) * load(row + k);
    float sum = sum_of_lanes(sums);
    for (; k < dim; k++) sum += row[k] * row[k];
    return sum;
}

static uint32_t absmax_bits(const float *row, ptrdiff_t dim) {
    vint largest = {0};
    ptrdiff_t k = 0;
    for (; k + WIDTH <= dim; k += WIDTH) {
        vint bits = *(const vint *)(row + k) & 0x7fffffff;
        vint larger = bits > largest;
        largest = (bits & larger) | (largest & ~larger);
    }
    uint32_t result = 0;
    for (; k < dim; k++) {
        uint32_t bits;
        memcpy(&bits, row + k, sizeof bits);
        bits &= 0x7fffffffu;
        if (bits > result) result = bits;
    }
    for (int lane = 0; lane < WIDTH; lane++)
        if ((uint32_t)largest[lane] > result) result = (uint32_t)largest[lane];
    return result;
}

#define WIDE (WIDTH / 2)

INLINE vdouble load_wide(const float *p) {
    return __builtin_convertvector(*(const vhalf *)p, vdouble);
}

static double distance2(const float *a, const float *b, ptrdiff_t dim) {
    vdouble sums[2] = {{0}, {0}};
    ptrdiff_t k = 0;
    for (; k + 2 * WIDE <= dim; k += 2 * WIDE)
        UNROLL for (int i = 0; i < 2; i++) {
            vdouble gap = load_wide(a + k + i * WIDE) - load_wide(b + k + i * WIDE);
            sums[i] += gap * gap;
        }
    double sum = 0;
    for (; k < dim; k++) {
        double gap = (double)a[k] - b[k];
        sum += gap * gap;
    }
    sums[0] += sums[1];
    for (int lane = 0; lane < WIDE; lane++) sum += sums[0][lane];
    return sum;
}

static double dot(const float *a, const float *b, ptrdiff_t dim) {
    vdouble sums[2] = {{0}, {0}};
    ptrdiff_t k = 0;
    for (; k + 2 * WIDE <= dim; k += 2 * WIDE)
        UNROLL for (int i = 0; i < 2; i++)
            sums[i] += load_wide(a + k + i * WIDE) * load_wide(b + k + i * WIDE);
    double sum = 0;
    for (; k < dim; k++) sum += (double)a[k] * b[k];
    sums[0] += sums[1];
    for (int lane = 0; lane < WIDE; lane++) sum += sums[0][lane];
    return sum;
}

#include "softmax.h"

const dci_kernels KERNELS = {ISA, affine, scan_sum, scan_short, widen, scan_max, argmin, prepare,
                             decode_halves, decode_bytes, transpose, norm2, absmax_bits, distance2, dot, combine,
                             exponentials, largest, take_above, overlap};
