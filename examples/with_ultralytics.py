"""Ultralytics with adaptive class weights: only the lines marked (+) are new.

pip install "cawa_fast[ultralytics,train]" && python examples/with_ultralytics.py
"""

import tempfile
from pathlib import Path

from PIL import Image
from ultralytics import YOLO

from cawa_fast.integrations.ultralytics import CawaTrainer  # (+)
from cawa_fast.recipes.datasets.street.dataset import StreetDataset

with tempfile.TemporaryDirectory() as folder:
    for split, length in (("train", 8), ("val", 4)):  # drawn street scenes, as Ultralytics reads them
        scenes = StreetDataset(split, length=length, size=(128, 128))
        for index in range(length):
            for kind, picture in zip(("images", "masks"), scenes.read(index), strict=True):
                path = Path(folder, kind, split, f"{index}.png")
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(path)
    names = "".join(f"  {number}: {name}\n" for number, name in enumerate(StreetDataset.class_names))
    data = Path(folder, "data.yaml")
    data.write_text(f"path: {folder}\ntrain: images/train\nval: images/val\nmasks_dir: masks\nnames:\n{names}")

    model = YOLO("yolo26n-sem.yaml")
    model.train(
        data=str(data),
        trainer=CawaTrainer,  # (+) with settings: class MyTrainer(CawaTrainer): cawa_options = {"delta": 0.5}
        epochs=2,
        imgsz=128,
        batch=2,
        project=folder,
        plots=False,
        device="cpu",
    )

trainer = model.trainer
losses = {name: round(float(value), 3) for name, value in trainer.tloss.items()}
print(f"loss {losses}, class weights {trainer.cawa.weight.tolist()}")
