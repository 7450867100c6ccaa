"Train a little and write weights and history: `python ddp_fit.py METHOD OUT`, alone or under torchrun."
import os, sys
from dataclasses import replace
import torch
from dra_nb.clip import load_clip
from dra_nb.data import base_new, few_shot_split, load_dataset
from dra_nb.methods import build_method
from dra_nb.training import fit, processes

if __name__ == '__main__':
    torch.set_num_threads(1)
    if 'WORLD_SIZE' in os.environ: torch.distributed.init_process_group('gloo')
    data = base_new(few_shot_split(load_dataset('vehicles'), 1, 1))[0]
    method = build_method(sys.argv[1], load_clip('glyph-clip', device='cpu'), 1)
    history = fit(method, data, replace(method.recipe(data), epochs=3, batch_size=14, amp='off'), bar=False)
    if not processes()[0]: torch.save(dict(history=history, world=processes()[1], weights={n: p.detach() for n,p in method.trained().items()}), sys.argv[2])
    if processes()[1] > 1: torch.distributed.destroy_process_group()
