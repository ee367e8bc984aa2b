# make demo | demo-ne | demo-ko | demo-personal | try | ui | server | test | check | format | hooks | torture | audit | base | decoder | install | clean
# Needs Python 3.11, 3.12 or 3.13; another one than python3: make PYTHON=/path/to/python3.12 demo; a minute's trial: make demo OPTIONS='-P mode=quick'

PYTHON ?= python3
LISTEN ?= 127.0.0.1
PORT ?= 5000
EXPERIMENT ?= whisper-moe

BIN := $(CURDIR)/.venv/bin
STAMP := .venv/.installed
DEV_STAMP := .venv/.installed-dev
STORE = $$(python -c "from steps.tracking.store import tracking_address; print(tracking_address().uri)")
MLFLOW_RUN = MLFLOW_TRACKING_URI="$(STORE)" mlflow run . --env-manager local --experiment-name "$(EXPERIMENT)"
EXPERIMENT_ID = $$(python -c "from steps.tracking.store import connect; print(connect().experiment_id)" | tail -n 1)

# mixture and one LoRA side by side, unless OPTIONS says how the machine is divided
DIVIDED = $(strip $(foreach name,systems_together num_processes cluster,$(findstring $(name)=,$(OPTIONS))))
SIDE_BY_SIDE = $(if $(DIVIDED),,-P systems_together=2)

# `mlflow run --env-manager local` starts the first `python` on the path
export PATH := $(BIN):$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION := false

.PHONY: help install demo demo-ne demo-ko demo-personal try ui server test check lint types rules format hooks torture audit base decoder clean

help:
	@sed -n '1,2s/^# //p' Makefile

install: $(STAMP)

# once for each state of requirements.txt
$(STAMP): requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v in ((3, 11), (3, 12), (3, 13)) else "Python 3.11, 3.12 or 3.13 is needed, but $(PYTHON) is %d.%d: make PYTHON=/path/to/python3.12 ..." % v)'
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv || \
		{ rm -rf .venv; echo "no virtual environment could be made; on Debian or Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "installing the pinned packages into .venv, once: two or three minutes"
	@python -m pip install --disable-pip-version-check --requirement requirements.txt >.venv/install.log 2>&1 || { cat .venv/install.log >&2; exit 1; }
	@touch $@

# what only the checks need
$(DEV_STAMP): requirements-dev.txt requirements-buckets.txt requirements-cluster.txt requirements-server.txt $(STAMP)
	@python -m pip install --quiet --disable-pip-version-check --requirement requirements-dev.txt
	@touch $@

# the store is made first, under a lock: two `mlflow run` at once on a fresh store would break each other
demo:
	@echo "The whole experiment on synthetic speech: a mixture of LoRA experts against one LoRA of the same size and against the base model."
	@echo "It took five minutes on two idle cores, and works offline but for the pinned packages, which are installed once."
	@echo "Each stage says in a line how it ended. Ctrl-C stops it; the same command goes on where it was."
	@$(MAKE) --silent --no-print-directory install
	@python -c "from steps.tracking.store import connect; connect()"
	@MLFLOW_LOGGING_LEVEL=WARNING $(MLFLOW_RUN) $(SIDE_BY_SIDE) $(OPTIONS)

# from no weights at all: a Wav2Vec2-BERT CTC on synthetic Nepali
demo-ne:
	@echo "Synthetic Nepali, 195 words of which 23 are in the test split alone: a Wav2Vec2-BERT CTC of 1.3 million parameters from random weights."
	@echo "It took six minutes on two idle cores. Offline but for the pinned packages. Ctrl-C stops it; the same command goes on where it was."
	@$(MAKE) --silent --no-print-directory install
	@python -c "from steps.tracking.store import connect; connect()"
	@MLFLOW_LOGGING_LEVEL=WARNING $(MLFLOW_RUN) -P options_file=presets/nepali.yaml $(OPTIONS)

# in Korean: a base from typical synthetic speech, then domain tokens over WebDataset shards, scored under every token
demo-ko:
	@echo "Synthetic Korean: a Whisper from typical speech, then domain tokens over WebDataset shards, scored under every token."
	@echo "It took 17 minutes on two idle cores. Offline but for the pinned packages. Ctrl-C stops it; the same command goes on where it was."
	@$(MAKE) --silent --no-print-directory install
	@python -c "from steps.tracking.store import connect; connect()"
	@MLFLOW_LOGGING_LEVEL=WARNING $(MLFLOW_RUN) -P until=pretrain -P purpose=pretraining -P synthetic_language=ko -P language=ko -P styles=typical \
		-P alignments=true -P seen_share=0 -P n_train_speakers=120 -P n_utterances=60 -P init_from=scratch -P tokenizer=bpe -P n_merges=400 \
		-P pretrain_updates=1300 -P export_dir=demo-ko/base
	@MLFLOW_LOGGING_LEVEL=WARNING $(MLFLOW_RUN) -P synthetic_language=ko -P language=ko -P format=webdataset -P whisper_model=demo-ko/base \
		-P systems=zero_shot,domain_whisper -P register_system=any -P ablation_utterances=0 $(OPTIONS)

# after a demo: experts and weights of their own for 50 people who were not in training, above the demo's recognisers; all of it: SIZES=5,10,20,40
demo-personal: install
	python -m benchmarks.personal --demo --sizes $(or $(SIZES),20)

# in a process for each core, four at most, with one thread each (two: OMP_NUM_THREADS=2 make test); in one process: python -m pytest
test: install
	python -m pytest -q --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

ui: install
	@echo "http://127.0.0.1:$(PORT)/#/experiments/$(EXPERIMENT_ID)/runs?workflowType=machine_learning (ready in some ten seconds)"
	mlflow server --backend-store-uri "$(STORE)" --default-artifact-root "$(CURDIR)/mlruns" --workers 1 --host 127.0.0.1 --port $(PORT)

# a tracking server for several machines, its data in server/. For others to reach: make LISTEN=0.0.0.0 ALLOWED_HOSTS=server.lab:5000 server
server: install
	@python -c "import psycopg, boto3" 2>/dev/null || python -m pip install --quiet --disable-pip-version-check --requirement requirements-server.txt
	@python -m steps.server --host $(LISTEN) --port $(PORT) $(if $(ALLOWED_HOSTS),--allowed_hosts "$(ALLOWED_HOSTS)") $(OPTIONS)

# a page on this machine to record or drop a file and see what the champion makes of it; Gradio is installed for it, once
try: install
	@python -c "import gradio" 2>/dev/null || python -m pip install --quiet --disable-pip-version-check --requirement requirements-try.txt
	@python -m steps.try_page $(OPTIONS)

# kill, fill, stop and start again: hours; goes on where it was. A part: make torture ONLY=kill-chain,server SEEDS=5
torture: install
	python -m benchmarks.torture $(if $(ONLY),--only $(ONLY)) --seeds $(or $(SEEDS),20)

# known vulnerabilities of the pinned versions, asked of PyPI; or read from advisories brought along: make audit ADVISORIES=DIR
audit: $(DEV_STAMP)
	python -m benchmarks.audit $(ADVISORIES)

# what has to hold before the tests: style, types, and the rules that tests read off the source and the written files
check: lint types rules

lint: $(DEV_STAMP)
	ruff check .
	ruff format --check .
	check-jsonschema --quiet --builtin-schema vendor.compose-spec deploy/compose.yaml
	hadolint deploy/Dockerfile
	shellcheck deploy/slurm.sbatch deploy/slurm_ray.sbatch
	kubernetes-validate --quiet --strict deploy/kubernetes_job.yaml deploy/kubernetes_volume.yaml

types: $(DEV_STAMP)
	mypy

rules: $(DEV_STAMP)
	python -m pytest -q tests/test_layers.py tests/test_docstrings.py tests/steps/options/test_project_files.py

format: $(DEV_STAMP)
	ruff check --fix .
	ruff format .

# the same checks before each commit
hooks: $(DEV_STAMP)
	pre-commit install

# make the shipped base models again, from speech to weights
base: install
	$(MLFLOW_RUN) -P until=pretrain -P seed=0 -P purpose=pretraining -P styles=typical -P alignments=true -P seen_share=0 \
		-P n_train_speakers=160 -P n_utterances=63 -P n_dev_speakers=12 -P n_dev_utterances=25 -P n_test_speakers=12 \
		-P n_test_utterances=25 -P n_reserved_speakers=12 -P init_from=scratch -P tokenizer=bpe -P export_dir=base/synthetic-en
	$(MLFLOW_RUN) -P systems=wav2vec2_ctc -P until=ctc -P seed=0 -P purpose=pretraining -P styles=typical -P seen_share=0 \
		-P n_train_speakers=100 -P n_utterances=40 -P n_dev_speakers=10 -P n_dev_utterances=20 -P n_test_speakers=1 \
		-P n_test_utterances=1 -P ctc_model=scratch -P ctc_epochs=6 -P export_dir=base/synthetic-en-ctc

# make the shipped language model of SteerMoE again
decoder: install
	$(MLFLOW_RUN) -e decoder -P init_from=scratch -P seed=0 -P export_dir=base/synthetic-en-decoder

clean:
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
