"""Build the corpus of icons that glyph-clip is pre-trained on: pictures of 64 px and names.

    pip install 'resvg>=0.2,<0.3' && python scripts/icons/build_corpus.py [--out FOLDER]

Fetches one pinned npm package (its hash is checked), keeps the sets that may be used and fit,
and writes three files to FOLDER (default ~/.cache/dra_nb/icons): planes.npy, icons.json, sets.json.
Two builds with one version of resvg give the same bytes. sets.json tells that version, what is
left out, and why; the reasons are also in nbs/1b_pretraining_loop.ipynb.
"""
import argparse
import base64
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path

import numpy as np
import resvg
from PIL import Image

from dra_nb.data.glyphs import artwork, drawings_for_pretraining

PACKAGE = '@iconify/json'
VERSION = '2.2.535'
SHA512 = ('nAV60ACUSHwnsb6fsp+letHlNkrwO4vzBtcC6B4EDHErQQfezk7E3nJdnwJjve6O'
          'CfMNO0uVT5Vrgna9/NCmXw==')
SIZE = 64
UNSEEN = 20           # one name in so many is never captioned
COPY = .97            # correlation of two pictures from which on one is a near copy of the other
CHUNK = 512           # icons that a worker renders at a time

FORBIDDEN = {'SA': 'share-alike', 'NC': 'non-commercial', 'GPL': 'GPL', 'MPL': 'MPL'}
CATEGORIES = {'Logos': 'logos and brands', 'Programming': 'logos and brands',
              'Emoji': 'emoji: the benchmark draws on them'}
SETS = {
    'fa6-brands': 'logos and brands', 'fa-brands': 'logos and brands',
    'dinkie-icons': 'emoji: the benchmark draws on them',
    **dict.fromkeys(('circle-flags', 'flag', 'flagpack', 'cif'),
                    'flags: the benchmark draws on them'),
}
BRANDS = re.compile(r'\b(brands?|logos?|social network)\b', re.I)   # in names and categories

# words that end a name and say how it is drawn, not what
STYLES = set('outline outlined fill filled solid duotone twotone linear broken remix negative '
             'outlines filling'.split())
# words that may do so: cut where the set draws the rest of the name in another style, too
MAYBE = set('light line thin bold regular flat sharp rounded round duo stroke small mini alt '
            'variant baseline expressive'.split())
NUMBER = re.compile(r'(\d{1,3}(px|x)?|\dx\d|one|three|four|five)$')
GLUED = re.compile(r'(?<=[a-z]{3})\dx?$')                  # 'crown3', 'worker2x'
PREFIXES = {'ic': set('baseline outline round sharp twotone'.split())}
LEADING = {'icon-park': (), 'streamline': set('interface'.split())}
# categories that say nothing about what is drawn
PLAIN = re.compile(r'\b(ui|user interface|interfaces?|interfaceessential|general|others?|misc|'
                   r'newicons|regular|essentials?|common|core|symbols?|objects?|base|new|core|'
                   r'android|actions?|content|abstract|status|system)\b|^$', re.I)
WORDS = 8             # words of a name


def fail(message):
    sys.exit(f'build_corpus: {message}')


def fetch(folder):
    "The package's archive, downloaded once, its hash checked."
    path = folder/f'iconify-json-{VERSION}.tgz'
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = ['npm', 'pack', f'{PACKAGE}@{VERSION}', '--silent', '--pack-destination', folder]
        try:
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        except FileNotFoundError:
            fail('npm: not found, it fetches the icons; install node')
        except subprocess.CalledProcessError as e:
            lines = e.stderr.decode(errors='replace').strip().splitlines()
            fail(f'npm: could not fetch {PACKAGE}@{VERSION} ({lines[0] if lines else "no reason"})')
    digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    if digest != SHA512:
        fail(f'{path}: got SHA-512 {digest[:12]}…, allowed SHA-512 {SHA512[:12]}…; '
             'delete it and try again')
    return path


def read_sets(archive):
    "prefix → (facts, icons) of all sets in the archive."
    facts, icons = {}, {}
    with tarfile.open(archive) as tar:
        for member in tar:                                   # in its order: going back is slow
            name = member.name.removeprefix('package/')
            if name == 'collections.json':
                facts = json.load(tar.extractfile(member))
            elif name.startswith('json/') and name.endswith('.json'):
                icons[name[5:-5]] = tar.extractfile(member).read()
    wanted = [p for p, info in facts.items() if why_not(p, info) is None]
    return facts, {p: json.loads(icons[p]) for p in wanted}


def why_not(prefix, info):
    "Why a set is left out; None if it is not."
    licence = info['license'].get('spdx', '')
    for part, reason in FORBIDDEN.items():
        if part in licence:
            return f'licence: {reason}'
    if info.get('hidden'):
        return 'superseded or withdrawn by its author'
    return CATEGORIES.get(info.get('category')) or SETS.get(prefix)


def style_cut(words, names):
    "Words of an icon's name without those at its end that tell its style."
    while len(words) > 1:
        last, stem = words[-1], words[:-1]
        if last in STYLES or NUMBER.match(last):
            words = stem
        elif last in MAYBE and drawn_otherwise('-'.join(stem), last, names):
            words = stem
        else:
            break
    return words


def drawn_otherwise(stem, style, names):
    "Does the set have `stem` plain or in another style?"
    others = (STYLES | MAYBE) - {style, 'alt', 'small'} | {'two-tone'}
    return stem in names or any(f'{stem}-{other}' in names for other in others)


def plain_name(icon, prefix, names):
    "What an icon is called, in words: 'chat-square-quote-broken' is 'chat square quote'."
    icon = icon.lower().replace('two-tone', 'twotone')
    words = [w for w in re.split(r'[-_ ]+', icon) if w]
    if words and words[0] in PREFIXES.get(prefix, ()):
        words = words[1:]
    if len(words) > 3 and words[0] in LEADING.get(prefix.split('-')[0], ()):
        words = words[1:]
    words = style_cut(words, names)
    words = [GLUED.sub('', w) for w in words]
    words = list(dict.fromkeys(words))                              # each word once
    return ' '.join(words[:WORDS])


def plain_category(category):
    "A category in words, '' where it says nothing: 'MoneyShopping' is 'money shopping'."
    spaced = re.sub(r'(?<=[a-z])(?=[A-Z])', ' ', category)
    text = ' '.join(re.findall(r'[A-Za-z]+', spaced)).lower()
    return '' if PLAIN.search(text) or len(text) < 3 else text


def icons_of(prefix, data):
    "Icons of a set: dicts of body, box, name, aliases, category."
    shown = {n: i for n, i in data['icons'].items() if not i.get('hidden')}
    categories = {}
    for category, members in data.get('categories', {}).items():
        for member in members:
            categories.setdefault(member, category)
    names, aliases = set(data['icons']) | set(data.get('aliases', {})), {}
    for alias, a in data.get('aliases', {}).items():
        turned = any(k in a for k in ('rotate', 'hFlip', 'vFlip'))
        if not turned and not a.get('hidden'):
            aliases.setdefault(a['parent'], []).append(alias)
    for icon, i in sorted(shown.items()):
        name = plain_name(icon, prefix, names)
        others = {plain_name(a, prefix, names) for a in aliases.get(icon, ())}
        width, height = (i.get(k, data.get(k, 16)) for k in ('width', 'height'))
        box = i.get('left', 0), i.get('top', 0), width, height
        yield dict(icon=icon, prefix=prefix, name=name, aliases=sorted(others-{name, ''}),
                   category=categories.get(icon, ''), body=i['body'], box=box)


def stem(name):
    "A name with each word in the singular, for comparison."
    return ' '.join(w[:-1] if len(w) > 3 and w.endswith('s') else w for w in name.lower().split())


def withheld(name):
    "Is this name among those that are never captioned?"
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) % UNSEEN == 0


class HeldOut:
    "Names of the benchmark's held-out classes: which names are theirs or contain one of them."
    def __init__(self, classnames):
        plain = [re.sub(r'[^a-z0-9 ]+', ' ', n.lower()) for n in classnames]
        self.by_first = {}
        for name in plain:
            self.by_first.setdefault(stem(name).split()[0], []).append(stem(name))

    def __call__(self, name):
        words = stem(name).split()
        for first, word in enumerate(words):
            rest = ' '.join(words[first:])+' '
            if any(rest.startswith(n+' ') for n in self.by_first.get(word, ())):
                return True
        return False


def svg(icon):
    "The icon as an SVG of 64 px, in a square frame."
    left, top, width, height = icon['box']
    side = max(width, height)
    frame = f'{left-(side-width)/2} {top-(side-height)/2} {side} {side}'
    return (f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'width="{SIZE}" height="{SIZE}" viewBox="{frame}" color="#000">{icon["body"]}</svg>')


def raster(icon, planes):
    "(planes,64,64) uint8: coverage alone, or premultiplied colour and coverage; zeros on errors."
    try:
        tree = resvg.usvg.Tree.from_str(svg(icon), resvg.usvg.Options.default())
        png = resvg.render(tree, (1, 0, 0, 0, 1, 0))
    except Exception as e:                                  # resvg raises plain exceptions
        print(f'{icon["prefix"]}:{icon["icon"]}: not rendered ({e})', file=sys.stderr)
        return np.zeros((planes, SIZE, SIZE), np.uint8)
    a = np.asarray(Image.open(io.BytesIO(png)).convert('RGBA')).transpose(2, 0, 1)
    if planes == 1:
        return a[3:]
    colour = (a[:3].astype(np.uint16)*a[3:]+127)//255
    return np.concatenate([colour.astype(np.uint8), a[3:]])


def render_chunk(icons_and_planes):
    icons, planes = icons_and_planes
    return np.concatenate([raster(i, planes) for i in icons])


def render(icons, planes, out, first, workers):
    "Write all icons into `out` from plane `first` on."
    parts = [(icons[i:i+CHUNK], planes) for i in range(0, len(icons), CHUNK)]
    with ProcessPoolExecutor(workers) as pool:
        for done, block in enumerate(pool.map(render_chunk, parts)):
            out[first:first+len(block)] = block
            first += len(block)
            if done % 40 == 0:
                print(f'rendered {min(len(icons), (done+1)*CHUNK):,} of {len(icons):,}', flush=True)
    return first


def thumbnails(coverage):
    "(B,256) unit vectors of (B,64,64) coverage: cropped to what is drawn, 16 px, mean taken off."
    small = np.empty((len(coverage), 256), np.float32)
    for i, c in enumerate(coverage):
        rows, columns = np.flatnonzero((c > 64).any(1)), np.flatnonzero((c > 64).any(0))
        if not len(rows):
            small[i] = 0
            continue
        box = columns[0], rows[0], columns[-1]+1, rows[-1]+1
        small[i] = np.asarray(Image.fromarray(c).resize((16, 16), Image.BOX, box)).ravel()
    small -= small.mean(1, keepdims=True)
    return small/np.maximum(np.linalg.norm(small, axis=1, keepdims=True), 1e-6)


def darkness(pixels):
    "(B,64,64) uint8 of premultiplied (B,4,64,64): how dark a drawing is on white."
    colour = pixels[:, :3].astype(np.float32).mean(1)
    return np.clip(pixels[:, 3]-colour, 0, 255).astype(np.uint8)


def benchmark_thumbnails():
    "Thumbnails of the benchmark's drawings that pre-training may not show: coverage and darkness."
    a = artwork()
    kept = (a.role >= 0).numpy()
    kept[drawings_for_pretraining()[0].numpy()] = False
    pixels = a.pixels.numpy()[kept]
    both = np.concatenate([thumbnails(pixels[:, 3]), thumbnails(darkness(pixels))])
    return np.unique(both[np.linalg.norm(both, axis=1) > .5], axis=0)


def likeness(planes, colour, first, count, theirs):
    "(count,) greatest correlation of each icon with a drawing of the benchmark."
    best = np.zeros(count, np.float32)
    for i in range(0, count, 2048):
        n = min(2048, count-i)
        if colour:
            block = np.asarray(planes[first+4*i:first+4*(i+n)]).reshape(n, 4, SIZE, SIZE)
            views = [block[:, 3], darkness(block)]
        else:
            views = [np.asarray(planes[first+i:first+i+n])]
        for view in views:
            best[i:i+n] = np.maximum(best[i:i+n], (thumbnails(view)@theirs.T).max(1))
    return best


def choose(facts, data, only):
    "Icons of the sets that are kept, and how many each rule left out."
    drawn = set(drawings_for_pretraining()[1].tolist())
    names = [c['classname'] for k, c in enumerate(artwork().classes) if k not in drawn]
    theirs, left_out, icons = HeldOut(names), Counter(), []
    for prefix in sorted(data):
        if only and prefix not in only:
            continue
        for icon in icons_of(prefix, data[prefix]):
            said = [icon['name'], *icon['aliases']]
            if BRANDS.search(plain_category(icon['category'])) or BRANDS.search(icon['name']):
                left_out['logo or brand, by its name or category'] += 1
            elif not icon['name']:
                left_out['no name'] += 1
            elif any(theirs(n) for n in said):
                left_out['name of a held-out class'] += 1
            else:
                icon['unseen'] = any(withheld(n) for n in said)
                icons.append(icon)
    return icons, left_out


def index_of(icons, kept):
    "What icons.json holds: tables of names, categories and sets, and a row an icon."
    names, categories, sets = {}, {'': 0}, {}
    rows = []
    for number in np.flatnonzero(kept).tolist():
        i = icons[number]
        said = [names.setdefault(n, len(names)) for n in (i['name'], *i['aliases'])]
        category = categories.setdefault(plain_category(i['category']), len(categories))
        own = sets.setdefault(i['prefix'], len(sets))
        rows.append([i['plane'], own, category, int(i['unseen']), *said])
    return dict(names=list(names), categories=list(categories), sets=list(sets), icons=rows)


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(',', ':')), encoding='utf-8')


def facts_of(facts, index, left_out, excluded):
    "What sets.json holds: who drew what, what was left out, and how much there is."
    per = Counter(row[1] for row in index['icons'])
    sets = []
    for number, prefix in enumerate(index['sets']):
        info = facts[prefix]
        sets.append(dict(set=prefix, name=info['name'], version=info.get('version', ''),
                         licence=info['license']['spdx'], author=info['author']['name'],
                         url=info['author'].get('url', ''), icons=per[number]))
    seen = [row for row in index['icons'] if not row[3]]
    return dict(package=PACKAGE, version=VERSION, resvg=version('resvg'),
                icons=len(index['icons']), captioned=len(seen),
                names=len({row[4] for row in seen}),
                words=len({w for row in seen for w in index['names'][row[4]].split()}),
                never_captioned=len({row[4] for row in index['icons'] if row[3]}),
                left_out=dict(sorted(left_out.items())),
                sets_left_out=dict(sorted(excluded.items())), sets=sets)


def build(out, cache, only=(), workers=1):
    archive = fetch(cache)
    facts, data = read_sets(archive)
    if unknown := sorted(set(only)-set(data)):
        fail(f'--only: got {unknown[0]}, allowed are the sets that are kept, such as tabler')
    excluded = {p: why_not(p, info) for p, info in facts.items() if why_not(p, info)}
    icons, left_out = choose(facts, data, only)
    colour = [bool(facts[i['prefix']].get('palette')) for i in icons]
    icons = [i for _, i in sorted(zip(colour, icons), key=lambda pair: pair[0])]
    plain = len(icons)-sum(colour)
    for k, i in enumerate(icons):
        i['plane'] = k if k < plain else plain + 4*(k-plain)
    out.mkdir(parents=True, exist_ok=True)
    shape = plain + 4*(len(icons)-plain), SIZE, SIZE
    planes = np.lib.format.open_memmap(out/'planes.npy', 'w+', np.uint8, shape)
    first = render(icons[:plain], 1, planes, 0, workers)
    render(icons[plain:], 4, planes, first, workers)
    planes.flush()
    theirs = benchmark_thumbnails()
    like = np.concatenate([likeness(planes, False, 0, plain, theirs),
                           likeness(planes, True, plain, len(icons)-plain, theirs)])
    drawn = np.array([planes[i['plane']+(0 if k < plain else 3)].max() > 32
                      for k, i in enumerate(icons)], bool)
    kept = drawn & (like < COPY)
    left_out['nothing to see'] = int((~drawn).sum())
    left_out['near copy of a drawing of the benchmark'] = int((drawn & (like >= COPY)).sum())
    index = dict(size=SIZE, plain=plain, **index_of(icons, kept))
    write_json(out/'icons.json', index)
    write_json(out/'sets.json', facts_of(facts, index, left_out, excluded))
    np.save(cache/'likeness.npy', like)
    print(f'{out}: {len(index["icons"]):,} icons of {len(index["sets"])} sets; '
          f'left out: {dict(left_out)}')


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    home = Path.home()/'.cache/dra_nb/icons'
    parser.add_argument('--out', type=Path, default=home, help='folder of the corpus')
    parser.add_argument('--cache', type=Path, default=home/'fetch', help='folder of the archive')
    parser.add_argument('--only', nargs='*', default=(), help='build of these sets alone')
    parser.add_argument('--workers', type=int, default=1, help='processes that render')
    args = parser.parse_args()
    build(args.out, args.cache, args.only, args.workers)


if __name__ == '__main__':
    main()
