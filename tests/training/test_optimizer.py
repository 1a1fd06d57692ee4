"""The update against float64 references, parameter groups, the clip, and the optimizers inside Keras."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops

from kmaskformer.training.optimizer import SGD, AdamW
from kmaskformer.training.schedules import WarmupPoly

UPDATES = 20


class Variables:
    """Two variables, of the backbone and of the head, with a path as in a model."""

    def __init__(self, values: np.ndarray) -> None:
        with keras.name_scope("backbone"):
            self.backbone = keras.Variable(values, name="kernel")
        with keras.name_scope("head"):
            self.head = keras.Variable(values, name="kernel")

    def __iter__(self):
        return iter((self.backbone, self.head))


def small_gradients(rng: np.random.Generator, elements: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Weights and gradients of 1e-7 to 1e-2; signs such that nothing cancels and relative errors mean something."""
    signs = rng.choice([-1.0, 1.0], elements)
    gradients = signs * 10 ** rng.uniform(-7, -2, (UPDATES, elements))
    weights = -signs * rng.uniform(0.1, 1.0, elements) * 1e-3
    return weights.astype("float32"), gradients.astype("float32")


def reference_adamw(weights, gradients, rate, decay, epsilon=1e-8) -> np.ndarray:
    """The textbook update in float64."""
    weights = weights.astype("float64")
    mean = square = np.zeros_like(weights)
    for update, gradient in enumerate(gradients.astype("float64"), start=1):
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        m_hat, v_hat = mean / (1 - 0.9**update), square / (1 - 0.999**update)
        weights = weights - rate * decay * weights - rate * m_hat / (np.sqrt(v_hat) + epsilon)
    return weights


def run(optimizer, variables, gradients) -> None:
    for gradient in gradients:
        optimizer.apply_gradients([(ops.convert_to_tensor(gradient), variable) for variable in variables])


@pytest.mark.parametrize("skip_nonfinite", [False, True])
def test_adamw_equals_the_float64_update_for_tiny_gradients(rng, skip_nonfinite):
    weights, gradients = small_gradients(rng)
    variables = Variables(weights)
    options = {"clip_norm": None, "backbone_multiplier": 0.1, "skip_nonfinite": skip_nonfinite}
    run(AdamW(1e-3, weight_decay=0.05, **options), variables, gradients)
    for variable, rate in ((variables.backbone, 1e-4), (variables.head, 1e-3)):
        expected = reference_adamw(weights, gradients, rate, 0.05)
        np.testing.assert_allclose(ops.convert_to_numpy(variable), expected, rtol=1e-6)
        assert np.abs(expected - weights).min() > 0.1 * rate


def test_adamw_of_bfloat16_weights_moves_by_the_learning_rate():
    variable = keras.Variable(np.ones(4), dtype="bfloat16")
    run(AdamW(0.25, weight_decay=0.0, clip_norm=None), [variable], [np.ones(4, "float32")])
    np.testing.assert_allclose(ops.convert_to_numpy(ops.cast(variable, "float32")), 0.75, rtol=0.02)


def test_gradients_as_small_as_epsilon(rng):
    weights, gradients = small_gradients(rng)
    gradients = gradients * np.float32(1e-3)
    variables = Variables(weights)
    run(AdamW(1e-3, weight_decay=0.0, clip_norm=None), variables, gradients)
    expected = reference_adamw(weights, gradients, 1e-3, 0.0)
    np.testing.assert_allclose(ops.convert_to_numpy(variables.head), expected, rtol=1e-6)


def test_adamw_with_betas_of_zero_is_sign_descent():
    variable = keras.Variable(np.array([1.0, -1.0], "float32"), name="kernel")
    AdamW(0.5, 0.0, beta_1=0.0, beta_2=0.0, clip_norm=None).apply_gradients(
        [(ops.convert_to_tensor(np.array([3.0, -4.0], "float32")), variable)]
    )
    np.testing.assert_allclose(ops.convert_to_numpy(variable), [0.5, -0.5], rtol=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_equals_the_float64_update(rng, nesterov):
    weights, gradients = small_gradients(rng)
    variables = Variables(weights)
    run(SGD(0.1, weight_decay=0.05, momentum=0.9, nesterov=nesterov, clip_norm=None), variables, gradients)
    for variable, rate in ((variables.backbone, 0.01), (variables.head, 0.1)):
        expected, buffer = weights.astype("float64"), 0.0
        for gradient in gradients.astype("float64"):
            slope = gradient + 0.05 * expected
            buffer = 0.9 * buffer + slope
            expected = expected - rate * (slope + 0.9 * buffer if nesterov else buffer)
        np.testing.assert_allclose(ops.convert_to_numpy(variable), expected, rtol=1e-6)


@pytest.mark.parity
@pytest.mark.parametrize("clip_norm", [None, 0.01])
def test_adamw_equals_pytorch(rng, clip_norm):
    torch = pytest.importorskip("torch")
    weights, gradients = small_gradients(rng)
    variables = Variables(weights)
    run(AdamW(1e-3, weight_decay=0.05, clip_norm=clip_norm, backbone_multiplier=0.1), variables, gradients)
    backbone, head = (torch.nn.Parameter(torch.tensor(weights)) for _ in range(2))
    groups = [{"params": [backbone], "lr": 1e-4}, {"params": [head], "lr": 1e-3}]
    reference = torch.optim.AdamW(groups, weight_decay=0.05, eps=1e-8)
    for gradient in gradients:
        backbone.grad, head.grad = torch.tensor(gradient), torch.tensor(gradient)
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_([backbone, head], clip_norm)
        reference.step()
    for ours, theirs in ((variables.backbone, backbone), (variables.head, head)):
        np.testing.assert_allclose(ops.convert_to_numpy(ours), theirs.detach().numpy(), rtol=2e-6)


def test_the_clip_takes_one_norm_over_all_variables():
    variables = Variables(np.zeros(2, "float32"))
    optimizer = SGD(1.0, weight_decay=0.0, momentum=0.0, backbone_multiplier=1.0, clip_norm=0.01)
    gradients = [np.array([3.0, 0.0], "float32"), np.array([0.0, 4.0], "float32")]
    optimizer.apply_gradients(zip(map(ops.convert_to_tensor, gradients), variables, strict=True))
    scale = 0.01 / (5.0 + 1e-6)
    np.testing.assert_allclose(ops.convert_to_numpy(variables.backbone), [-3 * scale, 0], rtol=1e-6)
    np.testing.assert_allclose(ops.convert_to_numpy(variables.head), [0, -4 * scale], rtol=1e-6)
    assert float(optimizer.gradient_norm) == pytest.approx(5.0)


def test_a_gradient_below_the_clip_is_left_as_it_is():
    variable = keras.Variable(np.zeros(1, "float32"), name="kernel")
    optimizer = SGD(1.0, weight_decay=0.0, momentum=0.0, clip_norm=10.0)
    assert float(optimizer.gradient_norm) == 0.0
    optimizer.apply_gradients([(ops.convert_to_tensor([2.0]), variable)])
    assert float(variable[0]) == -2.0


def grouped_model() -> keras.Model:
    """Small model with a variable of every kind."""
    backbone = keras.Sequential(
        [keras.layers.Dense(4, name="stem"), keras.layers.LayerNormalization(name="norm")], name="backbone"
    )
    head = keras.layers.Dense(3, name="head")
    norm = keras.layers.GroupNormalization(2, name="group_norm")
    model = MarkedModel([backbone, norm, head], name="model")
    model.build((None, 5))
    return model


def variable_at(path: str) -> keras.Variable:
    variable = keras.Variable(np.zeros(2, "float32"), name="variable")
    variable._path = path
    return variable


@pytest.mark.parametrize(
    ("path", "multiplier", "decay"),
    [
        ("model/backbone/res2/conv/kernel", 0.1, 1e-4),
        ("model/backbone/stem/norm/gamma", 0.1, 0.0),
        ("model/backbone/layer1/attention/relative_position_bias_table", 0.1, 0.0),
        ("model/backbone/absolute_position_embedding", 0.1, 0.0),
        ("model/pixel_decoder/adapter_1/norm/beta", 1.0, 0.0),
        ("model/transformer_decoder/query_embedding", 1.0, 0.0),
        ("model/transformer_decoder/query_embedding/embeddings", 1.0, 0.0),
        ("model/transformer_decoder/layer_0/mlp/dense/bias", 1.0, 1e-4),
        ("model/mask_embedding/dense_0/kernel", 1.0, 1e-4),
        ("model/my_backbone_head/kernel", 1.0, 1e-4),
    ],
)
def test_groups_by_path(path, multiplier, decay):
    optimizer = AdamW(1e-4, weight_decay=1e-4)
    variable = variable_at(path)
    assert optimizer.learning_rate_multiplier(variable) == multiplier
    assert optimizer.weight_decay_of(variable) == decay


def test_decays_of_norms_and_embeddings_can_be_set():
    optimizer = AdamW(1e-4, weight_decay=1e-4, weight_decay_norm=0.1, weight_decay_embed=0.2)
    assert optimizer.weight_decay_of(variable_at("model/norm/gamma")) == 0.1
    assert optimizer.weight_decay_of(variable_at("model/query_embedding")) == 0.2


def test_a_marked_variable_is_in_the_backbone_group():
    variable = variable_at("resnet_built_elsewhere/kernel")
    variable.parameter_group = "backbone"
    assert AdamW(1e-4).learning_rate_multiplier(variable) == 0.1


def test_census_of_a_model():
    optimizer = AdamW(1e-4, weight_decay=1e-4, backbone_multiplier=0.1)
    groups = optimizer.parameter_groups(grouped_model().trainable_variables)
    table = [(group.learning_rate_multiplier, group.weight_decay, group.num_parameters) for group in groups]
    assert table == [(1.0, 1e-4, 4 * 3 + 3), (1.0, 0.0, 8), (0.1, 1e-4, 5 * 4 + 4), (0.1, 0.0, 8)]
    assert groups[0].paths == ("model/head/kernel", "model/head/bias")


def test_the_schedule_counts_updates_not_batches_under_accumulation():
    variable = keras.Variable(np.zeros(1, "float32"), name="kernel")
    optimizer = SGD(WarmupPoly(1.0, total_steps=4, power=1.0), 0.0, 0.0, clip_norm=None, gradient_accumulation_steps=2)
    moves = []
    for _ in range(6):
        before = float(variable[0])
        optimizer.apply_gradients([(ops.convert_to_tensor([1.0]), variable)])
        moves.append(before - float(variable[0]))
    assert moves == pytest.approx([0, 1.0, 0, 0.75, 0, 0.5])


def test_the_clip_sees_the_accumulated_gradient():
    variable = keras.Variable(np.zeros(1, "float32"), name="kernel")
    optimizer = SGD(1.0, 0.0, 0.0, clip_norm=1.0, gradient_accumulation_steps=2)
    for gradient in (8.0, -4.0):
        optimizer.apply_gradients([(ops.convert_to_tensor([gradient]), variable)])
    assert float(variable[0]) == pytest.approx(-1.0, rel=1e-5)
    assert float(optimizer.gradient_norm) == pytest.approx(2.0)


@pytest.mark.parametrize("make", [AdamW, SGD])
def test_config_round_trip(make):
    optimizer = make(WarmupPoly(1e-3, 50), weight_decay=0.02, backbone_multiplier=0.3, clip_norm=2.0, name="named")
    copy = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert type(copy) is make
    assert copy.get_config() == optimizer.get_config()


@keras.saving.register_keras_serializable(package="kmaskformer_tests")
class MarkedModel(keras.Sequential):
    """Marks its backbone's variables as the package's models do."""

    def build(self, input_shape=None):
        super().build(input_shape)
        for variable in self.layers[0].variables:
            variable.parameter_group = "backbone"


def fitted(optimizer, jit_compile=False, steps: int = 5) -> tuple[keras.Model, float]:
    keras.utils.set_random_seed(3)
    model = grouped_model()
    model.compile(optimizer=optimizer, loss="mse", jit_compile=jit_compile)
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(64, 5)).astype("float32")
    history = model.fit(inputs, inputs[:, :3], batch_size=64 // 4, epochs=steps, verbose=0)
    return model, history.history["loss"][-1] / history.history["loss"][0]


def test_fit_learns_and_the_saved_model_goes_on_identically(tmp_path):
    model, ratio = fitted(AdamW(WarmupPoly(0.05, 400), clip_norm=1.0))
    assert ratio < 0.8
    model.save(tmp_path / "model.keras")
    copy = keras.models.load_model(tmp_path / "model.keras")
    assert int(copy.optimizer.iterations) == 20
    assert len({variable.path for variable in copy.optimizer.variables}) == len(copy.optimizer.variables)
    inputs = np.ones((4, 5), "float32")
    for each in (model, copy):
        each.fit(inputs, inputs[:, :3], batch_size=4, epochs=2, verbose=0)
    for ours, theirs in zip(model.variables, copy.variables, strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(ours), ops.convert_to_numpy(theirs), rtol=1e-6)
    groups = [each.optimizer.parameter_groups(each.trainable_variables) for each in (model, copy)]
    assert (
        [group.num_parameters for group in groups[0]] == [group.num_parameters for group in groups[1]] == [15, 8, 24, 8]
    )


def test_jit_and_graph_give_the_same_weights():
    plain, _ = fitted(AdamW(0.01, clip_norm=0.01))
    compiled, _ = fitted(AdamW(0.01, clip_norm=0.01), jit_compile=True)
    for ours, theirs in zip(plain.weights, compiled.weights, strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(ours), ops.convert_to_numpy(theirs), rtol=1e-4, atol=1e-6)


def test_loss_scaling_leaves_the_update_as_it_is():
    plain, _ = fitted(AdamW(0.01, clip_norm=0.01))
    scaled, _ = fitted(keras.optimizers.LossScaleOptimizer(AdamW(0.01, clip_norm=0.01)))
    for ours, theirs in zip(plain.weights, scaled.weights, strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(ours), ops.convert_to_numpy(theirs), rtol=1e-4, atol=1e-6)
    assert float(scaled.optimizer.inner_optimizer.gradient_norm) == pytest.approx(
        float(plain.optimizer.gradient_norm), rel=1e-3
    )


def test_mixed_precision_trains():
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model, ratio = fitted(AdamW(0.05, clip_norm=1.0))
    finally:
        keras.config.set_dtype_policy(policy)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert ratio < 0.8


def test_sparse_gradients_are_summed_before_the_clip():
    if keras.backend.backend() != "tensorflow":
        pytest.skip("only TensorFlow has sparse gradients")
    tf = pytest.importorskip("tensorflow")
    variable = keras.Variable(np.zeros((3, 1), "float32"), name="kernel")
    gradient = tf.IndexedSlices(tf.constant([[3.0], [3.0], [8.0]]), tf.constant([0, 0, 2]), tf.constant([3, 1]))
    optimizer = SGD(1.0, 0.0, 0.0, clip_norm=5.0)
    optimizer.apply_gradients([(gradient, variable)])
    np.testing.assert_allclose(ops.convert_to_numpy(variable)[:, 0], [-3.0, 0.0, -4.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdamW(1e-4, -1.0), "`weight_decay` must be 0 or more. Received: weight_decay=-1.0"),
        (lambda: AdamW(1e-4, weight_decay_norm=-1.0), "`weight_decay_norm` must be 0 or more"),
        (lambda: AdamW(1e-4, weight_decay_embed=-1.0), "`weight_decay_embed` must be 0 or more"),
        (lambda: AdamW(1e-4, backbone_multiplier=-1), "`backbone_multiplier` must be 0 or more. Received"),
        (lambda: AdamW(1e-4, clip_norm=0.0), "`clip_norm` must be greater than 0, or None for no clip. Received: 0.0"),
        (lambda: AdamW(1e-4, global_clipnorm=1.0), "`global_clipnorm` clips before replicas are summed; use"),
        (lambda: AdamW(1e-4, beta_1=1.0), "`beta_1` must be at least 0 and less than 1. Received: beta_1=1.0"),
        (lambda: AdamW(1e-4, beta_2=-0.5), "`beta_2` must be at least 0 and less than 1. Received: beta_2=-0.5"),
        (lambda: SGD(1e-4, momentum=1.0), "`momentum` must be at least 0 and less than 1. Received: momentum=1.0"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


BACKEND_SCRIPT = """
import keras, numpy as np
from kmaskformer.training.optimizer import AdamW
from kmaskformer.training.schedules import WarmupPoly
model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3, name="backbone"), keras.layers.Dense(2)])
model.compile(optimizer=AdamW(WarmupPoly(0.01, 100), clip_norm=0.01), loss="mse")
for variable in model.variables:
    variable.assign(0.1 * np.arange(np.prod(variable.shape)).reshape(variable.shape))
model.fit(np.linspace(-1, 1, 40).reshape(8, 5), np.ones((8, 2)), batch_size=8, epochs=6, verbose=0)
print(" ".join(repr(float(x)) for v in model.trainable_variables for x in np.asarray(v).ravel()))
print(repr(float(model.optimizer.gradient_norm)))
"""


def test_jax_without_tensorflow_gives_the_same_update(run_on_jax, capsys):
    there = run_on_jax(BACKEND_SCRIPT)
    exec(BACKEND_SCRIPT, {})
    here = np.array(capsys.readouterr().out.split(), "float64")
    np.testing.assert_allclose(np.array(there.split(), "float64"), here, rtol=2e-5)
