"The commands and the README: what a user types, with its exit code, what it says, and what it leaves on the disk."
import errno, json, os, re, signal, subprocess, sys, time
from dataclasses import replace
from pathlib import Path
import pytest
import torch
from robust_nb import checkpoint, cli, reproduce
from robust_nb.data import load
from robust_nb.evaluation import AdversarialCollection, correct
from robust_nb.models import MNISTNet, load_net, save_net
from checkout import ROOT

COMMAND = [sys.executable, '-m', 'robust_nb']
ENV = {**os.environ, 'PYTHONPATH': str(ROOT), 'COLUMNS': '100', 'OMP_NUM_THREADS': '1'}
NETS = ('baseline', 'linf', 'l2', 'l1')

@pytest.fixture(scope='module')
def digits(): return load('mnist5k', device='cpu')

@pytest.fixture
def few(monkeypatch, digits):
    "300 digits to train on and 60 to measure on, in place of what the options name; runs in seconds"
    few = replace(digits, train=digits.train[:300], test=digits.test[:60])
    monkeypatch.setattr(reproduce, 'digits', lambda *_: few)
    monkeypatch.setattr(cli, 'digits', lambda *_: few)
    return few

@pytest.fixture
def no_training(monkeypatch):
    def fit(*args, **kw): pytest.fail('a net was trained')
    monkeypatch.setattr(reproduce, 'fit', fit)
    monkeypatch.setattr(cli, 'fit', fit)

@pytest.fixture
def say(capsys):
    "say('reproduce', …) runs the command here: its exit code, standard output and standard error"
    def run(*argv):
        try: code = cli.main([str(o) for o in argv])
        except SystemExit as e: code = e.code
        return code, *capsys.readouterr()
    return run

def refused(said, *words):
    code, out, err = said
    assert code == 2 and not out and re.fullmatch(r'robust_\w+: error: .+\n', err), said
    for o in words: assert o in err, err

def files(folder): return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob('*') if p.is_file())

RESULTS = ['A-0.safetensors', *(f'{net}-0.{o}' for net in NETS for o in ('json', 'safetensors')), 'figure3-accuracy.png', 'table.json', 'table.md']


# robust_reproduce

def test_reproduce(say, few, tmp_path, monkeypatch, caplog):
    out = tmp_path/'new'/'out'
    caplog.set_level('INFO', 'robust_nb')
    code, said, err = say('reproduce', 'mnist', '--epochs', '2', '--seeds', '2', '--out', out)
    assert code == 0 and set(RESULTS) | {'control-0.json', 'control-1.json'} <= set(files(out))
    assert not [o for o in files(out) if o.startswith('.')], 'something temporary was left'
    table = (out/'table.md').read_text(encoding='utf-8')
    assert table in said and str(out) in said
    for row in ('baseline', 'robust ℓ∞', 'robust ℓ2', 'robust ℓ1', 'a baseline of another seed'): assert f'| {row} ' in table
    assert '0/' in table.splitlines()[2]
    assert 'step/s' in err, 'a progress bar'
    for k in range(1, 9): assert f'net {k} of 8' in caplog.text

    # the numbers are those of the files
    net, A = load_net(out/'l2-1.safetensors'), AdversarialCollection.load(out/'A-1.safetensors')
    r = json.loads((out/'l2-1.json').read_text())
    torch.testing.assert_close(reproduce.unpack(r['A']['bits'], len(A)), A.correct(net))
    torch.testing.assert_close(reproduce.unpack(r['test']['bits'], 60), correct(net, few.test.x, few.test.y))
    assert r['baseline'] == A.baseline == json.loads((out/'baseline-1.json').read_text())['weights']
    assert json.loads((out/'table.json').read_text())['rows']['l2']['A'][1] == dict(seed=1, correct=r['A']['correct'], n=len(A))

    # the same command again trains nothing and says the same
    monkeypatch.setattr(reproduce, 'fit', lambda *a, **kw: pytest.fail('a finished net was trained again'))
    assert say('reproduce', 'mnist', '--epochs', '2', '--seeds', '2', '--out', out, '--quiet')[:2] == (0, said)
    # one seed of the two
    alone = say('reproduce', 'mnist', '--epochs', '2', '--seed', '1', '--out', out)[1]
    assert 'another seed' not in alone and 'One seed' in alone and 'One seed' not in said and 'once per norm' in said
    # other settings are refused, and nothing changes
    before = {o: (out/o).read_bytes() for o in files(out)}
    refused(say('reproduce', 'mnist', '--epochs', '3', '--out', out), '--out', 'baseline-0.json', 'epochs was 2, is now 3')
    assert before == {o: (out/o).read_bytes() for o in files(out)}

@pytest.mark.parametrize('argv, words', [
    (['mnist', '--epochs', '0'], '--epochs must be an integer of at least 1, got 0'), (['mnist', '--seeds', '0'], '--seeds must be an integer of at least 1, got 0'),
    (['mnist', '--seed', '-1'], '--seed must be'), (['mnist', '--seed', str(1 << 63)], '--seed must be'), (['mnist', '--device', 'meta'], '--device must be one that computes'), (['mnist', '--data', 'mnist6k'], '--data must be'), (['mnist', '--device', 'cuda:99'], '--device must be'),
    (['mnist', '--data', 'mnist', '--root', 'nowhere'], '--root'), (['mnist', '--data', 'mnist', '--root', 'nowhere'], '--download'),
    (['cifar10', '--root', 'nowhere'], '--root'), (['cifar10', '--data', 'mnist5k'], '--data must be cifar10'), (['cifar10', '--recipe', 'paper'], '--recipe must be pixel for cifar10, got paper'),
    (['cifar'], '--help'), ([], '--help'), (['mnist', '--recipe', 'pixels'], '--help')])
def test_reproduce_refuses(say, no_training, tmp_path, monkeypatch, argv, words):
    monkeypatch.chdir(tmp_path)
    refused(say('reproduce', *argv), words)
    assert not files(tmp_path) and not Path('out').exists()

def test_out_must_take_files(say, few, no_training, tmp_path, monkeypatch):
    (tmp_path/'file').write_text('mine')
    refused(say('reproduce', 'mnist', '--out', tmp_path/'file'), '--out must be a folder')
    refused(say('reproduce', 'mnist', '--out', tmp_path/'file'/'below'), '--out: cannot write')
    refused(say('train', '--out', tmp_path/'file'/'below'), '--out')
    refused(say('evaluate', 'linf', '--out', tmp_path/'file'/'below'), '--out')
    def full(_): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(checkpoint.os, 'fsync', full)
    refused(say('reproduce', 'mnist', '--out', tmp_path/'full'), '--out: cannot write', 'No space left')
    refused(say('train', '--out', tmp_path/'full'/'net.safetensors'), '--out: cannot write', 'No space left')
    assert files(tmp_path) == ['file'] and (tmp_path/'file').read_text() == 'mine'

def test_disk_full_after_training(say, few, tmp_path, monkeypatch):
    "Nothing half-written, and the work is not lost"
    out, write = tmp_path/'out', reproduce._write_json
    def full(path, what):
        if path.name == 'linf-0.json': raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(path, what)
    monkeypatch.setattr(reproduce, '_write_json', full)
    argv = ['reproduce', 'mnist', '--epochs', '1', '--quiet', '--out', out]
    refused(say(*argv), 'No space left')
    assert 'baseline-0.json' in files(out) and 'linf-0.json' not in files(out) and '.linf-0/last.pt' in files(out)
    monkeypatch.setattr(reproduce, '_write_json', write)
    assert say(*argv)[0] == 0 and set(RESULTS) <= set(files(out))

def test_damaged_out(say, few, no_training, tmp_path):
    (tmp_path/'linf-0.json').write_text('{"config"')
    refused(say('reproduce', 'mnist', '--out', tmp_path), 'linf-0.json is damaged')

def test_lost_net_is_trained_again(few, tmp_path):
    first = reproduce.run('baseline', few, epochs=1, out=tmp_path, progress=False)
    for lost in ('baseline-0.safetensors', 'A-0.safetensors'):
        (tmp_path/lost).unlink()
        assert reproduce.run('baseline', few, epochs=1, out=tmp_path, progress=False)['weights'] == first['weights'] and (tmp_path/lost).is_file()

def test_ctrl_c(tmp_path, say, monkeypatch, caplog, digits):
    "A real signal ends with 130 and one line; the same command goes on"
    argv = ['reproduce', 'mnist', '--epochs', '3', '--device', 'cpu', '--out', str(tmp_path/'out')]
    with open(tmp_path/'err', 'w+') as err:
        old = signal.signal(signal.SIGINT, signal.default_int_handler)    # a child inherits it where it is ignored, as in a background job
        try: p = subprocess.Popen([*COMMAND, *argv], env=ENV, stdout=subprocess.DEVNULL, stderr=err)
        finally: signal.signal(signal.SIGINT, old)
        begun, limit = tmp_path/'out'/'.baseline-0'/'last.pt', time.time() + 120
        while not begun.is_file() and p.poll() is None and time.time() < limit: time.sleep(0.02)
        p.send_signal(signal.SIGINT)
        assert p.wait(60) == 130
        err.seek(0); said = err.read()
    assert 'Traceback' not in said and 'net 1 of 4: baseline, seed 0' in said
    assert said.splitlines()[-1] == 'robust_reproduce: stopped; the same command goes on where it was'
    assert 'table.md' not in files(tmp_path/'out')

    whole = reproduce.fit
    def only_baseline(model, data, objective, **kw):
        if repr(objective) != 'Standard()': raise KeyboardInterrupt
        torch.set_num_threads(1)
        return whole(model, data, objective, **kw)
    monkeypatch.setattr(reproduce, 'fit', only_baseline)
    monkeypatch.setattr(reproduce, 'digits', lambda *_: digits)
    caplog.set_level('INFO', 'robust_nb')
    code, _, err = say(*argv)
    assert code == 130 and ('goes on where it stopped' in caplog.text or 'read back' in caplog.text)
    assert len(json.loads((tmp_path/'out'/'baseline-0.json').read_text())['history']) == 3


# robust_train and robust_evaluate

def test_train_and_evaluate(say, few, tmp_path):
    net = tmp_path/'net.safetensors'
    code, out, _ = say('train', '--epochs', '1', '--set', 'l1', '--out', net, '--quiet')
    assert code == 0 and 'of 60 clean test images' in out and files(tmp_path) == ['net.history.json', 'net.safetensors']
    assert 'L1(0.55)' in load_net(net).about['objective']
    code, out, _ = say('evaluate', net, '--set', 'l1', '--radius', '0.5', '2', '--steps', '2', '--random-start', '--out', tmp_path/'numbers.json')
    assert code == 0 and 'L1(2.0), 2 steps' in out
    assert list(json.loads((tmp_path/'numbers.json').read_text())['accuracy']) == ['clean', 'L1(0.5), 2 steps', 'L1(2.0), 2 steps']

@pytest.mark.parametrize('other', ['{}', '[1]', '[{"epoch": 1}]', 'notes', '5'])
def test_train_overwrites_no_other_file(say, few, no_training, tmp_path, other):
    "The history has a name of its own, and what is there under it must be a history"
    (tmp_path/'net.history.json').write_text(other)
    refused(say('train', '--out', tmp_path/'net.safetensors'), '--out: ', 'net.history.json is there, and is not the history of a net')
    assert files(tmp_path) == ['net.history.json'] and (tmp_path/'net.history.json').read_text() == other

def test_train_leaves_other_json_alone(say, few, tmp_path):
    (tmp_path/'net.json').write_text('mine')
    for _ in range(2): assert say('train', '--epochs', '1', '--quiet', '--out', tmp_path/'net.safetensors')[0] == 0
    assert files(tmp_path) == ['net.history.json', 'net.json', 'net.safetensors'] and (tmp_path/'net.json').read_text() == 'mine'

SEED = str(1 << 63)
@pytest.mark.parametrize('argv, words', [
    (['train', '--seed', SEED], '--seed must be in 0 … 2^63 - 1'), (['evaluate', 'linf', '--random-start', '--seed', SEED], '--seed must be in'), (['evaluate', 'linf', '--seed', '-1'], '--seed must be in'),
    (['train', '--out', '.'], '--out must name a file, but . is a folder'), (['train', '--out', '..'], '--out must name a file'), (['train', '--out', ''], '--out must name a file'), (['evaluate', 'linf', '--out', '.'], '--out must name a file'),
    (['train', '--set', 'none', '--radius', '1'], '--radius must not be given with --set none'), (['train', '--set', 'none', '--steps', '3'], '--steps must not be given with --set none'),
    (['train', '--device', 'meta'], '--device must be one that computes'), (['evaluate', 'linf', '--device', 'meta'], '--device must be one that computes')])
def test_mistakes_name_their_option(say, no_training, tmp_path, monkeypatch, argv, words):
    monkeypatch.chdir(tmp_path)
    refused(say(*argv), words)
    assert not files(tmp_path)

def test_a_device_that_fails(say, few, monkeypatch, tmp_path):
    def fit(*args, **kw): raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB\nand much more')
    monkeypatch.setattr(cli, 'fit', fit)
    refused(say('train', '--out', tmp_path/'net.safetensors'), '--device auto failed: CUDA out of memory. Tried to allocate 2 GiB\n')
    assert not files(tmp_path)

@pytest.mark.parametrize('error, code', [(KeyboardInterrupt(), 130), (FloatingPointError('the loss is nan in epoch 1'), 2)])
def test_failed_training_leaves_the_old_files(say, few, tmp_path, monkeypatch, error, code):
    def fit(*args, **kw): raise error
    monkeypatch.setattr(cli, 'fit', fit)
    old = {'net.history.json': '[{"epoch": 1, "loss": 2.0}]', 'net.json': 'mine', 'net.safetensors': 'old'}
    for o, text in old.items(): (tmp_path/o).write_text(text)
    got, out, err = say('train', '--out', tmp_path/'net.safetensors')
    assert got == code and not out and len(err.strip().splitlines()) == 1
    assert {o: (tmp_path/o).read_text() for o in files(tmp_path)} == old

def test_images_of_another_size(say, tmp_path, no_training):
    Image = pytest.importorskip('PIL.Image')
    for part in ('train', 'test'):
        (tmp_path/part/'a').mkdir(parents=True)
        Image.new('L', (16, 16)).save(tmp_path/part/'a'/'0.png')
    for command in (['reproduce', 'mnist'], ['train'], ['evaluate', 'linf']): refused(say(*command, '--data', tmp_path), '--data must be grey images of 28×28', '1×16×16')

def test_damaged_and_foreign_files(say, tmp_path):
    from robust_nb.models import MNISTNet, save_net
    save_net(MNISTNet('paper'), tmp_path/'paper.safetensors')
    (tmp_path/'cut.safetensors').write_bytes((tmp_path/'paper.safetensors').read_bytes()[:9000])
    (tmp_path/'empty.safetensors').touch()
    for name in ('cut', 'empty'):
        refused(say('evaluate', tmp_path/f'{name}.safetensors'), name)
        refused(say('evaluate', 'linf', '--collection', tmp_path/f'{name}.safetensors'), name)
    refused(say('evaluate', tmp_path/'paper.safetensors', '--recipe', 'pixel'), '--recipe must be that of the net, paper')
    refused(say('evaluate', 'linf', '--collection', tmp_path/'paper.safetensors'), 'not a collection')
    refused(say('evaluate', tmp_path), 'there is no net')


# The processes

def test_module_and_exit_codes():
    run = lambda *argv, **env: subprocess.run([*COMMAND, *argv], env={**ENV, **env}, capture_output=True, text=True)
    r = run()
    assert r.returncode == 0 and r.stdout.startswith('usage: python -m robust_nb') and not r.stderr
    r = run('evaluate', 'nowhere')
    assert (r.returncode, r.stdout) == (2, '') and r.stderr.splitlines() == ['robust_evaluate: error: there is no net at nowhere; those that come along are baseline, linf, l2, l1']
    r = run('reproduce', '--help', PYTHONIOENCODING='ascii')    # a terminal without ℓ and ∞
    assert r.returncode == 0 and 'examples:' in r.stdout, r.stderr

@pytest.mark.parametrize('command', ['reproduce', 'train', 'evaluate'])
def test_help(say, command):
    code, out, _ = say(command, '--help')
    assert code == 0 and out.startswith(f'usage: robust_{command}') and 'examples:' in out and 'None' not in out
    for option in ('--seed', '--out', '--device', '--data', '--root'): assert option in out


# The README

README = (ROOT/'README.md').read_text(encoding='utf-8')

def test_readme_script(digits):
    "The lines of Python run as they stand, on fewer epochs and digits"
    from robust_nb.models import MNISTNet
    script, = re.findall(r'^``` ?python\n(.*?)^```$', README, re.M | re.S)
    assert 'epochs=10' in script and len([o for o in script.splitlines() if o]) <= 5
    names = dict(net=MNISTNet(), data=replace(digits, train=digits.train[:200], test=digits.test[:20]))
    exec(script.replace('epochs=10', 'epochs=1, progress=False'), names)
    assert len(names['history']) == 1

def test_readme_names_every_page():
    site = 'https://robust-nb.github.io/robust_nb'
    pages = [p.relative_to(ROOT/'nbs') for p in sorted((ROOT/'nbs').rglob('*.ipynb')) if p.name != 'index.ipynb' and not any(o[0] in '._' for o in p.relative_to(ROOT/'nbs').parts)]
    at = [README.find(f"({site}/{p.parent.as_posix()}/{re.sub(r'^[0-9]+_', '', p.stem)}.html)") for p in pages if p.parts[0] == 'library']
    assert at and -1 not in at and at == sorted(at), 'the table of pages names all of them in reading order'

def test_readme_commands_exist():
    from configparser import ConfigParser
    cfg = ConfigParser(delimiters=['=']); cfg.read(ROOT/'settings.ini', encoding='utf-8')
    scripts = {o.partition('=')[0] for o in cfg['DEFAULT']['console_scripts'].split()}
    assert set(re.findall(r'\b(robust_(?:train|evaluate|reproduce)\w*)', README)) <= scripts


def test_evaluate_does_not_overwrite_what_it_reads(tmp_path, capsys):
    net = tmp_path/"my.safetensors"
    save_net(MNISTNet(), net)
    before = net.read_bytes()
    assert cli.robust_evaluate([str(net), "--radius", "0", "--out", str(net)]) == 2
    assert "out must not be a file that is read" in capsys.readouterr().err and net.read_bytes() == before
