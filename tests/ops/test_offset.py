"""``offset=`` of the cross-entropy and the focal loss, against PyTorch on logits to which it is added."""

import pytest
import torch

import cawa_fast as cf
import cawa_fast.functional as CF
from tests.support.cases import CONTENTS, FLOATS, LAYOUTS, RATIOS, noise
from tests.support.losses import check

pytestmark = pytest.mark.usefixtures("backend")

C = 5
WEIGHT = torch.tensor([0.2, 1.0, 3.0, 0.7, 1.4])
OFFSET = torch.tensor([-7.0, 0.5, 0.0, 3.25, -0.125])


@pytest.mark.sampled
@pytest.mark.parametrize("options", [{}, {"smoothing": 0.2}, {"gamma": 2.0}, {"corners": True}], ids=str)
@pytest.mark.parametrize("ratio", ["same", "x4", "non-integer", "down"])
def test_formula(ratio, options):
    case = noise(C, 2, *RATIOS[ratio])
    check(case.logits, case.target, WEIGHT, offset=OFFSET, **options)


@pytest.mark.sampled
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ratio", ["same", "x4"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_dtypes_and_layouts(dtype, ratio, layout):
    case = noise(C, 2, *RATIOS[ratio])
    check(LAYOUTS[layout](case.logits.to(dtype)), case.target, offset=OFFSET.to(dtype))


@pytest.mark.parametrize("content", ["smooth", "one_class", "all_ignored", "empty"])
@pytest.mark.parametrize("ratio", ["same", "x4"])
def test_contents(ratio, content):
    case = CONTENTS[content](C, 2, *RATIOS[ratio])
    check(case.logits, case.target, offset=OFFSET, reduction="none")


@pytest.mark.parametrize("shape", [(), (7,), (2, 3, 4, 5)], ids=str)
def test_other_ranks(shape):
    logits = torch.randn(*shape[:1], C, *shape[1:])
    target = torch.randint(0, C, shape)
    loss = CF.cross_entropy(logits, target, WEIGHT, offset=OFFSET)
    shifted = logits + OFFSET.view(-1, *[1] * (len(shape) - 1))
    torch.testing.assert_close(loss, CF.cross_entropy(shifted, target, WEIGHT))


def test_the_module_reads_its_buffer_at_every_call():
    loss_fn, case = cf.CrossEntropyLoss(ignore_index=255, offset=torch.zeros(C)), noise(C, 1, (6, 9), (24, 36))
    assert loss_fn(*case).equal(cf.CrossEntropyLoss(ignore_index=255)(*case))
    loss_fn.offset.copy_(OFFSET)
    assert loss_fn(*case).equal(CF.cross_entropy(*case, offset=OFFSET, ignore_index=255))
    assert loss_fn.unweighted(*case).equal(CF.cross_entropy(*case, ignore_index=255))
    assert loss_fn.state_dict()["offset"].equal(OFFSET)


@pytest.mark.parametrize(
    ("offset", "error", "message"),
    [
        (torch.zeros(C - 1), ValueError, rf"offset.*{C} classes.*\({C - 1},\)"),
        (torch.tensor([0.0, 1.0, -torch.inf, 0.0, 0.0]), ValueError, r"offset\[2\] is -inf"),
        (torch.zeros(C, requires_grad=True), ValueError, "offset requires a gradient"),
        (torch.zeros(C, dtype=torch.int64), TypeError, "offset.*int64"),
        ([0.0] * C, TypeError, "offset.*list"),
    ],
    ids=["length", "infinite", "gradient", "dtype", "list"],
)
def test_errors_name_the_argument_and_the_value(offset, error, message):
    case = noise(C, 1, (4, 4), (8, 8))
    with pytest.raises(error, match=message):
        CF.cross_entropy(*case, offset=offset, ignore_index=255)


def test_logit_adjusted_loss_reads_states_of_its_former_name():
    loss_fn, case = cf.LogitAdjustedLoss([6, 3, 1, 1, 1], ignore_index=255), noise(C, 1, (4, 4), (8, 8))
    state = {"adjustment": OFFSET.clone()}
    loss_fn.load_state_dict(state)
    assert loss_fn.adjustment.equal(OFFSET)
    assert loss_fn(*case).equal(CF.cross_entropy(*case, offset=OFFSET, ignore_index=255))
    assert list(loss_fn.state_dict()) == ["offset"]
