/* Selection among scored positions: quickselect on integers that sort as (score, position).
 *
 * Partitions have no branch that depends on the data: what is selected here is as good as random,
 * and a mispredicted branch costs more than a swap.  Included by kernels.h.
 */
#ifndef DCI_SELECT_H
#define DCI_SELECT_H

#include <stddef.h>
#include <stdint.h>

/* Measured anew with `python -m comparisons run --suite batch`. */
#define DCI_SELECT_SMALL 16 /* keys that insertion sort orders faster */
#define DCI_SELECT_LARGE 128 /* keys from which a sample finds a better pivot than three of them */

static inline void insertion_sort(uint64_t *keys, ptrdiff_t n) {
    for (ptrdiff_t i = 1; i < n; i++) {
        uint64_t key = keys[i];
        ptrdiff_t j = i;
        for (; j > 0 && keys[j - 1] > key; j--) keys[j] = keys[j - 1];
        keys[j] = key;
    }
}

/* Index of a key that about `count` of `n` keys are below; n >= 1. */
static inline ptrdiff_t choose_pivot(const uint64_t *keys, ptrdiff_t n, ptrdiff_t count) {
    ptrdiff_t size = n >= DCI_SELECT_LARGE ? DCI_SELECT_SMALL : 3, step = n / size;
    ptrdiff_t order[DCI_SELECT_SMALL];
    for (ptrdiff_t i = 0; i < size; i++) {
        ptrdiff_t j = i;
        for (; j > 0 && keys[order[j - 1]] > keys[i * step]; j--) order[j] = order[j - 1];
        order[j] = i * step;
    }
    return order[size == 3 ? 1 : count * size / n];
}

/* Move keys below keys[pivot] before it and the others behind; returns its new index. */
static inline ptrdiff_t partition(uint64_t *keys, ptrdiff_t n, ptrdiff_t pivot) {
    uint64_t key = keys[pivot];
    ptrdiff_t below = 1;
    keys[pivot] = keys[0];
    for (ptrdiff_t i = 1; i < n; i++) {
        uint64_t next = keys[i];
        keys[i] = keys[below];
        keys[below] = next;
        below += next < key;
    }
    keys[0] = keys[below - 1];
    keys[below - 1] = key;
    return below - 1;
}

/* The m smallest of `n` keys to the front, unordered, for some low <= m <= high; returns m.
 * 0 <= low <= high <= n. */
static inline ptrdiff_t dci_select(uint64_t *keys, ptrdiff_t n, ptrdiff_t low, ptrdiff_t high) {
    ptrdiff_t done = 0, target = low + (high - low) / 2;
    if (high == n) return n;
    while (n - done > DCI_SELECT_SMALL) {
        ptrdiff_t rest = n - done;
        ptrdiff_t pivot = choose_pivot(keys + done, rest, target > done ? target - done : 0);
        ptrdiff_t below = done + partition(keys + done, rest, pivot);
        if (below > high) {
            n = below;
        } else if (below >= low) {
            return below;
        } else if (below + 1 >= low) {
            return below + 1;
        } else {
            done = below + 1;
        }
    }
    insertion_sort(keys + done, n - done);
    return low;
}

/* All of `n` keys in ascending order. */
static inline void dci_sort(uint64_t *keys, ptrdiff_t n) {
    while (n > DCI_SELECT_SMALL) {
        ptrdiff_t middle = partition(keys, n, choose_pivot(keys, n, n / 2));
        if (middle < n - middle) {
            dci_sort(keys, middle);
            keys += middle + 1;
            n -= middle + 1;
        } else {
            dci_sort(keys + middle + 1, n - middle - 1);
            n = middle;
        }
    }
    insertion_sort(keys, n);
}

#endif
