"""Probes: what they standardise, which scores they give, and that they learn what is there."""

from __future__ import annotations

import numpy as np
import pytest

from svilm_fast.core.errors import UserError
from svilm_fast.evaluation import probes
from svilm_fast.evaluation.probes import attentive, linear_svm, softmax_layer

svm = pytest.importorskip("sklearn.svm")
pipeline = pytest.importorskip("sklearn.pipeline")
preprocessing = pytest.importorskip("sklearn.preprocessing")


@pytest.fixture
def clusters():
    """Features [60, 6] and labels of three clusters; one column is constant, one is large."""
    random = np.random.default_rng(0)
    labels = np.arange(60) % 3
    features = random.normal(size=(60, 6)) + 4 * np.eye(3, 6)[labels]
    features[:, 4], features[:, 5] = 0.1, 1e4 * features[:, 5]
    return features.astype(np.float32), labels


def test_mmv_standardises_as_scikit_learn_does(clusters):
    features, labels = clusters
    fitted = linear_svm(features, labels, 3, c=0.001, standardise=True)
    reference = pipeline.make_pipeline(
        preprocessing.StandardScaler(), svm.LinearSVC(C=0.001, random_state=0)
    ).fit(features.astype(np.float64), labels)
    np.testing.assert_allclose(
        fitted.score(features), reference.decision_function(features.astype(np.float64)), atol=1e-6
    )
    assert fitted.notes["converged"].endswith("iterations")


def test_mil_nce_takes_features_as_they_are(clusters):
    features, labels = clusters
    features = features[:, :4]
    fitted = linear_svm(features, labels, 3, c=100.0, standardise=False)
    reference = svm.LinearSVC(C=100.0, random_state=0).fit(features, labels)
    np.testing.assert_allclose(fitted.score(features), reference.decision_function(features))


def test_a_fit_that_does_not_converge_is_told():
    features = 30 * np.random.default_rng(1).normal(size=(200, 100)).astype(np.float32)
    fitted = linear_svm(features, np.arange(200) % 3, 3, c=100.0, standardise=False)
    assert fitted.notes["converged"] == "no after 1000 iterations"


def test_softmax_layer_gives_probabilities(clusters):
    features, labels = clusters
    scores = softmax_layer(features, labels, 3).score(features)
    np.testing.assert_allclose(scores.sum(axis=1), 1)
    assert (scores.argmax(axis=1) == labels).mean() > 0.9


@pytest.mark.parametrize("fit", ["svm", "softmax"])
def test_a_class_without_training_features_is_never_the_best(clusters, fit):
    features, labels = clusters
    labels = np.where(labels == 1, 3, labels)  # classes 1 and 4 have none
    kind = {"svm": lambda: linear_svm(features, labels, 5, c=1.0, standardise=True)}
    scores = kind.get(fit, lambda: softmax_layer(features, labels, 5))().score(features)
    assert scores.shape == (60, 5)
    assert np.isfinite(scores).all()
    assert (scores.argmax(axis=1) == labels).mean() > 0.9
    others = np.delete(scores, [1, 4], axis=1).min(axis=1)
    assert (scores[:, [1, 4]] <= others[:, None]).all()


def test_two_classes_have_two_scores(clusters):
    features, labels = clusters
    fitted = linear_svm(features, (labels == 2).astype(int), 2, c=1.0, standardise=True)
    scores = fitted.score(features)
    np.testing.assert_array_equal(scores[:, 0], -scores[:, 1])
    assert ((scores.argmax(axis=1) == 1) == (labels == 2)).all()
    with pytest.raises(UserError, match="at least two classes"):
        linear_svm(features, np.zeros(60, dtype=int), 2, c=1.0, standardise=True)


def test_the_attentive_probe_finds_one_of_many_tokens():
    random = np.random.default_rng(2)
    labels = np.arange(90) % 3
    tokens = random.normal(size=(90, 5, 8)).astype(np.float32)
    marks = 6 * np.eye(3, 8, dtype=np.float32)[labels]
    tokens[np.arange(90), random.integers(0, 5, 90)] += marks  # at a random step
    fitted = attentive(tokens, labels, 3, epochs=60, batch=30, lr=1e-2)
    scores = fitted.score(tokens)
    assert (scores.argmax(axis=1) == labels).mean() > 0.9
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-6)
    again = attentive(tokens, labels, 3, epochs=60, batch=30, lr=1e-2)
    np.testing.assert_array_equal(again.score(tokens), scores)


def test_without_scikit_learn_the_extra_is_named(monkeypatch, clusters):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(probes.importlib, "import_module", missing)
    with pytest.raises(UserError, match=r"pip install 'svilm-fast\[probe\]'"):
        linear_svm(*clusters, 3, c=1.0, standardise=True)
