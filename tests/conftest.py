"Runs the notebooks that the chosen tests need, in the background and each once; closes with how much ran."
import http.server, subprocess, sys, threading
from functools import partial
import pytest
import notebooks
from checkout import ENV, KATEX, ROOT

RUNNER = pytest.StashKey()

@pytest.fixture(scope='session')
def executed(request): "What a notebook did: executed('library/00_uncertainty.ipynb')"; return request.config.stash[RUNNER]

@pytest.fixture(scope='session')
def site():
    "The preview of the site, built and checked; its address on this machine"
    pytest.importorskip('smalldocs', reason='smalldocs needs Python 3.11')
    r = subprocess.run([sys.executable, 'tools/preview.py', *(['--vendor', str(KATEX)] if KATEX.is_dir() else [])], cwd=ROOT, env=ENV, capture_output=True, text=True)
    assert r.returncode == 0, r.stdout + r.stderr
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=str(ROOT/'_site_ci')))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()

def pytest_configure(config): config.stash[RUNNER] = notebooks.Runner()

def pytest_collection_modifyitems(items):
    "What waits for a notebook comes last, so that the other tests run beside the notebooks"
    items.sort(key=lambda o: o.get_closest_marker('notebook') is not None)

def pytest_collection_finish(session):
    if session.config.option.collectonly: return
    for item in session.items:
        for mark in item.iter_markers('notebook'): session.config.stash[RUNNER].submit(mark.args[0])

def pytest_sessionfinish(session, exitstatus):
    session.config.stash[RUNNER].close()
    ran = session.config.pluginmanager.get_plugin('terminalreporter').stats
    if exitstatus == 0 and not ran.get('passed') and not session.config.option.collectonly: session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED

def pytest_terminal_summary(terminalreporter, config):
    done = {k: f.result() for k, f in config.stash[RUNNER].jobs.items() if f.done() and not f.cancelled()}
    if not done: return
    terminalreporter.section('notebooks')
    count = lambda cells: (len(cells), sum(o['assertions'] > 0 for o in cells), sum(o['assertions'] for o in cells))
    for k, o in sorted(done.items()):
        cells, tests, asserted = count(o['cells'])
        terminalreporter.write_line(f"{k}: {cells} cells, {tests} test cells, {asserted} assertions, {o['seconds']:.1f} s" + (f" ({o['why'].splitlines()[0]})" if o['why'] else ''))
    cells, tests, asserted = count([c for o in done.values() for c in o['cells']])
    if slowest := terminalreporter.config.option.durations:
        cells_of = [(c.get('seconds', 0), k, i) for k, o in done.items() for i, c in enumerate(o['cells'])]
        for s, k, i in sorted(cells_of, reverse=True)[:slowest]: terminalreporter.write_line(f'{s:7.1f} s  {k}, code cell {i}')
    stats = terminalreporter.stats
    terminalreporter.write_line(f'{len(done)} notebooks, {cells} cells executed, {tests} of them test cells, {asserted} assertions')
    terminalreporter.write_line(f"{sum(len(v) for k, v in stats.items() if k in ('passed', 'failed', 'error'))} tests: "
        f"{len(stats.get('passed', []))} passed, {len(stats.get('failed', [])) + len(stats.get('error', []))} failed, {len(stats.get('skipped', []))} skipped")
