/* Weighted sums and exponentials: what a softmax over scores takes.  Part of simd.h, in its terms. */

/* exp(x) for x <= 88, relative error below 2e-7; 0 from where it is below 2^-126.5 (x < -87.7), NaN for NaN.
 * As 2^n * 2^f, |f| <= 1/2, with the polynomial of 2^f whose largest relative error is least, 9e-8. */
INLINE vfloat exponential(vfloat x) {
    const vfloat zero = {0}, magic = zero + 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    const vint bias = (vint)magic - 127; /* of a float's exponent */
    x = maximum(zero - 88.0f, x);
    vfloat shifted = x * 1.44269504f + magic, n = shifted - magic;
    vfloat f = fused(x, zero + 1.44269502162933f, -n); /* log2(e) in two parts */
    f = fused(x, zero + 1.92596299e-8f, f);
    vfloat p = f * 1.326472731e-3f + 9.671512991e-3f;
    p = p * f + 5.550733581e-2f;
    p = p * f + 2.402224243e-1f;
    p = p * f + 6.931470037e-1f;
    p = p * f + 1.0f;
    return p * (vfloat)(((vint)shifted - bias) << 23); /* times 2^n, or 0 for n = -127; NaN remains */
}

static void exponentials(float *scores, ptrdiff_t stride, ptrdiff_t n_rows, ptrdiff_t n, const float *shifts, float *sums) {
    for (ptrdiff_t i = 0; i < n_rows; i++) {
        float *row = scores + i * stride;
        vfloat total[2] = {{0}, {0}};
        ptrdiff_t j = 0;
        for (; j + 2 * WIDTH <= n; j += 2 * WIDTH)
            UNROLL for (int h = 0; h < 2; h++) {
                vfloat e = exponential(load(row + j + h * WIDTH) - shifts[i]);
                store(row + j + h * WIDTH, e);
                total[h] += e;
            }
        for (; j < n; j += WIDTH) { /* WIDTH divides DCI_LANES, which divides n */
            vfloat e = exponential(load(row + j) - shifts[i]);
            store(row + j, e);
            total[0] += e;
        }
        sums[i] += sum_of_lanes(total[0] + total[1]);
    }
}

static float largest(const float *values, ptrdiff_t n) {
    vfloat most = (vfloat){0} - INFINITY;
    for (ptrdiff_t j = 0; j < n; j += WIDTH) most = maximum(load(values + j), most);
    return -least_of_lanes(-most);
}

#define DEPTH_BLOCK 64

/* Rows past n_stored repeat the last one; they fill the tile and are not stored. */
INLINE void combine_tile(const float *const *weights, ptrdiff_t depth_stride, int n_rows, int n_stored,
                         ptrdiff_t depth, const float *values, ptrdiff_t value_stride, int n_vectors, float *out,
                         ptrdiff_t out_stride) {
    vfloat acc[ROWS][PANELS * VECTORS];
    UNROLL for (int r = 0; r < n_rows; r++)
        UNROLL for (int v = 0; v < n_vectors; v++)
            acc[r][v] = load(out + (r < n_stored ? r : n_stored - 1) * out_stride + v * WIDTH);
    for (ptrdiff_t k = 0; k < depth; k++) {
        vfloat row[PANELS * VECTORS];
        UNROLL for (int v = 0; v < n_vectors; v++) row[v] = load(values + k * value_stride + v * WIDTH);
        UNROLL for (int r = 0; r < n_rows; r++) {
            float w = weights[r][k * depth_stride];
            UNROLL for (int v = 0; v < n_vectors; v++) acc[r][v] += row[v] * w;
        }
    }
    UNROLL for (int r = 0; r < n_rows; r++) {
        if (r >= n_stored) return;
        UNROLL for (int v = 0; v < n_vectors; v++) store(out + r * out_stride + v * WIDTH, acc[r][v]);
    }
}

INLINE void combine_rows(const float *weights, ptrdiff_t row_stride, ptrdiff_t depth_stride, int n_rows,
                         int n_stored, ptrdiff_t depth, const float *values, ptrdiff_t value_stride,
                         ptrdiff_t width, float *out, ptrdiff_t out_stride) {
    const float *group[ROWS];
    ptrdiff_t j = 0;
    for (int r = 0; r < n_rows; r++) group[r] = weights + (r < n_stored ? r : n_stored - 1) * row_stride;
    for (; j + PANELS * DCI_LANES <= width; j += PANELS * DCI_LANES)
        combine_tile(group, depth_stride, n_rows, n_stored, depth, values + j, value_stride, PANELS * VECTORS, out + j,
                     out_stride);
    for (; j < width; j += DCI_LANES)
        combine_tile(group, depth_stride, n_rows, n_stored, depth, values + j, value_stride, VECTORS, out + j,
                     out_stride);
}

static void combine(const float *weights, ptrdiff_t row_stride, ptrdiff_t depth_stride, ptrdiff_t n_rows,
                    ptrdiff_t depth, const float *values, ptrdiff_t value_stride, ptrdiff_t width, float *out,
                    ptrdiff_t out_stride) {
    for (ptrdiff_t k = 0; k < depth; k += DEPTH_BLOCK) {
        ptrdiff_t count = depth - k < DEPTH_BLOCK ? depth - k : DEPTH_BLOCK, i = 0;
        const float *w = weights + k * depth_stride, *v = values + k * value_stride;
        for (; i + ROWS <= n_rows; i += ROWS)
            combine_rows(w + i * row_stride, row_stride, depth_stride, ROWS, ROWS, count, v, value_stride, width,
                         out + i * out_stride, out_stride);
        if (n_rows - i == 1)
            combine_rows(w + i * row_stride, row_stride, depth_stride, 1, 1, count, v, value_stride, width,
                         out + i * out_stride, out_stride);
        else if (i < n_rows)
            combine_rows(w + i * row_stride, row_stride, depth_stride, ROWS, (int)(n_rows - i), count, v, value_stride,
                         width, out + i * out_stride, out_stride);
    }
}

static ptrdiff_t take_above(float *values, const float *gains, ptrdiff_t n, float limit, int32_t *taken, float *taken_sum) {
    ptrdiff_t count = 0;
    float sum = 0;
    for (ptrdiff_t j = 0; j < n; j += WIDTH) {
        uint32_t mask = below_mask(-(load(values + j) * load(gains + j)), -limit);
        for (; mask; mask &= mask - 1) {
            ptrdiff_t at = j + __builtin_ctz(mask);
            taken[count++] = (int32_t)at;
            sum += values[at];
            values[at] = 0;
        }
    }
    *taken_sum = sum;
    return count;
}

static float overlap(const float *a, float scale, const float *b, ptrdiff_t n) {
    vfloat total = {0};
    for (ptrdiff_t j = 0; j < n; j += WIDTH) total += minimum(load(a + j) * scale, load(b + j));
    return sum_of_lanes(total);
}
