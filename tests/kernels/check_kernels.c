/* Every instruction set that this build and this processor have against the serial kernels, without Python.
 *
 * Inputs are small integers, so that every sum is exact in float32 and results have to be equal to the bit, ties
 * included; some of them are NaN or infinite.  Only exponentials are compared within a tolerance.  For processors that
 * are emulated (`make neon`) and for sanitizers (`make sanitize`).
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "../../dci/_native/csrc/kernels.h"

#define LENGTH(array) ((ptrdiff_t)(sizeof(array) / sizeof *(array)))

static const ptrdiff_t LENGTHS[] = {0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 65, 100};
static const ptrdiff_t ROWS[] = {1, 2, 5, 6, 7, 8, 9, 13};
static const ptrdiff_t PANELS[] = {1, 2, 3, 4, 5, 9};
enum { PLAIN, INFINITE, MISSING, MIXED, KINDS }; /* which values beside integers there are */

static const dci_kernels *serial, *tested;
static uint32_t state = 1;
static int failures, compared;

static uint32_t draw(uint32_t below) {
    state = state * 1664525u + 1013904223u;
    return (state >> 8) % below;
}

static float value(int kind) {
    if (kind != PLAIN && draw(12) == 0) {
        uint32_t bits = 0x7fc00000u | draw(1 << 20) | draw(2) << 31;
        float missing;
        memcpy(&missing, &bits, sizeof missing); /* NaN with any payload */
        if (kind == MISSING || (kind == MIXED && draw(2))) return missing;
        return draw(2) ? INFINITY : -INFINITY;
    }
    return (float)((int)draw(9) - 4);
}

/* Memory of exactly this size, so that AddressSanitizer sees every access outside. */
static void *memory(ptrdiff_t bytes) {
    void *p = malloc(bytes ? (size_t)bytes : 1);
    if (!p) abort();
    return p;
}

static float *floats(ptrdiff_t n, int kind) {
    float *p = memory(n * 4);
    for (ptrdiff_t i = 0; i < n; i++) p[i] = value(kind);
    return p;
}

static float *copy_of(const float *from, ptrdiff_t n) {
    float *p = memory(n * 4);
    if (n) memcpy(p, from, (size_t)n * 4);
    return p;
}

/* Equal within a relative tolerance, NaN being equal to NaN. */
static int same(double a, double b, double tolerance) {
    if (isnan(a) || isnan(b)) return isnan(a) && isnan(b);
    return a == b || fabs(a - b) <= tolerance * fabs(b);
}

static void check(const char *what, ptrdiff_t at, double found, double expected, double tolerance) {
    compared++;
    if (same(found, expected, tolerance)) return;
    if (failures++ < 20)
        printf("%s %s at %td: expected %.9g as serial has it, got %.9g\n", tested->name, what, at, expected, found);
}

static void check_all(const char *what, const float *found, const float *expected, ptrdiff_t n, double tolerance) {
    for (ptrdiff_t i = 0; i < n; i++) check(what, i, found[i], expected[i], tolerance);
}

static void check_vectors(ptrdiff_t n, int kind) {
    float *a = floats(n, kind), *b = floats(n, kind), *out = memory(n * 4), *expected = memory(n * 4);
    serial->prepare(a, n, 0.5f, b, expected);
    tested->prepare(a, n, 0.5f, b, out);
    check_all("prepare", out, expected, n, 0);
    check("norm2", n, tested->norm2(a, n), serial->norm2(a, n), 0);
    check("absmax_bits", n, tested->absmax_bits(a, n), serial->absmax_bits(a, n), 0);
    check("distance2", n, tested->distance2(a, b, n), serial->distance2(a, b, n), 0);
    check("dot", n, tested->dot(a, b, n), serial->dot(a, b, n), 0);
    if (n) check("argmin", n, (double)tested->argmin(a, n), (double)serial->argmin(a, n), 0);
    free(a), free(b), free(out), free(expected);
}

/* Any bits of halves, and products whose sums round: every instruction set rounds once. */
static void check_decoding(ptrdiff_t n) {
    uint16_t *halves = memory(n * 2);
    int8_t *codes = memory(n);
    float *steps = memory(n * 4), *offsets = memory(n * 4), *out = memory(n * 4), *expected = memory(n * 4);
    for (ptrdiff_t i = 0; i < n; i++) {
        halves[i] = (uint16_t)draw(1 << 16);
        codes[i] = (int8_t)((int)draw(256) - 128);
        steps[i] = (float)draw(1 << 23) * 0x1p-20f;
        offsets[i] = ((float)draw(1 << 23) - 0x1p22f) * 0x1p-16f;
    }
    serial->decode_halves(halves, n, 0x1p-126f, expected); /* some results are subnormal */
    tested->decode_halves(halves, n, 0x1p-126f, out);
    check_all("decode_halves", out, expected, n, 0);
    serial->decode_bytes(codes, n, 0.9375f, steps, offsets, expected);
    tested->decode_bytes(codes, n, 0.9375f, steps, offsets, out);
    check_all("decode_bytes", out, expected, n, 0);
    free(halves), free(codes), free(steps), free(offsets), free(out), free(expected);
}

/* Functions of a multiple of DCI_LANES values. */
static void check_lanes(ptrdiff_t n, int kind) {
    float *a = floats(n, kind), *b = floats(n, kind), *first = copy_of(a, n), *second = copy_of(a, n), sums[2];
    int32_t *taken[2] = {memory(n * 4), memory(n * 4)};
    check("largest", n, tested->largest(a, n), serial->largest(a, n), 0);
    check("overlap", n, tested->overlap(a, 0.5f, b, n), serial->overlap(a, 0.5f, b, n), 0);
    ptrdiff_t count = serial->take_above(first, b, n, 3, taken[0], &sums[0]);
    check("take_above", n, (double)tested->take_above(second, b, n, 3, taken[1], &sums[1]), (double)count, 0);
    check("take_above: sum", n, sums[1], sums[0], 0);
    check_all("take_above: rest", second, first, n, 0);
    for (ptrdiff_t i = 0; i < count; i++) check("take_above: position", i, taken[1][i], taken[0][i], 0);
    free(a), free(b), free(first), free(second), free(taken[0]), free(taken[1]);
}

static void check_exponentials(ptrdiff_t n_rows, ptrdiff_t n, int kind) {
    ptrdiff_t stride = n + 3, size = n_rows * stride;
    float *first = floats(size, kind), *shifts = floats(n_rows, PLAIN), *sums = memory(n_rows * 4);
    for (ptrdiff_t i = 0; i < n_rows; i++) {
        shifts[i] = i || kind != MIXED ? shifts[i] + 4 : INFINITY;
        sums[i] = 0;
        for (ptrdiff_t j = i * stride; j < (i + 1) * stride; j++) {
            first[j] *= 0.7f * (float)draw(32);
            if (first[j] > shifts[i]) first[j] = shifts[i] + 88;
            if (first[j] < shifts[i] - 87) first[j] -= 1; /* 0 on every instruction set */
        }
    }
    float *second = copy_of(first, size), *total = copy_of(sums, n_rows);
    serial->exponentials(first, stride, n_rows, n, shifts, sums);
    tested->exponentials(second, stride, n_rows, n, shifts, total);
    check_all("exponentials", second, first, size, 5e-7);
    check_all("exponentials: sum", total, sums, n_rows, 1e-5);
    free(first), free(second), free(shifts), free(sums), free(total);
}

static void check_combine(ptrdiff_t n_rows, ptrdiff_t depth, ptrdiff_t width, int kind) {
    ptrdiff_t stride = width + 1, size = n_rows * stride;
    float *weights = floats(n_rows * depth, kind), *values = floats(depth * stride, kind);
    float *first = floats(size, kind), *second = copy_of(first, size);
    for (int along = 0; along < 2; along++) {
        ptrdiff_t row_stride = along ? depth : 1, depth_stride = along ? 1 : n_rows;
        serial->combine(weights, row_stride, depth_stride, n_rows, depth, values, stride, width, first, stride);
        tested->combine(weights, row_stride, depth_stride, n_rows, depth, values, stride, width, second, stride);
        check_all("combine", second, first, size, 0);
    }
    free(weights), free(values), free(first), free(second);
}

static void check_transpose(ptrdiff_t dim) {
    ptrdiff_t stride = dim + 2, size = DCI_LANES * dim;
    float *rows = floats(DCI_LANES * stride, MIXED), *first = memory(size * 4), *second = memory(size * 4);
    serial->transpose(rows, stride, dim, first);
    tested->transpose(rows, stride, dim, second);
    check_all("transpose", second, first, size, 0);
    free(rows), free(first), free(second);
}

/* What a scan of one row left: its best `keep` in order. */
static void check_reservoirs(const char *what, dci_reservoir *found, dci_reservoir *expected, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i++) {
        dci_reservoir *both[] = {found + i, expected + i};
        for (int j = 0; j < 2; j++) {
            dci_reservoir_cut(both[j], both[j]->keep);
            dci_sort(both[j]->entries, both[j]->count);
        }
        check(what, i, found[i].count, expected[i].count, 0);
        check(what, i, found[i].tau, expected[i].tau, 0);
        for (int32_t j = 0; j < expected[i].count; j++) {
            check(what, j, (double)(found[i].entries[j] >> 32), (double)(expected[i].entries[j] >> 32), 0);
            check(what, j, (uint32_t)found[i].entries[j], (uint32_t)expected[i].entries[j], 0);
        }
    }
}

static void empty(dci_reservoir *reservoirs, uint64_t *entries, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i++) reservoirs[i] = (dci_reservoir){entries + i * 24, INFINITY, 0, 5, 24};
}

static void check_scans(ptrdiff_t n_rows, ptrdiff_t n_panels, ptrdiff_t dim, int kind) {
    ptrdiff_t lanes = n_panels * DCI_LANES, size = lanes * dim;
    float *data = floats(n_rows * dim, kind), *panels = floats(size, kind), *bias = floats(lanes, kind);
    float *steps = floats(lanes, kind), *out[] = {memory(n_rows * lanes * 4), memory(n_rows * lanes * 4)};
    float *widened[] = {memory(size * 4), memory(size * 4)};
    int16_t *shorts = memory(size * 2);
    uint8_t *allowed = memory(lanes);
    uint64_t *entries = memory(2 * n_rows * 24 * 8);
    const float **rows = memory(n_rows * (ptrdiff_t)sizeof *rows);
    dci_reservoir *reservoirs = memory(2 * n_rows * (ptrdiff_t)sizeof *reservoirs), *other = reservoirs + n_rows;
    dci_reservoir **into = memory(2 * n_rows * (ptrdiff_t)sizeof *into);
    for (ptrdiff_t i = 0; i < n_rows; i++) rows[i] = data + i * dim;
    for (ptrdiff_t i = 0; i < 2 * n_rows; i++) into[i] = reservoirs + i;
    for (ptrdiff_t i = 0; i < size; i++) shorts[i] = (int16_t)((int)draw(9) - 4);
    for (ptrdiff_t i = 0; i < lanes; i++) allowed[i] = draw(3) > 0;

    serial->affine(rows, n_rows, dim, panels, bias, n_panels, out[0], lanes);
    tested->affine(rows, n_rows, dim, panels, bias, n_panels, out[1], lanes);
    check_all("affine", out[1], out[0], n_rows * lanes, 0);
    serial->widen(shorts, steps, n_panels, dim, widened[0]);
    tested->widen(shorts, steps, n_panels, dim, widened[1]);
    check_all("widen", widened[1], widened[0], size, 0);
    for (int some = 0; some < 2; some++) {
        const uint8_t *mask = some ? allowed : NULL;
        empty(reservoirs, entries, 2 * n_rows);
        serial->scan_sum(rows, into, n_rows, dim, panels, bias, n_panels, 0, mask);
        tested->scan_sum(rows, into + n_rows, n_rows, dim, panels, bias, n_panels, 0, mask);
        check_reservoirs("scan_sum", other, reservoirs, n_rows);
        empty(reservoirs, entries, 2 * n_rows);
        serial->scan_short(rows, into, n_rows, dim, shorts, steps, bias, n_panels, 0, mask);
        tested->scan_short(rows, into + n_rows, n_rows, dim, shorts, steps, bias, n_panels, 0, mask);
        check_reservoirs("scan_short", other, reservoirs, n_rows);
        empty(reservoirs, entries, 2 * n_rows);
        serial->scan_max(rows, into, n_rows, dim, panels, n_panels, 0, mask);
        tested->scan_max(rows, into + n_rows, n_rows, dim, panels, n_panels, 0, mask);
        check_reservoirs("scan_max", other, reservoirs, n_rows);
    }
    free(data), free(panels), free(bias), free(steps), free(out[0]), free(out[1]), free(widened[0]), free(widened[1]);
    free(shorts), free(allowed), free(entries), free(rows), free(reservoirs), free(into);
}

static void check_kind(int kind) {
    for (int i = 0; i < LENGTH(LENGTHS); i++) {
        ptrdiff_t n = LENGTHS[i];
        for (int repeat = 0; repeat < 20; repeat++) check_vectors(n, kind);
        for (int repeat = 0; repeat < 20; repeat++) check_decoding(n);
        if (n) check_transpose(n);
        for (int j = 0; j < LENGTH(ROWS); j++) {
            check_combine(ROWS[j], n, DCI_LANES * (1 + (i + j) % 5), kind);
            for (int p = 0; n && p < LENGTH(PANELS); p++) check_scans(ROWS[j], PANELS[p], n, kind);
        }
    }
    for (int i = 0; i < LENGTH(PANELS); i++) {
        for (int repeat = 0; repeat < 20; repeat++) check_lanes(PANELS[i] * DCI_LANES, kind);
        for (int j = 0; j < LENGTH(ROWS); j++) check_exponentials(ROWS[j], PANELS[i] * DCI_LANES, kind);
    }
}

int main(void) {
    serial = dci_find_kernels("serial");
    for (int i = 0; dci_kernel_names[i]; i++) {
        tested = dci_find_kernels(dci_kernel_names[i]);
        if (!tested || tested == serial) continue;
        compared = 0;
        for (int kind = 0; kind < KINDS; kind++) check_kind(kind);
        printf("%s: %d results compared with serial, %d differ in all\n", tested->name, compared, failures);
    }
    return failures != 0;
}
