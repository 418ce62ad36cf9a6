// Draw a digit, let a net read it, and attack it: all in the page. Needs net.js. One call per pad, by the id of its element.
"use strict";
function robust_nb_pad(id) {
  const SIDE = robust_nb.SIDE, N = SIDE * SIDE;
  const NORMS = { linf: ["ℓ∞", 0.3, 0.005], l2: ["ℓ2", 4, 0.05], l1: ["ℓ1", 20, 0.25] };
  const START = { linf: 0.15, l2: 2, l1: 10 };
  for (const box of document.querySelectorAll(`[id="${id}"]`)) {
    if (box.dataset.ready) continue;
    box.dataset.ready = "yes";
    const data = JSON.parse(box.querySelector('script[type="application/json"]').textContent);
    const nets = data.nets.map(n => ({ name: n.name, net: new robust_nb.Net(robust_nb.decode(n.weights)) }));
    const digits = data.digits.map(d => ({ y: d.y, x: Float64Array.from(atob(d.x), c => c.charCodeAt(0) / 255) }));
    const radius = { ...START };
    let x = digits[0].x, y = digits[0].y, drawn = false;
    const make = (tag, props = {}, ...children) => { const e = Object.assign(document.createElement(tag), props); e.append(...children); return e; };
    const pick = (name, options) => make("select", { name }, ...options.map(([v, t]) => new Option(t, v)));
    const range = (name, min, max, step, value) => make("input", { type: "range", name, min, max, step, value });

    const net = pick("net", nets.map((n, k) => [k, n.name])), norm = pick("norm", Object.entries(NORMS).map(([k, v]) => [k, v[0]]));
    const size = range("radius", 0, ...NORMS.linf.slice(1), START.linf), count = range("steps", 1, 20, 1, 1);
    const sizeText = make("output"), countText = make("output"), clear = make("button", { type: "button", textContent: "Clear" });
    box.querySelector(".rnb-controls").append(make("label", {}, "net", net), make("label", {}, "norm", norm), make("label", {}, "ε", size, sizeText), make("label", {}, "steps", count, countText), clear);

    const canvas = label => { const c = make("canvas", { width: SIDE, height: SIDE }); c.setAttribute("role", "img"); c.setAttribute("aria-label", label); return c; };
    const figure = (c, text) => make("figure", {}, make("figcaption", {}, text), c);
    const pad = canvas("your digit: draw with the mouse or a finger"), change = canvas("the perturbation"), after = canvas("the perturbed digit");
    pad.classList.add("rnb-draw");
    const padFigure = figure(pad, ""), changeFigure = figure(change, ""), bars = make("table", { className: "rnb-bars" }), said = make("p", { className: "rnb-said" });
    said.setAttribute("aria-live", "polite");
    const thumbs = make("div", { className: "rnb-thumbs" });
    digits.forEach((d, k) => {
      const c = canvas(`test digit, a ${d.y}`), b = make("button", { type: "button", title: `load test digit, a ${d.y}` }, c);
      paint(c, d.x);
      b.addEventListener("click", () => { x = d.x; y = d.y; drawn = false; show(); });
      thumbs.append(b);
    });
    box.querySelector(".rnb-picture").replaceChildren(
      make("div", { className: "rnb-row" }, padFigure, changeFigure, figure(after, "x + Δ"), bars), said, thumbs);

    function paint(c, v) {
      const image = c.getContext("2d").createImageData(SIDE, SIDE);
      v.forEach((g, i) => image.data.set([255 * g, 255 * g, 255 * g, 255], 4 * i));
      c.getContext("2d").putImageData(image, 0, 0);
    }

    function paintChange(c, d, most) {                                        // red raises a pixel, blue lowers it
      const image = c.getContext("2d").createImageData(SIDE, SIDE);
      d.forEach((v, i) => {
        const u = most ? Math.abs(v) / most : 0, pale = 255 * (1 - u);
        image.data.set(v >= 0 ? [255 - 55 * u, pale + 56 * u, pale + 90 * u, 255] : [pale, pale + 114 * u, 255 - 77 * u, 255], 4 * i);
      });
      c.getContext("2d").putImageData(image, 0, 0);
    }

    const percent = p => p >= 0.9995 && p < 1 ? "> 99.9 %" : `${(100 * p).toFixed(1)} %`;
    const both = (p, q) => Math.max(p, q) < 0.0005 ? "" : `${percent(p)} → ${percent(q)}`;
    const number = v => v && Math.abs(v) < 1e-3 ? v.toExponential(2) : v.toPrecision(3);

    function show() {
      paint(pad, x);
      padFigure.firstChild.textContent = drawn ? "x: your digit" : `x: a ${y}; draw to replace it`;
      sizeText.textContent = radius[norm.value].toFixed(norm.value === "linf" ? 3 : 2);
      countText.textContent = count.value;
      size.setAttribute("aria-valuetext", `${sizeText.textContent} in ${NORMS[norm.value][0]}`);
      if (!x.some(v => v)) {                                               // nothing is drawn: nothing to read
        paint(after, x);
        paintChange(change, x, 0);
        changeFigure.firstChild.textContent = "Δ";
        bars.innerHTML = "";
        said.textContent = "Draw a digit above, or choose one below.";
        box.state = { x };
        return;
      }
      const start = performance.now(), n = nets[net.value].net, r = radius[norm.value], before = robust_nb.softmax(n.logits(x));
      const read = before.indexOf(Math.max(...before)), label = drawn ? read : y;
      const found = robust_nb.perturb(n, x, label, norm.value, r, +count.value), now = robust_nb.softmax(found.logits), then = now.indexOf(Math.max(...now));
      const delta = found.x.map((v, i) => v - x[i]), most = robust_nb.norms.linf(delta);
      paint(after, found.x);
      paintChange(change, delta, most);
      changeFigure.firstChild.textContent = most ? `Δ, × ${(1 / most).toPrecision(2)}` : "Δ = 0";
      bars.innerHTML = before.map((p, k) => `<tr><th>${k}</th><td><i class="rnb-before" style="width:${100 * p}%"></i><i class="rnb-after" style="width:${100 * now[k]}%"></i></td><td>${both(p, now[k])}</td></tr>`).join("");
      said.innerHTML = `${drawn ? "Your digit" : `A ${y}`}: read as <b>${read}</b> (${percent(before[read])}), after the attack as <b>${then}</b> (${percent(now[then])}).<br>` +
        `J(x) = ${number(found.before)}; J(x) + max ⟨∇J, Δ⟩ = ${number(found.before + found.support)}; J(x + Δ) = ${number(found.value)}`;
      Object.assign(box.dataset, { read, then, y: label, milliseconds: (performance.now() - start).toFixed(1), count: +(box.dataset.count || 0) + 1 });
      box.state = { x, label, before, now, found, delta, net: +net.value, norm: norm.value, radius: r, steps: +count.value };
    }

    // A drawn line, its centre of mass moved to the middle, as MNIST's digits are
    let pen = null, sheet = new Float64Array(N);
    const where = e => { const b = pad.getBoundingClientRect(); return [(e.clientX - b.left) / b.width * SIDE, (e.clientY - b.top) / b.height * SIDE]; };
    function line([a, b], [c, d]) {
      const parts = Math.ceil(2 * Math.hypot(c - a, d - b)) + 1;
      for (let k = 0; k <= parts; k++) {
        const u = a + (c - a) * k / parts, v = b + (d - b) * k / parts;
        for (let i = 0; i < N; i++) {
          const far = Math.hypot((i % SIDE) + 0.5 - u, Math.floor(i / SIDE) + 0.5 - v);
          sheet[i] = Math.max(sheet[i], Math.min(Math.max(1.9 - far, 0), 1));
        }
      }
      x = sheet.slice();
    }
    function centred(v) {
      let sum = 0, p = 0, q = 0;
      v.forEach((g, i) => { sum += g; p += g * (i % SIDE); q += g * Math.floor(i / SIDE); });
      if (!sum) return v;
      const dx = Math.round(p / sum - 13.5), dy = Math.round(q / sum - 13.5), out = new Float64Array(N);
      v.forEach((g, i) => { const c = i % SIDE - dx, r = Math.floor(i / SIDE) - dy; if (c >= 0 && c < SIDE && r >= 0 && r < SIDE) out[r * SIDE + c] = g; });
      return out;
    }
    const blank = () => { sheet = new Float64Array(N); x = sheet.slice(); drawn = true; };
    pad.addEventListener("pointerdown", e => { if (!drawn) blank(); pen = where(e); line(pen, pen); paint(pad, x); pad.setPointerCapture(e.pointerId); e.preventDefault(); });
    pad.addEventListener("pointermove", e => { if (pen) { const to = where(e); line(pen, to); pen = to; paint(pad, x); } });
    const lift = () => { if (pen) { pen = null; x = sheet = centred(sheet); x = x.slice(); show(); } };
    pad.addEventListener("pointerup", lift);
    pad.addEventListener("pointercancel", lift);
    clear.addEventListener("click", () => { blank(); show(); });
    norm.addEventListener("input", () => {
      [size.max, size.step] = NORMS[norm.value].slice(1);
      size.value = radius[norm.value];
      show();
    });
    size.addEventListener("input", () => { radius[norm.value] = +size.value; show(); });
    for (const e of [net, count]) e.addEventListener("input", show);
    show();
  }
}
