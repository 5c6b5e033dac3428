/* Which kernels this processor runs. */
#include "kernels.h"

#ifdef DCI_HAVE_AVX2
#include <cpuid.h>
#endif

extern const dci_kernels dci_kernels_serial;
#ifdef DCI_HAVE_AVX512
extern const dci_kernels dci_kernels_avx512;
#endif
#ifdef DCI_HAVE_AVX2
extern const dci_kernels dci_kernels_avx2;
#endif
#ifdef DCI_HAVE_NEON
extern const dci_kernels dci_kernels_neon;
#endif

const char *const dci_kernel_names[] = {
#ifdef DCI_HAVE_AVX512
    "avx512",
#endif
#ifdef DCI_HAVE_AVX2
    "avx2",
#endif
#ifdef DCI_HAVE_NEON
    "neon",
#endif
    "serial", NULL};

#ifdef DCI_HAVE_AVX2
/* Not all of our compilers know __builtin_cpu_supports("f16c"). That the system saves the registers, which the bit of
 * the processor says nothing about, AVX2 beside it does. */
static int has_f16c(void) {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

static const dci_kernels *supported(const char *name) {
#ifdef DCI_HAVE_AVX512
    if (strcmp(name, "avx512") == 0)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                       __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")
                   ? &dci_kernels_avx512
                   : NULL;
#endif
#ifdef DCI_HAVE_AVX2
    if (strcmp(name, "avx2") == 0)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c() ? &dci_kernels_avx2
                                                                                             : NULL;
#endif
#ifdef DCI_HAVE_NEON
    if (strcmp(name, "neon") == 0) return &dci_kernels_neon;
#endif
    return strcmp(name, "serial") == 0 ? &dci_kernels_serial : NULL;
}

const dci_kernels *dci_find_kernels(const char *name) {
    if (name) return supported(name);
    for (int i = 0; dci_kernel_names[i]; i++)
        if (supported(dci_kernel_names[i])) return supported(dci_kernel_names[i]);
    return &dci_kernels_serial;
}
