"""Where the shards of a sale lie in a cluster: places, in the order of the shards' numbers.

A cluster that was made of N nodes gives each of them one of N equal stretches of its slots. So shards should lie such
that the first N of them are in N different N-ths, for every N at once, since a place is for good and nodes come and go.
For more than 17 points there are no such places (Warmus, "A supplementary note on the irregularities of distributions",
Journal of Number Theory 8, 1976, after Berlekamp and Graham, 1970). The first 17 were found by backtracking over the
stretches between fractions with denominators up to 17, none narrower than 90 slots. Each of the others lies within one
stretch of every number of nodes from 2 to 20, and of such places it is the one that keeps the fullest nodes emptiest,
given those before it (the least sum of the cubes of their crowds).
"""

from __future__ import annotations

from typing import Final

#: Slots from a place on within which a shard may be put: a stretch ends 78 slots behind its place at the earliest.
NEAR: Final = 64

#: As many as a sale may have shards (`limits.SHARDS_MAX`). They never change: a sale is found by them.
PLACES: Final = (
    6_839, 15_136, 2_197, 11_578, 4_382, 8_835, 13_876, 13, 10_095, 5_474, 12_616, 3_289, 7_723, 15_433, 1_833, 10_935,
    5_864, 13_244, 9_292, 752, 14_496, 3_860, 10_464, 4_928, 16_312, 8_124, 2_744, 12_096, 1_292, 6_560, 13_560, 9_692,
    1_096, 3_644, 11_836, 15_872, 8_480, 5_200, 2_388, 10_700, 7_288, 14_816, 6_212, 12_940, 384, 14_204, 4_612, 9_032,
    3_004, 11_348, 9_892, 1_564, 16_092, 12_356, 4_120, 7_492, 6_040, 8_300, 13_716, 200, 14_948, 10_816, 3_148, 7_064,
)  # fmt: skip
