"""A SegFormer with LoRA (peft) and adaptive class weights: only the lines marked (+) are new.

pip install "cawa_fast[peft,train]" && python examples/with_peft.py
"""

import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader
from transformers import SegformerConfig, SegformerForSemanticSegmentation

import cawa_fast as cf
from cawa_fast.recipes.datasets.street.dataset import StreetDataset


def loader(split, length):
    scenes = StreetDataset(split, length=length, size=(64, 128))
    pairs = [map(torch.tensor, scenes.read(index)) for index in range(length)]
    return DataLoader([(image.permute(2, 0, 1) / 255, labels) for image, labels in pairs], batch_size=2)


torch.manual_seed(0)
config = SegformerConfig(num_labels=10, hidden_sizes=[8, 16, 24, 32], decoder_hidden_size=32, depths=[1, 1, 1, 1])
lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["decode_head"])
model = get_peft_model(SegformerForSemanticSegmentation(config), lora)
cawa = cf.CAWA(model, 10, ignore_index=255, metrics=True)  # (+) after get_peft_model
optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=5e-3)
train_loader, val_loader = loader("train", 8), loader("val", 4)

for epoch in range(2):
    model.train()
    for images, labels in train_loader:
        model(pixel_values=images)  # without labels, with which it computes a loss of its own
        loss = cawa.loss(labels)  # (+)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    model.eval()
    for images, labels in val_loader:
        with torch.no_grad():
            model(pixel_values=images)
        cawa.observe(labels)  # (+)
    cawa.step()  # (+)
    print(f"epoch {epoch}: loss {loss.item():.3f}, mIoU {cawa.weights.metrics.miou:.3f}")
