"""What a `tunesmith tune` command runs: the recipe, its search space, and where the trials are started."""

from dataclasses import dataclass

from tunesmith.configs.tasks import Metric
from tunesmith.configs.tune import TuneFile
from tunesmith.launcher.backends.cluster import Cluster, SubmitOptions
from tunesmith.launcher.planning.prepare_run import Request
from tunesmith.rundir.launch import Launch
from tunesmith.rundir.study import StudyDir


@dataclass(frozen=True)
class Search:
    """A study to run. launch: where its trials are started; options: of their submission."""

    directory: StudyDir
    request: Request
    tune_file: TuneFile
    cluster: Cluster
    launch: Launch
    options: SubmitOptions

    @property
    def metric(self) -> Metric:
        return self.tune_file.metric
