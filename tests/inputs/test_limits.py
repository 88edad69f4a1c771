"""Arrays that no patient can give are refused; those of patients never are."""

import numpy as np
import pytest

from ican_ml.bundle.golden import invented_patients
from ican_ml.bundle.read import Arrays
from ican_ml.inputs.encode import collate, encode
from ican_ml.inputs.limits import InputError, check_inputs, input_limits
from ican_ml.inputs.schema import InputSchema


@pytest.fixture(scope="module")
def arrays(sim_schema: InputSchema) -> Arrays:
    return collate(encode(sim_schema, invented_patients(sim_schema, 5, seed=3)), np.arange(5))


def test_patients_pass(sim_schema: InputSchema, arrays: Arrays) -> None:
    limits = input_limits(sim_schema)
    assert set(limits) == set(arrays)
    check_inputs(limits, arrays)
    check_inputs(limits, collate(encode(sim_schema, invented_patients(sim_schema, 1, seed=1)), np.arange(1)))


@pytest.mark.parametrize("value", [-2, 10**6, np.nan, np.inf])
def test_every_input_out_of_range_is_refused(sim_schema: InputSchema, arrays: Arrays, value: float) -> None:
    limits = input_limits(sim_schema)
    for name, array in arrays.items():
        whole = np.issubdtype(array.dtype, np.integer)
        limit = limits[name]
        if not array.size or (whole and not np.isfinite(value)) or limit.low <= value <= limit.high:
            continue
        changed = array.copy()
        changed.flat[-1] = value
        with pytest.raises(InputError, match=name):
            check_inputs(limits, {**arrays, name: changed})


def test_shapes_must_agree(sim_schema: InputSchema, arrays: Arrays) -> None:
    limits = input_limits(sim_schema)
    for name, array in arrays.items():
        with pytest.raises(InputError):
            check_inputs(limits, {**arrays, name: array[:-1]})
        with pytest.raises(InputError, match=r"expected \d axes"):
            check_inputs(limits, {**arrays, name: array[..., None]})


def test_rows_must_add_up(sim_schema: InputSchema, arrays: Arrays) -> None:
    limits, name = input_limits(sim_schema), sim_schema.modalities[-1].name
    indptr = arrays[f"{name}_indptr"]
    for changed in (indptr + 1, indptr[::-1].copy(), np.append(indptr[:-1], indptr[-1] - 1)):
        with pytest.raises(InputError, match=f"{name}_indptr"):
            check_inputs(limits, {**arrays, f"{name}_indptr": changed})
    indices = arrays[f"{name}_indices"]
    row = int(np.flatnonzero(np.diff(indptr) > 1)[0])
    twice = indices.copy()
    twice[indptr[row] + 1] = twice[indptr[row]]
    with pytest.raises(InputError, match="ascending features"):
        check_inputs(limits, {**arrays, f"{name}_indices": twice})


def test_nobody_is_no_batch(sim_schema: InputSchema, arrays: Arrays) -> None:
    none = collate(encode(sim_schema, invented_patients(sim_schema, 2, seed=1)), np.arange(0))
    with pytest.raises(InputError, match="at least 1"):
        check_inputs(input_limits(sim_schema), none)
