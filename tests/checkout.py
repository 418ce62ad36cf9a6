"The files of the checkout, and copies of it"
import os, shutil, subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KATEX = ROOT/'.vendor/node_modules'     # npm install --prefix .vendor katex@0.16.11
MADE = {'.git', '.venv', '.peers', '.vendor', '.fastai', '_proc', '_docs', '_sd', '_site_ci', 'build', 'dist', 'data', 'out', 'checkpoints', '__pycache__', '.pytest_cache', '.hypothesis', '.ipynb_checkpoints'}
ENV = {k: v for k, v in os.environ.items() if k != 'IN_TEST'}  # nbdev writes no module index where IN_TEST is set

def files():
    "What git does not ignore; without git, all but what commands make"
    try:
        out = subprocess.run(['git', 'ls-files', '-coz', '--exclude-standard'], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        found = [ROOT/o for o in out.split('\0') if o]
    except (OSError, subprocess.CalledProcessError):
        found = [p for p in ROOT.rglob('*') if not any(o in MADE or o.endswith('.egg-info') for o in p.relative_to(ROOT).parts)]
    return sorted(p for p in found if p.is_symlink() or p.is_file())

def copy_to(folder):
    for f in files():
        to = Path(folder)/f.relative_to(ROOT)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(f, to, follow_symlinks=False)
    return Path(folder)
