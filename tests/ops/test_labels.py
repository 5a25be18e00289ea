"""Bad labels and bad weights: they are found, named, and never cause a read out of bounds."""

import pytest
import torch

import cawa_fast as cf
import cawa_fast.functional as CF
from cawa_fast import _label_check
from tests.conftest import on_a_cpu

pytestmark = pytest.mark.usefixtures("backend")

C = 3


def cross_entropy(target, **options):
    return CF.cross_entropy(torch.zeros(target.shape[0], C, *target.shape[1:]), target, **options)


def cam_counts(target, **options):
    return CF.cam_counts(torch.ones(target.shape[0], C, *target.shape[1:]), target, **options)


def confusion_of_logits(target, **options):
    return CF.confusion_matrix(torch.zeros(target.shape[0], C, *target.shape[1:]), target, **options)


def confusion_of_predictions(target, **options):
    return CF.confusion_matrix(torch.zeros_like(target), target, num_classes=C, **options)


OPERATORS = [cross_entropy, cam_counts, confusion_of_logits, confusion_of_predictions]
every_operator = pytest.mark.parametrize("operator", OPERATORS)


def with_bad(*values, dtype=torch.int64):
    """Labels of 0, except for ``values`` at the first pixels."""
    target = torch.zeros(2, 4, 4, dtype=dtype)
    target.view(-1)[: len(values)] = torch.tensor(values, dtype=dtype)
    return target


@every_operator
@pytest.mark.parametrize(
    ("values", "dtype", "message"),
    [
        (
            (3,),
            torch.uint8,
            "1 pixel has the value 3, outside the 3 classes 0..2.*ignore_index=-100.*from 1.*Subtract 1",
        ),
        ((255, 255), torch.uint8, "2 pixels have the value 255.*void.*ignore_index=255"),
        ((7, 33, 24), torch.int32, "3 pixels have values from 7 to 33.*Raw label ids"),
        ((-1,), torch.int16, "1 pixel has the value -1.*ignore_index=-1"),
        ((-1, 3), torch.int64, "2 pixels have values from -1 to 3"),
        ((2**40, 2**40), torch.int64, f"2 pixels have the value {2**40}"),
        ((-(2**63),), torch.int64, f"1 pixel has the value {-(2**63)}"),
    ],
)
def test_message_names_value_number_and_usual_cause(operator, values, dtype, message):
    with pytest.raises(ValueError, match=f"target: {message}"):
        operator(with_bad(*values, dtype=dtype))


@every_operator
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_ignore_index_is_no_bad_label(operator, dtype):
    operator(
        with_bad(255 if dtype == torch.uint8 else -7, dtype=dtype), ignore_index=255 if dtype == torch.uint8 else -7
    )


@every_operator
@pytest.mark.parametrize("mode", ["deferred", "off"])
def test_a_bad_label_counts_as_ignored(operator, mode):
    cf.set_label_check(mode)
    bad = operator(with_bad(7, -(2**62), 2**62))
    cf.set_label_check("auto")
    good = operator(with_bad(-100, -100, -100))
    pairs = zip(bad, good, strict=True) if isinstance(bad, tuple) else [(bad, good)]
    assert all(b.equal(g) for b, g in pairs)


def test_a_bad_label_has_no_gradient():
    cf.set_label_check("off")
    leaf = torch.randn(2, C, 4, 4, requires_grad=True)
    CF.cross_entropy(leaf, with_bad(7, 250)).backward()
    assert (leaf.grad[0, :, 0, :2] == 0).all()
    assert (leaf.grad[0, :, 0, 2:] != 0).all()


@every_operator
def test_deferred_raises_in_check_labels(operator):
    cf.set_label_check("deferred")
    operator(with_bad(9, 9, dtype=torch.uint8))
    operator(with_bad(5, dtype=torch.uint8))
    operator(with_bad(dtype=torch.uint8))
    with pytest.raises(ValueError, match="target: 3 pixels have values from 5 to 9, outside the 3 classes"):
        cf.check_labels()
    cf.check_labels()  # reported once


def test_deferred_names_the_classes_of_the_call_that_met_the_label():
    """A later call with more classes, for which the label would be valid, must not change the message."""
    cf.set_label_check("deferred")
    cross_entropy(with_bad(5))
    CF.cross_entropy(torch.zeros(1, 19, 4, 4), torch.zeros(1, 4, 4, dtype=torch.uint8), ignore_index=255)
    with pytest.raises(ValueError, match=r"1 pixel has the value 5, outside the 3 classes 0\.\.2.*ignore_index=-100"):
        cf.check_labels()


def test_deferred_reports_survive_inference_mode():
    cf.set_label_check("deferred")
    with torch.inference_mode():
        cross_entropy(with_bad(5))
    cross_entropy(with_bad(6))
    with pytest.raises(ValueError, match="2 pixels have values from 5 to 6"):
        cf.check_labels()


def test_deferred_reports_are_many_and_do_not_mix():
    """There are more combinations of num_classes and ignore_index than rows in a table of reports."""
    cf.set_label_check("deferred")
    for ignore_index in range(300, 300 + 2 * _label_check._ROWS + 1):
        cross_entropy(with_bad(*[7] * (ignore_index % 3 + 1)), ignore_index=ignore_index)
    reports = list(_label_check._deferred.values())
    assert len({report.data_ptr() for report in reports}) == len(reports)
    assert all(report.data_ptr() % 16 == 0 for report in reports)
    for ignore_index in range(300, 300 + 2 * _label_check._ROWS + 1):
        pixels = ["1 pixel has", "2 pixels have", "3 pixels have"][ignore_index % 3]
        with pytest.raises(ValueError, match=f"target: {pixels} the value 7.*ignore_index={ignore_index}"):
            cf.check_labels()
    cf.check_labels()


def test_deferred_raises_in_step():
    cf.set_label_check("deferred")
    adaptive = cf.AdaptiveClassWeights(C)
    adaptive.observe(torch.ones(2, C, 4, 4), with_bad(9))
    with pytest.raises(ValueError, match="1 pixel has the value 9"):
        adaptive.step()


def test_off_reports_nothing():
    cf.set_label_check("off")
    cross_entropy(with_bad(9))
    cf.set_label_check("deferred")
    cf.check_labels()


@pytest.mark.parametrize("mode", [pytest.param("auto", marks=on_a_cpu), "sync"])
def test_bad_labels_raise_at_once(mode):
    cf.set_label_check(mode)
    with pytest.raises(ValueError, match="the value 9"):
        cross_entropy(with_bad(9))
    cf.check_labels()


def test_modes():
    cf.set_label_check("auto")
    assert cf.set_label_check("sync") == "auto"
    assert cf.set_label_check("off") == "sync"
    assert cf.set_label_check("deferred") == "off"
    with pytest.raises(ValueError, match="mode must be one of auto, sync, deferred, off; got 'never'"):
        cf.set_label_check("never")
    assert cf.set_label_check("auto") == "deferred"  # an unknown mode changed nothing


def test_bad_predictions_are_reported_as_such():
    cf.set_label_check("deferred")
    CF.confusion_matrix(with_bad(4, 4), torch.zeros(2, 4, 4, dtype=torch.uint8), num_classes=C)
    with pytest.raises(ValueError, match=r"input: 2 pixels have the value 4.*Predictions.*num_classes"):
        cf.check_labels()


@on_a_cpu
@pytest.mark.parametrize("value", [-0.5, torch.nan, torch.inf, -torch.inf])
def test_weights_must_be_finite_and_not_negative(value):
    with pytest.raises(ValueError, match=rf"weight must be finite and not negative; weight\[1\] is {value}"):
        cross_entropy(with_bad(), weight=torch.tensor([1.0, value, 1.0]))
    with pytest.raises(ValueError, match=rf"weight\[1\] is {value}"):
        cf.CrossEntropyLoss(torch.tensor([1.0, value, 1.0]))


def test_a_weight_of_zero_is_fine():
    assert cross_entropy(with_bad(1, 1), weight=torch.tensor([1.0, 0.0, 1.0])).isfinite()


def test_meta_tensors_leave_no_report():
    logits, target = torch.zeros(1, 4, 8, 8, device="meta"), torch.zeros(1, 32, 32, dtype=torch.uint8, device="meta")
    assert CF.cross_entropy(logits, target).is_meta
    cf.check_labels()
