"""The pickle machine against Python's unpickler on plain values, and on anything that is not one."""

from __future__ import annotations

import pickle
import struct
import sys

import numpy as np
import pytest

from kmaskformer.checkpoints.errors import CheckpointError
from kmaskformer.checkpoints.pickle_machine import AllowedGlobal, run_pickle
from kmaskformer.checkpoints.restricted_pickle import allowed_globals

SHARED = ["shared", 1.5]
PLAIN = {
    "integers": [0, 1, -1, 255, 256, -70_000, 2**40, -(2**70)],
    "floats": [0.0, -2.5, 1e300],
    "texts": ["", "name", "ü€\U0001f600\n\\", "x" * 5000],
    "bytes": [b"short"],
    "others": (None, True, False, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
    "containers": {"nested": {1: [2, {3: ()}]}, "empty": [[], {}], None: 0, 2.5: 1, b"key": 2},
    "shared": [SHARED, SHARED],
}


def run(data, **options):
    options.setdefault("allowed", allowed_globals(len(data)))
    return run_pickle(memoryview(data), "some.pkl", **options)[0]


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_are_those_of_python(protocol):
    data = pickle.dumps(PLAIN, protocol)
    value, end = run_pickle(memoryview(data + b"rest"), "some.pkl", allowed_globals(len(data)))
    assert value == PLAIN
    assert end == len(data)
    assert value["shared"][0] is value["shared"][1]


@pytest.mark.parametrize("protocol", [2, 4])
def test_sets(protocol):
    assert run(pickle.dumps({1, "a", None}, protocol)) == {1, "a", None}
    assert run(pickle.dumps([set()], protocol)) == [set()]


def test_frozen_set():
    assert run(pickle.dumps(frozenset({1}), 4)) == frozenset({1})


def test_strings_of_python_2():
    data = b"\x80\x02}(U\x04nameT" + struct.pack("<i", 3) + b"a\xffb" + b"U\x01xS'q\\x41'\nu."
    assert run(data) == {"name": "a\xffb", "x": "qA"}


def test_long_bytes_stay_views():
    data = pickle.dumps(b"z" * 10_000, 4)
    value = run(data)
    assert isinstance(value, memoryview)
    assert value.obj is data


def test_dup_and_pops():
    assert run(b"(K\x01K\x022t.") == (1, 2, 2)
    assert run(b"(K\x01K\x020(K\x05K\x061l.") == [1]


@pytest.mark.parametrize(
    ("opcodes", "found"),
    [
        (b"\x80\x06N.", "pickle protocol 6"),
        (b"\xff", "unknown opcode 0xff"),
        (b"0.", "IndexError"),
        (b"((0t.", "a mark in place of a value"),
        (b"NN.", "2 values at the end"),
        (b"(N.", "values at the end"),
        (b"h\x05.", "KeyError"),
        (b"}(NNNu.", "a key without a value"),
        (b"}]Ns.", "a key of type list"),
        (b"})Ns.", "a key of type tuple"),
        (b"NK\x01a.", "no list to add to"),
        (b"(K\x01e.", "IndexError"),
        (b"]K\x01K\x01s.", "no dict to add to"),
        (b"](K\x01\x90.", "no set to add to"),
        (b"NN\x93.", "asks for `None.None`"),
        (b"N)R.", "a call of something that is not a function"),
        (b"\x8b\xff\xff\x00\x00", "an integer of 65535 bytes"),
        (b"\x8b\xff\xff\xff\xff", "expected -1 more bytes"),
        (b"Sabc\n.", "a string without quotes"),
        (b"I12", "the end of the file"),
        (b"B\xff\xff\xff\x7fabc", "expected 2147483647 more bytes"),
        (b"\x8e" + b"\xff" * 8, "18446744073709551615 more bytes"),
        (b"X\x02\x00\x00\x00\xff\xfe.", "UnicodeDecodeError"),
        (b"I" + b"9" * 5000 + b"\n.", "ValueError"),
    ],
)
def test_malformed(opcodes, found):
    with pytest.raises(CheckpointError, match=r"some\.pkl.*") as caught:
        run(opcodes)
    assert found in str(caught.value)


@pytest.mark.parametrize(
    ("opcodes", "name"),
    [
        (b"cos\nsystem\n.", "os.system"),
        (b"\x8c\x05posix\x8c\x06system\x93.", "posix.system"),
        (b"(S'id'\nios\nsystem\n.", "os.system"),
        (b"cnumpy\nndarray\n)\x81.", "an object of numpy.ndarray"),
        (b"(cnumpy\nndarray\no.", "an object of numpy.ndarray"),
        (b"N)\x81.", "the opcode NEWOBJ"),
        (b"\x82\x01.", "the opcode EXT1"),
        (b"\x97.", "the opcode NEXT_BUFFER"),
        (b"P1\n.", "the opcode PERSID"),
        (b"NQ.", "a persistent id"),
        (b"cnumpy\nndarray\n)R.", "numpy.ndarray()"),
        (b"cnumpy\nndarray\n}b.", "attributes of numpy.ndarray"),
        (b"cnumpy\ndtype\n}b.", "attributes of numpy.dtype"),
        (b"]}b.", "attributes of list"),
        (b"NNb.", "attributes of NoneType"),
        (b"\x8c\x01a\n\x93.", "a"),
    ],
)
def test_refused_with_the_name(opcodes, name):
    with pytest.raises(CheckpointError) as caught:
        run(opcodes)
    assert name in str(caught.value)


def test_name_is_shown_on_one_line_and_clipped():
    with pytest.raises(CheckpointError, match=r"asks for `a\\r\\x1b\[31m.*`") as caught:
        run(b"ca\r\x1b[31m" + b"m" * 100_000 + b"\nname\n.")
    assert len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)


def test_persistent_ids_and_globals_go_to_the_caller():
    allowed = {("m", "f"): AllowedGlobal("m.f", lambda *values: list(values))}
    assert run(b"cm\nf\n(K\x01K\x02QtR.", allowed=allowed, persistent_load=lambda value: value + 1) == [1, 3]


def test_attributes_of_dictionaries_are_dropped():
    assert run(b"}}(U\x09_metadataNub.") == {}


def test_too_many_opcodes(monkeypatch):
    monkeypatch.setattr("kmaskformer.checkpoints.pickle_machine.MOST_OPCODES", 100)
    with pytest.raises(CheckpointError, match="more than 100 opcodes"):
        run(b"N0" * 100)


def test_duplicated_lists_take_no_memory():
    # Each list holds the one before ten times: 10**200 leaves, were they counted or copied.
    data = b"]q\x000" + b"".join(b"](" + b"h\x00" * 10 + b"eq\x000" for _ in range(200)) + b"h\x00."
    depth, value = 0, run(data)
    while value:
        depth, value = depth + 1, value[0]
    assert depth == 200


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_every_truncation_is_an_error(protocol):
    data = pickle.dumps({"a": np.arange(3), "b": [1, "x", 2.5]}, protocol)
    for length in range(len(data)):
        with pytest.raises(CheckpointError, match=r"some\.pkl"):
            run(data[:length])


def test_random_changes_never_do_anything_else(rng):
    modules = set(sys.modules)
    refused = 0
    data = {protocol: bytearray(pickle.dumps(PLAIN | {"a": np.ones(3)}, protocol)) for protocol in (0, 2, 4, 5)}
    for _ in range(2000):
        changed = bytearray(data[int(rng.choice([0, 2, 4, 5]))])
        for position in rng.integers(0, len(changed), 3):
            changed[position] = rng.integers(0, 256)
        try:
            run(bytes(changed))
        except CheckpointError:
            refused += 1
    assert refused > 100
    assert {name for name in set(sys.modules) - modules if not name.startswith(("encodings", "kmaskformer"))} == set()
