"""lm-evaluation-harness (EleutherAI, 0.4) on Tunesmith workers, through its public model interface (lm_eval.api.model).

Requests are run as evaluation jobs. Their tokens equal those of the harness's transformers interface (the prefix token
for an empty context, special tokens as added by the tokenizer). A context that is too long is truncated on the left.
Tasks come from the harness or from YAML files of the user.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from tunesmith.data.index.token_index import write_index
from tunesmith.errors import InputError
from tunesmith.evaluation.by_task import require_language_model
from tunesmith.evaluation.job import EvaluationJob, JobPart, answers_of_part, scores_of_part
from tunesmith.evaluation.processes import default_max_tokens, run_job
from tunesmith.evaluation.results import ExampleScores
from tunesmith.evaluation.subject import Subject, find_subject
from tunesmith.inference.types import Sampling

Document = tuple[list[int], list[bool], int]


@dataclass(frozen=True)
class TaskScores:
    """results: task -> metric -> value, as reported by the harness ("acc,none", "acc_stderr,none")."""

    model: str
    results: dict[str, dict[str, Any]]


def run_tasks(
    model: str,
    tasks: Sequence[str],
    workspace: Path,
    *,
    task_path: Path | None = None,
    workers: int = 1,
    batch_size: int | None = None,
    limit: int | None = None,
) -> TaskScores:
    """Run harness tasks on a run or a model.

    workspace: directory for the jobs. task_path: directory with the user's own tasks. limit: maximum number of examples
    per task. Raises InputError if a task is unknown or its data cannot be read.
    """
    subject = find_subject(model)
    require_language_model(subject, "--tasks")
    manager = TaskManager(include_path=str(task_path) if task_path else None)
    if unknown := [name for name in tasks if not manager.match_tasks([name])]:
        raise InputError(
            f"lm-evaluation-harness has no task {unknown[0]!r}",
            where="--tasks",
            remedy="list built-in tasks with `lm-eval ls tasks`, or add your own YAML files with --task-path",
        )
    harness = HarnessModel(model, subject, workspace, workers=workers, batch_size=batch_size)
    try:
        output = simple_evaluate(harness, tasks=list(tasks), task_manager=manager, limit=limit, bootstrap_iters=0)
    except (OSError, ConnectionError, ValueError, KeyError) as error:
        raise InputError(
            f"a task cannot be run: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            where=", ".join(tasks),
            remedy="its data must be on this machine, or the machine must be online (HF_HUB_OFFLINE unset)",
        ) from error
    results: dict[str, Any] = (output or {}).get("results", {})
    return TaskScores(subject.name, {name: dict(values) for name, values in results.items()})


class HarnessModel(TemplateLM):
    """Model interface called by the harness. target: argument of `find_subject`."""

    def __init__(
        self, target: str, subject: Subject, workspace: Path, *, workers: int = 1, batch_size: int | None = None
    ):
        super().__init__()
        path = Path(target).expanduser()
        self.target = str(path.resolve()) if path.exists() else target
        self.subject, self.workspace = subject, workspace
        self.workers, self.batch_size = workers, batch_size
        self._calls = 0

    @property
    def eot_token_id(self) -> int:
        token = self.subject.tokenizer.eos_token_id
        if token is None:
            raise InputError("the model's tokenizer has no eos token", where=self.subject.name)
        return token

    @property
    def prefix_token_id(self) -> int:
        first = self.subject.tokenizer.bos_token_id
        return self.eot_token_id if first is None else first

    @property
    def tokenizer_name(self) -> str:
        return self.subject.name.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_unused: Any) -> list[int]:
        prefix = self.subject.tokenizer.decode([self.prefix_token_id], skip_special_tokens=False)
        add = not string.startswith(prefix) if add_special_tokens is None else add_special_tokens
        return self.subject.tokenizer.encode(string, add_special_tokens=add)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_unused: Any
    ) -> list[tuple[float, bool]]:
        scores = self._score(
            [self._document(before, after, row) for row, (_, before, after) in enumerate(requests)], "loglikelihood"
        )
        return [
            (-loss_sum, num_correct == num_tokens)
            for loss_sum, num_correct, num_tokens in zip(
                scores.loss_sum.tolist(), scores.num_correct.tolist(), scores.num_tokens.tolist(), strict=True
            )
        ]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        documents = []
        for row, request in enumerate(requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.subject.context - 1,
                context_len=1,
            )
            documents += [self._document(*make_disjoint_window(window), row) for window in windows]
        return [-loss_sum for loss_sum in self._score(documents, "rolling").loss_sum.tolist()]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        groups: dict[str, list[int]] = {}
        for row, request in enumerate(requests):
            groups.setdefault(json.dumps(list(request.args)[1], sort_keys=True), []).append(row)
        texts: dict[int, str] = {}
        for options, rows in groups.items():
            texts |= self._generate([requests[row].args[0] for row in rows], rows, json.loads(options))
        return [texts[row] for row in range(len(requests))]

    def _generate(self, contexts: list[str], rows: list[int], gen_kwargs: dict[str, Any]) -> dict[int, str]:
        """Return answers by row. An answer takes at most half of the context, so that the prompt has the other half."""
        options: dict[str, Any] = dict(normalize_gen_kwargs(gen_kwargs))
        max_new_tokens = min(options["max_gen_toks"], self.subject.context // 2)
        sampling = Sampling(
            max_new_tokens,
            temperature=float(options.get("temperature") or 0.0),
            top_p=float(options.get("top_p") or 1.0),
            stop=tuple(text for text in options["until"] if text),
        )
        room = self.subject.context - max_new_tokens
        prompts = [(self.tok_encode(text)[-room:] or [self.prefix_token_id]) for text in contexts]
        # A document is the prompt and one supervised token.
        documents = [
            ([*tokens, self.eot_token_id], [False] * len(tokens) + [True], row)
            for tokens, row in zip(prompts, rows, strict=True)
        ]
        directory = self._run(documents, "generate", sampling)
        return {answer.row: answer.output for answer in answers_of_part(directory, "requests")}

    def _document(self, before: list[int], after: list[int], row: int) -> Document:
        """Tokens and targets, truncated on the left to the context length."""
        tokens = [*before, *after][-self.subject.context :]
        return tokens, [index >= len(tokens) - len(after) for index in range(len(tokens))], row

    def _score(self, documents: list[Document], what: str) -> ExampleScores:
        return scores_of_part(self._run(documents, what, None), "requests")

    def _run(self, documents: list[Document], what: str, sampling: Sampling | None) -> Path:
        """Run a job to completion and return its directory."""
        self._calls += 1
        index = self.workspace / f"{what}-{self._calls}"
        write_index(index, documents, max_seq_len=self.subject.context)
        kind = "score" if sampling is None else "generate"
        part = JobPart("requests", kind, str(index.resolve()), None, sampling)
        job = EvaluationJob(self.target, self.subject.fingerprint(), [part], default_max_tokens(), self.batch_size)
        directory = self.workspace / f"{what}-{self._calls}-{job.name}"
        run_job(job, directory, workers=self.workers)
        return directory
