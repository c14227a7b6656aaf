"""The file formats: how each is written and run. One signature in, one call out."""

import importlib.util
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mmcasvit.utils.errors import UsageError

from .graphs import build_graph
from .operators import onnx_translations
from .signature import KEY, Signature

Run = Callable[[Tensor], Sequence[Tensor]]


@contextmanager
def _quiet():
    """Without what exporters say of themselves: of operators of an absent torchvision, and of their own future."""
    loggers = [
        logging.getLogger(name)
        for name in ('torch.onnx', 'onnxscript', 'onnx_ir', 'coremltools', 'torch.export', 'torch.fx')
    ]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter('ignore')
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _program(graph: nn.Module, example: Tensor, signature: Signature) -> torch.export.ExportedProgram:
    free, rows = torch.export.Dim.DYNAMIC, signature.pixels is not None
    shape = {}
    if signature.dynamic_batch:
        shape[0] = free
    if signature.free_size:
        shape |= {1: free, 2: free} if rows else {2: free, 3: free}
    try:
        return torch.export.export(graph, (example,), dynamic_shapes=(shape,) if shape else None, strict=False)
    except UsageError:
        raise
    except Exception as error:
        if not shape:
            raise
        raise UsageError(f'this model cannot be exported with a free batch or size: {_first_line(error)}') from error


def write_onnx(graph: nn.Module, example: Tensor, signature: Signature, path: Path) -> None:
    """An ONNX file of standard operators, with the weights inside."""
    import onnx

    with _quiet():
        program = torch.onnx.export(
            _program(graph, example, signature),
            dynamo=True,
            verbose=False,
            input_names=['image'],
            output_names=list(signature.outputs) or None,
            custom_translation_table=onnx_translations(),
        )
    model = program.model_proto
    # Traces of the stack, with paths of this machine in them.
    for parts in (
        model.graph.node,
        model.graph.input,
        model.graph.output,
        model.graph.value_info,
        model.graph.initializer,
    ):
        for part in parts:
            del part.metadata_props[:]
    onnx.helper.set_model_props(model, {KEY: signature.to_json()})
    onnx.save(model, path)


def run_onnx(path: Path, threads: int) -> tuple[Signature, Run]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    signature = Signature.from_json(session.get_modelmeta().custom_metadata_map.get(KEY), path)
    return signature, lambda x: list(map(torch.from_numpy, session.run(None, dict(image=x.numpy()))))


def write_openvino(graph: nn.Module, example: Tensor, signature: Signature, path: Path) -> None:
    """OpenVINO's two files, ``.xml`` and ``.bin``, by way of ONNX."""
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        write_onnx(graph, example, signature, Path(folder, 'model.onnx'))
        model = openvino.Core().read_model(Path(folder, 'model.onnx'))
        model.set_rt_info(signature.to_json(), [KEY])
        openvino.save_model(model, path, compress_to_fp16=signature.precision == 'fp16')


def run_openvino(path: Path, threads: int) -> tuple[Signature, Run]:
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    signature = Signature.from_json(str(model.get_rt_info([KEY]).value) if model.has_rt_info([KEY]) else None, path)
    # Without a hint it would be bf16 wherever the processor has it, and so it is if f16 is asked for in vain.
    hint = dict(fp32='f32', bf16='bf16', fp16='f16', int8='f32')[signature.precision]
    if hint == 'f16' and 'FP16' not in core.get_property('CPU', 'OPTIMIZATION_CAPABILITIES'):
        hint = 'f32'
    compiled = core.compile_model(
        model,
        'CPU',
        {
            'INFERENCE_NUM_THREADS': threads,
            'PERFORMANCE_HINT': 'LATENCY',
            'NUM_STREAMS': 1,
            'INFERENCE_PRECISION_HINT': hint,
        },
    )
    request = compiled.create_infer_request()

    def run(x):
        found = request.infer([x.numpy()], share_inputs=True)
        return [torch.from_numpy(found[output]) for output in compiled.outputs]

    return signature, run


def write_torchscript(graph: nn.Module, example: Tensor, signature: Signature, path: Path) -> None:
    with _quiet():
        traced = torch.jit.trace(graph, example, check_trace=False)
        torch.jit.save(torch.jit.freeze(traced), path, _extra_files={KEY: signature.to_json()})


def run_torchscript(path: Path, threads: int) -> tuple[Signature, Run]:
    extra = {KEY: ''}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)
        module = torch.jit.load(path, _extra_files=extra)
    text = extra[KEY]
    return Signature.from_json(text.decode() if isinstance(text, bytes) else text, path), _in_pytorch(module, threads)


def write_pt2(graph: nn.Module, example: Tensor, signature: Signature, path: Path) -> None:
    with _quiet():
        torch.export.save(_program(graph, example, signature), path, extra_files={KEY: signature.to_json()})


def run_pt2(path: Path, threads: int) -> tuple[Signature, Run]:
    extra = {KEY: ''}
    module = torch.export.load(path, extra_files=extra).module()
    return Signature.from_json(extra[KEY], path), _in_pytorch(module, threads)


# Programs that are loaded crash when the pool changes.
_executorch_threads: dict[str, int] = {}


def write_executorch(graph: nn.Module, example: Tensor, signature: Signature, path: Path) -> None:
    """A program whose layers run in XNNPACK where it knows them, and in ExecuTorch's portable operators elsewhere."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    with _quiet():
        program = to_edge_transform_and_lower(
            _program(graph, example, signature),
            partitioner=[XnnpackPartitioner()],
            constant_methods={KEY: signature.to_json()},
        )
        path.write_bytes(program.to_executorch().buffer)


def run_executorch(path: Path, threads: int) -> tuple[Signature, Run]:
    from executorch.extension.pybindings.portable_lib import _threadpool_get_thread_count, _unsafe_reset_threadpool
    from executorch.runtime import Runtime

    if _executorch_threads.setdefault('all', threads) != threads:
        raise UsageError(
            f'ExecuTorch has one pool of threads for all files of a process, here of '
            f'{_executorch_threads["all"]}; {path} was to have {threads}.'
        )
    if _threadpool_get_thread_count() != threads:
        _unsafe_reset_threadpool(threads)
    program = Runtime.get().load_program(path)
    text = program.load_method(KEY).execute([])[0] if KEY in program.method_names else None
    method = program.load_method('forward')

    def run(x):
        return [out.clone() for out in method.execute([x.contiguous()])]  # the next call overwrites them

    return Signature.from_json(text, path), run


def _in_pytorch(module: nn.Module, threads: int) -> Run:
    from mmcasvit.utils.timing import use_threads

    def run(x):
        with use_threads(threads), torch.no_grad():
            return module(x)

    return run


def write_coreml(graph: nn.Module, example: Tensor, signature: Signature, path: Path) -> None:
    """An ML Program with an image as its input, for iOS 16 and macOS 13 or newer."""
    import coremltools

    _teach_coremltools()
    height, width = signature.size
    with _quiet():
        traced = torch.jit.trace(graph, example, check_trace=False)
        image = (
            coremltools.TensorType('image', shape=(1, 3, height, width))
            if signature.pixels is None
            else coremltools.ImageType(
                'image',
                shape=(1, 3, height, width),
                color_layout=getattr(coremltools.colorlayout, signature.pixels.upper()),
            )
        )
        half, full = coremltools.precision.FLOAT16, coremltools.precision.FLOAT32
        model = coremltools.convert(
            traced,
            convert_to='mlprogram',
            minimum_deployment_target=coremltools.target.iOS16,
            inputs=[image],
            outputs=[coremltools.TensorType(name) for name in signature.outputs],
            compute_precision=half if signature.precision == 'fp16' else full,
        )
    model.user_defined_metadata[KEY] = signature.to_json()
    model.save(str(path))


def _teach_coremltools() -> None:
    """Adds the one operator of the deploy form that coremltools does not know."""
    from coremltools.converters.mil import Builder
    from coremltools.converters.mil.frontend.torch import ops
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY, register_torch_op

    if 'addcmul' in _TORCH_OPS_REGISTRY:
        return

    @register_torch_op
    def addcmul(context, node):
        total, first, second, *_ = ops._get_inputs(context, node)
        context.add(Builder.add(x=total, y=Builder.mul(x=first, y=second), name=node.name))


def run_coreml(path: Path, threads: int) -> tuple[Signature, Run]:
    import coremltools

    model = coremltools.models.MLModel(str(path))
    signature = Signature.from_json(model.user_defined_metadata.get(KEY), path)

    def run(x):
        from PIL import Image

        if signature.pixels is None:
            fed = x.numpy()
        else:
            order = slice(None) if signature.pixels == 'rgb' else slice(None, None, -1)
            fed = Image.fromarray(np.ascontiguousarray(x[0].numpy()[..., order]))
        found = model.predict(dict(image=fed))
        return [torch.from_numpy(np.asarray(found[name])) for name in signature.outputs]

    return signature, run


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        suffix: of its files.
        write: takes graph, example, signature and path.
        run: takes a path and a number of threads, and returns the signature and what runs the graph.
        packages: what must be installed for it.
        extra: of this package, which brings them.
        precisions: what it can be written in.
        what: what of a model it can hold.
        dynamic: whether batch and size can be left open.
        here: whether this machine can run it.
        folds: it takes the model as built, whose norms it folds itself, better than the deploy form.
    """

    suffix: str
    write: Callable[[nn.Module, Tensor, Signature, Path], None]
    run: Callable[[Path, int], tuple[Signature, Run]]
    packages: tuple[str, ...] = ()
    extra: str = 'export'
    precisions: tuple[str, ...] = ('fp32', 'fp16', 'bf16')
    what: tuple[str, ...] = ('backbone', 'segmentor', 'detector')
    dynamic: bool = True
    here: Callable[[], bool] = lambda: True
    folds: bool = False

    def missing(self) -> list[str]:
        return [package for package in self.packages if importlib.util.find_spec(package) is None]


def _on_a_mac() -> bool:
    return os.uname().sysname == 'Darwin'


FORMATS: dict[str, Format] = dict(
    onnx=Format('.onnx', write_onnx, run_onnx, ('onnx', 'onnxscript', 'onnxruntime'), precisions=('fp32', 'fp16')),
    openvino=Format(
        '.xml',
        write_openvino,
        run_openvino,
        ('onnx', 'onnxscript', 'openvino'),
        precisions=('fp32', 'fp16', 'bf16', 'int8'),
        folds=True,
    ),
    torchscript=Format('.pt', write_torchscript, run_torchscript),
    pt2=Format('.pt2', write_pt2, run_pt2),
    executorch=Format(
        '.pte',
        write_executorch,
        run_executorch,
        ('executorch',),
        'executorch',
        ('fp32',),
        ('backbone', 'segmentor'),
        dynamic=False,
        folds=True,
    ),
    coreml=Format(
        '.mlpackage',
        write_coreml,
        run_coreml,
        ('coremltools',),
        'coreml',
        ('fp32', 'fp16'),
        ('backbone', 'segmentor'),
        dynamic=False,
        here=_on_a_mac,
    ),
)


def check_format(name: str) -> Format:
    """The format of a name.

    Raises:
        UsageError: it is unknown, or a package is missing for it.
    """
    if name not in FORMATS:
        raise UsageError(f'unknown format {name!r}. Valid: {", ".join(FORMATS)}.')
    found = FORMATS[name]
    if missing := found.missing():
        raise UsageError(f'the format {name} needs {", ".join(missing)}: pip install "mmcasvit[{found.extra}]"')
    return found


def export(model: nn.Module, signature: Signature, path: str | Path, fold: bool | None = None) -> None:
    """Writes a model into a file.

    Args:
        model: of mmdet or mmseg, or a bare backbone.
        signature: what to make of it, in which format.
        path: the file; its suffix is that of the format.
        fold: export the deploy form; None: unless the runtime of the format folds norms itself.

    Raises:
        UsageError: a package is missing, or this model cannot be exported in this way.
    """
    known = check_format(signature.format)
    if Path(path).suffix != known.suffix:
        raise UsageError(f'a file of {signature.format} ends in {known.suffix}, got {path}')
    if signature.precision == 'int8':
        raise UsageError('int8 needs pictures to calibrate on: mmcasvit.exporting.quantising.export_quantised')
    graph = build_graph(model, signature, not known.folds if fold is None else fold)
    known.write(graph, graph.example(), graph.signature, Path(path))


class Exported:
    """A file that was exported, ready to run: the same call for every format.

    Attributes:
        signature: what goes in and comes out.
        path: of the file.
    """

    def __init__(self, path: Path, threads: int):
        names = [name for name, known in FORMATS.items() if known.suffix == path.suffix]
        if not names:
            raise UsageError(
                f'{path}: the suffix says the format, one of {", ".join(known.suffix for known in FORMATS.values())}.'
            )
        if not path.exists():
            raise UsageError(f'exported model not found: {path.absolute()}')
        known = check_format(names[0])
        if not known.here():
            raise UsageError(f'{path}: the format {names[0]} cannot be run on this machine.')
        self.path = path
        try:
            self.signature, self._run = known.run(path, threads)
        except UsageError:
            raise
        except Exception as error:  # each runtime has a type of its own
            raise UsageError(f'{path} cannot be loaded: {_first_line(error)}') from error

    def __call__(self, image: Tensor) -> dict[str, Tensor]:
        """Computes one batch.

        Args:
            image: as the signature has it: ``(N, 3, H, W)`` normalised, in float32, or pixels ``(N, H, W, 3)`` in
                uint8.

        Returns:
            The outputs by their names.
        """
        if image.shape[0] > 1 and not self.signature.dynamic_batch:
            single = [self(part) for part in image.split(1)]
            return {name: torch.cat([found[name] for found in single]) for name in self.signature.outputs}
        return dict(zip(self.signature.outputs, self._run(image.contiguous())))

    @property
    def bytes(self) -> int:
        """The size of the file, of both files of OpenVINO, of all files of a Core ML package."""
        if self.path.suffix == '.xml':
            return sum(file.stat().st_size for file in (self.path, self.path.with_suffix('.bin')))
        return size_of(self.path)


def size_of(path: Path) -> int:
    """Bytes of a file or of everything in a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob('*') if file.is_file()]
    return sum(file.stat().st_size for file in files)


def load_exported(path: str | Path, threads: int | None = None) -> Exported:
    """Loads what ``tools/export.py`` wrote.

    Args:
        path: the file; its suffix says the format.
        threads: of the runtime; by default as many as PyTorch uses.

    Raises:
        UsageError: it is not there, is something else, or its runtime is not installed.

    Example::

        run = load_exported('retinanet.onnx')
        boxes = run(torch.zeros(1, 3, *run.signature.size))['boxes']
    """
    return Exported(Path(path), threads or torch.get_num_threads())
