"Packaging from settings.ini (nbdev 2's template, without the `pkg_resources` that current setuptools no longer ships)"
from configparser import ConfigParser
import setuptools, shlex

# all settings are in settings.ini; edit there, not here
config = ConfigParser(delimiters=['='])
config.read('settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
cfg_keys = 'version description keywords author author_email'.split()
expected = cfg_keys + 'lib_name lib_path user branch license status min_python audience language'.split()
for o in expected: assert o in cfg, f'missing expected setting: {o}'

statuses = ['0 - Pre-Planning','1 - Planning','2 - Pre-Alpha','3 - Alpha','4 - Beta','5 - Production/Stable','6 - Mature','7 - Inactive']
spdx = {'apache2':'Apache-2.0','mit':'MIT','bsd3':'BSD-3-Clause'}
pythons = '3.10 3.11 3.12 3.13'.split()
pythons = pythons[pythons.index(cfg['min_python']):]
setuptools.setup(
    name=cfg['lib_name'],
    license=spdx.get(cfg['license'].lower(), cfg['license']),
    classifiers=[
        f"Development Status :: {statuses[int(cfg['status'])]}",
        f"Intended Audience :: {cfg['audience'].title()}",
        f"Natural Language :: {cfg['language'].title()}",
        'Programming Language :: Python :: 3',
        *(f'Programming Language :: Python :: {o}' for o in pythons),
        'Typing :: Typed',
    ],
    url=cfg['git_url'],
    project_urls={'Documentation': cfg['doc_host'] + cfg['doc_baseurl'], 'Source': cfg['git_url']},
    packages=setuptools.find_packages(include=[cfg['lib_path'], cfg['lib_path']+'.*']),
    package_data={cfg['lib_path']: ['py.typed', 'pretrained/*']},
    include_package_data=True,
    install_requires=shlex.split(cfg.get('requirements', '')),
    extras_require={o: shlex.split(cfg.get(f'{o}_requirements', '')) for o in ('dev', 'lightning', 'fastai', 'tensorboard')},
    python_requires='>='+cfg['min_python'],
    long_description=open('README.md', encoding='utf-8').read(),
    long_description_content_type='text/markdown',
    zip_safe=False,
    entry_points={
        'console_scripts': cfg.get('console_scripts', '').split(),
        'nbdev': [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"],
    },
    **{o:cfg[o] for o in cfg_keys})
