"""Configs, tools, and models are found by name, in the repository and in a wheel that is installed elsewhere."""

import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections import Counter
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import torch
from helpers.repository import ROOT, write_tiny_config
from mmengine.config import Config

import mmcasvit
from mmcasvit.utils.errors import UsageError, WeightsError

DETECTOR = 'retinanet_casvit-xs_fpn_6e_shapes'
MASK_RCNN = 'mask-rcnn_casvit-xs_fpn_6e_shapes'
SEGMENTOR = 'semantic-fpn_casvit-xs_300i_shapes'
CONFIGS = [file.stem for file in (ROOT / 'configs').glob('*/*.py')]
# What a build reads: the top level of the repository, without data, runs, and environments.
SOURCES = (
    'CHANGELOG.md',
    'CITATION.cff',
    'CONTRIBUTING.md',
    'LICENSE',
    'MANIFEST.in',
    'Makefile',
    'README.md',
    'SECURITY.md',
    'configs',
    'dev',
    'docs',
    'hubconf.py',
    'mmcasvit',
    'model-index.yml',
    'pyproject.toml',
    'requirements',
    'setup.py',
    'tests',
    'tools',
)


def run(*command, cwd):
    """Run a command that does not see this repository, and return its output."""
    environment = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'} | dict(OMP_NUM_THREADS='1')
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f'{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}'
    return done.stdout


def pip(*args, cwd):
    return run(sys.executable, '-m', 'pip', '--disable-pip-version-check', *args, cwd=cwd)


def has_openmim():
    try:
        return bool(distribution('openmim'))
    except PackageNotFoundError:
        return False


def test_a_config_is_found_by_name_and_by_path(tmp_path):
    assert sorted(mmcasvit.list_configs()) == sorted(CONFIGS)
    for name in (DETECTOR, f'{DETECTOR}.py', f'detection/{DETECTOR}.py'):
        assert Path(mmcasvit.config_path(name)).name == f'{DETECTOR}.py'
    cfg = mmcasvit.get_config(DETECTOR)
    assert isinstance(cfg, Config)
    assert (cfg.default_scope, cfg.model.type, cfg.model.bbox_head.num_classes) == ('mmdet', 'RetinaNet', 6)
    file = write_tiny_config(tmp_path / 'mine.py', mmcasvit.config_path(MASK_RCNN))
    assert mmcasvit.get_config(file).model.neck.in_channels == [8, 12, 16, 24]


def test_a_wrong_name_suggests_similar_ones():
    with pytest.raises(UsageError, match='retinanet_casvit-xs_fpn_1x_coco'):
        mmcasvit.get_config('retinanet-casvit-xs_fpn_1x_coco')
    with pytest.raises(UsageError, match='upernet_casvit-m'):
        mmcasvit.get_model('upernet')
    with pytest.raises(UsageError, match='python -m mmcasvit'):
        mmcasvit.config_path('nothing of the kind')


def test_a_user_config_inherits_from_the_package(tmp_path, monkeypatch):
    monkeypatch.setenv('MMCASVIT', str(Path(mmcasvit.config_path(DETECTOR)).parent.parent))
    bases = [
        "__import__('mmcasvit').config_path('NAME')",
        "[__import__('mmcasvit').config_path('NAME'), 'more.py']",
        "'{{$MMCASVIT:}}/detection/NAME.py'",
    ]
    (tmp_path / 'more.py').write_text('more = 1\n')
    for number, base in enumerate(bases):
        file = tmp_path / f'mine{number}.py'
        file.write_text(
            f'_base_ = {base.replace("NAME", DETECTOR)}\nmodel = dict(backbone=dict(arch="s"))\n'
            'classes = _base_.shapes_metainfo.classes\n'
        )
        cfg = Config.fromfile(file)
        assert (cfg.model.type, cfg.model.backbone.arch, cfg.classes[0]) == ('RetinaNet', 's', 'disc')
        assert cfg.model.get('_scope_') == 'mmdet'  # its bases come from mmdet, so their types resolve there


@pytest.mark.parametrize('name, kind, classes', [(MASK_RCNN, 'MaskRCNN', 6), (SEGMENTOR, 'EncoderDecoder', 8)])
def test_a_model_by_name_carries_its_config_and_classes(tmp_path, name, kind, classes):
    file = write_tiny_config(tmp_path / 'tiny.py', mmcasvit.config_path(name))
    model = mmcasvit.get_model(file)
    assert (type(model).__name__, model.training, len(model.dataset_meta['classes'])) == (kind, False, classes)
    assert model.cfg.filename == str(file)

    meta = dict(dataset_meta=dict(classes=('a', 'b'), palette=None))
    torch.save(dict(meta=meta, state_dict=model.state_dict()), tmp_path / 'good.pth')
    again = mmcasvit.get_model(model.cfg, tmp_path / 'good.pth')
    assert again is not model
    assert again.dataset_meta['classes'] == ('a', 'b')
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)

    lacking = {key: value for key, value in model.state_dict().items() if key != 'backbone.patch_embed.0.weight'}
    torch.save(dict(state_dict=lacking), tmp_path / 'lacking.pth')
    with pytest.raises(WeightsError, match='1 tensors missing'):
        mmcasvit.get_model(file, tmp_path / 'lacking.pth')


def files_in(folder):
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob('*') if file.is_file())


@pytest.fixture(scope='module')
def repository(tmp_path_factory):
    """Copy of the repository, so that a build does not disturb tests that run at the same time."""
    folder = tmp_path_factory.mktemp('repository') / 'mmcasvit'
    folder.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns('__pycache__'))
        else:
            shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope='module')
def wheels(tmp_path_factory, repository):
    """Wheels built from the repository and from its sdist. Building leaves the repository unchanged."""
    folder = tmp_path_factory.mktemp('wheels')
    before = files_in(repository)
    code = 'import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])'
    run(sys.executable, '-c', code, folder, cwd=repository)
    sources = dict(repository=repository, sdist=next(folder.glob('*.tar.gz')))
    for name, source in sources.items():
        pip('wheel', '-q', '--no-index', '--no-deps', '--no-build-isolation', '-w', folder / name, source, cwd=folder)
    assert [file for file in files_in(repository) if not file.startswith('mmcasvit.egg-info/')] == before
    return {name: next((folder / name).glob('*.whl')) for name in sources}


@pytest.fixture(scope='module')
def fresh_environment(tmp_path_factory):
    """Function that makes an environment with the package. All else comes from the environment of this process."""

    def make(*what):
        folder = tmp_path_factory.mktemp('environment')
        venv.create(folder, symlinks=True)
        python = folder / 'bin' / 'python'
        site = Path(run(python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))', cwd=folder).strip())
        # Folders added by a .pth file come last, and the .pth files in them are not read. So the package that is
        # installed here takes precedence over an editable install of it there.
        shared = [path for path in sys.path if path.endswith(('site-packages', 'dist-packages'))]
        (site / 'shared.pth').write_text('\n'.join(shared))
        pip('--python', python, 'install', '-q', '--no-index', '--no-deps', '--no-build-isolation', *what, cwd=folder)
        return python, site

    return make


@pytest.fixture(scope='module')
def installed(fresh_environment, wheels):
    return fresh_environment(wheels['repository'])


@pytest.mark.slow
def test_the_wheel_holds_everything_once(wheels, repository):
    expected = [f'mmcasvit/{file}' for file in files_in(repository / 'mmcasvit')]
    expected += [
        f'mmcasvit/.mim/{folder}/{file}' for folder in ('configs', 'tools') for file in files_in(repository / folder)
    ] + ['mmcasvit/.mim/model-index.yml']
    assert {Path(file).suffix for file in expected if '.mim' in Path(file).parts} == {'.py', '.yml'}
    assert 'mmcasvit/py.typed' in expected
    for wheel in wheels.values():
        files = zipfile.ZipFile(wheel).namelist()
        assert sorted(file for file in files if '.dist-info/' not in file) == sorted(expected)
        assert any(file.endswith('.dist-info/licenses/LICENSE') for file in files)
        # mim looks for a config only by the name of its file
        names = Counter(Path(file).name for file in files)
        assert [name for name in CONFIGS if names[f'{name}.py'] != 1] == []


@pytest.mark.slow
def test_names_work_from_an_empty_folder(installed, tmp_path):
    python, site = installed
    code = f"""
import json, runpy, sys, mmcasvit
model = mmcasvit.get_model({SEGMENTOR!r})
print(json.dumps(dict(file=mmcasvit.__file__, names=mmcasvit.list_configs(), arch=model.cfg.model.backbone.arch,
                      classes=model.dataset_meta['classes'])))
for arguments in (['weights', 'list'], [{DETECTOR!r}]):  # python -m mmcasvit, without another start of Python
    sys.argv[1:] = arguments
    runpy.run_module('mmcasvit', run_name='__main__')"""
    lines = run(python, '-c', code, cwd=tmp_path).splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith('{"file"'))
    found = json.loads(lines[place])
    assert Path(found['file']).parent == site / 'mmcasvit'
    assert sorted(found['names']) == sorted(CONFIGS)
    assert (found['arch'], found['classes'][0]) == ('xs', 'sky')
    assert lines[place + 1].startswith('xs ')
    assert lines[-1] == str(site / 'mmcasvit' / '.mim' / 'configs' / 'detection' / f'{DETECTOR}.py')


@pytest.mark.slow
def test_an_editable_install_uses_the_repository(fresh_environment, repository, tmp_path):
    python, site = fresh_environment('-e', repository)
    assert not (site / 'mmcasvit').exists()
    assert not (repository / 'mmcasvit' / '.mim').exists()
    code = 'import importlib.util; print(importlib.util.find_spec("mmcasvit").origin)'
    assert run(python, '-c', code, cwd=tmp_path).strip() == str(repository / 'mmcasvit/__init__.py')
    # In its parent folder, Python finds the clone, a folder of the package's name without an `__init__.py`, first.
    assert run(python, '-m', 'mmcasvit', '--root', cwd=repository.parent).strip() == str(repository)


@pytest.mark.slow
def test_ten_iterations_from_an_empty_folder(installed, tmp_path):
    """Train and test through mim if it is installed, else with the scripts that it would call."""
    python, site = installed

    def call(tool, *args):
        if not has_openmim():
            return run(python, site / 'mmcasvit' / '.mim' / 'tools' / f'{tool}.py', *args, cwd=tmp_path)
        verb = ('run', '-y', 'mmcasvit', tool) if tool == 'make_dataset' else (tool, '-y', 'mmcasvit')
        return run(python, '-m', 'mim', *verb, *args, cwd=tmp_path)

    call('make_dataset', '--train', 10, '--val', 4, '--size', 64, 96)
    (tmp_path / 'mine.py').write_text(f"""
_base_ = __import__('mmcasvit').config_path({DETECTOR!r})
train_cfg = dict(max_epochs=1, val_interval=1)
train_dataloader = dict(
    batch_size=1, num_workers=0, persistent_workers=False, dataset=dict(filter_cfg=dict(filter_empty_gt=False)))
val_dataloader = dict(num_workers=0, persistent_workers=False)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=1))
""")
    printed = call('train', 'mine.py', '--work-dir', 'trained')
    assert re.search(r'Epoch\(train\) +\[1\]\[10/10\]', printed)
    checkpoint = tmp_path / 'trained' / 'epoch_1.pth'
    config = site / 'mmcasvit' / '.mim' / 'configs' / 'detection' / f'{DETECTOR}.py'
    if has_openmim():
        assert str(site / 'mmcasvit' / '.mim' / 'tools' / 'train.py') in printed
        printed = call('test', config.name, '--checkpoint', checkpoint, '--work-dir', 'tested')
        assert f'will use {config} instead' in printed
    else:
        printed = call('test', config, checkpoint, '--work-dir', 'tested')
    assert f'Load checkpoint from {checkpoint}' in printed
    assert re.search(r'Epoch\(test\) +\[1/1\]', printed)
