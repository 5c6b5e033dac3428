/* The kernels as plain loops: what every instruction set is tested against. */
#include <math.h>

#include "kernels.h"

static float affine_one(const float *row, ptrdiff_t dim, const float *panel, float bias, int lane) {
    float sum = bias;
    for (ptrdiff_t k = 0; k < dim; k++) sum += row[k] * panel[k * DCI_LANES + lane];
    return sum;
}

static void affine(const float *const *rows, ptrdiff_t n_rows, ptrdiff_t dim, const float *panels,
                   const float *bias, ptrdiff_t n_panels, float *out, ptrdiff_t out_stride) {
    for (ptrdiff_t i = 0; i < n_rows; i++)
        for (ptrdiff_t j = 0; j < n_panels * DCI_LANES; j++)
            out[i * out_stride + j] = affine_one(rows[i], dim, panels + j / DCI_LANES * dim * DCI_LANES,
                                                 bias[j], (int)(j % DCI_LANES));
}

static void push(dci_reservoir *reservoir, float score, uint32_t where, const uint8_t *allowed) {
    if (score < reservoir->tau && (!allowed || allowed[where])) dci_reservoir_push(reservoir, score, where);
}

static void scan_sum(const float *const *rows, dci_reservoir *const *reservoirs, ptrdiff_t n_rows,
                     ptrdiff_t dim, const float *panels, const float *bias, ptrdiff_t n_panels,
                     uint32_t position, const uint8_t *allowed) {
    for (ptrdiff_t i = 0; i < n_rows; i++)
        for (ptrdiff_t j = 0; j < n_panels * DCI_LANES; j++) {
            float score = affine_one(rows[i], dim, panels + j / DCI_LANES * dim * DCI_LANES, bias[j],
                                     (int)(j % DCI_LANES));
            push(reservoirs[i], score, position + (uint32_t)j, allowed);
        }
}

static void scan_short(const float *const *rows, dci_reservoir *const *reservoirs, ptrdiff_t n_rows,
                       ptrdiff_t dim, const int16_t *panels, const float *steps, const float *bias,
                       ptrdiff_t n_panels, uint32_t position, const uint8_t *allowed) {
    for (ptrdiff_t i = 0; i < n_rows; i++)
        for (ptrdiff_t j = 0; j < n_panels * DCI_LANES; j++) {
            const int16_t *lane = panels + j / DCI_LANES * dim * DCI_LANES + j % DCI_LANES;
            float sum = bias[j];
            for (ptrdiff_t k = 0; k < dim; k++) sum += rows[i][k] * (steps[j] * lane[k * DCI_LANES]);
            push(reservoirs[i], sum, position + (uint32_t)j, allowed);
        }
}

static void widen(const int16_t *panels, const float *steps, ptrdiff_t n_panels, ptrdiff_t dim, float *out) {
    for (ptrdiff_t i = 0; i < n_panels * dim; i++)
        for (ptrdiff_t lane = 0; lane < DCI_LANES; lane++)
            out[i * DCI_LANES + lane] = steps[i / dim * DCI_LANES + lane] * panels[i * DCI_LANES + lane];
}

static void scan_max(const float *const *rows, dci_reservoir *const *reservoirs, ptrdiff_t n_rows,
                     ptrdiff_t dim, const float *panels, ptrdiff_t n_panels, uint32_t position,
                     const uint8_t *allowed) {
    for (ptrdiff_t i = 0; i < n_rows; i++)
        for (ptrdiff_t j = 0; j < n_panels * DCI_LANES; j++) {
            const float *lane = panels + j / DCI_LANES * dim * DCI_LANES + j % DCI_LANES;
            float largest = 0;
            for (ptrdiff_t k = 0; k < dim && !isnan(largest); k++) {
                float difference = rows[i][k] - lane[k * DCI_LANES];
                if (difference < 0) difference = -difference;
                if (!(difference <= largest)) largest = difference;
            }
            push(reservoirs[i], largest, position + (uint32_t)j, allowed);
        }
}

static ptrdiff_t argmin(const float *values, ptrdiff_t n) {
    ptrdiff_t best = 0;
    float smallest = INFINITY;
    for (ptrdiff_t i = 0; i < n; i++)
        if (values[i] < smallest) smallest = values[best = i];
    return best;
}

static void prepare(const float *row, ptrdiff_t dim, float scale, const float *center, float *out) {
    for (ptrdiff_t k = 0; k < dim; k++) out[k] = row[k] * scale - center[k];
}

static void decode_halves(const uint16_t *halves, ptrdiff_t dim, float step, float *out) {
    for (ptrdiff_t k = 0; k < dim; k++) out[k] = step * dci_half_to_float(halves[k]);
}

static void decode_bytes(const int8_t *codes, ptrdiff_t dim, float factor, const float *steps, const float *offsets,
                         float *out) {
    for (ptrdiff_t k = 0; k < dim; k++) out[k] = fmaf(factor * steps[k], codes[k], offsets[k]);
}

static void transpose(const float *rows, ptrdiff_t stride, ptrdiff_t dim, float *panel) {
    for (ptrdiff_t k = 0; k < dim; k++)
        for (ptrdiff_t lane = 0; lane < DCI_LANES; lane++) panel[k * DCI_LANES + lane] = rows[lane * stride + k];
}

static float norm2(const float *row, ptrdiff_t dim) {
    float sum = 0;
    for (ptrdiff_t k = 0; k < dim; k++) sum += row[k] * row[k];
    return sum;
}

static uint32_t absmax_bits(const float *row, ptrdiff_t dim) {
    uint32_t largest = 0;
    for (ptrdiff_t k = 0; k < dim; k++) {
        uint32_t bits;
        memcpy(&bits, row + k, sizeof bits);
        bits &= 0x7fffffffu;
        if (bits > largest) largest = bits;
    }
    return largest;
}

static double distance2(const float *a, const float *b, ptrdiff_t dim) {
    double sum = 0;
    for (ptrdiff_t k = 0; k < dim; k++) {
        double difference = (double)a[k] - b[k];
        sum += difference * difference;
    }
    return sum;
}

static double dot(const float *a, const float *b, ptrdiff_t dim) {
    double sum = 0;
    for (ptrdiff_t k = 0; k < dim; k++) sum += (double)a[k] * b[k];
    return sum;
}

static void combine(const float *weights, ptrdiff_t row_stride, ptrdiff_t depth_stride,
                    ptrdiff_t n_rows, ptrdiff_t depth, const float *values, ptrdiff_t value_stride,
                    ptrdiff_t width, float *out, ptrdiff_t out_stride) {
    for (ptrdiff_t i = 0; i < n_rows; i++)
        for (ptrdiff_t k = 0; k < depth; k++)
            for (ptrdiff_t j = 0; j < width; j++)
                out[i * out_stride + j] += weights[i * row_stride + k * depth_stride] * values[k * value_stride + j];
}

static void exponentials(float *scores, ptrdiff_t stride, ptrdiff_t n_rows, ptrdiff_t n,
                         const float *shifts, float *sums) {
    for (ptrdiff_t i = 0; i < n_rows; i++)
        for (ptrdiff_t j = 0; j < n; j++) {
            float x = scores[i * stride + j] - shifts[i];
            sums[i] += scores[i * stride + j] = x < -88 ? 0 : expf(x);
        }
}

static float largest(const float *values, ptrdiff_t n) {
    float result = -INFINITY;
    for (ptrdiff_t j = 0; j < n; j++)
        if (values[j] > result) result = values[j];
    return result;
}

static ptrdiff_t take_above(float *values, const float *gains, ptrdiff_t n, float limit, int32_t *taken,
                            float *taken_sum) {
    ptrdiff_t count = 0;
    *taken_sum = 0;
    for (ptrdiff_t j = 0; j < n; j++)
        if (values[j] * gains[j] > limit) {
            taken[count++] = (int32_t)j;
            *taken_sum += values[j];
            values[j] = 0;
        }
    return count;
}

static float overlap(const float *a, float scale, const float *b, ptrdiff_t n) {
    float sum = 0;
    for (ptrdiff_t j = 0; j < n; j++) sum += a[j] * scale < b[j] ? a[j] * scale : b[j];
    return sum;
}

const dci_kernels dci_kernels_serial = {"serial", affine, scan_sum, scan_short, widen, scan_max, argmin, prepare, decode_halves,
                                        decode_bytes, transpose, norm2, absmax_bits, distance2, dot, combine, exponentials, largest,
                                        take_above, overlap};
