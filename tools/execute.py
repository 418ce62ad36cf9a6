"""Runs notebooks from top to bottom, each in a fresh kernel in its own folder, and stores their outputs, cleaned.

    execute.py [NOTEBOOK ...] [--slow] [--cuda]

Without names it runs all of nbs/. Cells flagged `#| slow` or `#| cuda` run only when asked for by --slow or --cuda; these, cells
with `#| eval: false` and cells that call nbdev_export() otherwise keep the outputs that they have. Of a live widget only the form
that needs no kernel is stored, where it has one: its ids differ in each run. Nor is show_doc's output stored, which runs again with the site. The kernel uses one thread, as the tests do, unless OMP_NUM_THREADS or --slow says otherwise.
"""
import argparse, os, re, sys, time, traceback
from pathlib import Path
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbdev.clean import nbdev_clean
from nbdev.config import get_config
from nbdev.doclinks import nbglob

ROOT = Path(__file__).resolve().parents[1]
WIDGET = 'application/vnd.jupyter.widget-view+json'

def kept(cell, flags):
    "Is this a cell that does not run, and keeps its outputs?"
    has = lambda directive: re.search(rf'^\s*#\s*\|\s*{directive}\s*$', cell.source, re.M | re.I)
    return 'nbdev_export(' in cell.source or has(r'eval:\s*false') or any(has(rf'{o}\b.*') for o in flags)

def still(outputs):
    "The outputs without live widgets, of which stays what a page without a kernel shows, if anything; and without complaints about fonts"
    outputs = [o for o in outputs if not (o.get('name') == 'stderr' and o['text'].startswith('findfont:'))]
    for o in outputs:
        if WIDGET in o.get('data', {}): o['data'] = {k: v for k, v in o['data'].items() if k == 'text/html'}
    return [o for o in outputs if o.get('data', True)]

class Client(NotebookClient):
    def __init__(self, *args, flags=(), **kw): super().__init__(*args, **kw); self.flags = flags
    async def async_execute_cell(self, cell, *args, **kw):
        if cell.cell_type == 'code' and kept(cell, self.flags): return cell
        return await super().async_execute_cell(cell, *args, **kw)

def execute(path, flags, timeout):
    "Run one notebook and write it back; seconds"
    nb, start = nbformat.read(path, as_version=4), time.time()
    Client(nb, flags=flags, timeout=timeout, kernel_name='python3', extra_arguments=['--log-level=ERROR'], resources={'metadata': {'path': str(path.parent)}},
           record_timing=False, coalesce_streams=True).execute()
    for c in nb.cells:
        if c.cell_type == 'code': c.outputs = [] if re.search(r'^show_doc\(', c.source, re.M) else still(c.outputs)
    nb.metadata.pop('widgets', None)
    nbformat.write(nb, path)
    nbdev_clean.__wrapped__(str(path))
    return time.time() - start

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('notebooks', nargs='*', type=Path, help='default: all')
    ap.add_argument('--slow', action='store_true', help='run the cells flagged slow too')
    ap.add_argument('--cuda', action='store_true', help='run the cells flagged cuda too')
    ap.add_argument('--timeout', type=int, default=None, help='seconds for one cell, default none')
    args = ap.parse_args()
    paths = [o.resolve() for o in args.notebooks]
    os.chdir(ROOT)
    cfg = get_config()
    paths = paths or sorted(o.resolve() for o in nbglob(cfg.nbs_path, as_path=True))
    if missing := [o for o in paths if not o.is_file()]: sys.exit(f"no such notebook: {', '.join(map(str, missing))}")
    flags = [o for o in cfg.tst_flags.split() if not getattr(args, o, False)]
    if not args.slow: os.environ.setdefault('OMP_NUM_THREADS', '1')
    os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    failed = []
    for p in paths:
        name = p.relative_to(ROOT) if p.is_relative_to(ROOT) else p
        try: print(f'{name}: {execute(p, flags, args.timeout):.1f} s', flush=True)
        except Exception as e:  # a cell that fails, a kernel that dies: the other notebooks still run
            failed.append(name)
            print(f'{name}: failed, nothing written', str(e) if isinstance(e, CellExecutionError) else traceback.format_exc(), sep='\n', file=sys.stderr, flush=True)
    if failed: sys.exit(1)

if __name__ == '__main__': main()
