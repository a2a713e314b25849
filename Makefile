# Everything starts here: `make demo` and `make test` need python3 (3.11 or newer, with venv), make and git, nothing else.

VENV   := .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/made.stamp
MODEL  := models/smollm2-135m

.DEFAULT_GOAL := help
.PHONY: help demo test test-quick soak env models prove-models topics check format compare docs clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' Makefile

demo: env models ## fine-tune a real 135M model to extract records from news, compare it with the base model (a few minutes)
	@sh demo/run.sh

test-quick: env ## the tests that need no cluster, browser, real weights or whole run: under 5 minutes on 2 cores
	@$(PY) -m pytest --numprocesses=2 --dist=loadgroup --durations=10 \
		-m "not (slow or soak or cluster or browser or weights or gpu)" $(PYTEST_ARGS)

test: env models topics ## run the whole test suite
	@sh tools/debian_packages.sh
	@$(PY) -m pytest --numprocesses=2 --dist=loadgroup --durations=25 $(PYTEST_ARGS)

soak: env ## the long runs that `make test` leaves out: Ray disturbed, large heads, benchmarks, a thousand histories of jobs, other CPUs
	@sh tools/debian_packages.sh
	@TUNESMITH_SOAK=1 $(PY) -m pytest --durations=15 -m soak $(PYTEST_ARGS)
	@TUNESMITH_SOAK=1 $(PY) -m pytest --durations=15 tests/serving/jobs/test_histories.py $(PYTEST_ARGS)
	@PYTHON=$(PY) sh tools/other_cpus.sh

env: $(STAMP) ## make .venv with Tunesmith and its tools

$(STAMP): pyproject.toml setup.py tools/make_env.sh
	@sh tools/make_env.sh $(VENV)
	@touch $@

models: env ## fetch the SmolLM2-135M-Instruct weights into models/ (93 MB, once)
	@$(PY) tools/make_smollm2.py $(MODEL)

prove-models: env ## train, export and serve a tiny model of every causal class of transformers; writes docs/models.md (up to an hour)
	@$(PY) tools/prove_models.py --resume --jobs 2

topics: env ## fetch MiniLM (83 MB) and posts of 20 Newsgroups, once
	@$(PY) tools/make_topics.py models demo/data

check: env ## formatting, lint and types
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@$(PY) -m pyright

format: env ## format the code and fix what the linter can fix
	@$(PY) -m ruff format .
	@$(PY) -m ruff check --fix .

compare: env ## with BASE=DIR: run the same recipes with that checkout and with this one, and compare every bit
	@test -n "$(BASE)" || { echo "name the other checkout: make compare BASE=DIR" >&2; exit 2; }
	@$(PY) tools/compare_checkouts.py "$(BASE)" .

docs: env ## write docs/recipe.md from the recipe's schema
	@$(PY) tools/write_recipe_reference.py

clean: ## remove the environment and what tools left behind; runs/, models/ and the download cache stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build dist *.egg-info demo/data
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
