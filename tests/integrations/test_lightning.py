"""CawaCallback of Lightning: what counts, checkpoints, processes, logs and errors."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import cawa_fast as cf
from tests.support.frameworks import needs

needs("lightning", "lightning")

from tests.support.lightning_module import CLASSES, L, Module, integration, loader, network, trainer
from tests.support.scenes import scenes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]

CawaCallback = integration.CawaCallback
PIXELS = sum(int((labels != 255).sum()) for _, labels in scenes(5))


def callback(**options: Any) -> Any:
    return CawaCallback(CLASSES, ignore_index=255, metrics=True, **options)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    assert a.keys() == b.keys()
    return all(torch.equal(value.float().nan_to_num(-1), b[name].float().nan_to_num(-1)) for name, value in a.items())


def test_only_the_validation_of_a_fit_counts(tmp_path: Path) -> None:
    """Not the sanity check, validate, test and predict; ``validate`` has the metrics all the same."""
    module, cawa = Module(), callback()
    keys = list(module.state_dict())
    run = trainer(tmp_path, cawa, num_sanity_val_steps=2)
    run.predict(module, loader())
    run.fit(module, loader(), loader(5))
    assert [sum(record["pixels"]) for record in cawa.cawa.weights.history] == [PIXELS] * 2
    assert list(module.state_dict()) == keys
    state = {name: value.clone() for name, value in cawa.cawa.state_dict().items()}
    fitted = dict(run.callback_metrics)
    run.predict(module, loader())
    after = run.validate(module, loader(5), verbose=False)[0]
    assert same(state, cawa.cawa.state_dict())
    assert after["val_miou"] == pytest.approx(fitted["val_miou"].item())
    matrix, losses = torch.zeros(CLASSES, CLASSES, dtype=torch.int64), []
    for images, labels in loader(5):
        with torch.no_grad():
            logits = F.interpolate(module.net.eval()(images), labels.shape[1:], mode="bilinear", align_corners=False)
        matrix += cf.functional.confusion_matrix(logits, labels, ignore_index=255)
        losses.append(F.cross_entropy(logits, labels, ignore_index=255).item() * len(labels))
    assert after["val_miou"] == pytest.approx(cf.segmentation_metrics(matrix).miou)
    assert after["val_loss"] == pytest.approx(sum(losses) / 5, rel=1e-5)


@pytest.mark.parametrize(
    "options", [{}, {"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}], ids=["plain", "accumulated", "bf16"]
)
def test_training_is_that_of_a_loop(tmp_path: Path, options: dict[str, Any]) -> None:
    """The loss of each batch is weighted by the last validation, and accumulates as Lightning's own does."""
    module, cawa = Module(), callback()
    run = trainer(tmp_path, cawa, **options)
    run.fit(module, loader(), loader(5))

    net, bf16 = network(), "precision" in options
    steps = options.get("accumulate_grad_batches", 1)
    expected = cf.CAWA(net, CLASSES, ignore_index=255)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        net.train()
        for number, (images, labels) in enumerate(loader()):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                net(images)
                loss = expected.loss(labels) / steps
            loss.backward()
            if (number + 1) % steps == 0 or number == 2:
                optimizer.step()
                optimizer.zero_grad()
        net.eval()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            for images, labels in loader(5):
                net(images)
                expected.observe(labels)
        expected.step()
    torch.testing.assert_close(cawa.cawa.weight, expected.weight, rtol=1e-5, atol=1e-6)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(module.net.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    assert (expected.weight - 1).abs().max() > 0.1


def test_a_resumed_run_has_the_same_bits(tmp_path: Path) -> None:
    options = {"enable_checkpointing": True, "max_epochs": 3}
    whole, cawa = Module(), callback(ratio="smoothed")
    best = L.pytorch.callbacks.ModelCheckpoint(tmp_path, "{epoch}", monitor="val_miou", mode="max", save_top_k=-1)
    trainer(tmp_path, cawa, best, **options).fit(whole, loader(), loader(5))
    path = tmp_path / "epoch=0.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    assert not [name for name in checkpoint["state_dict"] if "cawa" in name]
    module, resumed = Module(), callback(ratio="smoothed")
    trainer(tmp_path, resumed, L.pytorch.callbacks.ModelCheckpoint(tmp_path / "b"), **options).fit(
        module, loader(), loader(5), ckpt_path=str(path)
    )
    assert len(resumed.cawa.weights.history) == 3
    assert same(cawa.cawa.state_dict(), resumed.cawa.state_dict())
    without = tmp_path / "without.ckpt"
    checkpoint["callbacks"].pop(cawa.state_key)
    torch.save(checkpoint, without)
    with pytest.raises(ValueError, match=r"without.ckpt was made without this callback, and has no class weights"):
        trainer(tmp_path, callback(), max_epochs=3).fit(Module(), loader(), loader(5), ckpt_path=str(without))
    with pytest.raises(ValueError, match="the checkpoint does not fit this CAWA: Error"):
        trainer(tmp_path, callback(momentum=0.5), max_epochs=3).fit(Module(), loader(), ckpt_path=str(path))


def test_values_by_class_go_to_any_logger(tmp_path: Path) -> None:
    logger = L.pytorch.loggers.CSVLogger(tmp_path)
    cawa = callback(class_names=[f"class{number}" for number in range(CLASSES)])
    trainer(tmp_path, cawa, logger=logger, max_epochs=1, log_every_n_steps=1).fit(Module(), loader(), loader(5))
    header, *rows = (line.split(",") for line in Path(logger.log_dir, "metrics.csv").read_text().splitlines())
    logged = {name: float(value) for row in rows for name, value in zip(header, row, strict=True) if value}
    for kind in ("weight", "csps", "iou"):
        for c, value in enumerate(getattr(cawa.cawa.weights, kind).tolist()):
            assert logged.get(f"cawa/{kind}/class{c}") == (pytest.approx(value) if value == value else None)
    assert "val_miou" in logged
    assert "val_iou/class0" in logged


def test_two_processes(tmp_path: Path) -> None:
    """With DDP, a static graph and FSDP, both have the same weights, and count each of 5 images once."""
    script = Path(__file__).parents[1] / "support" / "lightning_module.py"
    source = str(Path(cf.__file__).parents[1])
    env = os.environ | {"PYTHONPATH": f"{source}:{os.environ.get('PYTHONPATH', '')}", "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launch, str(script), str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    results = {path.stem: torch.load(path, weights_only=True) for path in sorted(tmp_path.glob("*.pt"))}
    assert list(results) == [f"{name}-{rank}" for name in ("ddp", "fsdp", "static") for rank in range(2)]
    first = results["ddp-0"]
    assert same(results["fsdp-0"]["weights"], results["fsdp-1"]["weights"])
    for name, other in results.items():
        if name.startswith("fsdp"):  # whose gradients are summed in another order
            torch.testing.assert_close(other["weights"]["weight"], first["weights"]["weight"], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(other["net"], first["net"], rtol=1e-4, atol=1e-6)
        else:
            assert same(first["weights"], other["weights"])
            assert same(first["net"], other["net"])
        assert [sum(record["pixels"]) for record in other["history"]] == [PIXELS] * 2
        assert first["miou"] == pytest.approx(other["miou"])


class Configured(Module):
    """Makes its network late, and passes its logits."""

    def __init__(self) -> None:
        L.LightningModule.__init__(self)

    def configure_model(self) -> None:
        self.net = network()


class Passes(Module):
    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return self.cawa.loss(batch["y"], logits=self(batch["x"]))

    def validation_step(self, batch: Any, index: int, dataloader_idx: int = 0) -> Any:
        return {"logits": self(batch["x"])}


class Runs(Module):
    def validation_step(self, batch: Any, index: int, dataloader_idx: int = 0) -> None:
        self(batch[0])


class Silent(Module):
    def validation_step(self, batch: Any, index: int) -> None: ...


def test_other_modules_and_loaders(tmp_path: Path) -> None:
    """A network that configure_model makes; no network to listen to; several loaders, of which one scores."""
    late = callback()
    trainer(tmp_path, late, max_epochs=1).fit(Configured(), loader(), loader(5))
    assert len(late.cawa.weights.history) == 1
    passed = callback(network=None, target="y")
    named = [torch.utils.data.DataLoader([{"x": image, "y": label} for image, label in scenes(n)], 2) for n in (6, 5)]
    trainer(tmp_path, passed, max_epochs=1).fit(Passes(), *named)
    several = callback(score_on=1)
    trainer(tmp_path, several, max_epochs=1).fit(Runs(), loader(), [loader(3), loader(5)])
    for cawa in (late, passed, several):
        assert [sum(record["pixels"]) for record in cawa.cawa.weights.history] == [PIXELS]
    with pytest.raises(ValueError, match=r"there are 2 validation loaders; pass score_on=0, or another number"):
        trainer(tmp_path, callback()).fit(Module(), loader(), [loader(3), loader(5)])


def test_without_validation_a_warning_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer(tmp_path, callback(), max_epochs=1).fit(Module(), loader())
    assert "CawaCallback: without a validation loader the class weights stay as they are; pass one" in caplog.text


def test_errors_name_what_does_not_fit(tmp_path: Path) -> None:
    message = (
        "CawaCallback: Module has no network 'model'; pass network= with the name of the attribute that holds it; "
    )
    with pytest.raises(ValueError, match=re.escape(message + "there are 'net'")):
        trainer(tmp_path, callback(network="model")).fit(Module(), loader())
    with pytest.raises(TypeError, match="CawaCallback: dleta is no argument of CAWA"):
        callback(dleta=0.5)
    with pytest.raises(ValueError, match=r"delta must lie in \[0, 1\], got 2"):
        callback(delta=2)
    with pytest.raises(
        TypeError, match="network must be the name of an attribute of the module, or None, got the int 3"
    ):
        callback(network=3)
    with pytest.raises(ValueError, match=r"target='labels' does not lead to the labels in a batch, the list"):
        trainer(tmp_path, callback(target="labels"), max_epochs=1).fit(Module(), loader(), loader(5))
    with pytest.raises(ValueError, match="with network=None, validation_step must return the logits"):
        trainer(tmp_path, callback(network=None), max_epochs=1).validate(Silent(), loader(5))
    module = Module()
    module.cawa = torch.nn.Identity()
    with pytest.raises(ValueError, match="Module has an attribute 'cawa' of its own, where the callback puts"):
        trainer(tmp_path, callback()).fit(module, loader())


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(integration).failed == 0
