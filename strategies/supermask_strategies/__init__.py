"""The mask searches that come with supermask, each one file and one entry point."""

from supermask_strategies.bernoulli import Bernoulli
from supermask_strategies.dense import Dense
from supermask_strategies.dnw import DNW
from supermask_strategies.edge_popup import EdgePopup
from supermask_strategies.random_subnet import RandomSubnet

__all__ = ["DNW", "Bernoulli", "Dense", "EdgePopup", "RandomSubnet"]
