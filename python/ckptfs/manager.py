# SPDX-License-Identifier: Apache-2.0
"""The steps of a root: which there are, which is the latest and the best, which are kept."""

from __future__ import annotations

import errno
import math
import os
import shutil
from typing import Any, Callable, Literal

from . import names, reading, writing
from .background import AsyncCheckpointer
from .reading import attribute


class CheckpointManager:
    """Saves numbered steps under a directory of a mount, and deletes those that are no longer wanted.

    After each save the rules given here delete what they do not keep, and so do the root's own (`ckptfs config ROOT
    keep_last=3`). The rules here delete steps as `rm -r` does. The latest step and pinned ones always stay. Names are
    read anew at each call.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        *,
        max_to_keep: int | None = None,
        keep_period: int | None = None,
        best_metric: str | None = None,
        best_fn: Callable[[dict], float] | None = None,
        best_mode: Literal["max", "min"] = "max",
        keep_checkpoints_without_metrics: bool = True,
        save_interval_steps: int = 1,
        step_prefix: str | None = None,
        step_format_fixed_length: int | None = None,
        asynchronous: bool = False,
        cleanup_tmp_directories: bool = False,
        read_only: bool = False,
        workers: int | None = None,
    ):
        """
        root          the top of a mount of a native root, or of an empty directory. To read: any directory with steps
                      in any mount.
        max_to_keep   steps that are kept, the latest ones; with best_metric or best_fn the best ones. None: all.
        keep_period   steps whose number it divides are kept, too.
        best_metric   the member of metrics that a step is judged by; best_fn(metrics) does it by a function. best_mode:
                      what is better.
        keep_checkpoints_without_metrics  steps that have none, or not a number (NaN), are kept, too, where the best
                                          are.
        save_interval_steps  save() does nothing for steps that it does not divide.
        step_prefix, step_format_fixed_length  names of steps: "checkpoint", 8 are checkpoint_00000007.
        asynchronous  save() as AsyncCheckpointer does.
        cleanup_tmp_directories  remove what saves that died have left. Only while nobody else saves through this mount.
        read_only     save() and delete() do nothing.
        """
        if best_metric is not None and best_fn is not None:
            raise ValueError("best_metric or best_fn, not both")
        if best_mode not in ("max", "min"):
            raise ValueError(f'best_mode is "max" or "min", not {best_mode!r}')
        for name, value in (
            ("max_to_keep", max_to_keep),
            ("keep_period", keep_period),
            ("save_interval_steps", save_interval_steps),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{name} is at least 1, not {value}")
        self.directory: str = os.fspath(root)
        self._max_to_keep, self._keep_period, self._keep_unmeasured = (
            max_to_keep,
            keep_period,
            keep_checkpoints_without_metrics,
        )
        self._score = best_fn or (None if best_metric is None else lambda found: found[best_metric])
        self._best_mode, self._interval, self._read_only, self._workers = (
            best_mode,
            save_interval_steps,
            read_only,
            workers,
        )
        self._prefix, self._digits = step_prefix, step_format_fixed_length
        self._scores: dict[int, float | None] = {}
        self._saver = AsyncCheckpointer(workers=workers) if asynchronous else None
        self._saving: int | None = None
        os.scandir(self.directory).close()  # or say now why not
        if cleanup_tmp_directories and not read_only:
            for name in os.listdir(root):
                if name.startswith(".") and writing.STAGED in name:
                    shutil.rmtree(os.path.join(root, name), ignore_errors=True)

    # --- which there are

    def all_steps(self) -> list[int]:
        """The numbers of all finished steps, in order."""
        return sorted(self._steps())

    def latest_step(self) -> int | None:
        """The highest finished step, as MOUNT/latest has it; None if there is none."""
        return self._link("latest")

    def best_step(self) -> int | None:
        """The best step by best_metric or best_fn, the later of equal ones. Without these the root's own, as MOUNT/best
        has it. None if there is none.
        """
        if self._score is None:
            return self._link("best")
        scored = [
            (score, step) for step, name in self._steps().items() if (score := self._score_of(step, name)) is not None
        ]
        return max(scored)[1] if scored else None

    def reload(self) -> None:
        """Forget the metrics that were read. (Steps are looked up anew each time; those of other mounts appear within
        the refresh time.)
        """
        self._scores.clear()

    def path(self, step: int) -> str:
        """The directory of a step. FileNotFoundError if there is none."""
        own = self._own(step)
        if attribute(own, "state") == "committed":
            return own
        found = self._steps().get(step)
        if found is None:
            raise FileNotFoundError(f"{self.directory} has no step {step}")
        return os.path.join(self.directory, found)

    def metrics(self, step: int) -> dict | None:
        """The metrics of a step; None if it was saved without."""
        return reading.metrics(self.path(step))

    def metadata(self, step: int) -> dict:
        """The metadata of a step."""
        return reading.metadata(self.path(step))

    # --- what is done to them

    def should_save(self, step: int) -> bool:
        """Would save() do anything? Not for steps that the interval leaves out, nor up to the latest."""
        latest = max((n for n in (self.latest_step(), self._saving) if n is not None), default=-1)
        return not self._read_only and step % self._interval == 0 and step > latest

    def save(
        self,
        step: int,
        target: Any,
        *,
        metrics: dict | None = None,
        metadata: dict | None = None,
        force: bool = False,
        overwrite: bool = False,
    ) -> bool:
        """Save a pytree as a step, then delete what is no longer kept. False if should_save() says no, and neither
        force nor overwrite is set.

        Errors: as ckptfs.save(). With asynchronous=True those of writing come with the next call that waits.
        """
        if self._read_only or not (force or overwrite or self.should_save(step)):
            return False
        path = self._own(step)
        if not overwrite and os.path.lexists(path):
            raise FileExistsError(f"{self.directory} has a step {step}")
        if self._saver:
            self._saver.save(path, target, metrics=metrics, metadata=metadata, overwrite=overwrite, then=self._clean)
            self._saving = step
        else:
            writing.save(path, target, metrics=metrics, metadata=metadata, overwrite=overwrite, workers=self._workers)
            self._clean()
        self._scores.pop(step, None)
        return True

    def restore(self, step: int | None = None, target: Any = None, **options: Any) -> Any:
        """ckptfs.restore() of a step, of the latest if None. FileNotFoundError if there is none."""
        self.wait_until_finished()
        options.setdefault("workers", self._workers)
        if step is not None:
            return reading.restore(self.path(step), target, **options)
        while (step := self.latest_step()) is not None:
            try:
                return reading.restore(self.path(step), target, **options)
            except OSError as e:
                if e.errno not in (None, errno.ENOENT, errno.ESTALE) or self.latest_step() == step:
                    raise  # else it was deleted, and there is a later one
        raise FileNotFoundError(f"{self.directory} has no step")

    def delete(self, step: int) -> None:
        """Delete a step, at once for all who look. FileNotFoundError if there is none."""
        if not self._read_only:
            self.wait_until_finished()
            shutil.rmtree(self.path(step))
            self._scores.pop(step, None)

    def pin(self, step: int, pinned: bool = True) -> None:
        """Keep a step whatever the rules, here and of the root."""
        os.setxattr(self.path(step), "user.ckpt.pinned", b"1" if pinned else b"0")

    def wait_until_finished(self) -> None:
        """Return when the save in the background is on stable storage, if there is one; raise its error."""
        if self._saver:
            self._saver.wait_until_finished()
        self._saving = None

    def check_for_errors(self) -> None:
        """Raise the error of a save in the background that has ended."""
        if self._saver:
            self._saver.check_for_errors()

    def is_saving_in_progress(self) -> bool:
        """Is a save in the background under way?"""
        return self._saver is not None and self._saver.is_saving_in_progress()

    def close(self) -> None:
        """wait_until_finished()."""
        self.wait_until_finished()

    def __enter__(self) -> "CheckpointManager":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _steps(self) -> dict[int, str]:
        """{number: name} of the finished steps."""
        found: dict[int, str] = {}
        for name in sorted(os.listdir(self.directory)):
            number = names.step_number(name)
            if number is not None and attribute(os.path.join(self.directory, name), "state") == "committed":
                found[number] = name
        return found

    def _own(self, step: int) -> str:
        """The path that this manager gives to a step."""
        return os.path.join(self.directory, names.step_name(step, self._prefix, self._digits))

    def _link(self, name: str) -> int | None:
        """The number of the step that a link of the mount leads to; None if there is no such link."""
        try:
            return names.step_number(os.readlink(os.path.join(self.directory, name)))
        except FileNotFoundError:
            return None

    def _score_of(self, step: int, name: str) -> float | None:
        """How good a step is, more is better; None if it has no metrics to tell, or is gone."""
        if step not in self._scores:
            found = reading.metrics(os.path.join(self.directory, name))
            score = math.nan
            if found is not None and self._score is not None:
                try:
                    score = float(self._score(found))
                except KeyError:
                    pass
            if self._best_mode == "min":
                score = -score
            self._scores[step] = None if math.isnan(score) else score
        return self._scores[step]

    def _clean(self) -> None:
        """Delete what no rule keeps."""
        if self._max_to_keep is None:
            return
        steps = self._steps()
        order = sorted(steps)
        keep = set(order[-1:])
        if self._score is None:
            keep.update(order[-self._max_to_keep :])
        else:
            scores = {step: self._score_of(step, steps[step]) for step in order}
            measured = sorted((score, step) for step, score in scores.items() if score is not None)
            keep.update(step for _, step in measured[-self._max_to_keep :])
            if self._keep_unmeasured:
                keep.update(step for step, score in scores.items() if score is None)
        if self._keep_period:
            keep.update(step for step in order if step % self._keep_period == 0)
        for step in order:
            path = os.path.join(self.directory, steps[step])
            if step in keep or attribute(path, "pinned") == "1":
                continue
            try:
                shutil.rmtree(path)
            except FileNotFoundError:  # the root's rules have just deleted it
                pass
            self._scores.pop(step, None)
