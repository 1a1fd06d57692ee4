"""Values of the published learning-rate tables, serialisation, and every error."""

from __future__ import annotations

import keras
import pytest
from keras.optimizers import schedules as keras_schedules

from kmaskformer.training.schedules import WarmupMultiStep, WarmupPoly


def swin_poly() -> WarmupPoly:
    return WarmupPoly(6e-5, total_steps=160_000, warmup_steps=1500, warmup_factor=1e-6)


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 6e-11), (750, 2.98734e-5), (1500, 5.94935e-5), (80_000, 3.21532e-5)],
)
def test_poly_of_the_swin_recipe(step, expected):
    assert float(swin_poly()(step)) == pytest.approx(expected, rel=2e-6)


def test_poly_of_the_resnet_recipe():
    schedule = WarmupPoly(1e-4, total_steps=160_000)
    assert float(schedule(0)) == pytest.approx(1e-4)
    assert float(schedule(80_000)) == pytest.approx(5.35887e-5, rel=1e-6)


def test_poly_is_exact_at_the_last_step_and_zero_after_it():
    schedule = WarmupPoly(1e-4, total_steps=160_000)
    assert float(schedule(159_999)) == pytest.approx(1e-4 * (1 / 160_000) ** 0.9, rel=1e-5)
    assert float(schedule(160_000)) == 0.0
    assert float(schedule(200_000)) == 0.0


def test_poly_does_not_fall_below_its_end():
    schedule = WarmupPoly(1e-4, total_steps=100, end=0.05)
    assert float(schedule(50)) == pytest.approx(1e-4 * 0.5**0.9)
    assert float(schedule(99)) == pytest.approx(5e-6)


def test_multi_step_falls_at_its_milestones():
    schedule = WarmupMultiStep(1e-4, milestones=[10, 20], gamma=0.1, warmup_steps=4, warmup_factor=0.5)
    rates = [float(schedule(step)) for step in (0, 2, 4, 9, 10, 19, 20, 500)]
    assert rates == pytest.approx([0.5e-4, 0.75e-4, 1e-4, 1e-4, 1e-5, 1e-5, 1e-6, 1e-6], rel=1e-5)


def test_coco_warmup_with_factor_one_is_none():
    schedule = WarmupMultiStep(1e-4, milestones=[369_600], warmup_steps=10, warmup_factor=1.0)
    assert [float(schedule(step)) for step in (0, 5, 369_599, 369_600)] == pytest.approx([1e-4, 1e-4, 1e-4, 1e-5])


@pytest.mark.parametrize(
    "schedule",
    [swin_poly(), WarmupPoly(1e-4, 90, power=2.0, end=0.1), WarmupMultiStep(1e-3, [5, 9], 0.5, 3, 0.1)],
)
def test_serialisation_keeps_the_values(schedule):
    copy = keras_schedules.deserialize(keras_schedules.serialize(schedule))
    assert type(copy) is type(schedule)
    assert copy.get_config() == schedule.get_config()
    assert float(copy(7)) == float(schedule(7))


def test_a_symbolic_step_gives_the_same_value():
    step = keras.Variable(750, dtype="int32", trainable=False)
    assert float(swin_poly()(step)) == pytest.approx(2.98734e-5, rel=2e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WarmupPoly(0.0, 10), "`base_lr` must be greater than 0. Received: base_lr=0.0"),
        (lambda: WarmupPoly(1.0, 0), "`total_steps` must be at least 1. Received: total_steps=0"),
        (lambda: WarmupPoly(1.0, 10, power=0), "`power` must be greater than 0. Received: power=0"),
        (lambda: WarmupPoly(1.0, 10, end=2), "`end` must be a fraction of `base_lr` in 0..1. Received: end=2"),
        (lambda: WarmupPoly(1.0, 10, warmup_steps=-1), "`warmup_steps` must be 0 .no warm-up. or more"),
        (lambda: WarmupPoly(1.0, 10, warmup_factor=2), "`warmup_factor` must lie in 0..1. Received: warmup_factor=2"),
        (lambda: WarmupMultiStep(1.0, [20, 10]), "`milestones` must be increasing and at least 1. Received"),
        (lambda: WarmupMultiStep(1.0, [10], gamma=0), "`gamma` must be greater than 0. Received: gamma=0"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
