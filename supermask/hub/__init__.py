"""The Hugging Face Hub: pull, push and find artifacts, through huggingface_hub.

What comes from there is not believed. The client compares sizes alone, so every file is held against the hash under
which the Hub announced it, the configuration is checked before the tensors are asked for, and the artifact by every
rule of docs/format.md before anyone is told where it lies.
"""

from supermask.hub.fetch import forget, pull
from supermask.hub.find import found
from supermask.hub.place import TAG, Address, address
from supermask.hub.send import Pushed, push

__all__ = ["TAG", "Address", "Pushed", "address", "forget", "found", "pull", "push"]
