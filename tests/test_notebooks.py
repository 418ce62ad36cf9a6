"""Every notebook, from top to bottom, in a process of its own, as `nbdev_test` runs it: the directives and flags are honoured.

It fails when a cell fails, when its process dies, when no cell ran, when no assertion ran, or when a committed text output differs
from what the run says. A cell with the line `#| varies: reason` is not compared.
"""
import re
import pytest
import notebooks
from notebooks import code, directive, source

# Pages that hold no assertion, each with the reason
NO_ASSERTION = {
}
NAMES = notebooks.find()

def test_notebooks_were_found(): assert NAMES, 'no notebook in nbs/'

def test_exceptions_are_needed(): assert not (gone := set(NO_ASSERTION) - set(NAMES)), f'no such notebook: {gone}'

@pytest.mark.parametrize('name', [pytest.param(o, marks=pytest.mark.notebook(o)) for o in NAMES])
def test_notebook(name, executed):
    run = executed(name)
    if not run['passed']: pytest.fail(f"{name}: {run['why']}\n{run['log'][-6000:]}", pytrace=False)
    ran = {o['id']: o for o in run['cells']}
    cells = [c for c in notebooks.load(name)['cells'] if c['cell_type'] == 'code']
    if not any(c['id'] in ran and code(c) for c in cells): pytest.fail(f'{name}: no cell was executed', pytrace=False)

    asserted = sum(o['assertions'] for o in run['cells'])
    if not asserted and name not in NO_ASSERTION: pytest.fail(f'{name}: no assertion was executed', pytrace=False)
    if asserted and name in NO_ASSERTION: pytest.fail(f'{name}: executes assertions, so it needs no exception in NO_ASSERTION', pytrace=False)

    wrong = []
    for i, c in enumerate(cells):
        if (d := directive(c, 'varies')):
            if not re.fullmatch(r'''[^"':#]*\w[^"':#]*''', d[1]): wrong.append((i, c, '`#| varies:` needs a reason, without quotes, colons or #'))
            if not c['outputs']: wrong.append((i, c, 'what varies is an output, and none is committed; a slow cell needs --slow'))
        elif c['id'] in ran and (diff := notebooks.difference(c, ran[c['id']]['outputs'])): wrong.append((i, c, diff))
    if wrong:
        said = '\n'.join(f'code cell {i} ({c["id"]}): {why}\n    ' + '\n    '.join(source(c).splitlines()[:6]) for i, c, why in wrong)
        pytest.fail(f'{name}: {len(wrong)} committed output(s) out of step; run `python tools/execute.py nbs/{name}`\n{said}', pytrace=False)
