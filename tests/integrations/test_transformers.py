"""CawaTrainer: the loss, evaluations, checkpoints, and what is refused."""

from __future__ import annotations

import doctest
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cawa_fast as cf
from tests.support.frameworks import needs

needs("transformers", "transformers", "accelerate")

from tests.support.hf_networks import OPTIONS, integration, tiny, transformers, without_randomness
from tests.support.scenes import CLASSES
from tests.support.train_transformers import WEIGHT, arguments, cawa_of, data, trained

CawaCallback, CawaMixin, CawaTrainer = integration.CawaCallback, integration.CawaMixin, integration.CawaTrainer
SCENES = data(6)
SQUARE = [
    {"pixel_values": item["pixel_values"].repeat(1, 2, 1), "labels": item["labels"].repeat(2, 1)} for item in SCENES
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]


def segformer() -> nn.Module:
    return tiny("Segformer", CLASSES)


def trainer(model: nn.Module, folder: Path, *, cawa: Any = None, **options: Any) -> Any:
    own = {name: options.pop(name) for name in ("score_on", "auxiliary_weight", "per_class") if name in options}
    own |= {name: options.pop(name) for name in ("train_dataset", "eval_dataset", "callbacks") if name in options}
    own = {"train_dataset": SCENES, "eval_dataset": SCENES, "per_class": False} | own
    settings = {"per_device_train_batch_size": 2, "logging_strategy": "epoch"} | options
    return CawaTrainer(model, arguments(folder, **settings), cawa=cawa or cawa_of(model), **own)


def logged(run: Any, *keys: str) -> list[float]:
    return [record[key] for record in run.state.log_history if keys[0] in record for key in keys]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    assert a.keys() == b.keys()
    return all(torch.equal(value.float().nan_to_num(-1), b[name].float().nan_to_num(-1)) for name, value in a.items())


# ------------------------------------------------------------------------------------------------------------ training


def spread(head: nn.Module, inputs: Any, output: torch.Tensor) -> None:
    """Without this, a new network's logits are almost equal, and so would be the losses of other resizes."""
    head.weight.data /= output.std()


@pytest.mark.parametrize("name", OPTIONS)
def test_networks(name: str, tmp_path: Path) -> None:
    """With equal weights the loss is the network's own, auxiliary head included; a resumed run has the same bits."""
    model = without_randomness(tiny(name, CLASSES)).train()
    heads = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.out_channels == CLASSES]
    hooks = [head.register_forward_hook(spread) for head in heads]
    model(SQUARE[0]["pixel_values"][None])
    for hook in hooks:
        hook.remove()
    first = trainer(model, tmp_path, cawa=cf.CAWA(model, CLASSES, ignore_index=255))
    batch = {key: torch.stack([item[key] for item in SQUARE[:3]]) for key in SQUARE[0]}
    first.callback_handler.on_train_begin(first.args, first.state, first.control)
    loss = first.compute_loss(model, dict(batch))
    loss.backward()
    assert [n for n, parameter in model.named_parameters() if parameter.grad is None and "auxiliary" in n] == []
    first.callback_handler.on_train_end(first.args, first.state, first.control)
    torch.testing.assert_close(loss, model(**batch).loss, rtol=1e-5, atol=2e-6)

    options = {"train_dataset": SQUARE, "eval_dataset": SQUARE[:3], "save_strategy": "epoch", "optim": "adamw_torch"}
    options |= {"learning_rate": 1e-3, "gradient_accumulation_steps": 2}
    whole = trainer(tiny(name, CLASSES), tmp_path, **options)
    whole.train()
    assert (tmp_path / "checkpoint-2" / "cawa.pt").is_file()
    shutil.rmtree(tmp_path / "checkpoint-4")
    resumed = trainer(tiny(name, CLASSES), tmp_path, **options)
    resumed.train(resume_from_checkpoint=True)
    assert len(resumed.cawa.weights.history) == 2
    assert same(whole.cawa.state_dict(), resumed.cawa.state_dict())
    assert same(whole.model.state_dict(), resumed.model.state_dict())
    assert whole.state.log_history[-2]["eval_miou"] == resumed.state.log_history[-2]["eval_miou"]


def test_accumulation_and_processes(tmp_path: Path) -> None:
    """Each step's loss and gradient, and the weights, are those of a plain loop over the whole batch."""
    runs = ["UperNet:3:1", "UperNet:1:3:find", "UperNet:3:1:static", "UperNet:1:3:own"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = str(Path(__file__).parents[1] / "support" / "train_transformers.py")
    env = environment()
    done = subprocess.run(
        [*command, script, str(tmp_path), *runs], env=env, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "results.json").read_text())
    results |= {
        f"{batch} times {steps}": trained(tmp_path, "UperNet", batch, steps) for batch, steps in ((6, 1), (2, 3))
    }

    expected = plain_loop(WEIGHT)
    for result in results.values():
        steps = pairs(result)
        assert len(steps) == 4
        torch.testing.assert_close(torch.tensor(steps[:2]), torch.tensor(expected), rtol=2e-5, atol=1e-5)
        torch.testing.assert_close(torch.tensor(steps), torch.tensor(pairs(results["6 times 1"])))
        for record, other in zip(result["history"], results["6 times 1"]["history"], strict=True):
            assert record["pixels"] == other["pixels"]  # 5 images, which are filled up to 6 or 8
            assert record["weight"] == pytest.approx(other["weight"], rel=1e-4)
        assert sum(result["history"][0]["pixels"]) == sum(int((item["labels"] != 255).sum()) for item in data(5))
        losses = [record["eval_loss"] for record in result["log"] if "eval_loss" in record]
        assert losses == pytest.approx([2.21, 2.15], rel=0.01)  # a mean of means of batches, as always in a Trainer
        assert result["steps"] == 2  # the prediction counted nothing
        assert result["counts"] == 0
        miou = [record["eval_miou"] for record in result["log"] if "eval_miou" in record][-1]
        assert result["predicted"]["test_miou"] == pytest.approx(miou)


def pairs(result: dict[str, Any]) -> list[tuple[float, float]]:
    return [(record["loss"], record["grad_norm"]) for record in result["log"] if "loss" in record]


def plain_loop(weight: torch.Tensor) -> list[list[float]]:
    """Loss and gradient norm of the first two steps in plain PyTorch, with the auxiliary head."""
    model = without_randomness(tiny("UperNet", CLASSES)).train()
    items = data(12)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    heads: list[torch.Tensor] = []
    model.auxiliary_head.register_forward_hook(lambda module, inputs, output: heads.append(output))
    steps = []
    for begin in (0, 6):
        batch = items[begin : begin + 6]
        images, labels = (torch.stack([item[key] for item in batch]) for key in ("pixel_values", "labels"))
        logits = model(images).logits
        loss = F.cross_entropy(logits, labels, weight, ignore_index=255)
        resized = F.interpolate(heads.pop(), labels.shape[1:], mode="bilinear", align_corners=False)
        loss = loss + 0.4 * F.cross_entropy(resized, labels, weight, ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        steps.append([loss.item(), norm.item()])
    return steps


def environment() -> dict[str, str]:
    source = str(Path(cf.__file__).parents[1])
    return os.environ | {"PYTHONPATH": f"{source}:{os.environ.get('PYTHONPATH', '')}", "OMP_NUM_THREADS": "1"}


# ---------------------------------------------------------------------------------------------------------- evaluations


def test_only_evaluations_of_the_training_count(tmp_path: Path) -> None:
    """Not eval_on_start, predict, other datasets, nor evaluations before and after; metrics are there all the same."""
    model = segformer()
    run = trainer(model, tmp_path, eval_on_start=True, max_steps=2, eval_strategy="steps", eval_steps=1)
    start = {name: value.clone() for name, value in run.cawa.state_dict().items()}
    before = run.evaluate()
    run.predict(SCENES)
    assert same(start, run.cawa.state_dict())

    class Predicts(transformers.TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            run.predict(SCENES[:2])
            run.evaluate(SCENES[:2], metric_key_prefix="other")

    run.add_callback(Predicts())
    run.train()
    labelled = [sum(record["pixels"]) for record in run.cawa.weights.history]
    assert labelled == [sum(int((item["labels"] != 255).sum()) for item in SCENES)] * 2
    state = {name: value.clone() for name, value in run.cawa.state_dict().items()}
    after = run.evaluate()
    assert same(state, run.cawa.state_dict())
    assert after["eval_miou"] == [record for record in run.state.log_history if "eval_miou" in record][-1]["eval_miou"]

    # the loss is unweighted: with the weights of before, which are not equal, and with those of after
    matrix = torch.zeros(CLASSES, CLASSES, dtype=torch.int64)
    losses = []
    for begin in range(0, 6, 2):
        images, labels = (torch.stack([item[key] for item in SCENES[begin : begin + 2]]) for key in SCENES[0])
        with torch.no_grad():
            logits = F.interpolate(model.eval()(images).logits, labels.shape[1:], mode="bilinear", align_corners=False)
        losses.append(F.cross_entropy(logits, labels, ignore_index=255).item())
        matrix += cf.functional.confusion_matrix(logits, labels, ignore_index=255)
    assert after["eval_loss"] == pytest.approx(sum(losses) / 3, rel=1e-5)
    assert after["eval_miou"] == pytest.approx(cf.segmentation_metrics(matrix).miou)
    assert before["eval_loss"] != pytest.approx(after["eval_loss"])


def test_values_by_class_are_logged(tmp_path: Path) -> None:
    model = segformer()
    cawa = cf.CAWA(model, CLASSES, ignore_index=255, class_names=[f"class{number}" for number in range(CLASSES)])
    run = trainer(model, tmp_path, cawa=cawa, per_class=True, num_train_epochs=1)
    seen: list[dict[str, float]] = []
    log = {"on_log": lambda self, *args, logs, **kw: seen.append(dict(logs))}
    run.add_callback(type("Sees", (transformers.TrainerCallback,), log)())
    run.train()
    logged = next(logs for logs in seen if "eval_loss" in logs)
    for kind in ("weight", "csps", "iou"):
        values = getattr(cawa.weights, kind).tolist()
        expected = {f"eval_cawa/{kind}/class{c}": value for c, value in enumerate(values) if value == value}
        assert {name: value for name, value in logged.items() if f"/{kind}/" in name} == expected
        assert expected
    assert not [name for name in logged if "miou" in name]  # needs CAWA(metrics=True)


def test_several_datasets(tmp_path: Path) -> None:
    sets = {"near": SCENES[:4], "far": SCENES[3:]}
    run = trainer(segformer(), tmp_path, eval_dataset=sets, num_train_epochs=1)
    message = (
        "CawaTrainer: eval_dataset has the datasets 'near', 'far'; pass score_on='near', or another of them, to say"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        run.train()
    run = trainer(segformer(), tmp_path, eval_dataset=sets, score_on="far", num_train_epochs=1)
    run.train()
    labelled = sum(int((item["labels"] != 255).sum()) for item in sets["far"])
    assert [sum(record["pixels"]) for record in run.cawa.weights.history] == [labelled]
    assert all("eval_near_miou" in r or "eval_far_miou" in r for r in run.state.log_history if "eval_near_loss" in r)


# -------------------------------------------------------------------------------------------- other ways to train


def test_a_trainer_of_your_own(tmp_path: Path) -> None:
    """The callback and its loss give the bits of CawaTrainer; so does the mixin; predictions count nothing."""
    ends = []
    for make in ("trainer", "mixin", "callback"):
        model = segformer()
        args = arguments(tmp_path / make, per_device_train_batch_size=2, save_strategy="epoch")
        options: dict[str, Any] = {"train_dataset": SCENES, "eval_dataset": SCENES[:5]}
        cawa = cawa_of(model)
        if make == "callback":
            callback = CawaCallback(cawa, per_class=False)
            options |= {"compute_loss_func": callback.compute_loss, "callbacks": [callback]}
            run = transformers.Trainer(model, args, **options)
        else:
            own = type("Own", (transformers.Trainer,), {})
            kind = CawaTrainer if make == "trainer" else type("Mixed", (CawaMixin, own), {})
            run = kind(model, args, cawa=cawa, per_class=False, **options)
        run.evaluate()
        run.train()
        run.predict(SCENES)
        assert int(cawa.weights.counts.sum()) == 0
        assert len(cawa.weights.history) == 2
        ends.append((model.state_dict(), cawa.state_dict()))
        assert "eval_miou" in run.evaluate()
    for model_state, cawa_state in ends[1:]:
        assert same(ends[0][0], model_state)
        assert same(ends[0][1], cawa_state)

    model = segformer()
    callback = CawaCallback(cawa_of(model))
    options |= {"compute_loss_func": callback.compute_loss, "callbacks": [callback]}
    shutil.rmtree(tmp_path / "callback" / "checkpoint-6")
    run = transformers.Trainer(model, args, **options)
    run.train(resume_from_checkpoint=True)
    assert len(callback.cawa.weights.history) == 2
    args = arguments(tmp_path, gradient_accumulation_steps=2)
    message = "with gradient_accumulation_steps=2 the loss must be divided by the weights of all accumulated batches"
    with pytest.raises(RuntimeError, match=re.escape(message)):
        transformers.Trainer(model, args, **options).train()


class Returns(nn.Module):
    """A network without a 1x1 classifier, which returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, CLASSES, 3, padding=1)
        )

    def forward(self, pixel_values: torch.Tensor, labels: Any = None) -> dict[str, torch.Tensor]:
        return {"logits": self.layers(pixel_values)}


def test_a_network_of_your_own_without_a_classifier_to_listen_to(tmp_path: Path) -> None:
    model = Returns()
    cawa = cf.CAWA(None, CLASSES, ignore_index=255, metrics=True)
    run = trainer(model, tmp_path, cawa=cawa, gradient_accumulation_steps=3)
    run.train()
    assert len(cawa.weights.history) == 2
    assert (cawa.weight - 1).abs().max() > 0.1


def test_a_callback_alone_and_several_datasets(tmp_path: Path) -> None:
    sets = {"near": SCENES[:4], "far": SCENES[3:]}
    for score_on in (None, "far"):
        model = segformer()
        callback = CawaCallback(cawa_of(model), score_on=score_on)
        args = arguments(tmp_path, per_device_train_batch_size=2, num_train_epochs=1)
        options = {"compute_loss_func": callback.compute_loss, "callbacks": [callback]}
        run = transformers.Trainer(model, args, train_dataset=SCENES, eval_dataset=sets, **options)
        if score_on is None:
            with pytest.raises(
                ValueError, match="there are several evaluation datasets; pass score_on='near', or anoth"
            ):
                run.train()
        else:
            run.train()
            labelled = sum(int((item["labels"] != 255).sum()) for item in sets["far"])
            assert [sum(record["pixels"]) for record in callback.cawa.weights.history] == [labelled]


def test_without_evaluations_a_warning_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer(segformer(), tmp_path, eval_strategy="no", max_steps=1).train()
    assert "CawaTrainer: without evaluations the class weights stay as they are; set eval_strategy" in caplog.text


def test_model_init_makes_a_cawa_for_each_network(tmp_path: Path) -> None:
    args = arguments(tmp_path, per_device_train_batch_size=3, num_train_epochs=1)
    options: dict[str, Any] = {"model_init": segformer, "train_dataset": SCENES, "eval_dataset": SCENES}
    run = CawaTrainer(args=args, cawa=cawa_of, **options)
    ends = []
    for _ in range(2):
        run.train()
        ends.append(run.cawa.state_dict())
        assert len(run.cawa.weights.history) == 1
    assert same(*ends)
    with pytest.raises(ValueError, match=r"pass a function, cawa=lambda model: CAWA\(model, num_classes\)"):
        CawaTrainer(args=args, cawa=cf.CAWA(None, CLASSES), **options)


def test_compiled(tmp_path: Path) -> None:
    run = trainer(segformer(), tmp_path, torch_compile=True, torch_compile_backend="eager", num_train_epochs=2)
    run.train()
    plain = trainer(segformer(), tmp_path, num_train_epochs=2)
    plain.train()
    assert logged(run, "loss", "grad_norm") == pytest.approx(logged(plain, "loss", "grad_norm"), rel=1e-4)
    assert logged(run, "eval_loss", "eval_miou") == pytest.approx(logged(plain, "eval_loss", "eval_miou"), rel=1e-4)


def test_bfloat16(tmp_path: Path) -> None:
    run = trainer(segformer(), tmp_path, bf16=True)
    run.train()
    plain = trainer(segformer(), tmp_path)
    plain.train()
    for key in ("loss", "eval_loss"):
        assert logged(run, key) == pytest.approx(logged(plain, key), rel=2e-2)
    assert run.cawa.weight.dtype == torch.float32


# ------------------------------------------------------------------------------------------------------------- errors


def test_networks_that_predict_masks_are_refused(tmp_path: Path) -> None:
    class MasksModel(nn.Module):
        def forward(self, pixel_values: torch.Tensor, mask_labels: Any = None, class_labels: Any = None) -> None: ...

    mask2former = transformers.Mask2FormerForUniversalSegmentation
    model = mask2former.__new__(mask2former)  # its constructor takes a second
    nn.Module.__init__(model)
    callback = CawaCallback(cf.CAWA(None, CLASSES))
    callback.on_init_end(arguments(tmp_path), None, None)
    for network in (MasksModel(), model):
        message = f"{type(network).__name__} predicts a set of masks .* use cawa.weight in a loss"
        with pytest.raises(ValueError, match=message):
            callback.check(network)


def test_errors_name_what_does_not_fit(tmp_path: Path) -> None:
    model = segformer()
    with pytest.raises(TypeError, match=r"CawaTrainer: cawa must be a CAWA, got None; pass cawa=CAWA\(model, num_cl"):
        CawaTrainer(model, arguments(tmp_path), cawa=lambda model: None)
    with pytest.raises(ValueError, match=r"cawa listens to another SegformerForSemanticSegmentation than the model"):
        trainer(segformer(), tmp_path, cawa=cawa_of(model))
    with pytest.raises(ValueError, match=r"CAWA\(reduction='none'\) has no single loss; use another reduction"):
        trainer(model, tmp_path, cawa=cf.CAWA(model, CLASSES, reduction="none"))
    with pytest.raises(ValueError, match=r"pass CAWA\(\.\.\., label_smoothing=0\.1\) instead"):
        trainer(model, tmp_path, label_smoothing_factor=0.1)
    with pytest.raises(ValueError, match="auxiliary_weight must be at least 0, got -1"):
        trainer(model, tmp_path, auxiliary_weight=-1)
    with pytest.raises(ValueError, match="the loss is CAWA's; leave out compute_loss_func="):
        CawaTrainer(model, arguments(tmp_path), cawa=cawa_of(model), compute_loss_func=print)
    with pytest.raises(ValueError, match=r"auxiliary_weight=0\.3: SegformerForSemanticSegmentation has no auxiliary_h"):
        trainer(model, tmp_path, auxiliary_weight=0.3).train()
    unlabelled = [{"pixel_values": item["pixel_values"]} for item in SCENES]
    with pytest.raises(
        ValueError, match=r"the batch has no 'labels'; the dataset must return a dict with pixel_values"
    ):
        trainer(model, tmp_path, train_dataset=unlabelled).train()


def test_checkpoints_that_do_not_fit(tmp_path: Path) -> None:
    run = trainer(segformer(), tmp_path, save_strategy="epoch", num_train_epochs=1)
    run.train()
    model = segformer()
    other = trainer(model, tmp_path, cawa=cf.CAWA(model, CLASSES, momentum=0.5), num_train_epochs=2)
    with pytest.raises(ValueError, match=r"checkpoint-3/cawa.pt does not fit this CAWA: Error.*\n.*Missing key"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    (tmp_path / "checkpoint-3" / "cawa.pt").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"checkpoint-3/cawa.pt does not exist: the checkpoint was made without CAWA"
    ):
        trainer(segformer(), tmp_path, num_train_epochs=2).train(resume_from_checkpoint=True)


def test_examples_in_docstrings() -> None:
    from cawa_fast.integrations import _transformers_callback

    for module in (integration, _transformers_callback):
        assert doctest.testmod(module).failed == 0
