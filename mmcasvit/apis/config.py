"""Configs, loaded by name or path, with the overrides of the command line."""

import difflib
import functools
import importlib
import importlib.util
import os
from pathlib import Path

import mmengine.config.config
import mmengine.config.utils
from mmengine.config import Config
from mmengine.utils import import_modules_from_strings

from mmcasvit.utils.errors import UsageError

# The frameworks that configs can be for, and the package to install for each.
FRAMEWORKS = dict(mmdet='onedl-mmdetection', mmseg='onedl-mmsegmentation', mmpretrain='"mmcasvit[classification]"')


def find_bases_quickly() -> None:
    """Make mmengine read the metafiles of a package once, and not at all for a base, which none of them lists.

    It looks for each ``mmdet::_base_/...`` in the hundred metafiles of mmdet, which takes longer than reading a config.
    """
    find = mmengine.config.config._get_external_cfg_path
    if hasattr(find, '__wrapped__'):
        return

    @functools.wraps(find)
    def find_quickly(package_path: str, cfg_file: str) -> str:
        if cfg_file.startswith('_base_/'):
            raise ValueError(f'{cfg_file} is not in a metafile')  # mmengine then looks for the file itself
        return find(package_path, cfg_file)

    mmengine.config.utils.load = functools.cache(mmengine.config.utils.load)
    mmengine.config.config._get_external_cfg_path = find_quickly


def nearest_config(file: Path) -> Path | None:
    """Return the config in the folder of a missing file whose name is most similar, if any is similar."""
    near = difflib.get_close_matches(file.name, [path.name for path in file.parent.glob('*.py')], n=1, cutoff=0.5)
    return file.parent / near[0] if near else None


def load_config(path: str, options: dict | None = None) -> Config:
    """Load a config file and apply ``--cfg-options``.

    A top-level ``data_root`` in the options moves every dataset and annotation file in the old one. Plain merging would
    only change a variable that nothing reads.

    Args:
        path: A ``.py``, ``.json`` or ``.yaml`` config, or a name from :func:`list_configs`.
        options: The values of ``--cfg-options``.

    Raises:
        UsageError: If the file does not exist, cannot be read, or is for another framework, or if the options do not
            fit.
    """
    file = Path(path)
    if not file.is_file() and file.name == path:
        file = _config_files().get(path.removesuffix('.py'), file)
    if not file.is_file():
        near = nearest_config(file)
        raise UsageError(f'config not found: {file.absolute()}' + (f'. Did you mean {near}?' if near else ''))
    try:
        cfg = Config.fromfile(file, import_custom_modules=False)
    except Exception as error:
        raise UsageError(f'config {file} cannot be read: {type(error).__name__}: {error}') from error
    if cfg.get('default_scope') not in FRAMEWORKS:
        raise UsageError(
            f'config {file} has default_scope {cfg.get("default_scope")!r}; expected one of {", ".join(FRAMEWORKS)}.'
        )
    _import_framework(cfg.default_scope, file)
    try:
        import_modules_from_strings(**cfg.get('custom_imports', dict(imports=[])))
    except ImportError as error:
        raise UsageError(f'config {file} cannot be read: {error}: {error.__context__}') from error
    options = dict(options or {})
    old_root, new_root = cfg.get('data_root'), options.get('data_root')
    for key in ('data_root', 'work_dir'):
        if key in options and not isinstance(options[key], str):
            raise UsageError(f'--cfg-options: {key} must be a folder, got {options[key]!r}.')
    try:
        cfg.merge_from_dict(options)
    except Exception as error:  # mmengine raises nearly anything
        raise UsageError(f'--cfg-options do not fit the config {file}: {error}') from error
    _check_types(cfg, file)
    if new_root is not None:
        advice = 'Override the data_root of each dataset instead, such as train_dataloader.dataset.data_root=DIR.'
        if old_root is None:
            raise UsageError(f'config {file} has no data_root. {advice}')
        if not _move_data_root(cfg._cfg_dict, old_root, new_root):
            raise UsageError(f'no dataset of config {file} is in its data_root {old_root}. {advice}')
    return cfg


def _check_types(cfg: Config, file: Path) -> None:
    """Check that the parts of a config that the tools change are dicts."""
    parts = {'model': cfg.get('model')}
    if isinstance(cfg.get('model'), dict):
        parts |= {f'model.{name}': cfg.model[name] for name in ('backbone', 'neck') if cfg.model.get(name) is not None}
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        if cfg.get(name) is not None:
            parts[name] = cfg[name]
            parts[f'{name}.dataset'] = cfg[name].get('dataset') if isinstance(cfg[name], dict) else {}
    for name, part in parts.items():
        if not isinstance(part, dict):
            raise UsageError(f'{name} of config {file} must be a dict, got {part!r}.')


def _import_framework(name: str, config: Path) -> None:
    if importlib.util.find_spec(name) is None:
        raise UsageError(
            f'config {config} needs {name}, which is not installed: pip install {FRAMEWORKS[name]} (or '
            "OpenMMLab's own release, see requirements/)."
        )
    try:
        importlib.import_module(name)
    except Exception as error:  # a package that does not like its environment raises nearly anything
        hint = (
            ' Install the torchvision that was built for the installed PyTorch.' if 'torchvision' in str(error) else ''
        )
        raise UsageError(f'config {config} needs {name}, which cannot be imported: {error}.{hint}') from error


def _move_data_root(node, old: str, new: str) -> int:
    """Replace the old root in the settings of datasets and evaluators, and return the number of replacements."""
    if isinstance(node, dict):
        items = list(node.items())
    elif isinstance(node, list):
        items = list(enumerate(node))
    else:
        return 0
    moved = 0
    for key, value in items:
        if key in ('data_root', 'ann_file') and isinstance(value, str) and value.startswith(old):
            node[key] = os.path.join(new, value[len(old) :].lstrip('/'))
            moved += 1
        else:
            moved += _move_data_root(value, old, new)
    return moved


def root() -> Path:
    """Return the folder with ``configs`` and ``tools``: ``mmcasvit/.mim``, or the repository if installed from it."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / '.mim', package.parent):
        if (folder / 'configs').is_dir():
            return folder
    raise UsageError(
        f'{package} was installed without its configs. Install it with pip, from the repository, its sdist or its '
        'wheel.'
    )


def _config_files() -> dict[str, Path]:
    return {file.stem: file for file in sorted((root() / 'configs').rglob('*.py')) if '_base_' not in file.parts}


def list_configs() -> list[str]:
    """Return the names of all configs, such as ``retinanet_casvit-xs_fpn_1x_coco``."""
    return list(_config_files())


def config_path(name: str | Path) -> str:
    """Return the path of a config, for example for ``_base_`` in a config of your own.

    Args:
        name: A name from :func:`list_configs`, with or without ``.py``, or the path of any config file.

    Raises:
        UsageError: If neither a file nor a config has this name. The message lists the most similar names.

    Example::

        _base_ = __import__('mmcasvit').config_path('retinanet_casvit-xs_fpn_1x_coco')
    """
    if Path(name).is_file():
        return str(Path(name).absolute())
    files = _config_files()
    wanted = Path(name).name.removesuffix('.py')
    if wanted not in files:
        near = [file for file in files if wanted in file][:3] or difflib.get_close_matches(wanted, files, cutoff=0.5)
        raise UsageError(
            f'no file and no config of mmcasvit is named {name}. '
            + (f'Did you mean {" or ".join(near)}?' if near else 'List all configs: python -m mmcasvit')
        )
    return str(files[wanted])


def get_config(name: str | Path) -> Config:
    """Load a config by name or path.

    Raises:
        UsageError: If it does not exist or cannot be read, or if its framework is not installed.
    """
    return load_config(config_path(name))
