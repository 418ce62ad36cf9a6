"""Runs notebooks for the tests, each in a process of its own, as `nbdev_test` runs it, and keeps what every cell did.

`python tests/notebooks.py NOTEBOOK RESULT` is the child: it writes RESULT (json) when it comes to the end of the notebook.
A child that dies leaves no result, and the parent reports its exit code.
"""
import ast, builtins, faulthandler, json, os, re, signal, subprocess, sys, tempfile, threading, time, warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT/'nbs'
LIMIT = int(os.environ.get('NB_TIMEOUT', 900))  # seconds for one notebook
CORES = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
WORKERS = int(os.environ.get('NB_WORKERS', min(CORES, 4)))  # notebooks that run side by side
THREADS = 1  # of each, as in tools/execute.py: they do not fight for the cores, and sums come out in the same order


def find():
    "All notebooks of the project, as paths relative to `nbs/`"
    return sorted(p.relative_to(NBS).as_posix() for p in NBS.rglob('*.ipynb') if not any(o[0] in '._' for o in p.relative_to(NBS).parts))

def load(name): return json.loads((NBS/name).read_text(encoding='utf-8'))

def source(cell): return ''.join(cell['source'])

def code(cell):
    "The lines of a cell that are neither empty nor comments"
    return [o for o in source(cell).splitlines() if o.strip() and not o.strip().startswith('#')]

def directive(cell, name): return re.search(rf'^\s*#\s*\|\s*{name}\b:?[ \t]*(.*)$', source(cell), re.M)


# The child

ASSERTION = re.compile(r'test_\w+|assert\w*|ExceptionExpected|raises')

class CountAssertions(ast.NodeTransformer):
    "Wraps what every `assert`, `test_…(…)`, `assert_…(…)` and `ExceptionExpected(…)` evaluates, so that each is counted when it runs"
    active = True
    def wrap(self, node):
        return ast.copy_location(ast.Call(ast.copy_location(ast.Name('_counted_', ast.Load()), node), [node], []), node)
    def visit_Assert(self, node):
        self.generic_visit(node)
        if self.active: node.test = self.wrap(node.test)
        return node
    def visit_Call(self, node):
        self.generic_visit(node)
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, 'id', '')
        if self.active and ASSERTION.fullmatch(name): node.func = self.wrap(node.func)
        return node

def child(path, result):
    import nbdev.test
    from nbdev.config import get_config
    cfg, cells, counter = get_config(), [], CountAssertions()
    def counted(value):
        if cells: cells[-1]['assertions'] += 1
        return value
    builtins._counted_ = counted
    faulthandler.enable()

    class Shell(nbdev.test.CaptureShell):
        def __init__(self, *args, **kw):
            super().__init__(*args, **kw)
            self.ast_transformers.append(counter)
        def _run(self, raw_cell, *args, **kw):  # the parent class drops what a cell prints when it ends in `;`
            quiet = raw_cell.rstrip().endswith(';') and not raw_cell.lstrip().startswith('%%')
            res = super()._run(raw_cell + '\n#' if quiet else raw_cell, *args, **kw)
            res.quiet = quiet
            return res
        def cell(self, cell, *args, **kw):
            if cell.cell_type != 'code': return
            cells.append(dict(id=cell.get('id'), assertions=0, outputs=[], failed=False))
            counter.active = not {'export', 'exports', 'exporti'} & set(getattr(cell, 'directives_', {}))
            cell.outputs = []
            Path(result).with_suffix('.cell').write_text(cell.source, encoding='utf-8')  # for the parent, should this process die
            start = time.time()
            super().cell(cell, *args, **kw)
            cells[-1].update(seconds=time.time() - start, failed=self.exc is not None, outputs=[dict(output_type=o['output_type'], name=o.get('name'), text=list(o.get('text', [])),
                data={k: list(v) if k in ('text/plain', 'text/markdown') else '' for k, v in o.get('data', {}).items()}) for o in cell.outputs])

    nbdev.test.CaptureShell = Shell
    flags = os.environ.get('NB_FLAGS', '').split()
    start = time.time()
    passed, _ = nbdev.test.test_nb(Path(path), skip_flags=cfg.tst_flags.split(), force_flags=flags, basepath=cfg.config_path)
    out = dict(passed=bool(passed), seconds=time.time() - start, cells=cells)
    Path(result).write_text(json.dumps(out, default=str), encoding='utf-8')


# The parent

class Runner:
    "Runs notebooks ahead of the tests that ask for them, `WORKERS` at a time, each once"
    def __init__(self):
        self.pool, self.jobs, self.children = ThreadPoolExecutor(WORKERS), {}, set()
        self.lock, self.closed = threading.Lock(), False
    def submit(self, name):
        if name not in self.jobs: self.jobs[name] = self.pool.submit(self.run, name)
        return self.jobs[name]
    def __call__(self, name): return self.submit(name).result()
    def run(self, name):
        env = {**os.environ, 'OMP_NUM_THREADS': os.environ.get('OMP_NUM_THREADS', str(THREADS)), 'MPLBACKEND': 'Agg', 'PYTHONUNBUFFERED': '1'}
        with tempfile.TemporaryDirectory() as tmp:
            result, log, start = Path(tmp)/'result.json', Path(tmp)/'log', time.time()
            with open(log, 'wb') as f, self.lock:
                if self.closed: return dict(passed=False, why='stopped', cells=[], log='', seconds=0)
                p = subprocess.Popen([sys.executable, str(Path(__file__).resolve()), str(NBS/name), str(result)], cwd=ROOT, env=env,
                    stdin=subprocess.DEVNULL, stdout=f, stderr=subprocess.STDOUT, start_new_session=True)
                self.children.add(p)
            try: p.wait(LIMIT); why = None
            except subprocess.TimeoutExpired: why = f'took longer than {LIMIT} s'
            finally:
                self.kill(p); self.children.discard(p)
            out = dict(passed=False, cells=[], seconds=time.time() - start)
            if not why and result.exists() and p.returncode == 0: out = json.loads(result.read_text(encoding='utf-8'))
            elif not why:
                died = f'exit code {p.returncode}' + (f' ({signal.Signals(-p.returncode).name})' if p.returncode < 0 else '')
                cell = result.with_suffix('.cell')
                why = f'its process died with {died} after {out["seconds"]:.1f} s' + (f', in the cell: {cell.read_text(encoding="utf-8")[:200]}' if cell.exists() else '')
            return {**out, 'why': why or ('' if out['passed'] else 'a cell failed'), 'log': log.read_text(encoding='utf-8', errors='replace')}
    def kill(self, p):
        try: os.killpg(p.pid, signal.SIGKILL)  # the child and whatever it started
        except (ProcessLookupError, PermissionError): pass
        p.wait()
    def close(self):
        with self.lock: self.closed = True
        self.pool.shutdown(wait=False, cancel_futures=True)
        for p in list(self.children): self.kill(p)


# Committed outputs against those of the run

TOKEN = re.compile(r'(?<![\w.])[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?(?!\w)|\w+|\S', re.I)
NUMBER = re.compile(r'[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?', re.I)

def texts(outputs):
    "What the outputs of a cell say: [printed text, displayed text, …], or None for a live widget, which says something else each time"
    said, shown = '', []
    for o in outputs:
        if o['output_type'] == 'stream': said += ''.join(o['text']) if o.get('name') == 'stdout' else ''; continue
        data = o.get('data', {})
        if 'application/vnd.jupyter.widget-view+json' in data: return None
        drawn = any(k.startswith('image/') or k == 'text/html' for k in data)
        if 'text/markdown' in data: shown.append(''.join(data['text/markdown']))
        elif 'text/plain' in data and (o['output_type'] == 'execute_result' or not drawn): shown.append(''.join(data['text/plain']))
    clean = lambda s: re.sub(r'(?: at )?\b0x[0-9a-f]{6,}', '', s, flags=re.I)
    return [clean(o) for o in [said, *shown]]

def same_token(a, b):
    "Words and whole numbers agree exactly, other numbers to a relative 1e-3 (or 1e-6 near zero)"
    if a == b: return True
    if not (NUMBER.fullmatch(a) and NUMBER.fullmatch(b)): return False
    if re.fullmatch(r'[-+]?\d+', a) and re.fullmatch(r'[-+]?\d+', b): return int(a) == int(b)
    x, y = float(a), float(b)
    return abs(x - y) <= max(1e-6, 1e-3 * max(abs(x), abs(y)))

def difference(cell, run):
    "None where the committed outputs of a cell agree with those of a run, otherwise a sentence"
    if any(o.lstrip().startswith('show_doc(') for o in code(cell)): return None  # made anew with the site
    committed = cell['outputs']
    a, b = texts(committed), texts(run)
    if a is None or b is None: return None
    if len(a) != len(b): return f'{len(a) - 1} committed output(s), the run shows {len(b) - 1}: {a[1:]} against {b[1:]}'
    for s, t in zip(a, b):
        u, v = TOKEN.findall(s), TOKEN.findall(t)
        for i, (x, y) in enumerate(zip(u, v)):
            if not same_token(x, y): return f'committed {" ".join(u[max(0, i-4):i+4])!r}, the run says {" ".join(v[max(0, i-4):i+4])!r}'
        if len(u) != len(v): return f'committed {len(u)} words, the run says {len(v)}: {s[-120:]!r} against {t[-120:]!r}'


if __name__ == '__main__':
    warnings.filterwarnings('ignore', module='nbdev')
    child(*sys.argv[1:])
