"""Several lines become one; discoveries are counted once."""

import numpy as np

from ican_ml.targets.ranking import benjamini_hochberg, combined, in_spreads


def test_lines_count_in_units_of_their_spread_and_no_evidence_is_none() -> None:
    score = np.array([[3.0, np.nan, -1.0, np.nan, 0.5]])
    found = in_spreads(score)
    np.testing.assert_allclose(found, in_spreads(100 * score))
    np.testing.assert_allclose(found, np.nan_to_num(score) / np.sqrt((9 + 1 + 0.25) / 3))
    assert not in_spreads(np.zeros((1, 3))).any()
    np.testing.assert_allclose(combined(np.concatenate([score, 5 * score])), 2 * found[0])


def test_false_discovery_rates_are_those_of_the_paper() -> None:
    # Benjamini and Hochberg 1995, section 4: four of these fifteen are rejected at .05.
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344]
    p += [0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0]
    every = np.ones(15, bool)
    q = benjamini_hochberg(np.array(p), every)
    assert (q <= 0.05).sum() == 4
    assert (np.diff(q) >= 0).all()
    shuffled = np.random.default_rng(0).permutation(15)
    np.testing.assert_allclose(benjamini_hochberg(np.array(p)[shuffled], every), q[shuffled])


def test_what_follows_another_is_not_counted() -> None:
    p = np.array([0.001, 0.001, 0.001, 0.002, 0.5, np.nan])
    q = benjamini_hochberg(p, np.array([True, False, False, True, True, True]))
    np.testing.assert_allclose(q, [0.005, np.nan, np.nan, 0.005, 0.5 * 5 / 3, np.nan])
