"""Build `dra_nb/assets/glyphs.zip`: 64 px drawings of the 1,611 Glyphs classes, with index, licences and attribution.

    pip install resvg fonttools brotli && python scripts/glyphs/build_glyphs.py

Needs node's `npm` for the pinned artwork packages beside this file (package-lock.json holds their hashes). Two builds
give the same bytes. What is joined by name and what by hand is told in nbs/10_glyphs.ipynb.
"""
import csv, io, json, re, subprocess, sys, tempfile, unicodedata, zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import resvg
from fontTools.pens.svgPathPen import SVGPathPen
from fontTools.ttLib import TTFont
from PIL import Image

HERE = Path(__file__).parent
OUT = HERE.parents[1] / 'dra_nb' / 'assets' / 'glyphs.zip'
SIZE, RENDER, COLUMNS = 64, 128, 120

# style, package, drawing family (families share geometry), licence, author
STYLES = [
    ('twemoji', '@iconify-json/twemoji', 'twemoji', 'CC-BY-4.0', 'Twitter, Inc. and other contributors'),
    ('noto', '@iconify-json/noto', 'noto', 'Apache-2.0', 'Google'),
    ('noto-v1', '@iconify-json/noto-v1', 'noto-v1', 'Apache-2.0', 'Google'),
    ('fluent', '@iconify-json/fluent-emoji', 'fluent', 'MIT', 'Microsoft Corporation'),
    ('fluent-mono', '@iconify-json/fluent-emoji-high-contrast', 'fluent', 'MIT', 'Microsoft Corporation'),
    ('emojione', '@iconify-json/emojione', 'emojione', 'CC-BY-4.0', 'Emoji One'),
    ('emojione-mono', '@iconify-json/emojione-monotone', 'emojione', 'CC-BY-4.0', 'Emoji One'),
    ('fxemoji', '@iconify-json/fxemoji', 'fxemoji', 'CC-BY-4.0', 'Mozilla'),
    ('streamline', '@iconify-json/streamline-emojis', 'streamline', 'CC-BY-4.0', 'Streamline (streamlinehq.com)'),
    ('noto-outline', '@fontsource/noto-emoji', 'noto-outline', 'OFL-1.1', 'Google'),
    ('circle-flags', '@iconify-json/circle-flags', 'circle-flags', 'MIT', 'HatScripts'),
    ('flag', '@iconify-json/flag', 'flag', 'MIT', 'Panayiotis Lipiridis'),
    ('flagpack', '@iconify-json/flagpack', 'flagpack', 'MIT', 'Yummygum'),
    ('cif', '@iconify-json/cif', 'cif', 'CC0-1.0', 'CoreUI'),
]
FLAG_SETS = ('circle-flags', 'flag', 'flagpack', 'cif')


def slug(name):
    name = unicodedata.normalize('NFKD', name.lower()).encode('ascii', 'ignore').decode()
    return re.sub(r'[^a-z0-9]+', '-', name.replace('&', 'and').replace("'", '').replace('*', 'asterisk').replace('#', 'hash')).strip('-')


def fold(code):
    "Code point without variation selectors and skin tones; gendered forms become the neutral base."
    parts = [p for p in code.lower().split('-') if p != 'fe0f' and not re.fullmatch('1f3f[b-f]', p)]
    neutral = '-'.join(parts)
    neutral = re.sub('-200d-264[02]', '', neutral)
    return re.sub(r'^1f46[89](?=-200d)', '1f9d1', neutral)


def plain(code): return '-'.join(p for p in code.lower().split('-') if p != 'fe0f')


def names_to_codes(packages):
    "slug → code point, from emojibase labels, then the sets' own names and aliases, Unicode names and shortcodes."
    table = {}
    def add(name, code): table.setdefault(slug(name), plain(code))
    data = json.loads((packages/'emojibase-data/en/data.json').read_text())
    for e in data: add(e['label'], e['hexcode'])
    for e in data:
        for s in e.get('skins', []): add(s['label'], s['hexcode'])
    for p in ('twemoji', 'noto', 'fluent-emoji-high-contrast'):
        icons = json.loads((packages/f'@iconify-json/{p}/icons.json').read_text())
        chars = json.loads((packages/f'@iconify-json/{p}/chars.json').read_text())
        for code, name in chars.items(): add(name, code)
        by_name = {n: c for c, n in chars.items()}
        for alias, a in icons.get('aliases', {}).items():
            if a['parent'] in by_name: add(alias, by_name[a['parent']])
    for e in data:
        if '-' not in plain(e['hexcode']):
            try: add(unicodedata.name(chr(int(plain(e['hexcode']), 16))), e['hexcode'])
            except ValueError: pass
    for f in ('cldr', 'emojibase', 'github', 'iamcal', 'joypixels'):
        for code, names in json.loads((packages/f'emojibase-data/en/shortcodes/{f}.json').read_text()).items():
            for n in [names] if isinstance(names, str) else names: add(n, code)
    return table


def flag_code(name):
    name = re.sub('-1x1$', '', name)
    if re.fullmatch('[a-z]{2}', name): return '-'.join(f'{0x1f1e6 + ord(c) - 97:x}' for c in name)
    sub = {'gb-eng': 'gbeng', 'gb-sct': 'gbsct', 'gb-wls': 'gbwls'}.get(name)
    return sub and '1f3f4-' + '-'.join(f'e00{ord(c):x}' for c in sub) + '-e007f'


def iconify(packages, style, package, classes, names, by_hand):
    "class → SVG text, at most one drawing a class: the neutral form where the set has it."
    icons = json.loads((packages/package/'icons.json').read_text())
    chars_file = packages/package/'chars.json'
    own = {n: c for c, n in json.loads(chars_file.read_text()).items()} if chars_file.exists() else {}
    found = {}
    for name in icons['icons']:
        if name in by_hand: code = None if by_hand[name] == '-' else by_hand[name]
        elif style in FLAG_SETS: code = flag_code(name) if not name.endswith('4x3') else None
        else: code = own.get(name) or names.get(slug(name))
        if not code: continue
        cls = fold(code)
        if cls in classes:
            rank = (plain(code) != cls, len(code), code, name)      # neutral before gendered or toned
            if cls not in found or rank < found[cls][0]: found[cls] = (rank, name)
    def svg(name):
        i = icons['icons'][name]
        w, h = (i.get(k, icons.get(k, 16)) for k in ('width', 'height'))
        left, top = i.get('left', 0), i.get('top', 0)
        side = max(w, h); x, y = left-(side-w)/2, top-(side-h)/2
        return (f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{RENDER}" height="{RENDER}" '
                f'viewBox="{x} {y} {side} {side}" color="#000">{i["body"]}</svg>')
    return {c: svg(n) for c, (_, n) in found.items()}


def font(packages, classes):
    "class → SVG text of the outline font's glyphs (single code points)."
    found = {}
    for f in sorted((packages/'@fontsource/noto-emoji/files').glob('noto-emoji-*-400-normal.woff2')):
        t = TTFont(f); cmap, glyphs = t.getBestCmap(), t.getGlyphSet()
        for code, name in sorted(cmap.items()):
            cls = f'{code:x}'
            if cls not in classes or cls in found: continue
            pen = SVGPathPen(glyphs); glyphs[name].draw(pen)
            box = t['glyf'][name] if 'glyf' in t else None
            if box is None or box.numberOfContours == 0: continue
            w, h = box.xMax-box.xMin, box.yMax-box.yMin; side = max(w, h)*1.04
            x, y = (box.xMin+box.xMax)/2-side/2, -(box.yMin+box.yMax)/2-side/2
            found[cls] = (f'<svg xmlns="http://www.w3.org/2000/svg" width="{RENDER}" height="{RENDER}" viewBox="{x} {y} {side} {side}">'
                          f'<path transform="scale(1 -1)" d="{pen.getCommands()}"/></svg>')
    return found


def raster(svg):
    "SVG → (64,64,4) uint8, reduced from 128 px with premultiplied alpha, cropped to what is drawn."
    tree = resvg.usvg.Tree.from_str(svg, resvg.usvg.Options.default())
    a = np.asarray(Image.open(io.BytesIO(resvg.render(tree, (1, 0, 0, 0, 1, 0)))).convert('RGBA')).astype(np.float64)/255
    a[..., :3] *= a[..., 3:]
    a = a.reshape(SIZE, 2, SIZE, 2, 4).mean((1, 3))
    if a[..., 3].max() < .05 or (a[..., 3] > .5).mean() < .01: return None          # nothing to see
    a[..., :3] = np.where(a[..., 3:] > 0, a[..., :3]/np.maximum(a[..., 3:], 1e-6), 0)
    return np.round(a*255).clip(0, 255).astype(np.uint8)


def main():
    rows = list(csv.DictReader((HERE/'classes.csv').open(encoding='utf-8')))
    classes = {r['codepoints']: i for i, r in enumerate(rows)}
    by_hand = json.loads((HERE/'joins_by_hand.json').read_text())
    with tempfile.TemporaryDirectory() as tmp:
        for f in ('package.json', 'package-lock.json'): (Path(tmp)/f).write_bytes((HERE/f).read_bytes())
        subprocess.run(['npm', 'ci', '--no-audit', '--no-fund', '--ignore-scripts'], cwd=tmp, check=True, stdout=subprocess.DEVNULL)
        packages = Path(tmp)/'node_modules'
        names = names_to_codes(packages)
        drawings, index = [], []
        for s, (style, package, family, *_ ) in enumerate(STYLES):
            svgs = font(packages, classes) if style == 'noto-outline' else iconify(
                packages, style, package, classes, names, by_hand.get(package.split('/')[1], {}))
            for code in sorted(svgs, key=classes.get):
                row = rows[classes[code]]
                if row['dataset'] == 'flags' and style in ('emojione-mono', 'fluent-mono', 'noto-outline'): continue  # colour is the label
                picture = raster(svgs[code])
                if picture is not None: drawings.append(picture); index.append((classes[code], s))
            print(f'{style:14s} {sum(i[1] == s for i in index):5d} drawings', file=sys.stderr)
        licences = {style: next(iter(sorted((packages/package).glob('LICENSE*'))), None) for style, package, *_ in STYLES}
        ofl = licences['noto-outline'].read_text(encoding='utf-8')
        emojilib = {k: v for k, v in json.loads((packages/'emojilib/dist/emoji-en-US.json').read_text()).items()}
        extra = {fold('-'.join(f'{ord(c):x}' for c in k)): v for k, v in emojilib.items()}
        versions = json.loads((HERE/'package.json').read_text())['dependencies']

    pad = -len(drawings) % COLUMNS
    sheet = np.stack(drawings + [np.zeros((SIZE, SIZE, 4), np.uint8)]*pad)
    sheet = sheet.reshape(-1, COLUMNS, SIZE, SIZE, 4).transpose(0, 2, 1, 3, 4).reshape(-1, COLUMNS*SIZE, 4)
    webp = io.BytesIO(); Image.fromarray(sheet, 'RGBA').save(webp, 'WEBP', quality=82, method=6, alpha_quality=100)
    words = lambda r: sorted({w.replace('_', ' ').strip() for w in r['keywords'].split('|') + extra.get(r['codepoints'], [])
                              if re.fullmatch(r"[A-Za-z][A-Za-z '_-]{2,}", w)} - {r['classname']})
    meta = dict(size=SIZE, columns=COLUMNS,
                styles=[dict(style=s, package=p, version=versions[p], family=f, licence=l, author=a) for s, p, f, l, a in STYLES],
                classes=[dict(dataset=r['dataset'], classname=r['classname'], group=r['subgroup'], keywords=words(r)) for r in rows],
                drawings=index)
    attribution = '# Artwork of the Glyphs benchmark\n\n' + ''.join(
        f'- {s}: {p} {versions[p]}, {l}, by {a}; {sum(i[1] == k for i in index)} drawings, rendered at {SIZE} px and stored as WebP\n'
        for k, (s, p, f, l, a) in enumerate(STYLES)) + (
        '\nNames and keywords: emojibase-data 17.0.0 (MIT, Miles Johnson) and emojilib 4.0.3 (MIT, Mu-An Chiou).\n'
        'Changes made to the drawings: rendered to 64 px; in use they are scaled, turned and composed with backgrounds.\n'
        'Licence texts: CC-BY-4.0 creativecommons.org/licenses/by/4.0, Apache-2.0 apache.org/licenses/LICENSE-2.0, '
        'MIT opensource.org/license/mit, CC0-1.0 creativecommons.org/publicdomain/zero/1.0; OFL-1.1 below this file as OFL.txt.\n')
    OUT.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(OUT, 'w') as z:                             # fixed dates and order: two builds give the same bytes
        for name, data in (('drawings.webp', webp.getvalue()), ('index.json', json.dumps(meta, separators=(',', ':'), ensure_ascii=False).encode()),
                           ('ATTRIBUTION.md', attribution.encode()), ('OFL.txt', ofl.encode())):
            info = zipfile.ZipInfo(name, (2025, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_STORED if name.endswith('webp') else zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            z.writestr(info, data)
    per = Counter(c for c, _ in index)
    print(f'{OUT.name}: {len(index)} drawings of {len(per)} classes, {OUT.stat().st_size/1e6:.1f} MB', file=sys.stderr)


if __name__ == '__main__': main()
