"""lm-evaluation-harness scores are equal with Tunesmith's model interface and the harness's transformers interface."""

import dataclasses
import json
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

from tunesmith.data.index.token_index import TokenIndex
from tunesmith.errors import InputError
from tunesmith.evaluation.harness import HarnessModel, run_tasks
from tunesmith.evaluation.subject import find_subject

CHOICE = """\
task: local_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
ROLLING = """\
task: local_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list: [{{metric: word_perplexity}}, {{metric: bits_per_byte}}]
"""
ANSWER = """\
task: local_answer
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["e"], max_gen_toks: 6, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""
TASKS = {"local_choice": CHOICE, "local_text": ROLLING, "local_answer": ANSWER}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("tasks")
    words = ["licence", "work", "source", "patent", "notice", "derivative", "contribution"]
    rows = []
    for number in range(24):
        first, second = words[number % 7], words[(3 * number + 1) % 7]
        question = f"What of the {first} in section {number}? " * (1 + number % 3)
        rows.append(
            {
                "question": question.strip(),
                "choices": [first, f"the {second} alone", "none of them at all"],
                "label": number % 3,
                "answer": "",
            }
        )
    data = directory / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in TASKS.items():
        (directory / f"{name}.yaml").write_text(text.format(data=data))
    return directory


@pytest.fixture(autouse=True)
def _isolated_dataset_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


def test_scores_equal_those_of_the_transformers_interface(tiny_llama, tasks, tmp_path):
    scores = run_tasks(str(tiny_llama), list(TASKS), tmp_path, task_path=tasks, batch_size=4)
    reference = simple_evaluate(
        "hf",
        model_args={"pretrained": str(tiny_llama), "dtype": "float32"},
        device="cpu",
        tasks=list(TASKS),
        task_manager=TaskManager(include_path=str(tasks)),
        batch_size=1,
        bootstrap_iters=0,
    )["results"]
    assert set(scores.results) == set(TASKS)
    compared = 0
    for name in TASKS:
        for metric, value in reference[name].items():
            if isinstance(value, float):
                assert scores.results[name][metric] == pytest.approx(value, rel=1e-5), (name, metric)
                compared += 1
    assert compared >= 5
    assert 0.0 < scores.results["local_choice"]["acc,none"] < 1.0
    assert scores.results["local_text"]["bits_per_byte,none"] > 1.0


def test_long_answer_limit_leaves_half_of_the_context_to_the_prompt(tiny_llama, tmp_path):
    subject = find_subject(str(tiny_llama))
    harness = HarnessModel(str(tiny_llama), dataclasses.replace(subject, context=24), tmp_path)
    prompts = ["One licence. " * 20 + end for end in ("What of the work?", "What of the notice?")]
    (first, _) = harness._generate(prompts, [0, 1], {"until": ["\x00"], "max_gen_toks": 24}).values()
    index = TokenIndex.open(tmp_path / "generate-1")
    assert len(first) > 0
    lengths = [len(index.document(number).tokens) for number in (0, 1)]
    assert lengths == [13, 13], "half of the context and one supervised token"


def test_unknown_task_is_an_input_error(tiny_llama, tasks, tmp_path):
    with pytest.raises(InputError, match="has no task"):
        run_tasks(str(tiny_llama), ["no_such_task_anywhere"], tmp_path, task_path=tasks)
