"Train a little and write weights and history: `python ddp_fit.py METHOD OUT [CHECKPOINT]`, alone or under torchrun; with a checkpoint the training is stopped once and resumed."
import os, sys
from dataclasses import replace
import torch
from dra_nb.clip import load_clip
from dra_nb.data import base_new, few_shot_split, load_dataset
from dra_nb.methods import build_method
from dra_nb.training import Callback, fit, processes

class Unplug(Callback):
    def after_step(self, loop):
        if loop.step == 3: raise KeyboardInterrupt

def train(name, data, **kwargs):
    method = build_method(name, load_clip('glyph-clip', device='cpu'), 1)
    return method, fit(method, data, replace(method.recipe(data), epochs=3, batch_size=14, amp='off'), bar=False, **kwargs)

if __name__ == '__main__':
    torch.set_num_threads(1)
    if 'WORLD_SIZE' in os.environ: torch.distributed.init_process_group('gloo')
    name, out, *checkpoint = sys.argv[1:]
    data = base_new(few_shot_split(load_dataset('vehicles'), 2, 1))[0]
    again = dict(checkpoint=checkpoint[0], every=2) if checkpoint else {}
    if again:
        try: train(name, data, callbacks=[Unplug()], **again)
        except KeyboardInterrupt: assert os.path.exists(checkpoint[0])
    method, history = train(name, data, **again)
    if not processes()[0]: torch.save(dict(history=history, world=processes()[1], weights={n: p.detach() for n,p in method.trained().items()}), out)
    if processes()[1] > 1: torch.distributed.destroy_process_group()
