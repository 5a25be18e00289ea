"""Hugging Face Trainer with adaptive class weights: only the lines marked (+) are new.

pip install "cawa_fast[transformers,train]" && python examples/with_trainer.py
"""

import tempfile

import torch
from transformers import SegformerConfig, SegformerForSemanticSegmentation, TrainingArguments

import cawa_fast as cf
from cawa_fast.integrations.transformers import CawaTrainer  # (+)
from cawa_fast.recipes.datasets.street.dataset import StreetDataset


class Scenes(torch.utils.data.Dataset):
    """Drawn street scenes, as a Trainer takes them."""

    def __init__(self, split, length):
        self.scenes = StreetDataset(split, length=length, size=(64, 128))

    def __len__(self):
        return len(self.scenes)

    def __getitem__(self, index):
        image, labels = map(torch.tensor, self.scenes.read(index))
        return {"pixel_values": image.permute(2, 0, 1) / 255, "labels": labels.long()}


torch.manual_seed(0)
config = SegformerConfig(num_labels=10, hidden_sizes=[8, 16, 24, 32], decoder_hidden_size=32, depths=[1, 1, 1, 1])
model = SegformerForSemanticSegmentation(config)
cawa = cf.CAWA(model, 10, ignore_index=255, class_names=StreetDataset.class_names, metrics=True)  # (+)

with tempfile.TemporaryDirectory() as folder:
    args = TrainingArguments(
        folder,
        num_train_epochs=3,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=2e-3,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="miou",  # (+) computed by CAWA, without compute_metrics
        logging_strategy="epoch",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    data = {"train_dataset": Scenes("train", 16), "eval_dataset": Scenes("val", 5)}
    trainer = CawaTrainer(
        model, args, **data, cawa=cawa, per_class=False
    )  # (+) in place of Trainer(model, args, **data)
    trainer.train()
    # a run that was killed: trainer.train(resume_from_checkpoint=True)

metrics = trainer.evaluate()
print(f"loss {metrics['eval_loss']:.3f}, mIoU {metrics['eval_miou']:.3f}, class weights {cawa.weight.tolist()}")
