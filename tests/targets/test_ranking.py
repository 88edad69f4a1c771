"""Ranks of several lines become one; discoveries are counted once."""

import numpy as np

from ican_ml.targets.ranking import benjamini_hochberg, normal_scores


def test_normal_scores_depend_on_ranks_alone_and_no_evidence_is_the_middle() -> None:
    score = np.array([[3.0, np.nan, -1.0, np.nan, 0.5]])
    found = normal_scores(score)
    np.testing.assert_array_equal(found, normal_scores(np.sign(score) * np.abs(score) ** 3))
    assert found[0, 0] > found[0, 4] > found[0, 1] == found[0, 3] > found[0, 2]
    np.testing.assert_allclose(normal_scores(np.arange(9.0)[None]).sum(), 0, atol=1e-12)


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
