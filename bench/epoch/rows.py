"""The rows of ``python -m bench epoch``: networks, and the sizes of the datasets that they are trained on."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class DataShape:
    """The properties of a dataset that determine the cost of an epoch.

    Attributes:
        title: as in tables.
        classes: C.
        train_images, val_images: of the published split.
        crop: ``(h, w)`` of training crops, pixels.
        val: ``(H, W)`` of validation images.
    """

    title: str
    classes: int
    train_images: int
    val_images: int
    crop: tuple[int, int]
    val: tuple[int, int]


CAMVID = DataShape("CamVid", 11, 367, 101, (360, 480), (360, 480))
CITYSCAPES = DataShape("Cityscapes", 19, 2975, 500, (768, 768), (1024, 2048))
ADE20K = DataShape("ADE20K", 150, 20210, 2000, (512, 512), (512, 683))
COCO_STUFF = DataShape("COCO-Stuff", 171, 118287, 5000, (512, 512), (480, 640))


@dataclass(frozen=True)
class EpochRow:
    """A network trained on a dataset.

    Attributes:
        key: as ``--rows`` takes it.
        title: of the network.
        model, backbone: of :func:`cawa_fast.recipes.models.build_model`, or one of torchvision's
            (:data:`bench.epoch.networks.TORCHVISION`).
        data: the dataset's sizes.
        batch: images of a training step.
        val_batch: images of a validation step.
        scale: divides the sides of crops and images.
        train_batches, val_batches: measured in a round and extrapolated to the epoch. 0: the whole epoch.
    """

    key: str
    title: str
    model: str
    backbone: str | None
    data: DataShape
    batch: int
    val_batch: int
    scale: int = 1
    train_batches: int = 2
    val_batches: int = 1

    @property
    def crop(self) -> tuple[int, int]:
        return self.data.crop[0] // self.scale, self.data.crop[1] // self.scale

    @property
    def val(self) -> tuple[int, int]:
        return self.data.val[0] // self.scale, self.data.val[1] // self.scale

    @property
    def steps(self) -> int:
        """Training steps of an epoch."""
        return self.data.train_images // self.batch

    @property
    def val_steps(self) -> float:
        """Validation batches of an epoch."""
        return self.data.val_images / self.val_batch

    def shrunk(self) -> EpochRow:
        """The same with tiny images and one batch, for ``--quick``."""
        data = replace(self.data, crop=(64 * self.scale, 64 * self.scale), val=(64 * self.scale, 96 * self.scale))
        return replace(self, data=data, batch=2, val_batch=2, train_batches=1, val_batches=1)


CPU_ROWS = (
    EpochRow("compact-camvid", "compact", "compact", None, CAMVID, 8, 8, 2, 0, 0),
    EpochRow("compact-cityscapes", "compact", "compact", None, CITYSCAPES, 4, 2, 2, 4, 2),
    EpochRow("compact-ade20k", "compact", "compact", None, ADE20K, 8, 8, 2, 4, 2),
    EpochRow("compact-coco", "compact", "compact", None, COCO_STUFF, 8, 8, 2, 4, 2),
    EpochRow("segformer-cityscapes", "SegFormer-B0", "segformer", "mit_b0", CITYSCAPES, 2, 1, 2),
    EpochRow("segformer-ade20k", "SegFormer-B0", "segformer", "mit_b0", ADE20K, 4, 4, 2),
    EpochRow("deeplab-camvid", "DeepLabV3+ R18", "deeplabv3plus", "resnet18", CAMVID, 4, 4, 2),
    EpochRow("deeplab-cityscapes", "DeepLabV3+ R18", "deeplabv3plus", "resnet18", CITYSCAPES, 2, 1, 2),
    EpochRow("deeplab-coco", "DeepLabV3+ R18", "deeplabv3plus", "resnet18", COCO_STUFF, 4, 4, 2),
    EpochRow("upernet-ade20k", "UPerNet R18", "upernet", "resnet18", ADE20K, 4, 4, 2),
)
"""Half of each image side and small backbones, which two cores can train."""

GPU_ROWS = (
    EpochRow("compact-camvid", "compact", "compact", None, CAMVID, 8, 8, 1, 8, 4),
    EpochRow("compact-cityscapes", "compact", "compact", None, CITYSCAPES, 8, 2, 1, 4, 4),
    EpochRow("compact-ade20k", "compact", "compact", None, ADE20K, 16, 8, 1, 4, 2),
    EpochRow("segformer-cityscapes", "SegFormer-B0", "segformer", "mit_b0", CITYSCAPES, 8, 2, 1, 4, 4),
    EpochRow("segformer-ade20k", "SegFormer-B0", "segformer", "mit_b0", ADE20K, 16, 8, 1, 4, 2),
    EpochRow("deeplab-r50-cityscapes", "DeepLabV3+ R50", "deeplabv3plus", "resnet50", CITYSCAPES, 8, 2, 1, 4, 4),
    EpochRow("deeplab-r101-cityscapes", "DeepLabV3+ R101", "deeplabv3plus", "resnet101", CITYSCAPES, 8, 2, 1, 2, 2),
    EpochRow("deeplab-r50-coco", "DeepLabV3+ R50", "deeplabv3plus", "resnet50", COCO_STUFF, 16, 8, 1, 4, 2),
    EpochRow("upernet-r50-ade20k", "UPerNet R50", "upernet", "resnet50", ADE20K, 16, 8, 1, 4, 2),
    EpochRow("torchvision-deeplab-cityscapes", "DeepLabV3 R50", "deeplabv3_resnet50", None, CITYSCAPES, 8, 2),
    EpochRow(
        "torchvision-mobile-coco", "DeepLabV3 MobileNetV3", "deeplabv3_mobilenet_v3_large", None, COCO_STUFF, 16, 8
    ),
)
"""The paper's image sizes, and torchvision's networks."""
