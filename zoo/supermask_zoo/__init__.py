"""The architectures and recipes that come with supermask: plain `nn.Module`s that know nothing of masks."""
