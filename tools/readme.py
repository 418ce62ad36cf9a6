"""README.md from nbs/index.ipynb, without Quarto.   readme.py [--check]

The same notebook filters as `nbdev_readme`, then pandoc with the options that Quarto uses for `-t gfm`. A picture has its `fig-alt` as text and its `fig-cap` below it.
With --check nothing is written: exit 1 and a diff where README.md is out of date.
"""
import base64, difflib, os, re, sys, warnings
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
warnings.filterwarnings('ignore')
import yaml
from execnb.nbio import read_nb
from nbdev.config import get_config
from nbdev.processors import FilterDefaults

ROOT = Path(__file__).resolve().parents[1]
NOT_HERE = '::: {.content-visible unless-format="gfm"}'

def need_install(cfg):
    "Names in backticks become links by the module index of the installed package, which therefore has to be this checkout's"
    known = any(o.name == cfg.lib_name for o in entry_points(group='nbdev'))
    spec = known and find_spec(cfg.lib_name)
    if not (spec and Path(spec.origin).is_relative_to(ROOT)): sys.exit('install this checkout first: python -m pip install -e ".[dev]"')
GFM = 'commonmark+autolink_bare_uris+emoji+footnotes+gfm_auto_identifiers+pipe_tables+strikeout+task_lists+tex_math_dollars'

def text(o): return o if isinstance(o, str) else ''.join(o)
def indented(s): return '\n'.join(('    ' + l).rstrip() for l in s.rstrip('\n').splitlines())

def options(src):
    "The `#| key: value` lines on top of a cell, and the code below them"
    lines, n = src.splitlines(), 0
    while n < len(lines) and lines[n].startswith('#|'): n += 1
    return {k.strip(): v.strip() for k, _, v in (l[2:].partition(':') for l in lines[:n])}, '\n'.join(lines[n:]).strip('\n')

def output(o, name, files, opts):
    "Markdown for one output; a picture is added to `files`"
    if o['output_type'] == 'stream': return '' if o.get('name') == 'stderr' else indented(text(o['text']))
    data = o.get('data', {})
    if 'text/markdown' in data: return text(data['text/markdown']).strip()
    if 'image/png' in data:
        files[name] = base64.b64decode(text(data['image/png']))
        alt, caption = (str(yaml.safe_load(opts.get(k, '""'))) for k in ('fig-alt', 'fig-cap'))
        return f'![{alt}]({name})\n\n{caption}'.strip()
    if 'text/html' in data: return text(data['text/html']).strip()
    return indented(text(data['text/plain'])) if 'text/plain' in data else ''

def to_markdown(nb, stem):
    "The notebook as Pandoc's Markdown, and its pictures"
    parts, files, n, hidden = [], {}, 1, False
    for i, c in enumerate(nb.cells):
        if c.cell_type == 'markdown' and c.source.strip() in (NOT_HERE, ':::'):   # what stands between the two is for the site
            hidden = c.source.strip() == NOT_HERE
            continue
        if hidden:
            n += c.cell_type == 'code'
            continue
        if c.cell_type == 'raw' and i == 0 and c.source.startswith('---'):
            parts.append('# ' + yaml.safe_load(c.source.strip().strip('-'))['title'] + '\n')
        elif c.cell_type == 'markdown': parts.append(c.source.strip())
        elif c.cell_type == 'code':
            n += 1
            opts, src = options(c.source)
            if opts.get('include') == 'false': continue
            if src and opts.get('echo') != 'false': parts.append(f'``` python\n{src}\n```')
            if opts.get('output') == 'false': continue
            for k, o in enumerate(c.get('outputs', []), 1):
                parts.append(output(o, f'{stem}_files/figure-commonmark/cell-{n}-output-{k}.png', files, opts))
    return '\n\n'.join(o for o in parts if o) + '\n', files

def callout(m):
    title = re.search(r'title="([^"]*)"', m[2])
    body = ([f'**{title[1]}**', ''] if title else []) + m[3].strip().splitlines()
    return '\n'.join(('> ' + l).rstrip() for l in [f'[!{m[1].upper()}]', ''] + body)

def tidy(md):
    "What Quarto's gfm writer makes of it"
    import pypandoc
    md = re.sub(r'^:{3,} *\{\.callout-(\w+)([^}]*)\}\n(.*?)\n:{3,}$', callout, md, flags=re.M | re.S)
    head, _, body = md.partition('\n\n')
    body = pypandoc.convert_text(body.strip(), GFM, format='markdown-implicit_figures', extra_args=['--wrap=auto'])
    return head + '\n\n\n' + body.replace('\\[!', '[!').replace('\\]\n>', ']\n>')

def main():
    os.environ['IN_TEST'] = '1'  # the filters leave the module index alone
    os.chdir(ROOT)
    cfg = get_config()
    need_install(cfg)
    nb = read_nb(cfg.nbs_path/cfg.readme_nb)
    FilterDefaults()(nb)
    md, files = to_markdown(nb, Path(cfg.readme_nb).stem)
    out = {ROOT/'README.md': tidy(md).encode(), **{ROOT/k: v for k, v in files.items()}}
    lost = [o for o in re.findall(r'\]\(([^)\s]+)\)', out[ROOT/'README.md'].decode()) if not re.match(r'\w+:|#', o) and not (ROOT/o.partition('#')[0]).exists() and ROOT/o not in out]
    if lost: sys.exit(f"links of {cfg.readme_nb} that lead nowhere from README.md (write the page's address): {', '.join(lost)}")
    stale = [p for p, b in out.items() if not p.exists() or p.read_bytes() != b]
    extra = [p for p in (ROOT/f'{Path(cfg.readme_nb).stem}_files').rglob('*') if p.is_file() and p not in out]
    if '--check' in sys.argv:
        for p in stale + extra: print(f'{p.relative_to(ROOT)} is out of date: run `python tools/readme.py`')
        readme = ROOT/'README.md'
        if readme in stale:
            old = readme.read_text(encoding='utf-8') if readme.exists() else ''
            sys.stdout.writelines(difflib.unified_diff(old.splitlines(True), out[readme].decode().splitlines(True), 'README.md', 'from index.ipynb'))
        sys.exit(bool(stale + extra))
    for p in extra: p.unlink(); print('removed', p.relative_to(ROOT))
    for p in stale:
        p.parent.mkdir(parents=True, exist_ok=True)
        p.write_bytes(out[p])
        print('wrote', p.relative_to(ROOT))

if __name__ == '__main__': main()
