#!/bin/sh
# The demo, as the commands one would type: quiz questions to chats, a LoRA run with held-out rows, the comparison.
# `make demo` calls it once environment and weights are there. The recipe: demo/recipe.yaml.
set -eu
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
model=models/smollm2-135m
run=runs/demo
question="What is the capital of Japan?"

type_and_run() {
    printf '\n$'
    for word in "$@"; do
        case $word in
        *" "*) printf ' "%s"' "$word" ;;
        *) printf ' %s' "$word" ;;
        esac
    done
    printf '\n'
    "$@"
}

# The ChatterBot corpus by Gunther Cox and contributors (BSD licence): downloaded here, not part of this repository.
corpus=$(python tools/fetch_from_package.py chatterbot-corpus==1.3.3 chatterbot_corpus/data/english/trivia.yml \
    3a9de77e6d82803d1ea3eba48cf6543c884908f4c4f50501fed69f88112994dc)
type_and_run python demo/prepare_data.py "$corpus" demo/data/quiz.jsonl

# Called again, `train` goes on where a run was stopped, and leaves a finished one as it is: remove runs/demo to start over.
type_and_run tunesmith train demo/recipe.yaml --run-dir "$run"
type_and_run python demo/compare.py "$run"

printf '\nA question that stands in none of the rows, before and after:\n'
type_and_run tunesmith chat "$model" "$question"
type_and_run tunesmith chat "$run" "$question"

printf '\nNow you:  .venv/bin/tunesmith chat %s      (talk to it)\n' "$run"
printf '          .venv/bin/tunesmith prove %s     (check the run: hashes, rows, a replay)\n' "$run"
printf '          %s/report.html                       (in a browser)\n' "$run"
