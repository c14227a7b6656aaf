"""Configs and checkpoints that can be chosen on the page of ``tools/explore.py``."""

import os
from collections.abc import Sequence
from pathlib import Path

from mmcasvit.apis.config import config_path, list_configs, root
from mmcasvit.utils.errors import UsageError


def find_runs(folders: Sequence[Path]) -> dict[str, list[str]]:
    """Find the configs in folders that have checkpoints next to them, as in a work directory of mmengine.

    Returns:
        The checkpoints of each config: first the best ones, then the newest. Paths below the current folder are
        relative.
    """
    runs = {}
    for folder in folders:
        for place, _, names in sorted(os.walk(folder)):
            checkpoints = [Path(place, name) for name in names if name.endswith(('.pth', '.safetensors'))]
            checkpoints.sort(key=lambda file: (not file.name.startswith('best_'), -file.stat().st_mtime))
            for name in sorted(names):
                if checkpoints and name.endswith('.py'):
                    runs[_shown(Path(place, name))] = list(map(_shown, checkpoints))
    return runs


def _shown(path: Path) -> str:
    path, here = path.absolute(), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def confine(path: str, folders: Sequence[Path]) -> Path:
    """Resolve the path of a file, which must lie in one of the folders. Links are followed first.

    Raises:
        UsageError: If the file lies elsewhere or does not exist.
    """
    try:
        file = Path(path).resolve()
        if not any(file.is_relative_to(folder.resolve()) for folder in folders):
            raise UsageError(
                f'{path} lies outside of the folders that this page may open: '
                f'{", ".join(map(str, folders))}. Start tools/explore.py with its folder.'
            )
        if not file.is_file():
            raise UsageError(f'file not found: {path}')
    except (OSError, ValueError, RuntimeError) as error:  # too long, with null characters, circular links
        raise UsageError(f'{path!r} is not a valid path: {error}') from error
    return file


def check_choice(config: str | None, checkpoint: str | None, folders: Sequence[Path]) -> tuple[str, str]:
    """Return the paths of the config and the checkpoint that the user chose.

    Args:
        config: Name of :func:`mmcasvit.list_configs`, or path in the folders or in the configs of the project.
        checkpoint: Path in the folders.
        folders: Folders that the page may open. Others are refused, because reading a config executes it.

    Raises:
        UsageError: If one is missing or not allowed.
    """
    if not config:
        raise UsageError('choose a config first.')
    if not checkpoint:
        raise UsageError('choose a checkpoint first.')
    file = config_path(config) if config in list_configs() else confine(config, [*folders, root() / 'configs'])
    return str(file), str(confine(checkpoint, folders))
