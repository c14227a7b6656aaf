"""Old configs: finding and reading them, walking their nodes, refusing those that cannot be plugged."""

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
    """Read a config from a path or from an installed package, without running its ``custom_imports``.

    mmengine resolves package names through a fixed list of distributions, which does not cover every release. This
    function looks in the folder of the installed package instead.

    Args:
        name: A path, or a name such as ``'mmdet::atss/atss_r50_fpn_1x_coco.py'``.

    Raises:
        PlugError: The config does not exist or cannot be read.
    """
    file = config_file(name)
    try:
        # custom_imports may only serve the old backbone, whose package may not be installed.
        return Config.fromfile(file, import_custom_modules=False)
    except Exception as error:
        raise PlugError(f'config {file} cannot be read: {shorten_error(error)}') from error


def config_file(name: str | Path) -> Path:
    """Return the file for a path or for a name in an installed package.

    Args:
        name: As in :func:`read_config`.

    Raises:
        PlugError: There is no such file.
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
    """Return the folder of configs that an installed package ships.

    Raises:
        PlugError: The package is not installed or ships no configs.
    """
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise PlugError(f'{package} is not installed')
    root = Path(spec.submodule_search_locations[0])
    for folder in (root / '.mim' / 'configs', root.parent / 'configs'):
        if folder.is_dir():
            return folder
    raise PlugError(f'{package} in {root} ships no configs')


def framework_of(cfg: Config) -> str:
    """Return ``'mmdet'`` or ``'mmseg'``."""
    scope = cfg.get('default_scope')
    return scope if scope in FRAMEWORKS else 'mmseg' if 'decode_head' in cfg.model else 'mmdet'


def type_name(cfg: dict) -> str:
    """Return the ``type`` of a config node as text, also where it is a class or missing."""
    kind = cfg.get('type')
    return kind if isinstance(kind, str) else getattr(kind, '__name__', str(kind))


def nodes(node, where: str) -> Iterator[tuple[str, ConfigDict]]:
    """Yield every dict of a config with its path, outer dicts before inner ones."""
    if isinstance(node, dict):
        yield where, node
        for key, value in node.items():
            yield from nodes(value, f'{where}.{key}' if where else key)
    elif isinstance(node, (list, tuple)):
        for i, value in enumerate(node):
            yield from nodes(value, f'{where}[{i}]')


def check_structure(cfg: Config) -> None:
    """Check that a config has exactly one backbone, at ``model.backbone``, and that it can be replaced.

    Raises:
        PlugError: There is no such backbone, or other parts of the model are tied to the old one.
    """
    model = cfg.get('model')
    if not isinstance(model, dict):
        raise PlugError('the config has no model')
    if cfg.get('default_scope') not in (None, *FRAMEWORKS):
        raise PlugError(f'the config has default_scope {cfg.default_scope!r}; plug supports mmdet and mmseg')
    if not isinstance(model.get('backbone'), dict):
        inner = [where for where, node in nodes(model, 'model') if isinstance(node.get('backbone'), dict)]
        if inner:
            raise PlugError(
                f'{type_name(model)} wraps another model: its backbone is {inner[0]}.backbone. Plug CAS-ViT into the '
                'config of the inner model, then wrap the result'
            )
        raise PlugError(f'{type_name(model)} has no backbone entry to replace')
    if model.get('language_model'):
        raise PlugError(
            f'{type_name(model)} reads text too, and its checkpoints were trained on images and text with the old '
            'backbone, so they are useless with another one. Use a detector without a language model'
        )
    for where, node in nodes({key: model[key] for key in model if key != 'backbone'}, 'model'):
        if where.endswith('.shared_head'):
            raise PlugError(
                f'{where} is the last stage of the old backbone, moved into the head. Use a config of the same '
                'detector with an FPN neck'
            )
        if where != 'model' and any(isinstance(node.get(key), dict) for key in node if key.endswith('backbone')):
            raise PlugError(
                f'{where} has a backbone of its own, which reads the outputs of the first. Use a config of the same '
                'model with another neck'
            )


def is_integer(value) -> bool:
    """Return True for an integer that is not a bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def import_modules(cfg: Config) -> None:
    """Run the ``custom_imports`` of a config.

    Raises:
        PlugError: A module cannot be imported.
    """
    try:
        import_modules_from_strings(**cfg.get('custom_imports') or dict(imports=[]))
    except ImportError as error:
        raise PlugError(
            f'custom_imports of the config failed: {error}. Install the missing packages, or remove the imports'
        ) from error


def shorten_error(error: Exception, limit: int = 300) -> str:
    """Return the type and message of an error on one line of at most ``limit`` characters and an ellipsis."""
    text = ' '.join(str(error).split()).rstrip('.')
    if not text and error.__traceback__ is not None:  # a bare assert
        frame = traceback.extract_tb(error.__traceback__)[-1]
        text = f'{Path(frame.filename).name}, line {frame.lineno}: {frame.line}'
    text = f'{type(error).__name__}: {text}'
    return text if len(text) <= limit else f'{text[:limit]}...'
