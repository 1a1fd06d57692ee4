"""Whole models against the original implementation, with the golden cases that lie beside the checkout.

Tolerances are those that `golden/README.md` suggests; the original's own rounding noise is several times smaller.
"""

from __future__ import annotations

import pytest

DEFAULT_CASES = ("maskformer_r50_ade20k150", "per_pixel_r50_ade20k150")
SLOW_CASES = (
    "maskformer_r50_6enc_coco_panoptic",
    "maskformer_r101c_cityscapes19",
    "maskformer_swin_t_ade20k150",
    "per_pixel_plus_r50_ade20k150",
)
CASES = (*DEFAULT_CASES, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_CASES))


@pytest.fixture(scope="module", params=CASES)
def case(golden, request):
    return golden.case(request.param)


@pytest.fixture(scope="module")
def model(case, fidelity):
    return fidelity.load_model(case)


@pytest.fixture(scope="module")
def pair_outputs(model, case):
    return model(case.pair())


@pytest.fixture(scope="module")
def step(model, case, fidelity):
    return fidelity.training_step(model, case)


@pytest.fixture()
def check(fidelity):
    """Names whatever is beyond its limit; something must have been compared."""

    def check_errors(kind, errors):
        assert errors
        assert fidelity.violations({kind: errors}) == []

    return check_errors


def test_pair(pair_outputs, case, fidelity, check):
    """A batch of two sizes: normalised, zeroed outside each image, padded."""
    check("logits", fidelity.logit_errors(pair_outputs, case, "pair"))


@pytest.mark.parametrize("index", [0, 1])
def test_single(model, case, fidelity, check, index):
    outputs = model(case.arrays[f"image{index}"][None])
    check("logits", fidelity.logit_errors(outputs, case, f"single{index}"))


def test_intermediate_tensors(model, case, fidelity, check):
    check("features", fidelity.feature_errors(model, case))


def test_matching(model, pair_outputs, case, fidelity, check):
    """The same query for each segment as SciPy found in the original, in every decoder layer."""
    if case.is_per_pixel:
        pytest.skip("a per-pixel model matches nothing")
    errors = fidelity.matching_agreement(model, pair_outputs, case)
    assert len(errors) == 12
    check("matching", errors)


def test_losses(step, case, fidelity, check):
    check("losses", fidelity.loss_errors(step.terms, case))


def test_gradients(step, case, fidelity, check):
    norms, samples = fidelity.gradient_errors(step.gradients, case)
    check("gradient_norms", norms)
    check("gradient_samples", samples)


def test_semantic_maps(pair_outputs, case, fidelity, check):
    """In both orders of restoring and inference; a per-pixel model has one."""
    errors = fidelity.argmax_agreement(pair_outputs, case)
    assert len(errors) == (2 if case.is_per_pixel else 4)
    check("argmax", errors)


def test_panoptic_segments(pair_outputs, case, fidelity, check):
    if not case.meta["panoptic"]:
        pytest.skip("the case has no panoptic results")
    errors = fidelity.panoptic_agreement(pair_outputs, case)
    assert len(errors) == 8
    check("panoptic", errors)
