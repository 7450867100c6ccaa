"""Writes miniatures of the fifteen public data sets, each in its official layout, and damages them.

    from miniature import SETS, write, damage
    write('oxford_pets', root, train=20, val=4, test=5)
    # root/oxford_pets/{images,annotations,split_zhou_OxfordPets.json}

or, for all of them, `python tests/miniature.py FOLDER`. Class names, file names and folders are the
official ones, so that every clean-up is exercised; the pictures are small coloured noise."""
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

# Class names as the published lists spell them, in label order.
NAMES = dict(
    caltech101=['face', 'leopard', 'motorbike', 'accordion'],
    oxford_pets=['abyssinian', 'american_bulldog', 'american_pit_bull_terrier', 'basset_hound'],
    stanford_cars=['2000 AM General Hummer SUV', '2012 Acura RL Sedan', '2012 Acura TL Sedan',
                   '2008 Acura TL Type-S'],
    oxford_flowers=['pink primrose', 'hard-leaved pocket orchid', 'canterbury bells', 'sweet pea'],
    food101=['apple_pie', 'baby_back_ribs', 'baklava', 'beef_carpaccio'],
    fgvc_aircraft=['707-320', '727-200', '737-200', 'F/A-18'],
    sun397=['abbey', 'airplane_cabin', 'indoor ice_skating_rink', 'outdoor ice_skating_rink'],
    dtd=['banded', 'blotchy', 'braided', 'bubbly'],
    eurosat=['Annual Crop Land', 'Forest', 'Herbaceous Vegetation Land', 'Highway or Road',
             'Industrial Buildings', 'Pasture Land', 'Permanent Crop Land',
             'Residential Buildings', 'River', 'Sea or Lake'],
    ucf101=['Apply_Eye_Makeup', 'Apply_Lipstick', 'Archery', 'Handstand_Pushups'])
IMAGENETS = ('imagenet', 'imagenetv2', 'imagenet_sketch', 'imagenet_a', 'imagenet_r')
for one in IMAGENETS:
    NAMES[one] = ['tench', 'goldfish', 'great white shark', 'tiger shark']
WNIDS = ['n01440764', 'n01443537', 'n01484850', 'n01491361']
SETS = tuple(NAMES)
SPLITS = dict(
    caltech101='Caltech101', oxford_pets='OxfordPets', stanford_cars='StanfordCars',
    oxford_flowers='OxfordFlowers', food101='Food101', sun397='SUN397',
    dtd='DescribableTextures', eurosat='EuroSAT', ucf101='UCF101')
FOLDERS = dict(
    caltech101='caltech-101', food101='food-101', imagenet_sketch='imagenet-sketch',
    imagenet_a='imagenet-adversarial', imagenet_r='imagenet-rendition')
IMAGES = dict(
    caltech101='101_ObjectCategories', oxford_pets='images', stanford_cars='',
    oxford_flowers='jpg', food101='images', fgvc_aircraft='images', sun397='SUN397',
    dtd='images', eurosat='2750', ucf101='UCF-101-midframes', imagenet='images',
    imagenetv2='imagenetv2-matched-frequency-format-val', imagenet_sketch='images',
    imagenet_a='imagenet-a', imagenet_r='imagenet-r')
COLOURS = np.array([[160, 0, 0], [0, 160, 0], [0, 0, 160], [150, 150, 0], [0, 150, 150]])


def folder_of(name, root):
    return Path(root)/FOLDERS.get(name, name)


def picture(path, label, number):
    "A small noisy picture whose colour tells its class."
    rng = np.random.default_rng(1000*label+number)
    pixels = rng.integers(0, 80, (36+label, 48, 3)) + COLOURS[label % 5]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype('uint8')).save(path, 'JPEG', quality=80)


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(f'{row}\n' for row in rows))


# --- paths ------------------------------------------------------------------
# Where image i (1, 2, …) of a class lies, as each set names its files.
CALTECH_FOLDERS = ['Faces', 'Leopards', 'Motorbikes', 'accordion']
EUROSAT_FOLDERS = ['AnnualCrop', 'Forest', 'HerbaceousVegetation', 'Highway', 'Industrial',
                   'Pasture', 'PermanentCrop', 'Residential', 'River', 'SeaLake']
SCENES = ['a/abbey', 'a/airplane_cabin', 'i/ice_skating_rink/indoor', 'i/ice_skating_rink/outdoor']


def _caltech(label, name, i, part):
    return f'{CALTECH_FOLDERS[label]}/image_{i:04}.jpg'


def _pets(label, name, i, part):
    return f'{name if label else name.capitalize()}_{i}.jpg'


def _cars(label, name, i, part):
    return f'cars_{"test" if part == "test" else "train"}/{1000*label+i:05}.jpg'


def _flowers(label, name, i, part):
    return f'image_{1000*label+i:05}.jpg'


def _food(label, name, i, part):
    return f'{name}/{1000000+1000*label+i}.jpg'


def _aircraft(label, name, i, part):
    return f'{1000*label+i:07}.jpg'


def _sun(label, name, i, part):
    return f'{SCENES[label]}/sun_{"abcdefgh"[i % 8]}{i:05}.jpg'


def _dtd(label, name, i, part):
    return f'{name}/{name}_{i:04}.jpg'


def _eurosat(label, name, i, part):
    folder = EUROSAT_FOLDERS[label]
    return f'{folder}/{folder}_{i}.jpg'


def _ucf(label, name, i, part):
    return f'{name}/v_{name.replace("_", "")}_g{i:02}_c01.jpg'


PATHS = dict(
    caltech101=_caltech, oxford_pets=_pets, stanford_cars=_cars, oxford_flowers=_flowers,
    food101=_food, fgvc_aircraft=_aircraft, sun397=_sun, dtd=_dtd, eurosat=_eurosat, ucf101=_ucf)


# --- writing ----------------------------------------------------------------
def write(name, root, train=5, val=2, test=3):
    "A miniature of `name` below `root`, with so many images per class; the folder of the set."
    folder = folder_of(name, root)
    images = folder/IMAGES[name]
    if name in IMAGENETS:
        _imagenet(name, images, train, test)
        return folder
    parts = _parts(name, dict(train=train, val=val, test=test))
    for rows in parts.values():
        for number, (path, label, _) in enumerate(rows):
            picture(images/path, label, number)
    if name in SPLITS:
        (folder/f'split_zhou_{SPLITS[name]}.json').write_text(json.dumps(parts))
    if name in ANNOTATIONS:
        ANNOTATIONS[name](folder, parts)
    return folder


def _parts(name, sizes):
    "train, val and test → (path, label, class name) of its images."
    parts, first = {}, 1
    for part, size in sizes.items():
        parts[part] = []
        for label, classname in enumerate(NAMES[name]):
            for i in range(first, first+size):
                path = PATHS[name](label, classname, i, part)
                parts[part].append((path, label, classname))
        first += size
    return parts


def _imagenet(name, images, train, test):
    suffix = 'jpeg' if name == 'imagenetv2' else 'JPEG'
    for label, wnid in enumerate(WNIDS):
        folder = images/wnid
        if name == 'imagenet':
            folder = images/'val'/wnid
        elif name == 'imagenetv2':
            folder = images/str(label)
        for i in range(test):
            picture(folder/f'picture_{i:04}.{suffix}', label, i)
        for i in range(train if name == 'imagenet' else 0):
            picture(images/'train'/wnid/f'{wnid}_{i}.JPEG', label, 100+i)
    names = Path(__file__).parents[1]/'dra_nb'/'assets'/'imagenet_classes.txt'
    lines(images.parent/'classnames.txt', names.read_text().splitlines())
    if name == 'imagenet_r':
        lines(images/'README.txt', ['skip me'])


def _stem(row):
    "The path of a row, without its suffix."
    return row[0].removesuffix('.jpg')


def _pets_lists(folder, parts):
    def line(row):
        species = 1 if row[1] == 0 else 2
        return f'{_stem(row)} {row[1]+1} {species} 1'
    trainval = sorted(parts['train']+parts['val'])
    lines(folder/'annotations'/'trainval.txt', map(line, trainval))
    lines(folder/'annotations'/'test.txt', map(line, parts['test']))


def _cars_mats(folder, parts):
    from scipy.io import savemat
    (folder/'devkit').mkdir()
    names = []
    for name in NAMES['stanford_cars']:
        year, *words = name.split()
        names.append(' '.join([*words, year]))
    meta = dict(class_names=np.array(names, dtype=object)[None])
    savemat(folder/'devkit'/'cars_meta.mat', meta)
    _cars_annotations(folder/'devkit'/'cars_train_annos.mat', parts['train']+parts['val'])
    _cars_annotations(folder/'cars_test_annos_withlabels.mat', parts['test'])


def _cars_annotations(path, rows):
    from scipy.io import savemat
    fields = ['bbox_x1', 'bbox_y1', 'bbox_x2', 'bbox_y2', 'class', 'fname']
    table = np.zeros((1, len(rows)), dtype=[(field, object) for field in fields])
    for i, (image, label, _) in enumerate(rows):
        table[0, i] = (1, 1, 40, 30, label+1, Path(image).name)
    savemat(path, dict(annotations=table))


def _flowers_mats(folder, parts):
    "The official numbers run without a gap: the images are renamed accordingly."
    from scipy.io import savemat
    labels = {}
    for rows in parts.values():
        labels.update((int(path[6:11]), label+1) for path, label, _ in rows)
    order = {old: new for new, old in enumerate(sorted(labels), 1)}
    for old, new in order.items():
        (folder/'jpg'/f'image_{old:05}.jpg').rename(folder/'jpg'/f'image_{new:05}.jpg')
    renamed = {}
    for part, rows in parts.items():
        renamed[part] = [(f'image_{order[int(path[6:11])]:05}.jpg', label, name)
                         for path, label, name in rows]
    (folder/'split_zhou_OxfordFlowers.json').write_text(json.dumps(renamed))
    numbers = np.array([labels[old] for old in sorted(labels)], dtype=np.uint8)
    savemat(folder/'imagelabels.mat', dict(labels=numbers[None]))
    names = {str(i): name for i, name in enumerate(NAMES['oxford_flowers'], 1)}
    (folder/'cat_to_name.json').write_text(json.dumps(names))


def _food_lists(folder, parts):
    lines(folder/'meta'/'classes.txt', NAMES['food101'])
    lines(folder/'meta'/'train.txt', map(_stem, parts['train']+parts['val']))
    lines(folder/'meta'/'test.txt', map(_stem, parts['test']))


def _aircraft_lists(folder, parts):
    lines(folder/'variants.txt', NAMES['fgvc_aircraft'])
    for part, rows in parts.items():
        listed = [f'{_stem(row)} {row[2]}' for row in rows]
        lines(folder/f'images_variant_{part}.txt', listed)


def _sun_lists(folder, parts):
    lines(folder/'ClassName.txt', [f'/{scene}' for scene in SCENES])
    lines(folder/'Training_01.txt', [f'/{row[0]}' for row in parts['train']+parts['val']])
    lines(folder/'Testing_01.txt', [f'/{row[0]}' for row in parts['test']])


def _dtd_lists(folder, parts):
    for part, rows in parts.items():
        lines(folder/'labels'/f'{part}1.txt', [row[0] for row in rows])
    (folder/'imdb').mkdir()


def _ucf_lists(folder, parts):
    def video(row):
        return f'{row[2].replace("_", "")}/{Path(row[0]).stem}.avi'
    lists = folder/'ucfTrainTestlist'
    actions = [name.replace('_', '') for name in NAMES['ucf101']]
    lines(lists/'classInd.txt', [f'{i} {action}' for i, action in enumerate(actions, 1)])
    trainval = parts['train']+parts['val']
    lines(lists/'trainlist01.txt', [f'{video(row)} {row[1]+1}' for row in trainval])
    lines(lists/'testlist01.txt', map(video, parts['test']))


def _caltech_extras(folder, parts):
    for name in ('BACKGROUND_Google', 'Faces_easy'):
        picture(folder/'101_ObjectCategories'/name/'image_0001.jpg', 0, 1)


ANNOTATIONS = dict(
    caltech101=_caltech_extras, oxford_pets=_pets_lists, stanford_cars=_cars_mats,
    oxford_flowers=_flowers_mats, food101=_food_lists, fgvc_aircraft=_aircraft_lists,
    sun397=_sun_lists, dtd=_dtd_lists, ucf101=_ucf_lists)

# --- damage -----------------------------------------------------------------
DAMAGES = ('missing split', 'truncated image', 'wrong class count', 'label out of range',
           'path escaping the root')


def damage(kind, name, root):
    "Harm a written miniature in one way; a word that a report about it must contain."
    folder = folder_of(name, root)
    images = folder/IMAGES[name]
    if kind == 'truncated image':
        return _truncate(images)
    if name in SPLITS:
        return _damage_split(kind, folder/f'split_zhou_{SPLITS[name]}.json')
    if name == 'fgvc_aircraft':
        return _damage_aircraft(kind, folder)
    return _damage_folders(kind, name, images, Path(root).parent/'outside')


def _truncate(images):
    "Cut off the end of the last image that the lists name."
    found = []
    for path in images.rglob('*'):
        ignored = 'BACKGROUND' in str(path) or 'Faces_easy' in str(path)
        if path.suffix.lower() in ('.jpg', '.jpeg') and not ignored:
            found.append(path)
    last = max(found)
    last.write_bytes(last.read_bytes()[:-200])
    return last.name


def _damage_split(kind, path):
    if kind == 'missing split':
        path.unlink()
        return path.name
    parts = json.loads(path.read_text())
    if kind == 'wrong class count':
        last = max(row[1] for row in parts['train'])
        for part, rows in parts.items():
            parts[part] = [row for row in rows if row[1] != last]
        word = f'{last} classes, expected'
    elif kind == 'label out of range':
        parts['val'][0][1:] = [5001, 'nowhere']
        word = '5001'
    else:
        word = parts['test'][0][0] = '../../secret.jpg'
    path.write_text(json.dumps(parts))
    return word


def _damage_aircraft(kind, folder):
    path = folder/'images_variant_val.txt'
    if kind == 'missing split':
        path.unlink()
        return path.name
    if kind == 'wrong class count':
        lines(folder/'variants.txt', NAMES['fgvc_aircraft'][:-1])
        return 'F/A-18'
    row, word = '../../secret 707-320', '../../secret'
    if kind == 'label out of range':
        row, word = '0000001 Spruce Goose', 'Spruce Goose'
    lines(path, [row, *path.read_text().splitlines()[1:]])
    return word


def _damage_folders(kind, name, images, outside):
    part = images/'val' if name == 'imagenet' else images
    if kind == 'missing split':
        part.rename(part.with_name('elsewhere'))
        return part.name
    last = max(path for path in part.iterdir() if path.is_dir())
    if kind == 'wrong class count':
        last.rename(images.parent/'set-aside')
        return last.name if name == 'imagenet' else f'{len(WNIDS)-1} classes, expected'
    if kind == 'label out of range':
        other = '1000' if name == 'imagenetv2' else 'n99999999'
        last.rename(last.with_name(other))
        return other
    picture(outside/'secret.JPEG', 0, 0)
    link = last/'link.JPEG'                        # a folder names no path but by a link
    link.symlink_to(outside/'secret.JPEG')
    return link.name


if __name__ == '__main__':
    for name in SETS:
        print(write(name, sys.argv[1]))
