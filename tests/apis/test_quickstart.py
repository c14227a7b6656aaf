"""The quickstart repeats nothing that is finished, starts over after a change, and shows what every model reached."""

import json
import os

import cv2
import numpy as np
import pytest

from mmcasvit.apis import quickstart
from mmcasvit.apis.quickstart import Task, draw_sheet, result_table, run_tool, train_and_test
from mmcasvit.utils.errors import UsageError

TASK = Task('UperNet', 'segmentation/upernet_casvit-xs_600i_shapes.py', {'mIoU': 60.0})


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Replace the tools by ones that leave their results without training, and return the names of those that run."""
    ran = []

    def run_tool(name, *args, label, threads):
        ran.append(name)
        folder = args[args.index('--work-dir') + 1]
        if name == 'train.py':
            (folder / 'last_checkpoint').write_text('iter_300.pth')
            return
        (folder / '1').mkdir(parents=True)
        (folder / '1/1.json').write_text(json.dumps(dict(mIoU=59.0)))
        drawings = args[args.index('--show-dir') + 1]
        os.makedirs(drawings / 'vis_image')
        pair = np.hstack([np.full((40, 60, 3), value, np.uint8) for value in (80, 160)])
        for name in ('a', 'b'):
            cv2.imwrite(str(drawings / 'vis_image' / f'test_{name}_0.png'), pair)

    monkeypatch.setattr(quickstart, 'run_tool', run_tool)
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data/dataset.json').write_text('{}')
    return ran


def test_finished_models_are_not_trained_again(commands, tmp_path):
    results = [train_and_test(TASK, tmp_path / 'runs', tmp_path / 'data') for _ in range(2)]
    assert results[0] == results[1]
    assert commands == ['train.py', 'test.py']
    (tmp_path / 'data/dataset.json').write_text('{"seed": 1}')
    train_and_test(TASK, tmp_path / 'runs', tmp_path / 'data')
    assert commands == ['train.py', 'test.py'] * 2


def test_the_table_and_the_sheet_show_every_model(commands, tmp_path):
    result = train_and_test(TASK, tmp_path / 'runs', tmp_path / 'data')
    assert result.missed == ['UperNet mIoU 59.000']
    assert f'| UperNet | mIoU | 59.000 | 60 | {result.seconds:.0f} |' in result_table([result])
    images = [tmp_path / f'{name}.jpg' for name in ('a', 'b')]
    for image in images:
        cv2.imwrite(str(image), np.full((40, 60, 3), 240, np.uint8))
    column = draw_sheet([result], images)
    assert column.shape == (3 * (40 + 22), 2 * 60, 3)
    for row, value in enumerate((240, 80, 160)):  # input, ground truth and prediction
        np.testing.assert_allclose(column[row * 62 + 22 : (row + 1) * 62], value, atol=3)
    assert draw_sheet([result] * 3, images).shape == (3 * 186, 120, 3)
    assert draw_sheet([result] * 4, images).shape == (2 * 186, 240, 3)


def test_lines_of_tools_that_run_at_the_same_time_name_their_model(capfd, tool_server, monkeypatch):
    monkeypatch.setattr('sys.executable', str(tool_server.python))
    run_tool('list_configs.py', '--help', label='UperNet', threads=1)
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) > 3
    assert all(line.startswith('UperNet | ') for line in lines)
    with pytest.raises(UsageError, match=r'exit status 2: \S*list_configs.py --nonsense'):
        run_tool('list_configs.py', '--nonsense', label='UperNet')
    assert 'unrecognized arguments' in capfd.readouterr().out
