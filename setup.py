import shutil
import tempfile
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
version = {}
exec((HERE / 'mmcasvit' / 'version.py').read_text(), version)
# ONNX with its runtime, and OpenVINO's, which reads ONNX.
EXPORT = ['onnx', 'onnxscript', 'onnxruntime', 'openvino']
# Not in ./build: modules that are gone by now would come back from there, and copies of configs be found by mim.
build_dir = tempfile.TemporaryDirectory(prefix='mmcasvit-build-')


class BuildPyWithConfigs(build_py):
    """Copies configs, tools and the model index into the built package, to where mim and mmengine look for them.

    An editable install needs no copy: :mod:`mmcasvit.model_zoo` finds the folders of the repository.
    """

    def run(self):
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib, 'mmcasvit', '.mim')
        for folder in ('configs', 'tools'):
            shutil.copytree(HERE / folder, target / folder, ignore=shutil.ignore_patterns('__pycache__', '*.pyc', '.*'))
        shutil.copy(HERE / 'model-index.yml', target)


setup(
    name='mmcasvit',
    version=version['__version__'],
    description='CAS-ViT (Convolutional Additive Self-attention Vision Transformer) as a backbone for OpenMMLab',
    long_description=(HERE / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['mmcasvit', 'mmcasvit.*']),
    cmdclass=dict(build_py=BuildPyWithConfigs),
    options=dict(build=dict(build_base=build_dir.name)),
    python_requires='>=3.10',
    # The OpenMMLab packages come in two families with the same import names (onedl-* and OpenMMLab's own), of which
    # only one can be installed: see requirements/. Naming either here would pull it in over the other.
    install_requires=['torch>=2.7', 'numpy'],
    extras_require={
        'onedl': [
            'onedl-mmengine>=0.10.12',
            'onedl-mmcv>=2.3.6',
            'onedl-mmdetection>=3.5.1',
            'onedl-mmsegmentation>=1.4.2',
            'ftfy',
            'regex',
        ],
        'openmmlab': [
            'mmengine>=0.10.7',
            'mmcv>=2.1.0,<2.2',
            'mmdet>=3.3.0',
            'mmsegmentation>=1.2.2',
            'ftfy',
            'regex',
            'numpy<2',
            'setuptools<81',
        ],
        # Newer releases of openxlab, which mim brings along, ask for a setuptools of 2022.
        'mim': ['openmim>=0.3.9', 'openxlab<=0.0.11', 'setuptools<81'],
        # And a torchvision that was built for the installed PyTorch: named here, it would bring its own PyTorch along.
        # mmpretrain itself, and with it mmdet, cannot be imported beside transformers 5.
        'classification': ['onedl-mmpretrain>=1.3.6'],
        'classification-openmmlab': ['mmpretrain>=1.2.0'],
        # mmdet imports mmpretrain where it is installed, and that fails beside transformers 5.
        'benchmark': ['transformers>=4.40,<5', *EXPORT],
        'export': EXPORT,
        # Quantises what is exported for OpenVINO.
        'quantization': [*EXPORT, 'nncf>=3.4'],
        'coreml': ['coremltools>=9'],
        'executorch': ['executorch>=1.5'],
        # httpx is for tools/load_test.py.
        'serve': [*EXPORT, 'fastapi', 'uvicorn', 'python-multipart', 'httpx'],
        # Earlier releases refuse Pillow 13. pyarrow 26 wants NumPy 2, and OpenMMLab's own packages NumPy 1.
        'explore': ['streamlit>=1.67', 'pyarrow<26'],
        'safetensors': ['safetensors'],
        'tensorboard': ['tensorboard'],
        # timm wants torchvision: have the one of the installed PyTorch first, or pip replaces PyTorch to satisfy it.
        'timm': ['timm>=1.0.31'],
        'test': ['pytest', 'pytest-xdist', 'ruff', 'tensorboard', 'safetensors'],
    },
)
