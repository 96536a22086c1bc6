# Everything here works on a machine with `make` and Python 3.11, and nothing else. See scripts/bootstrap.py.
.DEFAULT_GOAL := help
SETUP := scripts/python scripts/bootstrap.py
BIN := .venv/bin
# Two files of tests beside each other: more would be in each other's way on two cores.
PYTEST ?= -n 2 --dist loadfile

.PHONY: help run serve test check lint types imports format bench pins system-packages clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1 \t\2/p' Makefile | expand -t 24

run: ## start a throw-away server and run real jobs on it with the real client
	@$(SETUP) run
	@PATH="$(CURDIR)/.venvs/client-2.4.0/bin:$$PATH" $(BIN)/runstead exec -- sh scripts/demo

test: system-packages ## all checks, then all tests
	@$(SETUP) test
	@$(MAKE) --no-print-directory check
	$(BIN)/pytest $(PYTEST)

check: lint types imports ## all but the tests: lint, format, types, import contracts, generated pages

lint:
	@$(SETUP) test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/runstead config docs --check docs/configuration.md

types:
	$(BIN)/basedpyright

imports:
	$(BIN)/lint-imports

format: ## put code and generated pages in order
	@$(SETUP) test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/runstead config docs > docs/configuration.md

bench: ## measure
	@$(SETUP) test
	@for bench in $$(grep -l '__name__ == "__main__"' benchmarks/*.py); do \
		echo "== $$bench"; $(BIN)/python "$$bench" $(BENCH) || exit 1; \
	done

pins: ## write requirements/*.txt anew after a change of pyproject.toml
	scripts/pin

system-packages: # databases and network tools that tests use, where this may install them
	@scripts/system-packages

clean: ## remove all that make made
	rm -rf .venv .venvs .cache build dist
