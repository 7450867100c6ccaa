"What page 16 cannot show well: every kind of file, hostile ones, no network, every name and tag."
import hashlib
import json
import os
import pickle
import random
import socket
import subprocess
import sys
import zipfile

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from dra_nb import weights as W
from dra_nb.clip import cut_padding, image_features, image_tower, text_features, text_tower
from dra_nb.weights import (GlyphClipConfig, build_glyph_clip, find_device, glyph_clip_facts,
                            load_clip, save_glyph_clip, weights_digest)

VISION = dict(image_size=32, patch_size=8, width=64, layers=2, head_width=32)
TEXT = dict(context_length=16, width=48, heads=3, layers=3)
SHAPE = dict(embed_dim=20, vision_cfg=VISION, text_cfg=TEXT)
MARKS = dict(input_resolution=32, context_length=16, vocab_size=49408)

@pytest.fixture(scope='module', autouse=True)
def names(tmp_path_factory):
    "A small model under names of its own, with and without QuickGELU."
    d = tmp_path_factory.mktemp('configs')
    (d/'small.json').write_text(json.dumps(SHAPE))
    (d/'small-quickgelu.json').write_text(json.dumps(SHAPE | dict(quick_gelu=True)))
    open_clip.add_model_config(d)

@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    return open_clip.CLIP(**SHAPE, quick_gelu=True).eval()

def tree(state):
    "A module with the given state dict."
    root = nn.Module()
    for key,v in state.items():
        *path, leaf = key.split('.')
        m = root
        for part in path:
            m = m._modules.setdefault(part, nn.Module())
        m.register_buffer(leaf, v)
    return root

def archive(state, path):
    torch.jit.script(tree(state)).save(str(path))
    return path

def openai(model, path):
    state = {k: v.half() for k,v in model.state_dict().items()}
    return archive(state | {k: torch.tensor(v) for k,v in MARKS.items()}, path)

def same(a, b, **tolerance):
    x, t = torch.randn(3, 3, 32, 32), torch.randint(1, 400, (4, 16))
    with torch.no_grad():
        assert_close(image_features(a, x), image_features(b, x), **tolerance)
        assert_close(text_features(a, t), text_features(b, t), **tolerance)

def refused(*args, match=None, **kwargs):
    "The one line with which `load_clip` refuses."
    with pytest.raises(ValueError, match=match) as e:
        load_clip(*args, device='cpu', **kwargs)
    said = str(e.value)
    assert '\n' not in said and len(said) < 800
    return said

# --- files ----------------------------------------------------------------------------------------

def test_every_kind_of_file_gives_the_same_model(model, tmp_path):
    state = model.state_dict()
    wrapped = {f'module.{k}': v for k,v in state.items()}
    checkpoint = dict(epoch=3, name='run', state_dict=wrapped,
                      optimizer=dict(state={}, param_groups=[]))
    torch.save(state, tmp_path/'a.pt')
    torch.save(checkpoint, tmp_path/'b.pt')
    torch.save(state, tmp_path/'c.bin')
    torch.save(state, tmp_path/'old.pt', _use_new_zipfile_serialization=False)
    save_file({k: v.contiguous() for k,v in state.items()}, tmp_path/'d.safetensors')
    for f in ('a.pt', 'b.pt', 'c.bin', 'old.pt', 'd.safetensors'):
        same(load_clip('small-quickgelu', tmp_path/f, device='cpu'), model)
    loaded = load_clip('small-quickgelu', str(openai(model, tmp_path/'e.pt')), device='cpu')
    same(loaded, model, rtol=2e-2, atol=2e-2)

def test_reader_agrees_with_torch_on_a_traced_program_with_typed_attributes(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7))
            self.sizes = [1, 2, 3]
            self.pair = (4, 'x')
            self.name = 'net'
            self.shared = self.inner[0].weight
            self.register_buffer('cut', torch.arange(24.).view(4, 6)[1:, ::2])
            self.register_buffer('flag', torch.tensor(True))
            self.list: list[torch.Tensor] = [torch.ones(2)]
        def forward(self, x):
            return self.inner(x).relu() + self.cut.sum()*len(self.sizes)
    programs = torch.jit.script(Net().eval()), torch.jit.trace(Net().eval(), torch.randn(2, 5))
    for k,program in enumerate(programs):
        path = tmp_path/f'{k}.pt'
        program.save(str(path))
        ours, theirs = W._openai_tensors(path), torch.jit.load(str(path)).state_dict()
        assert set(ours) == set(theirs)
        for key in ours:
            assert_close(ours[key], theirs[key], rtol=0, atol=0)
            assert ours[key].dtype == theirs[key].dtype

class Evil:
    "Makes a folder when it is unpickled by a reader that trusts its file."
    def __init__(self, path):
        self.path = str(path)
    def __reduce__(self):
        return os.mkdir, (self.path,)

def test_no_code_of_a_file_runs(tmp_path):
    evil = Evil(tmp_path/'ran')
    torch.save(dict(state_dict=evil), tmp_path/'evil.pt')
    refused('small-quickgelu', tmp_path/'evil.pt', match='cannot be read as weights')
    with zipfile.ZipFile(tmp_path/'evil2.pt', 'w') as z:
        z.writestr('a/data.pkl', pickle.dumps(evil, 2))
        z.writestr('a/constants.pkl', b'')
    refused('small-quickgelu', tmp_path/'evil2.pt', match='it asks for (posix|nt|os).mkdir')
    (tmp_path/'evil3.pt').write_bytes(pickle.dumps(evil, 2))
    refused('small-quickgelu', tmp_path/'evil3.pt', match='cannot be read as weights')
    assert not (tmp_path/'ran').exists()

LOOP = b'\x80\x02c__torch__\nM\n)\x81q\x00}X\x01\x00\x00\x00mh\x00sb.'

def one_tensor(size, stride):
    "The pickle of a module with one tensor on a storage of two numbers."
    storage = (b'(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000'
               b'X\x03\x00\x00\x00cpuK\x02tQ')
    shape = b'K\x00J' + size.to_bytes(4, 'little') + b'\x85K' + bytes([stride]) + b'\x85'
    return (b'\x80\x02c__torch__\nM\n)\x81}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n('
            + storage + shape + b'\x89ccollections\nOrderedDict\n)RtRsb.')

def written(path, pickled):
    "An archive with this list of tensors and eight bytes."
    with zipfile.ZipFile(path, 'w') as z:
        z.writestr('a/data.pkl', pickled)
        z.writestr('a/constants.pkl', b'')
        z.writestr('a/data/0', b'\0'*8)
    return path

def test_damaged_files_end_in_one_line(model, tmp_path):
    whole = openai(model, tmp_path/'whole.pt').read_bytes()
    flipped = bytearray(whole)
    flipped[len(flipped)//2] ^= 255
    (tmp_path/'empty.pt').write_bytes(b'')
    (tmp_path/'text.pt').write_bytes(b'not weights')
    (tmp_path/'half.pt').write_bytes(whole[:len(whole)//2])
    (tmp_path/'x.safetensors').write_bytes(whole[:1000])
    (tmp_path/'flipped.pt').write_bytes(flipped)
    written(tmp_path/'loop.pt', LOOP)                       # a module that contains itself
    written(tmp_path/'beyond.pt', one_tensor(99, 1))        # a tensor beyond its bytes
    written(tmp_path/'blown.pt', one_tensor(10**9, 0))      # a thousand million times one number
    torch.save([1, 2], tmp_path/'list.pt')
    torch.save(torch.ones(3), tmp_path/'tensor.pt')
    torch.save({}, tmp_path/'nothing.pt')
    torch.save(dict(state_dict=None), tmp_path/'none.pt')
    for f in tmp_path.iterdir():
        if f.name != 'whole.pt':
            assert f.name in refused('small-quickgelu', f, match='^pretrained: ')

def test_modules_that_hang_in_two_places_are_read_once(tmp_path):
    "Each level holds the next one twice: 2**60 names, if every place had its own."
    inner = b'c__torch__\nM\n)\x81}X\x01\x00\x00\x00wK\x01sb'
    pickled = inner + b'q\x00'
    for level in range(60):
        get = b'h' + bytes([level])
        pickled += (b'0c__torch__\nM\n)\x81}(X\x01\x00\x00\x00a' + get + b'X\x01\x00\x00\x00b' + get
                    + b'ubq' + bytes([level+1]))
    path = written(tmp_path/'double.pt', b'\x80\x02' + pickled + b'.')
    assert W._openai_tensors(path) == {}
    refused('small-quickgelu', path, match='^pretrained: ')

def test_weights_of_another_model_are_refused(model, tmp_path):
    state = model.state_dict()
    torch.save(state, tmp_path/'a.pt')
    refused('ViT-S-32-alt', tmp_path/'a.pt', match='cannot be read as weights of ViT-S-32-alt')
    state.pop('ln_final.weight')
    torch.save(state, tmp_path/'b.pt')
    refused('small', tmp_path/'b.pt', match='ln_final.weight')

BAD = {'nan': lambda t: torch.full_like(t, torch.nan),
       'inf': lambda t: torch.full_like(t, -torch.inf),
       'int': lambda t: t.int(), 'bool': lambda t: t.bool(),
       'complex': lambda t: t.to(torch.complex64),
       'fp8': lambda t: t.to(torch.float8_e4m3fn)}

@pytest.mark.parametrize('kind', BAD)
def test_tensors_that_are_no_finite_numbers_are_refused_with_file_and_name(model, tmp_path, kind):
    state = dict(model.state_dict())
    state['visual.proj'] = BAD[kind](state['visual.proj'])
    files = ['a.pt', 'b.pt', 'd.safetensors']
    torch.save(state, tmp_path/'a.pt')
    torch.save(dict(state_dict={f'module.{k}': v for k,v in state.items()}), tmp_path/'b.pt')
    save_file(state, tmp_path/'d.safetensors')
    if kind not in ('complex', 'fp8'):                      # an archive has no such storage
        archive(state | {k: torch.tensor(v) for k,v in MARKS.items()}, tmp_path/'e.pt')
        files.append('e.pt')
    for f in files:
        said = refused('small-quickgelu', tmp_path/f, match='^pretrained: ')
        assert f in said and 'visual.proj' in said

def test_published_names_are_checked_by_hash(model, tmp_path):
    for name in ('ViT-B-16.pt', 'ViT-L-14-336px.pt', 'vit_b_16-laion400m_e32-55e67d44.pt'):
        refused('small-quickgelu', openai(model, tmp_path/name), match='download it again')
    sha = {name: digest for name,(digest,_) in W._published().items()}
    assert sha['ViT-B-32.pt'] == '40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af'
    assert sha['ViT-L-14.pt'] == 'b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836'
    for digest in sha.values():
        assert set(digest) <= set('0123456789abcdef') and len(digest) in (8, 64)

# --- glyph-clip's files ---------------------------------------------------------------------------

TINY = GlyphClipConfig(embed_dim=8, width=8, layers=2, head_width=4, image_size=16, context=12)

def glyph_file(path, change=None, shape=None):
    "A file of glyph-clip's kind, with something changed before it is written."
    tokens = torch.tensor([5, 7, 49406, 49407])
    config = dict(vars(TINY)) | (shape or {})
    save_glyph_clip(build_glyph_clip(TINY), path, dict(config=dict(model=config)), tokens)
    if change:
        with W.safe_open(str(path), 'pt') as f:
            state, metadata = {k: f.get_tensor(k) for k in f.keys()}, f.metadata()
        change(state)
        save_file(state, path, metadata=metadata)
    return path

def set_to(key, value):
    def change(state):
        state[key] = value(state[key])
    return change

@pytest.mark.parametrize('kind', BAD)
def test_glyph_clip_refuses_tensors_that_are_no_finite_numbers(tmp_path, kind):
    path = glyph_file(tmp_path/'x.safetensors', set_to('visual.proj', BAD[kind]))
    said = refused('glyph-clip', path)
    assert 'x.safetensors' in said and ('visual.proj' in said or kind == 'complex')

WRONG_SHAPES = [dict(layers=10**12), dict(layers=3), dict(width=10**6), dict(width='8'),
                dict(layers=None), dict(head_width=3), dict(patch=5), dict(context=True),
                dict(embed_dim=-8), dict(image_size=32), dict(more=1), dict(context=13)]

@pytest.mark.parametrize('shape', WRONG_SHAPES)
def test_glyph_clip_refuses_shapes_that_are_not_those_of_its_tensors(tmp_path, shape):
    path = glyph_file(tmp_path/'x.safetensors', shape=shape)
    assert 'x.safetensors' in refused('glyph-clip', path)

@pytest.mark.parametrize('ids', [[5, 7, 9], [-1, 7, 8, 9], [5, 7, 9, 49408], []])
def test_glyph_clip_refuses_token_ids_that_fit_no_row(tmp_path, ids):
    ids = torch.tensor(ids, dtype=torch.int32)
    path = glyph_file(tmp_path/'x.safetensors', set_to('token_ids', lambda t: ids))
    assert 'token_ids' in refused('glyph-clip', path)

KEYS = ['token_ids', 'token_embedding.weight', 'visual.conv1.weight', 'ln_final.bias']

@pytest.mark.parametrize('key', KEYS)
def test_glyph_clip_refuses_files_with_a_tensor_missing(tmp_path, key):
    refused('glyph-clip', glyph_file(tmp_path/'x.safetensors', lambda state: state.pop(key)))

OTHER_FACTS = ['[1]', 'null', '{', '{"config": {}}', '{"config": {"model": 3}}', '{"config": [1]}',
               '['*200_000]

@pytest.mark.parametrize('metadata', [None, {}, *(dict(facts=text) for text in OTHER_FACTS)])
def test_facts_of_other_files_are_refused(tmp_path, metadata):
    save_file({'a': torch.ones(2)}, tmp_path/'x.safetensors', metadata=metadata)
    refused('glyph-clip', tmp_path/'x.safetensors', match='is no file of glyph-clip')
    with pytest.raises(ValueError, match='is no file of glyph-clip'):
        glyph_clip_facts(tmp_path/'x.safetensors')

def test_the_embedded_file_loads_and_tells_of_itself():
    facts = glyph_clip_facts()
    m = load_clip('glyph-clip', device='cpu')
    assert facts['config']['model']['layers'] == 12
    assert len(image_tower(m).blocks) == len(text_tower(m).blocks) == 12
    assert not m.training and m.image_size == 64 and m.clip_facts['name'] == 'glyph-clip'

def test_saving_weights_that_are_not_finite_is_refused_and_leaves_the_old_file(tmp_path):
    path = glyph_file(tmp_path/'x.safetensors')
    before, m = path.read_bytes(), build_glyph_clip(TINY)
    with torch.no_grad():
        m.visual.proj[0, 0] = 1e30                          # infinite in half precision
    with pytest.raises(ValueError, match='visual.proj holds values that are not finite'):
        save_glyph_clip(m, path, dict(config=dict(model=vars(TINY))), torch.tensor([1]))
    assert path.read_bytes() == before

# --- activation -----------------------------------------------------------------------------------

def test_openai_layout_is_refused_under_the_plain_name(model, tmp_path):
    refused('small', openai(model, tmp_path/'any.pt'), match="use the name 'small-quickgelu'")
    no_marks = archive({k: v.half() for k,v in model.state_dict().items()}, tmp_path/'own.pt')
    load_clip('small', no_marks, device='cpu')              # nothing says whose it is

def test_known_contents_are_refused_whatever_the_file_is_called(model, tmp_path, monkeypatch):
    torch.save(model.state_dict(), tmp_path/'x.pt')
    digest = hashlib.sha256((tmp_path/'x.pt').read_bytes()).hexdigest()
    monkeypatch.setattr(W, '_published', lambda: {'published.pt': (digest, True)})
    refused('small', tmp_path/'x.pt', match='was trained with QuickGELU')
    load_clip('small-quickgelu', tmp_path/'x.pt', device='cpu')

# --- names, before anything is fetched ------------------------------------------------------------

@pytest.fixture
def nothing_is_fetched(monkeypatch):
    def fetch(*args, **kwargs):
        raise RuntimeError('fetched')
    monkeypatch.setattr(open_clip, 'create_model', fetch)
    monkeypatch.setattr(W, '_hub_answers', lambda: False)

def advised(said):
    "The name a refusal tells to use, or None."
    for words in ("use the name '", "did you mean '"):
        if words in said:
            return said.split(words)[1].split("'")[0]

def test_every_name_and_tag_is_fetched_or_refused_with_advice_that_works(nothing_is_fetched):
    seen = dict(fetched=0, activation=0, unsupported=0)
    for name,tag in open_clip.list_pretrained():
        said = refused(name, tag)
        if 'fetched (' in said or "('fetched')" in said or said.endswith('(fetched)'):
            seen['fetched'] += 1
            assert W._fits(name, tag) and W._unsupported(name) is None
        elif 'computes' in said:
            seen['activation'] += 1
            other = advised(said)
            assert other is None or refused(other, tag).endswith('(fetched)')
        else:
            seen['unsupported'] += 1
            assert W._unsupported(name) and advised(said) is None
    assert min(seen.values()) > 10

KINDS = {'RN50': 'ResNet', 'RN50x64-quickgelu': 'ResNet', 'ViT-B-16-SigLIP': 'timm',
         'ViT-gopt-16-SigLIP2-256': 'timm', 'EVA02-L-14': 'timm', 'convnext_base_w': 'timm',
         'PE-Core-B-16': 'timm', 'MobileCLIP-B': 'timm', 'coca_ViT-B-32': 'CoCa',
         'coca_roberta-ViT-B-32': 'CoCa', 'roberta-ViT-B-32': 'roberta-base',
         'xlm-roberta-large-ViT-H-14': 'xlm-roberta', 'nllb-clip-base': 'nllb',
         'ViT-H-14-CLIPA': 'bert',
         'ViT-H-14-worldwide': 'xlm-v'}

@pytest.mark.parametrize('name', KINDS)
def test_towers_that_cannot_be_adapted_are_refused_by_name(nothing_is_fetched, name):
    for pretrained in (None, 'openai', 'webli'):
        said = refused(name, pretrained, match=f'^name: got {name!r}, which .*{KINDS[name]}')
        assert 'ViT-B-16-quickgelu' in said and f"'{name}-quickgelu'" not in said

def test_names_that_pass_have_the_towers_of_this_package():
    passed = [name for name in open_clip.list_models() if W._unsupported(name) is None]
    assert len(passed) > 25
    for name in passed:
        if 'bigG' in name or name.startswith(('ViT-e', 'ViT-g')):
            continue                                        # slow to build, and like the others
        config = open_clip.get_model_config(name)
        config.pop('custom_text', None)
        with torch.device('meta'):
            m = open_clip.CLIP(**config)
        assert image_tower(m).width and text_tower(m).mask is not None

NEARLY = [('ViT-B/16', None, 'ViT-B-16'), ('ViT-B/16', 'openai', 'ViT-B-16-quickgelu'),
          ('ViT-L/14', None, 'ViT-L-14'), ('ViT-L/14@336px', 'openai', 'ViT-L-14-336-quickgelu'),
          ('vit-b-32', None, 'ViT-B-32'), ('ViTB16', None, 'ViT-B-16'),
          ('ViT-B16', 'openai', 'ViT-B-16-quickgelu'),
          ('glyphclip', None, 'glyph-clip'), ('Glyph-CLIP', None, 'glyph-clip')]

@pytest.mark.parametrize('given, pretrained, meant', NEARLY)
def test_names_nearly_right_are_answered(nothing_is_fetched, given, pretrained, meant):
    said = refused(given, pretrained, match=f'^name: got {given!r}')
    assert said.endswith(f'did you mean {meant!r}?')

@pytest.mark.parametrize('name', ['', 'foo', 'hf-hub:laion/x', 'local-dir:/x', None, 3, 'x'*1000])
def test_names_of_nothing_are_refused(nothing_is_fetched, name):
    with pytest.raises(ValueError, match='^name: got') as e:
        load_clip(name, device='cpu')
    assert '\n' not in str(e.value)

@pytest.mark.parametrize('pretrained', ['no-such-tag', 'missing.pt', '.', 'openai '])
def test_tags_and_files_that_are_not_there_are_refused(nothing_is_fetched, pretrained):
    refused('ViT-B-16-quickgelu', pretrained, match='^pretrained: got')
    refused('glyph-clip', pretrained, match='^pretrained: got')

# --- devices --------------------------------------------------------------------------------------

ABSENT = ['gpu', 'CPU', 'cuda:-1', 'cuda:99', 'meta', 'foo', '', 'cpu:1', 'xla', 0, 1.5,
          torch.device('meta')]
if not torch.cuda.is_available():
    ABSENT += ['cuda', 'cuda:0', torch.device('cuda')]
if not torch.backends.mps.is_available():
    ABSENT += ['mps']

@pytest.mark.parametrize('device', ABSENT)
def test_devices_that_are_not_there_are_refused(device):
    for ask in (find_device, lambda d: load_clip('glyph-clip', device=d)):
        with pytest.raises(ValueError, match='^device: got .*, there are here: cpu') as e:
            ask(device)
        assert '\n' not in str(e.value)

def test_devices_that_are_there():
    assert find_device('cpu') == find_device(torch.device('cpu')) == torch.device('cpu')
    assert find_device().type == ('cuda' if torch.cuda.is_available() else 'cpu')

# --- no network -----------------------------------------------------------------------------------

def without_network(code, tmp_path, **env):
    "Run some code in a process whose hub has an empty cache."
    clean = {k: v for k,v in os.environ.items() if 'proxy' not in k.lower()}
    clean |= dict(HF_HOME=str(tmp_path), HF_HUB_CACHE=str(tmp_path), OMP_NUM_THREADS='1', **env)
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=clean,
                          cwd=tmp_path, timeout=300)

ASK = '''
from dra_nb.clip import load_clip
try: load_clip('ViT-B-16-quickgelu', 'openai', 'cpu')
except ValueError as e: print(e)
'''

def test_without_a_network_there_is_one_try_and_one_line(tmp_path):
    "Once a hub that is switched off, once one that refuses connections: they are counted."
    with socket.socket() as closed:
        closed.bind(('127.0.0.1', 0))                       # bound, but nobody listens
        nowhere = f'http://127.0.0.1:{closed.getsockname()[1]}'
        for env in (dict(HF_HUB_OFFLINE='1'), dict(HF_ENDPOINT=nowhere)):
            out = without_network(ASK, tmp_path, **env)
            assert out.returncode == 0, out.stderr
            said = out.stdout.splitlines()
            assert len(said) == 1 and 'without a network, copy a weights file here' in said[0]
            assert 'ViT-B-16-quickgelu' in said[0] and len(said[0]) < 600
            assert out.stderr.count('\n') == 0, out.stderr

def test_the_hub_is_asked_once_where_it_does_not_answer(monkeypatch):
    asked = []
    class Session:
        def head(self, *args, **kwargs):
            asked.append(args)
            raise OSError('no network')
    monkeypatch.setattr(W, 'get_session', Session)
    monkeypatch.setattr(W.constants, 'HF_HUB_OFFLINE', False)
    def create(*args, **kwargs):
        assert W.constants.HF_HUB_OFFLINE
        raise RuntimeError('not in the cache')
    monkeypatch.setattr(open_clip, 'create_model', create)
    refused('ViT-B-16-quickgelu', 'openai', match='not in the cache')
    assert len(asked) == 1 and not W.constants.HF_HUB_OFFLINE

# --- digests --------------------------------------------------------------------------------------

def test_digest_of_weights(tmp_path):
    embedded = weights_digest('glyph-clip')
    assert len(embedded) == 10 and set(embedded) <= set('0123456789abcdef')
    assert weights_digest('ViT-B-16-quickgelu', 'openai') == 'openai'
    assert weights_digest('ViT-B-16') is None
    (tmp_path/'x.pt').write_bytes(b'one')
    one = weights_digest('ViT-B-16', tmp_path/'x.pt')
    assert one == hashlib.sha256(b'one').hexdigest()[:10]
    assert one == weights_digest('glyph-clip', str(tmp_path/'x.pt'))
    (tmp_path/'x.pt').write_bytes(b'two')
    assert weights_digest('ViT-B-16', tmp_path/'x.pt') != one

# --- other models ---------------------------------------------------------------------------------

def test_vit_b_32_with_random_weights_equals_open_clip():
    m = load_clip('ViT-B-32-quickgelu', device='cpu')
    images, tokens = torch.randn(2, 3, 224, 224), m.tokenizer(['a photo of a tram.', 'a cat'])
    with torch.no_grad():
        close = dict(rtol=1e-4, atol=1e-4)
        assert_close(image_features(m, images), m.encode_image(images), **close)
        assert_close(text_features(m, cut_padding(tokens)), m.encode_text(tokens), **close)
    assert (m.image_size, m.training, m.clip_name) == (224, False, 'ViT-B-32-quickgelu')

def test_files_take_the_normalisation_that_all_tags_of_a_model_share(model, tmp_path, monkeypatch):
    torch.save(model.state_dict(), tmp_path/'x.pt')
    shared = dict(mean=(.5,)*3, resize_mode='squash', quick_gelu=True)
    cfgs = dict(a=shared | dict(std=(.5,)*3), b=shared | dict(std=(.4,)*3))
    monkeypatch.setattr(open_clip, 'list_pretrained_tags_by_model', lambda name: list(cfgs))
    monkeypatch.setattr(open_clip, 'get_pretrained_cfg', lambda name, tag: cfgs.get(tag, {}))
    monkeypatch.setattr(W, '_published', dict)
    m = load_clip('small-quickgelu', tmp_path/'x.pt', device='cpu')
    assert m.mean == (.5,)*3 and m.std == (.26862954, .26130258, .27577711)   # shared; not shared
    assert 'CenterCrop' not in str(m.preprocess)   # squashed, not cropped

# --- the test transform ---------------------------------------------------------------------------

def test_preprocess_equals_the_field_to_the_pixel():
    m, rng = load_clip('small', device='cpu'), random.Random(0)
    for i in range(12):
        w, h = rng.randint(9, 400), rng.randint(9, 400)
        im = Image.fromarray(np.random.default_rng(i).integers(0, 256, (h, w, 3), dtype=np.uint8))
        field = Compose([Resize(32, InterpolationMode.BICUBIC), CenterCrop(32)])(im)
        x = torch.tensor(np.array(field)).permute(2, 0, 1).float().div(255)
        x = (x - torch.tensor(m.mean)[:, None, None])/torch.tensor(m.std)[:, None, None]
        assert_close(m.preprocess(im), x, rtol=0, atol=0)
