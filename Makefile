PYTHON ?= $(shell for python in python3.11 python3.12 python3; do \
	$$python -c 'import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null \
	&& echo $$python && break; done)
EXTRA ?= cpu
BIN := .venv/bin
SHIM := .ci/torchvision-cpu
SHIM_FILES := $(addprefix $(SHIM)/,pyproject.toml setup.py torchvision_cpu.py torchvision_cpu.pth)

.PHONY: setup demo test test-engines test-units test-rl test-pipelines test-cluster check trl real-model gpu-check bench-grading bench-annotate bench-borders bench-prm bench-rl bench-judges bench-agents bench-omni bench-real docs clean

setup: .venv/.installed-$(EXTRA)

# torch comes first, so that the rest is resolved against its build. The published torchaudio and torchcodec are linked
# against CUDA and stop the import of transformers and vLLM on a CPU-only torch; both do without them.
TORCH := torch==2.13.0$(if $(filter cpu,$(EXTRA)),+cpu)
TORCH_HELP := make: pip found no $(TORCH). Its CPU builds are in PyTorch's own package index: set \
	PIP_EXTRA_INDEX_URL to that index (see docs/install.md), or use EXTRA=gpu on a machine with a GPU
.venv/.installed-$(EXTRA): pyproject.toml $(SHIM_FILES)
	@test -n "$(PYTHON)" || { echo "make: needs Python 3.11 or 3.12 with ensurepip; set PYTHON=…" >&2; exit 2; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(TORCH) || { echo "$(TORCH_HELP)" >&2; exit 2; }
	$(BIN)/pip install --quiet -e '.[$(EXTRA),dev]'
	test $(EXTRA) != cpu || $(BIN)/pip uninstall --quiet --yes torchaudio torchcodec
	test $(EXTRA) != cpu || $(BIN)/pip install --quiet ./$(SHIM)
	rm -f .venv/.installed*
	touch $@

demo: setup
	$(BIN)/mmprm demo

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pytest --quiet tests/test_imports.py

# The groups run as separate processes, because vLLM and DeepSpeed keep process groups that outlive the engines of a
# test. On CPU, two run at a time, because most tests keep one core busy; on a GPU, an engine takes most of the memory.
TEST_JOBS ?= $(if $(filter cpu,$(EXTRA)),2,1)
PIPELINES := $(addprefix tests/integration/test_,demo.py recipes.py rl.py)

test: setup
	$(MAKE) --no-print-directory --jobs $(TEST_JOBS) --keep-going --output-sync=target test-engines test-units test-rl test-pipelines

test-engines: setup
	$(BIN)/pytest tests/integration --ignore-glob "*/test_cluster*" $(addprefix --ignore ,$(PIPELINES))

test-units: setup
	$(BIN)/pytest --ignore tests/integration --ignore tests/policy_rl

test-rl: setup
	$(BIN)/pytest tests/policy_rl

test-pipelines: setup
	$(BIN)/pytest $(PIPELINES)

# What can be checked of several machines on one; slow, so not part of `make test`.
test-cluster: setup
	$(BIN)/pytest tests/integration/test_cluster*.py

# TRL's trainer, beside the environment and not in it: tests/integration/test_trl_export.py runs one step of it.
trl: setup
	$(BIN)/pip install --quiet --upgrade --no-deps --target .venv-trl trl==1.8.0

# The pretrained model of the benchmark on real text; it and its converter stay in .real-model, outside the environment.
real-model: setup
	$(BIN)/python benchmarks/real/model.py

# Without a GPU: $(BIN)/python benchmarks/gpu.py --dry
gpu-check:
	$(BIN)/python benchmarks/gpu.py

bench-grading: setup
	$(BIN)/python benchmarks/grading.py

bench-annotate: setup
	$(BIN)/python benchmarks/annotate.py

bench-borders: setup
	$(BIN)/python benchmarks/step_borders.py

bench-prm: trl
	$(BIN)/python benchmarks/prm.py

# About nine hours on two quiet cores; --status shows what is missing, and --only PART measures one part.
bench-rl: trl
	$(BIN)/python benchmarks/rl.py

bench-judges: setup
	$(BIN)/python benchmarks/judges.py

# Both need the tiny policy that plays Sokoban, and the second one uses the PRM of the first.
bench-agents: setup
	test -d runs/sokoban/policy || $(BIN)/python -m mmprm tiny sokoban-policy --output runs/sokoban/policy
	$(BIN)/python -m benchmarks.agents_labels
	$(BIN)/python -m benchmarks.agents

# About an hour on two quiet cores; --only PART measures one part, and an interrupted part resumes.
bench-omni: setup
	test -d runs/omni/policy || $(BIN)/python -m mmprm tiny omni-policy --output runs/omni/policy
	$(BIN)/python -m benchmarks.omni

# About six hours on two quiet cores; --only PART measures one part, and an interrupted part resumes.
bench-real: real-model
	$(BIN)/python -m benchmarks.real.run

# Builds the documentation into build/site, without network access once the packages are installed.
# With --quiet, MkDocs would not count warnings, and --strict would let dead links pass.
docs: setup .venv/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.venv/.installed-docs: pyproject.toml | setup
	$(BIN)/pip install --quiet -e '.[docs]'
	touch $@

clean:
	rm -rf .venv .venv-trl .real-model runs build *.egg-info
