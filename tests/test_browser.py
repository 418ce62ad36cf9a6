"""As a person uses it: a headless Chromium draws, drags, types and searches, in the built site and in JupyterLab.
Skipped where there is no Chromium; with ROBUST_NB_BROWSER=required that is a failure. Formulas without a network need KaTeX: `npm install --prefix .vendor katex@0.16.11`."""
import base64, gzip, os, re, shutil, socket, subprocess, sys, time, urllib.request
from pathlib import Path
import nbformat
import numpy as np
import pytest
import torch
from checkout import KATEX, ROOT
from robust_nb.data import Split, load
from robust_nb.models import pretrained
from robust_nb.perturbation import cross_entropy, perturb, value_and_gradient
from robust_nb.uncertainty import L1, L2, Linf

REQUIRED = os.environ.get("ROBUST_NB_BROWSER") == "required"
CHROME = next((o for n in ("chromium", "chromium-browser", "google-chrome") if (o := shutil.which(n))), None)
playwright = pytest.importorskip("playwright.sync_api") if not REQUIRED else __import__("playwright.sync_api").sync_api
pytestmark = [pytest.mark.skipif(CHROME is None and not REQUIRED, reason="no Chromium: apt-get install chromium")]

@pytest.fixture(scope="module")
def browser():
    assert CHROME, "ROBUST_NB_BROWSER=required, but there is no Chromium"
    with playwright.sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROME, args=["--no-sandbox", "--disable-gpu"])
        yield b
        b.close()

@pytest.fixture
def page(browser):
    "A page that notes errors, and each request that leaves this machine"
    p = browser.new_page(viewport=dict(width=1400, height=900))
    p.errors, p.outside = [], []
    p.on("pageerror", lambda e: p.errors.append(str(e)))
    p.on("console", lambda m: p.errors.append(m.text) if m.type == "error" and not re.search("ERR_|Failed to load", m.text) else None)
    p.on("response", lambda r: p.errors.append(f"{r.status} {r.url}") if r.status >= 400 and not r.url.endswith("favicon.ico") else None)
    p.on("request", lambda r: p.outside.append(r.url) if not re.match(r"(http://127\.0\.0\.1|file:|data:|blob:)", r.url) else None)
    yield p
    p.close()

def shot(page, name):
    "A picture for whoever looks for the cause, where SHOTS names a folder"
    if folder := os.environ.get("SHOTS"): page.screenshot(path=Path(folder)/f"{name}.png")

def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


# The net in the browser

SETS = dict(linf=Linf(.1), l2=L2(1.5), l1=L1(8.))

@pytest.mark.parametrize("name", ["baseline", "linf", "l2", "l1"])
def test_net_in_the_browser_is_pytorchs(page, name):
    "Gradients to 1e-4, and the same images flip, in one step and in five, 25 digits for each net"
    net, test = pretrained(name), load("mnist5k", device="cpu").test[:25]
    weights = torch.cat([p.detach().flatten() for p in net.state_dict().values()]).numpy().astype("<f4")
    page.goto("about:blank")
    page.add_script_tag(path=ROOT/"robust_nb/assets/net.js")
    said = page.evaluate("""({w, x, y, radii}) => {
        const net = new robust_nb.Net(robust_nb.decode(w)), out = [];
        x.forEach((v, i) => {
            const p = Float64Array.from(v), {value, grad, logits} = net.gradient(p, y[i]), found = {};
            for (const [norm, r] of Object.entries(radii)) for (const n of [1, 5]) found[norm + n] = Array.from(robust_nb.perturb(net, p, y[i], norm, r, n).x);
            out.push({value, grad: Array.from(grad), logits: Array.from(logits), found});
        });
        return out;
    }""", dict(w=base64.b64encode(weights.tobytes()).decode(), x=test.x.flatten(1).tolist(), y=test.y.tolist(), radii={k: U.radius for k, U in SETS.items()}))
    theirs = lambda f: torch.tensor([f(o) for o in said], dtype=torch.float64)      # as the browser computes; in float32
    net, test = net.double(), Split(test.x.double(), test.y)                         # five steps differ between processors
    value, grad = value_and_gradient(net, test.x, test.y, cross_entropy)
    assert (theirs(lambda o: o["logits"]) - net(test.x)).abs().max() < 1e-4
    torch.testing.assert_close(theirs(lambda o: o["value"]), value, rtol=1e-4, atol=1e-9)
    apart = (theirs(lambda o: o["grad"]).view_as(grad) - grad).flatten(1).abs().amax(1) / grad.flatten(1).abs().amax(1)
    assert apart.max() < 1e-4, apart.max()
    for norm, U in SETS.items():
        for n in (1, 5):
            ours, other = perturb(net, test.x, test.y, U, steps=n), theirs(lambda o: o["found"][f"{norm}{n}"]).view_as(test.x)
            assert (ours - other).abs().max() < 1e-4
            assert torch.equal(net(ours).argmax(1), net(other).argmax(1))


# The built site

def explorer(page, title): return page.get_by_role("group", name=title)

def moved(box, act):
    "What the picture says after `act`, which must differ from before"
    picture = box.locator(".rnb-picture")
    before = picture.inner_html()
    act()
    after = picture.inner_html()
    assert after != before
    return after

def slide(control, place): control.evaluate("(e, v) => { e.value = v; e.dispatchEvent(new Event('input', {bubbles: true})); }", place)

def test_perturbation_on_the_page(page, site):
    page.goto(f"{site}/library/widgets.html")
    box = explorer(page, "A perturbation")
    for name in ("image", "norm", "net"): moved(box, lambda: box.locator(f"[name={name}]").select_option(index=1))
    radius = box.locator("[name=radius]")
    moved(box, lambda: slide(radius, 6))
    assert radius.get_attribute("aria-valuetext") == box.locator("output").first.inner_text() == "2.5"
    moved(box, lambda: radius.press("ArrowRight"))                                # the keyboard
    assert radius.get_attribute("aria-valuetext") == "3"
    moved(box, lambda: slide(box.locator("[name=steps]"), 1))
    assert "frames" in box.locator(".rnb-note").inner_text() and not page.errors

def test_boundary_and_program_on_the_page(page, site):
    page.goto(f"{site}/library/widgets.html")
    box = explorer(page, "A decision boundary")
    moved(box, lambda: box.locator("[name=norm]").select_option(label="ℓ1"))
    assert "ε = 0.05" in moved(box, lambda: slide(box.locator("[name=radius]"), 2))
    box = explorer(page, "A robust linear program")
    moved(box, lambda: box.locator("[name=rows]").select_option(label="budget Γ = 1.5"))
    assert "a price of 0.0 %" in moved(box, lambda: slide(box.locator("[name=radius]"), 0))
    assert not page.errors

def test_curve_on_the_page(page, site):
    page.goto(f"{site}/library/widgets.html")
    box = explorer(page, "Accuracy against ε")
    moved(box, lambda: box.locator("[name=norm]").select_option(label="ℓ2"))
    said = moved(box, lambda: box.locator("[data-pick='2.5']").first.click(force=True))
    assert "ε = 2.5" in said and box.locator("[name=radius]").get_attribute("aria-valuetext") == "2.5"
    moved(box, lambda: box.locator("[name=net]").select_option(label="robust ℓ2"))
    moved(box, lambda: slide(box.locator("[name=radius]"), 0))
    assert not page.errors

def test_pad(page, site):
    page.goto(f"{site}/library/widgets.html")
    box = explorer(page, "Draw a digit and attack it")
    state = lambda: box.evaluate("e => ({...e.dataset})")
    pad = box.locator(".rnb-draw")
    pad.scroll_into_view_if_needed()
    b = pad.bounding_box()
    at = lambda u, v: (b["x"] + u * b["width"], b["y"] + v * b["height"])
    page.mouse.move(*at(.5, .15))                                                 # a one
    page.mouse.down()
    for v in (.3, .5, .7, .85): page.mouse.move(*at(.5, v), steps=4)
    page.mouse.up()
    assert state()["read"] == state()["y"] == "1" and "Your digit" in box.locator(".rnb-said").inner_text()
    drawn = np.array(box.evaluate("e => Array.from(e.state.x)")).reshape(28, 28)
    assert drawn.max() == 1 and abs((drawn.sum(1) @ np.arange(28)) / drawn.sum() - 13.5) < 1     # centred
    for name, v in (("norm", "l2"), ("net", "1")): moved(box, lambda: box.locator(f"[name={name}]").select_option(v))
    moved(box, lambda: slide(box.locator("[name=radius]"), 4))
    moved(box, lambda: slide(box.locator("[name=steps]"), 10))
    found = box.evaluate("e => ({norm: Math.hypot(...e.state.delta), x: Array.from(e.state.found.x), steps: e.state.steps})")
    assert found["steps"] == 10 and found["norm"] <= 4 + 1e-6 and 0 <= min(found["x"]) and max(found["x"]) <= 1
    box.locator(".rnb-thumbs button").nth(3).click()
    assert state()["y"] == "0" and "A 0" in box.locator(".rnb-said").inner_text()
    box.get_by_role("button", name="Clear").click()
    assert max(box.evaluate("e => Array.from(e.state.x)")) == 0 and not page.errors

PAGES = ["index.html", "theory/programs_to_nets.html", "library/sets.html", "library/widgets.html", "library/explorer.html", "experiments/mnist.html"]

@pytest.mark.parametrize("width", [390, 1400])
@pytest.mark.parametrize("name", PAGES)
def test_pages_fit(page, site, name, width):
    "No scrolling sideways, no error, and nothing fetched from elsewhere where KaTeX is here"
    page.set_viewport_size(dict(width=width, height=900))
    page.goto(f"{site}/{name}")
    page.wait_for_timeout(300)
    wide = page.evaluate("() => [document.documentElement.scrollWidth, innerWidth]")
    assert wide[0] <= wide[1], wide
    assert not page.errors
    if KATEX.is_dir():
        assert not page.outside
        if "theory" in name: assert page.locator(".katex").count() > 5

def test_landing_page_is_light(page, site):
    "Below 1 MB with all that it loads, fonts included, as a server sends it: compressed"
    got = []
    page.on("response", lambda r: got.append(r))
    page.goto(f"{site}/index.html")
    page.wait_for_timeout(500)
    sizes = {r.url: len(gzip.compress(r.body())) for r in got if r.ok}
    assert len(sizes) > 8 and sum(sizes.values()) < 1e6, sizes

def test_search_finds(page, site):
    page.goto(f"{site}/index.html")
    page.keyboard.press("Control+k")
    page.keyboard.type("steepest_ascent")
    hit = page.locator("a.search-result", has_text="steepest_ascent").first
    hit.wait_for(timeout=10_000)
    hit.click()
    page.wait_for_url(re.compile(r"/(library|theory)/"))
    assert not page.errors

def test_links_to_the_notebook(page, site):
    page.goto(f"{site}/library/widgets.html")
    links = page.locator(".open-in a").evaluate_all("all => all.map(a => a.href)")
    assert len(links) == 3 and all("21_widgets.ipynb" in o for o in links) and (ROOT/"nbs/library/21_widgets.ipynb").is_file()

# JupyterLab

CELLS = ["""from robust_nb.data import load
from robust_nb.models import pretrained
from robust_nb.widgets import boundary_explorer, curve_explorer, perturbation_explorer, program_explorer""",
"""test = load("mnist5k", device="cpu").test[[23, 49, 84]]
nets = {k: pretrained(k) for k in ("baseline", "linf")}
one = perturbation_explorer(nets, test)
one""", "curve_explorer(nets, test)", "program_explorer()", "boundary_explorer(epochs=20)"]

@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("lab")
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in CELLS], metadata=dict(kernelspec=dict(name="python3", display_name="Python 3", language="python")))
    nbformat.write(nb, tmp/"live.ipynb")
    settings = tmp/"settings/@jupyterlab/notebook-extension/tracker.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"windowingMode": "none"}')                  # cells out of sight are on the page too
    port = free_port()
    env = {**os.environ, **{f"JUPYTER_{k}_DIR": str(tmp/k) for k in ("CONFIG", "DATA", "RUNTIME")}, "JUPYTERLAB_SETTINGS_DIR": str(tmp/"settings"), "JUPYTERLAB_WORKSPACES_DIR": str(tmp/"workspaces"),
           "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    options = dict(ip="127.0.0.1", port=port, port_retries=0, root_dir=str(tmp), allow_root=True, disable_check_xsrf=True)
    p = subprocess.Popen([sys.executable, "-m", "jupyterlab", "--no-browser", "--IdentityProvider.token=", "--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
                          *(f"--ServerApp.{k}={v}" for k, v in options.items())], env=env, stdout=(tmp/"log").open("w"), stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            assert p.poll() is None, (tmp/"log").read_text()[-2000:]
            try: urllib.request.urlopen(url + "/api", timeout=1); break
            except OSError: time.sleep(.25)
        yield url
    finally:
        p.terminate()
        p.wait(20)

@pytest.fixture(scope="module")
def live(lab, browser):
    "The notebook, run from top to bottom"
    page = browser.new_page(viewport=dict(width=1300, height=1100))
    page.goto(f"{lab}/doc/tree/live.ipynb?reset")
    page.locator(".jp-Notebook").wait_for(timeout=60_000)
    for _ in range(300):                                              # a kernel that is not connected yet runs nothing
        sessions = page.request.get(f"{lab}/api/sessions").json()
        if sessions and sessions[0]["kernel"]["execution_state"] == "idle": break
        time.sleep(.2)
    page.wait_for_function("() => document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status === 'idle'", timeout=60_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    for _ in range(600):
        if (n := page.locator(".rnb .rnb-picture").count()) == 4: break
        time.sleep(.2)
    shot(page, "lab")
    assert n == 4, page.locator(".jp-Notebook").inner_text()[-2000:]
    yield page
    page.close()

def changed(box, act):
    "The picture after `act`, once it differs and stays as it is"
    picture = box.locator(".rnb-picture")
    before = last = picture.inner_html()
    act()
    for _ in range(100):
        time.sleep(.3)
        now = picture.inner_html()
        if now == last != before: return now
        last = now
    shot(box.page, "did-not-change")
    raise AssertionError("the picture did not change")

def test_perturbation_live(live):
    box = live.locator(".rnb").nth(0)
    box.scroll_into_view_if_needed()
    assert "Live" in box.locator(".rnb-note").inner_text()
    select = lambda k, label: changed(box, lambda: box.locator("select").nth(k).select_option(label=label))
    select(2, "ℓ2"); select(0, "robust ℓ∞"); select(1, "1: a 9")
    handle = box.locator(".noUi-handle").first
    handle.scroll_into_view_if_needed()
    track = box.locator(".noUi-base").first.bounding_box()
    h = handle.bounding_box()
    live.mouse.move(h["x"] + h["width"] / 2, h["y"] + h["height"] / 2)
    def drag():
        live.mouse.down()
        live.mouse.move(track["x"] + track["width"] * .9, track["y"] + track["height"] / 2, steps=8)
        live.mouse.up()
    changed(box, drag)
    assert box.locator(".widget-readout").first.inner_text() in ("3", "4")
    handle.focus()
    changed(box, lambda: handle.press("ArrowLeft"))
    changed(box, lambda: box.locator(".noUi-handle").nth(1).press("ArrowRight"))          # steps

def test_curve_live(live):
    box = live.locator(".rnb").nth(1)
    box.scroll_into_view_if_needed()
    said = changed(box, lambda: box.locator("[data-pick='0.2']").first.click(force=True))     # a click on a point
    assert "ε = 0.2" in said and box.locator(".widget-readout").first.inner_text() == "0.2"
    changed(box, lambda: box.locator("select").nth(1).select_option(label="ℓ1"))
    changed(box, lambda: box.locator("select").nth(0).select_option(label="robust ℓ∞"))

def test_program_and_boundary_live(live):
    box = live.locator(".rnb").nth(2)
    changed(box, lambda: box.locator("select").first.select_option(label="ℓ1 ball"))
    changed(box, lambda: box.locator(".noUi-handle").first.press("ArrowRight"))
    box = live.locator(".rnb").nth(3)
    changed(box, lambda: box.locator("select").first.select_option(label="ℓ1"))
    assert "ε = 0.08" in changed(box, lambda: box.locator(".noUi-handle").first.press("ArrowLeft"))
