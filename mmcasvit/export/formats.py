"""The table of file formats, and the functions that export to any of them and load any of them.

To add a format, put a function that writes a file and one that loads it into a module of ``runtimes/``, and add a row
to :data:`FORMATS`. ``tools/export.py`` and :func:`load_exported` take the rest from that row.
"""

import importlib.util
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mmcasvit.utils.errors import UsageError
from mmcasvit.utils.text import first_line
from mmcasvit.weights.integrity import rename_durably

from .graphs import build_graph
from .runtimes import coreml, executorch, litert, ncnn, onnx, openvino, pytorch
from .runtimes.program import size_of
from .signature import Run, Signature

# Largest input of a graph. The first feature maps of 8192x8192 pixels take several gigabytes.
LARGEST_INPUT = 8192 * 8192
LARGEST_THREADS = 1024
# What PyTorch's allocator says, in a RuntimeError.
_NO_MEMORY = ("can't allocate memory", 'not enough memory', 'Cannot allocate memory', 'bad_alloc')


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        suffix: Suffix of its files.
        write: Function that writes a graph to a file, called with the graph, an example input, the signature and the
            path.
        load: Function that loads a file, called with the path and the number of threads.
        packages: Packages it needs.
        extra: Extra of this package that installs them.
        precisions: Precisions it can be written in.
        kinds: Kinds of graphs it can hold.
        dynamic: What can be dynamic: ``'batch'``, ``'size'``.
        pixels: Whether its input can be raw pixels, which the graph normalizes.
        runs_here: Function that says whether this machine can run it.
        quantize: Function that turns a file in float32 into one in int8, called with both paths and inputs of the
            graph to calibrate on.
        quantizer: Package that ``quantize`` needs.
        quantizer_extra: Extra of this package that installs it.
        count: Function that counts the operators of a file by type, and those that phones are known not to accelerate
            by reason.
    """

    suffix: str
    write: Callable[[nn.Module, Tensor, Signature, Path], None]
    load: Callable[[Path, int], tuple[Signature, Run]]
    packages: tuple[str, ...] = ()
    extra: str = 'export'
    precisions: tuple[str, ...] = ('fp32', 'fp16', 'bf16')
    kinds: tuple[str, ...] = ('backbone', 'segmentor', 'detector')
    dynamic: tuple[str, ...] = ('batch', 'size')
    pixels: bool = True
    runs_here: Callable[[], bool] = lambda: True
    quantize: Callable[[Path, Path, Sequence[Tensor]], None] | None = None
    quantizer: str | None = None
    quantizer_extra: str = ''
    count: Callable[[Path], tuple[Counter, Counter]] | None = None

    def missing(self) -> list[str]:
        return [package for package in self.packages if importlib.util.find_spec(package) is None]


FORMATS: dict[str, Format] = dict(
    onnx=Format(
        '.onnx',
        onnx.write,
        onnx.load,
        packages=('onnx', 'onnxscript', 'onnxruntime'),
        precisions=('fp32', 'fp16'),
        count=onnx.count,
    ),
    openvino=Format(
        '.xml',
        openvino.write,
        openvino.load,
        packages=('onnx', 'onnxscript', 'openvino'),
        precisions=('fp32', 'fp16', 'bf16', 'int8'),
        quantize=openvino.quantize,
        quantizer='nncf',
        quantizer_extra='quantization',
        count=openvino.count,
    ),
    torchscript=Format('.pt', pytorch.write_torchscript, pytorch.load_torchscript),
    pt2=Format('.pt2', pytorch.write_pt2, pytorch.load_pt2),
    executorch=Format(
        '.pte',
        executorch.write,
        executorch.load,
        packages=('executorch',),
        extra='executorch',
        precisions=('fp32',),
        kinds=('backbone', 'segmentor'),
        dynamic=(),
    ),
    coreml=Format(
        '.mlpackage',
        coreml.write,
        coreml.load,
        packages=('coremltools',),
        extra='coreml',
        precisions=('fp32', 'fp16'),
        kinds=('backbone', 'segmentor'),
        dynamic=(),
        runs_here=lambda: os.uname().sysname == 'Darwin',
        count=coreml.count,
    ),
    litert=Format(
        '.tflite',
        litert.write,
        litert.load,
        packages=('litert_torch', 'ai_edge_litert', 'ai_edge_quantizer'),
        extra='litert',
        precisions=('fp32', 'fp16', 'int8'),
        dynamic=(),
        quantize=litert.quantize,
        count=litert.count,
    ),
    ncnn=Format(
        '.ncnn.param',
        ncnn.write,
        ncnn.load,
        packages=('pnnx', 'ncnn'),
        extra='ncnn',
        precisions=('fp32', 'fp16'),
        dynamic=('size',),
        pixels=False,
        count=ncnn.count,
    ),
)


def check_format(name: str) -> Format:
    """Return the format with a name.

    Raises:
        UsageError: If the name is unknown or a package of the format is missing.
    """
    if name not in FORMATS:
        raise UsageError(f'unknown format {name!r}. Valid: {", ".join(FORMATS)}.')
    known = FORMATS[name]
    if missing := known.missing():
        raise UsageError(f'the format {name} needs {", ".join(missing)}: pip install "mmcasvit[{known.extra}]"')
    return known


def check_signature(signature: Signature) -> None:
    """Check that a graph with a signature can be exported.

    Raises:
        UsageError: If the format does not support it, or its options contradict each other.
    """
    name, known = signature.format, check_format(signature.format)
    if signature.what not in known.kinds:
        raise UsageError(f'{name} can hold a {" or a ".join(known.kinds)}, not a {signature.what}.')
    if signature.precision not in known.precisions:
        raise UsageError(f'{name} can be written in {" or ".join(known.precisions)}, not in {signature.precision}.')
    fixed = [part for part in ('batch', 'size') if part not in known.dynamic]
    if (signature.dynamic_batch and 'batch' in fixed) or (signature.dynamic_size and 'size' in fixed):
        raise UsageError(f'--dynamic: {name} files have a fixed {" and ".join(fixed)}.')
    if signature.pixels is not None and not known.pixels:
        raise UsageError(f'--preprocess: {name} files take normalized images.')
    if signature.argmax and signature.what != 'segmentor':
        raise UsageError(f'--argmax is for segmentors, and this is a {signature.what}.')
    if signature.resize and (signature.pixels is None or signature.dynamic_size or 'size' not in known.dynamic):
        raise UsageError('--resize needs --preprocess, a fixed --size, and a format whose input can have any size.')
    check_size(signature.size)


def check_size(size: tuple[int, int]) -> None:
    """Check the input size of a graph.

    Raises:
        UsageError: If it is too small for the strides of a backbone, or too large to be held.
    """
    height, width = size
    if min(height, width) < 32 or height * width > LARGEST_INPUT:
        raise UsageError(
            f'--size must be at least 32 32 and at most {LARGEST_INPUT} pixels, such as 8192 8192, got {height} '
            f'{width}.'
        )


def check_threads(threads: int) -> None:
    """Check a number of threads.

    Raises:
        UsageError: If a runtime could not start as many.
    """
    if not 1 <= threads <= LARGEST_THREADS:
        raise UsageError(f'--threads must be at least 1 and at most {LARGEST_THREADS}, got {threads}.')


def files_of(path: Path) -> list[Path]:
    """Return the paths that an exported model takes: two for OpenVINO and ncnn, otherwise one, maybe a folder."""
    return [path, path.with_suffix('.bin')] if path.suffix in ('.xml', '.param') else [path]


def check_target(name: str, path: Path, overwrite: bool = True) -> None:
    """Check that a file of a format can be written to a path.

    Args:
        name: Name of the format.
        path: File to write.
        overwrite: Accept that it exists.

    Raises:
        UsageError: If the suffix is wrong, or the folder does not exist or cannot be written to, or the file exists
            and is not to be overwritten.
    """
    if not path.name.endswith(FORMATS[name].suffix):
        raise UsageError(f'{name} files end in {FORMATS[name].suffix}, got {path}')
    folder = path.absolute().parent
    if not folder.is_dir():
        raise UsageError(f'no folder {folder} to write {path.name} to')
    for file in files_of(path):
        if not overwrite and os.path.lexists(file):
            raise UsageError(f'{file} exists. Choose another name by --out, or overwrite it by --force.')
        if file.is_dir() and name != 'coreml':
            raise UsageError(f'{file} is a folder, so no file can be written there: choose another name by --out.')
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UsageError(f'{folder} cannot be written to: {error.strerror}.') from error


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a path to write to, whose file or files then get their place: the target is replaced whole or not at all.

    Raises:
        UsageError: If the files cannot be written, for instance because the disk is full.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=f'.{path.name}.', dir=path.absolute().parent) as folder:
            yield Path(folder, path.name)
            for part in sorted(Path(folder).iterdir()):  # a .bin before its .xml or .param
                rename_durably(part, path.with_name(part.name))
    except OSError as error:
        raise UsageError(f'{path} was not written: {error.strerror or error}.') from error
    except Exception as error:  # writers in C++ hide the reason
        if shutil.disk_usage(path.absolute().parent).free < 2**20:
            raise UsageError(f'{path} was not written: the disk is full.') from error
        raise


def export(
    model: nn.Module, signature: Signature, path: str | Path, fold: bool | None = None, images: Sequence[Tensor] = ()
) -> None:
    """Export a model to a file, which is replaced if it exists, and left as it is if the export fails.

    Args:
        model: Model of mmdet or mmseg, or a bare backbone.
        signature: What to export, and in which format.
        path: File to write, with the suffix of the format.
        fold: Export the deploy form. By default, do so if the model contains a CAS-ViT.
        images: Normalized images ``(N, 3, H, W)``. The deploy form in fp16 is rescaled if they make it overflow.

    Raises:
        UsageError: If a package is missing, the model cannot be exported in this way, it does not fit into memory, or
            the file cannot be written.
    """
    path, known = Path(path), check_format(signature.format)
    check_size(signature.size)
    check_target(signature.format, path)
    if signature.precision == 'int8':
        raise UsageError('int8 needs images to calibrate on: use mmcasvit.export.quantization.export_quantized')
    graph = build_graph(model, signature, fold, images)
    try:
        with written_whole(path) as unfinished:
            known.write(graph, graph.example(), graph.signature, unfinished)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY):
            size = 'x'.join(map(str, signature.size))
            raise UsageError(f'the export at {size} does not fit into memory: choose a smaller --size.') from error
        raise


class Exported:
    """Exported file, ready to run. All formats are called in the same way.

    Attributes:
        signature: Inputs, outputs and options of the graph.
        path: Path of the file.
    """

    def __init__(self, path: Path, threads: int):
        names = [name for name, known in FORMATS.items() if path.name.endswith(known.suffix)]
        if not names:
            suffixes = ', '.join(known.suffix for known in FORMATS.values())
            raise UsageError(f'{path}: unknown format. The suffix of an exported model is one of {suffixes}.')
        if not path.exists():
            raise UsageError(f'exported model not found: {path.absolute()}')
        known = check_format(names[0])
        if not known.runs_here():
            raise UsageError(f'{path}: the format {names[0]} cannot be run on this machine.')
        self.path = path
        try:
            self.signature, self._run = known.load(path, threads)
        except UsageError:
            raise
        except Exception as error:  # each runtime raises types of its own
            raise UsageError(f'{path} cannot be loaded: {first_line(error)}') from error

    def __call__(self, image: Tensor) -> dict[str, Tensor]:
        """Run a batch. If the batch of the file is fixed, run its images one by one.

        Args:
            image: Input as described by the signature: ``(N, 3, H, W)`` normalized in float32, or pixels
                ``(N, H, W, 3)`` in uint8.

        Returns:
            The outputs by name.
        """
        if image.shape[0] > 1 and not self.signature.dynamic_batch:
            single = [self(part) for part in image.split(1)]
            return {name: torch.cat([found[name] for found in single]) for name in self.signature.outputs}
        return dict(zip(self.signature.outputs, self._run(image.contiguous())))

    @property
    def bytes(self) -> int:
        """Size of the file, of both files of OpenVINO or ncnn, or of all files of a Core ML package."""
        return sum(map(size_of, files_of(self.path)))


def load_exported(path: str | Path, threads: int | None = None) -> Exported:
    """Load a file written by :func:`export` or ``tools/export.py``.

    Args:
        path: File whose suffix determines the format.
        threads: Number of threads of the runtime. Defaults to that of PyTorch.

    Raises:
        UsageError: If the file does not exist, is not an exported model, or its runtime is not installed.

    Example::

        run = load_exported('retinanet.onnx')
        boxes = run(torch.zeros(1, 3, *run.signature.size))['boxes']
    """
    return Exported(Path(path), threads or torch.get_num_threads())
