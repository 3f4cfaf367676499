"""With a transformers older than the integration takes: it says so, and the rest works."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest
import torch
from hf_models import batch, make
from torch import Tensor, nn
from transformers import masking_utils

import flashint8
import flashint8.integrations
import flashint8.integrations.transformers as fi8


@pytest.fixture
def old(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 5.23, mask functions got cache_position in q_offset's place."""

    def sdpa_mask(batch_size: int, cache_position: Tensor, kv_length: int) -> None:
        pass

    monkeypatch.setattr(masking_utils, "sdpa_mask", sdpa_mask)
    monkeypatch.delitem(sys.modules, fi8.__name__)
    monkeypatch.delattr(flashint8.integrations, "transformers")


MESSAGE = r"needs transformers 5\.23 or newer, got 5\."


@pytest.mark.usefixtures("old")
def test_the_integration_is_refused() -> None:
    with pytest.raises(ImportError, match=MESSAGE):
        import flashint8.integrations.transformers  # noqa: F401


@pytest.mark.usefixtures("old")
def test_plain_models_are_quantised_all_the_same(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flashint8.quantize_model(model)
        flashint8.save_quantized(model, tmp_path / "x.safetensors")
        flashint8.load_quantized(nn.Sequential(nn.Linear(8, 8)), tmp_path / "x.safetensors")
    assert isinstance(model[0], flashint8.QuantLinear)


def test_its_models_are_quantised_with_a_warning(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model = make("llama")
    want = make("llama")
    flashint8.quantize_model(want)
    request.getfixturevalue("old")
    with pytest.warns(UserWarning, match=MESSAGE + r".*use flashint8\.save_quantized"):
        flashint8.quantize_model(model)
    inputs = batch()
    request.getfixturevalue("monkeypatch").undo()
    with torch.inference_mode():
        assert torch.equal(model(**inputs).logits, want(**inputs).logits)
    flashint8.save_quantized(model, tmp_path / "x.safetensors")
    assert not hasattr(model, "hf_quantizer")
