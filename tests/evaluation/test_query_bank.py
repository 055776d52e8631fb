"""QB-Norm's bank: training captions, named in the protocol, never the test set alone."""

from __future__ import annotations

import json

import pytest

from svilm_fast.core.errors import UserError
from svilm_fast.data.config import DataConfig
from svilm_fast.evaluation import RetrievalOptions, evaluate_dataset, query_bank
from svilm_fast.evaluation.protocols import protocol_lines
from svilm_fast.evaluation.query_bank import QueryBank, read_bank


@pytest.fixture
def training(tmp_path):
    """A list of 20 captions of 10 videos, none of which exists."""
    path = tmp_path / "train.jsonl"
    rows = [{"video": f"v{n}", "captions": [f"a dog {n}", f"a cat {n}"]} for n in range(10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_list_is_read_without_its_videos(training):
    bank = read_bank(DataConfig(train=training), None)
    assert (bank.name, bank.total, len(bank.captions)) == ("train.jsonl", 20, 20)
    assert bank.captions[:3] == ["a dog 0", "a cat 0", "a dog 1"]
    assert read_bank(DataConfig(), training) == bank
    some = read_bank(DataConfig(train=training), None, most=4)
    assert (some.captions, some.total) == (["a dog 0", "a cat 2", "a dog 5", "a cat 7"], 20)
    with pytest.raises(UserError, match="--bank"):
        read_bank(DataConfig(), None)


def test_the_bank_is_named_in_the_protocol(make_dataset, colour_model, training, monkeypatch):
    told: list[str] = []
    monkeypatch.setattr(query_bank.log, "warning", lambda text, *values: told.append(text % values))
    dataset = make_dataset()
    test = dataset.table[0].captions[0]
    bank = QueryBank("train.jsonl", ["a dog", test, "a cat"], 6)
    options = RetrievalOptions(set_level=("qbnorm",), bank=bank)
    result = evaluate_dataset(colour_model, dataset, options, batch_size=4)
    assert list(result.apart) == ["set-level qbnorm t2v"]
    facts = result.to_json()["protocol"]["bank"]
    assert (facts["captions"], facts["of"], facts["test_queries_among_them"]) == (3, 6, 1)
    assert "QB-Norm bank: 3 of 6 captions of train.jsonl" in "\n".join(protocol_lines(result.facts))
    assert "its bank contains 1 caption of the test queries" in told[0]
    with pytest.raises(UserError, match="holds only captions that are test queries"):
        QueryBank("test.csv", [test], 1).facts([test])
