"""Files around the package that state the same fact agree."""

import re

import yaml
from helpers.repository import ROOT

from mmcasvit.version import __version__

FAMILIES = ('onedl', 'openmmlab')


def pins(family):
    """Return the version of each package that a lock file names."""
    lines = (ROOT / f'requirements/{family}.lock').read_text().splitlines()
    return dict(line.split('==') for line in lines if re.match(r'[\w.-]+==', line))


def test_every_requirement_is_pinned():
    for family in FAMILIES:
        lines = (ROOT / f'requirements/{family}.txt').read_text().splitlines()
        names = {line.split('==')[0] for line in lines if not line.startswith('#')}
        assert not names - set(pins(family))
    docs = (ROOT / 'requirements/docs.txt').read_text().splitlines()
    assert not [line for line in docs if not re.fullmatch(r'#.*|[\w.-]+==[\w.]+', line)]


def test_pre_commit_uses_the_pinned_versions():
    config = yaml.safe_load((ROOT / '.pre-commit-config.yaml').read_text())
    hooks = [hook for repository in config['repos'] for hook in repository['hooks']]
    found = {tuple(hook['additional_dependencies']) for hook in hooks}
    for family in FAMILIES:
        assert found == {(f'{name}=={pins(family)[name]}',) for name in ('ruff', 'mypy')}


def test_the_workflow_calls_targets_of_the_makefile_on_the_pythons_of_the_lock_files():
    jobs = yaml.safe_load((ROOT / '.github/workflows/test.yml').read_text())['jobs']
    makefile = (ROOT / 'Makefile').read_text()
    commands = [step['run'] for job in jobs.values() for step in job['steps'] if 'run' in step]
    assert commands == ['make lint', 'make docs', 'make test']
    assert all(re.search(rf'^{command.split()[1]}:', makefile, re.MULTILINE) for command in commands)
    matrix = jobs['test']['strategy']['matrix']
    assert tuple(matrix['family']) == FAMILIES
    (check,) = re.findall(r'version_info.*', makefile)
    assert matrix['python-version'] == ['.'.join(pair) for pair in re.findall(r'\((\d+), (\d+)\)', check)]


def test_the_citation_names_the_version_and_the_authors_of_the_readme():
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert citation['version'] == __version__
    authors = citation['preferred-citation']['authors']
    (named,) = re.findall(r'^  author=\{(.*)\},$', (ROOT / 'README.md').read_text(), re.MULTILINE)
    assert ' and '.join(f'{author["family-names"]}, {author["given-names"]}' for author in authors) == named
