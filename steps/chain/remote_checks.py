"""What `main` asks of others before anything has run: does the corpus's address answer, does the hub have the models and the data set.

Only what the user names is asked for, and of a hub only small files: they stay in its cache for the stages. What cannot be known so: whether
every recording is there and whole, how long those of shards elsewhere are, and what is in a hub's data set.
"""

from pathlib import Path
from typing import Any

from moe.corpora.formats.hugging_face import dataset_fault
from moe.corpora.locations import address_fault, is_address
from moe.systems.whisper.base_source import SCRATCH, hub_fault, hub_model_fault
from moe.training.processes import ProcessOptions
from steps import ctc, decoder, pretrain
from steps.chain.stages import makes_decoder, running
from steps.options.step_options import SYNTHETIC
from steps.tracking import placement


def remote_faults(options: Any) -> list[str]:
    """Every name and address that does not answer, with the option that gives it.

    Args:
        options: `steps.main.StepOptions`.
    """
    asked = [("dataset_root", options.dataset_root, _corpus_fault(options))]
    stages = [module for module, _ in running(options)]
    if pretrain in stages and not options.is_path:
        asked.append(("init_from" if options.init_from else "whisper_model", options.source, hub_fault(options.source)))
    if decoder in stages and not makes_decoder(options):
        asked.append(("llm", options.llm, hub_model_fault(options.llm)))
    if ctc in stages and options.ctc_model not in (None, SCRATCH):
        asked.append(("ctc_model", options.ctc_model, hub_model_fault(options.ctc_model)))
    return [f"{name}={value}: {fault}" for name, value, fault in asked if fault] + placement.faults(options.part(ProcessOptions))


def _corpus_fault(options: Any) -> str | None:
    root = options.dataset_root
    if root is None or options.corpus == SYNTHETIC or Path(root).exists():
        return None
    if is_address(root):
        return address_fault(root)
    return dataset_fault(root, options.hf_config) if options.corpus == "hf" else "no such folder"
