"""What does an index that changes cost, beside fitting anew? 390,000 of GloVe: a full run takes about 2 minutes.

Bars: adding 1 % takes at most 3 % of a fit, removing 1 % at most 2 %, adding everything in 100 batches at most
1.5 fits; 50,000 points a second one by one; after all points were replaced, recall within 0.01 of a fit's and queries
within 5 % of its time; points as float16 and int8 at the same recall, or what rounding leaves of it, with queries no
slower than those of float32; saving at 500 MB/s or 80 % of the disk's; the first answer from a mapped file within
100 ms.
"""

from comparisons.knn.suites import DYNAMIC as SUITE


def test_dynamic(asked, name):
    asked(SUITE, name)
