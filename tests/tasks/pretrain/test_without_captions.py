"""Pre-training on videos with captions refuses a data set that is read without them."""

from __future__ import annotations

import pytest

from svilm_fast.core.errors import UserError
from svilm_fast.data.tokenizer import Tokenizer
from svilm_fast.tasks.pretrain.task import Pretraining
from svilm_fast.train.config.load import load_config


def test_objectives_that_read_captions_need_them():
    config = load_config(None, ["model.preset=tiny", "data.captions=none"])
    with pytest.raises(UserError, match=r"data\.captions=none and the objectives"):
        Pretraining(config).dataset("train", Tokenizer.train(["a dog"]), train=True)
