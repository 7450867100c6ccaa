"Lists, pixels, own folders and names: files as users have them, numbers that must not change."
import os
import threading
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import save_images
from PIL import Image
from torchvision import transforms

from dra_nb.data import (
    Dataset, Item, base_new, few_shot_split, load_csv, load_dataset, load_folder, load_images,
    open_image, read_split)
from dra_nb.data.folders import images_below
from dra_nb.data.glyphs import SETS, SHIFTS
from dra_nb.data.images import (
    TestImages, TrainingImages, check_images_exist, image_size, missing_images)
from dra_nb.data.items import as_dataset, is_image_name

CROPS = SimpleNamespace(area=(.08, 1.), ratio=(3/4, 4/3), flip=.5)


def noise(width, height, seed=0):
    "Black and white at random: everything overshoots in a resize, and is clipped."
    values = np.random.default_rng(seed).integers(0, 2, (height, width, 3), dtype='uint8')
    return Image.fromarray(values*255)


def one_line(error):
    return '\n' not in str(error.value)


@pytest.fixture
def photos(tmp_path):
    "Twelve pictures of several shapes, tall ones among them."
    shapes = [(230, 300), (300, 230), (64, 64), (40, 200), (33, 47), (90, 50)]
    items = []
    for i in range(12):
        path = tmp_path/'photos'/f'{i}.png'
        path.parent.mkdir(exist_ok=True)
        noise(*shapes[i % 6], seed=i).save(path)
        items.append(Item(str(path), i % 2, 'ab'[i % 2]))
    return items


# --- pixels -------------------------------------------------------------------------------------
def test_crops_are_torchvisions_on_noise(photos):
    "Tall crops too, which Pillow resizes in an order of its own."
    from dra_nb.data.images import _crop_seeds
    images = TrainingImages(photos, 56, 3, CROPS)
    batch = images.batch(2, range(12))
    field = transforms.Compose([
        transforms.RandomResizedCrop(56, interpolation=transforms.InterpolationMode.BICUBIC),
        transforms.RandomHorizontalFlip(), transforms.ToTensor()])
    for row, seed in enumerate(_crop_seeds(3, 2, range(12))):
        torch.manual_seed(seed)
        theirs = field(Image.open(photos[row].path).convert('RGB'))
        assert torch.equal((batch[row]*255).round(), (theirs*255).round()), row


def test_crops_know_no_order_and_no_threads(photos):
    "Neither workers, batches, announcements nor other people's random numbers change a crop."
    items = photos + [Item(f'glyphs://food/train/{i}', 0, 'x') for i in range(8)]
    torch.manual_seed(5)
    undisturbed = torch.rand(40)
    torch.manual_seed(5)
    batch = TrainingImages(items, 32, 1, CROPS, workers=1).batch(0, range(20))
    images, drawn = TrainingImages(items, 32, 1, CROPS, workers=8), []
    rows = torch.randperm(20, generator=torch.Generator().manual_seed(0)).view(5, 4)
    for i, some in enumerate(rows):
        if i:
            assert torch.equal(images.batch(0, rows[i-1]), batch[rows[i-1]])
        images.prefetch(0, some)
        drawn.append(torch.rand(8))                        # while the threads are reading
    assert torch.equal(torch.cat(drawn), undisturbed)


def test_test_images_are_the_models_own(photos):
    squash = transforms.Compose([transforms.Resize((48, 48)), transforms.ToTensor()])
    images = TestImages(photos, 48, squash)
    images.prefetch([3, 4])
    theirs = torch.stack([squash(Image.open(photos[i].path)) for i in (3, 4)])
    assert torch.equal((images.batch([3, 4])*255).round(), (theirs*255).round())
    assert torch.equal(load_images(photos[3:5], 48, squash), (theirs*255).round().byte())


def test_sideways_photo(tmp_path):
    "EXIF orientation counts at test time and in training alike."
    picture = Image.new('RGB', (80, 40), 'red')
    picture.paste('blue', (0, 0, 40, 40))
    exif = Image.Exif()
    exif[0x112] = 6
    picture.transpose(Image.ROTATE_90).save(tmp_path/'phone.jpg', exif=exif, quality=95)
    picture.save(tmp_path/'upright.jpg', quality=95)
    items = [Item(str(tmp_path/name), 0, 'x') for name in ('phone.jpg', 'upright.jpg')]
    assert image_size(items[0].path) == image_size(items[1].path) == (40, 80)
    for seed in range(3):
        images = [TrainingImages([item], 32, seed, CROPS).batch(0, [0]) for item in items]
        assert (images[0]-images[1]).abs().mean() < .02
    sideways, upright = load_images(items, 32).float()
    assert (sideways-upright).abs().mean() < 5


@pytest.mark.filterwarnings('ignore:Corrupt EXIF')
def test_damaged_exif_is_no_reason_to_refuse(tmp_path):
    noise(40, 30).convert('L').save(tmp_path/'x.jpg', exif=b'Exif\0\0II*\0\xff\xff\xff\x7f')
    assert open_image(tmp_path/'x.jpg').size == (40, 30)
    assert image_size(tmp_path/'x.jpg') == (30, 40)


def test_the_format_tells_sixteen_bits_from_eight_in_more(tmp_path, monkeypatch):
    "A dark picture of 16 bits is dark, also where Pillow gives 32; TIFF may hold 8 bits in 32."
    from PIL import PngImagePlugin
    dark = np.full((40, 50), 255, dtype='uint16')
    Image.fromarray(dark).save(tmp_path/'dark.png')
    (tmp_path/'dark.pgm').write_bytes(b'P5 50 40 65535\n'+dark.astype('>u2').tobytes())
    turn = Image.Exif()
    turn[0x112] = 6
    Image.fromarray(dark).save(tmp_path/'turned.png', exif=turn)
    Image.fromarray(dark.astype('int32')).save(tmp_path/'wide.tif')
    monkeypatch.setitem(PngImagePlugin._MODES, (16, 0), ('I', 'I;16B'))   # as Pillow had it once
    for name, value in {'dark.png': 0, 'turned.png': 0, 'dark.pgm': 0, 'wide.tif': 255}.items():
        with Image.open(tmp_path/name) as im:
            assert im.mode == 'I', name
        assert (np.asarray(open_image(tmp_path/name)) == value).all(), name
    bright = dark+512
    Image.fromarray(bright).save(tmp_path/'bright.png')
    assert (np.asarray(open_image(tmp_path/'bright.png')) == 2).all()


def test_stand_ins_are_named(tmp_path):
    pointer = b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n'
    wrong = {'page.jpg': b'<!DOCTYPE html><p>404', 'lfs.jpg': pointer, 'empty.jpg': b'',
             'text.jpg': b'no picture'}
    words = {'page.jpg': 'web page', 'lfs.jpg': 'Git LFS', 'empty.jpg': 'empty',
             'text.jpg': 'cannot be read as an image', 'gone.jpg': 'is not there',
             'dir.jpg': 'folder'}
    (tmp_path/'dir.jpg').mkdir()
    for name, content in wrong.items():
        (tmp_path/name).write_bytes(content)
    for name, said in words.items():
        for read in (open_image, image_size):
            with pytest.raises(ValueError, match=said) as error:
                read(tmp_path/name)
            assert one_line(error) and name in str(error.value)


def test_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path/'pipe.jpg')
    said = []

    def read():
        try:
            open_image(tmp_path/'pipe.jpg')
        except ValueError as error:
            said.append(str(error))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(60)
    assert said and 'no regular file' in said[0]


def test_missing_images_are_found_before(photos):
    gone = photos[3]._replace(path=photos[3].path+'.gone')
    items = [*photos, gone, gone, Item('glyphs://food/test/0', 0, 'bread')]
    assert missing_images(items) == [gone.path]
    with pytest.raises(ValueError, match='1 of 14 are not there.*`look` lists') as error:
        check_images_exist(items, 'birds', 'look')
    assert one_line(error) and gone.path in str(error.value)
    check_images_exist(photos)


# --- lists --------------------------------------------------------------------------------------
def test_half_of_one_class_is_refused():
    for n in (1, 2, 3):
        items = [Item(f'{i}.jpg', i, str(i)) for i in range(n)]
        with pytest.raises(ValueError, match='at least 4') as error:
            base_new(Dataset(items, [], items, [str(i) for i in range(n)], name='mine'))
        assert one_line(error) and f'mine with {n} class' in str(error.value)


def test_fewer_shots_only_where_asked():
    items = [Item(f'{c}/{i}.jpg', c, str(c)) for c in range(4) for i in range(10 if c else 20)]
    data = Dataset(items, [], items, list('0123'))
    with pytest.raises(ValueError, match="class '1' has 10 training images, fewer than the 16"):
        few_shot_split(data, 16, 1)
    drawn = few_shot_split(data, 16, 1, fewer=True).train
    assert Counter(o.label for o in drawn) == {0: 16, 1: 10, 2: 10, 3: 10}


@pytest.mark.parametrize('entry', [
    ['a.jpg', True, 'a'], ['a.jpg', 0, ' '], ['a.jpg', 0., 'a'], ['../a.jpg', 0, 'a'], ['a.jpg', 0],
    ['C:/a.jpg', 0, 'a'], [1, 0, 'a'], 'abc', None, ['a\0.jpg', 0, 'a']])
def test_entries_that_are_refused(entry):
    with pytest.raises(ValueError) as error:
        as_dataset(([entry], [], []), '', 'list')
    assert one_line(error)


@pytest.mark.parametrize('raw', [
    b'', b'[]', b'null', b'\xff\xfe', b'['*200_000, b'{"train": []}',
    b'{"train": 1, "val": [], "test": []}',
    b'{"train": [["a", NaN, "a"]], "val": [], "test": []}'])
def test_split_files_that_are_refused(tmp_path, raw):
    (tmp_path/'split.json').write_bytes(raw)
    with pytest.raises(ValueError, match='split.json') as error:
        read_split(tmp_path/'split.json')
    assert one_line(error)
    (tmp_path/'split.json.gz').write_bytes(raw)
    with pytest.raises(ValueError, match='split.json.gz'):
        read_split(tmp_path/'split.json.gz')


def test_what_systems_leave_is_no_image():
    for name in ('._a.jpg', '.DS_Store', 'Thumbs.db', 'desktop.ini', 'a.jpg~', 'a.txt', '.jpg'):
        assert not is_image_name(f'folder/{name}'), name
    assert is_image_name('folder.d/A.JPG')


# --- own folders and tables ---------------------------------------------------------------------
def test_litter_enters_no_list(own_images):
    before = load_folder(own_images)
    for name in ('cat/._0.png', 'cat/.DS_Store', 'cat/Thumbs.db', '__MACOSX/cat/._0.png',
                 'dog/.ipynb_checkpoints/0.png'):
        (own_images/name).parent.mkdir(parents=True, exist_ok=True)
        (own_images/name).write_bytes(b'x')
    assert load_folder(own_images) == before
    assert sum(len(part) for part in before[:3]) == 24


@pytest.mark.parametrize('names', [
    'train val test', 'train valid test', 'train validation test', 'Train Val Test', 'TRAIN TEST',
    'training validation testing'])
def test_parts_as_tools_name_them(tmp_path, names):
    for k, part in enumerate(names.split()):
        for j, c in enumerate(('cat', 'dog')):
            save_images(tmp_path/'own'/part/c, 2+k, 100*k+10*j)
    data = load_folder(tmp_path/'own')
    sizes = [4, 6, 8] if len(names.split()) == 3 else [4, 0, 6]
    assert data.classnames == ['cat', 'dog'] and [len(part) for part in data[:3]] == sizes


@pytest.mark.parametrize('names, said', [
    ('train val', 'no test/'), ('valid test', 'no train/'), ('test', 'no train/'),
    ('train Train test', 'one of them'), ('train val validation test', 'one of them')])
def test_parts_that_are_not_clear(tmp_path, names, said):
    for k, part in enumerate(names.split()):
        for c in ('cat', 'dog'):
            save_images(tmp_path/'own'/part/c, 2, 10*k)
    with pytest.raises(ValueError, match=said) as error:
        load_folder(tmp_path/'own')
    assert one_line(error)


def test_tables_by_every_door(own_images, tmp_path):
    "A folder and a table of it are the same set, from wherever it is asked for."
    data = load_folder(own_images)
    rows = sorted((o.path, o.classname) for part in data[:3] for o in part)
    relative = '\n'.join(f'{os.path.relpath(p, own_images)};{c}' for p, c in rows)
    absolute = '\n'.join(f'"{p}",{c}' for p, c in rows)
    (own_images/'own.csv').write_text(f'Path;Class\n{relative}\n', encoding='utf-16')
    (tmp_path/'abs.csv').write_text(f'\ufeff,class,path\n'+'\n'.join(
        f'{i},{c},{p}' for i, (p, c) in enumerate(rows)), encoding='utf-8')
    (tmp_path/'elsewhere').mkdir()
    (tmp_path/'elsewhere'/'abs.csv').write_text(f'path,class\n{absolute}\n')
    for table in (load_csv(own_images/'own.csv'), load_dataset(str(own_images/'own.csv')),
                  load_csv(tmp_path/'elsewhere'/'abs.csv', root=own_images)):
        assert table[:4] == data[:4]
    from_above = load_csv(tmp_path/'abs.csv')
    assert sorted(o.path for part in from_above[:3] for o in part) == [p for p, _ in rows]
    with pytest.raises(ValueError, match='line 2 names .* does not lie in') as error:
        load_csv(tmp_path/'elsewhere'/'abs.csv')
    assert one_line(error)


@pytest.mark.parametrize('text, said', [
    ('file,label\na,b\n', 'file,label'), ('', 'columns path and class'),
    ('path,class\n', 'no line below'), ('path,class\na,x\nb,y,z\n', 'line 3 has 3 values'),
    ('path,class\n../a,x\nb,y\n../c,x\nd,y\n', 'leaves'),
    ('path,class,split\na,x,dev\n', "'dev'"), ('path,class\na,x\0\n', 't.csv')])
def test_tables_that_are_refused(tmp_path, text, said):
    (tmp_path/'t.csv').write_text(text)
    with pytest.raises(ValueError, match=said) as error:
        load_csv(tmp_path/'t.csv')
    assert one_line(error) and str(error.value).startswith(str(tmp_path/'t.csv'))


# --- names --------------------------------------------------------------------------------------
def test_embedded_sets_need_nothing():
    data = load_dataset('vehicles')
    assert data.name == 'vehicles' and data.train[0].path == 'glyphs://vehicles/train/0'
    for name in SHIFTS:
        assert not load_dataset(name).train and load_dataset(name).test


@pytest.mark.parametrize('name', [*SETS[:2], 'general-v2', 'oxford_pets', 'imagenet'])
def test_own_set_never_has_a_known_name(own_images, name):
    folder = own_images.rename(own_images.parent/name)
    for data in (load_folder(folder), load_dataset(str(folder))):
        assert data.name == f'{name} (own)'
    assert load_folder(folder, 'birds').name == 'birds'
    if name in (*SETS, *SHIFTS):
        assert load_dataset(name, folder).name == f'{name} (own)'
        assert load_dataset(name).test[0].path.startswith('glyphs://')


def test_nearly_right_names():
    for name, meant in (('vehicle', 'vehicles'), ('Food', 'food'), ('oxford-pets', 'oxford_pets')):
        with pytest.raises(ValueError, match=f'did you mean {meant!r}') as error:
            load_dataset(name)
        assert one_line(error)


def test_a_table_names_each_picture_once(tmp_path):
    rows = ['path,class,split', 'a.png,cat,train', './a.png,dog,test', 'b.png,dog,train']
    (tmp_path/'own.csv').write_text('\n'.join(rows))
    with pytest.raises(ValueError, match=r"line 3 names './a.png', as line 2 does"):
        load_dataset(tmp_path/'own.csv')


def test_a_folder_named_like_an_embedded_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'food').mkdir()
    with pytest.warns(UserWarning, match='food is the embedded set'):
        assert load_dataset('food').name == 'food'


def test_linked_folders_are_followed_once(tmp_path):
    (tmp_path/'far').mkdir()
    Image.new('RGB', (8, 8)).save(tmp_path/'far/one.png')
    (tmp_path/'far/back').symlink_to(tmp_path/'far', target_is_directory=True)
    (tmp_path/'near').mkdir()
    (tmp_path/'near/link').symlink_to(tmp_path/'far', target_is_directory=True)
    (tmp_path/'near/.thumbs').mkdir()
    Image.new('RGB', (8, 8)).save(tmp_path/'near/.thumbs/two.png')
    assert images_below(tmp_path/'near') == [str(tmp_path/'near/link/one.png')]


@pytest.mark.parametrize('wrong', [None, 5])
def test_a_name_is_a_text(wrong):
    with pytest.raises(ValueError, match=f'dataset: got {wrong}, allowed'):
        load_dataset(wrong)
