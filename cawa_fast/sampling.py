"""Which validation images to look at when not all of them can be: enough of each class, and others every time."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Sampler
from torch.utils.data.distributed import DistributedSampler

_STREAM = 3  # of the random numbers; keeps (seed, step) apart from other uses of the same seed
_LEAST = 8
"""Images in a sample that is worth the step; until the budget has them, the weights stay."""
_SMOOTH = 4
"""Steps over which what was saved is spent, so that one quick pass does not empty the next."""
_GROWTH = 4
"""By how much a sample may grow from one step to the next: what an image costs is known from the last one."""


class HasPresence(Protocol):
    """An index of a data set: which image has which classes."""

    @property
    def presence(self) -> Any:
        """``(images, C)`` bool."""


class Rarest(NamedTuple):
    """The rarest class of each image, by the number of images that have it.

    Attributes:
        order: ``(N,)`` int64: 0 for images with the rarest class of all, and so on; C for images without any class.
        rarity: ``(N,)`` float64: one over the number of images with that class; 0 for images without any class.
    """

    order: Tensor
    rarity: Tensor

    @classmethod
    def of(cls, presence: Tensor) -> Rarest:
        """Of ``presence`` ``(N, C)`` bool: which image has which classes."""
        images, classes = presence.shape
        frequency = presence.sum(0)
        order = torch.full((images,), classes, device=presence.device)
        rarity = torch.zeros(images, dtype=torch.float64, device=presence.device)
        # by columns: a (images, C) table of float64 for a million images would take gigabytes
        for place, index in reversed(list(enumerate(torch.argsort(frequency, stable=True).tolist()))):
            order[presence[:, index]] = place
            rarity[presence[:, index]] = 1 / max(1, int(frequency[index]))
        return cls(order, rarity)


def inclusion_probabilities(rarity: Tensor, size: int) -> Tensor:
    r"""With which probability to draw each image, so that ``size`` images are drawn and rare classes are among them.

    One half of the sample is spread evenly over the images, the other over the classes: an image's share of it is that
    of its rarest class, :math:`\max_{c \in i} 1/M_c` with :math:`M_c` images that have class c. With ``size`` at least
    twice the number of classes each class is expected in at least one image; a probability that would pass 1 is 1, and
    the rest is shared out again.

    Args:
        rarity: ``(N,)``, of :class:`Rarest`.
        size: images to draw, in ``[0, N]``.

    Returns:
        ``(N,)`` float64 in ``[0, 1]`` that sums to ``size``.

    Example:
        >>> presence = torch.tensor([[True, False], [True, False], [True, False], [True, True]])
        >>> inclusion_probabilities(Rarest.of(presence).rarity, 2)
        tensor([0.3929, 0.3929, 0.3929, 0.8214], dtype=torch.float64)
    """
    images = len(rarity)
    if not 0 <= size <= images:
        raise ValueError(f"inclusion_probabilities: size must lie in [0, {images}], got {size}")
    share = torch.full((images,), 1 / max(1, images), dtype=torch.float64, device=rarity.device)
    if bool((rarity > 0).any()):
        share = (share + rarity / rarity.sum()) / 2
    free = torch.ones_like(share, dtype=torch.bool)
    result = torch.zeros_like(share)
    while (left := size - int((~free).sum())) > 0:
        result = torch.where(free, left * share / share[free].sum(), 1.0)
        if not bool((over := free & (result >= 1)).any()):
            break
        free &= ~over
        result = result.clamp_max(1)
    return result


def draw(probability: Tensor, order: Tensor, generator: np.random.Generator) -> Tensor:
    """A sample in which image i is with ``probability[i]``: systematic, from the images in order of their rarest class.

    The images stand in a row, each as long as its probability, those with the rarest class first and in random order
    among equals; every whole number behind a random start takes the image that it falls upon. So a class whose images
    make up a length of 1 in that order is never missed (implicit stratification; Cochran, Sampling Techniques, 1977,
    chapters 8 and 9A).

    Args:
        probability: ``(N,)`` as :func:`inclusion_probabilities` gives them; their sum, a whole number, is how many
            images are drawn.
        order: ``(N,)``, of :class:`Rarest`.
        generator: the random numbers.

    Returns:
        Indices of the drawn images, int64, in random order.
    """
    size = round(float(probability.sum()))
    row = np.lexsort((generator.random(len(order)), order.numpy()))
    ends = np.cumsum(probability.numpy()[row])
    points = generator.random() + np.arange(size)
    # (rounding: the last end may be a little less than the size)
    places = np.searchsorted(ends, points, side="right").clip(max=len(row) - 1)
    return torch.from_numpy(generator.permutation(row[places]))


def unpadded(sampler: DistributedSampler[Any]) -> Tensor:
    """Which of the images that a ``DistributedSampler`` gives this process are not there just to make shards equal.

    Those that fill up the last round are other processes' images once more. Cut this into batches as the loader does,
    and give it to ``observe(..., mask=)``.

    Returns:
        ``(len(sampler),)`` bool, in the sampler's order.

    Example:
        >>> from torch.utils.data import DistributedSampler
        >>> unpadded(DistributedSampler(range(5), num_replicas=2, rank=1, shuffle=False))
        tensor([ True,  True, False])
    """
    positions = sampler.rank + sampler.num_replicas * torch.arange(len(sampler), device="cpu")
    return positions < len(sampler.dataset)  # type: ignore[arg-type]


class ValidationSampler(Sampler[int]):
    """Indices of the validation images to observe before the next step; made by :meth:`cawa_fast.CAWA.sampler`.

    Give it to the validation loader: ``DataLoader(val_set, batch_size, sampler=sampler)``. Every pass yields other
    images, at most as many as the budget has time for, of each process's share. Until the next
    :meth:`cawa_fast.CAWA.step` a pass yields the same ones again.

    **Time.** Training lasts from the first forward pass in training mode to the beginning of a pass over this sampler,
    adaptive weighting from there to the end of the step. What both took in all steps so far, in all processes, decides
    how many images the next step gets, so that the sum stays within ``budget`` of the training time. A budget in images
    needs no clock: such runs can be repeated bit by bit.

    Attributes:
        images: of the validation set.
        budget: as given to CAWA.
        size: images of the next sample, in all processes together.
        steps: samples that were used.
        seconds: ``(training, adaptive weighting)`` so far, summed over processes.
    """

    def __init__(self, presence: Tensor, budget: float, seed: int) -> None:
        self.images, self.budget, self.seed = len(presence), budget, seed
        self._rarest = Rarest.of(presence)
        size = budget if isinstance(budget, int) else max(_LEAST, math.ceil(budget * self.images))
        self.size = min(size, self.images)
        self.steps = 0
        self._nanoseconds = [0, 0]
        self._training_began: int | None = None
        self._training = self._late = 0
        self._pass_began: int | None = None
        self._cost = 0.0  # nanoseconds an image, at the last step that had some
        self._drawn: tuple[Tensor, Tensor] | None = None
        self.taken = 0

    @property
    def seconds(self) -> tuple[float, float]:
        return self._nanoseconds[0] / 1e9, self._nanoseconds[1] / 1e9

    def __len__(self) -> int:
        """Images of this process in the next pass."""
        rank, processes = _place()
        return len(range(rank, self.size, processes))

    def __iter__(self) -> Iterator[int]:
        now = time.perf_counter_ns()
        if self._training_began is not None:
            self._training, self._training_began = now - self._training_began, None
        self._pass_began = self._pass_began or now
        self.taken = 0
        rank, processes = _place()
        return iter(self.draw()[0][rank::processes].tolist())

    def draw(self) -> tuple[Tensor, Tensor]:
        """The next sample, of all processes: indices ``(n,)``, and with which probability each was drawn."""
        if self._drawn is None:
            probability = inclusion_probabilities(self._rarest.rarity, self.size)
            generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((_STREAM, self.seed, self.steps))))
            indices = draw(probability, self._rarest.order, generator)
            self._drawn = indices, probability[indices]
        return self._drawn

    def train(self) -> None:
        """A forward pass in training mode: training goes on, and its clock runs."""
        if self._training_began is None:
            self._training_began = time.perf_counter_ns()

    def take(self, images: int) -> tuple[int, int]:
        """The next ``images`` of this process were observed: the place of the first in the sample, and their stride."""
        rank, processes = _place()
        first = rank + self.taken * processes
        self.taken += images
        if self.taken > len(self):
            raise ValueError(
                f"observe: this is image {self.taken} of the pass, but the sample has {len(self)}; give the validation "
                "loader sampler=cawa.sampler(...), and observe each of its batches once"
            )
        return first, processes

    def times(self) -> tuple[int, int]:
        """Nanoseconds of this process: of training, and of adaptive weighting, since the last step."""
        now = time.perf_counter_ns()
        spent = now - self._pass_began if self._pass_began is not None else 0
        return self._training, spent + self._late

    def late(self, nanoseconds: int) -> None:
        """What this process needed to make a step, known only after it: counts for the next one."""
        self._late = nanoseconds

    def stepped(self, times: Sequence[int]) -> None:
        """A step was made; ``times`` are those of all processes together. Chooses the size of the next sample."""
        training, spent = times
        self._nanoseconds[0] += training
        self._nanoseconds[1] += spent
        if self.size:
            cost = spent / self.size
            self._cost = (self._cost + cost) / 2 if self._cost else cost
        if not isinstance(self.budget, int):
            saved = self.budget * self._nanoseconds[0] - self._nanoseconds[1]
            coming = self.budget * training  # the training to come counts as long as the last
            size = self._affordable(coming + (saved / _SMOOTH if saved > 0 else saved))
            least = min(_LEAST, self.images)
            if size < least:  # what one step has is too little: save up for a sample that is worth it
                size = least if self._affordable(coming + saved) >= least else 0
            self.size = min(size, self.images, _GROWTH * max(self.size, _LEAST))
        self.steps += 1
        self._training, self._pass_began, self._drawn, self.taken = 0, None, None, 0

    def _affordable(self, nanoseconds: float) -> int:
        return max(0, int(nanoseconds / self._cost)) if self._cost else self.images

    def state(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"size": self.size, "steps": self.steps, "nanoseconds": self._nanoseconds, "cost": self._cost}

    def restore(self, state: dict[str, Any]) -> None:
        self.size, self.steps = min(state["size"], self.images), state["steps"]
        self._nanoseconds, self._cost = list(state["nanoseconds"]), state["cost"]


def as_presence(index: Tensor | np.ndarray | HasPresence | int, num_classes: int) -> Tensor:
    """``(N, C)`` bool on the CPU, from an index in any form; a number of images alone says nothing of classes."""
    if isinstance(index, int):
        presence = torch.zeros(index, num_classes, dtype=torch.bool, device="cpu")
    else:
        presence = torch.as_tensor(getattr(index, "presence", index)).cpu()
    if presence.dim() != 2 or presence.shape[1] != num_classes or presence.dtype != torch.bool:
        raise ValueError(
            f"sampler: index must be bool of shape (images, {num_classes}), which image has which class; "
            f"got {presence.dtype} {tuple(presence.shape)}"
        )
    if not len(presence):
        raise ValueError("sampler: index has no images; give one row per image of the validation set")
    return presence


def _place() -> tuple[int, int]:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
