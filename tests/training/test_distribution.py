"""The strategies by name, and what is said where one cannot be had."""

from __future__ import annotations

import types

import pytest

tf = pytest.importorskip("tensorflow")

from kmaskformer.training.distribution import distribution_strategy, is_chief, shared_out  # noqa: E402


@pytest.mark.parametrize("name", [None, "none"])
def test_none_is_the_default_strategy(name):
    strategy = distribution_strategy(name)
    assert strategy.num_replicas_in_sync == 1
    with strategy.scope():
        assert not tf.distribute.has_strategy()
    assert is_chief(strategy)


def test_mirrored_has_a_replica_per_device():
    strategy = distribution_strategy("mirrored")
    assert isinstance(strategy, tf.distribute.MirroredStrategy)
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    assert strategy.num_replicas_in_sync == len(devices)
    assert is_chief(strategy)


@pytest.mark.parametrize(
    ("jobs", "task", "expected"),
    [
        (["worker"], ("worker", 0), True),
        (["worker"], ("worker", 1), False),
        (["chief", "worker"], ("chief", 0), True),
        (["chief", "worker"], ("worker", 0), False),
    ],
)
def test_one_worker_is_the_chief(jobs, task, expected):
    spec = types.SimpleNamespace(jobs=jobs)
    resolver = types.SimpleNamespace(task_type=task[0], task_id=task[1], cluster_spec=lambda: spec)
    assert is_chief(types.SimpleNamespace(cluster_resolver=resolver)) is expected


def test_an_unknown_name_lists_the_known():
    message = "`name` must be one of none, mirrored, multi_worker, tpu, or None. Received: name='miror'"
    with pytest.raises(ValueError, match=message):
        distribution_strategy("miror")


def test_multi_worker_without_tf_config_says_what_to_set(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(
        RuntimeError, match=r"environment variable TF_CONFIG, which is not set. Set it in every process"
    ):
        distribution_strategy("multi_worker")


def test_no_tpu(monkeypatch):
    monkeypatch.delenv("TPU_NAME", raising=False)
    with pytest.raises(RuntimeError, match=r"The strategy tpu found no TPU under the name ''. Run it on a TPU host"):
        distribution_strategy("tpu")


def test_two_workers_with_two_replicas_each_prepare_parts_of_one_batch():
    def make(shard=(0, 1)):
        index, count = shard
        part = 8 // count
        dataset = tf.data.Dataset.range(index * part, 8).batch(part).take(1)
        dataset.skipped = f"of worker {index}"
        return dataset

    def strategy(worker):
        context = tf.distribute.InputContext(num_input_pipelines=2, input_pipeline_id=worker, num_replicas_in_sync=4)
        extended = types.SimpleNamespace(_in_multi_worker_mode=lambda: True)
        return types.SimpleNamespace(extended=extended, distribute_datasets_from_function=lambda part: part(context))

    pieces = []
    for worker in range(2):
        dataset, skipped = shared_out(strategy(worker), make, batch_size=8, is_of_one_size=True)
        pieces += [piece.tolist() for piece in dataset.as_numpy_iterator()]
        assert skipped == f"of worker {worker}"
    assert pieces == [[0, 1], [2, 3], [4, 5], [6, 7]]
    for workers, is_of_one_size in ((distribution_strategy("none"), True), (strategy(1), False)):
        whole, skipped = shared_out(workers, make, batch_size=8, is_of_one_size=is_of_one_size)
        assert next(iter(whole)).shape == (8,) and skipped == "of worker 0"
