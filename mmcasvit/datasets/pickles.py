"""Pickled annotations: read as data, without the code that a pickle can run."""

import codecs
import io
import pickle
from typing import Any

import numpy as np
from mmengine.fileio import PickleHandler
from mmengine.fileio.handlers import file_handlers

from mmcasvit.utils.errors import DataError

_PLAIN = {
    **{(f'numpy.{core}.multiarray', '_reconstruct'): np.zeros(1).__reduce__()[0] for core in ('core', '_core')},
    **{(f'numpy.{core}.multiarray', 'scalar'): np.float64(0).__reduce__()[0] for core in ('core', '_core')},
    # Arrays in pickles of protocol 5.
    **{(f'numpy.{core}.numeric', '_frombuffer'): np.zeros(1).__reduce_ex__(5)[0] for core in ('core', '_core')},
    ('numpy', 'ndarray'): np.ndarray,
    ('numpy', 'dtype'): np.dtype,
    ('collections', 'OrderedDict'): dict,
    ('_codecs', 'encode'): codecs.encode,  # the form of bytes in pickles of protocol 2
    **{(module, kind.__name__): kind for module in ('builtins', '__builtin__') for kind in (set, frozenset, bytearray)},
}


class PlainUnpickler(pickle.Unpickler):
    """Unpickler of builtin values and NumPy arrays, which raises :class:`mmcasvit.utils.errors.DataError` on others."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PLAIN:
            raise DataError(
                f'a pickle of the data holds {module}.{name}, and reading that could run code: it was not read. Give '
                'the annotations as JSON.'
            )
        return _PLAIN[module, name]


class PlainPickleHandler(PickleHandler):
    """mmengine's handler of pickle files, which reads only builtin values and NumPy arrays."""

    def load_from_fileobj(self, file: io.IOBase, **kwargs) -> Any:
        return PlainUnpickler(file, **kwargs).load()


def read_pickles_as_data() -> None:
    """Make mmengine read pickle files as data from now on, in this process.

    This holds for everything that mmdet, mmseg and mmpretrain read by ``mmengine.load``, under whatever key and suffix
    a data set names it: annotations, proposals, the metadata of OpenImages.
    """
    for name in ('pickle', 'pkl'):
        file_handlers[name] = PlainPickleHandler()
