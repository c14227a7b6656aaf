"""Measurement of published figures: what was measured before stays, and the page is written again after each result."""

from collections.abc import Callable, Sequence
from pathlib import Path

from mmcasvit.apis.preflight import check_writable
from mmcasvit.apis.published import PublishedWeights
from mmcasvit.engine.work_dir import WorkDirLock
from mmcasvit.utils.errors import RunStopped, UsageError
from mmcasvit.utils.tables import count_of
from mmcasvit.weights.integrity import write_text

from .page import page_text, reasons, verdicts
from .plan import Job
from .run import other_training, places, read_row, run_jobs


def reproduce(
    jobs: Sequence[Job],
    published: Sequence[PublishedWeights],
    out: Path,
    tolerance: float,
    tell: Callable[[str], None] = print,
) -> bool:
    """Measure figures, and write ``evaluated.md`` or, if recipes are trained, ``trained.md``.

    Args:
        jobs: What to measure; see :func:`~mmcasvit.reproduce.plan.plan`.
        published: All published weights. Those that were measured earlier are on the page as well.
        out: Folder of the results.
        tolerance: Largest difference of figures that agree, in percent points.
        tell: Function called with lines about the progress.

    Returns:
        Whether every figure that could be measured agrees.

    Raises:
        UsageError: If nothing can be measured, or another process writes to the folder.
    """
    name = 'trained' if jobs[0].train else 'evaluated'
    check_writable(out / name)
    (out / name).mkdir(parents=True, exist_ok=True)
    try:
        lock = WorkDirLock(out)
    except RunStopped as error:
        raise UsageError(f'--out: {out} is in use. Wait until the other process ends, or give another one.') from error
    try:
        return _Results(jobs, published, out / name, tolerance, tell).measure()
    finally:
        lock.release()


class _Results:
    """Rows of a page, by the name of the weights."""

    def __init__(
        self,
        jobs: Sequence[Job],
        published: Sequence[PublishedWeights],
        folder: Path,
        tolerance: float,
        tell: Callable[[str], None],
    ):
        self._jobs, self._published, self._folder = jobs, published, folder
        self._page, self._tolerance, self._tell = folder.with_suffix('.md'), tolerance, tell
        self._rows: dict[str, dict] = {weights.name: row for weights in published if (row := read_row(folder, weights))}

    def measure(self) -> bool:
        """Run the jobs that are not done, and return whether every figure that could be measured agrees."""
        waiting = [job for job in self._jobs if not self._has(job)]
        environments = places(self._jobs[0].train)
        before = sum(self._rows.get(job.weights.name, {}).get('status') == 'measured' for job in self._jobs)
        self._tell(
            f'{count_of(len(self._jobs), "checkpoint")}: {before} measured before, {len(waiting)} to measure, '
            f'{len(environments)} at a time'
        )
        if missing := reasons(self._found(), 'missing'):
            self._tell(f'missing:\n{missing}')
        run_jobs(waiting, self._folder, environments, self._add)
        text = self._write()
        self._tell(f'\n{text}\n{self._page}')
        results = {result for job in self._jobs for result in self._verdicts(job.weights).values()}
        if results == {'missing'}:
            raise UsageError(f'nothing can be measured yet. {self._page} says what is missing.')
        return not results & {'differs', 'failed'}

    def _has(self, job: Job) -> bool:
        """Return whether a job needs no run: it was measured before, or cannot be measured."""
        name, row = job.weights.name, self._rows.pop(job.weights.name, None)
        if row is not None and row['status'] == 'measured' and (job.missing or row['settings'] == job.settings):
            self._rows[name] = row  # a file that was deleted after its evaluation is not missing
        elif job.missing:
            self._rows[name] = dict(status='missing', reason='; '.join(job.missing), parts=job.missing)
        elif fault := job.damaged or other_training(self._folder, job):
            self._rows[name] = dict(status='failed', reason=fault)
        return name in self._rows

    def _add(self, job: Job, row: dict) -> None:
        self._rows[job.weights.name] = row
        self._write()
        results = ', '.join(f'{name} {result}' for name, result in self._verdicts(job.weights).items())
        self._tell(f'{job.weights.alias}: {results}, {row["seconds"]:.0f} s {row["reason"]}'.rstrip())

    def _verdicts(self, weights: PublishedWeights) -> dict[str, str]:
        return verdicts(weights, self._rows[weights.name], self._tolerance)

    def _found(self) -> list[tuple[PublishedWeights, dict]]:
        return [(weights, self._rows[weights.name]) for weights in self._published if weights.name in self._rows]

    def _write(self) -> str:
        text = page_text(self._found(), self._tolerance)
        write_text(self._page, text)
        return text
