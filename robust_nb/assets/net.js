// The paper's MNIST net and the exact steps, in the browser. What MNISTNet, perturb and the norm balls compute in Python, in float64.
"use strict";
const robust_nb = (() => {
  const SIDE = 28, CHANNELS = [32, 64], HIDDEN = 200, CLASSES = 10, K = 5, MEAN = 0.1, STD = 0.2752;
  const SHAPES = [[CHANNELS[0], 1, K, K], [CHANNELS[0]], [CHANNELS[1], CHANNELS[0], K, K], [CHANNELS[1]], [HIDDEN, 256], [HIDDEN], [CLASSES, HIDDEN], [CLASSES]];

  // float32 numbers in little-endian base64
  function decode(text) {
    const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
    return Float64Array.from(new Float32Array(bytes.buffer));
  }

  // out[o] = bias[o] + Σ_i w[o, i] * x[i], images of `side` pixels, stride 1, no padding
  function convolve(x, w, bias, channels, filters, side) {
    const n = side - K + 1, out = new Float64Array(filters * n * n);
    for (let o = 0; o < filters; o++) {
      const at = o * n * n;
      out.fill(bias[o], at, at + n * n);
      for (let i = 0; i < channels; i++) for (let a = 0; a < K; a++) for (let b = 0; b < K; b++) {
        const v = w[((o * channels + i) * K + a) * K + b];
        for (let r = 0; r < n; r++) {
          const to = at + r * n, from = (i * side + r + a) * side + b;
          for (let c = 0; c < n; c++) out[to + c] += v * x[from + c];
        }
      }
    }
    return out;
  }

  // maxima over squares of `size` pixels, then ReLU; `from` says where each maximum was
  function pool(x, channels, side, size) {
    const n = side / size, value = new Float64Array(channels * n * n), from = new Int32Array(channels * n * n);
    for (let i = 0, k = 0; i < channels; i++) for (let r = 0; r < n; r++) for (let c = 0; c < n; c++, k++) {
      let best = -Infinity, where = 0;
      for (let a = 0; a < size; a++) for (let b = 0; b < size; b++) {
        const j = (i * side + r * size + a) * side + c * size + b;
        if (x[j] > best) { best = x[j]; where = j; }
      }
      value[k] = Math.max(best, 0);
      from[k] = where;
    }
    return { value, from };
  }

  function dense(x, w, bias) {
    const n = x.length, out = Float64Array.from(bias);
    for (let o = 0; o < out.length; o++) for (let i = 0, at = o * n; i < n; i++) out[o] += w[at + i] * x[i];
    return out;
  }

  // gradient of a dense layer's input; where `active` is 0 nothing passes ReLU
  function denseBack(g, w, active) {
    const n = active.length, out = new Float64Array(n);
    for (let o = 0; o < g.length; o++) if (g[o]) for (let i = 0, at = o * n; i < n; i++) out[i] += w[at + i] * g[o];
    for (let i = 0; i < n; i++) if (active[i] <= 0) out[i] = 0;
    return out;
  }

  // gradient of the convolution's input: only the pixels that won in a pool pass one on
  function convolveBack(g, pooled, w, channels, filters, side) {
    const n = side - K + 1, out = new Float64Array(channels * side * side);
    for (let k = 0; k < g.length; k++) {
      if (pooled.value[k] <= 0 || !g[k]) continue;
      const o = Math.floor(pooled.from[k] / (n * n)), r = Math.floor(pooled.from[k] / n) % n, c = pooled.from[k] % n;
      for (let i = 0; i < channels; i++) for (let a = 0; a < K; a++) {
        const to = (i * side + r + a) * side + c, at = ((o * channels + i) * K + a) * K;
        for (let b = 0; b < K; b++) out[to + b] += g[k] * w[at + b];
      }
    }
    return out;
  }

  class Net {
    // all weights in the order of `state_dict`, one after the other
    constructor(weights) {
      let at = 0;
      this.w = SHAPES.map(s => weights.subarray(at, at += s.reduce((a, b) => a * b)));
      if (at !== weights.length) throw new Error(`a net has ${at} weights, got ${weights.length}`);
    }

    // x: 784 pixel values in 0 … 1
    run(x) {
      const [w1, b1, w2, b2, w3, b3, w4, b4] = this.w, z = new Float64Array(SIDE * SIDE).fill(-MEAN / STD);
      for (let r = 2; r < SIDE; r++) for (let c = 2; c < SIDE; c++) z[r * SIDE + c] = (x[(r - 2) * SIDE + c - 2] - MEAN) / STD;
      const one = pool(convolve(z, w1, b1, 1, CHANNELS[0], SIDE), CHANNELS[0], 24, 3);
      const two = pool(convolve(one.value, w2, b2, CHANNELS[0], CHANNELS[1], 8), CHANNELS[1], 4, 2);
      const hidden = dense(two.value, w3, b3).map(v => Math.max(v, 0));
      return { one, two, hidden, logits: dense(hidden, w4, b4) };
    }

    logits(x) { return this.run(x).logits; }

    // J = -log p_y in the form that does not cancel, and its gradient in x
    gradient(x, y) {
      const { one, two, hidden, logits } = this.run(x), [w1, , w2, , w3, , w4] = this.w;
      const { value, g } = logOdds(logits, y);
      const g3 = denseBack(g, w4, hidden), g2 = denseBack(g3, w3, two.value);
      const g1 = convolveBack(g2, two, w2, CHANNELS[0], CHANNELS[1], 8), gz = convolveBack(g1, one, w1, 1, CHANNELS[0], SIDE);
      const grad = new Float64Array(SIDE * SIDE);
      for (let r = 2; r < SIDE; r++) for (let c = 2; c < SIDE; c++) grad[(r - 2) * SIDE + c - 2] = gz[r * SIDE + c] / STD;
      return { value, grad, logits };
    }
  }

  // softplus(logsumexp over k ≠ y of z_k - z_y), and its gradient in the logits
  function logOdds(z, y) {
    const others = [...z.keys()].filter(k => k !== y), top = Math.max(...others.map(k => z[k]));
    const parts = others.map(k => Math.exp(z[k] - top)), sum = parts.reduce((a, b) => a + b), s = top + Math.log(sum) - z[y];
    const value = Math.max(s, 0) + Math.log1p(Math.exp(-Math.abs(s))), weight = 1 / (1 + Math.exp(-s)), g = new Float64Array(z.length);
    others.forEach((k, j) => { g[k] = weight * parts[j] / sum; });
    g[y] = -weight;
    return { value, g };
  }

  function softmax(z) {
    const top = Math.max(...z), parts = Array.from(z, v => Math.exp(v - top)), sum = parts.reduce((a, b) => a + b);
    return parts.map(v => v / sum);
  }

  // How far each pixel may go in the direction of v within 0 … 1
  const room = (v, x) => v.map((u, i) => u > 0 ? 1 - x[i] : u < 0 ? x[i] : 0);
  const signed = (sizes, v) => sizes.map((d, i) => v[i] < 0 ? -d : d);
  const norms = { linf: d => d.reduce((a, v) => Math.max(a, Math.abs(v)), 0), l2: d => Math.hypot(...d), l1: d => d.reduce((a, v) => a + Math.abs(v), 0) };

  // d = min(t |v|, room) with the largest t ≤ most such that ‖d‖₂ ≤ r
  function scaled(v, free, r, most) {
    const a = v.map(Math.abs), order = [...a.keys()].filter(i => a[i] > 0).sort((i, j) => free[i] / a[i] - free[j] / a[j]);
    let rest = order.reduce((s, i) => s + a[i] * a[i], 0), left = r * r, t = Infinity;
    for (const i of order) {                                          // from the pixel that meets its bound first
      const here = Math.sqrt(Math.max(left, 0) / rest);
      if (here <= free[i] / a[i]) { t = here; break; }
      left -= free[i] * free[i];
      rest -= a[i] * a[i];
      if (rest <= 0) break;
    }
    t = Math.min(t, most);
    return a.map((u, i) => u > 0 ? Math.min(t * u, free[i]) : 0);
  }

  // argmax of ⟨g, Δ⟩ over the ball of radius r and the box
  const steps = {
    linf: (g, free, r) => free.map((f, i) => g[i] ? Math.min(f, r) : 0),
    l2: (g, free, r) => scaled(g, free, r, Infinity),
    l1: (g, free, r) => {
      const out = new Float64Array(g.length);
      let left = r;
      for (const i of [...g.keys()].filter(i => g[i]).sort((i, j) => Math.abs(g[j]) - Math.abs(g[i]) || i - j)) {
        out[i] = Math.min(free[i], left);
        left -= out[i];
        if (left <= 0) break;
      }
      return out;
    },
  };

  // the nearest point of the ball and the box
  const nearest = {
    linf: (d, free, r) => d.map((v, i) => Math.min(Math.abs(v), free[i], r)),
    l2: (d, free, r) => scaled(d, free, r, 1),
    l1: (d, free, r) => {
      const at = lambda => d.map((v, i) => Math.min(Math.max(Math.abs(v) - lambda, 0), free[i]));
      if (norms.l1(at(0)) <= r) return at(0);
      let lo = 0, hi = norms.linf(d);
      for (let k = 0; k < 60; k++) { const mid = (lo + hi) / 2; if (norms.l1(at(mid)) > r) lo = mid; else hi = mid; }
      return at(hi);
    },
  };

  const steepest = (norm, g, x, r) => signed(steps[norm](g, room(g, x), r), g);
  const project = (norm, d, x, r) => signed(nearest[norm](d, room(d, x), r), d);
  const add = (a, b) => a.map((v, i) => Math.min(Math.max(v + b[i], 0), 1));

  // `perturb` without random starts: one exact step, or projected ascent with falling steps, the best iterate kept
  function perturb(net, x, y, norm, r, count = 1) {
    let moved = x, best = null, first = null;
    const better = (point, value) => { if (!best || value > best.value) best = { x: point, value }; };
    for (let k = 0; k < count; k++) {
      const { value, grad } = net.gradient(moved, y);
      if (!k) {
        const delta = steepest(norm, grad, x, r);
        first = { value, support: delta.reduce((s, d, i) => s + d * grad[i], 0) };
      }
      better(moved, value);
      let delta = steepest(norm, grad, moved, r * (1 - k / count));
      if (k) delta = project(norm, delta.map((d, i) => moved[i] - x[i] + d), x, r);
      moved = add(x, delta);
    }
    const logits = net.logits(moved), value = logOdds(logits, y).value;
    if (count === 1) best = { x: moved, value };                      // Algorithm 1 takes the step as it is
    else better(moved, value);
    return { x: best.x, value: best.value, logits: net.logits(best.x), before: first.value, support: first.support };
  }

  return { Net, decode, softmax, steepest, project, perturb, norms, SIDE };
})();
if (typeof module !== "undefined") module.exports = robust_nb;
