"""Measures how fast models are, where their time goes, and how their cost grows with the image.

compare    time, memory, parameters and multiply-adds of models side by side
scaling    cost against the number of pixels, next to the same model with softmax attention
operators  one model, operator group by operator group, against the limits of the machine
step       where a training step of a config spends its time
losses     loss curves of configs in several precisions and forms, side by side
"""

import argparse
import contextlib
import copy
import dataclasses
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch
from mmengine.config import DictAction

from mmcasvit.apis.config import load_config
from mmcasvit.apis.preflight import check_data
from mmcasvit.apis.runner import build_runner
from mmcasvit.benchmark import comparison as comparing
from mmcasvit.benchmark import losses
from mmcasvit.benchmark import operator_times as operators
from mmcasvit.benchmark import plots as reporting
from mmcasvit.benchmark import steps as stepping
from mmcasvit.benchmark.forms import FORMS
from mmcasvit.benchmark.models import CASVITS, PEERS
from mmcasvit.benchmark.published import PUBLISHED
from mmcasvit.benchmark.variants import count_variant, prepare
from mmcasvit.cli import exits_cleanly
from mmcasvit.utils import timing as measuring
from mmcasvit.utils.errors import NotApplicable, UsageError

SCALING_SIDES = [256, 384, 512, 768, 1024, 1280, 1536]


def positive(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f'expected 1 or more, got {text}')
    return number


def size(text):
    try:
        sides = tuple(int(side) for side in text.split('x'))
    except ValueError:
        sides = ()
    if len(sides) != 2 or min(sides) < 32:
        raise argparse.ArgumentTypeError(f'expected HEIGHTxWIDTH with sides of 32 or more, got {text}')
    return sides


def add_measuring_arguments(parser):
    parser.add_argument('--rounds', type=positive, default=7, help='how often each takes its turn (default: 7)')
    parser.add_argument('--warmup', type=positive, default=2, help='passes of each before (default: 2)')
    add_clock_argument(parser)
    parser.add_argument('--least-ms', type=float, default=20, help='a sample lasts at least so long (default: 20)')
    parser.add_argument(
        '--no-memory',
        dest='memory',
        action='store_false',
        help='leave out peak memory, which needs a fresh process for each on a CPU',
    )


def add_clock_argument(parser):
    parser.add_argument(
        '--cpu-time',
        action='store_true',
        help='measure processor time, which other programs of a busy machine do not lengthen; for one thread',
    )


def add_variant_arguments(parser):
    threads = torch.get_num_threads()
    parser.add_argument(
        '--forms',
        nargs='+',
        default=['eager'],
        metavar='FORM',
        help=f'of {", ".join(FORMS)}, several joined by + (default: eager)',
    )
    parser.add_argument('--precisions', nargs='+', default=['fp32'], choices=list(measuring.DTYPES))
    parser.add_argument('--devices', nargs='+', default=['cpu'], choices=['cpu', 'cuda'])
    parser.add_argument(
        '--threads', nargs='+', type=positive, default=[threads], help=f'of the CPU (default: {threads})'
    )
    parser.add_argument('--batches', nargs='+', type=positive, default=[1], metavar='N', help='images a pass')


def add_file_arguments(parser):
    parser.add_argument('--csv', metavar='FILE')
    parser.add_argument('--json', metavar='FILE', help='with every sample')
    parser.add_argument('--plot', metavar='FILE', help='picture, such as plot.png')


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)

    compare = commands.add_parser('compare', help='models side by side', formatter_class=argparse.RawTextHelpFormatter)
    compare.add_argument(
        'models',
        nargs='+',
        metavar='MODEL',
        help=f'a CAS-ViT ({", ".join(CASVITS)}),\n'
        'with arguments such as xs:with_cp=True,norm_eval=True;\n'
        f'a peer ({", ".join(PEERS)});\npeers for all of these that are installed; '
        'or a config of a detector or segmentor',
    )
    compare.add_argument(
        '--modes',
        nargs='+',
        default=['infer'],
        choices=['infer', 'train'],
        help='train: forward and backward, no optimizer',
    )
    compare.add_argument('--sizes', nargs='+', type=size, default=[(512, 512)], metavar='HxW')
    add_variant_arguments(compare)
    compare.add_argument(
        '--baseline',
        metavar='FIELD=VALUE,...',
        help='what speed-ups are over: the row that differs in these fields alone, such as\n'
        'form=eager or model=xs (default: the first form and precision, or else the first model)',
    )
    add_measuring_arguments(compare)
    add_file_arguments(compare)
    compare.add_argument('--plot-accuracy', metavar='FILE', help='published accuracy against the measured time')

    scaling = commands.add_parser('scaling', help='cost against the number of pixels')
    scaling.add_argument(
        'models',
        nargs='*',
        default=['xs', 'xs-softmax'],
        metavar='MODEL',
        help='as for compare (default: xs xs-softmax)',
    )
    scaling.add_argument(
        '--sides',
        nargs='+',
        type=positive,
        default=SCALING_SIDES,
        metavar='PIXELS',
        help=f'of square images (default: {" ".join(map(str, SCALING_SIDES))})',
    )
    scaling.add_argument(
        '--limit-s',
        type=float,
        default=10.0,
        help='leave out passes that the arithmetic alone would make longer (default: 10)',
    )
    scaling.add_argument('--form', default='eager', metavar='FORM')
    scaling.add_argument('--precision', default='fp32', choices=measuring.FLOATS)
    scaling.add_argument('--device', default='cpu', choices=['cpu', 'cuda'])
    scaling.add_argument('--threads', type=positive, default=torch.get_num_threads())
    scaling.add_argument('--mode', default='infer', choices=['infer', 'train'])
    add_measuring_arguments(scaling)
    add_file_arguments(scaling)

    groups = commands.add_parser('operators', help='one model, operator by operator')
    groups.add_argument('model', metavar='MODEL', help='as for compare')
    groups.add_argument('--size', type=size, default=(512, 512), metavar='HxW')
    groups.add_argument('--form', default='eager', metavar='FORM', help='of eager, deploy, channels_last')
    groups.add_argument('--precision', default='fp32', choices=measuring.FLOATS)
    groups.add_argument('--device', default='cpu', choices=['cpu', 'cuda'])
    groups.add_argument('--threads', type=positive, default=torch.get_num_threads())
    groups.add_argument('--batch', type=positive, default=1)
    groups.add_argument('--mode', default='infer', choices=['infer', 'train'])
    groups.add_argument('--rounds', type=positive, default=5, help='passes (default: 5)')
    add_clock_argument(groups)

    step = commands.add_parser('step', help='where a training step spends its time')
    step.add_argument('config', help='config file; its training data has to be there')
    step.add_argument('--steps', type=positive, default=20, help='how many to measure (default: 20)')
    step.add_argument('--warmup', type=positive, default=3, help='how many to leave out before (default: 3)')
    step.add_argument('--csv', metavar='FILE')
    add_config_options(step)

    curves = commands.add_parser('losses', help='loss curves in several precisions and forms')
    curves.add_argument('configs', nargs='+', metavar='CONFIG', help='their training data has to be there')
    curves.add_argument(
        '--variants',
        nargs='+',
        default=list(losses.VARIANTS),
        choices=losses.VARIANTS,
        help='of these the first is what the others are held against (default: all)',
    )
    curves.add_argument('--steps', type=positive, default=200, help='(default: 200)')
    curves.add_argument('--seed', type=int, default=0, help='of weights and data (default: 0)')
    add_config_options(curves)
    add_file_arguments(curves)
    return parser.parse_args()


def add_config_options(parser):
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='override entries of the config; data_root=DIR moves every data set',
    )


def tell(text):
    print(text, file=sys.stderr, flush=True)


def check_files(args):
    """A folder that is not there would cost the whole run."""
    for name in ('csv', 'json', 'plot', 'plot_accuracy'):
        file = getattr(args, name, None)
        if file and not Path(file).resolve().parent.is_dir():
            raise UsageError(f'--{name.replace("_", "-")}: no such folder: {Path(file).resolve().parent}')


def plan_of(args):
    return comparing.Plan(args.rounds, args.warmup, args.least_ms / 1000, args.memory, clock_of(args))


def clock_of(args):
    if not args.cpu_time:
        return time.perf_counter
    threads = args.threads if isinstance(args.threads, list) else [args.threads]
    devices = args.devices if 'devices' in args else [args.device]
    if set(threads) != {1} or set(devices) != {'cpu'}:
        raise UsageError('--cpu-time adds up what all threads compute: use it with --threads 1, on the CPU.')
    return time.process_time


def rounds_in_words(args):
    return f'{"processor time, " if args.cpu_time else ""}medians of {args.rounds} interleaved rounds'


def write_files(args, rows, **about):
    if args.csv:
        reporting.write_csv(args.csv, rows)
    if args.json:
        reporting.write_json(args.json, rows, **about)


def compare(args):
    models = list(dict.fromkeys(name for model in args.models for name in (PEERS if model == 'peers' else [model])))
    asked_for = set(args.models)
    variants = comparing.grid(
        model=models,
        mode=args.modes,
        form=args.forms,
        precision=args.precisions,
        device=args.devices,
        threads=args.threads,
        batch=args.batches,
        size=args.sizes,
    )
    variants, left_out = comparing.check_all(variants, asked_for)
    plan = plan_of(args)
    baseline = (
        comparing.parse_baseline(args.baseline, variants) if args.baseline else comparing.default_baseline(variants)
    )
    if args.plot_accuracy and not any(variant.model in PUBLISHED for variant in variants):
        raise UsageError(f'--plot-accuracy: no figures are known of these models. Known: {", ".join(PUBLISHED)}.')
    rows, more = comparing.measure(variants, plan, baseline, tell)
    left_out += more
    machine = measuring.machine(args.devices)
    write_files(args, rows, machine=machine, left_out=left_out)
    fields = [field.name for field in dataclasses.fields(comparing.Variant)]
    constant, varying = reporting.split_constant(rows, fields)
    title = f'{in_words(constant)}\n{machine}; {rounds_in_words(args)}'
    if args.plot:
        labels = [', '.join(str(row[name]) for name in varying or ['model']) for row in rows]
        reporting.plot_times(args.plot, rows, labels, title)
    if args.plot_accuracy:
        reporting.plot_accuracy(args.plot_accuracy, rows, title)
    return comparison_text(args, rows, baseline, left_out)


def in_words(constant):
    """The settings that all rows share."""
    words = dict(
        threads=lambda number: comparing.count_of(number, 'thread'), batch='batch {}'.format, size='{} pixels'.format
    )
    return ', '.join(words.get(name, str)(value) for name, value in constant.items())


def comparison_text(args, rows, baseline, left_out):
    fields = [field.name for field in dataclasses.fields(comparing.Variant)]
    constant, varying = reporting.split_constant(rows, fields)
    name = ', '.join(
        f'{"x".join(map(str, value)) if isinstance(value, tuple) else value}' for value in baseline.values()
    )
    extra = [field for field in ('library', 'outputs') if len({row[field] for row in rows}) > 1]
    table = reporting.markdown([comparing.table_row(row, [*(varying or ['model']), *extra], name) for row in rows])
    changed = [
        row for row in rows if row['deviation'] is not None and (row['form'], row['precision']) != ('eager', 'fp32')
    ]
    lines = [
        f'{in_words(constant)}; {rounds_in_words(args)} on '
        f'{measuring.machine(args.devices)}. Limits in the same rounds: {comparing.rates_in_words(rows)}.',
        '',
        table,
    ]
    if changed:
        worst = max(changed, key=lambda row: row['deviation'])
        lines += [
            '',
            f'Outputs differ from those of the eager fp32 model by {worst["deviation"]:.1g} at most '
            f'(relative, {worst["model"]} {worst["form"]} {worst["precision"]}).',
        ]
    lines += [f'\nleft out: {line}' for line in left_out]
    return '\n'.join(lines)


def scaling(args):
    wrong = [side for side in args.sides if side < 32]
    if wrong or len(set(args.sides)) < 2:
        raise UsageError('--sides: at least two different ones of 32 or more are needed.')
    variants = comparing.grid(
        model=args.models,
        mode=[args.mode],
        form=[args.form],
        precision=[args.precision],
        device=[args.device],
        threads=[args.threads],
        batch=[1],
        size=[(side, side) for side in args.sides],
    )
    variants, left_out = comparing.check_all(variants, set(args.models))
    costs = {variant: count_variant(variant) for variant in variants}
    limit = measuring.matmul_limit(args.device, args.precision)
    plan = plan_of(args)
    rate = limit.amount / measuring.Timer(limit.run, args.device, args.threads, clock=plan.clock)()
    feasible = [variant for variant in variants if costs[variant].macs / rate <= args.limit_s]
    left_out += [
        f'{variant}: its arithmetic alone takes {costs[variant].macs / rate:.0f} s'
        for variant in variants
        if variant not in feasible
    ]
    for model in args.models:
        if sum(variant.model == model for variant in feasible) < 2:
            raise UsageError(f'{model}: fewer than two sizes fit in --limit-s {args.limit_s:g}.')
    rows, more = comparing.measure(feasible, plan, dict(model=args.models[0]), tell)
    left_out += more

    quantities = {
        'multiply-adds, G': lambda row: row['macs'] / 1e9,
        'time, ms': lambda row: row['seconds'].median * 1000,
        'memory beside the weights, MiB': lambda row: row['pass_bytes'] and row['pass_bytes'] / 2**20,
    }
    curves, exponents = {}, {}
    for quantity, value in quantities.items():
        curves[quantity] = {
            model: [
                (int(row['size'].split('x')[0]) ** 2, value(row))
                for row in rows
                if row['model'] == model and value(row)
            ]
            for model in args.models
        }
        if any(len(points) < 2 for points in curves[quantity].values()):
            del curves[quantity]
            continue
        exponents[quantity] = {
            model: measuring.fit_exponent(*zip(*points)) for model, points in curves[quantity].items()
        }
    # Counted without computing, so that the exponent of the arithmetic holds for all sizes.
    counted = {
        model: [(v.size[0] ** 2, costs[v].macs / 1e9) for v in variants if v.model == model] for model in args.models
    }
    curves['multiply-adds, G'] = counted
    exponents['multiply-adds, G'] = {model: measuring.fit_exponent(*zip(*points)) for model, points in counted.items()}

    table = [
        {
            'side, pixels': side,
            **{
                f'{model}, {quantity}': dict(curves[quantity][model]).get(side**2)
                for quantity in curves
                for model in args.models
            },
        }
        for side in args.sides
    ]
    table.append(
        {
            'side, pixels': 'exponent of the pixels',
            **{
                f'{model}, {quantity}': f'{exponents[quantity][model]:.2f}'
                for quantity in curves
                for model in args.models
            },
        }
    )
    constant, _ = reporting.split_constant(rows, ['mode', 'form', 'precision', 'device', 'threads', 'batch'])
    machine = measuring.machine([args.device])
    write_files(args, rows, machine=machine, left_out=left_out, exponents=exponents)
    if args.plot:
        reporting.plot_scaling(args.plot, curves, exponents, f'{in_words(constant)}; {machine}')
    return '\n'.join(
        [
            f'{in_words(constant)}; {rounds_in_words(args)} on {machine}.',
            '',
            reporting.markdown(table),
            *(f'\nleft out: {line}' for line in left_out),
        ]
    )


def operator_groups(args):
    if any(step not in ('eager', 'deploy', 'channels_last') for step in args.form.split('+')):
        raise UsageError(f'--form {args.form}: operators can be told apart in eager, deploy and channels_last only.')
    clock = clock_of(args)
    variants, _ = comparing.check_all(
        comparing.grid(
            model=[args.model],
            mode=[args.mode],
            form=[args.form],
            precision=[args.precision],
            device=[args.device],
            threads=[args.threads],
            batch=[args.batch],
            size=[args.size],
        ),
        {args.model},
    )
    try:
        prepared = prepare(variants[0])
    except NotApplicable as reason:
        raise UsageError(f'{variants[0]}: {reason}') from reason
    product, copy = measuring.matmul_limit(args.device, args.precision), measuring.copy_limit(args.device)
    timers = [measuring.Timer(limit.run, args.device, args.threads, clock=clock) for limit in (product, copy)]
    passes, rates = [], []
    with measuring.use_threads(args.threads):
        prepared.run()
        for _ in range(args.rounds):
            prepared.run()
            passes.append(operators.time_operators(prepared.run, args.device, clock))
            rates.append([limit.amount / timer() for limit, timer in zip((product, copy), timers)])
    macs, moved = (measuring.spread(rate).median for rate in zip(*rates))
    how = f'{"processor time, " if args.cpu_time else ""}medians of {args.rounds} passes'
    return (
        f'{variants[0]}; {how} on {measuring.machine([args.device])}. Limits in the same rounds: '
        f'{macs / 1e9:.0f} GMAC/s and {moved / 1e9:.1f} GB/s.\n\n'
        + reporting.markdown(operators.operator_table(passes, macs, moved))
    )


@contextlib.contextmanager
def training_alone(cfg):
    """A runner of a config's training, without what a run does between its steps, that leaves nothing behind."""
    cfg = copy.deepcopy(cfg)
    for key in ('val_dataloader', 'val_cfg', 'val_evaluator', 'test_dataloader', 'test_cfg', 'test_evaluator'):
        cfg[key] = None
    cfg.default_hooks.checkpoint = None  # left out, it would be mmengine's own
    cfg.default_hooks.pop('visualization', None)
    work_dir = tempfile.mkdtemp(prefix='mmcasvit-benchmark-')
    cfg.launcher, cfg.work_dir, cfg.load_from, cfg.resume = 'none', work_dir, None, False
    cfg.experiment_name = cfg.visualizer.name = Path(work_dir).name  # mmengine keeps loggers and visualizers by name
    try:
        yield build_runner(cfg)
    except stepping.TrainingTooShort as error:
        raise UsageError(f'{Path(cfg.filename).name}: {error}.') from error
    finally:
        shutil.rmtree(work_dir, ignore_errors=True)


def loss_curves(args):
    recipes = {Path(file).stem: load_config(file, args.cfg_options) for file in args.configs}
    for cfg in recipes.values():
        check_data(cfg, 'train')
    curves = {}
    for name, cfg in recipes.items():
        curves[name] = {}
        for variant in args.variants:
            tell(f'{name}: {variant}')
            with training_alone(losses.variant_of(cfg, variant, args.seed)) as runner:
                curves[name][variant] = losses.record_losses(runner, args.steps)
    machine = measuring.machine(['cuda' if torch.cuda.is_available() else 'cpu'])
    rows = [
        {'recipe': name, 'variant': variant, 'step': number, 'loss': loss}
        for name, variants in curves.items()
        for variant, each in variants.items()
        for number, loss in enumerate(each, 1)
    ]
    write_files(args, rows, machine=machine)
    if args.plot:
        reporting.plot_losses(args.plot, curves, f'{args.steps} steps; {machine}')
    tables = [
        f'{name}, mean losses; {args.steps} steps on {machine}.\n\n' + reporting.markdown(losses.loss_table(variants))
        for name, variants in curves.items()
    ]
    return '\n\n'.join(tables)


def step(args):
    cfg = load_config(args.config, args.cfg_options)
    check_data(cfg, 'train')
    if cfg.get('compile'):
        raise UsageError('step: the parts of a compiled step cannot be told apart. Add --cfg-options compile=False')
    with training_alone(cfg) as runner:
        steps, order = stepping.measure_steps(runner, args.steps, args.warmup)
    table = stepping.step_table(steps, order)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    loader = cfg.train_dataloader
    if args.csv:
        reporting.write_csv(args.csv, table)
    workers, threads = (
        comparing.count_of(number, thing)
        for number, thing in [(loader.num_workers, 'worker'), (torch.get_num_threads(), 'thread')]
    )
    return (
        f'{Path(args.config).name}: {args.steps} steps of {loader.batch_size} images, {workers}, {threads}, on '
        f'{measuring.machine([device])}.\n\n' + reporting.markdown(table)
    )


@exits_cleanly
def main():
    args = parse_args()
    check_files(args)
    command = dict(compare=compare, scaling=scaling, operators=operator_groups, step=step, losses=loss_curves)[
        args.command
    ]
    with contextlib.redirect_stdout(sys.stderr):  # what libraries print, so that stdout has the tables alone
        text = command(args)
    print(text)


if __name__ == '__main__':
    main()
