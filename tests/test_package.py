"The wheel, made from the source distribution, works in a folder outside the checkout."
import os, re, subprocess, sys, tarfile, zipfile
from configparser import ConfigParser
from pathlib import Path
import pytest
from checkout import ROOT, copy_to, files

def run(*command, cwd, **env):
    r = subprocess.run([str(o) for o in command], cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True)
    if r.returncode: pytest.fail(f"{' '.join(map(str, command))}: exit code {r.returncode}\n{(r.stdout + r.stderr)[-1500:]}", pytrace=False)
    return r.stdout

def settings():
    cfg = ConfigParser(delimiters=['='])
    cfg.read(ROOT/'settings.ini', encoding='utf-8')
    return cfg['DEFAULT']

def shipped(): return [p.relative_to(ROOT).as_posix() for p in files() if p.is_relative_to(ROOT/'robust_nb')]

@pytest.fixture(scope='module')
def dist(tmp_path_factory):
    "Source distribution and wheel of a copy of the checkout; no network"
    tmp = tmp_path_factory.mktemp('dist')
    copy_to(tmp/'checkout')
    run(sys.executable, '-m', 'build', '--no-isolation', '--outdir', tmp/'dist', tmp/'checkout', cwd=tmp)
    return tmp/'dist'

@pytest.fixture(scope='module')
def installed(dist, tmp_path_factory):
    to = tmp_path_factory.mktemp('elsewhere')/'site'
    run(sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--no-index', '--disable-pip-version-check', '--target', to, next(dist.glob('*.whl')), cwd=to.parent)
    return to

def elsewhere(site, *command): return run(*command, cwd=site.parent, PYTHONPATH=str(site))

def test_source_distribution_is_whole(dist):
    with tarfile.open(next(dist.glob('*.tar.gz'))) as f: names = {o.partition('/')[2] for o in f.getnames()}
    assert not (missing := {'settings.ini', 'setup.py', 'pyproject.toml', 'README.md', 'LICENSE', 'CONTRIBUTING.md', *shipped()} - names), missing

def test_wheel_is_whole(dist):
    with zipfile.ZipFile(next(dist.glob('*.whl'))) as f: names = set(f.namelist())
    assert not (missing := set(shipped()) - names), missing
    assert 'robust_nb/py.typed' in names

def test_metadata(dist):
    with zipfile.ZipFile(next(dist.glob('*.whl'))) as f: meta = f.read(next(o for o in f.namelist() if o.endswith('.dist-info/METADATA'))).decode()
    assert re.findall(r'Python :: (3\.\d+)', meta) == ['3.10', '3.11', '3.12', '3.13']
    assert f"\nVersion: {settings()['version']}\n" in meta
    assert re.search(r'^License(-Expression)?: Apache-2.0$', meta, re.M)
    assert set(re.findall(r'^Provides-Extra: (\S+)$', meta, re.M)) == {'dev', 'lightning', 'fastai', 'tensorboard'}

def test_import_outside_the_checkout(installed):
    said = elsewhere(installed, sys.executable, '-c', 'import importlib, pkgutil, robust_nb\n'
        'names = [o.name for o in pkgutil.walk_packages(robust_nb.__path__, "robust_nb.") if not o.name.endswith("__main__")]\n'
        'for o in names: importlib.import_module(o)\nprint(robust_nb.__file__, len(names))')
    where, n = said.split()[-2:]
    assert Path(where).is_relative_to(installed) and int(n) > 0, said

def test_pretrained_nets_are_readable(installed):
    "Weights are safetensors, which cannot hold code, and each file opens"
    nets = sorted((installed/'robust_nb/pretrained').glob('*'))
    assert [o.name for o in nets] == sorted(o.name for o in (ROOT/'robust_nb/pretrained').glob('*')) and nets, 'no pretrained net'
    said = elsewhere(installed, sys.executable, '-c', 'import sys; from safetensors import safe_open\n'
        'for o in sys.argv[1:]:\n    with safe_open(o, "np") as f: print(sum(f.get_tensor(k).size for k in f.keys()))', *[o for o in nets if o.suffix == '.safetensors'])
    assert len(said.split()) >= 1 and all(int(o) > 0 for o in said.split()), said

def test_module_help(installed): assert 'usage' in elsewhere(installed, sys.executable, '-m', 'robust_nb', '--help').lower()

@pytest.mark.parametrize('script', [o.partition('=')[0] for o in settings()['console_scripts'].split()])
def test_script_help(installed, script): assert f'usage: {script}' in elsewhere(installed, installed/'bin'/script, '--help')
