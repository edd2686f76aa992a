# Needs python3 (3.11 or newer), make and a package registry; everything else is installed into .venv.
VENV := .venv
PYTHON := $(VENV)/bin/python
READY := $(VENV)/.ready
PEERS := $(VENV)-peers
DEMO := checkpoints/demo
PACKAGES := stagewise.callbacks stagewise.datamodules stagewise.lightning_modules \
  stagewise.command_line stagewise.sweep stagewise.sweep_space stagewise.sweep_table
IN_TWO := -n 2 --dist loadfile --no-loadscope-reorder  # tests that share what one of them trained stay together
PHASES := geopak_phase0,geopak_phase1,geopak_phase2

.PHONY: setup demo demo-drains demo-fusion demo-landslide test test-all bench lint lock clean

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	test -x $(PYTHON) || python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet uv
	$(PYTHON) -m uv pip install --quiet --compile-bytecode --python $(PYTHON) -r requirements.lock  # each start is twice as fast
	$(PYTHON) -m uv pip install --quiet --python $(PYTHON) --no-deps --editable .
	touch $@

demo: $(READY)
	$(PYTHON) train.py -m experiment=$(PHASES) demo=geopak
	$(PYTHON) evaluate.py -m split=test options.histogram=true \
	  checkpoint=$(DEMO)/phase0/phase0_best.ckpt,$(DEMO)/phase1/phase1_best.ckpt,$(DEMO)/phase2/phase2_best.ckpt
	$(PYTHON) predict.py checkpoint=$(DEMO)/phase2/phase2_best.ckpt input=data/demo/geopak/images/test \
	  output=$(DEMO)/predictions options.limit=8
	$(PYTHON) benchmarks/phase_table.py $(DEMO) --split test

demo-drains: $(READY)
	$(PYTHON) train.py experiment=drains_clip demo=drains
	$(PYTHON) predict.py checkpoint=$(DEMO)/drains_clip/drains_clip_best.ckpt detections=data/demo/drains/labels \
	  'input=data/demo/drains/images/site14_*' output=$(DEMO)/drains_clip/predictions  # a place of the test

demo-fusion: $(READY)
	$(PYTHON) train.py experiment=fusion_v5 demo=fusion

demo-landslide: $(READY)
	$(PYTHON) train.py experiment=landslide_v25 demo=landslide

test: $(READY)
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest --quiet --doctest-modules --pyargs $(PACKAGES)
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -m "not slow" $(IN_TWO)

test-all: $(READY)
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest $(IN_TWO)

bench: $(READY) $(PEERS)/.ready
	$(PYTHON) benchmarks/race_card.py --python $(PEERS)/bin/python

$(PEERS)/.ready: $(READY)  # of their own: torchmetrics would import transformers in every process
	test -x $(PEERS)/bin/python || python3 -m venv $(PEERS)
	$(PYTHON) -m uv pip install --quiet --compile-bytecode --python $(PEERS)/bin/python -r requirements.lock
	$(PYTHON) -m uv pip install --quiet --python $(PEERS)/bin/python --constraint requirements.lock --editable '.[peers]'
	-$(PYTHON) -m uv pip install --quiet --python $(PEERS)/bin/python --editable '.[crf-peer]'  # compiles; may not
	touch $@

lint: $(READY)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	rm -rf build && $(PYTHON) -m uv pip install --quiet --python $(PYTHON) --no-deps --target build/plain .
	cd build/plain && MYPYPATH=. ../../$(PYTHON) -m mypy --config-file ../../pyproject.toml -p stagewise

lock:
	$(PYTHON) -m uv pip compile --quiet --universal --python-version 3.11 --extra dev pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) $(PEERS) build checkpoints data/demo multirun .cache
