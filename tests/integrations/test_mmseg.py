"""CawaCrossEntropy and CawaHook in mmengine's Runner: losses, windows, checkpoints, processes and errors."""

from __future__ import annotations

import doctest
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import cawa_fast as cf
from tests.support.frameworks import folder, needs
from tests.support.scenes import CLASSES, scenes

needs("mmseg", "mmseg", "mmengine", "mmcv")

from tests.support.mmseg_runner import MODELS, UNPICKLE, integration, loss_module, runner, sample

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _checkpoints_may_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in UNPICKLE.items():
        monkeypatch.setenv(name, value)


PIXELS = sum(int((labels != 255).sum()) for _, labels in scenes(5))
SLIDE = {"model.test_cfg": {"mode": "slide", "crop_size": (32, 32), "stride": (16, 16)}}


def hook(run: Any) -> Any:
    return next(hook for hook in run.hooks if isinstance(hook, integration.CawaHook))


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    assert a.keys() == b.keys()
    return all(torch.equal(value.float().nan_to_num(-1), b[name].float().nan_to_num(-1)) for name, value in a.items())


def full(logits: torch.Tensor, size: tuple[int, ...] = (32, 64)) -> torch.Tensor:
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def test_training_is_that_of_a_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a config, with an auxiliary head and windows in the validation: network and weights of a plain loop.

    In training nothing is resized.
    """
    run = runner(tmp_path, **SLIDE)
    net = MODELS.build(run.cfg.model)
    net.load_state_dict(run.model.state_dict())
    heads = ((net.decode_head, 1.0), (net.auxiliary_head, 0.4))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    expected = cf.AdaptiveClassWeights(CLASSES, ignore_index=255)
    data = scenes(6)
    for _ in range(2):
        for first in range(0, 6, 2):
            images, labels = map(torch.stack, zip(*data[first : first + 2], strict=True))
            features = net.backbone((images * 255).to(torch.uint8) / 255)
            for head, factor in heads:
                logits = full(head(features))
                loss = factor * F.cross_entropy(logits, labels, expected.weight.clone(), ignore_index=255)
                loss.backward(retain_graph=True)
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            for image, label in scenes(5):
                windows = torch.zeros(1, CLASSES, 32, 64)
                for left in (0, 16, 32):
                    window = (image[None, :, :, left : left + 32] * 255).to(torch.uint8) / 255
                    windows[..., left : left + 32] += full(net.decode_head(net.backbone(window)), (32, 32))
                windows[..., 16:48] /= 2
                maps = (windows - net.decode_head.conv_seg.bias.view(-1, 1, 1)).relu()
                expected.observe(maps, label[None])
        expected.step()
    resized: list[bool] = []
    interpolate = F.interpolate

    def spy(input: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        resized.append(input.requires_grad)
        return interpolate(input, *arguments, **options)

    monkeypatch.setattr(F, "interpolate", spy)
    run.train()
    assert resized
    assert not any(resized)
    found = hook(run).cawa.weights
    assert [sum(record["pixels"]) for record in found.history] == [PIXELS] * 2
    torch.testing.assert_close(found.weight, expected.weight, rtol=1e-5, atol=1e-6)
    assert (expected.weight - 1).abs().max() > 0.1
    for name, value in net.state_dict().items():
        torch.testing.assert_close(run.model.state_dict()[name], value, rtol=1e-4, atol=1e-6)
    logged = [json.loads(line) for line in next(tmp_path.glob("*/vis_data/scalars.json")).read_text().splitlines()]
    weights = [line for line in logged if "cawa/weight/class3" in line]
    assert weights[-1]["cawa/weight/class3"] == pytest.approx(found.weight[3].item())
    before = {name: value.clone() for name, value in hook(run).cawa.state_dict().items()}
    run.val()
    assert same(before, hook(run).cawa.state_dict())


@pytest.mark.parametrize("sampler", [None, {"type": "mmseg.OHEMPixelSampler", "thresh": 0.7, "min_kept": 500}])
def test_with_weights_of_1_the_loss_is_that_of_mmseg(sampler: Any) -> None:
    """Value and gradient of CrossEntropyLoss, and the accuracy, for both means, all heads and with a sampler."""
    data = [sample(*pair)["data_samples"] for pair in scenes(4)[2:]]
    logits = torch.randn(2, 8, 8, 16, generator=torch.Generator().manual_seed(0))
    base = {"type": "mmseg.FCNHead", "num_convs": 0, "concat_input": False, "in_channels": 8, "channels": 8}
    base |= {"num_classes": CLASSES, "dropout_ratio": 0.0, "sampler": sampler}
    for corners in (False, True):
        for reduction, theirs in (("pixel_mean", False), ("valid_mean", True)):
            results = []
            dice = {"type": "mmseg.DiceLoss", "loss_name": "loss_dice", "ignore_index": None}
            for own in (
                {"type": "mmseg.CrossEntropyLoss", "avg_non_ignore": theirs, "loss_weight": 0.5},
                {"type": "mmseg.CawaCrossEntropy", "reduction": reduction, "loss_weight": 0.5},
            ):
                torch.manual_seed(0)
                losses = own if sampler else [own, {**dice, "ignore_index": 255}]
                head = MODELS.build({**base, "loss_decode": losses, "align_corners": corners})
                loss_module.connect(head, cf.CAWA(None, CLASSES, ignore_index=255))
                leaf = logits.clone().requires_grad_()
                found = head.loss([leaf], data, {})
                sum(value for name, value in found.items() if "loss" in name).backward()
                results.append({**found, "gradient": leaf.grad})
            plain, ours = results
            assert plain.keys() == ours.keys()
            for name, value in plain.items():
                torch.testing.assert_close(
                    ours[name], value, rtol=2e-5, atol=1e-7, msg=lambda text, name=name: f"{name}: {text}"
                )


def test_a_run_resumed_from_before_the_validation_has_the_same_bits(tmp_path: Path) -> None:
    """mmengine saves first and validates then. By epochs and by iterations, and not without the state."""
    by_iter = {
        "train_cfg": {"type": "IterBasedTrainLoop", "max_iters": 6, "val_interval": 2},
        "default_hooks.checkpoint": {"by_epoch": False, "interval": 1, "save_best": None},
        "train_dataloader.sampler": {"type": "InfiniteSampler", "shuffle": False},
    }
    for name, options, steps in (("epoch_1", {}, 2), ("iter_4", by_iter, 3), ("iter_3", by_iter, 3)):
        whole = runner(tmp_path / name, **options)
        whole.train()
        path = tmp_path / name / f"{name}.pth"
        checkpoint = torch.load(path, weights_only=False)
        assert not [key for key in checkpoint["state_dict"] if "cawa" in key or "weights" in key]
        resumed = runner(tmp_path / name / "b", load_from=str(path), resume=True, **options)
        resumed.train()
        assert len(hook(resumed).cawa.weights.history) == steps
        assert same(hook(whole).cawa.state_dict(), hook(resumed).cawa.state_dict())
        assert same(whole.model.state_dict(), resumed.model.state_dict())
    best = next((tmp_path / "epoch_1").glob("best_mIoU*"))
    assert torch.load(best, weights_only=False)["cawa"]["iter"] == (3 if best.stem.endswith("1") else 6)
    checkpoint = torch.load(tmp_path / "epoch_1" / "epoch_1.pth", weights_only=False)
    del checkpoint["cawa"]
    torch.save(checkpoint, tmp_path / "plain.pth")
    message = "the checkpoint to resume from was made without CawaHook, and has no class weights. To begin"
    with pytest.raises(ValueError, match=message):
        runner(tmp_path / "c", load_from=str(tmp_path / "plain.pth"), resume=True).train()


def test_two_processes_and_onedl(tmp_path: Path) -> None:
    """Under onedl-mmsegmentation, two processes have the same bits and count each of 5 images once."""
    paths = [str(folder(name)) for name in ("onedl", "mmseg") if folder(name).is_dir()]
    if len(paths) < 2:
        pytest.skip("onedl-mmsegmentation is not there; `make setup` installs it")
    source = str(Path(cf.__file__).parents[1])
    env = os.environ | {"PYTHONPATH": ":".join([source, *paths]), "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = str(Path(__file__).parents[1] / "support" / "mmseg_runner.py")
    command = [*launch, script, str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert one["version"] == other["version"] == "1.4.2"
    assert same(one["weights"], other["weights"])
    for result in (one, other):
        assert [sum(record["pixels"]) for record in result["history"]] == [PIXELS] * 2


def test_errors_name_what_does_not_fit(tmp_path: Path) -> None:
    cross_entropy = {"type": "mmseg.CrossEntropyLoss"}
    cases = [
        (
            {"model.decode_head.loss_decode": cross_entropy, "model.auxiliary_head.loss_decode": cross_entropy},
            r"CawaHook: no loss of the model uses the class weights; set model.decode_head.loss_decode=",
        ),
        ({"custom_hooks": []}, r"CawaCrossEntropy: nothing sets the class weights; add custom_hooks = \[dict\("),
        (
            {"model.auxiliary_head.ignore_index": 0},
            "ignore_index is 255 in FCNHead, and 0 in FCNHead; give all heads with CawaCrossEntropy the same",
        ),
        (
            {f"model.{head}.{name}": 1 for head in ("decode_head", "auxiliary_head") for name in ("num_classes",)}
            | {"model.decode_head.threshold": 0.5, "model.auxiliary_head.threshold": 0.5},
            "CawaHook: the network has 1 class, for which there is nothing to weight",
        ),
        ({"custom_hooks": [{"type": "mmseg.CawaHook", "dleta": 1}]}, "CawaHook: dleta is no argument of CAWA"),
        ({"custom_hooks": [{"type": "mmseg.CawaHook", "delta": 2}]}, r"delta must lie in \[0, 1\], got 2"),
        ({"custom_hooks": [{"type": "mmseg.CawaHook", "budget": 0.1}]}, "budget=0.1 has no meaning here; leave it out"),
        (
            {"custom_hooks": [{"type": "mmseg.CawaHook", "ignore_index": 0, "num_classes": CLASSES}]},
            "ignore_index is 255 in model.decode_head, got 0",
        ),
        (
            {"custom_hooks": [{"type": "mmseg.CawaHook", "reduction": "sum"}]},
            "reduction='sum' is set in loss_decode; leave it out here",
        ),
        ({"model.decode_head.loss_decode.use_sigmoid": True}, "use_sigmoid=True is another loss"),
        (
            {"model.decode_head.loss_decode.class_weight": [1.0] * CLASSES},
            "class_weight must be None, since the hook sets the class weights, got the list",
        ),
        (
            {"model.decode_head.loss_decode.avg_non_ignore": False},
            "avg_non_ignore=False needs reduction='pixel_mean', got reduction='mean'",
        ),
        ({"model.decode_head.loss_decode.reduction": "class_mean"}, "reduction must be one of"),
    ]
    for number, (changes, message) in enumerate(cases):
        with pytest.raises(Exception, match=message):
            runner(tmp_path / str(number), **changes).train()


def test_an_absent_mmcv_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in ("mmseg", "mmcv")]:
        monkeypatch.delitem(sys.modules, name)
    for module in (integration, loss_module):
        monkeypatch.delitem(sys.modules, module.__name__)
    monkeypatch.setitem(sys.modules, "mmcv", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"mmsegmentation 1.2 needs an mmcv for your torch: mim install 'mmcv"
    ):
        importlib.import_module(integration.__name__)


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(integration).failed == 0
    assert doctest.testmod(loss_module).failed == 0
