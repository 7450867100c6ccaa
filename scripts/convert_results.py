"""Make one JSON file a run from the JSON Lines files in which version 0.1 kept its results.

    python3 scripts/convert_results.py OLD_FOLDER NEW_FOLDER

OLD_FOLDER/base_to_new.jsonl becomes the folder NEW_FOLDER/base_to_new, and so on. The tables in
nbs/results were converted by it once; it stays for results that others have in the old form.
No number is changed. What version 0.1 did not write down is either what its code always did
(the optimiser), or stands as 'auto' (the precision, which depended on the processor).
"""
import sys
from pathlib import Path

from dra_nb.bench.results import Record, write_record
from dra_nb.files import parse_json

PROTOCOLS = dict(choose='inner-split')
PACKAGES = dict(open_clip='open_clip_torch')
ALWAYS = dict(optimizer='sgd', eps=1e-8, warmup_epochs=0, warmup_lr=1e-5)


def convert(old):
    "A `Record` from a record of version 0.1."
    settings = old['settings']
    protocol = settings.get('protocol', 'base-to-new')
    run = dict(
        protocol=PROTOCOLS.get(protocol, protocol),
        method=old['method'],
        dataset=old['dataset'],
        seed=old['seed'],
        shots=settings['shots'],
        clip=settings['model'],
        weights=settings['weights'],
        data=settings['data'],
        targets={name: settings['data'] for name in settings.get('targets', ())},
        config=settings['config'] or {},
        train={**settings['train'], **ALWAYS},
        precision=settings['train']['amp'],
        device='cpu' if ' cpu' in old['device'] else 'cuda')
    metrics = dict(old['metrics'])
    loss = metrics.pop('train_loss')
    versions = {PACKAGES.get(name, name): v for name,v in old['versions'].items()}
    return Record(run=run, metrics=metrics, train=dict(loss=loss), counts=old['counts'],
                  seconds=old['seconds'], versions=versions, device=old['device'],
                  failed=old.get('failed', ''))


def main(old_folder, new_folder):
    for path in sorted(Path(old_folder).glob('*.jsonl')):
        lines = path.read_text(encoding='utf-8').splitlines()
        found = [parse_json(line, f'{path}, line {i}') for i,line in enumerate(lines, 1)
                 if line.strip()]
        records = [convert(record) for record in found if 'key' in record]
        if not records:
            print(f'{path.name}: no runs, left as it is')
            continue
        folder = Path(new_folder)/path.stem
        for record in records:
            write_record(folder, record)
        print(f'{path.name}: {len(records)} runs, {len(list(folder.glob("*.json")))} files')


if __name__ == '__main__':
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
