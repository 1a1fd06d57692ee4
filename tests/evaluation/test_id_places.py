"""Look-ups of ids, against a dictionary."""

import numpy as np
import pytest

from kmaskformer.evaluation.id_places import places_of

DTYPES = (np.bool_, np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [0, 1, 2, 11, 50, 3000])
def test_places(dtype: type, count: int) -> None:
    generator = np.random.default_rng(count)
    largest = 1 if dtype is np.bool_ else min(2**24, np.iinfo(dtype).max)
    small, any_size = generator.integers(0, largest + 1, count), generator.integers(-5, 2**24, count)
    ids = generator.permutation(np.unique([*small, *any_size, 2**32 + 3]))[:count].astype(np.int64)
    inside = ids[(ids >= 0) & (ids <= largest)]
    values = np.concatenate([generator.integers(0, largest + 1, 500), inside, [0, 3]]).astype(dtype)
    assert places_of(values, ids).tolist() == expected(values, ids)


def test_negative_values() -> None:
    ids = np.array([4, -1, 2**32 - 3])
    assert places_of(np.array([-1, -3, 4], np.int32), ids).tolist() == [1, 3, 0]
    assert places_of(np.array([-1, -3, 4]), ids).tolist() == [1, 3, 0]


def test_ids_that_no_table_keeps_apart() -> None:
    """Both are 5 in the 32 bits of the map's values."""
    ids = np.array([2**32 + 5, 5, 7])
    assert places_of(np.array([5, 7, 9], np.int32), ids).tolist() == [1, 2, 3]


def expected(values: np.ndarray, ids: np.ndarray) -> list[int]:
    places = {value: place for place, value in enumerate(ids.tolist())}
    return [places.get(int(value), ids.size) for value in values]
