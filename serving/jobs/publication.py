"""Checks of a finished run before its model is published, and its result file."""

import hashlib
import time
from pathlib import Path

from tunesmith.configs.plan import read_plan
from tunesmith.data.tokenization.planned import rendering_date
from tunesmith.inference.types import Target
from tunesmith.rundir.commit import read_manifest, verify
from tunesmith.serving.files.blobs import Blobs
from tunesmith.serving.jobs.adapter_files import same_tensors
from tunesmith.serving.jobs.fault import JobFault
from tunesmith.serving.jobs.job_run import JobRun
from tunesmith.serving.jobs.parity import require_parity
from tunesmith.serving.names import id_of
from tunesmith.serving.store.store import Store
from tunesmith.serving.store.tables import File, Job


def require_published_export(run: JobRun, last_checkpoint: Path | None) -> None:
    """Require that the export is intact, passed its gate, tokenizes like training, and has the weights of the last
    checkpoint. Raises JobFault (`export_refused`, `train_serve_mismatch`)."""
    export = run.run.export
    if (fault := verify(export)) is not None:
        raise JobFault("export_refused", f"The model is not published: its export is damaged: {fault}")
    gate = read_manifest(export).get("gate") or {}
    if not gate.get("passed"):
        raise JobFault("export_refused", f"The model is not published: its export failed the gate: {gate.get('fault')}")
    plan = read_plan(run.run.plan)
    today = rendering_date(plan.data.rendered_on)
    require_parity(plan.recipe, Target(Path(plan.model.directory), export), today)
    if last_checkpoint is not None and last_checkpoint.is_dir() and not same_tensors(export, last_checkpoint):
        raise JobFault("export_refused", "The model is not published: its export differs from its last checkpoint.")


def put_result(store: Store, blobs: Blobs, job: Job, csv: str) -> str:
    """Add the result file to the organization's files; returns its id. Idempotent."""
    content, file_id = csv.encode("utf-8"), id_of("file-", f"result of {job.id}")
    if store.files.get(file_id) is None:
        blobs.write(file_id, content)
        store.files.add(
            File(
                id=file_id,
                organization=job.organization,
                created_at=int(time.time()),
                bytes=len(content),
                filename=f"{job.id}-results.csv",
                purpose="fine-tune-results",
                status="processed",
                expires_at=None,
                blob=file_id,
                sha256=hashlib.sha256(content).hexdigest(),
            )
        )
    return file_id
