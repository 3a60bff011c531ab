"""The finished points of a sweep, each read once, and the table and page that show them."""

from __future__ import annotations

from kacl_jax.evaluation.results import Results
from kacl_jax.runtime import files
from kacl_jax.sweep import compare, fused, measure, page, table
from kacl_jax.sweep.hyper import Point
from kacl_jax.sweep.plan import Plan


class FinishedPoints:
    """Reads and measures each finished point once, however often it is asked. For one thread at a time."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._files: dict[Point, measure.RunFiles] = {}
        self._measurements: dict[Point, measure.RunMeasurements] = {}

    def is_finished(self, point: Point) -> bool:
        """Whether the point was trained to its last step and tested after that, by the same rule as main uses.

        Raises:
          UserError: it is finished, but ran with another config; or a file of it cannot be read.
        """
        if point in self._files:
            return True
        workdir = self._plan.point_workdir(point)
        if not (workdir / "results.json").exists():
            return False
        run = measure.read_files(workdir)
        last_step = self._plan.point_config(point).train.epochs * run.steps_per_epoch
        if not last_step or run.results.trained_steps != last_step:
            return False
        self._plan.check_stored_config(point, run.config)
        self._files[point] = run
        return True

    def write_table(self) -> str:
        """Write sweep.csv, sweep.md and report.html of the finished points; return the text of sweep.md.

        A point with a broken file, or without any radiomic features, is named and left out.

        Raises:
          UserError: a point that ran with another config; points that cannot be compared.
        """
        plan = self._plan
        runs: dict[Point, measure.RunMeasurements] = {}
        left_out: dict[Point, str] = {}
        for point in plan.sweep.points:
            try:
                if self.is_finished(point):
                    runs[point] = self._measure(point)
            except measure.BrokenRunError as error:
                left_out[point] = str(error)
            if point in runs and _measured_nothing(self._files[point].results):
                left_out[point] = "No region gave radiomic features, so its loss was another one."
                del runs[point]
        rows = compare.compare_arms(plan.sweep.arms, runs, box_share=plan.config.data.box_share)
        rows += fused.fused_rows(plan.sweep.arms, runs)
        title = f"Sweep {plan.config_name}"
        text = table.as_markdown(title, plan.sweep.points, runs, rows, left_out)
        files.write_text(plan.workdir / "sweep.csv", table.as_csv(rows))
        files.write_text(plan.workdir / "sweep.md", text)
        if runs:
            page.write_sweep(plan.workdir, runs, left_out)
        return text

    def _measure(self, point: Point) -> measure.RunMeasurements:
        if point not in self._measurements:
            self._measurements[point] = measure.measure_run(self._files[point])
        return self._measurements[point]


def _measured_nothing(results: Results) -> bool:
    """Whether a run that uses radiomics got none. Without radiomics the hit rate is None."""
    return results.feedback.hit_rate == 0
