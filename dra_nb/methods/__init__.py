"""The compared methods; importing this package makes all of them known to `dra_nb.training.METHODS`."""
from . import zero_shot, adapter, dra
from ..training import METHODS, build_method
