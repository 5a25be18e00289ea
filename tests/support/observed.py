"""Batches with given counts, weights computed by hand, and which images have which class."""

from __future__ import annotations

import torch

import cawa_fast as cf
from tests.support.population import Population

# Four classes, delta = 0.9. Class 3 has no ground truth: it has no IoU, is in no sum or mean, and has the weight 1.
#
#                      class 0       class 1       class 2       class 3
#   tp fp fn           60 20 20      10 30 10      0 5 10        0 7 0
#   (3) IoU            60/100 = .6   10/50 = .2    0             -
#   (4) PA             60/80 = .75   10/20 = .5    0             -
#   (2) CSPS           .54 + .075    .18 + .05     0             -         sum .845
#                      = .615        = .23
#   (5) ln(1+.845/c)   .864568506    1.54199321    13.6470931    -         .845 / 1e-6 in class 2
#       ln(1+110/n)    .864997430    1.87180213    2.48490656    -         n = 80, 20, 10
#       BW             .747849536    2.88630619    33.9117511    -
#   (6) RW             1             1             1             -         the first step
#   (8) clip           .747849536    2.88630619    20            -         mean 7.87805191
#   (9) w              .0949282316   .366373086    2.53869868    1
FIRST = [(60, 20, 20), (10, 30, 10), (0, 5, 10), (0, 7, 0)]
# The second step, with the same ground truth; the IoU of class 2 is no longer 0:
#
#   tp fp fn           64 16 16      16 4 4        5 15 5        0 3 0
#   IoU, PA            2/3, .8       2/3, .8       .2, .5        -
#   CSPS               .68           .68           .23           -         sum 1.59
#   BW                 1.04270361    2.25634757    5.14005077    -
#   RW paper           1.10568926    2.95650888    230000        -         .68 / .615001, .68 / .230001, .23 / 1e-6
#   RW smoothed        1.104         2.875         24            -         .69 / .625, .69 / .24, .24 / .01
#   clip paper         1.15290618    6.67091162    20            -
#   clip smoothed      1.15114479    6.48699925    20            -
#   clip none          1.04270361    2.25634757    5.14005077    -
SECOND = [(64, 16, 16), (16, 4, 4), (5, 15, 5), (0, 3, 0)]
SECOND_RATIO = {"paper": [1.10568926, 2.95650888, 230000], "smoothed": [1.104, 2.875, 24], "none": [1, 1, 1]}
SECOND_WEIGHT = {
    "paper": [0.124307835, 0.719266314, 2.15642585, 1],
    "smoothed": [0.124951746, 0.704135478, 2.17091278, 1],
    "none": [0.370668687, 0.802104625, 1.82722669, 1],
}
# The third step: class 1 falls to 0, the others stay. Its ratio is 0 exactly as in Eq. 6, or .01 / .69 smoothed.
#
#   tp fp fn           64 16 16      0 4 20        5 15 5        0 0 0
#   CSPS               .68           0             .23           -         sum .91
#   BW                 .734725059    25.6833733    3.97759182    -
#   RW paper           .999998529    0             .999995652    -
#   RW smoothed        1             .0144927536   1             -
#   clip paper         .734723979    .1            3.97757453    -
#   clip smoothed      .734725059    .372222801    3.97759182    -
#   clip none          .734725059    20            3.97759182    -
THIRD = [(64, 16, 16), (0, 4, 20), (5, 15, 5), (0, 0, 0)]
THIRD_WEIGHT = {
    "paper": [0.45802893, 0.0623402725, 2.4796308, 1],
    "smoothed": [0.433505355, 0.219620354, 2.34687429, 1],
    "none": [0.0891933843, 2.42793908, 0.482867532, 1],
}


def batch(counts):
    """Maps of 0 and 1 and labels, one image of one row, that give (tp, fp, fn) by class for ``normalize="none"``."""
    counts = torch.as_tensor(counts)
    classes = torch.arange(len(counts))
    target = classes.repeat_interleave(counts[:, 0] + counts[:, 2])
    cam = torch.zeros(len(counts), len(target))
    for c, (tp, fp, _) in enumerate(counts.tolist()):
        cam[c, (target == c).nonzero()[:tp]] = 1
        cam[c, (target != c).nonzero()[:fp]] = 1
    return cam[None, :, None], target.view(1, 1, -1)


def adaptive(num_classes, **options):
    """Weights with a ratio by default, so that a step depends on the step before and lost state is noticed."""
    return cf.AdaptiveClassWeights(
        num_classes, **{"normalize": "none", "classes": "all", "ratio": "smoothed"} | options
    )


def close(actual, expected, rtol=2e-6):
    torch.testing.assert_close(actual, torch.tensor(expected), rtol=rtol, atol=1e-7, equal_nan=True)


def presence(images=300, classes=12, seed=0):
    return Population.make(images, classes, rarest=0.01, seed=seed).presence()
