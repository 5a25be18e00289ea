"""States that other frameworks save and load: shapes that do not change, distributed checkpoints, earlier states."""

from __future__ import annotations

import copy
import json
import math
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cawa_fast as cf

C = 4
OPTIONS: dict[str, Any] = {"momentum": 0.5, "metrics": True, "class_counts": [900, 90, 10, 5], "ratio": "smoothed"}


def batch() -> tuple[Tensor, Tensor]:
    target = torch.randint(0, C - 1, (2, 8, 8), dtype=torch.uint8)  # the last class does not occur: NaN
    return torch.randn(2, C, 4, 4), target


def step(cawa: cf.CAWA, steps: int = 1) -> None:
    for _ in range(steps):
        cawa.due()
        logits, target = batch()
        cawa.observe(target, logits=logits)
        cawa.step()


def trained(steps: int = 2) -> cf.CAWA:
    cawa = cf.CAWA(None, C, every=3, **OPTIONS)
    step(cawa, steps)
    logits, target = batch()
    cawa.observe(target, logits=logits)  # in the middle of a pass
    return cawa


def same(a: cf.CAWA, b: cf.CAWA) -> None:
    """The same state, history and future, to the bit."""
    for _ in range(2):
        first, second = a.state_dict(), b.state_dict()
        assert first.keys() == second.keys()
        for key, value in first.items():
            if key == "weights._extra_state":
                continue  # the history, compared below: JSON does not keep the sign of NaN
            torch.testing.assert_close(value, second[key], rtol=0, atol=0, equal_nan=True, msg=key)
        assert repr(a.weights.history) == repr(b.weights.history)
        for cawa in (a, b):
            torch.manual_seed(5)
            step(cawa)


def in_place(state: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """As a loader that fills the tensors of a fresh module."""
    fresh = cf.CAWA(None, C, every=3, **OPTIONS).state_dict()
    for key, value in fresh.items():
        value.copy_(state[key])
    return fresh


def distributed_checkpoint(state: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    import torch.distributed.checkpoint as dcp

    fresh = {"cawa": cf.CAWA(None, C, every=3, **OPTIONS).state_dict()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process
        dcp.save({"cawa": state}, checkpoint_id=folder / "dcp", no_dist=True)
        dcp.load(fresh, checkpoint_id=folder / "dcp", no_dist=True)
    return fresh["cawa"]


def weights_only(state: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    torch.save(state, folder / "state.pt")
    return torch.load(folder / "state.pt", weights_only=True)


def safetensors(state: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file, save_file

    save_file(state, folder / "state.safetensors")
    return load_file(folder / "state.safetensors")


@pytest.mark.parametrize("loaded", [in_place, distributed_checkpoint, weights_only, safetensors])
def test_a_fresh_object_loads_the_state(loaded: Callable[..., dict[str, Tensor]], tmp_path: Path) -> None:
    cawa, fresh = trained(), cf.CAWA(None, C, every=3, **OPTIONS)
    assert not fresh.load_state_dict(loaded(cawa.state_dict(), tmp_path), strict=True).missing_keys
    assert [record["step"] for record in fresh.weights.history] == [1, 2]
    assert math.isnan(fresh.weights.history[0]["iou"][-1])
    assert [fresh.due() for _ in range(3)] == [cawa.due() for _ in range(3)] == [True, False, False]
    same(cawa, fresh)


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda cawa: pickle.loads(pickle.dumps(cawa))])
def test_copies(twin: Callable[[cf.CAWA], cf.CAWA]) -> None:
    cawa = trained()
    same(cawa, twin(cawa))


def shapes(module: nn.Module) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {key: (value.shape, value.dtype) for key, value in module.state_dict().items()}


@pytest.mark.parametrize("budget", [None, 8])
def test_shapes_depend_on_the_arguments_alone(budget: int | None) -> None:
    """Also with a sample of the validation images, whose records say which classes were held."""
    cawa = cf.CAWA(None, C, budget=budget, class_names=list("abcd"))
    before = shapes(cawa)
    if budget is None:
        step(cawa, 3)
    else:
        for _ in cawa.sampler(100):
            logits, target = batch()
            cawa.observe(target[:1], logits=logits[:1])
        cawa.step()
        assert cawa.weights.history[0].keys() >= {"images", "held"}
        cawa._sampler._nanoseconds, cawa._sampler._cost = [2**62, 2**62], 1 / 3e17
        cawa._asked = 2**60
    assert shapes(cawa) == before
    fresh = cf.CAWA(None, C, budget=budget)
    fresh.load_state_dict(cawa.state_dict())
    assert repr(fresh.weights.history) == repr(cawa.weights.history)
    assert fresh.get_extra_state().equal(cawa.get_extra_state())


def test_a_state_holds_the_last_thousand_records() -> None:
    weights, fresh = cf.AdaptiveClassWeights(2), cf.AdaptiveClassWeights(2)
    weights.history = [{"step": number, "weight": [1.0, 1.0]} for number in range(1, 1003)]
    fresh.load_state_dict(weights.state_dict())
    assert len(weights.history) == 1002
    assert fresh.history == weights.history[2:]
    fresh.observe(torch.rand(1, 2, 2, 2), torch.zeros(1, 4, 4, dtype=torch.uint8))
    fresh.step()
    assert fresh.history[-1]["step"] == 1003


def test_earlier_states_load() -> None:
    """Written by hand: the history and the numbers of CAWA as JSON, as long as they are."""
    cawa, fresh = trained(), cf.CAWA(None, C, every=3, **OPTIONS)

    def as_json(value: Any) -> Tensor:
        return torch.tensor(list(json.dumps(value).encode("ascii")), dtype=torch.uint8)

    early = cawa.state_dict() | {
        "weights._extra_state": as_json(cawa.weights.history),
        "_extra_state": as_json({"asked": 2, "sampler": None}),
    }
    fresh.load_state_dict(early, strict=True)
    same(cawa, fresh)
    empty = cf.AdaptiveClassWeights(C)
    empty.set_extra_state(as_json([]))
    assert empty.history == []


def test_a_damaged_history_is_named() -> None:
    weights = cf.AdaptiveClassWeights(C)
    state = weights.state_dict()
    state["_extra_state"] = torch.zeros_like(state["_extra_state"])
    with pytest.raises(ValueError, match="_extra_state of the state holds no history; is the file damaged"):
        weights.load_state_dict(state)
