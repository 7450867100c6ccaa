"Reads everything from settings.ini with the standard library alone, so that installing needs neither nbdev nor fastcore."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=['='])
config.read(here/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
lines = lambda key: [o for o in cfg.get(key, '').splitlines() if o.strip()]
readme = here/'README.md'

setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else cfg['description'],
    long_description_content_type='text/markdown',
    keywords=cfg['keywords'].split(),
    author=cfg['author'],
    url=cfg['git_url'] or None,
    license='Apache-2.0',
    license_files=['LICENSE'],
    classifiers=[
        'Development Status :: 3 - Alpha',
        'Intended Audience :: Science/Research',
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    python_requires='>=' + cfg['min_python'],
    packages=find_packages(include=[cfg['lib_path'], cfg['lib_path'] + '.*']),
    package_data={cfg['lib_name']: ['assets/*', 'assets/**/*']},
    include_package_data=False,
    zip_safe=False,
    install_requires=lines('requirements'),
    extras_require={'dev': lines('dev_requirements'), 'cluster': lines('cluster_requirements')},
    entry_points={
        'console_scripts': lines('console_scripts'),
        'nbdev': [f'{cfg["lib_name"]}={cfg["lib_path"]}._modidx:d'],
    },
)
