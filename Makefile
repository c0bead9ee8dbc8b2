# One command each; everything they need is installed on first use.
PYTHON ?= python3
EXTRA  ?= cpu
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed-$(EXTRA)
NATIVE := $(VENV)/.built-$(EXTRA)
FIGURES ?= runs/figures

.PHONY: help install serve check format test test-all bench bench-speed clean

help:
	@echo "make install   make $(VENV) with everything in it (EXTRA=gpu for a CUDA machine)"
	@echo "make serve     start the server with the embedded model on 127.0.0.1:8000"
	@echo "make test      run the tests          make test-all  adds the slow suites"
	@echo "make check     lint, types, import contracts"
	@echo "make bench     run the benchmarks in their short form, minutes; make bench-speed  the tables of speed, hours"

install: $(NATIVE)

# torch is named in the same call as everything else: resolved on its own, a dependency would pull a newer one.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Fano needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) --version 2>&1). Set PYTHON=python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
	  || { rm -rf $(VENV); echo "No virtual environment could be made; on Debian: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "torch==2.13.0" -e ".[$(EXTRA),dev]"
	@touch $@

$(NATIVE): $(STAMP) model/kernels/build.py $(wildcard model/kernels/native/*.cpp model/kernels/native/*.h)
	@command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null \
	  || $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt ziglang
	$(BIN)/python -m model.kernels.build
	@touch $@

serve: $(NATIVE)
	$(BIN)/fano serve

check: $(NATIVE)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(NATIVE)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(NATIVE)
	$(BIN)/python -m pytest -m "not slow"

test-all: $(NATIVE)
	$(BIN)/python -m pytest

# Minutes: that everything is measured and agrees, on tiny models; no time of theirs is a result.
bench: $(NATIVE)
	$(BIN)/python -m bench.throughput --short
	$(BIN)/python -m bench.peers --short
	$(BIN)/python -m bench.streams --short
	$(BIN)/python -m bench.overhead --short
	$(BIN)/python -m bench.scrape --short
	$(BIN)/python -m bench.retrieval --short
	$(BIN)/python -m bench.recall --short
	$(BIN)/python -m bench.archive_summaries --short
	$(BIN)/python -m bench.archive_worth --short
	$(BIN)/python -m bench.archive_index --short
	$(BIN)/python -m bench.length --short
	$(BIN)/python -m bench.precision --short
	$(BIN)/python -m bench.gpu --short
	$(BIN)/python -m bench.long_prompts --short

# The tables of speed and memory in bench/RESULTS.md, into $(FIGURES). Hours, on a machine that does nothing else;
# bench.peers goes on where it was stopped. Without cmake and ninja, llama.cpp is told as missing, and without a CUDA
# device what is measured on one. What needs texts
# (bench.recall, bench.warm, bench.needles, ...) takes their paths: the command stands above its table.
bench-speed: $(NATIVE)
	mkdir -p $(FIGURES)
	-$(BIN)/python -m bench.llama
	$(BIN)/python -m bench.peers --out $(FIGURES)/peers.jsonl --models 28M > $(FIGURES)/peers.txt
	$(BIN)/python -m bench.overhead > $(FIGURES)/overhead.txt
	$(BIN)/python -m bench.scrape > $(FIGURES)/scrape.txt
	$(BIN)/python -m bench.streams > $(FIGURES)/streams.txt
	$(BIN)/python -m bench.length > $(FIGURES)/length.txt
	$(BIN)/python -m bench.throughput > $(FIGURES)/throughput.txt
	$(BIN)/python -m bench.peers --out $(FIGURES)/peers.jsonl --depths 0 512 1024 8192 > $(FIGURES)/peers-both.txt
	$(BIN)/python -m bench.restore > $(FIGURES)/restore.txt
	-$(BIN)/python -m bench.gpu > $(FIGURES)/gpu.txt

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
