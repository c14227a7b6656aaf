"""Logs of work directories: runs, curves, times, configs, tables."""

import numpy as np
import pytest
from helpers.reports import Page, write_run

from mmcasvit.report.logs import class_table, join, last_config, plain_values, read_runs
from mmcasvit.report.page import render_report


def test_runs_are_joined_by_steps_and_repeated_steps_count_once(tmp_path):
    write_run(
        tmp_path,
        '20260131_100000',
        [(10, 4.0), (20, 3.0), (30, 9.0)],
        [(20, dict(mIoU=50.0)), (30, dict(mIoU=1.0))],
        [('10:00:05', 'Iter(train) [ 10/60]  loss: 4.0')],
    )
    # Resumed from iteration 24: the entry of 20 stays, that of 30 is replaced.
    second = write_run(
        tmp_path,
        '20260131_110000',
        [(30, 2.0), (40, float('nan'))],
        [(40, dict(mIoU=60.0))],
        [('11:00:01', 'resumed epoch: 0, iter: 24'), ('11:00:05', 'Iter(train) [ 30/60]  loss: 2.0')],
    )
    with open(second / 'vis_data' / 'scalars.json', 'a') as file:
        file.write('{"lr": 0.1, "loss": 7.0, "st')  # killed
    write_run(tmp_path, '20260131_120000', log=[('12:00:01', 'resumed epoch: 0, iter: 40')])  # died before a step
    history = join(read_runs(tmp_path))
    steps, losses = history.training['loss']
    assert steps == [10, 20, 30, 40]
    assert losses[:3] == [4.0, 3.0, 2.0]
    assert np.isnan(losses[3])
    assert history.validation['mIoU'] == ([20, 40], [50.0, 60.0])
    assert history.resumed == [24]
    assert history.dropped == []
    assert history.data_share == pytest.approx(0.2)

    write_run(tmp_path, '20260131_130000', [(10, 5.0)], log=[('13:00:05', 'Iter(train) [ 10/60]  loss: 5.0')])
    history = join(read_runs(tmp_path))
    assert history.training['loss'] == ([10], [5.0])
    assert history.validation == {}
    assert history.resumed == []
    assert history.dropped == ['20260131_100000', '20260131_110000']


def test_validations_of_epochs_are_joined_by_epochs(tmp_path):
    write_run(
        tmp_path,
        '20260131_100000',
        [(100, 4.0), (200, 3.0)],
        [(1, {'coco/bbox_mAP': 0.1, 'coco/bbox_mAP_l': -1.0}), (2, {'coco/bbox_mAP': 0.9})],
        [('10:00:05', 'Epoch(train) [2][ 50/100]  loss: 3.0')],
    )
    write_run(
        tmp_path,
        '20260131_110000',
        [(200, 2.0)],
        [(2, {'coco/bbox_mAP': 0.2})],
        [('11:00:01', 'resumed epoch: 1, iter: 100'), ('11:00:05', 'Epoch(train) [2][100/100]  loss: 2.0')],
    )
    history = join(read_runs(tmp_path))
    assert history.by_epoch
    assert history.validation['coco/bbox_mAP'] == ([1, 2], [0.1, 0.2])
    assert 'coco/bbox_mAP_l' not in history.validation, '-1 means that there is no large object'
    assert history.training['loss'] == ([100, 200], [4.0, 2.0])


def test_phases_of_a_run_add_up_to_its_time(tmp_path):
    write_run(
        tmp_path,
        '20260131_100000',
        [(10, 4.0)],
        log=[
            ('10:00:03', '\n' + '-' * 60 + '\nSystem environment:\n    Python: 3.11'),
            ('10:00:04', "Config:\nmodel = dict(type='RetinaNet')"),
            ('10:00:10', 'Checkpoints will be saved to /tmp.'),
            ('10:00:30', 'Epoch(train) [1][10/15]  loss: 4.0'),
            ('10:00:40', 'Exp name: x'),
            ('10:00:40', 'Saving checkpoint at 1 epochs'),
            ('10:00:50', 'Epoch(val) [1][10/13]  eta: 0:00:01'),
            ('10:00:55', 'Evaluating bbox...'),
            ('10:01:00', 'Epoch(val) [1][13/13]  coco/bbox_mAP: 0.5'),
            ('10:01:02', 'The best checkpoint with 0.5 is saved to best.pth.'),
            ('10:01:10', 'killed soon'),
        ],
    )
    (run,) = read_runs(tmp_path)
    assert run.seconds == {'start-up': 10, 'training': 30, 'validation': 28, 'best checkpoint': 2}
    times = Page(render_report(tmp_path)).text.replace('\n', '')
    assert '01-31 10:00:000:00:100:00:300:00:280:00:020:01:10' in times
    assert run.environment.startswith('System environment:')
    assert run.reached == (1, 10, 15)
    assert plain_values(last_config([run])) == dict(model=dict(type='RetinaNet'))


def test_config_is_parsed_without_executing_it(tmp_path):
    text = f"a = dict(b=[1, (2, -3.5)], **{{}})\nc = __import__('os').mkdir('{tmp_path}/made')"
    assert plain_values(text) == {}
    assert list(tmp_path.iterdir()) == []
    assert plain_values('x = dict(a=[1, (2, -3.5)], b={0: None})\ny = True') == dict(
        x=dict(a=[1, [2, -3.5]], b={0: None}), y=True
    )
    assert plain_values('def broken(') == {}


def test_tables_of_classes_are_read_from_logs():
    from prettytable import PrettyTable

    table = PrettyTable()
    table.add_column('Class', ['sky', 'a | b'])
    table.add_column('IoU', [97.41, float('nan')])
    table.add_column('Acc', [98.7, 1.5])
    assert class_table(f'\n{table.get_string()}') == (
        ['Class', 'IoU', 'Acc'],
        [['sky', '97.41', '98.7'], ['a | b', 'nan', '1.5']],
    )
    assert class_table('| something | else |') is None
