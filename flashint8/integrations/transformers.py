"""flashint8 inside Hugging Face transformers (5.x): attention `fi8`, quantization `flashint8`.

Importing this module registers both::

    import flashint8.integrations.transformers as fi8

    model = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="fi8", quantization_config=fi8.FlashInt8Config()
    )
    model.save_pretrained(int8_folder)
    model = AutoModelForCausalLM.from_pretrained(int8_folder, attn_implementation="fi8")

In such folders the int8 tensor is called ``weight_int8``: a program that has not imported this
module reports missing weights, and does not take integers for a 16-bit weight.
"""

import inspect

from transformers import __version__, masking_utils

if "q_offset" not in inspect.signature(masking_utils.sdpa_mask).parameters:
    raise ImportError(
        f"flashint8.integrations.transformers needs transformers 5.23 or newer, got {__version__}"
    )

from flashint8.integrations._hf_attention import (
    ATTENTION,
    ATTENTION_OR_SDPA,
    attention_forward,
    use_attention,
)
from flashint8.integrations._hf_attention import register as _register_attention
from flashint8.integrations._hf_load import load_int8, load_int8_weights
from flashint8.integrations._hf_mask import interval_mask
from flashint8.integrations._hf_quantizer import (
    FlashInt8Config,
    FlashInt8Quantizer,
    PretrainedQuantLinear,
    adopt,
)

_register_attention()

__all__ = [
    "ATTENTION",
    "ATTENTION_OR_SDPA",
    "FlashInt8Config",
    "FlashInt8Quantizer",
    "PretrainedQuantLinear",
    "adopt",
    "attention_forward",
    "interval_mask",
    "load_int8",
    "load_int8_weights",
    "use_attention",
]
