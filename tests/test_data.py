"""The public data sets on disk: every official format in miniature, every kind of damage, the published splits and draws, and the way from a folder to a trained model."""
import builtins, gzip, hashlib, importlib.util, inspect, json, os, shutil, threading
from dataclasses import asdict
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from dra_nb import datasets, download
from dra_nb.cli import main
from dra_nb.data import REAL, base_new, few_shot_split, load_csv, load_dataset, load_hub, read_split
from miniature import DAMAGES, SETS, SPLITS, damage, folder_of, write

def call(capsys, *args):
    code = main([str(a) for a in args])
    out, err = capsys.readouterr()
    return code, out, err

@pytest.fixture(scope='module')
def pristine(tmp_path_factory):
    "A miniature of every set."
    root = tmp_path_factory.mktemp('pristine')
    for name in SETS: write(name, root)
    return root

@pytest.fixture
def copy(pristine, tmp_path):
    "A copy of one miniature, alone in a root."
    def make(name):
        shutil.copytree(folder_of(name, pristine), folder_of(name, tmp_path/'DATA'))
        return tmp_path/'DATA'
    return make

def problems(name, root): return datasets.check_real(name, root)['problems']
def unexpected(lines): return [l for l in lines if ', expected ' not in l]

# --- the command on empty, good and damaged roots ---------------------------
def test_empty_root(tmp_path, capsys):
    code, out, err = call(capsys, 'data', 'check', '--root', tmp_path)
    assert code == 2 and '15 problem(s) in 15 of 15' in err
    lines = out.splitlines()
    assert len(lines) == 30 and all('not usable' in l for l in lines[::2]) and all('no folder' in l and 'get it from' in l for l in lines[1::2])

def test_no_root(tmp_path, capsys):
    code, out, err = call(capsys, 'data', 'check', 'dtd', '--root', tmp_path/'nowhere')
    assert code == 2 and 'no folder dtd' in out and err.count('\n') == 1

def test_all_miniatures(pristine, capsys):
    code, out, err = call(capsys, 'data', 'check', '--root', pristine)
    assert code == 2 and 'in 15 of 15' in err                  # they are small, and told so, and nothing else
    lines = [l for l in out.splitlines() if l.startswith('  ')]
    assert lines and all(', expected ' in l for l in lines)

@pytest.fixture
def expected(monkeypatch):
    "Let the numbers of a miniature be the published ones."
    def of(name, root):
        monkeypatch.setitem(datasets.COUNTS, name, datasets.counts(load_dataset(name, root)))
        monkeypatch.setattr(datasets, 'identity', lambda *args: []); monkeypatch.setattr(datasets, '_SUBSETS', {})
    return of

@pytest.mark.parametrize('name', SETS)
def test_complete_copy(pristine, capsys, expected, name):
    expected(name, pristine)
    code, out, err = call(capsys, 'data', 'check', name, '--root', pristine)
    assert (code, err) == (0, '') and out.count('\n') == 1 and f'{datasets.COUNTS[name][0]} classes' in out
    assert load_dataset(name, pristine).name == name           # and it goes by its name

@pytest.mark.parametrize('kind', DAMAGES)
@pytest.mark.parametrize('name', SETS)
def test_damage(copy, capsys, expected, name, kind):
    "Nothing but the damage is wrong, and the report names it."
    expected(name, root := copy(name))
    assert problems(name, root) == []
    word = damage(kind, name, root)
    code, out, err = call(capsys, 'data', 'check', name, '--root', root)
    assert code == 2 and err.count('\n') == 1 and name in err and any(word in l for l in out.splitlines()[1:]), out

@pytest.mark.parametrize('name', [n for n in SETS if n in SPLITS])
def test_own_cut_never_has_the_name(copy, capsys, name):
    root = copy(name); published = load_dataset(name, root)
    damage('missing split', name, root)
    own = load_dataset(name, root)
    assert own.name == f'{name}-own-split' and own.classnames == published.classnames
    assert {o for p in own[:3] for o in p} == {o for p in published[:3] for o in p} and load_dataset(name, root) == own
    groups = [{o.path for o in p} for p in own[:3]]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    assert 'NOT the published split' in ' '.join(problems(name, root))

def test_own_cut_is_never_called_complete(copy, monkeypatch):
    root = copy('oxford_pets'); damage('missing split', 'oxford_pets', root)
    monkeypatch.setitem(datasets.COUNTS, 'oxford_pets', datasets.counts(load_dataset('oxford_pets', root)))
    assert load_dataset('oxford_pets', root).name == 'oxford_pets-own-split'

BAD_LISTS = {
    'oxford_pets': ('annotations/trainval.txt', ['Abyssinian_1 99 1 1', 'Abyssinian_1 x 1 1', 'Abyssinian_1', '../../x_1 1 1 1']),
    'food101': ('meta/train.txt', ['../../x/1', '/etc/1']), 'sun397': ('Training_01.txt', ['/z/nowhere/sun_a.jpg', '/../../sun_a.jpg']),
    'dtd': ('labels/train1.txt', ['../../x.jpg']), 'ucf101': ('ucfTrainTestlist/trainlist01.txt', ['Nowhere/v_g01_c01.avi 1']), 'fgvc_aircraft': ('variants.txt', [])}

@pytest.mark.parametrize('name', BAD_LISTS)
def test_damaged_annotations(copy, name):
    root = copy(name); path, rows = BAD_LISTS[name]; path = folder_of(name, root)/path
    for split in folder_of(name, root).glob('split_zhou*'): split.unlink()
    good = path.read_text()
    for row in rows:
        path.write_text(f'{row}\n{good}')
        with pytest.raises(ValueError) as e: load_dataset(name, root)
        assert '\n' not in str(e.value) and str(folder_of(name, root)) in str(e.value)
    path.unlink()
    with pytest.raises(ValueError, match='not there'): load_dataset(name, root)

def test_damaged_mat(copy):
    pytest.importorskip('scipy')
    for name, path in (('stanford_cars','devkit/cars_train_annos.mat'), ('oxford_flowers','imagelabels.mat')):
        root = copy(name); folder = folder_of(name, root); damage('missing split', name, root)
        (folder/path).write_bytes((folder/path).read_bytes()[:150])
        with pytest.raises(ValueError, match='cannot be read as a MATLAB file'): load_dataset(name, root)

def test_no_scipy(copy, monkeypatch):
    root, real = copy('stanford_cars'), builtins.__import__
    def without(name, *args, **kwargs):
        if name.startswith('scipy'): raise ImportError(name)
        return real(name, *args, **kwargs)
    monkeypatch.setattr(builtins, '__import__', without)
    assert load_dataset('stanford_cars', root).name == 'stanford_cars-partial'         # the split file is enough
    damage('missing split', 'stanford_cars', root)
    with pytest.raises(ValueError, match='pip install scipy'): load_dataset('stanford_cars', root)

def test_split_file_that_is_no_json(copy):
    root = copy('dtd'); split = next(folder_of('dtd', root).glob('split*'))
    for text, words in (('', 'JSON'), ('[]', 'at all'), ('{"train": []}', 'val, test'), ('{"train": [["a.jpg", 0]], "val": [], "test": []}', 'must be'), ('{"train": [["a.jpg", 1.5, "a"]], "val": [], "test": []}', 'must be')):
        split.write_text(text)
        with pytest.raises(ValueError, match=words): load_dataset('dtd', root)

def test_many_damaged_images_are_counted(copy):
    root = copy('eurosat')
    for p in (folder_of('eurosat', root)/'2750'/'River').iterdir(): p.write_bytes(b'')
    lines = unexpected(problems('eurosat', root))
    assert len(lines) == 4 and lines[-1] == '… and 7 more images like these'

def test_quick_check_opens_nothing(copy, capsys):
    root = copy('oxford_pets'); word = damage('truncated image', 'oxford_pets', root)
    assert word not in call(capsys, 'data', 'check', 'oxford_pets', '--root', root, '--quick')[1]
    (folder_of('oxford_pets', root)/'images'/word).unlink()
    assert word in call(capsys, 'data', 'check', 'oxford_pets', '--root', root, '--quick')[1]

def test_other_names_of_imagenet_classes(copy):
    root = copy('imagenet'); path = folder_of('imagenet', root)/'classnames.txt'
    before = load_dataset('imagenet', root).classnames
    path.write_text(path.read_text().replace('great white shark', 'white shark'))
    assert any('differs from the names of CLIP in 1 of 1000' in l for l in problems('imagenet', root)) and load_dataset('imagenet', root).classnames == before

# --- layouts of mirrors ------------------------------------------------------
MIRRORS = dict(caltech101=[('caltech-101','caltech101')], oxford_pets=[('oxford_pets','oxford-iiit-pet')], oxford_flowers=[('oxford_flowers','flowers-102')], food101=[('food-101','food101')],
               dtd=[('dtd','dtd_'), ('dtd_','dtd/dtd')], eurosat=[('eurosat/2750','eurosat/EuroSAT_RGB')], sun397=[('sun397/SUN397','SUN397'), ('sun397/split_zhou_SUN397.json','split_zhou_SUN397.json')],
               fgvc_aircraft=[('fgvc_aircraft','fgvc-aircraft-2013b/data')], imagenet=[('imagenet/images/train','imagenet/train'), ('imagenet/images/val','imagenet/val'), ('imagenet/images','away')],
               imagenet_a=[('imagenet-adversarial/imagenet-a','imagenet-a')], imagenet_sketch=[('imagenet-sketch/images','imagenet-sketch/sketch')],
               stanford_cars=[('stanford_cars/cars_train','stanford_cars/x/cars_train'), ('stanford_cars/x','stanford_cars/cars_train'), ('stanford_cars/cars_test','stanford_cars/y/cars_test'), ('stanford_cars/y','stanford_cars/cars_test')])

@pytest.mark.parametrize('name', MIRRORS)
def test_mirror_layouts(copy, name):
    root = copy(name); before = load_dataset(name, root)
    for a,b in MIRRORS[name]:
        (root/b).parent.mkdir(parents=True, exist_ok=True); (root/a).rename(root/b)
    after = load_dataset(name, root)
    assert after.name == before.name and after.classnames == before.classnames and [len(p) for p in after[:3]] == [len(p) for p in before[:3]]
    assert [Path(o.path).name for o in after.test] == [Path(o.path).name for o in before.test]
    assert unexpected(problems(name, root)) == []

def test_linked_set_is_welcome(pristine, tmp_path):
    (tmp_path/'imagenet').symlink_to(folder_of('imagenet', pristine).resolve())
    assert unexpected(problems('imagenet', tmp_path)) == []

# --- what the lists say ------------------------------------------------------
def test_names_and_labels(pristine):
    get = partial(load_dataset, root=pristine)
    assert get('caltech101').classnames == ['face','leopard','motorbike','accordion']
    assert get('oxford_pets').classnames[0] == 'abyssinian' and get('sun397').classnames[2] == 'indoor ice_skating_rink'
    assert get('stanford_cars').classnames[0] == '2000 AM General Hummer SUV' and get('eurosat').classnames[3] == 'Highway or Road'
    assert get('fgvc_aircraft').classnames == ['707-320','727-200','737-200','F/A-18']
    for name in REAL:
        data = get(name)
        assert data.template == 'a photo of a {}.' and all(data.classnames[o.label] == o.classname for p in data[:3] for o in p)
        assert bool(data.train) == (name not in ('imagenetv2','imagenet_sketch','imagenet_a','imagenet_r'))

def test_imagenet_lists_are_sorted(pristine):
    paths = [o.path for o in load_dataset('imagenet', pristine).train]
    assert paths == sorted(paths)

def test_imagenet_names_are_clips():
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
    names = datasets.imagenet_classes()
    assert list(names.values()) == list(IMAGENET_CLASSNAMES) and all(k[0] == 'n' and len(k) == 9 for k in names)

def test_imagenet_numbers_are_the_known_ones():
    info = Path(importlib.util.find_spec('timm').submodule_search_locations[0])/'data'/'_info'
    read = lambda f: (info/f).read_text().split()
    assert list(datasets.imagenet_classes()) == read('imagenet_synsets.txt')
    for v in 'ar': assert datasets._SUBSETS[f'imagenet_{v}'] == hashlib.sha256('\n'.join(sorted(read(f'imagenet_{v}_synsets.txt'))).encode()).hexdigest()[:16]

SHIPPED = dict(caltech101='Caltech101', dtd='DescribableTextures', eurosat='EuroSAT', oxford_pets='OxfordPets')

@pytest.mark.parametrize('name', SHIPPED)
def test_published_split_and_draws(name):
    folder = Path(__file__).parent/'fixtures'/'splits'
    data = read_split(folder/f'split_zhou_{SHIPPED[name]}.json.gz', name=name)
    assert datasets.counts(data) == datasets.COUNTS[name] and datasets.identity(name, data) == []
    published = json.loads((folder/'draws.json').read_text())[name]
    digest = lambda items: hashlib.sha256('\n'.join(o.path for o in items).encode()).hexdigest()[:16]
    for seed in (1, 2, 3):
        drawn = few_shot_split(data, 16, seed); half = base_new(drawn)[0]
        assert {k: digest(v) for k,v in dict(train=drawn.train, train_base=half.train, val=drawn.val, val_base=half.val).items()} == published[str(seed)]
    assert datasets._DRAWS[name].split() == [published[str(s)]['train'] for s in (1, 2, 3)]

@pytest.mark.parametrize('name', ('oxford_pets','dtd'))
def test_full_size_copy_is_in_order(name, tmp_path, capsys):
    "The published split with a picture at every path: nothing to complain of; one picture less: one line."
    split, place = datasets.LAYOUT[name][1], tmp_path/Path(*datasets.LAYOUT[name][0][0])
    raw = gzip.decompress((Path(__file__).parent/'fixtures'/'splits'/f'{split}.gz').read_bytes())
    place.mkdir(parents=True); (place.parent/split).write_bytes(raw)
    Image.new('RGB', (8, 8)).save(tmp_path/'one.jpg')
    paths = [place/p for part in json.loads(raw).values() for p,_,_ in part]
    for folder in {p.parent for p in paths}: folder.mkdir(exist_ok=True)
    for p in paths: os.link(tmp_path/'one.jpg', p)
    code, out, err = call(capsys, 'data', 'check', name, '--root', tmp_path, '--quick')
    assert (code, err) == (0, '') and 'published lists' in out and out.count('\n') == 1, out
    assert load_dataset(name, tmp_path).name == name
    paths[-1].unlink()
    code, out, err = call(capsys, 'data', 'check', name, '--root', tmp_path, '--quick')
    assert code == 2 and out.splitlines()[1:] == [f'  no file {paths[-1]}'] and '1 problem(s)' in err

def test_identity_sees_one_exchange():
    data = read_split(Path(__file__).parent/'fixtures'/'splits'/'split_zhou_DescribableTextures.json.gz')
    a, b, *rest = data.train
    assert len(datasets.identity('dtd', data._replace(train=[b, a, *rest]))) >= 1
    assert 'published: ' in datasets.identity('eurosat', data)[0]

# --- own data ----------------------------------------------------------------
def test_csv_by_every_door(pristine, tmp_path):
    names = [o for o in load_dataset('dtd', pristine).train]
    (path := tmp_path/'own.csv').write_text('path,class\n' + ''.join(f'{os.path.relpath(o.path, pristine)},{o.classname}\n' for o in names))
    data = load_csv(path, root=pristine)
    assert data.name == 'own' and len(data.classnames) == 4 and all(os.path.isfile(o.path) for p in data[:3] for o in p)
    shutil.copy(path, pristine/'own.csv')
    assert load_dataset(str(pristine/'own.csv')).train == data.train and load_dataset('mine', pristine/'own.csv').name == 'mine'

def test_embedded_sets_need_nothing():
    data = load_dataset('vehicles')
    assert data.name == 'vehicles' and data.train[0].path.startswith('glyphs://')

def test_hub_tables(tmp_path):
    hub = pytest.importorskip('datasets', reason='needs the package datasets of Hugging Face')
    made = []
    for i in range(6):
        Image.fromarray(np.full((20, 30, 3), 40*i, np.uint8)).save(tmp_path/f'{i}.jpg'); made.append(dict(image=str(tmp_path/f'{i}.jpg'), label=i%2))
    features = hub.Features(image=hub.Image(), label=hub.ClassLabel(names=['cat','dog']))
    tables = hub.DatasetDict(train=hub.Dataset.from_list(made[:4], features=features), test=hub.Dataset.from_list(made[4:], features=features))
    data = load_hub(tables, tmp_path/'out')
    assert data.classnames == ['cat','dog'] and [len(p) for p in data[:3]] == [4, 0, 2]
    assert {Path(o.path).read_bytes() for o in data.train} == {(tmp_path/f'{i}.jpg').read_bytes() for i in range(4)}      # the files, not a copy of the pixels

# --- downloads ---------------------------------------------------------------
def test_download_by_command(pristine, tmp_path, capsys, monkeypatch):
    made, site = folder_of('dtd', pristine), tmp_path/'site'
    site.mkdir(); shutil.make_archive(str(site/'dtd-r1.0.1'), 'gztar', made.parent, 'dtd'); shutil.copy(split := made/'split_zhou_DescribableTextures.json', site)
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=site)); threading.Thread(target=server.serve_forever, daemon=True).start()
    at = f'http://127.0.0.1:{server.server_port}'
    md5 = 'md5:' + hashlib.md5((site/'dtd-r1.0.1.tar.gz').read_bytes()).hexdigest()
    sources = lambda digest: [download.Source(f'{at}/dtd-r1.0.1.tar.gz', digest, 'images', 'dtd'), download.Source(f'{at}/{split.name}', '', split.name)]
    try:
        monkeypatch.setitem(download.SOURCES, 'dtd', sources('md5:'+'0'*32))
        code, out, err = call(capsys, 'data', 'download', 'dtd', '--root', tmp_path/'DATA')
        assert code == 2 and 'expected 000' in err and not (tmp_path/'DATA'/'dtd'/'images').exists()
        monkeypatch.setitem(download.SOURCES, 'dtd', sources(md5))
        code, out, err = call(capsys, 'data', 'download', 'dtd', '--root', tmp_path/'DATA')
        assert code == 0 and 'data check dtd' in out, err
    finally: server.shutdown(); server.server_close()
    assert load_dataset('dtd', tmp_path/'DATA') == load_dataset('dtd', pristine)._replace(**{k: [o._replace(path=o.path.replace(str(pristine), str(tmp_path/'DATA'))) for o in getattr(load_dataset('dtd', pristine), k)] for k in ('train','val','test')})
    assert not (tmp_path/'DATA'/'dtd'/'.download').exists()

@pytest.mark.parametrize('line, words', [('data download dtd', 'root'), ('data download --root {}', 'name what to fetch'), ('data download imagenet_sketch --root {}', 'HaohanWang'), ('data download vehicles --root {}', 'no public data set')])
def test_download_mistakes(tmp_path, capsys, line, words):
    code, out, err = call(capsys, *line.format(tmp_path).split())
    assert code == 2 and words in err and out == '' and err.count('\n') == 1

def test_sources_are_torchvisions():
    from torchvision.datasets import dtd, food101, oxford_iiit_pet
    for name, module in dict(oxford_pets=oxford_iiit_pet, dtd=dtd, food101=food101).items():
        assert all(s.digest[4:] in inspect.getsource(module) for s in download.SOURCES[name] if s.digest.startswith('md5'))
    assert all(s.url.startswith('http') and s.digest.partition(':')[0] in ('','md5','sha256') for ss in download.SOURCES.values() for s in ss)

# --- from a folder to a trained model ---------------------------------------
def test_pets_from_check_to_predict(tmp_path, capsys):
    from dra_nb.clip import GlyphClipConfig, build_glyph_clip, save_glyph_clip
    torch.manual_seed(0)
    config = GlyphClipConfig(embed_dim=32, width=32, layers=6, head_width=16, context=16, image_size=32)
    model = ('--pretrained', save_glyph_clip(build_glyph_clip(config), tmp_path/'clip.safetensors', dict(config=dict(model=asdict(config))), torch.arange(1000)))
    write('oxford_pets', root := tmp_path/'DATA', train=5, val=2, test=3)
    code, out, err = call(capsys, 'fit', 'oxford_pets', '--root', root, '--shots', 4, '--subset', 'base', '--epochs', 1, '--out', tmp_path/'w', *model)
    assert code == 0, err
    facts = json.loads((tmp_path/'w'/'run.json').read_text())
    assert facts['dataset'] == 'oxford_pets-partial' and facts['classnames'] == ['abyssinian','american_bulldog']        # a miniature is not the real thing
    for subset in ('base','new','all'):
        code, out, err = call(capsys, 'evaluate', 'oxford_pets', '--root', root, '--subset', subset, '--weights', tmp_path/'w', *model)
        assert code == 0 and '% of' in out and '"a photo of a {}."' in out, err
    for how in ([], ['--weights', tmp_path/'w', '--template', 'field']):          # zero-shot CLIP as in the literature; its sentence for trained weights
        code, out, err = call(capsys, 'evaluate', 'oxford_pets', '--root', root, *how, *model)
        assert code == 0 and '"a photo of a {}, a type of pet."' in out, err
    code, out, err = call(capsys, 'predict', root/'oxford_pets'/'images'/'Abyssinian_9.jpg', '--weights', tmp_path/'w', *model)
    assert code == 0 and 'american_bulldog' in out, err
    code, out, err = call(capsys, 'bench', '--methods', 'zero-shot', '--datasets', 'oxford_pets', 'imagenet_a', '--root', root, '--out', tmp_path/'r.jsonl', '--shots', 4, '--workers', 1, *model)
    assert code == 2 and 'imagenet_a: no folder' in err and not (tmp_path/'r.jsonl').exists()
    write('dtd', root)
    code, out, err = call(capsys, 'bench', '--methods', 'zero-shot', '--datasets', 'oxford_pets', 'dtd', '--root', root, '--out', tmp_path/'r.jsonl', '--shots', 4, '--workers', 1, *model)
    assert code == 0 and 'average of 2' in out, err
