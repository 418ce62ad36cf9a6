"""The claims of the paper in `claims.toml`: each is pending, or is checked by a cell of its page.

A cell says which claims it checks in a comment, `# claim 3` or `# claims 1, 4`, and must run and assert something.
"""
import re
from collections import defaultdict
from pathlib import Path
import pytest
import notebooks
try: import tomllib
except ModuleNotFoundError: import tomli as tomllib  # Python 3.10; pytest brings it along

CLAIMS = {int(k): v for k, v in tomllib.loads((Path(__file__).parent/'claims.toml').read_text(encoding='utf-8'))['claim'].items()}
LINE = re.compile(r'^[ \t]*#[ \t]*claims?[ \t]+(\d.*)$', re.M | re.I)
LIST = re.compile(r'(\d+(?:[ \t]*(?:,|and)[ \t]*\d+)*)(?:[ \t]*[:;.(].*)?[ \t]*')

def declared():
    "{claim: [(page, cell id)]}, and the lines that cannot be read"
    found, unread = defaultdict(list), []
    for page in notebooks.find():
        for c in notebooks.load(page)['cells']:
            if c['cell_type'] != 'code': continue
            for line in LINE.findall(notebooks.source(c)):
                if not (m := LIST.fullmatch(line)): unread.append(f'{page}, cell {c["id"]}: # claim {line}'); continue
                for n in re.findall(r'\d+', m[1]): found[int(n)].append((page, c['id']))
    return found, unread

FOUND, UNREAD = declared()
DONE = {n: o for n, o in CLAIMS.items() if not o.get('pending')}

def test_list_is_whole():
    assert sorted(CLAIMS) == list(range(1, 45))
    for n, o in CLAIMS.items(): assert o.get('says') and (o.get('pending') is True) != bool(o.get('page')), f'claim {n} has a text and either `pending = true` or a page'

def test_declarations_are_readable(): assert not UNREAD, 'write `# claim 3` or `# claims 1, 4`, and a colon before any text'

def test_no_unknown_claim(): assert not (unknown := {n: o for n, o in FOUND.items() if n not in CLAIMS}), f'not in claims.toml: {unknown}'

def test_no_pending_claim_is_checked():
    early = {n: FOUND[n] for n, o in CLAIMS.items() if o.get('pending') and n in FOUND}
    assert not early, f'pending in claims.toml, yet a cell checks it: {early}'

@pytest.mark.parametrize('n', [pytest.param(n, marks=pytest.mark.notebook(o['page']), id=f'claim{n}') for n, o in DONE.items() if o['page'] in notebooks.find()])
def test_claim(n, executed):
    page = CLAIMS[n]['page']
    cells = [i for p, i in FOUND.get(n, []) if p == page]
    assert cells, f'no cell of {page} says `# claim {n}`'
    ran = {o['id']: o for o in executed(page)['cells']}
    for i in cells:
        assert i in ran, f'claim {n}: cell {i} of {page} did not run'
        assert not ran[i]['failed'], f'claim {n}: cell {i} of {page} failed'
        assert ran[i]['assertions'], f'claim {n}: cell {i} of {page} asserts nothing'

def test_pages_exist(): assert not (gone := {n: o['page'] for n, o in DONE.items() if o['page'] not in notebooks.find()}), f'no such page: {gone}'
