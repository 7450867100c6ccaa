"""The compared methods; importing this package makes all of them known."""
from . import base, zero_shot, adapter, dra, coop
from . import maple, mma, kgcoop, cocoop, tcp
from . import lfa, metaprompt, proda, promptsrc, clip_lora, clip_adapter, tip_adapter
from . import control, dra_plus
from .base import (METHODS, Method, as_method, build_method, find_method, linear_layer, load_method,
                   method_names, register, save_method, saved_facts)
