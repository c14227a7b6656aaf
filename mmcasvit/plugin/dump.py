"""Writing of plugged configs: a file that inherits the old config where possible."""

import os
import tempfile
import textwrap
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmcasvit.utils.errors import PlugError, UsageError

from .source import FRAMEWORKS, config_file, package_configs, read_config


def config_text(source: str | Path, new: Config, out: Path, notes: list[str]) -> str:
    """Return the text of the new config: the changes if the old config can be inherited, else the whole config.

    Each candidate is read back with mmengine and compared with ``new``.

    Args:
        source: Path or name of the old config.
        new: The new config.
        out: The file to write. Its folder must exist, since relative paths start there.
        notes: The list of changes, for a comment at the top.

    Raises:
        UsageError: No text reads back as the same config.
    """
    old, wanted = read_config(source).to_dict(), new.to_dict()
    comment = ''.join(
        f'{line}\n'
        for note in [f'CAS-ViT in {source}, by tools/plug.py.', *notes]
        for line in textwrap.wrap(
            note, 120, initial_indent='# ', subsequent_indent='#   ', break_long_words=False, break_on_hyphens=False
        )
    )
    bases = [f'_base_ = {_base(source, out)!r}\n\n', '']
    for base, cfg in zip(bases, [Config(overrides(old, wanted)), new]):
        text = f'{comment}{base}{cfg.pretty_text}'
        with tempfile.NamedTemporaryFile('w', suffix='.py', prefix='_plug_', dir=out.parent, encoding='utf-8') as file:
            file.write(text)
            file.flush()
            try:
                found = Config.fromfile(file.name)
            except Exception as error:  # such as a package that mmengine looks for under another name
                failure = str(error)
                continue
        if without_scopes(found.to_dict()) == without_scopes(wanted):
            return text
        failure = 'it reads back as another config'
    raise UsageError(f'the new config cannot be written as a file: {failure}')


def _base(source: str | Path, out: Path) -> str:
    """Return the ``_base_`` of the new config: a package name if there is one, else a relative path."""
    file = config_file(source).resolve()
    for package in FRAMEWORKS:
        try:
            configs = package_configs(package).resolve()
        except PlugError:
            continue
        if file.is_relative_to(configs):
            # Not a path, since packages are installed elsewhere on other machines.
            return f'{package}::{file.relative_to(configs).as_posix()}'
    return Path(os.path.relpath(file, out.parent.resolve())).as_posix()


def overrides(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return what a config that inherits ``old`` must state to equal ``new``."""
    changed = {}
    for key, value in new.items():
        before = old.get(key)
        if key in old and value == before and type(value) is type(before):
            continue
        if isinstance(value, dict) and isinstance(before, dict):
            # Merging removes no key, and another type has other keys.
            replaced = before.keys() - value.keys() or before.get('type') != value.get('type')
            changed[key] = {'_delete_': True, **value} if replaced else overrides(before, value)
        else:
            changed[key] = value
    return changed


def without_scopes(node: Any) -> Any:
    """Return a copy of a config without the ``_scope_`` entries that ``_base_ = 'package::...'`` adds."""
    if isinstance(node, dict):
        return {key: without_scopes(value) for key, value in node.items() if key != '_scope_'}
    return type(node)(map(without_scopes, node)) if isinstance(node, (list, tuple)) else node
