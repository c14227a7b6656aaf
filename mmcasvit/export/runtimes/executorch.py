"""ExecuTorch programs: layers that XNNPACK supports run in it, the others in ExecuTorch's portable operators."""

from pathlib import Path

import torch
from torch import Tensor, nn

from mmcasvit.utils.errors import UsageError

from ..signature import KEY, Run, Signature
from .program import quiet, to_program

# Loaded programs crash when the size of the shared thread pool changes.
_threads: dict[str, int] = {}


def write(graph: nn.Module, example: Tensor, signature: Signature, path: Path) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    with quiet():
        program = to_edge_transform_and_lower(
            # From weights in channels_last format, it writes programs that fail, or that compute something else.
            to_program(graph.to(memory_format=torch.contiguous_format), example, signature),
            partitioner=[XnnpackPartitioner()],
            constant_methods={KEY: signature.to_json()},
        )
        path.write_bytes(program.to_executorch().buffer)


def load(path: Path, threads: int) -> tuple[Signature, Run]:
    from executorch.extension.pybindings.portable_lib import _threadpool_get_thread_count, _unsafe_reset_threadpool
    from executorch.runtime import Runtime

    if _threads.setdefault('all', threads) != threads:
        raise UsageError(
            f'ExecuTorch shares one thread pool among all files of a process: it has {_threads["all"]} threads, '
            f'and {path} was to be loaded with {threads}.'
        )
    if _threadpool_get_thread_count() != threads:
        _unsafe_reset_threadpool(threads)
    program = Runtime.get().load_program(path)
    text = program.load_method(KEY).execute([])[0] if KEY in program.method_names else None
    method = program.load_method('forward')

    def run(x):
        return [out.clone() for out in method.execute([x.contiguous()])]  # the next call overwrites the outputs

    return Signature.from_json(text, path), run
