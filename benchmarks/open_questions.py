"""What the paper leaves open, measured on MNIST: equal-strength norms, many steps, controls, transfer, noise, rounding, training-set size.
    python benchmarks/open_questions.py --root DIR --seed 0        21 nets, about an hour on one core; DIR holds torchvision's MNIST
Writes results/open/SEED.json, which a page of the docs reads. Recipe pixel: images in [0, 1], perturbed images in the box.
5,000 training digits, the same for every seed, are held out; radii and convergence are judged on them. Nets are kept in --work, so that
the same command goes on where it stopped."""
import argparse, json, warnings
from dataclasses import replace
from pathlib import Path

import torch
from common import keep

from robust_nb.cifar import _noisy as noisy, _some as drawn, flip_radius
from robust_nb.data import load
from robust_nb.evaluation import AdversarialCollection, correct, robust_correct
from robust_nb.models import MLP, MNISTNet
from robust_nb.objectives import Robust, Standard
from robust_nb.perturbation import cross_entropy, in_mode, perturb, value_and_gradient
from robust_nb.reproduce import NAMES, SETS, _bits as bits
from robust_nb.training import fit
from robust_nb.uncertainty import L1, L2, Linf
from robust_nb.variants import Monitor

OUT = Path(__file__).resolve().parents[1]/"results/open"
UPDATES, BATCH = 5500, 100                                        # 10 epochs of 55,000
STEPS, RESTARTS, SOME, MORE = 40, 2, 500, 1000                    # of the attack; test digits that it tries, at larger radii and at those of training
SIZES = (250, 1000, 4000, 16000)
TRAINED = SETS["pixel"]                                           # the paper's sets, in pixel values


def trained(name, net, data, objective, a, monitor=None):
    "The net after `UPDATES` updates, in eval mode, and its history; read back if it is there, gone on with if begun"
    folder = Path(a.work)/f"seed-{a.seed}"/name
    seed = a.seed + dict(control=1000, half_0=2000, half_1=3000, dense=4000).get(name, 0)    # these share no start with the baseline
    torch.manual_seed(seed)
    model = net()
    epochs = max(1, round(UPDATES * a.share * BATCH / len(data.train)))
    history = fit(model, data, objective, epochs=epochs, batch_size=BATCH, seed=seed, precision=a.precision, device="cpu", monitor=monitor,
                  checkpoint=folder, resume=True, progress=False)
    print(f"{name}: {objective}, {epochs} epochs of {len(data.train)}, {sum(history.column('seconds')):.0f} s", flush=True)
    return model.eval(), [{k: round(v, 5) for k, v in row.items()} for row in history]


def gradients(model, x, y):
    "Mean and median dual norm of ∇J over the digits, for each of the three sets"
    with in_mode(model, "eval"): g = torch.cat([value_and_gradient(model, *part, cross_entropy)[1] for part in zip(x.split(500), y.split(500))])
    norms = {k: U.with_radius(1.).support(g) for k, U in TRAINED.items()}
    return {k: dict(mean=v.mean().item(), median=v.median().item()) for k, v in norms.items()}


def leak(model, x, y, U):
    "Correct on one-step images made with the true labels, whatever the clean image was, and with the net's own labels"
    hits = dict(true=[], own=[])
    for xs, ys in zip(x.split(500), y.split(500)):
        for who, labels in dict(true=ys, own=model(xs).argmax(1)).items(): hits[who].append(correct(model, perturb(model, xs, labels, U), ys))
    return {who: bits(torch.cat(v)) for who, v in hits.items()}


def measured(name, model, history, d, attacks, a):
    "One net: clean, one step, many steps, noise, gradients"
    x, y = d.test.x, d.test.y
    g = torch.Generator()
    many = lambda part, sets: {k: dict(radius=U.radius) | bits(robust_correct(model, *part, U, steps=STEPS, restarts=RESTARTS, generator=g.manual_seed(0))) for k, U in sets.items()}
    said = dict(history=history, test=bits(correct(model, x, y)), gradient=gradients(model, x, y))
    said["train_accuracy"] = correct(model, *(t[:10000] for t in (d.train.x, d.train.y))).double().mean().item()
    said["one_step"] = {k: bits(robust_correct(model, x, y, U)) for k, U in TRAINED.items()}
    said["many_steps"] = many(drawn(d, SOME), attacks)
    if name in NAMES: said["many_steps_trained"] = many(drawn(d, MORE), TRAINED)
    said["noise"] = {k: bits(correct(model, noisy(x, U, (0., 1.), a.seed), y)) for k, U in TRAINED.items()}
    return said


def length(x, y, model, U): return L2(1.).norm(perturb(model, x, y, U) - x).mean().item()


def equal_length(x, y, model, wanted):
    "The ℓ1 radius whose step has this mean Euclidean length, by bisection"
    lo, hi = 0., 64.
    while hi - lo > 0.005 * hi:
        middle = (lo + hi) / 2
        lo, hi = (lo, middle) if length(x, y, model, L1(middle)) >= wanted else (middle, hi)
    return hi


def rules(model, held):
    "Radii that make ℓ2 and ℓ1 as strong as the paper's ℓ∞ step: by errors on held-out digits, by Euclidean length; and by errors at twice its radius"
    x, y, linf = held.x, held.y, TRAINED["linf"]
    right = correct(model, x, y)
    share = 1 - robust_correct(model, x[right], y[right], linf).double().mean().item()
    equal = lambda share: {k: flip_radius(model, x, y, U, share) for k, U in dict(l2=L2(0.5), l1=L1(2.)).items()}
    larger = linf.with_radius(2 * linf.radius)
    attack = dict(linf=larger.radius) | equal(1 - robust_correct(model, x[right], y[right], larger).double().mean().item())
    step = length(x[:SOME], y[:SOME], model, linf)
    return dict(share=share, error=equal(share), attack=attack, length=dict(l2=step, l1=equal_length(x[:SOME], y[:SOME], model, step)))


def transfer(sources, targets, d, seed):
    "A of each source: which members each target reads, as they are, with noise in place of the step, and in 8 bits"
    said = {}
    for name, model in sources.items():
        A = AdversarialCollection.build(model, d.test.x, d.test.y, list(TRAINED.values()))
        by_set = torch.bincount(A.norm, minlength=3).tolist()
        said[name] = dict(by_set=dict(zip(TRAINED, by_set)), index=A.index.tolist(), read={k: bits(A.correct(m)) for k, m in targets.items()})
        x = torch.cat([noisy(d.test.x[A.index[A.norm == k]], U, (0., 1.), seed) for k, U in enumerate(TRAINED.values())])
        said[name]["noise"] = {k: bits(correct(m, x, A.y)) for k, m in targets.items()}
        said[name]["in_8_bits"] = {k: bits(correct(m, (A.x * 255).round() / 255, A.y)) for k, m in targets.items()}
    return said


def main(a):
    if a.share != 1 and not a.out: raise SystemExit("--share is for a quick look: say where its numbers go with --out")
    d = load("mnist", a.root, "cpu")
    train, held = d.train.hold_out(5000, 0)
    d = replace(d, train=train)
    watched = replace(d, test=held)                               # what a history measures after each epoch: not the test set
    on = lambda split: replace(watched, train=split)
    robust = lambda U: Robust(U, box=(0., 1.))

    nets = dict(baseline=trained("baseline", MNISTNet, watched, Standard(), a), control=trained("control", MNISTNet, watched, Standard(), a))
    for k, U in TRAINED.items(): nets[k] = trained(k, MNISTNet, watched, robust(U), a)
    said = rules(nets["baseline"][0], held)
    for rule in ("error", "length"):
        for k, U in dict(l2=L2(said[rule]["l2"]), l1=L1(said[rule]["l1"])).items():
            nets[f"{k}_{rule}"] = trained(f"{k}_{rule}", MNISTNet, watched, robust(U), a)
    attacks = {k: U.with_radius(said["attack"][k]) for k, U in TRAINED.items()}
    result = dict(seed=a.seed, updates=round(UPDATES * a.share), precision=a.precision, held=dict(n=len(held), digest=held.digest()),
                  train_digest=train.digest(), test_digest=d.test.digest(), rules=said,
                  nets={k: measured(k, m, h, d, attacks, a) for k, (m, h) in nets.items()})
    print("measured", flush=True)

    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(a.seed))
    halves = {f"half_{k}": trained(f"half_{k}", MNISTNet, on(train[part]), Standard(), a)[0] for k, part in enumerate(order.chunk(2))}
    dense = trained("dense", lambda: MLP(784, 256, 256, 10), watched, Standard(), a)[0]
    others = {k: m for k, (m, _) in nets.items() if k in ("baseline", "control")} | halves | dict(dense=dense)
    result["transfer"] = transfer(others, others | {k: nets[k][0] for k in TRAINED}, d, a.seed)
    result["others"] = {k: bits(correct(m, d.test.x, d.test.y)) for k, m in others.items()}

    result["sizes"] = {}
    for n in SIZES:
        part = replace(on(train[order[:n].repeat(max(1, 5500 // n))]), test=held[range(100)])    # a small set is gone through several times an epoch
        pair = {k: trained(f"{k}_{n}", MNISTNet, part, o, a)[0] for k, o in dict(baseline=Standard(), linf=robust(TRAINED["linf"])).items()}
        result["sizes"][n] = {k: dict(test=bits(correct(m, d.test.x, d.test.y)), one_step=bits(robust_correct(m, d.test.x, d.test.y, TRAINED["linf"])))
                              for k, m in pair.items()}

    large = Linf(0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                           # of catastrophic overfitting: that is what is looked for
        model, history = trained("large", MNISTNet, watched, robust(large), a, Monitor(held[range(SOME)], large, steps=10))
    result["overfitting"] = dict(radius=large.radius, history=history)
    result["leak"] = {name: dict(radius=U.radius, clean=bits(correct(m, d.test.x, d.test.y))) | leak(m, d.test.x, d.test.y, U)
                      for name, m, U in (("linf", nets["linf"][0], TRAINED["linf"]), ("large", model, large))}
    OUT.mkdir(parents=True, exist_ok=True)
    keep(a.out or OUT/f"{a.seed}.json", command=f"python benchmarks/open_questions.py --root DIR --seed {a.seed} --precision {a.precision} --share {a.share:g}", **result)


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--root", help="where torchvision's files of MNIST lie (default: $ROBUST_NB_DATA, else ./data)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--precision", default="bfloat16", choices=("float32", "bfloat16"))
    p.add_argument("--share", type=float, default=1., help="of the updates, for a quick look")
    p.add_argument("--work", default="out/open", help="folder for the nets")
    p.add_argument("--out", help="file for the numbers (default: results/open/SEED.json)")
    main(p.parse_args())
