"""Runs the page on fastai in an environment of its own, and stores its outputs.   fastai_page.py [--venv DIR] [--check]

The current fastai needs fastcore 2, nbdev 2 needs fastcore 1. So DIR, made where it is missing, holds the runtime requirements, fastai
and a kernel; the page's cells run there, those with `#| eval: false` too, which all other commands leave alone. With --check nothing
is written. Exit 1 when a cell fails.
"""
import argparse, json, os, shlex, subprocess, sys, tempfile
from pathlib import Path
import nbformat
from nbdev.clean import nbdev_clean
from nbdev.config import get_config
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT/'nbs/library/19_fastai.ipynb'

class Client(NotebookClient):
    async def async_execute_cell(self, cell, *args, **kw):
        return cell if 'nbdev_export(' in cell.source else await super().async_execute_cell(cell, *args, **kw)

def environment(folder):
    "The Python of the environment, made or brought up to date"
    python = folder/('Scripts/python.exe' if os.name == 'nt' else 'bin/python')
    if not python.exists(): subprocess.run([sys.executable, '-m', 'venv', folder], check=True)
    cfg = get_config()
    wanted = [*shlex.split(cfg.requirements), *shlex.split(cfg.fastai_requirements), 'fastcore>=2', 'ipykernel']
    subprocess.run([python, '-m', 'pip', 'install', '-q', '--disable-pip-version-check', *wanted], check=True)
    return python

def execute(python):
    "The page with the outputs of a run"
    nb = nbformat.read(PAGE, as_version=4)
    with tempfile.TemporaryDirectory() as tmp:
        spec = Path(tmp)/'kernels/fastai/kernel.json'
        spec.parent.mkdir(parents=True)
        argv = [str(python), '-m', 'ipykernel_launcher', '-f', '{connection_file}', '--log-level=ERROR']
        spec.write_text(json.dumps(dict(argv=argv, display_name='fastai', language='python')), encoding='utf-8')
        os.environ.update(JUPYTER_PATH=tmp, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1',
                          PYTHONWARNINGS='ignore::FutureWarning')  # importing fastai makes PyTorch warn, with paths of this machine
        Client(nb, timeout=600, kernel_name='fastai', resources={'metadata': {'path': str(PAGE.parent)}}, record_timing=False, coalesce_streams=True).execute()
    return nb

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--venv', type=Path, default=ROOT/'.fastai', help='folder of the environment, default .fastai')
    ap.add_argument('--check', action='store_true', help='write nothing')
    args = ap.parse_args()
    folder = args.venv.absolute()
    os.chdir(ROOT)
    try: nb = execute(environment(folder))
    except CellExecutionError as e: sys.exit(f'{PAGE.name}: failed, nothing written\n{e}')
    if not args.check:
        nbformat.write(nb, PAGE)
        nbdev_clean.__wrapped__(str(PAGE))
    print(f'{PAGE.name}:', 'ran' if args.check else 'ran, outputs stored')

if __name__ == '__main__': main()
