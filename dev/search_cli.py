"""Search for command lines and checkpoints that end a tool in another way than SECURITY.md and the docs promise.

Hypothesis draws odd arguments, entries for ``--cfg-options`` and changes of a checkpoint, and shrinks what it finds.
Each case runs a script of ``tools/`` in a forked process, in a folder of its own, with a tiny model and a few scenes.
It must end with status 0, or with 1 or 2 and one ``error:`` line, whose details are indented. It must not print a
traceback, die, hang, take too much memory, execute what a checkpoint holds, touch files outside its folder, or succeed
without the weights that it was given.
"""

import os

os.environ.setdefault('OMP_NUM_THREADS', '1')  # threads do not survive a fork

import argparse
import ast
import contextlib
import gc
import importlib
import json
import math
import pickle
import re
import runpy
import shlex
import shutil
import socket
import sys
import tempfile
import time
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mmengine.runner.runner
import safetensors.torch
import torch
import yapf.yapflib.yapf_api
from forked import run_forked
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings, strategies
from hypothesis.configuration import set_hypothesis_home_dir
from mmengine.config import Config
from PIL import Image

from mmcasvit.cli import exits_cleanly
from mmcasvit.datasets.shapes import write_dataset
from mmcasvit.utils.errors import UsageError
from mmcasvit.utils.tables import markdown

ROOT = Path(__file__).resolve().parent.parent
LIMITS = dict(seconds=20, megabytes=2048)  # on an idle machine
SECONDS_PER_FINDING = 60  # to shrink it
# What the tools would import late.
WARM = (
    'fastapi jinja2 matplotlib.backends.backend_agg mmcasvit.report.hook mmcv.ops mmdet.apis mmseg.apis onnxscript '
    'torch._inductor torch.utils.serialization torch.utils.tensorboard uvicorn'
).split()
MAINS: dict[str, Callable[[], None]] = {}  # of the tools, once they are imported

# A model of a second and the runs that it is trained in ---------------------------------------------------------------

CHANNELS = [8, 12, 16, 24]
SMALL: dict[str, Any] = {
    'model.backbone.arch': dict(_delete_=True, depths=(1, 1, 1, 1), channels=CHANNELS),
    'model.neck.in_channels': CHANNELS,
    'model.neck.out_channels': 8,
    **{f'{split}_dataloader.num_workers': 0 for split in ('train', 'val', 'test')},
    **{f'{split}_dataloader.persistent_workers': False for split in ('train', 'val', 'test')},
    'train_dataloader.batch_size': 2,
    'default_hooks.checkpoint.interval': 1,
}
HEADS = (
    'rpn_head.in_channels rpn_head.feat_channels roi_head.bbox_head.in_channels roi_head.mask_head.in_channels '
    'roi_head.bbox_head.fc_out_channels roi_head.mask_head.conv_out_channels '
    'roi_head.bbox_roi_extractor.out_channels roi_head.mask_roi_extractor.out_channels'
).split()
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = dict(
    det=(
        'detection/mask-rcnn_casvit-xs_fpn_6e_shapes.py',
        {'train_cfg.max_epochs': 2, **{f'model.{part}': 8 for part in HEADS}},
    ),
    seg=(
        'segmentation/semantic-fpn_casvit-xs_300i_shapes.py',
        {
            'train_cfg': dict(max_iters=2, val_interval=2),
            'model.decode_head': dict(channels=8, in_channels=[8] * 4),
            'model.data_preprocessor.size': (64, 96),
        },
    ),
)
FIRST = dict(det='epoch_1.pth', seg='iter_1.pth')

# What cases are drawn from --------------------------------------------------------------------------------------------

CODE = "code = __import__('os').mkdir(__import__('os').environ['TRACE'])\n"
FILE = '../beside/best_epoch_9.pth'
VALUES = {
    **dict(none=None, minus=-1, zero=0, two=2, large=10**6, huge=2**70, half=0.5, nan=math.nan, infinite=math.inf),
    **dict(empty='', text='x', code=CODE, file=FILE, files=[FILE], folder='../beside', true=True, list=[], dict={}),
    **dict(numbers=[1, -2], pair=(1, 'x'), nested={'a': {'b': [{}]}}, bytes=b'x', tensor=torch.ones(3)),
    **dict(scalar=torch.tensor(2.0)),
}
# Entries of a checkpoint; > leads into one.
PLACES = (
    'state_dict meta meta>config meta>cfg meta>epoch meta>iter meta>seed meta>experiment_name meta>time meta>CLASSES '
    'meta>dataset_meta meta>dataset_meta>classes meta>dataset_meta>palette message_hub message_hub>runtime_info '
    'message_hub>log_scalars message_hub>log_scalars>train/loss message_hub>resumed_keys '
    'message_hub>resumed_keys>best_ckpt message_hub>resumed_keys>train/loss message_hub>runtime_info>best_ckpt '
    'message_hub>runtime_info>best_score message_hub>runtime_info>last_ckpt message_hub>runtime_info>keep_ckpt_ids '
    'message_hub>runtime_info>iter message_hub>runtime_info>epoch message_hub>runtime_info>data_seed optimizer '
    'optimizer>state optimizer>state>0 optimizer>state>0>exp_avg optimizer>state>0>step optimizer>param_groups '
    'optimizer>param_groups>0 optimizer>param_groups>0>lr optimizer>param_groups>0>params '
    'optimizer>param_groups>0>betas param_schedulers param_schedulers>0 param_schedulers>0>last_step gradients '
    'ema_state_dict model model_ema unused loss_scaler'
).split()
HOW = (
    'drop rename float64 float16 bfloat16 int8 bool complex64 quantized sparse meta nan infinite shorter empty longer '
    'flat expanded nested number text none array parameter'
).split()
WRAPS = ('model', 'model_ema', 'module', 'nested', 'bare', 'list', 'prefix', 'extra', 'number keys', 'only weights')
HEADERS = ('', '5', '[1]', '{', '[' * 100_000, '{"epoch": "x"}', '{"dataset_meta": 5}', '{"a": NaN, "a": "\\ud800"}',
           '{"dataset_meta": {"classes": 3}}', json.dumps(dict(config=CODE)))  # fmt: skip
KINDS = 'append text empty folder fifo link absent members pickle attack legacy legacy_attack'
DAMAGE = (
    *((kind,) for kind in KINDS.split()),
    *(('cut', part) for part in (0.1, 0.5, 0.99)),
    *(('flip', part) for part in (0.001, 0.2, 0.4, 0.6, 0.8, 0.999)),
    *(('safetensors', header) for header in HEADERS),
    *(('header', size) for size in (0, 7, 2**40, 2**63)),
)
POINTERS = ('', '\0\udcff', 'no.pth', '../beside/best_epoch_9.pth', '../beside', '/dev/zero', 'a\nb', 'x' * 5000, '.')
WORDS = ('', ' a b', "'", *'-1 0 1 7 2.5 1e30 nan None True x [] () (1,2) [x {}'.split())
PATHS = ('', 'a b', '\udcff', 'a\nb', 'x' * 300, *(
    '. no ../in ../in/det.py ../in/seg.pth ../in/shapes ../beside/note.txt - ~ /dev/null fifo BAD.pth http://[ '
    's3://a/b http://127.0.0.1:9/x.pth'
).split())  # fmt: skip
OUTPUTS = ('', 'x' * 300, '\udcff.pth', *(
    'new new.pth new.safetensors new.png new.json new.pkl new.pt new.onnx a/b.pth BAD.pth ü.pth fifo ../in/det.pth '
    '../in/det.py ../beside/note.txt'
).split())  # fmt: skip
NUMBERS = ('', *'0 -1 1 2 33 64 99999 999999999999 2.5 nan inf 1e400 x'.split())


class Tool(NamedTuple):
    """How a script is called: its share of the cases, its usual arguments, and its options with odd values."""

    share: int
    usual: str
    options: Mapping[str, Sequence[str] | None]  # None for a flag
    config_options: bool = True


LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi', 'x')
RUN = {'--work-dir': OUTPUTS, '--launcher': LAUNCHERS, '--local_rank': NUMBERS, '--report': None}
IMAGES = '../in/shapes/coco/val2017'
TOOLS = dict(
    train=Tool(8, 'CONFIG --work-dir run', {
        **RUN, '--pretrained': PATHS, '--amp': None, '--resume': (*PATHS, 'auto'), '--auto-scale-lr': None}),
    test=Tool(5, 'CONFIG BAD.pth --work-dir run', {
        **RUN, '--out': OUTPUTS, '--show-dir': OUTPUTS, '--wait-time': NUMBERS, '--tta': None, '--deploy': None,
        '--exported': PATHS}),
    infer=Tool(3, f'{IMAGES} CONFIG BAD.pth --out-dir out --device cpu', {
        '--out-dir': OUTPUTS, '--score-thr': NUMBERS, '--device': ('cpu', 'cuda:7', 'meta', 'x', ''),
        '--batch-size': NUMBERS, '--deploy': None, '--force': None, '--exported': PATHS, '--tile': NUMBERS,
        '--overlap': NUMBERS, '--max-frames': NUMBERS, '--lines': None, '--part-size': NUMBERS, '--resume': None,
        '--merge': None, '--launcher': LAUNCHERS}, False),
    convert_weights=Tool(3, 'BAD.pth new.pth --config CONFIG', {
        '--config': PATHS, '--reverse': None, '--check': None, '--ema': None}, False),
    check_dataset=Tool(2, 'CONFIG --workers 1', {
        '--splits': ('train', 'val', 'x', ''), '--workers': ('0', '-1', '2', 'x', '2.5'), '--limit': NUMBERS,
        '--examples': NUMBERS, '--sheet': OUTPUTS, '--json': OUTPUTS}),
    export=Tool(2, 'CONFIG BAD.pth --format torchscript --size 64 64 --what backbone --count 1', {
        '--format': 'onnx openvino torchscript pt2 executorch coreml x'.split(), '--what': ('model', 'x'),
        '--out': OUTPUTS, '--size': NUMBERS, '--dynamic': ('batch', 'size', 'x'), '--argmax': None, '--images': PATHS,
        '--precision': ('fp16', 'bf16', 'int8', 'x'), '--preprocess': ('rgb', 'x'), '--resize': None,
        '--form': ('deploy', 'plain', 'x'), '--count': NUMBERS, '--calibration': NUMBERS, '--tolerance': NUMBERS,
        '--threads': NUMBERS}),
    serve=Tool(1, 'MODEL CONFIG --port 0', {
        '--host': ('', 'x y', '999.1.1.1', '::1', '127.0.0.1', '\udcff'), '--port': NUMBERS, '--max-batch': NUMBERS,
        '--max-delay-ms': NUMBERS, '--max-waiting': NUMBERS, '--max-bytes': NUMBERS, '--max-pixels': NUMBERS,
        '--timeout': NUMBERS, '--threads': NUMBERS}),
    make_dataset=Tool(1, '--out-dir data --train 1 --val 1', {
        '--out-dir': (*OUTPUTS, '../in/shapes', '../beside'), '--train': ('0', '-1', '1', 'x'),
        '--val': ('0', '1', '2.5'), '--size': ('31', '32', '64 96', '-1 64', 'x'), '--seed': NUMBERS}, False),
)  # fmt: skip
# How a training may start from the checkpoint.
STARTS = ('', '--resume', '--resume auto', '--resume BAD.pth', '--pretrained BAD.pth', 'load_from=BAD.pth')


class Case(NamedTuple):
    """A command line, and the checkpoint that it is about: literals only, so that a case can be repeated."""

    tool: str
    arguments: tuple[str, ...]
    options: tuple[str, ...]  # --cfg-options
    framework: str
    changes: tuple[tuple, ...]  # of the checkpoint's content: (kind, what, how)
    damage: tuple  # to its file
    pointer: str | None  # what last_checkpoint holds


@strategies.composite
def cases(draw, keys: dict[str, list[str]]) -> Case:
    """Draw a case; ``keys`` are the entries of the configs."""

    def pick(values):
        return draw(strategies.sampled_from(list(values)))

    def several(make, most):
        return [make() for _ in range(draw(strategies.integers(1, most)))]

    def option():
        flag = pick(known.options)
        values = known.options[flag]
        return [flag] if values is None else [flag, *pick(values).split(' ')]

    def entry():
        key = pick(keys[framework]) + pick(['', '', '', '', 'x', '.x'])
        return pick([f'{key}={pick(WORDS)}'] * 9 + [key, f'data_root={pick(PATHS)}', f'work_dir={pick(OUTPUTS)}'])

    def content():
        how = pick(['weights', 'weights', 'set', 'set', 'set', 'wrap'])
        if how == 'set':
            return 'set', pick(PLACES), pick([*VALUES, 'remove'])
        return ('wrap', pick(WRAPS), '') if how == 'wrap' else ('weights', pick([-1, 0, 3, 40, 77, 121]), pick(HOW))

    tool = pick([name for name, tool in TOOLS.items() for _ in range(tool.share)])
    known, framework = TOOLS[tool], pick(CONFIGS)
    arguments, options, changes, damage, pointer = known.usual.split(), [], [], (), None
    about_file = tool not in ('serve', 'check_dataset', 'make_dataset') and draw(strategies.booleans())
    start = pick(STARTS[1:] if about_file else STARTS[:1] * 3 + STARTS).split() if tool == 'train' else []
    (options if start and '=' in start[0] else arguments).extend(start)
    if about_file:
        damage = pick(DAMAGE) if pick([False, False, True]) else ()
        changes = several(content, 3) if not damage or pick([False, False, True]) else []
        pointer = pick([None, None, *POINTERS]) if '--resume' in start else None
    else:
        if draw(strategies.booleans()):
            arguments += [word for words in several(option, 3) for word in words]
        else:
            options += several(entry, 2) if known.config_options else []
        if pick([False] * 7 + [True]) and arguments:  # another first, second or third argument, or one fewer
            arguments[draw(strategies.integers(0, min(2, len(arguments) - 1)))] = pick(PATHS)
    return Case(tool, tuple(arguments), tuple(options), framework, tuple(changes), damage, pointer)


# The checkpoint of a case ---------------------------------------------------------------------------------------------


class Attack:
    """A pickle that leaves a trace when it is executed."""

    def __reduce__(self):
        return os.mkdir, (os.environ['TRACE'],)


def replaced(tensor: torch.Tensor, how: str) -> Any:
    """Return what a tensor of a checkpoint becomes."""
    flat = tensor.flatten()
    if isinstance(kind := getattr(torch, how, None), torch.dtype):
        return tensor.to(kind)
    made = dict(
        array=tensor.numpy, empty=lambda: flat[:0], expanded=lambda: flat[:1].expand(tensor.shape or 2),
        flat=lambda: flat, infinite=lambda: tensor + math.inf, longer=lambda: torch.cat([flat, flat]),
        meta=lambda: tensor.to('meta'), nan=lambda: tensor * math.nan, nested=lambda: {'x': tensor},
        none=lambda: None, number=lambda: 3.0, parameter=lambda: torch.nn.Parameter(flat.float()),
        quantized=lambda: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
        shorter=lambda: tensor[:-1] if tensor.dim() else flat, sparse=tensor.to_sparse, text=lambda: 'x',
    )  # fmt: skip
    return made[how]()


def change(content: Any, kind: str, what: Any, how: str) -> Any:
    """Change the content of a checkpoint, if it still has the part that is to change."""
    weights = content.get('state_dict') if isinstance(content, dict) else None
    if kind == 'set' and isinstance(content, dict):
        *way, last = [int(part) if part.isdigit() else part for part in what.split('>')]
        with contextlib.suppress(KeyError, IndexError, TypeError):
            part = content
            for step in way:
                part = part[step]
            if how == 'remove':
                del part[last]
            else:
                part[last] = VALUES[how]
    elif kind == 'weights' and isinstance(weights, dict) and weights:
        for key in list(weights) if what == -1 else [list(weights)[what % len(weights)]]:
            value = weights.pop(key)
            if how != 'drop':
                same = how == 'rename' or not isinstance(value, torch.Tensor)
                weights[f'{key}x' if how == 'rename' else key] = value if same else replaced(value, how)
    elif kind == 'wrap' and isinstance(weights, dict):
        rest = {key: part for key, part in content.items() if key != 'state_dict'}
        wrapped = {
            **{key: rest | {key: weights} for key in ('model', 'model_ema', 'module')},
            'bare': weights, 'list': [content], 'only weights': dict(state_dict=weights),
            'nested': rest | dict(state_dict=dict(state_dict=weights)),
            'extra': rest | dict(state_dict=weights | {'x.weight': torch.ones(2)}),
            'number keys': rest | dict(state_dict=dict(enumerate(weights.values()))),
            'prefix': rest | dict(state_dict={f'module.{key}': value for key, value in weights.items()}),
        }  # fmt: skip
        return wrapped[what]
    return content


def write_damaged(content: Any, file: Path, kind: str, amount: Any, source: Path) -> None:
    """Write a checkpoint, and damage the file."""
    if kind in ('folder', 'fifo', 'link'):
        dict(folder=file.mkdir, fifo=lambda: os.mkfifo(file), link=lambda: file.symlink_to(source))[kind]()
    elif kind in ('text', 'empty', 'pickle', 'header'):
        header = (amount or 0).to_bytes(8, 'little') + b'{"x": 1'
        file.write_bytes(dict(text=b'weights', empty=b'', pickle=pickle.dumps(Attack()), header=header)[kind])
    elif kind == 'members':
        with zipfile.ZipFile(file, 'w') as archive:
            archive.writestr('../../beside/note.txt', 'x')
            archive.writestr('archive/data.pkl', pickle.dumps(Attack()))
    elif kind == 'safetensors':
        ordinary = {key: value.contiguous() for key, value in torch.load(source)['state_dict'].items()}
        file.write_bytes(safetensors.torch.save(ordinary, dict(format='pt', meta=amount)))
    elif kind != 'absent':
        bomb = dict(attack=Attack()) if 'attack' in kind and isinstance(content, dict) else {}
        torch.save(content | bomb if bomb else content, file, _use_new_zipfile_serialization='legacy' not in kind)
        raw = bytearray(file.read_bytes())
        if kind == 'flip':
            raw[int(amount * len(raw))] ^= 0xFF
        file.write_bytes(raw[: int(amount * len(raw))] if kind == 'cut' else raw + b'x' * 99 * (kind == 'append'))


def fits(content: Any, wanted: dict[str, torch.Tensor], only: str) -> bool:
    """Return whether a checkpoint holds all weights, or those with a prefix, as tensors that can be copied."""

    def usable(value, like):
        plain = isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_quantized
        return plain and not value.is_meta and not value.is_complex() and value.shape == like.shape

    wanted = {key: value for key, value in wanted.items() if value.dim() and key.startswith(only)}
    parts = [content, *(content.get(key) for key in ('state_dict', 'model', 'model_ema'))]
    found = [{str(key).removeprefix('module.'): part[key] for key in part} for part in parts if isinstance(part, dict)]
    return any(all(usable(given.get(key), value) for key, value in wanted.items()) for given in found)


# Running a case and judging how it ended ------------------------------------------------------------------------------


def must_refuse(case: Case, folder: Path) -> bool:
    """Write the checkpoint of a case to its folder, and return whether the tool cannot succeed with it."""
    words = {*case.arguments, *case.options}
    if not {'BAD.pth', '--resume', 'load_from=BAD.pth'} & words:
        return False
    source = folder / f'../in/{case.framework}.pth'
    content = torch.load(source)
    wanted = dict(content['state_dict'])
    for part in case.changes:
        with contextlib.suppress(RuntimeError, TypeError):  # such as a quantized counter
            content = change(content, *part)
    kind, amount = (*case.damage, '', None)[:2]
    file = folder / ('BAD.safetensors' if kind in ('safetensors', 'header') else 'BAD.pth')
    write_damaged(content, file, kind, amount, source.resolve())
    if '--resume' in words:
        (folder / 'run').mkdir()
        if file.is_file():
            shutil.copy(file, folder / 'run' / FIRST[case.framework])
        if case.pointer is not None:
            (folder / 'run/last_checkpoint').write_text(case.pointer, errors='surrogateescape')
    if case.pointer is not None or kind in ('link', 'safetensors', 'legacy') or not (case.changes or case.damage):
        return False
    if kind == 'flip':
        with contextlib.suppress(Exception):
            read = torch.load(file)['state_dict']
            return any(not torch.equal(read[key], value) for key, value in content['state_dict'].items())
    if kind not in ('', 'append', 'flip'):
        return '--resume' not in words or 'BAD.pth' in words  # otherwise there may be nothing to resume
    only = 'backbone.' if {'--pretrained', 'load_from=BAD.pth'} & words else ''
    return not isinstance(content, dict) or not fits(content, wanted, only)


def run_tool(case: Case, folder: Path) -> None:
    """Run a case in this process, which ends with it."""
    os.chdir(folder)
    sys.stdout, sys.stderr = (
        open(1, 'w', closefd=False),
        open(folder / '../stderr.txt', 'w', 1, errors='backslashreplace'),
    )
    os.dup2(sys.stderr.fileno(), 2)
    torch.set_num_threads(1)
    os.mkfifo('fifo')
    refuse = must_refuse(case, folder)
    names: dict[str, str] = dict(CONFIG=f'../in/{case.framework}.py', MODEL=f'../in/{case.framework}.pt')
    if Path('BAD.safetensors').exists():
        names |= {'BAD.pth': 'BAD.safetensors', 'load_from=BAD.pth': 'load_from=BAD.safetensors'}
    words = [*case.arguments, *(['--cfg-options', *case.options] if case.options else [])]
    words = [names.get(word, word) for word in words]
    print(shlex.join([f'tools/{case.tool}.py', *words]).encode(errors='backslashreplace').decode(), flush=True)
    sys.argv = [f'{case.tool}.py', *words]
    socket.socket.listen = lambda *_: sys.exit(0)  # type: ignore[method-assign]  # the address has been taken, and that is enough
    try:
        MAINS[case.tool]()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        if end.code:
            raise
    if refuse:
        raise AssertionError('it ended with status 0 without the weights that it was given')


def state_of(base: Path) -> dict[str, tuple]:
    """Return what stands in the folders that a case must leave alone."""
    paths = [
        path for part in base.iterdir() if part.name not in ('case', 'stderr.txt') for path in (part, *part.rglob('*'))
    ]
    found = {str(path): path.lstat() for path in paths}
    return {path: (status.st_mtime_ns, status.st_size, status.st_ino) for path, status in found.items()}


def judge(case: Case, base: Path) -> tuple[str, str]:
    """Run a case and return what is wrong with how it ended, if anything, and what it printed."""
    shutil.rmtree(base / 'case', ignore_errors=True)
    (base / 'case').mkdir()
    before = state_of(base)
    busy = max(1, os.getloadavg()[0] / len(os.sched_getaffinity(0)))
    end = run_forked(run_tool, case, base / 'case', seconds=busy * LIMITS['seconds'], megabytes=LIMITS['megabytes'])
    errors = (base / 'stderr.txt').read_text(errors='replace')
    after, printed = state_of(base), f'{end.output}\n{errors}'
    touched = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    if touched:
        shutil.rmtree(base / 'executed', ignore_errors=True)
        return ('code was executed' if str(base / 'executed') in touched else f'touched {touched[0]}'), printed
    if end.exceeded or end.status < 0:
        return f'exceeded {end.exceeded}' if end.exceeded else f'signal {-end.status}', printed
    if (start := errors.rfind('Traceback (most recent call last)')) >= 0:
        frames = re.findall(r'File "(?:.*/)?([^/"]+)", line \d+, in (\S+)', errors[start:])
        kind = re.findall(r'^(\w[\w.]*(?:Error|Exception|Interrupt|Exit|[a-z]))(?::|$)', errors[start:], re.MULTILINE)
        return f'{(kind or ["?"])[-1]} in {" ".join((frames or [("?",)])[-1])}', printed
    if end.status not in (0, 1, 2, 130):
        return f'status {end.status}', printed
    reason = re.search(r'^(error: |usage: .*?^\S+: error: )(.*)', errors, re.MULTILINE | re.DOTALL)
    if end.status and not reason and (case.tool, end.status) != ('check_dataset', 1):
        return 'no reason given', printed
    own = end.status and reason and reason[1] == 'error: '  # argparse quotes line breaks of an argument as they are
    if own and any(line[:1] not in (' ', '') for line in reason[2].splitlines()[1:]):
        return 'a reason of several lines', printed
    return '', printed


# The search -----------------------------------------------------------------------------------------------------------


def prepare(base: Path) -> dict[str, list[str]]:
    """Write data, configs, checkpoints and exported files to ``base/in``, and return the entries of the configs."""
    os.environ |= {
        'TRACE': str(base / 'executed'),
        'TORCH_HOME': str(base / 'case/hub'),
        'MPLCONFIGDIR': str(base / 'in'),
    }
    (base / 'in').mkdir()
    (base / 'beside').mkdir()
    for name in ('best_epoch_9.pth', 'epoch_9.pth', 'note.txt'):
        (base / 'beside' / name).write_text('not part of any case')
    write_dataset(base / 'in/shapes', train=2, val=1, seed=3, height=64, width=96)
    keys = {}
    for name, (file, more) in CONFIGS.items():
        cfg = Config.fromfile(ROOT / 'configs' / file, import_custom_modules=False)
        cfg.merge_from_dict({**SMALL, **more})
        content = {key: part for key, part in cfg.to_dict().items() if not key.startswith('shapes')}  # other names
        content = json.loads(json.dumps(content).replace('data/shapes/', f'{base}/in/shapes/'))
        (base / f'in/{name}.py').write_text(''.join(f'{key} = {part!r}\n' for key, part in content.items()))
        keys[name] = sorted(entries(content))
        training = Case('train', tuple(TOOLS['train'].usual.split()), (), name, (), (), None)
        exporting = Case(
            'export', (*TOOLS['export'].usual.split(), '--what', 'model', '--out', f'{name}.pt'), (), name, (), (), None
        )
        for case, made, target in (
            (training, f'run/{FIRST[name]}', f'{name}.pth'),
            (exporting, f'{name}.pt', f'{name}.pt'),
        ):
            found, printed = judge(case, base)
            if found or not (base / 'case' / made).is_file():
                raise UsageError(f'the tiny {name} could not be made ({found}): {printed[-2000:]}')
            shutil.copy(base / 'case' / made, base / 'in' / target)
    return keys


def entries(part: Any, prefix: str = '') -> list[str]:
    """Return the keys of a config, as ``--cfg-options`` takes them."""
    items = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
    if isinstance(part, list) and not all(isinstance(value, dict) for value in part):
        return []  # mmengine only reaches into lists of dicts
    return [key for name, value in items for key in (f'{prefix}{name}', *entries(value, f'{prefix}{name}.'))]


class Found(Exception):
    """A case that breaks a promise; each kind of finding is a class of its own, which Hypothesis then shrinks."""


class Search:
    """Cases, run once each, and what was found.

    Attributes:
        counts: Number of cases by tool and ending.
        smallest: The smallest case of each finding, and what it printed.
    """

    def __init__(self, base: Path):
        self.base = base
        self.counts: dict[str, Counter] = defaultdict(Counter)
        self.smallest: dict[str, tuple[Case, str]] = {}
        self._seen: dict[Case, str] = {}
        self._spent: Counter = Counter()  # seconds by finding
        self._enough = False  # shrinking
        self._kinds: dict[str, type] = {}

    def run(self, case: Case) -> None:
        """Run a case, if it is new.

        Raises:
            Found: Something is wrong, and a smaller case of it is wanted.
        """
        if case not in self._seen:
            if self._enough:
                return
            began = time.monotonic()
            found, printed = judge(case, self.base)
            found = f'{case.tool}: {found}' if found else ''
            refused = 'refused' if re.search('^error: |: error: ', printed, re.MULTILINE) else 'ended well'
            self.counts[case.tool]['findings' if found else refused] += 1
            if found and (found not in self.smallest or len(repr(case)) < len(repr(self.smallest[found][0]))):
                self.smallest[found] = case, printed
                print(f'{len(self._seen)}: {found} in {tuple(case)}', file=sys.stderr)
            self._seen[case] = found if self._spent[found] < SECONDS_PER_FINDING else ''
            self._spent[found] += time.monotonic() - began
            self._enough = bool(self._seen[case]) and self._spent[found] >= SECONDS_PER_FINDING
            if len(self._seen) % 100 == 0:
                print(f'{len(self._seen)} cases', file=sys.stderr)
        if found := self._seen[case]:
            raise self._kinds.setdefault(found, type('Found', (Found,), {}))(found)

    def search(self, number: int, first_seed: int, strategy) -> None:
        """Run so many cases. Hypothesis ends soon after a finding, and is then started again."""

        def one(case):
            if len(self._seen) < number or case in self._seen:
                self.run(case)

        for turn in range(number):
            if (left := number - len(self._seen)) > 0:
                options = settings(
                    max_examples=left + 50,  # some are drawn twice
                    database=None,
                    deadline=None,
                    verbosity=Verbosity.quiet,
                    phases=(Phase.generate, Phase.shrink),
                    suppress_health_check=list(HealthCheck),
                )
                try:
                    seed(first_seed + turn)(options(given(strategy)(one)))()
                except Exception as error:
                    if not isinstance(error, Found) and not hasattr(error, 'exceptions'):  # several are a group
                        raise
                # What was found is only counted from now on.
                self._enough, self._seen = False, dict.fromkeys(self._seen, '')
                self._spent.update(dict.fromkeys(self.smallest, SECONDS_PER_FINDING))

    def table(self) -> str:
        """Return the counts, one row per tool."""
        ends = ('ended well', 'refused', 'findings')
        rows: list[dict[str, Any]] = [
            dict(tool=tool, cases=sum(counts.values()), **{end: counts[end] for end in ends})
            for tool, counts in self.counts.items()
        ]
        return markdown([*rows, dict(tool='all', **{key: sum(row[key] for row in rows) for key in ('cases', *ends)})])


def parse_args(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--cases', type=int, default=1000, help='number of cases (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='seed of the cases (default: %(default)s)')
    parser.add_argument('--repeat', metavar='CASE', help='run one case, as the search prints it, and show its output')
    return parser.parse_args(arguments)


@exits_cleanly
def main():
    args = parse_args()
    if args.cases < 1:
        raise UsageError('--cases must be at least 1.')
    warm_up()
    with tempfile.TemporaryDirectory() as folder:
        set_hypothesis_home_dir(Path(folder, 'hypothesis'))  # instead of the current folder
        keys = prepare(base := Path(folder).resolve())
        if args.repeat:
            found, printed = judge(Case(*ast.literal_eval(args.repeat)), base)
            print(printed, f'\n{found or "nothing found"}')
            sys.exit(1 if found else 0)
        search = Search(base)
        search.search(args.cases, args.seed, cases(keys))
    for found, (case, printed) in sorted(search.smallest.items()):
        print(f'{found}\n  {printed.splitlines()[0]}\n  --repeat {shlex.quote(repr(tuple(case)))}')
        print('\n'.join(f'    {line[:300]}' for line in printed.splitlines()[-4:]))
    print(search.table())
    sys.exit(1 if search.smallest else 0)


def warm_up() -> None:
    """Import what the tools import, once, and spare each of them what takes seconds and changes nothing here."""
    for name in TOOLS:
        MAINS[name] = runpy.run_path(str(ROOT / f'tools/{name}.py'))['main']
    for name in WARM:
        with contextlib.suppress(ImportError, RuntimeError):
            importlib.import_module(name)
    for scope in ('mmdet', 'mmseg'):
        importlib.import_module(f'{scope}.utils').register_all_modules(init_default_scope=False)
    Image.init()
    mmengine.runner.runner.collect_env = dict
    yapf.yapflib.yapf_api.FormatCode = lambda text, **_: (text, True)
    gc.collect()
    gc.freeze()  # otherwise each collection in a fork copies all of this


if __name__ == '__main__':
    main()
