"What a notebook cannot show well about loading a CLIP: every kind of file, damaged and hostile ones, no network, every pair of name and tag, odd images."
import json, os, random, subprocess, sys, zipfile

import numpy as np, open_clip, pytest, torch
from PIL import Image
from torch import nn
from torch.testing import assert_close
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from dra_nb import clip as C
from dra_nb.clip import cut_padding, embed_image, embed_text, image_features, image_tower, load_clip, text_features, text_tower
from dra_nb.data import centre_crop, open_image

SHAPE = dict(embed_dim=20, vision_cfg=dict(image_size=32, patch_size=8, width=64, layers=2, head_width=32), text_cfg=dict(context_length=16, width=48, heads=3, layers=3))
MARKS = dict(input_resolution=32, context_length=16, vocab_size=49408)

@pytest.fixture(scope='module', autouse=True)
def names(tmp_path_factory):
    "A small model under names of its own, with and without QuickGELU."
    d = tmp_path_factory.mktemp('configs')
    (d/'small.json').write_text(json.dumps(SHAPE)); (d/'small-quickgelu.json').write_text(json.dumps(SHAPE | dict(quick_gelu=True)))
    open_clip.add_model_config(d)

@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    return open_clip.CLIP(**SHAPE, quick_gelu=True).eval()

def tree(state):
    "A module with the given state dict."
    root = nn.Module()
    for key,v in state.items():
        *path, leaf = key.split('.'); m = root
        for part in path: m = m._modules.setdefault(part, nn.Module())
        m.register_buffer(leaf, v)
    return root

def archive(state, path):
    torch.jit.script(tree(state)).save(str(path))
    return path

def openai(model, path): return archive({k: v.half() for k,v in model.state_dict().items()} | {k: torch.tensor(v) for k,v in MARKS.items()}, path)

def same(a, b, **tolerance):
    x, t = torch.randn(3, 3, 32, 32), torch.randint(1, 400, (4, 16))
    with torch.no_grad():
        assert_close(image_features(a, x), image_features(b, x), **tolerance)
        assert_close(text_features(a, t), text_features(b, t), **tolerance)

# --- files --------------------------------------------------------------------------------------

def test_every_kind_of_file_gives_the_same_model(model, tmp_path):
    from safetensors.torch import save_file
    state = model.state_dict()
    torch.save(state, tmp_path/'a.pt')
    torch.save(dict(epoch=3, name='run', state_dict={f'module.{k}': v for k,v in state.items()}, optimizer=dict(state={}, param_groups=[])), tmp_path/'b.pt')
    torch.save(state, tmp_path/'c.bin'); save_file({k: v.contiguous() for k,v in state.items()}, tmp_path/'d.safetensors')
    for f in ('a.pt', 'b.pt', 'c.bin', 'd.safetensors'): same(load_clip('small-quickgelu', tmp_path/f, device='cpu'), model)
    same(load_clip('small-quickgelu', str(openai(model, tmp_path/'e.pt')), device='cpu'), model, rtol=2e-2, atol=2e-2)

def test_reader_agrees_with_torch_on_a_traced_program_with_typed_attributes(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.sizes, self.pair, self.name = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7)), [1, 2, 3], (4, 'x'), 'net'
            self.shared = self.inner[0].weight
            self.register_buffer('cut', torch.arange(24.).view(4, 6)[1:, ::2]); self.register_buffer('flag', torch.tensor(True))
            self.list: list[torch.Tensor] = [torch.ones(2)]
        def forward(self, x): return self.inner(x).relu() + self.cut.sum()*len(self.sizes)
    for k,program in enumerate((torch.jit.script(Net().eval()), torch.jit.trace(Net().eval(), torch.randn(2, 5)))):
        program.save(str(tmp_path/f'{k}.pt'))
        ours, theirs = C._openai_tensors(tmp_path/f'{k}.pt'), torch.jit.load(str(tmp_path/f'{k}.pt')).state_dict()
        assert set(ours) == set(theirs)
        for key in ours: assert_close(ours[key], theirs[key], rtol=0, atol=0); assert ours[key].dtype == theirs[key].dtype

def test_no_code_of_a_file_runs(tmp_path):
    class Evil:
        def __reduce__(self): return os.mkdir, (str(tmp_path/'ran'),)
    torch.save(dict(state_dict=Evil()), tmp_path/'evil.pt')
    with pytest.raises(ValueError, match='cannot be read as weights'): load_clip('small-quickgelu', tmp_path/'evil.pt')
    import pickle
    with zipfile.ZipFile(tmp_path/'evil2.pt', 'w') as z: z.writestr('a/data.pkl', pickle.dumps(Evil(), 2)); z.writestr('a/constants.pkl', b'')
    with pytest.raises(ValueError, match='it asks for (posix|nt|os).mkdir'): load_clip('small-quickgelu', tmp_path/'evil2.pt')
    (tmp_path/'evil3.pt').write_bytes(pickle.dumps(Evil(), 2))
    with pytest.raises(ValueError, match='cannot be read as weights'): load_clip('small-quickgelu', tmp_path/'evil3.pt')
    assert not (tmp_path/'ran').exists()

def test_damaged_files_end_in_one_line(model, tmp_path):
    whole = openai(model, tmp_path/'whole.pt').read_bytes()
    (tmp_path/'empty.pt').write_bytes(b''); (tmp_path/'text.pt').write_text('not weights'); (tmp_path/'half.pt').write_bytes(whole[:len(whole)//2])
    (tmp_path/'x.safetensors').write_bytes(whole[:1000])
    flipped = bytearray(whole); flipped[len(flipped)//2] ^= 255; (tmp_path/'flipped.pt').write_bytes(flipped)
    with zipfile.ZipFile(tmp_path/'loop.pt', 'w') as z:                          # a module that contains itself, a tensor beyond its bytes
        z.writestr('a/data.pkl', b'\x80\x02c__torch__\nM\n)\x81q\x00}X\x01\x00\x00\x00mh\x00sb.'); z.writestr('a/constants.pkl', b'')
    with zipfile.ZipFile(tmp_path/'beyond.pt', 'w') as z:
        z.writestr('a/data.pkl', b'\x80\x02c__torch__\nM\n)\x81}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x02tQK\x00K\x63\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtRsb.')
        z.writestr('a/constants.pkl', b''); z.writestr('a/data/0', b'\0'*8)
    for f in ('empty.pt', 'text.pt', 'half.pt', 'x.safetensors', 'flipped.pt', 'loop.pt', 'beyond.pt'):
        with pytest.raises(ValueError, match='^pretrained: ') as e: load_clip('small-quickgelu', tmp_path/f, device='cpu')
        assert '\n' not in str(e.value) and f in str(e.value) and len(str(e.value)) < 500

def test_weights_of_another_model_are_refused(model, tmp_path):
    state = model.state_dict(); torch.save(state, tmp_path/'a.pt')
    with pytest.raises(ValueError, match='cannot be read as weights of ViT-S-32-alt'): load_clip('ViT-S-32-alt', tmp_path/'a.pt', device='cpu')
    state.pop('ln_final.weight'); torch.save(state, tmp_path/'b.pt')
    with pytest.raises(ValueError, match='ln_final.weight'): load_clip('small', tmp_path/'b.pt', device='cpu')

def test_published_names_are_checked_by_hash(model, tmp_path):
    for name in ('ViT-B-16.pt', 'ViT-L-14-336px.pt', 'vit_b_16-laion400m_e32-55e67d44.pt'):
        with pytest.raises(ValueError, match='download it again'): load_clip('small-quickgelu', openai(model, tmp_path/name), device='cpu')
    sha = {n: s for n,(s,_) in C._published().items()}
    assert sha['ViT-B-32.pt'] == '40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af'
    assert sha['ViT-L-14.pt'] == 'b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836'
    assert all(set(s) <= set('0123456789abcdef') and len(s) in (8, 64) for s in sha.values())

# --- activation -----------------------------------------------------------------------------------

def test_openai_layout_is_refused_under_the_plain_name(model, tmp_path):
    with pytest.raises(ValueError, match="use the name 'small-quickgelu'"): load_clip('small', openai(model, tmp_path/'any.pt'), device='cpu')
    no_marks = archive({k: v.half() for k,v in model.state_dict().items()}, tmp_path/'own.pt')        # nothing says whose it is
    load_clip('small', no_marks, device='cpu')

def test_known_contents_are_refused_whatever_the_file_is_called(model, tmp_path, monkeypatch):
    import hashlib
    torch.save(model.state_dict(), tmp_path/'x.pt')
    monkeypatch.setattr(C, '_published', lambda: {'published.pt': (hashlib.sha256((tmp_path/'x.pt').read_bytes()).hexdigest(), True)})
    with pytest.raises(ValueError, match='was trained with QuickGELU'): load_clip('small', tmp_path/'x.pt', device='cpu')
    load_clip('small-quickgelu', tmp_path/'x.pt', device='cpu')

def test_every_mismatch_of_name_and_tag_is_refused_before_anything_is_fetched(monkeypatch):
    def fetch(*a, **k): raise RuntimeError('fetched')
    monkeypatch.setattr(open_clip, 'create_model', fetch)
    seen = {True: 0, False: 0}
    for name,tag in open_clip.list_pretrained():
        fits = bool(open_clip.get_model_config(name).get('quick_gelu')) == bool(open_clip.get_pretrained_cfg(name, tag).get('quick_gelu'))
        with pytest.raises(ValueError, match='fetched' if fits else f'^name: .* computes') as e: load_clip(name, tag, device='cpu')
        assert '\n' not in str(e.value); seen[fits] += 1
    assert min(seen.values()) > 10

# --- no network -----------------------------------------------------------------------------------

def test_without_a_network_one_line_says_what_to_do(tmp_path):
    "The hub is switched off and its cache empty: open_clip's own attempt, not a stand-in."
    env = {**os.environ, 'HF_HUB_OFFLINE': '1', 'HF_HOME': str(tmp_path), 'HUGGINGFACE_HUB_CACHE': str(tmp_path), 'OMP_NUM_THREADS': '1'}
    code = 'from dra_nb.cli import main; import sys; sys.exit(main())'
    args = 'evaluate', 'vehicles', '--model', 'ViT-B-16-quickgelu', '--pretrained', 'openai', '--device', 'cpu'
    out = subprocess.run([sys.executable, '-c', code, *args], capture_output=True, text=True, env=env, cwd=tmp_path, timeout=300)
    last = out.stderr.strip().splitlines()[-1]
    assert out.returncode == 2 and 'Traceback' not in out.stderr
    assert 'without a network, copy a weights file here and give its path as pretrained' in last and 'ViT-B-16-quickgelu' in last

# --- other models ---------------------------------------------------------------------------------

def test_vit_b_32_with_random_weights_equals_open_clip():
    m = load_clip('ViT-B-32-quickgelu', device='cpu')
    images, tokens = torch.randn(2, 3, 224, 224), m.tokenizer(['a photo of a tram.', 'a cat'])
    with torch.no_grad():
        assert_close(image_features(m, images), m.encode_image(images), rtol=1e-4, atol=1e-4)
        assert_close(text_features(m, cut_padding(tokens)), m.encode_text(tokens), rtol=1e-4, atol=1e-4)
    assert (m.image_size, m.training, m.clip_name) == (224, False, 'ViT-B-32-quickgelu')

@pytest.mark.parametrize('name, image, text, dim, blocks', [('ViT-L-14-quickgelu', (257, 1024), (77, 768), 768, (24, 12)), ('ViT-B-32', (50, 768), (77, 512), 512, (12, 12)), ('ViT-B-16-plus-240', (226, 896), (77, 640), 640, (12, 12))])
def test_shapes_on_the_meta_device(name, image, text, dim, blocks):
    with torch.device('meta'): m = open_clip.create_model(name, device='meta')
    x, t = torch.empty(2, 3, *m.visual.image_size, device='meta'), torch.zeros(3, 77, dtype=torch.long, device='meta')
    assert embed_image(m, x).shape[1:] == image and embed_text(m, t).shape[1:] == text
    assert image_features(m, x).shape == (2, dim) and text_features(m, t).shape == (3, dim)
    assert (len(image_tower(m).blocks), len(text_tower(m).blocks)) == blocks

@pytest.mark.parametrize('name, tower', [('ViT-B-16-SigLIP', image_tower), ('RN50-quickgelu', image_tower), ('coca_ViT-B-32', text_tower)])
def test_towers_that_cannot_be_adapted_are_refused(name, tower):
    with torch.device('meta'): m = open_clip.create_model(name, device='meta')
    with pytest.raises(ValueError, match='^model: .*supported'): tower(m)

def test_files_take_the_normalisation_that_all_tags_of_a_model_share(model, tmp_path, monkeypatch):
    torch.save(model.state_dict(), tmp_path/'x.pt')
    cfgs = dict(a=dict(mean=(.5,)*3, std=(.5,)*3, resize_mode='squash', quick_gelu=True), b=dict(mean=(.5,)*3, std=(.4,)*3, resize_mode='squash', quick_gelu=True))
    monkeypatch.setattr(open_clip, 'list_pretrained_tags_by_model', lambda name: list(cfgs)); monkeypatch.setattr(open_clip, 'get_pretrained_cfg', lambda name, tag: cfgs.get(tag, {}))
    monkeypatch.setattr(C, '_published', dict)
    m = load_clip('small-quickgelu', tmp_path/'x.pt', device='cpu')
    assert m.mean == (.5,)*3 and m.std == (.26862954, .26130258, .27577711)      # the one is shared, the other is not
    assert 'CenterCrop' not in str(m.preprocess)                                 # squashed, not cropped

# --- the test transform -------------------------------------------------------------------------

def test_preprocess_equals_the_field_and_our_reader_to_the_pixel(tmp_path):
    m = load_clip('small', device='cpu'); rng = random.Random(0)
    for i in range(12):
        w, h = rng.randint(9, 400), rng.randint(9, 400)
        im = Image.fromarray(np.random.default_rng(i).integers(0, 256, (h, w, 3), dtype=np.uint8))
        field = Compose([Resize(32, InterpolationMode.BICUBIC), CenterCrop(32)])(im)
        assert_close(np.array(centre_crop(im, 32)), np.array(field), rtol=0, atol=0)
        x = torch.tensor(np.array(field)).permute(2, 0, 1).float().div(255)
        x = (x - torch.tensor(m.mean)[:,None,None])/torch.tensor(m.std)[:,None,None]
        assert_close(m.preprocess(im), x, rtol=0, atol=0)

@pytest.mark.parametrize('mode', ['L', 'P', 'RGBA', 'CMYK', '1', 'LA', 'I;16'])
def test_other_modes_once_opened_as_rgb(mode, tmp_path):
    m = load_clip('small', device='cpu')
    rgb = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8))
    im = Image.fromarray(np.random.default_rng(0).integers(0, 65536, (70, 90), dtype=np.uint16)) if mode == 'I;16' else rgb.convert(mode)
    im.save(tmp_path/'x.tiff')
    opened = open_image(tmp_path/'x.tiff')
    assert opened.mode == 'RGB' and m.preprocess(opened).shape == (3, 32, 32)
