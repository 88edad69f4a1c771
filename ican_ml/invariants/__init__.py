"""What must hold of every encoder, network, bundle and data path, as checks that anyone can run on their own.

    from ican_ml.invariants.model import check_model

    check_model(network, schema)  # raises one InvariantError that names each invariant that does not hold

Likewise ``encoder.check_encoder``, ``bundle.check_bundle`` (without torch) and ``leakage.check_leakage``. Each has a
form that yields the checks one by one, by name, for a test runner. In the manner of scikit-learn's `check_estimator`.
"""
