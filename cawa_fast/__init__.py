"""cawa_fast: class-activation adaptive weights for semantic segmentation.

Start with :class:`CAWA` (the closed loop in one object); its parts are :class:`GradCAM`,
:class:`AdaptiveClassWeights` and :class:`CrossEntropyLoss`, on the operators of :mod:`cawa_fast.functional`.
:class:`SegmentationMetrics` evaluates any network.
"""

from . import calibration, functional, rules, weighting
from ._label_check import check_labels, set_label_check
from .adaptive import AdaptiveClassWeights
from .cam import GradCAM
from .cawa import CAWA
from .evaluation import SegmentationMetrics
from .metrics import segmentation_metrics
from .nn import CrossEntropyLoss, FocalLoss, LogitAdjustedLoss, RecallLoss
from .pixel_losses import BinaryCrossEntropyLoss, OhemCrossEntropyLoss
from .region_losses import CombinedLoss, DiceLoss, JaccardLoss, TverskyLoss
from .sampling import unpadded

__version__ = "0.1.0"

__all__ = [
    "CAWA",
    "AdaptiveClassWeights",
    "BinaryCrossEntropyLoss",
    "CombinedLoss",
    "CrossEntropyLoss",
    "DiceLoss",
    "FocalLoss",
    "GradCAM",
    "JaccardLoss",
    "LogitAdjustedLoss",
    "OhemCrossEntropyLoss",
    "RecallLoss",
    "SegmentationMetrics",
    "TverskyLoss",
    "__version__",
    "calibration",
    "check_labels",
    "functional",
    "rules",
    "segmentation_metrics",
    "set_label_check",
    "unpadded",
    "weighting",
]
