"""The attacks that `strength.py` compares, behind one signature: attack(net, x, y, norm, radius, calls) returns x + Δ, or None where the library has none.
`calls` is the number of gradient calls. Peers run with the step that their own defaults or papers give; neither they nor ours start at random, but for APGD, which always does and takes one gradient more."""
import logging, warnings

import numpy as np
import torch
from common import require

warnings.filterwarnings("ignore", category=FutureWarning)
logging.getLogger("art").setLevel(logging.ERROR)
import art.attacks.evasion as art_attacks
import foolbox
import torchattacks
from art.estimators.classification import PyTorchClassifier

from robust_nb.perturbation import perturb
from robust_nb.uncertainty import L1, L2, Linf

NORMS = dict(linf=Linf, l2=L2, l1=L1)
VERSIONS = dict(torchattacks="3.5.1", foolbox="3.3.4", **{"adversarial-robustness-toolbox": "1.20.1"})


def versions(): return ", ".join(require(k, v) for k, v in VERSIONS.items())


def ours(net, x, y, norm, radius, calls): return perturb(net, x, y, NORMS[norm](radius), steps=calls)


def step_then_clip(net, x, y, norm, radius, calls):
    "The exact step without a box, clipped: what one writes who forgets the box"
    return perturb(net, x, y, NORMS[norm](radius), box=None).clamp(0, 1) if calls == 1 else None


def by_torchattacks(net, x, y, norm, radius, calls):
    kw = dict(eps=radius, alpha=radius * min(1, 2.5 / calls), steps=calls, random_start=False)
    if norm == "linf": attack = torchattacks.FGSM(net, eps=radius) if calls == 1 else torchattacks.PGD(net, **kw)
    elif norm == "l2": attack = torchattacks.PGDL2(net, **kw)
    else: return None
    return attack(x, y)


def by_foolbox(net, x, y, norm, radius, calls):
    a, kw = foolbox.attacks, dict(steps=calls, rel_stepsize=2.5 / calls, random_start=False)
    if calls == 1: attack = dict(linf=a.LinfFastGradientAttack, l2=a.L2FastGradientAttack, l1=a.L1FastGradientAttack)[norm](random_start=False)
    else: attack = dict(linf=a.LinfProjectedGradientDescentAttack, l2=a.L2ProjectedGradientDescentAttack, l1=a.SparseL1DescentAttack)[norm](**kw)
    return attack(foolbox.PyTorchModel(net, bounds=(0, 1), device=x.device), x, y, epsilons=radius)[1]


def by_art(net, x, y, norm, radius, calls):
    p = dict(linf=np.inf, l2=2, l1=1)[norm]
    classifier = PyTorchClassifier(net, torch.nn.CrossEntropyLoss(), tuple(x.shape[1:]), net(x[:1]).shape[1], clip_values=(0., 1.), device_type="cpu")
    if calls == 1: attack = art_attacks.FastGradientMethod(classifier, norm=p, eps=radius, batch_size=200)
    else: attack = art_attacks.ProjectedGradientDescentPyTorch(classifier, norm=p, eps=radius, eps_step=radius * 2.5 / calls, max_iter=calls, batch_size=200, verbose=False)
    return torch.from_numpy(attack.generate(x.numpy(), y.numpy())).to(x)


def apgd_by_torchattacks(net, x, y, norm, radius, calls):
    "Auto-PGD on cross-entropy, one run"
    if norm == "l1" or calls == 1: return None
    return torchattacks.APGD(net, norm=dict(linf="Linf", l2="L2")[norm], eps=radius, steps=calls, n_restarts=1)(x, y)


PEERS = {"torchattacks": by_torchattacks, "foolbox": by_foolbox, "ART": by_art, "torchattacks APGD": apgd_by_torchattacks}
