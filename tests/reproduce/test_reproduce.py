"""What was measured is compared and kept, whatever happens to the processes; what is missing is named."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from helpers.repository import load_tool

from mmcasvit.apis.published import PublishedWeights, list_published
from mmcasvit.engine.work_dir import WorkDirLock
from mmcasvit.reproduce import run
from mmcasvit.reproduce.core import reproduce
from mmcasvit.reproduce.plan import Job, choose, plan
from mmcasvit.utils.errors import UsageError
from mmcasvit.weights.published import checksum

# Stands in for tools/test.py: the checkpoint says what happens.
EVALUATION = """
import json, os, pathlib, sys, time
config, file, _, folder, *options = sys.argv[1:]
steps = json.loads(pathlib.Path(file).read_text())
pathlib.Path('calls').open('a').write(f'test {pathlib.Path(file).name} {" ".join(options)}'.rstrip() + chr(10))
if 'meet' in steps:  # waits until as many are running
    pathlib.Path('gpu' + os.environ.get('CUDA_VISIBLE_DEVICES', '')).touch()
    while len(list(pathlib.Path().glob('gpu*'))) < steps['meet']:
        time.sleep(0.01)
if 'hang' in steps:
    pathlib.Path('hanging').write_text(str(os.getpid()))
    time.sleep(60)
print('test data  5 images in batches of 1 from data')
exec(steps.get('do', ''))
if 'metrics' in steps:
    (pathlib.Path(folder) / '1').mkdir(parents=True)
    (pathlib.Path(folder) / '1' / '1.json').write_text(json.dumps(steps['metrics']))
"""
TRAINING = """
import json, os, pathlib, sys
pathlib.Path('calls').open('a').write('train ' + ' '.join(sys.argv[2:]) + chr(10))
folder = pathlib.Path(sys.argv[sys.argv.index('--work-dir') + 1])
folder.mkdir(exist_ok=True)
(folder / 'epoch_12.pth').write_text('{"metrics": {"coco/bbox_mAP": 0.371}}')
(folder / 'last_checkpoint').write_text(str(folder / 'epoch_12.pth'))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Work in a folder whose tools stand in for those of the repository, on a machine without GPUs."""
    (tmp_path / 'tools').mkdir()
    (tmp_path / 'tools/test.py').write_text(EVALUATION)
    (tmp_path / 'tools/train.py').write_text(TRAINING)
    monkeypatch.setattr(run, 'root', lambda: tmp_path)
    monkeypatch.setattr(run, '_POLL_SECONDS', 0.01)
    monkeypatch.setattr(run, '_versions', lambda scope: f'versions of {scope}')
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def job(alias, results=None, train=False, **steps):
    """Return a job whose checkpoint holds what its evaluation does."""
    file = Path(f'{alias}.pth')
    file.write_text(json.dumps(steps))
    weights = PublishedWeights(alias, f'config-of-{alias}', 'config.py', 'http://x', results or {'box AP': 37.4})
    return Job(weights, train, False, Path('config.py'), 'mmdet', '', file, settings=dict(sha256=checksum(file)))


def measure(*jobs, tolerance=0.1):
    """Measure jobs, and return whether all agree, the page, and what was told."""
    told = []
    agrees = reproduce(jobs, [job.weights for job in jobs], Path('out'), tolerance, told.append)
    return agrees, Path('out/trained.md' if jobs[0].train else 'out/evaluated.md').read_text(), told


def calls():
    return Path('calls').read_text().splitlines() if Path('calls').exists() else []


def lines_of(page):
    """Return the cells of a page's table, without the columns that each run has anew."""
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in page.splitlines() if line.startswith('|')]
    seconds = rows[0].index('seconds')
    return [row[:seconds] for row in rows[2:]]


def test_figures_are_compared_in_percent(folder):
    both = {'box AP': 37.4, 'mask AP': 34.9}
    jobs = [
        job('mask', both, metrics={'coco/bbox_mAP': 0.375, 'coco/segm_mAP': 0.347}),
        job('seg', {'mIoU': 41.3}, metrics={'mIoU': 41.25, 'aAcc': 80.0}),
        job('cls', {'Top 1 Accuracy': 78.3}, metrics={'accuracy/top1': 78.41}),
    ]
    agrees, page, _ = measure(*jobs)
    assert not agrees
    assert lines_of(page) == [
        ['mask', 'box AP', '37.4', '37.50', '+0.10', 'agrees', '5'],
        ['mask', 'mask AP', '34.9', '34.70', '-0.20', 'differs', '5'],
        ['seg', 'mIoU', '41.3', '41.25', '-0.05', 'agrees', '5'],
        ['cls', 'Top 1 Accuracy', '78.3', '78.41', '+0.11', 'differs', '5'],
    ]
    assert f'| 1 | `{checksum(Path("mask.pth"))}` |' in page
    assert '\n1. versions of mmdet\n' in page
    assert measure(*jobs, tolerance=0.2)[0]


def test_a_figure_that_is_not_a_number_differs(folder):
    agrees, page, _ = measure(job('seg', {'mIoU': 41.3}, metrics={'mIoU': float('nan')}))
    assert not agrees
    assert lines_of(page)[0][3:6] == ['nan', '+nan', 'differs']


def test_an_evaluation_that_fails_is_a_row_and_the_others_run(folder):
    error = 'import os\nprint("error: does not fit.\\n  expected: xs\\n  found: s"); print("more"); sys.exit(2)'
    agrees, page, told = measure(
        job('unfit', do=error),
        job('raises', do='raise ValueError("bad <luck>")'),
        job('killed', do='os.kill(os.getpid(), 11)'),
        job('silent', do='os._exit(3)'),
        job('empty', metrics={'coco/segm_mAP': 0.1}),
        job('nothing'),
        job('good', metrics={'coco/bbox_mAP': 0.374}),
    )
    assert not agrees
    assert [row[5] for row in lines_of(page)] == ['failed'] * 6 + ['agrees']
    failed = page[page.index('Failed:') :].splitlines()[2:]
    assert failed[:3] == [
        '- unfit: does not fit. expected: xs found: s',
        '- raises: ValueError: bad \\<luck>',
        '- killed: killed by SIGSEGV',
    ]
    assert failed[3].startswith('- silent: test data')
    assert failed[4] == "- empty: there is no result: KeyError: 'coco/bbox_mAP'"
    assert failed[5].startswith('- nothing: there is no result: StopIteration')
    assert told[1].startswith('unfit: box AP failed, ')
    assert told[1].endswith(' s does not fit. expected: xs found: s')


def test_what_was_measured_is_not_measured_again(folder):
    jobs = [job('a', metrics={'coco/bbox_mAP': 0.374}), job('b', do='sys.exit(1)')]
    assert not measure(*jobs)[0]
    assert calls() == ['test a.pth', 'test b.pth']
    jobs[1] = job('b', metrics={'coco/bbox_mAP': 0.374})
    agrees, _, told = measure(*jobs)
    assert agrees
    assert told[0] == '2 checkpoints: 1 measured before, 1 to measure, 1 at a time'
    assert calls()[2:] == ['test b.pth']
    jobs[0] = job('a', metrics={'coco/bbox_mAP': 0.3})
    assert not measure(*jobs)[0]
    assert calls()[3:] == ['test a.pth'], 'the file has changed'
    gone = Job(jobs[1].weights, False, False, Path('config.py'), missing=['b is not there'])
    assert [row[5] for row in lines_of(measure(jobs[0], gone)[1])] == ['differs', 'agrees']
    # Those that are not chosen stay on the page, and do not decide.
    published = [each.weights for each in jobs]
    assert reproduce(jobs[1:], published, Path('out'), 0.1, lambda line: None)
    assert len(lines_of(Path('out/evaluated.md').read_text())) == 2
    assert len(calls()) == 4


def test_the_page_of_finished_evaluations_exists_while_others_run(folder):
    look = 'print(open("out/evaluated.md").read()); sys.exit(1)'
    measure(job('a', metrics={'coco/bbox_mAP': 0.374}), job('b', do=look))
    assert '| a | box AP | 37.4 | 37.40 |' in Path('out/evaluated/config-of-b/output.txt').read_text()


def test_each_gpu_evaluates_one_at_a_time(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    assert run.places(train=False) == [dict(CUDA_VISIBLE_DEVICES='0'), dict(CUDA_VISIBLE_DEVICES='1')]
    assert run.places(train=True) == [{}]
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '3,GPU-5')
    metrics = {'coco/bbox_mAP': 0.374}
    agrees, _, told = measure(*(job(name, meet=2, metrics=metrics) for name in 'abc'))
    assert agrees
    assert told[0].endswith('3 to measure, 2 at a time')
    assert sorted(path.name for path in folder.glob('gpu*')) == ['gpu3', 'gpuGPU-5']


def test_an_interruption_ends_what_is_running(folder):
    def interrupt():
        while not Path('hanging').is_file() or not Path('hanging').read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), 2)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes ignore it
    threading.Thread(target=interrupt).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            measure(job('a', metrics={'coco/bbox_mAP': 0.374}), job('b', hang=True))
    finally:
        signal.signal(signal.SIGINT, before)
    with pytest.raises(ProcessLookupError):
        os.kill(int(Path('hanging').read_text()), 0)
    assert '| a | box AP | 37.4 | 37.40 |' in Path('out/evaluated.md').read_text()
    agrees, _, told = measure(job('a', metrics={'coco/bbox_mAP': 0.374}))
    assert agrees
    assert '1 measured before' in told[0]


def test_a_recipe_is_trained_and_its_last_checkpoint_evaluated(folder):
    start = job('start', train=True)
    agrees, page, _ = measure(start, tolerance=0.5)
    assert agrees
    assert lines_of(page)[0][:6] == ['start', 'box AP', '37.4', '37.10', '-0.30', 'agrees']
    work_dir = Path('out/trained/config-of-start/train')
    assert calls() == [
        f'train --work-dir {work_dir} --resume auto --auto-scale-lr --pretrained start.pth',
        'test epoch_12.pth',
    ]
    assert checksum(work_dir / 'epoch_12.pth') in page
    assert measure(start, tolerance=0.5)[0]
    assert len(calls()) == 2
    start.settings['sha256'] = 'that of another file'
    agrees, page, _ = measure(start, tolerance=0.5)
    assert not agrees
    assert 'config-of-start has a training with another config, data folder or start. Move it away.' in page
    assert len(calls()) == 2


def words(job, monkeypatch, gpus):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: gpus)
    return ' '.join(map(str, run._training(job, Path('w'))))


def test_a_training_uses_all_gpus(folder, monkeypatch):
    dense, classifier = job('dense', train=True), job('classifier', train=True)
    dense.trust, dense.data_root, classifier.scope = True, '/d/coco', 'mmpretrain'
    train = f'{folder}/tools/train.py config.py --work-dir w --resume auto --auto-scale-lr'
    assert words(dense, monkeypatch, 1) == (
        f'{train} --pretrained dense.pth --trust-checkpoint --cfg-options data_root=/d/coco'
    )
    assert words(dense, monkeypatch, 8).startswith(
        f'-m torch.distributed.run --standalone --nproc_per_node 8 {train} --launcher pytorch --pretrained dense.pth'
    )
    assert words(classifier, monkeypatch, 1) == f'{train} --amp --cfg-options load_from=classifier.pth'
    monkeypatch.setattr(sys, 'argv', [str(word) for word in run._training(classifier, Path('w'))])
    args = load_tool('train').parse_args()
    assert (args.work_dir, args.resume, args.amp, args.cfg_options) == (
        'w',
        'auto',
        True,
        dict(load_from='classifier.pth'),
    )
    classifier.file = None
    assert words(classifier, monkeypatch, 0) == train


def test_a_folder_is_used_by_one_process(folder, tool_server):
    Path('out').mkdir()
    code = (
        'import sys; from mmcasvit.engine.work_dir import WorkDirLock; lock = WorkDirLock("out"); '
        'print(flush=True); sys.stdin.read()'
    )
    with subprocess.Popen([tool_server.python, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(UsageError, match='--out: out is in use'):
            measure(job('a'))
        other.stdin.close()
    WorkDirLock('out').release()


def test_what_is_missing_is_named_with_the_commands(run_main, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setattr('mmcasvit.weights.published._fetch', lambda *args: pytest.fail('nothing is to be downloaded'))
    chosen = ['retinanet-xs', 'mask-rcnn-s', 'semantic-fpn_casvit-xs_8xb4-40k_ade20k-512x512']
    status, printed = run_main('reproduce', '--only', *chosen, '--data', 'my data')
    assert status == 2
    assert printed.err == 'error: nothing can be measured yet. work_dirs/reproduce/evaluated.md says what is missing.\n'
    page = Path('work_dirs/reproduce/evaluated.md').read_text()
    assert lines_of(page) == [
        ['retinanet-xs', 'box AP', '36.5', '-', '-', 'missing', '-'],
        ['mask-rcnn-s', 'box AP', '39.8', '-', '-', 'missing', '-'],
        ['mask-rcnn-s', 'mask AP', '36.7', '-', '-', 'missing', '-'],
        ['semantic-fpn-xs', 'mIoU', '37.1', '-', '-', 'missing', '-'],
    ]
    assert page in printed.out
    for text in (
        f'not found: {tmp_path}/my data/coco/annotations/instances_val2017.json. Download the 2017 train and val ',
        'or say where it is: --data DIR. By command: python ',
        f"download_dataset.py --dataset-name coco2017 --save-dir '{tmp_path}/my data/coco' --unzip --delete",
        f"--dataset-name ade20k_2016 --save-dir '{tmp_path}/my data/ade'",
        'python -m mmcasvit weights get retinanet-xs',
        'python -m mmcasvit weights get semantic-fpn-xs',
    ):
        assert text in printed.out, text


def write_index(folder, text):
    (folder / 'metafile.yml').write_text(text)
    (folder / 'index.yml').write_text('Import: [metafile.yml]\n')
    return folder / 'index.yml'


MODEL = """
Models:
  - {{Name: tiny, Alias: t, Config: {config}, Weights: 'http://127.0.0.1:9/t', Results: [{{Metrics: {{{figure}: 1}}}}]}}
"""


def test_another_index(tmp_path):
    known = 'configs/segmentation/upernet_casvit-xs_600i_shapes.py'
    (weights,) = list_published(write_index(tmp_path, MODEL.format(config=known, figure='mIoU')))
    assert (weights.alias, weights.config, weights.start, weights.results) == ('t', known, None, {'mIoU': 1})
    (tmp_path / 'own.py').write_text('')
    (tmp_path / 'b').mkdir()
    os.rename(tmp_path / 'own.py', tmp_path / 'b/own.py')
    (weights,) = list_published(write_index(tmp_path / 'b', MODEL.format(config='own.py', figure='mIoU')))
    assert weights.config == str(tmp_path / 'b/own.py')


@pytest.mark.parametrize(
    'text, message',
    [
        (None, 'index.yml is not an index of models: FileNotFoundError'),
        ('Models: [{Weights: x}]', "is not an index of models: KeyError: 'Alias'. It has a list Import"),
        ('Models: [', 'is not an index of models: ParserError'),
        (MODEL.format(config='x.py', figure='AP'), "tiny has an unknown figure 'AP'. Known: box AP, mask AP, mIoU, "),
    ],
)
def test_a_wrong_index_is_one_line(run_main, tmp_path, text, message):
    if text is not None:
        write_index(tmp_path, text)
    status, printed = run_main('reproduce', '--index', tmp_path / 'index.yml')
    assert status == 2
    assert message in printed.err
    assert printed.err.count('\n') == 1


def test_checkpoints_are_chosen_by_table_and_name():
    published = list_published()
    assert [each.alias for each in choose(published, ['segmentation'], None)] == [
        f'semantic-fpn-{arch}' for arch in ('xs', 's', 'm', 't')
    ]
    assert len(choose(published, ['detection', 'classification'], None)) == 16
    assert [each.alias for each in choose(published, ['detection'], ['mask-rcnn-t'])] == ['mask-rcnn-t']
    with pytest.raises(UsageError, match='no published weights are named xs in these tables'):
        choose(published, ['detection'], ['mask-rcnn-t', 'xs'])


def test_files_come_from_a_folder_by_either_name(shapes, tmp_path, monkeypatch):
    """Otherwise they come from the folder of published weights, and a damaged file there is not missing."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    config = 'configs/segmentation/semantic-fpn_casvit-xs_300i_shapes.py'
    weights = PublishedWeights('sem', 'semantic-fpn_x', config, 'http://127.0.0.1:9/sem', {'mIoU': 80.0}, 'start')
    start = PublishedWeights('start', 'casvit-xs_start', config, 'http://127.0.0.1:9/start', {'mIoU': 80.0})
    published, folder = [weights, start], tmp_path / 'weights'

    def planned(**more):
        return plan(weights, published, shapes.parent, folder, **more)

    found = planned()
    assert not found.damaged
    assert len(found.missing) == 1
    assert found.missing[0].startswith('sem could not be downloaded: ')
    assert f'and save it as {weights.file}' in found.missing[0]
    weights.file.parent.mkdir(parents=True, exist_ok=True)
    weights.file.write_bytes(b'no checkpoint')
    assert planned().missing == []
    assert 'is not a checkpoint, or is damaged' in planned().damaged
    folder.mkdir()
    for name in ('sem.safetensors', 'semantic-fpn_x.pth'):
        (folder / name).write_text(name)
        found = planned()
        assert (found.missing, found.damaged, found.file) == ([], '', folder / name)
        assert found.data_root == str(shapes / 'ade')
        assert found.settings['sha256'] == checksum(folder / name)
    # A training needs the weights that it starts from, and the training data.
    found = planned(train=True)
    assert found.missing[0].startswith('start could not be downloaded')
    (folder / 'start.pth').touch()
    assert planned(train=True).file == folder / 'start.pth'
    other = plan(weights, published, tmp_path / 'none', folder)
    assert 'Create it: python tools/make_dataset.py' in other.missing[0]
    with pytest.raises(UsageError, match='starts from start, which the index does not list'):
        plan(weights, [weights], shapes.parent, folder, train=True)
