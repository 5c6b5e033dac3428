/* Selection among scored positions: quickselect on integers that sort as (score, position).
 * Included by kernels.h. */
#ifndef DCI_SELECT_H
#define DCI_SELECT_H

#include <stddef.h>
#include <stdint.h>

static inline void swap(uint64_t *a, uint64_t *b) {
    uint64_t t = *a;
    *a = *b;
    *b = t;
}

static inline void insertion_sort(uint64_t *keys, ptrdiff_t n) {
    for (ptrdiff_t i = 1; i < n; i++) {
        uint64_t key = keys[i];
        ptrdiff_t j = i;
        for (; j > 0 && keys[j - 1] > key; j--) keys[j] = keys[j - 1];
        keys[j] = key;
    }
}

static inline uint64_t median_of_three(uint64_t a, uint64_t b, uint64_t c) {
    if (a > b) swap(&a, &b);
    return c < a ? a : (c < b ? c : b);
}

/* Hoare's partition around a median of three: returns m, 0 < m < n, with keys[:m] <= keys[m:]. */
static inline ptrdiff_t partition(uint64_t *keys, ptrdiff_t n) {
    uint64_t pivot = median_of_three(keys[0], keys[n / 2], keys[n - 1]);
    ptrdiff_t i = -1, j = n;
    for (;;) {
        do i++; while (keys[i] < pivot);
        do j--; while (keys[j] > pivot);
        if (i >= j) return j + 1; /* two of the three are >= the pivot, so j stops before n - 1 */
        swap(keys + i, keys + j);
    }
}

/* The `count` smallest of `n` keys to the front, unordered. */
static inline void dci_select(uint64_t *keys, ptrdiff_t n, ptrdiff_t count) {
    while (n > 16 && count > 0 && count < n) {
        ptrdiff_t middle = partition(keys, n);
        if (count <= middle) {
            n = middle;
        } else {
            keys += middle;
            n -= middle;
            count -= middle;
        }
    }
    if (count > 0 && count < n) insertion_sort(keys, n);
}

/* All of `n` keys in ascending order. */
static inline void dci_sort(uint64_t *keys, ptrdiff_t n) {
    while (n > 16) {
        ptrdiff_t middle = partition(keys, n);
        if (middle < n - middle) {
            dci_sort(keys, middle);
            keys += middle;
            n -= middle;
        } else {
            dci_sort(keys + middle, n - middle);
            n = middle;
        }
    }
    insertion_sort(keys, n);
}

#endif
