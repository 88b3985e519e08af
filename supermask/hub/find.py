"""What the Hub has of ours."""

from __future__ import annotations

from huggingface_hub import HfApi
from huggingface_hub.hf_api import ModelInfo

from supermask.hub.failure import reported
from supermask.hub.place import TAG


def found(limit: int = 100) -> list[ModelInfo]:
    """Repositories on the Hub that carry our tag, the most downloaded first, with their cards' metadata.

    Raises:
        HubError: the Hub does not answer, or refuses.
    """
    with reported(None, "free space"):
        return list(HfApi().list_models(filter=TAG, sort="downloads", limit=limit, full=True, cardData=True))
