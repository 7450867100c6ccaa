"""Writes miniatures of the fifteen public data sets, each in its official layout and formats, and damages them.

    from miniature import SETS, write, damage
    write('oxford_pets', root, train=20, val=4, test=5)      # root/oxford_pets/{images,annotations,split_zhou_OxfordPets.json}

or, for all of them, `python tests/miniature.py FOLDER`. Class names, file names and folders are the official ones, so that every clean-up is exercised;
the pictures are small coloured noise."""
import io, json, sys
from pathlib import Path
import numpy as np
from PIL import Image

# Class names as the published lists spell them, in label order.
NAMES = dict(
    caltech101=['face','leopard','motorbike','accordion'], oxford_pets=['abyssinian','american_bulldog','american_pit_bull_terrier','basset_hound'],
    stanford_cars=['2000 AM General Hummer SUV','2012 Acura RL Sedan','2012 Acura TL Sedan','2008 Acura TL Type-S'], oxford_flowers=['pink primrose','hard-leaved pocket orchid','canterbury bells','sweet pea'],
    food101=['apple_pie','baby_back_ribs','baklava','beef_carpaccio'], fgvc_aircraft=['707-320','727-200','737-200','F/A-18'],
    sun397=['abbey','airplane_cabin','indoor ice_skating_rink','outdoor ice_skating_rink'], dtd=['banded','blotchy','braided','bubbly'],
    eurosat=['Annual Crop Land','Forest','Herbaceous Vegetation Land','Highway or Road','Industrial Buildings','Pasture Land','Permanent Crop Land','Residential Buildings','River','Sea or Lake'],
    ucf101=['Apply_Eye_Makeup','Apply_Lipstick','Archery','Handstand_Pushups'])
NAMES |= {k: ['tench','goldfish','great white shark','tiger shark'] for k in ('imagenet','imagenetv2','imagenet_sketch','imagenet_a','imagenet_r')}
WNIDS = ['n01440764','n01443537','n01484850','n01491361']
SETS = tuple(NAMES)
SPLITS = dict(caltech101='Caltech101', oxford_pets='OxfordPets', stanford_cars='StanfordCars', oxford_flowers='OxfordFlowers', food101='Food101', sun397='SUN397',
              dtd='DescribableTextures', eurosat='EuroSAT', ucf101='UCF101')
FOLDERS = dict(caltech101='caltech-101', food101='food-101', imagenet_sketch='imagenet-sketch', imagenet_a='imagenet-adversarial', imagenet_r='imagenet-rendition')
IMAGES = dict(caltech101='101_ObjectCategories', oxford_pets='images', stanford_cars='', oxford_flowers='jpg', food101='images', fgvc_aircraft='images', sun397='SUN397', dtd='images',
              eurosat='2750', ucf101='UCF-101-midframes', imagenet='images', imagenetv2='imagenetv2-matched-frequency-format-val', imagenet_sketch='images', imagenet_a='imagenet-a', imagenet_r='imagenet-r')

def folder_of(name, root): return Path(root)/FOLDERS.get(name, name)

def picture(path, label, number):
    "A small noisy picture whose colour tells its class."
    rng = np.random.default_rng(1000*label+number)
    pixels = rng.integers(0, 80, (36+label, 48, 3)) + np.array([[160,0,0],[0,160,0],[0,0,160],[150,150,0],[0,150,150]])[label%5]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype('uint8')).save(path, 'JPEG', quality=80)

def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(f'{r}\n' for r in rows))

# Relative path of image i (1, 2, …) of a class, as each set names its files. `part` is train, val or test.
def _caltech(l, name, i, part): return f'{["Faces","Leopards","Motorbikes","accordion"][l]}/image_{i:04}.jpg'
def _pets(l, name, i, part): return f'{name if l else name.capitalize()}_{i}.jpg'
def _cars(l, name, i, part): return f'cars_{"test" if part == "test" else "train"}/{1000*l+i:05}.jpg'
def _flowers(l, name, i, part): return f'image_{1000*l+i:05}.jpg'
def _food(l, name, i, part): return f'{name}/{1000000+1000*l+i}.jpg'
def _aircraft(l, name, i, part): return f'{1000*l+i:07}.jpg'
def _sun(l, name, i, part): return f'{["a/abbey","a/airplane_cabin","i/ice_skating_rink/indoor","i/ice_skating_rink/outdoor"][l]}/sun_{"abcdefgh"[i%8]}{i:05}.jpg'
def _dtd(l, name, i, part): return f'{name}/{name}_{i:04}.jpg'
def _eurosat(l, name, i, part): return '{0}/{0}_{1}.jpg'.format(['AnnualCrop','Forest','HerbaceousVegetation','Highway','Industrial','Pasture','PermanentCrop','Residential','River','SeaLake'][l], i)
def _ucf(l, name, i, part): return f'{name}/v_{name.replace("_","")}_g{i:02}_c01.jpg'
PATHS = dict(caltech101=_caltech, oxford_pets=_pets, stanford_cars=_cars, oxford_flowers=_flowers, food101=_food, fgvc_aircraft=_aircraft, sun397=_sun, dtd=_dtd, eurosat=_eurosat, ucf101=_ucf)

def write(name, root, train=5, val=2, test=3):
    "A miniature of `name` below `root`, with so many images per class; the folder of the set."
    folder = folder_of(name, root); images = folder/IMAGES[name]
    if name in PATHS:
        number = {'train': range(1, train+1), 'val': range(train+1, train+val+1), 'test': range(train+val+1, train+val+test+1)}
        parts = {p: [(PATHS[name](l, c, i, p), l, c) for l,c in enumerate(NAMES[name]) for i in number[p]] for p in number}
        for p,rows in parts.items():
            for k,(rel,l,_) in enumerate(rows): picture(images/rel, l, k)
        if name in SPLITS: (folder/f'split_zhou_{SPLITS[name]}.json').write_text(json.dumps(parts))
        if name in ANNOTATIONS: ANNOTATIONS[name](folder, parts)
    else: _imagenet(name, images, train, test)
    return folder

def _imagenet(name, images, train, test):
    for l,w in enumerate(WNIDS):
        where = {'imagenet': images/'val'/w, 'imagenetv2': images/str(l)}.get(name, images/w)
        for i in range(test): picture(where/f'picture_{i:04}.{"jpeg" if name == "imagenetv2" else "JPEG"}', l, i)
        if name == 'imagenet':
            for i in range(train): picture(images/'train'/w/f'{w}_{i}.JPEG', l, 100+i)
    lines(images.parent/'classnames.txt', (Path(__file__).parents[1]/'dra_nb'/'assets'/'imagenet_classes.txt').read_text().splitlines())
    if name == 'imagenet_r': lines(images/'README.txt', ['skip me'])

def _pets_lists(folder, parts):
    row = lambda r: f'{r[0][:-4]} {r[1]+1} {1 if r[1] == 0 else 2} 1'
    lines(folder/'annotations'/'trainval.txt', map(row, sorted(parts['train']+parts['val'])))
    lines(folder/'annotations'/'test.txt', map(row, parts['test']))

def _cars_mats(folder, parts):
    from scipy.io import savemat
    (folder/'devkit').mkdir()
    original = lambda n: ' '.join(n.split()[1:] + n.split()[:1])
    savemat(folder/'devkit'/'cars_meta.mat', dict(class_names=np.array([original(n) for n in NAMES['stanford_cars']], dtype=object)[None]))
    for path, rows in (('devkit/cars_train_annos.mat', parts['train']+parts['val']), ('cars_test_annos_withlabels.mat', parts['test'])):
        fields = ['bbox_x1','bbox_y1','bbox_x2','bbox_y2','class','fname']
        table = np.zeros((1, len(rows)), dtype=[(f, object) for f in fields])
        for i,(p,l,_) in enumerate(rows): table[0,i] = (1, 1, 40, 30, l+1, Path(p).name)
        savemat(folder/path, dict(annotations=table))

def _flowers_mats(folder, parts):
    from scipy.io import savemat
    rows = {int(p[6:11]): l+1 for part in parts.values() for p,l,_ in part}
    # the official numbers run without a gap: a miniature renames its images accordingly
    order = {old: new for new,old in enumerate(sorted(rows), 1)}
    for old,new in order.items(): (folder/'jpg'/f'image_{old:05}.jpg').rename(folder/'jpg'/f'image_{new:05}.jpg')
    renamed = {k: [(f'image_{order[int(p[6:11])]:05}.jpg', l, c) for p,l,c in v] for k,v in parts.items()}
    (folder/'split_zhou_OxfordFlowers.json').write_text(json.dumps(renamed))
    savemat(folder/'imagelabels.mat', dict(labels=np.array([rows[o] for o in sorted(rows)], dtype=np.uint8)[None]))
    (folder/'cat_to_name.json').write_text(json.dumps({str(i+1): n for i,n in enumerate(NAMES['oxford_flowers'])}))

def _food_lists(folder, parts):
    lines(folder/'meta'/'classes.txt', NAMES['food101'])
    for f,rows in dict(train=parts['train']+parts['val'], test=parts['test']).items(): lines(folder/'meta'/f'{f}.txt', [r[0][:-4] for r in rows])

def _aircraft_lists(folder, parts):
    lines(folder/'variants.txt', NAMES['fgvc_aircraft'])
    for f,rows in parts.items(): lines(folder/f'images_variant_{f}.txt', [f'{r[0][:-4]} {r[2]}' for r in rows])

def _sun_lists(folder, parts):
    lines(folder/'ClassName.txt', ['/a/abbey','/a/airplane_cabin','/i/ice_skating_rink/indoor','/i/ice_skating_rink/outdoor'])
    lines(folder/'Training_01.txt', ['/'+r[0] for r in parts['train']+parts['val']])
    lines(folder/'Testing_01.txt', ['/'+r[0] for r in parts['test']])

def _dtd_lists(folder, parts):
    for f,rows in parts.items(): lines(folder/'labels'/f'{f}1.txt', [r[0] for r in rows])
    (folder/'imdb').mkdir()

def _ucf_lists(folder, parts):
    video = lambda r: f'{r[2].replace("_","")}/{Path(r[0]).stem}.avi'
    lines(folder/'ucfTrainTestlist'/'classInd.txt', [f'{i} {n.replace("_","")}' for i,n in enumerate(NAMES['ucf101'], 1)])
    lines(folder/'ucfTrainTestlist'/'trainlist01.txt', [f'{video(r)} {r[1]+1}' for r in parts['train']+parts['val']])
    lines(folder/'ucfTrainTestlist'/'testlist01.txt', map(video, parts['test']))

def _caltech_extras(folder, parts):
    for c in ('BACKGROUND_Google','Faces_easy'): picture(folder/'101_ObjectCategories'/c/'image_0001.jpg', 0, 1)

ANNOTATIONS = dict(caltech101=_caltech_extras, oxford_pets=_pets_lists, stanford_cars=_cars_mats, oxford_flowers=_flowers_mats, food101=_food_lists, fgvc_aircraft=_aircraft_lists, sun397=_sun_lists,
                   dtd=_dtd_lists, ucf101=_ucf_lists)

# --- damage -----------------------------------------------------------------
DAMAGES = ('missing split','truncated image','wrong class count','label out of range','path escaping the root')

def damage(kind, name, root):
    "Harm a written miniature in one way; a word that a report about it must contain. None where the format has no room for that damage."
    folder = folder_of(name, root); images = folder/IMAGES[name]
    if kind == 'truncated image':
        victim = sorted(p for p in images.rglob('*') if p.suffix.lower() in ('.jpg','.jpeg') and 'BACKGROUND' not in str(p) and 'Faces_easy' not in str(p))[-1]
        victim.write_bytes(victim.read_bytes()[:-200])
        return victim.name
    if name in SPLITS: return _damage_split(kind, folder/f'split_zhou_{SPLITS[name]}.json')
    if name == 'fgvc_aircraft': return _damage_aircraft(kind, folder)
    return _damage_folders(kind, name, images, Path(root).parent/'outside')

def _damage_split(kind, path):
    if kind == 'missing split': path.unlink(); return path.name
    parts = json.loads(path.read_text())
    if kind == 'wrong class count': last = max(r[1] for r in parts['train']); parts = {k: [r for r in rows if r[1] != last] for k,rows in parts.items()}; word = f'{last} classes, expected'
    if kind == 'label out of range': parts['val'][0][1] = 5001; parts['val'][0][2] = 'nowhere'; word = '5001'
    if kind == 'path escaping the root': parts['test'][0][0] = '../../secret.jpg'; word = '../../secret.jpg'
    path.write_text(json.dumps(parts))
    return word

def _damage_aircraft(kind, folder):
    path = folder/'images_variant_val.txt'
    if kind == 'missing split': path.unlink(); return path.name
    if kind == 'wrong class count': lines(folder/'variants.txt', NAMES['fgvc_aircraft'][:-1]); return 'F/A-18'
    row = '0000001 Spruce Goose' if kind == 'label out of range' else '../../secret 707-320'
    lines(path, [row, *path.read_text().splitlines()[1:]])
    return row.split(' ', 1)[1] if kind == 'label out of range' else '../../secret'

def _damage_folders(kind, name, images, outside):
    part = images/'val' if name == 'imagenet' else images
    last = sorted(p for p in part.iterdir() if p.is_dir())[-1]
    if kind == 'missing split': part.rename(part.with_name('elsewhere')); return part.name
    if kind == 'wrong class count': last.rename(images.parent/'set-aside'); return last.name if name == 'imagenet' else f'{len(WNIDS)-1} classes, expected'
    if kind == 'label out of range': last.rename(last.with_name(other := {'imagenetv2': '1000'}.get(name, 'n99999999'))); return other
    picture(outside/'secret.JPEG', 0, 0)
    (part/last.name/'link.JPEG').symlink_to(outside/'secret.JPEG')       # a folder names no path but by a link
    return 'link.JPEG'

if __name__ == '__main__':
    for name in SETS: print(write(name, sys.argv[1]))
