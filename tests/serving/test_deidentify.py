"""A server that de-identifies training rows and prompts."""

import json
import sys
import time
from pathlib import Path

import openai
import pytest

pytest.importorskip("presidio_analyzer")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
from make_clinical_notes import notes

from tests.waiting import LIMIT_S

PROMPT = "Margaret Quintrell was seen on 14 March 2021, phone 555-203-9981."


def test_models_never_receive_identifiers(start_api, tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    api = start_api(bases={"tiny": str(tiny_llama)}, deidentify={})
    client = api.client()
    generated, originals = notes(14, seed=1)
    rows = [
        {"messages": [{"role": "user", "content": row["text"]}, {"role": "assistant", "content": row["label"]}]}
        for row in generated
    ]
    content = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    file = client.files.create(file=("notes.jsonl", content), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model="tiny", training_file=file.id, hyperparameters={"n_epochs": 1})
    deadline = time.monotonic() + LIMIT_S
    while (job := client.fine_tuning.jobs.retrieve(job.id)).status not in ("succeeded", "failed"):
        assert time.monotonic() < deadline, api.log.read_text()
        time.sleep(0.3)
    assert job.status == "succeeded", job.error

    run = api.home / "runs" / job.id
    assert json.loads((run / "receipts" / "summary.json").read_text())["deidentified"]["person"] >= len(rows)
    places = (api.home / "runs", api.home / "logs", tmp_path / "cache")
    texts = [path.read_bytes().lower() for place in places for path in place.rglob("*") if path.is_file()]
    assert len(texts) > 20
    assert not {word for word in originals for text in texts if word.lower().encode() in text}

    for model in ("tiny", job.fine_tuned_model):
        echoed = client.completions.create(model=model, prompt=PROMPT, max_tokens=1, echo=True, temperature=0)
        text = echoed.choices[0].text
        assert "was seen on" in text
        assert not [word for word in ("Margaret", "Quintrell", "14 March 2021", "555-203-9981") if word in text]
        completion = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": PROMPT}], max_completion_tokens=2
        )
        assert completion.usage.completion_tokens >= 1
    with pytest.raises(openai.BadRequestError, match="send the prompt as text"):
        client.completions.create(model="tiny", prompt=[5, 6, 7], max_tokens=1)
