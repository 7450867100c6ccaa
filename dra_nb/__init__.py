"""Dynamic Rank Adaptation (DRA) and other few-shot methods for CLIP: build, fit, evaluate, compare.

`dra-nb --help` lists the commands; dra_nb.methods, .training and .evaluation are for Python."""
__version__ = "0.2.0"
