"""Configs of installed packages, and their nodes."""

import importlib
import importlib.util
import numbers
import traceback
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.utils import import_modules_from_strings

from mmcasvit.apis.config import nearest_config
from mmcasvit.utils.errors import PlugError

FRAMEWORKS = ('mmdet', 'mmseg')
# Parts of a model's config that never read the features of its own backbone.
NO_READERS = ('backbone', 'neck', 'data_preprocessor', 'train_cfg', 'test_cfg', 'init_cfg')


def read_config(name: str | Path) -> Config:
    """Reads a config by path or by its name in an installed package, without importing what it asks to import.

    mmengine resolves such names for a fixed list of distributions, of which not every release has the name; this
    looks into the folder of the installed package.

    Raises:
        PlugError: there is no such config, or it cannot be read.
    """
    file = config_file(name)
    try:
        # The old backbone may be all that custom_imports is for, and its package may be absent.
        return Config.fromfile(file, import_custom_modules=False)
    except Exception as error:
        raise PlugError(f'config {file} cannot be read: {shortened(error)}') from error


def config_file(name: str | Path) -> Path:
    """The file behind a path or a name such as ``'mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py'``.

    Raises:
        PlugError: there is none.
    """
    package, separator, rest = str(name).partition('::')
    if not separator:
        file = Path(name).expanduser()
        if not file.is_file():
            raise PlugError(f'config not found: {file.absolute()}')
        return file
    folder = package_configs(package)
    file = folder / rest
    if not file.is_file():
        near = nearest_config(file)
        raise PlugError(
            f'{package} has no config {rest} in {folder}' + (f'. Did you mean {near.name}?' if near else '')
        )
    return file


def package_configs(package: str) -> Path:
    """The folder of the configs that an installed package brings.

    Raises:
        PlugError: it is not installed, or brings none.
    """
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise PlugError(f'{package} is not installed')
    root = Path(spec.submodule_search_locations[0])
    for folder in (root / '.mim' / 'configs', root.parent / 'configs'):
        if folder.is_dir():
            return folder
    raise PlugError(f'{package} in {root} brings no configs')


def framework_of(cfg: Config) -> str:
    """``'mmdet'`` or ``'mmseg'``."""
    scope = cfg.get('default_scope')
    return scope if scope in FRAMEWORKS else 'mmseg' if 'decode_head' in cfg.model else 'mmdet'


def type_name(cfg: dict) -> str:
    type_ = cfg.get('type')
    return type_ if isinstance(type_, str) else getattr(type_, '__name__', str(type_))


def nodes(node, where: str) -> Iterator[tuple[str, ConfigDict]]:
    """All dicts of a config, with their paths, from the outside in."""
    if isinstance(node, dict):
        yield where, node
        for key, value in node.items():
            yield from nodes(value, f'{where}.{key}' if where else key)
    elif isinstance(node, (list, tuple)):
        for i, value in enumerate(node):
            yield from nodes(value, f'{where}[{i}]')


def check_structure(cfg: Config) -> None:
    """Refuses what has no backbone of its own, or a second one that reads the first."""
    model = cfg.get('model')
    if not isinstance(model, dict):
        raise PlugError('the config has no model')
    if cfg.get('default_scope') not in (None, *FRAMEWORKS):
        raise PlugError(f'the config has default_scope {cfg.default_scope!r}; plug knows mmdet and mmseg')
    if not isinstance(model.get('backbone'), dict):
        inner = [where for where, node in nodes(model, 'model') if isinstance(node.get('backbone'), dict)]
        if inner:
            raise PlugError(
                f'{type_name(model)} wraps another model: its backbone is {inner[0]}.backbone. Plug '
                'CAS-ViT into a config of the inner model, and wrap the result'
            )
        raise PlugError(f'{type_name(model)} has no backbone entry that could be replaced')
    if model.get('language_model'):
        raise PlugError(
            f'{type_name(model)} reads text too, and its checkpoints were trained on images and words '
            'with the old backbone: behind another one they mean nothing. Take a detector without a '
            'language model'
        )
    for where, node in nodes({key: model[key] for key in model if key != 'backbone'}, 'model'):
        if where.endswith('.shared_head'):
            raise PlugError(
                f'{where} is the last stage of the old backbone, moved into the head. Take a config of '
                'the same detector with an FPN neck'
            )
        if where != 'model' and any(isinstance(node.get(key), dict) for key in node if key.endswith('backbone')):
            raise PlugError(
                f'{where} has a backbone of its own, which works on the outputs of the first. Take a '
                'config of the same model with another neck'
            )


def is_channels(value) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def import_modules(cfg: Config) -> None:
    try:
        import_modules_from_strings(**cfg.get('custom_imports') or dict(imports=[]))
    except ImportError as error:
        raise PlugError(
            f'custom_imports of the config fail: {error}. Install what they name, or remove them'
        ) from error


def shortened(error: Exception, limit: int = 300) -> str:
    text = ' '.join(str(error).split()).rstrip('.')
    if not text and error.__traceback__ is not None:  # a bare assert
        frame = traceback.extract_tb(error.__traceback__)[-1]
        text = f'{Path(frame.filename).name}, line {frame.lineno}: {frame.line}'
    text = f'{type(error).__name__}: {text}'
    return text if len(text) <= limit else f'{text[:limit]}...'
