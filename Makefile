# A fresh clone needs only Python and make: `make demo` and `make test` each install into .venv by themselves.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install test range demo lint format lock clean

VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := dev,slurm,wandb,tensorboard
PYTEST_ARGS ?=
# What reads or writes through transformers.
RANGE_TESTS ?= tests/models tests/runner/test_asking.py tests/runner/test_seven_billion.py tests/runner/commands/test_ask.py \
	tests/runner/commands/test_real_models.py
# What `make lock` holds fixed besides the floors of pyproject.toml: the pair the tests run with.
LOCK_PINS ?= torch==2.14.1 torchvision==0.29.1

help: ## this list
	@sed -n 's/^\([a-z]*\):[^#]*## /\1|/p' Makefile | while IFS='|' read -r name line; do printf '  make %-8s %s\n' "$$name" "$$line"; done

install: $(STAMP) ## the package, its tools and the locked dependencies, into .venv

demo: $(STAMP) ## the whole thing on a laptop, without downloads
	$(BIN)/hialign demo

test: lint ## style, types, import rules, then the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

range: $(STAMP) ## the models' tests with the oldest and the newest transformers that pyproject.toml admits
	for wanted in "transformers==5.17.0 huggingface-hub<2" "transformers huggingface-hub"; do \
		rm -rf $(VENV)/range && $(BIN)/python -m pip install --quiet --no-deps --target $(VENV)/range $$wanted \
		&& PYTHONPATH=$(VENV)/range $(BIN)/python -c 'import transformers; print("transformers", transformers.__version__)' \
		&& PYTHONPATH=$(VENV)/range OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 $(RANGE_TESTS) || exit 1; \
	done

lint: $(STAMP) ## style, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## rewrite the code in the house's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(STAMP) ## resolve constraints.txt anew
	$(BIN)/python -m pip install --quiet uv
	printf '%s\n' $(LOCK_PINS) > $(VENV)/pins.txt
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --upgrade --no-annotate --no-header \
		--no-emit-index-url --no-emit-find-links --constraints $(VENV)/pins.txt --output-file $(VENV)/lock.txt --quiet
	{ echo '# Made by `make lock`: uv pip compile --universal --python-version 3.11 over pyproject.toml with every extra.'; \
		cat $(VENV)/lock.txt; } > constraints.txt

clean: ## remove .venv, builds and caches; runs/ stays
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so an interrupted install is taken up again.
$(STAMP): pyproject.toml setup.py constraints.txt
	@rm -f $@
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		found=; python=; \
		for candidate in $(or $(PYTHON),python3.11 python3.12 python3.13 python3); do \
			version=$$($$candidate -c 'import platform; print(platform.python_version())' 2>/dev/null) || continue; \
			if ! $$candidate -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))'; then \
				found="$$found $$candidate ($$version)"; \
			elif ! $$candidate -c 'import ensurepip, venv' 2>/dev/null; then \
				found="$$found $$candidate ($$version, without the venv module: install python3-venv)"; \
			else python=$$candidate; break; fi; \
		done; \
		if [ -z "$$python" ]; then \
			echo "hialign needs Python 3.11, 3.12 or 3.13; found:$${found:- none of $(or $(PYTHON),python3.11 python3.12 python3.13 python3)}." >&2; \
			echo "Install one, or name it: make $(or $(firstword $(MAKECMDGOALS)),install) PYTHON=/path/to/python3.11" >&2; \
			exit 1; \
		fi; \
		echo "making $(VENV) with $$python ($$version)"; \
		$$python -m venv --clear $(VENV); \
	fi
	$(BIN)/python -m pip install -c constraints.txt -e ".[$(EXTRAS)]"
	@touch $@
