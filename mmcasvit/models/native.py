"""The layers of the deploy form in C++, compiled when the first one runs on a CPU.

``native.cpp`` says what they compute, and why that is faster. It needs a C++ compiler that has the vector types of GCC
and Clang. Without one, the deploy form runs in PyTorch's operators.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.logging import print_log
from torch import Tensor
from torch.utils.cpp_extension import get_cxx_compiler

SOURCE = Path(__file__).with_suffix('.cpp')
FLAGS = ['-O3', '-march=native', '-ffp-contract=fast', '-fopenmp', '-shared', '-fPIC', '-std=c++17']
# Channels that are computed together, at most. A narrower map needs another form.
LANES = 16
WEIGHTS = 20  # of a block
PRODUCTS = (0, 4, 5, 7, 16, 18)  # those of its 1x1 convolutions
BY_OUTPUT = (11, 12)  # those that are (C_out, C_in), while all others are (C_in, C_out)
DTYPES = (torch.float32, torch.bfloat16)
_POINTER, _INTEGER = ctypes.c_void_p, ctypes.c_int64


class _Mixer(ctypes.Structure):
    _fields_ = [(f'weight{i}', _POINTER) for i in range(7)]


class _Block(ctypes.Structure):
    _fields_ = [(f'weight{i}', _POINTER) for i in range(WEIGHTS)]


class _Halving(ctypes.Structure):
    _fields_ = [('weight', _POINTER), ('bias', _POINTER), *((name, _INTEGER) for name in ('inputs', 'outputs', 'relu'))]


def _cache_folder() -> Path:
    """Return the folder for compiled files of this user, which ``TORCH_EXTENSIONS_DIR`` moves, as for PyTorch's own."""
    root = os.environ.get('TORCH_EXTENSIONS_DIR') or Path.home() / '.cache' / 'torch_extensions'
    return Path(root) / 'mmcasvit'


def _processor() -> str:
    """Return what this machine can do: a home directory may be shared by machines with other instructions."""
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    return platform.machine() + next((line for line in lines if line.startswith(('flags', 'Features'))), '')


def _compiled() -> Path:
    """Compile ``native.cpp`` unless that was done before, and return the file."""
    command = [get_cxx_compiler(), *FLAGS]
    key = hashlib.sha256(repr((SOURCE.read_bytes(), command, _processor())).encode()).hexdigest()[:16]
    file = _cache_folder() / f'native-{key}.so'
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(f'.{os.getpid()}')  # several processes may compile at once
        subprocess.run([*command, '-o', unfinished, SOURCE], check=True, capture_output=True, text=True)
        unfinished.replace(file)
    return file


@functools.cache
def library() -> ctypes.CDLL:
    """Return the compiled library.

    Raises:
        OSError: There is no compiler, or the file cannot be written or loaded.
        subprocess.CalledProcessError: The compiler fails.
    """
    library = ctypes.CDLL(str(_compiled()))
    library.packed_size.argtypes, library.packed_size.restype = [_INTEGER] * 2, _INTEGER
    library.pack_float32.argtypes = [_POINTER, _INTEGER, _INTEGER, _POINTER]
    library.halve_float32.argtypes = [_POINTER] * 4 + [_INTEGER] * 4
    library.block_float32.argtypes = [_POINTER] * 5 + [_INTEGER] * 5
    library.depthwise_gelu_bfloat16.argtypes = [_POINTER] * 4 + [_INTEGER] * 5
    library.mix_bfloat16.argtypes = [_POINTER] * 4 + [_INTEGER] * 4
    return library


@functools.cache
def is_available() -> bool:
    """Return whether the library can be used, after a warning that says why it cannot."""
    try:
        return bool(library())
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:  # RuntimeError: there is no home folder
        reason = (getattr(error, 'stderr', None) or str(error)).strip().splitlines()[0]
        print_log(
            f'the deploy form runs without its layers in C++, about half as fast, since they do not compile: {reason}',
            logger='current',
            level=logging.WARNING,
        )
        return False


def _pointers(*tensors: Tensor | None) -> list[int | None]:
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


def pack(weight: Tensor) -> Tensor:
    """Return a weight ``(C_in, C_out)`` in fp32 in the order in which products read it."""
    packed = weight.new_empty(library().packed_size(*weight.shape))
    library().pack_float32(weight.data_ptr(), *weight.shape, packed.data_ptr())
    return packed


class Halvings:
    """One or two 3x3 convolutions with stride 2, in fp32.

    Args:
        weights: ``(9 * C_in, C_out)`` of each convolution, where the channels of a pixel stand together.
        biases: ``(C_out)`` of each convolution.
        relu: Whether ReLU follows each convolution.
    """

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor], relu: bool):
        self.weights, self.biases = list(map(pack, weights)), biases
        self.layers = (_Halving * len(biases))(
            *(
                _Halving(*_pointers(packed, bias), len(weight) // 9, len(bias), relu)
                for weight, packed, bias in zip(weights, self.weights, biases)
            )
        )


def empty_halved(x: Tensor, biases: Sequence[Tensor]) -> Tensor:
    """Return a map for the output of :func:`halve`, whose values are of no use."""
    height, width = x.shape[2:]
    for _ in biases:
        height, width = (height + 1) // 2, (width + 1) // 2
    return x.new_empty((len(x), height, width, len(biases[-1]))).permute(0, 3, 1, 2)


def halve(x: Tensor, convs: Halvings) -> Tensor:
    """Return the output of convolutions, in channels_last format.

    Args:
        x: ``(N, C_in, H, W)`` in fp32, in any memory format.
        convs: The convolutions.
    """
    result, strides = empty_halved(x, convs.biases), (_INTEGER * 4)(*x.stride())
    library().halve_float32(
        x.data_ptr(), strides, result.data_ptr(), convs.layers, len(convs.layers), len(x), *x.shape[2:]
    )
    return result


class Block:
    """Weights of a block in fp32.

    Args:
        weights: Those of the struct ``Block`` of ``native.cpp``, not packed yet.
    """

    def __init__(self, weights: Sequence[Tensor | None]):
        self.weights = [
            pack(weight) if weight is not None and i in PRODUCTS else weight for i, weight in enumerate(weights)
        ]
        self.struct = _Block(*_pointers(*self.weights))


def block(x: Tensor, buffers: Sequence[Tensor], weights: Block, shape: Sequence[int], tanh: bool) -> None:
    """Compute a block in place, in fp32.

    Args:
        x: Pixels ``(N * H * W, C)``.
        buffers: Pixels ``(N * H * W, C)``, ``(N * H * W, 2C)`` and ``(N * H * W, C)``, whose values are of no use.
        weights: The weights.
        shape: N, H, W and C.
        tanh: Whether GELU is its tanh approximation.
    """
    library().block_float32(*_pointers(x, *buffers), ctypes.byref(weights.struct), *shape, tanh)


def depthwise_gelu(x: Tensor, weight: Tensor, bias: Tensor, shape: Sequence[int], tanh: bool) -> Tensor:
    """Return GELU of a 3x3 depthwise convolution in bf16.

    Args:
        x: Pixels ``(N * H * W, C)``, in bf16, as the result.
        weight: ``(9, C)``, in fp32.
        bias: ``(C)``, in fp32.
        shape: N, H, W and C.
        tanh: Whether GELU is its tanh approximation.
    """
    result = torch.empty_like(x)
    library().depthwise_gelu_bfloat16(*_pointers(x, result, weight, bias), *shape, tanh)
    return result


def add_mixed(x: Tensor, query_key: Tensor, value: Tensor, weights: Sequence[Tensor], shape: Sequence[int]) -> None:
    """Add the output of the token mixer, without its last bias, in place, in bf16.

    Args:
        x: Pixels ``(N * H * W, C)``, in bf16, as query and key ``(N * H * W, 2C)`` and the value ``(N * H * W, C)``.
        weights: Those of the struct ``Mixer`` of ``native.cpp``, in fp32.
        shape: N, H, W and C.
    """
    library().mix_bfloat16(*_pointers(x, query_key, value), ctypes.byref(_Mixer(*_pointers(*weights))), *shape)
