"Public sets on disk: official formats in miniature, layouts, damage, splits, draws, downloads."
import gzip
import hashlib
import importlib.util
import inspect
import io
import json
import os
import shutil
import tarfile
import threading
import warnings
import zipfile
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from miniature import DAMAGES, NAMES, SETS, SPLITS, damage, folder_of, write
from PIL import Image
from scipy.io import savemat

from dra_nb.data import REAL, base_new, check_dataset, few_shot_split, load_dataset, read_split
from dra_nb.data import check, download, public
from dra_nb.data.items import Dataset, Item

PAGE = b'<!DOCTYPE html><title>log in</title>'
POINTER = b'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n'

pytestmark = pytest.mark.filterwarnings('ignore::UserWarning')       # miniatures are no whole sets

@pytest.fixture(scope='module')
def pristine(tmp_path_factory):
    "A miniature of every set."
    root = tmp_path_factory.mktemp('pristine')
    for name in SETS:
        write(name, root)
    return root

@pytest.fixture
def copy(pristine, tmp_path):
    "A copy of one miniature, alone in a root."
    def make(name):
        shutil.copytree(folder_of(name, pristine), folder_of(name, tmp_path/'DATA'))
        return tmp_path/'DATA'
    return make

@pytest.fixture
def expected(monkeypatch):
    "Let the numbers of a miniature be the published ones."
    def of(name, root):
        known = public.PUBLIC_SETS[name]
        counts = public.count(load_dataset(name, root))
        changed = replace(known, counts=counts, draws=(), first_drawn=(), last_base='',
                          first_new='', subset='')
        monkeypatch.setitem(public.PUBLIC_SETS, name, changed)
    return of

def problems(name, root, read=True):
    return check.check_public(name, root, read)['problems']

def unexpected(lines):
    "Lines on anything but counts."
    return [line for line in lines if ', expected ' not in line]

def images_of(name, root):
    "All images of a miniature, sorted."
    return sorted(path for path in folder_of(name, root).rglob('*')
                  if path.suffix.lower() in ('.jpg', '.jpeg'))

def names_of(dataset):
    "File names, labels and class names of the three lists, and the classes."
    lists = []
    for items in dataset[:3]:
        lists.append([(Path(item.path).name, item.label, item.classname) for item in items])
    return lists, dataset.classnames

# --- good and damaged copies -------------------------------------------------
def test_empty_root(tmp_path):
    for name in REAL:
        line, = problems(name, tmp_path)
        assert line.startswith(f'{name}: no folder ') and 'get it from' in line and '\n' not in line
    assert 'nowhere\', which is no folder' in problems('dtd', tmp_path/'nowhere')[0]

@pytest.mark.parametrize('name', SETS)
def test_complete_copy(pristine, expected, name):
    for line in problems(name, pristine):
        assert ', expected ' in line                    # miniatures are small, and nothing else
    expected(name, pristine)
    report = check.check_public(name, pristine)
    assert report['problems'] == []
    assert report['images'] == report['present'] == sum(public.PUBLIC_SETS[name].counts[1:])
    assert report.keys() >= {'name', 'classes', 'base', 'new', 'train', 'val', 'test', 'found',
                             'lists', 'fewest'}
    with warnings.catch_warnings():
        warnings.simplefilter('error')                  # a whole set is loaded without a word
        assert load_dataset(name, pristine).name == name

@pytest.mark.parametrize('kind', DAMAGES)
@pytest.mark.parametrize('name', SETS)
def test_damage(copy, expected, name, kind):
    "Nothing but the damage is wrong, and the report names it."
    root = copy(name)
    expected(name, root)
    assert problems(name, root) == []
    word = damage(kind, name, root)
    lines = problems(name, root)
    assert any(word in line for line in lines), lines
    assert all('\n' not in line for line in lines)

@pytest.mark.parametrize('name', [name for name in SETS if name in SPLITS])
def test_own_cut_is_told(copy, name):
    root = copy(name)
    published = load_dataset(name, root)
    damage('missing split', name, root)
    with pytest.warns(UserWarning, match='NOT the published split'):
        own = load_dataset(name, root)
    assert own.name == name and own.classnames == published.classnames
    items = own.train + own.val + own.test
    assert set(items) == set(published.train + published.val + published.test)
    assert len({item.path for item in items}) == len(items)           # no image in two lists
    assert load_dataset(name, root) == own
    report = check.check_public(name, root)
    assert report['lists'] == public.find_set(name, root).lists == 'own cut'
    text = ' '.join(report['problems'])
    assert 'NOT the published split' in text
    classes = public.PUBLIC_SETS[name].counts.classes
    assert f'classes, expected {classes}' in text or name == 'eurosat'
    assert 'images in all, expected' in text

def test_own_cut_is_never_called_complete(copy, expected):
    root = copy('oxford_pets')
    damage('missing split', 'oxford_pets', root)
    expected('oxford_pets', root)
    assert 'NOT the published split' in ' '.join(problems('oxford_pets', root))

BAD_LISTS = {
    'oxford_pets': ('annotations/trainval.txt', [
        'Abyssinian_1 99 1 1', 'Abyssinian_1 x 1 1', 'Abyssinian_1 0 1 1', 'Abyssinian_1',
        '../../x_1 1 1 1']),
    'food101': ('meta/train.txt', ['../../x/1', '/etc/1']),
    'sun397': ('Training_01.txt', ['/z/nowhere/sun_a.jpg', '/../../sun_a.jpg']),
    'dtd': ('labels/train1.txt', ['../../x.jpg']),
    'ucf101': ('ucfTrainTestlist/trainlist01.txt', ['Nowhere/v_g01_c01.avi 1']),
    'fgvc_aircraft': ('variants.txt', [])}

@pytest.mark.parametrize('name', BAD_LISTS)
def test_damaged_annotations(copy, name):
    root = copy(name)
    folder, (file, rows) = folder_of(name, root), BAD_LISTS[name]
    for split in folder.glob('split_zhou*'):
        split.unlink()
    path, good = folder/file, (folder/file).read_text()
    for row in rows:
        path.write_text(f'{row}\n{good}')
        with pytest.raises(ValueError) as e:
            load_dataset(name, root)
        assert '\n' not in str(e.value) and str(folder) in str(e.value)
    path.unlink()
    with pytest.raises(ValueError, match='no such file'):
        load_dataset(name, root)

@pytest.mark.parametrize('name', [
    'oxford_pets', 'fgvc_aircraft', 'sun397', 'dtd', 'food101', 'ucf101'])
def test_lists_through_a_windows_editor(copy, name):
    "A byte order mark, carriage returns and blanks at the ends change nothing."
    root = copy(name)
    for split in folder_of(name, root).glob('split_zhou*'):
        split.unlink()
    before = load_dataset(name, root)
    for path in folder_of(name, root).rglob('*.txt'):
        lines = path.read_text().splitlines()
        text = ''.join(f'{line} \t\r\n' for line in lines)
        path.write_bytes(text.encode('utf-8-sig'))
    assert load_dataset(name, root) == before

def test_damaged_matlab_files(copy):
    for name, file in (('stanford_cars', 'devkit/cars_train_annos.mat'),
                       ('oxford_flowers', 'imagelabels.mat')):
        root = copy(name)
        path = folder_of(name, root)/file
        damage('missing split', name, root)
        path.write_bytes(path.read_bytes()[:150])
        with pytest.raises(ValueError, match='cannot be read as a MATLAB file'):
            load_dataset(name, root)

@pytest.mark.parametrize('name, file', [
    ('oxford_flowers', 'imagelabels.mat'), ('stanford_cars', 'devkit/cars_meta.mat'),
    ('stanford_cars', 'devkit/cars_train_annos.mat'),
    ('stanford_cars', 'cars_test_annos_withlabels.mat')])
def test_matlab_file_with_something_else(copy, name, file):
    "One line, which ends neither the program nor the check of other sets."
    root = copy(name)
    damage('missing split', name, root)
    savemat(folder_of(name, root)/file, dict(other=np.arange(3)))
    line, = problems(name, root)
    assert 'holds no variable' in line and Path(file).name in line and '\n' not in line

def test_split_file_that_is_no_json(copy):
    root = copy('dtd')
    split = next(folder_of('dtd', root).glob('split*'))
    entry = '{"train": [["a.jpg", %s, "%s"]], "val": [], "test": []}'
    cases = {'': 'JSON', '[]': 'at all', '{"train": []}': 'val, test',
             entry % ('1.5', 'a'): 'must be', entry % ('true', 'a'): 'must be',
             entry % ('0', ' '): 'blank'}
    for text, words in cases.items():
        split.write_text(text)
        with pytest.raises(ValueError, match=words):
            load_dataset('dtd', root)
        assert any(words in line for line in problems('dtd', root))

# --- the files ---------------------------------------------------------------
def test_every_kind_is_counted_and_shown(copy):
    root = copy('eurosat')
    photos = images_of('eurosat', root)
    for path in photos[:30]:
        path.unlink()
    for path in photos[40:45]:
        path.write_bytes(PAGE)
    for path in photos[50:52]:
        path.write_bytes(POINTER)
    photos[60].write_bytes(photos[60].read_bytes()[:-200])
    photos[61].write_bytes(b'')
    report = check.check_public('eurosat', root)
    lines = unexpected(report['problems'])
    assert len(lines) == 5 and report['images'] == 100 and report['present'] == 61
    numbers = {'is not there': 30, 'HTML': 5, 'LFS': 2, 'cannot be read': 1, 'empty': 1}
    for word, number in numbers.items():
        line, = [line for line in lines if word in line]
        assert f'{number} of 100 images' in line and '.jpg' in line

def test_quick_check_decodes_nothing(copy):
    root = copy('oxford_pets')
    word = damage('truncated image', 'oxford_pets', root)
    assert not any(word in line for line in problems('oxford_pets', root, read=False))
    path = folder_of('oxford_pets', root)/'images'/word
    for content, told in ((PAGE, 'HTML'), (POINTER, 'LFS')):
        path.write_bytes(content)
        line, = unexpected(problems('oxford_pets', root, read=False))
        assert told in line and word in line
    path.unlink()
    line, = unexpected(problems('oxford_pets', root, read=False))
    assert word in line and 'is not there' in line

@pytest.mark.parametrize('name', [
    'caltech101', 'eurosat', 'imagenet', 'imagenetv2', 'imagenet_sketch'])
def test_litter_of_systems_is_no_image(copy, name):
    root = copy(name)
    if name in SPLITS:
        damage('missing split', name, root)
    before = load_dataset(name, root)
    for folder in {path.parent for path in images_of(name, root)}:
        first = min(folder.iterdir())
        for litter in (f'._{first.name}', '.DS_Store', 'Thumbs.db', 'desktop.ini'):
            (folder/litter).write_bytes(b'x')
    assert load_dataset(name, root) == before

def test_other_names_of_imagenet_classes(copy):
    root = copy('imagenet')
    path = folder_of('imagenet', root)/'classnames.txt'
    before = load_dataset('imagenet', root).classnames
    path.write_text(path.read_text().replace('great white shark', 'white shark'))
    lines = problems('imagenet', root)
    assert any('differs from the names of CLIP in 1 of 1000' in line for line in lines)
    assert load_dataset('imagenet', root).classnames == before
    path.write_bytes(b'n01440764 t\xeanch\n')
    assert any('save it as UTF-8; it is not used' in line for line in problems('imagenet', root))

def test_lists_that_contradict_themselves(tmp_path):
    "Under two classes, in two lists, one name for two labels, blank names, labels of other kinds."
    def listed(train, test=(), classnames=('cat', 'dog')):
        return check.list_problems(Dataset(list(train), [], list(test), list(classnames)))
    a, b = Item('a.jpg', 0, 'cat'), Item('b.jpg', 1, 'dog')
    assert listed([a, b]) == []
    assert 'under two classes' in listed([a, Item('a.jpg', 1, 'dog')])[0]
    assert 'in more than one list' in listed([a, b], [a])[0]
    assert 'twice in one list' in listed([a, a])[0]
    assert 'have one name' in listed([], classnames=('Sea_lion', 'sea lion'))[0]
    assert 'has no name' in listed([], classnames=('cat', '  '))[0]
    for label in (True, '1', 1.):
        assert 'no whole number' in listed([Item('a.jpg', label, 'dog')])[0]
    assert 'out of range' in listed([Item('a.jpg', 7, 'dog')])[0]

def test_copies_in_an_own_folder(tmp_path):
    for label, name in enumerate(('cat', 'dog')):
        (tmp_path/'own'/name).mkdir(parents=True)
        for i in range(6):
            pixels = np.random.default_rng(10*label+i).integers(0, 255, (20, 30, 3))
            Image.fromarray(pixels.astype('uint8')).save(tmp_path/'own'/name/f'{i}.png')
    assert check_dataset(load_dataset(str(tmp_path/'own')))['problems'] == []
    shutil.copy(tmp_path/'own'/'cat'/'0.png', tmp_path/'own'/'dog'/'again.png')
    report = check_dataset(load_dataset(str(tmp_path/'own')))
    assert len(report['problems']) == 1 and 'copy in two classes' in report['problems'][0]

# --- layouts -----------------------------------------------------------------
LAYOUTS = [
    ('caltech101', 'caltech-101 > caltech101'),
    ('caltech101', 'caltech-101 > caltech-101/caltech-101'),
    ('oxford_pets', 'oxford_pets > oxford-iiit-pet'),
    ('oxford_pets', 'oxford_pets > oxford_pets/oxford_pets'),
    ('oxford_flowers', 'oxford_flowers > flowers-102'),
    ('food101', 'food-101 > food101'), ('food101', 'food-101 > food-101/food-101'),
    ('food101', 'food-101/images > food-101/food-101/images'),
    ('dtd', 'dtd > dtd/dtd'), ('dtd', 'dtd/images > dtd/dtd/images'),
    ('dtd', 'dtd/split_zhou_DescribableTextures.json > split_zhou_DescribableTextures.json'),
    ('dtd', 'dtd/split_zhou_DescribableTextures.json > '
            'dtd/splits/split_zhou_DescribableTextures.json'),
    ('eurosat', 'eurosat/2750 > eurosat/EuroSAT_RGB'),
    ('eurosat', 'eurosat/2750 > eurosat/EuroSAT'),
    ('eurosat', 'eurosat/2750 > eurosat/EuroSAT/2750'), ('eurosat', 'eurosat > EuroSAT'),
    ('sun397', 'sun397/SUN397 > SUN397'), ('sun397', 'sun397 > SUN397'),
    ('sun397', 'sun397/SUN397 > SUN397/SUN397'),
    ('fgvc_aircraft', 'fgvc_aircraft > fgvc-aircraft-2013b/data'),
    ('stanford_cars', 'stanford_cars > stanford_cars/stanford_cars'),
    ('stanford_cars', 'stanford_cars/cars_train > stanford_cars/cars_train/cars_train, '
                      'stanford_cars/cars_test > stanford_cars/cars_test/cars_test'),
    ('ucf101', 'ucf101/UCF-101-midframes > ucf101/UCF-101-midframes/UCF-101-midframes'),
    ('imagenet', 'imagenet/images > imagenet/ILSVRC/Data/CLS-LOC'),
    ('imagenet', 'imagenet/images > ILSVRC/Data/CLS-LOC'),
    ('imagenet', 'imagenet/images/train > imagenet/train, imagenet/images/val > imagenet/val'),
    ('imagenetv2', 'imagenetv2 > x, x/imagenetv2-matched-frequency-format-val > '
                   'imagenetv2-matched-frequency-format-val'),
    ('imagenet_sketch', 'imagenet-sketch/images > imagenet-sketch/sketch'),
    ('imagenet_a', 'imagenet-adversarial/imagenet-a > imagenet-a'),
    ('imagenet_r', 'imagenet-rendition/imagenet-r > imagenet-rendition/imagenet-r/imagenet-r')]

@pytest.mark.parametrize('name, moves', LAYOUTS)
def test_layouts_people_have(copy, name, moves):
    root = copy(name)
    before = load_dataset(name, root)
    for move in moves.split(', '):
        source, target = [root/path for path in move.split(' > ')]
        aside = source.rename(root/'aside')
        target.parent.mkdir(parents=True, exist_ok=True)
        aside.rename(target)
    after = load_dataset(name, root)
    assert after.name == name and names_of(after) == names_of(before)
    assert all(os.path.isfile(item.path) for items in after[:3] for item in items)
    assert unexpected(problems(name, root)) == []

@pytest.mark.parametrize('name', SETS)
def test_root_that_is_the_set_itself(copy, name):
    "Either the set is found from there, or the message names the folder above."
    root = copy(name)
    before = load_dataset(name, root)
    try:
        assert names_of(load_dataset(name, folder_of(name, root))) == names_of(before)
    except ValueError as e:
        assert f'folder that holds the sets, here perhaps {root}' in str(e)

def test_place_is_told(copy):
    root = copy('caltech101')
    shutil.rmtree(folder_of('caltech101', root)/'101_ObjectCategories')
    line, = problems('caltech101', root)
    for words in ('looked in', str(folder_of('caltech101', root)), 'get it from'):
        assert words in line

def test_half_an_imagenet(copy):
    root = copy('imagenet')
    images = folder_of('imagenet', root)/'images'
    whole = load_dataset('imagenet', root)
    (images/'train').rename(root/'train')
    assert load_dataset('imagenet', root) == whole._replace(train=[])     # enough for zero-shot
    assert any('has no train/' in line for line in problems('imagenet', root))
    (images/'val').rename(root/'val')
    (root/'train').rename(images/'train')
    assert load_dataset('imagenet', root) == whole._replace(test=[])      # enough for fit
    assert any('has no val/' in line for line in problems('imagenet', root))
    (images/'train').rename(images/'else')
    line, = problems('imagenet', root)
    assert 'neither train/ nor val/' in line or 'no folder' in line

def test_unsorted_imagenet(copy):
    root = copy('imagenet')
    val = folder_of('imagenet', root)/'images'/'val'
    for number, path in enumerate(sorted(val.rglob('*.JPEG'))):
        path.rename(val/f'ILSVRC2012_val_{number:08}.JPEG')
    for folder in [path for path in val.iterdir() if path.is_dir()]:
        folder.rmdir()
    line, = problems('imagenet', root)
    for words in ('must be sorted', 'ILSVRC2012_val_00000000.JPEG', 'extract_ILSVRC'):
        assert words in line

def test_linked_set_is_welcome(pristine, tmp_path):
    (tmp_path/'imagenet').symlink_to(folder_of('imagenet', pristine).resolve())
    assert unexpected(problems('imagenet', tmp_path)) == []

# --- what the lists say ------------------------------------------------------
def test_names_and_labels(pristine):
    for name in REAL:
        data = load_dataset(name, pristine)
        assert data.classnames == NAMES[name]
        assert data.template == 'a photo of a {}.'
        assert data.field_template == public.PUBLIC_SETS[name].template
        for item in data.train + data.val + data.test:
            assert data.classnames[item.label] == item.classname
        assert bool(data.train) == (not public.PUBLIC_SETS[name].shift_of)

def test_imagenet_lists_are_sorted(pristine):
    paths = [item.path for item in load_dataset('imagenet', pristine).train]
    assert paths == sorted(paths)

def test_imagenet_names_are_clips():
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
    names = public.imagenet_classes()
    assert list(names.values()) == list(IMAGENET_CLASSNAMES)
    assert all(number[0] == 'n' and len(number) == 9 for number in names)
    twins = public.PUBLIC_SETS['imagenet'].twins
    every = Dataset([], [], [], list(names.values()))
    assert check.list_problems(every, twins) == [] and len(check.list_problems(every)) == 2

def test_imagenet_numbers_are_the_known_ones():
    info = Path(importlib.util.find_spec('timm').submodule_search_locations[0])/'data'/'_info'
    assert list(public.imagenet_classes()) == (info/'imagenet_synsets.txt').read_text().split()
    for variant in ('a', 'r'):
        numbers = sorted((info/f'imagenet_{variant}_synsets.txt').read_text().split())
        digest = hashlib.sha256('\n'.join(numbers).encode()).hexdigest()[:16]
        assert public.PUBLIC_SETS[f'imagenet_{variant}'].subset == digest

SPLIT_FILES = Path(__file__).parent/'fixtures'/'splits'
SHIPPED = ('caltech101', 'dtd', 'eurosat', 'oxford_pets')

def shipped_split(name):
    return SPLIT_FILES/f'{public.PUBLIC_SETS[name].split}.gz'

@pytest.mark.parametrize('name', SHIPPED)
def test_published_split_and_draws(name):
    data = read_split(shipped_split(name), name=name)
    assert public.count(data) == public.PUBLIC_SETS[name].counts
    assert public.check_against_published(name, data) == []
    published = json.loads((SPLIT_FILES/'draws.json').read_text())[name]
    def digest(items):
        return hashlib.sha256('\n'.join(item.path for item in items).encode()).hexdigest()[:16]
    for seed in (1, 2, 3):
        drawn = few_shot_split(data, 16, seed)
        base = base_new(drawn)[0]
        digests = dict(train=digest(drawn.train), train_base=digest(base.train),
                       val=digest(drawn.val), val_base=digest(base.val))
        assert digests == published[str(seed)]
        assert public.PUBLIC_SETS[name].draws[seed-1] == published[str(seed)]['train']

@pytest.mark.parametrize('name', ('oxford_pets', 'dtd'))
def test_full_size_copy_is_in_order(name, tmp_path):
    "The published split with a picture at every path: nothing to complain of; some less: one line."
    known = public.PUBLIC_SETS[name]
    place = tmp_path/known.folders[0]/known.images[0]
    raw = gzip.decompress(shipped_split(name).read_bytes())
    place.mkdir(parents=True)
    (place.parent/known.split).write_bytes(raw)
    Image.new('RGB', (8, 8)).save(tmp_path/'one.jpg')
    paths = [place/path for part in json.loads(raw).values() for path, _, _ in part]
    for folder in {path.parent for path in paths}:
        folder.mkdir(exist_ok=True)
    for path in paths:
        os.link(tmp_path/'one.jpg', path)
    report = check.check_public(name, tmp_path, read=False)
    assert report['problems'] == [] and report['lists'] == 'published'
    assert report['present'] == report['images'] == len(paths)
    for path in paths[600:]:
        path.unlink()
    report = check.check_public(name, tmp_path, read=False)
    line, = report['problems']
    assert report['present'] == 600 and f'{len(paths)-600:,} of {len(paths):,} images' in line

def test_one_exchange_is_seen():
    data = read_split(shipped_split('dtd'))
    first, second, *rest = data.train
    assert public.check_against_published('dtd', data._replace(train=[second, first, *rest]))
    assert 'published: ' in public.check_against_published('eurosat', data)[0]

# --- downloads ---------------------------------------------------------------
@pytest.fixture
def site(tmp_path):
    "A folder, its address on a server of our own, and what was asked for."
    folder, asked = tmp_path/'site', []
    folder.mkdir()
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass
        def do_GET(self):
            asked.append(self.path)
            super().do_GET()
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f'http://127.0.0.1:{server.server_port}', asked
    server.shutdown()
    server.server_close()

@pytest.fixture
def dtd_site(pristine, site, monkeypatch):
    "The miniature of DTD, served as its makers pack it."
    folder, at, asked = site
    made = folder_of('dtd', pristine)
    split = made/'split_zhou_DescribableTextures.json'
    shutil.make_archive(str(folder/'dtd-r1.0.1'), 'gztar', made.parent, 'dtd')
    shutil.copy(split, folder)
    md5 = hashlib.md5((folder/'dtd-r1.0.1.tar.gz').read_bytes()).hexdigest()
    def serve(digest=f'md5:{md5}'):
        monkeypatch.setitem(download.SOURCES, 'dtd', (
            download.Source(f'{at}/dtd-r1.0.1.tar.gz', digest, 'images', 'dtd'),
            download.Source(f'{at}/{split.name}', '', split.name)))
    serve()
    return folder, asked, serve

def test_download(pristine, dtd_site, tmp_path):
    folder, asked, serve = dtd_site
    serve('md5:'+'0'*32)
    lines = download.download('dtd', tmp_path/'DATA')
    assert len(lines) == 1 and 'expected 000' in lines[0]
    assert not (tmp_path/'DATA'/'dtd'/'images').exists()
    serve()
    assert download.download('dtd', tmp_path/'DATA') == []
    assert names_of(load_dataset('dtd', tmp_path/'DATA')) == names_of(load_dataset('dtd', pristine))
    assert not (tmp_path/'DATA'/'dtd'/'.download').exists()
    asked.clear()
    assert download.download(['dtd'], tmp_path/'DATA') == [] and asked == []

def test_partly_present_set_is_completed(copy, dtd_site):
    "Six hundred of 7,349 images are not a set."
    root = copy('dtd')
    for path in images_of('dtd', root)[3:]:
        path.unlink()
    assert '37 of 40 images are missing' in download.what_is_missing('dtd', root)
    assert download.download('dtd', root) == []
    assert download.what_is_missing('dtd', root) == '' and unexpected(problems('dtd', root)) == []

def test_what_stays_incomplete_is_told(copy, dtd_site):
    root = copy('dtd')
    folder, asked, serve = dtd_site
    with tarfile.open(folder/'dtd-r1.0.1.tar.gz', 'w:gz') as archive:
        archive.add(images_of('dtd', root)[0], 'dtd/images/banded/banded_0001.jpg')
    serve('')
    for path in images_of('dtd', root):
        path.unlink()
    line, = download.download('dtd', root)
    assert '39 of 40 images are missing' in line

def test_missing_split_is_fetched_beside_its_images(copy, dtd_site):
    root = copy('dtd')
    damage('missing split', 'dtd', root)
    (root/'dtd').rename(root/'x')
    (root/'dtd').mkdir()
    (root/'x').rename(root/'dtd'/'dtd')
    assert download.download('dtd', root) == []
    assert public.find_set('dtd', root).lists == 'published'

def test_one_address_that_does_not_answer(dtd_site, tmp_path, monkeypatch):
    "The other sets are fetched all the same, and everything is told at the end."
    nowhere = download.Source('http://127.0.0.1:9/SUN397.tar.gz', '', 'SUN397')
    monkeypatch.setitem(download.SOURCES, 'sun397', (nowhere,))
    lines = download.download(['sun397', 'imagenet', 'imagenet_sketch', 'dtd'], tmp_path/'DATA')
    assert len(lines) == 3 and 'not reachable' in lines[0]
    assert 'registration' in lines[1] and 'HaohanWang' in lines[2]
    assert unexpected(problems('dtd', tmp_path/'DATA')) == []
    with pytest.raises(ValueError, match='no public data set'):
        download.download(['dtd', 'vehicles'], tmp_path/'DATA')

@pytest.mark.parametrize('file', ['dtd-r1.0.1.tar.gz', 'split_zhou_DescribableTextures.json'])
def test_damaged_file_without_digest_is_fetched_again(dtd_site, tmp_path, file):
    "Of the right length and wrong: nothing else than the content tells."
    folder, asked, serve = dtd_site
    serve('')
    whole = (folder/file).read_bytes()
    (folder/file).write_bytes(whole[:40] + bytes(len(whole)-40))
    first = download.download('dtd', tmp_path/'DATA')[0]
    assert 'the file was deleted' in first and '\n' not in first
    (folder/file).write_bytes(whole)
    assert download.download('dtd', tmp_path/'DATA') == []
    assert not (tmp_path/'DATA'/'dtd'/'.download').exists()

def test_archive_with_the_published_digest_is_kept(dtd_site, tmp_path):
    "What is in its way is mended without fetching it again."
    folder, asked, serve = dtd_site
    (tmp_path/'DATA'/'dtd').mkdir(parents=True)
    (tmp_path/'DATA'/'dtd'/'images').symlink_to(tmp_path)
    assert 'leads out of' in download.download('dtd', tmp_path/'DATA')[0]
    (tmp_path/'DATA'/'dtd'/'images').unlink()
    asked.clear()
    assert download.download('dtd', tmp_path/'DATA') == []
    assert '/dtd-r1.0.1.tar.gz' not in asked

@pytest.mark.parametrize('page', [PAGE, POINTER])
def test_page_instead_of_an_archive(dtd_site, tmp_path, page):
    folder, asked, serve = dtd_site
    (folder/'dtd-r1.0.1.tar.gz').write_bytes(page)
    serve('')
    line, = download.download('dtd', tmp_path/'DATA')
    assert ('HTML' in line or 'LFS' in line) and 'deleted' in line

def archive_of(path, kind):
    "An archive of two files of noise."
    noise = [np.random.default_rng(seed).bytes(40000) for seed in (0, 1)]
    if kind == 'zip':
        with zipfile.ZipFile(path, 'w') as archive:
            archive.writestr('a/first.jpg', noise[0])
            archive.writestr('a/second.jpg', noise[1])
        return path
    with tarfile.open(path, f'w:{kind}') as archive:
        for name, content in zip(('a/first.jpg', 'a/second.jpg'), noise):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path

@pytest.mark.parametrize('kind', ['', 'gz', 'xz', 'bz2', 'zip'])
def test_broken_archives_leave_nothing(tmp_path, kind):
    "Cut off anywhere or with a wrong byte: one line, and not the members before the bad one."
    path = archive_of(tmp_path/f'archive.{kind}', kind)
    whole, target = path.read_bytes(), tmp_path/'out'
    assert sorted(p.name for p in download.unpack(path, tmp_path/'good').rglob('*.jpg')) == \
        ['first.jpg', 'second.jpg']
    contents = [whole[:len(whole)*part//10] for part in (1, 5, 8)]
    if kind:                                      # a plain tar file has no checksum of its content
        contents.append(whole[:60000] + bytes([whole[60000] ^ 255]) + whole[60001:])
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(ValueError, match='cannot be unpacked') as e:
            download.unpack(path, target)
        assert '\n' not in str(e.value) and os.listdir(target) == []

@pytest.mark.parametrize('flag, method, word', [(1, 0, 'encrypted'), (0, 97, 'compression')])
def test_zip_that_python_cannot_read(tmp_path, flag, method, word):
    path = archive_of(tmp_path/'archive.zip', 'zip')
    content = bytearray(path.read_bytes())
    for sign, place in ((b'PK\x03\x04', 6), (b'PK\x01\x02', 8)):
        start = content.find(sign)
        while start >= 0:
            content[start+place] |= flag
            content[start+place+2] = method
            start = content.find(sign, start+1)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=word):
        download.unpack(path, tmp_path/'out')
    assert os.listdir(tmp_path/'out') == []

def test_sources():
    from torchvision.datasets import dtd, food101, oxford_iiit_pet
    for name, module in dict(oxford_pets=oxford_iiit_pet, dtd=dtd, food101=food101).items():
        for source in download.SOURCES[name]:
            if source.digest.startswith('md5'):
                assert source.digest[4:] in inspect.getsource(module)
    unknown = []
    for name, sources in download.SOURCES.items():
        for source in sources:
            kind, _, digest = source.digest.partition(':')
            assert source.url.startswith('http')
            assert len(digest) == {'': 0, 'md5': 32, 'sha256': 64}[kind]
            if not source.digest:
                unknown.append(source.gives)
        known = public.PUBLIC_SETS[name]
        assert not known.split or known.split in [source.gives for source in sources]
    assert len(unknown) == 4                              # two archives, and two split files
