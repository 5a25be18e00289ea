"""``torch.ops.cawa_fast``: importing this package registers the operators.

==================  =======================================================
library             the schemas
native              loads the compiled libraries
backends            chooses the kernel by device, dtype and sizes
implementations     computes, with the chosen kernel
autograd            fake implementations and derivatives
region              the sums of region losses, with all of these
==================  =======================================================
"""

from .autograd import EagerCrossEntropy
from .backends import Saved, is_eager, is_transformed, saves
from .implementations import compute_cross_entropy, differentiable_cross_entropy
from .region import region_sums

__all__ = [
    "EagerCrossEntropy",
    "Saved",
    "compute_cross_entropy",
    "differentiable_cross_entropy",
    "is_eager",
    "is_transformed",
    "region_sums",
    "saves",
]
