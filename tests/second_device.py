"""A second device on a computer without one: what would mix it with the CPU is an error, as on a GPU.

`python tests/second_device.py [METHOD …]` puts a tiny CLIP on it and lets every method fit, test on
its classes and on new ones, and load what it saved. One line a method; exit code 1 if one fails.
The numbers are computed on the CPU; a wrapper claims another device and looks at every operation.
"""
import sys
import tempfile
import traceback
from dataclasses import replace

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import (_DummyBackendModule,
                                              _setup_privateuseone_for_python_backend)

NAME = 'second'
# a GPU's tensor may be indexed by one of the CPU, and copied from and to it
INDEXING = {'aten.index.Tensor', 'aten.index_put.default', 'aten.index_put_.default',
            'aten._index_put_impl_.default'}
COPYING = {'aten.copy_.default', 'aten._to_copy.default'}


class Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self):
        return [torch.bfloat16, torch.float16]

    def manual_seed_all(self, seed):
        pass

    def _is_in_bad_fork(self):
        return False


_setup_privateuseone_for_python_backend(NAME, backend_module=Backend())


class There(torch.Tensor):
    "A tensor that says it is on the second device; `raw` has its numbers."
    @staticmethod
    def __new__(cls, raw):
        made = torch.Tensor._make_wrapper_subclass(
            cls, raw.size(), strides=raw.stride(), storage_offset=raw.storage_offset(),
            dtype=raw.dtype, device=torch.device(NAME, 0))
        made.raw = raw
        return made

    def __getitem__(self, key):
        def whole(part):
            return torch.as_tensor(part) if isinstance(part, list) else part
        key = tuple(map(whole, key)) if isinstance(key, tuple) else whole(key)
        return super().__getitem__(key)

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return run(operation, args, kwargs or {})


class Mixed(RuntimeError):
    pass


def refuse_mixing(name, args, tensors):
    "A number of the CPU is welcome everywhere, a larger tensor only as an index."
    there = [isinstance(t, There) for t in tensors]
    if not any(there) or all(there) or name in COPYING:
        return
    if name in INDEXING:
        values = [args[0]] + [a for a in args[2:3] if isinstance(a, torch.Tensor)]
        wrong = any(not isinstance(t, There) and t.ndim for t in values)
    else:
        wrong = any(not isinstance(t, There) and t.ndim and t.device.type != 'meta'
                    for t in tensors)
    if wrong:
        said = [f'{t.device.type}{tuple(t.shape)}' for t in tensors]
        raise Mixed(f'{name}: {", ".join(said)}')


def run(operation, args, kwargs):
    "An operation on the numbers; what it makes is where its tensors are, or where it was told."
    name = str(operation)
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    refuse_mixing(name, args, tensors)
    there, asked = any(isinstance(t, There) for t in tensors), kwargs.get('device')
    if asked is not None:
        there = torch.device(asked).type == NAME
        kwargs = {**kwargs, 'device': torch.device('cpu') if there else asked}
    elif name == 'aten._to_copy.default':
        there = isinstance(args[0], There)

    def raw(value):
        return value.raw if isinstance(value, There) else value

    out = operation(*tree_map(raw, args), **tree_map(raw, kwargs))
    if name == 'aten.copy_.default':
        return args[0]
    known = {id(raw(t)): t for t in tensors}                 # in-place: the same tensor comes back

    def placed(value):
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) in known:
            return known[id(value)]
        return There(value) if there else value

    return tree_map(placed, out)


class Watch(TorchDispatchMode):
    "Within it new tensors can be made on the second device."
    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return run(operation, args, kwargs or {})


def patch_torch():
    "What the wrapper cannot do: draw there, make tensors from lists there, inference mode."
    from dra_nb import seeds
    draw = seeds.generator_for
    for module in list(sys.modules.values()):
        if getattr(module, '__name__', '').startswith('dra_nb') and hasattr(module, 'generator_for'):
            module.generator_for = lambda purpose, seed, number=0, device='cpu': draw(
                purpose, seed, number)
    tensor = torch.tensor

    def on_device(data, *, device=None, **options):
        made = tensor(data, **options)
        return made if device is None else made.to(device)

    torch.tensor = on_device
    torch.inference_mode = lambda mode=True: torch.no_grad() if mode else torch.enable_grad()


def try_method(name, clip, base, new, chunk):
    "Fit, test, save and load."
    from dra_nb.evaluation import accuracy
    from dra_nb.methods import build_method, load_method
    from dra_nb.training import fit
    method = build_method(name, clip)
    recipe = method.own_recipe(dataset=base.name)
    recipe = replace(recipe, epochs=min(recipe.epochs, 1), batch_size=2)
    try:
        fit(method, base, recipe, 1, bar=False, text_chunk=chunk)
        template = method.template_for(base)
        found = accuracy(method, base.test, base.classnames, template)
        accuracy(method, new.test, new.classnames, template, seen=False)
        if method.state():
            with tempfile.TemporaryDirectory() as folder:
                method.save(folder, dict(classnames=base.classnames))
                method.remove()
                method = load_method(folder, clip)
            again = accuracy(method, base.test, base.classnames, template)
            assert again == found, f'{found} % before it was saved, {again} % after'
    finally:
        method.remove()


def main(names):
    from dra_nb.data import base_new, few_shot_split, load_dataset
    from dra_nb.methods import METHODS
    from dra_nb.weights import GlyphClipConfig, build_glyph_clip
    torch.set_num_threads(1)
    torch.manual_seed(0)
    clip = build_glyph_clip(GlyphClipConfig(embed_dim=32, width=32, layers=12, head_width=16,
                                            context=32, image_size=32)).eval()
    base, new = base_new(few_shot_split(load_dataset('vehicles'), 1, 1))
    base = base._replace(train=base.train[:4], test=base.test[::60])
    new = new._replace(test=new.test[::60])
    patch_torch()
    failed = 0
    with Watch():
        clip.to(NAME)
        assert type(clip.visual.proj.data) is There
        for name in names or METHODS:
            # prompts in parts have code of their own, which few methods add to
            for chunk in (None, 12) if name in ('dra', 'cocoop', 'proda') else (None,):
                try:
                    try_method(name, clip, base, new, chunk)
                    print(f'{name}, chunk {chunk}: fine', flush=True)
                except Exception as e:
                    failed += 1
                    place = [f'{f.filename.rsplit("/", 1)[-1]}:{f.lineno}'
                             for f in traceback.extract_tb(e.__traceback__)
                             if 'dra_nb' in f.filename]
                    print(f'{name}, chunk {chunk}: {type(e).__name__} {e} ({", ".join(place[-3:])})',
                          flush=True)
    return int(failed > 0)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
