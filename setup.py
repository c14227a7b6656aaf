from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
version = {}
exec((HERE / 'mmcasvit' / 'version.py').read_text(), version)

setup(
    name='mmcasvit',
    version=version['__version__'],
    description='CAS-ViT (Convolutional Additive Self-attention Vision Transformer) as a backbone for OpenMMLab',
    long_description=(HERE / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['mmcasvit', 'mmcasvit.*']),
    python_requires='>=3.10',
    # The OpenMMLab packages come in two families with the same import names (onedl-* and OpenMMLab's own), of which
    # only one can be installed: see requirements/. Naming either here would pull it in over the other.
    install_requires=['torch>=2.6', 'numpy'],
    extras_require={
        'onedl': ['onedl-mmengine>=0.10.12', 'onedl-mmcv>=2.3.6', 'onedl-mmdetection>=3.5.1',
                  'onedl-mmsegmentation>=1.4.2', 'ftfy', 'regex'],
        'openmmlab': ['mmengine>=0.10.7', 'mmcv>=2.1.0,<2.2', 'mmdet>=3.3.0', 'mmsegmentation>=1.2.2', 'ftfy', 'regex',
                      'numpy<2', 'setuptools<81'],
        'safetensors': ['safetensors'],
        'tensorboard': ['tensorboard'],
        'test': ['pytest', 'ruff', 'tensorboard', 'safetensors'],
    },
)
