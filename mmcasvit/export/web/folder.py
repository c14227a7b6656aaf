"""Static folder of a page that runs a model in the browser, by ONNX Runtime Web.

``page/`` holds the page as it is copied. What differs from model to model is in ``model.onnx`` and ``model.json``.
"""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from mmcasvit.utils.errors import UsageError
from mmcasvit.version import __version__

from ..formats import export, written_whole
from ..signature import Signature
from .preparation import describe_input

PAGE = Path(__file__).parent / 'page'
MODEL, DESCRIPTION = 'model.onnx', 'model.json'
# Where npm puts the runtime, in the folder in which it is called.
RUNTIME = Path('node_modules/onnxruntime-web/dist')
# The two builds of the runtime that the page chooses from. Each names the WebAssembly files that it loads.
BUILDS = ('ort.wasm.min.mjs', 'ort.webgpu.min.mjs')


def find_runtime(folder: Path | None = None) -> Path:
    """Return the folder with the built files of ONNX Runtime Web.

    Args:
        folder: ``dist`` folder of the npm package. Defaults to that in ``node_modules`` of the current folder.

    Raises:
        UsageError: If it is not there, or lacks a file that the page needs.
    """
    found = RUNTIME if folder is None else folder
    if folder is None and not found.is_dir():
        raise UsageError(
            f'ONNX Runtime Web is not in {found.parent} of this folder: run npm install onnxruntime-web here, or name '
            'its dist folder by --ort-dist.'
        )
    for name in runtime_files(found):
        if not (found / name).is_file():
            raise UsageError(
                f'{found} has no {name}: --ort-dist names the dist folder that npm install onnxruntime-web makes, at '
                'node_modules/onnxruntime-web/dist.'
            )
    return found


def runtime_files(folder: Path) -> list[str]:
    """Return the names of the files that the page needs of the runtime, as far as its builds are there."""
    names = list(BUILDS)
    for build in BUILDS:
        if (folder / build).is_file():
            loaded = re.findall(r'ort-wasm-simd-threaded[\w.]*?\.mjs', (folder / build).read_text(encoding='utf-8'))
            names += [name for script in sorted(set(loaded)) for name in (script, f'{script[:-4]}.wasm')]
    return names


def check_page(signature: Signature) -> None:
    """Check that a page can run a graph with a signature.

    Raises:
        UsageError: If it holds only a backbone, has an open batch, or normalizes or resizes images itself.
    """
    if signature.what == 'backbone':
        raise UsageError('--format web shows predictions, and a backbone makes none: leave out --what backbone.')
    if signature.dynamic_batch:
        raise UsageError('--format web predicts on one image at a time: leave out batch after --dynamic.')
    if signature.pixels is not None:
        raise UsageError('--format web prepares images as the test pipeline does: leave out --preprocess and --resize.')


def check_folder(path: Path, overwrite: bool = False) -> None:
    """Check that a page can be written to a folder.

    Args:
        path: Folder that is made.
        overwrite: Replace it if it is such a page.

    Raises:
        UsageError: If its parent does not exist or cannot be written to, or if it exists and is not to be replaced.
    """
    path = Path(os.path.abspath(path))
    if not path.parent.is_dir():
        raise UsageError(f'no folder {path.parent} to make {path.name} in')
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f'{path.parent} cannot be written to.')
    if not os.path.lexists(path):
        return
    # Everything in the folder is deleted, so a slip of the hand must not name another one.
    if path.is_symlink() or not all((path / name).is_file() for name in (DESCRIPTION, MODEL, 'index.html')):
        raise UsageError(f'{path} exists and is not a page of --format web: choose another name by --out.')
    if not overwrite:
        raise UsageError(f'{path} exists. Choose another name by --out, or overwrite it by --force.')


def describe(model: nn.Module, signature: Signature) -> dict[str, Any]:
    """Return what the page has to know about a model, as values for JSON.

    Args:
        model: Model of mmdet or mmseg, as :func:`mmcasvit.apis.model.get_model` returns it.
        signature: Signature of the exported graph.

    Raises:
        UsageError: If the page cannot prepare images as the config does, or the model predicts in windows.
    """
    meta = model.dataset_meta
    classes, palette = list(meta.get('classes') or ()), meta.get('palette')
    if not isinstance(palette, (list, tuple)) or len(palette) < len(classes):
        palette = None  # the page makes up colors
    described = dict(
        name=Path(model.cfg.filename or 'model').stem,
        writer=f'mmcasvit {__version__}',
        task=signature.what,
        precision=signature.precision,
        classes=classes,
        palette=palette and [list(color) for color in palette],
        input=describe_input(model.cfg, model.data_preprocessor, signature),
    )
    if signature.what == 'detector':
        if hasattr(getattr(model, 'bbox_head', None), 'mask_head'):
            raise UsageError(
                'the page draws masks within boxes, and those of RTMDet-Ins cover the image: use --format onnx.'
            )
        roi = getattr(model, 'roi_head', None)
        threshold = roi.test_cfg.get('mask_thr_binary', 0.5) if roi is not None and roi.with_mask else 0.5
        return {**described, 'output': dict(mask_threshold=threshold)}
    mode = model.test_cfg.get('mode', 'whole')
    if mode != 'whole':
        raise UsageError(
            f'the config predicts in windows (mode {mode!r}), and the page on whole images: add '
            '--cfg-options model.test_cfg.mode=whole.'
        )
    head = model.decode_head
    output = dict(
        classes=head.out_channels, argmax=signature.argmax, align_corners=model.align_corners, threshold=head.threshold
    )
    return {**described, 'output': output}


def write_page(
    model: nn.Module, signature: Signature, path: str | Path, runtime: Path, fold: bool | None = None
) -> None:
    """Write a folder with the page, the model in ONNX, its description, and the runtime.

    Args:
        model: Model of mmdet or mmseg, as :func:`mmcasvit.apis.model.get_model` returns it.
        signature: What to export, in the format ``'onnx'``.
        path: Folder to write. An existing page is replaced.
        runtime: Folder that :func:`find_runtime` returns.
        fold: As in :func:`mmcasvit.export.formats.export`.

    Raises:
        UsageError: As in :func:`~mmcasvit.export.formats.export`, or if a page cannot run the model.
    """
    path = Path(os.path.abspath(path))
    check_page(signature)
    check_folder(path, overwrite=True)
    described = describe(model, signature)
    package = runtime.parent / 'package.json'
    described['runtime'] = json.loads(package.read_text(encoding='utf-8'))['version'] if package.is_file() else None
    with written_whole(path) as folder:
        shutil.copytree(PAGE, folder, ignore=shutil.ignore_patterns('__pycache__'))
        export(model, signature, folder / MODEL, fold)
        described['bytes'] = (folder / MODEL).stat().st_size
        (folder / DESCRIPTION).write_text(json.dumps(described, indent=2), encoding='utf-8')
        (folder / 'ort').mkdir()
        for name in runtime_files(runtime):
            shutil.copyfile(runtime / name, folder / 'ort' / name)
