"""ncnn files, a ``.ncnn.param`` with the graph and a ``.ncnn.bin`` with the weights, run on the CPU."""

import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mmcasvit.utils.errors import UsageError

from ..signature import KEY, Run, Signature
from .program import SplitAddcmul, quiet

# ncnn reads as many lines as the second one says, so the signature can follow them.
_PREFIX = f'# {KEY} '
# Layers that compute nothing.
_NO_OPERATORS = ('Input', 'Split', 'Noop')


def write(graph: nn.Module, example: Tensor, signature: Signature, path: Path) -> None:
    """Write both files, by pnnx.

    Raises:
        UsageError: If ncnn has no layer for a part of the graph, or the graph depends on the size of its input in a
            way that ncnn cannot express.
    """
    import ncnn
    import pnnx

    with tempfile.TemporaryDirectory() as folder:
        with quiet(), SplitAddcmul():
            torch.jit.save(torch.jit.trace(graph, example, check_trace=False), Path(folder, 'model.pt'))
        other = torch.zeros(1, 3, *(side + 64 for side in signature.size))
        shapes = dict(inputshape=example, inputshape2=other) if signature.dynamic_size else dict(inputshape=example)
        command = [pnnx.EXEC_PATH, 'model.pt', f'fp16={int(signature.precision == "fp16")}']
        command += [f'{name}=[{",".join(map(str, x.shape))}]' for name, x in shapes.items()]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        written = Path(folder, 'model.ncnn.param')
        if done.returncode or not written.is_file():
            raise RuntimeError(f'pnnx failed: {(done.stdout + done.stderr)[-2000:]}')
        unknown = sorted({kind for kind in _layers(written) if ncnn.layer_to_index(kind) < 0})
        if unknown:
            raise UsageError(f'ncnn has no layer for parts of this model, which pnnx calls {", ".join(unknown)}.')
        shutil.copyfile(written.with_suffix('.bin'), path.with_suffix('.bin'))
        path.write_text(f'{written.read_text()}{_PREFIX}{signature.to_json()}\n')
    if signature.dynamic_size:
        _check_size(graph, other, path)


def _check_size(graph: nn.Module, image: Tensor, path: Path) -> None:
    """Check that a file takes an image of another size than that it was traced with."""
    with torch.no_grad():
        wanted = [out.shape for out in graph(image)]
    try:
        found = [out.shape for out in load(path, 1)[1](image)]
    except RuntimeError:
        found = []
    if found != wanted:
        raise UsageError('this model cannot be exported to ncnn with a dynamic size: choose a fixed --size.')


def _layers(path: Path) -> Iterator[str]:
    """Yield the types of the layers of a file, from its third line on."""
    for line in path.read_text().splitlines()[2:]:
        if not line.startswith(_PREFIX):
            yield line.split()[0]


def load(path: Path, threads: int) -> tuple[Signature, Run]:
    import ncnn

    last = path.read_text().splitlines()[-1]
    signature = Signature.from_json(last.removeprefix(_PREFIX) if last.startswith(_PREFIX) else None, path)
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_vulkan_compute = False
    half = signature.precision == 'fp16'  # which ncnn ignores on a processor without fp16
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = half
    if net.load_param(str(path)) or net.load_model(str(path.with_suffix('.bin'))):
        raise UsageError(f'{path} cannot be loaded by ncnn, or {path.with_suffix(".bin").name} does not fit it.')

    def run(x):
        with net.create_extractor() as extractor:
            image = np.ascontiguousarray(x[0].numpy())
            extractor.input('in0', ncnn.Mat(image))
            found = [extractor.extract(f'out{i}') for i in range(len(signature.outputs))]
            if any(code for code, _ in found):
                raise RuntimeError(f'ncnn could not compute the outputs of {path}')
            return [torch.from_numpy(np.array(mat))[None] for _, mat in found]

    return signature, run


def count(path: Path) -> tuple[Counter, Counter]:
    """Count the layers of a file by type, and those that ncnn does not compute on a GPU.

    ncnn's tensors have at most four dimensions and no integers of 64 bits.
    """
    import ncnn

    found = Counter(kind for kind in _layers(path) if kind not in _NO_OPERATORS)
    outside = {kind: number for kind, number in found.items() if not ncnn.create_layer(kind).support_vulkan}
    return found, Counter(outside)
