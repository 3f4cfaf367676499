"""Models and blocks built from the package's parts."""

from flashint8.models.cache import KVCache
from flashint8.models.config import PRESETS, ModelConfig
from flashint8.models.decoder import Decoder
from flashint8.models.gpt import GPT
from flashint8.models.llama import Llama
from flashint8.models.loading import from_nanogpt, from_pretrained, from_source

__all__ = [
    "GPT",
    "PRESETS",
    "Decoder",
    "KVCache",
    "Llama",
    "ModelConfig",
    "from_nanogpt",
    "from_pretrained",
    "from_source",
]
