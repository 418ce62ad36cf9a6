"""Builds the site without Quarto, in pure Python, into _site_ci/, and checks it.   preview.py [--vendor DIR]

nbdev makes `_proc` from the notebooks as for Quarto; smalldocs renders it. Exit 1 on: a broken link or anchor, a link that is still text, a reference to no figure, a missing picture,
a failed cell, a page that is not in the sidebar, a page without title, description or picture.
DIR may hold `katex/dist` (from npm), for formulas without a network.
"""
import argparse, json, os, re, shutil, subprocess, sys, warnings
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit
warnings.filterwarnings('ignore')
import yaml
from nbdev.config import get_config
from readme import need_install

# Pages that show no picture, each with the reason
NO_PICTURE = {
    'library/03_checkpoint.ipynb': 'writes and reads files',
    'library/10_cli.ipynb': 'lists commands',
}
ROOT = Path(__file__).resolve().parents[1]
KATEX = 'https://cdn.jsdelivr.net/npm/katex@0.16.11/dist'
LIVE = '<div class="callout callout-note"><b>Live widget.</b> Open this notebook in Jupyter to move it.</div>'
WIDGET = 'application/vnd.jupyter.widget-view+json'
CAPTION = '<figcaption class="figure-caption">'  # of an HTML output, which may hold captions of its own

def text(o): return o if isinstance(o, str) else ''.join(o)
def read(p): return json.loads(p.read_text(encoding='utf-8'))
def option_lines(src): return '\n'.join(re.match(r'\s*#\s*\|\s*(.*)', o)[1] for o in src.splitlines() if re.match(r'\s*#\s*\|\s*[\w-]+:', o))

def options(src):
    "The `#| key: value` options of a cell; none where they are not YAML, which `check_sources` says"
    try: return yaml.safe_load(option_lines(src)) or {}
    except yaml.YAMLError: return {}


# Build

def process():
    "What `nbdev_docs` does before it calls Quarto, minus the Quarto install attempt"
    from nbdev.doclinks import _build_modidx
    from nbdev.quarto import refresh_quarto_yml
    from nbdev.serve import proc_nbs
    refresh_quarto_yml()
    _build_modidx()
    return Path(proc_nbs(n_workers=2, force=True))

def stage(src, dst):
    "A copy of `_proc` in which notebooks have the names that Quarto gives them, and no key that only Quarto knows"
    shutil.rmtree(dst, ignore_errors=True)
    shutil.copytree(src, dst, ignore=shutil.ignore_patterns('_docs', '*.bak'))
    renamed = {}
    for p in sorted(dst.rglob('*.ipynb')):
        nb = read(p)
        first = nb['cells'][0] if nb['cells'] else {}
        m = None
        if first.get('cell_type') == 'raw':
            front = text(first['source'])
            m = re.search(r'^output-file:\s*(\S+)\.html\s*$', front, re.M)
            first['source'] = re.sub(r'^output-file:.*\n', '', front, flags=re.M)
        for c in nb['cells']:
            caption = options(text(c['source'])).get('fig-cap') if c['cell_type'] == 'code' else None
            for o in c.get('outputs', []):
                data = o.get('data', {})
                if WIDGET in data: data.setdefault('text/html', LIVE)
                if caption and 'text/html' in data: data['text/html'] = f"<figure class=\"figure\">\n{text(data['text/html'])}\n{CAPTION}{escape(caption)}</figcaption>\n</figure>"
        new = p.with_name(m[1] + '.ipynb') if m else p
        p.write_text(json.dumps(nb), encoding='utf-8')
        if new.exists() and new != p: sys.exit(f'{p.relative_to(dst)} and {new.relative_to(dst)} give the same page')
        if new != p:
            p.rename(new)
            renamed[p.relative_to(dst).as_posix()] = new.relative_to(dst).as_posix()
    conf = dst/'_quarto.yml'
    y = yaml.safe_load(conf.read_text(encoding='utf-8'))
    html = (y.get('format') or {}).get('html') or {}
    for k in ('keep-md', 'html-math-method'): html.pop(k, None)
    conf.write_text(yaml.safe_dump(y, sort_keys=False), encoding='utf-8')
    for f in [conf, *dst.rglob('*.ipynb')]:  # links follow the new names
        t = f.read_text(encoding='utf-8')
        for a, b in renamed.items():
            if f == conf: t = re.sub(rf'(?<![\w/]){re.escape(a)}', b, t)
            else: t = re.sub(rf'(?<=[(/"]){re.escape(Path(a).name)}(?=[)#\\"])', Path(b).name, t)
        f.write_text(t, encoding='utf-8')
    return renamed

def number_figures(t):
    "A page in which captions begin with `Figure k`, and each `@fig-x` is a link to its figure, as Quarto makes them"
    numbers = {o: k for k, o in enumerate(dict.fromkeys(re.findall(r'\bid="(fig-[\w-]+)"', t)), 1)}
    for o, k in numbers.items():
        start = t.index(f'id="{o}"')
        following = re.compile(r'\bid="fig-').search(t, start + 4)
        part, rest = (t[start:following.start()], t[following.start():]) if following else (t[start:], '')
        mark = CAPTION if CAPTION in part else '<figcaption>'
        t = t[:start] + part.replace(mark, f'{mark}Figure {k}: ', 1) + rest
    link = lambda m: f'<a href="#{m[1]}" class="quarto-xref">Figure {numbers[m[1]]}</a>' if m[1] in numbers else m[0]
    return re.sub(r'(?<=>)[^<]*@fig-[^<]*', lambda m: re.sub(r'(?<!\w)@(fig-[\w-]*\w)', link, m[0]), t)

def finish(out, vendor, base, renamed):
    "Formulas and fonts without a network, links to the published address made relative, links to edit a page by the notebook's name, numbered figures"
    if vendor:
        shutil.copytree(vendor/'katex/dist', out/'site_libs/katex', dirs_exist_ok=True, ignore=shutil.ignore_patterns('*.map', 'README*', '*.mjs', 'katex.js', 'katex.css', '*.ttf'))
    for css in (out/'site_libs/themes').glob('*.css'):
        css.write_text(re.sub(r'@import url\(https://fonts[^)]*\);', '', css.read_text(encoding='utf-8')), encoding='utf-8')
    for h in out.rglob('*.html'):
        up = '../' * (len(h.relative_to(out).parts) - 1)
        t = h.read_text(encoding='utf-8').replace(f'href="{base}', f'href="{up}')
        for a, b in renamed.items(): t = t.replace(f'/nbs/{b}"', f'/nbs/{a}"')
        t = number_figures(t)
        h.write_text(t.replace(KATEX, up + 'site_libs/katex') if vendor else t, encoding='utf-8')


# Check

def check_sources(proc, sidebar):
    "Faults of the processed notebooks"
    faults = []
    for p in sorted(proc.rglob('*.ipynb')):
        name, nb = p.relative_to(proc).as_posix(), read(p)
        cells = nb['cells']
        front = text(cells[0]['source']) if cells and cells[0]['cell_type'] == 'raw' else ''
        meta = yaml.safe_load(front.strip().strip('-')) if front.strip() else {}
        for k in ('title', 'description'):
            if not str((meta or {}).get(k) or '').strip(): faults.append(f'{name}: no {k}')
        if name not in sidebar: faults.append(f'{name}: not in the sidebar of _quarto.yml')
        pictures = 0
        for i, c in enumerate(cells):
            src, outs = text(c['source']), c.get('outputs', [])
            if c['cell_type'] == 'markdown': pictures += bool(re.search(r'!\[|<img\b|<svg\b|```\{?mermaid', src))
            for o in outs:
                data = o.get('data', {})
                if o['output_type'] == 'error': faults.append(f"{name}, cell {i}: {o.get('ename')}: {o.get('evalue')}")
                pictures += any(k.startswith('image/') for k in data) or bool(re.search(r'<(img|svg|canvas)\b', text(data.get('text/html', ''))))
            opts = option_lines(src) if c['cell_type'] == 'code' else ''
            try: yaml.safe_load(opts)
            except yaml.YAMLError: faults.append(f'{name}, cell {i}: the `#|` options are not YAML (quote a text that holds a colon):\n    ' + opts.replace('\n', '\n    '))
        if not pictures and name not in NO_PICTURE: faults.append(f'{name}: no picture')
    return faults

class Page(HTMLParser):
    "The ids, links and pictures of a page, and the references to figures and links that are still text"
    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.pictures, self.unresolved = set(), [], [], []
        self.feed(path.read_text(encoding='utf-8'))
    def handle_starttag(self, tag, attrs):
        d = dict(attrs)
        self.ids |= {o for o in (d.get('id'), d.get('name') if tag == 'a' else None) if o}
        if tag == 'a' and d.get('href'): self.links.append(d['href'])
        if tag in ('img', 'source', 'video') and d.get('src'): self.pictures.append(d['src'])
    def handle_data(self, data):
        self.unresolved += [f'no such figure: {o}' for o in re.findall(r'(?<!\w)@fig-[\w-]+', data)]
        self.unresolved += [f'a link that is still text (a name in backticks links itself): {o}' for o in re.findall(r'^\]\([^)\s]+\.(?:ipynb|html)[^)\s]*\)', data)]

def check_pages(out):
    "Broken links, anchors, references and pictures of the rendered pages"
    pages, faults = {p.resolve(): Page(p) for p in out.rglob('*.html')}, []
    for p, page in pages.items():
        name = p.relative_to(out.resolve())
        faults += [f'{name}: {o}' for o in page.unresolved]
        for kind, links in (('link', page.links), ('picture', page.pictures)):
            for link in sorted(set(links)):
                u = urlsplit(link)
                if u.scheme or u.netloc: continue
                to = (p.parent/unquote(u.path)).resolve() if u.path else p
                if to.is_dir(): to = to/'index.html'
                if not to.exists(): faults.append(f'{name}: broken {kind} {link}')
                elif kind == 'link' and u.fragment and to in pages and unquote(u.fragment) not in pages[to].ids: faults.append(f'{name}: no such anchor: {link}' + (' (a method needs its own `show_doc` cell)' if '.' in u.fragment else ''))
    return faults

def in_sidebar(o):
    "The notebooks that a sidebar names"
    if isinstance(o, str): return {o} if o.endswith('.ipynb') else set()
    return set().union(*map(in_sidebar, o.values() if isinstance(o, dict) else o)) if isinstance(o, (dict, list)) else set()

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--vendor', type=Path)
    args = ap.parse_args()
    if args.vendor: args.vendor = args.vendor.resolve()
    os.chdir(ROOT)
    cfg, staged, site = get_config(), ROOT/'_sd', ROOT/'_site_ci'
    need_install(cfg)
    proc = process()
    conf = yaml.safe_load((ROOT/'_quarto.yml').read_text(encoding='utf-8'))
    faults = check_sources(proc, in_sidebar(conf['website']['sidebar']))
    renamed = stage(proc, staged)
    for command in ('check', 'render'):
        r = subprocess.run([sys.executable, '-c', 'import sys; from smalldocs.cli import main; sys.exit(main())', command, str(staged)], capture_output=True, text=True)
        if command == 'check' and r.returncode: faults += r.stdout.strip().splitlines() or [r.stderr.strip()]
        elif r.returncode: sys.exit(r.stdout + r.stderr)
    shutil.rmtree(site, ignore_errors=True)
    shutil.move(staged/cfg.doc_path.name, site)
    finish(site, args.vendor, (cfg.doc_host + cfg.doc_baseurl).rstrip('/') + '/', renamed)
    faults += check_pages(site)
    faults = list(dict.fromkeys(faults))
    print('\n'.join(faults))
    print(f"{sum(1 for _ in site.rglob('*.html'))} pages in {site.relative_to(ROOT)}/, {len(faults)} fault(s)")
    sys.exit(bool(faults))

if __name__ == '__main__': main()
