"""Measure how fast models are, where their time goes, and how their cost grows with the image.

compare    time, memory, parameters and multiply-adds of models side by side
scaling    cost against the number of pixels, next to the same model with softmax attention
operators  one model by groups of operators, next to the limits of the machine
mmcv-ops   operators of mmcasvit next to the compiled ones of mmcv
step       time of a training step of a config by its parts
fast       training steps of configs, plain and with --fast of tools/train.py
memory     memory of a training step of a config, before a run
pipeline   time of a prediction by its parts, from the image file to the drawing
coco-eval  COCO's evaluation by pycocotools and faster-coco-eval
losses     loss curves of configs in several precisions and forms
"""

import argparse
import contextlib
import sys
import time
from pathlib import Path

import torch

from mmcasvit.apis.config import load_config
from mmcasvit.apis.inference import check_options
from mmcasvit.apis.preflight import check_data
from mmcasvit.benchmark import losses, plots
from mmcasvit.benchmark.coco_eval import evaluate_both
from mmcasvit.benchmark.comparison import Plan, measure
from mmcasvit.benchmark.fast_steps import measure_fast
from mmcasvit.benchmark.forms import FORMS
from mmcasvit.benchmark.mmcv_ops import mmcv_ops_text
from mmcasvit.benchmark.models import CASVITS
from mmcasvit.benchmark.operator_times import operators_text
from mmcasvit.benchmark.peers import PEERS, WHOLE_PEERS
from mmcasvit.benchmark.pipeline import ORDER, measure_pipeline, pipeline_in_words
from mmcasvit.benchmark.preparation import count_variant
from mmcasvit.benchmark.published import PUBLISHED, margins
from mmcasvit.benchmark.scaling import curves_of, fit_exponents, scaling_table, split_feasible
from mmcasvit.benchmark.step_memory import TrainingStep, memory_in_words, memory_rows
from mmcasvit.benchmark.steps import measure_steps, step_table
from mmcasvit.benchmark.summary import comparison_text
from mmcasvit.benchmark.training import training_runner
from mmcasvit.benchmark.variants import FIELDS, Variant, check_all, default_baseline, grid, parse_baseline
from mmcasvit.cli import add_config_options, add_trust_argument, at_least_one, exits_cleanly
from mmcasvit.engine.hooks.speed import keep_freed_memory
from mmcasvit.predict.images import READERS
from mmcasvit.predict.sources import find_sources
from mmcasvit.utils.errors import UsageError
from mmcasvit.utils.images import check_images
from mmcasvit.utils.tables import count_of, markdown, settings_in_words, split_constant, write_csv, write_json
from mmcasvit.utils.timing import DTYPES, FLOATS, machine

DEVICES, MODES = ('cpu', 'cuda'), ('infer', 'train')
SIDES = [256, 384, 512, 768, 1024, 1280, 1536]


def size(text):
    try:
        sides = tuple(int(side) for side in text.split('x'))
    except ValueError:
        sides = ()
    if len(sides) != 2 or min(sides) < 32:
        raise argparse.ArgumentTypeError(f'expected HEIGHTxWIDTH with sides of 32 or more, got {text}')
    return sides


def add_variant_arguments(parser):
    parser.add_argument('--form', default='eager', metavar='FORM', help='form of the model (default: eager)')
    parser.add_argument('--precision', default='fp32', choices=FLOATS)
    parser.add_argument('--device', default='cpu', choices=DEVICES)
    parser.add_argument('--threads', type=at_least_one, default=torch.get_num_threads())
    parser.add_argument('--mode', default='infer', choices=MODES)


def add_rounds_arguments(parser, rounds):
    parser.add_argument('--rounds', type=at_least_one, default=rounds, help=f'number of rounds (default: {rounds})')
    parser.add_argument(
        '--cpu-time',
        action='store_true',
        help='measure processor time, which other programs do not lengthen; needs --threads 1 and the CPU',
    )


def add_measuring_arguments(parser):
    add_rounds_arguments(parser, 7)
    parser.add_argument('--warmup', type=at_least_one, default=2, help='passes before the first round (default: 2)')
    parser.add_argument('--least-ms', type=float, default=20, help='minimum length of a sample (default: 20)')
    parser.add_argument(
        '--no-memory',
        dest='memory',
        action='store_false',
        help='skip peak memory, which takes a fresh process per variant on a CPU',
    )


def add_file_arguments(parser):
    parser.add_argument('--csv', metavar='FILE', help='write the rows as CSV')
    parser.add_argument('--json', metavar='FILE', help='write the rows with every sample as JSON')
    parser.add_argument('--plot', metavar='FILE', help='write a figure, such as plot.png')


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='run', required=True)

    def add_command(run, name, text):
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        return command

    command = add_command(compare, 'compare', 'Compare models side by side.')
    command.add_argument(
        'models',
        nargs='+',
        metavar='MODEL',
        help=f'a CAS-ViT ({", ".join(CASVITS)}), with arguments such as xs:with_cp=True,norm_eval=True; a peer '
        f'({", ".join(PEERS)}); peers for all of these that are installed; a config of a detector or segmentor, '
        'such as mmdet::yolox/yolox_tiny_8xb8-300e_coco.py; or detectors or segmentors for fast ones of mmdet or mmseg',
    )
    command.add_argument(
        '--modes', nargs='+', default=['infer'], choices=MODES, help='train: forward and backward pass, no optimizer'
    )
    command.add_argument('--sizes', nargs='+', type=size, default=[(512, 512)], metavar='HxW')
    command.add_argument(
        '--forms',
        nargs='+',
        default=['eager'],
        metavar='FORM',
        help=f'of {", ".join(FORMS)}, or several joined by + (default: eager)',
    )
    command.add_argument('--precisions', nargs='+', default=['fp32'], choices=list(DTYPES))
    command.add_argument('--devices', nargs='+', default=['cpu'], choices=DEVICES)
    threads = torch.get_num_threads()
    command.add_argument('--threads', nargs='+', type=at_least_one, default=[threads], help=f'(default: {threads})')
    command.add_argument('--batches', nargs='+', type=at_least_one, default=[1], metavar='N', help='images per pass')
    command.add_argument(
        '--baseline',
        metavar='FIELD=VALUE,...',
        help='baseline of speed-ups: the row that differs only in these fields, such as form=eager or model=xs '
        '(default: the first form and precision, or the first model if there is only one of each)',
    )
    add_measuring_arguments(command)
    add_file_arguments(command)
    command.add_argument('--plot-accuracy', metavar='FILE', help='plot published accuracy against measured time')

    command = add_command(scaling, 'scaling', 'Measure cost against the number of pixels.')
    command.add_argument(
        'models', nargs='*', default=['xs', 'xs-softmax'], metavar='MODEL', help='see compare (default: xs xs-softmax)'
    )
    command.add_argument(
        '--sides',
        nargs='+',
        type=at_least_one,
        default=SIDES,
        metavar='PIXELS',
        help=f'sides of square images (default: {" ".join(map(str, SIDES))})',
    )
    command.add_argument(
        '--limit-s', type=float, default=10.0, help='skip passes whose arithmetic would take more seconds (default: 10)'
    )
    add_variant_arguments(command)
    add_measuring_arguments(command)
    add_file_arguments(command)

    command = add_command(operators, 'operators', 'Measure one model operator by operator.')
    command.add_argument('model', metavar='MODEL', help='see compare')
    command.add_argument('--size', type=size, default=(512, 512), metavar='HxW')
    command.add_argument('--batch', type=at_least_one, default=1, help='images per pass (default: 1)')
    add_variant_arguments(command)
    add_rounds_arguments(command, 5)

    command = add_command(mmcv_ops, 'mmcv-ops', 'Compare the operators of mmcasvit with the compiled ones of mmcv.')
    command.add_argument(
        'configs', nargs='*', metavar='CONFIG', help='measure training steps of these instead of single operators'
    )
    command.add_argument('--size', type=size, default=(800, 1216), metavar='HxW')
    command.add_argument('--batch', type=at_least_one, default=2, help='images per step (default: 2)')
    command.add_argument('--device', default='cpu', choices=DEVICES)
    command.add_argument('--threads', type=at_least_one, default=torch.get_num_threads())
    add_rounds_arguments(command, 5)

    command = add_command(step, 'step', 'Measure the parts of a training step.')
    command.add_argument('config', help='config file, whose training data must exist')
    command.add_argument('--steps', type=at_least_one, default=20, help='steps to measure (default: 20)')
    command.add_argument('--warmup', type=at_least_one, default=3, help='steps before these (default: 3)')
    command.add_argument('--csv', metavar='FILE', help='write the table as CSV')
    add_config_options(command, 'override entries of the config; data_root=DIR moves every dataset')

    command = add_command(fast, 'fast', 'Compare training steps, plain and with --fast of tools/train.py, in turns.')
    command.add_argument('configs', nargs='+', metavar='CONFIG', help='configs of detectors and segmentors')
    command.add_argument(
        '--sizes', nargs='+', type=size, default=[(512, 512)], metavar='HxW', help='of all configs, or one for each'
    )
    command.add_argument(
        '--batches', nargs='+', type=at_least_one, default=[2], metavar='N', help='of all configs, or one for each'
    )
    command.add_argument('--device', default='cpu', choices=DEVICES)
    command.add_argument('--threads', type=at_least_one, default=torch.get_num_threads())
    command.add_argument('--rounds', type=at_least_one, default=5, help='number of rounds (default: %(default)s)')
    command.add_argument('--csv', metavar='FILE', help='write the table as CSV')

    command = add_command(memory, 'memory', 'Measure how much memory a training step needs.')
    command.add_argument('config', help='config file')
    command.add_argument('--batch', nargs='+', type=at_least_one, default=[2, 4, 8], metavar='N', help='images a step')
    command.add_argument(
        '--size',
        type=size,
        metavar='HxW',
        help='size of random images (default: images of the training data, through its pipeline)',
    )
    command.add_argument('--csv', metavar='FILE', help='write the table as CSV')
    add_config_options(command, 'override entries of the config; data_root=DIR moves every dataset')

    command = add_command(
        pipeline, 'pipeline', 'Measure the parts of a prediction, from the image file to the drawing.'
    )
    command.add_argument('config', help='config file of a detector or segmentor')
    command.add_argument('checkpoint', nargs='?', help='checkpoint file (default: random weights)')
    command.add_argument('--images', nargs='+', required=True, metavar='FOLDER', help='images, or folders of them')
    command.add_argument('--limit', type=at_least_one, default=20, metavar='N', help='images (default: %(default)s)')
    command.add_argument('--exported', metavar='FILE', help='file of tools/export.py that takes the place of PyTorch')
    command.add_argument('--deploy', action='store_true', help='predict with the deploy form of the model')
    command.add_argument('--score-thr', type=float, default=0.3, help='lowest score of a drawn box (default: 0.3)')
    command.add_argument('--device', default='cpu', choices=DEVICES)
    command.add_argument('--threads', type=at_least_one, default=torch.get_num_threads())
    command.add_argument(
        '--readers', type=at_least_one, default=READERS, help='threads that read ahead (default: %(default)s)'
    )
    command.add_argument(
        '--compare-drawing', action='store_true', help='draw by matplotlib too, as OpenMMLab does, and compare'
    )
    add_rounds_arguments(command, 3)
    command.add_argument('--csv', metavar='FILE', help='write the table as CSV')
    command.add_argument('--json', metavar='FILE', help='write the table, and the parts of each image, as JSON')
    add_config_options(command, 'override entries of the config')
    add_trust_argument(command)

    command = add_command(coco_eval, 'coco-eval', "Time COCO's evaluation by two libraries on synthetic boxes.")
    command.add_argument('--images', type=at_least_one, default=5000, help='number of images (default: %(default)s)')
    command.add_argument('--csv', metavar='FILE', help='write the table as CSV')

    command = add_command(loss_curves, 'losses', 'Record loss curves in several precisions and forms.')
    command.add_argument('configs', nargs='+', metavar='CONFIG', help='config files, whose training data must exist')
    command.add_argument(
        '--variants',
        nargs='+',
        default=list(losses.VARIANTS),
        choices=losses.VARIANTS,
        help='precisions and forms; the first one is the reference (default: all)',
    )
    command.add_argument('--steps', type=at_least_one, default=200, help='steps per curve (default: 200)')
    command.add_argument('--seed', type=int, default=0, help='seed of weights and data (default: 0)')
    add_config_options(command, 'override entries of the config; data_root=DIR moves every dataset')
    add_file_arguments(command)
    return parser.parse_args()


def tell(text):
    print(text, file=sys.stderr, flush=True)


def check_files(args):
    """Check that the folders of output files exist, before the measurement."""
    for name in ('csv', 'json', 'plot', 'plot_accuracy'):
        file = getattr(args, name, None)
        if file and not Path(file).resolve().parent.is_dir():
            raise UsageError(f'--{name.replace("_", "-")}: no such folder: {Path(file).resolve().parent}')


def clock_of(args, threads, devices):
    if not args.cpu_time:
        return time.perf_counter
    if set(threads) != {1} or set(devices) != {'cpu'}:
        raise UsageError('--cpu-time adds up the time of all threads: use it with --threads 1, on the CPU.')
    return time.process_time


def plan_of(args, threads, devices):
    return Plan(args.rounds, args.warmup, args.least_ms / 1000, args.memory, clock_of(args, threads, devices))


def write_files(args, rows, **about):
    if args.csv:
        write_csv(args.csv, rows)
    if getattr(args, 'json', None):
        write_json(args.json, rows, **about)


def compare(args):
    groups = dict(peers=PEERS, **WHOLE_PEERS)
    variants = grid(
        model=list(dict.fromkeys(name for model in args.models for name in groups.get(model, [model]))),
        mode=args.modes,
        form=args.forms,
        precision=args.precisions,
        device=args.devices,
        threads=args.threads,
        batch=args.batches,
        size=args.sizes,
    )
    variants, left_out = check_all(variants, set(args.models))
    plan, here = plan_of(args, args.threads, args.devices), machine(args.devices)
    baseline = parse_baseline(args.baseline, variants) if args.baseline else default_baseline(variants)
    if args.plot_accuracy and not any(variant.model in PUBLISHED for variant in variants):
        raise UsageError(f'--plot-accuracy: no figures are known of these models. Known: {", ".join(PUBLISHED)}.')
    rows, more = measure(variants, plan, baseline, tell)
    left_out += more
    write_files(args, rows, machine=here, left_out=left_out)
    constant, varying = split_constant(rows, FIELDS)
    varying = varying or ['model']
    title = f'{settings_in_words(constant)}\n{here}; {plan}'
    if args.plot:
        plots.plot_times(args.plot, rows, [', '.join(str(row[name]) for name in varying) for row in rows], title)
    if args.plot_accuracy:
        plots.plot_accuracy(args.plot_accuracy, rows, varying, title)
    text = comparison_text(rows, constant, varying, baseline, plan, here, left_out)
    gains = margins(rows, varying) if args.plot_accuracy else []
    if gains:
        text += '\n\nPublished accuracy above (+) or below (-) that of CAS-ViT at equal time, in points:\n\n'
        text += markdown(gains)
    return text


def scaling(args):
    if min(args.sides) < 32 or len(set(args.sides)) < 2:
        raise UsageError('--sides: at least two different sides of 32 or more are needed.')
    variants = [
        Variant(model, args.mode, args.form, args.precision, args.device, args.threads, size=(side, side))
        for model in args.models
        for side in dict.fromkeys(args.sides)
    ]
    variants, left_out = check_all(variants, set(args.models))
    plan, here = plan_of(args, [args.threads], [args.device]), machine([args.device])
    costs = {variant: count_variant(variant) for variant in variants}
    feasible, too_slow = split_feasible(variants, costs, plan, args.limit_s)
    rows, more = measure(feasible, plan, dict(model=args.models[0]), tell)
    left_out += too_slow + more
    curves = curves_of(rows, costs)
    exponents = fit_exponents(curves)
    write_files(args, rows, machine=here, left_out=left_out, exponents=exponents)
    constant, _ = split_constant(rows, ['mode', 'form', 'precision', 'device', 'threads', 'batch'])
    if args.plot:
        plots.plot_scaling(args.plot, curves, exponents, f'{settings_in_words(constant)}; {here}')
    lines = [f'{settings_in_words(constant)}; {plan} on {here}.', '', markdown(scaling_table(curves, exponents))]
    return '\n'.join([*lines, *(f'\nleft out: {line}' for line in left_out)])


def operators(args):
    variant = Variant(
        args.model, args.mode, args.form, args.precision, args.device, args.threads, args.batch, args.size
    )
    return operators_text(variant, args.rounds, clock_of(args, [args.threads], [args.device]))


def mmcv_ops(args):
    steps = [
        Variant(config, 'train', device=args.device, threads=args.threads, batch=args.batch, size=args.size)
        for config in args.configs
    ]
    clock = clock_of(args, [args.threads], [args.device])
    return mmcv_ops_text(steps, args.rounds, args.device, args.threads, clock, tell)


def step(args):
    cfg = load_config(args.config, args.cfg_options)
    check_data(cfg, 'train')
    if cfg.get('compile'):
        raise UsageError('step: the parts of a compiled step cannot be told apart. Add --cfg-options compile=False')
    with training_runner(cfg) as runner:
        table = step_table(*measure_steps(runner, args.steps, args.warmup))
    write_files(args, table)
    loader = cfg.train_dataloader
    return (
        f'{Path(args.config).name}: {args.steps} steps of {loader.batch_size} images, '
        f'{count_of(loader.num_workers, "worker")}, {count_of(torch.get_num_threads(), "thread")}, on '
        f'{machine([default_device()])}.\n\n{markdown(table)}'
    )


def fast(args):
    for name in ('sizes', 'batches'):
        values = getattr(args, name)
        if len(values) not in (1, len(args.configs)):
            raise UsageError(f'--{name}: give one value, or one for each of the {len(args.configs)} configs.')
        setattr(args, name, values * (len(args.configs) // len(values)))
    rows, lines = [], []
    for config, height_and_width, batch in zip(args.configs, args.sizes, args.batches):
        variant = Variant(config, 'train', device=args.device, threads=args.threads, batch=batch, size=height_and_width)
        more, choices = measure_fast(variant, args.rounds, tell)
        rows += more
        lines += [f'{Path(config).stem}:', *choices, '']
    write_files(args, rows)
    return (
        f'{count_of(args.rounds, "round")} in alternating order, {count_of(args.threads, "thread")}, on '
        f'{machine([args.device])}.\n\n{markdown(rows)}\n\n' + '\n'.join(lines).strip()
    )


def memory(args):
    cfg = load_config(args.config, args.cfg_options)
    if cfg.default_scope not in ('mmdet', 'mmseg'):
        raise UsageError(f'memory: {args.config} must be a config of mmdet or mmseg.')
    if args.size is None:
        try:
            check_data(cfg, 'train')
        except UsageError as error:
            raise UsageError(f'{error}. With --size HxW, random images are measured.') from error
    found = TrainingStep(cfg, args.size).memory()
    rows = memory_rows(found, args.batch)
    write_files(args, rows)
    return f'{Path(args.config).name}: {memory_in_words(found)}.\n\n{markdown(rows)}'


def pipeline(args):
    cfg = load_config(args.config, args.cfg_options)
    if cfg.default_scope not in ('mmdet', 'mmseg'):
        raise UsageError(f'pipeline: {args.config} must be a config of mmdet or mmseg.')
    if args.exported and args.device != 'cpu':
        raise UsageError('--exported runs on the CPU: leave out --device.')
    if args.exported and args.deploy:
        raise UsageError('--exported takes the place of the model: leave out --deploy.')
    check_options(cfg, args.device, score_thr=args.score_thr, config=args.config)
    sources = [source for source in find_sources(args.images) if not source.is_video][: args.limit]
    paths = [str(source.path) for source in sources]
    check_images(paths)
    if args.deploy or args.exported:
        keep_freed_memory()  # as tools/infer.py does
    found = measure_pipeline(
        cfg,
        paths,
        args.checkpoint,
        args.exported,
        args.deploy,
        args.device,
        args.threads,
        args.readers,
        args.rounds,
        args.score_thr,
        args.trust_checkpoint,
        args.compare_drawing,
        clock_of(args, [args.threads], [args.device]),
    )
    table, here = step_table(found.parts, ORDER, 'whole image'), machine([args.device])
    write_files(args, table, machine=here, images=paths, parts=found.parts)
    weights = Path(args.checkpoint).name if args.checkpoint else 'random weights'
    model = f'{Path(args.exported).name} ({weights})' if args.exported and args.checkpoint else args.exported or weights
    model += ', deploy form' * args.deploy
    return (
        f'{Path(args.config).name}, {model}: {count_of(len(paths), "image")}, {count_of(args.rounds, "round")}, '
        f'{count_of(args.threads, "thread")}, {"processor" if args.cpu_time else "wall"} time, on {here}.\n\n'
        f'{markdown(table)}\n\n{pipeline_in_words(found)}'
    )


def coco_eval(args):
    rows, difference = evaluate_both(args.images, tell)
    write_files(args, rows)
    images = count_of(args.images, 'synthetic image')
    return f'{images} on {machine(["cpu"])}; largest difference of a metric {difference:.1e}.\n\n{markdown(rows)}'


def loss_curves(args):
    cfgs = {Path(file).stem: load_config(file, args.cfg_options) for file in args.configs}
    for cfg in cfgs.values():
        check_data(cfg, 'train')
    curves = losses.record_curves(cfgs, args.variants, args.steps, args.seed, tell)
    here = machine([default_device()])
    write_files(args, losses.loss_rows(curves), machine=here)
    if args.plot:
        plots.plot_losses(args.plot, curves, f'{args.steps} steps; {here}')
    return '\n\n'.join(
        f'{name}, mean losses; {args.steps} steps on {here}.\n\n{markdown(losses.loss_table(variants))}'
        for name, variants in curves.items()
    )


def default_device():
    return 'cuda' if torch.cuda.is_available() else 'cpu'


@exits_cleanly
def main():
    args = parse_args()
    check_files(args)
    with contextlib.redirect_stdout(sys.stderr):  # libraries print too, and stdout is for the tables
        text = args.run(args)
    print(text)


if __name__ == '__main__':
    main()
