"""Lightning with adaptive class weights: only the lines marked (+) are new.

pip install "cawa_fast[lightning,train]" && python examples/with_lightning.py
"""

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader

from cawa_fast.integrations.lightning import CawaCallback  # (+)
from cawa_fast.recipes.datasets.street.dataset import StreetDataset


class Segmentation(L.LightningModule):
    def __init__(self):
        super().__init__()
        layers = [nn.Conv2d(3, 16, 3, stride=4, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.Conv2d(32, 10, 1))

    def training_step(self, batch, index):
        images, labels = batch
        self.net(images)
        return self.cawa.loss(labels)  # (+) in place of F.cross_entropy(F.interpolate(logits, ...), labels)

    def validation_step(self, batch, index):
        images, labels = batch
        self.net(images)
        self.log("val_loss", self.cawa.loss(labels, weighted=False))  # (+)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def loader(split, length):
    scenes = StreetDataset(split, length=length, size=(64, 128))
    pairs = [map(torch.tensor, scenes.read(index)) for index in range(length)]
    return DataLoader([(image.permute(2, 0, 1) / 255, labels) for image, labels in pairs], batch_size=2)


torch.manual_seed(0)
callback = CawaCallback(  # (+)
    10, network="net", target=1, ignore_index=255, class_names=StreetDataset.class_names, metrics=True
)
trainer = L.Trainer(
    max_epochs=3,
    callbacks=[callback],  # (+)
    accelerator="cpu",
    logger=False,  # with one, the values of each class are logged
    enable_checkpointing=False,
    enable_progress_bar=False,
)
trainer.fit(Segmentation(), loader("train", 16), loader("val", 5))
values = trainer.callback_metrics
print(f"loss {values['val_loss']:.3f}, mIoU {values['val_miou']:.3f}, class weights {callback.cawa.weight.tolist()}")
