"""Complete runs of tasks other than language modeling: trained, exported through the gate, killed and resumed."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch

from tests.conftest import make_tokenizer
from tests.event_lines import event_lines

WORDS = {"red": "rot", "blue": "blau", "house": "haus", "tree": "baum", "dog": "hund", "cat": "katze", "sun": "sonne"}
TOPICS = {
    "money": ["refund", "invoice", "price"],
    "access": ["password", "login", "account"],
    "post": ["parcel", "box"],
}


def write_rows(project, rows, name="rows.jsonl") -> dict:
    (project.directory / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"train": [name], "validation": 0.25, "max_seq_len": 96}


def topic_rows(number: int = 80) -> list[dict]:
    draw = random.Random(3)
    rows = []
    for _ in range(number):
        label = draw.choice(list(TOPICS))
        rows.append({"text": f"number {draw.randint(1, 999)} about my {draw.choice(TOPICS[label])}", "label": label})
    return rows


def tag_rows(number: int = 120) -> list[dict]:
    draw = random.Random(4)
    rows = []
    for _ in range(number):
        tags = [tag for tag in TOPICS if draw.random() < 0.5]
        text = " and ".join(draw.choice(TOPICS[tag]) for tag in tags) or "nothing"
        rows.append({"text": f"{draw.randint(1, 99)} with {text}", "label": tags})
    return rows


def pair_rows(number: int = 48) -> list[dict]:
    return [
        {
            "prompt": f"Question {n}: what about my {word}?",
            "chosen": f"Gladly, the {word} is done.",
            "rejected": f"No, {word} is not my work, go away.",
        }
        for n, word in zip(range(number), list(WORDS) * number, strict=False)
    ]


def rated_rows(number: int = 64) -> list[dict]:
    """The answers of `pair_rows` as single good and bad answers."""
    pairs = pair_rows(number)
    return [
        {"prompt": pair["prompt"], "completion": pair["chosen" if n % 2 else "rejected"], "label": bool(n % 2)}
        for n, pair in enumerate(pairs)
    ]


ARTICLES = {"the": "das", "a": "ein", "my": "mein", "no": "kein"}


def translation_rows() -> list[dict]:
    """Return word-by-word translations of every article with every noun."""
    return [
        {"source": f"{article} {noun}", "target": f"{ARTICLES[article]} {WORDS[noun]}"}
        for article in ARTICLES
        for noun in WORDS
    ]


def make_word_tokenizer(directory: Path, texts: list[str], template: str, special: dict[str, str]) -> int:
    """Write a word-level tokenizer with a template around each text; return the vocabulary size."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = sorted({word for text in texts for word in text.split() if word.isalpha()})
    vocabulary = {word: number for number, word in enumerate([*special.values(), *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    used = [(token, vocabulary[token]) for token in special.values() if token in template]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=used)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return len(vocabulary)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory) -> Path:
    """A BertModel with a few thousand parameters and a word tokenizer that adds [CLS] and [SEP] to a text."""
    from transformers import BertConfig, BertModel

    directory = tmp_path_factory.mktemp("tiny-bert")
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    texts = [row["text"] for row in [*topic_rows(), *tag_rows()]]
    size = make_word_tokenizer(directory, texts, "[CLS] $A [SEP]", special)
    torch.manual_seed(0)
    shape = BertConfig(
        vocab_size=size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
        initializer_range=0.1,
    )
    BertModel(shape).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory) -> Path:
    from transformers import T5Config, T5ForConditionalGeneration

    directory = tmp_path_factory.mktemp("tiny-t5")
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "[UNK]"}
    texts = [text for row in translation_rows() for text in row.values()]
    size = make_word_tokenizer(directory, texts, "$A </s>", special)
    torch.manual_seed(0)
    shape = T5Config(
        vocab_size=size,
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    T5ForConditionalGeneration(shape).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory) -> Path:
    from transformers import GPT2Config, GPT2LMHeadModel

    directory = tmp_path_factory.mktemp("tiny-gpt2")
    make_tokenizer(directory)
    torch.manual_seed(0)
    shape = GPT2Config(vocab_size=384, n_positions=256, n_embd=64, n_layer=2, n_head=4, eos_token_id=2, bos_token_id=1)
    GPT2LMHeadModel(shape).save_pretrained(directory)
    return directory


def task_of(project, task: str, models: dict[str, Path], **more) -> dict:
    """Return the recipe sections for a task with its tiny model."""
    rows = {
        "classification": topic_rows,
        "multi_label": tag_rows,
        "preference": pair_rows,
        "kto": rated_rows,
        "seq2seq": translation_rows,
    }[task]()
    sections = {
        "task": "classification" if task == "multi_label" else task,
        "model": {"base": str(models[task])},
        "data": write_rows(project, rows),
        "method": {"kind": "full"},
    }
    if task == "multi_label":
        sections["classification"] = {"kind": "multi_label"}
    return {**sections, **more}


@pytest.fixture
def models(tiny_bert, tiny_t5, tiny_llama) -> dict[str, Path]:
    return {
        "classification": tiny_bert,
        "multi_label": tiny_bert,
        "preference": tiny_llama,
        "kto": tiny_llama,
        "seq2seq": tiny_t5,
    }


def evaluations(run) -> tuple[dict, dict]:
    before, after = (
        next(event for event in event_lines(run.events, "evaluation") if event["when"] == when)
        for when in ("before", "after")
    )
    return before, after


@pytest.mark.parametrize("kind", ["full", "last_layers", "lora"])
@pytest.mark.parametrize("base", ["bert", "llama"])
def test_classifier_learns_its_labels_and_the_export_predicts_them(project, tiny_bert, tiny_llama, base, kind):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    method = {"full": {"kind": "full"}, "last_layers": {"kind": "last_layers", "num_layers": 1}}.get(
        kind, {"kind": "lora", "lora_rank": 8, "lora_alpha": 16}
    )
    recipe = project.write(
        task="classification",
        model={"base": str(tiny_bert if base == "bert" else tiny_llama)},
        data=write_rows(project, topic_rows()),
        method=method,
        optimization={"learning_rate": 5e-3, "global_batch_size": 8, "micro_batch_size": 4, "epochs": 8},
        checkpoint={"every_steps": 1000},
        evaluation={"every_steps": 1000},
    )
    run = project.train(recipe, "run")
    before, after = evaluations(run)
    assert after["classification"]["metrics"]["f1_macro"] > 0.9
    assert after["classification"]["metrics"]["f1_macro"] > before["classification"]["metrics"]["f1_macro"] + 0.3
    assert after["classification"]["metrics"]["f1_macro"] > after["classification"]["majority"]["f1_macro"] + 0.3
    assert "perplexity" not in after

    (export,) = event_lines(run.events, "export")
    assert export["gate"]["max_logit_difference"] <= 1e-4
    model = AutoModelForSequenceClassification.from_pretrained(run.export)
    tokenizer = AutoTokenizer.from_pretrained(run.export)
    assert model.config.id2label == dict(enumerate(sorted(TOPICS)))
    lines = [json.loads(line) for line in run.evaluation(after["step"]).read_text().splitlines()]
    rows = topic_rows()
    for line in lines[:5]:
        with torch.no_grad():
            logits = model(**tokenizer(rows[line["id"]]["text"], return_tensors="pt")).logits[0]
        assert line["label"] == rows[line["id"]]["label"]
        assert line["predicted"] == model.config.id2label[int(logits.argmax())]
        probabilities = list(line["probabilities"].values())
        assert probabilities == pytest.approx(logits.softmax(-1).tolist(), abs=1e-4)


def test_multi_label_classification_is_learned(project, models):
    recipe = project.write(
        **task_of(project, "multi_label", models),
        optimization={"learning_rate": 5e-3, "global_batch_size": 8, "epochs": 24},
        checkpoint={"every_steps": 1000},
    )
    _, after = evaluations(project.train(recipe, "run"))
    assert after["classification"]["metrics"]["f1_macro"] > 0.9
    assert after["num_tokens"] == 3 * after["num_examples"]


def test_translation_is_learned_exactly(project, tiny_t5):
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    rows = translation_rows()
    held_out, train = rows[::5], [row for number, row in enumerate(rows) if number % 5]
    write_rows(project, train, "train.jsonl")
    recipe = project.write(
        task="seq2seq",
        model={"base": str(tiny_t5)},
        data={**write_rows(project, held_out), "train": ["train.jsonl"], "validation": ["rows.jsonl"]},
        method={"kind": "full"},
        optimization={"learning_rate": 1e-2, "global_batch_size": 11, "micro_batch_size": 11, "epochs": 80},
        checkpoint={"every_steps": 1000},
        evaluation={"every_steps": 1000},
    )
    run = project.train(recipe, "run")
    _, after = evaluations(run)
    assert list(event_lines(run.events, "step"))[-1]["loss"] < 0.02
    assert after["token_accuracy"] > 0.8  # unseen combinations of words
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(run.export), AutoTokenizer.from_pretrained(run.export)
    for row in train:
        tokens = tokenizer(row["source"], return_tensors="pt")["input_ids"]
        output = model.generate(input_ids=tokens, max_new_tokens=24, do_sample=False)
        assert tokenizer.decode(output[0], skip_special_tokens=True) == row["target"]


def test_gpt2_memorizes_a_text(project, tiny_gpt2):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = "The quick brown fox jumps over the lazy dog, and the dog sleeps on."
    data = write_rows(project, [{"text": text}, {"text": text + " So it goes."}])
    recipe = project.write(
        task="text",
        model={"base": str(tiny_gpt2)},
        data={**data, "validation": 0.0},
        method={"kind": "full"},
        optimization={"learning_rate": 5e-3, "global_batch_size": 1, "epochs": 150, "dropout": 0.0},
        checkpoint={"every_steps": 1000},
        evaluation={"every_steps": 1000},
    )
    run = project.train(recipe, "run")
    last = list(event_lines(run.events, "step"))[-1]
    assert last["loss"] < 0.05
    model, tokenizer = AutoModelForCausalLM.from_pretrained(run.export), AutoTokenizer.from_pretrained(run.export)
    tokens = tokenizer("The quick", return_tensors="pt")["input_ids"]
    output = model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=60, do_sample=False)
    assert tokenizer.decode(output[0], skip_special_tokens=True).startswith(text[:-1])


@pytest.mark.parametrize("loss", ["dpo", "ipo", "orpo"])
def test_preference_losses_increase_the_margin_on_held_out_pairs(project, models, loss):
    recipe = project.write(
        **task_of(project, "preference", models),
        preference={"loss": loss, "beta": 0.5},
        optimization={"learning_rate": 2e-3, "global_batch_size": 8, "micro_batch_size": 4, "epochs": 3},
        checkpoint={"every_steps": 1000},
        evaluation={"every_steps": 1000},
    )
    run = project.train(recipe, "run")
    before, after = evaluations(run)
    assert after["preference"]["margin"] > before["preference"]["margin"] + 0.2
    assert after["loss"] < before["loss"]
    assert after["token_accuracy"] == 1.0
    if loss == "dpo":  # before training, the model equals the reference
        assert before["loss"] == pytest.approx(0.693147, abs=1e-5)
        assert abs(before["preference"]["margin"]) < 1e-4


def test_kto_separates_good_and_bad_answers_on_held_out_rows(project, models):
    recipe = project.write(
        **task_of(project, "kto", models),
        kto={"beta": 0.5},
        optimization={"learning_rate": 2e-3, "global_batch_size": 8, "micro_batch_size": 4, "epochs": 3},
        checkpoint={"every_steps": 1000},
        evaluation={"every_steps": 1000},
    )
    run = project.train(recipe, "run")
    before, after = evaluations(run)
    assert before["loss"] == pytest.approx(0.5, abs=1e-5)  # before training, the model equals the reference
    assert abs(before["kto"]["margin"]) < 1e-4
    assert before["kto"]["kl"] < 1e-4
    assert after["kto"]["margin"] > 0.5
    assert after["loss"] < 0.4
    assert after["token_accuracy"] > 0.9
    answers = [event for event in event_lines(run.events, "answers") if event["when"] == "after"]
    assert answers[0]["items"]
    assert all(item["reference"].startswith("Gladly") for item in answers[0]["items"])
    card = (run.export / "README.md").read_text()
    assert "| margin |" in card
    assert "kto:" in card
    assert "apply_chat_template" in card
    receipts = json.loads((run.receipts / "summary.json").read_text())
    assert receipts["fates"]["kept"] == 64
    report = project.run("report", "run")
    assert report.returncode == 0, report.stdout + report.stderr
    assert "Reward accuracy" in run.report.read_text()
    refused = project.run("evaluate", "run", "--data", "rows.jsonl")
    assert refused.returncode == 2
    assert "a run of task kto is evaluated on rows" in " ".join((refused.stdout + refused.stderr).split())


@pytest.mark.parametrize("task", ["classification", "preference", "kto", "seq2seq"])
def test_killed_run_resumes_bit_for_bit(project, models, task):
    recipe = project.write(
        **task_of(project, task, models, method={"kind": "lora", "lora_rank": 4, "lora_alpha": 8, "lora_dropout": 0.1}),
        optimization={"global_batch_size": 4, "micro_batch_size": 2, "epochs": 1, "max_steps": 6},
    )
    uninterrupted = project.train(recipe, "uninterrupted")
    result = project.run("train", recipe, "--run-dir", "killed", TUNESMITH_FAULT="step.update:4=kill")
    assert result.returncode == 1, result.stdout + result.stderr
    resumed = project.run("resume", "killed")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    killed = type(uninterrupted)(project.directory / "killed")
    proofs = project.run("prove", "killed")
    assert proofs.returncode == 0, proofs.stdout + proofs.stderr
    first, second = (
        {event["step"]: event["loss"] for event in event_lines(run.events, "step")} for run in (uninterrupted, killed)
    )
    assert first == second
    assert len(first) == 6
    weights = [
        sorted(run.checkpoints.glob("step-*/model.safetensors"))[-1].read_bytes() for run in (uninterrupted, killed)
    ]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("task", ["preference", "kto"])
def test_lost_reference_is_recomputed_bit_for_bit(project, models, task):
    recipe = project.write(**task_of(project, task, models), optimization={"epochs": 1})
    run = project.train(recipe, "run")
    stored = run.reference.read_bytes()
    copy = type(run)(project.directory / "copy")
    shutil.copytree(run.root, copy.root)
    copy.reference.unlink()
    copy.status.unlink()
    kept = [line for line in copy.events.read_text().splitlines() if '"kind":"end"' not in line]
    copy.events.write_text("".join(line + "\n" for line in kept))
    shutil.rmtree(copy.export)
    assert project.run("resume", "copy").returncode == 0
    assert copy.reference.read_bytes() == stored


def test_classifier_run_supports_only_classification_metrics(project, models):
    recipe = project.write(**task_of(project, "classification", models), optimization={"epochs": 1, "max_steps": 2})
    project.train(recipe, "run")
    result = project.run("evaluate", "run", "--data", "rows.jsonl", "--out", "out", "--json")
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout)
    metrics = summary["candidates"]["model"]["metrics"]
    assert {"f1_macro", "accuracy", "loss"} <= metrics.keys()
    assert not {"perplexity", "bits_per_byte"} & metrics.keys()
    assert summary["metrics"]["perplexity"] is None
    lines = [json.loads(line) for line in (project.directory / "out" / "results.jsonl").read_text().splitlines()]
    accuracy = sum(line["label"] == line["predicted"] for line in lines) / len(lines)
    assert metrics["accuracy"]["value"] == pytest.approx(accuracy)
    for options in (
        ("--baseline", str(models["preference"])), ("--few-shot", "2"), ("--metrics", "rouge"), ("--task", "text"),
    ):  # fmt: skip
        result = project.run("evaluate", "run", "--data", "rows.jsonl", *options)
        assert result.returncode == 2
        assert "does not support --" in result.stderr
    result = project.run("chat", "run", "hello")
    assert result.returncode == 2
    assert "does not support chat" in result.stderr
